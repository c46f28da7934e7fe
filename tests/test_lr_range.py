"""lr_range: the learning-rate range test does real steps, and leaves the training as it is."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.config import TrainingConfig
from helpers.data import ImageData
from helpers.lesson.lr_range import SMOOTHING, lr_range_test, smoothed_losses, steepest_rate
from helpers.trainer import Trainer, TrainingDiverged


def trainer_of(tmp_path, **settings):
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8))
    labels = torch.arange(60) % 3
    config = TrainingConfig(**{"num_classes": 3, "val_size": 6, "epochs": 2, "batch_size": 9, "patience": 0,
                               "model": "CIFAR100CNN", "widths": (16, 16, 16, 16), "mixed_precision": False,
                               "mixup_alpha": 0.2, "ema_decay": 0.9, "progress": "none"} | settings)
    return Trainer(config, ImageData(images, labels, images[:3], labels[:3], ("a", "b", "c")), tmp_path)


@pytest.mark.parametrize("settings", [{}, {"model": "FlipCNN", "widths": (16, 16, 16), "optimizer": "muon"}])
def test_range_test_changes_nothing_that_is_trained_afterwards(tmp_path, settings):
    plain = trainer_of(tmp_path / "plain", **settings)
    plain.fit()
    looked = trainer_of(tmp_path / "looked", **settings)
    before = torch.get_rng_state()
    lr_range_test(looked, 1e-4, 1.0, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert looked.step == 0 and looked.flops == 0 and not (tmp_path / "looked").exists()
    looked.fit()
    assert [row["train_loss"] for row in looked.history.rows] == [row["train_loss"] for row in plain.history.rows]
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, looked.model.state_dict()[name]), name


def test_range_test_does_the_first_steps_of_the_training(tmp_path):
    settings = {"learning_rate": 1e-8, "warmup_epochs": 0, "dropout_rate": 0.0}
    trainer = trainer_of(tmp_path, **settings)
    images, targets = trainer.loader.batch(0, 0)
    with torch.no_grad():
        expected = F.cross_entropy(trainer.model.train()(images), targets, label_smoothing=0.1).item()
    found = lr_range_test(trainer_of(tmp_path, **settings), 1e-3, 0.1, 9)
    assert found["losses"][0] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(found["rates"], np.geomspace(1e-3, 0.1, 9))
    assert len(found["losses"]) == len(found["smoothed"]) == 9
    trained = trainer_of(tmp_path / "trained", **settings)
    trained.fit()
    assert lr_range_test(trained, 1e-3, 0.1, 9)["losses"][0] == pytest.approx(expected, rel=1e-4)


def test_range_test_ends_when_the_loss_blows_up(tmp_path):
    trainer = trainer_of(tmp_path, gradient_clip=0, mixup_alpha=0.0)
    found = lr_range_test(trainer, 1e-3, 1e9, 30)
    assert len(found["losses"]) < 30 and all(math.isfinite(loss) for loss in found["losses"])
    assert all(loss <= 2 * found["losses"][0] for loss in found["losses"][:-1])
    trainer.model.fc.bias.data[0] = math.nan
    with pytest.raises(TrainingDiverged, match="before the first step"):
        lr_range_test(trainer, 1e-3, 1.0, 8)


def test_range_test_refuses_impossible_limits(tmp_path):
    trainer = trainer_of(tmp_path)
    for low, high, steps, words in ((0.0, 1.0, 10, "low=0"), (1.0, 0.1, 10, "low=1"), (0.1, 1.0, 3, "steps=3")):
        with pytest.raises(ValueError, match=words):
            lr_range_test(trainer, low, high, steps)


def test_suggested_rate_is_where_a_known_curve_falls_most_steeply():
    rates = np.geomspace(1e-4, 10, 101)
    losses = 2 + 2 / (1 + (rates / 0.05) ** 2) + (rates / 5) ** 2       # falls most steeply near 0.05, then rises
    smoothed = smoothed_losses(losses.tolist())
    inside = np.convolve(losses, np.ones(SMOOTHING) / SMOOTHING, "valid")
    np.testing.assert_allclose(smoothed[3:-3], inside)
    assert steepest_rate(rates.tolist(), smoothed) == pytest.approx(0.05, rel=0.15)
    assert steepest_rate([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]) is None
