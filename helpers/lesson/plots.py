"""Every figure of the project: a function takes data and returns a matplotlib Figure.

No function calls `plt.show()` or leaves a figure open in pyplot, so a notebook shows each figure once: as the
value of its cell, or by `display`. The theme holds inside these functions only. `note` is printed in a
coloured box on top, for what a reader must not miss: "drawn demo data".
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import textwrap
from collections.abc import Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ..metrics import Evaluation, History
from ..text import readable

PALETTE = sns.color_palette("colorblind").as_hex()
BLUE, ORANGE, GREEN, RED = PALETTE[:4]
# Line styles of the published results: lengths of dash and gap.
DASHES = ((6, 3), (1.5, 2), (6, 2, 1.5, 2), (12, 3), (3, 1), (1, 4))
WIDTH = 10          # inches; with 100 dots an inch the width of a notebook column
THEME = sns.axes_style("whitegrid") | {
    "figure.dpi": 100,
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "figure.titlesize": 14,
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
    "axes.edgecolor": "0.6",
    "grid.color": "0.9",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "legend.framealpha": 0.9,
}


def themed(draw):
    """Draw under THEME, whatever the notebook's own settings are, and leave those as they were."""
    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with matplotlib.rc_context(THEME):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()     # ticks are made at the first drawing: it must see the theme
        return figure
    return drawn


# Training --------------------------------------------------------------------------------------------------

@themed
def training_curves(history: History, note: str = "", soft_targets: bool = True) -> Figure:
    """Loss, top-1, top-5 and learning rate by epoch; the best validation epoch is marked.

    `soft_targets` says whether the training loss was measured against more than the label: with label smoothing or
    self-distillation.
    """
    figure = _new_figure(7, _ended("Training", history), note)
    (loss, top1), (top5, rate) = figure.subplots(2, 2, sharex=True)
    training = "training (augmented, soft targets)" if soft_targets else "training (augmented images)"
    _line(loss, history, "train_loss", training, BLUE)
    _line(loss, history, "val_loss", "validation", ORANGE)
    _line(top1, history, "train_accuracy", "training (augmented images)", BLUE)
    _line(top1, history, "val_top1", "validation", ORANGE)
    _line(top5, history, "val_top5", "validation", ORANGE)
    _line(rate, history, "learning_rate", "learning rate", GREEN)
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
        _say(top5, "no validation split")
    if len(history) == 1:
        rate.set_xlim(0.5, 1.5)
    return figure


def live_curves(history: History, running: Sequence[dict] = (), title: str = "", note: str = "",
                figure: Figure | None = None) -> Figure:
    """Loss and accuracy so far while training runs: whole epochs, and dashed the means of the `running` one.

    `running` holds dicts with epoch (a fraction, from 0), train_loss and train_accuracy (%). A `figure` that an
    earlier call has returned is drawn anew in place, which takes a third of the time: nothing is laid out again.
    """
    with matplotlib.rc_context(THEME | {"figure.autolayout": False, "figure.constrained_layout.use": False}):
        if figure is None:
            figure = _new_figure(3.3, " ", note)
            figure.set_layout_engine(None)
            figure.subplots_adjust(0.07, 0.16, 0.985, 1 - (0.4 + 0.25 * len(textwrap.wrap(note, 90))) / 3.3, 0.18)
            for axes, label in zip(figure.subplots(1, 2), ("cross entropy (nats)", "top-1 accuracy (%)")):
                axes.set(xlabel="epoch", ylabel=label)
        figure.suptitle("\n" * len(textwrap.wrap(note, 90)) + title, fontsize=11.5, y=0.955 if note else 0.985)
        end = running[-1]["epoch"] if running else len(history) and history["epoch"][-1]
        for axes, train, val in zip(figure.axes, ("train_loss", "train_accuracy"), ("val_loss", "val_top1")):
            for line in list(axes.lines):
                line.remove()
            _line(axes, history, train, "training (augmented images)", BLUE)
            _line(axes, history, val, "validation", ORANGE)
            if running:
                before = [history.rows[-1]] if len(history) else []
                points = [*before, *running]
                axes.plot([point["epoch"] for point in points], [point[train] for point in points], "--", color=BLUE,
                          label="running epoch", marker="" if before or len(running) > 1 else "o")
            if val == "val_top1":
                _mark_best(axes, history)
            axes.relim()
            axes.autoscale(axis="y")
            axes.set_xlim(0, max(1.05 * end, 1))
            if axes.lines:
                axes.legend()
    return figure


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG, 100 dots an inch, in this project's theme."""
    content = io.BytesIO()
    with matplotlib.rc_context(THEME):      # ticks that the drawing makes must see it
        figure.savefig(content, format="png", dpi=100, pil_kwargs={"compress_level": 1})
    return content.getvalue()


@themed
def learning_rate_schedule(rates: Sequence[float], steps_per_epoch: int, note: str = "") -> Figure:
    """The planned learning rate of every optimiser step, float [steps], against the epoch it falls in."""
    figure = _new_figure(3.6, "Learning-rate schedule", note)
    axes = figure.subplots()
    epochs = np.arange(len(rates)) / steps_per_epoch
    axes.plot(epochs, rates, color=GREEN, marker="o" if len(rates) < 30 else "")
    peak = int(np.argmax(rates))
    axes.plot(epochs[peak], rates[peak], "o", color=ORANGE,
              label=f"peak {rates[peak]:.3g} at epoch {epochs[peak]:.3g}")
    axes.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    axes.legend()
    return figure


