"""Checkpoints of a run: when they are written, and that a run continued from one ends in the same weights."""

import functools
import logging
import math
import shutil
import signal
import sys

import pytest
import torch

from helpers import checkpoint
from helpers import trainer as trainer_module
from helpers.checkpoint import CheckpointError, NotSaved
from helpers.data import ImageData
from helpers.system import DTYPES
from helpers.trainer import TrainingDiverged
from training import (DISTILLED_RUN, MUON_RUN, PLAIN, SGD_RUN, assert_continues_to_the_same_weights, assert_equal,
                      assert_same_run, at_batch, colour_data, drive_accuracies, fit_without_a_break, in_precision,
                      kill_in_mid_save, linear_model, make_trainer, names_in, run_in_child, steps_in, stop_at_batch,
                      train_and_signal_oneself, train_beside_another, weights_of)


# Checkpoints -----------------------------------------------------------------------------------------------

def test_checkpoints_come_at_the_interval_and_at_the_end(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(checkpoint, "save_step", lambda state, folder: steps.append(state["step"]))
    make_trainer(tmp_path, epochs=5, checkpoint_interval=2, model=linear_model()).fit()
    assert steps == [10, 20, 25]


def test_epochs_that_take_no_time_write_files_at_the_end_only(tmp_path, monkeypatch):
    """A GPU trains `fast` in seconds; writing each epoch's files would take as long."""
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", 1000)
    drive_accuracies(monkeypatch, [10.0, 20.0, 30.0, 25.0, 26.0])
    written, save = [], checkpoint.save_atomically
    monkeypatch.setattr(checkpoint, "save_atomically",
                        lambda state, path: written.append(path.name) or save(state, path))
    trainer = make_trainer(tmp_path, epochs=5, checkpoint_interval=1, model=linear_model())
    trainer.fit()
    assert written == ["best.pt", "best.pt", "step_0000025.pt"]     # the first is due at once
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 15 and trainer.best_accuracy == 30


def test_a_best_that_could_not_be_written_follows_with_the_next_checkpoint(tmp_path, monkeypatch, caplog):
    drive_accuracies(monkeypatch, [10.0, 30.0, 20.0, 20.0])
    save, lost = checkpoint.save_atomically, []

    def fail_once(state, path):
        if path.name == "best.pt" and state.get("step") == 10 and not lost:
            lost.append(path)
            raise OSError(5, "Input/output error")
        return save(state, path)

    monkeypatch.setattr(checkpoint, "save_atomically", fail_once)
    make_trainer(tmp_path, epochs=4, checkpoint_interval=1, model=linear_model()).fit()
    assert lost and "could not write" in caplog.text
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 10


def test_two_newest_and_the_best_are_kept(tmp_path):
    make_trainer(tmp_path, epochs=5, checkpoint_interval=1, model=linear_model()).fit()
    assert names_in(tmp_path) == ["best.pt", "step_0000020.pt", "step_0000025.pt"]


def test_a_checkpoint_that_cannot_be_written_is_a_warning_and_the_last_one_an_error(tmp_path, monkeypatch, caplog):
    trainer = make_trainer(tmp_path, checkpoint_interval=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            trainer.fit()
    assert caplog.text.count("could not write to") >= 2 and not names_in(tmp_path)
    assert trainer.is_finished and not trainer.has_saved
    trainer.fit()       # there is space again
    assert make_trainer(tmp_path, checkpoint_interval=1).is_finished


@pytest.mark.parametrize("patience", [0, 3])
@pytest.mark.parametrize("step, epoch, minutes, saved", [
    (5, 1, 0, []), (10, 2, 0, [5]), (15, 3, 0, [5, 10]), (8, 2, 1e-9, [6, 7])])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, patience, step, epoch, minutes, saved):
    """A gradient can overflow in a step whose loss is finite: the last one before a validation or a checkpoint."""
    trainer = make_trainer(tmp_path, checkpoint_interval=1, checkpoint_minutes=minutes, patience=patience,
                           model=linear_model())

    def spoil(*_):
        if trainer.step == step - 1:
            trainer.model[2].weight.grad.fill_(math.inf)

    trainer.train_step.optimizer.register_step_pre_hook(spoil)
    with pytest.raises(TrainingDiverged, match=rf"weights are not finite since step {step} \(epoch {epoch}"):
        trainer.fit()
    assert steps_in(tmp_path) == saved
    if (tmp_path / "best.pt").exists():
        weights = checkpoint.load(tmp_path / "best.pt")["model_state_dict"]
        assert all(tensor.isfinite().all() for tensor in weights.values())


# Resume ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [SGD_RUN, MUON_RUN, DISTILLED_RUN])
def test_a_run_stopped_after_every_step_ends_in_the_same_weights(tmp_path, settings):
    expected = fit_without_a_break(tmp_path / "whole", settings)
    last = expected.total_steps
    for step in range(1, last):
        trainer = make_trainer(tmp_path / "parts", settings)
        trainer.stop()
        assert trainer.fit().stopped == "interrupted" and trainer.step == step
        torch.rand(step)        # somebody else uses the random numbers in between
    trainer = make_trainer(tmp_path / "parts", settings)
    trainer.fit()
    assert_same_run(trainer, expected)
    assert steps_in(tmp_path / "parts") == [last - 1, last]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("settings", [SGD_RUN, MUON_RUN | {"ema_decay": 0.9, "gradient_clip": 1.0, "patience": 10},
                                      DISTILLED_RUN | {"mix_probability": 0}])
def test_a_16_bit_run_stopped_in_mid_epoch_ends_in_the_same_weights(tmp_path, monkeypatch, precision, settings):
    """With a loss scale that is too high at first, so that it moves; the second of two epochs distils."""
    restless = functools.partial(torch.amp.GradScaler, init_scale=2.0**30, growth_interval=2)
    monkeypatch.setattr(torch.amp, "GradScaler", restless)
    monkeypatch.setattr(trainer_module, "DISTIL_FROM", 0.5)
    settings = settings | {"epochs": 2, "lr_milestones": [1], "val_size": 66, "batch_size": 6, "start_image_size": 12,
                           "image_growth_fraction": 1.0, **in_precision(precision)}
    expected = fit_without_a_break(tmp_path / "whole", settings)
    for epoch in (0, 1):
        trainer = make_trainer(tmp_path / "parts", settings)
        stop_at_batch(trainer, epoch, index=2)
        assert trainer.fit().stopped == "interrupted" and trainer.step % trainer.schedule.steps_per_epoch != 0
    trainer = make_trainer(tmp_path / "parts", settings)
    trainer.fit()
    assert_same_run(trainer, expected)
    if precision == "fp16":
        assert trainer.train_step.scaler.get_scale() == expected.train_step.scaler.get_scale() != 2.0**30


def test_a_finished_run_stays_as_it_is(tmp_path):
    expected = fit_without_a_break(tmp_path, SGD_RUN)
    files = {name: (tmp_path / name).stat().st_mtime_ns for name in names_in(tmp_path)}
    again = make_trainer(tmp_path, SGD_RUN)
    assert again.is_finished
    again.fit()
    assert_same_run(again, expected)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in names_in(tmp_path)} == files


