"""Read picture files, any that Pillow opens, as upright RGB images: for training and for prediction alike."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .files import foreign_content
from .system import cpu_cores, with_bar
from .text import first_line

IMAGE_SIZE = 32                 # pixels on each side of the network's input
MOST_PIXELS = 50_000_000        # decoding takes up to 16 bytes for each
NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}       # formats that Pillow only recognises

# Of damaged and of large pictures: those are read all the same, or refused in a line. Here once and for all, since
# `warnings.catch_warnings` is not for threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class DataError(RuntimeError):
    """The data set is unavailable or one of its files is wrong. The message names the file and the remedy."""


def open_picture(source, name: str = "", side: int | None = None) -> Image.Image:
    """Open a path, file or PIL image as an upright RGB image: its first frame, on white where transparent, 16 bits
    scaled to 8. Raises DataError, naming `name` or the source, if it cannot be read, is too large, or has not `side` by
    `side` pixels; looks at the size before decoding."""
    name = name or source
    if not isinstance(source, (str, os.PathLike, Image.Image)) and not hasattr(source, "read"):
        raise DataError(f"no picture: {type(source).__name__} given; give a path, a file, a PIL image, an array uint8 "
                        "[H, W, 3] or the index of a test image")
    if isinstance(source, (str, os.PathLike)):
        source = os.path.expanduser(source)
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        if fault := _no_regular_file(source):
            raise ValueError(fault)
        with Image.open(source) as picture:
            if side and picture.size != (side, side):
                raise DataError(f"{name}: has {_size(picture)} pixels, not {side}×{side}; resize it, or set "
                                "resize=true to take the central square of every picture at that size")
            picture.draft("RGB", (1024, 1024))      # decode a large JPEG at reduced size
            if picture.width * picture.height > MOST_PIXELS:
                raise DataError(f"{name}: has {_size(picture)} pixels, more than the {MOST_PIXELS / 1e6:.0f} million "
                                "that are read; make it smaller")
            return _upright_rgb(picture)
    except DataError:
        raise
    except Exception as error:      # whatever a damaged file makes a decoder of Pillow's run into
        raise DataError(f"{name}: cannot be read as a picture ({_reason(error, source)}); use a PNG, a JPEG or another "
                        "file that Pillow reads") from error


def _upright_rgb(picture: Image.Image) -> Image.Image:
    if 0 in picture.size:
        raise ValueError("it has no pixels")
    picture = _upright(picture)
    if picture.mode == "F" or picture.mode == "I" and picture.getextrema()[1] > 65535:
        raise ValueError("its 32 bits a pixel have no agreed range; save it with 8 or 16")
    if picture.mode.startswith("I"):        # 16 bits, which Pillow would clip at 255
        picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    """As ImageOps.exif_transpose, which refuses a picture for any odd tag, since it also writes them."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:       # whatever damaged tags make Pillow run into; the pixels may be good
        return picture
    turns = Image.Transpose
    turn = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
            6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90}.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _size(picture: Image.Image) -> str:
    return f"{picture.width}×{picture.height}"


def _no_regular_file(source) -> str:
    """What a path is if no file: reading a pipe would wait for ever. "" for a file."""
    if not isinstance(source, (str, os.PathLike)) or os.path.isfile(source):
        return ""
    if os.path.isdir(source):
        return "it is a folder"
    if os.path.exists(source):
        return "it is a pipe or a device"
    return "it is a link to nothing" if os.path.islink(source) else "no such file"


def _reason(error: Exception, source) -> str:
    """The error in one line; for an unknown format, what the file is instead."""
    if isinstance(error, UnidentifiedImageError):
        return foreign_content(_start(source)) or "it is empty or its format is unknown"
    return getattr(error, "strerror", None) or first_line(error)


def _start(source) -> bytes:
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            return file.read(512)
    source.seek(0)
    return source.read(512)


def square_pixels(picture: Image.Image, side: int) -> Tensor:
    """Resize the central square of a picture: uint8 [side, side, 3]."""
    return torch.from_numpy(np.array(ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)))


def network_input(picture, resize: bool = True, name: str = "") -> Tensor:
    """Turn a path, file, PIL image or array, uint8 [H, W, 3], into the network's input: uint8 [32, 32, 3]. Raises
    DataError, without `resize` also for a file of another size."""
    if isinstance(picture, (np.ndarray, Tensor)):
        picture = _from_array(picture)
    return square_pixels(open_picture(picture, name, None if resize else IMAGE_SIZE), IMAGE_SIZE)


def decode(sources: list[tuple], resize: bool, title: str, progress: str) -> np.ndarray:
    """`network_input` of many (path or file, name), in order and in parallel: uint8 [N, 32, 32, 3]. `title` names the
    progress bar. Raises DataError."""
    with ThreadPoolExecutor(cpu_cores()) as pool:       # Pillow decodes outside the interpreter's lock
        pixels = pool.map(lambda given: network_input(given[0], resize, given[1]).numpy(), sources)
        return np.stack(list(with_bar(pixels, len(sources), title, progress)))


def _from_array(values) -> Image.Image:
    kind = f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
    if not kind.startswith("uint8") or 0 in values.shape or values.ndim != 2 and (
            values.ndim != 3 or values.shape[2] not in (3, 4)):
        raise DataError(f"no picture: an array {kind} given; it must be uint8 [H, W, 3] with values from 0 to 255")
    return Image.fromarray(values.cpu().numpy() if isinstance(values, Tensor) else values)


def picture_suffixes() -> set[str]:
    """Of the files that Pillow decodes, such as ".png"."""
    Image.init()
    return {suffix for suffix, kind in Image.registered_extensions().items()
            if kind in Image.OPEN and kind not in NOT_DECODED}
