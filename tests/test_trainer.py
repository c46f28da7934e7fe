"""trainer: against plain loops; validation, early stopping, errors, divergence, progress, Ctrl-C and SIGTERM."""

import contextlib
import dataclasses
import logging
import math
import os
import signal
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import checkpoint, system
from helpers import trainer as trainer_module
from helpers.data import stratified_split
from helpers.loader import BatchLoader
from helpers.metrics import HISTORY_KEYS
from helpers.models import build_model
from helpers.network import predict
from helpers.trainer import TrainingDiverged
from training import (MUON_RUN, PLAIN, SGD_RUN, assert_close, assert_continues_to_the_same_weights, assert_equal,
                      assert_same_run, at_batch, colour_data, drive_accuracies, linear_model, make_trainer, names_in,
                      run_in_child, steps_in, train_and_signal_oneself, weights_of)


# Learning --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [
    PLAIN, MUON_RUN | {"mixup_alpha": 0, "cutmix_alpha": 0, "start_image_size": 24, "momentum": 0.6}])
def test_learns_a_separable_set(tmp_path, settings):
    epochs_seen = []
    trainer = make_trainer(tmp_path, settings, epochs=12, learning_rate=0.2,
                           on_epoch=lambda trainer: epochs_seen.append(len(trainer.history)))
    history = trainer.fit()
    assert history["train_loss"][-1] < 0.7 * history["train_loss"][0]
    assert history["val_top1"][-1] > 90
    assert history["val_top5"] == [100.0] * 12      # there are only four classes
    assert epochs_seen == history["epoch"] == list(range(1, 13))
    assert set(history.rows[0]) == set(HISTORY_KEYS) and history.stopped == ""
    assert not trainer.model.training


def test_equals_a_plain_loop(tmp_path):
    """Same batches, same rates, torch's own SGD, loss and clipping; then the validation measured by hand."""
    trainer = make_trainer(tmp_path, weight_decay=0.01, gradient_clip=0.5, label_smoothing=0.1)
    torch.manual_seed(trainer.config.seed)
    model = build_model("CIFAR100CNN", 4, PLAIN["widths"], 0.0).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True)
    losses, step = [], 0
    for epoch in range(3):
        for images, labels in trainer.loader.batches(epoch):
            for group in optimizer.param_groups:    # 2 steps of warm-up, half a cosine over the other 13
                group["lr"] = 0.05 * ((step + 1) / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 13)) / 2)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
            step += 1
    history = trainer.fit()
    assert_close(weights_of(trainer.model), weights_of(model), rtol=1e-5, atol=1e-6)
    assert history["train_loss"] == pytest.approx([sum(losses[i:i + 5]) / 5 for i in (0, 5, 10)], rel=1e-5)
    assert history["learning_rate"][-1] == pytest.approx(0.05 * (1 + math.cos(math.pi * 12 / 13)) / 2)

    data = colour_data()
    chosen = stratified_split(data.train_labels, 16, trainer.config.seed)[1]
    logits, labels = model.eval()(normalised(data, chosen)), data.train_labels[chosen]
    assert history["val_loss"][-1] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-3)
    assert history["val_top1"][-1] == 100 * (logits.argmax(1) == labels).float().mean().item()


