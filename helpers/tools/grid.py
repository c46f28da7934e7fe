"""A grid of runs: execute the notebook once per combination of settings and report all runs on one page.

    python -m helpers.tools.grid learning_rate=0.05,0.1,0.2 augmentation=light,strong --preset demo
    python -m helpers.tools.grid configs/experiments
    python -m helpers.tools.grid mine/a.yaml mine/b.yaml seed=1,2,3 epochs=3
    python -m helpers.tools.grid 'widths=[64,128,256],[32,64,128]' cutout_size=null,8 --name widths --dry-run

Arguments are NAME=VALUE[,VALUE...], YAML files of settings (as for `papermill -f`) and folders of such files, in any
order. The grid runs every combination of the values with each file. A single value applies to all runs; values on the
command line override those in files. Values are YAML: null means "as the preset says", and commas inside brackets do
not separate. Quote brackets, which some shells interpret.

The grid checks all settings before the first run. It writes to RUNS_DIR/NAME: one folder per run with the executed
notebook, papermill's output (papermill.log) and the notebook's own files; and report.html, rewritten after each run.
The same command again skips finished runs and resumes an interrupted one. If a run fails, the grid reports it and
continues. Ctrl-C stops the run, which saves a checkpoint, and the grid.
"""

from __future__ import annotations

import argparse
import contextlib
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
from pathlib import Path

import yaml

from ..checks import coerce, folder_name_fault
from ..config import ALIASES, SETTINGS, ConfigError, TrainingConfig, layered_settings, name_faults, read_settings
from ..files import write_text
from ..locks import claim
from ..logs import outlast_readers
from ..text import duration, short_text, shortened, shown
from ..yaml_files import parse_yaml
from .grid_report import Run, html_report, results_of, value_text

NOTEBOOK = Path(__file__).resolve().parents[2] / "CIFAR_100_CNN_Training.ipynb"
STOP_SECONDS = 120      # time for the training to end its step and save; papermill alone allows 5
OWN_RUNS_DIR = "the grid sets runs_dir itself; use --runs-dir and --name"


def split_values(text: str) -> list:
    """YAML values separated by commas: `0.1,[64,128],null` gives `[0.1, [64, 128], None]`. Raises ValueError."""
    values = []
    for part in re.split(r",(?![^\[]*\])", text):       # commas outside brackets
        if not part.strip():
            raise ValueError("holds an empty value; separate values by single commas, and write null for none")
        values.append(parse_yaml(part))
    return values


def read_items(items: list[str]) -> tuple[dict[str, list], list[Path], list[str]]:
    """Sort the arguments into values by setting and YAML files; also list their faults."""
    values, files, faults = {}, [], []
    for item in items:
        name, is_setting, text = item.partition("=")
        if os.path.isdir(item):         # Path.is_dir raises if the name is too long for a file
            inside = sorted(path for path in Path(item).iterdir() if path.suffix in (".yaml", ".yml"))
            faults += [] if inside else [f"{item}: the folder holds no YAML file"]
            files += inside
        elif os.path.isfile(item):
            files.append(Path(item))
        elif not is_setting:
            faults.append(f"{item}: no such file or folder; write settings as NAME=VALUE")
        elif name in values:
            faults.append(f"{item}: {name} appears twice; separate its values by commas")
        elif name == "runs_dir":
            faults.append(f"{item}: {OWN_RUNS_DIR}")
        else:
            try:
                values[name] = split_values(text)
            except ValueError as error:
                faults.append(f"{item}: {error}")
                values[name] = [None]       # still check the other settings
    return values, files, faults + name_faults(values)


def grid_name(items: list[str], values: dict[str, list]) -> str:
    """The default name: the preset, the files, what varies, and the fixed settings that shape training."""
    preset = [str(value) for value in values.get("preset", []) if value]
    files = [Path(item).resolve().stem for item in items if os.path.exists(item)]
    varied = [name for name, choices in values.items() if name != "preset" and len(choices) > 1]
    shaping = {name for name, setting in SETTINGS.items() if setting.metadata["shapes_training"]} - {"preset"}
    fixed = [f"{name}={short_text(choices[0])}" for name, choices in values.items()
             if len(choices) == 1 and ALIASES.get(name, name) in shaping]
    return shortened("-".join(preset + files + varied + fixed), 80) or "grid"


