"""All that is worth measuring on a GPU that is at hand for minutes only.

    python -m helpers.tools.gpu --data-dir data --out figures/gpu/t4

Runs the PARTS one after another, each in a process and with a time limit of its own; one that fails or takes too long
does not stop the rest. What they print goes to `report.txt` as it comes, their numbers to `report.json` after each.
Meant to take under four minutes on an H100; a slower card needs `--limit-factor 3`. `--parts steps quick` runs these.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from importlib import util
from pathlib import Path
from unittest import mock

import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cifar100_pipeline import CIFAR100Pipeline

from ..config import ConfigError, TrainingConfig
from ..data import DataError, load_cifar100
from ..files import write_json, write_text
from ..layers.equivariant import FlipConv3x3
from ..layers.fastest import measured
from ..lesson.speed import format_rows, images_of_step, inference_throughput, repeated_step, seconds_of
from ..models import build_model, training_flops
from ..schedule import Schedule
from ..step import TrainStep
from ..system import SystemInfo, cpu_cores, pick_device, pick_precision, synchronize
from ..trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (42, 1, 2)
PARTING = 5                 # seconds that a part has for its last words
T4_FLOPS = 25e12            # a second in fp16: assumed, two fifths of the peak
T4_BANDWIDTH = 300e9        # bytes a second: nearly the peak, 320


class Operations(TorchDispatchMode):
    """Counts tensor operations, views aside, and the bytes of their arguments and results, each read or written once.
    Kernels that are not torch's, such as Triton's, are not seen."""

    def __init__(self):
        super().__init__()
        self.count, self.bytes = 0, 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        results = operation(*arguments, **(keywords or {}))
        is_view = any(result.alias_info and not result.alias_info.is_write for result in operation._schema.returns)
        if not is_view and not any(name in operation.name() for name in ("empty", "profiler", "detach", "unsafe_view")):
            self.count += 1
            tensors = [leaf for leaf in tree_leaves((arguments, keywords, results)) if isinstance(leaf, Tensor)]
            self.bytes += sum({id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}.values())
        return results


def operations_of_step(config: TrainingConfig, image_size: int = 32, precision: str = "bf16",
                       batch_size: int = 20) -> tuple[int, int, int]:
    """Operations, bytes and FLOPs of a TrainStep, without making its batch; counted on the CPU."""
    step = TrainStep(build_model(**config.model_arguments()).train(), config, precision,
                     torch.zeros(batch_size, dtype=torch.long), replayable=True)
    rows = torch.arange(batch_size)
    images = torch.randn(batch_size, 3, image_size, image_size).to(memory_format=torch.channels_last)
    for _ in range(2):      # the first makes the optimiser's state
        step.set_rates(1.0)
        with FlopCounterMode(display=False) as flops, Operations() as operations:
            step.on_device([(images, rows % config.num_classes)], [rows])
    return operations.count, operations.bytes, flops.get_total_flops()


def cost_of_training(config: TrainingConfig, images: int = 49_500) -> dict:
    """Operations of a step, gigabytes of one at full size, and terabytes and PFLOP of the whole training, optimiser
    included. What one image adds is the same in a batch of any size."""
    schedule = Schedule(config, images)
    costs = Counter()
    for size, steps in _steps_by_size(schedule).items():
        (count, *few), (_, *more) = (operations_of_step(config, size, batch_size=number) for number in (10, 20))
        whole = [a + (b - a) / 10 * (schedule.batch_size - 10) for a, b in zip(few, more)]
        costs["bytes"] += steps * whole[0]
        costs["flops"] += steps * whole[1]
    return {"operations": count, "step_gigabytes": whole[0] / 1e9, "terabytes": costs["bytes"] / 1e12,
            "petaflops": costs["flops"] / 1e15}


# Parts: print what is measured, and return it for report.json ----------------------------------------------

def machine(args) -> dict:
    """The card and the versions."""
    device = pick_device()
    info = SystemInfo.of(device, pick_precision(device))
    print(info)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {**info.to_dict(), "commit": commit.stdout.strip()}


def tests(args) -> dict:
    """The tests that need a GPU, several at once where pytest-xdist is installed."""
    command = [sys.executable, "-m", "pytest", "-v", "-o", "addopts=", "tests/gpu", "tests/test_fused.py"]
    if util.find_spec("xdist"):
        command += ["-n", str(min(6, cpu_cores()))]
    subprocess.run(command, cwd=ROOT, check=True)
    return {}


def operations(args) -> dict:
    """Operations, memory traffic and FLOPs of a training, counted on the CPU, and from them an estimate for a T4."""
    rows = []
    for preset, way in (("fast", "by_pairs"), ("fast", "by_filters"), ("quick", "by_pairs")):
        with mock.patch.object(FlipConv3x3, "forward", getattr(FlipConv3x3, way)):
            cost = cost_of_training(_config(args, preset))
        seconds = cost["petaflops"] * 1e15 / T4_FLOPS, cost["terabytes"] * 1e12 / T4_BANDWIDTH
        rows.append({"preset": preset, "layers": way, **cost,
                     "t4_compute_s": seconds[0], "t4_memory_s": seconds[1], "t4_s": sum(seconds)})
        print(format_rows(rows[-1:]), flush=True)
    return {"t4_flops": T4_FLOPS, "t4_bandwidth": T4_BANDWIDTH, "rows": rows}


def steps(args) -> dict:
    """Milliseconds of the host and in all, for a step of `fast` by image size, ordinary and replayed."""
    config, rows = _config(args, "fast", resume="never"), []
    data = load_cifar100(config)
    ways = {"ordinary": None, "graph": "auto"}
    for size in _steps_by_size(Schedule(config, len(data.train_images))):
        for name, capture in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                trainer = Trainer(config, data, folder)
            step = repeated_step(trainer, trainer.train_step, size, capture=capture)
            seconds, host = _step_seconds(step, trainer.device, args.steps)
            flops = training_flops(trainer.model, size) * images_of_step(trainer)
            rows.append({"image_size": size, "way": name, "host_ms": 1000 * host, "step_ms": 1000 * seconds,
                         "tflops": flops / seconds / 1e12, "images_per_second": images_of_step(trainer) / seconds})
            print(format_rows(rows[-1:]), flush=True)
    return {"batch_size": config.batch_size, "rows": rows}


def kernels(args) -> dict:
    """The kernels of a replayed step of `fast` at full size that take most of the GPU's time."""
    config = _config(args, "fast", resume="never")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, load_cifar100(config), folder)
    step = repeated_step(trainer, trainer.train_step)
    rows = [{"ms": milliseconds, "calls": calls, "kernel": name[:100]}
            for name, milliseconds, calls in _kernels(step, trainer.device)]
    print(format_rows(rows[:40]))
    ways = [{"images": str(list(shape)), "parameters": str(shapes), "ways": {way: time for way, time in times.items()
                                                                            if math.isfinite(time)}}
            for (_, shape, _, _, shapes), times in measured.items()]
    print("\nMilliseconds by way, forward and backward, of which the fastest is taken:",
          *[f"{row['images']}, {row['parameters']}: {row['ways']}" for row in ways], sep="\n")
    return {"rows": rows[:40], "ways": ways, "kernels": sum(row["calls"] for row in rows),
            "gpu_ms": sum(row["ms"] for row in rows)}


