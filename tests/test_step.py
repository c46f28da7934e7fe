"""step: one optimiser step against plain ones; accumulation, clipping, precision, average, distillation, memory."""

import copy
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import trainer as trainer_module
from helpers.config import TrainingConfig
from helpers.models import build_model
from helpers.optim import build_optimizer
from helpers.step import TrainStep
from training import (DISTILLED_RUN, MUON_RUN, PLAIN, assert_close, assert_equal, colour_data, in_precision,
                      linear_model, make_trainer, weights_of)

DATA = colour_data()
IMAGES, LABELS = DATA.train_images.permute(0, 3, 1, 2) / 128 - 1, DATA.train_labels


def make_step(model=None, precision="fp32", labels=None, settings=PLAIN, **changes):
    return TrainStep((model or linear_model()).train(), TrainingConfig(**settings | changes), precision, labels)


def take(step, *sizes, count=3, **options):
    """Do `count` steps over batches of these sizes, through the images in turn; loss and right predictions of each."""
    results = []
    for number in range(count):
        rows = (torch.arange(sum(sizes)) + number * sum(sizes)) % len(LABELS)
        loss, correct = step([(IMAGES[part], LABELS[part]) for part in rows.split(sizes)], rows=rows.split(sizes),
                             **options)
        results.append((loss.item(), correct.item()))
    return results


# Accumulation, clipping, precision -------------------------------------------------------------------------

@pytest.mark.parametrize("sizes", [(20, 20), (8, 8, 8, 8, 8), (30, 8, 2)])
def test_accumulation_gives_the_step_of_one_big_batch(sizes):
    whole, parts = make_step(), make_step()
    expected, found = take(whole, 40), take(parts, *sizes)
    assert_close(weights_of(parts.model), weights_of(whole.model))
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected])
    assert [correct for _, correct in found] == [correct for _, correct in expected]
    assert parts.count == whole.count == 3


def test_last_step_of_an_epoch_takes_the_batches_that_are_left(tmp_path):
    trainer = make_trainer(tmp_path, model=linear_model(), epochs=1, gradient_accumulation_steps=3, gradient_clip=0,
                           warmup_epochs=0, lr_scheduler="linear", momentum=0.0, weight_decay=0.0)
    model = linear_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batches = list(trainer.loader.batches(0))
    for part, factor in ((batches[:3], 1.0), (batches[3:], 0.5)):
        images, labels = torch.cat([images for images, _ in part]), torch.cat([labels for _, labels in part])
        optimizer.param_groups[0]["lr"] = 0.05 * factor
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
        optimizer.step()
    trainer.fit()
    assert trainer.step == trainer.total_steps == 2
    assert_close(weights_of(trainer.model), weights_of(model))


def test_mixed_images_count_as_the_label_with_the_larger_share():
    step, targets = make_step(), torch.lerp(F.one_hot(LABELS, 4).float(), F.one_hot(LABELS.flip(0), 4).float(), 0.3)
    logits = step.model(IMAGES)
    loss, correct = step([(IMAGES, targets)])
    smooth = 0.9 * targets + 0.1 / 4
    assert loss.item() == pytest.approx(-(smooth * logits.log_softmax(1)).sum(1).mean().item())
    assert correct.item() == (logits.argmax(1) == LABELS).sum().item()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_gradients_are_clipped_after_they_are_unscaled(precision, optimizer):
    """Without momentum and decay a step is as long as rate × gradient_clip, whatever the loss scale."""
    step = make_step(precision=precision, optimizer=optimizer, gradient_clip=0.01)
    step.optimizer = build_optimizer(step.model, optimizer, 0.05, momentum=0.0, weight_decay=0.0, head_momentum=0.0,
                                     head_learning_rate=0.05, norm_learning_rate=0.05)
    for factor in (1.0, 0.8, 0.6):
        before = weights_of(step.model)
        take(step, 16, count=1, factor=factor)
        length = math.sqrt(sum((weights - before[name]).square().sum().item()
                               for name, weights in weights_of(step.model).items()))
        assert length == pytest.approx(0.05 * factor * 0.01, rel=0.01)


