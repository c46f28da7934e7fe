"""Trainer: the training loop with validation, early stopping, checkpoints, resume and a clean stop."""

from __future__ import annotations

import logging
import math
import signal
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from . import checkpoint
from .checkpoint import CheckpointError, NotSaved, part, take
from .config import TrainingConfig
from .data import ImageData, stratified_split
from .loader import RANDOM_STREAM, BatchLoader, training_loader
from .locks import FolderInUse, claim
from .logs import epoch_log
from .metrics import HISTORY_KEYS, History, RunningMeans, topk_accuracy
from .models import build_model, training_flops
from .network import EVALUATION_BATCH, predict
from .replay import ReplayedStep
from .retired import refusals, without_retired
from .schedule import Schedule
from .signals import ENDING, StopOnSignals
from .step import TrainStep
from .system import (DTYPES, SystemInfo, keep_freed_memory, make_current, memory_format, peak_memory_mb, pick_device,
                     pick_precision, progress_style, rng_state, set_rng_state, synchronize)
from .text import epoch_line

log = logging.getLogger("cifar100")

READ_SECONDS = 2.0      # how often losses are read back from the device
SAVE_SECONDS = 10.0     # between files written at the ends of epochs: a GPU trains an epoch again in less than a second
DISTIL_FROM = 0.75      # share of the epochs after which self-distillation starts
_NUMBER = (int, float)
# Attributes of the Trainer that a checkpoint holds under their names.
_PLAIN_STATE = {"seconds": _NUMBER, "flops": _NUMBER, "best_accuracy": _NUMBER, "patience_accuracy": _NUMBER,
                "patience_left": int}


class TrainingDiverged(RuntimeError):
    """The loss or a weight is no longer finite. The message says since which step, and what to try."""


