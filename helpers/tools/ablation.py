"""What each ingredient of the recipe is worth: short trainings with one change each.

    python -m helpers.tools.ablation --data-dir data

Trains the runs that configs/ablation.yaml lists and compares them on a validation split of the training images; the
test split is never read. After each run it rewrites figures/ablation.json, .txt (the table) and .png. Started again, it
skips the runs in ablation.json and resumes an interrupted one. Rows of a base that is gone stay in ablation.json, but
are not drawn.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import zlib
from pathlib import Path
from statistics import mean

from ..checkpoint import CheckpointError
from ..config import CONFIG_DIR, ConfigError, TrainingConfig
from ..data import DataError, ImageData, load_cifar100
from ..files import write_json, write_text
from ..lesson import plots
from ..lesson.runs import NO_METRICS
from ..logs import outlast_readers
from ..retired import without_retired
from ..system import SystemInfo, pick_device
from ..text import table
from ..trainer import Trainer, TrainingDiverged
from ..yaml_files import YamlError, read_yaml
from . import FIGURES

FULL_RECIPE = "full recipe"

log = logging.getLogger("cifar100")


def ablation_runs(path, **overrides) -> list[tuple[str, TrainingConfig]]:
    """The runs of the plan `path`, a YAML file, as (name of the change, configuration): the base with each seed, then
    each change with its own `seeds` or the first. `overrides` override all settings. Raises ConfigError."""
    try:
        plan = read_yaml(path) or {}
    except (YamlError, OSError) as error:
        raise ConfigError([str(error)], str(path)) from None
    kinds = {"base": dict, "seeds": list, "changes": dict}
    absent = [name for name, kind in kinds.items() if not isinstance(plan, dict) or not plan.get(name)
              or not isinstance(plan[name], kind)]
    if absent:
        raise ConfigError([f"{', '.join(absent)}: missing, empty or of another kind; the file needs base (settings), "
                           "seeds (a list) and changes (settings by name)"], str(path))
    wanted = [(FULL_RECIPE, {"seed": seed}) for seed in plan["seeds"]]
    for name, change in plan["changes"].items():
        if not isinstance(change, dict):
            raise ConfigError([f"{name}: {change!r}: write the settings that it changes, {{epochs: 3}}"], str(path))
        if not isinstance(change.get("seeds", []), list):
            raise ConfigError([f"{name}: seeds={change['seeds']!r}: write a list, [{change['seeds']}]"], str(path))
        if "seed" in change:
            raise ConfigError([f"{name}: seed={change['seed']}: write seeds: [{change['seed']}]"], str(path))
        settings = {key: value for key, value in change.items() if key != "seeds"}
        wanted += [(name, settings | {"seed": seed}) for seed in change.get("seeds", plan["seeds"][:1])]
    runs = []
    for name, change in wanted:
        settings = plan["base"] | change
        slug = re.sub(r"\W+", "-", str(name)).strip("-").lower()
        version = zlib.crc32(_text_of(settings).encode())       # another recipe, another run
        settings |= {"run_name": f"{slug}-{change['seed']}-{version:08x}"} | overrides
        config = TrainingConfig.from_settings(settings, f"{path}, {name}")
        if not config.val_size:
            raise ConfigError(["val_size=0: ablations are compared on a validation split; set it above 0"], str(path))
        runs.append((name, config))
    return runs


def train_one(name: str, config: TrainingConfig, data: ImageData) -> dict:
    """Train or resume one run and return its row: `change`, `seed`, `val_top1`, `val_top5`, `train_accuracy` (%, last
    epoch), `epochs`, `petaflops`, `seconds`, `precision`, `settings` (of training). Raises KeyboardInterrupt."""
    trainer = Trainer(config, data, config.run_dir / "checkpoints")
    history = trainer.fit()
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    last = history.rows[-1]
    return {"change": name, "seed": config.seed,
            **{key: last[key] for key in ("val_top1", "val_top5", "train_accuracy", "petaflops", "seconds")},
            "epochs": len(history), "precision": trainer.precision, "settings": config.training_settings()}


def finished_rows(path: Path, runs: list[tuple[str, TrainingConfig]],
                  note: str) -> tuple[list[dict | None], list[dict]]:
    """From the results file `path`: the row of each planned run, or None; and the rows of FastCNN or with retired
    settings, which nothing can train again and which stay. Raises ConfigError if the file holds other runs, which would
    be lost, or is of other data."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"note": note, "rows": []}
        kept = [row for row in content["rows"] if without_retired(row["settings"])[1]]
        known = {(row["change"], _text_of(TrainingConfig.training_settings_of(row["settings"]))): row
                 for row in content["rows"] if row not in kept}
    except NO_METRICS as error:
        raise ConfigError([f"--out={path}: holds no results of this tool ({type(error).__name__}: {error}); name "
                           "another file"], str(path)) from error
    rows = [known.get((name, _text_of(config.training_settings()))) for name, config in runs]
    strangers = len(content["rows"]) - len(kept) - sum(row is not None for row in rows)
    if strangers or content["note"] != note:
        raise ConfigError([f"--out={path}: holds {strangers or 'all'} of its runs for another plan or other data; "
                           "name another file, or delete this one to start over"], str(path))
    return rows, kept


