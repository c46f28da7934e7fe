"""The machine: device, 16-bit precision, memory, Colab or Kaggle, and whether somebody watches."""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path

import torch
from torch.nn.functional import conv2d
from tqdm.auto import tqdm

from .layers.winograd import winograd_conv
from .text import first_line

log = logging.getLogger("cifar100")

DRIVE = Path("/content/drive")      # where Colab mounts Google Drive
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class SystemInfo:
    """The machine of a run, as metrics.json records it. Memory is in GB (2**30 bytes)."""

    device: str
    device_name: str
    device_memory_gb: float | None
    cpu_cores: int
    memory_gb: float | None
    precision: str
    host: str
    os: str
    python: str
    torch: str
    torchvision: str
    cuda: str | None

    @classmethod
    def of(cls, device: torch.device, precision: str) -> SystemInfo:
        """Inspect this machine; `device` and `precision` are the run's."""
        cuda = device.type == "cuda"
        properties = torch.cuda.get_device_properties(device) if cuda else None
        return cls(
            device=str(device), device_name=properties.name if cuda else _cpu_name(),
            device_memory_gb=round(properties.total_memory / 2**30, 1) if cuda else None,
            cpu_cores=cpu_cores(), memory_gb=_memory_gb(), precision=precision, host=host_kind(),
            os=f"{platform.system()} {platform.machine()}", python=platform.python_version(),
            torch=str(torch.__version__), torchvision=metadata.version("torchvision"),
            cuda=torch.version.cuda if cuda else None)

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        device_memory = f", {self.device_memory_gb} GB" if self.device_memory_gb else ""
        memory = f", {self.memory_gb} GB" if self.memory_gb else ""
        return (f"device      {self.device} ({self.device_name}{device_memory})\n"
                f"precision   {self.precision}{' with loss scaling' if self.precision == 'fp16' else ''}\n"
                f"CPU         {self.cpu_cores} cores{memory}\n"
                f"host        {self.host}, {self.os}\n"
                f"versions    Python {self.python}, torch {self.torch}, torchvision {self.torchvision}")


def pick_device(name: str = "auto") -> torch.device:
    """The torch device for a `device` setting; a GPU becomes the current one. Raises ValueError if there is none."""
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device("cuda:0" if chosen == "cuda" else chosen)     # some functions need the index
        (torch.zeros(1, device=device) + 1).item()      # "meta" computes nothing, nor does a torch without its kernels
        make_current(device)
    except (RuntimeError, AssertionError) as error:
        others = "'cpu'" if name == "auto" else "'auto' or 'cpu'"
        raise ValueError(f"device={name!r} is unavailable ({first_line(error)}); use {others}, or choose a T4 GPU: on "
                         "Colab by Runtime > Change runtime type, on Kaggle by Settings > Accelerator") from error
    return device


def make_current(device: torch.device) -> None:
    """Make a GPU the current device, which kernels and graphs take: another pipeline may have had its turn."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def memory_format(device: torch.device) -> torch.memory_format:
    """channels_last, but contiguous on MPS, where it breaks the backward passes of batch norm and max pooling: wrong
    results or crashes (PyTorch issues 175189 and 175190, seen in torch 2.10)."""
    return torch.channels_last if device.type != "mps" else torch.contiguous_format


def keep_freed_memory() -> None:
    """Make the C library (glibc only) reuse the memory of freed tensors.

    By default glibc returns blocks over 32 MiB to the system at once, and the next tensor of that size is faulted in
    page by page and zeroed. Without that, training common convolutions of up to 512 channels at 32 px, batch 500, rose
    from 180 to 280 GFLOP/s.
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4      # from malloc.h
        for option, value in ((m_mmap_max, 0), (m_trim_threshold, -1), (m_top_pad, 256 * 2**20)):
            ctypes.CDLL(None).mallopt(option, value)


def pick_precision(device: torch.device, mixed_precision: bool = True, precision: str = "auto") -> str:
    """"fp32", "bf16" or "fp16" for the settings `mixed_precision` (False: fp32) and `precision` (the 16-bit type).

    precision="auto" means bf16 on GPUs with bf16 hardware (compute capability 8.0, Ampere), else fp16; bf16 on CPUs
    where `bf16_speedup` exceeds 1.2, as the instruction set does not tell (bf16 is several times as fast with AMX, half
    as fast on some server CPUs), else fp32; fp32 on other devices.
    """
    if not mixed_precision:
        return "fp32"
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if device.type == "cpu" and bf16_speedup() > 1.2 else "fp32"


