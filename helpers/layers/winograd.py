"""3×3 convolutions on a CPU with a fifth to a half of the multiplications: Winograd's F(m×m, 3×3).

Winograd 1980, "Arithmetic Complexity of Computations"; Lavin & Gray 2015, arXiv 1509.09308. A tile of m×m outputs comes
from n×n inputs, n = m + 2, as Aᵀ [(G w Gᵀ) ⊙ (Bᵀ x B)] A, summed over the input channels: for m = 7, 81 multiplications
instead of 441. Over many tiles the sums are n² matrix products. The backward pass is the transpose.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Evaluation points of the polynomials in the Cook-Toom construction; tiles of side m use the first m + 1.
POINTS = (0, 1, -1, 2, -2, 1 / 2, -1 / 2, -4 / 3)
TILE_SIDES = (2, 3, 4, 5, 6, 7)
TILES_AT_ONCE = 200         # keeps most intermediate results in the cache

_allowed = True


@contextmanager
def direct_convolutions():
    """A context in which every Conv3x3 uses PyTorch's convolution, to count FLOPs or to compare."""
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


class Conv3x3(nn.Conv2d):
    """A 3×3 convolution with padding 1 and no bias: float [N, C_in, H, W] to [N, C_out, ⌈H/stride⌉, ⌈W/stride⌉].

    In fp32 on a CPU it uses Winograd's algorithm where that is faster, else PyTorch's convolution. The two differ by
    rounding, at most 1e-4 of the result's norm, a thirtieth of bf16's error.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, 3, stride, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.stride == (1, 1) and winograd_is_faster(images, self.weight.dtype, self.in_channels, self.out_channels):
            return winograd_conv(images, self.weight)
        return super().forward(images)


def winograd_is_faster(images: Tensor, weight_dtype: torch.dtype, in_channels: int, out_channels: int,
                       direct_share: float = 1.0) -> bool:
    """Is `winograd_conv` faster than a convolution of stride 1? Only in fp32 on a CPU, outside `direct_convolutions`.
    `direct_share`: the alternative's multiplications over those of a plain convolution."""
    if not (_allowed and images.device.type == "cpu" and images.dtype == weight_dtype == torch.float32
            and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
            and images.ndim == 4 and images.shape[1] == in_channels
            and min(in_channels, out_channels) >= 64):      # or the transforms cost more than they save
        return False
    height, width = images.shape[2:]
    rows, columns = _Tiling.of(height), _Tiling.of(width)
    return (len(images) * rows.count * columns.count >= 64          # or transforming the filters costs more
            and rows.multiplications * columns.multiplications < 0.6 * direct_share * 9 * height * width)


def winograd_conv(images: Tensor, weight: Tensor) -> Tensor:
    """`F.conv2d(images, weight, padding=1)` by F(m×m, 3×3), differentiable once.

    images: float32 or float64 [N, C_in, H, W]; weight: [C_out, C_in, 3, 3] of the same dtype (16 bits are too few for
    the transforms). Returns [N, C_out, H, W], channels_last. On each axis, m is the one of TILE_SIDES with the fewest
    multiplications.
    """
    return _WinogradConv.apply(images, weight, torch.is_grad_enabled())