def normalised(data, chosen):
    """Training images as a network takes them: float [N, 3, H, W]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in data.channel_statistics())
    return (data.train_images[chosen].permute(0, 3, 1, 2) / 255 - mean) / std


def test_without_a_validation_split_the_last_weights_are_kept(tmp_path):
    seen = []
    trainer = make_trainer(tmp_path, val_size=0, patience=2, on_epoch=lambda t: seen.append(weights_of(t.model)))
    assert trainer.fit()["val_top1"] == [None] * 3
    assert_equal(weights_of(trainer.model), seen[-1])


@pytest.mark.parametrize("settings", [PLAIN, MUON_RUN])
def test_averaged_weights_are_what_is_evaluated_and_kept(tmp_path, settings):
    measured = []

    def measure(trainer):
        right = predict(trainer.train_step.average, trainer.val_loader).argmax(1) == trainer.val_labels
        measured.append(100 * right.float().mean().item())

    trainer = make_trainer(tmp_path, settings, ema_decay=0.8, on_epoch=measure)
    history = trainer.fit()
    assert history["val_top1"] == pytest.approx(measured)
    assert_equal(weights_of(trainer.model), weights_of(trainer.train_step.average))


def test_what_is_done_before_fit_does_not_change_the_weights(tmp_path):
    first, second = (make_trainer(tmp_path / name, MUON_RUN, epochs=1) for name in "ab")
    first.fit()
    torch.rand(1000)
    second.fit()
    assert_equal(weights_of(second.model), weights_of(first.model))


@pytest.mark.parametrize("settings", [PLAIN, MUON_RUN])
def test_initial_network_is_a_new_one_as_training_began_with(tmp_path, settings):
    trainer = make_trainer(tmp_path, settings, epochs=1)
    before = weights_of(trainer.model)
    trainer.fit()
    assert_equal(weights_of(trainer.initial_network()), before)
    assert any(not torch.equal(now, before[name]) for name, now in weights_of(trainer.model).items())
    torch.manual_seed(trainer.config.seed)
    drawn = build_model(**trainer.config.model_arguments())
    if settings is not PLAIN:       # the first layer whitens the training images
        drawn.whiten(normalised(trainer.data, stratified_split(trainer.data.train_labels, 16, trainer.config.seed)[0]))
    assert_close(before, weights_of(drawn))


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2}])
def test_planned_flops_are_those_that_training_counts(tmp_path, changes):
    trainer = make_trainer(tmp_path, MUON_RUN, mixup_alpha=0, cutmix_alpha=0, **changes)
    planned = trainer.total_flops()
    trainer.fit()
    assert trainer.flops == planned > 0


@pytest.mark.parametrize("training", [True, False])
def test_predictions_in_evaluation_mode_of_images_and_of_their_mirror_images(tmp_path, training):
    trainer = make_trainer(tmp_path, dropout_rate=0.5)
    model, data = trainer.model.train(training), trainer.data
    loader = BatchLoader(data.train_images[:16], data.train_labels[:16], 7, trainer.device, trainer.mean, trainer.std)
    images = torch.cat([images for images, _ in loader.batches()])      # two batches and a rest
    plain, mirrored = predict(model, loader), predict(model, loader, mirrored=True)
    assert model.training is training
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(plain, model(images))
        torch.testing.assert_close(mirrored, model(images.flip(3)))


def test_validation_that_runs_out_of_memory_goes_on_in_smaller_batches(tmp_path, caplog):
    """And the run keeps its checkpoint."""
    system.say_once.cache_clear()
    trainer, counts = make_trainer(tmp_path / "small", SGD_RUN), []

    def run_out(module, inputs):
        if not module.training and len(inputs[0]) > 1:      # FLOPs are counted with a single image
            counts.append(len(inputs[0]))
            if len(inputs[0]) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trainer.averaged_model.register_forward_pre_hook(run_out)
    with caplog.at_level(logging.WARNING, "cifar100"):
        trainer.fit()
    assert counts[:7] == [16, 8, 4, 4, 8, 4, 4] and caplog.text.count("smaller batches") == 1
    roomy = make_trainer(tmp_path / "roomy", SGD_RUN)
    roomy.fit()
    assert_equal(weights_of(trainer.model), weights_of(roomy.model))
    assert trainer.history["val_top1"] == roomy.history["val_top1"] and steps_in(tmp_path / "small")


# Data and image sizes --------------------------------------------------------------------------------------

def test_image_size_grows_by_8_to_32(tmp_path):
    trainer = make_trainer(tmp_path, epochs=4, start_image_size=16, image_growth_fraction=0.5)
    sizes = []
    trainer.model.register_forward_pre_hook(
        lambda module, inputs: sizes.append(inputs[0].shape[-1]) if module.training else None)
    history = trainer.fit()
    assert sizes == [16] * 5 + [24] * 5 + [32] * 10
    assert history["image_size"] == [16, 24, 32, 32]


@pytest.mark.parametrize("setting, value", [("crop_padding", 2), ("crop_padding", 0), ("cutout_size", 6)])
def test_sizes_of_the_augmentation_are_the_strengths_unless_given(tmp_path, setting, value):
    strong = {"settings": PLAIN | {"augmentation_strength": "strong"}}
    usual, changed = (make_trainer(tmp_path / name, **strong, **change).loader.augmentation
                      for name, change in (("usual", {}), ("changed", {setting: value})))
    assert (usual.crop_padding, usual.cutout_size) == (4, 8)
    assert changed == dataclasses.replace(usual, **{setting: value})


def test_train_size_is_what_is_trained_on(tmp_path):
    all_images, some = make_trainer(tmp_path, val_size=16), make_trainer(tmp_path, val_size=16, train_size=40)
    assert some.loader.count == 40 < all_images.loader.count
    assert torch.equal(some.val_loader.batch(0, 0)[0], all_images.val_loader.batch(0, 0)[0])
    assert some.total_flops() < all_images.total_flops()


# Early stopping --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("accuracies, epochs, best", [
    ([10, 30, 20, 20, 90], 4, 2),                   # two epochs without a better one
    ([10, 20, 20.5, 20.9, 90], 4, 4),               # gains too small to count, yet the best weights are the last
    ([10, 20, 20.5, 21.5, 21.6, 21.4, 90], 6, 5),   # a gain that is large enough after one that is not
    ([50, 50, 50, 90], 3, 1),                       # of equal ones the first
    ([16.1, 17.1, 18.1, 19.1, 20.1, 21.1, 22.1], 7, 7),     # gains of just min_delta, whatever their last digits
    ([10, 20, 30, 40, 50, 40, 40], 7, 5),           # the last epoch ends patience, and the training anyway
    ([10, 20, 30, 40, 50, 60, 70], 7, 7)])          # always better: to the end
def test_patience_and_best_weights(tmp_path, monkeypatch, accuracies, epochs, best):
    drive_accuracies(monkeypatch, accuracies)
    seen = []
    trainer = make_trainer(tmp_path, epochs=7, patience=2, min_delta=0.01, model=linear_model(),
                           on_epoch=lambda trainer: seen.append(weights_of(trainer.model)))
    history = trainer.fit()
    assert len(history) == epochs and history.stopped == ("early" if epochs < 7 else "")
    assert_equal(weights_of(trainer.model), seen[best - 1])
    assert_equal(checkpoint.load(tmp_path / "best.pt")["model_state_dict"], seen[best - 1])


def test_best_weights_are_the_averaged_ones(tmp_path, monkeypatch):
    drive_accuracies(monkeypatch, [10, 30, 20])
    seen = []
    trainer = make_trainer(tmp_path, patience=5, ema_decay=0.9,
                           on_epoch=lambda trainer: seen.append(weights_of(trainer.averaged_model)))
    trainer.fit()
    assert_equal(weights_of(trainer.model), seen[1])


# Errors ----------------------------------------------------------------------------------------------------

def test_after_an_error_only_a_new_trainer_goes_on(tmp_path):
    trainer = make_trainer(tmp_path, checkpoint_interval=1, gradient_accumulation_steps=2)
    loss, losses = trainer.train_step.criterion, []

    def failing(*arguments):
        losses.append(0)
        if len(losses) == 8:        # its gradient is added to that of the seventh batch
            raise RuntimeError("cuDNN is broken")
        return loss(*arguments)

    trainer.train_step.criterion = failing
    with pytest.raises(RuntimeError, match="cuDNN is broken"):
        trainer.fit()
    with pytest.raises(RuntimeError, match="make a new one"):
        trainer.fit()
    again = make_trainer(tmp_path, checkpoint_interval=1, gradient_accumulation_steps=2)
    again.fit()
    whole = make_trainer(tmp_path / "whole", gradient_accumulation_steps=2)
    whole.fit()
    assert_same_run(again, whole)


@pytest.mark.parametrize("read_seconds", [0, 1000])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_its_first_step(tmp_path, monkeypatch, read_seconds, value):
    monkeypatch.setattr(trainer_module, "READ_SECONDS", read_seconds)
    trainer = make_trainer(tmp_path, checkpoint_interval=1, model=linear_model())
    spoiled = []

    def spoil(module, _inputs, logits):
        spoiled.append(module.training)
        return logits * value if sum(spoiled) >= 8 and module.training else logits      # steps 8, 9, 10

    trainer.model.register_forward_hook(spoil)
    with pytest.raises(TrainingDiverged) as failure:
        trainer.fit()
    message = str(failure.value)
    rate = 0.05 * (1 + math.cos(math.pi * 5 / 13)) / 2      # of the eighth step, the sixth after the warm-up
    assert "since step 8 (epoch 2, learning rate " in message and f"{rate:.4g}" in message
    for advice in ("learning_rate", "warmup_epochs", "gradient_clip", "mixed_precision=False", str(tmp_path)):
        assert advice in message
    assert steps_in(tmp_path) == [5]
    for name in names_in(tmp_path):
        weights = checkpoint.load(tmp_path / name)["model_state_dict"]
        assert all(tensor.isfinite().all() for tensor in weights.values())


# Progress --------------------------------------------------------------------------------------------------

def test_progress_within_epochs_is_told_as_it_is(tmp_path, monkeypatch):
    """Called after each step, here, with the means of the epoch so far; and training is as without it."""
    monkeypatch.setattr(trainer_module, "READ_SECONDS", -1.0)
    seen, losses = [], []
    trainer = make_trainer(tmp_path / "told", on_progress=lambda trainer: seen.append(trainer.progress()))
    loss = trainer.train_step.criterion
    trainer.train_step.criterion = lambda *arguments: losses.append(loss(*arguments)) or losses[-1]
    trainer.fit()
    losses = [loss.item() for loss in losses]
    assert [point["epoch"] for point in seen] == pytest.approx([step / 5 for step in range(1, 16)])
    means = [sum(losses[5 * (step // 5):step + 1]) / (step % 5 + 1) for step in range(15)]
    assert [point["train_loss"] for point in seen] == pytest.approx(means)
    assert [point["train_loss"] for point in seen][4::5] == pytest.approx(trainer.history["train_loss"])
    assert [point["train_accuracy"] for point in seen][4::5] == pytest.approx(trainer.history["train_accuracy"])
    assert [point["learning_rate"] for point in seen] == pytest.approx(
        [0.05 * trainer.schedule.learning_rate_factor(step) for step in range(15)])
    assert trainer.progress()["train_loss"] is None         # the last epoch has ended
    plain = make_trainer(tmp_path / "plain")
    plain.fit()
    assert_equal(weights_of(plain.model), weights_of(trainer.model))


# Signals ---------------------------------------------------------------------------------------------------

def test_a_stop_asked_for_in_mid_epoch_is_heard_after_the_next_step(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "READ_SECONDS", -1.0)
    trainer = make_trainer(tmp_path, on_progress=lambda trainer: trainer.step == 7 and trainer.stop())
    assert trainer.fit(show_bar=False).stopped == "interrupted"
    assert trainer.step == 8 and steps_in(tmp_path) == [8] and trainer.stop_requested == "button"


def test_a_stop_with_the_last_step_is_told_to_come_late(tmp_path, caplog):
    trainer = make_trainer(tmp_path, epochs=1)
    at_batch(trainer, 0, len(trainer.loader) - 1, trainer.stop)
    with caplog.at_level(logging.INFO):
        assert trainer.fit().stopped == "" and trainer.is_finished
    assert "came with the last step: the training is complete" in caplog.text


@pytest.mark.parametrize("resume, words", [("auto", "the same settings"), ("never", "resume='auto'")])
def test_a_stopped_trainer_does_not_train_on_and_says_how_to(tmp_path, caplog, resume, words):
    trainer = make_trainer(tmp_path, resume=resume)
    trainer.stop()
    with caplog.at_level(logging.INFO):
        trainer.fit()
    assert f"train again with {words} to continue" in caplog.text
    with pytest.raises(RuntimeError, match="make a new one"):
        trainer.fit()


def test_training_in_a_thread_is_stopped_from_outside(tmp_path):
    """As a notebook's stop button does; signal handlers can be set in the main thread only."""
    trainer = make_trainer(tmp_path, epochs=1000)
    begun = threading.Event()
    at_batch(trainer, 0, 3, begun.set)
    thread = threading.Thread(target=trainer.fit)
    thread.start()
    assert begun.wait(30)
    trainer.stop()
    thread.join(30)
    assert not thread.is_alive() and trainer.history.stopped == "interrupted"
    assert make_trainer(tmp_path, epochs=1000).step == trainer.step


