"""Colours, sizes and the parts that several figures share."""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...metrics import History

PALETTE = sns.color_palette("colorblind").as_hex()
BLUE, ORANGE, GREEN, RED = PALETTE[:4]
# Line styles of published results: lengths of dash and gap.
DASHES = ((6, 3), (1.5, 2), (6, 2, 1.5, 2), (12, 3), (3, 1), (1, 4))
WIDTH = 10          # inches; at 100 dots an inch, a notebook column
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
    """Draw under THEME; the notebook's own settings neither affect the figure nor change."""
    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with matplotlib.rc_context(THEME):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()     # the first drawing makes the ticks: it must see the theme
        return figure
    return drawn


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG under THEME, 100 dots an inch."""
    content = io.BytesIO()
    with matplotlib.rc_context(THEME):      # the drawing may make ticks: it must see the theme
        figure.savefig(content, format="png", dpi=100, pil_kwargs={"compress_level": 1})
    return content.getvalue()


def new_figure(height: float, title: str, note: str) -> Figure:
    """An empty figure with its title, WIDTH by `height` inches plus a strip for `note`.

    pyplot makes it, since only pyplot tells a notebook how to show figures, and closes it at once, so that the
    notebook shows it once.
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


def new_canvas(height: float, title: str, note: str) -> tuple[Figure, Axes]:
    """A figure to lay pictures on: its only axes counts inches from the upper left corner, without ticks."""
    figure = new_figure(height + 0.42, title, note)
    axes = figure.subplots()
    axes.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="equal", anchor="N")
    axes.axis("off")
    return figure, axes


def draw_picture(axes: Axes, image: np.ndarray | None, x: float, y: float, side: float, edge: str = "") -> None:
    """`image`, uint8 or float [H, W, 3], `side` inches wide from (x, y), its upper left corner; None: an empty box."""
    frame = axes.get_xlim(), axes.get_ylim()
    if image is not None:
        axes.imshow(image, extent=(x, x + side, y + side, y), interpolation="nearest")
    if image is None or edge:
        axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=edge or "0.7",
                                 linewidth=2.5 if edge else 1))
    axes.set(xlim=frame[0], ylim=frame[1])      # imshow narrows them


def write_caption(axes: Axes, text: str) -> None:
    """`text` in grey below the axes."""
    axes.text(0, 0, text, transform=axes.transAxes, va="top", fontsize=10, color="0.3")


def write_centred(axes: Axes, text: str) -> None:
    """`text` in grey in the middle of the axes."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="0.3")


def draw_column(axes: Axes, history: History, key: str, label: str, colour: str) -> None:
    """The column `key` of the history, [epochs], by epoch; nothing if it holds only None."""
    values = as_floats(history[key])
    if not np.isnan(values).all():
        axes.plot(history["epoch"], values, color=colour, label=label, marker=epoch_marker(history))


def epoch_marker(history: History) -> str:
    """Few points need markers; a single one shows only with its marker."""
    return "o" if len(history) <= 30 else ""


def as_floats(values: Sequence) -> np.ndarray:
    """float64 [n] from n numbers, NaN for None."""
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def as_array(values) -> np.ndarray:
    """A NumPy array of the same shape from a tensor on any device, an array or a list."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
