"""The networks: CIFAR100CNN, the residual reference; FlipCNN, for short trainings."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .layers.equivariant import FlipConv3x3, LiftingConv3x3, MirroredConv2d, PairNorm
from .layers.pool_norm import max_blur_pool, norm_gelu
from .layers.winograd import Conv3x3


class ResidualBlock(nn.Module):
    """conv-norm-relu-dropout-conv-norm with a shortcut (He et al. 2015, arXiv 1512.03385, basic block): float
    [N, C_in, H, W] to [N, C_out, H/stride, W/stride]. Drops whole channels (Tompson et al. 2015, arXiv 1411.4280)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dropout_rate: float = 0.0):
        super().__init__()
        self.conv1 = Conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout2d(dropout_rate)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                                          nn.BatchNorm2d(out_channels))

    def forward(self, images: Tensor) -> Tensor:
        out = self.dropout(F.relu(self.bn1(self.conv1(images))))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(images))


class CIFAR100CNN(nn.Module):
    """The reference network: 11,072,164 parameters at the default sizes.

    A 3×3 stem, three stages of two residual blocks at strides 1, 2, 2, global average pooling and a linear classifier.
    Maps float [N, 3, H, W] to logits float [N, num_classes]; `features` returns the pooled float [N, widths[-1]].
    The state-dict names are the reference's; as there, a TrainingConfig may replace all arguments.
    """

    def __init__(self, num_classes=100, dropout_rate: float = 0.3, widths=(64, 128, 256, 512)):
        super().__init__()
        if hasattr(num_classes, "num_classes"):
            config = num_classes
            num_classes, dropout_rate, widths = config.num_classes, config.dropout_rate, config.widths or widths
        channels, *stages = widths
        self.conv1 = Conv3x3(3, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        for index, (width, stride) in enumerate(zip(stages, (1, 2, 2), strict=True), start=1):
            setattr(self, f"layer{index}", nn.Sequential(ResidualBlock(channels, width, stride, dropout_rate),
                                                         ResidualBlock(width, width, 1, dropout_rate)))
            channels = width
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):       # He et al. 2015, arXiv 1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(images)))
        return self.layer3(self.layer2(self.layer1(out))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.dropout(self.features(images)))


class FlipGroup(nn.Module):
    """conv-pool-norm-gelu, then two conv-norm-gelu with a skip: float [N, C_in, H, W] to [N, C_out, H // 2, W // 2].
    `first` replaces the first convolution."""

    def __init__(self, in_channels: int, out_channels: int, first: nn.Module | None = None):
        super().__init__()
        self.conv1 = first or FlipConv3x3(in_channels, out_channels)
        self.conv2, self.conv3 = (FlipConv3x3(out_channels, out_channels) for _ in range(2))
        # Fast running statistics, since a short training has few steps.
        self.norm1, self.norm2, self.norm3 = (PairNorm(out_channels, momentum=0.4) for _ in range(3))
        for norm in (self.norm1, self.norm2, self.norm3):
            norm.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        first = norm_gelu(self.norm1, max_blur_pool(self.conv1(images), self.training))
        out = norm_gelu(self.norm2, self.conv2(first))
        return norm_gelu(self.norm3, self.conv3(out), first)


