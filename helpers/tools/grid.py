"""A grid of runs: the notebook once for each combination of settings, and one report of them all.

    python -m helpers.tools.grid learning_rate=0.05,0.1,0.2 augmentation=light,strong --preset demo
    python -m helpers.tools.grid configs/experiments
    python -m helpers.tools.grid mine/a.yaml mine/b.yaml seed=1,2,3 epochs=3
    python -m helpers.tools.grid 'widths=[64,128,256],[32,64,128]' cutout_size=null,8 --name widths --dry-run

What to run is given as NAME=VALUE[,VALUE...], as YAML files of settings (those that `papermill -f` takes) and as
folders of such files, in any order. Every combination of the values is run, with each of the files. A single value
holds for all runs; values given here go before those in files. Values are YAML: null is "as the preset says", and
commas within brackets do not separate. Quote brackets, which some shells read themselves.

All settings are checked before the first run. The runs of a grid lie in RUNS_DIR/NAME: a folder for each, with the
executed notebook, what papermill said (papermill.log) and all that the notebook writes; and report.html, written
anew after each run. The same command again skips the finished runs and continues one that was cut off. A run that
fails is reported and the others go on. Ctrl-C stops the run, which saves a checkpoint, and the grid.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import glob
import html
import importlib.util
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import yaml

from ..config import (ALIASES, SETTINGS, ConfigError, TrainingConfig, layered_settings, name_faults, read_settings,
                      short_text, shortened)
from ..files import write_text
from ..lesson import plots
from ..lesson.runs import differing_settings, finished_runs, published_beside
from ..text import duration

NOTEBOOK = Path(__file__).resolve().parents[2] / "CIFAR_100_CNN_Training.ipynb"
STOP_SECONDS = 120      # for the training to end its step and to save; papermill alone would give it 5
DRAWN_RUNS = 10         # the best so many runs are drawn: there are no more colours to tell them apart


@dataclass
class Run:
    """One run of the grid: what papermill gives the notebook, what that makes of it, and how far it has come."""

    settings: dict
    config: TrainingConfig
    state: str = "waiting"      # then "running", and "finished", "failed" or "interrupted"
    error: str = ""             # the last line of a failed run's error

    @property
    def folder(self) -> Path:
        return self.config.run_dir


# Plan ------------------------------------------------------------------------------------------------------

def split_values(text: str) -> list:
    """The values of `NAME=VALUE,VALUE`, read as YAML: `0.1,[64,128],null` is `[0.1, [64, 128], None]`.

    Raises ValueError when one is empty or no YAML.
    """
    values = []
    for part in re.split(r",(?![^\[]*\])", text):       # not the commas before which a bracket is open
        if not part.strip():
            raise ValueError("holds an empty value; values are separated by single commas, and null is none")
        try:
            values.append(yaml.safe_load(part))
        except yaml.YAMLError as error:
            raise ValueError(f"cannot be read as YAML ({' '.join(str(error).split())})") from error
    return values


def read_items(items: list[str]) -> tuple[dict[str, list], list[Path], list[str]]:
    """The values by setting and the YAML files that the arguments name, and what is wrong with the arguments."""
    values, files, faults = {}, [], []
    for item in items:
        name, is_setting, text = item.partition("=")
        if os.path.isdir(item):         # Path's own raises where the name is too long for a file
            inside = sorted(path for path in Path(item).iterdir() if path.suffix in (".yaml", ".yml"))
            faults += [] if inside else [f"{item}: the folder holds no YAML file"]
            files += inside
        elif os.path.isfile(item):
            files.append(Path(item))
        elif not is_setting:
            faults.append(f"{item}: no such file or folder; settings are given as NAME=VALUE")
        elif name in values:
            faults.append(f"{item}: {name} is given twice; separate its values by commas")
        elif name == "runs_dir":
            faults.append(f"{item}: the grid says where its runs lie; use --runs-dir and --name")
        else:
            try:
                values[name] = split_values(text)
            except ValueError as error:
                faults.append(f"{item}: {error}")
                values[name] = [None]       # so that the other settings are checked as well
    return values, files, faults + name_faults(values)


def grid_name(items: list[str], values: dict[str, list]) -> str:
    """The folder of a grid that is given no name: the preset, the files, what varies, and what else shapes training."""
    preset = [str(value) for value in values.get("preset", []) if value]
    files = [Path(item).resolve().stem for item in items if os.path.exists(item)]
    varied = [name for name, choices in values.items() if name != "preset" and len(choices) > 1]
    fixed = [f"{name}={short_text(choices[0])}" for name, choices in values.items()
             if name != "preset" and len(choices) == 1 and _shapes_training(name)]
    return shortened("-".join(preset + files + varied + fixed), 80) or "grid"


def _shapes_training(name: str) -> bool:
    setting = SETTINGS.get(ALIASES.get(name, name))
    return setting is not None and setting.metadata["shapes_training"]


def planned_runs(values: dict[str, list], files: list[Path], folder) -> list[Run]:
    """Every combination of `values` with each file, to lie in `folder`.

    Raises ConfigError with the faults of all combinations, and when two would share a run's folder.
    """
    sources, faults = _read_files(files)
    runs, labels, found = [], {}, {}
    for (source, from_file), chosen in itertools.product(sources.items(), itertools.product(*values.values())):
        choice = dict(zip(values, chosen))
        settings = layered_settings(from_file, choice) | {"runs_dir": str(folder)}
        try:
            run = Run(settings, TrainingConfig.from_settings(settings))
        except ConfigError as error:
            for fault in error.faults:
                found.setdefault(fault, {})[source] = True
            continue
        varied = [f"{name}={_shown(value)}" for name, value in choice.items() if len(values[name]) > 1]
        label = " ".join([source, *varied]).strip()
        if run.config.name in labels:
            faults.append(f"{labels[run.config.name]} and {label} are both named {run.config.name!r} and would share "
                          "a folder: runs are told apart by the settings that shape the weights; leave one out or "
                          "give each file a run_name")
        labels.setdefault(run.config.name, label)
        runs.append(run)
    for fault, where in found.items():      # what is wrong with every file lies in the values
        faults.append(fault if len(where) == len(sources) else f"{', '.join(where)}: {fault}")
    if faults:
        raise ConfigError(faults, "the grid")
    return runs


def _read_files(files: list[Path]) -> tuple[dict[str, dict], list[str]]:
    """The settings by file, and what is wrong with the files. Without any file, no settings of the name ""."""
    sources, faults = {}, []
    for path in files:
        try:
            sources[str(path)] = read_settings(path)
        except ConfigError as error:
            faults += [f"{path}: {fault}" for fault in error.faults]
        if "runs_dir" in sources.get(str(path), {}):
            faults.append(f"{path}: runs_dir: the grid says where its runs lie; use --runs-dir and --name")
    return sources or {"": {}}, faults


# Run -------------------------------------------------------------------------------------------------------

def results_of(run: Run) -> dict | None:
    """What `finished_runs` gives for a run that is trained to its end with these settings; else None."""
    for found in finished_runs(glob.escape(str(run.folder))):
        is_of_run = found["settings"] == run.config.training_settings()
        if is_of_run and found["history"].stopped != "interrupted":
            return found
    return None


def finished_beside(runs: list[Run], folder: Path) -> list[str]:
    """The names of finished runs in `folder` that are none of `runs`."""
    return sorted({path.parent.name for path in folder.glob("*/metrics.json")} - {run.folder.name for run in runs})


def execute(run: Run, notebook: Path) -> None:
    """Run the notebook with papermill; sets `state` and `error`. On Ctrl-C, ends it and raises KeyboardInterrupt."""
    run.folder.mkdir(parents=True, exist_ok=True)
    given, output, log = run.folder / "settings.yaml", run.folder / notebook.name, run.folder / "papermill.log"
    write_text(yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True), given)
    output.unlink(missing_ok=True)      # or the error of an earlier try would pass for one of this
    # papermill fills in what stands in braces in a path.
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, output)]
    run.state = "running"
    try:
        status = _papermill([*paths, "-f", str(given), "--no-progress-bar"], log)
    except KeyboardInterrupt:
        run.state = "interrupted"
        raise
    run.state = "finished" if status == 0 and results_of(run) else "failed"
    if run.state == "failed":
        run.error = last_error(output, log) if status else (
            f"the notebook ran to its end but left no results of these settings in {run.folder / 'metrics.json'}")


def _papermill(arguments: list[str], log: Path) -> int:
    """The exit status of papermill, whose words go to the file `log`."""
    with log.open("w", encoding="utf-8") as file:
        # In a session of its own, so that Ctrl-C reaches it through us only, and once.
        process = subprocess.Popen([sys.executable, "-m", "papermill", *arguments], stdin=subprocess.DEVNULL,
                                   stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait()
        except KeyboardInterrupt:
            _end(process)
            raise
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _end(papermill: subprocess.Popen) -> None:
    """Let the training save a checkpoint, and the kernel and papermill end; what does not, the caller kills."""
    children = Path(f"/proc/{papermill.pid}/task/{papermill.pid}/children")      # Linux
    kernels = children.read_text().split() if children.exists() else []
    for kernel in kernels:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(kernel), signal.SIGTERM)        # after its step the training saves, and then ends the kernel
    if not kernels and os.name == "posix":      # elsewhere the console has told papermill as well
        papermill.send_signal(signal.SIGINT)    # which interrupts the kernel, if any, and kills it 5 seconds later
    try:
        papermill.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass


def last_error(notebook: Path, log: Path) -> str:
    """The error that a half-executed notebook holds, in one line; where there is none, papermill's last word."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError):       # papermill did not come as far as that
        cells = []
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    errors = [output for output in outputs if output["output_type"] == "error"]
    if errors:
        return _one_line(f"{errors[-1]['ename']}: {errors[-1]['evalue']}")
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return _one_line(lines[-1]) if lines else "papermill ended without a word"


