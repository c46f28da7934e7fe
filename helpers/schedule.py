"""Steps and epochs, learning rate, image size and FLOPs of a training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from .config import TrainingConfig
from .data import IMAGE_SIZE


class Schedule:
    """The plan of a training with `config` on `images` images. Steps are optimiser steps, from 0. `batch_size` is at
    most `images`; an epoch omits the images that do not fill a batch."""

    def __init__(self, config: TrainingConfig, images: int):
        self.config = config
        self.batch_size = min(config.batch_size, images)
        self.batches_per_epoch = images // self.batch_size
        self.steps_per_epoch = math.ceil(self.batches_per_epoch / config.gradient_accumulation_steps)
        self.total_steps = self.steps_per_epoch * config.epochs

    def batches(self, step: int) -> range:
        """The batches of its epoch that a step takes; the last step takes the remaining ones."""
        accumulation = self.config.gradient_accumulation_steps
        first = step % self.steps_per_epoch * accumulation
        return range(first, min(first + accumulation, self.batches_per_epoch))

    def learning_rate(self, step: int) -> float:
        """The rate at a step; under muon, of the convolution filters."""
        return self.config.learning_rate * self.learning_rate_factor(step)

    def learning_rate_factor(self, step: int) -> float:
        """Factor on the peak rates at a step: linear warm-up, then a half cosine to 0 (Loshchilov & Hutter 2016, arXiv
        1608.03983), a line to 0, or a factor `lr_gamma` at each of `lr_milestones`."""
        config = self.config
        warmup = min(round(config.warmup_epochs * self.steps_per_epoch), self.total_steps // 2)
        if step < warmup:
            return (step + 1) / warmup
        if config.lr_scheduler == "step":
            return config.lr_gamma ** sum(step >= epoch * self.steps_per_epoch for epoch in config.lr_milestones)
        progress = (step - warmup) / (self.total_steps - warmup)
        return 1 - progress if config.lr_scheduler == "linear" else 0.5 * (1 + math.cos(math.pi * progress))

    def image_size(self, step: int) -> int:
        """Side of the training images in pixels: grows by up to 8 at a time; each below 32 lasts equally long."""
        sizes = range(self.config.start_image_size, IMAGE_SIZE, 8)
        growth = self.config.image_growth_fraction * self.total_steps
        return sizes[int(len(sizes) * step / growth)] if sizes and step < growth else IMAGE_SIZE

    def total_flops(self, flops_of_image: Callable[[int], int]) -> int:
        """FLOPs of the whole training; `flops_of_image(size)` returns those of one image, forward and backward."""
        images_at = Counter()
        for step in range(self.total_steps):
            images_at[self.image_size(step)] += len(self.batches(step)) * self.batch_size
        return sum(count * flops_of_image(size) for size, count in images_at.items())
