"""Figures of what the network learned: filters, attention, and how classes relate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...text import fitted, readable
from .theme import (BLUE, GREEN, ORANGE, PALETTE, WIDTH, as_array, draw_heat, draw_picture, new_canvas, new_figure,
                    themed, write_caption)

_MARKERS = "os^DvPX*<>"


@themed
def first_layer_filters(weights, note: str = "") -> Figure:
    """The filters of a first convolution, float [filters, 3, h, w], as colour pictures, each with its norm. Each
    picture is scaled by its largest weight, so its norm says how strongly the filter amplifies."""
    filters = np.moveaxis(as_array(weights).astype(float), 1, -1)
    largest = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    pictures = 0.5 + filters / np.maximum(2 * largest, 1e-12)
    columns = 12 if len(filters) <= 24 else 16
    width = WIDTH / columns
    side, height = width - 0.12, width + 0.16
    title = f"First layer: {len(filters)} filters of {filters.shape[1]}×{filters.shape[2]} pixels"
    bottom = height * math.ceil(len(filters) / columns)
    figure, axes = new_canvas(bottom + 0.25, title, note)
    for place, picture in enumerate(pictures):
        left, top = place % columns * width + 0.06, place // columns * height
        draw_picture(axes, picture, left, top, side, edge="0.7")
        axes.text(left + side / 2, top + side + 0.03, f"{np.linalg.norm(filters[place]):.2g}", fontsize=9,
                  ha="center", va="top")
    axes.text(0.06, bottom, "Each colour is what the filter responds to there; a weight of 0 is grey. Below: the "
              "filter's norm, by which it amplifies.", va="top", fontsize=10, color="0.3")
    return figure


@themed
def grad_cam_overlay(images, heat_maps, titles: Sequence[str], note: str = "") -> Figure:
    """Pictures, each beside its Grad-CAM. images: uint8 [K, H, W, 3]; heat_maps: float [K, H, W] in [0, 1]; titles: K
    texts of one or two lines."""
    images, heat_maps = as_array(images), as_array(heat_maps)
    if not len(images) == len(heat_maps) == len(titles):
        raise ValueError(f"images, heat_maps and titles hold {len(images)}, {len(heat_maps)} and {len(titles)} "
                         "entries; give one of each for every image")
    columns, width, height, side = 3, WIDTH / 3, 2.05, 1.52
    figure, axes = new_canvas(height * math.ceil(len(images) / columns), "Where the network looks (Grad-CAM)", note)
    for place, (image, heat, title) in enumerate(zip(images, heat_maps, titles)):
        left, top = place % columns * width + 0.1, place // columns * height
        for x in (left, left + side + 0.05):
            draw_picture(axes, image, x, top, side)
        draw_heat(axes, heat)
        title = "\n".join(fitted(line, 38) for line in title.split("\n"))
        axes.text(left + side, top + side + 0.04, title, fontsize=9.5, ha="center", va="top")
    write_caption(axes, "Yellow: speaks most for the class; dark: does not speak for it.")
    return figure


@themed
def class_map(points, class_names: Sequence[str], superclass_of=None, superclass_names: Sequence[str] = (),
              kept: float = math.nan, note: str = "") -> Figure:
    """Classes as named points in a plane; colour and marker together show the superclass.

    points: float [C, 2], NaN for a class to leave out; superclass_of: int64 [C] or None; kept: share of neighbours that
    the plane preserves, in [0, 1], from `explain.class_map`, or NaN. The axes have no scale: only nearness has a
    meaning. At most 200 names are written.
    """
    points = as_array(points)
    members = None if superclass_of is None else as_array(superclass_of)
    shown = "" if math.isnan(kept) else (
        f"\nof the four nearest to a class in the plane, {100 * kept:.0f} % are among its four nearest by the features")
    rows = math.ceil(len(superclass_names) / 4)
    figure = new_figure(9.6 + 0.24 * rows, f"Who is near whom: t-SNE of the classes' mean features{shown}", note)
    axes = figure.subplots()
    kinds = itertools.product(_MARKERS, (BLUE, ORANGE, GREEN, PALETTE[4], "0.25"))
    for place, (marker, colour) in zip(range(max(len(superclass_names), 1)), itertools.cycle(kinds)):
        chosen = points if members is None else points[members == place]
        axes.plot(*chosen.T, marker, color=colour, markersize=8, markeredgecolor="white", linestyle="",
                  label=readable(superclass_names[place]) if members is not None else None)
    axes.set(xticks=[], yticks=[], xlabel="t-SNE, first axis (no unit)", ylabel="t-SNE, second axis (no unit)")
    axes.margins(0.06)
    if members is not None:
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    figure.draw_without_rendering()         # places the points on the page
    there = np.flatnonzero(np.isfinite(points).all(axis=1))
    there = there[::max(1, math.ceil(len(there) / 200))]        # no more names fit
    _name_points(axes, points[there], [readable(class_names[place], 24) for place in there])
    return figure


def _name_points(axes: Axes, points: np.ndarray, names: Sequence[str]) -> None:
    """Write each name beside its point, float [n, 2], as near as other names and points allow."""
    axes.set_autoscale_on(False)
    angles = np.arange(24) * np.pi / 12
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    pixels = axes.transData.transform(points)
    taken = [np.array([x - 5, y - 5, x + 5, y + 5]) for x, y in pixels]
    order = np.argsort(np.linalg.norm(pixels - np.median(pixels, axis=0), axis=1), kind="stable")    # crowd first
    for index in order:
        text = axes.annotate(names[index], points[index], fontsize=9, ha="center", va="center", color="0.15",
                             xytext=(0, 0), textcoords="offset points")
        box = text.get_window_extent()
        half = np.array([box.width, box.height]) / 2 + 1
        offsets = [(radius + half) * ray for radius in (6, 12, 20, 30, 42, 56, 72, 90) for ray in rays]
        tried = [(offset, np.concatenate([pixels[index] + offset - half, pixels[index] + offset + half]))
                 for offset in offsets]
        covered = [_overlap(place, taken, axes.bbox.extents) for _, place in tried]
        offset, place = tried[int(np.argmin(covered))]      # the nearest of those that cover least
        taken.append(place)
        text.set_position(offset / (axes.figure.dpi / 72))      # from pixels to points of type
        gap = np.maximum(np.abs(offset) - half, 0)
        if np.hypot(*gap) > 10:
            start = pixels[index] + offset - np.sign(offset) * np.minimum(half, np.abs(offset))
            line = axes.transData.inverted().transform([pixels[index], start])
            axes.plot(*line.T, color="0.55", linewidth=0.8, zorder=1)


def _overlap(box: np.ndarray, taken: list[np.ndarray], frame: np.ndarray) -> float:
    """Area of `box`, in square pixels, inside the `taken` boxes or outside the frame; a box is x0, y0, x1, y1."""
    others = np.array(taken)
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    shared = (width.clip(0) * height.clip(0)).sum()
    inside = np.prod((np.minimum(box[2:], frame[2:]) - np.maximum(box[:2], frame[:2])).clip(0))
    return round(shared + np.prod(box[2:] - box[:2]) - inside, 3)       # rounding noise must not break ties


@themed
def superclass_affinity(matrix, names: Sequence[str], note: str = "") -> Figure:
    """Cosine similarities between the gradients of superclasses, similar ones side by side. matrix: float [S, S],
    symmetric, in [-1, 1], NaN if not measured."""
    matrix = as_array(matrix)
    order = np.argsort(np.linalg.eigh(np.nan_to_num(matrix))[1][:, -1], kind="stable")
    values = (100 * matrix[np.ix_(order, order)]).round() + 0.0      # + 0.0 turns -0 into 0
    hidden = np.eye(len(values), dtype=bool) | np.isnan(values)
    limit = np.abs(np.where(hidden, 0, values)).max(initial=1)
    figure = new_figure(8.6, "Do superclasses pull the filters the same way?", note)
    axes = figure.subplots()
    sns.heatmap(values, ax=axes, mask=hidden, cmap="vlag_r", vmin=-limit, vmax=limit, square=True, linewidths=0.5,
                annot=len(values) <= 25, fmt=".0f", annot_kws={"fontsize": 9},
                cbar_kws={"label": "cosine similarity of the gradients × 100", "shrink": 0.7})
    labels = [readable(names[place]) for place in order]
    axes.set_xticks(np.arange(len(order)) + 0.5, labels, rotation=90, fontsize=9.5)
    axes.set_yticks(np.arange(len(order)) + 0.5, labels, rotation=0, fontsize=9.5)
    axes.grid(False)
    axes.set(xlabel="superclass", ylabel="superclass")
    axes.set_title("blue: a small step for one also helps the other; red: it harms the other")
    return figure
