"""The settings that the parameter cells of a running notebook hold."""

from __future__ import annotations

import ast

from .config import KNOWN_NAMES, layered_settings


def notebook_settings(namespace: dict) -> dict:
    """The settings a notebook's parameter cells hold, misspelt names included.

    papermill puts what it is given, unknown names too, into a cell of its own below the one tagged
    `parameters`; both have a comment `# Parameters`, papermill's with nothing else in that line. Reading
    the names that these cells assign (their text is in IPython's `In`) finds a misspelt one without mistaking
    a user's own variables for settings. Of each kind the cell run last counts, so that a line taken out of it is
    out. Where cells leave no text (nbval keeps no history) the variables named like settings are taken.
    `namespace` is the notebook's `globals()`.
    """
    last_run = {}
    for source in namespace.get("In", []):
        marks = [line.rstrip() for line in source.splitlines() if line.startswith("# Parameters")]
        assigned = _assigned_names(source) if marks else None
        if assigned is not None:
            last_run[marks[0] == "# Parameters"] = assigned
    names = sorted(set().union(*last_run.values())) if last_run else KNOWN_NAMES & set(namespace)
    return layered_settings({name: namespace.get(name) for name in names})


def _assigned_names(source: str) -> set[str] | None:
    """The names that the statements of a cell assign; None for a cell that is no Python and so did not run."""
    python = "\n".join(line for line in source.splitlines() if not line.startswith(("%", "!")))      # no magics
    try:
        statements = ast.parse(python).body
    except SyntaxError:
        return None
    targets = [target for node in statements for target in getattr(node, "targets", [getattr(node, "target", None)])
               if target is not None]
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
