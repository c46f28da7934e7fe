"""Table and figures of the runs in figures/record: `python -m helpers.tools.results`.

Reads figures/record/<run>/metrics.json, and no images. Writes figures/record.json (the table, with means over seeds),
record.png (accuracy against compute, beside published results; without runs of networks or settings that are gone)
and training curves beside each run's metrics.
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
from ..lesson.runs import OTHERS, PUBLISHED, REFERENCE, read_metrics, run_of
from ..retired import without_retired
from ..text import table
from . import FIGURES


def finished(folder) -> list[dict]:
    """The finished runs in `folder`: the contents of their metrics.json with `path`, `folder` and `run` (see
    `run_of`)."""
    def checked(content: dict) -> dict:
        row = _row([{"folder": ""} | content])
        json.dumps(row, allow_nan=False)
        for name in ("device", "device_name", "cpu_cores"):     # drawn beside its point
            row["machine"][name]
        return content | {"run": run_of(content)}

    found = [(path, read_metrics(path, checked)) for path in sorted(Path(folder).glob("*/metrics.json"))]
    return [content | {"path": path, "folder": path.parent.name} for path, content in found
            if content and content["run"]["history"].stopped != "interrupted"]


def recipes(runs: list[dict]) -> list[dict]:
    """The `finished` runs by recipe (all settings but the seed), cheapest first.

    A row: `name` (the folder of the first run), `preset`, `runs`, `seeds`, `training_images`, `epochs`, `parameters`,
    `top1`, `top1_std`, `top1_by_run`, `top5`, `tta_top1`, `tta_top5` (%, means; the last two if all runs have them),
    `petaflops`, `minutes` (means) and `machine` (of the first run).
    """
    by_recipe = {}
    for content in runs:
        recipe = content["run"]["settings"] | {"preset": content["config"]["preset"], "seed": None}
        by_recipe.setdefault(json.dumps(recipe, sort_keys=True), []).append(content)
    return sorted(map(_row, by_recipe.values()), key=lambda row: row["petaflops"])


def _row(runs: list[dict]) -> dict:
    first, top1 = runs[0], [run["results"]["top1"] for run in runs]
    settings = TrainingConfig.training_settings_of(first["config"])
    return {"name": first["folder"], "preset": first["config"]["preset"], "runs": len(runs),
            "seeds": [run["config"]["seed"] for run in runs],
            "training_images": settings["train_size"] or 50_000 - settings["val_size"],
            "epochs": first["config"]["epochs"], "parameters": first["model_stats"]["total_parameters"],
            "top1": mean(top1), "top1_std": stdev(top1) if len(top1) > 1 else None, "top1_by_run": top1,
            "top5": mean(run["results"]["top5"] for run in runs),
            **{f"tta_{key}": mean(run["results"]["flip_tta"][key] for run in runs) for key in ("top1", "top5")
               if all("flip_tta" in run["results"] for run in runs)},
            "petaflops": mean(run["training"]["petaflops"] for run in runs),
            "minutes": mean(run["training"]["seconds"] for run in runs) / 60,
            "machine": first["system"]}


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 no finished run."""
    parser = argparse.ArgumentParser(prog="python -m helpers.tools.results", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=FIGURES / "record", help="folder with one folder per run")
    parser.add_argument("--out", type=Path, default=FIGURES / "record.json", help="file to write")
    args = parser.parse_args(arguments)
    runs = finished(args.runs)
    if not runs:
        print(f"results: no finished run in {args.runs}; copy a run's metrics.json into a folder in it",
              file=sys.stderr)
        return 1
    rows = recipes(runs)
    write_json({"recipes": rows, "reference": REFERENCE}, args.out)
    published = [result for result in PUBLISHED if result[0] != REFERENCE["name"]]
    drawn = recipes([run for run in runs if not without_retired(run["run"]["settings"])[1]])
    plots.record(drawn, OTHERS, published).savefig(args.out.with_suffix(".png"))
    for content in runs:
        run = content["run"]
        figure = plots.training_curves(run["history"], run["note"], has_soft_targets(run["settings"]))
        figure.savefig(content["path"].with_name("training.png"))
    print(table([{"recipe": row["name"], "runs": row["runs"], "top-1 %": f"{row['top1']:.2f}",
                  "top-5 %": f"{row['top5']:.2f}", "PFLOP": f"{row['petaflops']:.3f}",
                  "minutes": f"{row['minutes']:.1f}"} for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
