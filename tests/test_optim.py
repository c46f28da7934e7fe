"""optim: against torch's SGD, singular value decompositions and written-out steps."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.models import CIFAR100CNN, FlipCNN
from helpers.optim import Muon, build_optimizer, orthogonalize, set_learning_rate, split_parameters
from helpers.tools.gpu import Operations


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CIFAR100CNN(5, dropout_rate=0.0, widths=(8, 16, 16, 16))


def random_gradients(model, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def weights_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


# Parameter groups ------------------------------------------------------------------------------------------

def test_groups_hold_every_trainable_parameter_once(model):
    filters, matrices, vectors = split_parameters(model)
    assert {id(p) for p in filters} == {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert [id(p) for p in matrices] == [id(model.fc.weight)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {id(p) for p in vectors} == {id(model.fc.bias), *(id(p) for norm in norms for p in norm.parameters())}
    assert len(filters + matrices + vectors) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = FlipCNN(5, widths=(4, 4, 4))
    held = {id(p) for group in build_optimizer(model, "muon").param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    assert id(model.whitening.weight) not in held and id(model.whitening.bias) in held


def test_any_shape_of_parameter_finds_its_group():
    model = nn.ParameterList([torch.zeros(()), torch.zeros(3), torch.zeros(3, 4), torch.zeros(3, 4, 5)])
    assert [[p.ndim for p in kind] for kind in split_parameters(model)] == [[3], [2], [0, 1]]


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_all_weights_decay_but_those_that_muon_rescales(model, name):
    optimizer = build_optimizer(model, name, weight_decay=0.01)
    assert len(optimizer.param_groups) == {"sgd": 2, "muon": 3}[name]       # as checkpoints have them
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0 if group.get("orthogonalize") else 0.01)


def test_muon_groups_have_their_own_rates(model):
    optimizer = build_optimizer(model, "muon", learning_rate=0.3, momentum=0.6, norm_learning_rate=0.04,
                                head_learning_rate=0.7, head_momentum=0.8)
    found = {tuple({p.ndim for p in group["params"]}): (group["lr"], group["momentum"], group["orthogonalize"])
             for group in optimizer.param_groups}
    assert found == {(4,): (0.3, 0.6, True), (2,): (0.7, 0.8, False), (1,): (0.04, 0.8, False)}


def test_set_learning_rate_multiplies_the_peak_of_each_group(model):
    optimizer = build_optimizer(model, "muon", learning_rate=0.3, norm_learning_rate=0.04, head_learning_rate=0.7)
    for factor in (0.5, 0.25, 1.0):     # each time from the peak, not from the last value
        set_learning_rate(optimizer, factor)
        expected = [0.3 * factor, 0.7 * factor, 0.04 * factor]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)


def test_unknown_optimizer_is_refused_by_name(model):
    with pytest.raises(ValueError, match="'adam'.*sgd or muon"):
        build_optimizer(model, "adam")


# SGD -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_equals_a_written_out_nesterov_step(model, momentum):
    optimizer = build_optimizer(model, "sgd", learning_rate=0.1, momentum=momentum, weight_decay=0.02)
    expected, buffers = weights_of(model), [torch.zeros_like(p) for p in model.parameters()]
    for step in range(4):
        random_gradients(model, step)
        optimizer.step()
        for index, parameter in enumerate(model.parameters()):
            grad = parameter.grad + 0.02 * expected[index]
            buffers[index] = momentum * buffers[index] + grad
            expected[index] = expected[index] - 0.1 * (grad + momentum * buffers[index])
    for parameter, value in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.detach(), value)


def test_fused_sgd_whose_first_step_is_skipped_starts_from_zero_momentum(model):
    """The loss scaler begins too high and skips the first step or more; torch's fused kernel then sets no buffer."""
    plain = copy.deepcopy(model)
    optimizer = build_optimizer(model, "sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["fused"] = True
    before = weights_of(model)
    optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(1.0)
    random_gradients(model, 0, scale=math.inf)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(model)))
    assert all(torch.equal(state["momentum_buffer"], torch.zeros_like(p)) for p, state in optimizer.state.items())

    optimizer.found_inf = torch.tensor(0.0)
    reference = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, nesterov=True)
    for step in range(2):
        for network, steps in ((model, optimizer), (plain, reference)):
            random_gradients(network, step)
            steps.step()
    for found, expected in zip(weights_of(model), weights_of(plain)):
        torch.testing.assert_close(found, expected)


