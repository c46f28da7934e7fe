"""Random crop, flip, affine, colour jitter and cutout for whole batches on the images' device.

The operations take explicit parameters, one value per image. `Augmentation` sets their strength, `draw_parameters`
draws their parameters, and `augment_by` applies them in about a hundred tensor operations per batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)  # of the training images, in RGB

# Pixels that the CPU processes at a time, so that they stay in its cache: 96 images of 32 px. Measured on a Xeon core
# with 2 MiB of L2 cache: 48 to 96 images are within 10 % of each other; 16, or 512 and more, lose a third of the speed.
CPU_CHUNK_PIXELS = 96 * 32 * 32


# Operations: images [N, 3, H, W], parameters [N] -----------------------------------------------------------

def crop(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Cut [N, C, size, size] out of images [N, C, H, W] of any dtype, at row `top` and column `left`: int64 [N] in
    0 … H - size and 0 … W - size."""
    count, channels, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1).reshape(-1)  # no copy if images are channels_last
    # A row of the window is one run of memory, so a crop picks `size` runs of each image from this view, which has one
    # for each start. Indexing with [image, top, left] is plainer, but five times slower on the CPU.
    runs = pixels.unfold(0, size * channels, channels)
    first = (torch.arange(count, device=images.device) * height + top) * width + left
    chosen = first[:, None] + torch.arange(size, device=images.device) * width
    return runs.index_select(0, chosen.view(-1)).view(count, size, size, channels).permute(0, 3, 1, 2)


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror the images [N, C, H, W] (any dtype) whose `mask`, bool [N], is true, left to right."""
    return torch.where(_per_image(mask), images.flip(3), images)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, mask: Tensor | None, padding: int, mode: str) -> Tensor:
    """`crop` of the images with a border, then `flip` if there is a `mask`, as one gather: few kernels for a GPU, slow
    on a CPU. images of any dtype [N, C, H, W]; top, left int64 [N] in 0 … 2 · padding."""
    count, _, height, width = images.shape
    rows, columns = (first[:, None] + torch.arange(-padding, side - padding, device=images.device)
                     for first, side in ((top, height), (left, width)))
    if mask is not None:
        columns = torch.where(mask[:, None], columns.flip(1), columns)
    rows, columns, inside = rows[:, :, None], columns[:, None, :], None
    if mode == "reflect":
        rows, columns = (side - 1 - (side - 1 - place.abs()).abs()
                         for place, side in ((rows, height), (columns, width)))
    else:
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    chosen = images.permute(0, 2, 3, 1)[torch.arange(count, device=images.device)[:, None, None], rows, columns]
    return (chosen if inside is None else chosen * inside[..., None]).permute(0, 3, 1, 2)


def affine(images: Tensor, angle: Tensor, translate_x: Tensor, translate_y: Tensor, scale: Tensor,
           mirrored: Tensor | None = None) -> Tensor:
    """Scale and rotate about the centre, then shift; bilinear, black outside.

    images float [N, C, H, W]; angle in degrees, clockwise; translate_x, translate_y in pixels to the right and down;
    scale above 1 enlarges; each float [N]. Same conventions as `torchvision.transforms.functional.affine`.
    `mirrored`, bool [N], flips those images first at no cost: it is a sign in the grid.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device, dtype=images.dtype) - (width - 1) / 2
    y = torch.arange(height, device=images.device, dtype=images.dtype) - (height - 1) / 2
    x, y = x - translate_x[:, None], y - translate_y[:, None]  # [N, W], [N, H]
    radians = torch.deg2rad(angle)
    cos, sin = (torch.cos(radians) / scale)[:, None], (torch.sin(radians) / scale)[:, None]
    across = 2 / width if mirrored is None else (1 - 2 * mirrored[:, None].to(images.dtype)) * (2 / width)

    # The source of each output pixel in grid_sample's coordinates: -1 and 1 are the outer edges. As complex numbers,
    # x + iy, the grid is the sum of a part by column and a part by row. A matrix product would be shorter, but the GPU
    # may round it to TF32, which shifts the image.
    by_column = torch.complex(cos * x * across, sin * x * (-2 / height))
    by_row = torch.complex(sin * y * across, cos * y * (2 / height))
    grid = torch.view_as_real(by_column[:, None, :] + by_row[:, :, None])  # [N, H, W, 2]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def adjust_brightness(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply by `factor`, float [N], at least 0.

    All colour changes take images float32 [N, 3, H, W] in [0, 1] and clamp to [0, 1]. `out` may be `images` itself.
    """
    return torch.mul(images, _per_image(factor), out=out).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Blend with the image's mean grey: `factor`, float [N], is 0 for plain grey, 1 for no change."""
    factor, grey = _per_image(factor), _grey(images.mean(dim=(2, 3), keepdim=True))
    return torch.mul(images, factor, out=out).add_(grey * (1 - factor)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Blend with the grey image: `factor`, float [N], is 0 for no colour, 1 for no change."""
    return torch.lerp(_grey(images), images, _per_image(factor), out=out).clamp_(0, 1)


def adjust_hue(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn the hue of HSV by `factor`, float [N], in turns: -0.5 and 0.5 give the complementary colour.

    A pixel keeps the largest and the smallest value of its three channels. A channel has the largest up to one sixth of
    a turn from its own colour, the smallest beyond two sixths, and a linear blend in between.
    """
    hue, chroma, smallest = _hue_chroma_smallest(images)
    hue.add_(factor[:, None, None], alpha=6)
    hue.sub_((hue * (1 / 6)).round_(), alpha=6)  # back to -3 … 3

    out = torch.empty_like(images) if out is None else out
    red, green, blue = out.unbind(1)  # shares of the chroma; everything in place, to stay in the cache
    torch.abs(hue, out=red).neg_().add_(2)  # distance from red, at 0
    torch.add(hue, 1, out=green)  # from magenta, the opposite of green
    torch.sub(hue, 1, out=blue)  # from yellow, the opposite of blue
    out[:, 1:].abs_().sub_(1)
    return out.clamp_(0, 1).mul_(chroma[:, None]).add_(smallest[:, None])


def _hue_chroma_smallest(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, largest minus smallest channel, and smallest channel, each [N, H, W].

    The hue is in sixths of a turn from red, positive towards green, -3 … 3; anything for greys. It needs no sectors or
    branches: with the channels scaled to 0 … 1 between smallest and largest, its distance from red is
    1 + green + blue - red, on the green side where green exceeds blue.
    """
    red, green, blue = images.unbind(1)
    smallest = torch.minimum(red, green)
    torch.minimum(smallest, blue, out=smallest)
    chroma = torch.maximum(red, green)
    torch.maximum(chroma, blue, out=chroma)
    chroma.sub_(smallest).add_(1e-10)  # so that greys neither divide by zero nor give denormal numbers, which are slow
    hue = (green - smallest).add_(blue).sub_(red).div_(chroma).add_(1)
    return hue.copysign_(green - blue), chroma, smallest


def cutout(images: Tensor, centre_y: Tensor, centre_x: Tensor, size: int, fill: tuple[float, float, float]) -> Tensor:
    """Cover a square of `size` pixels with the colour `fill` (DeVries & Taylor 2017, arXiv:1708.04552).

    images float [N, 3, H, W]; centre_y, centre_x int64 [N], any pixel. The square starts size // 2 before it and may
    extend beyond the image.
    """
    rows = _covered(centre_y, size, images.shape[2])[:, None, :, None]
    columns = _covered(centre_x, size, images.shape[3])[:, None, None, :]
    covered, images = (rows & columns).squeeze(1), images.clone()
    for channel, value in enumerate(fill):      # a tensor of the colour would be copied from the host
        images[:, channel].masked_fill_(covered, value)
    return images


def resize(images: Tensor, size: int) -> Tensor:
    """Resize a batch, float [N, 3, H, W], to `size` × `size` pixels; bilinear with antialiasing."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _grey(images: Tensor) -> Tensor:
    """ITU-R 601 luma, [N, 1, H, W], with torchvision's rounded weights."""
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _covered(centre: Tensor, size: int, side: int) -> Tensor:
    """The rows (or columns) that a square around `centre` covers: bool [N, side]."""
    from_start = torch.arange(side, device=centre.device) - (centre[:, None] - size // 2)
    return (from_start >= 0) & (from_start < size)


# Strength ------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Augmentation:
    """The strength of each change, 0 for none; by default only the crop. `config` checks what a user sets."""

    crop_padding: int = 4  # pixels on each side before the random crop
    crop_mode: str = "constant"  # pad with black (constant) or with the mirrored image (reflect)
    flip: bool = False  # mirror every second image on average
    degrees: float = 0.0  # rotation within ± degrees
    translate: float = 0.0  # shift within ± this share of the side, not rounded to whole pixels
    scale: float = 0.0  # zoom within 1 ± scale
    brightness: float = 0.0  # factor within 1 ± this, but not below 0; likewise the next two
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # within ± this share of the colour circle, at most 0.5
    cutout_size: int = 0  # side of the covered square in pixels
    fill: tuple[float, float, float] = CIFAR100_MEAN  # colour of that square, in [0, 1]

    @classmethod
    def of_strength(cls, name: str, **overrides) -> Augmentation:
        """none, basic (crop, flip), light, moderate (both with affine changes and colour jitter) or strong (also with
        cutout), with `overrides` on top."""
        return cls(**{**STRENGTHS[name], **overrides})

    @property
    def has_affine(self) -> bool:
        return self.degrees > 0 or self.translate > 0 or self.scale > 0


_BASIC = {"flip": True}
_JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
STRENGTHS = {
    "none": {"crop_padding": 0},
    "basic": _BASIC,
    "light": {**_BASIC, "degrees": 5.0, "translate": 0.05, "scale": 0.05, **_JITTER},
    "moderate": {**_BASIC, "degrees": 10.0, "translate": 0.10, "scale": 0.10, **_JITTER},
    "strong": {**_BASIC, "degrees": 15.0, "translate": 0.15, "scale": 0.15, **_JITTER, "cutout_size": 8}}


# All changes -----------------------------------------------------------------------------------------------

@torch.no_grad()
def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator, mean: Tensor | None = None,
            std: Tensor | None = None) -> Tensor:
    """`augment_by` with parameters drawn from `generator`, which is on the images' device."""
    return augment_by(images, augmentation, draw_parameters(*images.shape[:2], augmentation, generator), mean, std)


def augment_by(images: Tensor, augmentation: Augmentation, parameters: dict[str, Tensor], mean: Tensor | None = None,
               std: Tensor | None = None) -> Tensor:
    """Crop, flip, affine, brightness, contrast, saturation, hue, cutout, with the values of `draw_parameters`.

    images uint8 [N, H, W, 3], square, left unchanged. Returns float32 [N, 3, H, W] in [0, 1] (to rounding),
    channels_last. `mean` and `std`, three float32 values each on the device, also normalise it; on the CPU that is
    cheaper here, chunk by chunk in the cache, than afterwards. The order is fixed; torchvision's ColorJitter draws that
    of the colour changes. Raises ValueError for images of another shape or dtype.
    """
    _check_batch(images)
    count, side = images.shape[:2]
    augmented = torch.empty(count, 3, side, side, device=images.device, memory_format=torch.channels_last)
    chunk = max(1, CPU_CHUNK_PIXELS // side**2) if images.device.type == "cpu" else max(1, count)
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        of_part = {name: values[part] for name, values in parameters.items()}
        result = _augment_chunk(images[part].permute(0, 3, 1, 2), augmentation, of_part)
        if mean is not None:
            result.sub_(mean.view(1, 3, 1, 1)).mul_(std.reciprocal().view(1, 3, 1, 1))
        # Faster than a copy to channels_last.
        torch.stack(result.unbind(1), dim=3, out=augmented[part].permute(0, 2, 3, 1))
    return augmented


def draw_parameters(count: int, side: int, augmentation: Augmentation, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw parameters for `count` images of `side` pixels: tensors [count] by name, all uniform. Draws unused ones too,
    so that switching one change on leaves the draws of the others."""
    offsets, shift = 2 * augmentation.crop_padding + 1, augmentation.translate * side
    ranges = {
        "top": (0, offsets), "left": (0, offsets), "flip": (0, 1),
        "angle": (-augmentation.degrees, augmentation.degrees),
        "translate_x": (-shift, shift), "translate_y": (-shift, shift),
        "scale": (1 - augmentation.scale, 1 + augmentation.scale),
        **{name: (max(0, 1 - getattr(augmentation, name)), 1 + getattr(augmentation, name))
           for name in ("brightness", "contrast", "saturation")},
        "hue": (-augmentation.hue, augmentation.hue), "centre_y": (0, side), "centre_x": (0, side)}
    device = generator.device
    low, high = torch.tensor(list(ranges.values()), dtype=torch.float32).to(device, non_blocking=True).unbind(1)
    uniform = torch.rand(count, len(ranges), generator=generator, device=device)
    drawn = dict(zip(ranges, (low + (high - low) * uniform).unbind(1)))
    drawn["flip"] = drawn["flip"] < (0.5 if augmentation.flip else 0)
    for name in ("top", "left", "centre_y", "centre_x"):  # clamped in case a product rounds up to the end
        drawn[name] = drawn[name].long().clamp_(max=ranges[name][1] - 1)
    return drawn


def _augment_chunk(images: Tensor, augmentation: Augmentation, drawn: dict[str, Tensor]) -> Tensor:
    """uint8 [N, 3, H, W] to float32 of the same shape."""
    has_affine, padding, mode = augmentation.has_affine, augmentation.crop_padding, augmentation.crop_mode
    flipped = None if has_affine else drawn["flip"]  # the affine change flips at no cost
    if padding and images.is_cuda:  # on bytes, a quarter of the memory traffic
        images = crop_and_flip(images, drawn["top"], drawn["left"], flipped, padding, mode)
    else:
        if padding:
            images = crop(_pad(images, padding, mode), drawn["top"], drawn["left"], images.shape[-1])
        if flipped is not None:
            images = flip(images, flipped)
    images = images.float()
    if has_affine:
        images = affine(images, drawn["angle"], drawn["translate_x"], drawn["translate_y"], drawn["scale"],
                        mirrored=drawn["flip"])

    if augmentation.brightness:  # one multiplication with the scaling of 0 … 255 to 0 … 1
        adjust_brightness(images, drawn["brightness"] / 255, out=images)
    else:
        images.div_(255)
    if augmentation.contrast:
        adjust_contrast(images, drawn["contrast"], out=images)
    if augmentation.saturation:
        adjust_saturation(images, drawn["saturation"], out=images)
    if augmentation.hue:
        adjust_hue(images, drawn["hue"], out=images)
    if augmentation.cutout_size:
        images = cutout(images, drawn["centre_y"], drawn["centre_x"], augmentation.cutout_size, augmentation.fill)
    return images


def _pad(images: Tensor, padding: int, mode: str) -> Tensor:
    """Put a black or mirrored border around uint8 [N, 3, H, W]; F.pad cannot mirror bytes."""
    count, channels, height, width = images.shape
    padded = images.new_zeros(count, height + 2 * padding, width + 2 * padding, channels).permute(0, 3, 1, 2)
    padded[:, :, padding:-padding, padding:-padding] = images
    if mode == "reflect":  # without repeating the outermost pixel: 3 2 1 0 1 2 3
        for dim, side in ((2, height), (3, width)):
            padded.narrow(dim, 0, padding).copy_(padded.narrow(dim, padding + 1, padding).flip(dim))
            padded.narrow(dim, padding + side, padding).copy_(padded.narrow(dim, side - 1, padding).flip(dim))
    return padded


def _check_batch(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images: must be uint8 [N, H, W, 3] with H = W, are {images.dtype} {list(images.shape)}; "
                         "augment before converting to float and to channels first")
