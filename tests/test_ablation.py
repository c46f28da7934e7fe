"""ablation: what a plan means, that runs are not repeated, and that the table compares with the mean of the base."""

import json

import pytest
import torch
import yaml

from helpers.config import CONFIG_DIR, ConfigError
from helpers.data import ImageData
from helpers.lesson.speed import planned_flops
from helpers.tools import ablation

PLAN = {"base": {"model": "FlipCNN", "optimizer": "muon", "widths": [4, 4, 8], "epochs": 1, "batch_size": 8,
                 "val_size": 8, "num_classes": 4, "patience": 0, "mixed_precision": False, "progress": "none"},
        "seeds": [3, 4], "changes": {"no smoothing": {"label_smoothing": 0.0}, "A/B test": {"flip": "alternating"}}}


@pytest.fixture
def plan(tmp_path):
    def write(**changes):
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(PLAN | changes, sort_keys=False))
        return path
    return write


@pytest.fixture
def data():
    images = torch.randint(0, 256, (32, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 4
    # No test split: an ablation must not look at it.
    return ImageData(images, labels, None, None, ("a", "b", "c", "d"), source="this test")


def test_a_change_is_trained_with_the_first_seed_or_with_its_own(plan):
    changes = {"small": {"epochs": 2, "seeds": [4, 6]}, "A/B test": {"flip": "random"}}
    runs = ablation.ablation_runs(plan(changes=changes))
    assert [(name, config.seed) for name, config in runs[2:]] == [("small", 4), ("small", 6), ("A/B test", 3)]
    assert all(config.epochs == 2 for name, config in runs if name == "small")
    with pytest.raises(ConfigError, match=r"small: seed=4: write seeds: \[4\]"):
        ablation.ablation_runs(plan(changes={"small": {"epochs": 2, "seed": 4}}))


def test_a_plan_is_the_base_with_every_seed_and_each_change_with_the_first(plan):
    runs = ablation.ablation_runs(plan(), runs_dir="here")
    assert [(name, config.seed, config.run_name.rpartition("-")[0]) for name, config in runs] == [
        ("full recipe", 3, "full-recipe-3"), ("full recipe", 4, "full-recipe-4"),
        ("no smoothing", 3, "no-smoothing-3"), ("A/B test", 3, "a-b-test-3")]
    changed = PLAN["changes"] | {"no smoothing": {"label_smoothing": 0.0, "cutout_size": 4}}
    others = ablation.ablation_runs(plan(changes=changed), runs_dir="here")
    assert [one.run_name == other.run_name for (_, one), (_, other) in zip(runs, others)] == [True, True, False, True]
    assert [config.label_smoothing for _, config in runs] == [0.1, 0.1, 0.0, 0.1]
    assert all(config.widths == (4, 4, 8) and config.runs_dir == "here" for _, config in runs)


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("ablation*.yaml")), ids=lambda path: path.stem)
def test_a_committed_plan_is_valid_and_each_change_changes_something(path):
    runs = ablation.ablation_runs(path)
    base = runs[0][1].training_settings()
    changed = [config.training_settings() for name, config in runs if name != ablation.FULL_RECIPE]
    assert changed and all(settings != base for settings in changed)
    lengths = {(config.epochs, config.start_image_size, config.image_growth_fraction, config.widths): config
               for _, config in runs}.values()
    assert all(0.95 < planned_flops(config, 40_000) / planned_flops(runs[0][1], 40_000) < 1.05 for config in lengths)
    assert not any(config.idle_settings() for _, config in runs)


@pytest.mark.parametrize("changes, names", [({"seeds": []}, "seeds"), ({"changes": None}, "changes"),
                                            ({"seeds": 3}, "seeds: missing, empty or of another kind"),
                                            ({"changes": {"x": None}}, "x: None: write the settings"),
                                            ({"changes": {"x": {"epochs": 3, "seeds": 3}}}, "x: seeds=3: write a list"),
                                            ({"changes": {"x": {"whitning": False}}}, "whitning"),
                                            ({"base": PLAN["base"] | {"val_size": 0}}, "val_size=0")])
