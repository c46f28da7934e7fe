"""schedule: against torch's schedulers, and against plain loops over epochs, batches and steps."""

import pytest
import torch
from torch import nn

from helpers.config import TrainingConfig
from helpers.schedule import Schedule

# The factor ------------------------------------------------------------------------------------------------

TOTAL, WARMUP = 200, 20


def factors(scheduler, steps=TOTAL, **settings):
    """An epoch is a step."""
    schedule = planned(10, epochs=TOTAL, warmup_epochs=WARMUP, lr_scheduler=scheduler, **settings)
    return [schedule.learning_rate_factor(step) for step in range(steps)]


def torch_factors(after_warmup):
    """Rates of torch's own LinearLR followed by `after_warmup(optimizer)`, at peak rate 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP - 1)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, after_warmup(optimizer)], [WARMUP])
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine_equals_torchs_schedulers():
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, TOTAL - WARMUP))
    assert factors("cosine") == pytest.approx(expected)


def test_linear_equals_torchs_schedulers():
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, TOTAL - WARMUP))
    assert factors("linear") == pytest.approx(expected)


def test_step_equals_torchs_schedulers():
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [m - WARMUP for m in (60, 120)], 0.2))
    assert factors("step", lr_milestones=(60, 120), lr_gamma=0.2) == pytest.approx(expected)


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "step"])
def test_schedules_rise_from_above_zero_to_one_and_never_rise_again(scheduler):
    found = factors(scheduler, lr_milestones=(60, 120), lr_gamma=0.2)
    assert found[0] == 1 / WARMUP and found[WARMUP - 1] == found[WARMUP] == 1
    assert all(a < b for a, b in zip(found[:WARMUP - 1], found[1:WARMUP]))
    assert all(a >= b > 0 for a, b in zip(found[WARMUP:], found[WARMUP + 1:]))


@pytest.mark.parametrize("scheduler", ["cosine", "linear"])
def test_schedules_without_jumps(scheduler):
    *found, end = factors(scheduler, TOTAL + 1)
    assert max(abs(a - b) for a, b in zip(found, found[1:])) <= 1 / WARMUP + 1e-12
    assert found[-1] < 2 / (TOTAL - WARMUP) and end == pytest.approx(0)


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "step"])
def test_schedule_without_warmup_and_with_few_steps(scheduler):
    for epochs, batch_size in ((100, 10), (2, 20)):
        schedule = planned(20, epochs=epochs, batch_size=batch_size, lr_scheduler=scheduler, lr_milestones=(1,))
        assert schedule.learning_rate_factor(0) == 1


# Steps and batches -----------------------------------------------------------------------------------------

def planned(images=100, **settings) -> Schedule:
    """The schedule of four epochs of `images` images in batches of ten."""
    return Schedule(TrainingConfig(**{"epochs": 4, "batch_size": 10, "warmup_epochs": 0, **settings}), images)


def plain_steps(images, epochs, batch_size, accumulation):
    """The batches of each step, each batch as the places of its images in the epoch's order, by a plain loop."""
    steps = []
    for _ in range(epochs):
        places = list(range(images))
        batches = []
        while len(places) >= min(batch_size, images):
            batches.append(places[:min(batch_size, images)])
            places = places[len(batches[-1]):]
        while batches:
            steps.append(batches[:accumulation])
            batches = batches[accumulation:]
    return steps


SIZES = {"even": (100, 10, 1), "a rest of images": (109, 10, 1), "accumulated": (120, 10, 4),
         "a rest of batches": (100, 10, 4), "both rests": (105, 10, 3), "more accumulated than there is": (30, 10, 5),
         "fewer images than a batch": (7, 10, 1), "fewer images than a batch, accumulated": (7, 10, 3),
         "a single image": (1, 10, 1)}


@pytest.mark.parametrize("images, batch_size, accumulation", SIZES.values(), ids=SIZES)
def test_steps_take_the_batches_of_an_epoch_in_turn(images, batch_size, accumulation):
    schedule = planned(images, epochs=3, batch_size=batch_size, gradient_accumulation_steps=accumulation)
    expected = plain_steps(images, 3, batch_size, accumulation)
    found = [[list(range(index * schedule.batch_size, (index + 1) * schedule.batch_size))
              for index in schedule.batches(step)] for step in range(schedule.total_steps)]
    assert found == expected
    assert schedule.total_steps == len(expected) and schedule.steps_per_epoch * 3 == len(expected)
    assert schedule.batches_per_epoch * 3 == sum(map(len, expected))
    assert schedule.batch_size == len(expected[0][0])