@themed
def learning_rate_range(rates: Sequence[float], losses: Sequence[float], suggested: float | None = None,
                        smoothed: Sequence[float] = (), configured: float | None = None, note: str = "") -> Figure:
    """Loss of each step against the learning rate, which rises from step to step; two rates may be marked.

    rates, losses: float [steps]; smoothed: the same losses smoothed, or none; suggested: where the loss falls most
    steeply; configured: the rate that training will use.
    """
    figure = _new_figure(4.2, "Learning-rate range test", note)
    axes = figure.subplots()
    axes.plot(rates, losses, "o", color="0.6", markersize=4, label="one training step")
    if len(smoothed):
        axes.plot(rates, smoothed, color=BLUE, label="smoothed")
    for rate, colour, style, label in ((suggested, ORANGE, "-", "steepest fall, a rule of thumb"),
                                       (configured, GREEN, "--", "set for the training")):
        if rate is not None:
            axes.axvline(rate, color=colour, linestyle=style, label=f"{rate:.2g}: {label}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="learning rate (logarithmic)", ylabel="training loss (nats)")
    axes.legend()
    return figure


@themed
def compare_runs(runs: Sequence[dict], published: Sequence[tuple] = (), note: str = "") -> Figure:
    """Accuracy against epochs, seconds and PFLOP of several runs, with published results as reference lines.

    A run is a dict: name, history (a History, or None), top1 and top5 (% on the test split, or None), seconds,
    petaflops (of the whole training, or None). Lines are validation accuracy, stars the test accuracy at the end.
    published: (name, top1, top5), either may be None.
    """
    figure = _new_figure(5.4 + 0.22 * (len(runs) + len(published)), "Accuracy against what it costs", note)
    panels = figure.subplots(1, 3, sharey=True)
    looks = [{"linestyle": style, "color": colour}      # there are ten colours; after them the lines are dashed
             for style, colour in itertools.product(("-", "--", "-.", ":"), sns.color_palette("colorblind", 10))]
    for axes, key, label in zip(panels, ("epoch", "seconds", "petaflops"),
                                ("epoch", "training time (s)", "training compute (PFLOP)")):
        ends = [end for run, look in zip(runs, itertools.cycle(looks)) if (end := _draw_run(axes, run, key, look))]
        for (_, top1, _), dashes in zip(published, itertools.cycle(DASHES)):
            if top1 is not None:
                axes.axhline(top1, color="0.35", linestyle=(0, dashes), linewidth=1.3)
        if ends and max(ends) > 20 * min(ends) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=key == "epoch"))
        axes.set_xlabel(label)
    panels[0].set_ylabel("top-1 accuracy (%)")
    _runs_legend(figure, runs, published, itertools.cycle(looks))
    return figure


@themed
def small_multiples(runs: Sequence[dict], note: str = "") -> Figure:
    """Training and validation accuracy by epoch, a panel for each run, all panels to the same scale.

    A run is a dict: name (the title of its panel) and history (a History).
    """
    columns = min(len(runs), 3)
    rows = math.ceil(len(runs) / columns)
    figure = _new_figure(1.2 + 2.5 * rows, "Training, run by run", note)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(runs):]:
        axes.remove()
    for place, (axes, run) in enumerate(zip(panels, runs)):
        _line(axes, run["history"], "train_accuracy", "training (augmented images)", BLUE)
        _line(axes, run["history"], "val_top1", "validation", ORANGE)
        axes.set_title(textwrap.fill(run["name"], 105 // columns), fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        if place + columns >= len(runs):        # the lowest of its column, also above an empty place
            axes.set_xlabel("epoch")
            axes.xaxis.set_tick_params(labelbottom=True)
    figure.supylabel("top-1 accuracy (%)", fontsize=11)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=2)
    return figure


@themed
def record(recipes: Sequence[dict], reference: dict, published: Sequence[tuple] = (), ablations: Sequence[dict] = (),
           note: str = "") -> Figure:
    """Test accuracy against training compute of this project's recipes and of the reference.

    A recipe is a dict with name, preset, top1 (mean, %), top1_by_run (%), petaflops, minutes, runs and machine (a
    SystemInfo as a dict); one whose name is not its preset's is a variant, and drawn hollow. The reference has name,
    top1, petaflops and minutes. published: (name, top1, top5) of results whose compute is not known, as lines.
    ablations: dicts with petaflops and val_top1 (%, of a validation split), as small points.
    """
    figure = _new_figure(5.2, "Accuracy against what it costs", note)
    axes = figure.subplots()
    over_lines = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for (name, top1, _), dashes in zip(published, itertools.cycle(DASHES)):
        axes.axhline(top1, color="0.6", linestyle=(0, dashes), linewidth=1, zorder=0)
        axes.annotate(f"{name}: {top1:.2f} % (published)", (0.005, top1), xycoords=("axes fraction", "data"),
                      textcoords="offset points", xytext=(0, 2), fontsize=9, color="0.35")
    if ablations:
        axes.plot([row["petaflops"] for row in ablations], [row["val_top1"] for row in ablations], "o", color="0.6",
                  markersize=4, label="ablations (validation accuracy)")
    variant_markers = itertools.cycle("osv^Pd")
    for recipe, colour in zip(recipes, itertools.cycle(PALETTE)):
        if recipe["name"] != recipe["preset"]:
            axes.plot(recipe["petaflops"], recipe["top1"], next(variant_markers), color="none", markersize=7,
                      markeredgecolor="0.15", zorder=4, label=f"{recipe['name']}: {recipe['top1']:.2f} %")
            continue
        axes.plot([recipe["petaflops"]] * len(recipe["top1_by_run"]), recipe["top1_by_run"], "_", color=colour,
                  markersize=16)
        axes.plot(recipe["petaflops"], recipe["top1"], "*", color=colour, markersize=17, markeredgecolor="0.15")
        runs = f"mean of {recipe['runs']} runs, " if recipe["runs"] > 1 else ""
        axes.annotate(f"{recipe['name']}: {recipe['top1']:.2f} %\n{runs}{recipe['petaflops']:.3g} PFLOP, "
                      f"{recipe['minutes']:.0f} min on {_machine(recipe['machine'])}",
                      (recipe["petaflops"], recipe["top1"]), textcoords="offset points", xytext=(12, -8), va="top",
                      bbox=over_lines)
    axes.plot(reference["petaflops"], reference["top1"], "D", color="0.35", markersize=9)
    axes.annotate(f"{reference['name']}: {reference['top1']:.2f} %\n{reference['petaflops']:g} PFLOP, "
                  f"{reference['minutes']:.0f} min on a T4 (its own figures)",
                  (reference["petaflops"], reference["top1"]), textcoords="offset points", xytext=(0, 12),
                  va="bottom", ha="right", bbox=over_lines)
    axes.axhline(reference["top1"], color="0.35", linestyle=":", linewidth=1.3)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.2, y=0.35)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right")
    axes.set_xlabel("training compute (PFLOP, forward and backward, logarithmic)")
    axes.set_ylabel("test top-1 accuracy (%)")
    return figure


