"""Figures of an evaluation: accuracy by class, mistakes, calibration, and one prediction explained."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ...metrics import Evaluation
from ...text import columns_of, readable
from .theme import (BLUE, ORANGE, RED, WIDTH, as_array, draw_heat, draw_picture, new_canvas, new_figure, themed,
                    write_caption, write_centred)


@themed
def class_accuracy_bars(evaluation: Evaluation, note: str = "") -> Figure:
    """Accuracy of every class, best to worst, with the mean."""
    accuracy = as_array(evaluation.class_accuracy)
    order = np.argsort(-accuracy, kind="stable")        # NaN, a class without images, sorts last
    columns = min(4, math.ceil(len(order) / 25))
    rows = math.ceil(len(order) / columns)
    title = (f"Accuracy by class: mean {evaluation.class_mean:.1f} %, standard deviation "
             f"{evaluation.class_std:.1f}, from {evaluation.class_min:.0f} to {evaluation.class_max:.0f} %")
    figure = new_figure(1.3 + 0.25 * rows, title, note)
    panels = figure.subplots(1, columns, sharex=True, squeeze=False)[0]
    colours = sns.color_palette("cividis", as_cmap=True)
    for column, axes in enumerate(panels):
        classes = order[column * rows:(column + 1) * rows]
        values = accuracy[classes]
        axes.barh(range(len(classes)), np.nan_to_num(values), color=colours(np.nan_to_num(values) / 100), height=0.8)
        for line, value in enumerate(values):
            _bar_label(axes, line, value)
        axes.axvline(evaluation.class_mean, color=RED, linestyle="--", linewidth=1.4, label="mean over classes")
        axes.set_yticks(range(len(classes)), [readable(evaluation.class_names[label], 72 // columns)
                                                  for label in classes], fontsize=9.5)
        axes.set(xlim=(0, 100), ylim=(rows - 0.4, -0.6), xlabel="accuracy (%)")
        axes.grid(axis="y", visible=False)
    panels[0].set_ylabel("class, best to worst")
    figure.legend(handles=panels[0].lines[:1], loc="outside lower center")
    return figure


def _bar_label(axes: Axes, line: int, value: float) -> None:
    """Write the value, in %, at the foot of its bar, or beside a bar that is too short."""
    if math.isnan(value):
        text, foot, colour = "no images", 0, "0.3"
    else:
        inside = value > 20
        # cividis is dark for low values, light for high ones
        text, foot, colour = f"{value:.0f}", 0 if inside else value, "white" if inside and value < 60 else "black"
    axes.annotate(text, (foot, line), (4, 0), textcoords="offset points", va="center", fontsize=9, color=colour)


@themed
def confusion_matrix(evaluation: Evaluation, note: str = "") -> Figure:
    """Share of each true class (row) by predicted class (column), grouped by superclass. The colour scale is
    logarithmic, so that errors of one percent show beside the diagonal."""
    order, edges, ticks, names = _class_groups(evaluation)
    counts = as_array(evaluation.confusion)[np.ix_(order, order)]
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    grouped = "" if evaluation.superclass_of is None else ", classes grouped by superclass"
    figure = new_figure(9.2, f"Confusion matrix{grouped}", note)
    axes = figure.subplots()
    least = min(0.5, shares[counts > 0].min(initial=100))
    sns.heatmap(shares, ax=axes, mask=counts == 0, norm=LogNorm(least, 100), cmap="viridis_r", square=True,
                annot=counts if len(order) <= 20 else False, fmt="d", xticklabels=False, yticklabels=False,
                cbar_kws={"label": "share of the true class's images (%), logarithmic; white: none", "shrink": 0.7,
                          "format": "{x:g} %", "ticks": [0.5, 1, 2, 5, 10, 20, 50, 100]})
    figure.axes[-1].minorticks_off()
    axes.grid(False)
    axes.hlines(edges, 0, len(order), color="0.6", linewidth=0.6)
    axes.vlines(edges, 0, len(order), color="0.6", linewidth=0.6)
    fit_side_by_side = len(names) * max(map(columns_of, names)) <= 80
    axes.set_xticks(ticks, names, rotation=0 if fit_side_by_side else 90, fontsize=9)
    axes.set_yticks(ticks, names, rotation=0, fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")
    axes.spines[:].set_visible(True)
    return figure


def _class_groups(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Order of the classes, int64 [C]; in that order, the edges between superclasses, the ticks and their names."""
    classes = len(evaluation.class_names)
    if evaluation.superclass_of is None:
        named = np.arange(0, classes, math.ceil(classes / 40))      # no more names fit
        names = [readable(evaluation.class_names[label], 32) for label in named]
        return np.arange(classes), np.array([]), named + 0.5, names
    members = as_array(evaluation.superclass_of)
    order = np.argsort(members, kind="stable")
    present, starts = np.unique(members[order], return_index=True)
    edges = np.append(starts, classes)
    names = [readable(evaluation.superclass_names[place]) for place in present]
    return order, edges, (edges[:-1] + edges[1:]) / 2, names


