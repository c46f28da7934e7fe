"""Figures of a training: its curves and its learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...metrics import History
from ...text import wrapped
from .theme import BLUE, GREEN, ORANGE, THEME, draw_column, new_figure, themed, use_log_scale, write_centred


@themed
def training_curves(history: History, note: str = "", soft_targets: bool = True) -> Figure:
    """Loss, top-1, top-5 and learning rate by epoch; the best validation epoch is marked. soft_targets: the training
    loss compares with more than the label (label smoothing, self-distillation)."""
    ended = {"early": ", stopped early", "interrupted": ", interrupted"}.get(history.stopped)
    ended = f"{ended} after epoch {history['epoch'][-1]}" if ended and len(history) else ""
    figure = new_figure(7, f"Training{ended}", note)
    (loss, top1), (top5, rate) = figure.subplots(2, 2, sharex=True)
    training = "training (augmented, soft targets)" if soft_targets else "training (augmented images)"
    draw_column(loss, history, "train_loss", training, BLUE)
    draw_column(loss, history, "val_loss", "validation", ORANGE)
    draw_column(top1, history, "train_accuracy", "training (augmented images)", BLUE)
    draw_column(top1, history, "val_top1", "validation", ORANGE)
    draw_column(top5, history, "val_top5", "validation", ORANGE)
    draw_column(rate, history, "learning_rate", "learning rate", GREEN)
    _mark_best(top1, history)
    for axes, label in ((loss, "cross entropy (nats)"), (top1, "top-1 accuracy (%)"), (top5, "top-5 accuracy (%)"),
                        (rate, "learning rate at the end of the epoch")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10), min_n_ticks=1))
        if axes.lines and axes is not rate:
            axes.legend()
    rate.set_ylim(bottom=0)
    if not top5.lines:
        top5.set_yticks([])
        write_centred(top5, "no validation split")
    if len(history) == 1:
        rate.set_xlim(0.5, 1.5)
    return figure


def live_curves(history: History, running: Sequence[dict] = (), title: str = "", note: str = "",
                figure: Figure | None = None) -> Figure:
    """Loss and accuracy while training runs: finished epochs, and dashed the running means of the current one.

    running: dicts with epoch (a fraction, from 0), train_loss and train_accuracy (%). figure: the result of an earlier
    call, to redraw in place: without a new layout it takes a third of the time.
    """
    with matplotlib.rc_context(THEME | {"figure.autolayout": False, "figure.constrained_layout.use": False}):
        if figure is None:
            figure = new_figure(3.3, " ", note)
            figure.set_layout_engine(None)
            figure.subplots_adjust(0.07, 0.16, 0.985, 1 - (0.4 + 0.25 * len(wrapped(note, 90))) / 3.3, 0.18)
            for axes, label in zip(figure.subplots(1, 2), ("cross entropy (nats)", "top-1 accuracy (%)")):
                axes.set(xlabel="epoch", ylabel=label)
        figure.suptitle("\n" * len(wrapped(note, 90)) + title, fontsize=11.5, y=0.955 if note else 0.985)
        end = running[-1]["epoch"] if running else len(history) and history["epoch"][-1]
        for axes, train, val in zip(figure.axes, ("train_loss", "train_accuracy"), ("val_loss", "val_top1")):
            for line in list(axes.lines):
                line.remove()
            draw_column(axes, history, train, "training", BLUE)
            draw_column(axes, history, val, "validation", ORANGE)
            if running:
                points = [*history.rows[-1:], *running]
                axes.plot([point["epoch"] for point in points], [point[train] for point in points], "--", color=BLUE,
                          label="running epoch", marker="" if len(points) > 1 else "o")
            if val == "val_top1":
                _mark_best(axes, history)
            axes.relim()
            axes.autoscale(axis="y")
            axes.set_xlim(0, max(1.05 * end, 1))
            if axes.lines:
                axes.legend()
    return figure


@themed
def learning_rate_schedule(rates: Sequence[float], steps_per_epoch: int, note: str = "") -> Figure:
    """The planned learning rate of each optimiser step, float [steps], by epoch."""
    figure = new_figure(3.6, "Learning-rate schedule", note)
    axes = figure.subplots()
    epochs = np.arange(len(rates)) / steps_per_epoch
    axes.plot(epochs, rates, color=GREEN, marker="o" if len(rates) < 30 else "")
    peak = int(np.argmax(rates))
    axes.plot(epochs[peak], rates[peak], "o", color=ORANGE, label=f"peak {rates[peak]:.3g} at epoch {epochs[peak]:.3g}")
    axes.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    axes.legend()
    return figure


@themed
def learning_rate_range(rates: Sequence[float], losses: Sequence[float], suggested: float | None,
                        smoothed: Sequence[float], configured: float, note: str = "") -> Figure:
    """Loss of each step, as it is and smoothed, against its learning rate, all float [steps]. Marks `suggested`, where
    the loss falls most steeply, if it ever falls, and `configured`, the rate that training will use."""
    figure = new_figure(4.2, "Learning-rate range test", note)
    axes = figure.subplots()
    axes.plot(rates, losses, "o", color="0.6", markersize=4, label="one training step")
    axes.plot(rates, smoothed, color=BLUE, label="smoothed")
    for rate, colour, style, label in ((suggested, ORANGE, "-", "steepest fall, a rule of thumb"),
                                       (configured, GREEN, "--", "set for the training")):
        if rate is not None:
            axes.axvline(rate, color=colour, linestyle=style, label=f"{rate:.2g}: {label}")
    use_log_scale(axes)
    axes.set(xlabel="learning rate (logarithmic)", ylabel="training loss (nats)")
    axes.legend()
    return figure


def _mark_best(axes: Axes, history: History) -> None:
    if history.best_epoch is not None:
        axes.plot(history.best_epoch, history.best_top1, "*", color=ORANGE, markersize=16, markeredgecolor="0.15",
                  zorder=5, label=f"best: {history.best_top1:.1f} % in epoch {history.best_epoch}")
