"""Random crop, flip, affine, colour jitter and cutout for whole batches on the images' device.

First come the operations, each with explicit parameters, one value an image; then `Augmentation`, which
says how strong they are, `draw_parameters`, and `augment_by`, which applies them all.

A batch costs about a hundred tensor operations however many images it holds, and no Python an image. On the
CPU it is worked off in chunks that stay in the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)  # of the training images, in RGB

# Pixels that the CPU works on at a time: 96 images of 32 px. Measured on a Xeon core with 2 MiB of L2 cache:
# 48 to 96 images are within 10 % of each other; at 16, or at 512 and more, a third of the speed is lost.
CPU_CHUNK_PIXELS = 96 * 32 * 32


# Operations: images [N, 3, H, W], parameters [N] -----------------------------------------------------------

def crop(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Cut a square of `size` pixels out of each image, at row `top` and column `left`.

    images [N, C, H, W] of any dtype, already padded; top, left int64 [N] in 0 … H - size and 0 … W - size.
    Returns [N, C, size, size], pixel for pixel.
    """
    count, channels, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1).reshape(-1)  # no copy if images are channels_last
    # A row of the window is one run of memory, so a crop picks `size` runs of each image. This view holds the
    # runs that begin at any pixel. Indexing with [image, top, left] is plainer, but five times slower on the CPU.
    runs = pixels.unfold(0, size * channels, channels)
    first = (torch.arange(count, device=images.device) * height + top) * width + left
    chosen = first[:, None] + torch.arange(size, device=images.device) * width
    return runs.index_select(0, chosen.view(-1)).view(count, size, size, channels).permute(0, 3, 1, 2)


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror left to right the images [N, C, H, W] (any dtype) whose `mask`, bool [N], is true."""
    return torch.where(_per_image(mask), images.flip(3), images)


def affine(images: Tensor, angle: Tensor, translate_x: Tensor, translate_y: Tensor, scale: Tensor,
           mirrored: Tensor | None = None) -> Tensor:
    """Scale and rotate about the centre, then shift; bilinear, black outside.

    images float [N, C, H, W]; angle in degrees, clockwise; translate_x, translate_y in pixels to the right
    and down; scale above 0 enlarges; each float [N]. The conventions are those of
    `torchvision.transforms.functional.affine`. `mirrored`, bool [N], flips those images first, which here
    costs nothing: it is a sign in the grid.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device, dtype=images.dtype) - (width - 1) / 2
    y = torch.arange(height, device=images.device, dtype=images.dtype) - (height - 1) / 2
    x, y = x - translate_x[:, None], y - translate_y[:, None]  # [N, W], [N, H]
    radians = torch.deg2rad(angle)
    cos, sin = (torch.cos(radians) / scale)[:, None], (torch.sin(radians) / scale)[:, None]
    across = 2 / width if mirrored is None else torch.where(mirrored, -2 / width, 2 / width)[:, None]

    # Where each output pixel comes from, in grid_sample's coordinates: -1 and 1 are the outer edges. As complex
    # numbers, x + iy, the grid is one sum of a part by column and a part by row. A matrix product would be
    # shorter, but the GPU may round that to TF32, which shifts the image.
    by_column = torch.complex(cos * x * across, sin * x * (-2 / height))
    by_row = torch.complex(sin * y * across, cos * y * (2 / height))
    grid = torch.view_as_real(by_column[:, None, :] + by_row[:, :, None])  # [N, H, W, 2]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def adjust_brightness(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply float [N, 3, H, W] in [0, 1] by `factor`, float [N], at least 0; clamped to [0, 1].

    Here and in the other colour changes, `out` may be a tensor that takes the result, `images` itself too.
    """
    return torch.mul(images, _per_image(factor), out=out).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Blend with the image's mean grey: `factor`, float [N], is 0 for plain grey, 1 for no change.

    images float [N, 3, H, W] in [0, 1]; clamped to [0, 1].
    """
    factor, grey = _per_image(factor), _grey(images.mean(dim=(2, 3), keepdim=True))
    return torch.mul(images, factor, out=out).add_(grey * (1 - factor)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Blend with the grey image: `factor`, float [N], is 0 for no colour, 1 for no change.

    images float [N, 3, H, W] in [0, 1]; clamped to [0, 1].
    """
    return torch.lerp(_grey(images), images, _per_image(factor), out=out).clamp_(0, 1)


def adjust_hue(images: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn the hue of HSV by `factor`, float [N], in turns: -0.5 and 0.5 give the complementary colour.

    images float32 [N, 3, H, W] in [0, 1]. The largest and the smallest of a pixel's three channels keep their
    values. A channel has the largest up to one sixth of a turn from its own colour, the smallest from two
    sixths on, and a straight line in between.
    """
    hue, chroma, smallest = _hue_chroma_smallest(images)
    hue.add_(factor[:, None, None], alpha=6)
    hue.sub_((hue * (1 / 6)).round_(), alpha=6)  # back to -3 … 3

    out = torch.empty_like(images) if out is None else out
    red, green, blue = out.unbind(1)  # shares of the chroma; everything is written in place to stay in the cache
    torch.abs(hue, out=red).neg_().add_(2)  # by the distance from red, at 0
    torch.add(hue, 1, out=green)  # from magenta, the opposite of green
    torch.sub(hue, 1, out=blue)  # from yellow, the opposite of blue
    out[:, 1:].abs_().sub_(1)
    return out.clamp_(0, 1).mul_(chroma[:, None]).add_(smallest[:, None])


def _hue_chroma_smallest(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, largest less smallest channel, and smallest channel, each [N, H, W].

    The hue is in sixths of a turn from red, positive towards green, -3 … 3; anything for greys. It comes
    without sectors or branches: with the channels stretched to 0 … 1 between smallest and largest, it is
    1 + green + blue - red away from red, on the side of green where green exceeds blue.
    """
    red, green, blue = images.unbind(1)
    smallest = torch.minimum(red, green)
    torch.minimum(smallest, blue, out=smallest)
    chroma = torch.maximum(red, green)
    torch.maximum(chroma, blue, out=chroma)
    chroma.sub_(smallest).add_(1e-10)  # greys must not divide by zero, nor yield denormal numbers, which are slow
    hue = (green - smallest).add_(blue).sub_(red).div_(chroma).add_(1)
    return hue.copysign_(green - blue), chroma, smallest


def cutout(images: Tensor, centre_y: Tensor, centre_x: Tensor, size: int, fill: tuple[float, float, float]) -> Tensor:
    """Cover a square of `size` pixels with the colour `fill` (DeVries & Taylor 2017, arXiv:1708.04552).

    images float [N, 3, H, W]; centre_y, centre_x int64 [N], any pixel of the image: the square reaches from
    size // 2 before the centre, and what lies beyond the border is cut off.
    """
    rows = _covered(centre_y, size, images.shape[2])[:, None, :, None]
    columns = _covered(centre_x, size, images.shape[3])[:, None, None, :]
    colour = torch.tensor(fill, dtype=images.dtype).to(images.device, non_blocking=True).view(1, -1, 1, 1)
    return torch.where(rows & columns, colour, images)


def resize(images: Tensor, size: int) -> Tensor:
    """The whole batch, float [N, 3, H, W], at `size` × `size` pixels; bilinear with antialiasing."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _grey(images: Tensor) -> Tensor:
    """ITU-R 601 luma, [N, 1, H, W]; the rounded weights are torchvision's."""
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _covered(centre: Tensor, size: int, side: int) -> Tensor:
    """Bool [N, side]: which rows (or columns) a square around `centre` covers."""
    from_start = torch.arange(side, device=centre.device) - (centre[:, None] - size // 2)
    return (from_start >= 0) & (from_start < size)


# How strong ------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Augmentation:
    """What `augment` does and how far it goes; all zeros, the default but for the crop, is nothing.

    Raises ValueError when a value is out of range.
    """

    crop_padding: int = 4  # pixels on each side before the random crop, 0 for no crop
    crop_mode: str = "constant"  # the padding is black (constant) or the mirrored image (reflect)
    flip: bool = False  # mirror every second image on average
    degrees: float = 0.0  # rotation within ± degrees
    translate: float = 0.0  # shift within ± this share of the side, not rounded to whole pixels
    scale: float = 0.0  # zoom within 1 ± scale
    brightness: float = 0.0  # factor within 1 ± this, from 0 upwards; likewise the next two
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # within ± this share of the colour circle, at most 0.5
    cutout_size: int = 0  # side of the covered square in pixels, 0 for none
    fill: tuple[float, float, float] = CIFAR100_MEAN  # colour of that square, in [0, 1]

    def __post_init__(self):
        if self.crop_mode not in ("constant", "reflect"):
            raise ValueError(f"crop_mode={self.crop_mode!r}: must be 'constant' (black) or 'reflect' (mirrored)")
        for name in ("crop_padding", "cutout_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r}: must be a whole number of pixels; 0 switches it off")
        limits = {"degrees": 180, "translate": 1, "scale": 0.99, "brightness": math.inf, "contrast": math.inf,
                  "saturation": math.inf, "hue": 0.5}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be from 0 to {limit}; 0 switches it off")
        if len(self.fill) != 3 or not all(0 <= value <= 1 for value in self.fill):
            raise ValueError(f"fill={self.fill!r}: must be three numbers in [0, 1], red, green and blue; "
                             "divide 8-bit values by 255")

    @classmethod
    def of_strength(cls, name: str, **overrides) -> Augmentation:
        """none, basic (crop, flip), light, moderate or strong, with `overrides` on top.

        light, moderate and strong add affine changes and colour jitter, strong cutout as well. Raises
        ValueError for another name.
        """
        if name not in STRENGTHS:
            raise ValueError(f"augmentation strength {name!r}: must be one of {', '.join(STRENGTHS)}")
        return cls(**{**STRENGTHS[name], **overrides})

    @property
    def has_affine(self) -> bool:
        """Is there anything to rotate, shift or zoom?"""
        return self.degrees > 0 or self.translate > 0 or self.scale > 0


_BASIC = {"flip": True}
_JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
STRENGTHS = {
    "none": {"crop_padding": 0},
    "basic": _BASIC,
    "light": {**_BASIC, "degrees": 5.0, "translate": 0.05, "scale": 0.05, **_JITTER},
    "moderate": {**_BASIC, "degrees": 10.0, "translate": 0.10, "scale": 0.10, **_JITTER},
    "strong": {**_BASIC, "degrees": 15.0, "translate": 0.15, "scale": 0.15, **_JITTER, "cutout_size": 8},
}


# All of it -------------------------------------------------------------------------------------------------

@torch.no_grad()
def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator, mean: Tensor | None = None,
            std: Tensor | None = None) -> Tensor:
    """Augment a batch, every image in its own way: `augment_by` with parameters drawn from `generator`, which is on
    the device of the images."""
    _check_batch(images)
    return augment_by(images, augmentation, draw_parameters(*images.shape[:2], augmentation, generator), mean, std)


def augment_by(images: Tensor, augmentation: Augmentation, parameters: dict[str, Tensor], mean: Tensor | None = None,
               std: Tensor | None = None) -> Tensor:
    """Augment a batch as `parameters` say, which are those of `draw_parameters`, one value an image.

    images uint8 [N, H, W, 3], square. Returns float32 [N, 3, H, W] in [0, 1] (to rounding), channels_last; the input is
    left as it is. With `mean` and `std`, float32 of three values on the device, the result is normalised too; on the
    CPU that is cheaper here, chunk by chunk in the cache, than afterwards.

    The order is crop, flip, affine, brightness, contrast, saturation, hue, cutout. torchvision's ColorJitter draws the
    order of the four colour changes anew each time; here it is fixed. Raises ValueError when images have another shape
    or dtype, parameters another length, or one of mean and std is missing.
    """
    _check_batch(images)
    count, side = images.shape[:2]
    wrong = [name for name, values in parameters.items() if values.shape != (count,)]
    if wrong:
        raise ValueError(f"parameters: {wrong[0]} has shape {list(parameters[wrong[0]].shape)}; must be [{count}], one "
                         "value an image")
    if (mean is None) != (std is None):
        raise ValueError("mean, std: only one of them is given; give both to normalise, or neither")
    if augmentation.crop_mode == "reflect" and augmentation.crop_padding >= side:
        raise ValueError(f"crop_padding={augmentation.crop_padding}: a mirrored border must be narrower than the "
                         f"image, {side} pixels; take less padding or crop_mode='constant'")
    augmented = torch.empty(count, 3, side, side, device=images.device, memory_format=torch.channels_last)
    chunk = max(1, CPU_CHUNK_PIXELS // side**2) if images.device.type == "cpu" else max(1, count)
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        of_part = {name: values[part] for name, values in parameters.items()}
        result = _augment_chunk(images[part].permute(0, 3, 1, 2), augmentation, of_part)
        if mean is not None:
            result.sub_(mean.view(1, 3, 1, 1)).mul_(std.reciprocal().view(1, 3, 1, 1))
        # A copy to channels_last, only faster.
        torch.stack(result.unbind(1), dim=3, out=augmented[part].permute(0, 2, 3, 1))
    return augmented


def draw_parameters(count: int, side: int, augmentation: Augmentation,
                    generator: torch.Generator) -> dict[str, Tensor]:
    """What `augment` does to each of `count` images of `side` pixels: tensors [count] by name, all uniform.

    Every parameter is drawn whether it is in use or not, so switching one change on leaves the draws of the
    others as they were.
    """
    offsets, shift = 2 * augmentation.crop_padding + 1, augmentation.translate * side
    ranges = {
        "top": (0, offsets), "left": (0, offsets), "flip": (0, 1),
        "angle": (-augmentation.degrees, augmentation.degrees),
        "translate_x": (-shift, shift), "translate_y": (-shift, shift),
        "scale": (1 - augmentation.scale, 1 + augmentation.scale),
        **{name: (max(0, 1 - reach), 1 + reach) for name, reach in (
            ("brightness", augmentation.brightness), ("contrast", augmentation.contrast),
            ("saturation", augmentation.saturation))},
        "hue": (-augmentation.hue, augmentation.hue),
        "centre_y": (0, side), "centre_x": (0, side),
    }
    device = generator.device
    low, high = torch.tensor(list(ranges.values()), dtype=torch.float32).to(device, non_blocking=True).unbind(1)
    uniform = torch.rand(count, len(ranges), generator=generator, device=device)
    drawn = dict(zip(ranges, (low + (high - low) * uniform).unbind(1)))
    drawn["flip"] = drawn["flip"] < (0.5 if augmentation.flip else 0)
    for name in ("top", "left", "centre_y", "centre_x"):  # clamped in case a product rounds up to the end
        drawn[name] = drawn[name].long().clamp_(max=ranges[name][1] - 1)
    return drawn


def _augment_chunk(images: Tensor, augmentation: Augmentation, drawn: dict[str, Tensor]) -> Tensor:
    """uint8 [N, 3, H, W] to float32 of the same shape, with the drawn parameters."""
    side = images.shape[-1]
    if augmentation.crop_padding:  # on bytes, a quarter of the memory traffic
        padded = _pad(images, augmentation.crop_padding, augmentation.crop_mode)
        images = crop(padded, drawn["top"], drawn["left"], side)
    if augmentation.has_affine:
        images = affine(images.float(), drawn["angle"], drawn["translate_x"], drawn["translate_y"], drawn["scale"],
                        mirrored=drawn["flip"])
    else:
        images = flip(images, drawn["flip"]).float()

    if augmentation.brightness:  # one factor for this and for 0 … 255 to 0 … 1
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
    """Black or mirrored border round uint8 [N, 3, H, W]; F.pad mirrors no bytes."""
    count, channels, height, width = images.shape
    padded = images.new_zeros(count, height + 2 * padding, width + 2 * padding, channels).permute(0, 3, 1, 2)
    padded[:, :, padding:-padding, padding:-padding] = images
    if mode == "reflect":  # the border pixel itself is not repeated: 3 2 1 0 1 2 3
        for dim, side in ((2, height), (3, width)):
            padded.narrow(dim, 0, padding).copy_(padded.narrow(dim, padding + 1, padding).flip(dim))
            padded.narrow(dim, padding + side, padding).copy_(padded.narrow(dim, side - 1, padding).flip(dim))
    return padded


def _check_batch(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images: must be uint8 [N, H, W, 3] with H = W, are {images.dtype} {list(images.shape)}; "
                         "augment before the conversion to float and to channels first")
