"""The drawn demo set: reproducible, balanced, and neither trivial nor impossible to learn."""

import colorsys

import numpy as np
import pytest

from helpers.demo_data import DEMO_NOTE, SHAPES, draw_demo_data, hsv_to_rgb


@pytest.fixture(scope="module")
def data():
    return draw_demo_data()


@pytest.fixture(scope="module")
def small():
    return draw_demo_data(2, 1, seed=3)


def test_the_seed_decides_every_byte(small):
    again, other = draw_demo_data(2, 1, seed=3), draw_demo_data(2, 1, seed=4)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert again[name].tobytes() == small[name].tobytes()
        assert other[name].tobytes() != small[name].tobytes()


def test_shapes_dtypes_and_balance(data):
    for split, per_class in (("train", 50), ("test", 10)):
        images, labels = data[f"x_{split}"], data[f"y_{split}"]
        assert images.shape == (100 * per_class, 32, 32, 3) and images.dtype == np.uint8
        assert labels.dtype == np.int64 and np.array_equal(np.bincount(labels), np.full(100, per_class))


def test_names_and_superclasses_fit(data):
    assert len(set(data["classes"])) == 100 and len(set(data["superclasses"])) == 20
    assert data["superclass_of"].dtype == np.int64
    assert np.array_equal(np.bincount(data["superclass_of"]), np.full(20, 5))
    for name, superclass in zip(data["classes"], data["superclass_of"]):
        assert name.endswith(" " + data["superclasses"][superclass])
    assert data["classes"][0] == "red disc" and DEMO_NOTE == "drawn demo data"


def test_no_image_comes_twice(data):
    images = [image.tobytes() for split in ("x_train", "x_test") for image in data[split]]
    assert len(set(images)) == len(images)


def test_the_test_images_do_not_depend_on_the_number_of_training_images(small):
    more = draw_demo_data(3, 1, seed=3)
    assert np.array_equal(more["x_test"], small["x_test"]) and np.array_equal(more["y_test"], small["y_test"])


def test_images_come_in_random_order(data):
    assert (np.diff(data["y_train"]) == 0).mean() < 0.05


@pytest.mark.parametrize("name, value", [("train_per_class", 0), ("test_per_class", -1)])
def test_too_few_images_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        draw_demo_data(**{name: value})


@pytest.mark.parametrize("shape", SHAPES)
def test_a_distance_is_never_much_longer_than_the_way_to_the_outline(shape):
    """Soft edges need this: the slope of a signed distance is 1, that of an approximation near it."""
    fine = np.linspace(-1.2, 1.2, 241, dtype=np.float32)
    y, x = np.meshgrid(fine, fine, indexing="ij")
    distance = SHAPES[shape][0](x[None], y[None])[0]
    assert distance.shape == (241, 241) and np.isfinite(distance).all()
    slope = np.hypot(*np.gradient(distance, 0.01))
    edge = np.abs(distance) < 0.02
    assert 0.4 < np.median(slope[edge]) < 1.6
    assert 0.1 < (distance < 0).mean() < 0.6


@pytest.mark.parametrize("shape, area", [("disc", np.pi * 0.85**2), ("ring", np.pi * (0.9**2 - 0.5**2)),
                                         ("square", 1.5**2), ("triangle", 0.75 * 3**0.5),
                                         ("cross", 4 * 0.28 * 0.9 * 2 - 4 * 0.28**2)])
def test_areas_of_simple_shapes(shape, area):
    fine = np.linspace(-1.5, 1.5, 601)
    y, x = np.meshgrid(fine, fine, indexing="ij")
    assert (SHAPES[shape][0](x, y) < 0).mean() * 9 == pytest.approx(area, rel=0.03)


def test_hsv_to_rgb_agrees_with_colorsys():
    hue, saturation, value = np.random.default_rng(0).uniform(0, 1, (3, 200))
    expected = [colorsys.hsv_to_rgb(*colour) for colour in zip(hue, saturation, value)]
    np.testing.assert_allclose(hsv_to_rgb(hue - 1, saturation, value), expected, atol=1e-12)


def test_nearest_class_mean_beats_chance_and_stays_far_from_perfect(data):
    """On coarse pixels and coarse frequencies; chance is 1 %."""
    train, test = (_features(data[split]) for split in ("x_train", "x_test"))
    middle, spread = train.mean(0), train.std(0) + 1e-6
    train, test = (train - middle) / spread, (test - middle) / spread
    means = np.stack([train[data["y_train"] == label].mean(0) for label in range(100)])
    distances = (means**2).sum(1) - 2 * test @ means.T
    accuracy = (distances.argmin(1) == data["y_test"]).mean()
    assert 0.08 < accuracy < 0.5


def _features(images):
    images = images / 255
    coarse = images.reshape(-1, 8, 4, 8, 4, 3).mean((2, 4)).reshape(len(images), -1)
    grey = images.mean(-1) - images.mean((1, 2, 3))[:, None, None]
    frequencies = np.log1p(np.abs(np.fft.fft2(grey))[:, :10, :10]).reshape(len(images), -1)
    return np.concatenate([coarse, frequencies], axis=1)