class _Tiling:
    """One axis of `side` outputs, cut into `count` tiles of `m`, each computed from `n` = m + 2 inputs."""

    def __init__(self, side: int, m: int):
        self.m, self.n, self.count = m, m + 2, -(-side // m)
        self.padded = self.count * m
        self.multiplications = self.count * self.n

    @classmethod
    @functools.lru_cache
    def of(cls, side: int) -> _Tiling:
        return min((cls(side, m) for m in TILE_SIDES), key=lambda tiling: tiling.multiplications)


class _WinogradConv(torch.autograd.Function):
    # Images are [N, H, W, C]; tiles are [n, n, N, rows, columns, C] as inputs, [m, m, N, rows, columns, C] as outputs.

    @staticmethod
    def forward(ctx, images, weight, with_grad):
        number, channels, height, width = images.shape
        filters, rows, columns = len(weight), _Tiling.of(height), _Tiling.of(width)
        a, b, g = _transforms(rows.m, columns.m, images.dtype)
        border = (0, 0, 1, columns.padded + 1 - width, 1, rows.padded + 1 - height)
        kernel = _transform_filters(g, weight)
        out = torch.empty((number, filters, height, width), dtype=images.dtype, memory_format=torch.channels_last)
        kept = []
        for part, out_part in _parts(rows, columns, images, out):
            padded = F.pad(part, border)
            s_n, s_h, s_w, s_c = padded.stride()
            patches = padded.as_strided((rows.n, columns.n, len(part), rows.count, columns.count, channels),
                                        (s_h, s_w, s_n, rows.m * s_h, columns.m * s_w, s_c))
            inputs = (b @ patches.reshape(len(b), -1)).view(len(b), -1, channels)
            tiles = a @ torch.bmm(inputs, kernel).view(len(b), -1)
            tiles = tiles.view(rows.m, columns.m, -1, rows.count, columns.count, filters).permute(2, 3, 0, 4, 1, 5)
            out_part.copy_(tiles.reshape(-1, rows.padded, columns.padded, filters)[:, :height, :width])
            if with_grad and weight.requires_grad:
                kept.append(inputs)
        ctx.save_for_backward(weight, *kept)
        ctx.images_shape = images.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, *kept = ctx.saved_tensors
        (channels, height, width), filters = ctx.images_shape[1:], len(weight)
        rows, columns = _Tiling.of(height), _Tiling.of(width)
        a, b, g = _transforms(rows.m, columns.m, grad.dtype)
        border = (0, 0, 0, columns.padded - width, 0, rows.padded - height)
        kernel = _transform_filters(g, weight)
        kernel_grad = torch.zeros_like(kernel)
        images_grad = grad.new_empty(ctx.images_shape).to(memory_format=torch.channels_last)
        for place, (part, grad_part) in enumerate(_parts(rows, columns, grad, images_grad)):
            tiles = F.pad(part, border).view(-1, rows.count, rows.m, columns.count, columns.m, filters)
            tiles = (a.T @ tiles.permute(2, 4, 0, 1, 3, 5).reshape(len(a), -1)).view(len(b), -1, filters)
            if ctx.needs_input_grad[1]:
                kernel_grad.baddbmm_(kept[place].transpose(1, 2), tiles)
            if ctx.needs_input_grad[0]:
                patches = b.T @ torch.bmm(tiles, kernel.transpose(1, 2)).view(len(b), -1)
                patches = patches.view(rows.n, columns.n, -1, rows.count, columns.count, channels)
                grad_part.copy_(_overlap_add(patches)[:, :height, :width])
        weight_grad = (g.T @ kernel_grad.view(len(b), -1)).view(3, 3, channels, filters).permute(3, 2, 0, 1)
        return (*[tensor if wanted else None
                  for tensor, wanted in zip((images_grad, weight_grad), ctx.needs_input_grad)], None)


def _transform_filters(g: Tensor, weight: Tensor) -> Tensor:
    """G w Gᵀ: [C_out, C_in, 3, 3] to [n·n, C_in, C_out]."""
    filters, channels = weight.shape[:2]
    return (g @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(-1, channels, filters)


def _overlap_add(patches: Tensor) -> Tensor:
    """Sum patches [n, n, N, rows, columns, C] that overlap by 2 into [N, H, W, C], without the first row and column."""
    patches = patches.permute(2, 3, 0, 4, 1, 5)
    number, rows, height, columns, width, channels = patches.shape
    total = patches.new_empty(number, rows + 1, height - 2, columns + 1, width - 2, channels)
    total[:, -1] = total[:, :, :, -1] = 0
    total[:, :-1, :, :-1] = patches[:, :, :-2, :, :-2]
    total[:, 1:, :2, :-1] += patches[:, :, -2:, :, :-2]
    total[:, :-1, :, 1:, :2] += patches[:, :, :-2, :, -2:]
    total[:, 1:, :2, 1:, :2] += patches[:, :, -2:, :, -2:]
    return total.view(number, (rows + 1) * (height - 2), (columns + 1) * (width - 2), channels)[:, 1:, 1:]


def _parts(rows: _Tiling, columns: _Tiling, *batches: Tensor):
    """The batches [N, C, H, W] as [N, H, W, C], a few images at a time."""
    images_at_once = max(1, TILES_AT_ONCE // (rows.count * columns.count))
    return zip(*[batch.permute(0, 2, 3, 1).split(images_at_once) for batch in batches])


@functools.lru_cache
def _transforms(row_m: int, column_m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Aᵀ [m·m, n·n], Bᵀ [n·n, n·n] and G [n·n, 9] for flattened tiles; m and n may differ between rows and columns."""
    return tuple(torch.kron(*map(torch.from_numpy, pair)).to(dtype)
                 for pair in zip(_cook_toom(row_m), _cook_toom(column_m)))


def _cook_toom(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Aᵀ [m, m+2], Bᵀ [m+2, m+2] and G [m+2, 3] of F(m, 3), float64: polynomials at m + 1 points and at infinity."""
    points = np.array(POINTS[:m + 1])
    others = [np.delete(points, place) for place in range(m + 1)]
    scale = np.array([np.prod(point - rest) for point, rest in zip(points, others)])
    a = np.column_stack([np.vander(points, m, increasing=True).T, np.eye(m)[:, -1]])
    b = np.vstack([*[np.append(np.poly(rest)[::-1], 0) for rest in others], np.poly(points)[::-1]])
    g = np.vstack([np.vander(points, 3, increasing=True) / scale[:, None], [0, 0, 1]])
    return a, b, g