@pytest.mark.parametrize("precision, dtype", [
    ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("settings", [PLAIN, MUON_RUN])
def test_network_runs_in_the_asked_precision(tmp_path, precision, dtype, settings):
    """In training and in validation, on images that the loader makes in it."""
    trainer = make_trainer(tmp_path, settings, epochs=1, batch_size=5, val_size=81, start_image_size=12,
                           **in_precision(precision))
    seen = set()
    trainer.model.register_forward_hook(        # the FLOPs are counted with a single image, in fp32
        lambda _module, inputs, output: seen.update({inputs[0].dtype, output.dtype} if len(inputs[0]) > 1 else ()))
    history = trainer.fit()
    assert seen == {dtype}
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert all(math.isfinite(loss) for loss in history["train_loss"] + history["val_loss"])
    assert trainer.train_step.scaler.is_enabled() == (precision == "fp16")


def test_loss_scaling_skips_steps_that_overflow_and_goes_on():
    step, seen = make_step(precision="fp16"), []

    def spoil(gradient):
        seen.append(0)
        return gradient * (math.inf if len(seen) == 3 else 1)

    step.model[2].weight.register_hook(spoil)
    losses, weights = [], [weights_of(step.model)]
    for _ in range(15):
        losses += take(step, 96, count=1)
        weights.append(weights_of(step.model))
    skipped = [torch.equal(before["4.weight"], after["4.weight"]) for before, after in zip(weights, weights[1:])]
    assert skipped == [False, False, True] + [False] * 12
    assert step.scaler.get_scale() == 2.0**15 and step.count == 15
    assert losses[-1] < losses[0]


# The host waits for the device as rarely as it can ---------------------------------------------------------

@pytest.mark.parametrize("settings", [
    PLAIN,
    PLAIN | {"mixed_precision": True, "precision": "bf16", "augmentation_strength": "strong", "ema_decay": 0.9},
    MUON_RUN | {"mixup_alpha": 0, "cutmix_alpha": 0, "mixed_precision": True, "precision": "fp16",
                "gradient_clip": 1.0, "start_image_size": 12, "image_growth_fraction": 1.0}])
def test_reads_from_the_device_do_not_grow_with_the_steps(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(trainer_module, "READ_SECONDS", 1000)
    few, many = (count_reads(make_trainer(tmp_path / str(batch_size), settings, batch_size=batch_size, epochs=1),
                             monkeypatch) for batch_size in (40, 5))
    assert many == few


def count_reads(trainer, monkeypatch):
    """How often `fit` asks a tensor for its value in Python."""
    reads = []
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
            method = getattr(torch.Tensor, name)
            patch.setattr(torch.Tensor, name, lambda self, *args, name=name, method=method, **kwargs:
                          reads.append(name) or method(self, *args, **kwargs))
        patch.setattr(trainer, "save", lambda: None)
        trainer.fit()
    return len(reads)


# Average ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [PLAIN, MUON_RUN])
def test_average_is_the_written_out_one(settings):
    config = TrainingConfig(**settings)
    step = make_step(build_model(**config.model_arguments()), settings=settings, ema_decay=0.3)
    average = {}
    for number in range(8):
        take(step, 16, count=1)
        decay = min(0.3, number / (number + 10))        # reached by the sixth step
        for name, tensor in weights_of(step.model).items():
            if not tensor.is_floating_point() or name not in average:
                average[name] = tensor
            else:
                average[name] = decay * average[name] + (1 - decay) * tensor
    assert_close(weights_of(step.average), average, rtol=1e-4, atol=1e-6)
    assert make_step().average is None


# Self-distillation -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2}])
def test_self_distillation_adds_what_the_network_said_of_an_image_an_epoch_before(tmp_path, changes):
    trainer = make_trainer(tmp_path, DISTILLED_RUN, label_smoothing=0.2, **changes)
    past, losses, batches = {}, [], len(trainer.loader)
    assert trainer_module.DISTIL_FROM == 0.75

    def write_out(model, inputs, logits):
        if not model.training:
            return
        epoch, index = divmod(len(losses), batches)
        rows = trainer.loader.indices(epoch, index).tolist()
        _, labels = trainer.loader.batch(epoch, index, inputs[0].shape[-1])
        target = 0.8 * (labels if labels.ndim == 2 else F.one_hot(labels, 4)) + 0.2 / 4
        if labels.ndim == 1:                            # not mixed
            if epoch == 3:                              # the last of four, the first after three quarters of them
                before = torch.stack([past.get(row, own) for row, own in zip(rows, target)])
                target = 0.6 * target + 0.4 * before
            past.update(zip(rows, logits.detach().softmax(1)))
        losses.append(-(target * logits.log_softmax(1)).sum(1).mean().item())

    trainer.model.register_forward_hook(write_out)
    history = trainer.fit()
    means = [sum(losses[i:i + batches]) / batches for i in range(0, len(losses), batches)]
    assert history["train_loss"] == pytest.approx(means, rel=1e-4)


def test_self_distillation_takes_labels_and_a_word():
    """As the benchmarks and the learning-rate range test have neither, their steps are those without it."""
    plain, unlabelled, waiting, distilling = (
        make_step(labels=labels, self_distillation=share)
        for labels, share in ((None, 0.0), (None, 0.5), (LABELS, 0.5), (LABELS, 0.5)))
    expected = take(plain, 48)
    assert take(unlabelled, 48, distil=True) == take(waiting, 48) == expected
    assert take(distilling, 48, distil=True) != expected


# Out of memory ---------------------------------------------------------------------------------------------

class SmallMemory(nn.Module):
    """Runs out of memory, forwards or backwards, with more than `limit` images."""

    def __init__(self, limit, where="forward"):
        super().__init__()
        self.network, self.limit, self.where = linear_model(), limit, where
        self.counts = []

    def forward(self, images):
        self.counts.append(len(images))
        if len(images) > self.limit:
            if self.where == "forward":
                run_out_of_memory()
            # The last layers' gradients are there by then; they must be thrown away.
            features = self.network[:3](images)
            features.register_hook(lambda _gradient: run_out_of_memory())
            return self.network[3:](features)
        return self.network(images)


def run_out_of_memory():
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("limit, parts", [(9, 2), (4, 4), (1, 16)])
def test_out_of_memory_halves_the_batch_and_keeps_the_step(caplog, where, limit, parts):
    step, roomy = make_step(SmallMemory(limit, where)), make_step()
    with caplog.at_level(logging.WARNING, "cifar100"):
        found = take(step, 16, count=6)
    assert torch.tensor(found).allclose(torch.tensor(take(roomy, 16, count=6)))
    assert_close(weights_of(step.model.network), weights_of(roomy.model), rtol=1e-4, atol=1e-6)
    assert step.count == 6 and (step.parts, roomy.parts) == (parts, 1)
    tries = [16 // 2**power for power in range(int(math.log2(parts)) + 1)]
    assert step.model.counts[:len(tries)] == tries
    assert step.model.counts[len(tries):] == [16 // parts] * (6 * parts - 1)     # it does not forget
    warnings = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert len(warnings) == int(math.log2(parts))
    assert f"in {parts} parts; the effective batch stays 16" in warnings[-1]


def test_out_of_memory_with_accumulation_and_loss_scaling():
    step, roomy = make_step(SmallMemory(3, "backward"), "fp16"), make_step(precision="fp16")
    found = take(step, 10, 10, count=15)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(take(roomy, 10, 10, count=15)), rtol=0.02, atol=1e-3)
    assert_close(weights_of(step.model.network), weights_of(roomy.model), rtol=0.02, atol=1e-3)


def test_a_step_done_again_for_lack_of_memory_is_not_taught_its_first_answer():
    model = SmallMemory(16)
    step, roomy = (make_step(network, labels=LABELS, self_distillation=0.9) for network in (model, None))

    def fail_once(*_):
        if len(model.counts) == 14:         # the second batch of the seventh step, the third round of the images
            model.counts.append(0)
            run_out_of_memory()

    model.network.register_forward_pre_hook(fail_once)
    found = take(step, 16, 16, count=9, distil=True)
    assert step.parts == 2
    assert torch.tensor(found).allclose(torch.tensor(take(roomy, 16, 16, count=9, distil=True)))
    assert_close(weights_of(model.network), weights_of(roomy.model), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [PLAIN | {"dropout_rate": 0.3}, MUON_RUN, MUON_RUN | {"model": "FlipCNN"}])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_done_again_equals_one_that_never_failed_bit_for_bit(settings, where):
    """The attempt has moved the running statistics of norms, and dropout's generator."""
    steps = [make_step(build_model(**TrainingConfig(**settings).model_arguments()), settings=settings)
             for _ in range(2) if torch.manual_seed(3)]
    failing, sound = steps
    for step in steps:
        torch.manual_seed(4)
        take(step, 16, 8)
    failed = []

    def fail_once(module, *_):
        if module.training and not failed:
            failed.append(True)
            run_out_of_memory()

    layer = [module for module in failing.model.modules() if isinstance(module, nn.Linear)][-1]
    if where == "forward":
        layer.register_forward_pre_hook(fail_once)
    else:
        layer.register_full_backward_hook(fail_once)
    sound.parts = 2
    found = []
    for step in steps:
        torch.manual_seed(5)
        found.append((take(step, 16, 8, count=2), torch.get_rng_state()))
    assert failed and failing.parts == 2
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])
    assert_equal(weights_of(failing.model), weights_of(sound.model))


def test_out_of_memory_with_a_single_image_is_raised():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        take(make_step(SmallMemory(0)), 16)


def test_other_errors_are_not_taken_for_lack_of_memory():
    step = make_step()
    step.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("cuDNN is broken")))
    with pytest.raises(RuntimeError, match="cuDNN is broken"):
        take(step, 16)
    assert step.parts == 1


# Its state -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_step_that_takes_up_anothers_state_goes_on_as_it_does(optimizer):
    made = {"precision": "fp16", "labels": LABELS, "optimizer": optimizer, "self_distillation": 0.5, "ema_decay": 0.5}
    first = make_step(SmallMemory(16), **made)
    take(first, 32, count=4, distil=True)
    first.scaler.update(2.0**12)
    second = make_step(SmallMemory(32), **made)
    second.load_state_dict(copy.deepcopy(first.state_dict()))     # as a file holds it
    assert (second.parts, second.count, second.scaler.get_scale()) == (2, 4, 2.0**12)
    assert take(second, 32, distil=True) == take(first, 32, distil=True)
    assert_equal(weights_of(second.model), weights_of(first.model))
    assert_equal(weights_of(second.average), weights_of(first.average))
