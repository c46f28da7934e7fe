"""What machine is this: device, 16-bit precision, memory, Colab or Kaggle, and who is watching."""

from __future__ import annotations

import ctypes
import functools
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

from .layers.winograd import winograd_conv

DRIVE = Path("/content/drive")      # where Colab mounts Google Drive
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class SystemInfo:
    """The machine a run was made on, as it goes into metrics.json. Memory in GB (2**30 bytes)."""

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
        """Look at the machine; `device` and `precision` are those the run uses."""
        cuda = device.type == "cuda"
        properties = torch.cuda.get_device_properties(device) if cuda else None
        return cls(
            device=str(device),
            device_name=properties.name if cuda else _cpu_name(),
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
        return "\n".join([
            f"device      {self.device} ({self.device_name}{device_memory})",
            f"precision   {self.precision}" + (" with loss scaling" if self.precision == "fp16" else ""),
            f"CPU         {self.cpu_cores} cores{memory}",
            f"host        {self.host}, {self.os}",
            f"versions    Python {self.python}, torch {self.torch}, torchvision {self.torchvision}"])


def pick_device(name: str = "auto") -> torch.device:
    """The torch device for a `device` setting. Raises ValueError when it is not to be had."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())        # some functions want the index
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name!r} is not to be had here ({str(error).splitlines()[0]}); "
                         "use 'auto' or 'cpu', or on Colab choose Runtime > Change runtime type > GPU") from error
    return device


@functools.lru_cache(maxsize=1)
def memory_format(device: torch.device, channels_last: bool) -> torch.memory_format:
    """The layout of images and weights; contiguous on MPS, where the backward pass of batch norm and max pooling is
    wrong or ends the process for `channels_last` (pytorch issues 175189 and 175190, seen in torch 2.10)."""
    return torch.channels_last if channels_last and device.type != "mps" else torch.contiguous_format


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, where that can be set (glibc).

    glibc gives each block over 32 MiB back to the system at once, and the next tensor of that size is faulted in
    page by page and zeroed. Training FastCNN (128, 384, 512) at 32 px, batch 500, went from 180 to 280 GFLOP/s.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4      # of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((m_mmap_max, 0), (m_trim_threshold, -1), (m_top_pad, 256 * 2**20)):
        mallopt(option, value)


def pick_precision(device: torch.device, mixed_precision: bool = True, precision: str = "auto") -> str:
    """"fp32", "bf16" or "fp16" for the settings `mixed_precision` and `precision`.

    auto: bf16 on GPUs that have it in hardware (compute capability 8.0, Ampere), else fp16; on a CPU bf16 where a
    timed convolution is faster in it than Winograd's in fp32, since the instructions alone do not tell (with AMX it
    is several times as fast, on some server CPUs half as fast); fp32 on anything else.
    """
    if not mixed_precision:
        return "fp32"
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if device.type == "cpu" and _bf16_speedup() > 1.3 else "fp32"


@functools.lru_cache(maxsize=1)
def _bf16_speedup() -> float:
    """Time of a convolution, forward and backward, in fp32 (by Winograd) over that in bf16, on this CPU.

    The best of several alternating timings counts, so that whatever else the machine does weighs little.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 128, 16, 16, generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3, generator=generator).to(memory_format=torch.channels_last)
    operands = {dtype: [tensor.to(dtype).requires_grad_() for tensor in (images, weight)]
                for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(operands, math.inf)
    for _ in range(6):
        for dtype, (inputs, filters) in operands.items():
            start = time.perf_counter()
            convolution = winograd_conv if dtype == torch.float32 else functools.partial(conv2d, padding=1)
            convolution(inputs, filters).sum().backward()
            best[dtype] = min(best[dtype], time.perf_counter() - start)
        if best[torch.bfloat16] > 3 * best[torch.float32]:      # without the instructions a call takes a second
            break
    return best[torch.float32] / best[torch.bfloat16]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory_mb(device: torch.device) -> float | None:
    """Largest memory so far in MB (2**20 bytes): of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if util.find_spec("resource") is None:      # Windows
        return None
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def is_out_of_memory(error: BaseException) -> bool:
    """Is this the device's out-of-memory error, or that of the allocator on a CPU?"""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    phrases = ("DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory", "CUDA error: out of memory",
               "CUBLAS_STATUS_ALLOC_FAILED",
               # cuDNN's: no algorithm had enough memory to work in.
               "was unable to find an engine to execute this computation", "Unable to find a valid cuDNN algorithm")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)


def host_kind() -> str:
    """"colab", "kaggle" or "local"."""
    if "COLAB_RELEASE_TAG" in os.environ:
        return "colab"
    return "kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else "local"


def progress_style(setting: str = "auto") -> str:
    """"bar", "lines" or "none" for the `progress` setting.

    A bar is drawn where somebody watches: a terminal, or a kernel that a notebook front end started (Colab,
    Kaggle's editor, Jupyter Server's JPY_SESSION_NAME, VS Code). Under papermill, nbval and CI a bar would
    stand still or fill the file, so there it is a line an epoch.
    """
    if setting != "auto":
        return setting
    if "CI" in os.environ or os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch" or _started_headless():
        return "lines"
    in_front_end = host_kind() != "local" or "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ
    in_kernel = "ipykernel" in sys.modules
    return "bar" if (in_front_end if in_kernel else sys.stderr.isatty()) else "lines"


def _started_headless() -> bool:
    """Did papermill, nbconvert or pytest start this kernel? It inherits the variables of a front end they run in."""
    command = Path(f"/proc/{os.getppid()}/cmdline")
    # Such as `python -m pytest` or `python /usr/bin/papermill`; what comes later may be anybody's paths.
    words = command.read_text(errors="replace").split("\0")[:4] if command.exists() else []
    headless = {"papermill", "nbconvert", "jupyter-nbconvert", "pytest"}
    return any(Path(word).name in headless for word in words)


def lies_on_drive(path) -> bool:
    """Is `path` in the folder where Google Drive belongs on this Colab machine, mounted or not?"""
    return host_kind() == "colab" and DRIVE in Path(path).expanduser().absolute().parents


def mount_drive() -> Path:
    """Mount Google Drive on Colab, unless it is, and return the project's folder there.

    Raises ValueError elsewhere, and where it cannot be mounted: only a notebook that somebody watches can ask for leave.
    """
    if host_kind() != "colab":
        raise ValueError("drive=True works on Google Colab only; elsewhere set checkpoint_dir to a folder that lasts")
    if not os.path.ismount(DRIVE):      # a folder of that name may also be a plain one, which goes with the session
        remedy = ("run `from google.colab import drive; drive.mount('/content/drive')` in a cell of a notebook first, "
                  "or set checkpoint_dir")
        if "ipykernel" not in sys.modules or _started_headless():
            raise ValueError(f"Google Drive is not mounted, and nobody can be asked for it here; {remedy}")
        from google.colab import drive
        try:
            drive.mount(str(DRIVE))
        except Exception as error:      # Colab's own classes; a refused dialog is a MessageError
            raise ValueError(f"Google Drive could not be mounted ({error}); {remedy}") from error
    return DRIVE / "MyDrive" / "cifar100-cnn-training"


def cpu_cores() -> int:
    """CPU cores this process may use."""
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