def test_resume_from_an_explicit_path(tmp_path):
    expected = fit_without_a_break(tmp_path / "whole", SGD_RUN | {"checkpoint_interval": 1})
    first = tmp_path / "whole" / "step_0000010.pt"
    trainer = make_trainer(tmp_path / "elsewhere", SGD_RUN, resume=str(first))
    assert trainer.step == trainer.began_at == 10 and trainer.epoch == 2
    trainer.fit()
    assert_same_run(trainer, expected)
    with pytest.raises(CheckpointError, match="step_0000099.pt: no such checkpoint"):
        make_trainer(tmp_path, SGD_RUN, resume=str(tmp_path / "step_0000099.pt"))
    with pytest.raises(CheckpointError, match="best.pt: holds weights only"):
        make_trainer(tmp_path, SGD_RUN, resume=str(tmp_path / "whole" / "best.pt"))


def test_resume_from_a_folder_takes_its_newest_readable_checkpoint(tmp_path, caplog):
    fit_without_a_break(tmp_path / "run" / "checkpoints", PLAIN | {"checkpoint_interval": 1})
    newest, _ = checkpoint.list_steps(tmp_path / "run" / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:1000])
    for folder in ("run", "run/checkpoints"):
        assert make_trainer(tmp_path / "new", resume=str(tmp_path / folder)).step == 10
    assert "skipped" in caplog.text
    with pytest.raises(CheckpointError, match="holds no readable step_"):
        make_trainer(tmp_path / "new", resume=str(tmp_path))


