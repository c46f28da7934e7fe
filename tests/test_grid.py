"""grid: planning from arguments; skipped, failed and interrupted runs.

The notebook is a stub of three cells that trains nothing, so a run takes seconds.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
import yaml
from grid_runs import Page, plan, write_metrics, write_stub

from helpers.config import ConfigError, TrainingConfig
from helpers.files import write_json
from helpers.lesson.runs import finished_runs
from helpers.tools import grid
from helpers.tools.grid_report import results_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def yaml_file(path: Path, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings))
    return path


# Plan ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, values", [
    ("0.05", [0.05]), ("0.05,0.1,0.2", [0.05, 0.1, 0.2]), ("light, strong", ["light", "strong"]),
    ("[64,128,256]", [[64, 128, 256]]), ("[64,128],[32, 64],null", [[64, 128], [32, 64], None]),
    ("true,false", [True, False]), ("3,[4]", [3, [4]])])
def test_commas_outside_brackets_separate_yaml_values(text, values):
    assert grid.split_values(text) == values


@pytest.mark.parametrize("text", ["", "1,", ",1", "1,,2", "[1,2", "a: b: c"])
def test_an_empty_or_malformed_value_raises(text):
    with pytest.raises(ValueError):
        grid.split_values(text)


def test_an_argument_may_be_longer_than_a_file_name():
    values, files, faults = grid.read_items(["seed=" + ",".join(map(str, range(200)))])
    assert values == {"seed": list(range(200))} and files == faults == []


def test_plan_has_every_combination_named_by_what_differs():
    runs = plan("learning_rate=0.05,0.1", "augmentation=light,strong", "preset=demo")
    assert [(run.config.learning_rate, run.config.augmentation_strength) for run in runs] == [
        (0.05, "light"), (0.05, "strong"), (0.1, "light"), (0.1, "strong")]
    assert [run.config.name for run in runs][1] == "demo-learning_rate=0.05-augmentation_strength=strong"
    assert {str(run.folder.parent) for run in runs} == {"runs/g"}
    # The notebook receives run.settings and must choose the same folder.
    assert all(TrainingConfig.from_settings(run.settings) == run.config for run in runs)


def test_runs_without_preset_start_from_the_default_one():
    assert [run.config.name for run in plan("seed=1,2")] == ["fast-seed=1", "fast-seed=2"]


def test_values_override_files(tmp_path):
    first = yaml_file(tmp_path / "some" / "b.yaml", preset="demo", epochs=5, lr=0.3)
    yaml_file(tmp_path / "some" / "a.yml", preset="demo", epochs=7)
    (tmp_path / "some" / "readme.txt").write_text("not a setting")
    runs = plan(str(tmp_path / "some"), "learning_rate=0.1,0.2")
    assert [(run.config.epochs, run.config.learning_rate) for run in runs] == [(7, 0.1), (7, 0.2), (5, 0.1), (5, 0.2)]
    assert [run.config.learning_rate for run in plan(str(first), "seed=1")] == [0.3]


def test_the_presets_of_the_project_form_a_grid():
    names = {path.stem for path in (ROOT / "configs" / "experiments").glob("*.yaml")}
    assert {run.config.name for run in plan("configs/experiments")} == names


def test_two_runs_of_the_same_name_raise():
    with pytest.raises(ConfigError, match="checkpoint_interval=1 and checkpoint_interval=2 share the name 'demo'"):
        plan("preset=demo", "checkpoint_interval=1,2")
    with pytest.raises(ConfigError, match="epochs=4 and epochs=4"):
        plan("epochs=4,4")


@pytest.mark.parametrize("items, faults", [
    (["learnig_rate=0.1"], ["did you mean 'learning_rate'"]),
    (["learnig_rate=null", "epochs=0"], ["did you mean 'learning_rate'", "epochs=0: must be at least 1"]),
    (["epochs=1,many,-2", "nothere", "seed="], ["epochs='many'", "epochs=-2", "nothere: no such file", "seed=: "]),
    (["epochs=1", "epochs=2"], ["epochs appears twice"]),
    (["lr=1", "learning_rate=2"], ["'lr' and 'learning_rate' are the same setting"]),
    (["seed=0x_", "run_name=2025-02-30"], ["seed=0x_: cannot be read as YAML", "run_name=2025-02-30: cannot be"]),
    (["seed=1", "--name", "CON"], ["must be a plain folder name"]),
    (["seed=1", "--name", "a\nb"], ["U+000A"]), (["seed=1", "--name", "貓" * 90], ["255 bytes"]),
    (["preset=dmo"], ["did you mean 'demo'"]),
    (["runs_dir=here"], ["use --runs-dir"]),
    (["epochs=1", "--name", "a/b"], ["must be a plain folder name"]),
    (["epochs=1", "--notebook", "absent.ipynb"], ["absent.ipynb: no such file"])])
def test_main_reports_all_faults_before_any_run(items, faults, capsys, tmp_path):
    assert grid.main([*items, "--runs-dir", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"grid: {len(faults)} fault") and all(said.count(fault) == 1 for fault in faults)
    assert not (tmp_path / "runs").exists()


def test_a_fault_in_one_file_names_the_file(tmp_path, capsys):
    yaml_file(tmp_path / "good.yaml", preset="demo")
    yaml_file(tmp_path / "wide.yaml", model="FlipCNN", widths=[8, 8, 8, 8])
    yaml_file(tmp_path / "bad.yaml", epohcs=3, runs_dir="x")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "empty").mkdir()
    assert grid.main([str(tmp_path), str(tmp_path / "empty"), "seed=-1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "wide.yaml: widths=" in line and "give 3" in line]
    assert [line for line in lines if "bad.yaml: unknown setting 'epohcs'" in line]
    assert [line for line in lines if "broken.yaml: cannot be read" in line]
    assert [line for line in lines if "empty: the folder holds no YAML file" in line]
    assert [line for line in lines if line == "  - seed=-1: must be at least 0"]


def test_a_dry_run_prints_the_plan_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grid, "run_papermill", None)
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
def test_grid_name_tells_what_varies_and_what_is_fixed(items, name):
    assert grid.grid_name(items, grid.read_items(items)[0]) == name


# Run -------------------------------------------------------------------------------------------------------

def test_results_of_other_data_are_not_this_runs(tmp_path):
    run, = plan("preset=quick", "data_dir=mine", folder=str(tmp_path))
    write_metrics(run)
    assert results_of(run)
    write_metrics(run, config=run.config.to_dict() | {"data_dir": "yours"})
    assert results_of(run) is None


@pytest.mark.parametrize("cells, state", [
    ([(1, []), (2, [])], "finished"), ([(1, []), (None, [])], "failed"),
    ([(1, [{"output_type": "error"}]), (2, [])], "failed")])
def test_a_notebook_that_broke_off_after_its_results_is_run_again(tmp_path, monkeypatch, cells, state):
    run, = plan("preset=demo", folder=str(tmp_path))
    write_metrics(run)
    write_json({"cells": [{"cell_type": "code", "execution_count": count, "outputs": outputs}
                          for count, outputs in cells]}, run.folder / "lesson.ipynb")
    monkeypatch.setattr(grid, "run_papermill", lambda arguments, log: log.write_text("a line") and 1)
    grid.run_grid([run], tmp_path / "lesson.ipynb", lambda: None)
    assert run.state == state


def test_results_need_equal_settings_and_a_finished_training(tmp_path):
    run, = plan("preset=demo", "seed=1", folder=tmp_path)
    assert results_of(run) is None
    write_metrics(run)
    assert results_of(run)["top1"] == 50.0
    config = run.config.to_dict() | {"device": "cuda"}      # does not shape the weights
    write_metrics(run, config={name: value for name, value in config.items() if name != "self_distillation"})
    assert results_of(run)["top1"] == 50.0
    write_metrics(run, stopped="interrupted")       # with results
    assert results_of(run) is None
    write_metrics(run, config=config | {"momentum": 0.5})
    assert results_of(run) is None


@pytest.fixture(scope="module")
def stub_grid(tmp_path_factory):
    """(folder, arguments, exit status, output) of a grid of three runs, of which the second fails."""
    folder = tmp_path_factory.mktemp("grid")
    arguments = ["learning_rate=0.1,0.9,0.2", "preset=demo", "--name", "g", "--runs-dir", str(folder / "runs"),
                 "--notebook", str(write_stub(folder))]
    command = [sys.executable, "-m", "helpers.tools.grid", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return folder / "runs" / "g", arguments, done.returncode, done.stdout + done.stderr


def test_grid_continues_after_a_failure_and_prints_a_line_per_run(stub_grid):
    folder, _, status, said = stub_grid
    assert status == 1
    lines = [line for line in said.splitlines() if " of 3: " in line]
    assert len(lines) == 3 and len(said.splitlines()) == 8      # four lines of plan, one of report
    assert "demo-learning_rate=0.1: top-1 13.00 %, top-5 40.00 % (drawn demo data) after" in lines[0]
    assert "about" in lines[0] and "left" in lines[0] and "left" not in lines[2]
    assert "failed (ValueError: the <loss> is not finite & never was)" in lines[1]
    assert "top-1 23.00 %" in lines[2]
    assert "own" not in said


def test_run_folder_holds_the_executed_notebook(stub_grid):
    folder = stub_grid[0]
    for name, cells_run in (("demo-learning_rate=0.1", 3), ("demo-learning_rate=0.9", 2)):
        cells = nbformat.read(folder / name / "stub.ipynb", as_version=4).cells
        texts = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
        assert "a line of the notebook's own\n" in texts
        assert (folder / name / "metrics.json").exists() == (cells_run == 3)
        given = yaml.safe_load((folder / name / "settings.yaml").read_text())
        assert given == {"learning_rate": float(name[-3:]), "preset": "demo", "runs_dir": str(folder)}
        assert (folder / name / "papermill.log").is_file()


def test_finished_runs_reads_the_folder(stub_grid):
    runs = finished_runs(str(stub_grid[0] / "*"))
    assert [(run["name"], run["top1"]) for run in runs] == [("demo-learning_rate=0.2", 23.0),
                                                           ("demo-learning_rate=0.1", 13.0)]


def test_the_same_command_skips_finished_runs_and_retries_the_failed_one(stub_grid, tmp_path, monkeypatch, capsys):
    folder, arguments, _, _ = stub_grid
    shutil.copytree(folder, tmp_path / "g")
    tried = []

    def papermill(arguments, log):
        tried.append(Path(arguments[1]).parent.name)
        log.write_text("not this time either")
        return 1
    monkeypatch.setattr(grid, "run_papermill", papermill)
    assert grid.main([*arguments, "--runs-dir", str(tmp_path)]) == 1
    assert tried == ["demo-learning_rate=0.9"]
    said = capsys.readouterr().out
    assert said.count("already finished, skipped") == 2 and "failed (not this time either)" in said


def test_papermill_gets_a_settings_file_and_escaped_paths(tmp_path, monkeypatch):
    run, = plan("preset=demo", "run_name='{x}'", folder=tmp_path)
    seen = {}

    def papermill(arguments, log):
        seen.update(zip(("notebook", "output", "option", "settings"), arguments))
        write_metrics(run)
        return 0
    monkeypatch.setattr(grid, "run_papermill", papermill)
    grid.execute(run, tmp_path / "n.ipynb")
    assert run.state == "finished" and seen["output"].format() == str(tmp_path / "{x}" / "n.ipynb")
    assert yaml.safe_load(Path(seen["settings"]).read_text()) == run.settings


def test_a_notebook_without_results_has_failed(tmp_path, monkeypatch):
    run, = plan("preset=demo", "seed=1", folder=tmp_path)
    monkeypatch.setattr(grid, "run_papermill", lambda arguments, log: 0)
    grid.execute(run, tmp_path / "n.ipynb")
    assert run.state == "failed" and "ended without results" in run.error


def test_plan_notes_idle_settings_and_other_runs_in_the_folder(tmp_path, capsys):
    arguments = ["--preset", "quick", "--name", "g", "--runs-dir", str(tmp_path), "--dry-run"]
    assert grid.main(["dropout_rate=0.1,0.2", *arguments]) == 0
    said = capsys.readouterr().out
    assert "note: dropout_rate has no effect in 2 of 2 runs: it needs model='CIFAR100CNN'" in said
    assert "also holds" not in said
    write_metrics(plan("preset=quick", "seed=1", folder=tmp_path / "g")[0])
    assert grid.main(["seed=2,3", *arguments]) == 0
    assert "also holds quick-seed=1, which the report leaves out" in capsys.readouterr().out


def test_without_a_failed_cell_the_last_log_line_is_the_error(tmp_path):
    log = tmp_path / "papermill.log"
    log.write_text("Traceback\n  some line\n\x1b[31mDeadKernelError\x1b[0m: Kernel died\n\n")
    assert grid.last_error(tmp_path / "absent.ipynb", log) == "DeadKernelError: Kernel died"
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    assert grid.last_error(tmp_path / "half.ipynb", log) == "DeadKernelError: Kernel died"
    log.write_text("")
    assert grid.last_error(tmp_path / "absent.ipynb", log) == "papermill ended without output"


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c_stops_run_and_grid_and_writes_the_report(tmp_path):
    command = [sys.executable, "-m", "helpers.tools.grid", "epochs=77,78", "preset=demo", "--name", "g",
               "--runs-dir", str(tmp_path), "--notebook", str(write_stub(tmp_path))]
    # A shell script's background commands ignore SIGINT; the grid must stop papermill even so.
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
    assert "Traceback" not in said and "the same command resumes" in said
    assert (started.parent / "saved").exists()      # the kernel got SIGTERM and not just SIGKILL
    page = Page.of(tmp_path / "g" / "report.html")
    assert [[row["run"], row["state"]] for row in page.tables[0]] == [["demo-epochs=77", "interrupted"],
                                                                      ["demo-epochs=78", "waiting"]]


def test_a_second_grid_in_the_same_folder_is_refused(tmp_path, capsys):
    code = "import sys; from helpers.locks import claim; claim(sys.argv[1]); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "g")], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, cwd=ROOT)
    try:
        child.stdout.readline()
        assert grid.main(["epochs=1", "preset=demo", "--name", "g", "--runs-dir", str(tmp_path)]) == 1
    finally:
        child.kill()
        child.communicate()
    assert re.search(f"grid: .*g is in use by process {child.pid} .*another --name", capsys.readouterr().err)
    assert [path.name for path in (tmp_path / "g").iterdir()] == [".lock"]


def test_a_full_disk_ends_a_grid_with_one_line(tmp_path, monkeypatch, capsys):
    def full(_number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert grid.main(["epochs=1", "preset=demo", "--name", "g", "--runs-dir", str(tmp_path)]) == 1
    assert re.fullmatch("grid: .*No space left on device: .*report.html'; .*", capsys.readouterr().err.strip())


def test_the_report_lists_finished_and_failed_runs(stub_grid):
    folder = stub_grid[0]
    page = Page.of(folder / "report.html")
    finished, others = page.tables
    assert [(row["learning_rate"], row["top-1 %"], row["top-5 %"], row["minutes"], row["PFLOP"]) for row in finished
            ] == [("0.2", "23.00", "50.00", "1.5", "0.5000"), ("0.1", "13.00", "40.00", "1.5", "0.5000")]
    assert "momentum" not in finished[0]        # the same in all runs
    assert [(row["run"], row["state"], row["error"]) for row in others] == [
        ("demo-learning_rate=0.9", "failed", "ValueError: the <loss> is not finite & never was")]
    assert "loss" not in page.tags
    assert len(page.links) == 3 and not any(link.startswith(("/", "http")) for link in page.links)
    assert all((folder / unquote(link)).is_file() for link in page.links)
    assert all("drawn demo data" in row["run"] for row in finished)
    assert "published" not in page.text     # nothing compares with drawn data


def test_the_report_has_the_name_of_the_grid_even_with_idle_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "run_papermill", lambda arguments, log: log.write_text("no notebook"))
    assert grid.main(["dropout_rate=0.1", "--preset", "quick", "--name", "g", "--runs-dir", str(tmp_path)]) == 1
    assert Page.of(tmp_path / "g" / "report.html").text.split()[0] == "g"
