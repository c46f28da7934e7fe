"""metrics.json, written and read; how finished runs differ; published results to compare with."""

from __future__ import annotations

import glob
import json
import logging
import math
import os
from pathlib import Path

from ..config import TrainingConfig
from ..files import write_json
from ..metrics import History
from ..models import model_stats
from ..text import table
from ..trainer import Trainer

# The reference project's own run: top-1 and top-5 (%) on the test split, PFLOP (9.67 GFLOP per image forward and
# backward, 50,000 images, 150 epochs) and minutes on a Tesla T4.
REFERENCE = {"name": "reference CNN, 150 epochs", "top1": 78.25, "top5": 94.85, "petaflops": 72.5, "minutes": 150.2}

# Other trainings of known compute: mean test top-1 (%), its standard deviation and the number of runs where they are
# stated, PFLOP (one number, or the least and the most). All but the reference are published speed-runs: the
# NAVIER-STOKED entry of the AIDDA contest (2026), and the network of airbench96 (Jordan 2024, arXiv 2404.00498).
OTHERS = (REFERENCE,
          {"name": "NAVIER-STOKED", "top1": 75.19, "top1_std": 0.26, "runs": 40, "petaflops": 0.329},
          {"name": "NAVIER-STOKED, 18 epochs", "top1": 77.12, "runs": 1, "petaflops": 0.7},
          {"name": "airbench96", "top1": 79.27, "petaflops": (3, 7)})

# Test accuracies (top-1, top-5, %) that the reference project lists for CIFAR-100; none was measured here.
PUBLISHED = (("ResNet-18", 75.61, 93.45), ("VGG-16", 71.59, 90.49), ("DenseNet-121", 79.04, 94.84),
             (REFERENCE["name"], REFERENCE["top1"], REFERENCE["top5"]))

log = logging.getLogger("cifar100")

NO_METRICS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def finished_runs(pattern: str) -> list[dict]:
    """The evaluated runs whose folders match `pattern`, best test top-1 first: dicts of name, history (History), top1,
    top5 (test split, %), seconds, petaflops, epochs, note, data_dir and settings (those that shape training). Skips
    folders without results, and files of another make with a warning."""
    runs = []
    for folder in sorted(glob.glob(os.path.expanduser(pattern))):
        path = Path(folder) / "metrics.json"
        if path.is_file() and (run := read_metrics(path, run_of)) is not None:
            runs.append(run)
    return sorted(runs, key=lambda run: -run["top1"])


def read_metrics(path: Path, take):
    """`take(content)` of a metrics.json; None without results and, with a warning, where the content is of another
    make, on which `take` raises one of NO_METRICS."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return take(content) if content["results"] else None
    except (OSError, *NO_METRICS) as error:
        log.warning("skipped %s: not a metrics.json of this project (%s: %s)", path, type(error).__name__, error)
        return None


def run_of(content: dict) -> dict:
    """The entry in `finished_runs` for the content of a metrics.json."""
    results, training = content["results"], content["training"]
    for name in ("name", "note"):
        content[name].encode()      # text, and without half a surrogate pair, which cannot be printed
    history = History(content["history"], str(training.get("stopped", "")))
    numbers = {"top1": results["top1"], "top5": results["top5"], "seconds": training["seconds"],
               "petaflops": training["petaflops"]}
    numbers = {name: float(value) for name, value in numbers.items()}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError("a number is not finite")
    return {"name": content["name"], "history": history, **numbers, "epochs": len(history), "note": content["note"],
            "data_dir": content["config"].get("data_dir"),
            "settings": TrainingConfig.training_settings_of(content["config"])}


def published_beside(runs: list[dict]) -> tuple:
    """The published results if any run is comparable: on 100 classes and not on drawn data."""
    compares = any(not run["note"] and run["settings"]["num_classes"] == 100 for run in runs)
    return PUBLISHED if compares else ()


def joint_note(runs: list[dict]) -> str:
    """The note of all runs, or if they differ each with its run's name."""
    notes = sorted({f"{run['name']}: {run['note']}" for run in runs if run["note"]})
    return runs[0]["note"] if len({run["note"] for run in runs}) == 1 else "; ".join(notes)


def differing_settings(runs: list[dict]) -> list[str]:
    """Names of the settings in which the runs differ."""
    names = dict.fromkeys(name for run in runs for name in run["settings"])
    return [name for name in names if len({json.dumps(run["settings"].get(name)) for run in runs}) > 1]


def runs_text(runs: list[dict], published=()) -> str:
    """A table of finished runs with the settings in which they differ, and of published results, marked as such."""
    rows = [{"run": run["name"] + (f" ({run['note']})" if run["note"] else ""),
             "source": "measured" + ", interrupted" * (run["history"].stopped == "interrupted"),
             "top-1 %": f"{run['top1']:.2f}", "top-5 %": f"{run['top5']:.2f}", "trained epochs": run["epochs"],
             "minutes": f"{run['seconds'] / 60:.1f}", "PFLOP": f"{run['petaflops']:.4f}"} for run in runs]
    for name in differing_settings(runs):
        for row, run in zip(rows, runs):
            row[name] = run["settings"].get(name)
    rows += [{"run": name, "source": "published", "top-1 %": f"{top1:.2f}", "top-5 %": f"{top5:.2f}"}
             for name, top1, top5 in published]
    return table(rows)


def write_metrics(path: Path, trainer: Trainer, speeds: dict, results: dict) -> None:
    """Write metrics.json: configuration, machine, training record, benchmarked `speeds` and test `results`. For a run
    trained earlier, perhaps on another machine, keeps the file's machine and speeds."""
    rows, config, data = trainer.history.rows, trainer.config, trainer.data
    last = rows[-1] if rows else {"seconds": 0.0, "petaflops": 0.0, "peak_memory_mb": None}
    rates = sorted(row["images_per_second"] for row in rows)
    system = trainer.machine
    if trainer.began_at == trainer.step:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            system, speeds = dict(before["system"]), dict(before["speeds"])
        except (OSError, *NO_METRICS):
            speeds = {}
    training = {"seconds": last["seconds"], "petaflops": last["petaflops"], "stopped": trainer.history.stopped,
                "images_per_second": rates[len(rates) // 2] if rates else None,
                "peak_memory_mb": last["peak_memory_mb"]}
    write_json({"name": config.name, "note": data.note, "data": str(data), "config": config.to_dict(), "system": system,
                "model_stats": model_stats(trainer.model), "training": training, "speeds": speeds,
                "history": trainer.history.to_list(), "results": results}, path)