@functools.cache
def bf16_speedup() -> float:
    """Time of a convolution, forward and backward, in fp32 (Winograd) over that in bf16, on this CPU. Measured once per
    process; the best of several alternating timings suppresses other load."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 128, 16, 16, generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    operands = {dtype: [tensor.to(dtype).requires_grad_() for tensor in (images, weight)]
                for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(operands, math.inf)
    for _ in range(12):
        for dtype, (inputs, filters) in operands.items():
            convolution = winograd_conv if dtype == torch.float32 else functools.partial(conv2d, padding=1)
            start = time.perf_counter()
            convolution(inputs, filters).sum().backward()
            best[dtype] = min(best[dtype], time.perf_counter() - start)
        if best[torch.bfloat16] > 3 * best[torch.float32]:      # without bf16 instructions a call takes a second
            break
    return best[torch.float32] / best[torch.bfloat16]


def autocast(device: torch.device, precision: str):
    """The autocast context for "bf16" or "fp16"; no effect for "fp32"."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """States of torch's global generators, which dropout uses, by kind of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore what `rng_state` returned, the device's part only on the same kind of device."""
    torch.set_rng_state(states["cpu"])
    of_device = states.get(device.type)
    if device.type == "cuda" and of_device is not None:
        torch.cuda.set_rng_state(of_device, device)
    elif device.type == "mps" and of_device is not None:
        torch.mps.set_rng_state(of_device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its queued work; a CPU queues none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak memory so far in MB (2**20 bytes): of tensors on CUDA, else of the process; None on Windows without CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if util.find_spec("resource") is None:      # Windows
        return None
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def is_out_of_memory(error: BaseException) -> bool:
    """Is this an out-of-memory error of the device or of the CPU allocator?"""
    phrases = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory",     # on Windows
               "bad_alloc", "could not create a primitive",      # oneDNN
               "MPS backend out of memory", "CUDA error: out of memory",
               "CUBLAS_STATUS_ALLOC_FAILED",
               # cuDNN: no algorithm has enough workspace.
               "was unable to find an engine to execute this computation", "Unable to find a valid cuDNN algorithm")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases))


def free_cache(device: torch.device) -> None:
    """Give memory back that torch holds without using it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def in_parts(work, *batch: torch.Tensor) -> list:
    """[work(*batch)] or, where memory is short, the results for halves, quarters, … of the batch, tensors [B, …].
    Raises the device's out-of-memory error when a single image does not fit."""
    try:
        return [work(*batch)]
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(batch[0]) < 2:
            raise
    free_cache(batch[0].device)     # not before: the error held the memory of the attempt
    say_once("out of memory: the network evaluates images in smaller batches, which takes longer")
    halves = zip(*(tensor.chunk(2) for tensor in batch))
    return [result for half in halves for result in in_parts(work, *half)]


@functools.cache
def say_once(message: str) -> None:
    log.warning("%s", message)


def is_capturing(device: torch.device) -> bool:
    """Is the current stream recording a CUDA graph, so that nothing may wait for the device?"""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def host_kind() -> str:
    """"colab", "kaggle" or "local"."""
    if "COLAB_RELEASE_TAG" in os.environ:
        return "colab"
    return "kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else "local"


def progress_style(setting: str = "auto") -> str:
    """"bar", "lines" or "none" for the `progress` setting.

    "auto" draws a bar where somebody watches: in a terminal, or in a kernel that a notebook front end started (Colab,
    Kaggle's editor, Jupyter Server with JPY_SESSION_NAME, VS Code). Under papermill, nbval and CI a bar would freeze or
    fill the file, so "auto" prints a line per epoch.
    """
    if setting != "auto":
        return setting
    if "CI" in os.environ or os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch" or started_headless():
        return "lines"
    in_front_end = host_kind() != "local" or "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ
    is_watched = in_front_end if "ipykernel" in sys.modules else sys.stderr.isatty()
    return "bar" if is_watched else "lines"


def with_bar(items, total: int, what: str, progress: str):
    """Iterate over `items` under a progress bar called `what`, if `progress` asks for one."""
    return tqdm(items, what, total, leave=False, dynamic_ncols=True, disable=progress_style(progress) != "bar")


def started_headless() -> bool:
    """Did papermill, nbconvert or pytest start this process, which inherits their front end's variables? Linux only."""
    command = Path(f"/proc/{os.getppid()}/cmdline")
    # For example `python -m pytest` or `python /usr/bin/papermill`; later words may be arbitrary paths.
    words = command.read_text(errors="replace").split("\0")[:4] if command.exists() else []
    return not {"papermill", "nbconvert", "jupyter-nbconvert", "pytest"}.isdisjoint(Path(word).name for word in words)


def lies_on_drive(path) -> bool:
    """Is `path` in Colab's mount folder of Google Drive, mounted or not?"""
    return host_kind() == "colab" and DRIVE in Path(path).expanduser().absolute().parents


def mount_drive() -> Path:
    """Mount Google Drive on Colab if needed; return the project's folder there. Raises ValueError outside Colab and if
    mounting fails; only the user of a notebook can grant access."""
    if host_kind() != "colab":
        raise ValueError("drive=True works on Google Colab only; elsewhere set checkpoint_dir to a permanent folder")
    if not os.path.ismount(DRIVE):      # an ordinary folder of that name vanishes with the session
        remedy = ("run `from google.colab import drive as google; google.mount('/content/drive')` in a notebook cell "
                  "first, or set checkpoint_dir")     # `drive` is a setting there
        if "ipykernel" not in sys.modules or started_headless():
            raise ValueError(f"Google Drive is not mounted, and nobody can grant access here; {remedy}")
        from google.colab import drive
        try:
            drive.mount(str(DRIVE))
        except Exception as error:      # Colab's own exceptions; a refused dialog is a MessageError
            raise ValueError(f"Google Drive could not be mounted ({error}); {remedy}") from error
    return DRIVE / "MyDrive" / "cifar100-cnn-training"


def cpu_cores() -> int:
    """CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