def quick(args) -> dict:
    """`quick` on SEEDS: seconds of the training loop, and accuracies on the test split, which selects nothing."""
    rows, data = [], None
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            pipeline = CIFAR100Pipeline(_config(args, "quick", seed=seed, runs_dir=folder, progress="none"))
            data = pipeline.data = data or pipeline.prepare_data()
            history = pipeline.train()
            rows.append(_row("quick", seed, history.rows[-1], pipeline.evaluate()))
        print(format_rows(rows[-1:]), flush=True)
    return {"rows": rows}


def fast(args) -> dict:
    """`fast` by train.py in a process of its own, from start to end."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        config = _config(args, "fast", runs_dir=folder, run_name="fast", progress="lines")
        write_text(yaml.safe_dump(config.to_dict()), f"{folder}/fast.yaml")
        subprocess.run([sys.executable, "train.py", "--config", f"{folder}/fast.yaml"], cwd=ROOT, check=True)
        seconds = time.perf_counter() - start
        metrics = json.loads((Path(folder) / "fast" / "metrics.json").read_text(encoding="utf-8"))
    row = _row("fast", config.seed, metrics["history"][-1], metrics["results"]) | {"process_seconds": seconds}
    print(format_rows([row]))
    return {"rows": [row]}


def inference(args) -> dict:
    """Images per second of the network of `fast` by batch size."""
    device = pick_device()
    torch.backends.cudnn.benchmark = True       # as after a training
    model = build_model(**_config(args, "fast").model_arguments())
    rows = inference_throughput(model, device, pick_precision(device), (1, 32, 128, 500, 2000), repeats=3)
    print(format_rows(rows))
    return {"rows": rows}


def notebook(args) -> dict:
    """The notebook, from the first cell to the last, on the demo's drawn images."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "papermill", "CIFAR_100_CNN_Training.ipynb", f"{folder}/out.ipynb",
                   "--no-progress-bar", "-p", "preset", "demo", "-p", "runs_dir", folder]
        seconds = seconds_of(functools.partial(subprocess.run, command, cwd=ROOT, check=True), torch.device("cpu"))
    print(f"{seconds:.0f} s")
    return {"seconds": seconds}


PARTS = {machine: 30, tests: 150, operations: 120, steps: 90, kernels: 40, quick: 100, fast: 150, inference: 40,
         notebook: 100}      # with their limits in seconds, by the order of what one would miss most


