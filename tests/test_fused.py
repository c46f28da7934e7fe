"""fused: the kernels against plain torch. Without a GPU, Triton interprets them: tests/conftest.py must set
TRITON_INTERPRET before anything imports Triton."""

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("triton")

from helpers.layers import fused  # noqa: E402
from helpers.layers.equivariant import PairNorm  # noqa: E402
from helpers.layers.pool_norm import _plain_max_blur_pool  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# A T4 has no bfloat16, and the compiler refuses it there.
HALVES = [torch.float16] + [torch.bfloat16] * (DEVICE == "cpu" or torch.cuda.get_device_capability() >= (8, 0))


def maps(*shape, seed=1, dtype=torch.double):
    numbers = torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    return numbers.to(DEVICE, dtype, memory_format=torch.channels_last)


def assert_same(function, reference, *inputs, **tolerances):
    """Same results and gradients; the reference gets the inputs in float64."""
    inputs = [images.detach().requires_grad_() for images in inputs]
    doubles = [images.detach().double().requires_grad_() for images in inputs]
    results, expected = function(*inputs), reference(*doubles)
    if isinstance(results, torch.Tensor):
        results, expected = (results,), (expected,)
    weights = [maps(*result.shape, seed=2, dtype=result.dtype) for result in results]
    grads = torch.autograd.grad(results, inputs, weights)
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in (*results, *grads))
    assert all(images.dtype == inputs[0].dtype for images in (*results, *grads))
    expected = *expected, *torch.autograd.grad(expected, doubles, [weight.double() for weight in weights])
    torch.testing.assert_close([images.double() for images in (*results, *grads)], list(expected), **tolerances)


def norm_for(kind, channels, momentum=0.4):
    torch.manual_seed(0)
    norm = kind(channels, momentum=momentum).to(DEVICE)
    for values in (norm.weight, norm.bias):
        nn.init.uniform_(values, 0.5, 1.5)
    norm.weight.requires_grad_(False)
    return norm


def plain_neighbours(images):
    first, second = images.chunk(2, 1)
    even, odd = first + second, first - second
    (even_left, even_right), (odd_left, odd_right) = [(F.pad(part, (1, 0))[..., :-1], F.pad(part, (0, 1))[..., 1:])
                                                      for part in (even, odd)]
    return (torch.cat([2 ** 0.5 * even, even_left + even_right, odd_right - odd_left], 1),
            torch.cat([2 ** 0.5 * odd, odd_left + odd_right, even_right - even_left], 1))


def plain_pairs(even, odd):
    return torch.cat([even + odd, even - odd], 1)


@pytest.mark.parametrize("with_skip", [False, True])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, PairNorm])
@pytest.mark.parametrize("shape", [(2, 80, 5, 7), (3, 2, 1, 1)])
def test_norm_and_gelu(kind, shape, with_skip):
    norm = norm_for(kind, shape[1]).double()
    plain = copy.deepcopy(norm)
    for seed in (3, 4):                     # the running statistics go on from the first batch
        images, skip = 2 * maps(*shape, seed=seed) + 3, [maps(*shape, seed=5)] * with_skip
        assert_same(lambda images, *skip: fused.norm_gelu(images, norm, *skip),
                    lambda images, *skip: F.gelu(plain(images) + sum(skip)), images, *skip)
        bias_grads = [torch.autograd.grad(out.square().sum(), layer.bias) for layer, out in (
            (norm, fused.norm_gelu(images, norm, *skip)), (plain, F.gelu(plain(images) + sum(skip))))]
        torch.testing.assert_close(*bias_grads)
    torch.testing.assert_close(norm.state_dict(), plain.state_dict())
    assert norm.num_batches_tracked == 4


def test_scales_of_a_norm_get_a_gradient_too():
    norm, images = norm_for(PairNorm, 6).double().requires_grad_(), maps(3, 6, 4, 4)
    torch.testing.assert_close(*[torch.autograd.grad(out.square().sum(), norm.weight)
                                 for out in (fused.norm_gelu(images, norm), F.gelu(norm(images)))])


def test_many_rows(monkeypatch):
    """More than one tile for each of the programs that sum."""
    if DEVICE == "cpu":         # the interpreter is slow; compiled kernels keep their constants
        monkeypatch.setattr(fused, "SPANS", type(fused.SPANS)(4))
    norm, images = norm_for(PairNorm, 2, momentum=1.0), maps(1 if DEVICE == "cpu" else 20, 2, 29, 31, dtype=torch.float)
    assert images.numel() // 2 > fused.SPANS.value * fused.ROWS.value
    plain = copy.deepcopy(norm).double()
    assert_same(lambda images: fused.norm_gelu(images, norm), lambda images: F.gelu(plain(images)), images,
                atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), plain.running_var, atol=0, rtol=1e-5)


def test_a_mean_far_from_the_values_spread():
    """A difference of mean squares would be wrong in the first digit."""
    norm = norm_for(nn.BatchNorm2d, 4, momentum=1.0)
    images = 0.1 * maps(4, 4, 9, 11, dtype=torch.float) + 1000
    fused.norm_gelu(images, norm)
    torch.testing.assert_close(norm.running_var.double(), images.double().var((0, 2, 3)), atol=0, rtol=1e-3)


@pytest.mark.parametrize("shape", [(2, 40, 5, 7), (1, 3, 6, 4), (1, 2, 3, 4), (1, 1, 2, 3)])
def test_max_blur_pool(shape):
    for images in (maps(*shape), maps(*shape).round()):
        assert_same(fused.max_blur_pool, _plain_max_blur_pool, images)


