"""Figures of speed and size: images per second, and the cost of each layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .theme import BLUE, ORANGE, PALETTE, RED, as_floats, new_figure, themed


@themed
def throughput(rows: Sequence[dict], note: str = "") -> Figure:
    """Images per second, and memory if measured, by batch size. rows: dicts with batch_size, images_per_second (the
    median), images_per_second_min, images_per_second_max, memory_mb (or None) and error (why it failed, or None)."""
    with_memory = any(row.get("memory_mb") is not None for row in rows)
    figure = new_figure(4.2, "Inference speed by batch size", note)
    panels = figure.subplots(1, 1 + with_memory, squeeze=False)[0]
    _speed(panels[0], rows)
    if with_memory:
        _numbered_bars(panels[1], [row.get("memory_mb") for row in rows])
        panels[1].set_ylabel("peak memory in use (MiB)")
        panels[1].margins(y=0.12)
    for axes in panels:
        for place, row in enumerate(rows):
            if error := row.get("error"):
                axes.text(place, 0.03, error, rotation=90, ha="center", va="bottom", color=RED, weight="bold",
                          transform=axes.get_xaxis_transform())
        axes.set_xticks(range(len(rows)), [str(row["batch_size"]) for row in rows])
        axes.set(xlabel="batch size (images)", xlim=(-0.6, len(rows) - 0.4))
    return figure


def _speed(axes: Axes, rows: Sequence[dict]) -> None:
    speeds = as_floats([row.get("images_per_second") for row in rows])
    low = speeds - as_floats([row.get("images_per_second_min") for row in rows])
    high = as_floats([row.get("images_per_second_max") for row in rows]) - speeds
    axes.errorbar(range(len(rows)), speeds, yerr=[np.nan_to_num(low), np.nan_to_num(high)], fmt="o-", color=BLUE,
                  capsize=4, label="median, with smallest and largest")
    if not np.isnan(speeds).all():
        best = int(np.nanargmax(speeds))
        others = np.delete(speeds + np.nan_to_num(high), best)
        if np.isnan(others).all() or speeds[best] - np.nan_to_num(low)[best] > np.nanmax(others):      # beyond chance
            axes.plot(best, speeds[best], "*", color=ORANGE, markersize=16, markeredgecolor="0.15", zorder=5,
                      label=f"fastest: {speeds[best]:,.0f} images/s at {rows[best]['batch_size']}")
        axes.set_ylim(0, 1.3 * np.nanmax(speeds + np.nan_to_num(high)))
    axes.set_ylabel("images per second")
    axes.legend(loc="upper left")


def _numbered_bars(axes: Axes, values: Sequence) -> None:
    heights = as_floats(values)
    axes.bar(range(len(heights)), np.nan_to_num(heights), color=PALETTE[9], width=0.7)
    for place, height in enumerate(heights):
        if not math.isnan(height):
            axes.annotate(f"{height:,.0f}", (place, height), (0, 3), textcoords="offset points", ha="center")


@themed
def model_layers(rows: Sequence[dict], note: str = "") -> Figure:
    """Parameters and floating-point operations of each layer. rows: dicts with layer, parameters and mflops. Norms
    count in the title's sums but have no bar: they cost almost nothing and would double the height."""
    total = {key: sum(row[key] for row in rows) for key in ("parameters", "mflops")}
    title = f"{total['parameters']:,} parameters, {total['mflops']:,.1f} MFLOP per forward pass of one image"
    rows = [row for row in rows if row["mflops"]]
    figure = new_figure(1.4 + 0.25 * len(rows), title, note)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, colour, label in zip(panels, ("mflops", "parameters"), (BLUE, ORANGE),
                                        ("MFLOP per forward pass of one image", "parameters (thousands)")):
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
