"""ReplayedStep: a training step and its batch, which a GPU repeats from a CUDA graph.

A step is hundreds of kernels, and a host needs longer to launch them than a GPU to run them. A CUDA graph holds them
with the addresses of their tensors, and one call launches it (https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

from __future__ import annotations

import functools
import gc
import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from .loader import BatchLoader
from .step import TrainStep
from .system import is_out_of_memory
from .text import first_line

log = logging.getLogger("cifar100")

WARM_UP = 2     # steps of a kind before its capture: they choose kernels, compile them and make the optimiser's state

Work = Callable[[], tuple[Tensor, ...]]


class ReplayedStep:
    """Makes the batches of a step and takes it: `loss, correct = take(epoch, schedule.batches(number), image_size)`.

    On CUDA each kind of step (image size, number of batches, …) is captured after WARM_UP ordinary ones and then
    replayed. Elsewhere, and where `why_eager` says why, all steps are ordinary. Between steps, weights and other state
    may be read and changed in place.

    Args:
        train_step: a replayable TrainStep, or one for ordinary steps.
        loader: of training batches, on the same device.
        capture: turns work into (replay, its outputs), see `CudaGraphs`; None for ordinary steps; "auto" by device.
    """

    def __init__(self, train_step: TrainStep, loader: BatchLoader, capture: Callable | str | None = "auto"):
        self.train_step, self.loader = train_step, loader
        self.why_eager = _why_eager(train_step, loader)
        if capture == "auto":
            capture = CudaGraphs() if loader.device.type == "cuda" else None
        self._capture = None if self.why_eager else capture
        if capture is not None and self.why_eager:
            log.info("steps are launched operation by operation, not replayed as one CUDA graph: %s", self.why_eager)
        self._graphs, self._ordinary = {}, Counter()
        self._first = torch.zeros((), dtype=torch.long, device=loader.device)
        self._places = torch.arange(loader.batch_size, device=loader.device)

    @property
    def warm_up(self) -> int:
        """Steps of a kind before its speed is steady."""
        return 1 if self._capture is None else WARM_UP + 1

    def __call__(self, epoch: int, batches: range, image_size: int, factor: float = 1.0,
                 distil: bool = False) -> tuple[Tensor, Tensor]:
        """One optimiser step over these batches of the epoch; otherwise as TrainStep."""
        if self._capture is None:
            made = [self.loader.batch(epoch, index, image_size) for index in batches]
            return self.train_step(made, factor, [self.loader.indices(epoch, index) for index in batches], distil)
        self.train_step.set_rates(factor)
        self.loader.prepare(epoch)
        self._first.fill_(batches.start * self.loader.batch_size)
        result = self._captured(image_size, len(batches), self.train_step.parts, distil)
        self.train_step.count += 1
        return result

    def release(self) -> None:
        """Free the memory of the graphs; later steps capture new ones."""
        self._graphs.clear()
        self._ordinary.clear()

    def _captured(self, *kind) -> tuple[Tensor, Tensor]:
        """Take a step of this kind: an ordinary one at first, then by its graph."""
        image_size, batches, parts, distil = kind
        work = functools.partial(self._work, image_size, batches, distil)
        if kind not in self._graphs:
            # Sizes and parts only grow, and distillation does not end: free the memory of what is over.
            if any((other[0], *other[2:]) != (image_size, parts, distil) for other in self._graphs):
                self._graphs.clear()
            if self._ordinary[kind] < WARM_UP:
                self._ordinary[kind] += 1
                return self._capture.warm_up(work)
            try:
                self._graphs[kind] = self._capture(work)
            except Exception as error:      # a driver's, a compiler's, too little memory
                self._give_up(error)
            if self._capture is None:       # not before: the error holds the memory of the capture
                return work()
        replay, outputs = self._graphs[kind]
        replay()
        return tuple(output.clone() for output in outputs)      # the next replay overwrites them

    def _work(self, image_size: int, batches: int, distil: bool) -> tuple[Tensor, Tensor]:
        """What is captured: all of a step that happens on the device."""
        first = self._first + self._places
        made = [self.loader.batch_at(first + index * self.loader.batch_size, image_size) for index in range(batches)]
        return self.train_step.on_device([batch[:2] for batch in made], [rows for *_, rows in made], distil)

    def _give_up(self, error: Exception) -> None:
        """Go on with ordinary steps."""
        errors = [one for one in (error.__context__, error) if one]     # what broke the capture; what its end says
        self.why_eager = ("too little memory" if any(map(is_out_of_memory, errors))
                          else "; then ".join(map(first_line, errors)))
        log.warning("a step could not be captured as a CUDA graph (%s); steps are launched operation by operation, "
                    "which is slower and gives the same result", self.why_eager)
        self._capture = None
        self.release()
        self.train_step.abandon()


class CudaGraphs:
    """Captures work on the current CUDA device as graphs, each with memory of its own."""

    def __init__(self):
        self._stream = _capture_stream(torch.cuda.current_device())

    def warm_up(self, work: Work) -> tuple[Tensor, ...]:
        """Do the work on another stream than the default one, as its capture will."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = work()
        current.wait_stream(self._stream)
        return outputs

    def __call__(self, work: Work) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """A function that repeats the work, and the tensors that it writes. After an error nothing is done."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        random_state, collects = generator.clone_state(), gc.isenabled()
        gc.disable()        # an old graph freed in the middle of a capture would invalidate it
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                outputs = work()
        except BaseException:
            generator.graphsafe_set_state(random_state)     # torch may leave it waiting for a graph's replay
            raise
        finally:
            torch.cuda.set_stream(current)      # a capture that fails leaves its own
            if collects:
                gc.enable()
        return graph.replay, outputs


@functools.cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """One for each device and process, as each new stream costs cuBLAS a workspace for good."""
    return torch.cuda.Stream(device)


def _why_eager(train_step: TrainStep, loader: BatchLoader) -> str:
    """Why these steps cannot be captured; "" if they can."""
    if train_step.config.compile:
        return "compile is on"
    if loader.mix is not None:
        return "mixup and CutMix are drawn by the host"
    return ""
