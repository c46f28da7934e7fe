"""config: the requirement's names and defaults, and every way in which a setting can be given wrongly."""

import contextlib
import copy
import pickle
import re

import numpy
import pytest
import torch
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from papermill.iorw import read_yaml_file
from papermill.translators import PythonTranslator

from helpers import config
from helpers.config import (ALIASES, SETTINGS, ConfigError, TrainingConfig, default_settings, layered_settings,
                            preset_names, preset_settings, read_settings)
from helpers.models import build_model
from helpers.notebook_settings import notebook_settings
from helpers.text import shown
from helpers.tools.grid import split_values
from train import read_arguments

REQUIRED_DEFAULTS = {
    "num_classes": 100, "dropout_rate": 0.3, "epochs": 150, "batch_size": 256, "learning_rate": 0.1, "momentum": 0.9,
    "weight_decay": 5e-4, "mixed_precision": True, "gradient_clip": 1.0, "gradient_accumulation_steps": 1,
    "label_smoothing": 0.1, "lr_scheduler": "cosine", "warmup_epochs": 5, "augmentation_strength": "moderate",
    "patience": 15, "min_delta": 0.001, "checkpoint_interval": 5, "val_size": 5000}


def faults_of(make, *arguments, **settings) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make(*arguments, **settings)
    assert all(fault in str(caught.value) for fault in caught.value.faults)
    return caught.value.faults


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """A function that writes preset files into a folder which stands for configs/experiments."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    monkeypatch.setattr(config, "PRESET_DIR", folder)

    def write(**texts):
        for name, text in texts.items():
            (folder / f"{name}.yaml").write_text(text)
        return folder
    return write


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path
    return write


def run_cells(*sources: str) -> dict:
    """What `globals()` holds in a kernel that has run these cells; a cell that fails leaves only its text."""
    namespace = {"In": [""]}
    for source in sources:
        namespace["In"].append(TransformerManager().transform_cell(source))         # as IPython keeps it
        with contextlib.suppress(SyntaxError):
            exec(re.sub("^!", "#", source, flags=re.M), namespace)      # runs no command
    return namespace


def injected(parameters: dict) -> str:
    """The cell that papermill writes for these parameters."""
    return PythonTranslator.codify(parameters)


def config_of_notebook(*sources: str) -> TrainingConfig:
    return TrainingConfig.from_settings(notebook_settings(run_cells(*sources)), "the notebook's parameters")


# Defaults and presets --------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, value", REQUIRED_DEFAULTS.items())
def test_defaults_are_the_required_ones(name, value):
    assert getattr(TrainingConfig(), name) == value


def test_every_setting_is_explained():
    assert all(spec.metadata["help"] for spec in SETTINGS.values())


def test_required_choices_are_accepted():
    for strength in ("light", "moderate", "strong"):
        assert TrainingConfig(augmentation_strength=strength).augmentation_strength == strength
    step = TrainingConfig(lr_scheduler="step", lr_milestones=[60, 120], lr_gamma=0.1)
    assert step.lr_milestones == (60, 120) and step.lr_gamma == 0.1


def test_the_reference_preset_is_the_defaults():
    assert TrainingConfig.from_preset("reference") == TrainingConfig(preset="reference")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_names_itself_and_differs_from_nothing(name):
    preset = TrainingConfig.from_preset(name)
    assert preset.preset == preset.name == name
    assert preset.changed_settings() == {}
    assert yaml.safe_load((config.PRESET_DIR / f"{name}.yaml").read_text())["preset"] == name


def test_a_preset_extends_another_and_is_still_itself(presets):
    presets(base="preset: base\nepochs: 7\nseed: 3\n", mine="preset: mine\nextends: base\nepochs: 9\n")
    mine = TrainingConfig.from_preset("mine")
    assert (mine.name, mine.epochs, mine.seed) == ("mine", 9, 3)
    as_file = read_settings(presets() / "mine.yaml")        # as papermill -f and --config give it
    assert TrainingConfig.from_settings(layered_settings(as_file)) == mine
    presets(broken="preset: mine\nextends: base\n", lost="preset: lost\nextends: bsae\n")
    for name, says in (("broken", "names preset='mine' beside extends='base'"), ("lost", "lost.yaml extends 'bsae'")):
        with pytest.raises(ConfigError, match=says):
            TrainingConfig.from_preset(name)


def test_extends_puts_the_other_preset_underneath_wherever_it_stands(presets):
    presets(base="preset: base\nepochs: 7\nseed: 3\n", other="preset: other\nepochs: 5\nbatch_size: 4\n")
    alone = TrainingConfig.from_settings(layered_settings({"extends": "base", "seed": 9}))
    assert (alone.preset, alone.epochs, alone.seed) == ("base", 7, 9)
    beside = TrainingConfig.from_settings(layered_settings({"preset": "other", "extends": "base"}))
    assert (beside.preset, beside.epochs, beside.seed, beside.batch_size) == ("other", 7, 3, 4)
    with pytest.raises(ConfigError, match="no such file"):
        TrainingConfig.from_settings(layered_settings({"extends": "bsae"}))


def test_a_strength_that_is_only_repeated_keeps_the_crop_of_a_preset_two_steps_below(presets):
    presets(low="preset: low\naugmentation_strength: basic\n", middle="preset: middle\nextends: low\ncrop_padding: 2\n",
            high="preset: high\nextends: middle\naugmentation_strength: basic\n",
            strong="preset: strong\nextends: middle\naugmentation_strength: strong\n")
    assert TrainingConfig.from_preset("high").crop_padding == 2
    assert TrainingConfig.from_preset("strong").crop_padding is None


def test_a_later_layer_overrides_fp32_of_an_earlier_version(presets):
    presets(low="preset: low\nprecision: fp32\n")
    assert TrainingConfig.from_preset("low").mixed_precision is False
    high = TrainingConfig.from_settings(layered_settings({"preset": "low"}, {"precision": "bf16"}))
    assert (high.mixed_precision, high.precision) == (True, "bf16")
    assert "fp32 is mixed_precision=False" in faults_of(TrainingConfig, precision="fp32")[0]


def test_no_value_is_written_in_two_presets_that_extend_each_other():
    fast, quick = (yaml.safe_load((config.PRESET_DIR / f"{name}.yaml").read_text()) for name in ("fast", "quick"))
    assert fast["extends"] == "quick" and not fast.items() & quick.items()


@pytest.mark.parametrize("name", preset_names())
def test_no_setting_stands_in_a_preset_where_it_has_no_effect(name):
    own = yaml.safe_load((config.PRESET_DIR / f"{name}.yaml").read_text())
    idle = set(TrainingConfig.from_preset(name).replace(preset=None).idle_settings())
    assert not set(own) & idle - {"flip"}       # quick has it for other networks, and fast as its record has it


def test_required_presets_are_there():
    assert {"reference", "demo", "quick"} <= set(preset_names())
    assert TrainingConfig.from_preset("demo").data_source == "drawn"
    assert TrainingConfig.from_preset("quick").data_source != "drawn"


def test_overrides_go_before_the_preset_and_none_means_as_the_preset_says():
    demo = TrainingConfig.from_preset("demo")
    changed = TrainingConfig.from_preset("demo", epochs=9, batch_size=None, lr=0.25)
    assert (changed.epochs, changed.batch_size, changed.learning_rate) == (9, demo.batch_size, 0.25)


def test_a_strength_brings_its_own_crop_and_cutout_unless_these_are_given():
    def sizes(**settings):
        config = TrainingConfig.from_preset("fast", **settings)
        return config.crop_padding, config.cutout_size, config.name

    assert sizes(augmentation="basic") == (2, None, "fast")
    assert sizes(augmentation="strong") == (None, None, "fast-augmentation_strength=strong")
    assert sizes(augmentation="none", crop_padding=2)[:2] == (2, None)
    strong = TrainingConfig.from_preset("fast", augmentation="strong")
    assert TrainingConfig.from_settings(strong.to_dict()) == strong


def test_a_preset_may_start_from_another(presets):
    presets(base="epochs: 7\nbatch_size: 32\nlr: 0.5\n", middle="preset: base\nepochs: 8\n",
            top="preset: middle\nlearning_rate: 0.25\n")
    top = TrainingConfig.from_preset("top")
    assert (top.preset, top.epochs, top.batch_size, top.learning_rate) == ("top", 8, 32, 0.25)


def test_presets_in_a_circle_end(presets):
    presets(one="preset: two\nepochs: 3\n", two="preset: one\nepochs: 4\nbatch_size: 8\n")
    assert preset_settings("one") == {"preset": "one", "epochs": 3, "batch_size": 8}


def test_a_fault_in_a_preset_names_the_file(presets):
    presets(broken="epochz: 3\n", child="preset: broken\n")
    for name in ("broken", "child"):
        fault, = faults_of(TrainingConfig.from_preset, name)
        assert "broken.yaml" in fault and "did you mean 'epochs'" in fault


def test_an_unknown_preset_is_answered_with_the_nearest_and_all_names():
    fault, = faults_of(TrainingConfig.from_preset, "refrence")
    assert "did you mean 'reference'" in fault and "demo" in fault and "quick" in fault


def test_default_file_counts_only_where_no_preset_is_named(tmp_path, monkeypatch, yaml_file):
    (tmp_path / "default.yaml").write_text("preset: quick\nepochs: 77\nlearning_rate: 0.9\n")
    monkeypatch.setattr(config, "CONFIG_DIR", tmp_path)
    assert layered_settings({"batch_size": 8})["epochs"] == 77
    assert "epochs" not in layered_settings({"preset": "demo"})
    # The short name given here goes before the full name in the default file.
    assert TrainingConfig.from_file(yaml_file("lr: 0.2\n")).learning_rate == 0.2
    assert config_of_notebook("# Parameters\nlr = 0.2").learning_rate == 0.2


# Names -----------------------------------------------------------------------------------------------------

MISSPELT = [("learnig_rate", "learning_rate"), ("epoch", "epochs"), ("batchsize", "batch_size"),
            ("weight_decy", "weight_decay"), ("mixed_precison", "mixed_precision"), ("warmup", "warmup_epochs"),
            ("dropout", "dropout_rate"), ("BATCH_SIZE", "batch_size"),
            ("augmentation_strengh", "augmentation_strength")]


@pytest.mark.parametrize("wrong, right", MISSPELT)
def test_a_misspelt_name_is_answered_with_the_nearest(wrong, right, yaml_file, presets):
    path = yaml_file(f"{wrong}: 3\n")
    presets(base="epochs: 3\n", mine=f"{wrong}: 3\n")
    ways = {
        "constructor": lambda: TrainingConfig(**{wrong: 3}),
        "from_settings": lambda: TrainingConfig.from_settings({wrong: 3}),
        "replace": lambda: TrainingConfig().replace(**{wrong: 3}),
        "preset override": lambda: TrainingConfig.from_preset("base", **{wrong: 3}),
        "preset": lambda: TrainingConfig.from_preset("mine"),
        "file": lambda: TrainingConfig.from_file(path),
        "file override": lambda: TrainingConfig.from_file(yaml_file(""), preset="base", **{wrong: 3}),
        "parameters cell": lambda: config_of_notebook(f"{DECLARED}preset = 'base'\n{wrong} = 3"),
        "injected cell": lambda: config_of_notebook(f"{DECLARED}preset = 'base'", injected({wrong: 3})),
    }
    for way, make in ways.items():
        fault, = faults_of(make)
        assert repr(wrong) in fault and f"did you mean {right!r}" in fault, way


def test_a_name_that_is_near_nothing_points_to_the_list():
    fault, = faults_of(TrainingConfig, xyzzy=1)
    assert "'xyzzy'" in fault and "--help" in fault and "did you mean" not in fault


@pytest.mark.parametrize("short, full", ALIASES.items())
def test_short_names_mean_the_full_ones(short, full, yaml_file):
    value = {"learning_rate": 0.3, "augmentation_strength": "light", "lr_scheduler": "linear"}[full]
    for made in (TrainingConfig.from_settings({short: value}), TrainingConfig.from_preset("demo", **{short: value}),
                 TrainingConfig.from_file(yaml_file(f"{short}: {value}")), TrainingConfig().replace(**{short: value}),
                 config_of_notebook("# Parameters\n", injected({short: value}))):
        assert getattr(made, full) == value


def test_the_constructor_takes_full_names_and_says_so():
    assert "did you mean 'learning_rate'" in faults_of(TrainingConfig, lr=0.1)[0]


def test_a_setting_given_under_both_names_is_refused():
    for make in (TrainingConfig.from_settings, lambda given: TrainingConfig().replace(**given)):
        assert "same setting" in faults_of(make, {"lr": 0.1, "learning_rate": 0.2})[0]


@pytest.mark.parametrize("settings", [{"learning_rate": 0.2, "lr": None}, {"lr": None, "learning_rate": 0.2},
                                      {"lr": 0.2, "learning_rate": None}])
def test_a_name_left_at_none_does_not_undo_the_other(settings):
    assert TrainingConfig.from_settings(settings).learning_rate == 0.2


# Values ----------------------------------------------------------------------------------------------------

def test_numbers_are_taken_as_yaml_and_the_command_line_write_them():
    made = TrainingConfig.from_settings({"weight_decay": "1e-3", "learning_rate": 1, "epochs": "20",
                                         "batch_size": 64.0, "lr_milestones": ["3", 5], "widths": [8, 16, 32, 64]})
    assert made.weight_decay == 1e-3 and isinstance(made.learning_rate, float)
    assert (made.epochs, made.batch_size) == (20, 64) and isinstance(made.batch_size, int)
    assert made.lr_milestones == (3, 5) and made.widths == (8, 16, 32, 64)
    assert TrainingConfig.from_settings({"lr_milestones": 30}).lr_milestones == (30,)


@pytest.mark.parametrize("name, value, says", [
    ("epochs", True, "whole number"), ("epochs", 2.5, "whole number"), ("epochs", "ten", "whole number"),
    ("epochs", 0, "at least 1"), ("epochs", [3], "whole number"), ("epochs", float("inf"), "whole number"),
    ("seed", 10**400, "whole number"), ("seed", -1, "at least 0"), ("seed", 2**31, "at most"),
    ("learning_rate", True, "number"), ("learning_rate", "fast", "number"), ("learning_rate", 0, "at least 1e-08"),
    ("learning_rate", float("nan"), "number"), ("momentum", 1, "below 1"), ("dropout_rate", -0.1, "at least 0"),
    ("mixed_precision", 1, "true or false"), ("mixed_precision", "maybe", "true or false"),
    ("lr_scheduler", "cosin", "did you mean 'cosine'"), ("lr_scheduler", True, "text"), ("data_dir", None, "empty"),
    ("augmentation_strength", "modrate", "did you mean 'moderate'"), ("model", "ResNet", "one of"),
    ("widths", [8, "x", 8, 8], "whole number"), ("widths", [8, 0, 8, 8], "at least 1"),
    ("lr_milestones", [True], "whole number"), ("start_image_size", 33, "at most 32"),
    ("lr_gamma", 1.5, "at most 1")])
def test_a_wrong_value_is_named_with_what_is_allowed(name, value, says):
    fault, = faults_of(TrainingConfig, **{name: value})
    assert fault.startswith(f"{name}={shown(value)}") and says in fault


@pytest.mark.parametrize("name, value, says", [
    ("learning_rate", 1e308, "at most 1000"), ("learning_rate", 5e-324, "at least 1e-08"),
    ("weight_decay", 1e308, "at most"), ("gradient_clip", 5e-324, "0 or at least"), ("epochs", 10**12, "at most"),
    ("warmup_epochs", 1.7e308, "at most"), ("mixup_alpha", 5e-324, "0 or at least 0.01"),
    ("cutmix_alpha", 1e-6, "0 or at least 0.01"), ("batch_size", 10**15, "at most"), ("num_classes", 10**9, "at most"),
    ("widths", [10**9] * 4, "at most 4096"), ("gradient_accumulation_steps", 2**63, "at most")])
def test_a_value_that_no_training_survives_is_refused_before_it(name, value, says):
    fault, = faults_of(TrainingConfig, **{name: value})
    assert fault.startswith(name) and says in fault


def test_the_constructor_too_refuses_a_preset_without_a_file():
    fault, = faults_of(TrainingConfig, preset="fasst")
    assert fault.startswith("preset='fasst': no such file") and "did you mean 'fast'?" in fault


def test_a_batch_of_one_small_image_leaves_every_norm_more_than_one_value():
    config = TrainingConfig(model="FlipCNN", start_image_size=12, batch_size=1)
    model = build_model(config.model, 4, (16, 16, 16)).train()
    assert model(torch.randn(1, 3, 12, 12)).isfinite().all()


ODD_VALUES = [numpy.array(["a", "b"]), numpy.array([1.5, 2]), numpy.zeros((3, 4)), torch.zeros(2), {"a": 1}, {1, 2},
              b"text", dict, [[]], 10**5000, "9" * 5000]


@pytest.mark.parametrize("value", ODD_VALUES, ids=shown)
@pytest.mark.parametrize("name", ["run_name", "preset", "precision", "augmentation_strength", "extends", "epochs",
                                  "widths", "mixed_precision", "skip", "flip_equivariant"])
def test_a_value_of_any_type_is_one_short_fault(name, value):
    with pytest.raises(ConfigError) as caught:
        TrainingConfig.from_settings({"preset": "quick", name: value})
    assert any(("preset" if name == "extends" else name) in fault for fault in caught.value.faults)
    assert all(len(fault) < 400 and "\n" not in fault for fault in caught.value.faults)


def test_numbers_from_numpy_count_as_pythons():
    made = TrainingConfig.from_settings({"epochs": numpy.int64(3), "learning_rate": numpy.float64(0.25), "run_name":
                                         numpy.str_("mine"), "download": numpy.bool_(False), "model": "FlipCNN",
                                         "widths": numpy.array([8, 16, 32])})
    assert made == TrainingConfig.from_settings({"epochs": 3, "learning_rate": 0.25, "run_name": "mine",
                                                 "download": False, "model": "FlipCNN", "widths": [8, 16, 32]})
    assert [type(value) for value in (made.epochs, made.run_name, made.widths[0])] == [int, str, int]


@pytest.mark.parametrize("name, says", [
    ("a\0b", "U+0000"), ("a\ud800", "U+D800"), ("a\nb", "U+000A"), ("a\x1b[31m", "U+001B"), ("a\u2028b", "U+2028"),
    ("x" * 256, "255 bytes"), ("貓" * 86, "255 bytes"), ("CON", "plain folder name"), ("nul.txt", "plain folder name"),
    ("run.", "plain folder name"), ("run ", "plain folder name")])
def test_a_run_name_that_no_folder_can_have_is_refused(name, says):
    for make in (TrainingConfig, lambda **given: TrainingConfig.from_settings(given)):
        assert says in faults_of(make, run_name=name)[0]
    assert says.startswith("plain") or all(
        says in faults_of(TrainingConfig, **{folder: f"here/{name}/there"})[0]
        for folder in ("data_dir", "runs_dir", "checkpoint_dir", "resume"))


@pytest.mark.parametrize("name", ["貓", "แมว", "😀", "$^{$", "a b", "x" * 255, "{0}", "[1]", "-x", "~", "_"])
def test_any_other_run_name_is_a_folder(name, tmp_path):
    folder = TrainingConfig(run_name=name, runs_dir=str(tmp_path)).run_dir
    folder.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_name_of_a_run_is_no_longer_than_a_folders_may_be_in_any_script(presets):
    presets(**{"貓" * 80: "epochs: 3\n"})
    made = TrainingConfig.from_preset("貓" * 80, epochs=5, learning_rate=0.25)
    assert len(made.name.encode()) <= 120 and made.name.startswith("貓" * 30)


@pytest.mark.parametrize("text, name", [("7", "7"), ("2025-01-31", "2025-01-31"), ("'007'", "007")])
def test_a_run_name_may_look_like_a_number_or_a_date(text, name, yaml_file):
    assert TrainingConfig.from_file(yaml_file(f"run_name: {text}")).run_name == name


def test_all_faults_come_at_once():
    wrong = {"epochz": 3, "batch_size": 0, "learning_rate": "fast", "momentum": 2, "run_name": "a/b"}
    for make in (lambda: TrainingConfig(**wrong), lambda: TrainingConfig.from_settings(wrong),
                 lambda: TrainingConfig.from_preset("demo", **wrong), lambda: TrainingConfig().replace(**wrong)):
        faults = "\n".join(faults_of(make))
        assert all(name in faults for name in ("epochz", "batch_size", "learning_rate", "momentum")), faults
    faults = "\n".join(faults_of(TrainingConfig.from_settings, {**wrong, "preset": "demoo"}))
    assert "did you mean 'demo'" in faults and "epochz" in faults and "batch_size" in faults


def test_a_file_is_named_with_all_its_faults(yaml_file):
    path = yaml_file("epochz: 3\nbatch_size: 0\n")
    with pytest.raises(ConfigError, match="mine.yaml") as caught:
        TrainingConfig.from_file(path)
    assert len(caught.value.faults) == 2


def test_settings_that_contradict_each_other_are_named_together():
    faults = faults_of(TrainingConfig, widths=[8, 16], precision="fp16", mixed_precision=False, lr_scheduler="step",
                       lr_milestones=[200], run_name="../up", drive=True, checkpoint_dir="x", batch_size=0)
    assert [fault.split("=")[0] for fault in faults] == ["batch_size", "widths", "precision", "lr_milestones",
                                                         "run_name", "checkpoint_dir"]


def test_no_contradiction_is_claimed_of_a_setting_that_is_wrong_itself():
    assert len(faults_of(TrainingConfig, epochs="x", lr_scheduler="step", lr_milestones=[200])) == 1
    assert len(faults_of(TrainingConfig, model="Unet", widths=[8, 16])) == 1
    fault, = faults_of(TrainingConfig, model="FlipCNN", widths=[8, 15, 16])
    assert "widths=[8, 15, 16]" in fault and "make them even" in fault


@pytest.mark.parametrize("milestones", [[], [30, 20], [20, 20], [150]])
def test_step_schedule_needs_rising_milestones_within_the_epochs(milestones):
    assert "lr_milestones" in faults_of(TrainingConfig, lr_scheduler="step", lr_milestones=milestones)[0]


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", "a:b", " "])
def test_run_name_must_be_a_plain_folder_name(name):
    assert "plain folder name" in faults_of(TrainingConfig, run_name=name)[0]


# A configuration's own life --------------------------------------------------------------------------------

def test_name_and_run_dir_tell_what_is_special():
    assert TrainingConfig().name == "reference"
    assert TrainingConfig.from_preset("quick", epochs=3, seed=7).name == "quick-seed=7-epochs=3"
    assert TrainingConfig(widths=[8, 16, 32, 64]).name == "reference-widths=8x16x32x64"
    assert TrainingConfig.from_preset("quick", data_dir="/elsewhere", progress="none").name == "quick"
    many = {"label_smoothing": 0.1, "augmentation": "strong", "crop_mode": "constant", "batch_size": 256, "epochs": 30,
            "learning_rate": 0.05}
    long, other = (TrainingConfig.from_preset("quick", **many, ema_decay=decay).name for decay in (0.9, 0.98))
    assert long != other and max(len(long), len(other)) <= 120 and long.startswith("quick-")
    assert TrainingConfig(run_name="mine", runs_dir="out").run_dir.as_posix() == "out/mine"
    assert "~" not in TrainingConfig(runs_dir="~/out").run_dir.as_posix()


def test_training_settings_leave_out_what_does_not_shape_the_weights():
    settings = TrainingConfig().training_settings()
    assert {"seed", "epochs", "batch_size", "learning_rate", "mixed_precision", "val_size", "widths"} <= set(settings)
    assert not {"run_name", "runs_dir", "data_dir", "device", "checkpoint_dir", "checkpoint_interval", "resume",
                "drive", "progress", "flip_tta", "eval_batch_size", "preset"} & set(settings)


def test_replace_changes_one_thing_checks_it_and_can_unset():
    before = TrainingConfig.from_preset("demo")
    after = before.replace(epochs=7)
    assert after.to_dict() == {**before.to_dict(), "epochs": 7} and before.epochs != 7
    assert before.replace(widths=None).widths is None
    assert "at least 1" in faults_of(before.replace, epochs=0)[0]


def test_to_dict_survives_yaml_and_gives_the_same_configuration():
    before = TrainingConfig.from_preset("quick", lr_milestones=[2, 4], epochs=9)
    text = yaml.safe_dump(before.to_dict())
    assert TrainingConfig.from_settings(yaml.safe_load(text)) == before


def test_a_configuration_is_frozen_copied_and_pickled():
    made = TrainingConfig(epochs=3)
    with pytest.raises(AttributeError):
        made.epochs = 4
    assert copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == made


def test_effective_batch_size_counts_accumulation():
    assert TrainingConfig(batch_size=64, gradient_accumulation_steps=4).effective_batch_size == 256


# Files -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, says", [("- epochs\n- 3\n", "setting: value"), ("epochs: [3\n", "YAML"),
                                        ("just text", "setting: value"), ("\x00", "YAML")])
def test_a_file_that_is_no_mapping_is_named(text, says, yaml_file):
    with pytest.raises(ConfigError, match="mine.yaml") as caught:
        read_settings(yaml_file(text))
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["run_name: 2025-02-30\n", "seed: 0x_\n", "a: &a [1, 1]\nb: [*a, *a]\n"])
def test_odd_yaml_is_one_fault_that_names_the_file_and_the_line(text, yaml_file):
    path = yaml_file("epochs: 3\n" + text)
    for read in (read_settings, TrainingConfig.from_file, lambda path: read_arguments(["--config", str(path)])):
        with pytest.raises(ConfigError, match=r"mine\.yaml") as caught:
            read(path)
        assert len(caught.value.faults) == 1 and "line" in caught.value.faults[0]


def test_a_file_that_is_not_there_or_is_a_folder_is_named(tmp_path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError, match=path.name):
            TrainingConfig.from_file(path)


def test_an_empty_file_means_the_defaults(yaml_file):
    assert TrainingConfig.from_file(yaml_file("# nothing\n")) == TrainingConfig.from_settings(default_settings())


# The same file by papermill -f and by train.py --config ----------------------------------------------------

DECLARED = ("# Parameters: None means as the preset says\npreset = None\nepochs = None\nbatch_size = None\n"
            "learning_rate = None\nmixed_precision = None\naugmentation = None\nseed = None\nrun_name = None\n")


@pytest.mark.parametrize("text", [
    *[(config.PRESET_DIR / f"{name}.yaml").read_text() for name in preset_names()],
    "epochs: 30\nlr: 0.2\n",
    "preset: reference\nweight_decay: 1e-3\nlearning_rate: 1\nmixed_precision: false\naugmentation: strong\n",
    "preset: demo\nmodel: FlipCNN\nwidths: [8, 16, 32]\ncutout_size: null\nmin_delta: 0\nwarmup_epochs: 1\n",
    "run_name: 2025-01-31\nseed: 7\nresume: never\nlr_milestones: [2, 3]\nlr_scheduler: step\n"])
def test_papermill_and_the_command_line_read_a_file_alike(text, yaml_file):
    path = yaml_file(text)
    by_papermill = config_of_notebook(DECLARED, injected(read_yaml_file(str(path))))
    assert by_papermill == read_arguments(["--config", str(path)]) == TrainingConfig.from_file(path)


def test_papermill_options_and_command_line_options_mean_the_same():
    by_papermill = config_of_notebook(DECLARED, injected({"epochs": 30, "learning_rate": 0.2, "run_name": 7,
                                                          "mixed_precision": False, "model": "FlipCNN",
                                                          "widths": [8, 16, 32]}))
    assert by_papermill == read_arguments("--epochs 30 --lr 0.2 --run-name 7 --no-mixed-precision --model FlipCNN "
                                          "--widths 8 16 32".split())


# Every setting that is no text, as papermill -p, the command line, the grid and a file bring it.
@pytest.mark.parametrize("name, text, value", [
    ("mixed_precision", "false", False), ("mixed_precision", "True", True), ("download", "no", False),
    ("widths", "[8,16,32]", (8, 16, 32)), ("widths", "[8, 16, 32]", (8, 16, 32)),
    ("lr_milestones", "[5]", (5,)), ("epochs", "30", 30), ("epochs", "3e1", 30), ("learning_rate", "1e-3", 1e-3),
    ("weight_decay", ".001", 1e-3), ("cutout_size", "null", None), ("cutout_size", "8", 8)])
def test_the_same_value_by_every_way_in(name, text, value, yaml_file):
    base = {"preset": "quick", "model": "FlipCNN", "epochs": 90}
    given = {"false": "false", "True": True, "30": 30, "3e1": 30.0, "1e-3": 1e-3, ".001": 1e-3, "8": 8}.get(text, text)
    option = f"--{name.replace('_', '-')}"
    ways = {
        "papermill -p": lambda: config_of_notebook(DECLARED, injected({**base, name: given})),
        "command line": lambda: read_arguments(["--preset", "quick", "--model", "FlipCNN", "--epochs", "90", option,
                                                *(text.split() if "[" in text else [text])]),
        "quoted": lambda: TrainingConfig.from_settings({**base, name: text}),
        "grid": lambda: TrainingConfig.from_settings({**base, name: split_values(text)[0]}),
        "file": lambda: TrainingConfig.from_file(yaml_file(f"{name}: {text}\n"), **{
            other: base[other] for other in base if other != name})}
    expected = TrainingConfig.from_settings(base | {name: value})
    assert getattr(expected, name) == (TrainingConfig.from_settings(base).cutout_size if value is None else value)
    for way, make in ways.items():
        assert make() == expected, way


@pytest.mark.parametrize("name, text, form", [
    ("mixed_precision", "maybe", "true or false"), ("widths", "8;16;32", "[64, 192, 256]"),
    ("widths", "[8, 16", "[64, 192, 256]"), ("widths", "64x192x256", "[64, 192, 256]"), ("epochs", "ten", "whole")])
def test_text_that_means_no_value_is_answered_with_the_form_that_every_way_takes(name, text, form):
    for make in (lambda: config_of_notebook(DECLARED, injected({name: text})),
                 lambda: read_arguments([f"--{name.replace('_', '-')}", text]),
                 lambda: TrainingConfig.from_settings({name: text})):
        assert form in faults_of(make)[0]


# The notebook ----------------------------------------------------------------------------------------------

def test_a_notebook_left_alone_means_the_default_file():
    assert config_of_notebook(DECLARED) == TrainingConfig.from_settings(default_settings())


def test_other_cells_and_their_variables_are_no_settings():
    made = config_of_notebook("epoch = 3\nlearnig_rate = 1", DECLARED, "batchsize = 7", injected({"epochs": 4}))
    assert made == TrainingConfig.from_settings({**default_settings(), "epochs": 4})


def test_every_form_of_assignment_in_a_parameter_cell_is_seen():
    made = config_of_notebook("# Parameters\nepochs: int = 3\nbatch_size, lr = 16, 0.5\nseed = 1\nseed += 4\n")
    assert (made.epochs, made.batch_size, made.learning_rate, made.seed) == (3, 16, 0.5, 5)


def test_a_parameter_cell_is_known_by_its_comment_wherever_it_stands():
    for before in ("label_smoothing = 0.3\n", "# mine\n!pip list\n", "\n"):
        made = config_of_notebook(DECLARED, before + DECLARED + "epochs = 3\n", injected({"batch_size": 16}))
        assert (made.epochs, made.batch_size) == (3, 16)
    assert config_of_notebook("label_smoothing = 0.3\n" + DECLARED).label_smoothing == 0.3


def test_a_corrected_cell_that_is_run_again_is_not_held_to_its_old_text():
    declared, put_in = DECLARED + "learnig_rate = 0.2\n", injected({"learnig_rate": 0.2})
    with pytest.raises(ConfigError, match="learnig_rate"):
        config_of_notebook(declared)
    assert config_of_notebook(declared, DECLARED + "lr = 0.2\n").learning_rate == 0.2
    with pytest.raises(ConfigError, match="learnig_rate"):
        config_of_notebook(DECLARED, put_in)
    assert config_of_notebook(DECLARED, put_in, injected({"learning_rate": 0.2})).learning_rate == 0.2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_cell_with_a_syntax_error_has_not_run_and_does_not_count(order):
    cells = (DECLARED + "epochs = 3\n", DECLARED + "epochs = \n")
    assert config_of_notebook(*(cells[index] for index in order)).epochs == 3


def test_a_line_taken_out_of_a_cell_is_out():
    changed = config_of_notebook(DECLARED + "patience = 3\n", DECLARED)
    assert changed == config_of_notebook(DECLARED)


def test_a_misspelt_injected_name_is_found_however_many_are_injected():
    everything = {"preset": "demo", "epochs": 3, "batch_size": 16, "learning_rate": 0.1, "mixed_precision": True,
                  "augmentation": "light", "seed": 1, "run_name": "x", "weight_decy": 0.1}
    with pytest.raises(ConfigError, match="did you mean 'weight_decay'"):
        config_of_notebook(DECLARED, injected(everything))


def test_without_history_variables_named_like_settings_are_taken():
    """nbval runs cells without keeping their text."""
    settings = notebook_settings({"In": [""], "preset": "demo", "epochs": 3, "lr": None, "someone": 4, "seed": None})
    assert settings == {"preset": "demo", "epochs": 3}


def test_a_module_of_a_settings_name_is_told():
    """Colab's button that mounts Google Drive inserts `from google.colab import drive`."""
    with pytest.raises(ConfigError, match="drive: is a module now.*run the parameters again"):
        config_of_notebook("# Parameters\ndrive = None", "import json as drive")


