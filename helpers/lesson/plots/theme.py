"""Colours, sizes and parts that several figures share."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter

from ...metrics import Evaluation, History
from ...text import wrapped
from .fonts import fonts_for

PALETTE = sns.color_palette("colorblind").as_hex()
BLUE, ORANGE, GREEN, RED = PALETTE[:4]
DASHES = ((6, 3), (1.5, 2), (6, 2, 1.5, 2), (12, 3), (3, 1), (1, 4))     # published results: lengths of dash and gap
WIDTH = 10          # inches: a notebook column at 100 dots per inch
THEME = sns.axes_style("whitegrid") | {
    "font.size": 10.5, "axes.titlesize": 11.5, "axes.labelsize": 11, "xtick.labelsize": 10, "ytick.labelsize": 10,
    "legend.fontsize": 10, "legend.framealpha": 0.9, "figure.titlesize": 14, "figure.dpi": 100, "lines.linewidth": 1.8,
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE), "axes.edgecolor": "0.6", "axes.spines.top": False,
    "axes.spines.right": False, "grid.color": "0.9",
    # A class or a run may be called $\\foo$: text is text, never mathematics.
    "text.parse_math": False, "text.usetex": False, "axes.formatter.use_mathtext": False}


class Picture(Figure):
    """A Figure that a notebook shows as a PNG whatever matplotlib's backend, which on many clusters is Agg."""

    def _repr_png_(self) -> bytes:
        return png_of(self, compress_level=6)


def themed(draw):
    """Draw under THEME, independently of the caller's matplotlib settings and without changing them, with fonts for the
    characters in the arguments."""
    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        texts = []
        with matplotlib.rc_context(THEME):
            _with_texts([args, kwargs], lambda text: texts.append(text) or text)
            families, boxes = fonts_for("".join(texts))
            if boxes:
                args, kwargs = _with_texts([args, kwargs], lambda text: text.translate(boxes))
            with matplotlib.rc_context({"font.family": ["sans-serif", *families]}):
                figure = draw(*args, **kwargs)
                figure.draw_without_rendering()     # the first drawing creates the ticks: it needs the theme
        return figure
    return drawn


def _with_texts(value, change):
    """`value` with `change(text)` in place of each text in it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _with_texts(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_with_texts(item, change) for item in value])
    if isinstance(value, Evaluation):
        return dataclasses.replace(value, **{name: _with_texts(getattr(value, name), change)
                                             for name in ("class_names", "superclass_names")})
    return value


def png_of(figure: Figure, compress_level: int = 1) -> bytes:
    """The figure as a PNG of 100 dots per inch."""
    content = io.BytesIO()
    with matplotlib.rc_context(THEME):      # drawing may create ticks
        figure.savefig(content, format="png", dpi=100, pil_kwargs={"compress_level": compress_level})
    return content.getvalue()


def new_figure(height: float, title: str, note: str) -> Figure:
    """An empty figure with a title, WIDTH by `height` inches plus a strip for `note`. Without pyplot, which would
    show it in a notebook a second time, and needs a display for some backends."""
    lines = wrapped(note, 90)
    height += 0.25 * len(lines)
    figure = Picture(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    figure.suptitle("\n" * len(lines) + title)      # the empty lines hold the note
    if lines:
        figure.text(0.5, 1 - 0.09 / height, "\n".join(lines), ha="center", va="top", fontsize=10.5,
                    color="#5c3d00", bbox={"facecolor": "#ffe9a8", "edgecolor": "#c98a00", "pad": 3})
    return figure


def new_canvas(height: float, title: str, note: str) -> tuple[Figure, Axes]:
    """A figure to lay pictures on: its only axes measures inches from the upper left corner and has no ticks."""
    figure = new_figure(height + 0.5, title, note)
    axes = figure.subplots()
    axes.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="equal", anchor="N")
    axes.axis("off")
    return figure, axes


def draw_picture(axes: Axes, image: np.ndarray | None, x: float, y: float, side: float, edge: str = "") -> None:
    """Draw `image`, uint8 or float [H, W, 3], `side` inches wide, with its upper left corner at (x, y); None: a box."""
    if image is not None:
        axes.imshow(image, extent=(x, x + side, y + side, y), interpolation="nearest")
    if image is None or edge:
        axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=edge or "0.7", linewidth=2.5 if edge else 1))

def draw_heat(axes: Axes, heat) -> None:
    """Lay a heat map, float [H, W] in [0, 1], over the last picture."""
    axes.imshow(as_array(heat), cmap="inferno", alpha=0.6, vmin=0, vmax=1, interpolation="bilinear",
                extent=axes.images[-1].get_extent())


def use_log_scale(axes: Axes) -> None:
    """Make the x axis logarithmic, its numbers in plain text."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))


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
    return np.array(values, dtype=float)


def as_array(values) -> np.ndarray:
    """A NumPy array from a tensor on any device, an array or a list."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