def test_a_wrong_plan_is_one_clear_error(plan, changes, names):
    with pytest.raises(ConfigError, match=names):
        ablation.ablation_runs(plan(**changes))


def test_a_row_says_how_the_run_ended(plan, data, tmp_path):
    name, config = ablation.ablation_runs(plan(), runs_dir=str(tmp_path / "runs"))[0]
    found = ablation.train_one(name, config, data)
    assert found["seed"] == 3 and found["epochs"] == 1 and 0 <= found["val_top1"] <= 100
    assert found["settings"] == config.training_settings()


def row(change, seed, accuracy):
    return {"change": change, "seed": seed, "val_top1": accuracy, "train_accuracy": 50.0, "petaflops": 0.1,
            "seconds": 60.0}


def test_differences_are_to_the_full_recipe_with_the_same_seed(tmp_path):
    rows = [row(ablation.FULL_RECIPE, 1, 60.0), row(ablation.FULL_RECIPE, 2, 62.0), row("less", 1, 58.5),
            row("more", 1, 63.0), row("more", 2, 63.0), row("more", 3, 63.5)]
    assert [(found["change"], found["seed"], found["difference"]) for found in ablation.with_differences(rows)] == [
        ("more", 1, 3.0), ("more", 3, 2.5), (ablation.FULL_RECIPE, 2, 1.0), ("more", 2, 1.0),
        (ablation.FULL_RECIPE, 1, -1.0), ("less", 1, -1.5)]
    ablation.draw_results(rows, tmp_path / "ablation.json")
    assert (tmp_path / "ablation.png").stat().st_size > 1000
    assert (tmp_path / "ablation.txt").read_text().split("\n")[1].startswith("more ")


def test_an_interrupted_run_gives_no_row(plan, data, tmp_path, monkeypatch):
    name, config = ablation.ablation_runs(plan(), runs_dir=str(tmp_path / "runs"))[0]
    fit = ablation.Trainer.fit
    monkeypatch.setattr(ablation.Trainer, "fit", lambda trainer: trainer.stop() or fit(trainer))
    with pytest.raises(KeyboardInterrupt):
        ablation.train_one(name, config, data)


def test_command_trains_what_its_file_does_not_hold(plan, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "load_cifar100", lambda config: data)
    out = tmp_path / "out.json"
    options = ["--plan", str(plan()), "--runs-dir", str(tmp_path / "runs"), "--out", str(out)]
    trained, train_one, limit = [], ablation.train_one, 2

    def counted(name, config, data):
        if len(trained) == limit:
            raise KeyboardInterrupt
        trained.append(name)
        return train_one(name, config, data)

    monkeypatch.setattr(ablation, "train_one", counted)
    assert ablation.main(options) == 130
    assert len(json.loads(out.read_text())["rows"]) == 2
    trained.clear()
    limit = 4
    assert ablation.main(options) == 0
    assert trained == ["no smoothing", "A/B test"] and "no smoothing" in capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert [row["change"] for row in rows] == ["full recipe", "full recipe", "no smoothing", "A/B test"]
    trained.clear()
    other = {"no smoothing": {"label_smoothing": 0.0, "cutout_size": 4}, "A/B test": {"flip": "alternating"}}
    plan(changes=other)         # writes the plan anew
    assert ablation.main(options) == 2 and "another plan" in capsys.readouterr().err
    assert trained == [] and json.loads(out.read_text())["rows"] == rows     # nothing is lost
    assert ablation.main([*options[:-1], str(tmp_path / "other.json")]) == 0
    assert len(trained) == 4


