"""requirements: every package that is imported stands in requirements.txt, and what is missing is found."""

import ast
import sys
from pathlib import Path

from helpers import requirements
from helpers.requirements import missing_requirements

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"PIL": "pillow", "yaml": "pyyaml"}     # of packages whose modules are called otherwise
COME_ALONG = {"IPython": "ipywidgets", "triton": "torch"}
OPTIONAL = {"pyarrow", "safetensors"}       # asked for where a file needs them
OWN = {"helpers", "cifar100_pipeline", "google"}    # google.colab is there on Colab only


def test_every_imported_package_stands_in_the_requirements():
    listed = {line.split(">")[0] for line in requirements.REQUIREMENTS.read_text().splitlines()}
    for path in [*ROOT.glob("helpers/**/*.py"), ROOT / "cifar100_pipeline.py", ROOT / "train.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                     [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
            for name in {name.partition(".")[0] for name in names} - OWN - OPTIONAL - set(sys.stdlib_module_names):
                assert NAMES.get(name, COME_ALONG.get(name, name)) in listed, f"{path.name} imports {name}"


def test_nothing_is_missing_here():
    assert missing_requirements() == []


def test_only_what_the_notebook_needs_is_installed_and_torch_stays(tmp_path, monkeypatch):
    path = tmp_path / "requirements.txt"
    path.write_text("# head\ntorch>=99\nno-such-package>=1  # why\nno-such-other; sys_platform == 'x'\n\nno-tool\n")
    monkeypatch.setattr(requirements, "REQUIREMENTS", path)
    assert missing_requirements() == ["no-such-package>=1"]
