"""The rules of docs/ARCHITECTURE.md: who may import whom, no private names across modules."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*ROOT.glob("helpers/**/*.py"), ROOT / "cifar100_pipeline.py", ROOT / "train.py"])
# Of torch and pyzmq, used on purpose.
FOREIGN = ("_foreach_", "_sleep", "_schema", "_recv_callback", "_python_dispatch")


def name_of(path: Path) -> str:
    """helpers/lesson/plots/theme.py: helpers.lesson.plots.theme."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def imports_of(module: str) -> set[str]:
    """The project's modules that a module imports."""
    package = module if (ROOT / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[:len(package.split(".")) + 1 - node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return found & set(MODULES) - {module, package}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "helpers" and len(parts) > 1 and parts[1] in ("lesson", "tools", "layers") else (
        "core" if parts[0] == "helpers" else "face")


@pytest.mark.parametrize("module", MODULES)
def test_arrows_go_down_only(module):
    allowed = {"layers": {"layers"}, "core": {"core", "layers"}, "lesson": {"lesson", "core", "layers"},
               "face": {"face", "lesson", "core", "layers"},
               "tools": {"tools", "face", "lesson", "core", "layers"}}[room_of(module)]
    assert {room_of(other) for other in imports_of(module)} <= allowed


def test_no_module_imports_itself_by_a_detour():
    graphlib.TopologicalSorter({module: imports_of(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_no_private_name_crosses_a_module(module):
    crossing = []
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.ImportFrom):
            crossing += [alias.name for alias in node.names if alias.name.startswith("_")]
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in ("self", "cls"):
            crossing += [node.attr] if node.attr.startswith("_") and not node.attr.startswith("__") else []
    own = {node.name for node in ast.walk(MODULES[module]) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert [name for name in crossing if name not in own and not name.startswith(FOREIGN)] == []


@pytest.mark.parametrize("module", MODULES)
def test_only_widgets_need_a_notebook(module):
    names = {alias.name.partition(".")[0] for node in ast.walk(MODULES[module]) if isinstance(node, ast.Import)
             for alias in node.names} | {(node.module or "").partition(".")[0] for node in ast.walk(MODULES[module])
                                         if isinstance(node, ast.ImportFrom)}
    assert module == "helpers.lesson.widgets" or not names & {"IPython", "ipywidgets"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= (620 if path.name == "cifar100_pipeline.py" else 460)


def test_the_architecture_page_names_every_file():
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    missing = [path.relative_to(ROOT).as_posix() for path in SOURCES if path.name != "__init__.py"
               and path.parent.name != "plots" and f"`{path.name}`" not in page]
    assert missing == []
