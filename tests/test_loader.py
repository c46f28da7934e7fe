"""loader: batches against the images they show, the draws they are made by, and each other."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.augment import Augmentation, augment_by, draw_parameters
from helpers.config import TrainingConfig
from helpers.loader import BatchLoader, training_loader

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
MODERATE = Augmentation.of_strength("moderate")
CROP_ONLY = Augmentation()
NOTHING = Augmentation(crop_padding=0)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (50, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def loader_of(images):
    """A function that makes a loader of fifty images whose labels are their indices."""
    def make(batch_size=16, device=CPU, **settings) -> BatchLoader:
        settings = {"mean": MEAN, "std": STD, "num_classes": 50, **settings}
        return BatchLoader(images, torch.arange(50), batch_size, device, **settings)
    return make


def test_a_loader_of_no_images_has_no_batches(images):
    empty = BatchLoader(images[:0], torch.arange(0), 16, CPU, mean=MEAN, std=STD, num_classes=50)
    assert len(empty) == 0 and list(empty.batches()) == []


def normalised(images: torch.Tensor) -> torch.Tensor:
    """By the formula, in NumPy and double precision."""
    values = (images.numpy() / 255.0 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(values.transpose(0, 3, 1, 2)).float()


def same(first, second) -> bool:
    """Are two batches equal to the bit, images and labels?"""
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


# What a batch holds ----------------------------------------------------------------------------------------

def test_evaluation_batches_are_all_images_in_order_normalised(loader_of, images):
    loader = loader_of()
    batches = list(loader.batches())
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2] and len(loader) == 4
    assert torch.equal(torch.cat([labels for _, labels in batches]), torch.arange(50))
    assert torch.allclose(torch.cat([pixels for pixels, _ in batches]), normalised(images), atol=1e-5)


def test_a_batch_size_above_the_set_gives_one_batch(loader_of):
    for augmentation in (None, MODERATE):
        loader = loader_of(batch_size=500, augmentation=augmentation)
        assert len(loader) == 1 and len(loader.batch(0, 0)[0]) == 50


def test_augmented_pixels_are_normalised_by_the_same_formula(loader_of, images):
    pixels, labels = loader_of(augmentation=NOTHING, seed=11).batch(2, 1)
    assert torch.allclose(pixels, normalised(images[labels]), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("augmentation", [None, MODERATE])
def test_batches_have_the_asked_type_and_lie_in_memory_by_pixel(dtype, augmentation, loader_of):
    for settings in ({}, {"mixup_alpha": 1.0}):
        pixels, _ = loader_of(augmentation=augmentation, dtype=dtype, **settings).batch(0, 1)
        assert pixels.dtype == dtype and pixels.shape == (16, 3, 32, 32)
        assert pixels.stride() == (3072, 1, 96, 3)


@pytest.mark.parametrize("augmentation", [None, NOTHING])
def test_smaller_images_are_averages_of_the_same_pictures(augmentation, loader_of, images):
    pixels, labels = loader_of(augmentation=augmentation).batch(0, 0, image_size=20)
    assert pixels.shape == (16, 3, 20, 20) and pixels.is_contiguous(memory_format=torch.channels_last)
    expected = F.interpolate(images[labels].permute(0, 3, 1, 2).double() / 255, size=(20, 20), mode="bilinear",
                             antialias=True)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    assert torch.allclose(pixels.double(), (expected - mean) / std, atol=1e-4)


@pytest.mark.parametrize("augmentation", [None, MODERATE])
def test_a_batch_is_its_stages_one_after_the_other(augmentation, loader_of, images):
    loader = loader_of(augmentation=augmentation)
    for epoch, index in ((0, 1), (3, 0), (3, 2)):
        found, labels = loader.batch(epoch, index)
        chosen, pixels = loader.indices(epoch, index), loader.pixels(epoch, index)
        assert chosen.dtype == torch.int64 and torch.equal(labels, chosen)
        assert pixels.dtype == torch.uint8 and torch.equal(pixels, images[chosen])
        stage = loader.normalised(pixels, epoch, index)
        assert stage.dtype == torch.float32 and torch.equal(stage, found)


# What is random --------------------------------------------------------------------------------------------

MIXES = {"no mix": {}, "mixup": {"mixup_alpha": 0.8}, "cutmix": {"cutmix_alpha": 1.0},
         "both": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}}
KEYS = [(epoch, index) for epoch in (0, 1) for index in range(3)]


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_batch_is_a_function_of_seed_epoch_and_index(mix, loader_of):
    settings = {"augmentation": MODERATE, "seed": 3, "alternating_flip": True, **mix}
    torch.manual_seed(1)            # the global generator must not matter
    asked_in_order = loader_of(**settings)
    in_order = {key: asked_in_order.batch(*key) for key in KEYS}
    torch.manual_seed(2)
    asked_at_random = loader_of(**settings)
    for key in [(1, 2), (0, 1), (1, 0), (0, 0), (1, 1), (0, 2), (0, 2)]:
        asked_at_random.batch(*key, image_size=20)
        assert same(asked_at_random.batch(*key), in_order[key]), key
    for key in KEYS:                # as after a run was interrupted there
        assert same(loader_of(**settings).batch(*key), in_order[key]), key
    others = [in_order[0, 1], in_order[1, 0], loader_of(**{**settings, "seed": 4}).batch(0, 0)]
    assert not any(torch.equal(in_order[0, 0][0], pixels) for pixels, _ in others)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_batch_leaves_the_global_generator_alone(mix, loader_of):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loader_of(augmentation=MODERATE, alternating_flip=True, **mix).batch(0, 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("alternating_flip", [False, True])
def test_a_batch_is_augmented_by_what_was_drawn_for_its_epoch(alternating_flip, loader_of, images):
    settings = {"augmentation": MODERATE, "alternating_flip": alternating_flip, "seed": 5}
    order, parameters = loader_of(**settings).draw_epoch(1)
    loader = loader_of(**settings)
    for index, places in enumerate(torch.arange(48).split(16)):
        of_batch = {name: values[places] for name, values in parameters.items()}
        expected = augment_by(images[order[places]], MODERATE, of_batch, torch.tensor(MEAN), torch.tensor(STD))
        assert same(loader.batch(1, index), (expected, order[places]))


def test_an_epochs_draws_are_an_order_and_the_parameters_of_each_image(loader_of):
    order, parameters = loader_of(augmentation=MODERATE).draw_epoch(4)
    assert order.dtype == torch.int64 and torch.equal(order.sort().values, torch.arange(50))
    drawn = draw_parameters(50, 32, MODERATE, torch.Generator())
    assert {name: (values.dtype, values.shape) for name, values in parameters.items()} == \
        {name: (values.dtype, values.shape) for name, values in drawn.items()}


def test_evaluation_draws_nothing(loader_of):
    order, parameters = loader_of(seed=9).draw_epoch(3)
    assert torch.equal(order, torch.arange(50)) and parameters == {}


@pytest.mark.parametrize("seed, epoch", [(0, 1), (1, 0)])
def test_another_epoch_and_another_seed_draw_everything_anew(seed, epoch, loader_of):
    first_order, first = loader_of(augmentation=MODERATE).draw_epoch(0)
    order, parameters = loader_of(augmentation=MODERATE, seed=seed).draw_epoch(epoch)
    assert not torch.equal(order, first_order)
    for name, values in parameters.items():
        of_image, first_of_image = (drawn[places.argsort()] for drawn, places in ((values, order),
                                                                                  (first[name], first_order)))
        assert not torch.equal(values, first[name]) and not torch.equal(of_image, first_of_image), name


def test_the_batch_size_only_cuts_an_epoch_up(loader_of):
    small, large = (loader_of(batch_size=batch_size, augmentation=MODERATE, seed=2) for batch_size in (8, 24))
    (few, few_labels), (many, many_labels) = (map(torch.cat, zip(*loader.batches(1))) for loader in (small, large))
    assert torch.equal(few_labels, many_labels) and torch.allclose(few, many, atol=1e-5)


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(loader_of):
    loader = loader_of(batch_size=10, augmentation=CROP_ONLY)
    orders = [torch.cat([labels for _, labels in loader.batches(epoch)]) for epoch in range(3)]
    assert all(order.sort().values.equal(torch.arange(50)) for order in orders)
    assert not orders[0].equal(orders[1]) and not orders[1].equal(orders[2])


def test_a_training_epoch_leaves_out_the_incomplete_batch(loader_of):
    loader = loader_of(augmentation=CROP_ONLY)
    for epoch in range(2):
        labels = torch.cat([labels for _, labels in loader.batches(epoch)])
        assert len(loader) == 3 and len(labels) == len(labels.unique()) == 48
    assert len(loader.indices(0, 3)) == 0


# Flips -----------------------------------------------------------------------------------------------------

def test_alternating_flip_shows_each_image_both_ways_in_two_epochs(loader_of, images):
    """One half is mirrored in even epochs, the other in odd ones (Jordan 2024)."""
    loader = loader_of(batch_size=10, augmentation=NOTHING, alternating_flip=True)
    upright = normalised(images)
    mirrored = torch.zeros(4, 50, dtype=torch.bool)
    for epoch in range(4):
        for pixels, labels in loader.batches(epoch):
            is_upright = (pixels - upright[labels]).abs().flatten(1).amax(1) < 1e-4
            is_mirrored = (pixels - upright[labels].flip(3)).abs().flatten(1).amax(1) < 1e-4
            assert (is_upright ^ is_mirrored).all()
            mirrored[epoch, labels] = is_mirrored
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert torch.equal(mirrored[0], mirrored[2]) and torch.equal(mirrored[1], mirrored[3])
    assert 10 < mirrored[0].sum() < 40


def test_alternating_flip_replaces_no_other_draw(loader_of):
    (order, drawn), (same_order, alternating) = (
        loader_of(augmentation=MODERATE, alternating_flip=alternating_flip).draw_epoch(1)
        for alternating_flip in (False, True))
    assert torch.equal(order, same_order)
    assert [name for name in drawn if not torch.equal(drawn[name], alternating[name])] == ["flip"]


# Mixes -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mix", list(MIXES)[1:])
def test_mixed_labels_are_shares_that_fit_the_pixels(mix, loader_of):
    loader = loader_of(augmentation=NOTHING, **MIXES[mix])
    plain, plain_labels = loader_of(augmentation=NOTHING).batch(0, 1)
    pixels, labels = loader.batch(0, 1)
    assert labels.shape == (16, 50) and labels.is_floating_point()
    assert torch.allclose(labels.sum(1), torch.ones(16)) and (labels >= 0).all()
    own_share = labels[torch.arange(16), plain_labels]
    partner, partner_labels = plain.roll(1, 0), plain_labels.roll(1)
    assert torch.allclose(labels, own_share[:, None] * F.one_hot(plain_labels, 50)
                          + (1 - own_share)[:, None] * F.one_hot(partner_labels, 50))
    blended = own_share.view(-1, 1, 1, 1) * plain + (1 - own_share).view(-1, 1, 1, 1) * partner
    is_mixup = torch.allclose(pixels, blended, atol=1e-4)
    from_own = (pixels == plain).all(1).float().mean((1, 2))
    is_cutmix = torch.allclose(from_own, own_share, atol=1e-4)
    assert is_mixup if mix == "mixup" else is_cutmix if mix == "cutmix" else is_mixup or is_cutmix


def test_with_both_mixes_each_batch_takes_one_of_them(loader_of):
    loader, plain = (loader_of(batch_size=5, augmentation=NOTHING, **mix) for mix in (MIXES["both"], {}))
    shared_pixels = [(loader.batch(epoch, index)[0] == plain.batch(epoch, index)[0]).float().mean()
                     for epoch in range(2) for index in range(10)]
    cut = sum(share > 0.01 for share in shared_pixels)        # a blend hardly leaves a value as it was
    assert 3 <= cut <= 17


def test_mix_probability_is_the_share_of_mixed_batches(loader_of):
    loader = loader_of(batch_size=4, augmentation=NOTHING, cutmix_alpha=1.0, mix_probability=0.3)
    mixed = [loader.batch(epoch, index)[1].ndim == 2 for epoch in range(40) for index in range(len(loader))]
    assert 0.2 < sum(mixed) / len(mixed) < 0.4      # 480 draws


# What a configuration asks for -----------------------------------------------------------------------------

CONFIGURED = {
    "nothing": ({"augmentation_strength": "none"}, {"augmentation": NOTHING}),
    "no flip to alternate": ({"augmentation_strength": "none", "flip": "alternating"}, {"augmentation": NOTHING}),
    "fast": ({"augmentation_strength": "basic", "crop_mode": "reflect", "crop_padding": 2, "flip": "alternating"},
             {"augmentation": Augmentation(crop_padding=2, crop_mode="reflect", flip=True), "alternating_flip": True}),
    "cutout of the mean colour": (
        {"augmentation_strength": "strong", "cutout_size": 12},
        {"augmentation": Augmentation.of_strength("strong", cutout_size=12, fill=MEAN)}),
    "mixes": ({"augmentation_strength": "none", "mixup_alpha": 0.4, "cutmix_alpha": 1.0, "mix_probability": 0.5},
              {"augmentation": NOTHING, "mixup_alpha": 0.4, "cutmix_alpha": 1.0, "mix_probability": 0.5}),
}


@pytest.mark.parametrize("settings, arguments", CONFIGURED.values(), ids=CONFIGURED)
def test_the_training_loader_is_what_the_settings_say(settings, arguments, loader_of, images):
    config = TrainingConfig(batch_size=8, seed=6, num_classes=50, **settings)
    found = training_loader(config, images, torch.arange(50), MEAN, STD, device=CPU, dtype=torch.bfloat16)
    expected = loader_of(batch_size=8, seed=6, dtype=torch.bfloat16, **arguments)
    assert len(found) == len(expected) == 6
    assert all(same(*pair) for epoch in (0, 1) for pair in zip(found.batches(epoch), expected.batches(epoch)))