def test_another_configuration_is_refused_with_the_fields_named(tmp_path):
    fit_without_a_break(tmp_path, PLAIN | {"epochs": 1})
    with pytest.raises(CheckpointError) as refusal:
        make_trainer(tmp_path, epochs=2, learning_rate=0.2, progress="lines", checkpoint_interval=7)
    message = str(refusal.value)
    assert "epochs: 1 in the checkpoint, 2 now" in message
    assert "learning_rate: 0.05 in the checkpoint, 0.2 now" in message
    assert "progress" not in message and "checkpoint_interval" not in message and "seed" not in message
    assert make_trainer(tmp_path, epochs=1, progress="lines", checkpoint_interval=7).is_finished


def test_other_data_are_refused(tmp_path):
    fit_without_a_break(tmp_path, PLAIN | {"epochs": 1})
    data = colour_data()
    fewer = ImageData(data.train_images[:80], data.train_labels[:80], None, None, data.class_names)
    with pytest.raises(CheckpointError, match="training images: 96 in the checkpoint, 80 now"):
        make_trainer(tmp_path, epochs=1, data=fewer)
    corrected = ImageData(data.train_images, data.train_labels.flip(0), None, None, data.class_names)
    with pytest.raises(CheckpointError, match="fingerprint of the training labels"):
        make_trainer(tmp_path, epochs=1, data=corrected)


def test_a_truncated_newest_checkpoint_is_passed_over_and_reported(tmp_path, caplog):
    expected = fit_without_a_break(tmp_path, SGD_RUN | {"checkpoint_interval": 1})
    newest = tmp_path / "step_0000015.pt"
    newest.write_bytes(newest.read_bytes()[:2000])
    with caplog.at_level(logging.WARNING, "cifar100"):
        trainer = make_trainer(tmp_path, SGD_RUN)
    assert trainer.step == 10 and str(newest) in caplog.text
    trainer.fit()
    assert_same_run(trainer, expected)


