"""What a run leaves in words and numbers: train.log, metrics.json, and tables as text."""

from __future__ import annotations

import glob
import json
import logging
import re
from pathlib import Path

from tqdm.auto import tqdm

from .config import SETTINGS, TrainingConfig
from .files import replacing
from .metrics import History

# The reference project's own run: top-1 and top-5 (%) on the test split, PFLOP (9.68 GFLOP an image forward and
# backward, 50,000 images, 150 epochs) and minutes on a Tesla T4.
REFERENCE = {"name": "reference CNN, 150 epochs", "top1": 78.25, "top5": 94.85, "petaflops": 72.6, "minutes": 150.2}

# Test accuracies (top-1, top-5, %) that the reference project lists for CIFAR-100; none was measured here.
PUBLISHED = (("ResNet-18", 75.61, 93.45), ("VGG-16", 71.59, 90.49), ("DenseNet-121", 79.04, 94.84),
             (REFERENCE["name"], REFERENCE["top1"], REFERENCE["top5"]))

FIGURES = Path(__file__).resolve().parent.parent / "figures"      # what commands measure and draw

log = logging.getLogger("cifar100")


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar, where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


def log_to(path, style: str) -> None:
    """Send the project's log messages to the file `path` and to the screen, instead of where they went before.

    With a progress bar (`style` "bar") the line of each epoch goes to the file only, with "none" everything
    but warnings does.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    to_screen = _ConsoleHandler(logging.WARNING if style == "none" else logging.INFO)
    if style == "bar":
        to_screen.addFilter(lambda record: record.name != "cifar100.epoch")
    for handler in log.handlers[:]:
        handler.close()
        log.removeHandler(handler)
    log.addHandler(to_file)
    log.addHandler(to_screen)
    log.setLevel(logging.INFO)
    log.propagate = False


def write_json(content: dict, path) -> Path:
    """Write `content` to `path` whole or not at all."""
    text = json.dumps(content, indent=1, allow_nan=False)
    text = re.sub(r"\[[\s\d.,e+-]+\]", lambda numbers: " ".join(numbers[0].split()), text)      # a list, one line
    return write_text(text + "\n", path)


def write_text(text: str, path) -> Path:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def finished_runs(pattern: str) -> list[dict]:
    """The evaluated runs whose folders match `pattern`, best test top-1 first.

    Each has name, history (History), top1, top5 (test split, %), seconds, petaflops, epochs, note, and
    `settings`, the training settings of its configuration. Folders without results are passed over, files
    that cannot be read are reported.
    """
    runs = []
    for folder in sorted(glob.glob(pattern)):
        path = Path(folder) / "metrics.json"
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["results"]:
                runs.append(_run_of(content))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("passed over %s: not a metrics.json of this project (%s: %s)", path, type(error).__name__,
                        error)
    return sorted(runs, key=lambda run: -run["top1"])


def _run_of(content: dict) -> dict:
    history = History.from_list(content["history"], content["training"].get("stopped", ""))
    settings = TrainingConfig.with_defaults({
        name: value for name, value in content["config"].items()
        if name in SETTINGS and SETTINGS[name].metadata["shapes_training"]})
    return {"name": content["name"], "history": history, "top1": float(content["results"]["top1"]),
            "top5": float(content["results"]["top5"]), "seconds": float(content["training"]["seconds"]),
            "petaflops": float(content["training"]["petaflops"]), "epochs": len(history), "note": content["note"],
            "settings": settings}


def published_beside(runs: list[dict]) -> tuple:
    """The published results where any of the runs compares with them: not of drawn data, nor of other classes."""
    compares = any(not run["note"] and run["settings"]["num_classes"] == 100 for run in runs)
    return PUBLISHED if compares else ()


def differing_settings(runs: list[dict]) -> list[str]:
    """Names of the training settings in which the runs differ."""
    names = dict.fromkeys(name for run in runs for name in run["settings"])
    return [name for name in names if len({json.dumps(run["settings"].get(name)) for run in runs}) > 1]


def runs_text(runs: list[dict], published=()) -> str:
    """A table of finished runs with what differs between them, and of published results, marked as such."""
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


def layers_text(rows: list[dict]) -> str:
    """The table of `models.layer_table`, with the sum below."""
    total = {"layer": "all", "output": "", "parameters": sum(row["parameters"] for row in rows),
             "mflops": sum(row["mflops"] for row in rows)}
    return table([{"layer": row["layer"], "output": "×".join(map(str, row["output"])),
                   "parameters": f"{row['parameters']:,}", "MFLOP": f"{row['mflops']:.2f}"}
                  for row in [*rows, total]])


def results_text(results: dict) -> str:
    """The results of `CIFAR100Pipeline.evaluate` in a few lines."""
    lines = [f"top-1 {results['top1']:.2f} %, top-5 {results['top5']:.2f} % on {results['images']:,} test images"]
    if results["note"]:
        lines[0] = f"{results['note']}: {lines[0]}"
    if "flip_tta" in results:
        lines.append(f"with flip TTA {results['flip_tta']['top1']:.2f} % and {results['flip_tta']['top5']:.2f} %")
    lines.append(f"classes: mean {results['class_mean']:.2f} %, standard deviation {results['class_std']:.2f}, from "
                 f"{results['class_min']:.0f} % ({results['worst_class']}) to {results['class_max']:.0f} % "
                 f"({results['best_class']})")
    if results["superclass_top1"] is not None:
        lines.append(f"superclasses: {results['superclass_top1']:.2f} % of the predictions fall in the right one")
    lines.append(f"expected calibration error {results['expected_calibration_error']:.4f}")
    return "\n".join(lines)


def readable(name: str) -> str:
    """The name of a class or a superclass as one writes it."""
    return str(name).replace("_", " ")


def duration(seconds: float) -> str:
    """How long, as one says it: "45 s", "17 min", "1 h 50 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def table(rows: list[dict]) -> str:
    """Dicts as an aligned text table; numbers to the right, absent values empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *[["" if row.get(name) is None else str(row[name]) for name in columns] for row in rows]]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    left = [all(not _is_number(line[index]) for line in cells[1:]) for index in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) if to_left else cell.rjust(width)
                               for cell, width, to_left in zip(line, widths, left)).rstrip() for line in cells)


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()
