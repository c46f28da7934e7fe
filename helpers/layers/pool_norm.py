"""Max pooling, and batch norm with GELU: torch's operations, or on a GPU fused kernels where they are faster."""

from __future__ import annotations

import functools

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


def max_blur_pool(images: Tensor, training: bool = False) -> Tensor:
    """Max pooling with little aliasing (after Zhang 2019, arXiv 1904.11486) that commutes with mirroring: float
    [N, C, H, W] to [N, C, H // 2, W // 2], H and W at least 2. Maxima of 2×2 pixels at stride 1, smoothed and halved:
    along an odd side by the mean of two, along an even one, padded by a pixel, of three weighted [1 2 1] / 4.
    `training`: many steps are to come, for which it pays to find the fastest way."""
    if training and images.requires_grad and fused_is_faster(images):
        return fused.max_blur_pool(images)
    return _plain_max_blur_pool(images)


def _plain_max_blur_pool(images: Tensor) -> Tensor:
    even = [1 - side % 2 for side in images.shape[2:]]
    maxima = F.max_pool2d(images, 2, 1, even)
    if any(even):
        maxima = F.avg_pool2d(maxima, [1 + one for one in even], 1)
    return F.avg_pool2d(maxima, 2)


def fused_is_faster(images: Tensor) -> bool:
    """Are `fused`'s kernels right, and faster than torch's, on the device of `images` for their dtype?"""
    return (not torch.compiler.is_compiling() and fused.available(images)
            and _fused_is_faster(images.device, images.dtype))


@functools.cache
def _fused_is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Measured for one size: all of these operations are bound by memory."""
    norm = nn.BatchNorm2d(160, device=device)
    norm.weight.requires_grad_(False)
    images = torch.randn(256, 160, 31, 31, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    ways = {"torch's operations": lambda images: _plain_max_blur_pool(F.gelu(norm(images))),
            "fused kernels": lambda images: fused.max_blur_pool(fused.norm_gelu(images, norm))}
    with torch.enable_grad():
        return fastest(ways, images.requires_grad_(), [norm.bias]) is ways["fused kernels"]