def test_resume_never_starts_over_beside_old_files(tmp_path):
    old = fit_without_a_break(tmp_path, PLAIN | {"epochs": 4, "checkpoint_interval": 1})
    trainer = make_trainer(tmp_path, epochs=3, resume="never", checkpoint_interval=1)
    assert trainer.step == 0
    stop_at_batch(trainer, epoch=1, index=2)
    trainer.fit()
    assert old.step == 20 and steps_in(tmp_path) == [5, 8]
    resumed = make_trainer(tmp_path, epochs=3)
    assert resumed.step == 8
    resumed.fit()
    assert_same_run(resumed, fit_without_a_break(tmp_path / "whole", PLAIN))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigkill_in_mid_epoch_costs_no_weight_a_bit(tmp_path):
    child = run_in_child(train_and_signal_oneself, tmp_path / "run", SGD_RUN | {"checkpoint_minutes": 1e-9},
                         signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert_continues_to_the_same_weights(tmp_path, SGD_RUN, step=6)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigkill_in_the_middle_of_a_checkpoint_costs_only_that_one(tmp_path):
    child = run_in_child(kill_in_mid_save, tmp_path / "run", MUON_RUN | {"checkpoint_minutes": 1e-9})
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert [name for name in names_in(tmp_path / "run") if name.endswith(".tmp")] != []
    assert_continues_to_the_same_weights(tmp_path, MUON_RUN, step=7)


# What is in the file ---------------------------------------------------------------------------------------

def test_a_part_that_is_missing_or_of_another_type_is_named(tmp_path):
    """Or the run goes on, where nobody needs the part."""
    settings = PLAIN | {"ema_decay": 0.9, "patience": 9, "self_distillation": 0.4} | in_precision("fp16")
    take_one_step(tmp_path, settings)
    path, state = checkpoint.load_newest(tmp_path)
    unread = {"config", "classes", "mean", "std", "note", "scheduler", "epoch", "device", "name", "machine"}
    for name in set(state) - unread - {"model_state_dict"}:     # `load` looks at these weights
        without = {other: value for other, value in state.items() if other != name}
        odd = [without | {name: value} for value in ("x", torch.zeros(3), *([] if name == "best_weights" else [None]))]
        for content in odd if name == "random_stream" else [without, *odd]:
            checkpoint.save_atomically(content, path)
            with pytest.raises(CheckpointError, match=f"{path.name}: (lacks )?(its part '{name}'|holds weights only)"):
                make_trainer(tmp_path, settings)
    for name in unread:
        checkpoint.save_atomically({other: value for other, value in state.items() if other != name}, path)
        assert make_trainer(tmp_path, settings).step == 1


@pytest.mark.parametrize("inside", [
    ("model_state_dict", "conv1.weight"), ("ema", "bn1.running_mean"), ("optimizer", "state", 0, "momentum_buffer"),
    ("optimizer", "state", 3), ("optimizer", "state"), ("rng", "cpu"), ("running", "count"), ("history", 0, "seconds"),
    ("best_weights", "fc.weight")])
def test_a_wrong_value_deep_inside_names_its_part(tmp_path, inside):
    trainer = make_trainer(tmp_path, SGD_RUN)
    stop_at_batch(trainer, epoch=1, index=1)
    trainer.fit()
    path, state = checkpoint.load_newest(tmp_path)
    for value in ("x", torch.zeros(3, 1)) if inside[1:] != ("state", 3) else ("x", {}):
        functools.reduce(lambda part, name: part[name], inside[:-1], state)[inside[-1]] = value
        checkpoint.save_atomically(state, path)
        with pytest.raises(CheckpointError, match=f"{path.name}: its part {inside[0]!r}"):
            make_trainer(tmp_path, SGD_RUN)


# Two processes, and a full disk ----------------------------------------------------------------------------

@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_second_process_is_refused_while_the_first_trains(tmp_path):
    child = run_in_child(train_beside_another, tmp_path / "run", SGD_RUN)
    assert child.returncode == 0, child.stderr
    assert "refused: " in child.stdout and "is in use by process" in child.stdout


def test_a_folder_deleted_during_the_training_is_noticed(tmp_path, caplog):
    folder = tmp_path / "run"
    trainer = make_trainer(folder, checkpoint_interval=1)
    at_batch(trainer, 1, 2, lambda: shutil.rmtree(folder))
    with caplog.at_level(logging.WARNING, "cifar100"):
        trainer.fit()
    assert "run was deleted or taken over" in caplog.text and steps_in(folder) == [10, 15]


@pytest.mark.parametrize("settings", [SGD_RUN | {"checkpoint_interval": 1}, MUON_RUN | {"ema_decay": 0.9}])
def test_a_full_disk_at_the_end_says_what_is_safe_and_the_weights_are_ready(tmp_path, monkeypatch, settings):
    expected = fit_without_a_break(tmp_path / "whole", settings)
    trainer, save = make_trainer(tmp_path / "run", settings), checkpoint.save_step

    def full_at_the_end(state, folder):
        if state["step"] == trainer.total_steps:
            raise OSError(28, "No space left on device")
        return save(state, folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_step", full_at_the_end)
        with pytest.raises(NotSaved) as failure:
            trainer.fit()
    message = str(failure.value)
    last = checkpoint.step_path(tmp_path / "run", trainer.step)
    for words in (f"{last} could not be written: No space left", "Not kept",
                  "Safe: " + ("step_" if settings["checkpoint_interval"] == 1 else "best.pt")):
        assert words in message
    assert_same_run(trainer, expected)
    trainer.fit()           # there is space again
    again = make_trainer(tmp_path / "run", settings)
    assert again.is_finished
    again.fit()
    assert_same_run(again, expected)
    final, whole = (checkpoint.load_newest(tmp_path / name)[1]["model_state_dict"] for name in ("run", "whole"))
    assert_equal(final, whole)


# Early stopping --------------------------------------------------------------------------------------------

def patient_trainer(folder):
    return make_trainer(folder, epochs=7, patience=2, model=linear_model())


def test_an_early_stop_stays_one_after_resume(tmp_path, monkeypatch):
    drive_accuracies(monkeypatch, [10, 30, 20, 20, 90])
    first = patient_trainer(tmp_path)
    first.fit()
    second = patient_trainer(tmp_path)
    history = second.fit()
    assert second.is_finished and history.stopped == "early" and len(history) == 4
    assert_equal(weights_of(second.model), weights_of(first.model))


def test_patience_goes_on_counting_after_resume(tmp_path, monkeypatch):
    drive_accuracies(monkeypatch, [10, 30, 20, 20, 90])
    stop_in_epoch_4 = patient_trainer(tmp_path)
    stop_at_batch(stop_in_epoch_4, epoch=3, index=1)
    assert stop_in_epoch_4.fit().stopped == "interrupted"
    assert patient_trainer(tmp_path).fit().stopped == "early"


def test_an_interruption_in_the_epoch_that_ends_early_does_not_undo_the_early_stop(tmp_path, monkeypatch):
    drive_accuracies(monkeypatch, [10, 30, 20, 20, 90])
    trainer = patient_trainer(tmp_path)
    stop_at_batch(trainer, epoch=3, index=4)        # the last batch of the fourth epoch
    trainer.fit()
    assert patient_trainer(tmp_path).fit()["val_top1"] == [10, 30, 20, 20]


# Checkpoints of earlier versions ---------------------------------------------------------------------------

def take_one_step(folder, settings=PLAIN):
    trainer = make_trainer(folder, settings)
    trainer.stop()
    trainer.fit()


def edit_checkpoint(folder, training_settings=None, without=(), **entries):
    """Change entries of the newest checkpoint, and of its training settings."""
    path, state = checkpoint.load_newest(folder)
    settings = state["training_settings"] | (training_settings or {})
    kept = {name: value for name, value in settings.items() if name not in without}
    checkpoint.save_atomically(state | {"training_settings": kept} | entries, path)


def test_a_checkpoint_from_before_a_setting_was_introduced_is_continued(tmp_path):
    take_one_step(tmp_path)
    edit_checkpoint(tmp_path, without=["mix_probability"])
    assert make_trainer(tmp_path).step == 1
    with pytest.raises(CheckpointError, match="mix_probability: 1.0 in the checkpoint, 0.5 now"):
        make_trainer(tmp_path, mix_probability=0.5)


# What the training settings of the first edition held besides, at the values that are in effect today.
RETIRED_SETTINGS = {
    "whitening": True, "pool_first": False, "skip": True, "norm_scale": False, "input_skip": False,
    "mean_features": False, "flip_equivariant": False, "decay_norm_and_bias": True, "norm_learning_rate": 0.05,
    "head_learning_rate": 0.5, "head_momentum": 0.85, "self_distillation_from": 0.75, "mix_until": 1.0,
    "channels_last": True}


@pytest.mark.parametrize("settings, held", [
    (PLAIN, RETIRED_SETTINGS), (PLAIN, {"mixed_precision": True, "precision": "fp32"}),
    (MUON_RUN, {"pooling": "max_blur"})])
def test_a_run_of_the_first_edition_ends_in_the_same_weights(tmp_path, settings, held):
    settings = settings | {"epochs": 1}
    take_one_step(tmp_path / "parts", settings)
    edit_checkpoint(tmp_path / "parts", held)
    trainer = make_trainer(tmp_path / "parts", settings)
    assert trainer.began_at == 1
    trainer.fit()
    assert_same_run(trainer, fit_without_a_break(tmp_path / "whole", settings))
    saved = checkpoint.load_newest(tmp_path / "parts")[1]["training_settings"]
    assert not set(saved) & set(RETIRED_SETTINGS)


def test_a_run_of_the_first_edition_is_compared_in_todays_names(tmp_path):
    take_one_step(tmp_path, PLAIN)
    edit_checkpoint(tmp_path, {"flip_equivariant": False, "mixed_precision": True, "precision": "fp32"})
    with pytest.raises(CheckpointError) as refusal:
        make_trainer(tmp_path, MUON_RUN, mixed_precision=True)
    message = str(refusal.value)
    assert "model: 'CIFAR100CNN' in the checkpoint, 'FlipCNN' now" in message
    assert "mixed_precision: False in the checkpoint, True now" in message
    assert "equivariant" not in message and "\n  - precision" not in message


def test_a_run_of_the_first_edition_goes_on_with_other_batches_and_says_so(tmp_path, caplog):
    take_one_step(tmp_path, MUON_RUN)
    newest = checkpoint.list_steps(tmp_path)[0]
    state = checkpoint.load(newest)
    del state["random_stream"]
    checkpoint.save_atomically(state, newest)
    with caplog.at_level(logging.WARNING, "cifar100"):
        trainer = make_trainer(tmp_path, MUON_RUN)
    assert trainer.began_at == 1 and "draws its batches differently" in caplog.text


@pytest.mark.parametrize("gone, words", [({"model": "FastCNN", "pool_first": True}, "pool_first=True: .*tag v1 "),
                                         ({"model": "FastCNN"}, "model='FastCNN': .*tag v1 "),
                                         ({"pooling": "max", "flip_equivariant": True}, "pooling='max': .*commit ")])
def test_a_run_with_a_setting_that_is_gone_is_refused_with_the_version_that_has_it(tmp_path, gone, words):
    take_one_step(tmp_path, MUON_RUN)
    edit_checkpoint(tmp_path, RETIRED_SETTINGS | gone)
    with pytest.raises(CheckpointError, match=f"{words}.* has it.*another run_name") as refusal:
        make_trainer(tmp_path, MUON_RUN)
    assert "whitening" not in str(refusal.value)
    assert make_trainer(tmp_path, MUON_RUN, resume="never").step == 0


# Another machine -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("began_in, here, goes_on_in", [
    ("bf16", "fp16", "fp16"),       # from an A100 to a T4, which has no bf16
    ("fp16", "bf16", "fp16"), ("bf16", "bf16", "bf16")])
