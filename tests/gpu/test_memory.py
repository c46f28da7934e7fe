"""A GPU's memory: batches that do not fit, and captures that do not fit."""

import logging
import math

import pytest
import torch

from helpers.data import ImageData
from helpers.replay import WARM_UP, CudaGraphs, ReplayedStep
from training import CUDA_RUN, assert_near, colour_data, make_trainer, take_steps, weights_of

BATCH = 512
LARGE = CUDA_RUN | {"model": "CIFAR100CNN", "widths": (64, 64, 64, 64), "optimizer": "sgd", "batch_size": BATCH}


def many_images():
    """Two batches of them, and what is held out."""
    data = colour_data()
    times = -(-(2 * BATCH + LARGE["val_size"]) // len(data.train_labels))
    return ImageData(data.train_images.repeat(times, 1, 1, 1), data.train_labels.repeat(times), None, None,
                     data.class_names, source="this test")


def peak_of_an_ordinary_step(folder):
    """Bytes that PyTorch holds for one step, once its kernels are chosen."""
    trainer = make_trainer(folder, LARGE, data=many_images())
    trainer.replayed_step = ReplayedStep(trainer.train_step, trainer.loader, capture=None)
    take_steps(trainer, 1)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    take_steps(trainer, 1)
    return torch.cuda.max_memory_allocated()


def test_a_training_whose_batches_do_not_fit_goes_on_with_parts_of_them(tmp_path, memory_limit, caplog):
    """Half a batch or a quarter fits, beside the weights and what a library needs."""
    whole = peak_of_an_ordinary_step(tmp_path / "roomy")
    with memory_limit(int(0.75 * whole)), caplog.at_level(logging.WARNING, "cifar100"):
        trainer = make_trainer(tmp_path / "tight", LARGE | {"epochs": 4}, data=many_images())
        losses = trainer.fit()["train_loss"]
    assert trainer.train_step.parts in (2, 4, 8) and trainer.is_finished
    assert all(math.isfinite(loss) for loss in losses) and losses[-1] < losses[0]
    said = [record.getMessage() for record in caplog.records]
    assert sum("the effective batch stays" in line for line in said) == int(math.log2(trainer.train_step.parts))
    assert sum("could not be captured" in line for line in said) <= 1       # a graph needs memory of its own


class Starved(CudaGraphs):
    """Its captures find the memory full."""

    def __init__(self, memory_limit):
        super().__init__()
        self.memory_limit = memory_limit

    def __call__(self, work):
        with self.memory_limit(0):
            return super().__call__(work)


def test_out_of_memory_in_a_capture_means_ordinary_steps_and_one_warning(tmp_path, memory_limit, caplog):
    starved, ordinary = (make_trainer(tmp_path / name, CUDA_RUN) for name in ("starved", "ordinary"))
    start = weights_of(starved.model)
    starved.replayed_step = ReplayedStep(starved.train_step, starved.loader, Starved(memory_limit))
    ordinary.replayed_step = ReplayedStep(ordinary.train_step, ordinary.loader, capture=None)
    with caplog.at_level(logging.WARNING, "cifar100"):
        losses, expected = (take_steps(trainer, WARM_UP + 4)[0] for trainer in (starved, ordinary))
    assert starved.replayed_step.why_eager == "too little memory" and starved.replayed_step.warm_up == 1
    assert ["could not be captured" in record.getMessage() for record in caplog.records] == [True]
    assert starved.train_step.parts == 1 and starved.step == WARM_UP + 4
    assert losses == pytest.approx(expected, rel=0.01)
    assert_near(starved.model, ordinary.model, start, 0.15)
