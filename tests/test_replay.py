"""replay: steps recorded once and repeated, by a stand-in for a CUDA graph, against ordinary steps."""

import copy
import gc
import logging
import weakref
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import step as step_module
from helpers.config import TrainingConfig
from helpers.layers.equivariant import FlipConv3x3
from helpers.loader import training_loader
from helpers.models import build_model
from helpers.replay import WARM_UP, ReplayedStep
from helpers.step import TrainStep
from helpers.tools.gpu import operations_of_step
from helpers.trainer import DISTIL_FROM
from training import (DISTILLED_RUN, MUON_RUN, assert_near, assert_same_run, colour_data, in_precision,
                      make_trainer, weights_of)

REPLAYED = {"mixup_alpha": 0, "cutmix_alpha": 0, "learning_rate": 0.02}


class Recording(TorchDispatchMode):
    """Stands in for CUDA graphs: records the operations of some work with their tensors and Python numbers, and repeats
    just these. Unlike CUDA it also executes what it records, so the first replay does nothing."""

    def __init__(self):
        super().__init__()
        self.captures, self.warm_ups, self.calls = 0, 0, None

    def warm_up(self, work):
        self.warm_ups += 1
        return work()

    def __call__(self, work):
        self.captures += 1
        calls = self.calls = []
        with self:
            outputs = self.outputs = work()
        is_first = True

        @torch.no_grad()
        def replay():
            nonlocal is_first
            for operation, arguments, keywords, results in [] if is_first else calls:
                with torch._C._AutoDispatchBelowAutograd():
                    again = operation(*arguments, **keywords)
                if not any(result.alias_info for result in operation._schema.returns):
                    for target, value in zip(tree_leaves(results), tree_leaves(again)):
                        if isinstance(target, torch.Tensor):
                            target.copy_(value)
            is_first = False
        return replay, outputs

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        results = operation(*arguments, **(keywords or {}))
        self.calls.append((operation, arguments, keywords or {}, results))
        return results


def replayed_trainer(folder, settings, capture, **changes):
    """A Trainer whose steps are replayed by `capture`."""
    trainer = make_trainer(folder, settings, **changes)
    former = trainer.train_step
    trainer.train_step = TrainStep(trainer.model, trainer.config, trainer.precision, trainer.loader.labels,
                                   replayable=True)
    if former.count:
        trainer.train_step.load_state_dict(former.state_dict())
    trainer.replayed_step = ReplayedStep(trainer.train_step, trainer.loader, capture)
    return trainer


@pytest.mark.parametrize("settings", [
    MUON_RUN | REPLAYED | {"epochs": 5, "start_image_size": 16},            # 16, 24 and 32 px
    MUON_RUN | REPLAYED | {"gradient_accumulation_steps": 2, "start_image_size": 32, "epochs": 5,
                           "gradient_clip": 1.0},       # an epoch's last step takes one batch
    DISTILLED_RUN | REPLAYED | {"start_image_size": 32, "ema_decay": 0.9, "augmentation_strength": "strong"}])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_replayed_training_ends_like_an_ordinary_one(tmp_path, settings, precision):
    """Learning rates, places of the batches, the average's memory and the loss scale reach the recorded operations."""
    settings = settings | in_precision(precision)
    recording = Recording()
    replayed = replayed_trainer(tmp_path / "replayed", settings, recording)
    ordinary = make_trainer(tmp_path / "ordinary", settings)
    start = weights_of(ordinary.model)
    replayed.fit(), ordinary.fit()
    schedule, config = replayed.schedule, replayed.config
    kinds = Counter((schedule.image_size(step), len(schedule.batches(step)), config.self_distillation > 0 and
                     step >= DISTIL_FROM * schedule.total_steps) for step in range(schedule.total_steps))
    assert recording.captures == sum(steps > WARM_UP for steps in kinds.values()) > 1
    assert recording.warm_ups == sum(min(steps, WARM_UP) for steps in kinds.values())
    # A change of the first weights by a last digit makes up to 0.004 in fp32, 0.11 to 0.24 in fp16.
    assert_near(replayed.model, ordinary.model, start, 0.01 if precision == "fp32" else 0.2)
    loss = 1e-3 if precision == "fp32" else 0.05
    assert replayed.history["train_loss"] == pytest.approx(ordinary.history["train_loss"], rel=loss)
    assert replayed.step == ordinary.step == ordinary.total_steps