def test_a_run_goes_on_in_its_precision_where_the_gpu_has_it(began_in, here, goes_on_in, tmp_path, monkeypatch):
    """Told by the images that the loader is to make, before anything is put on a GPU that is perhaps not there."""
    take_one_step(tmp_path)
    edit_checkpoint(tmp_path, precision=began_in, device="cuda")
    monkeypatch.setattr(trainer_module, "pick_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(trainer_module, "pick_precision", lambda *_: here)
    asked = []

    def loader(*_, dtype, **options):
        asked.append(dtype)
        raise InterruptedError

    monkeypatch.setattr(trainer_module, "training_loader", loader)
    with pytest.raises(InterruptedError):
        make_trainer(tmp_path)
    assert asked == [DTYPES[goes_on_in]]


@pytest.mark.parametrize("began_on, goes_on_in, warning", [
    ("cpu", "bf16", "began in bf16 and stays in it"), ("cuda", "fp32", "another device (cuda) and goes on in fp32")])
def test_only_a_run_from_another_device_chooses_its_precision_anew(began_on, goes_on_in, warning, tmp_path,
                                                                   monkeypatch, caplog):
    take_one_step(tmp_path, PLAIN | {"epochs": 1})
    edit_checkpoint(tmp_path, precision="bf16", device=began_on)
    monkeypatch.setattr(trainer_module, "pick_precision", lambda *_: "fp32")
    trainer = make_trainer(tmp_path, epochs=1)
    assert trainer.precision == trainer.train_step.precision == goes_on_in and warning in caplog.text
    trainer.fit()
    assert trainer.is_finished and checkpoint.load_newest(tmp_path)[1]["precision"] == goes_on_in
