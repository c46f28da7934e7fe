"""benchmark: complete rows, out of memory, what a benchmark must leave alone, and the commands' files."""

import json
import time

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import data as data_module
from helpers.augment import Augmentation
from helpers.augment import augment as true_augment
from helpers.config import TrainingConfig
from helpers.data import BatchLoader, ImageData
from helpers.models import build_model, training_flops
from helpers.tools import benchmark
from helpers.trainer import Trainer

CPU = torch.device("cpu")
ROW = {"batch_size", "images_per_second", "images_per_second_min", "images_per_second_max", "milliseconds",
       "memory_mb", "seconds", "error"}


@pytest.fixture
def images():
    return torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_loader(images, **settings):
    settings = {"augmentation": Augmentation.of_strength("moderate")} | settings
    return BatchLoader(images, torch.arange(len(images)) % 4, 8, CPU, (0.5,) * 3, (0.25,) * 3, **settings)


def make_trainer(images, folder, **settings):
    labels = torch.arange(len(images)) % 4
    data = ImageData(images, labels, images[:4], labels[:4], ("a", "b", "c", "d"))
    config = TrainingConfig(**{"num_classes": 4, "val_size": 0, "batch_size": 8, "widths": (8, 16, 16, 16), "epochs": 2,
                               "warmup_epochs": 0, "device": "cpu", "progress": "none"} | settings)
    return Trainer(config, data, folder)


class SleepingModel(nn.Module):
    """Takes at least `seconds` a batch; out of memory from `limit` images on."""

    def __init__(self, seconds=0.0, limit=10**9, error=torch.OutOfMemoryError("CUDA out of memory")):
        super().__init__()
        self.seconds, self.limit, self.error, self.shapes = seconds, limit, error, []

    def forward(self, images):
        if len(images) == self.limit:
            raise self.error
        time.sleep(self.seconds)
        return images


# Inference -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name, widths", [("CIFAR100CNN", (4, 4, 4, 4)), ("FastCNN", (4, 4, 4))])
def test_inference_rows_are_complete(name, widths, precision):
    rows = benchmark.inference_throughput(build_model(name, 10, widths), CPU, precision, (2, 4), repeats=3,
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
    row, = benchmark.inference_throughput(SleepingModel(0.005), CPU, "fp32", (10,), repeats=2, min_seconds=0.012)
    assert row["images_per_second_max"] <= 10 / 0.005 and row["milliseconds"] >= 5


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")])
def test_out_of_memory_becomes_a_row_and_later_sizes_still_run(error):
    rows = benchmark.inference_throughput(SleepingModel(limit=4, error=error), CPU, "fp32", (2, 4, 8), repeats=2,
                                          min_seconds=0.001)
    assert [row["error"] for row in rows] == [None, "out of memory", None]
    assert set(rows[1]) == ROW and rows[1]["batch_size"] == 4 and rows[1]["seconds"] == []
    assert all(rows[1][name] is None for name in ROW - {"batch_size", "seconds", "error"})
    assert rows[2]["images_per_second"] > 0
    assert "out of memory" in benchmark.format_rows(rows).splitlines()[2]


def test_other_errors_of_the_model_are_raised():
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        model = SleepingModel(limit=4, error=RuntimeError("shapes do not fit"))
        benchmark.inference_throughput(model, CPU, "fp32", (4,))


def test_inference_leaves_the_model_as_it_is():
    model = build_model("CIFAR100CNN", 10, (4, 4, 4, 4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    benchmark.inference_throughput(model, CPU, "fp32", (2,), repeats=1, min_seconds=0.001)
    assert model.training and model.conv1.weight.is_contiguous()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Training --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_speed_is_of_trainer_steps(images, tmp_path, monkeypatch, accumulation):
    trainer = make_trainer(images, tmp_path, gradient_accumulation_steps=accumulation)
    monkeypatch.setattr(Trainer, "_train_step", lambda self, epoch: time.sleep(0.005))
    row = benchmark.training_throughput(trainer, steps=2, repeats=3)
    assert len(row["seconds"]) == 3 and row["steps_per_second_max"] <= 1 / 0.005 and row["milliseconds"] >= 5
    assert row["steps_per_second"] == pytest.approx(1 / sorted(row["seconds"])[1])
    assert row["batch_size"] == 8 * accumulation
    assert row["images_per_second"] == pytest.approx(8 * accumulation * row["steps_per_second"])


def test_training_benchmark_leaves_the_trainer_as_it_is(images, tmp_path):
    """Trained after a benchmark, a Trainer ends in the very weights of one that was not benchmarked."""
    measured, other = make_trainer(images, tmp_path / "a"), make_trainer(images, tmp_path / "b")
    row = benchmark.training_throughput(measured, steps=1, repeats=2)
    benchmark.profile_loader(measured.loader, batches=3)
    assert row["steps_per_second"] > 0 and measured.step == 0 and not list(tmp_path.glob("a/*"))
    measured.fit()
    other.fit()
    weights = other.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in measured.model.state_dict().items())


# Loader ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [{"placement": "device"}, {"placement": "host"}, {"augmentation": None},
                                      {"mixup_alpha": 1.0, "num_classes": 4, "dtype": torch.bfloat16}])
