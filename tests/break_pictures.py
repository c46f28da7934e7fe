"""Damaged pictures: each is read, the same for training as for prediction, or refused in one line. See campaigns.py."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, features

from helpers.image_files import DataError, network_input

MODES = {"PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), "JPEG": ("RGB", "L", "CMYK"), "GIF": ("P", "L"),
         "BMP": ("RGB", "L", "P", "1"), "TIFF": ("RGB", "RGBA", "CMYK", "I;16", "F", "1"), "WEBP": ("RGB", "RGBA"),
         "AVIF": ("RGB", "RGBA"), "PPM": ("RGB", "L"), "TGA": ("RGB", "RGBA", "L"), "ICO": ("RGBA",),
         "PCX": ("RGB", "P")}


def damaged_picture(draw: random.Random) -> tuple[str, bytes]:
    """(suffix, content) of a picture of random format, mode and size, damaged in one of five ways."""
    formats = [name for name in MODES if name not in ("WEBP", "AVIF") or features.check(name.lower())]
    kind = draw.choice(formats)
    mode, size = draw.choice(MODES[kind]), draw.choice([(32, 32), (32, 32), (1, 1), (45, 60), (200, 120)])
    noise = np.frombuffer(draw.randbytes(3 * size[0] * size[1]), np.uint8).reshape(size[1], size[0], 3)
    picture = Image.fromarray(noise)
    content = io.BytesIO()
    (picture.convert("L") if mode in ("I;16", "F") else picture).convert(mode).save(content, kind)
    whole = content.getvalue()
    spoilt, length = bytearray(whole), len(whole)
    place = min(draw.randrange(length), draw.randrange(length))     # more often in the header
    way = draw.choice(["bits", "bytes", "cut", "zeros", "twice"])
    if way in ("bits", "bytes"):
        for _ in range(draw.choice([1, 3, 20])):
            place = min(draw.randrange(length), draw.randrange(length))
            spoilt[place] = spoilt[place] ^ 1 << draw.randrange(8) if way == "bits" else draw.randrange(256)
    elif way == "cut":
        del spoilt[place:]
    elif way == "zeros":
        spoilt[place:place + 512] = bytes(min(512, length - place))
    else:
        spoilt[place:place] = whole[place:place + draw.randrange(1, 64)]
    return kind.lower(), bytes(spoilt)


def pictures(folder: Path, draw: random.Random, count: int) -> Iterator[tuple[str, bool]]:
    """Damage a picture, and read its file."""
    for _ in range(count):
        suffix, content = damaged_picture(draw)
        path = folder / f"damaged.{suffix}"
        path.write_bytes(content)
        outcome = outcome_of(path)
        yield outcome, outcome in ("read", "refused")


def outcome_of(path: Path) -> str:
    """"read", "refused", or what is wrong."""
    seen = []
    for resize in (True, False):        # as for prediction, and as for training
        try:
            seen.append(network_input(path, resize))
        except DataError as error:
            if str(path) not in str(error) or "\n" in str(error):
                return f"the message is {error}"
            seen.append(str(error))
        except Exception as error:      # what the campaign looks for
            return f"raises {type(error).__name__}: {error}"
    prediction, training = seen
    if isinstance(prediction, str):
        return "refused" if isinstance(training, str) else "is refused for prediction, but not for training"
    if isinstance(training, str) and "resize=true" not in training:
        return f"is refused for training, but not for prediction: {training}"
    if list(prediction.shape) != [32, 32, 3]:
        return f"gives {list(prediction.shape)}"
    same = isinstance(training, str) or prediction.equal(training)
    return "read" if same else "gives other pixels for training than for prediction"
