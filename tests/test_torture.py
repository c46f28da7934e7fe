"""torture: the campaigns, in small, and that they would tell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.tools import torture

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_campaigns_in_small_find_nothing_and_say_so(tmp_path):
    out = tmp_path / "torture.json"
    command = [sys.executable, "-m", "helpers.tools.torture", "flips", "kills", "--share", "0.005", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert sum(report["flips"]["outcomes"].values()) == report["flips"]["tries"] == 10
    assert report["kills"]["outcomes"] == {"killed": 1, "ended as if never killed": 1}
    assert report["flips"]["wrong"] == report["kills"]["wrong"] == 0
    assert "ended as if never killed" in out.with_suffix(".txt").read_text()


def test_a_wrong_outcome_is_counted_and_told_by_the_status(tmp_path, monkeypatch):
    monkeypatch.setitem(torture.CAMPAIGNS, "flips", (lambda *_: iter([("believed", False), ("refused", True)]), 2))
    assert torture.main(["flips", "--out", str(tmp_path / "out.json")]) == 1
    report = json.loads((tmp_path / "out.json").read_text())["flips"]
    assert report["wrong"] == 1 and report["outcomes"] == {"believed": 1, "refused": 1}


@pytest.mark.parametrize("other, same", [(1.0, True), (1.0000001, False)])
def test_one_bit_is_a_difference(other, same):
    first, second = ({"weights": {"a": torch.tensor([value, 2.0])}, "step": 3} for value in (1.0, other))
    assert torture.is_same(first, second) is same and not torture.is_same(first, first | {"step": 4})
