"""The learning-rate range test (Smith 2017, arXiv 1506.01186)."""

from __future__ import annotations

import copy
import math

import torch

from ..step import TrainStep
from ..system import make_current, with_bar
from ..trainer import Trainer, TrainingDiverged

BLOWN_UP = 2.0          # the test ends above this multiple of the first loss
SMOOTHING = 7           # losses per mean, centred


def lr_range_test(trainer: Trainer, low: float | None, high: float | None, steps: int, progress: str = "none") -> dict:
    """Take training steps at a learning rate that rises exponentially from `low` to `high`, on a copy of the network;
    by default from a thousandth of `learning_rate` to 30 times it.

    `trainer`, its weights and later random numbers do not change. The steps have the training's first batches and image
    sizes, and start from the trainer's weights if it has not trained yet, else from new ones of the same seed. Under
    Muon the other learning rates keep their ratio to `learning_rate`. Ends early if the loss doubles or is not finite.

    Returns a dict of `rates` and `losses`, one per step, each loss measured before its step; `smoothed`, see
    `smoothed_losses`; and `suggested`, see `steepest_rate`. Raises ValueError for impossible limits, TrainingDiverged
    if the first loss is not finite.
    """
    low = trainer.config.learning_rate / 1000 if low is None else low
    high = trainer.config.learning_rate * 30 if high is None else high
    if not 0 < low < high:
        raise ValueError(f"low={low}, high={high}: both must be positive, and low below high")
    if steps < SMOOTHING:
        raise ValueError(f"steps={steps}: must be at least {SMOOTHING}, to smooth the losses")
    rates = [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
    make_current(trainer.device)
    config, schedule, losses = trainer.config.replace(compile=False), trainer.schedule, []
    with torch.random.fork_rng(devices=[trainer.device] if trainer.device.type == "cuda" else []):
        model = trainer.initial_network(copy.deepcopy(trainer.model) if trainer.step == 0 else None)
        take_step = TrainStep(model.train(), config, trainer.precision)
        for step in with_bar(range(steps), steps, "learning-rate range test", progress):
            size, epoch = schedule.image_size(step), step // schedule.steps_per_epoch
            loss, _ = take_step([trainer.loader.batch(epoch, index, size) for index in schedule.batches(step)],
                                rates[step] / config.learning_rate)
            if not math.isfinite(loss.item()):
                break
            losses.append(loss.item())
            if losses[-1] > BLOWN_UP * losses[0]:
                break
    if not losses:
        raise TrainingDiverged(f"the loss is {loss.item()} before the first step; try mixed_precision=False")
    rates, smoothed = rates[:len(losses)], smoothed_losses(losses)
    return {"rates": rates, "losses": losses, "smoothed": smoothed, "suggested": steepest_rate(rates, smoothed)}


def smoothed_losses(losses: list[float]) -> list[float]:
    """The mean of the SMOOTHING losses around each; a running mean would lag, towards larger rates."""
    half = SMOOTHING // 2
    padded = [losses[0]] * half + losses + [losses[-1]] * half
    return [sum(padded[place:place + SMOOTHING]) / SMOOTHING for place in range(len(losses))]


def steepest_rate(rates: list[float], smoothed: list[float]) -> float | None:
    """The rate, below that of the lowest loss, at which the smoothed loss falls most steeply; None if it never falls.
    `rates` rise by equal factors. A rule of thumb: the test is short and ignores warm-up and final accuracy."""
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    slopes = {place: smoothed[place + 1] - smoothed[place - 1] for place in range(1, lowest)}
    steepest = min(slopes, key=slopes.get, default=None)
    return None if steepest is None or slopes[steepest] >= 0 else rates[steepest]
