"""Runs that go on from a checkpoint on a GPU: after a break there, or begun on a CPU; and from a GPU on a CPU."""

import math

import pytest
import torch
from torch import Tensor

from helpers import checkpoint
from training import (CUDA_RUN, assert_near, fit_without_a_break, in_precision, make_trainer, stop_after,
                      weights_of)

STOPPED_AT = 8      # of 15 steps, in the second of three epochs


def stopped_run(folder, settings, monkeypatch):
    """A run that was stopped in mid-epoch and has left its checkpoint."""
    first = make_trainer(folder, settings)
    stop_after(first, STOPPED_AT, monkeypatch)
    first.fit()
    assert (first.step, first.history.stopped) == (STOPPED_AT, "interrupted")
    assert STOPPED_AT % first.schedule.steps_per_epoch


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "self_distillation": 0.4, "gradient_accumulation_steps": 2,
                                          "batch_size": 8, "start_image_size": 24},
                                     {"model": "CIFAR100CNN", "widths": (16, 16, 16, 16), "optimizer": "sgd"}])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_stopped_run_goes_on_as_one_without_a_break(tmp_path, monkeypatch, changes, precision):
    settings = CUDA_RUN | changes | in_precision(precision)
    stopped_run(tmp_path / "run", settings, monkeypatch)
    second = make_trainer(tmp_path / "run", settings)
    start = weights_of(second.model)
    assert second.began_at == STOPPED_AT
    second.fit()
    whole = fit_without_a_break(tmp_path / "whole", settings)
    near = {"loss": 0.03, "way": 0.3} if precision == "fp32" else {"loss": 0.1, "way": 0.6}
    assert second.history["train_loss"] == pytest.approx(whole.history["train_loss"], rel=near["loss"])
    assert_near(second.model, whole.model, start, near["way"])
    assert second.step == whole.step and second.replayed_step.why_eager == ""


def assert_is_at_home(train_step):
    """Are weights and state on the step's device, and the learning rates of its form?"""
    on_gpu = train_step.device.type == "cuda"
    tensors = [value for state in train_step.optimizer.state.values() for value in state.values()
               if isinstance(value, Tensor)]
    tensors += [*train_step.model.state_dict().values(), *train_step.average.state_dict().values()]
    assert tensors and {tensor.device.type for tensor in tensors} == {train_step.device.type}
    assert {isinstance(group["lr"], Tensor) for group in train_step.optimizer.param_groups} == {on_gpu}


@pytest.mark.parametrize("changes", [{}, {"model": "CIFAR100CNN", "widths": (16, 16, 16, 16), "optimizer": "sgd"}])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("there, here", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_the_other_device(tmp_path, monkeypatch, there, here, precision, changes):
    """From the same weights; its batches are then others, as each kind of device draws its own."""
    settings = CUDA_RUN | {"ema_decay": 0.9, "self_distillation": 0.4} | changes | in_precision(precision)
    stopped_run(tmp_path, settings | {"device": there}, monkeypatch)
    second = make_trainer(tmp_path, settings | {"device": here})
    assert (second.began_at, second.device.type, second.precision) == (STOPPED_AT, here, precision)
    saved, loaded = checkpoint.load_newest(tmp_path)[1], second.train_step.state_dict()
    for part in ("model_state_dict", "ema"):
        for name, tensor in loaded[part].items():
            assert torch.equal(tensor.cpu(), saved[part][name]), name
    assert loaded["scaler"].get("scale") == saved["scaler"].get("scale")
    assert_is_at_home(second.train_step)
    losses = second.fit()["train_loss"]
    assert second.is_finished and all(math.isfinite(loss) for loss in losses) and losses[-1] < losses[0]
    assert_is_at_home(second.train_step)