def grid_runs(values: dict[str, list], files: list[Path], folder) -> list[Run]:
    """Combine all `values` with each file; the runs write to `folder`. Raises ConfigError, also if names collide."""
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
        varied = [f"{name}={value_text(value)}" for name, value in choice.items() if len(values[name]) > 1]
        label, name = " ".join([source, *varied]).strip(), run.config.name
        if name in labels:
            faults.append(f"{labels[name]} and {label} share the name {name!r} and so a folder: only settings that "
                          "shape the weights distinguish runs; leave one out or give each file a run_name")
        labels.setdefault(name, label)
        runs.append(run)
    faults += [fault if len(where) == len(sources) else f"{', '.join(where)}: {fault}"
               for fault, where in found.items()]       # a fault common to all files lies in the values
    if faults:
        raise ConfigError(faults, "the grid")
    return runs


def _read_files(files: list[Path]) -> tuple[dict[str, dict], list[str]]:
    """The settings by file, and their faults. Without files, the only source is "", with no settings."""
    sources, faults = {}, []
    for path in files:
        try:
            sources[str(path)] = read_settings(path)
        except ConfigError as error:
            faults += [f"{path}: {fault}" for fault in error.faults]
        if "runs_dir" in sources.get(str(path), {}):
            faults.append(f"{path}: {OWN_RUNS_DIR}")
    return sources or {"": {}}, faults


def finished_beside(runs: list[Run], folder: Path) -> list[str]:
    """Names of finished runs in `folder` that are not in `runs`."""
    return sorted({path.parent.name for path in folder.glob("*/metrics.json")} - {run.folder.name for run in runs})


def execute(run: Run, notebook: Path) -> None:
    """Run the notebook with papermill and set `state` and `error`. Ctrl-C stops it and raises KeyboardInterrupt."""
    run.folder.mkdir(parents=True, exist_ok=True)
    given, output, log = run.folder / "settings.yaml", run.folder / notebook.name, run.folder / "papermill.log"
    write_text(yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True), given)
    output.unlink(missing_ok=True)      # last_error must not find an earlier attempt's error
    # papermill formats its paths: escape braces.
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, output)]
    run.state = "running"
    try:
        status = run_papermill([*paths, "-f", str(given), "--no-progress-bar"], log)
    except KeyboardInterrupt:
        run.state = "interrupted"
        raise
    run.state = "finished" if status == 0 and results_of(run) else "failed"
    if run.state == "failed":
        run.error = last_error(output, log) if status else (
            f"the notebook ended without results of these settings in {run.folder / 'metrics.json'}")


def run_papermill(arguments: list[str], log: Path) -> int:
    """Run papermill with `arguments`, its output in the file `log`; return its exit status."""
    environment = dict(os.environ)
    for name in ("JPY_SESSION_NAME", "VSCODE_PID"):     # where a notebook starts the grid, nobody watches its notebooks
        environment.pop(name, None)
    with log.open("w", encoding="utf-8") as file:
        # A session of its own: Ctrl-C reaches papermill only through this process, and once.
        process = subprocess.Popen([sys.executable, "-m", "papermill", *arguments], stdin=subprocess.DEVNULL,
                                   stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        try:
            return process.wait()
        except KeyboardInterrupt:
            _end(process)
            raise
        finally:
            process.kill()      # unless it has ended
            process.wait()


def _end(papermill: subprocess.Popen) -> None:
    """Let the training save a checkpoint and the kernel and papermill exit; the caller kills what remains."""
    children = Path(f"/proc/{papermill.pid}/task/{papermill.pid}/children")      # Linux
    kernels = children.read_text().split() if children.exists() else []
    for kernel in kernels:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(kernel), signal.SIGTERM)        # the training ends its step, saves and exits
    if not kernels and os.name == "posix":      # on Windows, the console interrupts papermill too
        papermill.send_signal(signal.SIGINT)    # interrupts any kernel, kills it after 5 seconds
    with contextlib.suppress(subprocess.TimeoutExpired):
        papermill.wait(STOP_SECONDS)


def _broke_off(notebook: Path) -> bool:
    """Is the executed notebook there, but not its last cell's result? Its training may be complete all the same."""
    if not notebook.exists():       # trained by train.py
        return False
    cells = _code_cells(notebook)
    return not cells or cells[-1]["execution_count"] is None or bool(_errors(cells))


