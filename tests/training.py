"""What the tests of the training share: small data, settings and networks, comparisons, and a training to be killed."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import trainer as trainer_module
from helpers.config import TrainingConfig
from helpers.data import ImageData
from helpers.locks import FolderInUse
from helpers.metrics import HISTORY_KEYS
from helpers.trainer import Trainer

TESTS = Path(__file__).resolve().parent

# 80 training images in batches of 16: 5 steps an epoch, 15 in all. oneDNN may crash below 16 channels at a stride.
PLAIN = {"num_classes": 4, "widths": (8, 16, 16, 16), "epochs": 3, "batch_size": 16, "val_size": 16,
         "warmup_epochs": 0.4, "learning_rate": 0.05, "dropout_rate": 0.0, "augmentation_strength": "none",
         "patience": 0, "mixed_precision": False, "device": "cpu", "progress": "none", "checkpoint_interval": 100,
         "checkpoint_minutes": 0}

# All that draws random numbers or keeps a state of its own.
SGD_RUN = PLAIN | {"dropout_rate": 0.3, "ema_decay": 0.9, "augmentation_strength": "moderate", "patience": 10,
                   "gradient_accumulation_steps": 2, "batch_size": 8, "lr_scheduler": "step", "lr_milestones": [2]}
MUON_RUN = PLAIN | {"model": "FlipCNN", "widths": (8, 8, 16), "optimizer": "muon", "flip": "alternating",
                    "augmentation_strength": "basic", "start_image_size": 16, "mixup_alpha": 0.4, "cutmix_alpha": 1.0,
                    "lr_scheduler": "linear", "gradient_clip": 0}

# Four epochs, so that the last one distils.
DISTILLED_RUN = MUON_RUN | {"mix_probability": 0.4, "self_distillation": 0.4, "epochs": 4}

# What a GPU can replay: without mixing, and small enough to take the same way twice.
CUDA_RUN = MUON_RUN | {"device": "cuda", "widths": (16, 16, 32), "mixup_alpha": 0, "cutmix_alpha": 0,
                       "learning_rate": 0.02, "start_image_size": 32}


def in_precision(precision):
    """The settings for "fp32", "bf16" or "fp16"."""
    return {"mixed_precision": False} if precision == "fp32" else {"mixed_precision": True, "precision": precision}


def colour_data(noise=60):
    """96 training images of four classes, each of its own colour; no test split, which training must not touch."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 4
    colours = torch.tensor([[170, 90, 90], [90, 170, 90], [90, 90, 170], [128, 128, 128]])
    speckle = torch.randint(-noise, noise + 1, (96, 32, 32, 3), generator=generator)
    images = (colours[labels][:, None, None] + speckle).to(torch.uint8)
    return ImageData(images, labels, None, None, ("red", "green", "blue", "grey"), source="this test")


def make_trainer(folder, settings=PLAIN, **changes):
    arguments = {name: changes.pop(name) for name in ("model", "on_epoch", "on_progress", "data") if name in changes}
    data = arguments.pop("data", None) or colour_data()
    return Trainer(TrainingConfig(**settings | changes), data, folder, **arguments)


def fit_without_a_break(folder, settings):
    trainer = make_trainer(folder, settings)
    trainer.fit()
    return trainer


def take_steps(trainer, count):
    """Go on by so many steps, as `fit` does: their losses, and how many predictions were right."""
    trainer.model.train()
    schedule, found = trainer.schedule, []
    for _ in range(count):
        number = trainer.step
        found.append(trainer.replayed_step(number // schedule.steps_per_epoch, schedule.batches(number),
                                           schedule.image_size(number), schedule.learning_rate_factor(number)))
    return tuple([value.item() for value in values] for values in zip(*found))


def linear_model():
    """A network whose images do not depend on each other: neither norm nor dropout."""
    torch.manual_seed(1)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4))


def at_batch(trainer, epoch, index, action):
    """Call `action` when the trainer asks for this batch."""
    make_batch = trainer.loader.batch

    def batch(*place):
        if place[:2] == (epoch, index):
            action()
        return make_batch(*place)

    trainer.loader.batch = batch


def stop_at_batch(trainer, epoch, index):
    at_batch(trainer, epoch, index, trainer.stop)


