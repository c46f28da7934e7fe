"""Finds missing packages before they are imported; needs only the standard library."""

from __future__ import annotations

import re
from importlib import util
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"


def missing_requirements() -> list[str]:
    """The lines, for pip, of requirements.txt's first part whose package is not installed. Older versions may stay, as
    Colab and Kaggle bring their own torch. The second part, papermill and nbval, runs and tests the notebook from
    outside."""
    first_part = REQUIREMENTS.read_text(encoding="utf-8-sig").split("\n\n")[0]
    lines = [line.split("#")[0].strip() for line in first_part.splitlines()]
    return [line for line in lines if line and ";" not in line and not _is_installed(re.match(r"[\w.-]+", line)[0])]


def _is_installed(name: str) -> bool:
    return util.find_spec({"pillow": "PIL", "pyyaml": "yaml"}.get(name, name)) is not None