def test_ctrl_c_ends_cleanly_with_a_checkpoint(tmp_path):
    child = run_in_child(train_and_signal_oneself, tmp_path / "run", SGD_RUN, signal.SIGINT)
    assert child.returncode == 0, child.stderr
    assert child.stdout == "fit returned, interrupted\n"
    assert_continues_to_the_same_weights(tmp_path, SGD_RUN, step=7)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_leaves_a_checkpoint_and_then_ends_the_process(tmp_path):
    child = run_in_child(train_and_signal_oneself, tmp_path / "run", MUON_RUN, signal.SIGTERM)
    assert child.returncode == -signal.SIGTERM, child.stderr
    assert "fit returned" not in child.stdout
    assert_continues_to_the_same_weights(tmp_path, MUON_RUN, step=8)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", None)])
def test_a_closed_terminal_and_sigterm_save_however_often_they_come(tmp_path, monkeypatch, number):
    """A terminal sends SIGHUP, and its shell a second one."""
    again = []
    monkeypatch.setattr(trainer_module.signal, "raise_signal", again.append)
    before = signal.getsignal(number)
    trainer = make_trainer(tmp_path)
    for _ in range(3):
        at_batch(trainer, 1, 1, lambda: os.kill(os.getpid(), number))
    assert trainer.fit().stopped == "interrupted"
    assert steps_in(tmp_path) == [7] and again == [number] and signal.getsignal(number) == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("first, second", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_process_told_to_end_ends_whatever_else_comes(tmp_path, monkeypatch, caplog, first, second, at_once):
    again = []
    monkeypatch.setattr(trainer_module.signal, "raise_signal", again.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        trainer = make_trainer(tmp_path)

        def both():
            if at_once:
                signal.pthread_sigmask(signal.SIG_BLOCK, (first, second))
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), second)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (first, second))

        at_batch(trainer, 1, 1, both)
        with caplog.at_level("INFO", "cifar100"):
            assert trainer.fit().stopped == "interrupted"
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps_in(tmp_path) == [7] and again == [signal.SIGTERM]
    assert f"stopped after step 7 of {trainer.total_steps} (SIGTERM)" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM"])
