"""Steps that the GPU replays from a CUDA graph, against ordinary steps."""

import logging
import math

import pytest
import torch

from helpers.replay import WARM_UP, ReplayedStep
from training import (DISTILLED_RUN, MUON_RUN, PLAIN, assert_near, in_precision, make_trainer, take_steps,
                      weights_of)

STEPS = 8
# The learning rate rises at each of the first ten steps, so that an old one is noticed.
PLAINLY = {"device": "cuda", "mixup_alpha": 0, "cutmix_alpha": 0, "learning_rate": 0.02, "epochs": 4,
           "warmup_epochs": 2}
FLIP = MUON_RUN | PLAINLY | {"widths": (16, 16, 32), "start_image_size": 32}
CNN = PLAIN | PLAINLY | {"widths": (16, 16, 16, 16), "augmentation_strength": "moderate"}

# How far two trainings may be apart after STEPS: losses relatively, weights as a share of the way that they went. About
# three times what a change of the first weights by a last digit makes.
NEAR = {"fp32": {"loss": 0.01, "way": 0.15}, "bf16": {"loss": 0.08, "way": 0.6}, "fp16": {"loss": 0.05, "way": 0.4}}


@pytest.fixture(autouse=True)
def nothing_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "cifar100"):
        yield
    assert not caplog.get_records("call")


def trainers(folder, settings, precision):
    """(a trainer whose steps are replayed, the same one with ordinary steps)."""
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bf16")
    replayed, ordinary = (make_trainer(folder / name, settings | in_precision(precision))
                          for name in ("replayed", "ordinary"))
    ordinary.replayed_step = ReplayedStep(ordinary.train_step, ordinary.loader, capture=None)
    return replayed, ordinary


def assert_replays(take):
    assert (take.why_eager, take.warm_up) == ("", WARM_UP + 1)


@pytest.mark.parametrize("settings", [FLIP, CNN], ids=["FlipCNN", "CIFAR100CNN"])
@pytest.mark.parametrize("precision", NEAR)
def test_a_replayed_step_is_the_ordinary_one(tmp_path, settings, precision):
    pair = trainers(tmp_path, settings, precision)
    start = weights_of(pair[0].model)
    found, expected = (take_steps(trainer, STEPS) for trainer in pair)
    near = NEAR[precision]
    assert found[0] == pytest.approx(expected[0], rel=near["loss"])
    assert found[1] == pytest.approx(expected[1], abs=1)      # right predictions
    assert_near(pair[0].model, pair[1].model, start, near["way"])
    assert pair[0].step == pair[1].step == STEPS
    assert_replays(pair[0].replayed_step)


@pytest.mark.parametrize("settings", [FLIP, CNN], ids=["FlipCNN", "CIFAR100CNN"])
def test_a_replayed_step_whose_gradients_overflow_is_skipped(tmp_path, settings):
    pair = trainers(tmp_path, settings, "fp16")
    start = weights_of(pair[0].model)
    for trainer in pair:
        take_steps(trainer, WARM_UP + 2)
        scaler = trainer.train_step.scaler
        before, scale = weights_of(trainer.model), scaler.get_scale()
        scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**60})
        loss, = take_steps(trainer, 1)[0]
        assert math.isfinite(loss) and scaler.get_scale() == 2.0**59
        after = dict(trainer.model.named_parameters())
        assert all(torch.equal(after[name], before[name]) for name in after)
        scaler.load_state_dict(scaler.state_dict() | {"scale": scale})
        take_steps(trainer, 3)
        assert any(not torch.equal(after[name], before[name]) for name in after)
    assert_near(pair[0].model, pair[1].model, start, NEAR["fp16"]["way"])
    assert_replays(pair[0].replayed_step)


@pytest.mark.parametrize("settings", [FLIP, CNN], ids=["FlipCNN", "CIFAR100CNN"])
def test_the_first_replays_may_be_skipped_too(tmp_path, settings):
    """As at the start of a training in fp16, where the scale is still too large."""
    pair = trainers(tmp_path, settings | {"epochs": 12}, "fp16")
    start = weights_of(pair[0].model)
    for trainer in pair:
        scaler = trainer.train_step.scaler
        scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**60, "growth_interval": 1000})
    losses, scales = [], []
    for trainer in pair:
        losses.append(take_steps(trainer, 60)[0])
        scales.append(trainer.train_step.scaler.get_scale())
    skipped = 60 - int(math.log2(scales[0]))
    assert WARM_UP + 1 < skipped < 60 - WARM_UP and abs(math.log2(scales[0] / scales[1])) <= 1
    assert all(math.isfinite(loss) for pair_of in losses for loss in pair_of)
    assert not all(torch.equal(tensor, start[name]) for name, tensor in pair[0].model.named_parameters())
    assert_replays(pair[0].replayed_step)


@pytest.mark.parametrize("settings", [
    FLIP | {"start_image_size": 16, "epochs": 5},       # 16, 24 and 32 px
    FLIP | {"gradient_accumulation_steps": 2, "epochs": 5, "gradient_clip": 1.0},
    FLIP | {"ema_decay": 0.9, "augmentation_strength": "strong"},
    DISTILLED_RUN | PLAINLY | {"widths": (16, 16, 32), "start_image_size": 32, "epochs": 8},
    CNN | {"gradient_clip": 0.5, "ema_decay": 0.9, "gradient_accumulation_steps": 2, "epochs": 6}],
    ids=["image sizes", "accumulation and clipping", "average", "self-distillation", "all of it under sgd"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_replayed_training_ends_like_an_ordinary_one(tmp_path, settings, precision):
    """The way's share is larger than for single steps: differences grow from step to step."""
    replayed, ordinary = trainers(tmp_path, settings, precision)
    start = weights_of(replayed.model)
    replayed.fit(), ordinary.fit()
    assert_replays(replayed.replayed_step)
    loss, way = (0.03, 0.25) if precision == "fp32" else (0.1, 0.6)
    assert replayed.history["train_loss"] == pytest.approx(ordinary.history["train_loss"], rel=loss)
    assert replayed.history["val_loss"] == pytest.approx(ordinary.history["val_loss"], rel=3 * loss)
    assert_near(replayed.model, ordinary.model, start, way)
    assert replayed.step == ordinary.step == ordinary.total_steps


# Dropout ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_replays_draw_new_dropout_masks(tmp_path, rate):
    """At a rate of 0 the weights stay, and the loss of a batch changes by its masks alone."""
    trainer = make_trainer(tmp_path, CNN | {"dropout_rate": rate})
    trainer.model.train()
    losses = [trainer.replayed_step(0, range(1), 32, factor=0.0)[0] for _ in range(WARM_UP + 5)]
    replayed = [loss.item() for loss in losses[WARM_UP:]]
    assert_replays(trainer.replayed_step)
    if rate:
        assert len(set(replayed)) == len(replayed)
    else:
        assert replayed == pytest.approx([losses[0].item()] * len(replayed), rel=1e-4)


def test_a_replayed_training_with_dropout_learns(tmp_path):
    trainer = make_trainer(tmp_path, CNN | {"dropout_rate": 0.3, "augmentation_strength": "none", "epochs": 10})
    history = trainer.fit()
    assert history["train_loss"][-1] < 0.9 * history["train_loss"][0]
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())
    assert_replays(trainer.replayed_step)
