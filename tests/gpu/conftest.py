"""Tests of what only a CUDA GPU does; elsewhere they are skipped."""

import gc
from contextlib import contextmanager

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def gpu():
    """A CUDA GPU that computes in true fp32, so that two ways to the same numbers may be compared closely."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield


@pytest.fixture
def memory_limit():
    """A context in which PyTorch may hold so many bytes of the GPU's memory."""
    @contextmanager
    def limit(count: int):
        gc.collect()
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(count / whole)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
    return limit