# Muon ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rows, columns", [(16, 36), (36, 16), (24, 24), (12, 108)])
def test_orthogonalize_maps_each_singular_value_by_the_quintic(rows, columns):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    found, = orthogonalize(matrix[None], 3, torch.float64)
    torch.testing.assert_close(found, u @ values.diag() @ v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype, slack", [(torch.float32, 0.01), (torch.bfloat16, 0.05), (torch.float16, 0.02)])
@pytest.mark.parametrize("shape", [(16, 72), (64, 576), (30, 10)])
def test_orthogonalize_brings_singular_values_near_one(shape, dtype, slack):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found, = orthogonalize(1e-6 * matrix[None], dtype=dtype)       # gradients may be tiny
    assert found.dtype == dtype and found.shape == shape
    values = torch.linalg.svdvals(found.float())
    assert 0.68 - slack < values.min() and values.max() < 1.21 + slack
    assert torch.equal(orthogonalize(torch.zeros(2, *shape), dtype=dtype), torch.zeros(2, *shape, dtype=dtype))


def test_muon_equals_a_written_out_step():
    parameter = nn.Parameter(torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    optimizer = Muon([{"params": [parameter], "lr": 0.2, "momentum": 0.6, "orthogonalize": True}])
    expected, buffer = parameter.detach().clone(), torch.zeros_like(parameter)
    for step in range(3):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 + step))
        optimizer.step()
        buffer = 0.6 * buffer + parameter.grad
        matrix = (parameter.grad + 0.6 * buffer).reshape(8, 27)
        x = matrix / torch.linalg.matrix_norm(matrix)
        for _ in range(3):
            gram = x @ x.T
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        expected = expected / expected.flatten().square().sum().sqrt() * math.sqrt(8) - 0.2 * x.reshape(8, 3, 3, 3)
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)


def test_muon_groups_that_are_not_orthogonalized_equal_torch_sgd(model):
    reference = copy.deepcopy(model)
    settings = {"lr": 0.05, "momentum": 0.85, "weight_decay": 0.01}
    ours = Muon([{"params": list(model.parameters()), **settings}])
    theirs = torch.optim.SGD(reference.parameters(), **settings, nesterov=True)
    for step in range(4):
        for network, optimizer in ((model, ours), (reference, theirs)):
            random_gradients(network, step)
            optimizer.step()
    for found, expected in zip(weights_of(model), weights_of(reference)):
        torch.testing.assert_close(found, expected)


def test_memory_format_does_not_change_a_muon_step(model):
    """A channels_last filter must be flattened in its logical order."""
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for network in (model, other):
        optimizer = build_optimizer(network, "muon")
        random_gradients(network, 0)
        optimizer.step()
    for found, expected in zip(weights_of(other), weights_of(model)):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_muon_in_16_bit_is_close_to_32_bit(model, dtype):
    other = copy.deepcopy(model)
    for network, newton_schulz_dtype in ((model, torch.float32), (other, dtype)):
        optimizer = build_optimizer(network, "muon", newton_schulz_dtype=newton_schulz_dtype)
        random_gradients(network, 0, scale=1e-4)
        optimizer.step()
    for found, expected in zip(weights_of(other), weights_of(model)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_muon_skips_a_step_with_found_inf_exactly(model):
    optimizer = build_optimizer(model, "muon")
    random_gradients(model, 0)
    optimizer.step()
    before, state_before = weights_of(model), copy.deepcopy(optimizer.state_dict())
    random_gradients(model, 1)
    next(model.parameters()).grad.fill_(math.inf)
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0), torch.tensor(1024.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(model)))
    assert same(optimizer.state_dict(), state_before)


def test_muon_under_a_gradient_scaler_equals_muon_without(model):
    """Half of the steps overflow: they must leave no trace, the others must be as if unscaled."""
    plain, images = copy.deepcopy(model), torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scaled_steps, plain_steps = build_optimizer(model, "muon"), build_optimizer(plain, "muon")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        overflows = step % 2 == 0
        scaled_steps.zero_grad()
        scaler.scale(F.cross_entropy(model.eval()(images), torch.arange(6) % 5)).backward()
        if overflows:
            model.fc.weight.grad[0, 0] = math.inf
        scaler.step(scaled_steps)
        scaler.update()
        if not overflows:
            plain_steps.zero_grad()
            F.cross_entropy(plain.eval()(images), torch.arange(6) % 5).backward()
            plain_steps.step()
    assert scaler.get_scale() == 2.0**8     # halved twice
    for found, expected in zip(weights_of(model), weights_of(plain)):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_state_dict_round_trip_goes_on_bit_for_bit(model, name, tmp_path):
    optimizer = build_optimizer(model, name)
    for step in range(3):
        random_gradients(model, step)
        optimizer.step()
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(weights)
    resumed = build_optimizer(other, name)
    resumed.load_state_dict(state)
    for network, steps in ((model, optimizer), (other, resumed)):
        random_gradients(network, 99)
        steps.step()
    assert all(torch.equal(a, b) for a, b in zip(weights_of(model), weights_of(other)))


def same(one, other):
    """Are two nested structures equal, tensors bit for bit?"""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_step_of_muon_is_few_operations_however_many_filters_there_are():
    counts = []
    for copies in (1, 4):
        model = nn.Sequential(*[nn.Conv2d(20, 20, 3) for _ in range(3 * copies)], nn.Linear(8, 4))
        optimizer = build_optimizer(model, "muon")
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        with Operations() as operations:
            optimizer.step()
        counts.append(operations.count)
    assert counts[0] == counts[1] < 80
