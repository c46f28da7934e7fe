"""The networks: CIFAR100CNN (the reference's residual CNN) and FastCNN (the short-training one)."""

from __future__ import annotations

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .layers.equivariant import FlipConv3x3, LiftingConv3x3, MirroredConv2d, PairNorm, symmetric_max_pool
from .layers.winograd import Conv3x3, direct_convolutions


class ResidualBlock(nn.Module):
    """conv-norm-relu-dropout-conv-norm with a shortcut (He et al. 2015, arXiv 1512.03385, basic block).

    Dropout drops whole channels (Tompson et al. 2015, arXiv 1411.4280). Input float [N, C_in, H, W], output
    [N, C_out, H/stride, W/stride].
    """

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
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(images))


class CIFAR100CNN(nn.Module):
    """The reference network: 11,072,164 parameters at the default sizes.

    A 3×3 stem, three stages of two residual blocks at strides 1, 2, 2, global average pooling and a linear
    classifier. `forward` maps float [N, 3, H, W] to logits float [N, num_classes]; `features` gives the
    pooled [N, widths[-1]] before dropout and classifier. The state-dict names are the reference's.
    """

    def __init__(self, num_classes: int = 100, dropout_rate: float = 0.3, widths=(64, 128, 256, 512)):
        super().__init__()
        stem, *stages = widths
        self.conv1 = Conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        channels = stem
        for index, (width, stride) in enumerate(zip(stages, (1, 2, 2), strict=True), start=1):
            blocks = [ResidualBlock(channels, width, stride, dropout_rate),
                      ResidualBlock(width, width, 1, dropout_rate)]
            setattr(self, f"layer{index}", nn.Sequential(*blocks))
            channels = width
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):       # He et al. 2015, arXiv 1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return out.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.dropout(self.features(images)))


class ConvGroup(nn.Module):
    """conv-pool-norm-gelu, then two conv-norm-gelu with a skip over them. Halves height and width.

    With `pool_first` the pooling comes before the first convolution, which then takes a quarter of the arithmetic.
    With `input_skip` the first convolution has a skip as well: the input, average-pooled 2×2, with zeros for the
    channels that it lacks (He et al. 2015, arXiv 1512.03385, option A). It costs no multiplication.

    With `flip_equivariant` the channels are pairs, and all commutes with mirroring (helpers.layers.equivariant). `mirrored`
    then says of channels that come without pairs which each becomes in the mirror image.
    """

    def __init__(self, in_channels: int, out_channels: int, pool_first: bool = False, skip: bool = True,
                 norm_scale: bool = False, input_skip: bool = False, flip_equivariant: bool = False,
                 mirrored: Tensor | None = None):
        super().__init__()
        conv = FlipConv3x3 if flip_equivariant else Conv3x3
        self.conv1 = (conv(in_channels, out_channels) if not flip_equivariant or mirrored is None
                      else LiftingConv3x3(mirrored, out_channels))
        self.conv2 = conv(out_channels, out_channels)
        self.conv3 = conv(out_channels, out_channels)
        self.norm1, self.norm2, self.norm3 = (_norm(out_channels, norm_scale, flip_equivariant) for _ in range(3))
        self.pool_first, self.skip, self.input_skip = pool_first, skip, input_skip
        self.flip_equivariant = flip_equivariant

    def forward(self, images: Tensor) -> Tensor:
        first = F.gelu(self.norm1(self._halve(images)))
        if self.input_skip:
            lacking = first.shape[1] - images.shape[1]      # negative where the group narrows: then the rest is dropped
            first = first + F.pad(F.avg_pool2d(images, 2), (0, 0, 0, 0, 0, lacking))
        out = F.gelu(self.norm2(self.conv2(first)))
        out = self.norm3(self.conv3(out))
        return F.gelu(out + first if self.skip else out)

    def _halve(self, images: Tensor) -> Tensor:
        if self.flip_equivariant:
            return (self.conv1(symmetric_max_pool(images)) if self.pool_first
                    else symmetric_max_pool(self.conv1(images)))
        if self.pool_first:
            return self.conv1(F.max_pool2d(images, 2))
        return F.max_pool2d(self.conv1(images, for_pooling=True), 2)


