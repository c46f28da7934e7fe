"""Colours, sizes and parts that several figures share."""

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
DASHES = ((6, 3), (1.5, 2), (6, 2, 1.5, 2), (12, 3), (3, 1), (1, 4))     # published results: lengths of dash and gap
WIDTH = 10          # inches: a notebook column at 100 dots per inch
THEME = sns.axes_style("whitegrid") | {
    "font.size": 10.5, "axes.titlesize": 11.5, "axes.labelsize": 11, "xtick.labelsize": 10, "ytick.labelsize": 10,
    "legend.fontsize": 10, "legend.framealpha": 0.9, "figure.titlesize": 14, "figure.dpi": 100, "lines.linewidth": 1.8,
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE), "axes.edgecolor": "0.6", "axes.spines.top": False,
    "axes.spines.right": False, "grid.color": "0.9"}


def themed(draw):
    """Draw under THEME, independently of the caller's matplotlib settings and without changing them."""
    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with matplotlib.rc_context(THEME):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()     # the first drawing creates the ticks: it needs the theme
        return figure
    return drawn


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG of 100 dots per inch."""
    content = io.BytesIO()
    with matplotlib.rc_context(THEME):      # drawing may create ticks
        figure.savefig(content, format="png", dpi=100, pil_kwargs={"compress_level": 1})
    return content.getvalue()


def new_figure(height: float, title: str, note: str) -> Figure:
    """An empty figure with a title, WIDTH by `height` inches plus a strip for `note`. pyplot makes it, since only that
    tells a notebook how to show figures, and closes it, so that the notebook shows it only once."""
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
    """A figure to lay pictures on: its only axes measures inches from the upper left corner and has no ticks."""
    figure = new_figure(height + 0.42, title, note)
    axes = figure.subplots()
    axes.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="equal", anchor="N")
    axes.axis("off")
    return figure, axes


def draw_picture(axes: Axes, image: np.ndarray | None, x: float, y: float, side: float, edge: str = "") -> None:
    """Draw `image`, uint8 or float [H, W, 3], `side` inches wide, with its upper left corner at (x, y); None: a box."""
    frame = axes.get_xlim(), axes.get_ylim()
    if image is not None:
        axes.imshow(image, extent=(x, x + side, y + side, y), interpolation="nearest")
    if image is None or edge:
        axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=edge or "0.7", linewidth=2.5 if edge else 1))
    axes.set(xlim=frame[0], ylim=frame[1])      # undo imshow's limits


def write_caption(axes: Axes, text: str) -> None:
    """Write `text` in grey below the axes."""
    axes.text(0, 0, text, transform=axes.transAxes, va="top", fontsize=10, color="0.3")


def write_centred(axes: Axes, text: str) -> None:
    """Write `text` in grey in the middle of the axes."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="0.3")


def draw_column(axes: Axes, history: History, key: str, label: str, colour: str) -> None:
    """Plot the history's column `key` by epoch; nothing if it holds only None."""
    values = as_floats(history[key])
    if not np.isnan(values).all():
        axes.plot(history["epoch"], values, color=colour, label=label, marker=epoch_marker(history))


def epoch_marker(history: History) -> str:
    """A marker for curves of few points; a single point shows only with one."""
    return "o" if len(history) <= 30 else ""


def as_floats(values: Sequence) -> np.ndarray:
    """float64 [n] from n numbers, NaN for None."""
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def as_array(values) -> np.ndarray:
    """A NumPy array from a tensor on any device, an array or a list."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