def _text_of(settings: dict) -> str:
    return json.dumps(settings, sort_keys=True)


def with_differences(rows: list[dict]) -> list[dict]:
    """The rows, best first, each with its `difference` in percentage points of validation top-1 from the full recipe
    with the same seed, that is with the same split and initial weights. The full recipe itself, and seeds that it was
    not trained with, are compared with its mean."""
    full = {row["seed"]: row["val_top1"] for row in rows if row["change"] == FULL_RECIPE}
    centre = mean(full.values())
    compared = []
    for row in rows:
        base = centre if row["change"] == FULL_RECIPE else full.get(row["seed"], centre)
        compared.append(row | {"difference": row["val_top1"] - base})
    return sorted(compared, key=lambda row: -row["difference"])


def results_table(rows: list[dict]) -> str:
    return table([{"change": row["change"], "seed": row["seed"], "val top-1 %": f"{row['val_top1']:.2f}",
                   "difference": f"{row['difference']:+.2f}", "train %": f"{row['train_accuracy']:.1f}",
                   "PFLOP": f"{row['petaflops']:.4f}", "minutes": f"{row['seconds'] / 60:.1f}"}
                  for row in with_differences(rows)])


def draw_results(rows: list[dict], out: Path, note: str = "") -> None:
    """Write the table (.txt) and the figure (.png) beside `out`."""
    write_text(results_table(rows) + "\n", out.with_suffix(".txt"))
    plots.ablation(with_differences(rows), FULL_RECIPE, note).savefig(out.with_suffix(".png"))


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 wrong settings, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m helpers.tools.ablation", description=__doc__.split("\n")[0])
    parser.add_argument("--plan", default=CONFIG_DIR / "ablation.yaml", help="YAML file of the runs")
    parser.add_argument("--data-dir", default="data", help="folder with CIFAR-100")
    parser.add_argument("--runs-dir", default="runs/ablation", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=FIGURES / "ablation.json", help="file to write")
    args = parser.parse_args(arguments)
    try:
        runs = ablation_runs(args.plan, data_dir=args.data_dir, runs_dir=args.runs_dir)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        data = load_cifar100(runs[0][1])
        rows, kept = finished_rows(args.out, runs, data.note)
        # Not those with a base of their own:
        compared = [] if any(row["change"] == FULL_RECIPE for row in kept) else kept
        for place, (name, config) in enumerate(runs):
            log.info("%d of %d: %s, seed %d%s", place + 1, len(runs), name, config.seed,
                     ": already finished, skipped" if rows[place] else "")
            if rows[place] is None:
                rows[place] = train_one(name, config, data)
                system = SystemInfo.of(pick_device(config.device), rows[place]["precision"])
                so_far = [row for row in rows if row]
                write_json({"note": data.note, "system": system.to_dict(), "rows": so_far + kept}, args.out)
                draw_results(so_far + compared, args.out, data.note)
        draw_results(rows + compared, args.out, data.note)
        print(results_table(rows + compared))
    except ConfigError as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 2
    except (DataError, CheckpointError, TrainingDiverged, OSError, ValueError) as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ablation: interrupted; the same command resumes", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    outlast_readers()
    sys.exit(main())
