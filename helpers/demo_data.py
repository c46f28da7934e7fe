"""A drawn stand-in for CIFAR-100: 100 classes of small pictures, for demonstrations and tests without a download.

The superclasses are 20 shapes, each with 5 classes: red, golden, blue, rainbow and neon. Position, size, rotation,
shade, background and noise vary. It needs NumPy only. A seed draws the same bytes on the same
kind of CPU; on another, one in ten thousand values or fewer may differ by a grey level.

A shape is a signed distance function: from coordinates x (right) and y (down), float32 [N, 32, 32], in which it spans
about -1 to 1, to the distance from its outline, negative inside.
"""

from __future__ import annotations

import numpy as np

DEMO_NOTE = "drawn demo data"
SIDE = 32  # pixels


def draw_demo_data(train_per_class: int = 50, test_per_class: int = 10, seed: int = 0) -> dict:
    """Draw the demo set, in random order; the test images do not depend on train_per_class.

    Returns a dict: x_train, uint8 [100 * train_per_class, 32, 32, 3], and y_train, int64; x_test and y_test likewise;
    classes, 100 names such as "red disc"; superclasses, 20 names; superclass_of, int64 [100]. Raises ValueError for
    less than one image per class.
    """
    for name, value in (("train_per_class", train_per_class), ("test_per_class", test_per_class)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1 image per class")
    x_train, y_train = _draw_split(train_per_class, np.random.Generator(np.random.PCG64([seed, 0])))
    x_test, y_test = _draw_split(test_per_class, np.random.Generator(np.random.PCG64([seed, 1])))
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test, "classes": CLASSES,
            "superclasses": SUPERCLASSES, "superclass_of": np.arange(len(CLASSES)) // len(PAINTS)}


# The shapes ------------------------------------------------------------------------------------------------

def _box(x, y, half_width, half_height):
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _star(x, y):
    radius, angle = np.hypot(x, y), np.arctan2(x, -y)
    tenth = np.pi / 5
    angle = np.abs((angle + tenth) % (2 * tenth) - tenth)  # from the nearest of five points
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    inner_along, inner_across = 0.42 * np.cos(tenth), 0.42 * np.sin(tenth)
    edge = np.hypot(1 - inner_along, inner_across)
    return ((along - 1) * inner_across + across * (1 - inner_along)) / edge


def _heart(x, y):
    x, y = 0.62 * np.abs(x), 0.55 - 0.62 * y  # a unit square on its corner with two half discs
    lobe = np.hypot(x - 0.25, y - 0.75) - 0.3536
    point = np.maximum(x - y, x + y - 1) / 1.4142
    return np.minimum(lobe, point) / 0.62


def _arrow(x, y):
    head = np.maximum(0.794 * np.abs(y) + 0.608 * (x - 0.95), 0.1 - x)
    return np.minimum(_box(x + 0.35, y, 0.55, 0.2), head)


def _spiral(x, y):
    radius, turns = np.hypot(x, y), np.arctan2(y, x) / (2 * np.pi)
    arm = 0.5 * np.abs((2 * radius - turns) % 1 - 0.5) - 0.12
    return np.maximum(arm, radius - 1)


def _gear(x, y):
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    return np.maximum(radius - 0.78 - 0.13 * np.clip(3 * np.sin(8 * angle), -1, 1), 0.38 - radius)


def _drop(x, y):
    tip = np.maximum(0.888 * np.abs(x) - 0.458 * (y + 0.9), y - 0.05)
    return np.minimum(np.hypot(x, y - 0.3) - 0.55, tip)


def _house(x, y):
    walls = _box(x, y - 0.35, 0.62, 0.5)
    roof = np.maximum(0.661 * np.abs(x) - 0.75 * (y + 0.9), y + 0.08)
    door = _box(x, y - 0.6, 0.17, 0.3)
    return np.maximum(np.minimum(walls, roof), -door)


def _stripes(x, y):
    return 0.9 * (np.abs(x / 0.9 % 1 - 0.5) - 0.25)


# Name → (signed distance, largest rotation either way in degrees).
SHAPES = {
    "disc": (lambda x, y: np.hypot(x, y) - 0.85, 180),
    "ring": (lambda x, y: np.abs(np.hypot(x, y) - 0.7) - 0.2, 180),
    "square": (lambda x, y: _box(x, y, 0.75, 0.75), 20),
    "triangle": (lambda x, y: np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.5, 20),
    "star": (_star, 30),
    "cross": (lambda x, y: np.minimum(_box(x, y, 0.28, 0.9), _box(x, y, 0.9, 0.28)), 20),
    "heart": (_heart, 25),
    "crescent": (lambda x, y: np.maximum(np.hypot(x, y) - 0.9, 0.72 - np.hypot(x - 0.42, y)), 60),
    "arrow": (_arrow, 60), "spiral": (_spiral, 180),
    "flower": (lambda x, y: np.maximum(0.6 * (np.hypot(x, y) - 0.68 - 0.28 * np.cos(6 * np.arctan2(y, x))),
                                       0.2 - np.hypot(x, y)), 180),
    "gear": (_gear, 180), "drop": (_drop, 25),
    "hourglass": (lambda x, y: np.maximum(np.abs(y) - 0.85, 0.78 * (np.abs(x) - 0.8 * np.abs(y) - 0.07)), 25),
    "capsule": (lambda x, y: np.hypot(np.maximum(np.abs(x) - 0.6, 0), y) - 0.33, 60),
    "house": (_house, 15), "stripes": (_stripes, 60),
    "checker": (lambda x, y: 0.25 * np.sin(4 * x) * np.sin(4 * y), 45),
    "dots": (lambda x, y: np.hypot(x / 0.85 % 1 - 0.5, y / 0.85 % 1 - 0.5) * 0.85 - 0.26, 45),
    "waves": (lambda x, y: _stripes(0.85 * (x + 0.3 * np.sin(4 * y)), y), 60)}
PAINTS = ("red", "golden", "blue", "rainbow", "neon")
SUPERCLASSES = tuple(SHAPES)
CLASSES = tuple(f"{paint} {shape}" for shape in SHAPES for paint in PAINTS)

_HUES = {"red": (-0.03, 0.02), "golden": (0.11, 0.15), "blue": (0.57, 0.66), "rainbow": (0, 1), "neon": (0, 1)}
_DOWN, _RIGHT = np.meshgrid(*2 * [np.linspace(-1, 1, SIDE, dtype=np.float32)], indexing="ij")


# Painting --------------------------------------------------------------------------------------------------

def _draw_split(per_class: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [N, 32, 32, 3], int64 [N]), `per_class` images of each class in random order."""
    images = np.concatenate([_draw_class(shape, paint, per_class, rng) for shape in SHAPES for paint in PAINTS])
    order = rng.permutation(len(images))
    return images[order], np.repeat(np.arange(len(CLASSES)), per_class)[order]


def _draw_class(shape: str, paint: str, count: int, rng: np.random.Generator) -> np.ndarray:
    distance_to, turn = SHAPES[shape]
    size = _draw(rng, count, 0.42, 0.78)
    angle = np.deg2rad(_draw(rng, count, -turn, turn))
    reach = 0.95 - 0.9 * size  # larger shapes stay nearer to the centre, so that they fit
    right = _RIGHT - reach * _draw(rng, count, -1, 1)
    down = _DOWN - reach * _draw(rng, count, -1, 1)
    x = (np.cos(angle) * right + np.sin(angle) * down) / size
    y = (np.cos(angle) * down - np.sin(angle) * right) / size
    distance = distance_to(x, y) * size * (SIDE / 2)  # in pixels

    ground = _draw_ground(count, rng)
    hue, value = _draw(rng, count, *_HUES[paint]), _draw(rng, count, 0.65, 1)
    if paint == "neon":
        pictures = _neon(ground, distance, hue)
    else:
        if paint == "rainbow":
            hue = hue + 0.45 * (x + y)
        light = value * np.clip(1 - 0.22 * (right + down) / size, 0.6, 1.15)  # light from the upper left
        colour = hsv_to_rgb(hue, _draw(rng, count, 0.7, 0.95), np.minimum(light, 1))
        inside = np.clip(0.5 - distance, 0, 1)[..., None]
        shadow = 0.35 * np.clip(0.8 - distance / 3, 0, 1)[..., None]
        pictures = ground * (1 - shadow) * (1 - inside) + colour * inside
    return _to_bytes(pictures, rng)


def _draw_ground(count: int, rng: np.random.Generator) -> np.ndarray:
    """A muted gradient with two blurred blobs of any colour: float32 [count, 32, 32, 3]."""
    direction = _draw(rng, count, 0, 2 * np.pi)
    slope = (np.cos(direction) * _RIGHT + np.sin(direction) * _DOWN)[..., None]
    first, second = (_draw_colour(rng, count, (0.05, 0.4), (0.25, 0.95)) for _ in range(2))
    ground = first + (second - first) * (0.5 + 0.35 * slope)
    for _ in range(2):
        squared = (_RIGHT - _draw(rng, count, -1, 1)) ** 2 + (_DOWN - _draw(rng, count, -1, 1)) ** 2
        share = 0.55 * np.exp(-squared / _draw(rng, count, 0.1, 0.3))[..., None]
        ground += share * (_draw_colour(rng, count, (0.2, 0.7), (0.3, 0.9)) - ground)
    return ground


def _neon(ground: np.ndarray, distance: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """A bright tube along the outline with a glow, on dimmed ground."""
    glow = np.exp(-0.45 * np.abs(distance))[..., None]
    tube = np.clip(1.4 - np.abs(distance), 0, 1)[..., None]
    colour = hsv_to_rgb(hue, np.float32(0.75), np.float32(1))
    return 0.3 * ground * (1 - glow) + glow * colour * 0.8 + tube * 0.45


def _to_bytes(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add sensor noise of varying strength to float [N, 32, 32, 3] and round to uint8."""
    amount = _draw(rng, len(pictures), 0.01, 0.07)[..., None]
    noisy = pictures + amount * rng.standard_normal(pictures.shape, dtype=np.float32)
    return np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8)


def _draw(rng: np.random.Generator, count: int, low: float, high: float) -> np.ndarray:
    """Uniform values, one per image: float32 [count, 1, 1]."""
    return np.float32(low) + np.float32(high - low) * rng.random((count, 1, 1), dtype=np.float32)


def _draw_colour(rng: np.random.Generator, count: int, saturation: tuple, value: tuple) -> np.ndarray:
    return hsv_to_rgb(_draw(rng, count, 0, 1), _draw(rng, count, *saturation), _draw(rng, count, *value))


def hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """RGB, float [..., 3] in [0, 1]. The inputs broadcast to [...]: any hue, in turns; the others in [0, 1]."""
    sectors = [(start + 6 * hue) % 6 for start in (5, 3, 1)]
    return np.stack([value - value * saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1) for sector in sectors],
                    axis=-1)
