"""The settings in the parameter cells of a running notebook."""

from __future__ import annotations

import ast
from types import ModuleType

from .config import KNOWN_NAMES, ConfigError, layered_settings


def notebook_settings(namespace: dict) -> dict:
    """The settings of a notebook whose `globals()` are `namespace`, misspelt names included.

    papermill writes what it is given, unknown names too, to a cell of its own below the one tagged `parameters`. Both
    have a comment `# Parameters`, papermill's with nothing else in that line. The names these cells assign, read from
    IPython's `In`, include misspelt settings but not a user's own variables. Of each kind the cell run last counts, so
    deleted lines have no effect. Without a history (nbval) the variables named like settings count. Raises ConfigError.
    """
    last_run = {}
    for source in namespace.get("In", []):
        marks = [line.rstrip() for line in source.splitlines() if line.startswith("# Parameters")]
        if marks and (assigned := _assigned_names(source)) is not None:
            last_run[marks[0] == "# Parameters"] = assigned
    names = sorted(set().union(*last_run.values())) if last_run else KNOWN_NAMES & set(namespace)
    # Colab's button that mounts Google Drive inserts `from google.colab import drive`.
    modules = [name for name in names if isinstance(namespace.get(name), ModuleType)]
    if modules:
        raise ConfigError([f"{name}: is a module now, as a cell has imported one of this name; run the parameters "
                           "again" for name in modules], "the notebook's parameters")
    return layered_settings({name: namespace.get(name) for name in names})


def _assigned_names(source: str) -> set[str] | None:
    """The names that a cell's statements assign; None for a cell that is not valid Python, which did not run."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return None
    targets = [target for node in statements for target in getattr(node, "targets", [getattr(node, "target", None)])
               if target is not None]
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