def _code_cells(notebook: Path) -> list[dict]:
    """None if papermill stopped before it wrote the notebook."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError):
        return []
    return [cell for cell in cells if cell["cell_type"] == "code"]


def _errors(cells: list[dict]) -> list[dict]:
    return [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]


def last_error(notebook: Path, log: Path) -> str:
    """The error in a half-executed notebook, as one line; without one, the last line of papermill's log."""
    if errors := _errors(_code_cells(notebook)):
        return _one_line(f"{errors[-1]['ename']}: {errors[-1]['evalue']}")
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return _one_line(lines[-1]) if lines else "papermill ended without output"


def run_grid(runs: list[Run], notebook: Path, write_report) -> None:
    """Run what is not finished, print a line per run, and call `write_report()` first, after each run and on Ctrl-C."""
    for run in runs:
        run.state = "finished" if results_of(run) and not _broke_off(run.folder / notebook.name) else "waiting"
    write_report()
    seconds = []
    for number, run in enumerate(runs, start=1):
        print(f"{number} of {len(runs)}: {run.config.name}: ", end="", flush=True)
        if run.state == "finished":
            print("already finished, skipped", flush=True)
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
    note = f" ({results['note']})" if results["note"] else ""
    return f"top-1 {results['top1']:.2f} %, top-5 {results['top5']:.2f} %{note}"


def _one_line(text: str) -> str:
    """`text` without line breaks and colour codes, cut to fit a table."""
    plain = " ".join(re.sub(r"\x1b\[[\d;]*m", "", text).split())
    return plain if len(plain) <= 400 else plain[:399] + "…"


def build_parser() -> argparse.ArgumentParser:
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m helpers.tools.grid", description=summary, epilog=details,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("items", nargs="+", metavar="NAME=VALUES|FILE|FOLDER", help="what to run, see below")
    parser.add_argument("--preset", help="preset of all runs: the same as preset=PRESET")
    parser.add_argument("--name", help="folder of the grid under RUNS_DIR (default: the preset, the files, what varies "
                                       "and the fixed settings that shape training)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of all grids (default: runs)")
    parser.add_argument("--notebook", type=Path, default=NOTEBOOK, help="notebook to run (default: the project's)")
    parser.add_argument("--dry-run", action="store_true", help="check the settings, print the plan, and run nothing")
    return parser


def read_plan(args: argparse.Namespace) -> tuple[str, list[Run]]:
    """The grid's name and runs. Raises ConfigError with all faults."""
    items = args.items + ([f"preset={args.preset}"] if args.preset else [])
    values, files, faults = read_items(items)
    name = args.name or grid_name(items, values)
    if fault := coerce(name, str)[1] or folder_name_fault(name):
        faults.append(f"--name {shown(name)}: {fault}; --runs-dir sets its parent")
        name = "grid"       # still check the settings
    if not args.notebook.is_file():
        faults.append(f"--notebook {args.notebook}: no such file")
    try:
        runs = grid_runs(values, files, args.runs_dir.expanduser() / name)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(dict.fromkeys(faults), "the grid")
    return name, runs


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 a run failed or papermill is missing, 2 wrong settings, 130 interrupted."""
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
    idle = Counter(item for run in runs for item in run.config.idle_settings().items())
    for (setting, need), count in idle.items():
        print(f"note: {setting} has no effect in {count} of {len(runs)} runs: it needs {need}")
    others = finished_beside(runs, folder)
    if others:
        print(f"note: {folder} also holds {', '.join(others)}, which the report leaves out; give all values in one "
              "command to report them together, or choose another folder with --name")
    if args.dry_run:
        return 0
    if importlib.util.find_spec("papermill") is None:
        print("grid: papermill is not installed; run `pip install papermill`", file=sys.stderr)
        return 1
    command = shlex.join(["python", "-m", "helpers.tools.grid", *arguments])

    def write_report() -> None:
        write_text(html_report(name, runs, command, args.notebook.name), folder / "report.html")

    try:
        claim(folder, "--name")
    except OSError as error:
        print(f"grid: {error}", file=sys.stderr)
        return 1
    try:
        run_grid(runs, args.notebook, write_report)
    except OSError as error:
        print(f"grid: {error}; the same command continues", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("grid: interrupted; the same command resumes", file=sys.stderr)
        return 130
    finally:
        print(f"report: {folder / 'report.html'}")
    return 1 if any(run.state == "failed" for run in runs) else 0


if __name__ == "__main__":
    outlast_readers()
    # A script's background commands start with SIGINT ignored; papermill inherits that and then nothing can stop it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signal_name in ("SIGTERM", "SIGHUP"):       # a batch system or a closed terminal acts as Ctrl-C
        number = getattr(signal, signal_name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:       # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    sys.exit(main())
