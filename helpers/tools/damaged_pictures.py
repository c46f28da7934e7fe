"""What becomes of damaged pictures: each is read, the same for training as for prediction, or refused in one line.

    python -m helpers.tools.damaged_pictures --count 2000
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, features

from ..image_files import DataError, network_input

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


def campaign(count: int, folder, seed: int = 0) -> dict:
    """Read `count` damaged pictures from files in `folder`: how many were `read` and `refused`, and `faults`, one text
    for each that did something else; its file stays."""
    found = {"read": 0, "refused": 0, "faults": []}
    draw = random.Random(seed)
    for number in range(count):
        suffix, content = damaged_picture(draw)
        path = Path(folder) / f"{number:05d}.{suffix}"
        path.write_bytes(content)
        outcome = _outcome(path)
        if outcome in ("read", "refused"):
            found[outcome] += 1
            path.unlink()
        else:
            found["faults"].append(f"{path}: {outcome}")
    return found


def _outcome(path: Path) -> str:
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


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 without a fault, else 1."""
    parser = argparse.ArgumentParser(prog="python -m helpers.tools.damaged_pictures",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=2000, help="pictures to damage [2000]")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    folder = tempfile.mkdtemp(prefix="damaged_pictures_")
    found = campaign(args.count, folder, args.seed)
    print(f"{args.count} damaged pictures: {found['read']} read, {found['refused']} refused, "
          f"{len(found['faults'])} faults", *found["faults"], sep="\n")
    if not found["faults"]:
        Path(folder).rmdir()
    return int(bool(found["faults"]))


if __name__ == "__main__":
    sys.exit(main())