def test_a_replayed_run_stopped_in_mid_epoch_ends_in_the_same_weights(tmp_path):
    settings = MUON_RUN | REPLAYED | {"start_image_size": 32, "ema_decay": 0.9}
    whole = replayed_trainer(tmp_path / "whole", settings, Recording())
    whole.fit()
    first = replayed_trainer(tmp_path / "run", settings, Recording())
    step_seven = first.replayed_step

    def stopping(epoch, batches, *arguments, **options):
        if (epoch, batches.start) == (1, 2):
            first.stop()
        return step_seven(epoch, batches, *arguments, **options)

    stopping.release = step_seven.release
    first.replayed_step = stopping
    first.fit()
    assert first.history.stopped == "interrupted" and first.step == 8
    second = replayed_trainer(tmp_path / "run", settings, Recording())
    assert second.began_at == 8
    second.fit()
    assert_same_run(second, whole)


def test_outputs_of_a_step_outlive_the_next_replay(tmp_path):
    trainer = replayed_trainer(tmp_path, MUON_RUN | REPLAYED, Recording())
    found = [trainer.replayed_step(0, range(0, 1), 32) for _ in range(WARM_UP + 4)]
    losses = [loss.item() for loss, _ in found]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("sizes, parts", [((24, 28), (1, 1)), ((28, 28), (1, 2))])
def test_graphs_of_smaller_images_or_fewer_parts_are_freed_before_new_ones_need_memory(tmp_path, sizes, parts):
    recording, alive = Recording(), []
    trainer = replayed_trainer(tmp_path, MUON_RUN | REPLAYED, recording)
    for size, trainer.train_step.parts in zip(sizes, parts):
        for _ in range(WARM_UP + 1):
            trainer.replayed_step(0, range(0, 1), size)
        alive.append(weakref.ref(recording.outputs[0]))
        recording.outputs = recording.calls = None
    gc.collect()
    assert [graph() is not None for graph in alive] == [False, True]


def test_fit_frees_the_graphs_at_its_end(tmp_path):
    recording = Recording()
    trainer = replayed_trainer(tmp_path, MUON_RUN | REPLAYED | {"start_image_size": 32}, recording)
    trainer.fit()
    trainer.replayed_step(0, range(0, 1), 32)
    assert (recording.captures, recording.warm_ups) == (1, WARM_UP + 1)     # warms up anew


# Ordinary steps instead ------------------------------------------------------------------------------------

class Failing(Recording):
    """A capture that fails half-way: gradients are there, and the scaler has begun its step."""

    def __init__(self, error, step):
        super().__init__()
        self.error, self.step = error, step

    def __call__(self, work):
        weights = copy.deepcopy(self.step.state_dict())
        optimizer_step = self.step.optimizer.step

        def fail():
            raise self.error

        self.step.optimizer.step = fail
        try:
            work()
        finally:
            self.step.optimizer.step = optimizer_step
            self.step.model.load_state_dict(weights["model_state_dict"])     # CUDA would not have executed anything


def after(cause: Exception, error: Exception) -> Exception:
    """As the end of a capture raises an error of its own."""
    error.__context__ = cause
    return error


@pytest.mark.parametrize("error, words", [(RuntimeError("operation not permitted\nwhen capturing"), "not permitted"),
                                          (torch.OutOfMemoryError("CUDA out of memory"), "too little memory"),
                                          (after(RuntimeError("a sync"), RuntimeError("invalidated")),
                                           "a sync; then invalidated")])
def test_training_goes_on_without_a_graph_that_cannot_be_captured(tmp_path, caplog, monkeypatch, error, words):
    settings = MUON_RUN | REPLAYED | in_precision("fp16")
    ordinary = make_trainer(tmp_path / "ordinary", settings)
    ordinary.train_step = TrainStep(ordinary.model, ordinary.config, "fp16", replayable=True)
    ordinary.replayed_step = ReplayedStep(ordinary.train_step, ordinary.loader, None)
    ordinary.fit()
    trainer = replayed_trainer(tmp_path / "failing", settings, None)
    trainer.replayed_step = ReplayedStep(trainer.train_step, trainer.loader, Failing(error, trainer.train_step))
    monkeypatch.setattr(step_module, "is_capturing", lambda device: True)       # so that the error comes through
    with caplog.at_level(logging.INFO, "cifar100"):
        trainer.fit()
    assert_same_run(trainer, ordinary)
    assert [record.levelname for record in caplog.records if "CUDA graph" in record.message] == ["WARNING"]
    assert words in trainer.replayed_step.why_eager and "\n" not in trainer.replayed_step.why_eager