def run_grid(runs: list[Run], notebook: Path, write_report) -> None:
    """Run what is not finished, a line each. `write_report()` is called first, after each run, and on Ctrl-C, which
    is passed on."""
    for run in runs:
        run.state = "finished" if results_of(run) else "waiting"
    write_report()
    seconds = []
    for number, run in enumerate(runs, start=1):
        print(f"{number} of {len(runs)}: {run.config.name}: ", end="", flush=True)
        if run.state == "finished":
            print("is finished already, skipped", flush=True)
            continue
        start = time.perf_counter()
        try:
            execute(run, notebook)
            seconds.append(time.perf_counter() - start)
            waiting = sum(later.state == "waiting" for later in runs)
            left = f"; about {duration(waiting * sum(seconds) / len(seconds))} left" if waiting else ""
            print(f"{_outcome(run)} after {duration(seconds[-1])}{left}", flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            raise
        finally:
            write_report()


def _outcome(run: Run) -> str:
    if run.state == "failed":
        return f"failed ({run.error})"
    results = results_of(run)
    return f"top-1 {results['top1']:.2f} %, top-5 {results['top5']:.2f} %" + (f" ({results['note']})"
                                                                            if results["note"] else "")


def _one_line(text: str) -> str:
    """`text` without line breaks and colour codes, cut to what fits a table."""
    plain = " ".join(re.sub(r"\x1b\[[\d;]*m", "", text).split())
    return plain if len(plain) <= 400 else plain[:399] + "…"


def _shown(value) -> str:
    """A setting's value as a reader writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, (list, tuple)) else str(value)


# Report ----------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --back: #ffffff; --faint: #5c5c5c; --line: #d4d4d4;
        --best: #e6f4ea; --link: #0b57d0; --note: #5c3d00; --note-back: #ffe9a8; --bad: #a8071a; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --back: #17181a; --faint: #a6a6a6; --line: #3f4145;
          --best: #1d3a26; --link: #8ab4f8; --note: #ffe9a8; --note-back: #4a3800; --bad: #ff9c9c; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1100px;
       margin: 0 auto; padding: 1rem; }
h1 { overflow-wrap: anywhere; }
a { color: var(--link); }
code { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
th { white-space: nowrap; }
tr.best { background: var(--best); font-weight: bold; }
tr.published, .faint { color: var(--faint); }
.note { color: var(--note); background: var(--note-back); padding: 0.1rem 0.4rem; font-weight: bold; }
.error { color: var(--bad); overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; background: #ffffff; }
"""


def ranked(finished: list[dict]) -> tuple[list[dict], str]:
    """Runs as `finished_runs` gives them, best first, each with `validated` (top-1 in %, or None), and a
    sentence on the order. Where all runs have a validation split it decides: the test split chooses nothing."""
    runs = [run | {"validated": _validated(run)} for run in finished]
    if all(run["validated"] is not None for run in runs):
        return sorted(runs, key=lambda run: -run["validated"]), (
            "Best validation accuracy first. Top-1 and top-5 are measured on the test split, which has no say in the "
            "order: what stands there for the first run is what it does on new pictures.")
    return sorted(runs, key=lambda run: -run["top1"]), (
        "Best test accuracy first, since not every run has a validation split. To pick the best of many by the test "
        "split flatters it; set val_size above 0 in all runs to choose without it.")


def _validated(run: dict) -> float | None:
    """Validation top-1 of the weights that were tested: with patience those of the best epoch, else the last."""
    values = [value for value in run["history"]["val_top1"] if value is not None]
    if not values:
        return None
    return max(values) if run["settings"].get("patience") else values[-1]


def html_report(name: str, runs: list[Run], command: str, notebook: str) -> str:
    """The page of a grid, self-contained: a table of its runs, what became of the others, and figures.

    `notebook` is the file name of the executed notebooks; links are relative to the folder of the grid.
    """
    results = [(run, found) for run in runs if run.state == "finished" and (found := results_of(run))]
    finished, order = ranked([found | {"link": _link(run, notebook)} for run, found in results])
    published = published_beside(finished)
    others = [run for run in runs if all(run is not done for done, _ in results)]
    differing = differing_settings([{"settings": run.config.training_settings()} for run in runs])
    states = [run.state for run in runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    parts = [f"<h1>{html.escape(name)}</h1>",
             f"<p>Runs of {html.escape(notebook)}: {counts}.<br>"
             f"<span class='faint'>Written on {datetime.datetime.now():%Y-%m-%d at %H:%M} by</span> "
             f"<code>{html.escape(command)}</code></p>"]
    parts += [f"<p><span class='note'>{html.escape(note)}</span> Numbers that are marked so say nothing about "
              "CIFAR-100.</p>" for note in sorted({run["note"] for run in finished} - {""})]
    if finished:
        rows = [_finished_row(run, differing) for run in finished] + [_published_row(*one) for one in published]
        classes = ["best", *["plain"] * (len(finished) - 1), *["published"] * len(published)]
        parts += ["<h2>Finished</h2>", f"<p>{order}</p>", _table(rows, classes)]
        if published:
            parts.append("<p class='faint'>Published: figures of others, not measured here.</p>")
    if others:
        parts += ["<h2>Not finished</h2>", _table([_other_row(run, differing, notebook) for run in others])]
    if finished:
        parts += ["<h2>Figures</h2>", *_figures(finished, differing, published)]
    return _page(name, "\n".join(parts))


def _finished_row(run: dict, differing: list[str]) -> dict[str, str]:
    note = f" <span class='note'>{html.escape(run['note'])}</span>" if run["note"] else ""
    return {"run": run["link"] + note, **_settings_cells(run["settings"], differing),
            "validation top-1 %": "–" if run["validated"] is None else f"{run['validated']:.2f}",
            "top-1 %": f"{run['top1']:.2f}", "top-5 %": f"{run['top5']:.2f}", "epochs": f"{run['epochs']}",
            "minutes": f"{run['seconds'] / 60:.1f}", "PFLOP": f"{run['petaflops']:.4f}"}


def _published_row(name: str, top1: float, top5: float) -> dict[str, str]:
    return {"run": f"{html.escape(name)} (published)", "top-1 %": f"{top1:.2f}",
            "top-5 %": f"{top5:.2f}"}


def _other_row(run: Run, differing: list[str], notebook: str) -> dict[str, str]:
    return {"run": _link(run, notebook), **_settings_cells(run.config.training_settings(), differing),
            "state": html.escape(run.state), "error": f"<span class='error'>{html.escape(run.error)}</span>"}


def _settings_cells(settings: dict, differing: list[str]) -> dict[str, str]:
    return {html.escape(name): html.escape(_shown(settings.get(name))) for name in differing}


def _link(run: Run, notebook: str) -> str:
    """The run's name, which leads to its executed notebook where there is one."""
    name = html.escape(run.config.name)
    if not (run.folder / notebook).is_file():
        return name
    return f'<a href="{html.escape(quote(f"./{run.config.name}/{notebook}"))}">{name}</a>'


def _table(rows: list[dict[str, str]], classes: list[str] = ()) -> str:
    """Rows of HTML by column as a table; columns whose cells are all numbers are set to the right."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    right = {name for name in columns if all(re.fullmatch(r"[\d.]*|–", row.get(name, "")) for row in rows)}
    head = "".join(_cell("th", name, name in right) for name in columns)
    lines = []
    for row, kind in itertools.zip_longest(rows, classes, fillvalue="plain"):
        cells = "".join(_cell("td", row.get(name, ""), name in right) for name in columns)
        lines.append(f'<tr class="{kind}">{cells}</tr>')
    return ('<div class="scroll"><table>\n<thead><tr>' + head + "</tr></thead>\n<tbody>\n" + "\n".join(lines)
            + "\n</tbody></table></div>")


def _cell(tag: str, content: str, to_the_right: bool) -> str:
    return f"<{tag}{' class=number' if to_the_right else ''}>{content}</{tag}>"


def _figures(finished: list[dict], differing: list[str], published) -> list[str]:
    """What the runs reached against what they cost, and the training of each where there is more than one."""
    runs = [run | {"name": _short_name(run, differing)} for run in finished[:DRAWN_RUNS]]
    of_many = f" The best {DRAWN_RUNS} of {len(finished)} runs are drawn." if len(finished) > DRAWN_RUNS else ""
    notes = {run["note"] for run in runs}
    each = "; ".join(f"{run['name']}: {run['note']}" for run in runs if run["note"])
    note = notes.pop() if len(notes) == 1 else each
    figures = [(plots.compare_runs(runs, published, note), "Accuracy against epochs, time and compute." + of_many)]
    if len(runs) > 1:
        figures.append((plots.small_multiples(runs, note), "Accuracy by epoch, a panel for each run." + of_many))
    return [f'<figure><img alt="{caption}" src="data:image/png;base64,'
            f'{base64.b64encode(plots.png_of(figure)).decode()}"><figcaption>{caption}</figcaption></figure>'
            for figure, caption in figures]


def _short_name(run: dict, differing: list[str]) -> str:
    """What is particular to a run, where that is little: its name also holds what all runs have in common."""
    if not 1 <= len(differing) <= 3:
        return run["name"]
    return ", ".join(f"{name}={_shown(run['settings'].get(name))}" for name in differing)


def _page(title: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


# Command line ----------------------------------------------------------------------------------------------

def build_parser() -> argparse.ArgumentParser:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m helpers.tools.grid", description=summary, epilog=details,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("items", nargs="+", metavar="NAME=VALUES|FILE|FOLDER", help="what to run, see below")
    parser.add_argument("--preset", help="preset that all runs start from: the same as preset=PRESET")
    parser.add_argument("--name", help="folder of the grid under RUNS_DIR; by default the preset, the files and what "
                                       "varies")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of all grids (default: runs)")
    parser.add_argument("--notebook", type=Path, default=NOTEBOOK, help="notebook to run (default: the project's)")
    parser.add_argument("--dry-run", action="store_true", help="check the settings, print the plan, and run nothing")
    return parser


def read_plan(args: argparse.Namespace) -> tuple[str, list[Run]]:
    """The name of the grid and its runs. Raises ConfigError with all faults."""
    items = args.items + ([f"preset={args.preset}"] if args.preset else [])
    values, files, faults = read_items(items)
    name = args.name or grid_name(items, values)
    if set(name) & set('/\\:*?"<>|') or not name.strip(". "):
        faults.append(f"--name {name!r}: must be a plain folder name; --runs-dir says where it lies")
    if not args.notebook.is_file():
        faults.append(f"--notebook {args.notebook}: no such file")
    try:
        runs = planned_runs(values, files, args.runs_dir.expanduser() / name)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(dict.fromkeys(faults), "the grid")
    return name, runs


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 a run failed, 2 wrong settings, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = build_parser().parse_intermixed_args(arguments)
    try:
        name, runs = read_plan(args)
    except ConfigError as error:
        print(f"grid: {error}", file=sys.stderr)
        return 2
    folder = args.runs_dir.expanduser() / name
    print(f"{len(runs)} run{'s' * (len(runs) != 1)} of {args.notebook.name} in {folder}:")
    print("\n".join(f"  {run.config.name}{' (finished)' if results_of(run) else ''}" for run in runs), flush=True)
    idle = Counter((name, need) for run in runs for name, need in run.config.idle_settings().items())
    for (name, need), count in idle.items():
        print(f"note: {name} has no effect in {count} of {len(runs)} runs: it needs {need}")
    others = finished_beside(runs, folder)
    if others:
        print(f"note: {folder} also holds {', '.join(others)}, which the report leaves out; give all values in one "
              "command for one report of them, or --name for another folder")
    if args.dry_run:
        return 0
    if importlib.util.find_spec("papermill") is None:
        print("grid: papermill is not installed; run `pip install papermill`", file=sys.stderr)
        return 1
    command = shlex.join(["python", "-m", "helpers.tools.grid", *arguments])

    def write_report() -> None:
        write_text(html_report(name, runs, command, args.notebook.name), folder / "report.html")

    try:
        run_grid(runs, args.notebook, write_report)
    except KeyboardInterrupt:
        print("grid: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    finally:
        print(f"report: {folder / 'report.html'}")
    return 1 if any(run.state == "failed" for run in runs) else 0


if __name__ == "__main__":
    # A script's background commands start with SIGINT ignored. papermill would inherit that and could not be stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signal_name in ("SIGTERM", "SIGHUP"):       # a batch system or a closed terminal ends the grid as Ctrl-C does
        number = getattr(signal, signal_name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:       # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    sys.exit(main())
