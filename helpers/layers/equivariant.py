"""Convolutions that commute with mirroring an image left to right, at half the multiplications.

After Cohen & Welling 2016 (arXiv 1602.07576) and, for the saving, Bökman, Nordström & Kahl 2025 (arXiv 2502.05169).
The C channels form C/2 pairs, the first of each in the first half of the channels. Mirroring the image mirrors every
channel and swaps each pair. The sum of a pair is its even part, the difference its odd part. Filters between parts of
the same kind are symmetric, with two free values per row of three; those between even and odd antisymmetric, with one:
half the parameters and arithmetic of a plain convolution. In plain torch operations a layer preserves its input's
memory format; where Winograd or a fused kernel computes it, its output is in channels_last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import fused
from .fastest import fastest
from .winograd import winograd_conv, winograd_is_faster


class FlipConv3x3(nn.Module):
    """A 3×3 convolution between channel pairs, padding 1, no bias: float [N, C_in, H, W] to [N, C_out, H, W].

    `even.weight` and `odd.weight`, float [C_out/2, 3·C_in/2, 3, 1], compute the even and the odd part of the result.
    Of their inputs, the first third weights the middle column, the second the sum of its neighbours, the last the
    difference of the neighbours in parts of the other kind. All basis filters are orthogonal and of equal norm.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.even, self.odd = (nn.Conv2d(in_channels // 2 * 3, out_channels // 2, (3, 1), padding=(1, 0), bias=False)
                               for _ in range(2))
        # Three columns of a filter from (even middle, sums, differences, odd differences, sums, middle), which are
        # summed in this order: for both members of a pair, from the same member and from the other.
        same = torch.tensor([[0, 1, 0], [1, 0, 1], [-1, 0, 1], [-1, 0, 1], [1, 0, 1], [0, 1, 0]])
        other = same * torch.tensor([1, 1, -1, 1, -1, -1])[:, None]
        basis = torch.cat([same, other, other.flip(1), same.flip(1)], 1).float()
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("norms", torch.tensor([2.0, 1, 1, 1, 1, 2]), persistent=False)     # squared

    def forward(self, images: Tensor) -> Tensor:
        if winograd_is_faster(images, self.even.weight.dtype, self.even.in_channels // 3 * 2,
                              self.even.out_channels * 2, direct_share=0.5):
            return winograd_conv(images, self.filters())
        if not images.is_cuda or torch.compiler.is_compiling():
            return self.by_pairs(images)
        if not (self.training and torch.is_grad_enabled()):     # too few steps to find the fastest way
            return self.by_filters(images)
        ways = {"channel pairs": self.by_pairs, "filters written out": self.by_filters}
        if fused.available(images):
            ways["fused channel pairs"] = self.by_fused_pairs
        return fastest(ways, images, list(self.parameters()))(images)

    def by_pairs(self, images: Tensor) -> Tensor:
        """With half the arithmetic, on the sums and differences of channel pairs."""
        even, odd = _Neighbours.apply(images)
        return _Pairs.apply(self.even(even), self.odd(odd))

    def by_fused_pairs(self, images: Tensor) -> Tensor:
        """As `by_pairs`, with a GPU kernel each for the sums and differences before and after."""
        even, odd = fused.neighbours(images)
        return fused.pairs(self.even(even), self.odd(odd))

    def by_filters(self, images: Tensor) -> Tensor:
        """As a plain convolution, with twice the arithmetic and the least memory traffic."""
        return F.conv2d(images, self.filters(), padding=1)

    def filters(self) -> Tensor:
        """The equivalent filters of a plain convolution, float [C_out, C_in, 3, 3]."""
        weights = torch.cat([self.even.weight, self.odd.weight.unflatten(1, (3, -1)).flip(1).flatten(1, 2)], 1)
        weights = weights.view(len(weights), 6, -1, 3).permute(0, 2, 3, 1) * self.norms.sqrt()
        filters = (weights @ self.basis).unflatten(3, (2, 2, 3))        # [C_out/2, C_in/2, 3, 2, 2, 3]
        return filters.permute(3, 0, 4, 1, 2, 5).reshape(2 * len(weights), -1, 3, 3)


class MirroredConv2d(nn.Conv2d):
    """A convolution of images, without padding, whose filters mirror each other or themselves, also during training:
    `mirrored`, int64 [C_out], is the index of each filter's mirror image."""

    def __init__(self, in_channels: int, mirrored: Tensor, kernel_size: int):
        super().__init__(in_channels, len(mirrored), kernel_size)
        self.register_buffer("mirrored", mirrored, persistent=False)
        with torch.no_grad():
            self.weight.copy_(self._symmetric_weight())
            self.bias.copy_((self.bias + self.bias[mirrored]) / 2)

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self._symmetric_weight(), (self.bias + self.bias.index_select(0, self.mirrored)) / 2)

    def _symmetric_weight(self) -> Tensor:
        return (self.weight + self.weight.index_select(0, self.mirrored).flip(3)) / 2