def test_loader_profile_adds_up(images, settings):
    profile = benchmark.profile_loader(make_loader(images, **settings), batches=4, step_milliseconds=50.0)
    stages = [profile[name] for name in ("gather_ms", "augment_ms", "cast_ms", "other_ms")]
    # Each is timed by itself, so on a busy machine the parts may take longer than the whole.
    assert sum(stages) == pytest.approx(max(profile["milliseconds"], sum(stages[:3]))) and min(stages[:3]) > 0
    assert profile["images_per_second"] == pytest.approx(8 / (profile["milliseconds"] / 1000))
    assert profile["percent_of_step"] == pytest.approx(profile["milliseconds"] / 50 * 100)


def test_loader_profile_puts_time_where_it_is_spent(images, monkeypatch):
    def slow_augment(*args, **kwargs):
        time.sleep(0.03)
        return true_augment(*args, **kwargs)

    for module in (benchmark, data_module):
        monkeypatch.setattr(module, "augment", slow_augment)
    profile = benchmark.profile_loader(make_loader(images), batches=3)
    assert profile["augment_ms"] >= 30 and profile["milliseconds"] >= 30 and profile["percent_of_step"] is None


# The usual way ---------------------------------------------------------------------------------------------

def test_pil_pipeline_gives_normalised_tensors(images):
    """On a grey image nothing but the black border and the brightness shows, whatever is drawn."""
    grey = Image.fromarray(torch.full((32, 32, 3), 100, dtype=torch.uint8).numpy())
    made = torch.stack([benchmark.pil_pipeline((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))(grey) for _ in range(20)])
    assert made.dtype == torch.float32 and made.shape == (20, 3, 32, 32)
    values = made * 0.2 + torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    assert values.min() >= -1e-6 and values[:, :, 16, 16].max() <= 1.25 * 1.2 * 100 / 255
    assert made[:, :, 16, 16].unique().numel() > 20      # drawn anew for each image


def test_baseline_runs_one_step_more_than_it_times(images, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "cpu_cores", lambda: 0)
    trainer, steps = make_trainer(images, tmp_path), []
    model = build_model("CIFAR100CNN", 4, (4, 4, 4, 4))
    model.register_forward_pre_hook(lambda _module, inputs: steps.append((inputs[0].shape, inputs[0].dtype)))
    monkeypatch.setattr(benchmark, "build_model", lambda **_arguments: model)
    before = model.fc.weight.clone()
    measure = benchmark.plain_training(trainer.config, trainer.data, CPU, steps=2)
    start = time.perf_counter()
    seconds = measure()
    assert 0 < seconds < time.perf_counter() - start
    assert steps == [((8, 3, 32, 32), torch.float32)] * 3 and not torch.equal(before, model.fc.weight)


# Output ----------------------------------------------------------------------------------------------------

def test_rows_are_formatted_in_aligned_columns():
    rows = [{"batch_size": 8, "images_per_second": 12345.6, "memory_mb": None, "seconds": [1.0]},
            {"batch_size": 128, "images_per_second": 9.87654, "memory_mb": None, "seconds": []}]
    assert benchmark.format_rows(rows).splitlines() == ["batch size  images per second",
                                                        "         8             12,346",
                                                        "       128               9.88"]


def run(tmp_path, *arguments):
    path = tmp_path / "folder" / "out.json"
    benchmark.main([*arguments, "--out", str(path)])
    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["benchmark"] == arguments[0] and content["seed"] == 42 and content["repeats"] == 2
    assert content["machine"]["torch"] == torch.__version__ and content["machine"]["device"] == "cpu"
    assert [entry.name for entry in path.parent.iterdir()] == ["out.json"]
    return content


def check_comparison(content, count):
    """The ratio, once more from the single timings: of two, the median is the mean."""
    speeds = {name: count / (sum(values) / 2) for name, values in content["seconds"].items()}
    assert [len(values) for values in content["seconds"].values()] == [2, 2] and content["count"] == count
    assert content["per_second"] == pytest.approx(speeds)
    assert content["ratio"] == pytest.approx(speeds["ours"] / speeds["baseline"])
    assert content["data"] == "drawn demo data"


def test_augmentation_command(tmp_path, capsys):
    content = run(tmp_path, "augmentation", "--images", "300", "--repeats", "2")
    check_comparison(content, 256)      # both sides make the same whole batches
    assert content["threads"] == 1 and content["machine"]["precision"] == "fp32"
    assert f"{content['ratio']:.2f} times" in capsys.readouterr().out


