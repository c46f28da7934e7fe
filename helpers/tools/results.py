"""Tables and figures of the runs whose metrics come with the project: `python -m helpers.tools.results`.

Reads figures/record/<run>/metrics.json; writes figures/record.json (the table, means over seeds included),
figures/record.png (accuracy against compute, with the runs of an ablation.json beside it) and beside each run's metrics
the curves of its training. Nothing is trained and no image is read.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev

from ..config import TrainingConfig, has_soft_targets
from ..files import write_json
from ..lesson import plots
from ..lesson.runs import PUBLISHED, REFERENCE
from ..metrics import History
from ..text import table
from . import FIGURES


def recipes(folder) -> list[dict]:
    """The runs in `folder` by recipe, which is all settings but the seed, cheapest first.

    A row: `name` (the folder of the first run), `preset`, `runs`, `seeds`, `training_images`, `epochs`, `parameters`,
    `top1`, `top1_std`, `top1_by_run`, `top5`, `tta_top1`, `tta_top5` (%, means; the last two where all runs have
    them), `petaflops`, `minutes` (means), `machine` (of the first run) and `t4_minutes`, an estimate.

    The estimate is the compute over the rate at which the reference ran on a T4 by its own figures. Raises
    FileNotFoundError when there is no finished run.
    """
    by_recipe = {}
    for path in sorted(Path(folder).glob("*/metrics.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["results"] and content["training"]["stopped"] != "interrupted":
            by_recipe.setdefault(_recipe_of(content["config"]), []).append({"folder": path.parent.name} | content)
    if not by_recipe:
        raise FileNotFoundError(f"no finished run in {folder}; copy a run's metrics.json into a folder of it")
    rows = [_row(runs) for runs in by_recipe.values()]
    return sorted(rows, key=lambda row: row["petaflops"])


def _recipe_of(config: dict) -> str:
    settings = TrainingConfig.training_settings_of(config) | {"preset": config["preset"], "seed": None}
    return json.dumps(settings, sort_keys=True)


def _training_images(config: dict) -> int:
    settings = TrainingConfig.training_settings_of(config)
    return settings["train_size"] or 50_000 - settings["val_size"]


def _row(runs: list[dict]) -> dict:
    top1 = [run["results"]["top1"] for run in runs]
    petaflops = mean(run["training"]["petaflops"] for run in runs)
    return {"name": runs[0]["folder"], "preset": runs[0]["config"]["preset"],
            "runs": len(runs), "seeds": [run["config"]["seed"] for run in runs],
            "training_images": _training_images(runs[0]["config"]),
            "epochs": runs[0]["config"]["epochs"], "parameters": runs[0]["model_stats"]["total_parameters"],
            "top1": mean(top1), "top1_std": stdev(top1) if len(top1) > 1 else None, "top1_by_run": top1,
            "top5": mean(run["results"]["top5"] for run in runs),
            **{f"tta_{key}": mean(run["results"]["flip_tta"][key] for run in runs) for key in ("top1", "top5")
               if all("flip_tta" in run["results"] for run in runs)}, "petaflops": petaflops,
            "minutes": mean(run["training"]["seconds"] for run in runs) / 60,
            "machine": runs[0]["system"], "t4_minutes": REFERENCE["minutes"] * petaflops / REFERENCE["petaflops"]}


def _ablations(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 no run to show."""
    parser = argparse.ArgumentParser(prog="python -m helpers.tools.results", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=FIGURES / "record", help="folder with a folder for each run")
    parser.add_argument("--out", type=Path, default=FIGURES / "record.json", help="file to write")
    args = parser.parse_args(arguments)
    try:
        rows = recipes(args.runs)
    except FileNotFoundError as error:
        print(f"record: {error}", file=sys.stderr)
        return 1
    write_json({"recipes": rows, "reference": REFERENCE}, args.out)
    published = [result for result in PUBLISHED if result[0] != REFERENCE["name"]]
    plots.record(rows, REFERENCE, published, _ablations(args.out.with_name("ablation.json"))).savefig(
        args.out.with_suffix(".png"))
    for path in args.runs.glob("*/metrics.json"):
        run = json.loads(path.read_text(encoding="utf-8"))
        plots.training_curves(History.from_list(run["history"], run["training"]["stopped"]), run["note"],
                              has_soft_targets(TrainingConfig.training_settings_of(run["config"]))).savefig(path.with_name("training.png"))
    print(table([{"recipe": row["name"], "runs": row["runs"], "top-1 %": f"{row['top1']:.2f}",
                         "top-5 %": f"{row['top5']:.2f}", "PFLOP": f"{row['petaflops']:.3f}",
                         "minutes": f"{row['minutes']:.1f}", "T4 minutes (estimate)": f"{row['t4_minutes']:.1f}"}
                        for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
