"""Pictures of the user's own: any file that Pillow reads, as an upright RGB image."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .data import DataError

# What Pillow raises for files that are damaged, truncated, foreign or too large (a decompression bomb).
_NO_PICTURE = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, OverflowError,
               struct.error, zlib.error, MemoryError, NotImplementedError, Image.DecompressionBombError)


def open_picture(source, name: str = "") -> Image.Image:
    """A path, file or PIL image, upright, in RGB, on white where it is transparent; of several frames the first.

    `name` stands for a file without one. Raises DataError when it cannot be read.
    """
    try:
        picture = source
        if not isinstance(source, Image.Image):
            picture = Image.open(source)
            picture.draft("RGB", (1024, 1024))      # a large JPEG need not be decoded in full
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):        # 16 bits, which Pillow would cut off at 255
            picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))
        picture = picture.convert("RGBA")
    except _NO_PICTURE as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "it is empty or of no known format" if unknown else getattr(error, "strerror", None) or error
        raise DataError(f"{name or source}: cannot be read as a picture ({reason}); give a PNG, JPEG or another file "
                        "Pillow reads") from error
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def square(picture: Image.Image, side: int) -> Image.Image:
    """The central square of a picture, `side` pixels wide."""
    return ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)
