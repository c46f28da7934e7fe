"""trainer: against plain loops; accumulation, precision, memory, divergence, early stopping, signals and resume."""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import checkpoint
from helpers import trainer as trainer_module
from helpers.checkpoint import CheckpointError
from helpers.config import TrainingConfig
from helpers.data import ImageData, stratified_split
from helpers.metrics import HISTORY_KEYS
from helpers.models import build_model
from helpers.trainer import Trainer, TrainingDiverged, predict

TESTS = Path(__file__).resolve().parent

# 80 training images in batches of 16: 5 steps an epoch, 15 in all. oneDNN may crash below 16 channels at a stride.
PLAIN = {"num_classes": 4, "widths": (8, 16, 16, 16), "epochs": 3, "batch_size": 16, "val_size": 16,
         "warmup_epochs": 0.4, "learning_rate": 0.05, "dropout_rate": 0.0, "augmentation_strength": "none",
         "patience": 0, "mixed_precision": False, "device": "cpu", "progress": "none", "checkpoint_interval": 100,
         "checkpoint_minutes": 0}

# All that draws random numbers or keeps a state of its own.
SGD_RUN = PLAIN | {"dropout_rate": 0.3, "ema_decay": 0.9, "augmentation_strength": "moderate", "patience": 10,
                   "gradient_accumulation_steps": 2, "batch_size": 8, "lr_scheduler": "step", "lr_milestones": [2]}
MUON_RUN = PLAIN | {"model": "FastCNN", "widths": (8, 8, 16), "optimizer": "muon", "flip": "alternating",
                    "augmentation_strength": "basic", "start_image_size": 16, "mixup_alpha": 0.4, "cutmix_alpha": 1.0,
                    "lr_scheduler": "linear", "gradient_clip": 0}

DISTILLED_RUN = MUON_RUN | {"mix_probability": 0.4, "self_distillation": 0.4, "self_distillation_from": 0.5}


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


def linear_model():
    """A network whose images do not depend on each other: neither norm nor dropout."""
    torch.manual_seed(1)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4))


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(found, expected):
    """State dicts, bit for bit."""
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def assert_close(found, expected, **tolerance):
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **tolerance)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def steps_in(folder):
    """Steps of the checkpoints to continue from."""
    return [int(name[5:12]) for name in names_in(folder) if name.startswith("step_")]


# Learning --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [PLAIN, MUON_RUN | {"mixup_alpha": 0, "cutmix_alpha": 0}])
def test_learns_a_separable_set(tmp_path, settings):
    epochs_seen = []
    trainer = make_trainer(tmp_path, settings, epochs=12, learning_rate=0.2,
                           on_epoch=lambda trainer: epochs_seen.append(len(trainer.history)))
    history = trainer.fit()
    assert history["train_loss"][-1] < 0.7 * history["train_loss"][0]
    assert history["val_top1"][-1] > 90
    assert history["val_top5"] == [100.0] * 12      # there are only four classes
    assert epochs_seen == history["epoch"] == list(range(1, 13))
    assert set(history.rows[0]) == set(HISTORY_KEYS) and history.stopped == ""
    assert not trainer.model.training


