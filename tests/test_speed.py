"""speed: complete rows, out of memory, and what a measurement must leave alone."""

import time

import pytest
import torch
from torch import nn
from training import make_trainer

from helpers.augment import Augmentation
from helpers.config import TrainingConfig, preset_names
from helpers.lesson import speed
from helpers.loader import BatchLoader
from helpers.models import build_model
from helpers.step import TrainStep

CPU = torch.device("cpu")
ROW = {"batch_size", "images_per_second", "images_per_second_min", "images_per_second_max", "milliseconds",
       "memory_mb", "seconds", "error"}


@pytest.fixture
def images():
    return torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_loader(images, **settings):
    settings = {"augmentation": Augmentation.of_strength("moderate")} | settings
    return BatchLoader(images, torch.arange(len(images)) % 4, 8, CPU, (0.5,) * 3, (0.25,) * 3, **settings)


class SleepingModel(nn.Module):
    """Takes at least `seconds` a batch; out of memory from `limit` images on."""

    def __init__(self, seconds=0.0, limit=10**9, error=None):
        super().__init__()
        self.seconds, self.limit = seconds, limit
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def forward(self, images):
        if len(images) == self.limit:
            raise self.error
        time.sleep(self.seconds)
        return images


# Inference -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name, widths", [("CIFAR100CNN", (4, 4, 4, 4)), ("FlipCNN", (4, 4, 4))])
def test_inference_rows_are_complete(name, widths, precision):
    rows = speed.inference_throughput(build_model(name, 10, widths), CPU, precision, (2, 4), repeats=3,
                                          min_seconds=0.001)
    assert [row["batch_size"] for row in rows] == [2, 4]
    for row in rows:
        assert set(row) == ROW and row["error"] is None and row["memory_mb"] is None and len(row["seconds"]) == 3
        low, middle, high = sorted(row["seconds"])
        assert row["images_per_second"] == pytest.approx(row["batch_size"] / middle)
        assert row["images_per_second_min"] == pytest.approx(row["batch_size"] / high)
        assert row["images_per_second_max"] == pytest.approx(row["batch_size"] / low)
        assert row["milliseconds"] == pytest.approx(1000 * middle)


def test_inference_cannot_be_faster_than_the_model():
    row, = speed.inference_throughput(SleepingModel(0.005), CPU, "fp32", (10,), repeats=2, min_seconds=0.012)
    assert row["images_per_second_max"] <= 10 / 0.005 and row["milliseconds"] >= 5


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")])
def test_out_of_memory_becomes_a_row_and_later_sizes_still_run(error):
    rows = speed.inference_throughput(SleepingModel(limit=4, error=error), CPU, "fp32", (2, 4, 8), repeats=2,
                                          min_seconds=0.001)
    assert [row["error"] for row in rows] == [None, "out of memory", None]
    assert set(rows[1]) == ROW and rows[1]["batch_size"] == 4 and rows[1]["seconds"] == []
    assert all(rows[1][name] is None for name in ROW - {"batch_size", "seconds", "error"})
    assert rows[2]["images_per_second"] > 0
    assert "out of memory" in speed.format_rows(rows).splitlines()[2]


def test_other_errors_of_the_model_are_raised():
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        model = SleepingModel(limit=4, error=RuntimeError("shapes do not fit"))
        speed.inference_throughput(model, CPU, "fp32", (4,))


def test_inference_leaves_the_model_as_it_is():
    model = build_model("CIFAR100CNN", 10, (4, 4, 4, 4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    speed.inference_throughput(model, CPU, "fp32", (2,), repeats=1, min_seconds=0.001)
    assert model.training and model.conv1.weight.is_contiguous()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Training --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_speed_is_of_train_steps(tmp_path, monkeypatch, accumulation):
    trainer = make_trainer(tmp_path, batch_size=8, gradient_accumulation_steps=accumulation)
    monkeypatch.setattr(TrainStep, "__call__", lambda *_: time.sleep(0.005))
    row = speed.training_throughput(trainer, steps=2, repeats=3)
    assert len(row["seconds"]) == 3 and row["steps_per_second_max"] <= 1 / 0.005 and row["milliseconds"] >= 5
    assert row["steps_per_second"] == pytest.approx(1 / sorted(row["seconds"])[1])
    assert row["batch_size"] == 8 * accumulation
    assert row["images_per_second"] == pytest.approx(8 * accumulation * row["steps_per_second"])


def test_training_benchmark_leaves_the_trainer_as_it_is(tmp_path):
    """Trained after a benchmark, a Trainer ends in the very weights of one that was not benchmarked."""
    measured, other = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b")
    row = speed.training_throughput(measured, steps=1, repeats=2)
    speed.profile_loader(measured.loader, batches=3)
    assert row["steps_per_second"] > 0 and measured.step == 0 and not list(tmp_path.glob("a/*"))
    measured.fit()
    other.fit()
    weights = other.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in measured.model.state_dict().items())


# Loader ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [{}, {"augmentation": None},
                                      {"mixup_alpha": 1.0, "num_classes": 4, "dtype": torch.bfloat16}])
def test_loader_profile_adds_up(images, settings):
    profile = speed.profile_loader(make_loader(images, **settings), batches=4, step_milliseconds=50.0)
    stages = [profile[name] for name in ("gather_ms", "augment_ms", "cast_ms", "other_ms")]
    # Each is timed by itself, so on a busy machine the parts may take longer than the whole.
    assert sum(stages) == pytest.approx(max(profile["milliseconds"], sum(stages[:3]))) and min(stages[:3]) > 0
    assert profile["images_per_second"] == pytest.approx(8 / (profile["milliseconds"] / 1000))
    assert profile["percent_of_step"] == pytest.approx(profile["milliseconds"] / 50 * 100)


def test_loader_profile_puts_time_where_it_is_spent(images, monkeypatch):
    loader = make_loader(images)
    normalise = loader.normalised
    monkeypatch.setattr(loader, "normalised", lambda *given: time.sleep(0.03) or normalise(*given))
    profile = speed.profile_loader(loader, batches=3)
    assert profile["augment_ms"] >= 30 and profile["milliseconds"] >= 30 and profile["percent_of_step"] is None


# Plans -----------------------------------------------------------------------------------------------------

def test_minutes_of_presets_are_their_compute_at_this_speed_without_drawn_data():
    minutes = speed.minutes_of_presets(50_000, 1e12, val_size=1000)
    assert set(minutes) == set(preset_names()) - {"demo"}
    quick = TrainingConfig.from_preset("quick", val_size=1000)
    assert minutes["quick"] == speed.planned_flops(quick, 49_000) / 1e12


# Output ----------------------------------------------------------------------------------------------------

def test_rows_are_formatted_in_aligned_columns():
    rows = [{"batch_size": 8, "images_per_second": 12345.6, "memory_mb": None, "seconds": [1.0]},
            {"batch_size": 128, "images_per_second": 9.87654, "memory_mb": None, "seconds": []}]
    assert speed.format_rows(rows).splitlines() == ["batch size  images per second",
                                                        "         8             12,346",
                                                        "       128               9.88"]
