"""models: sizes, names and initial weights of the networks, what they compute, the whitening layer, tables of FLOPs."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers.config import TrainingConfig
from helpers.models import (CIFAR100CNN, FlipCNN, ResidualBlock, build_model, describe_model, layer_table, model_stats,
                            training_flops)

NARROW = (8, 16, 20, 24)      # oneDNN may crash below 16 channels at a stride
PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return CIFAR100CNN()


@pytest.fixture(params=["CIFAR100CNN", "FlipCNN"])
def narrow(request):
    torch.manual_seed(0)
    return build_model(request.param, 10, NARROW if request.param == "CIFAR100CNN" else NARROW[1:])


def smooth_images(count, side, seed=0):
    """Float [count, 3, side, side] of mean 0; neighbouring pixels and channels are alike, as in photographs."""
    noise = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    blurred = F.avg_pool2d(noise, 3, stride=1, padding=1) * 3
    return blurred + blurred.mean(1, keepdim=True) + 0.3 * noise


# CIFAR100CNN -----------------------------------------------------------------------------------------------

def test_reference_network_has_the_published_size(reference):
    stats = model_stats(reference)
    assert stats["total_parameters"] == stats["trainable_parameters"] == 11_072_164
    assert round(stats["memory_mb"], 2) == 42.24


def test_reference_network_has_the_published_names_and_shapes(reference):
    expected = {"conv1.weight": (64, 3, 3, 3), "fc.weight": (100, 512), "fc.bias": (100,)} | batch_norm("bn1", 64)
    for stage, (inside, outside) in enumerate([(64, 128), (128, 256), (256, 512)], start=1):
        for block, channels in enumerate([inside, outside]):
            name = f"layer{stage}.{block}"
            expected[f"{name}.conv1.weight"] = (outside, channels, 3, 3)
            expected[f"{name}.conv2.weight"] = (outside, outside, 3, 3)
            expected |= batch_norm(f"{name}.bn1", outside) | batch_norm(f"{name}.bn2", outside)
        expected[f"layer{stage}.0.shortcut.0.weight"] = (outside, inside, 1, 1)
        expected |= batch_norm(f"layer{stage}.0.shortcut.1", outside)
    assert shapes_of(reference) == expected


def batch_norm(name, channels):
    vectors = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return vectors | {f"{name}.num_batches_tracked": ()}


def test_a_configuration_may_stand_for_all_arguments():
    config = TrainingConfig(num_classes=7, dropout_rate=0.2, widths=NARROW)
    found, expected = drawn(CIFAR100CNN, config), drawn(CIFAR100CNN, 7, 0.2, NARROW)
    assert same_weights(found.state_dict(), expected.state_dict())
    assert {module.p for module in found.modules() if isinstance(module, (nn.Dropout, nn.Dropout2d))} == {0.2}


def test_a_configuration_without_widths_leaves_the_networks_own(reference):
    with torch.device("meta"):
        assert shapes_of(CIFAR100CNN(TrainingConfig())) == shapes_of(reference)


def drawn(build, *arguments):
    """What `build` makes of the random numbers that follow a seed."""
    torch.manual_seed(5)
    return build(*arguments)


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def same_weights(one, other):
    """Do two state dicts have the same names, in order, and tensors that are equal to the bit?"""
    return list(one) == list(other) and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_weights_trained_elsewhere_load_and_give_what_a_plain_network_gives(tmp_path):
    model = CIFAR100CNN(10, widths=NARROW).eval()
    weights = {name: torch.rand(tensor.shape) if tensor.is_floating_point() else tensor
               for name, tensor in model.state_dict().items()}
    torch.save({"model_state_dict": weights}, tmp_path / "theirs.pt")
    model.load_state_dict(torch.load(tmp_path / "theirs.pt", weights_only=True)["model_state_dict"])
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(images), plain_forward(weights, images), rtol=1e-4, atol=1e-4)


def plain_forward(weights, images):
    """The network's evaluation pass from the issue's description, with functional operations only."""
    def conv_norm(x, conv, norm, stride=1):
        kernel = weights[f"{conv}.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{norm}.{part}"] for part in parts))

    x = conv_norm(images, "conv1", "bn1").relu()
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        for block in (f"layer{stage}.0", f"layer{stage}.1"):
            first = block.endswith("0")
            y = conv_norm(x, f"{block}.conv1", f"{block}.bn1", stride if first else 1).relu()
            y = conv_norm(y, f"{block}.conv2", f"{block}.bn2")
            x = conv_norm(x, f"{block}.shortcut.0", f"{block}.shortcut.1", stride) if first else x
            x = (x + y).relu()
    return F.adaptive_avg_pool2d(x, 1).flatten(1) @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize("side", [16, 32])
def test_stages_have_strides_1_2_2(side):
    model = CIFAR100CNN(10, widths=NARROW).eval()
    images = torch.randn(2, 3, side, side)
    x = F.relu(model.bn1(model.conv1(images)))
    assert x.shape == (2, 8, side, side)
    for stage, channels, stride in ((model.layer1, 16, 1), (model.layer2, 20, 2), (model.layer3, 24, 4)):
        x = stage(x)
        assert x.shape == (2, channels, side // stride, side // stride)
    assert model(images).shape == (2, 10)


def test_initial_filters_have_kaiming_fan_out_spread(reference):
    for name, module in reference.named_modules():
        if isinstance(module, nn.Conv2d):
            weight, fan_out = module.weight, module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            spread = (2 / fan_out) ** 0.5
            # The standard error of a standard deviation over n normal draws is 1 / √(2n), of a mean 1 / √n.
            assert weight.std().item() == pytest.approx(spread, rel=5 / (2 * weight.numel()) ** 0.5), name
            assert abs(weight.mean().item()) < 5 * spread / weight.numel() ** 0.5, name


def test_dropout_is_active_in_training_only_and_at_the_given_rate():
    model = CIFAR100CNN(10, dropout_rate=0.4, widths=NARROW)
    dropouts = [module for module in model.modules() if isinstance(module, (nn.Dropout, nn.Dropout2d))]
    assert len(dropouts) == 7 and all(module.p == 0.4 for module in dropouts)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0       # so that only dropout can make two passes differ
    images = torch.randn(4, 3, 16, 16)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_block_dropout_drops_whole_channels_between_first_activation_and_second_convolution():
    block = ResidualBlock(6, 40, stride=2, dropout_rate=0.5)
    seen = []
    block.conv2.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    images = torch.randn(8, 6, 8, 8)
    block(images)
    activations = F.relu(block.bn1(block.conv1(images)))
    dropped = (seen[0] == 0).flatten(2).all(2)
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(seen[0], activations * 2 * (~dropped)[:, :, None, None])


def test_classifier_dropout_drops_single_features():
    model = CIFAR100CNN(10, dropout_rate=0.5, widths=NARROW)
    assert type(model.dropout) is nn.Dropout and all(type(block.dropout) is nn.Dropout2d
                                                     for block in model.modules() if isinstance(block, ResidualBlock))


# FlipCNN ---------------------------------------------------------------------------------------------------

WIDTHS = (8, 12, 16)


@pytest.mark.parametrize("side", [9, 12, 15, 16, 31, 32])
def test_flipcnn_takes_small_and_odd_images(side):
    model = FlipCNN(7, widths=(8, 8, 16)).eval()
    images = torch.randn(2, 3, side, side)
    assert model(images).shape == (2, 7)
    assert model.features(images).shape == (2, 8)
    assert model(torch.randn(2, 3, side, side + 3)).shape == (2, 7)


def test_flipcnn_has_the_names_and_shapes_of_saved_weights():
    expected = {"whitening.weight": (24, 3, 2, 2), "whitening.bias": (24,)}
    for place, (inside, outside) in enumerate(zip((24, *WIDTHS), WIDTHS)):
        group = f"groups.{place}"
        for name, channels in ((f"{group}.conv1", inside), (f"{group}.conv2", outside), (f"{group}.conv3", outside)):
            if name == "groups.0.conv1":
                expected[f"{name}.weight"] = (outside // 2, channels, 3, 3)
            else:
                expected |= {f"{name}.{part}.weight": (outside // 2, channels // 2 * 3, 3, 1)
                             for part in ("even", "odd")}
        for norm in ("norm1", "norm2", "norm3"):
            expected |= batch_norm(f"{group}.{norm}", outside // 2)
    expected["head.weight"] = (7, 8)
    assert shapes_of(FlipCNN(7, WIDTHS)) == expected


def test_pairs_of_channels_take_half_the_parameters():
    with torch.device("meta"):
        found = model_stats(FlipCNN(100, (192, 576, 672)))["total_parameters"]
    common = 9 * (24 * 192 + 2 * 192 ** 2 + 192 * 576 + 2 * 576 ** 2 + 576 * 672 + 2 * 672 ** 2) \
        + 6 * (192 + 576 + 672) + 100 * 672
    assert found == 24 * 13 + common / 2


def test_flipcnn_draws_whitening_groups_and_head_in_turn():
    """So that a seed gives the initial weights that it always gave."""
    def layers_by_hand():
        layers = [("whitening", nn.Conv2d(3, 24, 2))]
        for place, (inside, outside) in enumerate(zip((24, *WIDTHS), WIDTHS)):
            for name, channels in (("conv1", inside), ("conv2", outside), ("conv3", outside)):
                name = f"groups.{place}.{name}"
                if name == "groups.0.conv1":
                    layers.append((name, nn.Conv2d(channels, outside // 2, 3, bias=False)))
                else:
                    layers += [(f"{name}.{part}", nn.Conv2d(channels // 2 * 3, outside // 2, (3, 1), bias=False))
                               for part in ("even", "odd")]
        return [*layers, ("head", nn.Linear(8, 7, bias=False))]

    weights = {f"{name}.weight": layer.weight for name, layer in drawn(layers_by_hand)}
    filters = weights["whitening.weight"]       # half of them are symmetric, the others are pairs of mirror images
    mirrored = torch.cat([filters[:12], filters[18:], filters[12:18]]).flip(3)
    weights["whitening.weight"] = (filters + mirrored) / 2
    found = drawn(FlipCNN, 7, WIDTHS).state_dict()
    assert [name for name in found if name in weights] == list(weights)
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    assert not found["whitening.bias"].any()


def test_the_weights_that_come_with_the_project_load_strictly():
    """Their numbers are of 16 bits."""
    saved = torch.load(PRETRAINED / "fast.pt", weights_only=True)["model_state_dict"]
    model = FlipCNN(100, TrainingConfig.from_preset("fast").widths)
    model.load_state_dict(saved, strict=True)
    loaded = model.state_dict()
    assert same_weights({name: tensor.to(loaded[name].dtype) for name, tensor in saved.items()}, loaded)


def test_whitening_gives_decorrelated_responses_of_unit_variance():
    """Over the images and their mirror images."""
    images = smooth_images(200, 16)
    both = torch.cat([images, images.flip(3)])
    assert not near_identity(F.conv2d(both, torch.randn(12, 3, 2, 2)), 0.5)     # the images are worth whitening
    model = FlipCNN(10, widths=(8, 8, 8))
    model.whiten(images)
    filters = model.whitening.weight
    assert near_identity(F.conv2d(both, filters)[:, [*range(6), *range(12, 18)]], 0.03)
    assert torch.equal(filters[6:12], -filters[:6]) and torch.equal(filters[18:], -filters[12:18])
    assert torch.equal(filters[:12], filters[:12].flip(3)) and torch.equal(filters[12:18], filters[18:].flip(3))


def near_identity(responses, tolerance):
    rows = responses.detach().transpose(0, 1).flatten(1)
    return (torch.cov(rows) - torch.eye(len(rows))).abs().max() < tolerance


def test_all_is_trained_but_the_whitening_filters_and_the_scales_of_the_norms():
    frozen = {name for name, parameter in FlipCNN(10, (8, 8, 8)).named_parameters() if not parameter.requires_grad}
    assert frozen == {"whitening.weight"} | {f"groups.{group}.norm{norm}.weight" for group in range(3)
                                             for norm in (1, 2, 3)}


def test_whitening_filters_stay_frozen_and_norm_scales_stay_one():
    model = FlipCNN(10, widths=(8, 8, 8))
    model.whiten(smooth_images(50, 16))
    before = model.whitening.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model(smooth_images(8, 16)).logsumexp(1).sum().backward()
        optimizer.step()
    assert torch.equal(model.whitening.weight, before)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 9 and all((norm.weight == 1).all() for norm in norms)
    assert all((norm.bias != 0).any() for norm in norms)


def test_features_lead_to_the_logits(narrow):
    images = torch.randn(4, 3, 16, 16)
    narrow.eval()
    features = narrow.features(images)
    if isinstance(narrow, CIFAR100CNN):
        expected = F.linear(features, narrow.fc.weight, narrow.fc.bias)
    else:
        expected = F.linear(features, narrow.head.weight) / 9
    torch.testing.assert_close(narrow(images), expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_does_not_change_the_logits(narrow, memory_format):
    images = torch.randn(4, 3, 16, 16)
    expected = narrow.eval().double()(images.double())
    found = narrow.float().to(memory_format=memory_format)(images.to(memory_format=memory_format))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


# Tables ----------------------------------------------------------------------------------------------------

def test_layer_table_sums_to_the_counter_of_the_whole_network(narrow):
    rows = layer_table(narrow, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        narrow.eval()(torch.zeros(1, 3, 32, 32))
    assert sum(row["mflops"] for row in rows) * 1e6 == pytest.approx(counter.get_total_flops())
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in narrow.parameters())


def test_layer_table_of_the_reference_network(reference):
    rows = {row["layer"]: row for row in layer_table(reference)}
    assert rows["conv1"] == {"layer": "conv1", "output": (64, 32, 32), "parameters": 3 * 64 * 9,
                             "mflops": 2 * 3 * 64 * 9 * 32 * 32 / 1e6}
    assert rows["layer3.0.shortcut.0"]["output"] == (512, 8, 8)
    assert rows["layer2.0.conv1"]["mflops"] == pytest.approx(2 * 128 * 256 * 9 * 16 * 16 / 1e6)
    assert rows["fc"]["mflops"] == pytest.approx(2 * 512 * 100 / 1e6) and rows["fc"]["output"] == (100,)
    assert rows["bn1"]["parameters"] == 128 and rows["bn1"]["mflops"] == 0
    assert reference.training


def test_training_flops_are_three_forward_passes_less_the_first_input_gradient(narrow):
    """A layer's backward pass costs twice its forward pass; the first layer needs no gradient of the images."""
    rows = layer_table(narrow, 16)
    forward = sum(row["mflops"] for row in rows) * 1e6
    first = rows[0]["mflops"] * 1e6
    if isinstance(narrow, CIFAR100CNN):
        assert training_flops(narrow, 16) == pytest.approx(3 * forward - first)
    else:       # the first layer is frozen but for the bias, which costs no product
        assert training_flops(narrow, 16) == pytest.approx(3 * forward - 2 * first)


