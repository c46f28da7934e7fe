"""grid: what a command line plans, that runs are skipped, fail and stop as they should, and what the report holds.

The notebook here is a stub of three cells that trains nothing, so that a run takes seconds.
"""

import base64
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import nbformat
import pytest
import yaml
from PIL import Image

from helpers.config import ConfigError, TrainingConfig
from helpers.lesson import plots
from helpers.files import write_json
from helpers.lesson.runs import PUBLISHED, finished_runs
from helpers.metrics import History
from helpers.tools import grid
from helpers.tools.grid import Run, html_report, planned_runs, read_items, split_values

ROOT = Path(__file__).resolve().parent.parent

STUB = ("""\
# Parameters: what papermill is given comes below
preset = None""", """\
from helpers.config import TrainingConfig, notebook_settings
config = TrainingConfig.from_settings(notebook_settings(globals()))
print("a line of the notebook's own")""", """\
import json, os, pathlib, signal, time
if config.learning_rate > 0.5:
    raise ValueError("the <loss> is\\nnot finite & never was")
if config.epochs == 77:
    asked_to_stop = []
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.append(True))
    config.run_dir.joinpath("started").touch()
    end = time.monotonic() + 120
    while not asked_to_stop and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(6)       # a slow step; papermill by itself would kill after 5 seconds
    config.run_dir.joinpath("saved").touch()
    os._exit(1)
accuracy = 100 * config.learning_rate
history = [{"epoch": epoch, "train_accuracy": accuracy * epoch, "val_top1": accuracy + epoch} for epoch in (1, 2)]
config.run_dir.joinpath("metrics.json").write_text(json.dumps({
    "name": config.name, "note": "drawn demo data", "config": config.to_dict(), "history": history,
    "training": {"seconds": 90, "petaflops": 0.5, "stopped": ""},
    "results": {"top1": accuracy + 3, "top5": accuracy + 30}}))""")


def write_stub(folder: Path) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in STUB]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / "stub.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def plan(*items, folder="runs/g") -> list[Run]:
    values, files, faults = read_items(list(items))
    assert not faults
    return planned_runs(values, files, folder)


def yaml_file(path: Path, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings))
    return path


def write_metrics(run: Run, top1=50.0, note="", validated=(40.0, 45.0), stopped="", config=None) -> None:
    history = [{"epoch": epoch, "train_accuracy": 30.0, "val_top1": value}
               for epoch, value in enumerate(validated, start=1)]
    write_json({"name": run.config.name, "note": note, "config": config or run.config.to_dict(),
                       "history": history, "training": {"seconds": 90.0, "petaflops": 0.5, "stopped": stopped},
                       "results": {"top1": top1, "top5": top1 + 10}}, run.folder / "metrics.json")


# Plan ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, values", [
    ("0.05", [0.05]), ("0.05,0.1,0.2", [0.05, 0.1, 0.2]), ("light, strong", ["light", "strong"]),
    ("[64,128,256]", [[64, 128, 256]]), ("[64,128],[32, 64],null", [[64, 128], [32, 64], None]),
    ("true,false", [True, False]), ("3,[4]", [3, [4]])])
def test_values_are_yaml_split_at_the_commas_outside_brackets(text, values):
    assert split_values(text) == values


@pytest.mark.parametrize("text", ["", "1,", ",1", "1,,2", "[1,2", "a: b: c"])
def test_a_value_that_is_none_is_an_error(text):
    with pytest.raises(ValueError):
        split_values(text)


def test_more_values_than_a_file_name_has_letters_are_values():
    values, files, faults = read_items(["seed=" + ",".join(map(str, range(200)))])
    assert values == {"seed": list(range(200))} and files == faults == []


def test_every_combination_is_planned_and_named_by_what_differs():
    runs = plan("learning_rate=0.05,0.1", "augmentation=light,strong", "preset=demo")
    assert [(run.config.learning_rate, run.config.augmentation_strength) for run in runs] == [
        (0.05, "light"), (0.05, "strong"), (0.1, "light"), (0.1, "strong")]
    assert [run.config.name for run in runs][1] == "demo-learning_rate=0.05-augmentation_strength=strong"
    assert {str(run.folder.parent) for run in runs} == {"runs/g"}
    # The notebook, which is given run.settings, must end up in the same folder.
    assert all(TrainingConfig.from_settings(run.settings) == run.config for run in runs)


