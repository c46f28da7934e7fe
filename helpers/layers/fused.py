"""The elementwise work around the convolutions on a GPU, in as few passes over memory as it needs: kernels in Triton.

Triton (Tillet, Kung & Cox 2019, doi 10.1145/3315508.3329973) comes with torch on Linux; this module can be imported
without it. All functions take and return images [N, C, H, W], float16, bfloat16, float32 or float64, in channels_last
(other formats are copied), differentiate once, compute in float32 (float64 stays), give the same bits in every run, and
can be captured in a CUDA graph once they have run.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

try:
    import triton
    import triton.language as tl
except ImportError:         # Windows, macOS
    triton = None

log = logging.getLogger("cifar100")

if triton:
    # A program computes a tile [ROWS, COLUMNS]: 16 bytes of 16-bit numbers for each of 256 threads.
    ROWS, COLUMNS = tl.constexpr(64), tl.constexpr(32)
    # Programs that sum over rows take several tiles, so that at most this many results remain to be summed.
    SPANS = tl.constexpr(256)


def _kernel(function):
    """Compiles once for all values of these arguments, which change with the images' number and size."""
    return triton.jit(function, do_not_specialize=["rows", "span", "height", "width", "out_height",
                                                   "out_width"]) if triton else function


def available(images: Tensor) -> bool:
    """Can the kernels take these images? Places are 32 bits wide, and `neighbours` makes half as many numbers again."""
    return images.is_cuda and images.numel() < 2**30 and _run_on(images.device)


@functools.cache
def _run_on(device: torch.device) -> bool:
    """Tried once, since Triton also needs a C compiler and Python's headers."""
    if triton is None or torch.cuda.get_device_capability(device) < (7, 0):
        return False
    try:
        pairs(*torch.zeros(2, 1, 16, 1, 1, dtype=torch.float16, device=device))
    except Exception as error:      # of any kind, as its causes are many; the layers work without
        log.info("the layers go without fused kernels: %s", error)
        return False
    return True


def norm_gelu(images: Tensor, norm: nn.BatchNorm2d, skip: Tensor | None = None) -> Tensor:
    """`F.gelu(norm(images))`, or `F.gelu(norm(images) + skip)`, by a BatchNorm2d or PairNorm in training mode that has
    weights, a momentum and running statistics, which it updates."""
    skip = None if skip is None else _channels_last(skip)
    return _NormGelu.apply(_channels_last(images), norm.weight, norm.bias, skip, norm)


def max_blur_pool(images: Tensor) -> Tensor:
    """As `pool_norm.max_blur_pool`."""
    return _MaxBlurPool.apply(_channels_last(images))


def neighbours(images: Tensor) -> tuple[Tensor, Tensor]:
    """Channel pairs to the inputs of FlipConv3x3's `even` and `odd`, each [N, 3·C/2, H, W]: √2 times the own part, the
    sum of its left and right neighbours, and the right less the left neighbour in the other part."""
    half = images.shape[1] // 2
    return _PairsMap.apply(_neighbours, _neighbours_backward, half, [3 * half] * 2, _channels_last(images))


