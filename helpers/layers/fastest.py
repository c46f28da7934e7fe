"""fastest: of several ways to compute the same, the one that this GPU does fastest."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

log = logging.getLogger("cifar100")

REPEATS = 5
TOLERANCE = 0.05        # norm of a result's deviation from the first way's, relative; 16-bit rounding makes some 0.01

# Milliseconds of the ways of each kind so far: (ways, shape of the images, dtype, device, shapes of the parameters).
measured: dict[tuple, dict[str, float]] = {}


def fastest(ways: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor, parameters: Sequence[Tensor],
            milliseconds: Callable[[Callable], float] | None = None) -> Callable[[Tensor], Tensor]:
    """The way that takes the least time, forward and backward, for images [N, C, H, W], with gradients of them and of
    `parameters`.

    As cudnn.benchmark does, this measures once per process for each shape of images and parameters: writing filters out
    costs the same for small images, where the rest costs less. It never measures while a CUDA graph is captured. The
    first of `ways` must always work; one that fails, or that has other results than the first, is left out with one
    line in the log. `milliseconds(run)` times a function, by default on the GPU.
    """
    kind = (tuple(ways), tuple(images.shape), images.dtype, images.device,
            tuple(tuple(parameter.shape) for parameter in parameters))
    if kind not in measured and not (images.is_cuda and torch.cuda.is_current_stream_capturing()):
        first, times = None, {}
        for name, way in ways.items():
            try:
                results = _results(way, images, parameters)         # chooses and compiles kernels
                first = first or results
                fault = _fault(results, first)
                times[name] = math.inf if fault else (milliseconds or _gpu_milliseconds)(
                    lambda way=way: _results(way, images, parameters))
            except Exception as error:      # a compiler's, a driver's, too little memory: other ways remain
                if first is None:
                    raise
                fault, times[name] = (str(error) or type(error).__name__).splitlines()[0], math.inf
            if fault:
                log.info("on this GPU, layers are not computed by %s: %s", name, fault)
        measured[kind] = times
    times = measured.get(kind)
    return ways[min(times, key=times.get) if times else next(iter(ways))]


def _results(way, images: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The output of a forward pass, and the gradients of a backward pass."""
    images = images.detach().requires_grad_(images.requires_grad)
    output = way(images)
    wanted = [tensor for tensor in (images, *parameters) if tensor.requires_grad]
    # Sums over all pixels stay in the range of float16, and so do their summands.
    gradient = output.detach() * (output.numel() / output.shape[1]) ** -0.5
    return [output.detach(), *torch.autograd.grad(output, wanted, gradient)]


def _fault(results: list[Tensor], expected: list[Tensor]) -> str:
    for found, right in zip(results, expected):
        deviation = (found.float() - right.float()).norm() / right.float().norm().clamp(min=1e-20)
        if not deviation <= TOLERANCE:
            return f"its results are off by {deviation:.2g} of their norm"
    return ""


def _gpu_milliseconds(run: Callable) -> float:
    """GPU time of a call, the mean of REPEATS, without the host's time to launch it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(20_000_000)       # some 10 ms, in which the host launches ahead
    start.record()
    for _ in range(REPEATS):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / REPEATS
