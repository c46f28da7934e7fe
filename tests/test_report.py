"""report: train.log, metrics.json and the text tables, read back as a user would."""

import json
import logging
import math

import pytest
import torch

from helpers import report
from helpers.config import TrainingConfig
from helpers.metrics import Evaluation, History
from helpers.report import (differing_settings, finished_runs, layers_text, log_to, results_text, runs_text, table,
                            write_json, write_text)

log = logging.getLogger("cifar100")


@pytest.fixture(autouse=True)
def no_handlers_left():
    """Leave the project's logger as it was."""
    before = log.handlers[:], log.level, log.propagate
    log.handlers = []
    yield
    for handler in log.handlers:
        handler.close()
    log.handlers, log.level, log.propagate = before


def say_everything() -> None:
    log.info("an event")
    log.warning("a warning")
    logging.getLogger("cifar100.epoch").info("an epoch")


@pytest.mark.parametrize("style, shown", [("lines", {"an event", "a warning", "an epoch"}),
                                          ("bar", {"an event", "a warning"}), ("none", {"a warning"})])
def test_log_goes_whole_to_the_file_and_by_style_to_the_screen(style, shown, tmp_path, capsys):
    path = tmp_path / "runs" / "mine" / "train.log"
    log_to(path, style)
    say_everything()
    screen = capsys.readouterr()
    assert set((screen.out + screen.err).split("\n")) - {""} == shown
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 3)[2:] for line in lines] == [["INFO", "an event"], ["WARNING", "a warning"],
                                                          ["INFO", "an epoch"]]


def test_a_second_log_takes_over_and_an_old_file_is_continued(tmp_path, capsys):
    log_to(tmp_path / "first.log", "lines")
    log.info("one")
    log_to(tmp_path / "second.log", "lines")
    log.info("two")
    log_to(tmp_path / "first.log", "lines")
    log.info("three")
    assert capsys.readouterr().out.split() == ["one", "two", "three"]      # each once
    texts = [[line.split()[-1] for line in (tmp_path / f"{name}.log").read_text().splitlines()]
             for name in ("first", "second")]
    assert texts == [["one", "three"], ["two"]]


def test_json_is_written_and_read_back(tmp_path):
    content = {"name": "中文", "values": [1, 2.5, None, True]}
    path = write_json(content, tmp_path / "deep" / "down" / "metrics.json")
    assert json.loads(path.read_text(encoding="utf-8")) == content


def test_text_replaces_a_file_as_a_whole(tmp_path):
    write_text("old, and longer", tmp_path / "deep" / "page.html")
    path = write_text("new 中文", tmp_path / "deep" / "page.html")
    assert path.read_text(encoding="utf-8") == "new 中文" and list(path.parent.iterdir()) == [path]
    with pytest.raises(UnicodeEncodeError):
        write_text("half \ud800", path)
    assert path.read_text(encoding="utf-8") == "new 中文" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("bad", [math.nan, math.inf, {1, 2}, torch.tensor(1.0)])
def test_what_json_cannot_hold_leaves_the_old_file_whole(bad, tmp_path):
    path = write_json({"old": 1}, tmp_path / "metrics.json")
    with pytest.raises((ValueError, TypeError)):
        write_json({"new": bad}, path)
    assert json.loads(path.read_text()) == {"old": 1} and list(tmp_path.iterdir()) == [path]


# Runs ------------------------------------------------------------------------------------------------------

def metrics_file(folder, name, top1, note="", epochs=2, **settings) -> dict:
    """What the pipeline writes for a run, as far as `report` reads it."""
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
                                  '{"results": 5, "history": []}', '{"results": {"top1": 1}, "history": [3]}'])
def test_files_that_are_no_metrics_are_reported_and_passed_over(text, tmp_path, caplog):
    metrics_file(tmp_path, "good", 40.0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "metrics.json").write_text(text)
    log.propagate = True
    assert [run["name"] for run in finished_runs(str(tmp_path / "*"))] == ["good"]
    assert str(tmp_path / "bad" / "metrics.json") in caplog.text


@pytest.mark.parametrize("section, key", [("results", "top1"), ("results", "top5"), ("training", "seconds")])
def test_a_number_that_is_none_does_not_break_the_comparison(section, key, tmp_path):
    metrics_file(tmp_path, "good", 40.0)
    content = metrics_file(tmp_path, "odd", 50.0)
    content[section][key] = None
    write_json(content, tmp_path / "odd" / "metrics.json")
    assert [run["name"] for run in finished_runs(str(tmp_path / "*"))] == ["good"]


def test_folders_without_results_are_passed_over_in_silence(tmp_path, caplog):
    (tmp_path / "empty").mkdir()
    write_json({"results": {}}, tmp_path / "running" / "metrics.json")
    log.propagate = True
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


# Tables ----------------------------------------------------------------------------------------------------

def test_table_aligns_words_left_and_numbers_right_and_leaves_gaps_empty():
    text = table([{"name": "a", "value": "1,234"}, {"name": "longer", "value": 5}, {"name": "b", "more": "x"}])
    assert text.splitlines() == ["name    value  more",
                                 "a       1,234",
                                 "longer      5",
                                 "b              x"]
    assert table([]) == ""


def test_layers_are_summed():
    lines = layers_text([{"layer": "conv1", "output": [64, 32, 32], "parameters": 1_728, "mflops": 3.5},
                         {"layer": "fc", "output": [100], "parameters": 51_300, "mflops": 0.25}]).splitlines()
    assert "64×32×32" in lines[1] and "1,728" in lines[1]
    assert lines[-1].split() == ["all", "53,028", "3.75"]


@pytest.fixture
def results() -> dict:
    labels = torch.arange(4).repeat(5)
    logits = torch.nn.functional.one_hot(labels, 4).float() * 3
    logits[:2] = logits[:2].roll(1, 1)      # one image of class a and one of class b are taken for another
    return {"note": "", **Evaluation.from_logits(logits, labels, list("abcd"), torch.tensor([0, 0, 1, 1]),
                                                 ["first", "second"]).summary()}


def test_results_in_words_hold_the_numbers(results):
    text = results_text(results)
    assert "top-1 90.00 %" in text and "20 test images" in text
    assert "mean 90.00 %" in text and "from 80 % (a)" in text and "to 100 % (c)" in text
    assert "TTA" not in text and "superclasses" in text and "calibration error" in text
    assert "with flip TTA 91.25 %" in results_text(results | {"flip_tta": {"top1": 91.25, "top5": 100.0}})


def test_results_on_drawn_data_say_so_first(results):
    assert results_text(results | {"note": "drawn demo data"}).startswith("drawn demo data")


def test_results_without_superclasses_do_not_mention_them(results):
    assert "superclass" not in results_text(results | {"superclass_top1": None})


def test_console_handler_writes_above_a_progress_bar(monkeypatch):
    written = []
    monkeypatch.setattr(report.tqdm, "write", written.append)
    report._ConsoleHandler().emit(logging.makeLogRecord({"msg": "hello"}))
    assert written == ["hello"]


def test_durations_are_readable():
    assert [report.duration(seconds) for seconds in (4.4, 600, 7260)] == ["4 s", "10 min", "2 h 01 min"]