class FastCNN(nn.Module):
    """A network for short trainings, after airbench (Jordan 2024, arXiv 2404.00498).

    A 2×2 whitening layer of 24 frozen filters (see `whiten`) with trained biases, three groups of three convolutions,
    global max pooling, and a linear head whose logits are divided by 9. Each group pools what its first convolution
    gives. The norms have no scale, the 3×3 convolutions no bias. Maps float [N, 3, H, W], H and W from 9 up, to logits
    float [N, num_classes]; `features` gives what the head takes.

    `whitening=False` trains the first layer instead, `pool_first=True` lets all groups but the first pool before
    their first convolution, `skip=False` leaves out the skips, `norm_scale=True` trains the norms' scales,
    `input_skip=True` lets all groups but the first have a skip over their first convolution too, `mean_features=True`
    gives the head each channel's mean beside its maximum, `flip_equivariant=True` makes all layers commute with
    mirroring (helpers.layers.equivariant), so that an image and its mirror image get the same logits: figures/ablation.txt
    and figures/ablation_long.txt, from `python -m helpers.tools.ablation`, have what each is worth. The division by 9, biases
    and a fast average (0.4) in the norms are airbench's and were not compared here.
    """

    def __init__(self, num_classes: int = 100, widths=(128, 384, 512), logit_divisor: float = 9.0,
                 whitening: bool = True, pool_first: bool = False, skip: bool = True, norm_scale: bool = False,
                 input_skip: bool = False, mean_features: bool = False, flip_equivariant: bool = False):
        super().__init__()
        if flip_equivariant and (input_skip or any(width % 2 for width in widths)):
            raise ValueError(f"flip_equivariant=True with input_skip={input_skip}, widths={list(widths)}: channels "
                             "come in pairs, which input_skip would part; leave it out, and make the widths even")
        # 6 symmetric filters and their negatives, then 6 antisymmetric ones and theirs, which are their mirror images
        mirrored = torch.tensor([*range(12), *range(18, 24), *range(12, 18)])
        self.whitening = MirroredConv2d(3, mirrored, 2) if flip_equivariant else nn.Conv2d(3, 24, 2)
        self.whitening.weight.requires_grad_(not whitening)
        self.groups = nn.Sequential(*[
            ConvGroup(i, o, pool_first and place > 0, skip, norm_scale, input_skip and place > 0, flip_equivariant,
                      mirrored if place == 0 else None)
            for place, (i, o) in enumerate(zip((24, *widths[:-1]), widths))])
        self.mean_features, self.flip_equivariant = mean_features, flip_equivariant
        features = widths[-1] * (2 if mean_features else 1) // (2 if flip_equivariant else 1)
        self.head = nn.Linear(features, num_classes, bias=False)
        self.logit_divisor = logit_divisor
        nn.init.zeros_(self.whitening.bias)

    @torch.no_grad()
    def whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        """Set the first layer to the whitening filters of `images` (normalised float [N, 3, H, W]).

        The 12 eigenvectors of the 2×2 patches' second moments, each divided by the root of its eigenvalue,
        and their negatives: what they give is decorrelated and of unit variance from the first step on.
        With `flip_equivariant` the moments are those of the images and their mirror images.
        """
        patches = F.unfold(images.float(), 2).transpose(1, 2).reshape(-1, 12)
        moments = (patches.T @ patches / len(patches)).cpu()        # not every device has eigh
        if not self.flip_equivariant:
            filters = _whitening_filters(moments, torch.eye(12), eps)
            self.whitening.weight.copy_(torch.cat([filters, -filters]))
            return
        left = torch.eye(12).view(12, 3, 2, 2)[:, :, :, 0].flatten(1)       # [12, 6]: which is a patch's left half
        right = torch.eye(12).view(12, 3, 2, 2)[:, :, :, 1].flatten(1)
        parts = [_whitening_filters(moments, (left + sign * right) * 0.5 ** 0.5, eps) for sign in (1, -1)]
        self.whitening.weight.copy_(torch.cat([filters * sign for filters in parts for sign in (1, -1)]))

    def features(self, images: Tensor) -> Tensor:
        maps = self.groups(F.gelu(self.whitening(images)))
        found = [maps.amax((2, 3))]
        if self.mean_features:
            found.append(maps.mean((2, 3)))
        if self.flip_equivariant:       # the even part: the same of an image and its mirror image
            found = [values.unflatten(1, (2, -1)).sum(1) * 0.5 ** 0.5 for values in found]
        return torch.cat(found, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)) / self.logit_divisor