@pytest.mark.parametrize("changes, words", [({"compile": True}, "compile"), ({"mixup_alpha": 0.4}, "mixup")])
def test_steps_that_no_graph_can_hold_are_ordinary_and_one_line_says_why(caplog, changes, words):
    config, data = TrainingConfig(**MUON_RUN | REPLAYED | changes), colour_data()
    loader = training_loader(config, data.train_images, data.train_labels, (0.5,) * 3, (0.2,) * 3,
                             device=torch.device("cpu"))
    step = TrainStep(build_model(**config.model_arguments()).train(), config.replace(compile=False))
    step.config = config
    recording = Recording()
    with caplog.at_level(logging.INFO, "cifar100"):
        take = ReplayedStep(step, loader, recording)
    assert words in take.why_eager and take.warm_up == 1
    assert len(caplog.records) == 1 and words in caplog.text
    for _ in range(WARM_UP + 1):
        take(0, range(0, 1), 32)
    assert recording.captures == recording.warm_ups == 0 and step.count == WARM_UP + 1


def test_a_cpu_takes_ordinary_steps_and_says_nothing(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "cifar100"):
        trainer = make_trainer(tmp_path, MUON_RUN)
    assert trainer.replayed_step.why_eager and trainer.replayed_step.warm_up == 1      # MUON_RUN mixes
    assert not [record for record in caplog.records if "graph" in record.message]


def test_after_parts_grew_a_new_graph_is_recorded(tmp_path):
    recording = Recording()
    trainer = replayed_trainer(tmp_path, MUON_RUN | REPLAYED, recording)
    for parts in (1, 2):
        trainer.train_step.parts = parts
        for _ in range(WARM_UP + 2):
            trainer.replayed_step(0, range(0, 1), 32)
    assert recording.captures == 2


# What a graph can hold -------------------------------------------------------------------------------------

class OffDevice(TorchDispatchMode):
    """Notes operations whose tensors are not all on `device`, and reads of values by the host."""

    def __init__(self, device):
        super().__init__()
        self.device, self.found = device, []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        results = operation(*arguments, **(keywords or {}))
        tensors = [leaf for leaf in tree_leaves((arguments, keywords, results)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type != self.device for tensor in tensors) or "_local_scalar_dense" in str(operation):
            self.found.append(str(operation))
        return results


@pytest.mark.parametrize("preset, changes", [
    ("fast", {}), ("quick", {}), ("fast", {"augmentation_strength": "strong"}),
    ("quick", {"augmentation_strength": "strong", "crop_mode": "constant", "gradient_clip": 1.0}),
    ("quick", {"gradient_accumulation_steps": 2, "ema_decay": 0.0})])
def test_nothing_in_a_step_leaves_its_device_or_comes_from_the_host(monkeypatch, preset, changes):
    """torch's "meta" device stands in for a GPU: it has no values that the host could read, and a tensor that Python
    numbers make on the CPU is seen when it meets one of the device."""
    config = TrainingConfig.from_preset(preset, flip="random", widths=(16, 16, 16), batch_size=8, **changes)
    device = torch.device("meta")
    with device:
        model = build_model(**config.model_arguments()).train()
    loader = training_loader(config, torch.zeros(32, 32, 32, 3, dtype=torch.uint8), torch.zeros(32, dtype=torch.long),
                             (0.5,) * 3, (0.2,) * 3, device=device)
    on_cpu = training_loader(config, torch.zeros(32, 32, 32, 3, dtype=torch.uint8), torch.zeros(32, dtype=torch.long),
                             (0.5,) * 3, (0.2,) * 3, device=torch.device("cpu"))
    order, parameters = on_cpu.draw_epoch(0)        # generators know no meta device
    drawn = order.to(device), {name: values.to(device) for name, values in parameters.items()}
    monkeypatch.setattr(loader, "draw_epoch", lambda epoch: drawn)
    monkeypatch.setattr(step_module, "autocast", lambda *_: nullcontext())      # nor does autocast
    step = TrainStep(model, config, labels=loader.labels, replayable=True)
    off_device = OffDevice("meta")

    class Watching(Recording):
        def __call__(self, work):
            with off_device:
                outputs = work()
            return work, outputs

    take = ReplayedStep(step, loader, Watching())
    for _ in range(WARM_UP + 1):
        take(0, range(0, config.gradient_accumulation_steps), 24, distil=True)
    assert not off_device.found


def test_a_tensor_made_from_python_numbers_is_found():
    """The check above sees what it looks for."""
    with OffDevice("meta") as found:
        torch.zeros(3, device="meta") + torch.tensor([1.0, 2.0, 3.0]).to("meta")
    assert found.found


# Few operations --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("preset, by_filters, limit", [
    ("fast", True, 510), ("fast", False, 650), ("quick", True, 510)])
def test_a_step_is_few_operations(monkeypatch, preset, by_filters, limit):
    """Without making its batch, views not counted."""
    if by_filters:      # as a GPU may
        monkeypatch.setattr(FlipConv3x3, "forward", FlipConv3x3.by_filters)
    config = TrainingConfig.from_preset(preset, widths=(80, 96, 112))
    assert operations_of_step(config, 16, batch_size=4)[0] <= limit
