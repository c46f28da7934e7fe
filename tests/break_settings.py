"""Odd settings by every way in: each is refused in short lines that name it, or can be used. See campaigns.py."""

import datetime
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import yaml
from papermill.translators import PythonTranslator

from helpers.checks import folder_name_fault
from helpers.config import ALIASES, HINTS, SETTINGS, ConfigError, TrainingConfig, preset_names
from helpers.notebook_settings import notebook_settings
from helpers.retired import RETIRED
from helpers.schedule import Schedule
from helpers.text import shown
from helpers.tools.grid import split_values
from helpers.trainer import TrainingDiverged
from train import read_arguments
from training import make_trainer

ODD = [None, True, False, 0, 1, -1, 2, 7, 2**31, 10**19, 10**400, 10**5000, 0.5, -0.0, 1e-9, 5e-324, 1e308, 1.7e308,
       math.nan, math.inf, "", " ", "None", "null", "~", "true", "No", "1e-3", "0x_", "0x10", "1_000", "9" * 5000,
       "nan", "[8,16,32]", "8 16 32 64", "[8, 16", "(1,)", "[]", "a/b", "..", ".", "CON", "$\\foo$", "$^{$", "貓",
       "แมว", "😀", "\0", "a\nb", "\ud800", "\x1b[31m", "x" * 255, "x" * 256, "貓" * 86, "x" * 10**5, "cosine", "auto",
       "2025-01-31", [], [8], [8, 16, 32], [8, 16, 32, 64], [[8]], ["8", "x"], (1, None), {}, {"a": 1}, {1, 2},
       b"text", list, datetime.date(2025, 1, 31), Path("here"), numpy.float32(0.5), numpy.int64(3), numpy.bool_(True),
       numpy.str_("x"), numpy.array([1, 2]), numpy.array(["a"]), numpy.zeros((2, 2))]
ODD_NAMES = [*RETIRED, "extends", "learnig_rate", "", "x" * 300, "貓", "$", "\0", "epochs "]
YAML_LINES = ["{name}: {value}", "{name}: [{value}, {value}]", "{name}: &a {value}", "{name}: *a",
              "{name}: !!int {value}", "{name}: '{value}'", "- {name}", "{name}",
              "{name}: {value}\n{name}: {value}", "? {name}\n: {value}",
              "{name}: |\n  {value}", "%{name}", "{name}:\n\t- {value}", "{name}: !!python/name:{value}"]


def odd_settings(draw: random.Random) -> dict:
    """One to six settings; many values are allowed ones or next to the ends of what is allowed."""
    names = draw.sample([*SETTINGS, *ALIASES], draw.randint(1, 5)) + draw.sample(ODD_NAMES, draw.random() < 0.15)
    return {name: _value(draw, ALIASES.get(name, name)) for name in names}


def _value(draw: random.Random, name: str):
    if name not in SETTINGS or draw.random() < 0.4:
        return draw.choice(ODD)
    rules = SETTINGS[name].metadata
    ends = [rules[rule] for rule in ("low", "above", "high", "below", "least") if rules[rule] is not None]
    fine = [SETTINGS[name].default, *(rules["choices"] or ()), *ends, *(math.nextafter(end, math.inf) for end in ends),
            *(end - 1 for end in ends), *(preset_names() if name == "preset" else ())]
    value = draw.choice(fine)
    return [value] * draw.randint(1, 4) if "tuple" in str(HINTS[name]) and not isinstance(value, tuple) else value


