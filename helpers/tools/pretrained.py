"""Trained weights that come with the project, in half precision.

    python -m helpers.tools.pretrained export runs/fast       writes pretrained/fast.pt from a finished, saved run
    python -m helpers.tools.pretrained check --data-dir data  evaluates it and compares with the results it states

`CIFAR100Pipeline.from_pretrained("fast")` reads such a file of weights, configuration and results.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from .. import checkpoint, network
from ..checkpoint import CheckpointError, take
from ..config import ConfigError, TrainingConfig
from ..data import DataError, ImageData, load_cifar100
from ..lesson.runs import NO_METRICS
from ..metrics import Evaluation
from ..network import TrainedNetwork, portable_settings, pretrained_path
from ..system import pick_device

PATHS = ("data_dir", "runs_dir", "checkpoint_dir")      # of the machine that trained
TOLERANCE = 0.05        # percentage points (five test images), since machines sum in different orders


def in_half_precision(state: dict) -> dict:
    """A state dict with its floating-point tensors as float16. Raises CheckpointError if a value is too large."""
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for name, tensor in halved.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name}: holds a value beyond float16 (±65504); these weights need fp32")
    return halved


def export(run_dir, data_dir: str | None = None, out=None) -> Path:
    """Write the weights of a finished run in half precision, with the run's results and those of the halved weights, on
    the data in `data_dir`. Reads `checkpoints/final.pt` and `metrics.json` in `run_dir`. Raises CheckpointError and
    DataError."""
    run_dir = Path(run_dir)
    state = checkpoint.load(run_dir / "checkpoints" / "final.pt")
    config, name = take(state, "config", {str: object}, run_dir), take(state, "name", str, run_dir)
    if not state.get("test_results"):
        raise CheckpointError(f"{run_dir}: has no test results yet; call pipeline.evaluate() and pipeline.save()")
    try:
        metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
        training, system = metrics["training"], metrics["system"]
        is_interrupted = training["stopped"] == "interrupted"
    except NO_METRICS as error:
        raise CheckpointError(f"{run_dir / 'metrics.json'}: not a metrics.json of this project "
                              f"({type(error).__name__}: {error}); evaluate the run again") from error
    if is_interrupted:
        raise CheckpointError(f"{run_dir}: training was interrupted; train to the end, evaluate and save first")
    config = {setting: value for setting, value in config.items() if setting not in PATHS}
    content = {**state, "model_state_dict": in_half_precision(state["model_state_dict"]), "config": config,
               "training": training, "system": system}
    content["file_results"] = evaluate(content, load_cifar100(_config_of(content, data_dir)))
    path = out or network.PRETRAINED / f"{config.get('preset') or name}.pt"
    return checkpoint.save_atomically(content, path)


def _config_of(content: dict, data_dir: str | None = None) -> TrainingConfig:
    return TrainingConfig.from_settings(portable_settings(content) | {"data_dir": data_dir})


def evaluate(content: dict, data: ImageData) -> dict:
    """Test top-1 and top-5 (%) and calibration errors of the weights in `content`, from one plain forward pass in
    fp32."""
    weights = TrainedNetwork.from_state(content, _config_of(content), pick_device())
    weights.check_classes(data)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):        # true fp32, on recent GPUs too
        logits = weights.logits(data.test_images)
    evaluation = weights.evaluation(logits, data)
    as_trained = Evaluation.from_logits(logits, data.test_labels, data.class_names)
    return {"top1": evaluation.top1, "top5": evaluation.top5, "images": len(data.test_labels),
            "expected_calibration_error": evaluation.expected_calibration_error,
            "uncalibrated_error": as_trained.expected_calibration_error}


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 the file does not reach the accuracy it states, 2 wrong arguments or data."""
    parser = argparse.ArgumentParser(prog="python -m helpers.tools.pretrained", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("export", help="write pretrained/<preset>.pt from a finished run")
    command.add_argument("run_dir", help="the run's folder, with metrics.json and checkpoints/final.pt")
    command = commands.add_parser("check", help="evaluate a file and compare with the accuracy it states")
    command.add_argument("name", nargs="?", default="fast", help="name of the file in pretrained/")
    for command in commands.choices.values():
        command.add_argument("--data-dir", default="data", help="folder with CIFAR-100")
    args = parser.parse_args(arguments)
    try:
        if args.command == "export":
            path = export(args.run_dir, args.data_dir)
            print(f"wrote {path.name}, {path.stat().st_size / 2**20:.1f} MiB")
            return 0
        content = checkpoint.load(pretrained_path(args.name))
        stated, in_the_run = (take(content, name, {str: object}, args.name) for name in ("file_results",
                                                                                         "test_results"))
        found = evaluate(content, load_cifar100(_config_of(content, args.data_dir)))
    except (CheckpointError, ConfigError, DataError, OSError) as error:
        print(f"pretrained: {error}", file=sys.stderr)
        return 2
    for key in ("top1", "top5"):
        print(f"{key}: {found[key]:.2f} % measured, {stated[key]:.2f} % stated, "
              f"{in_the_run[key]:.2f} % in the run itself")
    print(f"expected calibration error: {found['expected_calibration_error']:.4f}, without the temperature "
          f"{found['uncalibrated_error']:.4f}")
    return int(any(abs(found[key] - stated[key]) > TOLERANCE for key in ("top1", "top5")))


if __name__ == "__main__":
    sys.exit(main())