def _machine(system: dict) -> str:
    on_cpu = system["device"] == "cpu"
    return f"{system['cpu_cores']} CPU cores" if on_cpu else f"one {system['device_name']}"


@themed
def ablation(rows: Sequence[dict], base: str, note: str = "") -> Figure:
    """Validation accuracy of short trainings that differ in one thing, as points of difference to `base`.

    A row is a dict with change (str), val_top1 (%) and difference. The runs called `base` give the band: the range
    over seeds, about their mean. Runs of one change, with several seeds, share a line; the number is their mean.
    """
    full = [row["val_top1"] for row in rows if row["change"] == base]
    centre = sum(full) / len(full)
    changes = {}
    for row in rows:
        if row["change"] != base:
            changes.setdefault(row["change"], []).append(row["difference"])
    means = sorted((sum(differences) / len(differences), change) for change, differences in changes.items())
    figure = _new_figure(2.1 + 0.33 * max(len(means), 3), "What one change does", note)
    axes = figure.subplots()
    accuracy = f"{len(full)} seeds: {min(full):.1f} to {max(full):.1f} %" if len(full) > 1 else f"{centre:.1f} %"
    axes.axvspan(min(full) - centre, max(full) - centre, color=BLUE, alpha=0.15, label=f"{base}, {accuracy}")
    axes.axvline(0, color=BLUE)
    for place, (difference, change) in enumerate(means):
        axes.plot([0, difference], [place, place], color="0.6", zorder=2)
        axes.plot(changes[change], [place] * len(changes[change]), "o", color=ORANGE, markeredgecolor="0.15",
                  markersize=8, zorder=3)
        right = difference >= 0
        axes.annotate(f"{round(difference, 1) + 0.0:+.1f}", ((max if right else min)(changes[change]), place),
                      textcoords="offset points", xytext=(9 if right else -9, 0), va="center",
                      ha="left" if right else "right")
    axes.set_yticks(range(len(means)), [change for _, change in means])
    axes.margins(x=0.15)
    axes.set_xlabel("difference in validation top-1 accuracy (percentage points)")
    axes.set_ylabel("change")
    axes.grid(axis="y", visible=False)
    axes.set_ylim(-0.7, max(len(means), 1) - 0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def _draw_run(axes: Axes, run: dict, key: str, look: dict) -> float | None:
    """The validation curve and the final star of one run; the place where it ends, None if that is unknown."""
    history = run.get("history") or History()
    axes.plot(_numbers(history[key]), _numbers(history["val_top1"]), marker=_marker(history), **look)
    end = run.get(key)
    if end is None and len(history):
        end = history[key][-1]
    if end is not None and run.get("top1") is not None:
        axes.plot(end, run["top1"], "*", color=look["color"], markersize=15, markeredgecolor="0.15", zorder=5)
    return end


def _runs_legend(figure: Figure, runs: Sequence[dict], published: Sequence[tuple], looks) -> None:
    lines = [Line2D([], [], marker="*", markersize=12, markeredgecolor="0.15", label=_run_label(run), **look)
             for run, look in zip(runs, looks)]
    for (name, top1, top5), dashes in zip(published, itertools.cycle(DASHES)):
        scores = _listed(("top-1 {:.2f} %", top1), ("top-5 {:.2f} %", top5))
        lines.append(Line2D([], [], color="0.35", linestyle=(0, dashes), linewidth=1.3,
                            label=f"{name}: {scores} (published)"))
    figure.legend(handles=lines, loc="outside lower center", title="line: validation split; star: test split")


def _run_label(run: dict) -> str:
    scores = _listed(("top-1 {:.2f} %", run.get("top1")), ("top-5 {:.2f} %", run.get("top5")),
                     ("{:,.0f} s", run.get("seconds")), ("{:.3g} PFLOP", run.get("petaflops")))
    return textwrap.fill(f"{run['name']}: {scores}", 115)


# Data ------------------------------------------------------------------------------------------------------

@themed
def sample_grid(images, labels, class_names: Sequence[str], superclass_of=None,
                superclass_names: Sequence[str] = (), note: str = "") -> Figure:
    """One image of each class, the classes of a superclass side by side.

    images: uint8 [N, H, W, 3]; labels: int64 [N]; superclass_of: int64 [C] or None.
    """
    images, labels = _array(images), _array(labels)
    if superclass_of is None:
        groups = {"": list(range(len(class_names)))}
    else:
        members = _array(superclass_of)
        groups = {name: np.flatnonzero(members == place).tolist() for place, name in enumerate(superclass_names)}
    wide = superclass_of is None or max(map(len, groups.values())) > 5 or len(groups) < 4
    columns, blocks = (10, 1) if wide else (5, 2)
    # Lines of at most `columns` classes; only the first line of a superclass carries its name.
    lines = [(name if start == 0 else "", classes[start:start + columns])
             for name, classes in groups.items() for start in range(0, len(classes), columns)]
    line_height = 1.22 if superclass_of is not None else 1.03
    lines_a_block = math.ceil(len(lines) / blocks)
    figure, axes = _canvas(lines_a_block * line_height, f"One image of each of {len(class_names)} classes", note)
    for place, (name, classes) in enumerate(lines):
        block, line = divmod(place, lines_a_block)
        left, bottom = block * (WIDTH + 0.2) / blocks, (line + 1) * line_height - 0.2
        axes.text(left, bottom - 0.83, readable(name), fontsize=10.5, weight="bold", va="bottom")
        for column, label in enumerate(classes):
            x = left + column * 0.98
            found = np.flatnonzero(labels == label)
            _picture(axes, images[found[0]] if len(found) else None, x, bottom - 0.78, 0.78)
            axes.text(x + 0.39, bottom + 0.13, readable(class_names[label]), fontsize=9, ha="center")
    return figure


@themed
def augmentation_preview(original, augmented, titles: Sequence[str] = (), note: str = "") -> Figure:
    """A line an image: the original, then what augmentation makes of it.

    original: uint8 [K, H, W, 3]; augmented: float [K, R, 3, H, W] in [0, 1]; titles: K names or none.
    """
    original, augmented = _array(original), _array(augmented)
    if len(original) != len(augmented) or len(titles) not in (0, len(original)):
        raise ValueError(f"original, augmented and titles hold {len(original)}, {len(augmented)} and {len(titles)} "
                         "entries; give one of each an image, or no titles")
    draws = np.moveaxis(augmented, 2, -1).clip(0, 1)
    count, repeats = draws.shape[:2]
    margin = 1.3 if len(titles) else 0
    side = min(1.25, (WIDTH - margin - 0.1) / (repeats + 1) - 0.06)
    step = side + 0.06
    left = margin + (WIDTH - margin - 0.1 - step * (repeats + 1)) / 2
    figure, axes = _canvas(count * step + 0.3, "Augmentation: the same images, drawn anew each epoch", note)
    axes.text(left + side / 2, 0.2, "original", ha="center", va="bottom", weight="bold")
    axes.text(left + 0.1 + step * (1 + repeats / 2), 0.2, "augmented (before any mixing and resizing)", ha="center",
              va="bottom", weight="bold")
    for line in range(count):
        top = 0.25 + line * step
        if len(titles):
            axes.text(left - 0.1, top + side / 2, readable(titles[line]), ha="right", va="center")
        _picture(axes, original[line], left, top, side)
        for draw in range(repeats):
            _picture(axes, draws[line, draw], left + 0.1 + (draw + 1) * step, top, side)
    return figure


# Evaluation ------------------------------------------------------------------------------------------------

@themed
def class_accuracy_bars(evaluation: Evaluation, note: str = "") -> Figure:
    """Accuracy of every class from best to worst, with the mean over the classes."""
    accuracy = _array(evaluation.class_accuracy)
    order = np.argsort(-accuracy, kind="stable")        # NaN, a class without images, comes last
    columns = min(4, math.ceil(len(order) / 25))
    rows = math.ceil(len(order) / columns)
    title = (f"Accuracy by class: mean {evaluation.class_mean:.1f} %, standard deviation "
             f"{evaluation.class_std:.1f}, from {evaluation.class_min:.0f} to {evaluation.class_max:.0f} %")
    figure = _new_figure(1.3 + 0.25 * rows, title, note)
    panels = figure.subplots(1, columns, sharex=True, squeeze=False)[0]
    colours = sns.color_palette("cividis", as_cmap=True)
    for column, axes in enumerate(panels):
        classes = order[column * rows:(column + 1) * rows]
        values = accuracy[classes]
        axes.barh(range(len(classes)), np.nan_to_num(values), color=colours(np.nan_to_num(values) / 100), height=0.8)
        for line, value in enumerate(values):
            _bar_label(axes, line, value)
        axes.axvline(evaluation.class_mean, color=RED, linestyle="--", linewidth=1.4, label="mean over classes")
        axes.set_yticks(range(len(classes)), [readable(evaluation.class_names[label]) for label in classes],
                        fontsize=9.5)
        axes.set(xlim=(0, 100), ylim=(rows - 0.4, -0.6), xlabel="accuracy (%)")
        axes.grid(axis="y", visible=False)
    panels[0].set_ylabel("class, best to worst")
    figure.legend(handles=panels[0].lines[:1], loc="outside lower center")
    return figure


@themed
def confusion_matrix(evaluation: Evaluation, note: str = "") -> Figure:
    """Share of each true class (row) by predicted class (column), the classes grouped by superclass.

    The colour scale is logarithmic, so that errors of one percent show next to the diagonal.
    """
    order, edges, ticks, names = _class_groups(evaluation)
    counts = _array(evaluation.confusion)[np.ix_(order, order)]
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(order) <= 20
    figure = _new_figure(9.2, "Confusion matrix" + ("" if evaluation.superclass_of is None else
                                                    ", classes grouped by superclass"), note)
    axes = figure.subplots()
    least = min(0.5, shares[counts > 0].min(initial=100))
    sns.heatmap(shares, ax=axes, mask=counts == 0, norm=LogNorm(least, 100), cmap="viridis_r", square=True,
                annot=counts if few else False, fmt="d", xticklabels=False, yticklabels=False,
                cbar_kws={"label": "share of the true class's images (%), logarithmic; white: none", "shrink": 0.7,
                          "format": "{x:g} %", "ticks": [0.5, 1, 2, 5, 10, 20, 50, 100]})
    figure.axes[-1].minorticks_off()
    axes.grid(False)
    axes.hlines(edges, 0, len(order), color="0.6", linewidth=0.6)
    axes.vlines(edges, 0, len(order), color="0.6", linewidth=0.6)
    axes.set_xticks(ticks, names, rotation=90, fontsize=9)
    axes.set_yticks(ticks, names, rotation=0, fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")
    axes.spines[:].set_visible(True)
    return figure


def _class_groups(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Order of the classes [C]; in that order, the edges between superclasses, the ticks and their names."""
    classes = len(evaluation.class_names)
    if evaluation.superclass_of is None:
        named = np.arange(0, classes, math.ceil(classes / 40))      # more names than that do not fit
        return (np.arange(classes), np.array([]), named + 0.5,
                [readable(evaluation.class_names[label]) for label in named])
    members = _array(evaluation.superclass_of)
    order = np.argsort(members, kind="stable")
    present, starts = np.unique(members[order], return_index=True)
    edges = np.append(starts, classes)
    return order, edges, (edges[:-1] + edges[1:]) / 2, [readable(evaluation.superclass_names[place])
                                                        for place in present]


@themed
def confused_pairs(evaluation: Evaluation, images, n: int = 8, note: str = "") -> Figure:
    """The `n` most frequent mistakes: pictures that were mistaken and, beside them, the class they passed for.

    images: uint8 [N, H, W, 3], those that were evaluated, in their order.
    """
    images = _evaluated(images, evaluation)
    pairs = evaluation.most_confused_classes(n)
    if not pairs:
        return _no_errors(note)
    labels, predictions = _array(evaluation.labels), _array(evaluation.predictions)
    figure, axes = _canvas(1.45 * math.ceil(len(pairs) / 2), "The most frequent mistakes", note)
    for place, (true, predicted, count, share) in enumerate(pairs):
        left, top = (place % 2) * 5.15, (place // 2) * 1.45
        true_name, predicted_name = (readable(evaluation.class_names[label]) for label in (true, predicted))
        axes.text(left, top + 0.3, f"{true_name} taken for {predicted_name}: {share:.0f} % ({count} of "
                  f"{round(100 * count / share)})", va="bottom", weight="bold")
        mistaken = np.flatnonzero((labels == true) & (predictions == predicted))[:4]
        for column, index in enumerate(mistaken):
            _picture(axes, images[index], left + column * 0.92, top + 0.36, 0.88)
        examples = np.flatnonzero(labels == predicted)
        right = left + 3.92
        axes.text(left + 3.8, top + 0.8, "→", ha="center", va="center", fontsize=16)
        _picture(axes, images[examples[0]] if len(examples) else None, right, top + 0.36, 0.88, edge=ORANGE)
    _caption(axes, "Orange frame: a true picture of the class that was predicted.")
    return figure


@themed
def confident_errors(evaluation: Evaluation, images, n: int = 12, note: str = "") -> Figure:
    """The wrong predictions with the highest confidence. images: uint8 [N, H, W, 3], as evaluated."""
    images = _evaluated(images, evaluation)
    errors = evaluation.most_confident_errors(n).tolist()
    if not errors:
        return _no_errors(note)
    columns, width, height = 6, WIDTH / 6, 2.05
    figure, axes = _canvas(height * math.ceil(len(errors) / columns), "The most confident mistakes", note)
    for place, index in enumerate(errors):
        left, top = (place % columns) * width, (place // columns) * height
        _picture(axes, images[index], left + 0.16, top, 1.35)
        true, predicted = (readable(evaluation.class_names[labels[index]])
                           for labels in (evaluation.labels, evaluation.predictions))
        axes.text(left + 0.83, top + 1.4, f"true: {true}\npredicted: {predicted}\n"
                  f"confidence {100 * evaluation.confidences[index]:.1f} %", fontsize=9.5, ha="center", va="top")
    return figure


@themed
def reliability_diagram(evaluation: Evaluation, note: str = "") -> Figure:
    """Accuracy against confidence in 15 bins, and the share of images in each (Guo et al. 2017, arXiv 1706.04599)."""
    bins = evaluation.calibration
    edges, confidence, accuracy = _array(bins.edges), _array(bins.confidence), _array(bins.accuracy)
    filled, width = _array(bins.count) > 0, edges[1] - edges[0]
    error = 100 * evaluation.expected_calibration_error
    figure = _new_figure(7, f"Reliability: expected calibration error {error:.1f} %", note)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left = edges[:-1][filled]
    upper.bar(left, accuracy[filled], width, align="edge", color=BLUE, edgecolor="white", label="accuracy")
    upper.bar(left, (confidence - accuracy)[filled], width, bottom=accuracy[filled], align="edge", color="none",
              edgecolor=ORANGE, hatch="///", label="gap to the mean confidence")
    outline = [withStroke(linewidth=4, foreground="white")]
    upper.plot([0, 1], [0, 1], "--", color="0.1", linewidth=1.8, label="perfect calibration", path_effects=outline)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy (fraction of the bin)")
    upper.legend(loc="upper left")
    lower.bar(edges[:-1], 100 * _array(bins.count) / len(evaluation), width, align="edge", color="0.7",
              edgecolor="white")
    mean = evaluation.confidences.mean().item()
    lower.axvline(mean, color=ORANGE, label=f"mean confidence {100 * mean:.1f} %")
    lower.axvline(evaluation.top1 / 100, color=BLUE, linestyle="--", label=f"accuracy {evaluation.top1:.1f} %")
    lower.set(xlabel="confidence (largest softmax probability)", ylabel="images (%)",
              ylim=(0, 1.5 * lower.get_ylim()[1]))
    lower.legend(loc="upper left", ncols=2)
    return figure


@themed
def explained_prediction(image, names: Sequence[str], probabilities, attention=None, original=None, true: str = "",
                         neighbours: Sequence[tuple] = (), remark: str = "", note: str = "") -> Figure:
    """One picture as the network sees it, its most probable classes, and what the prediction rests on.

    image: uint8 [H, W, 3]; names, probabilities: the classes to show, the most probable first; attention:
    float [H, W] in [0, 1], the Grad-CAM of the first class; original: uint8 [S, S, 3], the picture at its own
    resolution; true: name of the true class where it is known; neighbours: (uint8 [H, W, 3], class name, cosine
    similarity) of the nearest training images; remark: a sentence to stand below.
    """
    values = _array(probabilities)
    known = f"; true class: {readable(true)}" if true else ""
    title = f"predicted: {readable(names[0])}, {100 * values[0]:.1f} %{known}"
    remark = textwrap.fill(remark, 125)
    figure = _new_figure(3.3 + 1.75 * bool(neighbours) + 0.2 * bool(remark) * (1 + remark.count("\n")), title, note)
    pictures = [(original, "your picture, cropped"), (image, f"what the network sees, {len(image)}×{len(image)}")]
    pictures = [(pixels, caption) for pixels, caption in pictures if pixels is not None]
    rows = figure.subfigures(2, 1, height_ratios=(2.3, 1.35)) if neighbours else [figure.subfigures()]
    columns = len(pictures) + (attention is not None) + 1
    *panels, bars = rows[0].subplots(1, columns, width_ratios=[1] * (columns - 1) + [1.25])
    for axes, (pixels, caption) in zip(panels, pictures):
        _captioned(axes, pixels, caption)
    if attention is not None:
        _captioned(panels[-1], image, f"where it looks for\n{readable(names[0])} (Grad-CAM)")
        panels[-1].imshow(_array(attention), cmap="inferno", alpha=0.6, vmin=0, vmax=1,
                          extent=panels[-1].images[0].get_extent(), interpolation="bilinear")
    _probability_bars(bars, names, values)
    if neighbours:
        rows[1].suptitle("nearest training images, with their classes and the cosine similarity of their features",
                         fontsize=11.5)
        for axes, (pixels, name, similarity) in zip(np.atleast_1d(rows[1].subplots(1, len(neighbours))), neighbours):
            _captioned(axes, pixels, "")
            axes.set_xlabel(f"{readable(name)}\n{similarity:.2f}", fontsize=9.5)
    if remark:
        figure.supxlabel(remark, fontsize=10.5)
    return figure


def _captioned(axes: Axes, pixels, caption: str) -> None:
    axes.imshow(_array(pixels), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(caption, fontsize=10)


def _probability_bars(axes: Axes, names: Sequence[str], values: np.ndarray) -> None:
    """Probabilities, float [K], the largest first and in a colour of its own."""
    axes.barh(range(len(values)), 100 * values, color=[ORANGE] + [BLUE] * (len(values) - 1), height=0.7)
    for line, value in enumerate(100 * values):
        axes.text(value + 1, line, f"{value:.1f}", va="center")
    axes.set_yticks(range(len(values)), [readable(name) for name in names], fontsize=11)
    axes.set(xlim=(0, 118), ylim=(len(values) - 0.4, -0.6), xlabel="probability (%)", ylabel="class")
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="y", visible=False)


# What it learned -------------------------------------------------------------------------------------------

@themed
def first_layer_filters(weights, note: str = "") -> Figure:
    """The filters of a first convolution, float [filters, 3, h, w], as colour pictures with their norms.

    Each is scaled to its own largest weight; the norm tells how much it amplifies what it looks for.
    """
    filters = np.moveaxis(_array(weights).astype(float), 1, -1)
    largest = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    pictures = 0.5 + filters / np.maximum(2 * largest, 1e-12)
    columns = 12 if len(filters) <= 24 else 16
    width = WIDTH / columns
    side, height = width - 0.12, width + 0.16
    title = f"First layer: {len(filters)} filters of {filters.shape[1]}×{filters.shape[2]} pixels"
    bottom = height * math.ceil(len(filters) / columns)
    figure, axes = _canvas(bottom + 0.25, title, note)
    for place, picture in enumerate(pictures):
        left, top = place % columns * width + 0.06, place // columns * height
        _picture(axes, picture, left, top, side, edge="0.7")
        axes.text(left + side / 2, top + side + 0.03, f"{np.linalg.norm(filters[place]):.2g}", fontsize=9,
                  ha="center", va="top")
    axes.text(0.06, bottom, "Each colour is what the filter answers to there; a weight of 0 would be grey. Below: the "
              "norm of the filter, by which it amplifies.", va="top", fontsize=10, color="0.3")
    return figure


@themed
def grad_cam_overlay(images, heat_maps, titles: Sequence[str], note: str = "") -> Figure:
    """Pictures beside what a prediction rests on (Grad-CAM).

    images: uint8 [K, H, W, 3]; heat_maps: float [K, H, W] in [0, 1]; titles: K texts, each of one or two lines.
    """
    images, heat_maps = _array(images), _array(heat_maps)
    if not len(images) == len(heat_maps) == len(titles):
        raise ValueError(f"images, heat_maps and titles hold {len(images)}, {len(heat_maps)} and {len(titles)} "
                         "entries; give one of each an image")
    columns, width, height, side = 3, WIDTH / 3, 2.05, 1.52
    figure, axes = _canvas(height * math.ceil(len(images) / columns), "Where the network looks (Grad-CAM)", note)
    for place, (image, heat, title) in enumerate(zip(images, heat_maps, titles)):
        left, top = place % columns * width + 0.1, place // columns * height
        frame = axes.get_xlim(), axes.get_ylim()
        for x in (left, left + side + 0.05):
            _picture(axes, image, x, top, side)
        axes.imshow(heat, cmap="inferno", alpha=0.6, vmin=0, vmax=1, interpolation="bilinear",
                    extent=axes.images[-1].get_extent())
        axes.set(xlim=frame[0], ylim=frame[1])
        axes.text(left + side, top + side + 0.04, title, fontsize=9.5, ha="center", va="top")
    _caption(axes, "Yellow: speaks most for the class; dark: does not speak for it.")
    return figure


@themed
def class_map(points, class_names: Sequence[str], superclass_of=None, superclass_names: Sequence[str] = (),
              kept: float | None = None, note: str = "") -> Figure:
    """Classes as named points in a plane, the superclasses told apart by colour and marker together.

    points: float [C, 2], NaN for a class to leave out; superclass_of: int64 [C] or None; kept: the share of
    neighbours that the plane keeps, as `explain.class_map` returns it, in [0, 1]. There are no scales: only who is near
    whom means something.
    """
    points = _array(points)
    members = None if superclass_of is None else _array(superclass_of)
    shown = "" if kept is None or math.isnan(kept) else (
        f"\nof the four nearest to a class in the plane, {100 * kept:.0f} % are among its four nearest by the features")
    rows = math.ceil(len(superclass_names) / 4)
    figure = _new_figure(9.6 + 0.24 * rows, f"Who is near whom: t-SNE of the classes' mean features{shown}", note)
    axes = figure.subplots()
    kinds = itertools.product(MARKERS, (BLUE, ORANGE, GREEN, PALETTE[4], "0.25"))
    for place, (marker, colour) in zip(range(max(len(superclass_names), 1)), itertools.cycle(kinds)):
        chosen = points if members is None else points[members == place]
        axes.plot(*chosen.T, marker, color=colour, markersize=8, markeredgecolor="white", linestyle="",
                  label=readable(superclass_names[place]) if members is not None else None)
    axes.set(xticks=[], yticks=[], xlabel="t-SNE, first axis (no unit)", ylabel="t-SNE, second axis (no unit)")
    axes.margins(0.06)
    if members is not None:
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    figure.draw_without_rendering()         # where the points lie on the page is known only now
    there = np.isfinite(points).all(axis=1)
    _name_points(axes, points[there], [readable(name) for name, drawn in zip(class_names, there) if drawn])
    return figure


MARKERS = "os^DvPX*<>"


def _name_points(axes: Axes, points: np.ndarray, names: Sequence[str]) -> None:
    """Write each name beside its point, as near as no other name or point is in the way."""
    axes.set_autoscale_on(False)
    dot = axes.figure.dpi / 72          # pixels in a point of type
    pixels = axes.transData.transform(points)
    taken = [np.array([x - 5, y - 5, x + 5, y + 5]) for x, y in pixels]
    order = np.argsort(np.linalg.norm(pixels - np.median(pixels, axis=0), axis=1), kind="stable")    # the crowd first
    for index in order:
        text = axes.annotate(names[index], points[index], fontsize=9, ha="center", va="center", color="0.15",
                             xytext=(0, 0), textcoords="offset points")
        box = text.get_window_extent()
        half = np.array([box.width, box.height]) / 2 + 1
        tried = [(offset, np.concatenate([pixels[index] + offset - half, pixels[index] + offset + half]))
                 for offset in _offsets(half)]
        covered = [_overlap(place, taken, axes.bbox.extents) for _, place in tried]
        offset, place = tried[int(np.argmin(covered))]      # the first, so the nearest, of those that cover least
        taken.append(place)
        text.set_position(offset / dot)
        gap = np.maximum(np.abs(offset) - half, 0)
        if np.hypot(*gap) > 10:
            start = pixels[index] + offset - np.sign(offset) * np.minimum(half, np.abs(offset))
            line = axes.transData.inverted().transform([pixels[index], start])
            axes.plot(*line.T, color="0.55", linewidth=0.8, zorder=1)


def _offsets(half: np.ndarray):
    """Places to try for the middle of a name, in pixels from its point: rings, the nearest first."""
    angles = np.arange(24) * np.pi / 12
    return [(radius + half) * np.array([np.cos(angle), np.sin(angle)])
            for radius in (6, 12, 20, 30, 42, 56, 72, 90) for angle in angles]


def _overlap(box: np.ndarray, taken: list[np.ndarray], frame: np.ndarray) -> float:
    """Area in square pixels that `box` shares with the boxes taken, or that lies outside the frame."""
    others = np.array(taken)
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    shared = (width.clip(0) * height.clip(0)).sum()
    inside = np.prod((np.minimum(box[2:], frame[2:]) - np.maximum(box[:2], frame[:2])).clip(0))
    return round(shared + np.prod(box[2:] - box[:2]) - inside, 3)       # without the noise that would part equals


@themed
def superclass_affinity(matrix, names: Sequence[str], note: str = "") -> Figure:
    """Cosine similarities between the gradients of superclasses, those that pull alike side by side.

    matrix: float [S, S], symmetric, in [-1, 1]; NaN where it was not measured.
    """
    matrix = _array(matrix)
    order = np.argsort(np.linalg.eigh(np.nan_to_num(matrix))[1][:, -1], kind="stable")
    values = (100 * matrix[np.ix_(order, order)]).round() + 0.0      # the sum turns -0 into 0
    hidden = np.eye(len(values), dtype=bool) | np.isnan(values)
    limit = np.abs(np.where(hidden, 0, values)).max(initial=1)
    figure = _new_figure(8.6, "Do superclasses pull the filters the same way?", note)
    axes = figure.subplots()
    sns.heatmap(values, ax=axes, mask=hidden, cmap="vlag_r", vmin=-limit, vmax=limit, square=True, linewidths=0.5,
                annot=len(values) <= 25, fmt=".0f", annot_kws={"fontsize": 9},
                cbar_kws={"label": "cosine similarity of the gradients × 100", "shrink": 0.7})
    labels = [readable(names[place]) for place in order]
    axes.set_xticks(np.arange(len(order)) + 0.5, labels, rotation=90, fontsize=9.5)
    axes.set_yticks(np.arange(len(order)) + 0.5, labels, rotation=0, fontsize=9.5)
    axes.grid(False)
    axes.set(xlabel="superclass", ylabel="superclass")
    axes.set_title("blue: a small step for one also helps the other; red: it is in the other's way")
    return figure


# Speed and size --------------------------------------------------------------------------------------------

@themed
def throughput(rows: Sequence[dict], note: str = "") -> Figure:
    """Images a second, and memory where it was measured, by batch size.

    A row is a dict: batch_size, images_per_second (median), images_per_second_min, images_per_second_max,
    memory_mb (or None), error (or None: the batch size that did not run, and why).
    """
    with_memory = any(row.get("memory_mb") is not None for row in rows)
    figure = _new_figure(4.2, "Inference speed by batch size", note)
    panels = figure.subplots(1, 1 + with_memory, squeeze=False)[0]
    _speed(panels[0], rows)
    if with_memory:
        _numbered_bars(panels[1], [row.get("memory_mb") for row in rows])
        panels[1].set_ylabel("peak memory, all that is in use (MiB)")
        panels[1].margins(y=0.12)
    for axes in panels:
        for place, row in enumerate(rows):
            if row.get("error"):
                axes.text(place, 0.03, _reason(row["error"]), rotation=90, ha="center", va="bottom", color=RED,
                          weight="bold", transform=axes.get_xaxis_transform())
        axes.set_xticks(range(len(rows)), [str(row["batch_size"]) for row in rows])
        axes.set(xlabel="batch size (images)", xlim=(-0.6, len(rows) - 0.4))
    return figure


def _speed(axes: Axes, rows: Sequence[dict]) -> None:
    speeds = _numbers([row.get("images_per_second") for row in rows])
    low = speeds - _numbers([row.get("images_per_second_min") for row in rows])
    high = _numbers([row.get("images_per_second_max") for row in rows]) - speeds
    axes.errorbar(range(len(rows)), speeds, yerr=[np.nan_to_num(low), np.nan_to_num(high)], fmt="o-", color=BLUE,
                  capsize=4, label="median, with smallest and largest")
    if not np.isnan(speeds).all():
        best = int(np.nanargmax(speeds))
        others = np.delete(speeds + np.nan_to_num(high), best)
        if np.isnan(others).all() or speeds[best] - np.nan_to_num(low)[best] > np.nanmax(others):      # not by chance
            axes.plot(best, speeds[best], "*", color=ORANGE, markersize=16, markeredgecolor="0.15", zorder=5,
                      label=f"fastest: {speeds[best]:,.0f} images/s at {rows[best]['batch_size']}")
        axes.set_ylim(0, 1.3 * np.nanmax(speeds + np.nan_to_num(high)))
    axes.set_ylabel("images per second")
    axes.legend(loc="upper left")


@themed
def model_layers(rows: Sequence[dict], note: str = "") -> Figure:
    """Parameters and floating-point operations of each layer. A row is a dict: layer, parameters, mflops.

    Layers without convolutions or matrix products (norms) are in the sums of the title, but have no bar.
    """
    total = {key: sum(row[key] for row in rows) for key in ("parameters", "mflops")}
    title = f"{total['parameters']:,} parameters, {total['mflops']:,.1f} MFLOP a forward pass of one image"
    rows = [row for row in rows if row["mflops"]]       # norms cost next to nothing, and would double the height
    figure = _new_figure(1.4 + 0.25 * len(rows), title, note)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, colour, label in zip(panels, ("mflops", "parameters"), (BLUE, ORANGE),
                                        ("MFLOP a forward pass of one image", "parameters (thousands)")):
        values = np.array([row[key] for row in rows], dtype=float) / (1000 if key == "parameters" else 1)
        axes.barh(range(len(rows)), values, color=colour, height=0.75)
        for line, value in enumerate(values):
            axes.annotate(f"{value:,.3g}" if value < 100 else f"{value:,.0f}", (value, line), (4, 0),
                          textcoords="offset points", va="center", fontsize=9)
        axes.set(xlabel=label, ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.15 * max(values.max(initial=0), 1e-9)))
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(rows)), [row["layer"] for row in rows], fontsize=9.5)
    panels[0].set_ylabel("layer, input to output")
    return figure


# Parts -----------------------------------------------------------------------------------------------------

def _new_figure(height: float, title: str, note: str) -> Figure:
    """An empty figure with its title, WIDTH by `height` inches and a strip for `note`.

    pyplot makes it, because only that tells a notebook how to show figures; closing it right away keeps the
    notebook from showing it a second time by itself.
    """
    lines = textwrap.wrap(note, 90)
    height += 0.25 * len(lines)
    figure = plt.figure(figsize=(WIDTH, height), layout="constrained")
    plt.close(figure)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    figure.suptitle("\n" * len(lines) + title)      # the empty lines hold the note
    if lines:
        figure.text(0.5, 1 - 0.09 / height, "\n".join(lines), ha="center", va="top", weight="bold", fontsize=10.5,
                    color="#5c3d00", bbox={"facecolor": "#ffe9a8", "edgecolor": "#c98a00", "pad": 3})
    return figure


def _canvas(height: float, title: str, note: str) -> tuple[Figure, Axes]:
    """A figure to lay pictures on: its one axes counts inches, from the upper left corner, without ticks."""
    figure = _new_figure(height + 0.42, title, note)
    axes = figure.subplots()
    axes.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="equal", anchor="N")
    axes.axis("off")
    return figure, axes


def _picture(axes: Axes, image: np.ndarray | None, x: float, y: float, side: float, edge: str = "") -> None:
    """`image` with its upper left corner at (x, y) inches; an empty box where there is none."""
    frame = axes.get_xlim(), axes.get_ylim()
    if image is not None:
        axes.imshow(image, extent=(x, x + side, y + side, y), interpolation="nearest")
    if image is None or edge:
        axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=edge or "0.7",
                                 linewidth=2.5 if edge else 1))
    axes.set(xlim=frame[0], ylim=frame[1])      # imshow has narrowed them


def _caption(axes: Axes, text: str) -> None:
    axes.text(0, 0, text, transform=axes.transAxes, va="top", fontsize=10, color="0.3")


def _no_errors(note: str) -> Figure:
    figure = _new_figure(1.8, "Mistakes", note)
    axes = figure.subplots()
    axes.axis("off")
    _say(axes, "There are none: every prediction is right.")
    return figure


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="0.3")


def _line(axes: Axes, history: History, key: str, label: str, colour: str) -> None:
    """The column `key` by epoch, where it has any value."""
    values = _numbers(history[key])
    if not np.isnan(values).all():
        axes.plot(history["epoch"], values, color=colour, label=label, marker=_marker(history))


def _mark_best(axes: Axes, history: History) -> None:
    if history.best_epoch is not None:
        axes.plot(history.best_epoch, history.best_top1, "*", color=ORANGE, markersize=16, markeredgecolor="0.15",
                  zorder=5, label=f"best: {history.best_top1:.1f} % in epoch {history.best_epoch}")


def _marker(history: History) -> str:
    """Few points need markers; one alone would not show without."""
    return "o" if len(history) <= 30 else ""


def _ended(title: str, history: History) -> str:
    why = {"early": "stopped early", "interrupted": "interrupted"}.get(history.stopped)
    return f"{title}, {why} after epoch {history['epoch'][-1]}" if why and len(history) else title


def _bar_label(axes: Axes, line: int, value: float) -> None:
    """The value at the bar's foot, clear of the mean line; behind a bar that is too short for it."""
    if math.isnan(value):
        text, foot, colour = "no images", 0, "0.3"
    else:
        inside = value > 20
        # cividis is dark at its low end and light at its high end.
        text, foot, colour = f"{value:.0f}", 0 if inside else value, "white" if inside and value < 60 else "black"
    axes.annotate(text, (foot, line), (4, 0), textcoords="offset points", va="center", fontsize=9, color=colour)


def _numbered_bars(axes: Axes, values: Sequence) -> None:
    heights = _numbers(values)
    axes.bar(range(len(heights)), np.nan_to_num(heights), color=PALETTE[9], width=0.7)
    for place, height in enumerate(heights):
        if not math.isnan(height):
            axes.annotate(f"{height:,.0f}", (place, height), (0, 3), textcoords="offset points", ha="center")


def _reason(error: str) -> str:
    text = str(error).strip() or "failed"
    return "out of memory" if "out of memory" in text.lower() else textwrap.shorten(text, 32, placeholder=" …")


def _listed(*items: tuple) -> str:
    """`template.format(value)` of those that have a value, joined by commas."""
    return ", ".join(template.format(value) for template, value in items if value is not None)


def _numbers(values: Sequence) -> np.ndarray:
    """float64 array with NaN for None."""
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _array(values) -> np.ndarray:
    """A NumPy array of a tensor on any device, an array or a list."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _evaluated(images, evaluation: Evaluation) -> np.ndarray:
    images = _array(images)
    if len(images) != len(evaluation):
        raise ValueError(f"images holds {len(images)} pictures, but {len(evaluation)} were evaluated; give the same "
                         "split in the same order")
    return images
