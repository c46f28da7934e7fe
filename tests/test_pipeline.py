"""CIFAR100Pipeline as a Python user meets it, on the drawn demo data and a narrow network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cifar100_pipeline
from cifar100_pipeline import (CIFAR100CNN, CheckpointError, CIFAR100Pipeline, ConfigError, DataError, TrainingConfig,
                               train_cifar100)
from helpers import checkpoint, locks, system
from helpers.data import ImageData

ROOT = Path(__file__).resolve().parent.parent

# oneDNN may crash below 16 channels at a stride.
TINY = {"epochs": 1, "train_size": 1000, "widths": [8, 16, 16, 16], "progress": "none"}


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(runs_dir):
    """(pipeline, what `run` has returned)."""
    pipeline = CIFAR100Pipeline.from_preset("demo", run_name="tiny", runs_dir=str(runs_dir), **TINY)
    return pipeline, pipeline.run()


def test_run_returns_model_metrics_and_results(finished):
    pipeline, (model, metrics, results) = finished
    assert isinstance(model, CIFAR100CNN) and not model.training
    assert len(metrics["train_loss"]) == len(metrics["val_top1"]) == 1
    assert 0 <= results["top1"] <= results["top5"] <= 100
    assert {"class_mean", "class_std", "class_min", "class_max", "superclass_top1", "most_confused",
            "expected_calibration_error", "flip_tta"} <= set(results)


def test_training_again_what_is_finished_keeps_its_test_results(finished):
    pipeline, (model, _, results) = finished
    pipeline.train()
    assert pipeline.model is model and pipeline.results == results != {}


def test_results_are_those_of_a_plain_forward_pass(finished):
    pipeline, (model, _, results) = finished
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in pipeline.data.channel_statistics())
    images = (pipeline.data.test_images.permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        predictions = model(images).argmax(1)
    plain = 100 * (predictions == pipeline.data.test_labels).float().mean().item()
    assert results["top1"] == pytest.approx(plain, abs=0.5)     # the pipeline may compute in bf16


ODD_CLASSES = ("$\\foo$", "貓_狗", "a\nb\udce9", "long_" * 40)


def four_classes(runs_dir, name, **settings):
    """A pipeline on four classes of one colour each, with names as folders may have."""
    labels = torch.arange(80) % 4
    images = (60 * labels[:, None, None, None] + torch.randint(0, 50, (80, 32, 32, 3))).to(torch.uint8)
    pipeline = CIFAR100Pipeline(TrainingConfig(
        num_classes=4, epochs=1, widths=(8, 16, 16, 16), val_size=8, batch_size=16, progress="none", run_name=name,
        mixed_precision=False,
        runs_dir=str(runs_dir), **settings))
    pipeline.data = ImageData(images, labels, images[:40], labels[:40], ODD_CLASSES)
    return pipeline


def test_class_names_and_a_run_name_of_any_kind_end_in_all_figures(tmp_path, recwarn, capsys):
    pipeline = four_classes(tmp_path, "$^{$" if os.name == "posix" else "$^{")
    pipeline.run()
    Image.new("RGB", (40, 40)).save(tmp_path / "mine.png")
    for draw in (pipeline.summarise_model, pipeline.show_class_map, pipeline.show_attention, pipeline.compare,
                 lambda: pipeline.explain_image(3), lambda: pipeline.try_your_own_image(tmp_path / "mine.png")):
        assert draw() is not None
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]
    assert "could not be" not in capsys.readouterr().out
    assert checkpoint.load(pipeline.checkpoint_dir / "final.pt")["classes"] == list(ODD_CLASSES)


def test_weights_are_saved_before_a_figure_and_one_that_fails_is_a_line(tmp_path, monkeypatch, capsys):
    pipeline, final = four_classes(tmp_path, "mine"), tmp_path / "mine" / "checkpoints" / "final.pt"

    def fail(*_, **__):
        raise ValueError(f"no picture,\nbut final.pt is there: {final.is_file()}")

    for name in ("training_curves", "sample_grid"):
        monkeypatch.setattr(cifar100_pipeline.plots, name, fail)
    model, metrics, results = pipeline.run()
    lines = [line for line in capsys.readouterr().out.splitlines() if "could not be drawn" in line]
    assert len(lines) == 2 and all("final.pt is there: True" in line for line in lines)
    assert "figure training" in lines[1] and pipeline.plot_training() is None
    assert (tmp_path / "mine" / "figures" / "confusion.png").is_file()


def test_a_figure_that_cannot_be_saved_is_shown_all_the_same(tmp_path, caplog):
    pipeline = four_classes(tmp_path, "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "figures").write_text("in the way")
    assert pipeline.show_samples() is not None and "could not write" in caplog.text


@pytest.mark.parametrize("index", [-1, 1000])
def test_an_index_beyond_the_test_images_is_named(finished, index):
    with pytest.raises(DataError, match=f"no test image {index}; .* 0 to 999"):
        finished[0].predict(index)


def test_metrics_file_has_what_a_reader_needs(finished, runs_dir):
    content = json.loads((runs_dir / "tiny" / "metrics.json").read_text())
    assert content["note"] == "drawn demo data"
    assert content["config"]["epochs"] == 1
    assert {"torch", "device_name", "cpu_cores", "precision"} <= set(content["system"])
    assert content["training"]["seconds"] > 0 and content["training"]["images_per_second"] > 0
    assert content["training"]["petaflops"] > 0 and content["training"]["peak_memory_mb"] > 0
    assert content["results"] == finished[1][2]


def test_a_finished_run_opened_elsewhere_keeps_its_machine_and_speeds(tmp_path):
    settings = {"run_name": "tiny", "runs_dir": str(tmp_path), **TINY}
    CIFAR100Pipeline.from_preset("demo", **settings).run()
    path = tmp_path / "tiny" / "metrics.json"
    content = json.loads(path.read_text())
    content |= {"system": content["system"] | {"device_name": "another"}, "speeds": {"training": {"minutes": 1.0}}}
    path.write_text(json.dumps(content | {"results": {}}))
    opened = CIFAR100Pipeline.from_preset("demo", **settings)
    opened.train()
    opened.benchmark_inference((2,))
    opened.evaluate()
    assert json.loads(path.read_text()) == content


def test_a_finished_run_whose_metrics_are_lost_keeps_the_machine_of_its_checkpoint(tmp_path):
    settings = {"run_name": "tiny", "runs_dir": str(tmp_path), **TINY}
    pipeline = CIFAR100Pipeline.from_preset("demo", **settings)
    pipeline.train()
    path = tmp_path / "tiny" / "metrics.json"
    trained_on = json.loads(path.read_text())["system"]
    newest = checkpoint.list_steps(pipeline.checkpoint_dir)[0]
    checkpoint.save_atomically(checkpoint.load(newest) | {"machine": trained_on | {"device_name": "Tesla T4"}}, newest)
    path.unlink()
    opened = CIFAR100Pipeline.from_preset("demo", **settings)
    opened.train()
    opened.benchmark_inference((2,))
    opened.evaluate()
    content = json.loads(path.read_text())
    assert (content["system"], content["speeds"]) == (trained_on | {"device_name": "Tesla T4"}, {})


def test_a_share_of_a_training_step_is_that_of_one_batch(tmp_path):
    pipeline = CIFAR100Pipeline.from_preset("demo", runs_dir=str(tmp_path), gradient_accumulation_steps=4, **TINY)
    batch = pipeline.build_trainer().loader.batch_size
    pipeline.speeds["training"] = {"milliseconds": 400.0, "batch_size": 4 * batch}
    profile = pipeline.profile_loader()
    assert profile["percent_of_step"] == pytest.approx(100 * profile["milliseconds"] / 100)


def test_final_checkpoint_is_read_back_to_the_same_results(finished, runs_dir):
    path = runs_dir / "tiny" / "checkpoints" / "final.pt"
    state = torch.load(path, weights_only=True)
    assert {"model_state_dict", "config", "test_results", "model_stats"} <= set(state)
    loaded = CIFAR100Pipeline.from_checkpoint(path, run_name="again", runs_dir=str(runs_dir))
    assert loaded.predict(np.zeros((32, 32, 3), np.uint8))[0][0] in loaded.class_names   # before any data
    assert torch.load(loaded.save(), weights_only=True)["test_results"] == state["test_results"]
    assert loaded.evaluate()["top1"] == finished[1][2]["top1"]


def test_a_step_checkpoint_gives_the_weights_that_its_run_evaluates(finished, runs_dir):
    path = checkpoint.list_steps(runs_dir / "tiny" / "checkpoints")[0]
    state = checkpoint.load(path)
    raw, wanted = state["model_state_dict"], {key: tensor + 1 for key, tensor in state["model_state_dict"].items()}
    for kept in ({"ema": wanted, "best_weights": None}, {"ema": raw, "best_weights": wanted}):
        checkpoint.save_atomically(state | kept, runs_dir / "step.pt")
        loaded = CIFAR100Pipeline.from_checkpoint(runs_dir / "step.pt", run_name="again", runs_dir=str(runs_dir))
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in loaded.model.state_dict().items())


def test_weights_of_the_first_edition_are_used_unless_their_network_is_gone(finished, runs_dir, tmp_path):
    state = checkpoint.load(runs_dir / "tiny" / "checkpoints" / "final.pt")
    path = tmp_path / "final.pt"
    trained_otherwise = state["config"] | {"norm_learning_rate": 0.02, "channels_last": False, "precision": "fp32"}
    checkpoint.save_atomically(state | {"config": trained_otherwise}, path)
    loaded = CIFAR100Pipeline.from_checkpoint(path, runs_dir=str(tmp_path))
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[name].cpu(), tensor) for name, tensor in state["model_state_dict"].items())
    for gone, words in (({"skip": False}, "skip=False: .*tag v1"), ({"model": "FastCNN"}, "model='FastCNN': .*tag v1")):
        checkpoint.save_atomically(state | {"config": state["config"] | gone}, path)
        for load in (CIFAR100Pipeline.from_checkpoint, loaded.load_weights):
            with pytest.raises((CheckpointError, ConfigError), match=words):
                load(path)


def test_no_folder_is_taken_from_a_file(finished, runs_dir, tmp_path):
    """It may be another machine's, or a stranger's choice."""
    state = checkpoint.load(runs_dir / "tiny" / "checkpoints" / "final.pt")
    path = tmp_path / "final.pt"
    folders = dict.fromkeys(("runs_dir", "data_dir", "checkpoint_dir"), str(tmp_path)) | {"resume": str(path)}
    checkpoint.save_atomically(state | {"config": state["config"] | folders}, path)
    ours, default = CIFAR100Pipeline.from_checkpoint(path).config, TrainingConfig()
    assert all(getattr(ours, name) == getattr(default, name) for name in folders)
    assert CIFAR100Pipeline.from_checkpoint(path, data_dir="mine").config.data_dir == "mine"


def test_settings_given_with_a_file_may_have_short_names_and_a_strength_brings_its_own_crop(finished, runs_dir):
    path = runs_dir / "tiny" / "checkpoints" / "final.pt"
    config = CIFAR100Pipeline.from_checkpoint(path, lr=0.05, augmentation="strong").config
    assert (config.learning_rate, config.augmentation_strength, config.cutout_size) == (0.05, "strong", None)
    assert TrainingConfig.from_preset("quick").replace(augmentation="none").crop_padding is None


@pytest.mark.parametrize("part", ["config", "classes", "mean", "std", "note", "name"])
@pytest.mark.parametrize("odd", [3, None, "missing"])
def test_weights_with_a_wrong_part_are_a_checkpoint_error_that_names_it(finished, runs_dir, tmp_path, part, odd):
    state = checkpoint.load(runs_dir / "tiny" / "checkpoints" / "final.pt")
    left = {name: value for name, value in state.items() if name != part}
    checkpoint.save_atomically(left if odd == "missing" else left | {part: odd}, tmp_path / "final.pt")
    if (part, odd) == ("classes", "missing"):       # as in weights of others
        assert CIFAR100Pipeline.from_checkpoint(tmp_path / "final.pt", runs_dir=str(tmp_path)).class_names == ()
        return
    with pytest.raises(CheckpointError, match=rf"final.pt: .*({part}|configuration)"):
        CIFAR100Pipeline.from_checkpoint(tmp_path / "final.pt", runs_dir=str(tmp_path))


# One process, a full disk, kills ---------------------------------------------------------------------------

def test_a_run_in_use_may_be_looked_at_and_not_trained(tmp_path, capsys):
    pipeline = CIFAR100Pipeline.from_preset("demo", run_name="run", runs_dir=str(tmp_path), **TINY)
    code = "import sys; from helpers.locks import claim; claim(sys.argv[1]); print('mine', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code, str(pipeline.run_dir)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert child.stdout.readline() == "mine\n"
        pipeline.preview_schedule()
        assert f"in use by process {child.pid}" in capsys.readouterr().out
        with pytest.raises(OSError, match=f"run is in use by process {child.pid}"):
            pipeline.train()
    finally:
        child.kill()
        child.communicate()
    assert not (pipeline.run_dir / "train.log").exists() and not (pipeline.run_dir / "checkpoints").exists()
    assert pipeline.train().stopped == "" and (pipeline.run_dir / "train.log").exists()


def test_a_finished_run_is_evaluated_whoever_has_its_folder(finished, runs_dir, monkeypatch):
    """Also where nothing can be written, as on a share that others may only read."""
    def read_only(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(locks, "open", read_only, raising=False)
    monkeypatch.setattr(locks, "_claimed", {})
    files = {path: path.read_bytes() for path in (runs_dir / "tiny").glob("*.*")}
    opened = CIFAR100Pipeline.from_preset("demo", run_name="tiny", runs_dir=str(runs_dir), **TINY)
    opened.train()
    assert opened.evaluate()["top1"] == finished[1][2]["top1"]
    assert files == {path: path.read_bytes() for path in files}


def test_a_full_disk_costs_a_finished_training_its_files_and_not_its_numbers(tmp_path, monkeypatch, capsys):
    def full(_number):
        raise OSError(28, "No space left on device")

    settings = {"run_name": "run", "runs_dir": str(tmp_path), **TINY}
    pipeline = CIFAR100Pipeline.from_preset("demo", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError) as failure:
            pipeline.run()
    message, printed = str(failure.value), capsys.readouterr().out
    assert f"top-1 {pipeline.results['top1']:.2f} %" in printed
    for words in ("final.pt: No space left", "metrics.json: No space left", "samples.png: No", "Safe: nothing",
                  checkpoint.step_path(pipeline.checkpoint_dir, pipeline.trainer.step).name):
        assert words in message
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.p??"))
    _, _, results = CIFAR100Pipeline.from_preset("demo", **settings).run()
    assert results["top1"] == pipeline.results["top1"]


def test_the_log_has_one_line_an_epoch_however_often_the_run_was_killed(tmp_path):
    settings = {"run_name": "run", "runs_dir": str(tmp_path), **TINY, "epochs": 3, "checkpoint_interval": 2,
                "train_size": 200}

    def die_in(*epochs):
        def on_epoch(trainer):
            if trainer.epoch in epochs:
                raise KeyboardInterrupt     # before the epoch's checkpoint
        return on_epoch

    for epoch in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            CIFAR100Pipeline.from_preset("demo", **settings).train(on_epoch=die_in(epoch))
    CIFAR100Pipeline.from_preset("demo", **settings).train()
    lines = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert [line.split()[4] for line in lines if " INFO epoch " in line] == ["1/3", "2/3", "3/3"]
    assert sum("training CIFAR100CNN" in line for line in lines) == 4       # nothing else is taken out


def test_looking_around_keeps_loaded_weights_until_training(finished, runs_dir):
    before = (runs_dir / "tiny" / "metrics.json").read_text()
    path = runs_dir / "tiny" / "checkpoints" / "final.pt"
    loaded = CIFAR100Pipeline.from_checkpoint(path, run_name="tiny", runs_dir=str(runs_dir), resume="never")
    model = loaded.model
    loaded.summarise_model()
    loaded.show_augmentation()
    loaded.preview_schedule()
    loaded.benchmark_inference((2,))
    assert loaded.build_model() is model is loaded.model
    assert loaded.evaluate()["top1"] == finished[1][2]["top1"]
    assert (runs_dir / "tiny" / "metrics.json").read_text() == before
    new = CIFAR100Pipeline.from_checkpoint(path, run_name="anew", runs_dir=str(runs_dir))
    new.train()
    assert new.model is not model and new.model is new.trainer.model and len(new.history) == 1


def test_a_finished_run_is_not_trained_again(finished, runs_dir):
    again = CIFAR100Pipeline.from_preset("demo", run_name="tiny", runs_dir=str(runs_dir), **TINY)
    again.train()
    assert again.metrics == finished[1][1]
    assert again.evaluate()["top1"] == finished[1][2]["top1"]


def test_weights_published_for_the_reference_load(tmp_path):
    """A checkpoint of the reference has no classes, and its configuration is not ours."""
    published = CIFAR100CNN()
    path = tmp_path / "reference.pt"
    torch.save({"model_state_dict": published.state_dict(), "config": {"lr": 0.1}, "test_results": {},
                "model_stats": {}}, path)
    pipeline = CIFAR100Pipeline(TrainingConfig(data_source="drawn", runs_dir=str(tmp_path)))
    model = pipeline.load_weights(path)
    assert torch.equal(model.fc.weight.cpu(), published.fc.weight)
    with pytest.raises(CheckpointError, match="load_weights"):
        CIFAR100Pipeline.from_checkpoint(path)
    narrow = CIFAR100Pipeline(TrainingConfig(widths=(8, 16, 16, 16), data_source="drawn", runs_dir=str(tmp_path)))
    with pytest.raises(CheckpointError, match="widths"):
        narrow.load_weights(path)


def test_steps_of_the_notebook_work_in_any_order(runs_dir):
    pipeline = CIFAR100Pipeline.from_preset("demo", run_name="steps", runs_dir=str(runs_dir), **TINY)
    with pytest.raises(RuntimeError, match="train"):
        pipeline.plot_training()
    with pytest.raises(RuntimeError, match="train"):
        pipeline.evaluate()
    pipeline.preview_schedule()
    pipeline.summarise_model()
    pipeline.benchmark_inference((2, 4))
    pipeline.show_augmentation()
    with pytest.raises(RuntimeError, match="train"):
        pipeline.evaluate()
    pipeline.train()
    assert 0 <= pipeline.plot_confusion().axes[0].get_xlim()[1]      # evaluates by itself


def test_looking_around_does_not_change_what_training_gives(finished, runs_dir):
    pipeline = CIFAR100Pipeline.from_preset("demo", run_name="looked", runs_dir=str(runs_dir), **TINY)
    pipeline.show_augmentation()
    pipeline.profile_loader()
    pipeline.benchmark_inference((2,))
    torch.rand(7)
    pipeline.train()
    assert pipeline.metrics["train_loss"] == finished[0].metrics["train_loss"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_any_kind_of_picture_is_predicted(finished, tmp_path, mode):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70), np.uint8))
    path = tmp_path / ("picture.tiff" if mode in ("CMYK", "I;16") else "picture.png")
    picture.convert(mode).save(path)
    predictions = finished[0].predict(path)
    assert len(predictions) == 5 and 0 < sum(share for _, share in predictions) <= 1.001


def test_pictures_are_cropped_turned_upright_and_put_on_white(finished, tmp_path):
    pipeline = finished[0]
    assert pipeline.as_input(Image.new("RGB", (1, 1), "red")).shape == (32, 32, 3)
    assert pipeline.as_input(Image.new("RGBA", (40, 40), (0, 0, 0, 0))).min() == 255
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:32, 32:96] = 255      # the upper half of the central square is white
    exif = Image.Exif()
    exif[0x0112] = 3            # the camera was upside down
    for picture in (wide, wide[..., 0].astype(np.uint16) * 257):
        Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
        seen = pipeline.as_input(tmp_path / "turned.png")
        assert seen[4:12].float().mean() < 5 and seen[20:28].float().mean() > 250
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="broken.png"):
        pipeline.predict(tmp_path / "broken.png")


def test_compare_lists_finished_and_published_runs(finished, runs_dir, tmp_path, capsys):
    figure = finished[0].compare(str(runs_dir / "*"))
    text = capsys.readouterr().out
    assert "tiny (drawn demo data)" in text and "measured" in text and figure.axes
    assert "ResNet-18" not in text      # published results are of CIFAR-100, which the drawn data are not
    content = json.loads((runs_dir / "tiny" / "metrics.json").read_text())
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "metrics.json").write_text(json.dumps(content | {"name": "real", "note": ""}))
    finished[0].compare(str(tmp_path / "*"))
    text = capsys.readouterr().out
    assert "ResNet-18" in text and "published" in text and "drawn" not in text
    (tmp_path / "[ML] ten" / "ten").mkdir(parents=True)
    ten = content | {"name": "ten", "note": "", "config": content["config"] | {"num_classes": 10}}
    (tmp_path / "[ML] ten" / "ten" / "metrics.json").write_text(json.dumps(ten))
    CIFAR100Pipeline.from_preset("demo", runs_dir=str(tmp_path / "[ML] ten")).compare()
    text = capsys.readouterr().out
    assert "ten" in text and "ResNet-18" not in text
    with pytest.raises(RuntimeError, match="no finished run"):
        finished[0].compare(str(runs_dir / "nothing-*"))
    assert CIFAR100Pipeline.from_preset("demo", runs_dir=str(tmp_path / "empty")).compare() is None
    assert "no finished run" in capsys.readouterr().out


def test_an_interrupted_run_leaves_the_test_split_alone_and_goes_on(finished, runs_dir):
    settings = {"runs_dir": str(runs_dir), **TINY, "epochs": 2}
    pipeline = CIFAR100Pipeline.from_preset("demo", run_name="stopped", **settings)
    stop_after_first = {"on_epoch": lambda trainer: trainer.stop()}
    assert pipeline.train(**stop_after_first).stopped == "interrupted"
    assert json.loads((runs_dir / "stopped" / "metrics.json").read_text())["results"] == {}
    assert pipeline.train().stopped == ""
    whole = CIFAR100Pipeline.from_preset("demo", run_name="whole", **settings)
    whole.train()
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, pipeline.model.state_dict()[name]), name


def test_each_of_two_pipelines_writes_to_its_own_log(runs_dir):
    first, second = (CIFAR100Pipeline.from_preset("demo", run_name=name, runs_dir=str(runs_dir), **TINY)
                     for name in ("first", "second"))
    for pipeline in (first, second):
        pipeline.build_trainer()
    first.train()
    assert "run 'first'" in (runs_dir / "first" / "train.log").read_text()
    assert not (runs_dir / "second" / "train.log").exists()


def test_an_interrupted_run_goes_on_after_a_rebuild_that_failed(runs_dir, monkeypatch):
    """As when Google Drive cannot be read for a moment; with resume='never' too it does not start over."""
    settings = {"runs_dir": str(runs_dir), **TINY, "epochs": 2, "resume": "never"}
    pipeline = CIFAR100Pipeline.from_preset("demo", run_name="rebuilt", **settings)
    assert pipeline.train(on_epoch=lambda trainer: trainer.stop()).stopped == "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "load_newest", lambda folder: (_ for _ in ()).throw(checkpoint.ReadError("later")))
        with pytest.raises(checkpoint.ReadError, match="later"):
            pipeline.train()
        patch.setattr(checkpoint, "load_newest", lambda folder: None)       # not mounted: an empty folder
        patch.setattr(cifar100_pipeline, "why_read_only", lambda *folders: OSError("not mounted"))
        with pytest.raises(OSError, match="not mounted"):
            pipeline.train()
    epochs = []
    assert pipeline.train(on_epoch=lambda trainer: epochs.append(trainer.epoch)).stopped == ""
    assert epochs == [2] and len(pipeline.history) == 2


def test_a_path_may_start_at_the_home_folder(finished, runs_dir, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(runs_dir))
    monkeypatch.setenv("USERPROFILE", str(runs_dir))
    loaded = CIFAR100Pipeline.from_checkpoint("~/tiny/checkpoints/final.pt", run_name="home", runs_dir=str(runs_dir))
    loaded.compare("~/tiny")
    assert "tiny" in capsys.readouterr().out
    Image.new("RGB", (32, 32), "red").save(runs_dir / "red.png")
    assert loaded.predict("~/red.png") == loaded.predict(runs_dir / "red.png")
    (runs_dir / "mine.yaml").write_text("preset: demo\nepochs: 7\n")
    assert TrainingConfig.from_file("~/mine.yaml").epochs == 7
    with pytest.raises(CheckpointError, match="~nobody.pt: no such checkpoint"):
        loaded.load_weights("~nobody.pt")


def test_results_do_not_come_from_half_an_evaluation(finished, runs_dir, monkeypatch):
    loaded = CIFAR100Pipeline.from_checkpoint(runs_dir / "tiny" / "checkpoints" / "final.pt", run_name="half",
                                              runs_dir=str(runs_dir))
    with monkeypatch.context() as patch:
        patch.setattr(loaded.network, "logits", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            loaded.evaluate()
    assert loaded.evaluation is None and loaded.evaluate()["top1"] == finished[1][2]["top1"]


def test_train_cifar100_takes_the_short_names(runs_dir, monkeypatch):
    seen = {}
    monkeypatch.setattr(cifar100_pipeline.CIFAR100Pipeline, "run", lambda self: seen.update(config=self.config))
    train_cifar100(epochs=150, batch_size=256, learning_rate=0.1, mixed_precision=True, augmentation="moderate")
    assert seen["config"] == TrainingConfig()
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        train_cifar100(learnin_rate=0.1)


def test_drive_needs_colab(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_dir"):
        CIFAR100Pipeline.from_preset("demo", drive=True, runs_dir=str(tmp_path), **TINY)


@pytest.mark.parametrize("setting", ["data_dir", "runs_dir", "checkpoint_dir"])
def test_on_colab_a_folder_on_drive_mounts_it_before_anything_is_written(setting, tmp_path, monkeypatch):
    mounted = []
    monkeypatch.setattr(cifar100_pipeline, "mount_drive", lambda: mounted.append(True))
    monkeypatch.setattr(system, "DRIVE", tmp_path / "drive")
    folders = {"runs_dir": str(tmp_path / "runs"), setting: str(tmp_path / "drive" / "MyDrive" / "mine")}
    CIFAR100Pipeline.from_preset("demo", **folders, **TINY)
    assert not mounted
    monkeypatch.setattr(system, "host_kind", lambda: "colab")
    CIFAR100Pipeline.from_preset("demo", **folders, **TINY)
    assert mounted


def test_a_long_training_is_announced_with_what_would_be_shorter(tmp_path, capsys, monkeypatch):
    pipeline = CIFAR100Pipeline.from_preset("demo", runs_dir=str(tmp_path), **TINY)
    speed = {"steps_per_second": 1e-3, "images_per_second": 0.1, "batch_size": pipeline.config.batch_size}
    monkeypatch.setattr(cifar100_pipeline.speed, "training_throughput", lambda *args, **keys: dict(speed))
    minutes = pipeline.benchmark_training()["minutes"]
    steps = pipeline.trainer.total_steps
    assert minutes == pytest.approx(steps * 1000 / 60)
    printed = capsys.readouterr().out
    assert f"about {minutes // 60:.0f} h" in printed and "GPU" in printed
    monkeypatch.setattr(cifar100_pipeline.speed, "LONG_MINUTES", 10 * minutes)
    pipeline.benchmark_training()
    assert "GPU" not in capsys.readouterr().out


def test_the_time_estimate_is_of_what_is_left_to_train(tmp_path, capsys):
    pipeline = CIFAR100Pipeline.from_preset("demo", runs_dir=str(tmp_path), **TINY | {"epochs": 2})
    whole = pipeline.build_trainer().total_flops()
    pipeline.train(on_epoch=lambda trainer: trainer.stop())
    assert 0 < pipeline.trainer.flops < whole
    speed = pipeline.benchmark_training(repeats=1)
    assert "what is left of 2 epochs takes about" in capsys.readouterr().out
    steps = pipeline.trainer.total_steps - pipeline.trainer.step
    assert 60 * speed["minutes"] == pytest.approx(speed["milliseconds"] / 1000 * steps)
    pipeline.train()
    assert pipeline.benchmark_training(repeats=1)["minutes"] == 0
    assert "the training of 2 epochs is complete" in capsys.readouterr().out


def test_what_is_allowed_but_hardly_meant_is_said(tmp_path):
    settings, log = {"run_name": "run", "runs_dir": str(tmp_path), **TINY}, tmp_path / "run" / "train.log"
    CIFAR100Pipeline.from_preset("demo", **settings).train()
    assert "WARNING" not in log.read_text()
    CIFAR100Pipeline.from_preset("demo", **settings, resume="never", lr_gamma=0.5).build_trainer()
    assert "lr_gamma has no effect here: it needs lr_scheduler='step'" in log.read_text()
    assert "resume='never': the next checkpoints replace" in log.read_text() and "step_" in log.read_text()


def test_training_again_after_an_error_starts_over_until_there_is_a_checkpoint_of_it(tmp_path):
    settings = {"run_name": "run", "runs_dir": str(tmp_path), "checkpoint_interval": 1, **TINY, "epochs": 2}
    CIFAR100Pipeline.from_preset("demo", **settings).train()        # what resume="never" must not take up
    pipeline = CIFAR100Pipeline.from_preset("demo", resume="never", **settings)
    epochs, to_fail = [], [1, 2]

    def fail_once_in_each(trainer):
        epochs.append(trainer.epoch)
        if trainer.epoch in to_fail:
            to_fail.remove(trainer.epoch)
            raise RuntimeError("not now")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="not now"):
            pipeline.train(on_epoch=fail_once_in_each)
    assert len(pipeline.train(on_epoch=fail_once_in_each)) == 2
    assert epochs == [1, 1, 2, 2]


def test_cells_go_on_after_a_stop_in_the_first_epoch(tmp_path, capsys):
    pipeline = CIFAR100Pipeline.from_preset("demo", runs_dir=str(tmp_path), **TINY)
    pipeline.build_trainer().stop()
    pipeline.train()
    assert pipeline.plot_training() is None and "stopped" in capsys.readouterr().out
    assert 0 <= pipeline.evaluate()["top1"] <= 100


def test_the_usage_examples_of_the_reference_run_as_they_stand(tmp_path, monkeypatch):
    """But for the import lines, and on the demo preset in place of 150 epochs."""
    demo = TrainingConfig.from_preset("demo", run_name="cifar100", runs_dir=str(tmp_path / "runs"), **TINY)
    def of_demo():      # what the import line brings
        return demo

    monkeypatch.setattr(cifar100_pipeline, "TrainingConfig", of_demo)
    monkeypatch.chdir(tmp_path)
    exec("""