@pytest.mark.parametrize("count", [layer_table, training_flops])
@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_no_trace(narrow, count, training):
    narrow.train(training)
    narrow(torch.randn(4, 3, 16, 16)).square().sum().backward()
    before = copy.deepcopy(narrow.state_dict())
    gradients = {name: p.grad.clone() for name, p in narrow.named_parameters() if p.grad is not None}
    random_state = torch.get_rng_state()
    count(narrow, 16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in narrow.state_dict().items())
    assert {name for name, p in narrow.named_parameters() if p.grad is not None} == set(gradients)
    for name, parameter in narrow.named_parameters():
        assert name not in gradients or torch.equal(parameter.grad, gradients[name]), name
    assert narrow.training is training and torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in narrow.modules())


def test_a_network_is_described_in_one_line(reference):
    forward = 2 * (1024 * 9 * (3 * 64 + 64 * 128 + 3 * 128 ** 2) + 1024 * 64 * 128
                   + 256 * (9 * (128 * 256 + 3 * 256 ** 2) + 128 * 256)
                   + 64 * (9 * (256 * 512 + 3 * 512 ** 2) + 256 * 512) + 512 * 100)
    gigaflops = (3 * forward - 2 * 1024 * 9 * 3 * 64) / 1e9     # the images need no gradient
    assert describe_model(reference) == ("CIFAR100CNN: 11,072,164 parameters, 42.24 MiB in fp32, "
                                         f"{gigaflops:.2f} GFLOP an image forward and backward")


@pytest.mark.parametrize("build, own", [(CIFAR100CNN, (64, 128, 256, 512)), (FlipCNN, (128, 384, 512))])
def test_a_network_is_built_by_name_in_its_own_widths_or_those_given(build, own):
    with torch.device("meta"):
        for widths, given in ((own, None), (NARROW[-len(own):], list(NARROW[-len(own):]))):
            model = build_model(build.__name__, 7, given)
            assert type(model) is build and shapes_of(model) == shapes_of(build(7, widths=widths))


def test_unknown_model_is_refused_by_name():
    with pytest.raises(ValueError, match="ResNet99.*CIFAR100CNN or FlipCNN"):
        build_model("ResNet99")