class FlipCNN(nn.Module):
    """The network for short trainings, after airbench (Jordan 2024, arXiv 2404.00498).

    A 2×2 whitening layer of 24 frozen filters (see `whiten`) with trained biases, groups of three convolutions, global
    max pooling, and a linear head whose logits are divided by 9. The norms have no scale, the 3×3 convolutions no bias.
    Maps float [N, 3, H, W], H and W at least 9, to logits float [N, num_classes]; `features` returns the head's input.
    The divisor, the biases and the fast running statistics are airbench's; only another divisor, 6, was compared here.

    Its layers commute with mirroring (helpers.layers.equivariant): an image and its mirror image get the same logits,
    and a convolution takes half the parameters and half the arithmetic of a common one. Channels form pairs, so
    `widths` must be even.
    """

    logit_divisor = 9.0

    def __init__(self, num_classes: int = 100, widths=(128, 384, 512)):
        if any(width % 2 for width in widths):
            raise ValueError(f"widths={list(widths)}: the channels of FlipCNN come in pairs; make them even")
        super().__init__()
        # 6 symmetric filters, their negatives, 6 antisymmetric ones, and their negatives, which are their mirror images
        mirrored = torch.tensor([*range(12), *range(18, 24), *range(12, 18)])
        self.whitening = MirroredConv2d(3, mirrored, 2)
        first = FlipGroup(24, widths[0], LiftingConv3x3(mirrored, widths[0]))
        self.groups = nn.Sequential(first, *(FlipGroup(i, o) for i, o in zip(widths, widths[1:])))
        self.head = nn.Linear(widths[-1] // 2, num_classes, bias=False)
        self.whitening.weight.requires_grad_(False)
        nn.init.zeros_(self.whitening.bias)

    @torch.no_grad()
    def whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        """Set the first layer to the whitening filters of `images` (normalised float [N, 3, H, W]) and their mirrors.

        They are the eigenvectors of the second moments of 2×2 patches, divided by the roots of their eigenvalues, and
        their negatives: first those that are symmetric, then those that are antisymmetric. Over the images and their
        mirror images, the outputs are decorrelated and of unit variance from the first step.
        """
        patches = F.unfold(images.float(), 2).transpose(1, 2).reshape(-1, 12)
        moments = (patches.T @ patches / len(patches)).cpu()        # not every device has eigh
        left, right = (half.flatten(1) for half in torch.eye(12).view(12, 3, 2, 2).unbind(3))    # [12, 6] each
        filters = []
        for sign in (1, -1):
            basis = (left + sign * right) * 0.5 ** 0.5
            eigenvalues, eigenvectors = torch.linalg.eigh(basis.T @ moments @ basis)
            part = (basis @ eigenvectors / (eigenvalues + eps).sqrt()).T.reshape(-1, 3, 2, 2)
            filters += [part, -part]
        self.whitening.weight.copy_(torch.cat(filters))

    def features(self, images: Tensor) -> Tensor:
        """The even parts of the pooled pairs, float [N, widths[-1] / 2]: the same for an image and its mirror image."""
        pooled = self.groups(F.gelu(self.whitening(images))).amax((2, 3))
        return pooled.unflatten(1, (2, -1)).sum(1) * 0.5 ** 0.5

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)) / self.logit_divisor


def build_model(name: str = "CIFAR100CNN", num_classes: int = 100, widths=None, dropout_rate: float = 0.3) -> nn.Module:
    """The network `name`; `widths=None` means its own. Only CIFAR100CNN has dropout."""
    sizes = {} if widths is None else {"widths": tuple(widths)}
    if name == "CIFAR100CNN":
        return CIFAR100CNN(num_classes, dropout_rate, **sizes)
    if name != "FlipCNN":
        raise ValueError(f"model={name!r}: must be CIFAR100CNN or FlipCNN")
    return FlipCNN(num_classes, **sizes)


def model_stats(model: nn.Module) -> dict:
    """`total_parameters`, `trainable_parameters` and their `memory_mb` (fp32, 2**20 bytes)."""
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"total_parameters": total, "trainable_parameters": trainable, "memory_mb": total * 4 / 2**20}


def describe_model(model: nn.Module) -> str:
    """Parameters, memory and FLOPs in one line."""
    stats = model_stats(model)
    return (f"{type(model).__name__}: {stats['total_parameters']:,} parameters, {stats['memory_mb']:.2f} MiB in fp32, "
            f"{training_flops(model) / 1e9:.2f} GFLOP an image forward and backward")


def layer_table(model: nn.Module, image_size: int = 32) -> list[dict]:
    """A row per layer: `layer`, `output` (shape without N), `parameters`, `mflops` (10**6, forward, one image). FLOPs
    are torch's: two per multiply-add, of convolutions and matrix products only."""
    model, shapes = _without_weights(model), {}
    layers = {name: module for name, module in model.named_modules()
              if name and not list(module.children()) and list(module.parameters())}
    for name, module in layers.items():
        module.register_forward_hook(lambda _module, _inputs, output, name=name:
                                     shapes.update({name: tuple(output.shape[1:])}))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(_blank_image(model, image_size))
    counts, root = counter.get_flop_counts(), type(model).__name__
    return [{"layer": name, "output": shapes[name], "parameters": sum(p.numel() for p in module.parameters()),
             "mflops": sum(counts.get(f"{root}.{name}", {}).values()) / 1e6} for name, module in layers.items()]


@contextmanager
def evaluating(model: nn.Module):
    """Evaluation mode in the block; then each module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def training_flops(model: nn.Module, image_size: int = 32) -> int:
    """FLOPs of one image's forward and backward pass at `image_size`, from torch's counter."""
    model = _without_weights(model)
    with FlopCounterMode(display=False) as counter:
        model(_blank_image(model, image_size)).sum().backward()
    return counter.get_total_flops()


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy on torch's "meta" device, which computes shapes only: to count what a pass would do, by direct
    convolutions whatever algorithm trains, and in evaluation mode, which a single image needs."""
    return copy.deepcopy(model).to("meta").eval()


def _blank_image(model: nn.Module, image_size: int) -> Tensor:
    return torch.empty(1, 3, image_size, image_size, device="meta", dtype=next(model.parameters()).dtype)
