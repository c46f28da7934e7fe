"""retired: files that name settings which are gone are read, or refused with the tag that has them."""

import inspect
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from helpers.config import SETTINGS, ConfigError, TrainingConfig, preset_names, read_settings
from helpers.optim import build_optimizer
from helpers.retired import ANY, COMMIT, LATER, RETIRED, TAG, last_version, without_retired

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "figures" / "record"
FIRST_EDITION = {name: value for name, value in RETIRED.items() if value is not ANY} | {
    "flip_equivariant": False, "data_placement": "host", "eval_batch_size": 7, "flip_tta": False}


def test_no_setting_is_both():
    assert not set(RETIRED) & set(SETTINGS)


@pytest.mark.parametrize("preset", ["demo", "reference"])
def test_a_configuration_of_the_first_edition_is_read(preset):
    now = TrainingConfig.from_preset(preset)
    assert TrainingConfig.from_settings(now.to_dict() | FIRST_EDITION) == now
    assert TrainingConfig.training_settings_of(now.to_dict() | FIRST_EDITION) == now.training_settings()


@pytest.mark.parametrize("name, now, value", [("flip_equivariant", True, False), ("pooling", "max_blur", "max")])
def test_what_flipcnn_always_does_is_no_setting(name, now, value):
    fast = TrainingConfig.from_preset("fast")
    assert TrainingConfig.from_settings(fast.to_dict() | {name: now}) == fast
    with pytest.raises(ConfigError, match=f"{name}={value!r}: is no longer a setting.*{last_version(name)}".replace(
            "(", ".").replace(")", ".")):
        TrainingConfig.from_settings({"preset": "fast", name: value})
    reference = TrainingConfig().to_dict() | {name: value}      # had no effect there
    assert TrainingConfig.from_settings(reference) == TrainingConfig()


@pytest.mark.parametrize("refuse", [
    lambda: TrainingConfig(model="FastCNN"), lambda: TrainingConfig().replace(model="FastCNN"),
    lambda: TrainingConfig.from_preset("quick", model="FastCNN"),
    lambda: TrainingConfig.from_settings({"model": "FastCNN", "flip_equivariant": False, "widths": [8, 8, 8]}),
    lambda: read_settings("old.yaml"), lambda: TrainingConfig.from_file("old.yaml")])
def test_the_network_that_is_gone_is_one_fault(refuse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("old.yaml").write_text("model: FastCNN\nwidths: [8, 8, 8]\n")
    with pytest.raises(ConfigError, match=f"model='FastCNN': .*'FlipCNN' took its place; tag {TAG} ") as refusal:
        refuse()
    assert len(refusal.value.faults) == 1


def test_fp32_is_said_by_mixed_precision():
    assert TrainingConfig.from_settings({"precision": "fp32"}) == TrainingConfig(mixed_precision=False)
    then = TrainingConfig().training_settings() | {"precision": "fp32"}
    assert TrainingConfig.training_settings_of(then) == TrainingConfig(mixed_precision=False).training_settings()


@pytest.mark.parametrize("name, value", [("pool_first", True), ("whitening", False), ("head_momentum", 0.5)])
def test_another_value_is_refused_with_the_tag_and_kept_for_comparisons(name, value, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"preset": "quick", name: value}))
    for read in (lambda: read_settings(path), lambda: TrainingConfig.from_settings({name: value})):
        with pytest.raises(ConfigError, match=f"{name}={value}.*tag {TAG} .commit {COMMIT}. has it"):
            read()
    assert TrainingConfig.training_settings_of({name: value})[name] == value
    assert without_retired({name: value, "epochs": 3}) == ({"epochs": 3}, {name: value})


def test_a_retired_name_is_no_argument():
    with pytest.raises(ConfigError, match="whitening: belongs in files and mappings"):
        TrainingConfig(whitening=True)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in RECORD.glob("*/metrics.json")))
def test_every_recorded_run_is_read(name):
    config = json.loads((RECORD / name / "metrics.json").read_text())["config"]
    gone = without_retired(config)[1]
    if gone:
        assert TrainingConfig.training_settings_of(config).items() >= gone.items()
    else:
        assert TrainingConfig.from_settings(config | {"preset": None}).epochs == config["epochs"]
    if name in preset_names():
        assert TrainingConfig.training_settings_of(config) == TrainingConfig.from_preset(name).training_settings()


def test_the_version_users_are_sent_to_has_the_settings():
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    shown = git("show", f"{COMMIT}:helpers/config.py")
    if shown.returncode:
        pytest.skip("this copy has no history")
    assert all((f"    {name}: " in shown.stdout) == (name not in LATER) for name in RETIRED)
    for name, commit in LATER.items():
        assert f"    {name}: " in git("show", f"{commit}:helpers/config.py").stdout
    tag = git("rev-parse", "--verify", "--quiet", f"{TAG}^{{commit}}")
    assert tag.returncode or tag.stdout.startswith(COMMIT)


def test_retired_rates_are_those_in_effect():
    defaults = inspect.signature(build_optimizer).parameters
    for name in ("norm_learning_rate", "head_learning_rate", "head_momentum"):
        assert RETIRED[name] == defaults[name].default