# Learning rate ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("accumulation, steps_of_epoch", [(1, 10), (4, 3)])
def test_milestones_are_whole_epochs(accumulation, steps_of_epoch):
    schedule = planned(learning_rate=0.8, lr_scheduler="step", lr_milestones=(1, 3, 90), lr_gamma=0.5,
                       gradient_accumulation_steps=accumulation)
    expected = [rate for rate in (0.8, 0.4, 0.4, 0.2) for _ in range(steps_of_epoch)]
    assert [schedule.learning_rate(step) for step in range(schedule.total_steps)] == pytest.approx(expected)


@pytest.mark.parametrize("warmup_epochs, warmup", [(0, 0), (0.1, 1), (0.34, 3), (1.5, 15), (2, 20), (2.1, 20),
                                                   (99, 20)])
def test_the_warm_up_has_its_epochs_but_at_most_half_of_all(warmup_epochs, warmup):
    schedule = planned(warmup_epochs=warmup_epochs, lr_scheduler="linear")
    expected = [(step + 1) / warmup for step in range(warmup)]
    expected += [1 - step / (40 - warmup) for step in range(40 - warmup)]
    assert [schedule.learning_rate_factor(step) for step in range(40)] == pytest.approx(expected)


def test_a_training_of_one_step_has_no_warm_up():
    assert planned(10, epochs=1, warmup_epochs=5).learning_rate_factor(0) == 1


# Image size ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("start, growing, sizes", [
    (24, 0.5, [24] * 20 + [32] * 20), (20, 0.5, [20] * 10 + [28] * 10 + [32] * 20), (31, 0.25, [31] * 10 + [32] * 30),
    (12, 1.0, [12] * 14 + [20] * 13 + [28] * 13), (16, 0.01, [16] + [32] * 39)])
def test_images_grow_by_8_pixels_at_a_time(start, growing, sizes):
    schedule = planned(start_image_size=start, image_growth_fraction=growing)
    assert [schedule.image_size(step) for step in range(40)] == sizes


@pytest.mark.parametrize("preset", ["quick", "fast", "thorough"])
def test_all_maps_that_flipcnn_pools_have_odd_sides_in_a_preset(preset):
    """Where smoothed pooling is the mean of two, as in a validation."""
    config = TrainingConfig.from_preset(preset)
    schedule = Schedule(config, 50_000)
    for side in {schedule.image_size(step) - 1 for step in range(schedule.total_steps)}:        # of the first maps
        while side > 2:
            assert side % 2
            side //= 2


@pytest.mark.parametrize("settings", [{}, {"start_image_size": 12, "image_growth_fraction": 0}])
def test_images_that_do_not_grow_are_of_32_pixels(settings):
    assert {planned(**settings).image_size(step) for step in range(40)} == {32}


# FLOPs -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("images, batch_size, accumulation", SIZES.values(), ids=SIZES)
def test_flops_are_the_sum_over_the_images_of_all_steps(images, batch_size, accumulation):
    schedule = planned(images, batch_size=batch_size, gradient_accumulation_steps=accumulation, start_image_size=12)
    total = 0
    for step, batches in enumerate(plain_steps(images, 4, batch_size, accumulation)):
        total += sum(1000 + schedule.image_size(step) ** 3 for batch in batches for _ in batch)
    assert schedule.total_flops(lambda size: 1000 + size ** 3) == total


def test_without_growth_every_image_costs_the_same():
    assert planned(105, gradient_accumulation_steps=3).total_flops({32: 7}.__getitem__) == 4 * 100 * 7


def test_each_size_is_counted_once():
    asked = []
    schedule = planned(start_image_size=12)
    schedule.total_flops(lambda size: asked.append(size) or 1)
    assert sorted(asked) == sorted({schedule.image_size(step) for step in range(40)})
