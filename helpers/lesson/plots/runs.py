"""Figures that compare runs: accuracy against cost, curves run by run, the record, the ablation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from ...text import fitted, wrapped
from .theme import (BLUE, DASHES, ORANGE, PALETTE, as_floats, draw_column, epoch_marker, new_figure, themed,
                    use_log_scale)


@themed
def compare_runs(runs: Sequence[dict], published: Sequence[tuple] = (), note: str = "") -> Figure:
    """Accuracy of several runs against epochs, seconds and PFLOP; published results are reference lines.

    Lines show validation accuracy, stars the final test accuracy. runs: as of `finished_runs`, that is dicts with name,
    history (a History), top1 and top5 (% on the test split), seconds, petaflops and epochs (of the whole training).
    published: (name, top1, top5).
    """
    labels = _run_labels(runs, published)
    lines = sum(label.count("\n") + 1 for label in labels)
    figure = new_figure(5.4 + 0.22 * lines, "Accuracy against what it costs", note)
    panels = figure.subplots(1, 3, sharey=True)
    looks = [{"linestyle": style, "color": colour}      # after ten colours, dashed lines
             for style, colour in itertools.product(("-", "--", "-.", ":"), sns.color_palette("colorblind", 10))]
    for axes, key, label in zip(panels, ("epoch", "seconds", "petaflops"),
                                ("epoch", "training time (s)", "training compute (PFLOP)")):
        ends = [end for run, look in zip(runs, itertools.cycle(looks)) if (end := _draw_run(axes, run, key, look))]
        for (_, top1, _), dashes in zip(published, itertools.cycle(DASHES)):
            axes.axhline(top1, color="0.35", linestyle=(0, dashes), linewidth=1.3)
        if ends and max(ends) > 20 * min(ends) > 0:
            use_log_scale(axes)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=key == "epoch"))
        axes.set_xlabel(label)
    panels[0].set_ylabel("top-1 accuracy (%)")
    lines = [Line2D([], [], marker="*", markersize=12, markeredgecolor="0.15", **look)
             for _, look in zip(runs, itertools.cycle(looks))]
    lines += [Line2D([], [], color="0.35", linestyle=(0, dashes), linewidth=1.3)
              for _, dashes in zip(published, itertools.cycle(DASHES))]
    legend = figure.legend(lines, ["run"] * len(lines), loc="outside lower center",
                           title="line: validation split; star: test split")
    for text, label in zip(legend.get_texts(), labels):     # a legend leaves out labels that begin with _
        text.set_text(label)
    return figure


@themed
def small_multiples(runs: Sequence[dict], note: str = "") -> Figure:
    """Training and validation accuracy by epoch, one panel per run, all on the same scale. runs: dicts with name (the
    title of the panel) and history (History)."""
    columns = min(len(runs), 3)
    rows = math.ceil(len(runs) / columns)
    figure = new_figure(1.2 + 2.5 * rows, "Training, run by run", note)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(runs):]:
        axes.remove()
    for place, (axes, run) in enumerate(zip(panels, runs)):
        draw_column(axes, run["history"], "train_accuracy", "training (augmented images)", BLUE)
        draw_column(axes, run["history"], "val_top1", "validation", ORANGE)
        axes.set_title("\n".join(wrapped(fitted(run["name"], 120), 105 // columns)), fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        if place + columns >= len(runs):        # the lowest in its column
            axes.set_xlabel("epoch")
            axes.xaxis.set_tick_params(labelbottom=True)
    figure.supylabel("top-1 accuracy (%)", fontsize=11)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=2)
    return figure


@themed
def record(recipes: Sequence[dict], others: Sequence[dict] = (), published: Sequence[tuple] = (),
           note: str = "") -> Figure:
    """Test accuracy against training compute of this project's recipes and of others' results.

    recipes: dicts with name, preset, top1 (mean, %), top1_std (over the runs; None for one run), petaflops, minutes,
    runs and machine (a SystemInfo as a dict); a line joins those named after their preset, the others are variants,
    drawn hollow. others: dicts with name, top1, petaflops (a number, or the least and the most), and where known
    top1_std and runs. published: (name, top1, top5) with unknown compute, drawn as lines.
    """
    figure = new_figure(6, "Test accuracy against training compute", note)
    axes = figure.subplots()
    points, labels = [], []

    def label(text: str, row: dict, **look) -> None:
        labels.append(axes.annotate(
            text, (_middle(row), row["top1"]), (0, 0), textcoords="offset points", in_layout=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}, **look))

    def point(row: dict, look: str, **looks) -> None:
        low, high = np.broadcast_to(row["petaflops"], 2)
        spread = row.get("top1_std")
        axes.errorbar(_middle(row), row["top1"], yerr=spread, xerr=[[_middle(row) - low], [high - _middle(row)]],
                      fmt=look, capsize=4, **looks)
        points.append([(low, row["top1"] - (spread or 0)), (high, row["top1"] + (spread or 0))])

    for (name, top1, _), dashes in zip(published, itertools.cycle(DASHES)):
        axes.axhline(top1, color="0.75", linestyle=(0, dashes), linewidth=1, zorder=0)
        axes.annotate(f"{name}: {top1:.2f} %", (0.995, top1), xycoords=("axes fraction", "data"), ha="right",
                      textcoords="offset points", xytext=(0, 2), fontsize=9, color="0.35")
    for other in others:
        point(other, "D", color="0.45", markersize=7, zorder=3)
        low, high = np.broadcast_to(other["petaflops"], 2)
        cost = f"{low:.3g}" if low == high else f"{low:g} to {high:g}"
        label(f"{other['name']}\n{_accuracy(other)}\n{cost} PFLOP", other, fontsize=9, color="0.3")
    presets = [recipe for recipe in recipes if recipe["name"] == recipe["preset"]]
    axes.plot([row["petaflops"] for row in presets], [row["top1"] for row in presets], color="0.6", linewidth=1)
    markers = itertools.cycle("osv^PdX<>ph8")
    for recipe in recipes:
        if recipe not in presets:
            axes.plot(recipe["petaflops"], recipe["top1"], next(markers), color="none", markersize=7, zorder=4,
                      markeredgecolor="0.15", label=f"{recipe['name']}: {_accuracy(recipe)}")
            points.append([(recipe["petaflops"], recipe["top1"])] * 2)
    for recipe, colour in zip(presets, itertools.cycle(PALETTE)):
        point(recipe, "*", color=colour, zorder=5, markersize=17, markeredgecolor="0.15", ecolor="0.15")
        system = recipe["machine"]
        machine = f"{system['cpu_cores']} CPU cores" if system["device"] == "cpu" else f"one {system['device_name']}"
        label(f"{recipe['name']}: {_accuracy(recipe)}\n{recipe['petaflops']:.3g} PFLOP\n"
              f"{recipe['minutes']:.0f} min on {machine}", recipe)
    use_log_scale(axes)
    axes.margins(x=0.3, y=0.2)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower center", bbox_to_anchor=(0.6, 0), fontsize=9, title="variants")
    axes.set(xlabel="training compute (PFLOP, forward and backward, logarithmic)", ylabel="test top-1 accuracy (%)")
    _keep_apart(axes, labels, points)
    return figure


def _middle(row: dict) -> float:
    """PFLOP; the middle of a range on a logarithmic axis."""
    return float(np.prod(np.broadcast_to(row["petaflops"], 2)) ** 0.5)


def _keep_apart(axes: Axes, labels: Sequence[Annotation], points: Sequence) -> None:
    """Put each label, the last one first, beside its point where it covers the fewest points and labels and leaves the
    axes least. points: corners of each, in data coordinates."""
    axes.figure.draw_without_rendering()        # now pixels are known
    taken = [Bbox(axes.transData.transform(corners)).padded(7) for corners in points]
    taken += [text.get_window_extent() for text in axes.texts if text not in labels]

    def box_at(label: Annotation, side: tuple[int, int]) -> Bbox:
        x, y = side
        label.set(position=(13 * x, 13 * y), ha=("center", "left", "right")[x], va=("center", "bottom", "top")[y])
        return label.get_window_extent()

    def faults(box: Bbox) -> int:
        return box.count_overlaps(taken) + sum(not axes.bbox.contains(*corner) for corner in box.corners())

    for label in reversed(labels):
        found = {side: faults(box_at(label, side)) for side in itertools.product((1, -1, 0), (0, -1, 1))}
        taken.append(box_at(label, min(found, key=found.get)))


def _accuracy(row: dict) -> str:
    """Top-1, with the standard deviation where there are several runs, and their number where it is known."""
    spread = f" ± {row['top1_std']:.2f}" if row.get("top1_std") else ""
    return f"{row['top1']:.2f}{spread} %" + (f" (n = {row['runs']})" if row.get("runs") else "")


@themed
def ablation(rows: Sequence[dict], base: str, note: str = "") -> Figure:
    """Validation accuracy of short trainings with one change each, as difference from `base` in percentage points; the
    band is the range of the `base` runs about their mean. rows: dicts with change (str), val_top1 (%) and difference.
    The seeds of one change share a line; its number is their mean."""
    full = [row["val_top1"] for row in rows if row["change"] == base]
    centre = sum(full) / len(full)
    changes = {}
    for row in rows:
        if row["change"] != base:
            changes.setdefault(row["change"], []).append(row["difference"])
    means = sorted((sum(differences) / len(differences), change) for change, differences in changes.items())
    figure = new_figure(2.1 + 0.33 * max(len(means), 3), "What one change does", note)
    axes = figure.subplots()
    accuracy = f"{len(full)} seeds: {min(full):.1f} to {max(full):.1f} %" if len(full) > 1 else f"{centre:.1f} %"
    axes.axvspan(min(full) - centre, max(full) - centre, color=BLUE, alpha=0.15, label=f"{base}, {accuracy}")
    axes.axvline(0, color=BLUE)
    for place, (difference, change) in enumerate(means):
        axes.plot([0, difference], [place, place], color="0.6", zorder=2)
        axes.plot(changes[change], [place] * len(changes[change]), "o", color=ORANGE, markeredgecolor="0.15",
                  markersize=8, zorder=3)
        outermost, offset, side = (max, 9, "left") if difference >= 0 else (min, -9, "right")
        axes.annotate(f"{round(difference, 1) + 0.0:+.1f}", (outermost(changes[change]), place),
                      textcoords="offset points", xytext=(offset, 0), va="center", ha=side)
    axes.set_yticks(range(len(means)), [fitted(change, 50) for _, change in means])
    axes.margins(x=0.15)
    axes.set(xlabel="difference in validation top-1 accuracy (percentage points)", ylabel="change",
             ylim=(-0.7, max(len(means), 1) - 0.3))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def _draw_run(axes: Axes, run: dict, key: str, look: dict) -> float:
    """Draw a run's validation curve and final star; return its end on the x axis, 0 if stopped before any epoch."""
    history, end = run["history"], run["epochs" if key == "epoch" else key]
    axes.plot(as_floats(history[key]), as_floats(history["val_top1"]), marker=epoch_marker(history), **look)
    axes.plot(end, run["top1"], "*", color=look["color"], markersize=15, markeredgecolor="0.15", zorder=5)
    return end


def _run_labels(runs: Sequence[dict], published: Sequence[tuple]) -> list[str]:
    """Names and scores of the runs, then of the published results, in lines that fit the figure."""
    labels = [f"{fitted(run['name'], 130)}: top-1 {run['top1']:.2f} %, top-5 {run['top5']:.2f} %, "
              f"{run['seconds']:,.0f} s, {run['petaflops']:.3g} PFLOP" for run in runs]
    return ["\n".join(wrapped(label, 110)) for label in labels] + [
        f"{name}: top-1 {top1:.2f} %, top-5 {top5:.2f} % (published)" for name, top1, top5 in published]
