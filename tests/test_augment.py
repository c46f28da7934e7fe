"""Each operation against torchvision's, image by image; the whole against the chain of them."""

import dataclasses

import pytest
import torch
import torchvision.transforms.v2.functional as reference
from torchvision.transforms import InterpolationMode

from helpers import augment as ours
from helpers.augment import STRENGTHS, Augmentation, augment, augment_by, draw_parameters

SIDES = (16, 32, 64)
EVERYTHING = Augmentation.of_strength("strong")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def float_images(count=12, side=32, seed=0):
    """Noise, a smooth picture, greys, pure colours, black and white: everything hue may stumble over."""
    images = torch.rand(count, 3, side, side, generator=seeded(seed))
    images[1] = torch.linspace(0, 1, side)[None, :, None] * torch.tensor([1.0, 0.6, 0.2])[:, None, None]
    images[2] = images[2, :1]
    images[3] = torch.randint(0, 2, (3, side, side), generator=seeded(seed)).float()
    images[4], images[5] = 0, 1
    images[6] = (images[6] * 255).round() / 255
    return images


def byte_images(count=10, side=32, seed=0):
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=seeded(seed))


def uniform(low, high, count=12, seed=1):
    return low + (high - low) * torch.rand(count, generator=seeded(seed))


def one_by_one(operation, images, *parameters):
    return torch.stack([operation(image, *values) for image, *values in zip(images, *parameters)])


def as_torchvision(images, augmentation, drawn):
    """What augment_by should give, by torchvision on one image after the other."""
    side, padding = images.shape[1], augmentation.crop_padding
    results = []
    for index, pixels in enumerate(images):
        value = {name: values[index].item() for name, values in drawn.items()}
        image = pixels.permute(2, 0, 1).float() / 255
        if padding:
            image = reference.pad(image, [padding] * 4, padding_mode=augmentation.crop_mode)
            image = reference.crop(image, value["top"], value["left"], side, side)
        if value["flip"]:
            image = reference.horizontal_flip(image)
        image = reference.affine(image, value["angle"], [value["translate_x"], value["translate_y"]], value["scale"],
                                 [0.0, 0.0], InterpolationMode.BILINEAR)
        image = reference.adjust_brightness(image, value["brightness"])
        image = reference.adjust_contrast(image, value["contrast"])
        image = reference.adjust_saturation(image, value["saturation"])
        image = reference.adjust_hue(image, value["hue"])
        results.append(erase_square(image, value["centre_y"], value["centre_x"], augmentation.cutout_size,
                                    augmentation.fill))
    return torch.stack(results)