def test_a_signal_that_is_ignored_stays_so(tmp_path, name):
    """As SIGHUP under nohup, and SIGINT in a shell's background."""
    before = signal.signal(getattr(signal, name), signal.SIG_IGN)
    try:
        trainer = make_trainer(tmp_path)
        at_batch(trainer, 1, 1, lambda: os.kill(os.getpid(), getattr(signal, name)))
        assert trainer.fit().stopped == "" and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN
    finally:
        signal.signal(getattr(signal, name), before)


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        trainer = make_trainer(tmp_path)
        at_batch(trainer, 1, 1, lambda: signal.raise_signal(signal.SIGINT))     # to end after this step
        at_batch(trainer, 1, 1, lambda: signal.raise_signal(signal.SIGINT))     # no, now
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        assert trainer.step == 6 and trainer.stop_requested == "SIGINT" and not steps_in(tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_signal_handlers_are_put_back(tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    trainer = make_trainer(tmp_path, epochs=1)
    during = []
    at_batch(trainer, 0, 1, lambda: during.extend(signal.getsignal(number) for number in numbers))
    trainer.fit()
    assert [signal.getsignal(number) for number in numbers] == before
    assert not set(during) & set(before)
    with contextlib.suppress(RuntimeError):     # also when training fails
        failing = make_trainer(tmp_path / "failing", epochs=1)
        failing.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError))
        failing.fit()
    assert [signal.getsignal(number) for number in numbers] == before