def pairs(even: Tensor, odd: Tensor) -> Tensor:
    """Even and odd parts, each [N, C/2, H, W], to channel pairs [N, C, H, W]: their sums, then their differences."""
    half = even.shape[1]
    return _PairsMap.apply(_pairs, _pairs_backward, half, [2 * half], _channels_last(even), _channels_last(odd))[0]


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _empty(like: Tensor, channels: int, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(len(like), channels, height, width, dtype=dtype or like.dtype, device=like.device,
                       memory_format=torch.channels_last)


def _launch(kernel, rows: int, columns: int, *arguments, **constants) -> None:
    """Run a kernel on all tiles of a matrix [rows, columns]: in channels_last, a row for each pixel."""
    kernel[triton.cdiv(rows, ROWS.value) * triton.cdiv(columns, COLUMNS.value),](
        *arguments, rows, columns, num_warps=8, **constants)


class _NormGelu(torch.autograd.Function):
    # A norm has F features: as many as channels, or half of them, which channels c and c + F share.

    @staticmethod
    def forward(ctx, images, weight, bias, skip, norm):
        channels, features = images.shape[1], len(weight)
        rows = images.numel() // channels
        span = triton.cdiv(rows, SPANS.value * ROWS.value) * ROWS.value
        ctx.sizes, ctx.grid = (span, rows, channels), (triton.cdiv(channels, COLUMNS.value), triton.cdiv(rows, span))
        moments = images.new_empty(2, features, dtype=torch.promote_types(images.dtype, torch.float32))
        parts = moments.new_empty(2, ctx.grid[1], channels)
        _moments[ctx.grid](images, parts, *ctx.sizes, num_warps=8)
        _combine[triton.cdiv(features, 8),](
            parts, moments, norm.running_mean, norm.running_var, norm.num_batches_tracked, features, *ctx.sizes,
            norm.eps, norm.momentum, COLUMNS=8, num_warps=8)
        out = torch.empty_like(images)
        _launch(_norm_gelu, rows, channels, images, skip, out, moments, weight, bias, features)
        ctx.save_for_backward(images, weight, bias, skip, moments)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        images, weight, bias, skip, moments = ctx.saved_tensors
        _, rows, channels = ctx.sizes
        parts = moments.new_empty(2, ctx.grid[1], channels)
        slope = torch.empty_like(images)        # the gradient of the norm's result, and of `skip`
        images_grad = slope if skip is None else torch.empty_like(images)
        _gelu_backward[ctx.grid](_channels_last(grad), images, skip, slope, parts, moments, weight, bias, len(weight),
                                 *ctx.sizes, num_warps=8)
        sums = parts.view(2, -1, len(weight)).sum(1)
        _launch(_norm_backward, rows, channels, slope, images, images_grad, moments, weight, sums, len(weight))
        bias_grad, weight_grad = sums.to(weight.dtype)
        return images_grad, weight_grad, bias_grad, None if skip is None else slope, None


class _MaxBlurPool(torch.autograd.Function):
    # A pixel of the result is the weighted mean of two maxima along an odd side, of three along an even one.

    @staticmethod
    def forward(ctx, images):
        channels, *sides = images.shape[1:]
        down, right = (3 - side % 2 for side in sides)
        places = {4: torch.uint8, 6: torch.int16, 9: torch.int32}[down * right]     # two bits for each maximum
        out, index = (_empty(images, channels, *(side // 2 for side in sides), dtype=dtype)
                      for dtype in (images.dtype, places))
        ctx.save_for_backward(index)
        ctx.sides, ctx.maxima = sides, {"DOWN": down, "RIGHT": right}
        _launch(_pool, out.numel() // channels, channels, images, out, index, *sides, *out.shape[2:], **ctx.maxima)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        index, = ctx.saved_tensors
        images_grad = _empty(grad, grad.shape[1], *ctx.sides)
        _launch(_pool_backward, images_grad.numel() // grad.shape[1], grad.shape[1], _channels_last(grad), index,
                images_grad, *ctx.sides, *index.shape[2:], **ctx.maxima)
        return images_grad


class _PairsMap(torch.autograd.Function):
    # A linear map of channel pairs or their parts by one kernel, and its transpose by another.

    @staticmethod
    def forward(ctx, kernel, transpose, half, channels, *inputs):
        ctx.transpose, ctx.half, ctx.channels = transpose, half, [images.shape[1] for images in inputs]
        return _PairsMap.by_kernel(kernel, half, channels, inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        grads = [_channels_last(grad) for grad in grads]
        return None, None, None, None, *_PairsMap.by_kernel(ctx.transpose, ctx.half, ctx.channels, grads)

    @staticmethod
    def by_kernel(kernel, half, channels, inputs):
        height, width = inputs[0].shape[2:]
        outputs = tuple(_empty(inputs[0], number, height, width) for number in channels)
        _launch(kernel, len(inputs[0]) * height * width, half, *inputs, *outputs, width)
        return outputs


# The kernels. Those of channel pairs take half the number of channels. Places in tensors are 32 bits wide.

@_kernel
def _tile(rows, channels):
    """A program's rows [ROWS, 1], channels [1, COLUMNS], and which of them exist. Neighbours share cache lines."""
    blocks = tl.cdiv(channels, COLUMNS)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, column, (row < rows) & (column < channels)


@_kernel
def _load(place, inside, other: tl.constexpr = 0.0):
    numbers = tl.load(place, mask=inside, other=other)
    return numbers.to(tl.float64 if numbers.dtype == tl.float64 else tl.float32)


@_kernel
def _moments(images, parts, span, rows, channels):
    """The mean of each span of rows and the sum of squared deviations from it, to parts [2, spans, channels]; by a mean
    and a sum for each place of the tile, after Welford 1962 (doi 10.1080/00401706.1962.10490022)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    count = tl.zeros([ROWS, 1], parts.dtype.element_ty)
    mean = tl.zeros([ROWS, COLUMNS], parts.dtype.element_ty)
    squares = tl.zeros([ROWS, COLUMNS], parts.dtype.element_ty)
    for done in range(0, span, ROWS):
        row = tl.program_id(1) * span + done + tl.arange(0, ROWS)[:, None]
        deviation = _load(images + row * channels + column, (row < rows) & (column < channels)) - mean
        count += tl.where(row < rows, 1.0, 0.0)
        step = tl.where(row < rows, deviation * (1.0 / tl.maximum(count, 1.0)), 0.0)
        mean += step
        squares += step * deviation * (count - 1.0)
    total = tl.sum(count, 0)[None, :]
    span_mean = tl.sum(mean * count, 0)[None, :] / total
    squares += (mean - span_mean) * (mean - span_mean) * count
    place = parts + tl.program_id(1) * channels + column
    tl.store(place, span_mean, mask=column < channels)
    tl.store(place + tl.num_programs(1) * channels, tl.sum(squares, 0)[None, :], mask=column < channels)


@_kernel
def _combine(parts, moments, running_mean, running_var, batches, features, span, rows, channels, eps: tl.constexpr,
             momentum: tl.constexpr, COLUMNS: tl.constexpr):
    """The mean and 1 / √(variance + eps), moments [2, features], from the `_moments` of all spans and both channels of
    a feature, after Chan, Golub & LeVeque 1983 (doi 10.1080/00031305.1983.10483115). Updates the running statistics."""
    members = channels // features
    part = tl.arange(0, 2 * SPANS)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    size = tl.maximum(tl.minimum(rows - part // members * span, span), 0).to(parts.dtype.element_ty)
    inside = (size > 0) & (column < features)
    place = parts + part * features + column
    means, squares = _load(place, inside), _load(place + tl.cdiv(rows, span) * channels, inside)
    count = tl.sum(size, 0)[None, :]
    mean = tl.sum(means * size, 0)[None, :] / count
    squares = tl.sum(squares + (means - mean) * (means - mean) * size, 0)[None, :]
    inside = column < features
    tl.store(moments + column, mean, mask=inside)
    tl.store(moments + features + column, 1.0 / tl.sqrt(squares / count + eps), mask=inside)
    old_mean, old_var = _load(running_mean + column, inside), _load(running_var + column, inside)
    tl.store(running_mean + column, (1.0 - momentum) * old_mean + momentum * mean, mask=inside)
    tl.store(running_var + column, (1.0 - momentum) * old_var + momentum * (squares / (count - 1.0)), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(batches, tl.load(batches) + 1)


@_kernel
def _norm_gelu(images, skip, out, moments, weight, bias, features, rows, channels):
    row, column, inside = _tile(rows, channels)
    place, feature = row * channels + column, column % features
    mean, scale = tl.load(moments + feature), tl.load(moments + features + feature)
    normed = (_load(images + place, inside) - mean) * (scale * tl.load(weight + feature)) + tl.load(bias + feature)
    if skip is not None:
        normed += _load(skip + place, inside)
    tl.store(out + place, 0.5 * normed * (1.0 + tl.erf(normed * 0.7071067811865476)), mask=inside)


@_kernel
def _gelu_backward(grad, images, skip, slope, parts, moments, weight, bias, features, span, rows, channels):
    """The gradient of the norm's result, to `slope`, and for each span of rows the sums of it and of its product with
    the standardised images, to parts [2, spans, channels]."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    feature = column % features
    mean, scale = tl.load(moments + feature), tl.load(moments + features + feature)
    factor, offset = scale * tl.load(weight + feature), tl.load(bias + feature)
    sums = tl.zeros([ROWS, COLUMNS], parts.dtype.element_ty)
    products = tl.zeros([ROWS, COLUMNS], parts.dtype.element_ty)
    for done in range(0, span, ROWS):
        row = tl.program_id(1) * span + done + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < channels)
        place = row * channels + column
        deviation = _load(images + place, inside) - mean
        normed = deviation * factor + offset
        if skip is not None:
            normed += _load(skip + place, inside)
        density = tl.exp(-0.5 * normed * normed) * 0.3989422804014327
        result = _load(grad + place, inside) * (0.5 + 0.5 * tl.erf(normed * 0.7071067811865476) + normed * density)
        tl.store(slope + place, result, mask=inside)
        sums += result
        products += result * deviation
    place = parts + tl.program_id(1) * channels + column
    tl.store(place, tl.sum(sums, 0)[None, :], mask=column < channels)
    tl.store(place + tl.num_programs(1) * channels, tl.sum(products, 0)[None, :] * scale, mask=column < channels)


@_kernel
def _norm_backward(slope, images, images_grad, moments, weight, sums, features, rows, channels):
    """Ioffe & Szegedy 2015, arXiv 1502.03167, section 3, with the sums [2, features] over all rows."""
    row, column, inside = _tile(rows, channels)
    place, feature = row * channels + column, column % features
    mean, scale = tl.load(moments + feature), tl.load(moments + features + feature)
    count = rows * (channels // features)
    mean_slope, mean_product = tl.load(sums + feature) / count, tl.load(sums + features + feature) / count
    standard = (_load(images + place, inside) - mean) * scale
    result = _load(slope + place, inside) - mean_slope - standard * mean_product
    tl.store(images_grad + place, result * (scale * tl.load(weight + feature)), mask=inside)


@_kernel
def _window_weight(number: tl.constexpr, DOWN: tl.constexpr, RIGHT: tl.constexpr):
    """Of a maximum in the mean: along a side of two [1 1] / 2, of three [1 2 1] / 4."""
    down, right = 1 + number // RIGHT % 2 * (DOWN - 2), 1 + number % RIGHT % 2 * (RIGHT - 2)
    return down * right * (0.25 / ((DOWN - 1) * (RIGHT - 1)))


@_kernel
def _pool(images, out, index, height, width, out_height, out_width, rows, channels, DOWN: tl.constexpr,
          RIGHT: tl.constexpr):
    """A row is a pixel of the result. `index`: of each of its DOWN by RIGHT windows of 2×2 pixels, in two bits, the
    place of the first maximum, or of the last NaN. Three windows to a side begin a pixel earlier than two."""
    row, column, inside = _tile(rows, channels)
    image, top, left = row // (out_width * out_height), row // out_width % out_height * 2, row % out_width * 2
    total = 0.0
    found = tl.zeros([ROWS, COLUMNS], tl.int32)
    for shift in tl.static_range(DOWN * RIGHT):
        best = float("-inf")
        place = tl.zeros([ROWS, COLUMNS], tl.int32)
        for step in tl.static_range(4):
            y = top + (shift // RIGHT + step // 2 - DOWN + 2)
            x = left + (shift % RIGHT + step % 2 - RIGHT + 2)
            exists = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            value = _load(images + ((image * height + y) * width + x) * channels + column, exists, float("-inf"))
            better = (value > best) | (value != value)
            best, place = tl.where(better, value, best), tl.where(better, step, place)
        total += best * _window_weight(shift, DOWN, RIGHT)
        found |= place << (2 * shift)
    tl.store(out + row * channels + column, total, mask=inside)
    tl.store(index + row * channels + column, found.to(index.dtype.element_ty), mask=inside)


@_kernel
def _pool_backward(grad, index, images_grad, height, width, out_height, out_width, rows, channels, DOWN: tl.constexpr,
                   RIGHT: tl.constexpr):
    """A row is a pixel of the images, which looks at the windows that may cover it."""
    row, column, inside = _tile(rows, channels)
    image = row // (width * height)
    y = row // width % height + (DOWN - 2)      # from where the first window begins
    x = row % width + (RIGHT - 2)
    total = 0.0
    for up in tl.static_range(2):
        for left in tl.static_range(2):
            out_y, out_x = y // 2 - up, x // 2 - left
            covers = inside & (out_y >= 0) & (out_y < out_height) & (out_x >= 0) & (out_x < out_width)
            place = ((image * out_height + out_y) * out_width + out_x) * channels + column
            found, share = tl.load(index + place, mask=covers, other=0).to(tl.int32), _load(grad + place, covers)
            for shift in tl.static_range(DOWN * RIGHT):
                down, right = y - 2 * out_y - shift // RIGHT, x - 2 * out_x - shift % RIGHT
                chosen = (down >= 0) & (right >= 0) & (right < 2)       # a place that is further down is no maximum
                chosen &= ((found >> (2 * shift)) & 3) == down * 2 + right
                total += tl.where(chosen, share * _window_weight(shift, DOWN, RIGHT), 0.0)
    tl.store(images_grad + row * channels + column, total, mask=inside)


@_kernel
def _even_and_odd(place, channels, inside):
    first, second = _load(place, inside), _load(place + channels, inside)
    return first + second, first - second


@_kernel
def _neighbours(images, even, odd, width, rows, channels):
    row, column, inside = _tile(rows, channels)
    pair, step = images + row * 2 * channels + column, 2 * channels
    middle_even, middle_odd = _even_and_odd(pair, channels, inside)
    left_even, left_odd = _even_and_odd(pair - step, channels, inside & (row % width > 0))
    right_even, right_odd = _even_and_odd(pair + step, channels, inside & (row % width < width - 1))
    place = row * 3 * channels + column
    tl.store(even + place, middle_even * 1.4142135623730951, mask=inside)
    tl.store(odd + place, middle_odd * 1.4142135623730951, mask=inside)
    tl.store(even + place + channels, left_even + right_even, mask=inside)
    tl.store(odd + place + channels, left_odd + right_odd, mask=inside)
    tl.store(even + place + 2 * channels, right_odd - left_odd, mask=inside)
    tl.store(odd + place + 2 * channels, right_even - left_even, mask=inside)


@_kernel
def _part_grad(own, other, place, channels, inside, has_left, has_right):
    """A pixel is the right neighbour of its left one, and the other way round."""
    left, right = place - 3 * channels, place + 3 * channels
    return (_load(own + place, inside) * 1.4142135623730951
            + _load(own + left + channels, has_left) + _load(other + left + 2 * channels, has_left)
            + _load(own + right + channels, has_right) - _load(other + right + 2 * channels, has_right))


@_kernel
def _neighbours_backward(even, odd, images_grad, width, rows, channels):
    row, column, inside = _tile(rows, channels)
    has_left, has_right = inside & (row % width > 0), inside & (row % width < width - 1)
    place = row * 3 * channels + column
    even_grad = _part_grad(even, odd, place, channels, inside, has_left, has_right)
    odd_grad = _part_grad(odd, even, place, channels, inside, has_left, has_right)
    pair = images_grad + row * 2 * channels + column
    tl.store(pair, even_grad + odd_grad, mask=inside)
    tl.store(pair + channels, even_grad - odd_grad, mask=inside)


@_kernel
def _pairs(even, odd, out, width, rows, channels):
    row, column, inside = _tile(rows, channels)
    one, other = _load(even + row * channels + column, inside), _load(odd + row * channels + column, inside)
    pair = out + row * 2 * channels + column
    tl.store(pair, one + other, mask=inside)
    tl.store(pair + channels, one - other, mask=inside)


@_kernel
def _pairs_backward(grad, even_grad, odd_grad, width, rows, channels):
    row, column, inside = _tile(rows, channels)
    even, odd = _even_and_odd(grad + row * 2 * channels + column, channels, inside)
    tl.store(even_grad + row * channels + column, even, mask=inside)
    tl.store(odd_grad + row * channels + column, odd, mask=inside)
