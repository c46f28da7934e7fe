"""Read the user's own pictures, any file that Pillow opens, as upright RGB images."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .data import IMAGE_SIZE, DataError

# Pillow raises these for damaged, truncated, unknown and oversized files (decompression bombs).
_NO_PICTURE = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, OverflowError,
               struct.error, zlib.error, MemoryError, NotImplementedError, Image.DecompressionBombError)


def open_picture(source, name: str = "") -> Image.Image:
    """Open a path, file or PIL image as an upright RGB image: its first frame, on white where transparent. Raises
    DataError, naming `name` or the source, if it cannot be read."""
    try:
        picture = source
        if not isinstance(source, Image.Image):
            picture = Image.open(source)
            picture.draft("RGB", (1024, 1024))      # decode a large JPEG at reduced size
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):        # 16 bits, which Pillow would clip at 255
            picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))
        picture = picture.convert("RGBA")
    except _NO_PICTURE as error:
        reason = ("it is empty or its format is unknown" if isinstance(error, UnidentifiedImageError)
                  else getattr(error, "strerror", None) or error)
        raise DataError(f"{name or source}: cannot be read as a picture ({reason}); use a PNG, a JPEG or another file "
                        "that Pillow reads") from error
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def square_pixels(picture: Image.Image, side: int) -> Tensor:
    """Resize the central square of a picture: uint8 [side, side, 3]."""
    return torch.from_numpy(np.array(ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)))


def network_input(picture) -> Tensor:
    """Turn a path, file, PIL image or uint8 array [H, W, 3] into the network's input: uint8 [32, 32, 3]."""
    if isinstance(picture, (np.ndarray, Tensor)):
        picture = Image.fromarray(np.asarray(picture))
    return square_pixels(open_picture(picture), IMAGE_SIZE)
