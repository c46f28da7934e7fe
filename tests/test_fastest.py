"""fastest: the choice among ways to compute the same, with a clock of the test's own."""

import logging

import pytest
import torch

from helpers.layers.equivariant import FlipConv3x3
from helpers.layers.fastest import fastest

TIMES = {"plain": 3.0, "quick": 1.0, "slow": 5.0}


@pytest.fixture
def clock(monkeypatch):
    """Times the ways in order of their names' first use; no choice is kept from an earlier test."""
    monkeypatch.setattr("helpers.layers.fastest.measured", {})
    waiting = list(TIMES.values())

    def milliseconds(run):
        run()
        return waiting.pop(0)
    return milliseconds


def ways_to_square(weight, **more):
    return {"plain": lambda images: weight * images**2, "quick": lambda images: weight * images * images} | more


def images_of(channels):
    """Images with so many channels."""
    return torch.rand(2, channels, 3, 3).requires_grad_()


def test_takes_the_way_that_needs_the_least_time_and_measures_once(clock):
    weight = torch.ones(1, requires_grad=True)
    ways = ways_to_square(weight, slow=lambda images: weight * images.square())
    assert fastest(ways, images_of(101), [weight], clock) is ways["quick"]
    assert fastest(ways, images_of(101), [weight], None) is ways["quick"]        # the clock is not asked again
    assert weight.grad is None


def test_each_size_has_a_choice_of_its_own(clock):
    ways = ways_to_square(torch.ones(1))
    assert fastest(ways, images_of(102), [], clock) is ways["quick"]
    times = iter((1.0, 3.0))        # the other way round
    assert fastest(ways, images_of(102)[:, :, :2], [], lambda run: next(times)) is ways["plain"]


@pytest.mark.parametrize("channels, wrong", [
    (105, lambda images: images**2 + 1), (106, lambda images: images.detach()**2 * images),
    (107, lambda images: images**2 * float("nan"))])
def test_a_way_with_other_results_or_gradients_is_left_out(caplog, clock, channels, wrong):
    ways = {"plain": lambda images: images**2, "wrong": wrong}
    with caplog.at_level(logging.INFO, "cifar100"):
        assert fastest(ways, images_of(channels), [], clock) is ways["plain"]
    assert "wrong" in caplog.text and "off by" in caplog.text


def test_a_way_that_fails_is_left_out_and_one_line_says_why(caplog, clock):
    def broken(images):
        raise ValueError("no compiler here\nat line 3")

    ways = {"plain": lambda images: images * 2, "broken": broken}
    with caplog.at_level(logging.INFO, "cifar100"):
        assert fastest(ways, images_of(103), [], clock) is ways["plain"]
    assert caplog.messages == ["on this GPU, layers are not computed by broken: no compiler here"]


def test_the_first_way_must_work(clock):
    def broken(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        fastest({"plain": broken, "quick": lambda images: images}, images_of(104), [], clock)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_all_ways_of_a_flip_convolution_are_the_same(dtype):
    conv = FlipConv3x3(20, 12).to(dtype)
    images = torch.randn(4, 20, 6, 5, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    expected = conv.by_pairs(images)
    grads = torch.autograd.grad(expected.square().sum(), [images, *conv.parameters()])
    found = conv.by_filters(images)
    tolerance = {} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(found, expected, **tolerance)
    if dtype == torch.float64:
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), [images, *conv.parameters()]), grads)
