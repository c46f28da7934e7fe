"""BatchLoader: batches of augmented, normalised images, made on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from .augment import Augmentation, augment_by, draw_parameters, resize
from .config import TrainingConfig
from .data import IMAGE_SIZE
from .system import memory_format

RANDOM_STREAM = 2       # 1 was drawn batch by batch; raise it when the same seed gives other batches


class BatchLoader:
    """Makes batches of augmented, normalised images on the device.

    An epoch's order and augmentation are drawn at once from seed and epoch. So a batch depends only on seed, epoch and
    index, and a run can resume within an epoch. With `augmentation=None`, for evaluation, images are only normalised
    and come in order, and the last batch may be smaller.

    Args:
        images: uint8 [N, 32, 32, 3]; labels: int64 [N].
        mean, std: of each channel, for images in [0, 1].
        dtype: of the images that `batch` returns.
        alternating_flip: instead of drawing each flip, mirror a random half of the images in even epochs and the other
            half in odd ones (Jordan 2024, arXiv 2404.00498).
        mixup_alpha, cutmix_alpha: Beta parameters, 0 for none; labels become float [N, num_classes].
        mix_probability: share of the batches that are mixed.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, device: torch.device, mean, std,
                 augmentation: Augmentation | None = None, dtype: torch.dtype = torch.float32, seed: int = 0,
                 alternating_flip: bool = False, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0,
                 mix_probability: float = 1.0, num_classes: int = 100):
        self.count, self.batch_size = len(images), max(1, min(batch_size, len(images)))
        self.device, self.dtype, self.seed = device, dtype, seed
        self.augmentation, self.memory_format = augmentation, memory_format(device)
        self.images, self.labels = images.to(device), labels.to(device)
        self.mean, self.std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
        self._epoch, self._order, self._parameters = None, None, {}
        self._first_flip = (torch.rand(self.count, device=device, generator=self._generator(0)) < 0.5
                            if alternating_flip else None)
        mixes = [mix(alpha=alpha, num_classes=num_classes)
                 for mix, alpha in ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha)) if alpha]
        self.mix = v2.RandomApply([v2.RandomChoice(mixes)], mix_probability) if mixes else None

    def __len__(self) -> int:
        """Batches in an epoch; in training, full ones only."""
        return self.count // self.batch_size if self.augmentation else -(-self.count // self.batch_size)

    def batch(self, epoch: int, index: int, image_size: int = IMAGE_SIZE) -> tuple[Tensor, Tensor]:
        """Batch `index` of `epoch`: images `dtype` [B, 3, image_size, image_size] and their labels."""
        images = resize(self.normalised(self.pixels(epoch, index), epoch, index), image_size)
        labels = self.labels[self.indices(epoch, index)]
        if self.mix is not None:
            with torch.random.fork_rng(devices=[]):     # torchvision's mixes draw from the global generator
                torch.default_generator.manual_seed(self._seed_of(3, epoch, index))
                images, labels = self.mix(images, labels)
        return images.to(self.dtype, memory_format=self.memory_format), labels

    def batch_at(self, places: Tensor, image_size: int = IMAGE_SIZE) -> tuple[Tensor, Tensor, Tensor]:
        """As `batch`, with the indices of the images, int64 [B]: the batch at `places`, int64 [B] on the device, of the
        epoch made ready by `prepare`. Takes no number from the host, so that a graph can replay it; needs images that
        are not mixed.
        """
        chosen = self._order[places]
        images = resize(self._augmented(self.images[chosen], places), image_size)
        return images.to(self.dtype, memory_format=self.memory_format), self.labels[chosen], chosen

    def batches(self, epoch: int = 0):
        """Yield all batches of an epoch."""
        for index in range(len(self)):
            yield self.batch(epoch, index)

    def indices(self, epoch: int, index: int) -> Tensor:
        """Indices of the images in a batch: int64 [B] on the device."""
        self.prepare(epoch)
        return self._order[self._batch_slice(index)]

    def pixels(self, epoch: int, index: int) -> Tensor:
        """The unchanged images of a batch: uint8 [B, 32, 32, 3] on the device."""
        return self.images[self.indices(epoch, index)]

    def normalised(self, pixels: Tensor, epoch: int, index: int) -> Tensor:
        """Augment and normalise the pixels of a batch: float32 [B, 3, 32, 32]."""
        self.prepare(epoch)
        return self._augmented(pixels, self._batch_slice(index))

    def _augmented(self, pixels: Tensor, places: slice | Tensor) -> Tensor:
        if self.augmentation is None:
            return pixels.permute(0, 3, 1, 2).float().div_(255).sub_(self.mean).div_(self.std)
        parameters = {name: values[places] for name, values in self._parameters.items()}
        return augment_by(pixels, self.augmentation, parameters, self.mean, self.std)

    def draw_epoch(self, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw an epoch: the order of the images, int64 [N], and in that order the augmentation's parameters, each [N],
        by name."""
        if self.augmentation is None:
            return torch.arange(self.count, device=self.device), {}
        generator = self._generator(1, epoch)
        order = torch.randperm(self.count, generator=generator, device=self.device)
        parameters = draw_parameters(self.count, IMAGE_SIZE, self.augmentation, generator)
        if self._first_flip is not None:
            parameters["flip"] = self._first_flip[order] ^ bool(epoch % 2)
        return order, parameters

    def prepare(self, epoch: int) -> None:
        """Draw an epoch, if it is not the current one, into tensors that stay where they are."""
        if self._epoch == epoch:
            return
        order, parameters = self.draw_epoch(epoch)
        if self._order is None:
            self._order, self._parameters = order, parameters
        else:
            torch._foreach_copy_([self._order, *self._parameters.values()], [order, *parameters.values()])
        self._epoch = epoch

    def _batch_slice(self, index: int) -> slice:
        """Positions of a batch in the order of its epoch; empty beyond the last batch."""
        return slice(index * self.batch_size, (index + 1) * self.batch_size if index < len(self) else 0)

    def _generator(self, *purpose: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self._seed_of(*purpose))

    def _seed_of(self, *purpose: int) -> int:
        return int(np.random.SeedSequence((self.seed, *purpose)).generate_state(1)[0])


def training_loader(config: TrainingConfig, images: Tensor, labels: Tensor, mean, std, **options) -> BatchLoader:
    """A loader of augmented training batches for `config`; the other arguments are BatchLoader's."""
    sizes = {name: size for name in ("crop_padding", "cutout_size") if (size := getattr(config, name)) is not None}
    augmentation = Augmentation.of_strength(config.augmentation_strength, crop_mode=config.crop_mode, fill=mean,
                                            **sizes)
    return BatchLoader(images, labels, config.batch_size, mean=mean, std=std, augmentation=augmentation,
                       seed=config.seed, alternating_flip=config.flip == "alternating" and augmentation.flip,
                       mixup_alpha=config.mixup_alpha, cutmix_alpha=config.cutmix_alpha,
                       mix_probability=config.mix_probability, num_classes=config.num_classes, **options)