def test_without_a_preset_runs_start_from_the_default_one():
    assert [run.config.name for run in plan("seed=1,2")] == ["fast-seed=1", "fast-seed=2"]


def test_files_and_values_are_combined_and_values_go_first(tmp_path):
    first = yaml_file(tmp_path / "some" / "b.yaml", preset="demo", epochs=5, lr=0.3)
    yaml_file(tmp_path / "some" / "a.yml", preset="demo", epochs=7)
    (tmp_path / "some" / "readme.txt").write_text("not a setting")
    runs = plan(str(tmp_path / "some"), "learning_rate=0.1,0.2")
    assert [(run.config.epochs, run.config.learning_rate) for run in runs] == [(7, 0.1), (7, 0.2), (5, 0.1), (5, 0.2)]
    assert [run.config.learning_rate for run in plan(str(first), "seed=1")] == [0.3]


def test_the_presets_of_the_project_are_a_grid():
    names = {path.stem for path in (ROOT / "configs" / "experiments").glob("*.yaml")}
    assert {run.config.name for run in plan("configs/experiments")} == names


def test_two_combinations_of_one_folder_are_refused():
    with pytest.raises(ConfigError, match="eval_batch_size=1 and eval_batch_size=2 are both named 'demo'"):
        plan("preset=demo", "eval_batch_size=1,2")
    with pytest.raises(ConfigError, match="epochs=4 and epochs=4"):
        plan("epochs=4,4")


@pytest.mark.parametrize("items, faults", [
    (["learnig_rate=0.1"], ["did you mean 'learning_rate'"]),
    (["learnig_rate=null", "epochs=0"], ["did you mean 'learning_rate'", "epochs=0: must be at least 1"]),
    (["epochs=1,many,-2", "nothere", "seed="], ["epochs='many'", "epochs=-2", "nothere: no such file", "seed=: "]),
    (["epochs=1", "epochs=2"], ["epochs is given twice"]),
    (["lr=1", "learning_rate=2"], ["'lr' and 'learning_rate' are the same setting"]),
    (["preset=dmo"], ["did you mean 'demo'"]),
    (["runs_dir=here"], ["use --runs-dir"]),
    (["epochs=1", "--name", "a/b"], ["must be a plain folder name"]),
    (["epochs=1", "--notebook", "absent.ipynb"], ["absent.ipynb: no such file"])])