def stop_after(trainer, steps, monkeypatch):
    """Let `fit` save and end after so many steps of the run, on any device."""
    monkeypatch.setattr(trainer_module, "READ_SECONDS", 0.0)
    trainer.on_progress = lambda trainer: trainer.step == steps - 1 and trainer.stop()


def drive_accuracies(monkeypatch, accuracies):
    """Let these be the validation accuracies, epoch by epoch."""
    values = iter(accuracies)
    monkeypatch.setattr(trainer_module, "topk_accuracy", lambda logits, labels, k: next(values) if k == 1 else 100.0)


# Comparisons -----------------------------------------------------------------------------------------------

def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(found, expected):
    """State dicts, bit for bit."""
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different, different


def assert_close(found, expected, **tolerance):
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **tolerance)


def assert_near(found, expected, start, share):
    """Two networks whose training began with the weights `start`: are they apart by at most this share of the way?"""
    ends = [dict(model.named_parameters()) for model in (found, expected)]

    def distance(one, other):
        return math.sqrt(sum((one[name] - other[name]).double().square().sum().item() for name in ends[0]))

    apart, way = distance(*ends), distance(ends[1], start)
    assert way > 0 and apart <= share * way, f"{apart:.3g} apart after a way of {way:.3g}"


def assert_same_run(found, expected):
    """Same weights and same record, but for what a clock measures."""
    assert_equal(weights_of(found.model), weights_of(expected.model))
    for key in set(HISTORY_KEYS) - {"seconds", "images_per_second", "peak_memory_mb", "train_loss"}:
        assert found.history[key] == expected.history[key], key
    assert found.history["train_loss"] == pytest.approx(expected.history["train_loss"])   # summed in other portions
    assert found.history.stopped == expected.history.stopped


def assert_continues_to_the_same_weights(folder, settings, step):
    """The run in `folder`/run stands at `step` and ends as one without a break does."""
    trainer = make_trainer(folder / "run", settings)
    assert trainer.step == trainer.began_at == step and step % trainer.schedule.steps_per_epoch != 0
    trainer.fit()
    assert_same_run(trainer, fit_without_a_break(folder / "whole", settings))
    assert trainer.began_at == step
    assert not [name for name in names_in(folder / "run") if name.endswith(".tmp")]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def steps_in(folder):
    """Steps of the checkpoints to continue from."""
    return [int(name[5:12]) for name in names_in(folder) if name.startswith("step_")]


# A process of its own, to be killed ------------------------------------------------------------------------

def run_in_child(function, *arguments):
    """Call a function of this file in a new Python; the finished process with its output."""
    code = f"import json, sys, training; training.{function.__name__}(*json.loads(sys.argv[1]))"
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, "-c", code, json.dumps(arguments, default=str)], capture_output=True,
                          text=True, timeout=120, env={**os.environ, "PYTHONPATH": path})


def train_and_signal_oneself(folder, settings, number=None):
    """Train; the signal `number` comes in the third step of the second epoch."""
    torch.set_num_threads(1)
    trainer_module.SAVE_SECONDS = 0.0
    signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell's background jobs ignore it
    trainer = make_trainer(folder, settings)
    if number is not None:
        at_batch(trainer, 1, 2, lambda: os.kill(os.getpid(), number))
    trainer.fit()
    print("fit returned,", trainer.history.stopped)


def kill_in_mid_save(folder, settings):
    """Die when half of the checkpoint of step 8 is written."""
    sync = os.fsync

    def sync_half(number):
        temporary = next(path for path in Path(folder).iterdir() if path.name.endswith(".tmp"))
        if not temporary.name.startswith(".step_0000008"):
            return sync(number)
        os.truncate(number, os.fstat(number).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = sync_half
    train_and_signal_oneself(folder, settings)


def train_beside_another(folder, settings):
    """In the second epoch, another process of the same kind tries to train in the same folder."""
    trainer = make_trainer(folder, settings)
    at_batch(trainer, 1, 1, lambda: print(run_in_child(train_and_be_refused, folder, settings).stdout))
    trainer.fit()
    assert names_in(Path(folder)) == ["best.pt", f"step_{trainer.total_steps:07d}.pt"]


def train_and_be_refused(folder, settings):
    before = names_in(Path(folder))
    try:
        make_trainer(folder, settings).fit()
    except FolderInUse as error:
        print("refused:", error)
    assert names_in(Path(folder)) == before