def _config(args, preset: str, **settings) -> TrainingConfig:
    overrides = yaml.safe_load("\n".join(override.replace("=", ": ", 1) for override in args.overrides)) or {}
    return TrainingConfig.from_settings({"preset": preset, "data_dir": args.data_dir, **settings, **overrides})


def _steps_by_size(schedule: Schedule) -> Counter:
    return Counter(map(schedule.image_size, range(schedule.total_steps)))


def _step_seconds(step, device: torch.device, count: int) -> tuple[float, float]:
    """Seconds of a step, and those after which the host is done with it."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    host = time.perf_counter() - start
    synchronize(device)
    return (time.perf_counter() - start) / count, host / count


def _kernels(step, device: torch.device, count: int = 5) -> list[tuple[str, float, float]]:
    """(name, milliseconds, calls) a step of each kernel on the GPU, the longest first; of no kernel on a CPU."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities[:1 + (device.type == "cuda")]) as profiler:
        for _ in range(count):
            step()
        synchronize(device)
    found = [(event.key, event.self_device_time_total / 1000 / count, event.count / count)
             for event in profiler.key_averages() if event.device_type != torch.autograd.DeviceType.CPU
             and not event.key.startswith("Optimizer.")]        # a range that torch marks, not a kernel
    return sorted(found, key=lambda row: -row[1])


def _row(preset: str, seed: int, last_epoch: dict, results: dict) -> dict:
    return {"preset": preset, "seed": seed, "seconds": last_epoch["seconds"], "petaflops": last_epoch["petaflops"],
            "top1": results["top1"], "top5": results["top5"]}


# The command -----------------------------------------------------------------------------------------------

def run_part(limit: float, command: list[str], report: list[str], path: Path) -> str:
    """Run a command for at most `limit` seconds; print its output and append it to `path`. Returns "" or what went
    wrong."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, errors="replace", start_new_session=True)
    expired = threading.Event()

    def stop() -> None:
        expired.set()
        os.killpg(process.pid, signal.SIGINT)       # pytest then says what has failed so far
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PARTING)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit, stop)
    timer.start()
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            report.append(line)
            write_text("".join(report), path)
        status = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:      # Ctrl-C: the part would go on, and be measured with the next
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"took longer than {limit:.0f} s" if expired.is_set() else f"exit status {status}" if status else ""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when all parts succeeded, else 1."""
    names = {part.__name__: part for part in PARTS}
    parser = argparse.ArgumentParser(prog="python -m helpers.tools.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", default="data", help="folder with CIFAR-100 [data]")
    parser.add_argument("--out", help="folder of report.txt and report.json")
    parser.add_argument("--parts", nargs="+", choices=names, default=[name for name in names if name != "operations"],
                        metavar="PART", help=f"of {', '.join(names)} [all but operations, which need no GPU]")
    parser.add_argument("--limit-factor", type=float, default=1, metavar="FACTOR",
                        help="of the time limits; 3 for a card that is slower than an H100 [1]")
    parser.add_argument("--steps", type=int, default=20, help="steps per timing [20]")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="NAME=VALUE",
                        help="settings on top of the presets', to try the command in short")
    parser.add_argument("--one", choices=names, help=argparse.SUPPRESS)     # run this part here; --out is its file
    args = parser.parse_args(arguments)
    if args.steps < 1:
        parser.error(f"--steps {args.steps}: must be at least 1")
    if not args.limit_factor > 0:
        parser.error(f"--limit-factor {args.limit_factor:g}: must be above 0")
    if not args.out:
        parser.error("--out: name a folder for report.txt and report.json")
    if args.one:
        try:
            write_json(names[args.one](args), args.out)
        except (ConfigError, DataError) as error:
            parser.exit(1, f"{error}\n")
        return 0
    out, report, content = Path(args.out).resolve(), [], {}
    out.mkdir(parents=True, exist_ok=True)
    for name in args.parts:
        heading, result = f"\n== {name}: {names[name].__doc__.splitlines()[0]}\n", out / f".{name}.json"
        print(heading, flush=True)
        report.append(heading)
        command = [sys.executable, "-m", "helpers.tools.gpu", "--one", name, "--out", str(result), "--steps",
                   str(args.steps), "--data-dir", str(Path(args.data_dir).expanduser().resolve()), "--overrides",
                   *args.overrides]
        start = time.perf_counter()
        fault = run_part(args.limit_factor * PARTS[names[name]], command, report, out / "report.txt")
        content[name] = {"part_seconds": time.perf_counter() - start, "fault": fault}
        if result.exists():
            content[name] |= json.loads(result.read_text(encoding="utf-8"))
            result.unlink()
        report.append(f"-- {name}: {fault or 'done'} after {content[name]['part_seconds']:.0f} s\n")
        print(report[-1], flush=True)
        write_text("".join(report), out / "report.txt")
        write_json(content, out / "report.json")
    return int(any(part["fault"] for part in content.values()))


if __name__ == "__main__":
    sys.exit(main())
