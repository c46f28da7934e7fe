"""Speed of training steps, batches and predictions on this machine, and how long a training will take."""

from __future__ import annotations

import copy
import itertools
import logging
import time
from statistics import median

import torch
from torch import Tensor, nn

from ..config import ConfigError, TrainingConfig, preset_names
from ..data import IMAGE_SIZE
from ..loader import BatchLoader
from ..models import build_model, training_flops
from ..replay import ReplayedStep
from ..schedule import Schedule
from ..step import TrainStep
from ..system import (DTYPES, autocast, is_out_of_memory, make_current, memory_format, peak_memory_mb, progress_style,
                      synchronize, with_bar)
from ..text import duration, table
from ..trainer import Trainer

LONG_MINUTES = 30       # longer estimates come with faster alternatives

log = logging.getLogger("cifar100")


def inference_throughput(model: nn.Module, device: torch.device, precision: str, batch_sizes=(32, 64, 128, 256),
                         repeats: int = 5, min_seconds: float = 0.2, progress: str = "auto") -> list[dict]:
    """Speed of the forward pass in evaluation mode, on a copy of `model`; one row per batch size.

    A row: `batch_size`, `images_per_second` (median over the repeats, each at least `min_seconds` long) with `_min` and
    `_max`, `milliseconds` (median per batch), `memory_mb` (peak of all GPU memory in use, in units of 2**20 bytes; None
    without CUDA), `seconds` (per batch, by repeat) and `error` (None or "out of memory").
    """
    layout, cuda = memory_format(device), device.type == "cuda"
    model = copy.deepcopy(model).to(device, memory_format=layout).eval()
    rows = []
    for size in announced(batch_sizes, "inference at batch size", progress):
        if cuda:
            torch.cuda.empty_cache()        # after an out-of-memory error, which by now holds no tensor
            torch.cuda.reset_peak_memory_stats(device)
        try:
            images = torch.randn(size, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
            images = images.to(DTYPES[precision], memory_format=layout)
            seconds = _forward_seconds(model, images, precision, repeats, min_seconds)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            seconds = []
        memory = peak_memory_mb(device) if cuda and seconds else None
        rows.append({"batch_size": size, **rates("images", size, seconds), "seconds": seconds, "memory_mb": memory,
                     "error": None if seconds else "out of memory"})
    return rows


@torch.inference_mode()
def _forward_seconds(model, images: Tensor, precision: str, repeats: int, min_seconds: float) -> list[float]:
    """Seconds per batch, by repeat; each repeat times as many batches as fill `min_seconds`."""
    def forward():
        with autocast(images.device, precision):
            model(images)

    forward()       # warm-up: the first call chooses algorithms and allocates
    calls = 1
    while (first := seconds_of(forward, images.device, calls)) < min_seconds:
        calls *= 2
    return [first / calls] + [seconds_of(forward, images.device, calls) / calls for _ in range(repeats - 1)]


def training_throughput(trainer: Trainer, steps: int = 5, repeats: int = 5, progress: str = "auto") -> dict:
    """Speed of training steps at full image size, loader included, on a copy of the network.

    Each repeat times `steps` of them. Returns `batch_size` (the effective one), `steps_per_second` and
    `images_per_second` (medians) with `_min` and `_max`, `milliseconds` (median) and `seconds` (by repeat) per step.
    """
    model = copy.deepcopy(trainer.model)
    step = repeated_step(trainer, TrainStep(model, trainer.config, trainer.precision))
    seconds = [seconds_of(step, trainer.device, steps) / steps
               for _ in announced(range(1, repeats + 1), "training steps, repeat", progress)]
    images = images_of_step(trainer)
    return {"batch_size": images, **rates("steps", 1, seconds), **rates("images", images, seconds), "seconds": seconds}


def repeated_step(trainer: Trainer, train_step: TrainStep, image_size: int = IMAGE_SIZE, **options):
    """A function that takes the next step of the trainer's first epochs, by `train_step`; already up to speed. The
    `options` are ReplayedStep's."""
    make_current(trainer.device)
    train_step.model.train()
    schedule, take = trainer.schedule, ReplayedStep(train_step, trainer.loader, **options)

    def step() -> None:
        number = train_step.count
        take(number // schedule.steps_per_epoch, schedule.batches(number), image_size,
             schedule.learning_rate_factor(number % schedule.total_steps))

    for _ in range(take.warm_up):
        step()
    return step


def images_of_step(trainer: Trainer) -> int:
    """Images per optimiser step: the effective batch size, or fewer in a small data set."""
    return trainer.schedule.batch_size * len(trainer.schedule.batches(0))


def outlook(trainer: Trainer, measured: dict) -> tuple[float, str]:
    """The minutes that are left of a training at the speed `measured`, and a sentence or two about them. Assumes that
    smaller images are faster in proportion to their FLOPs."""
    config = trainer.config
    flops_a_minute = 60 * measured["steps_per_second"] * measured["batch_size"] * training_flops(trainer.model)
    left = 0 if trainer.is_finished else trainer.total_flops() - trainer.flops
    minutes = left / flops_a_minute
    growing = ", small images first," if config.start_image_size < IMAGE_SIZE else ""
    whole = f"{config.epochs} epochs{growing}"
    take = f"about {duration(60 * minutes)} on this machine"
    text = (f"{measured['steps_per_second']:.2f} training steps/s of {measured['batch_size']} images, "
            f"{measured['images_per_second']:,.0f} images/s at full size; "
            + (f"the training of {whole} is complete" if trainer.is_finished else
               f"what is left of {whole} takes {take}" if trainer.step else f"{whole} take {take}"))
    return minutes, text + f"\n{_shorter_ways(trainer, flops_a_minute, minutes)}" * (minutes > LONG_MINUTES)


def _shorter_ways(trainer: Trainer, flops_a_minute: float, minutes: float) -> str:
    """Advice to someone who does not want to wait `minutes`: presets that take less at this speed."""
    config = trainer.config
    presets = minutes_of_presets(len(trainer.data.train_labels), flops_a_minute, val_size=config.val_size,
                                 train_size=config.changed_settings().get("train_size"))
    faster = sorted((value, name) for name, value in presets.items() if value < min(minutes, LONG_MINUTES))
    fitting = [f"preset = {name!r} takes about {duration(60 * value)}" for value, name in faster]
    if trainer.device.type != "cuda":
        fitting.append("a GPU is many times faster (on Colab: Runtime > Change runtime type)")
    return "This takes long. Faster: " + "; ".join(fitting or ["fewer epochs"])


def minutes_of_presets(data_images: int, flops_a_minute: float, **settings) -> dict[str, float]:
    """Minutes of training by preset at this speed, on `data_images` labelled images. Omits presets of drawn data and
    those that contradict `settings`."""
    minutes = {}
    for name in preset_names():
        try:
            config = TrainingConfig.from_preset(name, **settings)
        except ConfigError:         # a user's unfinished file does not concern this run
            continue
        if config.data_source != "drawn":
            minutes[name] = planned_flops(config, config.training_images(data_images)) / flops_a_minute
    return minutes


def planned_flops(config: TrainingConfig, images: int) -> int:
    """FLOPs of the training that `config` describes on `images` images, forward and backward."""
    model = build_model(**config.model_arguments())
    return Schedule(config, images).total_flops(lambda size: training_flops(model, size))


def profile_loader(loader: BatchLoader, batches: int = 20, step_milliseconds: float | None = None) -> dict:
    """Time of each stage of making a batch: medians over `batches` batches, synchronised after each.

    Returns `batch_size`, `images_per_second` and `milliseconds` per batch, of which `gather_ms`, `augment_ms` (with
    normalisation) and `cast_ms`, each timed alone, and `other_ms`, the rest (labels, mixing; 0 if noise exceeds it).
    `percent_of_step` is relative to `step_milliseconds`, of a training step on one batch.
    """
    def milliseconds(work) -> float:
        work(0)
        indices = itertools.cycle(range(len(loader)))
        return 1000 * median(seconds_of(lambda: work(next(indices)), loader.device) for _ in range(batches))

    pixels = loader.pixels(0, 0)
    images = loader.normalised(pixels, 0, 0)
    whole = milliseconds(lambda index: loader.batch(0, index))
    stages = {"gather_ms": milliseconds(lambda index: loader.pixels(0, index)),
              "augment_ms": milliseconds(lambda _: loader.normalised(pixels, 0, 0)),
              "cast_ms": milliseconds(lambda _: images.to(loader.dtype, memory_format=loader.memory_format))}
    return {"batch_size": loader.batch_size, "images_per_second": 1000 * loader.batch_size / whole,
            "milliseconds": whole, **stages, "other_ms": max(0.0, whole - sum(stages.values())),
            "percent_of_step": 100 * whole / step_milliseconds if step_milliseconds else None}


def seconds_of(work, device: torch.device, calls: int = 1) -> float:
    """Wall time of `calls` calls; the device is idle before and after."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize(device)
    return time.perf_counter() - start


def rates(unit: str, count: int, seconds: list[float]) -> dict:
    """Median, smallest and largest speed, and the median's milliseconds; None without timings."""
    of = {"": median, "_min": max, "_max": min}      # the longest time gives the lowest speed
    speeds = {f"{unit}_per_second{end}": count / of[end](seconds) if seconds else None for end in of}
    return speeds | {"milliseconds": 1000 * median(seconds) if seconds else None}


def announced(items, title: str, progress: str = "auto"):
    """Iterate over `items` with a progress bar or a line each, as `progress` asks for."""
    items = list(items)
    for number, item in enumerate(with_bar(items, len(items), title, progress), start=1):
        if progress_style(progress) == "lines":
            log.info("%s %s (%d of %d)", title, item, number, len(items))
        yield item


def format_rows(rows: list[dict]) -> str:
    """Rows as an aligned table, without lists, dicts and columns that hold only None."""
    shown = [name for name in dict.fromkeys(name for row in rows for name in row)
             if any(row.get(name) is not None and not isinstance(row[name], (list, dict)) for row in rows)]
    return table([{name.replace("_", " "): short_number(row.get(name)) for name in shown} for row in rows])


def short_number(value):
    """A float with three digits, or as a whole number from 100 on; anything else unchanged."""
    return value if not isinstance(value, float) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