class LiftingConv3x3(nn.Conv2d):
    """A 3×3 convolution that makes channel pairs, padding 1, no bias: float [N, C_in, H, W] to [N, C_out, H, W].

    `weight`, float [C_out/2, C_in, 3, 3], holds the first filter of each pair; the second is its mirror image.
    `mirrored`, int64 [C_in]: the channel that each input channel becomes in the mirror image.
    """

    def __init__(self, mirrored: Tensor, out_channels: int):
        super().__init__(len(mirrored), out_channels // 2, 3, padding=1, bias=False)
        self.register_buffer("mirrored", mirrored, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, torch.cat([self.weight, self.weight.index_select(1, self.mirrored).flip(3)]), padding=1)


class PairNorm(nn.BatchNorm2d):
    """Batch norm of float [N, C, H, W] with statistics and biases shared within channel pairs."""

    def __init__(self, channels: int, **options):
        super().__init__(channels // 2, **options)

    def forward(self, images: Tensor) -> Tensor:
        number, channels, height, width = images.shape
        if _format_of(images) == torch.channels_last:       # needs no copy
            side_by_side = images.permute(0, 2, 3, 1).reshape(number, height, 2 * width, channels // 2)
            normed = super().forward(side_by_side.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return normed.reshape(number, height, width, channels).permute(0, 3, 1, 2)
        stacked = images.view(number, 2, channels // 2, height, width).transpose(1, 2).flatten(2, 3)
        return super().forward(stacked).unflatten(2, (2, height)).transpose(1, 2).flatten(1, 2)


def _format_of(images: Tensor) -> torch.memory_format:
    return torch.contiguous_format if images.is_contiguous() else torch.channels_last


class _Neighbours(torch.autograd.Function):
    # [N, C, H, W] to the inputs of `even` and `odd`, each [N, 3·C/2, H, W]; internally [N, H, W, C].

    @staticmethod
    def forward(ctx, images):
        first, second = images.permute(0, 2, 3, 1).chunk(2, 3)
        number, height, width, pairs = first.shape
        even, odd = (first.new_empty(number, height, width + 2, pairs) for _ in range(2))
        results = [first.new_empty(number, height, width, 3, pairs) for _ in range(2)]
        for part, combine, own, other in ((even, torch.add, *results), (odd, torch.sub, *results[::-1])):
            part[:, :, ::width + 1] = 0         # the columns beside the image
            combine(first, second, out=part[:, :, 1:-1])
            torch.mul(part[:, :, 1:-1], 2 ** 0.5, out=own[..., 0, :])
            torch.add(part[:, :, :-2], part[:, :, 2:], out=own[..., 1, :])
            torch.sub(part[:, :, 2:], part[:, :, :-2], out=other[..., 2, :])
        return tuple(result.flatten(3).permute(0, 3, 1, 2).contiguous(memory_format=_format_of(images))
                     for result in results)

    @staticmethod
    @once_differentiable
    def backward(ctx, even_grad, odd_grad):
        grads = [grad.permute(0, 2, 3, 1).unflatten(3, (3, -1)) for grad in (even_grad, odd_grad)]
        parts = []
        for own, other in (grads, grads[::-1]):
            part = own[..., 0, :] * 2 ** 0.5
            sums, differences = own[..., 1, :], other[..., 2, :]
            part[:, :, 1:].add_((sums + differences)[:, :, :-1])        # += would also copy the part to itself
            part[:, :, :-1].add_((sums - differences)[:, :, 1:])
            parts.append(part)
        return _paired(*parts, _format_of(even_grad))


class _Pairs(torch.autograd.Function):
    # Even and odd parts [N, C/2, H, W] to channel pairs [N, C, H, W]. Its transpose has the same form.

    @staticmethod
    def forward(ctx, even, odd):
        return _paired(even.permute(0, 2, 3, 1), odd.permute(0, 2, 3, 1), _format_of(even))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        first, second = grad.chunk(2, 1)
        return first + second, first - second


def _paired(even: Tensor, odd: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Even and odd parts [N, H, W, C/2] to channel pairs [N, C, H, W]."""
    pairs = even.new_empty(*even.shape[:3], 2 * even.shape[3])
    first, second = pairs.chunk(2, 3)
    torch.add(even, odd, out=first)
    torch.sub(even, odd, out=second)
    return pairs.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
