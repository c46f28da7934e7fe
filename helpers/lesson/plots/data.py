"""Figures of the data: one image of each class, and augmented images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ...text import readable
from .theme import WIDTH, as_array, draw_picture, new_canvas, themed


@themed
def sample_grid(images, labels, class_names: Sequence[str], superclass_of=None,
                superclass_names: Sequence[str] = (), note: str = "") -> Figure:
    """One image of each class, grouped by superclass. images: uint8 [N, H, W, 3]; labels: int64 [N]; superclass_of:
    int64 [C] or None."""
    images, labels = as_array(images), as_array(labels)
    groups = {"": list(range(len(class_names)))} if superclass_of is None else {
        name: np.flatnonzero(as_array(superclass_of) == place).tolist() for place, name in enumerate(superclass_names)}
    wide = superclass_of is None or max(map(len, groups.values())) > 5 or len(groups) < 4
    columns, blocks = (10, 1) if wide else (5, 2)
    # At most `columns` classes per line; only the first line of a superclass has its name.
    lines = [(name if start == 0 else "", classes[start:start + columns])
             for name, classes in groups.items() for start in range(0, len(classes), columns)]
    line_height = 1.22 if superclass_of is not None else 1.03
    lines_a_block = math.ceil(len(lines) / blocks)
    figure, axes = new_canvas(lines_a_block * line_height, f"One image of each of {len(class_names)} classes", note)
    for place, (name, classes) in enumerate(lines):
        block, line = divmod(place, lines_a_block)
        left, bottom = block * (WIDTH + 0.2) / blocks, (line + 1) * line_height - 0.2
        axes.text(left, bottom - 0.83, readable(name), fontsize=10.5, weight="bold", va="bottom")
        for column, label in enumerate(classes):
            x = left + column * 0.98
            found = np.flatnonzero(labels == label)
            draw_picture(axes, images[found[0]] if len(found) else None, x, bottom - 0.78, 0.78)
            axes.text(x + 0.39, bottom + 0.13, readable(class_names[label], 13), fontsize=9,
                      ha="center")
    return figure


@themed
def augmentation_preview(original, augmented, titles: Sequence[str], note: str = "") -> Figure:
    """One line per image: the original, then R augmented versions. original: uint8 [K, H, W, 3]; augmented: float [K,
    R, 3, H, W] in [0, 1]; titles: K names."""
    original, augmented = as_array(original), as_array(augmented)
    if len(original) != len(augmented) or len(original) != len(titles):
        raise ValueError(f"original, augmented and titles hold {len(original)}, {len(augmented)} and {len(titles)} "
                         "entries; give one of each for every image")
    draws = np.moveaxis(augmented, 2, -1).clip(0, 1)
    count, repeats = draws.shape[:2]
    margin = 1.3
    side = min(1.25, (WIDTH - margin - 0.1) / (repeats + 1) - 0.06)
    step = side + 0.06
    left = margin + (WIDTH - margin - 0.1 - step * (repeats + 1)) / 2
    figure, axes = new_canvas(count * step + 0.3, "Augmentation: the same images, drawn anew each epoch", note)
    axes.text(left + side / 2, 0.2, "original", ha="center", va="bottom", weight="bold")
    axes.text(left + 0.1 + step * (1 + repeats / 2), 0.2, "augmented (before any mixing and resizing)", ha="center",
              va="bottom", weight="bold")
    for line in range(count):
        top = 0.25 + line * step
        axes.text(left - 0.1, top + side / 2, readable(titles[line], 16), ha="right", va="center")
        draw_picture(axes, original[line], left, top, side)
        for draw in range(repeats):
            draw_picture(axes, draws[line, draw], left + 0.1 + (draw + 1) * step, top, side)
    return figure
