"""pretrained: half-precision weights with their configuration and results, and the command that checks them."""

import json
import shutil

import pytest
import torch

from cifar100_pipeline import CheckpointError, CIFAR100Pipeline
from helpers import checkpoint, network
from helpers.data import DataError, ImageData
from helpers.tools import pretrained

TINY = {"preset": "demo", "model": "FlipCNN", "widths": [4, 4, 8], "optimizer": "muon", "epochs": 1,
        "patience": 0, "mixed_precision": False, "progress": "none"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished, saved pipeline."""
    pipeline = CIFAR100Pipeline.from_preset(**{"name" if name == "preset" else name: value for name, value in
                                               TINY.items()}, runs_dir=str(tmp_path_factory.mktemp("runs")))
    pipeline.train()
    pipeline.evaluate()
    pipeline.save()
    return pipeline


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "PRETRAINED", tmp_path / "pretrained")
    return tmp_path / "pretrained"


def test_an_exported_run_is_half_as_large_and_gives_the_same_predictions(run, folder):
    path = pretrained.export(run.run_dir)
    assert path == folder / "demo.pt"
    state = checkpoint.load(path)
    weights = run.model.state_dict()
    for name, tensor in state["model_state_dict"].items():
        assert tensor.dtype == (torch.float16 if weights[name].is_floating_point() else weights[name].dtype)
        torch.testing.assert_close(tensor.float(), weights[name].float(), rtol=1e-3, atol=1e-4)
    assert state["test_results"].items() >= run.results.items()
    assert abs(state["file_results"]["top1"] - run.results["top1"]) < 1
    assert "data_dir" not in state["config"]
    assert state["temperature"] == run.network.temperature


def test_from_pretrained_evaluates_without_training(run, folder, tmp_path):
    stated = checkpoint.load(pretrained.export(run.run_dir))["file_results"]
    pipeline = CIFAR100Pipeline.from_pretrained("demo", runs_dir=str(tmp_path))
    assert pipeline.evaluate()["top1"] == pytest.approx(stated["top1"], abs=pretrained.TOLERANCE)
    pipeline.show_augmentation()
    log = pipeline.run_dir / "train.log"
    assert not log.exists() or "has no effect" not in log.read_text(encoding="utf-8")      # nobody set it


def test_check_tells_whether_the_file_gives_what_it_states(run, folder, monkeypatch, capsys):
    path = pretrained.export(run.run_dir)
    monkeypatch.setattr(pretrained, "load_cifar100", lambda config: run.data)
    assert pretrained.main(["check", "demo"]) == 0
    assert f"{run.results['top1']:.2f} % in the run itself" in capsys.readouterr().out
    content = checkpoint.load(path)
    # A preset's file may have got settings since, which the network was trained without.
    from_settings, asked = pretrained.TrainingConfig.from_settings, []
    monkeypatch.setattr(pretrained.TrainingConfig, "from_settings",
                        lambda settings: asked.append(settings["preset"]) or from_settings(settings))
    assert pretrained.main(["check", "demo"]) == 0 and set(asked) == {None}
    content["file_results"]["top1"] += 1
    checkpoint.save_atomically(content, path)
    assert pretrained.main(["check", "demo"]) == 1


def test_other_classes_are_refused(run, folder):
    content = checkpoint.load(pretrained.export(run.run_dir))
    data = ImageData(run.data.train_images, run.data.train_labels, run.data.test_images, run.data.test_labels,
                     tuple(reversed(run.data.class_names)))
    with pytest.raises(DataError, match="other classes"):
        pretrained.evaluate(content, data)


def test_a_name_without_a_file_lists_what_there_is(run, folder):
    pretrained.export(run.run_dir)
    with pytest.raises(CheckpointError, match="'fats'.*demo"):
        CIFAR100Pipeline.from_pretrained("fats")


def test_a_value_beyond_float16_is_not_lost():
    with pytest.raises(CheckpointError, match="weight.*float16"):
        pretrained.in_half_precision({"weight": torch.tensor([1e6])})


def test_an_interrupted_run_is_not_exported(run, folder, tmp_path):
    shutil.copytree(run.run_dir, tmp_path / "run")
    path = tmp_path / "run" / "metrics.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"training": content["training"] | {"stopped": "interrupted"}}))
    with pytest.raises(CheckpointError, match="interrupted; train to the end"):
        pretrained.export(tmp_path / "run")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"training": 3, "system": {}}', "[" * 100_000])
def test_metrics_of_another_make_are_one_error(run, folder, tmp_path, content):
    shutil.copytree(run.run_dir, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text(content)
    with pytest.raises(CheckpointError, match="metrics.json: not a metrics.json of this project"):
        pretrained.export(tmp_path / "run")


@pytest.mark.parametrize("part", ["file_results", "test_results"])
def test_check_of_weights_without_results_is_one_error(run, folder, monkeypatch, capsys, part):
    path = pretrained.export(run.run_dir)
    monkeypatch.setattr(pretrained, "load_cifar100", lambda config: run.data)
    checkpoint.save_atomically({name: value for name, value in checkpoint.load(path).items() if name != part}, path)
    assert pretrained.main(["check", "demo"]) == 2
    assert f"lacks its part '{part}'" in capsys.readouterr().err


def test_a_run_without_results_is_not_exported(run, folder, tmp_path):
    checkpoint.save_atomically(checkpoint.load(run.checkpoint_dir / "final.pt") | {"test_results": {}},
                               tmp_path / "checkpoints" / "final.pt")
    with pytest.raises(CheckpointError, match="evaluate"):
        pretrained.export(tmp_path)