def _whitening_filters(moments: Tensor, basis: Tensor, eps: float) -> Tensor:
    """Filters [n, 3, 2, 2] that whiten what patches with second moments [12, 12] are in a `basis` [12, n]."""
    eigenvalues, eigenvectors = torch.linalg.eigh(basis.T @ moments @ basis)
    return (basis @ eigenvectors / (eigenvalues + eps).sqrt()).T.reshape(-1, 3, 2, 2)


def _norm(channels: int, scale: bool, pairs: bool) -> nn.BatchNorm2d:
    # The running statistics follow fast (0.4), since a short training has few steps for them.
    norm = (PairNorm if pairs else nn.BatchNorm2d)(channels, momentum=0.4)
    norm.weight.requires_grad_(scale)
    return norm


def build_model(name: str = "CIFAR100CNN", num_classes: int = 100, widths=None, dropout_rate: float = 0.3,
                whitening: bool = True, pool_first: bool = False, skip: bool = True,
                norm_scale: bool = False, input_skip: bool = False, mean_features: bool = False,
                flip_equivariant: bool = False) -> nn.Module:
    """The network called `name`; `widths=None` takes its own. Dropout is CIFAR100CNN's, the last seven FastCNN's."""
    sizes = {} if widths is None else {"widths": tuple(widths)}
    if name == "CIFAR100CNN":
        return CIFAR100CNN(num_classes, dropout_rate, **sizes)
    if name == "FastCNN":
        return FastCNN(num_classes, **sizes, whitening=whitening, pool_first=pool_first, skip=skip,
                       norm_scale=norm_scale, input_skip=input_skip, mean_features=mean_features,
                       flip_equivariant=flip_equivariant)
    raise ValueError(f"model={name!r}: must be CIFAR100CNN or FastCNN")


def model_stats(model: nn.Module) -> dict:
    """Parameters and their memory: `total_parameters`, `trainable_parameters`, `memory_mb` (fp32, 2**20 bytes)."""
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    return {"total_parameters": total, "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "memory_mb": total * 4 / 2**20}


def layer_table(model: nn.Module, image_size: int = 32) -> list[dict]:
    """Rows `layer`, `output` (shape without N), `parameters`, `mflops` (10**6, forward, one image), by layer.

    FLOPs come from torch's own counter: two for a multiply-add, convolutions and matrix products only.
    """
    shapes, hooks = {}, []
    layers = {name: module for name, module in model.named_modules()
              if name and not list(module.children()) and list(module.parameters())}
    for name, module in layers.items():
        hooks.append(module.register_forward_hook(
            lambda _module, _inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])})))
    with FlopCounterMode(display=False) as counter:
        _forward_once(model, image_size)
    for hook in hooks:
        hook.remove()
    counts = counter.get_flop_counts()
    root = type(model).__name__
    return [{"layer": name, "output": shapes[name], "parameters": sum(p.numel() for p in module.parameters()),
             "mflops": sum(counts.get(f"{root}.{name}", {}).values()) / 1e6} for name, module in layers.items()]


@contextmanager
def evaluating(model: nn.Module):
    """Evaluation mode inside; afterwards each module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def training_flops(model: nn.Module, image_size: int = 32) -> int:
    """FLOPs of one image's forward and backward pass at `image_size`, from torch's counter."""
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)       # else the backward pass would add to them in place
    with FlopCounterMode(display=False) as counter:
        _forward_once(model, image_size, backward=True)
    for parameter, gradient in zip(model.parameters(), gradients):
        parameter.grad = gradient
    return counter.get_total_flops()


def _forward_once(model: nn.Module, image_size: int, backward: bool = False) -> None:
    """One blank image through the network in evaluation mode, so that no running statistic changes.

    By direct convolutions, whose arithmetic is what is counted whatever algorithm trains.
    """
    weight = next(model.parameters())
    no_search = torch.backends.cudnn.flags(enabled=True, benchmark=False)       # for kernels that train nothing
    with evaluating(model), direct_convolutions(), no_search, torch.set_grad_enabled(backward):
        logits = model(torch.zeros(1, 3, image_size, image_size, device=weight.device, dtype=weight.dtype))
        if backward:
            logits.sum().backward()
