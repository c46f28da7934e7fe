"""Commands to run from a shell: `python -m helpers.tools.NAME`."""

from pathlib import Path

FIGURES = Path(__file__).resolve().parents[2] / "figures"       # measurements and drawings of the commands