def by_a_way_in(draw: random.Random, settings: dict, folder: Path) -> tuple[str, object]:
    """(the way, a function that reads the settings in this way)."""
    texts = {name: _text(value) for name, value in settings.items()}
    plain = {name: value for name, value in settings.items() if name.isidentifier()
             and isinstance(value, (str, bool, int, float, list, type(None))) and shown(value)[0] != "<"}

    def by_file():
        lines = [draw.choice(YAML_LINES).format(name=name, value=text) for name, text in texts.items()]
        (folder / "odd.yaml").write_bytes("\n".join(lines).encode(draw.choice(["utf-8", "utf-16"]), "surrogatepass"))
        return TrainingConfig.from_file(folder / "odd.yaml")

    def by_notebook():
        source = PythonTranslator.codify(plain)
        exec(source, namespace := {})
        return TrainingConfig.from_settings(notebook_settings(namespace | {"In": ["", source]}))

    ways = {"constructor": lambda: TrainingConfig(**settings),
            "mapping": lambda: TrainingConfig.from_settings(settings),
            "preset": lambda: TrainingConfig.from_preset("quick", **settings),
            "replace": lambda: TrainingConfig().replace(**settings), "file": by_file, "notebook": by_notebook,
            "command line": lambda: read_arguments([
                part for name, text in texts.items() for part in (f"--{name.replace('_', '-')}", *text.split(" "))]),
            "grid": lambda: TrainingConfig.from_settings({name: split_values(text)[0] for name, text in texts.items()})}
    return draw.choice(list(ways.items()))


def _text(value) -> str:
    return shown(value) if shown(value)[0] == "<" else str(value)


def check(draw: random.Random, folder: Path, train: float) -> str:
    """Read one odd configuration: "refused", "accepted" or "trained". Raises AssertionError if it is neither."""
    settings = odd_settings(draw)
    way, read = by_a_way_in(draw, settings, folder)
    start = time.perf_counter()
    try:
        config = read()
    except ConfigError as error:
        assert all("\n" not in fault and len(fault) < 1000 for fault in error.faults), (way, settings, error.faults)
        return "refused"
    except SystemExit as error:         # argparse, of an option without its value
        assert way == "command line" and error.code in (0, 2), (way, settings)
        return "refused"
    except ValueError as error:         # split_values
        assert way == "grid" and len(str(error)) < 1000, (way, settings, error)
        return "refused"
    finally:
        assert time.perf_counter() - start < 20, (way, settings)
    can_be_used(config)
    return "trained" if draw.random() < train and a_step(config, folder) else "accepted"


def can_be_used(config: TrainingConfig) -> None:
    """Its name is a folder's, it survives JSON and YAML, and its schedule is finite."""
    assert not folder_name_fault(config.name) and len(config.name.encode()) <= 255, config.name
    for there_and_back in (lambda values: json.loads(json.dumps(values, allow_nan=False)),
                           lambda values: yaml.safe_load(yaml.safe_dump(values))):
        again = TrainingConfig(**there_and_back(config.to_dict()))
        assert again == config, (again, config)
    config.idle_settings()
    schedule = Schedule(config, 1000)
    for step in (0, schedule.total_steps // 3, schedule.total_steps - 1):
        assert math.isfinite(schedule.learning_rate(step)) and schedule.learning_rate(step) >= 0, config
        assert schedule.image_size(step) in range(12, 33, 2) and len(schedule.batches(step)), config


def a_step(config: TrainingConfig, folder: Path) -> bool:
    """Train an epoch of the configuration in small; False where the small data do not suit it."""
    small = {"num_classes": 4, "widths": (8, 16, 16, 16) if config.model == "CIFAR100CNN" else (8, 8, 16), "epochs": 1,
             "batch_size": min(config.batch_size, 40), "val_size": min(config.val_size, 16), "device": "cpu",
             "mixed_precision": False, "precision": "auto", "compile": False, "resume": "never", "progress": "none",
             "lr_scheduler": "cosine", "train_size": None if config.train_size is None else min(config.train_size, 40)}
    try:
        make_trainer(folder / "checkpoints", config.to_dict() | small).fit()
    except TrainingDiverged as error:
        assert "learning_rate" in str(error)
    except ValueError as error:         # val_size of too few images, and the like: told by name
        assert any(name in str(error) for name in SETTINGS), error
        return False
    return True


def settings(folder: Path, draw: random.Random, count: int, train: float = 0.02) -> Iterator[tuple[str, bool]]:
    """Read odd settings; a share of those that are accepted also trains a step, in small."""
    for _ in range(count):
        try:
            yield check(draw, folder, train), True
        except Exception as error:      # what the campaign looks for
            yield f"{type(error).__name__}: {error}"[:1000], False
