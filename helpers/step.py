"""TrainStep: one optimiser step, shared by trainings, benchmarks and the learning-rate range test."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .checkpoint import part, take
from .config import TrainingConfig
from .optim import build_optimizer, set_learning_rate
from .system import DTYPES, autocast, free_cache, is_capturing, is_out_of_memory, rng_state, set_rng_state

log = logging.getLogger("cifar100")


class TrainStep:
    """Forward and backward passes, gradient accumulation, clipping, optimiser, loss scaling and weight average.

        step = TrainStep(model.train(), config, "bf16")
        loss, correct = step([loader.batch(epoch, index)])

    After an out-of-memory error the batches pass through the network in smaller parts; the step stays the same, and the
    attempt leaves no trace.

    Args:
        model: the network, on its device and in the caller's mode.
        config: the settings of optimiser, loss and average.
        precision: of the forward pass: "fp32", "bf16" or "fp16".
        labels: int64 [N] of all training images on the device; for `self_distillation` only.
        replayable: keep all that changes from step to step in tensors, so that a CUDA graph of `on_device` stays right;
            by default on CUDA only, since on a CPU plain numbers round otherwise.

    Attributes: `model`, `average` (the network with averaged weights; None without `ema_decay`), `optimizer`, `scaler`,
    `criterion`, `parts` (of each batch), and `count` (of steps done).
    """

    def __init__(self, model: nn.Module, config: TrainingConfig, precision: str = "fp32",
                 labels: Tensor | None = None, replayable: bool | None = None):
        self.model, self.config, self.precision = model, config, precision
        self.device = next(model.parameters()).device
        self.average = copy.deepcopy(model) if config.ema_decay else None
        self.optimizer = build_optimizer(model, config.optimizer, config.learning_rate, config.momentum,
                                         config.weight_decay, newton_schulz_dtype=DTYPES[precision])
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.forward = torch.compile(model) if config.compile else model
        self.parts, self.count = 1, 0
        self._past = self._smoothed(labels) if config.self_distillation and labels is not None else None
        kept = model.state_dict().keys()
        statistics = [buffer for name, buffer in model.named_buffers() if name in kept]
        # By type, which one kernel copies together: the statistics and their copies.
        self._statistics = [([buffer for buffer in statistics if buffer.dtype == dtype],
                             [buffer.clone() for buffer in statistics if buffer.dtype == dtype])
                            for dtype in {buffer.dtype for buffer in statistics}]
        self._decay: float | Tensor = 0.0
        if replayable or (replayable is None and self.device.type == "cuda"):
            self._decay = torch.zeros((), device=self.device)
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=self.device)

    def __call__(self, batches: Sequence[tuple[Tensor, Tensor]], factor: float = 1.0,
                 rows: Sequence[Tensor] | None = None, distil: bool = False) -> tuple[Tensor, Tensor]:
        """Do one step over `batches`; return the mean loss and the number of right predictions, on the device.

        batches: images [B, 3, H, W] with labels int64 [B], or float [B, num_classes] of mixed images; factor: of the
        peak learning rates; rows: the training images in each batch, int64 [B], for self-distillation, whose targets
        `distil` uses. Raises the device's out-of-memory error when a single image does not fit.
        """
        self.set_rates(factor)
        result = self.on_device(batches, rows, distil)
        self.count += 1
        return result

    def set_rates(self, factor: float) -> None:
        """Set what differs from the step before: the learning rates, and how much the average forgets."""
        set_learning_rate(self.optimizer, factor)
        # A short memory at first (as in TensorFlow), so that a short training forgets its first weights.
        decay = min(self.config.ema_decay, self.count / (self.count + 10))
        if isinstance(self._decay, Tensor):
            self._decay.fill_(decay)
        else:
            self._decay = decay

    def on_device(self, batches: Sequence[tuple[Tensor, Tensor]], rows: Sequence[Tensor] | None = None,
                  distil: bool = False) -> tuple[Tensor, Tensor]:
        """The part of a step that a CUDA graph can replay, between `set_rates` and the count of steps."""
        rows = [None] * len(batches) if rows is None else rows
        undo = None if is_capturing(self.device) else self._undoing()       # a capture that fails is not repeated
        while (result := self._forward_backward(batches, rows, distil)) is None:
            undo()
            self._cut_batches()
        if self.config.gradient_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            update_average(self.average, self.model, self._decay)
        return result

    def _forward_backward(self, batches, rows, distil: bool) -> tuple[Tensor, Tensor] | None:
        """Compute gradients of the mean loss over all images; return as `__call__`, or None when out of memory."""
        count = sum(len(images) for images, _ in batches)
        loss_sum, correct = torch.zeros((2,), device=self.device)
        predictions = []
        try:
            for (images, labels), chosen in zip(batches, rows):
                chosen = itertools.repeat(None) if chosen is None else chosen.chunk(self.parts)
                for part, targets, which in zip(images.chunk(self.parts), labels.chunk(self.parts), chosen):
                    with autocast(self.device, self.precision):
                        logits = self.forward(part)
                    loss = self._loss(logits.float(), targets, which if distil else None) * (len(part) / count)
                    self.scaler.scale(loss).backward()
                    loss_sum = loss_sum + loss.detach()
                    hard_targets = targets if targets.ndim == 1 else targets.argmax(1)
                    correct = correct + (logits.argmax(1) == hard_targets).sum()
                    if self._past is not None and which is not None and targets.ndim == 1:
                        predictions.append((which, logits.detach()))
        except RuntimeError as error:
            smallest = self.parts >= max(len(images) for images, _ in batches)
            if not is_out_of_memory(error) or smallest or is_capturing(self.device):
                raise
            return None
        for which, logits in predictions:       # not before: a step that runs out of memory is repeated
            self._past[which] = logits.float().softmax(1).half()
        return loss_sum, correct

    def _loss(self, logits: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
        """Mean loss of a batch; with `rows`, a share of the target is the network's prediction an epoch earlier."""
        loss = self.criterion(logits, targets)
        if self._past is None or rows is None or targets.ndim == 2:
            return loss
        return torch.lerp(loss, cross_entropy(logits, self._past[rows].float()), self.config.self_distillation)

    def _smoothed(self, labels: Tensor) -> Tensor:
        """Smoothed labels, in place of predictions until there are some: float16 [N, num_classes]."""
        classes, smoothing = self.config.num_classes, self.config.label_smoothing
        targets = torch.full((len(labels), classes), smoothing / classes, dtype=torch.float16, device=self.device)
        return targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / classes)

    def _undoing(self) -> Callable[[], None]:
        """A function that puts back what a forward pass moves: running statistics, and the generators of dropout."""
        for statistics, copies in self._statistics:
            torch._foreach_copy_(copies, statistics)
        generators = rng_state(self.device)

        def undo() -> None:
            for statistics, copies in self._statistics:
                torch._foreach_copy_(statistics, copies)
            set_rng_state(generators, self.device)
        return undo

    def _cut_batches(self) -> None:
        """After an out-of-memory error: halve the images per forward pass, not per step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.parts *= 2
        free_cache(self.device)
        log.warning("out of memory: a batch of %d images now goes through the network in %d parts; the effective "
                    "batch stays %d", self.config.batch_size, self.parts, self.config.effective_batch_size)

    def abandon(self) -> None:
        """Forget a step that failed half-way, for example the capture of one, so that the next is not affected."""
        self.optimizer.zero_grad(set_to_none=True)
        for name in ("grad_scale", "found_inf"):        # left by the scaler
            self.optimizer.__dict__.pop(name, None)
        if self.scaler.is_enabled():
            fresh = torch.amp.GradScaler(self.device.type)
            fresh.load_state_dict(self.scaler.state_dict())
            self.scaler = fresh

    def state_dict(self) -> dict:
        """All that the next step depends on, except torch's random state."""
        return {"model_state_dict": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(), "ema": None if self.average is None else self.average.state_dict(),
                "past_predictions": self._past, "splits": self.parts, "step": self.count}

    def load_state_dict(self, saved: dict, path="the saved state") -> None:
        """Restore a `state_dict`, perhaps from another device. Makes new tensors: graphs captured before are stale.
        Raises CheckpointError naming the part that does not fit; messages call the whole `path`."""
        for name, module in (("model_state_dict", self.model), ("ema", self.average)):
            if module is not None:
                with part(path, name):
                    module.load_state_dict(saved[name])
        with part(path, "optimizer"):
            self._take_momentum(take(saved, "optimizer", {str: (dict, list)}, path)["state"])
        if take(saved, "scaler", {str: (int, float)}, path) and self.scaler.is_enabled():
            with part(path, "scaler"):
                self.scaler.load_state_dict(saved["scaler"])
        if self._past is not None:
            past = take(saved, "past_predictions", Tensor, path)
            with part(path, "past_predictions"):
                if past.shape != self._past.shape:
                    raise ValueError(f"has the shape {list(past.shape)}, not {list(self._past.shape)}")
                self._past = past.to(self._past)
        self.parts, self.count = (take(saved, name, int, path) for name in ("splits", "step"))

    def _take_momentum(self, saved: dict) -> None:
        """Take the momentum in an optimiser's state, in this device's layout. All else there follows from settings."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if not any(group["momentum"] for group in self.optimizer.param_groups):
            return
        for index, parameter in enumerate(parameters):
            momentum = saved[index]["momentum_buffer"]
            if momentum.shape != parameter.shape:
                raise ValueError(f"parameter {index} has the shape {list(parameter.shape)}, its momentum "
                                 f"{list(momentum.shape)}")
            self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float | Tensor) -> None:
    """average ← decay · average + (1 - decay) · model, for weights and running statistics; copy counters. torch's
    AveragedModel does the same, but its step counter makes each step wait for the device."""
    pairs = list(zip(average.state_dict().values(), model.state_dict().values()))
    ours, theirs = zip(*[pair for pair in pairs if pair[0].is_floating_point()])
    if isinstance(decay, Tensor):
        torch._foreach_add_(ours, torch._foreach_mul(torch._foreach_sub(theirs, ours), 1 - decay))
    else:
        torch._foreach_lerp_(ours, theirs, 1 - decay)
    counters = [pair for pair in pairs if not pair[0].is_floating_point()]
    if counters:
        torch._foreach_copy_(*map(list, zip(*counters)))