def test_command_says_what_is_wrong(plan, data, tmp_path, monkeypatch, capsys):
    assert ablation.main(["--plan", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml" in capsys.readouterr().err
    monkeypatch.setattr(ablation, "load_cifar100", lambda config: data)
    monkeypatch.setattr(ablation, "train_one", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert ablation.main(["--plan", str(plan()), "--out", str(tmp_path / "out.json")]) == 1     # no setting is wrong
    assert "No space left" in capsys.readouterr().err


def test_rows_of_settings_that_are_gone_stay_and_are_drawn(plan, data, tmp_path, monkeypatch, capsys):
    """A file of the first edition: its settings have names and values of then."""
    monkeypatch.setattr(ablation, "load_cifar100", lambda config: data)
    runs = ablation.ablation_runs(plan(base=PLAN["base"] | {"model": "CIFAR100CNN", "widths": [4, 4, 4, 4]}))
    then = {"whitening": True, "pool_first": False, "flip_equivariant": False, "mix_until": 1.0}
    rows = [row(name, config.seed, 50.0) | {"settings": config.training_settings() | then} for name, config in runs]
    rows.append(row("pooling first", 3, 66.0) | {"settings": rows[0]["settings"] | {"pool_first": True}})
    out = tmp_path / "out.json"
    out.write_text(json.dumps({"note": "", "rows": rows}))
    monkeypatch.setattr(ablation, "train_one", None)        # nothing is left to train
    assert ablation.main(["--plan", str(tmp_path / "plan.yaml"), "--out", str(out)]) == 0
    assert "pooling first" in capsys.readouterr().out and "pooling first" in (tmp_path / "out.txt").read_text()
    assert json.loads(out.read_text())["rows"] == rows


def test_rows_whose_base_is_gone_stay_and_are_compared_with_no_other(plan, data, tmp_path, monkeypatch):
    def trained(name, config, data):
        return row(name, config.seed, 60.0) | {"precision": "fp32", "settings": config.training_settings()}

    monkeypatch.setattr(ablation, "load_cifar100", lambda config: data)
    monkeypatch.setattr(ablation, "train_one", trained)
    then = PLAN["base"] | {"model": "FastCNN"}
    rows = [row(ablation.FULL_RECIPE, 3, 50.0) | {"settings": then}, row("no cutout", 3, 52.0) | {"settings": then},
            row("pairs", 3, 55.0) | {"settings": then | {"flip_equivariant": True}}]
    out = tmp_path / "out.json"
    out.write_text(json.dumps({"note": "", "rows": rows}))
    assert ablation.main(["--plan", str(plan()), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["rows"][4:] == rows
    lines = (tmp_path / "out.txt").read_text().strip().split("\n")[1:]
    assert len(lines) == 4 and all(" +0.00 " in line for line in lines)
    rows[0]["change"] = "FastCNN"       # beside today's base, then
    out.write_text(json.dumps({"note": "", "rows": json.loads(out.read_text())["rows"][:4] + rows}))
    assert ablation.main(["--plan", str(plan()), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["rows"][4:] == rows
    assert ["-10.00" in line for line in (tmp_path / "out.txt").read_text().split("\n") if "FastCNN" in line] == [True]


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"rows": [{"change": "x"}], "note": ""}'])
def test_a_file_of_another_make_is_not_written_over(tmp_path, content):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ConfigError, match="mine.json: holds no results of this tool"):
        ablation.finished_rows(tmp_path / "mine.json", [], "")


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONFIG_DIR.glob("ablation*.yaml"))] + ["ablation_long"])
def test_committed_rows_are_of_the_committed_plan_or_of_a_base_that_is_gone(name):
    """So that a preset does not change under the rows of a plan: the plan must then name what it keeps."""
    path, plan = ablation.FIGURES / f"{name}.json", CONFIG_DIR / f"{name}.yaml"
    if not path.is_file():
        pytest.skip("no row of this plan is trained yet")
    runs = ablation.ablation_runs(plan if plan.is_file() else CONFIG_DIR / "ablation.yaml")
    rows, kept = ablation.finished_rows(path, runs, "")
    assert len(kept) + sum(row is not None for row in rows) == len(json.loads(path.read_text())["rows"])
