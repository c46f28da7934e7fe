"""What is run from a shell: `python -m helpers.tools.NAME`."""

from pathlib import Path

FIGURES = Path(__file__).resolve().parent.parent.parent / "figures"      # what the commands measure and draw
