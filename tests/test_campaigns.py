"""Campaigns: in small they find nothing, and they would tell."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import campaigns
import pytest
import torch
from break_pictures import pictures
from break_runs import is_same
from break_settings import settings

TESTS = Path(__file__).resolve().parent


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_trainings_campaigns_find_nothing_and_say_so(tmp_path):
    out = tmp_path / "campaigns.json"
    command = [sys.executable, TESTS / "campaigns.py", "flips", "kills", "--share", "0.005", "--out", out]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert sum(report["flips"]["outcomes"].values()) == report["flips"]["tries"] == 10
    kills = report["kills"]["outcomes"]
    assert kills["killed"] == 1 and set(kills) == {"killed", "ended as if never killed"}
    assert report["flips"]["wrong"] == report["kills"]["wrong"] == 0
    assert "ended as if never killed" in out.with_suffix(".txt").read_text()


@pytest.mark.filterwarnings("ignore")       # Pillow's
def test_damaged_pictures_are_read_or_refused_in_one_line(tmp_path):
    found = Counter(pictures(tmp_path, random.Random(1), 60))
    assert set(found) == {("read", True), ("refused", True)} and found["refused", True] > 5


def test_odd_settings_are_refused_by_name_or_can_be_used(tmp_path):
    found = Counter(settings(tmp_path, random.Random(3), 120, train=0.1))
    assert set(found) == {("refused", True), ("accepted", True), ("trained", True)} and found["refused", True] > 60


def test_a_wrong_outcome_is_counted_and_told_by_the_status(tmp_path, monkeypatch):
    monkeypatch.setitem(campaigns.CAMPAIGNS, "flips", (lambda *_: iter([("believed", False), ("refused", True)]), 2))
    assert campaigns.main(["flips", "--out", str(tmp_path / "out.json")]) == 1
    report = json.loads((tmp_path / "out.json").read_text())["flips"]
    assert report["wrong"] == 1 and report["outcomes"] == {"believed": 1, "refused": 1}


@pytest.mark.parametrize("other, same", [(1.0, True), (1.0000001, False)])
def test_one_bit_is_a_difference(other, same):
    first, second = ({"weights": {"a": torch.tensor([value, 2.0])}, "step": 3} for value in (1.0, other))
    assert is_same(first, second) is same and not is_same(first, first | {"step": 4})