@themed
def confused_pairs(evaluation: Evaluation, images, n: int = 8, note: str = "") -> Figure:
    """The `n` most frequent mistakes: up to four mistaken pictures, and one of the predicted class. images: the
    evaluated images, uint8 [N, H, W, 3]."""
    images = _evaluated(images, evaluation)
    pairs = evaluation.most_confused_classes(n)
    if not pairs:
        return _no_errors(note)
    labels, predictions = as_array(evaluation.labels), as_array(evaluation.predictions)
    figure, axes = new_canvas(1.45 * math.ceil(len(pairs) / 2), "The most frequent mistakes", note)
    for place, (true, predicted, count, share) in enumerate(pairs):
        left, top = (place % 2) * 5.15, (place // 2) * 1.45
        true_name, predicted_name = (readable(evaluation.class_names[label], 14) for label in (true, predicted))
        axes.text(left, top + 0.3, f"{true_name} taken for {predicted_name}: {share:.0f} % ({count} of "
                  f"{round(100 * count / share)})", va="bottom", fontsize=11)
        mistaken = np.flatnonzero((labels == true) & (predictions == predicted))[:4]
        for column, index in enumerate(mistaken):
            draw_picture(axes, images[index], left + column * 0.92, top + 0.36, 0.88)
        axes.text(left + 3.8, top + 0.8, "→", ha="center", va="center", fontsize=16)
        examples = np.flatnonzero(labels == predicted)
        draw_picture(axes, images[examples[0]] if len(examples) else None, left + 3.92, top + 0.36, 0.88, edge=ORANGE)
    write_caption(axes, "Right of each arrow, framed in orange: a picture of the predicted class.")
    return figure


@themed
def confident_errors(evaluation: Evaluation, images, n: int = 12, note: str = "") -> Figure:
    """The `n` wrong predictions with the highest confidence. images: the evaluated images, uint8 [N, H, W, 3]."""
    images = _evaluated(images, evaluation)
    errors = evaluation.most_confident_errors(n).tolist()
    if not errors:
        return _no_errors(note)
    columns, width, height = 6, WIDTH / 6, 2.05
    figure, axes = new_canvas(height * math.ceil(len(errors) / columns), "The most confident mistakes", note)
    for place, index in enumerate(errors):
        left, top = (place % columns) * width, (place // columns) * height
        draw_picture(axes, images[index], left + 0.16, top, 1.35)
        true, predicted = (readable(evaluation.class_names[labels[index]], 13)
                           for labels in (evaluation.labels, evaluation.predictions))
        axes.text(left + 0.83, top + 1.4, f"true: {true}\npredicted: {predicted}\n"
                  f"confidence {100 * evaluation.confidences[index]:.1f} %", fontsize=9, ha="center", va="top")
    return figure


def _no_errors(note: str) -> Figure:
    figure = new_figure(1.8, "Mistakes", note)
    axes = figure.subplots()
    axes.axis("off")
    write_centred(axes, "There are none: every prediction is right.")
    return figure


def _evaluated(images, evaluation: Evaluation) -> np.ndarray:
    images = as_array(images)
    if len(images) != len(evaluation):
        raise ValueError(f"images holds {len(images)} pictures, but {len(evaluation)} were evaluated; give the "
                         "evaluated split in the same order")
    return images


@themed
def reliability_diagram(evaluation: Evaluation, before: Evaluation | None = None, note: str = "") -> Figure:
    """Accuracy by bins of confidence, and the share of images in each (Guo et al. 2017, arXiv 1706.04599); as points,
    also `before` a temperature divided the logits."""
    bins = evaluation.calibration
    edges, confidence, accuracy = as_array(bins.edges), as_array(bins.confidence), as_array(bins.accuracy)
    filled, width = as_array(bins.count) > 0, edges[1] - edges[0]
    error = 100 * evaluation.expected_calibration_error
    figure = new_figure(7, f"Reliability: expected calibration error {error:.1f} %", note)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left = edges[:-1][filled]
    upper.bar(left, accuracy[filled], width, align="edge", color=BLUE, edgecolor="white", label="accuracy")
    upper.bar(left, (confidence - accuracy)[filled], width, bottom=accuracy[filled], align="edge", color="none",
              edgecolor=ORANGE, hatch="///", label="gap to the mean confidence")
    outline = [withStroke(linewidth=4, foreground="white")]
    upper.plot([0, 1], [0, 1], "--", color="0.1", linewidth=1.8, label="perfect calibration", path_effects=outline)
    if before is not None:
        error = 100 * before.expected_calibration_error
        upper.plot(as_array(before.calibration.confidence), as_array(before.calibration.accuracy), "D", color="0.2",
                   markeredgecolor="white", label=f"without the temperature: error {error:.1f} %")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy (fraction of the bin)")
    upper.legend(loc="upper left")
    lower.bar(edges[:-1], 100 * as_array(bins.count) / len(evaluation), width, align="edge", color="0.7",
              edgecolor="white")
    mean = evaluation.confidences.mean().item()
    lower.axvline(mean, color=ORANGE, label=f"mean confidence {100 * mean:.1f} %")
    lower.axvline(evaluation.top1 / 100, color=BLUE, linestyle="--", label=f"accuracy {evaluation.top1:.1f} %")
    lower.set(xlabel="confidence (largest softmax probability)", ylabel="images (%)",
              ylim=(0, 1.5 * lower.get_ylim()[1]))
    lower.legend(loc="upper left", ncols=2)
    return figure


@themed
def explained_prediction(image, names: Sequence[str], probabilities, attention, original=None, true: str = "",
                         neighbours: Sequence[tuple] = (), remark: str = "", note: str = "") -> Figure:
    """One picture as the network sees it, its most probable classes, and what the prediction rests on.

    image: uint8 [H, W, 3]; names: K classes, most probable first; probabilities: float [K]; attention: float [H, W] in
    [0, 1], the Grad-CAM of the first class; original: uint8 [S, S, 3], the picture at a higher resolution; true: the
    true class, if known; neighbours: (uint8 [H, W, 3], class name, cosine similarity) of the nearest training images;
    remark: a sentence below the figure.
    """
    values = as_array(probabilities)
    known = f"; true class: {readable(true, 30)}" if true else ""
    title = f"predicted: {readable(names[0], 30)}, {100 * values[0]:.1f} %{known}"
    remark = textwrap.fill(remark, 125)
    figure = new_figure(3.3 + 1.75 * bool(neighbours) + 0.2 * bool(remark) * (1 + remark.count("\n")), title, note)
    pictures = [(original, "your picture, cropped"), (image, f"what the network sees, {len(image)}×{len(image)}")]
    pictures = [(pixels, caption) for pixels, caption in pictures if pixels is not None]
    rows = figure.subfigures(2, 1, height_ratios=(2.3, 1.35)) if neighbours else [figure.subfigures()]
    columns = len(pictures) + 2
    *panels, bars = rows[0].subplots(1, columns, width_ratios=[1] * (columns - 1) + [1.25])
    for axes, (pixels, caption) in zip(panels, pictures):
        _captioned(axes, pixels, caption)
    _captioned(panels[-1], image, f"where it looks for\n{readable(names[0], 18)} (Grad-CAM)")
    draw_heat(panels[-1], attention)
    _probability_bars(bars, names, values)
    if neighbours:
        rows[1].suptitle("nearest training images, with their classes and the cosine similarity of their features",
                         fontsize=11.5)
        for axes, (pixels, name, similarity) in zip(np.atleast_1d(rows[1].subplots(1, len(neighbours))), neighbours):
            _captioned(axes, pixels, "")
            axes.set_xlabel(f"{readable(name, 15)}\n{similarity:.2f}", fontsize=9.5)
    if remark:
        figure.supxlabel(remark, fontsize=10.5)
    return figure


def _captioned(axes: Axes, pixels, caption: str) -> None:
    axes.imshow(as_array(pixels), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(caption, fontsize=10)


def _probability_bars(axes: Axes, names: Sequence[str], values: np.ndarray) -> None:
    """Probabilities, float [K], largest first and in its own colour."""
    axes.barh(range(len(values)), 100 * values, color=[ORANGE] + [BLUE] * (len(values) - 1), height=0.7)
    for line, value in enumerate(100 * values):
        axes.text(value + 1, line, f"{value:.1f}", va="center")
    axes.set_yticks(range(len(values)), [readable(name, 20) for name in names], fontsize=11)
    axes.set(xlim=(0, 118), ylim=(len(values) - 0.4, -0.6), xlabel="probability (%)", ylabel="class")
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="y", visible=False)
