"""train.py: what is typed becomes the right configuration, or an error that says what to type."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from helpers.checkpoint import CheckpointError
from helpers.config import EVERYDAY, PRESET_DIR, SETTINGS, ConfigError, TrainingConfig
from helpers.data import DataError
from helpers.trainer import TrainingDiverged
from train import build_parser, main, read_arguments

ROOT = Path(__file__).resolve().parent.parent


def read(text: str) -> TrainingConfig:
    return read_arguments(text.split())


def faults_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return caught.value.faults


# What is typed ---------------------------------------------------------------------------------------------

def test_the_command_of_the_requirement():
    made = read(f"--config {PRESET_DIR / 'reference.yaml'} --epochs 30 --batch-size 256 --lr 0.1")
    assert made == TrainingConfig.from_preset("reference", epochs=30, batch_size=256, learning_rate=0.1)


def test_nothing_typed_means_the_default_file():
    assert read("") == TrainingConfig.from_preset("fast")


def test_options_go_before_the_file_and_the_file_before_its_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: demo\nepochs: 7\nlr: 0.3\n")
    made = read(f"--config {path} --learning-rate 0.5")
    assert (made.epochs, made.learning_rate, made.data_source) == (7, 0.5, "drawn")


@pytest.mark.parametrize("option", ["--lr 0.25", "--learning-rate 0.25", "--lr=0.25", "--learning-rate=2.5e-1"])
def test_the_learning_rate_has_two_names(option):
    assert read(f"--preset reference {option}").learning_rate == 0.25


@pytest.mark.parametrize("option, name, value", [
    ("--no-mixed-precision", "mixed_precision", False), ("--mixed-precision", "mixed_precision", True),
    ("--no-download", "download", False), ("--compile", "compile", True),
    ("--no-drive", "drive", False), ("--cutout-size 8", "cutout_size", 8),
    ("--widths 8 16 32 64", "widths", (8, 16, 32, 64)), ("--lr-milestones 3 5", "lr_milestones", (3, 5)),
    ("--lr-milestones 3", "lr_milestones", (3,)), ("--augmentation strong", "augmentation_strength", "strong"),
    ("--augmentation-strength light", "augmentation_strength", "light"),
    ("--scheduler linear", "lr_scheduler", "linear"), ("--weight-decay 1e-3", "weight_decay", 1e-3),
    ("--run-name 7", "run_name", "7"), ("--mixed-precision false", "mixed_precision", False),
    ("--mixed-precision=no", "mixed_precision", False), ("--compile true", "compile", True),
    ("--compile --epochs 3", "compile", True), ("--widths 8,16,32,64", "widths", (8, 16, 32, 64)),
    ("--widths [8,16,32,64]", "widths", (8, 16, 32, 64)), ("--widths [8, 16, 32, 64]", "widths", (8, 16, 32, 64)),
    ("--train-size null", "train_size", None), ("--widths null", "widths", None)])
def test_options_become_settings(option, name, value):
    assert getattr(read(f"--preset reference {option}"), name) == value


def test_every_setting_has_an_option():
    options = {option for action in build_parser()._actions for option in action.option_strings}
    assert {f"--{name.replace('_', '-')}" for name in SETTINGS} <= options


# What is mistyped ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("typed, meant", [
    ("--learnig-rate", "--learning-rate"), ("--learning_rate", "--learning-rate"), ("--epoch", "--epochs"),
    ("--batchsize", "--batch-size"), ("--no-mixed-precison", "--no-mixed-precision"), ("--conifg", "--config")])
def test_a_mistyped_option_is_answered_with_the_nearest(typed, meant):
    for text in (f"{typed} 3", f"{typed}=3"):
        fault, = faults_of(text)
        assert typed in fault and f"did you mean {meant!r}?" in fault


def test_options_are_not_guessed_from_their_beginning():
    """--ep must not silently become --epochs, nor --lr-mile --lr-milestones."""
    assert "unknown option" in faults_of("--ep 3")[0]
    assert "did you mean '--lr-milestones'" in faults_of("--lr-mile 3")[0]


def test_all_faults_of_a_command_and_its_file_come_at_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("epochz: 3\nmomentum: 2\n")
    faults = faults_of(f"--config {path} --batchsize 3 --lr -1 --seed x")
    expected = [("--batchsize", "--batch-size"), ("mine.yaml", "'epochs'"), ("mine.yaml", "momentum"),
                ("learning_rate",), ("seed",)]
    assert len(faults) == len(expected)
    for fault, words in zip(faults, expected):
        assert all(word in fault for word in words)


@pytest.mark.parametrize("text, says", [
    ("--mixed-precision demo", "mixed_precision='demo': must be true or false"),
    ("--no-mixed-precision false", "unexpected 'false'"), ("demo", "unexpected 'demo'"),
    ("--preset dem", "did you mean 'demo'"), ("--epochs 1.5", "whole number"), ("--epochs 0", "at least 1"),
    ("--widths 8 x 8", "whole number"), ("--preset reference --widths 8 16", "give 4"),
    ("--config absent.yaml", "no such file"), ("--lr-scheduler cosin", "did you mean 'cosine'")])
def test_wrong_values_are_explained(text, says):
    assert says in faults_of(text)[0]


# Exit status -----------------------------------------------------------------------------------------------

def run_raises(monkeypatch, error):
    def run(self):
        raise error
    monkeypatch.setattr(train.CIFAR100Pipeline, "run", run)


@pytest.mark.parametrize("error, status", [
    (DataError("no images"), 1), (CheckpointError("another configuration"), 1), (ValueError("val_size=9"), 1),
    (TrainingDiverged("the loss is nan"), 1), (OSError(28, "No space left on device"), 1),
    (KeyboardInterrupt("training was interrupted"), 130)])
def test_an_expected_error_is_one_message_and_a_status(error, status, monkeypatch, capsys):
    run_raises(monkeypatch, error)
    assert main(["--preset", "demo"]) == status
    assert capsys.readouterr().err == f"train.py: {error}\n"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried\nand failed")])
def test_too_little_memory_is_one_line(error, monkeypatch, capsys):
    run_raises(monkeypatch, error)
    assert main(["--preset", "demo"]) == 1
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: out of memory (") and "batch_size" in line


def test_ctrl_c_anywhere_is_said_in_a_word(monkeypatch, capsys):
    run_raises(monkeypatch, KeyboardInterrupt())
    assert main(["--preset", "demo"]) == 130
    assert capsys.readouterr().err == "train.py: interrupted\n"


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    run_raises(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["--preset", "demo"])


@pytest.mark.parametrize("options, status", [("--epochs 0", 2), ("--epoch 3", 2), ("--device cuda:99", 1)])
def test_wrong_settings_and_absent_devices_end_before_anything_is_done(options, status, tmp_path, monkeypatch,
                                                                       capsys):
    monkeypatch.chdir(tmp_path)
    assert main(options.split()) == status
    assert "train.py: " in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_drive_outside_colab_is_a_message(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    assert main(["--preset", "demo", "--drive", "--runs-dir", str(tmp_path), "--progress", "none"]) == 1
    assert "checkpoint_dir" in capsys.readouterr().err


def test_an_option_without_its_value_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--epochs"])
    assert caught.value.code == 2 and "--epochs" in capsys.readouterr().err


# The real thing --------------------------------------------------------------------------------------------

def test_help_shows_what_people_turn_on_one_screen_and_help_all_explains_every_setting(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    for option, names in (("--help", EVERYDAY), ("--help-all", SETTINGS)):
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        words = " ".join(text.split())
        for name, spec in SETTINGS.items():
            option_of = re.compile(f"--{name.replace('_', '-')}[ ,]")
            assert bool(option_of.search(words)) == (name in names)
            assert name not in names or " ".join(spec.metadata["help"].split())[:12] in words
        assert option == "--help-all" or len(text.splitlines()) <= 50


@pytest.mark.parametrize("option", ["--no-flip-equivariant", "--pool-first", "--eval-batch-size 100", "--no-skip"])
def test_an_option_that_is_gone_is_answered_with_the_tag_that_has_it(option):
    assert "no longer a setting" in faults_of(option)[0] and "tag v1 (commit cfbe0af) has it" in faults_of(option)[0]


def test_the_network_that_is_gone_is_answered_with_the_tag_that_has_it():
    assert ["model='FastCNN'" in fault and "tag v1 (commit cfbe0af) has it" in fault
            for fault in faults_of("--model FastCNN")] == [True]


def test_fp32_is_said_as_before():
    for option in ("--precision fp32", "--no-mixed-precision"):
        assert read(option).mixed_precision is False and read(option).precision == "auto"


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
def test_a_run_outlasts_head(tmp_path, npz):
    """And the last words of a run whose standard error nobody reads either are in its log."""
    settings = ("--preset reference --widths 16 16 16 16 --epochs 2 --val-size 3 --batch-size 5 --num-classes 3 "
                "--run-name tiny --progress lines --lr 0.01")
    command = (f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'train.py'))} {settings} --data-dir "
               f"{shlex.quote(str(npz.parent))} 2>&1 | head -n 1")
    subprocess.run(command, shell=True, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    run = tmp_path / "runs" / "tiny"
    assert json.loads((run / "metrics.json").read_text())["results"]["images"] == 6
    assert (run / "checkpoints" / "final.pt").is_file() and "epoch 2/2" in (run / "train.log").read_text()


def test_a_run_from_another_folder_ends_well_and_leaves_its_metrics(tmp_path, npz):
    """On three classes of noise in a prepared .npz, with a preset file of the user's own."""
    (tmp_path / "tiny.yaml").write_text("preset: reference\nwidths: [16, 16, 16, 16]\nepochs: 2\nval_size: 3\n"
                                        "batch_size: 5\nnum_classes: 3\nrun_name: tiny\nprogress: lines\n")
    command = [sys.executable, ROOT / "train.py", "--config", "tiny.yaml", "--data-dir", npz.parent, "--lr", "0.01"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}     # more threads wait for each other on a busy machine
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "runs" / "tiny" / "metrics.json").read_text())
    assert content["config"]["learning_rate"] == 0.01 and len(content["history"]) == 2
    assert content["results"]["images"] == 6
    assert str(Path("runs", "tiny")) in done.stdout.splitlines()[-1]