def test_all_faults_come_at_once_before_anything_runs(items, faults, capsys, tmp_path):
    assert grid.main([*items, "--runs-dir", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"grid: {len(faults)} fault") and all(said.count(fault) == 1 for fault in faults)
    assert not (tmp_path / "runs").exists()


def test_a_fault_of_one_file_names_the_file(tmp_path, capsys):
    yaml_file(tmp_path / "good.yaml", preset="demo")
    yaml_file(tmp_path / "wide.yaml", model="FastCNN", widths=[8, 8, 8, 8])
    yaml_file(tmp_path / "bad.yaml", epohcs=3, runs_dir="x")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "empty").mkdir()
    assert grid.main([str(tmp_path), str(tmp_path / "empty"), "seed=-1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "wide.yaml: widths=" in line and "takes 3" in line]
    assert [line for line in lines if "bad.yaml: unknown setting 'epohcs'" in line]
    assert [line for line in lines if "broken.yaml: cannot be read" in line]
    assert [line for line in lines if "empty: the folder holds no YAML file" in line]
    assert [line for line in lines if line == "  - seed=-1: must be at least 0"]


def test_a_dry_run_prints_the_plan_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grid, "_papermill", None)
    arguments = ["seed=1,2", "--preset", "demo", "epochs=4", "--runs-dir", str(tmp_path), "--dry-run"]
    assert grid.main(arguments) == 0
    first, *names = capsys.readouterr().out.splitlines()
    assert first.startswith("2 runs") and names == ["  demo-seed=1-epochs=4", "  demo-seed=2-epochs=4"]
    assert list(tmp_path.iterdir()) == []
    write_metrics(plan("seed=1", "epochs=4", "preset=demo", folder=tmp_path / "demo-seed-epochs=4")[0])
    assert grid.main(arguments) == 0
    assert "  demo-seed=1-epochs=4 (finished)\n  demo-seed=2-epochs=4\n" in capsys.readouterr().out


@pytest.mark.parametrize("items, name", [
    (["preset=demo", "learning_rate=1,2", "epochs=3", "seed=1,2"], "demo-learning_rate-seed-epochs=3"),
    (["configs/experiments"], "experiments"), (["configs/default.yaml", "seed=1,2"], "default-seed"),
    (["lr=3", "data_dir=/a", "widths=[1,2]"], "lr=3-widths=1x2"), (["preset=null"], "grid"),
    (["preset=demo,quick"], "demo-quick")])
def test_a_grid_is_named_after_what_varies_in_it_and_what_it_fixes(items, name):
    assert grid.grid_name(items, read_items(items)[0]) == name


# Run -------------------------------------------------------------------------------------------------------

def test_only_a_run_of_these_settings_that_came_to_its_end_is_finished(tmp_path):
    run, = plan("preset=demo", "seed=1", folder=tmp_path)
    assert grid.results_of(run) is None
    write_metrics(run)
    assert grid.results_of(run)["top1"] == 50.0
    config = run.config.to_dict() | {"device": "cuda"}      # does not shape the weights
    write_metrics(run, config={name: value for name, value in config.items() if name != "mix_until"})
    assert grid.results_of(run)["top1"] == 50.0
    write_metrics(run, stopped="interrupted")       # evaluated all the same
    assert grid.results_of(run) is None
    write_metrics(run, config=config | {"momentum": 0.5})
    assert grid.results_of(run) is None


@pytest.fixture(scope="module")
def stub_grid(tmp_path_factory):
    """(folder, arguments, exit status, what was printed) of a grid whose second run of three fails."""
    folder = tmp_path_factory.mktemp("grid")
    arguments = ["learning_rate=0.1,0.9,0.2", "preset=demo", "--name", "g", "--runs-dir", str(folder / "runs"),
                 "--notebook", str(write_stub(folder))]
    command = [sys.executable, "-m", "helpers.tools.grid", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return folder / "runs" / "g", arguments, done.returncode, done.stdout + done.stderr


def test_a_grid_goes_on_after_a_failure_and_says_so_in_a_line_a_run(stub_grid):
    folder, _, status, said = stub_grid
    assert status == 1
    lines = [line for line in said.splitlines() if " of 3: " in line]
    assert len(lines) == 3 and len(said.splitlines()) == 8      # the plan is four lines, the report one
    assert "demo-learning_rate=0.1: top-1 13.00 %, top-5 40.00 % (drawn demo data) after" in lines[0]
    assert "about" in lines[0] and "left" in lines[0] and "left" not in lines[2]
    assert "failed (ValueError: the <loss> is not finite & never was)" in lines[1]
    assert "top-1 23.00 %" in lines[2]
    assert "own" not in said


def test_the_executed_notebooks_lie_beside_the_results(stub_grid):
    folder = stub_grid[0]
    for name, cells_run in (("demo-learning_rate=0.1", 3), ("demo-learning_rate=0.9", 2)):
        cells = nbformat.read(folder / name / "stub.ipynb", as_version=4).cells
        texts = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
        assert "a line of the notebook's own\n" in texts
        assert (folder / name / "metrics.json").exists() == (cells_run == 3)
        given = yaml.safe_load((folder / name / "settings.yaml").read_text())
        assert given == {"learning_rate": float(name[-3:]), "preset": "demo", "runs_dir": str(folder)}
        assert (folder / name / "papermill.log").is_file()


def test_the_folder_is_what_compare_reads(stub_grid):
    runs = finished_runs(str(stub_grid[0] / "*"))
    assert [(run["name"], run["top1"]) for run in runs] == [("demo-learning_rate=0.2", 23.0),
                                                           ("demo-learning_rate=0.1", 13.0)]


def test_the_same_command_skips_the_finished_runs_and_tries_the_failed_one_again(stub_grid, tmp_path, monkeypatch,
                                                                                 capsys):
    folder, arguments, _, _ = stub_grid
    shutil.copytree(folder, tmp_path / "g")
    tried = []

    def papermill(arguments, log):
        tried.append(Path(arguments[1]).parent.name)
        log.write_text("not this time either")
        return 1
    monkeypatch.setattr(grid, "_papermill", papermill)
    assert grid.main([*arguments, "--runs-dir", str(tmp_path)]) == 1
    assert tried == ["demo-learning_rate=0.9"]
    said = capsys.readouterr().out
    assert said.count("is finished already, skipped") == 2 and "failed (not this time either)" in said


def test_papermill_is_given_files_and_paths_that_it_does_not_take_apart(tmp_path, monkeypatch):
    run, = plan("preset=demo", "run_name='{x}'", folder=tmp_path)
    seen = {}

    def papermill(arguments, log):
        seen.update(zip(("notebook", "output", "option", "settings"), arguments))
        write_metrics(run)
        return 0
    monkeypatch.setattr(grid, "_papermill", papermill)
    grid.execute(run, tmp_path / "n.ipynb")
    assert run.state == "finished" and seen["output"].format() == str(tmp_path / "{x}" / "n.ipynb")
    assert yaml.safe_load(Path(seen["settings"]).read_text()) == run.settings


def test_a_notebook_that_leaves_no_results_has_failed(tmp_path, monkeypatch):
    run, = plan("preset=demo", "seed=1", folder=tmp_path)
    monkeypatch.setattr(grid, "_papermill", lambda arguments, log: 0)
    grid.execute(run, tmp_path / "n.ipynb")
    assert run.state == "failed" and "left no results" in run.error


def test_the_plan_tells_what_has_no_effect_and_what_else_is_in_the_folder(tmp_path, capsys):
    arguments = ["--preset", "quick", "--name", "g", "--runs-dir", str(tmp_path), "--dry-run"]
    assert grid.main(["dropout_rate=0.1,0.2", *arguments]) == 0
    said = capsys.readouterr().out
    assert "note: dropout_rate has no effect in 2 of 2 runs: it needs model='CIFAR100CNN'" in said
    assert "also holds" not in said
    write_metrics(plan("preset=quick", "seed=1", folder=tmp_path / "g")[0])
    assert grid.main(["seed=2,3", *arguments]) == 0
    assert "also holds quick-seed=1, which the report leaves out" in capsys.readouterr().out


def test_where_no_cell_failed_the_last_word_of_papermill_is_the_error(tmp_path):
    log = tmp_path / "papermill.log"
    log.write_text("Traceback\n  some line\n\x1b[31mDeadKernelError\x1b[0m: Kernel died\n\n")
    assert grid.last_error(tmp_path / "absent.ipynb", log) == "DeadKernelError: Kernel died"
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    assert grid.last_error(tmp_path / "half.ipynb", log) == "DeadKernelError: Kernel died"
    log.write_text("")
    assert grid.last_error(tmp_path / "absent.ipynb", log) == "papermill ended without a word"


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c_ends_the_run_and_the_grid_and_the_report_is_written(tmp_path):
    command = [sys.executable, "-m", "helpers.tools.grid", "epochs=77,78", "preset=demo", "--name", "g",
               "--runs-dir", str(tmp_path), "--notebook", str(write_stub(tmp_path))]
    # With SIGINT ignored, as a shell script starts a command in the background; papermill must be stopped even so.
    shell = f"trap '' INT; exec {shlex.join(command)}"
    process = subprocess.Popen(["sh", "-c", shell], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    started = tmp_path / "g" / "demo-epochs=77" / "started"
    end = time.monotonic() + 120
    while not started.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said and "the same command goes on" in said
    assert (started.parent / "saved").exists()      # the kernel was asked to end, not just killed
    page = Page.of(tmp_path / "g" / "report.html")
    assert [[row["run"], row["state"]] for row in page.tables[0]] == [["demo-epochs=77", "interrupted"],
                                                                      ["demo-epochs=78", "waiting"]]


# Report ----------------------------------------------------------------------------------------------------

class Page(HTMLParser):
    """Tables as lists of {column: text}, links, images, tags and all the text of a page; checks that tags match."""

    EMPTY = {"meta", "img", "br"}

    def __init__(self):
        super().__init__()
        self.tables, self.links, self.images, self.tags, self.text, self.classes = [], [], [], [], "", []
        self.open, self.cells, self.attributes = [], [], []

    @classmethod
    def of(cls, source):
        page = cls()
        page.feed(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
        page.close()
        assert page.open == []
        return page

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.attributes += attributes.items()
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.cells = []
            self.classes.append(attributes.get("class"))
        elif tag in ("th", "td"):
            self.cells.append("")
        elif tag == "a":
            self.links.append(attributes["href"])
        elif tag == "img":
            self.images.append(attributes["src"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "tr":
            if "thead" in self.open:
                self.columns = self.cells
            else:
                assert len(self.cells) == len(self.columns)
                self.tables[-1].append(dict(zip(self.columns, self.cells)))

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
            if {"td", "th"} & set(self.open):
                self.cells[-1] += data


def test_the_report_of_the_grid_lists_what_is_finished_and_what_failed(stub_grid):
    folder = stub_grid[0]
    page = Page.of(folder / "report.html")
    finished, others = page.tables
    assert [(row["learning_rate"], row["top-1 %"], row["top-5 %"], row["minutes"], row["PFLOP"]) for row in finished
            ] == [("0.2", "23.00", "50.00", "1.5", "0.5000"), ("0.1", "13.00", "40.00", "1.5", "0.5000")]
    assert "momentum" not in finished[0]        # the same in all runs
    assert [(row["run"], row["state"]) for row in others] == [("demo-learning_rate=0.9", "failed")]
    assert len(page.links) == 3 and not any(link.startswith(("/", "http")) for link in page.links)
    assert all((folder / unquote(link)).is_file() for link in page.links)
    assert all("drawn demo data" in row["run"] for row in finished)
    assert "published" not in page.text     # nothing compares with drawn data


def test_the_failed_runs_error_is_text_and_not_markup(stub_grid):
    source = (stub_grid[0] / "report.html").read_text(encoding="utf-8")
    assert "<loss>" not in source and "loss" not in Page.of(source).tags


def test_the_report_needs_no_network_and_minds_dark_mode(stub_grid):
    source = (stub_grid[0] / "report.html").read_text(encoding="utf-8")
    page = Page.of(source)
    assert not {"link", "script", "iframe"} & set(page.tags) and "@import" not in source and "url(" not in source
    assert not [value for _, value in page.attributes if value and "//" in value and not value.startswith("data:")]
    assert "prefers-color-scheme: dark" in source
    assert len(page.images) == 2        # the comparison and the training of each
    for image in page.images:
        kind, content = image.split(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).width == 1000


def finished_grid(folder, *tops, note="", **settings) -> list[Run]:
    runs = plan("preset=demo", f"seed={','.join(str(seed) for seed in range(len(tops)))}",
                *(f"{name}={value}" for name, value in settings.items()), folder=folder)
    for run, top1 in zip(runs, tops):
        write_metrics(run, top1, note, validated=(90 - top1, 95 - top1))
        run.state = "finished"
    return runs


def test_published_results_stand_below_and_are_marked(tmp_path):
    page = Page.of(html_report("g", finished_grid(tmp_path, 60.0), "command", "n.ipynb"))
    table, = page.tables
    assert table[0]["run"] == "demo-seed=0" and len(table) == 1 + len(PUBLISHED)
    assert [row["run"] for row in table[1:]] == [f"{name} (published)"
                                                 for name, _, _ in PUBLISHED]
    assert [float(row["top-1 %"]) for row in table[1:]] == [top1 for _, top1, _ in PUBLISHED]
    assert page.links == []         # there is no executed notebook
    assert len(page.images) == 1    # one run alone needs no small multiples


def test_validation_accuracy_decides_the_order_where_there_is_one(tmp_path):
    runs = finished_grid(tmp_path, 50.0, 60.0, 55.0)        # the better on the test split, the worse in validation
    page = Page.of(html_report("g", runs, "command", "n.ipynb"))
    assert [row["validation top-1 %"] for row in page.tables[0][:3]] == ["45.00", "40.00", "35.00"]
    assert "Best validation accuracy first" in page.text
    assert page.classes[1:5] == ["best", "plain", "plain", "published"]
    write_metrics(runs[0], 50.0, validated=(None, None))
    page = Page.of(html_report("g", runs, "command", "n.ipynb"))
    assert [row["top-1 %"] for row in page.tables[0][:3]] == ["60.00", "55.00", "50.00"]
    assert "Best test accuracy first" in page.text


def test_with_patience_the_best_epoch_was_tested_and_else_the_last(tmp_path):
    for patience, validated in ((0, "41.00"), (3, "48.00")):
        run, = plan("preset=demo", f"patience={patience}", "run_name=a", folder=tmp_path)
        write_metrics(run, validated=(40.0, 48.0, 41.0))
        run.state = "finished"
        page = Page.of(html_report("g", [run], "command", "n.ipynb"))
        assert page.tables[0][0]["validation top-1 %"] == validated


def test_everything_is_escaped(tmp_path):
    evil = "<script>alert('&')</script>\"x"
    run, = plan("preset=demo", "seed=1", folder=tmp_path)
    run.state, run.error = "failed", evil
    done, = finished_grid(tmp_path, 50.0, note=evil)
    run.config = run.config.replace(run_name="a&b'c")
    (run.folder).mkdir()
    (run.folder / "n&'.ipynb").touch()
    page = Page.of(html_report(evil, [run, done], f"python {evil}", "n&'.ipynb"))
    assert "script" not in page.tags and page.text.count(evil) == 6      # title, heading, command, note twice, error
    assert [unquote(link) for link in page.links] == ["./a&b'c/n&'.ipynb"]


def test_before_the_first_run_the_report_says_what_waits():
    page = Page.of(html_report("g", plan("widths=[8,8,8],[16,16,16]"), "command", "n.ipynb"))
    assert "2 waiting" in page.text and page.images == []
    assert [row["widths"] for row in page.tables[0]] == ["[8, 8, 8]", "[16, 16, 16]"]


def test_of_many_runs_the_best_are_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(grid, "DRAWN_RUNS", 2)
    monkeypatch.setattr(plots, "small_multiples", lambda runs, note: drawn.append([run["name"] for run in runs])
                        or matplotlib.figure.Figure())
    page = Page.of(html_report("g", finished_grid(tmp_path, 50.0, 60.0, 40.0), "command", "n.ipynb"))
    assert drawn == [["seed=2", "seed=0"]] and page.text.count("best 2 of 3 runs") == 2


# Figure ----------------------------------------------------------------------------------------------------

def test_small_multiples_show_every_run_to_the_same_scale():
    runs = [{"name": f"run {number}", "history": History([
        {"epoch": epoch, "train_accuracy": 10.0 * epoch, "val_top1": 8.0 * epoch * number or None}
        for epoch in range(1, 4)])} for number in range(5)]
    figure = plots.small_multiples(runs, note="drawn demo data")
    assert [axes.get_title() for axes in figure.axes] == [run["name"] for run in runs]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert [len(axes.lines) for axes in figure.axes] == [1, 2, 2, 2, 2]         # the first has no validation split
    assert list(figure.axes[2].lines[1].get_ydata()) == [16.0, 32.0, 48.0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["training (augmented images)", "validation"]
    assert "drawn demo data" in [text.get_text() for text in figure.texts]
