"""equivariant: layers that commute with mirroring, against common convolutions of the same filters."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from helpers.layers.equivariant import FlipConv3x3, LiftingConv3x3, MirroredConv2d, PairNorm
from helpers.layers.pool_norm import max_blur_pool
from helpers.layers.winograd import direct_convolutions, winograd_is_faster
from helpers.models import FlipCNN, training_flops

FORMATS = [torch.channels_last, torch.contiguous_format]


def mirror_pairs(images):
    """What mirroring an image does to maps [N, C, H, W] of pairs of channels."""
    return torch.cat(images.flip(3).chunk(2, 1)[::-1], 1)


def maps(channels, *sides, number=3):
    return torch.randn(number, channels, *sides, dtype=torch.double, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sides", [(1, 1), (1, 5), (2, 2), (6, 3), (5, 7)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_convolution_is_a_common_one_of_its_filters(sides, memory_format):
    conv = FlipConv3x3(8, 6).double()
    images = maps(8, *sides).to(memory_format=memory_format).requires_grad_()
    torch.testing.assert_close(conv(images), F.conv2d(images, conv.filters(), padding=1))
    assert torch.autograd.gradcheck(conv, (images,))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_layers_keep_the_memory_format(memory_format):
    images = maps(8, 5, 4).to(memory_format=memory_format).requires_grad_()
    for layer in (FlipConv3x3(8, 8).double(), PairNorm(8).double(), max_blur_pool):
        result = layer(images)
        gradient, = torch.autograd.grad(result, images, torch.ones_like(result))
        assert result.is_contiguous(memory_format=memory_format), layer
        assert gradient.is_contiguous(memory_format=memory_format), layer


def test_fp32_may_take_winograds_algorithm_with_the_same_result():
    torch.manual_seed(0)
    conv, images = FlipConv3x3(64, 64), torch.randn(80, 64, 7, 7).requires_grad_()
    assert winograd_is_faster(images, torch.float32, 64, 64, direct_share=0.5)
    results = []
    for context in (nullcontext(), direct_convolutions()):
        with context:
            result = conv(images)
            results.append((result, *torch.autograd.grad(result.square().sum(), [images, *conv.parameters()])))
    for found, expected in zip(*results):
        assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_16_bits(dtype):
    torch.manual_seed(0)
    model = FlipCNN(10, (16, 16, 32))
    images = torch.randn(20, 3, 24, 24).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype):
        logits = model(images)
    assert logits.dtype == dtype
    logits.float().square().mean().backward()
    expected = model.double()(images.double())
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_filters_get_the_gradient_of_the_common_convolution():
    conv, images = FlipConv3x3(8, 6).double(), maps(8, 5, 5)
    grads = [torch.autograd.grad(out.square().sum(), list(conv.parameters()))
             for out in (conv(images), F.conv2d(images, conv.filters(), padding=1))]
    torch.testing.assert_close(*grads)


def test_filters_of_unit_length_are_orthogonal_in_the_common_convolution():
    # Else Muon and the rescaling of filters would weigh the columns of a filter differently.
    conv = FlipConv3x3(4, 2).double()
    rows = []
    for parameter in conv.parameters():
        for place in range(parameter.numel()):
            torch.nn.init.zeros_(conv.even.weight), torch.nn.init.zeros_(conv.odd.weight)
            with torch.no_grad():
                parameter.view(-1)[place] = 1
            rows.append(conv.filters().detach().flatten())
    rows = torch.stack(rows)
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)).double() * (rows[0] @ rows[0]))


@pytest.mark.parametrize("layer", [FlipConv3x3(8, 6).double(), PairNorm(8).double(), max_blur_pool],
                         ids=["convolution", "norm", "pooling"])
@pytest.mark.parametrize("sides", [(6, 4), (5, 7)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_layers_commute_with_mirroring(layer, sides, memory_format):
    images = maps(8, *sides).to(memory_format=memory_format)
    torch.testing.assert_close(layer(mirror_pairs(images).to(memory_format=memory_format)), mirror_pairs(layer(images)))


def test_smoothed_pooling_is_the_mean_of_shifted_max_poolings():
    images, even = maps(4, 7, 9), maps(4, 6, 6)
    shifted = [F.max_pool2d(images[:, :, top:6 + top, left:8 + left], 2) for top in (0, 1) for left in (0, 1)]
    torch.testing.assert_close(max_blur_pool(images), torch.stack(shifted).mean(0))
    maxima = F.max_pool2d(F.pad(even, (1, 1, 1, 1), value=-torch.inf), 2, 1)
    binomial = torch.tensor([1, 2, 1]).double() / 4
    weights = torch.outer(binomial, binomial).expand(4, 1, 3, 3)
    torch.testing.assert_close(max_blur_pool(even), F.conv2d(maxima, weights, stride=2, groups=4))
    assert max_blur_pool(maps(4, 2, 3)).shape == (3, 4, 1, 1)


def test_smoothed_pooling_moves_with_the_image():
    # What the smoothing is for: shifting the image by half a step changes the result less.
    torch.manual_seed(0)
    images = F.avg_pool2d(torch.randn(50, 4, 36, 36), 5, 1)
    changes = [(pool(images[:, :, :31, :31]) - pool(images[:, :, 1:, 1:])).square().mean().item()
               for pool in (lambda images: F.max_pool2d(images, 3, 2), max_blur_pool)]
    assert changes[1] < 0.9 * changes[0]


def test_smoothed_pooling_is_alike_along_odd_and_even_sides():
    # Norms keep statistics of the images of one size and use them for the other.
    torch.manual_seed(0)
    images = torch.randn(50, 8, 32, 32)
    odd, even = max_blur_pool(images[:, :, :31, :31]), max_blur_pool(images)
    assert abs(odd.mean() - even.mean()) < 0.05 < odd.mean() and 0.8 < even.std() / odd.std() < 1.25


def test_layers_that_see_the_image_make_pairs_of_it():
    mirrored = torch.tensor([0, 2, 1])
    first, second = MirroredConv2d(3, mirrored, 2).double(), LiftingConv3x3(mirrored, 10).double()
    images = maps(3, 6, 6)
    torch.testing.assert_close(first(images.flip(3)), first(images)[:, mirrored].flip(3))
    torch.testing.assert_close(second(first(images.flip(3))), mirror_pairs(second(first(images))))


def test_pairs_share_their_norm():
    norm = PairNorm(8).double()
    torch.nn.init.uniform_(norm.bias)
    images = maps(8, 5, 5)
    pairs = images.unflatten(1, (2, 4))
    mean, spread = pairs.mean((0, 1, 3, 4)), pairs.var((0, 1, 3, 4), correction=0)
    expected = (pairs - mean.view(-1, 1, 1)) / (spread + norm.eps).sqrt().view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    torch.testing.assert_close(norm(images), expected.flatten(1, 2))


@pytest.mark.parametrize("side", [9, 20, 31, 32])
@pytest.mark.parametrize("whitened", [False, True])
def test_an_image_and_its_mirror_image_get_the_same_logits(side, whitened):
    torch.manual_seed(0)
    model = FlipCNN(10, (8, 16, 20))
    images = torch.randn(40, 3, side, side)
    if whitened:
        model.whiten(images)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    F.cross_entropy(model(images), torch.arange(40) % 10).backward()
    optimizer.step()                # also after a step no part may have left the pairs
    model.double().eval()
    images = images.double()
    torch.testing.assert_close(model(images.flip(3)), model(images))
    assert model(images).std(0).min() > 1e-6


@pytest.mark.parametrize("side", [17, 24, 32])
def test_the_network_is_a_common_one_of_tied_weights(side):
    torch.manual_seed(0)
    model = FlipCNN(10, (8, 16, 20))
    torch.nn.init.uniform_(model.whitening.bias)
    mirrored = [*range(12), *range(18, 24), *range(12, 18)]
    for norm in model.modules():
        if isinstance(norm, PairNorm):
            for values in (norm.bias, norm.running_mean, norm.running_var):
                torch.nn.init.uniform_(values, 0.5, 1.5)
    model = model.double().eval()
    whitening, bias, lifting = model.whitening.weight, model.whitening.bias, model.groups[0].conv1.weight
    weights = {"whitening.weight": (whitening + whitening[mirrored].flip(3)) / 2,
               "whitening.bias": (bias + bias[mirrored]) / 2,
               "groups.0.conv1.weight": torch.cat([lifting, lifting[:, mirrored].flip(3)]),
               "head.weight": torch.cat([model.head.weight] * 2, 1) / 2 ** 0.5}
    for name, layer in model.named_modules():
        if isinstance(layer, FlipConv3x3):
            weights[f"{name}.weight"] = layer.filters()
        elif isinstance(layer, PairNorm):
            weights |= {f"{name}.{part}": torch.cat([values] * 2) if values.ndim else values
                        for part, values in layer.state_dict().items()}
    images = torch.randn(5, 3, side, side, dtype=torch.double)
    torch.testing.assert_close(model(images), plain_forward(weights, images), rtol=1e-6, atol=1e-7)


def plain_forward(weights, images):
    """The evaluation pass of a network without pairs, with functional operations only."""
    def norm_gelu(x, name, skip=0):
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.gelu(F.batch_norm(x, *(weights[f"{name}.{part}"] for part in parts)) + skip)

    x = F.gelu(F.conv2d(images, weights["whitening.weight"], weights["whitening.bias"]))
    for group in ("groups.0", "groups.1", "groups.2"):
        x = F.conv2d(x, weights[f"{group}.conv1.weight"], padding=1)
        x = norm_gelu(max_blur_pool(x), f"{group}.norm1")
        y = norm_gelu(F.conv2d(x, weights[f"{group}.conv2.weight"], padding=1), f"{group}.norm2")
        x = norm_gelu(F.conv2d(y, weights[f"{group}.conv3.weight"], padding=1), f"{group}.norm3", skip=x)
    return F.adaptive_max_pool2d(x, 1).flatten(1) @ weights["head.weight"].T / 9


@pytest.mark.parametrize("widths", [(9, 8, 8), (8, 9, 8), (8, 8, 9)])
def test_what_cannot_be_pairs_is_refused(widths):
    with pytest.raises(ValueError, match="channels of FlipCNN come in pairs"):
        FlipCNN(10, widths)


def test_half_the_arithmetic():
    # All but the first two layers, which see channels without pairs. Of the first, only biases are trained.
    first = 2 * 12 * 24 * 32 ** 2 + 3 * 2 * 9 * 24 * 128 * 32 ** 2
    common = 9 * (16 ** 2 * (2 * 128 ** 2 + 128 * 384) + 8 ** 2 * (2 * 384 ** 2 + 384 * 512) + 4 ** 2 * 2 * 512 ** 2)
    assert training_flops(FlipCNN(), 33) == first + 3 * 2 * (common + 512 * 100) / 2