def test_equals_a_plain_loop(tmp_path):
    """Same batches, same rates, torch's own SGD, loss and clipping; then the validation measured by hand."""
    trainer = make_trainer(tmp_path, weight_decay=0.01, gradient_clip=0.5, label_smoothing=0.1)
    torch.manual_seed(trainer.config.seed)
    model = build_model("CIFAR100CNN", 4, PLAIN["widths"], 0.0).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True)
    losses, step = [], 0
    for epoch in range(3):
        for images, labels in trainer.loader.batches(epoch):
            for group in optimizer.param_groups:    # 2 steps of warm-up, half a cosine over the other 13
                group["lr"] = 0.05 * ((step + 1) / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 13)) / 2)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
            step += 1
    history = trainer.fit()
    assert_close(weights_of(trainer.model), weights_of(model), rtol=1e-5, atol=1e-6)
    assert history["train_loss"] == pytest.approx([sum(losses[i:i + 5]) / 5 for i in (0, 5, 10)], rel=1e-5)
    assert history["learning_rate"][-1] == pytest.approx(0.05 * (1 + math.cos(math.pi * 12 / 13)) / 2)

    data, (mean, std) = colour_data(), colour_data().channel_statistics()
    chosen = stratified_split(data.train_labels, 16, trainer.config.seed)[1]
    images, labels = data.train_images[chosen].permute(0, 3, 1, 2) / 255, data.train_labels[chosen]
    logits = model.eval()((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    assert history["val_loss"][-1] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-3)
    assert history["val_top1"][-1] == 100 * (logits.argmax(1) == labels).float().mean().item()


def test_progress_within_epochs_is_told_as_it_is(tmp_path, monkeypatch):
    """Called after each step, here, with the means of the epoch so far; and training is as without it."""
    monkeypatch.setattr(trainer_module, "READ_SECONDS", -1.0)
    seen, losses = [], []
    trainer = make_trainer(tmp_path / "told", on_progress=lambda trainer: seen.append(trainer.progress()))
    read = trainer_module._RunningMeans.read
    monkeypatch.setattr(trainer_module._RunningMeans, "read", lambda means: losses.extend(new := read(means)) or new)
    trainer.fit()
    assert [point["epoch"] for point in seen] == pytest.approx([step / 5 for step in range(1, 16)])
    means = [sum(losses[5 * (step // 5):step + 1]) / (step % 5 + 1) for step in range(15)]
    assert [point["train_loss"] for point in seen] == pytest.approx(means)
    assert [point["train_loss"] for point in seen][4::5] == pytest.approx(trainer.history["train_loss"])
    assert [point["train_accuracy"] for point in seen][4::5] == pytest.approx(trainer.history["train_accuracy"])
    assert [point["learning_rate"] for point in seen] == pytest.approx(
        [0.05 * trainer.learning_rate_factor(step) for step in range(15)])
    assert trainer.progress()["train_loss"] is None         # the last epoch has ended
    plain = make_trainer(tmp_path / "plain")
    plain.fit()
    assert_equal(weights_of(plain.model), weights_of(trainer.model))


def test_a_stop_asked_for_in_mid_epoch_is_heard_after_the_next_step(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "READ_SECONDS", -1.0)
    trainer = make_trainer(tmp_path, on_progress=lambda trainer: trainer.step == 7 and trainer.stop())
    assert trainer.fit(show_bar=False).stopped == "interrupted"
    assert trainer.step == 8 and steps_in(tmp_path) == [8] and trainer.stop_requested == "button"


def test_without_a_validation_split_the_last_weights_are_kept(tmp_path):
    seen = []
    trainer = make_trainer(tmp_path, val_size=0, patience=2, on_epoch=lambda t: seen.append(weights_of(t.model)))
    assert trainer.fit()["val_top1"] == [None] * 3
    assert_equal(weights_of(trainer.model), seen[-1])


def test_what_is_done_before_fit_does_not_change_the_weights(tmp_path):
    first, second = (make_trainer(tmp_path / name, MUON_RUN, epochs=1) for name in "ab")
    first.fit()
    torch.rand(1000)
    second.fit()
    assert_equal(weights_of(second.model), weights_of(first.model))


# Accumulation, clipping, precision, EMA --------------------------------------------------------------------

def test_accumulation_gives_the_step_of_one_big_batch(tmp_path):
    weights = [fit_linear(tmp_path / str(batch_size), batch_size=batch_size, gradient_accumulation_steps=accumulation)
               for batch_size, accumulation in ((40, 1), (20, 2), (8, 5))]
    assert_close(weights[1], weights[0])
    assert_close(weights[2], weights[0])


def fit_linear(folder, **changes):
    """Weights of the linear network after training; every image counts the same in it."""
    trainer = make_trainer(folder, model=linear_model(), **changes)
    trainer.fit()
    return weights_of(trainer.model)


def test_last_step_of_an_epoch_takes_the_batches_that_are_left(tmp_path):
    trainer = make_trainer(tmp_path, model=linear_model(), epochs=1, gradient_accumulation_steps=3, gradient_clip=0,
                           warmup_epochs=0, lr_scheduler="linear", momentum=0.0, weight_decay=0.0)
    model = linear_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batches = list(trainer.loader.batches(0))
    for part, factor in ((batches[:3], 1.0), (batches[3:], 0.5)):
        images, labels = torch.cat([images for images, _ in part]), torch.cat([labels for _, labels in part])
        optimizer.param_groups[0]["lr"] = 0.05 * factor
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
        optimizer.step()
    trainer.fit()
    assert trainer.step == trainer.total_steps == 2
    assert_close(weights_of(trainer.model), weights_of(model))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_gradients_are_clipped_after_they_are_unscaled(tmp_path, precision, optimizer):
    """Without momentum and decay a step is as long as rate × gradient_clip, whatever the loss scale."""
    trainer = make_trainer(tmp_path, model=linear_model(), epochs=1, optimizer=optimizer, gradient_clip=0.01,
                           momentum=0.0, weight_decay=0.0, head_momentum=0.0, head_learning_rate=0.05,
                           norm_learning_rate=0.05, mixed_precision=True, precision=precision, warmup_epochs=0,
                           lr_scheduler="linear")
    track, start = [weights_of(trainer.model)], trainer.loader.batch

    def batch(*arguments):
        track.append(weights_of(trainer.model))
        return start(*arguments)

    trainer.loader.batch = batch
    trainer.fit()
    for step, (before, after) in enumerate(zip(track[1:], [*track[2:], weights_of(trainer.model)])):
        length = math.sqrt(sum((after[name] - before[name]).square().sum().item() for name in after))
        assert length == pytest.approx(0.05 * (1 - step / 5) * 0.01, rel=0.01)


@pytest.mark.parametrize("precision, dtypes", [
    ("fp32", {torch.float32}), ("bf16", {torch.bfloat16}), ("fp16", {torch.float16})])
@pytest.mark.parametrize("settings", [PLAIN, MUON_RUN])
def test_network_runs_in_the_asked_precision(tmp_path, precision, dtypes, settings):
    trainer = make_trainer(tmp_path, settings, epochs=1, batch_size=5, val_size=81, eval_batch_size=5,
                           start_image_size=12, mixed_precision=True, precision=precision)
    seen = set()
    trainer.model.register_forward_hook(        # the FLOPs are counted with a single image, in fp32
        lambda _module, inputs, output: seen.update({inputs[0].dtype, output.dtype} if len(inputs[0]) > 1 else ()))
    history = trainer.fit()
    assert seen == dtypes
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert all(math.isfinite(loss) for loss in history["train_loss"] + history["val_loss"])
    assert trainer.scaler.is_enabled() == (precision == "fp16")


@pytest.mark.parametrize("settings", [PLAIN, MUON_RUN])
def test_ema_is_the_written_out_average_and_is_what_is_evaluated(tmp_path, settings):
    trainer = make_trainer(tmp_path, settings, ema_decay=0.8)
    average = {}

    def update(*_):
        decay = min(0.8, trainer.step / (trainer.step + 10))
        for name, tensor in trainer.model.state_dict().items():
            if not tensor.is_floating_point() or name not in average:
                average[name] = tensor.clone()
            else:
                average[name] = decay * average[name] + (1 - decay) * tensor

    trainer.optimizer.register_step_post_hook(update)
    measured = []

    def measure(trainer):
        right = predict(trainer.averaged_model, trainer.val_loader).argmax(1) == trainer.val_labels
        measured.append(100 * right.float().mean().item())

    trainer.on_epoch = measure
    history = trainer.fit()
    assert_close(weights_of(trainer.model), average, rtol=1e-4, atol=1e-6)
    assert history["val_top1"] == pytest.approx(measured)


@pytest.mark.parametrize("changes", [{}, {"data_placement": "host"}, {"gradient_accumulation_steps": 2}])
def test_self_distillation_adds_what_the_network_said_of_an_image_an_epoch_before(tmp_path, changes):
    trainer = make_trainer(tmp_path, DISTILLED_RUN, label_smoothing=0.2, **changes)
    past, losses, batches = {}, [], len(trainer.loader)

    def write_out(model, inputs, logits):
        if not model.training:
            return
        epoch, index = divmod(len(losses), batches)
        rows = trainer.loader.indices(epoch, index).tolist()
        _, labels = trainer.loader.batch(epoch, index, inputs[0].shape[-1])
        target = 0.8 * (labels if labels.ndim == 2 else F.one_hot(labels, 4)) + 0.2 / 4
        if labels.ndim == 1:                            # not mixed
            if epoch == 2:                              # the last of three, the first after half of them
                before = torch.stack([past.get(row, own) for row, own in zip(rows, target)])
                target = 0.6 * target + 0.4 * before
            past.update(zip(rows, logits.detach().softmax(1)))
        losses.append(-(target * logits.log_softmax(1)).sum(1).mean().item())

    trainer.model.register_forward_hook(write_out)
    history = trainer.fit()
    means = [sum(losses[i:i + batches]) / batches for i in range(0, len(losses), batches)]
    assert history["train_loss"] == pytest.approx(means, rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_predictions_in_evaluation_mode_plain_and_with_the_mirror_image(tmp_path, training):
    trainer = make_trainer(tmp_path, dropout_rate=0.5, eval_batch_size=7)      # 16 images: two batches and a rest
    model = trainer.model.train(training)
    images = torch.cat([images for images, _ in trainer.val_loader.batches()])
    plain, mirrored = predict(model, trainer.val_loader), predict(model, trainer.val_loader, flip=True)
    assert model.training is training
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(plain, model(images))
        torch.testing.assert_close(mirrored, (model(images) + model(images.flip(3))) / 2)


# The host waits for the device as rarely as it can ---------------------------------------------------------

@pytest.mark.parametrize("settings", [
    PLAIN,
    PLAIN | {"mixed_precision": True, "precision": "bf16", "augmentation_strength": "strong", "ema_decay": 0.9},
    MUON_RUN | {"mixup_alpha": 0, "cutmix_alpha": 0, "mixed_precision": True, "precision": "fp16",
                "gradient_clip": 1.0, "start_image_size": 12, "image_growth_fraction": 1.0}])
def test_reads_from_the_device_do_not_grow_with_the_steps(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(trainer_module, "READ_SECONDS", 1000)
    few, many = (count_reads(make_trainer(tmp_path / str(batch_size), settings, batch_size=batch_size, epochs=1),
                             monkeypatch) for batch_size in (40, 5))
    assert many == few


def count_reads(trainer, monkeypatch):
    """How often `fit` asks a tensor for its value in Python."""
    reads = []
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
            method = getattr(torch.Tensor, name)
            patch.setattr(torch.Tensor, name, lambda self, *args, name=name, method=method, **kwargs:
                          reads.append(name) or method(self, *args, **kwargs))
        patch.setattr(trainer, "save", lambda: None)
        trainer.fit()
    return len(reads)


# Image sizes -----------------------------------------------------------------------------------------------

def test_image_size_grows_in_even_steps_to_32(tmp_path):
    trainer = make_trainer(tmp_path, epochs=4, start_image_size=16, image_growth_fraction=0.5)
    sizes = []
    trainer.model.register_forward_pre_hook(
        lambda module, inputs: sizes.append(inputs[0].shape[-1]) if module.training else None)
    history = trainer.fit()
    # 20 steps, the first 10 of which grow by 1.6 pixels each; to the nearest even number, halves to the even half.
    assert sizes == [16, 18, 20, 20, 22, 24, 26, 28, 28, 30] + [32] * 10
    assert history["image_size"] == [22, 30, 32, 32]


@pytest.mark.parametrize("setting, value", [("crop_padding", 2), ("crop_padding", 0), ("cutout_size", 6)])
def test_sizes_of_the_augmentation_are_the_strengths_unless_given(tmp_path, setting, value):
    strong = {"settings": PLAIN | {"augmentation_strength": "strong"}}
    usual, changed = (make_trainer(tmp_path / name, **strong, **change).loader.augmentation
                      for name, change in (("usual", {}), ("changed", {setting: value})))
    assert (usual.crop_padding, usual.cutout_size) == (4, 8)
    assert changed == dataclasses.replace(usual, **{setting: value})


def test_train_size_is_what_is_trained_on(tmp_path):
    all_images, some = make_trainer(tmp_path, val_size=16), make_trainer(tmp_path, val_size=16, train_size=40)
    assert some.loader.count == 40 < all_images.loader.count
    assert torch.equal(some.val_loader.batch(0, 0)[0], all_images.val_loader.batch(0, 0)[0])
    assert some.total_flops() < all_images.total_flops()


def test_image_size_is_32_throughout_by_default(tmp_path):
    trainer = make_trainer(tmp_path)
    assert {trainer.image_size(step) for step in range(trainer.total_steps)} == {32}


# Early stopping --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("accuracies, epochs, best", [
    ([10, 30, 20, 20, 90], 4, 2),                   # two epochs without a better one
    ([10, 20, 20.5, 20.9, 90], 4, 4),               # gains too small to count, yet the best weights are the last
    ([10, 20, 20.5, 21.5, 21.6, 21.4, 90], 6, 5),   # a gain that is large enough after one that is not
    ([50, 50, 50, 90], 3, 1),                       # of equal ones the first
    ([10, 20, 30, 40, 50, 60, 70], 7, 7)])          # always better: to the end
def test_patience_and_best_weights(tmp_path, monkeypatch, accuracies, epochs, best):
    drive_accuracies(monkeypatch, accuracies)
    seen = []
    trainer = make_trainer(tmp_path, epochs=7, patience=2, min_delta=0.01,
                           on_epoch=lambda trainer: seen.append(weights_of(trainer.model)))
    history = trainer.fit()
    assert len(history) == epochs and history.stopped == ("early" if epochs < 7 else "")
    assert_equal(weights_of(trainer.model), seen[best - 1])
    assert_equal(checkpoint.load(tmp_path / "best.pt")["model_state_dict"], seen[best - 1])


def drive_accuracies(monkeypatch, accuracies):
    values = iter(accuracies)
    monkeypatch.setattr(trainer_module, "topk_accuracy", lambda logits, labels, k: next(values) if k == 1 else 100.0)


def test_best_weights_are_the_averaged_ones(tmp_path, monkeypatch):
    drive_accuracies(monkeypatch, [10, 30, 20])
    seen = []
    trainer = make_trainer(tmp_path, patience=5, ema_decay=0.9,
                           on_epoch=lambda trainer: seen.append(weights_of(trainer.averaged_model)))
    trainer.fit()
    assert_equal(weights_of(trainer.model), seen[1])


def test_an_early_stop_stays_one_after_resume(tmp_path, monkeypatch):
    drive_accuracies(monkeypatch, [10, 30, 20, 20, 90])
    first = make_trainer(tmp_path, epochs=7, patience=2)
    first.fit()
    second = make_trainer(tmp_path, epochs=7, patience=2)
    history = second.fit()
    assert second.is_finished and history.stopped == "early" and len(history) == 4
    assert_equal(weights_of(second.model), weights_of(first.model))


def test_patience_goes_on_counting_after_resume(tmp_path, monkeypatch):
    drive_accuracies(monkeypatch, [10, 30, 20, 20, 90])
    stop_in_epoch_4 = make_trainer(tmp_path, epochs=7, patience=2)
    stop_at_batch(stop_in_epoch_4, epoch=3, index=1)
    assert stop_in_epoch_4.fit().stopped == "interrupted"
    assert make_trainer(tmp_path, epochs=7, patience=2).fit().stopped == "early"


def test_an_interruption_in_the_epoch_that_ends_early_does_not_undo_the_early_stop(tmp_path, monkeypatch):
    drive_accuracies(monkeypatch, [10, 30, 20, 20, 90])
    trainer = make_trainer(tmp_path, epochs=7, patience=2)
    stop_at_batch(trainer, epoch=3, index=4)        # the last batch of the fourth epoch
    trainer.fit()
    assert make_trainer(tmp_path, epochs=7, patience=2).fit()["val_top1"] == [10, 30, 20, 20]


def stop_at_batch(trainer, epoch, index):
    at_batch(trainer, epoch, index, trainer.stop)


def at_batch(trainer, epoch, index, action):
    """Call `action` when the trainer asks for this batch."""
    make_batch = trainer.loader.batch

    def batch(*place):
        if place[:2] == (epoch, index):
            action()
        return make_batch(*place)

    trainer.loader.batch = batch


# Out of memory ---------------------------------------------------------------------------------------------

class SmallMemory(nn.Module):
    """Runs out of memory, forwards or backwards, with more than `limit` images."""

    def __init__(self, limit, where):
        super().__init__()
        self.network, self.limit, self.where = linear_model(), limit, where
        self.counts = []

    def forward(self, images):
        if self.training:
            self.counts.append(len(images))
            if len(images) > self.limit:
                if self.where == "forward":
                    run_out_of_memory()
                # The last layers' gradients are there by then; they must be thrown away.
                features = self.network[:3](images)
                features.register_hook(lambda _gradient: run_out_of_memory())
                return self.network[3:](features)
        return self.network(images)


def run_out_of_memory():
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("limit, parts", [(9, 2), (4, 4), (1, 16)])
def test_out_of_memory_halves_the_batch_and_keeps_the_step(tmp_path, caplog, where, limit, parts):
    trainer = make_trainer(tmp_path, model=SmallMemory(limit, where))
    with caplog.at_level(logging.WARNING, "cifar100"):
        history = trainer.fit()
    expected = fit_linear(tmp_path / "roomy")
    assert_close(weights_of(trainer.model.network), expected, rtol=1e-4, atol=1e-6)
    assert len(history) == 3 and trainer.step == 15
    tries = [16 // 2**power for power in range(int(math.log2(parts)) + 1)]
    assert trainer.model.counts[:len(tries)] == tries
    assert trainer.model.counts[len(tries):] == [16 // parts] * (15 * parts - 1)     # it does not forget
    warnings = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert len(warnings) == int(math.log2(parts))
    assert f"in {parts} parts; the effective batch stays 16" in warnings[-1]


def test_out_of_memory_with_accumulation_and_loss_scaling(tmp_path):
    precision = {"mixed_precision": True, "precision": "fp16"}
    trainer = make_trainer(tmp_path, model=SmallMemory(3, "backward"), gradient_accumulation_steps=2, batch_size=10,
                           **precision)
    trainer.fit()
    expected = fit_linear(tmp_path / "roomy", gradient_accumulation_steps=2, batch_size=10, **precision)
    assert_close(weights_of(trainer.model.network), expected, rtol=0.02, atol=1e-3)


def test_a_step_done_again_for_lack_of_memory_is_not_taught_its_first_answer(tmp_path):
    changes = {"self_distillation": 0.9, "self_distillation_from": 0, "gradient_accumulation_steps": 2}
    model = SmallMemory(16, "forward")
    trainer = make_trainer(tmp_path, model=model, **changes)

    def fail_once(*_):
        if len(model.counts) == 12:         # the second batch of the third epoch's first step
            model.counts.append(0)
            run_out_of_memory()

    model.network.register_forward_pre_hook(fail_once)
    trainer.fit()
    assert trainer.splits == 2
    assert_close(weights_of(model.network), fit_linear(tmp_path / "roomy", **changes), rtol=1e-4, atol=1e-6)


def test_out_of_memory_with_a_single_image_is_raised(tmp_path):
    with pytest.raises(torch.cuda.OutOfMemoryError):
        make_trainer(tmp_path, model=SmallMemory(0, "forward")).fit()


def test_other_errors_are_not_taken_for_lack_of_memory(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("cuDNN is broken")))
    with pytest.raises(RuntimeError, match="cuDNN is broken"):
        trainer.fit()


# Errors ----------------------------------------------------------------------------------------------------

def test_after_an_error_only_a_new_trainer_goes_on(tmp_path):
    trainer = make_trainer(tmp_path, checkpoint_interval=1, gradient_accumulation_steps=2)
    loss, losses = trainer.criterion, []

    def failing(*arguments):
        losses.append(0)
        if len(losses) == 8:        # its gradient is added to that of the seventh batch
            raise RuntimeError("cuDNN is broken")
        return loss(*arguments)

    trainer.criterion = failing
    with pytest.raises(RuntimeError, match="cuDNN is broken"):
        trainer.fit()
    with pytest.raises(RuntimeError, match="make a new one"):
        trainer.fit()
    again = make_trainer(tmp_path, checkpoint_interval=1, gradient_accumulation_steps=2)
    again.fit()
    whole = make_trainer(tmp_path / "whole", gradient_accumulation_steps=2)
    whole.fit()
    assert_same_run(again, whole)


def test_a_checkpoint_that_cannot_be_written_is_a_warning_and_the_last_one_an_error(tmp_path, monkeypatch, caplog):
    trainer = make_trainer(tmp_path, checkpoint_interval=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            trainer.fit()
    assert caplog.text.count("could not write to") >= 2 and not names_in(tmp_path)
    assert trainer.is_finished and not trainer.has_saved
    trainer.fit()       # there is space again
    assert make_trainer(tmp_path, checkpoint_interval=1).is_finished


# Divergence ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("read_seconds", [0, 1000])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_its_first_step(tmp_path, monkeypatch, read_seconds, value):
    monkeypatch.setattr(trainer_module, "READ_SECONDS", read_seconds)
    trainer = make_trainer(tmp_path, checkpoint_interval=1, model=linear_model())
    spoiled = []

    def spoil(module, _inputs, logits):
        spoiled.append(module.training)
        return logits * value if sum(spoiled) >= 8 and module.training else logits      # steps 8, 9, 10

    trainer.model.register_forward_hook(spoil)
    with pytest.raises(TrainingDiverged) as failure:
        trainer.fit()
    message = str(failure.value)
    rate = 0.05 * (1 + math.cos(math.pi * 5 / 13)) / 2      # of the eighth step, the sixth after the warm-up
    assert "since step 8 (epoch 2, learning rate " in message and f"{rate:.4g}" in message
    for advice in ("learning_rate", "warmup_epochs", "gradient_clip", "fp32", str(tmp_path)):
        assert advice in message
    assert steps_in(tmp_path) == [5]
    for name in names_in(tmp_path):
        weights = checkpoint.load(tmp_path / name)["model_state_dict"]
        assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize("patience", [0, 3])
@pytest.mark.parametrize("step, epoch, minutes, saved", [
    (5, 1, 0, []), (10, 2, 0, [5]), (15, 3, 0, [5, 10]), (8, 2, 1e-9, [6, 7])])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, patience, step, epoch, minutes, saved):
    """A gradient can overflow in a step whose loss is finite: the last one before a validation or a checkpoint."""
    trainer = make_trainer(tmp_path, checkpoint_interval=1, checkpoint_minutes=minutes, patience=patience,
                           model=linear_model())

    def spoil(*_):
        if trainer.step == step - 1:
            trainer.model[2].weight.grad.fill_(math.inf)

    trainer.optimizer.register_step_pre_hook(spoil)
    with pytest.raises(TrainingDiverged, match=rf"weights are not finite since step {step} \(epoch {epoch}"):
        trainer.fit()
    assert steps_in(tmp_path) == saved
    if (tmp_path / "best.pt").exists():
        weights = checkpoint.load(tmp_path / "best.pt")["model_state_dict"]
        assert all(tensor.isfinite().all() for tensor in weights.values())


def test_loss_scaling_skips_steps_that_overflow_and_goes_on(tmp_path):
    trainer = make_trainer(tmp_path, model=linear_model(), mixed_precision=True, precision="fp16")
    steps = []

    def spoil(gradient):
        steps.append(0)
        return gradient * (math.inf if len(steps) == 3 else 1)

    trainer.model[2].weight.register_hook(spoil)
    history = trainer.fit()
    assert trainer.scaler.get_scale() == 2.0**15
    assert trainer.step == 15 and history["train_loss"][-1] < history["train_loss"][0]


# Resume ----------------------------------------------------------------------------------------------------

def fit_without_a_break(folder, settings):
    trainer = make_trainer(folder, settings)
    trainer.fit()
    return trainer


def assert_same_run(found, expected):
    """Same weights and same record, but for what a clock measures."""
    assert_equal(weights_of(found.model), weights_of(expected.model))
    for key in set(HISTORY_KEYS) - {"seconds", "images_per_second", "peak_memory_mb", "train_loss"}:
        assert found.history[key] == expected.history[key], key
    assert found.history["train_loss"] == pytest.approx(expected.history["train_loss"])   # summed in other portions
    assert found.history.stopped == expected.history.stopped


@pytest.mark.parametrize("settings", [SGD_RUN, MUON_RUN, DISTILLED_RUN,
                                      SGD_RUN | {"data_placement": "host", "cutmix_alpha": 1.0}])
def test_a_run_stopped_after_every_step_ends_in_the_same_weights(tmp_path, settings):
    expected = fit_without_a_break(tmp_path / "whole", settings)
    for step in range(1, 15):
        trainer = make_trainer(tmp_path / "parts", settings)
        trainer.stop()
        assert trainer.fit().stopped == "interrupted" and trainer.step == step
        torch.rand(step)        # somebody else uses the random numbers in between
    trainer = make_trainer(tmp_path / "parts", settings)
    trainer.fit()
    assert_same_run(trainer, expected)
    assert steps_in(tmp_path / "parts") == [14, 15]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("settings", [SGD_RUN, MUON_RUN | {"ema_decay": 0.9, "gradient_clip": 1.0, "patience": 10},
                                      DISTILLED_RUN | {"mix_probability": 0}])
def test_a_16_bit_run_stopped_in_mid_epoch_ends_in_the_same_weights(tmp_path, monkeypatch, precision, settings):
    """With a loss scale that is too high at first, so that it moves."""
    restless = functools.partial(torch.amp.GradScaler, init_scale=2.0**30, growth_interval=2)
    monkeypatch.setattr(torch.amp, "GradScaler", restless)
    settings = settings | {"mixed_precision": True, "precision": precision, "epochs": 2, "lr_milestones": [1],
                           "val_size": 66, "batch_size": 6, "start_image_size": 12, "image_growth_fraction": 1.0}
    expected = fit_without_a_break(tmp_path / "whole", settings)
    for epoch in (0, 1):
        trainer = make_trainer(tmp_path / "parts", settings)
        stop_at_batch(trainer, epoch, index=2)
        assert trainer.fit().stopped == "interrupted" and trainer.step % trainer.steps_per_epoch != 0
    trainer = make_trainer(tmp_path / "parts", settings)
    trainer.fit()
    assert_same_run(trainer, expected)
    if precision == "fp16":
        assert trainer.scaler.get_scale() == expected.scaler.get_scale() != 2.0**30


def test_a_finished_run_stays_as_it_is(tmp_path):
    expected = fit_without_a_break(tmp_path, SGD_RUN)
    files = {name: (tmp_path / name).stat().st_mtime_ns for name in names_in(tmp_path)}
    again = make_trainer(tmp_path, SGD_RUN)
    assert again.is_finished
    again.fit()
    assert_same_run(again, expected)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in names_in(tmp_path)} == files


def test_resume_from_an_explicit_path(tmp_path):
    expected = fit_without_a_break(tmp_path / "whole", SGD_RUN | {"checkpoint_interval": 1})
    first = tmp_path / "whole" / "step_0000010.pt"
    trainer = make_trainer(tmp_path / "elsewhere", SGD_RUN, resume=str(first))
    assert trainer.step == 10 and trainer.epoch == 2
    trainer.fit()
    assert_same_run(trainer, expected)
    with pytest.raises(CheckpointError, match="step_0000099.pt: no such checkpoint"):
        make_trainer(tmp_path, SGD_RUN, resume=str(tmp_path / "step_0000099.pt"))
    with pytest.raises(CheckpointError, match="best.pt: holds weights only"):
        make_trainer(tmp_path, SGD_RUN, resume=str(tmp_path / "whole" / "best.pt"))


def test_another_configuration_is_refused_with_the_fields_named(tmp_path):
    fit_without_a_break(tmp_path, PLAIN | {"epochs": 1})
    with pytest.raises(CheckpointError) as refusal:
        make_trainer(tmp_path, epochs=2, learning_rate=0.2, progress="lines", eval_batch_size=7)
    message = str(refusal.value)
    assert "epochs: 1 in the checkpoint, 2 now" in message
    assert "learning_rate: 0.05 in the checkpoint, 0.2 now" in message
    assert "progress" not in message and "eval_batch_size" not in message and "seed" not in message
    assert make_trainer(tmp_path, epochs=1, progress="lines", eval_batch_size=7).is_finished


def test_other_data_are_refused(tmp_path):
    fit_without_a_break(tmp_path, PLAIN | {"epochs": 1})
    data = colour_data()
    fewer = ImageData(data.train_images[:80], data.train_labels[:80], None, None, data.class_names)
    with pytest.raises(CheckpointError, match="training images: 96 in the checkpoint, 80 now"):
        make_trainer(tmp_path, epochs=1, data=fewer)


def test_a_truncated_newest_checkpoint_is_passed_over_and_reported(tmp_path, caplog):
    expected = fit_without_a_break(tmp_path, SGD_RUN | {"checkpoint_interval": 1})
    newest = tmp_path / "step_0000015.pt"
    newest.write_bytes(newest.read_bytes()[:2000])
    with caplog.at_level(logging.WARNING, "cifar100"):
        trainer = make_trainer(tmp_path, SGD_RUN)
    assert trainer.step == 10 and str(newest) in caplog.text
    trainer.fit()
    assert_same_run(trainer, expected)


def test_resume_never_starts_over_beside_old_files(tmp_path):
    old = fit_without_a_break(tmp_path, PLAIN | {"epochs": 4, "checkpoint_interval": 1})
    trainer = make_trainer(tmp_path, epochs=3, resume="never", checkpoint_interval=1)
    assert trainer.step == 0
    stop_at_batch(trainer, epoch=1, index=2)
    trainer.fit()
    assert old.step == 20 and steps_in(tmp_path) == [5, 8]
    resumed = make_trainer(tmp_path, epochs=3)
    assert resumed.step == 8
    resumed.fit()
    assert_same_run(resumed, fit_without_a_break(tmp_path / "whole", PLAIN))


def test_two_newest_and_the_best_are_kept(tmp_path):
    fit_without_a_break(tmp_path, PLAIN | {"epochs": 5, "checkpoint_interval": 1})
    assert names_in(tmp_path) == ["best.pt", "step_0000020.pt", "step_0000025.pt"]


def test_checkpoints_come_at_the_interval_and_at_the_end(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(checkpoint, "save_step", lambda state, folder: steps.append(state["step"]))
    fit_without_a_break(tmp_path, PLAIN | {"epochs": 5, "checkpoint_interval": 2})
    assert steps == [10, 20, 25]


def test_a_stopped_trainer_does_not_train_on(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.stop()
    trainer.fit()
    with pytest.raises(RuntimeError, match="make a new one"):
        trainer.fit()


def test_training_in_a_thread_is_stopped_from_outside(tmp_path):
    """As a notebook's stop button does; signal handlers can be set in the main thread only."""
    trainer = make_trainer(tmp_path, epochs=1000)
    begun = threading.Event()
    at_batch(trainer, 0, 3, begun.set)
    thread = threading.Thread(target=trainer.fit)
    thread.start()
    assert begun.wait(30)
    trainer.stop()
    thread.join(30)
    assert not thread.is_alive() and trainer.history.stopped == "interrupted"
    assert make_trainer(tmp_path, epochs=1000).step == trainer.step


# Signals, each in a process of its own ---------------------------------------------------------------------

def run_in_child(function, folder, settings):
    """Run a function of this file in a new Python; the finished process with its output."""
    code = f"import json, sys, test_trainer as t; t.{function.__name__}(t.Path(sys.argv[1]), json.loads(sys.argv[2]))"
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, "-c", code, str(folder), json.dumps(settings)], capture_output=True,
                          text=True, timeout=120, env={**os.environ, "PYTHONPATH": path})


def train_and_signal_oneself(folder, settings, number=None):
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell's background jobs ignore it
    trainer = make_trainer(folder, settings)
    if number is not None:
        at_batch(trainer, 1, 2, lambda: os.kill(os.getpid(), number))
    trainer.fit()
    print("fit returned,", trainer.history.stopped)


def interrupt(folder, settings):
    train_and_signal_oneself(folder, settings, signal.SIGINT)


def terminate(folder, settings):
    train_and_signal_oneself(folder, settings, signal.SIGTERM)


def kill(folder, settings):
    train_and_signal_oneself(folder, settings, signal.SIGKILL)


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


def test_ctrl_c_ends_cleanly_with_a_checkpoint(tmp_path):
    child = run_in_child(interrupt, tmp_path / "run", SGD_RUN)
    assert child.returncode == 0, child.stderr
    assert child.stdout == "fit returned, interrupted\n"
    assert_continues_to_the_same_weights(tmp_path, SGD_RUN, step=7)


def assert_continues_to_the_same_weights(tmp_path, settings, step):
    trainer = make_trainer(tmp_path / "run", settings)
    assert trainer.step == step and step % trainer.steps_per_epoch != 0
    trainer.fit()
    assert_same_run(trainer, fit_without_a_break(tmp_path / "whole", settings))
    assert not [name for name in names_in(tmp_path / "run") if name.endswith(".tmp")]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_leaves_a_checkpoint_and_then_ends_the_process(tmp_path):
    child = run_in_child(terminate, tmp_path / "run", MUON_RUN)
    assert child.returncode == -signal.SIGTERM, child.stderr
    assert "fit returned" not in child.stdout
    assert_continues_to_the_same_weights(tmp_path, MUON_RUN, step=8)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigkill_in_mid_epoch_costs_no_weight_a_bit(tmp_path):
    child = run_in_child(kill, tmp_path / "run", SGD_RUN | {"checkpoint_minutes": 1e-9})
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert_continues_to_the_same_weights(tmp_path, SGD_RUN, step=6)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigkill_in_the_middle_of_a_checkpoint_costs_only_that_one(tmp_path):
    child = run_in_child(kill_in_mid_save, tmp_path / "run", MUON_RUN | {"checkpoint_minutes": 1e-9})
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert [name for name in names_in(tmp_path / "run") if name.endswith(".tmp")] != []
    assert_continues_to_the_same_weights(tmp_path, MUON_RUN, step=7)


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        trainer = make_trainer(tmp_path)
        at_batch(trainer, 1, 1, lambda: signal.raise_signal(signal.SIGINT))     # to end after this step
        at_batch(trainer, 1, 1, lambda: signal.raise_signal(signal.SIGINT))     # no, now
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        assert trainer.step == 6 and trainer.stop_requested == "SIGINT" and not steps_in(tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_signal_handlers_are_put_back(tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    trainer = make_trainer(tmp_path, epochs=1)
    during = []
    at_batch(trainer, 0, 1, lambda: during.extend(signal.getsignal(number) for number in numbers))
    trainer.fit()
    assert [signal.getsignal(number) for number in numbers] == before
    assert not set(during) & set(before)
    with contextlib.suppress(RuntimeError):     # also when training fails
        failing = make_trainer(tmp_path / "failing", epochs=1)
        failing.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError))
        failing.fit()
    assert [signal.getsignal(number) for number in numbers] == before


def test_mixing_ends_at_its_share_of_training(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, mixup_alpha=1.0, mix_until=0.6)
    mixed, batch = [], trainer.loader.batch
    monkeypatch.setattr(trainer.loader, "batch", lambda *arguments: mixed.append(batch(*arguments)) or mixed[-1])
    trainer.fit()
    assert [labels.ndim == 2 for _, labels in mixed] == [True] * 9 + [False] * 6      # 15 steps in all


def test_a_checkpoint_from_before_a_setting_was_introduced_is_continued(tmp_path):
    first = make_trainer(tmp_path)
    first.stop()
    first.fit()
    path = checkpoint.list_steps(tmp_path)[0]
    state = checkpoint.load(path)
    del state["training_settings"]["mix_until"]
    torch.save(state, path)
    assert make_trainer(tmp_path).step == 1
    with pytest.raises(CheckpointError, match="mix_until"):
        make_trainer(tmp_path, mix_until=0.5)


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2}])
def test_planned_flops_are_those_that_training_counts(tmp_path, changes):
    trainer = make_trainer(tmp_path, MUON_RUN, mixup_alpha=0, cutmix_alpha=0, **changes)
    planned = trainer.total_flops()
    trainer.fit()
    assert trainer.flops == planned > 0


@pytest.mark.parametrize("device, began_in, here, goes_on_in", [
    ("cuda", "bf16", "fp16", "fp16"),       # from an A100 to a T4, which has no bf16
    ("cuda", "fp16", "bf16", "fp16"), ("cpu", "bf16", "fp32", "bf16"), ("cuda", "bf16", "bf16", "bf16")])
def test_a_run_goes_on_in_its_precision_where_the_device_has_it(device, began_in, here, goes_on_in, tmp_path,
                                                                monkeypatch):
    trainer = make_trainer(tmp_path)
    trainer.device = torch.device(device)
    monkeypatch.setattr(trainer_module, "pick_precision", lambda *_: here)
    assert trainer._pick_precision({"precision": began_in, "device": device}) == goes_on_in
