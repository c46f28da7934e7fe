"""Every public method of CIFAR100Pipeline on a GPU, on the drawn demo data."""

import inspect
import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from cifar100_pipeline import CIFAR100Pipeline, TrainingConfig

DEMO = {"epochs": 1, "train_size": 1000, "widths": [16, 16, 16, 16], "progress": "none", "device": "cuda"}

# By what makes a figure of it.
SHOWN = {"show_samples": {}, "show_augmentation": {}, "summarise_model": {}, "preview_schedule": {},
         "benchmark_inference": {"batch_sizes": (2, 64)}, "find_learning_rate": {"steps": 8}, "plot_training": {},
         "plot_class_accuracy": {}, "plot_confusion": {}, "plot_calibration": {}, "explain_errors": {},
         "show_confident_errors": {}, "explore_errors": {}, "explain_image": {"index": 3}, "show_filters": {},
         "show_class_map": {}, "show_superclass_affinity": {}, "show_attention": {"images": [0, 3]}, "compare": {}}
# By the test that calls it.
CALLED = {"check_system", "prepare_data", "build_model", "build_trainer", "benchmark_training", "profile_loader",
          "train", "evaluate", "run", "save", "predict", "as_input", "try_your_own_image", "from_preset",
          "from_checkpoint", "load_weights"}
NOT_OF_A_GPU = {"from_notebook", "from_pretrained"}     # other ways to the settings


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(pipeline, what `run` has returned)."""
    pipeline = CIFAR100Pipeline.from_preset("demo", run_name="tiny", runs_dir=str(tmp_path_factory.mktemp("runs")),
                                            **DEMO)
    return pipeline, pipeline.run()


def test_no_public_method_is_left_out():
    methods = {name for name, _ in inspect.getmembers(CIFAR100Pipeline, callable) if not name.startswith("_")}
    assert methods == {*SHOWN, *CALLED, *NOT_OF_A_GPU}


def test_a_run_trains_by_graphs_and_leaves_its_results(finished):
    pipeline, (model, metrics, results) = finished
    assert next(model.parameters()).is_cuda and not model.training
    assert pipeline.trainer.replayed_step.why_eager == "" and pipeline.trainer.replayed_step.warm_up > 1
    assert len(metrics["train_loss"]) == len(metrics["val_top1"]) == 1
    assert 0 <= results["top1"] <= results["top5"] <= 100
    content = json.loads((pipeline.run_dir / "metrics.json").read_text())
    assert content["system"]["device"].startswith("cuda") and content["system"]["cuda"]
    assert content["training"]["peak_memory_mb"] > 0 and content["results"] == results


def test_results_are_those_of_a_plain_forward_pass(finished):
    pipeline, (model, _, results) = finished
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in pipeline.data.channel_statistics())
    images = (pipeline.data.test_images.permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        predictions = model(images.to(pipeline.device)).argmax(1).cpu()
    plain = 100 * (predictions == pipeline.data.test_labels).float().mean().item()
    assert results["top1"] == pytest.approx(plain, abs=1)       # the pipeline computes in 16 bits


@pytest.mark.parametrize("method", SHOWN)
def test_every_figure_is_drawn(finished, method, capsys):
    pipeline = finished[0]
    weights = {name: tensor.clone() for name, tensor in pipeline.model.state_dict().items()}
    assert isinstance(getattr(pipeline, method)(**SHOWN[method]), Figure)
    assert next(pipeline.model.parameters()).is_cuda
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pipeline.model.state_dict().items())


def test_a_new_pipeline_looks_around_before_it_trains(tmp_path, capsys):
    pipeline = CIFAR100Pipeline.from_preset("demo", runs_dir=str(tmp_path), **DEMO)
    assert pipeline.check_system().device.startswith("cuda") and "cuda" in capsys.readouterr().out
    assert len(pipeline.prepare_data().train_images) > 1000
    assert next(pipeline.build_model().parameters()).is_cuda and pipeline.build_trainer().device.type == "cuda"
    speed = pipeline.benchmark_training(steps=2, repeats=2)
    assert speed["images_per_second"] > 0 and speed["minutes"] > 0
    profile = pipeline.profile_loader()
    assert profile["milliseconds"] > 0 and profile["percent_of_step"] > 0
    pipeline.benchmark_inference((2,))
    row, = pipeline.speeds["inference"]
    assert row["memory_mb"] > 0 and row["images_per_second"] > 0
    pipeline.find_learning_rate(steps=8)
    assert pipeline.trainer.step == 0 and len(pipeline.train()) == 1


def test_a_picture_of_ones_own_is_explained(finished, tmp_path):
    pipeline, path = finished[0], tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)).save(path)
    assert isinstance(pipeline.try_your_own_image(path), Figure)
    assert pipeline.as_input(path).shape == (32, 32, 3)
    for picture in (path, 5, np.zeros((40, 40, 3), np.uint8)):
        predictions = pipeline.predict(picture)
        assert len(predictions) == 5 and 0 < sum(share for _, share in predictions) <= 1.001


def test_saved_weights_give_the_same_results_on_a_gpu_and_on_a_cpu(finished, tmp_path):
    pipeline, (_, _, results) = finished
    path = pipeline.save()
    weights = torch.load(path, weights_only=True)["model_state_dict"]       # readable without a GPU
    assert {tensor.device.type for tensor in weights.values()} == {"cpu"}
    for device in ("cuda", "cpu"):
        loaded = CIFAR100Pipeline.from_checkpoint(path, run_name=device, runs_dir=str(tmp_path), device=device)
        assert next(loaded.model.parameters()).device.type == device
        assert loaded.evaluate()["top1"] == pytest.approx(results["top1"], abs=2)       # perhaps in another precision
        settings = DEMO | {"runs_dir": str(tmp_path), "device": device}
        bare = CIFAR100Pipeline(TrainingConfig.from_preset("demo", **settings)).load_weights(path).state_dict()
        assert all(torch.equal(bare[name].cpu(), tensor) for name, tensor in weights.items())
