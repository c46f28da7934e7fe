"""3×3 convolutions on a CPU with a third of the multiplications: Winograd's F(4×4, 3×3).

Winograd 1980, "Arithmetic Complexity of Computations"; Lavin & Gray 2015, arXiv 1509.09308. A tile of 4×4 outputs is
made from 6×6 inputs as A [(G w Gᵀ) ⊙ (B x Bᵀ)] Aᵀ, summed over the input channels: 36 multiplications, not 144.
For a whole batch the sums are 36 matrix products. The backward pass is the same algorithm transposed.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_B = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
      [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
      [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
TILES_AT_ONCE = 400         # so that what is between two steps stays in the cache


class Conv3x3(nn.Conv2d):
    """A 3×3 convolution with padding 1 and no bias: float [N, C_in, H, W] to [N, C_out, H/stride, W/stride].

    In fp32 on a CPU it takes Winograd's algorithm where that is faster, else PyTorch's own convolution. The two differ
    by rounding, about 2e-6 of the result's norm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, 3, stride, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return winograd_conv(images, self.weight) if self._winograd_is_faster(images) else super().forward(images)

    def _winograd_is_faster(self, images: Tensor) -> bool:
        number, channels, height, width = images.shape
        rows, columns = _tiles(height), _tiles(width)
        return (images.device.type == "cpu" and images.dtype == self.weight.dtype == torch.float32
                and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling() and self.stride == (1, 1)
                and min(channels, self.out_channels) >= 64      # else the transforms take longer than they save
                and number * rows * columns >= 64               # else transforming the filters does
                and 4 * rows * columns < 0.6 * height * width)


def winograd_conv(images: Tensor, weight: Tensor) -> Tensor:
    """`F.conv2d(images, weight, padding=1)` by F(4×4, 3×3), differentiable once.

    `images` is float [N, C_in, H, W], `weight` [C_out, C_in, 3, 3] of the same dtype; the result is [N, C_out, H, W] in
    channels_last order.
    """
    return _WinogradConv.apply(images, weight)


class _WinogradConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, weight):
        number, channels, height, width = images.shape
        filters = len(weight)
        rows, columns = _tiles(height), _tiles(width)
        a, b, g = _transforms(images.dtype)
        border = (0, 0, 1, 4 * columns + 1 - width, 1, 4 * rows + 1 - height)
        kernel = (g @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, channels, filters)
        out = images.new_empty(number, height, width, filters)
        inputs = []
        for part, out_part in _parts(rows * columns, images.permute(0, 2, 3, 1), out):
            padded = F.pad(part, border)
            s_n, s_h, s_w, s_c = padded.stride()
            patches = padded.as_strided((6, 6, len(part), rows, columns, channels),
                                        (s_h, s_w, s_n, 4 * s_h, 4 * s_w, s_c))
            inputs.append((b @ patches.reshape(36, -1)).view(36, -1, channels))
            tiles = (a @ torch.bmm(inputs[-1], kernel).view(36, -1)).view(4, 4, -1, rows, columns, filters)
            whole = tiles.permute(2, 3, 0, 4, 1, 5).reshape(-1, 4 * rows, 4 * columns, filters)
            out_part.copy_(whole[:, :height, :width])
        ctx.save_for_backward(kernel, *inputs)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        kernel, *inputs = ctx.saved_tensors
        number, filters, height, width = grad.shape
        rows, columns, channels = _tiles(height), _tiles(width), kernel.shape[1]
        a, b, g = _transforms(grad.dtype)
        border = (0, 0, 0, 4 * columns - width, 0, 4 * rows - height)
        kernel_grad = torch.zeros_like(kernel)
        images_grad = grad.new_empty(number, height, width, channels)
        parts = _parts(rows * columns, grad.permute(0, 2, 3, 1), images_grad)
        for (part, grad_part), inputs_part in zip(parts, inputs):
            padded = F.pad(part, border).view(-1, rows, 4, columns, 4, filters)
            tiles = (a.T @ padded.permute(2, 4, 0, 1, 3, 5).reshape(16, -1)).view(36, -1, filters)
            kernel_grad.baddbmm_(inputs_part.transpose(1, 2), tiles)
            if ctx.needs_input_grad[0]:
                patches = b.T @ torch.bmm(tiles, kernel.transpose(1, 2)).view(36, -1)
                grad_part.copy_(_overlap_add(patches.view(6, 6, -1, rows, columns, channels))[:, :height, :width])
        weight_grad = (g.T @ kernel_grad.view(36, -1)).view(3, 3, channels, filters).permute(3, 2, 0, 1)
        return images_grad.permute(0, 3, 1, 2) if ctx.needs_input_grad[0] else None, weight_grad


def _overlap_add(patches: Tensor) -> Tensor:
    """Sum of 6×6 patches that lie 4 apart, without the border: [6, 6, N, rows, columns, C] to [N, H, W, C]."""
    patches = patches.permute(2, 3, 0, 4, 1, 5)
    number, rows, _, columns, _, channels = patches.shape
    total = patches.new_empty(number, rows + 1, 4, columns + 1, 4, channels)
    total[:, -1] = 0
    total[:, :, :, -1] = 0
    total[:, :-1, :, :-1] = patches[:, :, :4, :, :4]
    total[:, 1:, :2, :-1] += patches[:, :, 4:, :, :4]
    total[:, :-1, :, 1:, :2] += patches[:, :, :4, :, 4:]
    total[:, 1:, :2, 1:, :2] += patches[:, :, 4:, :, 4:]
    return total.view(number, 4 * rows + 4, 4 * columns + 4, channels)[:, 1:, 1:]


def _tiles(side: int) -> int:
    return -(-side // 4)


def _parts(tiles_each: int, *batches: Tensor):
    """The batches, a few images at a time."""
    return zip(*[batch.split(max(1, TILES_AT_ONCE // tiles_each)) for batch in batches])


@functools.lru_cache
def _transforms(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A [16, 36], B [36, 36] and G [36, 9], each for both directions of a flattened tile at once."""
    return tuple(torch.kron(*[torch.tensor(matrix, dtype=dtype)] * 2) for matrix in (_A, _B, _G))
