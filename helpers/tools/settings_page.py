"""Writes docs/SETTINGS.md from TrainingConfig: `python -m helpers.tools.settings_page`."""

from __future__ import annotations

import sys
from pathlib import Path

from ..config import ALIASES, EVERYDAY, HINTS, SETTINGS, TrainingConfig, by_group
from ..files import write_text

PRESETS = ("demo", "quick", "fast", "thorough", "reference")      # a user's own do not change the page
PAGE = Path(__file__).resolve().parents[2] / "docs" / "SETTINGS.md"


def settings_page() -> str:
    """The page in Markdown: a table per group of settings, with their values in each preset."""
    presets = [TrainingConfig.from_preset(name) for name in PRESETS]
    lines = ["# Settings", "",
             "Notebook, papermill, YAML files, `train.py` (with `-` for `_`) and Python take the same names. "
             f"{len(SETTINGS)} in all; those in bold are commonly changed. Preset columns are empty where the default "
             "holds; – is `None`, not set. Where no preset is named, notebook, papermill and `train.py` start from "
             "`fast`, `TrainingConfig` in Python from the defaults. `make docs` makes this page from "
             "`helpers/config.py`.", "",
             "Short names: " + ", ".join(f"`{short}` for `{name}`" for short, name in ALIASES.items()) + ".", ""]
    for title, names in by_group().items():
        columns = " | ".join(f"`{preset.preset}`" for preset in presets)
        lines += [f"## {title}", "", f"| setting | type, allowed values | default | {columns} | what it does |",
                  "|---" * (4 + len(presets)) + "|", *[_row(name, presets) for name in names], ""]
    return "\n".join(lines)


def _row(name: str, presets: list[TrainingConfig]) -> str:
    spec = SETTINGS[name]
    label = f"**`{name}`**" if name in EVERYDAY else f"`{name}`"
    values = ["" if name == "preset" or getattr(preset, name) == spec.default else _code(getattr(preset, name))
              for preset in presets]
    cells = [label, _allowed(name), _code(spec.default), *values, spec.metadata["help"]]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _allowed(name: str) -> str:
    """The type of a setting and its bounds or choices."""
    rules, hint = SETTINGS[name].metadata, HINTS[name]
    if rules["choices"]:
        return ", ".join(f"`{choice}`" for choice in rules["choices"])
    kind = next(words for kind, words in (("tuple", "whole numbers"), ("bool", "true, false"), ("int", "whole number"),
                                          ("float", "number"), ("str", "text")) if kind in str(hint))
    bounds = [f"{sign} {rules[rule]}" for rule, sign in (("low", "≥"), ("above", ">"), ("high", "≤"), ("below", "<"))
              if rules[rule] is not None]
    bounds[:1] = [f"0 or ≥ {rules['least']}"] if rules["least"] is not None else bounds[:1]
    return " ".join([kind, " and ".join(bounds)]).strip()


def _code(value) -> str:
    if value is None:
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else list(value) if isinstance(value, tuple) else value}`"


def main() -> int:
    print("wrote", write_text(settings_page(), PAGE).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
