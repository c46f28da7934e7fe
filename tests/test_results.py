"""record: means over seeds, and the files the command writes."""

import json
import statistics

import numpy as np
import pytest

from helpers.files import write_json, write_text
from helpers.tools import results

EPOCH = {"epoch": 1, "train_loss": 3.0, "train_accuracy": 30.0, "val_loss": None, "val_top1": None, "val_top5": None,
         "learning_rate": 0.1, "image_size": 32, "images_per_second": 100.0, "petaflops": 0.1, "seconds": 9.0,
         "peak_memory_mb": None}


def write_run(folder, preset, seed, top1, petaflops, seconds, stopped=""):
    write_json({"name": preset, "config": {"preset": preset, "seed": seed, "val_size": 0, "epochs": 1,
                                  "label_smoothing": 0.2}, "note": "", "history": [EPOCH],
                       "model_stats": {"total_parameters": 10},
                       "system": {"device": "cpu", "device_name": "a CPU", "cpu_cores": 2},
                       "training": {"petaflops": petaflops, "seconds": seconds, "stopped": stopped},
                       "results": {"top1": top1, "top5": 90.0, "flip_tta": {"top1": top1 + 1, "top5": 91.0}}},
                      folder / (preset if seed == 1 else f"{preset}-{seed}") / "metrics.json")


def recipes_in(folder) -> list[dict]:
    return results.recipes(results.finished(folder))


@pytest.fixture
def runs(tmp_path):
    for seed, top1 in ((1, 70.0), (2, 70.6), (3, 69.8)):
        write_run(tmp_path, "quick", seed, top1, 0.25, 900 + seed)
    write_run(tmp_path, "fast", 1, 78.0, 1.8, 6000)
    return tmp_path


def test_an_interrupted_run_does_not_count(runs):
    write_run(runs, "quick", 4, 10.0, 0.1, 300, stopped="interrupted")
    assert recipes_in(runs)[0]["runs"] == 3


def test_recipes_are_means_over_their_runs(runs):
    quick, fast = recipes_in(runs)
    assert (quick["preset"], quick["runs"], quick["seeds"]) == ("quick", 3, [1, 2, 3])
    assert quick["top1"] == pytest.approx((70.0 + 70.6 + 69.8) / 3)
    assert quick["top1_std"] == pytest.approx(statistics.stdev([70.0, 70.6, 69.8]))
    assert quick["minutes"] == pytest.approx(902 / 60)
    assert fast["top1_std"] is None and fast["top1_by_run"] == [78.0]


@pytest.mark.parametrize("younger, recipes, images", [({"train_size": None}, 2, 50_000), ({"train_size": 9}, 3, 9)])
def test_a_run_older_than_a_setting_had_its_default(runs, younger, recipes, images):
    path = runs / "quick-3" / "metrics.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"config": content["config"] | younger}))
    found = recipes_in(runs)
    assert len(found) == recipes
    assert [row["training_images"] for row in found if 3 in row["seeds"]] == [images]


def test_command_writes_table_and_figure(runs, tmp_path, capsys):
    write_text("{}", runs / "other" / "metrics.json")
    assert results.main(["--runs", str(runs), "--out", str(tmp_path / "record.json")]) == 0
    assert "78.00" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "record.json").read_text())["recipes"]) == 2
    assert (tmp_path / "record.png").stat().st_size > 1000
    assert len(list(runs.glob("*/training.png"))) == 4


def test_the_committed_record_is_read():
    """Its runs are of `v1`, some of them of a network that is gone."""
    content = json.loads((results.FIGURES / "record.json").read_text())
    committed = content["recipes"]
    assert content["reference"] == results.REFERENCE
    found = recipes_in(results.FIGURES / "record")
    assert [(row["name"], row["seeds"], row["top1"]) for row in found] == [
        (row["name"], row["seeds"], row["top1"]) for row in committed]
    drawn = results.recipes([run for run in results.finished(results.FIGURES / "record")
                             if not results.without_retired(run["run"]["settings"])[1]])
    assert {"fast", "quick"} <= {row["name"] for row in drawn}
    axes = results.plots.record(drawn, results.OTHERS, results.PUBLISHED).axes[0]
    handles, _ = axes.get_legend_handles_labels()
    assert len({handle.get_marker() for handle in handles}) == len(handles)
    labels = [text.get_window_extent() for text in axes.texts]
    assert [label.count_overlaps(labels) for label in labels] == [1] * len(labels), "each overlaps itself alone"


def test_others_are_drawn_with_their_compute_or_as_lines(runs):
    others = [{"name": "one", "top1": 75.2, "top1_std": 0.25, "runs": 40, "petaflops": 0.3},
              {"name": "two", "top1": 79.0, "petaflops": (3, 7)}]
    axes = results.plots.record(recipes_in(runs), others, [("three", 72.0, 90.0)]).axes[0]
    words = [text.get_text() for text in axes.texts]
    assert words[:3] == ["three: 72.00 %", "one\n75.20 ± 0.25 % (n = 40)\n0.3 PFLOP", "two\n79.00 %\n3 to 7 PFLOP"]
    ranges = [segment for container in axes.containers for lines in container[2] for segment in lines.get_segments()]
    assert any(np.allclose(segment, [[3, 79], [7, 79]]) for segment in ranges)
    assert any(np.allclose(segment[:, 1], [74.95, 75.45]) for segment in ranges)


def test_the_command_draws_the_published_runs(runs, tmp_path, monkeypatch):
    drawn = []
    draw = results.plots.record
    monkeypatch.setattr(results.plots, "record", lambda *given: drawn.append(draw(*given)) or drawn[0])
    assert results.main(["--runs", str(runs), "--out", str(tmp_path / "record.json")]) == 0
    words = " ".join(text.get_text() for text in drawn[0].axes[0].texts)
    assert "ResNet-18: 75.61 %" in words and words.count("reference CNN") == 1 and "NAVIER-STOKED" in words


def test_a_variant_of_a_preset_is_named_by_its_folder_and_drawn_hollow(runs):
    write_run(runs, "fast", 9, 77.5, 1.8, 6000)
    path = runs / "fast-9" / "metrics.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"config": content["config"] | {"input_skip": True}}))
    rows = recipes_in(runs)
    assert [row["name"] for row in rows] == ["quick", "fast", "fast-9"]
    axes = results.plots.record(rows).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["fast-9: 77.50 % (n = 1)"]
    assert "77.50" not in " ".join(text.get_text() for text in axes.texts)


@pytest.mark.parametrize("change", [
    {"results": {"top1": 70.0}}, {"results": 3}, {"training": None}, {"training": {"stopped": ""}}, {"config": []},
    {"config": {"preset": "quick"}}, {"model_stats": {}}, {"history": [{"epoch": 1, "loss": 2}]}, {"name": None},
    {"results": {"top1": float("nan"), "top5": 90.0}}, {"results": {"top1": "high", "top5": 90.0}}, {"note": 3},
    {"system": None}, {"system": {}}, "[" * 100_000, "", "[]", '{"results": '])
def test_a_file_of_another_make_is_passed_over_with_a_line(runs, change, caplog):
    path = runs / "other" / "metrics.json"
    path.parent.mkdir()
    content = json.loads((runs / "quick" / "metrics.json").read_text())
    path.write_text(change if isinstance(change, str) else json.dumps(content | change))
    assert [row["runs"] for row in recipes_in(runs)] == [3, 1]
    line, = caplog.messages
    assert str(path) in line


def test_command_without_runs_says_so(tmp_path, capsys):
    assert results.main(["--runs", str(tmp_path)]) == 1
    assert "no finished run" in capsys.readouterr().err
