"""benchmark: the comparisons with the usual way, and the files that the commands write."""

import json
import time

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from training import make_trainer

from helpers.data import ImageData
from helpers.models import build_model, training_flops
from helpers.tools import benchmark

CPU = torch.device("cpu")


@pytest.fixture
def images():
    return torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# The usual way ---------------------------------------------------------------------------------------------

def test_pil_pipeline_gives_normalised_tensors(images):
    """On a grey image nothing but the black border and the brightness shows, whatever is drawn."""
    grey = Image.fromarray(torch.full((32, 32, 3), 100, dtype=torch.uint8).numpy())
    made = torch.stack([benchmark.pil_pipeline((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))(grey) for _ in range(20)])
    assert made.dtype == torch.float32 and made.shape == (20, 3, 32, 32)
    values = made * 0.2 + torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    assert values.min() >= -1e-6 and values[:, :, 16, 16].max() <= 1.25 * 1.2 * 100 / 255
    assert made[:, :, 16, 16].unique().numel() > 20      # drawn anew for each image


def test_baseline_runs_one_step_more_than_it_times(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "cpu_cores", lambda: 0)
    trainer, steps = make_trainer(tmp_path, batch_size=8), []
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
    model = build_model("FlipCNN", 4, (4, 4, 8))
    step = benchmark.bare_convolutions(model, 2, 32, CPU, "fp32")
    with FlopCounterMode(display=False) as counter:
        step()
    head = 3 * 2 * 4 * 4        # a matrix product forward, two backward, two FLOPs a multiply-add
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
