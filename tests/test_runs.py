"""runs: what is read back of finished runs, and how they are compared."""

import json

import pytest

from helpers.config import TrainingConfig
from helpers.files import write_json
from helpers.lesson.runs import differing_settings, finished_runs, joint_note, runs_text
from helpers.metrics import History

def metrics_file(folder, name, top1, note="", epochs=2, **settings) -> dict:
    """What the pipeline writes for a run, as far as `runs` reads it."""
    config = TrainingConfig.from_settings({"run_name": name, "runs_dir": str(folder), **settings})
    history = [{"epoch": epoch, "val_top1": 10.0 * epoch} for epoch in range(1, epochs + 1)]
    content = {"name": name, "note": note, "config": config.to_dict(), "history": history,
               "training": {"seconds": 90.0, "petaflops": 0.5},
               "results": {"top1": top1, "top5": top1 + 10}}
    write_json(content, folder / name / "metrics.json")
    return content


@pytest.fixture
def runs(tmp_path):
    metrics_file(tmp_path, "low", 40.0, learning_rate=0.1, data_dir="here", device="cpu", epochs=2)
    metrics_file(tmp_path, "high", 60.0, learning_rate=0.2, data_dir="there", eval_batch_size=7, progress="none")
    metrics_file(tmp_path, "drawn", 50.0, note="drawn demo data", learning_rate=0.2, widths=[8, 8, 8, 8])
    return finished_runs(str(tmp_path / "*"))


def test_finished_runs_come_best_first_with_their_record(runs):
    assert [run["name"] for run in runs] == ["high", "drawn", "low"]
    assert (runs[0]["top5"], runs[0]["seconds"], runs[0]["petaflops"], runs[0]["epochs"]) == (70.0, 90.0, 0.5, 2)
    assert isinstance(runs[0]["history"], History) and runs[0]["history"]["val_top1"] == [10.0, 20.0]


def test_a_run_that_was_stopped_says_so_in_its_history(tmp_path):
    content = metrics_file(tmp_path, "short", 40.0)
    content["training"]["stopped"] = "interrupted"
    write_json(content, tmp_path / "short" / "metrics.json")
    assert finished_runs(str(tmp_path / "*"))[0]["history"].stopped == "interrupted"


def test_only_settings_that_shape_the_training_are_compared(runs):
    assert differing_settings(runs) == ["widths", "learning_rate"]
    assert set(runs[0]["settings"]) == set(TrainingConfig().training_settings())


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '{"results": {"top1": 3}}', '{"name": "x"}',
                                  '{"results": 5, "history": []}', '{"results": {"top1": 1}, "history": [3]}',
                                  "[" * 100_000, '{"results": ' * 100_000])
def test_files_that_are_no_metrics_are_reported_and_passed_over(text, tmp_path, caplog):
    metrics_file(tmp_path, "good", 40.0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "metrics.json").write_text(text)
    assert [run["name"] for run in finished_runs(str(tmp_path / "*"))] == ["good"]
    assert str(tmp_path / "bad" / "metrics.json") in caplog.text


@pytest.mark.parametrize("section, key", [("results", "top1"), ("results", "top5"), ("training", "seconds")])
def test_a_number_that_is_none_does_not_break_the_comparison(section, key, tmp_path):
    metrics_file(tmp_path, "good", 40.0)
    content = metrics_file(tmp_path, "odd", 50.0)
    content[section][key] = None
    write_json(content, tmp_path / "odd" / "metrics.json")
    assert [run["name"] for run in finished_runs(str(tmp_path / "*"))] == ["good"]


@pytest.mark.parametrize("change", [
    {"name": None}, {"name": 3}, {"name": "\ud800"}, {"note": None}, {"note": ["x"]}, {"config": None}, {"config": [3]},
    {"history": [{"epoch": "one"}]}, {"history": [{"epoch": 1, "val_top1": {}}]}, {"history": 3}, {"training": 3},
    {"results": {"top1": float("nan"), "top5": 3}}, {"results": {"top1": 10**400, "top5": 3}}])
def test_a_part_of_another_make_is_reported_and_passed_over(change, tmp_path, caplog):
    metrics_file(tmp_path, "good", 40.0)
    content = metrics_file(tmp_path, "odd", 50.0) | change
    (tmp_path / "odd" / "metrics.json").write_text(json.dumps(content))
    assert [run["name"] for run in finished_runs(str(tmp_path / "*"))] == ["good"]
    line, = caplog.messages
    assert str(tmp_path / "odd" / "metrics.json") in line


def test_runs_of_a_network_that_is_gone_are_compared(tmp_path):
    content = metrics_file(tmp_path, "now", 60.0, model="FlipCNN", widths=[8, 8, 8])
    then = content["config"] | {"model": "FastCNN", "flip_equivariant": False}
    write_json(content | {"name": "then", "config": then}, tmp_path / "then" / "metrics.json")
    runs = {run["name"]: run for run in finished_runs(str(tmp_path / "*"))}
    assert {name: run["settings"]["model"] for name, run in runs.items()} == {
        "now": "FlipCNN", "then": "FastCNN"}
    assert differing_settings(list(runs.values())) == ["model"] and "FastCNN" in runs_text(list(runs.values()))


def test_folders_without_results_are_passed_over_in_silence(tmp_path, caplog):
    (tmp_path / "empty").mkdir()
    write_json({"results": {}}, tmp_path / "running" / "metrics.json")
    assert finished_runs(str(tmp_path / "*")) == [] and caplog.text == ""


def test_the_table_of_runs_marks_what_was_measured_and_on_what(runs):
    lines = runs_text(runs, published=[("Some network", 75.5, 93.0)]).splitlines()
    assert len(lines) == 5
    assert "learning_rate" in lines[0] and "data_dir" not in lines[0]
    assert "high" in lines[1] and "measured" in lines[1] and "60.00" in lines[1] and "1.5" in lines[1]
    assert "drawn (drawn demo data)" in lines[2] and "8, 8, 8, 8" in lines[2]
    assert "Some network" in lines[4] and "published" in lines[4] and "measured" not in lines[4]


def test_epochs_trained_are_not_mixed_up_with_epochs_configured(tmp_path):
    """A run that stopped early has fewer of the one than of the other."""
    metrics_file(tmp_path, "short", 40.0, epochs=2)
    metrics_file(tmp_path, "long", 50.0, epochs=3)
    for name, epochs in (("short", 20), ("long", 30)):
        path = tmp_path / name / "metrics.json"
        content = json.loads(path.read_text())
        content["config"]["epochs"] = epochs
        write_json(content, path)
    header, long, short = (line.split() for line in runs_text(finished_runs(str(tmp_path / "*"))).splitlines())
    assert {"3", "30"} <= set(long) and {"2", "20"} <= set(short)


def test_notes_that_differ_are_named_by_run():
    assert joint_note([{"name": "a", "note": ""}, {"name": "b", "note": "drawn"}]) == "b: drawn"
