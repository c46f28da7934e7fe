"""Sets of one's own through every cell of the notebook: few images, few and many classes, channels without spread."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from cifar100_pipeline import CIFAR100Pipeline

NOTEBOOK = Path(__file__).resolve().parent.parent / "CIFAR_100_CNN_Training.ipynb"
SETTINGS = {"preset": "fast", "widths": [16, 16, 16], "val_size": 0, "batch_size": 32, "start_image_size": 32,
            "device": "cpu", "mixed_precision": False, "progress": "none"}


def write_set(folder, images, classes, test_images=None):
    """An .npz of one test and some training images a class, in order of the classes."""
    labels = np.arange(len(images)) * classes // len(images)
    test_images = images if test_images is None else test_images
    np.savez(folder / "cifar100.npz", x_train=images, y_train=labels, x_test=test_images,
             y_test=np.arange(len(test_images)) * classes // len(test_images),
             classes=np.array([f"class {number}" for number in range(classes)]))


def run_the_notebook(folder, **settings) -> dict:
    """Execute every cell but the first; the namespace they leave."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    namespace = {}
    for cell in cells[1:]:
        exec("".join(cell["source"]).replace("benchmark_inference()", "benchmark_inference((2,))"), namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            namespace |= SETTINGS | {"data_dir": str(folder), "runs_dir": str(folder / "runs")} | settings
    return namespace


@pytest.mark.parametrize("red_only, val_size", [(False, 8), (True, 0)])
def test_two_classes_and_four_test_images_without_an_error(red_only, val_size, tmp_path):
    images = np.full((40, 32, 32, 3), 40, np.uint8)
    images[20:, ..., 0] = 220
    if not red_only:
        images[..., 1:] = np.random.default_rng(0).integers(0, 20, images[..., 1:].shape)
    write_set(tmp_path, images, 2, images[8:32:7])
    namespace = run_the_notebook(tmp_path, num_classes=2, epochs=6, val_size=val_size)
    assert namespace["results"]["top1"] == 100 and namespace["results"]["images"] == 4
    assert (namespace["pipeline"].network.std[1] == 1) == red_only
    assert len(list((tmp_path / "runs").glob("*/figures/*.png"))) >= 14


def test_many_classes_of_one_image_each(tmp_path):
    """MANY_CLASSES=1000 takes two minutes."""
    classes = int(os.environ.get("MANY_CLASSES", 220))      # more than the figures name
    write_set(tmp_path, np.random.default_rng(0).integers(0, 256, (classes, 32, 32, 3), np.uint8), classes)
    namespace = run_the_notebook(tmp_path, num_classes=classes, epochs=1)
    assert namespace["results"]["images"] == classes


@pytest.mark.parametrize("model, widths", [("CIFAR100CNN", [8, 8, 8, 8]), ("FlipCNN", [8, 8, 8])])
def test_black_pictures_train_without_an_infinite_loss(model, widths, tmp_path):
    write_set(tmp_path, np.zeros((40, 32, 32, 3), np.uint8), 2)
    settings = SETTINGS | {"model": model, "widths": widths, "augmentation": "strong", "cutout_size": 8, "epochs": 2}
    pipeline = CIFAR100Pipeline.from_preset(settings.pop("preset"), num_classes=2, data_dir=str(tmp_path),
                                            runs_dir=str(tmp_path / "runs"), **settings)
    assert np.isfinite(pipeline.train()["train_loss"]).all()
    assert pipeline.evaluate()["images"] == 40
