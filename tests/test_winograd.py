"""helpers.layers.winograd: equal to PyTorch's convolution, and taken where it is faster."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from helpers.layers import winograd
from helpers.layers.winograd import Conv3x3, winograd_conv
from helpers.models import CIFAR100CNN, training_flops


@pytest.mark.parametrize("height, width", [(15, 15), (7, 12), (14, 4), (6, 3), (3, 2)])
def test_equals_the_direct_convolution(height, width, monkeypatch):
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", 40)      # several parts, the last one smaller
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(25, 6, height, width, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(5, 6, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    gradient = torch.randn(25, 5, height, width, dtype=torch.float64, generator=generator)
    results = []
    for out in (winograd_conv(images, weight), F.conv2d(images, weight, padding=1)):
        results.append((out, *torch.autograd.grad(out, (images, weight), gradient)))
    for ours, theirs in zip(*results):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def test_numerical_gradient():
    images = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(winograd_conv, (images, weight))


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradients_that_are_wanted(wanted):
    images, weight = torch.randn(70, 64, 4, 4), torch.randn(64, 64, 3, 3)
    images.requires_grad_(wanted[0]), weight.requires_grad_(wanted[1])
    winograd_conv(images, weight).sum().backward()
    assert (images.grad is not None, weight.grad is not None) == wanted


def test_the_result_may_be_changed_in_place():
    F.relu_(winograd_conv(torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3))).sum().backward()


def test_training_after_a_first_use_in_inference_mode():
    spec = importlib.util.spec_from_file_location("unused", winograd.__file__)      # a module with empty caches
    unused = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unused)
    images, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.inference_mode():
        unused.winograd_conv(images, weight)
    unused.winograd_conv(images, weight).sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("side, tolerance", [(2, 1e-6), (12, 1e-5), (15, 1e-5), (7, 1e-4)])
def test_loses_little_in_single_precision(side, tolerance):
    generator = torch.Generator().manual_seed(0)
    images, weight = (torch.randn(shape, generator=generator) for shape in ((8, 128, side, side), (128, 128, 3, 3)))
    exact = F.conv2d(images.double(), weight.double(), padding=1)
    assert (winograd_conv(images, weight) - exact).norm() < tolerance * exact.norm()


@pytest.fixture
def winograd_calls(monkeypatch):
    calls = []
    monkeypatch.setattr(winograd, "winograd_conv", lambda *arguments: calls.append(arguments) or
                        winograd_conv(*arguments))
    return calls


@pytest.mark.parametrize("channels, number, side, taken", [
    (64, 16, 16, True), (64, 100, 2, True),
    (24, 16, 16, False),        # few channels
    (64, 1, 16, False),         # few images
    (64, 100, 1, False),        # most of a tile would be border
])
def test_taken_where_it_is_faster(winograd_calls, channels, number, side, taken):
    layer = Conv3x3(channels, 64)
    assert layer(torch.zeros(number, channels, side, side)).shape == (number, 64, side, side)
    assert bool(winograd_calls) == taken


def test_not_taken_in_16_bits(winograd_calls):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Conv3x3(64, 64)(torch.zeros(16, 64, 16, 16))
    assert not winograd_calls


def test_compute_is_counted_as_of_the_direct_convolution(winograd_calls):
    model = CIFAR100CNN(widths=(64, 64, 64, 64))
    assert training_flops(model, 128) > 3.9 * training_flops(model, 64)
    assert not winograd_calls