def erase_square(image, centre_y, centre_x, size, fill):
    side = image.shape[-1]
    top, left = max(centre_y - size // 2, 0), max(centre_x - size // 2, 0)
    bottom, right = (min(centre - size // 2 + size, side) for centre in (centre_y, centre_x))
    return reference.erase(image, top, left, max(bottom - top, 0), max(right - left, 0),
                           torch.tensor(fill)[:, None, None])


# The operations --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_crop_is_exact(dtype):
    images = (float_images(side=40) * 255).to(dtype)
    top, left = torch.randint(0, 9, (2, 12), generator=seeded())
    top[0], left[0], top[1], left[1] = 0, 8, 8, 0
    expected = one_by_one(lambda image, y, x: reference.crop(image, int(y), int(x), 32, 32), images, top, left)
    assert torch.equal(ours.crop(images, top, left, 32), expected)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("with_flip", [True, False])
def test_crop_and_flip_in_one_gather_are_those_of_torchvision(mode, with_flip):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (40, 3, 9, 7), dtype=torch.uint8, generator=generator)
    top, left = (torch.randint(0, 7, (40,), generator=generator) for _ in range(2))
    mask = torch.rand(40, generator=generator) < 0.5
    found = ours.crop_and_flip(images, top, left, mask if with_flip else None, 3, mode)
    for image, y, x, mirrored, result in zip(images, top, left, mask, found):
        expected = reference.crop(reference.pad(image, [3, 3], padding_mode=mode), y, x, 9, 7)
        assert torch.equal(result, expected.flip(2) if mirrored and with_flip else expected)


def test_flip_mirrors_the_masked_images_only():
    images, mask = float_images(), torch.arange(12) % 3 == 0
    expected = one_by_one(lambda image, yes: reference.horizontal_flip(image) if yes else image, images, mask)
    assert torch.equal(ours.flip(images, mask), expected)


@pytest.mark.parametrize("height, width", [(16, 16), (32, 32), (64, 64), (20, 33)])
def test_affine_follows_torchvision(height, width):
    images = torch.rand(12, 3, height, width, generator=seeded())
    angle, scale = uniform(-180, 180), uniform(0.6, 1.5, seed=2)
    shift_x, shift_y = uniform(-6, 6, seed=3).round(), uniform(-6, 6, seed=4).round()
    expected = one_by_one(lambda image, a, x, y, s: reference.affine(
        image, a.item(), [x.item(), y.item()], s.item(), [0.0, 0.0], InterpolationMode.BILINEAR),
        images, angle, shift_x, shift_y, scale)
    torch.testing.assert_close(ours.affine(images, angle, shift_x, shift_y, scale), expected, atol=1e-4, rtol=0)


def test_affine_of_mirrored_images_flips_first():
    images, mask = float_images(), torch.arange(12) % 2 == 0
    parameters = uniform(-20, 20), uniform(-3, 3, seed=2), uniform(-3, 3, seed=3), uniform(0.8, 1.2, seed=4)
    expected = ours.affine(ours.flip(images, mask), *parameters)
    torch.testing.assert_close(ours.affine(images, *parameters, mirrored=mask), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name, low, high", [("brightness", 0, 2.5), ("contrast", 0, 2.5), ("saturation", 0, 2.5),
                                             ("hue", -0.5, 0.5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_colour_changes_follow_torchvision(name, low, high, memory_format):
    images = float_images().contiguous(memory_format=memory_format)
    before = images.clone()
    factor = uniform(low, high)
    factor[7], factor[8] = low, high
    adjust, theirs = getattr(ours, f"adjust_{name}"), getattr(reference, f"adjust_{name}")
    expected = one_by_one(lambda image, value: theirs(image, value.item()), images, factor)
    torch.testing.assert_close(adjust(images, factor), expected, atol=2e-6, rtol=0)
    assert torch.equal(images, before)
    adjust(images, factor, out=images)
    torch.testing.assert_close(images, expected, atol=2e-6, rtol=0)


def test_a_full_turn_of_hue_in_steps_comes_back():
    images = float_images()
    turned = images
    for _ in range(3):
        turned = ours.adjust_hue(turned, torch.full((12,), 1 / 3))
    torch.testing.assert_close(turned, images, atol=5e-6, rtol=0)


@pytest.mark.parametrize("size", [1, 7, 8, 40])
def test_cutout_is_an_erased_square_clipped_at_the_border(size):
    images, fill = float_images(), (0.1, 0.5, 0.9)
    centre_y, centre_x = torch.randint(0, 32, (2, 12), generator=seeded())
    centre_y[0], centre_x[0], centre_y[1], centre_x[1] = 0, 31, 31, 0
    expected = one_by_one(lambda image, y, x: erase_square(image, y.item(), x.item(), size, fill),
                          images, centre_y, centre_x)
    assert torch.equal(ours.cutout(images, centre_y, centre_x, size, fill), expected)


@pytest.mark.parametrize("size", [16, 24, 32])
def test_resize_follows_torchvision(size):
    images = float_images().contiguous(memory_format=torch.channels_last)
    expected = reference.resize(images, [size, size], InterpolationMode.BILINEAR, antialias=True)
    torch.testing.assert_close(ours.resize(images, size), expected, atol=1e-5, rtol=0)


# The whole -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("augmentation", [
    EVERYTHING, Augmentation.of_strength("moderate", crop_mode="reflect"), Augmentation.of_strength("basic"),
    Augmentation(crop_padding=0, hue=0.5, contrast=0.9), Augmentation(crop_padding=2, brightness=1.5, cutout_size=5)])
def test_augment_is_the_chain_of_torchvision_operations(side, augmentation):
    images, drawn = byte_images(side=side), draw_parameters(10, side, augmentation, seeded())
    expected = as_torchvision(images, augmentation, drawn)
    result = augment_by(images, augmentation, drawn)
    assert result.shape == (10, 3, side, side) and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_augment_draws_parameters_and_augments_by_them(side, strength):
    images, augmentation = byte_images(side=side), Augmentation.of_strength(strength)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    for normalise in ((), (mean, std)):
        generator, same_generator = seeded(7), seeded(7)
        expected = augment_by(images, augmentation, draw_parameters(10, side, augmentation, generator), *normalise)
        assert torch.equal(augment(images, augmentation, same_generator, *normalise), expected)
        assert torch.equal(generator.get_state(), same_generator.get_state())


def test_each_image_is_augmented_by_its_own_parameters():
    images, drawn = byte_images(), draw_parameters(10, 32, EVERYTHING, seeded())
    order = torch.randperm(10, generator=seeded(1))
    whole = augment_by(images, EVERYTHING, drawn)
    others = augment_by(images[order], EVERYTHING, {name: values[order] for name, values in drawn.items()})
    torch.testing.assert_close(others, whole[order], atol=1e-6, rtol=0)


def test_none_only_converts():
    images = byte_images()
    assert torch.equal(augment(images, Augmentation.of_strength("none"), seeded()),
                       images.permute(0, 3, 1, 2).float() / 255)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_values_stay_in_range_and_the_input_stays_as_it_is(strength):
    images = byte_images(50)
    images[:10], images[10:20] = 255, 0
    augmentation, before = Augmentation.of_strength(strength), images.clone()
    drawn, same_drawn = (draw_parameters(50, 32, augmentation, seeded()) for _ in range(2))
    result = augment_by(images, augmentation, drawn)
    assert torch.isfinite(result).all() and result.min() >= 0 and result.max() <= 1 + 1e-6
    assert torch.equal(images, before) and all(torch.equal(drawn[name], same_drawn[name]) for name in same_drawn)


def test_an_image_does_not_depend_on_its_neighbours():
    images, others = byte_images(), byte_images(seed=5)
    others[3] = images[3]
    results = [augment(batch, EVERYTHING, seeded())[3] for batch in (images, others)]
    assert torch.equal(*results)


def test_the_chunk_length_does_not_matter(monkeypatch):
    images = byte_images(21)
    whole = augment(images, EVERYTHING, seeded())
    monkeypatch.setattr(ours, "CPU_CHUNK_PIXELS", 4 * 32 * 32)
    torch.testing.assert_close(augment(images, EVERYTHING, seeded()), whole, atol=1e-6, rtol=0)


def test_the_generator_decides():
    images = byte_images()
    same, again, other = (augment(images, EVERYTHING, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(same, again) and not torch.equal(same, other)
    generator = seeded(3)
    first, second = (augment(images, EVERYTHING, generator) for _ in range(2))
    assert torch.equal(first, same) and not torch.equal(first, second)


@pytest.mark.parametrize("base", [Augmentation(crop_padding=0), Augmentation(crop_padding=0, flip=True)])
def test_flips_are_those_of_the_parameters_whatever_the_augmentation_draws(base):
    images, parameters = byte_images(), draw_parameters(10, 32, base, seeded())
    parameters["flip"] = torch.arange(10) < 4
    expected = images.permute(0, 3, 1, 2).float() / 255
    expected[:4] = expected[:4].flip(3)
    assert torch.equal(augment_by(images, base, parameters), expected)


def test_mean_and_std_normalise_the_result():
    images, mean, std = byte_images(), torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    expected = reference.normalize(augment(images, EVERYTHING, seeded()), mean.tolist(), std.tolist())
    result = augment(images, EVERYTHING, seeded(), mean=mean.view(1, 3, 1, 1), std=std.view(1, 3, 1, 1))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_an_empty_batch_passes():
    assert augment(byte_images(0), EVERYTHING, seeded()).shape == (0, 3, 32, 32)


# The draws -------------------------------------------------------------------------------------------------

def test_draws_are_uniform_within_their_bounds_and_differ_between_images():
    drawn = draw_parameters(20000, 32, EVERYTHING, seeded())
    bounds = {"top": (0, 8), "left": (0, 8), "angle": (-15, 15), "translate_x": (-4.8, 4.8),
              "translate_y": (-4.8, 4.8), "scale": (0.85, 1.15), "brightness": (0.8, 1.2), "contrast": (0.8, 1.2),
              "saturation": (0.8, 1.2), "hue": (-0.1, 0.1), "centre_y": (0, 31), "centre_x": (0, 31)}
    assert set(drawn) == {*bounds, "flip"}
    for name, (low, high) in bounds.items():
        values = drawn[name].double()
        span = high - low
        assert low - 1e-6 <= values.min() <= low + 0.01 * span and high - 0.01 * span <= values.max() <= high + 1e-6
        assert abs(values.mean() - (low + high) / 2) < 0.02 * span
        whole = not drawn[name].is_floating_point()
        expected_variance = ((span + 1) ** 2 - 1) / 12 if whole else span**2 / 12
        assert values.var().item() == pytest.approx(expected_variance, rel=0.05)
        assert len(values.unique()) == span + 1 if whole else len(values.unique()) > 15000
    assert abs(drawn["flip"].double().mean() - 0.5) < 0.02
    together = torch.stack([values.double() for values in drawn.values()])
    assert (torch.corrcoef(together) - torch.eye(13)).abs().max() < 0.04


def test_one_setting_leaves_the_draws_of_the_others():
    with_all = draw_parameters(50, 32, EVERYTHING, seeded())
    basic = draw_parameters(50, 32, Augmentation.of_strength("basic"), seeded())
    assert all(torch.equal(with_all[name], basic[name]) for name in ("top", "left", "flip"))


def test_strong_jitter_never_draws_a_negative_factor():
    drawn = draw_parameters(1000, 32, Augmentation(brightness=1.5), seeded())
    assert 0 <= drawn["brightness"].min() < 0.05 and drawn["brightness"].max() > 2.45


# The settings ----------------------------------------------------------------------------------------------

def test_strength_table():
    off = {"crop_padding": 0, "flip": False, "degrees": 0, "translate": 0, "scale": 0, "brightness": 0, "contrast": 0,
           "saturation": 0, "hue": 0, "cutout_size": 0}
    basic = {**off, "crop_padding": 4, "flip": True}
    jitter = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
    table = {
        "none": off,
        "basic": basic,
        "light": {**basic, **jitter, "degrees": 5, "translate": 0.05, "scale": 0.05},
        "moderate": {**basic, **jitter, "degrees": 10, "translate": 0.10, "scale": 0.10},
        "strong": {**basic, **jitter, "degrees": 15, "translate": 0.15, "scale": 0.15, "cutout_size": 8},
    }
    assert set(table) == set(STRENGTHS)
    for name, expected in table.items():
        values = dataclasses.asdict(Augmentation.of_strength(name))
        assert {key: values[key] for key in expected} == expected
        assert values["crop_mode"] == "constant"
    assert Augmentation.of_strength("strong", cutout_size=0, hue=0.3).hue == 0.3


@pytest.mark.parametrize("images", [byte_images().float(), byte_images().permute(0, 3, 1, 2), byte_images()[0],
                                    byte_images()[:, :20]])
def test_a_wrong_batch_is_named(images):
    for call in (lambda: augment(images, EVERYTHING, seeded()),
                 lambda: augment_by(images, EVERYTHING, draw_parameters(10, 32, EVERYTHING, seeded()))):
        with pytest.raises(ValueError, match="images: must be uint8"):
            call()
