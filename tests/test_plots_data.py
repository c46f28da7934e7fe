"""plots.data: each picture is the right one, in its place."""

import numpy as np
import pytest
import torch

from helpers.lesson import plots
from plot_data import NAMES, SUPERCLASS_OF, SUPERCLASSES, images, texts


@pytest.mark.parametrize("grouped", [True, False])
def test_sample_grid_names_all_classes_and_boxes_the_missing(grouped):
    groups = (SUPERCLASS_OF, SUPERCLASSES) if grouped else ()
    figure = plots.sample_grid(images(9), np.arange(9), NAMES, *groups)
    names = [name.replace("_", " ") for name in NAMES + grouped * SUPERCLASSES]
    assert set(names) <= set(texts(figure))
    assert len(figure.axes[0].images) == 9 and len(figure.axes[0].patches) == 1


def test_sample_grid_places_the_first_image_of_each_class():
    pictures = images(20)
    shown = plots.sample_grid(torch.from_numpy(pictures), torch.arange(20) % 10, NAMES).axes[0].images
    for label, image in enumerate(shown):
        np.testing.assert_array_equal(image.get_array(), pictures[label])


def test_augmentation_preview_starts_each_line_with_the_original():
    original, augmented = images(2), torch.rand(2, 3, 3, 32, 32)
    shown = plots.augmentation_preview(original, augmented, ["cat", "dog"]).axes[0].images
    assert len(shown) == 8
    np.testing.assert_array_equal(shown[4].get_array(), original[1])
    np.testing.assert_array_equal(shown[6].get_array(), augmented[1, 1].permute(1, 2, 0))