def test_pooling_passes_nan_on():
    images = maps(1, 2, 7, 7)
    images[0, 0, 2, 2] = images[0, 1, 3, 3] = torch.nan
    images[0, 1] = torch.where(images[0, 1].isnan(), torch.nan, -torch.inf)
    assert_same(fused.max_blur_pool, _plain_max_blur_pool, images, equal_nan=True)


@pytest.mark.parametrize("sides", [(1, 1), (1, 5), (2, 2), (6, 3), (5, 7)])
def test_neighbours_and_pairs(sides):
    assert_same(fused.neighbours, plain_neighbours, maps(2, 80, *sides))
    assert_same(fused.pairs, plain_pairs, maps(2, 40, *sides), maps(2, 40, *sides, seed=3))


@pytest.mark.parametrize("dtype", HALVES)
def test_16_bits(dtype):
    """Nothing but the inputs, the results and the gradient between GELU and norm is rounded."""
    images, skip = (maps(2, 32, 5, 5, seed=seed, dtype=dtype) for seed in (1, 3))
    eps = torch.finfo(dtype).eps
    norm = norm_for(PairNorm, 32)
    plain = copy.deepcopy(norm).double()
    assert_same(lambda images, skip: fused.norm_gelu(images, norm, skip),
                lambda images, skip: F.gelu(plain(images) + skip), images, skip, atol=4 * eps, rtol=eps)
    torch.testing.assert_close({name: values.double() for name, values in norm.state_dict().items()},
                               {name: values.double() for name, values in plain.state_dict().items()})
    for function, reference in ((fused.max_blur_pool, _plain_max_blur_pool), (fused.neighbours, plain_neighbours)):
        assert_same(function, reference, images, atol=0, rtol=eps)
    assert_same(fused.pairs, plain_pairs, images, skip, atol=0, rtol=eps)


def test_other_formats_are_copied():
    """Also those of gradients: that of a sum has no strides."""
    norm, images = norm_for(PairNorm, 6).double(), maps(2, 6, 5, 5)
    for function in (lambda images: fused.norm_gelu(images, norm, images),
                     fused.max_blur_pool,
                     lambda images: fused.neighbours(images)[1],
                     lambda images: fused.pairs(images, images)):
        found = []
        for layout in (images, images.contiguous(), images.transpose(2, 3).contiguous().transpose(2, 3)):
            layout = layout.clone().requires_grad_()
            result = function(layout)
            assert result.is_contiguous(memory_format=torch.channels_last)
            found.append((result, *torch.autograd.grad(result.sum(), layout)))
        torch.testing.assert_close(found[1:], found[:1] * 2)


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)        # the import fails
    spec = importlib.util.spec_from_file_location("fused_without_triton", fused.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.available(mock.Mock(is_cuda=True, device=torch.device("cuda"), **{"numel.return_value": 8}))


def test_only_gpus_are_available():
    assert fused.available(torch.zeros(8, device=DEVICE)) == (DEVICE == "cuda")


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_graph_repeats_the_same_bits():
    images = maps(4, 64, 7, 7, dtype=torch.float16).requires_grad_()
    norm = norm_for(PairNorm, 64)

    def step():
        even, odd = fused.neighbours(fused.max_blur_pool(fused.norm_gelu(images, norm, images)))
        return torch.autograd.grad(fused.pairs(even, odd).sum(), images)[0]

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        found = step()
    graph.replay()
    assert torch.equal(found, expected) and norm.num_batches_tracked == 2


COMPILE = """
import sys
try:
    import torch, triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class Device:       # what Triton asks its driver before it compiles
        get_current_device = get_current_stream = lambda *_: 0
        get_current_target = lambda *_: GPUTarget("cuda", int(sys.argv[1]), 32)

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            print(f"the driver is asked for {name}", file=sys.stderr)
            raise SystemExit(77)

    triton.runtime.driver.set_active(Device())
    run, kernels = JITFunction.run, set()
except (ImportError, AttributeError) as error:
    print(error, file=sys.stderr)
    raise SystemExit(77)
from helpers.layers import fused
from helpers.layers.equivariant import PairNorm

def compile_only(kernel, *arguments, grid, warmup, **options):
    kernels.add(kernel.fn.__name__) if "cubin" in run(kernel, *arguments, grid=grid, warmup=True, **options).asm else 0
JITFunction.run = compile_only

images = torch.zeros(2, 32, 7, 7, dtype=getattr(torch, sys.argv[2])).to(memory_format=torch.channels_last)
norm = PairNorm(32)
images.requires_grad_()
even, odd = fused.neighbours(fused.norm_gelu(fused.norm_gelu(images, norm), norm, images))
for height in (6, 7):
    for width in (6, 7):
        fused.max_blur_pool(fused.pairs(even, odd)[:, :, :height, :width]).sum().backward(retain_graph=True)
print(len(kernels))
"""


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels run here")
@pytest.mark.parametrize("capability, dtype", [("75", "float16"), ("90", "bfloat16")])      # of a T4 and an H100
def test_all_kernels_compile_for_gpus(tmp_path, capability, dtype):
    """The interpreter takes what the compiler refuses."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", COMPILE, capability, dtype], cwd=Path(__file__).parent.parent,
                           env=environment, capture_output=True, text=True)
    if found.returncode == 77:
        pytest.skip(f"this Triton is not to be asked like this: {found.stderr.strip().splitlines()[-1]}")
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["11"]
