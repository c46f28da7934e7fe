"""system: the choice of device and precision by what a machine can do, and who is watching."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from helpers import system
from helpers.system import (SystemInfo, bf16_speedup, cpu_cores, host_kind, is_out_of_memory, memory_format,
                            mount_drive, peak_memory_mb, pick_device, pick_precision, progress_style, started_headless,
                            synchronize)

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


# Precision -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("card, capability, expected", [
    ("P100", (6, 0), "fp16"), ("V100", (7, 0), "fp16"), ("T4", (7, 5), "fp16"), ("A100", (8, 0), "bf16"),
    ("L4", (8, 9), "bf16"), ("H100", (9, 0), "bf16"), ("B200", (10, 0), "bf16")])
def test_gpus_with_bf16_in_hardware_take_it_others_fp16(card, capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_precision(CUDA) == expected


@pytest.mark.parametrize("speedup, expected", [(3.1, "bf16"), (1.1, "fp32"), (0.5, "fp32")])
def test_cpus_take_bf16_where_it_is_clearly_faster(speedup, expected, monkeypatch):
    monkeypatch.setattr(system, "bf16_speedup", lambda: speedup)
    assert pick_precision(CPU) == expected
    assert pick_precision(MPS) == "fp32"


def test_the_speedup_is_measured_once():
    assert bf16_speedup() > 0
    assert bf16_speedup() == bf16_speedup()


@pytest.mark.parametrize("device", [CPU, CUDA, MPS])
def test_the_settings_go_before_the_machine(device):
    assert pick_precision(device, mixed_precision=False) == "fp32"
    for precision in ("bf16", "fp16"):
        assert pick_precision(device, mixed_precision=False, precision=precision) == "fp32"
        assert pick_precision(device, precision=precision) == precision


# Device ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cuda, mps, expected", [(True, False, "cuda:0"), (True, True, "cuda:0"), (False, True, "mps"),
                                                 (False, False, "cpu")])
def test_auto_takes_the_fastest_device_there_is(cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *_, device: zeros(1))
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    device = pick_device()
    assert device == torch.device(expected) and chosen == [device] * (device.type == "cuda")


def test_a_gpu_that_this_torch_has_no_kernels_for_is_told(monkeypatch):
    """As a P100 with a torch for newer cards: it is there, and the first kernel fails."""
    class Unusable:
        def __add__(self, other):
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: Unusable())
    with pytest.raises(ValueError, match="device='auto' is unavailable .*no kernel image.*; use 'cpu', or .*T4"):
        pick_device()


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:x", "meta"])
def test_a_device_that_is_not_there_is_named_with_the_remedy(name):
    with pytest.raises(ValueError) as caught:
        pick_device(name)
    assert f"device={name!r}" in str(caught.value) and "'auto'" in str(caught.value)


def test_a_device_that_is_there_is_given():
    assert pick_device("cpu") == CPU


def test_system_info_describes_this_machine():
    info = SystemInfo.of(CPU, "fp32")
    assert (info.device, info.precision, info.torch) == ("cpu", "fp32", torch.__version__)
    assert info.cpu_cores == cpu_cores() >= 1 and info.device_memory_gb is None and info.cuda is None
    json.dumps(info.to_dict(), allow_nan=False)
    assert "fp32" in str(info) and torch.__version__ in str(info) and "None" not in str(info)


# Memory ----------------------------------------------------------------------------------------------------

def test_the_error_of_an_impossible_allocation_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error, expected", [
    (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
    (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to "
                  "allocate 8388608 bytes."), True),        # on Windows
    (RuntimeError("could not create a primitive"), True), (RuntimeError("std::bad_alloc"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    (ValueError("out of memory"), False), (KeyboardInterrupt(), False)])
def test_other_errors_are_told_apart_from_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_images_are_contiguous_on_mps_only():
    assert memory_format(CPU) is memory_format(CUDA) is torch.channels_last
    assert memory_format(MPS) is torch.contiguous_format


def test_peak_memory_of_the_process_is_in_mebibytes():
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert peak_memory_mb(CPU) > 64 and len(block)
    resource = pytest.importorskip("resource")
    if sys.platform == "linux":     # kibibytes there
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert peak_memory_mb(CPU) == pytest.approx(kibibytes / 1024, rel=0.1)
    synchronize(CPU)


# Who is watching -------------------------------------------------------------------------------------------

ENVIRONMENTS = {
    "terminal": ({}, False, True, "bar"),
    "output redirected to a file": ({}, False, False, "lines"),
    "papermill or nbval": ({}, True, False, "lines"),
    "papermill started from a terminal": ({}, True, True, "lines"),
    "Jupyter": ({"JPY_SESSION_NAME": "x.ipynb"}, True, False, "bar"),
    "VS Code": ({"VSCODE_PID": "7"}, True, False, "bar"),
    "Colab": ({"COLAB_RELEASE_TAG": "release"}, True, False, "bar"),
    "Kaggle's editor": ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, True, False, "bar"),
    "Kaggle, saved version": ({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, True, False, "lines"),
    "CI in a terminal": ({"CI": "true"}, False, True, "lines"),
    "CI in Jupyter": ({"CI": "true", "JPY_SESSION_NAME": "x"}, True, False, "lines"),
}


@pytest.fixture
def environment(monkeypatch):
    """A function that stands for being started there; nothing of the real environment shows through."""
    def be(variables, in_kernel, in_terminal):
        for name in ("CI", "JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(system, "started_headless", lambda: False)
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
        if in_kernel:
            monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
        monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: in_terminal))
    return be


@pytest.mark.parametrize("variables, in_kernel, in_terminal, expected", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_a_bar_is_drawn_where_somebody_watches(variables, in_kernel, in_terminal, expected, environment):
    environment(variables, in_kernel, in_terminal)
    assert progress_style() == expected
    for setting in ("bar", "lines", "none"):
        assert progress_style(setting) == setting


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("parent, expected", [
    ("papermill", "lines"), ("/usr/bin/jupyter-nbconvert", "lines"), ("/usr/bin/pytest", "lines"),
    ("jupyter-lab", "bar"), ("--root_dir=/home/me/pytest-of-me/papermill-course", "bar")])
def test_a_kernel_that_papermill_started_from_within_jupyter_prints_lines(parent, expected, environment, monkeypatch):
    """It inherits Jupyter's variables; its parent process tells."""
    environment({"JPY_SESSION_NAME": "x.ipynb"}, True, False)
    monkeypatch.setattr(system, "started_headless", started_headless)
    process = subprocess.Popen([sys.executable, "-c", "input(print('up', flush=True))", parent],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()       # until then its command line may not be there
        monkeypatch.setattr(os, "getppid", lambda: process.pid)
        assert progress_style() == expected and started_headless() == (expected == "lines")
    finally:
        process.communicate(b"\n")


def test_host_kinds_are_told_apart(environment):
    environment({}, False, False)
    assert host_kind() == "local"
    environment({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, True, False)
    assert host_kind() == "kaggle"
    environment({"COLAB_RELEASE_TAG": "release"}, True, False)
    assert host_kind() == "colab"


def test_drive_elsewhere_than_on_colab_is_refused_with_the_remedy(environment):
    environment({}, False, False)
    with pytest.raises(ValueError, match="checkpoint_dir"):
        mount_drive()


@pytest.fixture
def colab(environment, monkeypatch, tmp_path):
    """A function that stands for being on Colab, where `mount` mounts Google Drive at tmp_path."""
    def be(mount, in_kernel=True):
        environment({"COLAB_RELEASE_TAG": "release"}, in_kernel, False)
        monkeypatch.setattr(system, "DRIVE", tmp_path)
        drive = SimpleNamespace(mount=mount)
        monkeypatch.setitem(sys.modules, "google", SimpleNamespace(colab=SimpleNamespace(drive=drive)))
        monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=drive))
    return be


def test_drive_is_mounted_once_on_colab(colab, tmp_path, monkeypatch):
    """Also where a plain folder of its name stands, which goes with the session."""
    mounted = []
    (tmp_path / "MyDrive").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) in mounted)
    colab(mounted.append)
    for _ in range(2):
        assert mount_drive() == tmp_path / "MyDrive" / "cifar100-cnn-training"
    assert mounted == [str(tmp_path)]


def test_drive_that_cannot_be_mounted_is_one_message(colab):
    def refuse(path):
        raise AttributeError("mount failed")
    colab(refuse)
    with pytest.raises(ValueError, match=r"mount failed.*checkpoint_dir"):
        mount_drive()


def test_drive_is_not_asked_for_where_nobody_can_answer(colab, monkeypatch):
    mounted = []
    colab(mounted.append, in_kernel=False)
    with pytest.raises(ValueError, match=r"nobody can grant access.*checkpoint_dir"):
        mount_drive()
    colab(mounted.append)
    monkeypatch.setattr(system, "started_headless", lambda: True)
    with pytest.raises(ValueError, match="nobody can grant access"):
        mount_drive()
    assert not mounted