@pytest.mark.parametrize("name", ["run_name", "checkpoint_dir"])
def test_none_as_text_is_no_name(name):
    with pytest.raises(ConfigError, match=f"{name}='None': is the text 'None'; leave the setting out"):
        TrainingConfig.from_settings({name: "None"})


# What has no effect ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("preset, settings, idle", [
    ("reference", {"patience": 3, "val_size": 0}, {"patience": "val_size above 0"}),
    ("reference", {"min_delta": 0.1, "val_size": 0}, {"min_delta": "val_size above 0", "patience": "val_size above 0"}),
    ("reference", {"patience": 0, "val_size": 0}, {}), ("reference", {"val_size": 0}, {"patience": "val_size above 0"}),
    ("fast", {"mixup_alpha": 0.2},
     {"self_distillation": "mix_probability below 1, as mixed images are not distilled"}),
    ("fast", {"epochs": 3}, {"self_distillation": "epochs of at least 4"}),
    ("demo", {"data_dir": "mine"}, {"data_dir": "another data_source than 'drawn'"}),
    ("quick", {"data_dir": "mine", "download": False}, {}),
    ("reference", {"augmentation": "none", "crop_mode": "reflect", "flip": "alternating"},
     {"crop_mode": "crop_padding above 0", "flip": "another augmentation_strength than 'none'"}),
    ("reference", {"crop_padding": 0, "crop_mode": "reflect"}, {"crop_mode": "crop_padding above 0"}),
    ("reference", {"self_distillation": 0.5, "epochs": 3}, {"self_distillation": "epochs of at least 4"}),
    ("reference", {"self_distillation": 0.5, "mixup_alpha": 0.4},
     {"self_distillation": "mix_probability below 1, as mixed images are not distilled"}),
    ("reference", {"self_distillation": 0.5, "mixup_alpha": 0.4, "mix_probability": 0.5}, {}),
    ("reference", {"cutmix_alpha": 0.4, "mix_probability": 0}, {"cutmix_alpha": "mix_probability above 0"}),
    ("reference", {"start_image_size": 16, "image_growth_fraction": 0},
     {"start_image_size": "image_growth_fraction above 0"}),
    ("fast", {"dropout_rate": 0.5, "flip": "random"}, {"dropout_rate": "model='CIFAR100CNN'",
                                                       "flip": "model='CIFAR100CNN'"}),
    ("quick", {"mix_probability": 0.5}, {"mix_probability": "mixup_alpha or cutmix_alpha above 0"}),
    ("quick", {"mix_probability": 0.5, "cutmix_alpha": 1.0}, {}),
    *[(name, {}, {}) for name in preset_names()]])
def test_changed_settings_without_effect_are_told_with_what_they_need(preset, settings, idle):
    assert TrainingConfig.from_preset(preset, **settings).idle_settings() == idle


def test_a_run_keeps_its_name_while_its_preset_is_edited(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.config.PRESET_DIR", tmp_path)
    preset = tmp_path / "mine.yaml"
    preset.write_text("preset: mine\nepochs: 3\n")
    config = TrainingConfig.from_preset("mine", seed=7)
    assert config.name == "mine-seed=7"
    preset.write_text("preset: mine\nepochs: [\n")
    assert config.name == "mine-seed=7"
