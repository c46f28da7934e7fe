"""plots.learned: filters and heat maps to scale, classes and superclasses in their places."""

import math

import numpy as np
import pytest
import torch

from helpers.lesson import plots
from plot_data import images, texts


def test_filters_are_shown_around_grey_with_their_norms():
    weights = torch.zeros(2, 3, 2, 2)
    weights[0, 0, 0, 1], weights[0, 2, 1, 1] = 3.0, -4.0
    figure = plots.first_layer_filters(weights)
    first, second = (image.get_array() for image in figure.axes[0].images)
    np.testing.assert_allclose(first[0, 0], [0.5, 0.5, 0.5])
    np.testing.assert_allclose(first[0, 1], [0.875, 0.5, 0.5])      # 0.5 + 3 / (2 · 4)
    np.testing.assert_allclose(first[1, 1], [0.5, 0.5, 0.0])
    np.testing.assert_allclose(second, 0.5)
    assert {"5", "0"} <= set(texts(figure))


def test_heat_maps_lie_on_their_pictures():
    pictures, heat = images(2), np.random.default_rng(1).random((2, 32, 32))
    shown = plots.grad_cam_overlay(pictures, torch.from_numpy(heat), ["one", "two"]).axes[0].images
    for place in range(2):
        plain, below, above = shown[3 * place:3 * place + 3]
        np.testing.assert_array_equal(plain.get_array(), pictures[place])
        np.testing.assert_array_equal(below.get_array(), pictures[place])
        np.testing.assert_array_equal(above.get_array(), heat[place])
        assert list(above.get_extent()) == list(below.get_extent())
    with pytest.raises(ValueError, match="heat_maps"):
        plots.grad_cam_overlay(pictures, heat[:1], ["one", "two"])


def test_class_map_tells_twenty_superclasses_apart():
    points = np.random.default_rng(0).normal(size=(100, 2))
    names, groups = [f"class {label:02d}" for label in range(100)], [f"group {place}" for place in range(20)]
    figure = plots.class_map(points, names, np.arange(100) % 20, groups, 0.25)
    kinds = {line.get_label(): (line.get_color(), line.get_marker()) for line in figure.axes[0].lines
             if line.get_label() in groups}
    assert len(kinds) == len(set(kinds.values())) == 20
    drawn = {tuple(point): line.get_label() for line in figure.axes[0].lines if line.get_label() in groups
             for point in line.get_xydata()}
    assert all(drawn[tuple(point)] == groups[label % 20] for label, point in enumerate(points))
    assert any("25 %" in text for text in texts(figure))
    assert not any("%" in text for text in texts(plots.class_map(points, names, kept=math.nan)))


def test_names_on_the_class_map_are_near_their_points_and_do_not_cover_each_other():
    points = np.random.default_rng(0).normal(size=(100, 2))
    names = [f"class {label:02d}" for label in range(100)]
    axes = plots.class_map(points, names).axes[0]
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert set(boxes) == set(names)
    listed = list(boxes.values())
    assert not any(one.overlaps(other) for place, one in enumerate(listed) for other in listed[:place])
    for name, pixel in zip(names, axes.transData.transform(points)):
        box = boxes[name]
        assert np.hypot(*(np.clip(pixel, box.min, box.max) - pixel)) < 110


def test_class_map_leaves_out_a_class_without_images():
    points = np.array([[0.0, 1.0], [np.nan, np.nan], [2.0, 0.0]])
    written = texts(plots.class_map(points, ["cat", "dog", "emu"]))
    assert "cat" in written and "emu" in written and "dog" not in written


def test_superclasses_that_pull_alike_are_neighbours():
    sides = np.array([1, -1, 1, -1])
    figure = plots.superclass_affinity(0.3 * np.outer(sides, sides) + 0.7 * np.eye(4), ["a", "b", "c", "d"])
    order = "".join(label.get_text() for label in figure.axes[0].get_xticklabels())
    assert set(order[:2]) in ({"a", "c"}, {"b", "d"})
    cells = figure.axes[0].collections[0].get_array().reshape(4, 4)
    assert np.ma.getmaskarray(cells).diagonal().all()
    np.testing.assert_allclose(cells[0, 1:], [30, -30, -30])
    plots.superclass_affinity(np.full((3, 3), np.nan), ["a", "b", "c"])
