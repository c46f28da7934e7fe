"""Max pooling, and batch norm with GELU: torch's operations, or on a GPU fused kernels where they are faster."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fused
from .fastest import fastest


def norm_gelu(norm: nn.BatchNorm2d, images: Tensor, skip: Tensor | None = None) -> Tensor:
    """`gelu(norm(images) + skip)` of float [N, C, H, W]; the weight of `norm` has no gradient."""
    if norm.training and fused_is_faster(images):
        return fused.norm_gelu(images, norm, skip)
    normed = norm(images)
    return F.gelu(normed if skip is None else normed + skip)


def max_pool(images: Tensor, window: Sequence[int]) -> Tensor:
    """Max pooling of float [N, C, H, W] at stride 2, rounding down; windows of sides 2 or 3."""
    if images.requires_grad and fused_is_faster(images):
        return fused.max_pool(images, window)
    return F.max_pool2d(images, window, 2)


def max_blur_pool(images: Tensor, window: Sequence[int]) -> Tensor:
    """The mean of two by two maxima of float [N, C, H, W]: at stride 1 in windows of sides 2, or 3 with a border of 1
    along an even side; then at stride 2."""
    if images.requires_grad and fused_is_faster(images):
        return fused.max_blur_pool(images, window)
    return _plain_max_blur_pool(images, window)


def _plain_max_blur_pool(images: Tensor, window: Sequence[int]) -> Tensor:
    return F.avg_pool2d(F.max_pool2d(images, window, 1, [side - 2 for side in window]), 2)


def fused_is_faster(images: Tensor) -> bool:
    """Are `fused`'s kernels right, and faster than torch's, on the device of `images` for their dtype?"""
    return images.is_cuda and not torch.compiler.is_compiling() and _fused_is_faster(images.device, images.dtype)


@functools.cache
def _fused_is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Measured for one size: all of these operations are bound by memory."""
    if not fused.available(device):
        return False
    norm = nn.BatchNorm2d(160, device=device)
    norm.weight.requires_grad_(False)
    images = torch.randn(256, 160, 31, 31, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    ways = {"torch's operations": lambda images: F.max_pool2d(
                _plain_max_blur_pool(F.gelu(norm(images)), (2, 2)), 3, 2),
            "fused kernels": lambda images: fused.max_pool(
                fused.max_blur_pool(fused.norm_gelu(images, norm), (2, 2)), (3, 3))}
    with torch.enable_grad():
        return fastest(ways, images.requires_grad_(), [norm.bias]) is ways["fused kernels"]