# 初始化管線
pipeline = CIFAR100Pipeline()

# 執行訓練
model, metrics, results = pipeline.run()
""", {"CIFAR100Pipeline": CIFAR100Pipeline})
    (tmp_path / "checkpoints").mkdir()
    written = tmp_path / "runs" / "cifar100" / "checkpoints" / "final.pt"
    written.rename(tmp_path / "checkpoints" / "cifar100_final_model.pth")
    Image.new("RGB", (60, 40), "green").save(tmp_path / "image.jpg")
    seen = {"TrainingConfig": of_demo, "CIFAR100CNN": CIFAR100CNN}
    exec("""
import torch

# 載入檢查點
checkpoint = torch.load('checkpoints/cifar100_final_model.pth')

# 初始化模型
config = TrainingConfig()
model = CIFAR100CNN(config)
model.load_state_dict(checkpoint['model_state_dict'])
model.eval()

# 模型已準備好進行推論
print(f"測試準確率: {checkpoint['test_results']['test_acc']:.2f}%")
print(f"Top-5 準確率: {checkpoint['test_results']['test_acc_top5']:.2f}%")

import torch
from torchvision import transforms
from PIL import Image

# 準備圖片
transform = transforms.Compose([
    transforms.Resize((32, 32)),
    transforms.ToTensor(),
    transforms.Normalize((0.5071, 0.4867, 0.4408),
                        (0.2675, 0.2565, 0.2761))
])

# 載入並預處理圖片
image = Image.open('image.jpg')
input_tensor = transform(image).unsqueeze(0)

# 推論
with torch.no_grad():
    output = model(input_tensor)
    probabilities = torch.nn.functional.softmax(output, dim=1)
    top5_prob, top5_idx = torch.topk(probabilities, 5)
""", seen)
    assert seen["checkpoint"]["test_results"]["test_acc"] == seen["checkpoint"]["test_results"]["top1"]
    assert seen["top5_idx"].shape == (1, 5) and seen["probabilities"].shape == (1, 100)