def test_training_command(tmp_path, capsys):
    content = run(tmp_path, "training", "--batch-size", "4", "--widths", "8", "16", "16", "16", "--steps", "1",
                  "--repeats", "2", "--device", "cpu")
    check_comparison(content, 1)
    assert content["widths"] == [8, 16, 16, 16] and content["batch_size"] == 4
    assert f"{content['ratio']:.2f} times" in capsys.readouterr().out


def test_inference_command(tmp_path, capsys):
    content = run(tmp_path, "inference", "--preset", "demo", "--batch-sizes", "2", "3", "--repeats", "2",
                  "--device", "cpu")
    assert [row["batch_size"] for row in content["rows"]] == [2, 3] and content["preset"] == "demo"
    assert "images per second" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["training", "--batch-size", "0"], "batch_size=0"),
    (["training", "--steps", "0"], "--steps 0: must be at least 1"),
    (["inference", "--preset", "quik"], "did you mean 'quick'"), (["augmentation", "--images", "0"], "--images 0")])
def test_wrong_settings_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_bare_convolutions_are_those_of_the_network(monkeypatch):
    """The same FLOPs, forward and backward, as a training step of the network."""
    model = build_model("FastCNN", 4, (4, 4, 8))
    step = benchmark.bare_convolutions(model, 2, 32, CPU, "fp32")
    with FlopCounterMode(display=False) as counter:
        step()
    head = 3 * 2 * 8 * 4        # a matrix product forward, two backward, two FLOPs a multiply-add
    assert counter.get_total_flops() == 2 * (training_flops(model, 32) - head)


@pytest.fixture
def few_images(images, monkeypatch):
    """A step's commands on 4 classes, with a narrow network and small batches."""
    monkeypatch.setattr(benchmark, "load_cifar100", lambda config: ImageData(
        images, torch.arange(len(images)) % 4, images[:4], torch.arange(4), ("a", "b", "c", "d")))
    from_settings = benchmark.TrainingConfig.from_settings
    monkeypatch.setattr(benchmark.TrainingConfig, "from_settings", lambda settings: from_settings(
        settings | {"num_classes": 4, "widths": (4, 4, 8), "batch_size": 8, "progress": "none",
                    "precision": "bf16"}))


def test_step_command_gives_the_share_of_the_bare_convolutions(few_images, tmp_path):
    out = tmp_path / "step.json"
    benchmark.main(["step", "--image-sizes", "16", "32", "--repeats", "1", "--device", "cpu", "--out", str(out)])
    content = json.loads(out.read_text())
    rows = content["rows"]
    assert content["optimizer_gflop"] > 0 and [row["image_size"] for row in rows] == [16, 32]
    for row in rows:
        assert row["percent"] == pytest.approx(100 * row["seconds"]["convolutions"][0] / row["seconds"]["step"][0])
        assert row["convolution_s"] > 0
    assert rows[0]["resize_s"] > 0 == rows[1]["resize_s"]


def test_step_options_command_compares_with_the_step_as_it_is(few_images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda model: model)       # takes half a minute
    out = tmp_path / "options.json"
    benchmark.main(["step-options", "--preset", "fast", "--repeats", "1", "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["batch_size"] for row in rows] == [8, 8, 8, 16, 8] and rows[0]["ratio"] == 1
    assert all(row["images_per_second"] == row["batch_size"] / row["seconds"][0] for row in rows)
    assert "filters kept in 16 bit" in capsys.readouterr().out


def test_filters_kept_in_16_bit_learn_as_others_do(images, tmp_path):
    """The optimiser's fp32 filters move as without it, up to what bf16 rounds."""
    settings = {"model": "FastCNN", "widths": (4, 4, 8), "optimizer": "muon", "precision": "bf16", "ema_decay": 0.9}
    usual, narrow = (make_trainer(images, tmp_path, **settings) for _ in range(2))
    start = usual.model.groups[1].conv2.weight.detach().clone()
    benchmark._keep_filters_in_16_bit(narrow)
    for trainer in (usual, narrow):
        trainer._train_step(0)
    moved, moved_narrow = (trainer.model.groups[1].conv2.weight.detach() - start for trainer in (usual, narrow))
    assert moved_narrow.dtype == torch.float32
    torch.testing.assert_close(moved_narrow, moved, rtol=0.1, atol=0.05 * moved.abs().max().item())


def test_live_view_command(tmp_path, capsys):
    out = tmp_path / "live.json"
    benchmark.main(["live-view", "--preset", "demo", "--device", "cpu", "--out", str(out)])
    content = json.loads(out.read_text())
    assert content["epochs"] == 1 and 0 < content["live_view_seconds"] < content["training_seconds"]
    assert content["percent"] < 20      # a training of seconds on a busy machine; the real figure is measured
    assert "seconds of training" in capsys.readouterr().out