class Trainer:
    """Trains a network as `config` says.

    After `fit`, `model` holds the weights to evaluate: with `patience`, those of the best epoch on the validation
    split, else the last ones; averaged with `ema_decay`.

    Args:
        data: the images; the test split is not used.
        checkpoint_dir: where checkpoints are written and found.
        model: a network to train instead of the one `config` names.
        on_epoch: called as `on_epoch(trainer)` after each epoch, for a live view.
        on_progress: called as `on_progress(trainer)` about every READ_SECONDS, when losses were read from the device.

    Raises CheckpointError when the checkpoint to resume is unreadable or of another configuration.
    """

    def __init__(self, config: TrainingConfig, data: ImageData, checkpoint_dir, model: nn.Module | None = None,
                 on_epoch=None, on_progress=None):
        self.config, self.data, self.checkpoint_dir = config, data, Path(checkpoint_dir)
        self.on_epoch, self.on_progress = on_epoch, on_progress
        self.device = pick_device(config.device)
        torch.backends.cudnn.benchmark = True       # few shapes, many steps: search for the fastest kernels
        keep_freed_memory()
        self._identity = data.identity()
        path, saved = self._find_checkpoint() or ("", None)
        self.precision = self._pick_precision(saved, path)
        self.mean, self.std = data.channel_statistics()
        self._rows, val = stratified_split(data.train_labels, config.val_size, config.seed, config.train_size)
        to_device = {"device": self.device, "mean": self.mean, "std": self.std, "dtype": DTYPES[self.precision]}
        self.loader = training_loader(config, data.train_images[self._rows], data.train_labels[self._rows], **to_device)
        self.val_labels = data.train_labels[val]
        self.val_loader = (BatchLoader(data.train_images[val], self.val_labels, EVALUATION_BATCH, **to_device)
                           if len(val) else None)
        self.schedule = Schedule(config, self.loader.count)
        self.model = self.initial_network(model)
        self.train_step = TrainStep(self.model, config, self.precision, self.loader.labels)
        self.replayed_step = ReplayedStep(self.train_step, self.loader)

        self.history = History()
        self.seconds = 0.0                      # wall time of earlier sessions
        self.flops = 0                          # of all forward and backward passes so far
        self.best_accuracy, self.best_weights = -math.inf, None
        self.patience_accuracy = -math.inf      # to beat by min_delta
        self.patience_left = config.patience
        self.has_saved = False                  # has this Trainer written a checkpoint to continue from?
        self._is_unsaved = False                # are there steps since then?
        self._unwritten_best, self._last_best = None, -math.inf
        self._weights_to_save = None            # the last step's, when writing them failed
        self.stop_requested = ""                # "SIGINT", "SIGTERM", "SIGHUP" or "button"
        self._to_continue = "the same settings" if config.resume == "auto" else "resume='auto'"
        self._session_start = self._last_save = self._epoch_start = time.perf_counter()
        self._epoch_images, self._flops_at = 0, {}
        self.running = RunningMeans()
        self._rng = rng_state(self.device)      # so that nothing done before `fit` changes dropout's draws
        self.machine = SystemInfo.of(self.device, self.precision).to_dict()
        if saved:
            self._restore(saved, path)
        self.began_at = self.step               # this Trainer's first step

    def initial_network(self, model: nn.Module | None = None) -> nn.Module:
        """A new network, or `model`, as at the start of this training: the same seed gives the same weights."""
        torch.manual_seed(self.config.seed)
        model = build_model(**self.config.model_arguments()) if model is None else model
        model.to(self.device, memory_format=memory_format(self.device))
        if hasattr(model, "whiten"):        # with about 5,000 evenly spaced training images
            images = self.data.train_images[self._rows[::max(1, len(self._rows) // 5000)]]
            loader = BatchLoader(images, torch.zeros(len(images)), len(images), self.device, self.mean, self.std)
            model.whiten(loader.batch(0, 0)[0])
        return model

    # The loop --------------------------------------------------------------------------------------------------

    def fit(self, show_bar: bool = True) -> History:
        """Train to the last epoch, an early stop, or Ctrl-C, SIGTERM, SIGHUP or `stop()`; then save and return.

        `history.stopped` says which. A finished run does not change; an interrupted or failed one needs a new Trainer,
        which continues from its checkpoint. Raises TrainingDiverged when the loss is no longer finite; the last good
        checkpoint stays. Failure to write a checkpoint is a warning, for the last one NotSaved: `model` is ready all
        the same, and `fit` tries again. Raises FolderInUse if another process has `checkpoint_dir`. After SIGTERM and
        SIGHUP, saves and then raises the signal again. `show_bar=False` omits the progress bar.
        """
        if self.history.stopped == "interrupted":
            raise RuntimeError("this Trainer was interrupted; make a new one to continue from its checkpoint")
        if not self.is_finished:
            claim(self.checkpoint_dir)
            self._session_start = self._last_save = time.perf_counter()
            set_rng_state(self._rng, self.device)
            make_current(self.device)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            show_bar = show_bar and progress_style(self.config.progress) == "bar"
            with StopOnSignals(self.stop), tqdm(total=self.total_steps, initial=self.step, unit="step", mininterval=0.5,
                                                dynamic_ncols=True, disable=not show_bar) as bar:
                try:
                    while not self.is_finished and self.history.stopped != "interrupted":
                        self._run_epoch(bar)
                except BaseException:       # perhaps within a step, which cannot be continued
                    self.history.stopped = "interrupted"
                    raise
                finally:
                    self.replayed_step.release()
                    self._write_best()
                self._save_and_use_weights()
        else:
            self._save_and_use_weights()
        if self.history.stopped == "interrupted":
            log.info("stopped after step %d of %d (%s); train again with %s to continue from %s", self.step,
                     self.total_steps, self.stop_requested, self._to_continue, self.checkpoint_dir)
        elif self.stop_requested:
            log.info("%s came with the last step: the training is complete", self.stop_requested)
        if self.stop_requested in ENDING:
            signal.raise_signal(signal.Signals[self.stop_requested])
        return self.history

    def _save_and_use_weights(self) -> None:
        """Save what is not saved yet; then, or if that fails, put the weights to evaluate into `model`."""
        if self._weights_to_save is not None:
            self.model.load_state_dict(self._weights_to_save)
        try:
            if self._is_unsaved:
                self.save()
        except OSError as error:
            self._weights_to_save = _copy_of(self.model.state_dict())
            path = checkpoint.step_path(self.checkpoint_dir, self.step)
            raise NotSaved(f"{path} could not be written: {error.strerror or error}. Not kept: what was trained since "
                           f"the last checkpoint. Safe: {checkpoint.safe_files(self.checkpoint_dir)}. Make space and "
                           f"train with {self._to_continue} to continue from there") from error
        finally:
            self.model.load_state_dict(self.best_weights or _copy_of(self.averaged_model.state_dict()))
            self.model.eval()

    def stop(self, who: str = "button") -> None:
        """Ask the loop to save and end after the running step. Safe from a signal or a thread."""
        self.stop_requested = who

    def _run_epoch(self, bar) -> None:
        """Run the rest of the current epoch."""
        self.model.train()
        epoch, epoch_end = self.epoch, (self.epoch + 1) * self.schedule.steps_per_epoch
        self._epoch_start, self._epoch_images = time.perf_counter(), 0
        last_read = self._epoch_start
        while self.step < epoch_end:
            self._take_step(epoch)
            bar.update(1)
            now = time.perf_counter()
            stopping = bool(self.stop_requested)        # read once: a signal may come at any time
            save_is_due = 0 < 60 * self.config.checkpoint_minutes < now - self._last_save
            if now - last_read > READ_SECONDS or save_is_due or stopping or self.step == epoch_end:
                last_read = now
                self._read_losses(bar, epoch)
                if self.on_progress is not None:
                    self.on_progress(self)
            if stopping and self.step < self.total_steps:
                self.history.stopped = "interrupted"
                if self.step < epoch_end:
                    return
            elif save_is_due and self.step < epoch_end:
                self._save_or_warn(self.save)
        self._end_epoch(epoch)

    def _take_step(self, epoch: int) -> None:
        size, batches = self.schedule.image_size(self.step), self.schedule.batches(self.step)
        distil = self.config.self_distillation > 0 and epoch >= DISTIL_FROM * self.config.epochs
        loss, correct = self.replayed_step(epoch, batches, size, self.schedule.learning_rate_factor(self.step), distil)
        count = len(batches) * self.loader.batch_size
        self.running.add(loss, correct, count)
        self.flops += count * self._flops_of_image(size)
        self._epoch_images += count
        self._is_unsaved = True

    def _read_losses(self, bar, epoch: int) -> None:
        """Wait for the device, check that the losses since the last call are finite, update the progress bar."""
        losses = self.running.read()
        bad = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None:
            raise self._diverged(f"loss is {losses[bad]}", self.step - len(losses) + bad)
        bar.set_description_str(f"epoch {epoch + 1}/{self.config.epochs}", refresh=False)
        validation = "" if self.best_accuracy < 0 else (f"validation {self.history['val_top1'][-1]:.1f} % (best "
                                                        f"{self.best_accuracy:.1f} %), ")
        bar.set_postfix_str(f"loss {self.running.loss:.3f}, accuracy {self.running.accuracy:.1f} %, {validation}"
                            f"{self._images_per_second():,.0f} images/s", refresh=False)

    def _check_weights(self) -> None:
        """Raise TrainingDiverged for weights that are not finite, which a step with a finite loss may still cause."""
        if not torch.stack([tensor.isfinite().all() for tensor in self.model.state_dict().values()]).all():
            raise self._diverged("weights are not finite", self.step - 1)

    def _diverged(self, what: str, step: int) -> TrainingDiverged:
        """The error for a run that diverged at optimiser step `step`, from 0."""
        steps = checkpoint.list_steps(self.checkpoint_dir)
        return TrainingDiverged(
            f"the {what} since step {step + 1} (epoch {step // self.schedule.steps_per_epoch + 1}, learning rate "
            f"{self.schedule.learning_rate(step):.4g}). Try a lower learning_rate (now {self.config.learning_rate}), a "
            "longer warmup_epochs, gradient_clip=1.0 or mixed_precision=False, with another run_name to start over. "
            + (f"The last good checkpoint is {steps[0]}." if steps else "There is no checkpoint yet."))

    def _end_epoch(self, epoch: int) -> None:
        """Validate, write the epoch's row, keep the best weights, save when due."""
        synchronize(self.device)
        self._check_weights()
        row = {"epoch": epoch + 1, "train_loss": self.running.loss, "train_accuracy": self.running.accuracy,
               "val_loss": None, "val_top1": None, "val_top5": None,
               "learning_rate": self.schedule.learning_rate(self.step - 1),
               "image_size": self.schedule.image_size(self.step - 1), "images_per_second": self._images_per_second(),
               "petaflops": self.flops / 1e15}
        if self.val_loader is not None:
            logits = predict(self.averaged_model, self.val_loader, self.precision)
            loss = cross_entropy(logits, self.val_labels).item()
            row |= {"val_loss": loss if math.isfinite(loss) else None,      # a logit may have overflowed in fp16
                    "val_top1": topk_accuracy(logits, self.val_labels, 1),
                    "val_top5": topk_accuracy(logits, self.val_labels, 5)}
        row |= {"seconds": self._seconds_so_far(), "peak_memory_mb": peak_memory_mb(self.device)}
        self.history.append(**row)
        self.running = RunningMeans()
        self._keep_the_best(row["val_top1"])
        epoch_log.info(epoch_line(row, self.config.epochs))
        if self.on_epoch is not None:
            self.on_epoch(self)
        save_is_due = (self.epoch % self.config.checkpoint_interval == 0
                       and time.perf_counter() - self._last_save >= SAVE_SECONDS)
        if save_is_due and self.step < self.total_steps and not self.history.stopped:     # else `fit` saves
            self._save_or_warn(self.save)

    def _keep_the_best(self, accuracy: float | None) -> None:
        """Keep the weights of each new best validation accuracy for best.pt. With `patience`, also keep them for the
        end, and stop after that many epochs without a better one."""
        if accuracy is None:
            return
        if accuracy > self.best_accuracy:
            self.best_accuracy = accuracy
            weights = _copy_of(self.averaged_model.state_dict())
            self.best_weights = weights if self.config.patience else None
            self._unwritten_best = {"model_state_dict": weights, **self.about()}
            if time.perf_counter() - self._last_best >= SAVE_SECONDS:
                self._write_best()
        if not self.config.patience:
            return
        if accuracy > self.patience_accuracy + max(0, 100 * self.config.min_delta - 1e-9):      # or rounding decides
            self.patience_accuracy, self.patience_left = accuracy, self.config.patience
        else:
            self.patience_left -= 1
            if self.patience_left <= 0 and self.step < self.total_steps:
                self.history.stopped = "early"      # even if somebody stopped the run in this epoch, which is complete

    # Checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write a checkpoint that continues to the same weights; raise TrainingDiverged if they are not finite."""
        self._last_save = time.perf_counter()
        self._check_weights()
        claim(self.checkpoint_dir)
        path = checkpoint.save_step({
            **self.train_step.state_dict(), "scheduler": {"step": self.step, "total_steps": self.total_steps},
            "epoch": self.epoch, "history": self.history.to_list(), "stopped": self.history.stopped,
            "running": self.running.state(), "rng": rng_state(self.device), "best_weights": self.best_weights,
            "precision": self.precision, "device": self.device.type, "machine": self.machine,
            "training_settings": self._training_settings(), "random_stream": RANDOM_STREAM, **self.about(),
            **{name: getattr(self, name) for name in _PLAIN_STATE}, "seconds": self._seconds_so_far(),
        }, self.checkpoint_dir)
        self._write_best()
        self.has_saved, self._is_unsaved = True, False
        return path

    def _write_best(self) -> None:
        """Write best.pt, if there is a better one than it holds."""
        if self._unwritten_best is not None:
            self._last_best = time.perf_counter()
            path = self.checkpoint_dir / checkpoint.BEST
            if self._save_or_warn(lambda: checkpoint.save_atomically(self._unwritten_best, path)):
                self._unwritten_best = None

    def _save_or_warn(self, save) -> Path | None:
        """What `save` returns, or None: a moment's failure of Google Drive or a full disk must not end the training."""
        try:
            claim(self.checkpoint_dir)
            return save()
        except FolderInUse:
            raise
        except OSError as error:
            log.warning("could not write to %s: %s. Training goes on; the next checkpoint follows as planned.",
                        self.checkpoint_dir, error)

    def about(self) -> dict:
        """The metadata that make weights usable on their own."""
        return {"config": self.config.to_dict(), "name": self.config.name, "step": self.step,
                "classes": list(self.data.class_names), "mean": list(self.mean), "std": list(self.std),
                "note": self.data.note}

    def _find_checkpoint(self) -> tuple[Path, dict] | None:
        """The checkpoint that `resume` selects, checked against this configuration."""
        resume = self.config.resume
        found = (None if resume == "never" else checkpoint.load_newest(self.checkpoint_dir) if resume == "auto"
                 else checkpoint.load_at(resume))
        if found is None:
            return None
        path, state = found
        if "training_settings" not in state:
            raise CheckpointError(f"{path}: holds weights only and cannot be continued; use a step_*.pt file")
        with part(path, "training_settings"):
            ours, saved = self._training_settings(), state["training_settings"]
            _, gone = without_retired(saved)
            if gone:
                raise CheckpointError(f"{path} cannot be continued: {'; '.join(refusals(gone))}. Choose another "
                                      "run_name, or resume='never' to start over")
            saved = ours | saved | TrainingConfig.training_settings_of(saved)
            checkpoint.check_same_run({name: saved[name] for name in ours}, ours, path, state.get("name"))
        return path, state

    def _training_settings(self) -> dict:
        return self.config.training_settings() | self._identity

    def _pick_precision(self, saved: dict | None, path) -> str:
        """The precision the run began in, for the same weights; a new choice on another kind of device, or on an older
        GPU without bf16."""
        precision = pick_precision(self.device, self.config.mixed_precision, self.config.precision)
        with part(path, "precision"):
            if saved is None or DTYPES[saved["precision"]] == DTYPES[precision]:
                return precision
        take(saved, "device", str, path)
        older_gpu = self.device.type == "cuda" and (saved["precision"], precision) == ("bf16", "fp16")
        if saved["device"] == self.device.type and not older_gpu:
            if self.device.type == "cpu":       # on a GPU bf16 and fp16 are equally fast
                log.warning("the run began in %s and stays in it, for the same weights, though %s is faster here",
                            saved["precision"], precision)
            return saved["precision"]
        log.warning("the run began in %s on another device (%s) and goes on in %s on this one (%s): close, but not bit "
                    "for bit the same weights", saved["precision"], saved["device"], precision, self.device.type)
        return precision

    def _restore(self, saved: dict, path) -> None:
        """Continue from the state `saved` of the checkpoint `path`. Raises CheckpointError."""
        if take(saved, "best_weights", (None, dict), path) is not None:
            with part(path, "best_weights"):
                self.model.load_state_dict(saved["best_weights"])       # do they fit?
                self.best_weights = _copy_of(self.model.state_dict())
        self.train_step.load_state_dict(saved, path)
        with part(path, "history"):
            rows = take(saved, "history", [dict], path)
            self.history = History([{name: row[name] for name in HISTORY_KEYS} for row in rows])
            if len(rows) != self.epoch:
                raise ValueError(f"has {len(rows)} epochs, and the weights {self.epoch}")
        with part(path, "stopped"):
            self.history.stopped = {"": "", "interrupted": "", "early": "early"}[saved["stopped"]]
        with part(path, "running"):
            self.running = RunningMeans(**take(saved, "running", {str: _NUMBER}, path))
        for name, kind in _PLAIN_STATE.items():
            setattr(self, name, take(saved, name, kind, path))
        with part(path, "rng"):
            set_rng_state(take(saved, "rng", {str: torch.Tensor}, path), self.device)
            self._rng = rng_state(self.device)
        if self.is_finished:            # perhaps on another machine
            self.machine = take({"machine": self.machine} | saved, "machine", dict, path)
        else:
            log.info("continuing from %s, step %d", path, self.step)
            if take({"random_stream": 1} | saved, "random_stream", int, path) != RANDOM_STREAM:
                log.warning("this run began in a version that draws its batches differently: it continues with other "
                            "batches than it would have had there")

    # Numbers ---------------------------------------------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        """Did training reach its last epoch or an early stop?"""
        return self.step >= self.total_steps or self.history.stopped == "early"

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // self.schedule.steps_per_epoch

    def progress(self) -> dict:
        """The state of the running epoch as last read from the device: `epoch` is a fraction, from 0; `train_loss` and
        `train_accuracy` (%) are means so far, None at the start."""
        loss, accuracy = (self.running.loss, self.running.accuracy) if self.running.count else (None, None)
        return {"epoch": self.step / self.schedule.steps_per_epoch, "train_loss": loss, "train_accuracy": accuracy,
                "learning_rate": self.schedule.learning_rate(max(self.step - 1, 0)),
                "images_per_second": self._images_per_second()}

    @property
    def averaged_model(self) -> nn.Module:
        """The network with averaged weights, or the trained one without an average."""
        return self.model if self.train_step.average is None else self.train_step.average

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.train_step.count

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.schedule.total_steps

    def total_flops(self) -> int:
        """FLOPs of the whole training, forward and backward."""
        return self.schedule.total_flops(self._flops_of_image)

    def _flops_of_image(self, size: int) -> int:
        if size not in self._flops_at:
            self._flops_at[size] = training_flops(self.model, size)
        return self._flops_at[size]

    def _images_per_second(self) -> float:
        return self._epoch_images / max(time.perf_counter() - self._epoch_start, 1e-9)

    def _seconds_so_far(self) -> float:
        return self.seconds + time.perf_counter() - self._session_start


def _copy_of(weights: dict) -> dict:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
