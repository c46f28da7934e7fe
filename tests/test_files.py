"""files: JSON and text that are written whole or not at all."""

import json
import math

import pytest
import torch

from helpers.files import write_json, write_text


def test_json_is_written_and_read_back(tmp_path):
    content = {"name": "中文", "values": [1, 2.5, None, True]}
    path = write_json(content, tmp_path / "deep" / "down" / "metrics.json")
    assert json.loads(path.read_text(encoding="utf-8")) == content


def test_text_replaces_a_file_as_a_whole(tmp_path):
    write_text("old, and longer", tmp_path / "deep" / "page.html")
    path = write_text("new 中文", tmp_path / "deep" / "page.html")
    assert path.read_text(encoding="utf-8") == "new 中文" and list(path.parent.iterdir()) == [path]
    with pytest.raises(UnicodeEncodeError):
        write_text("half \ud800", path)
    assert path.read_text(encoding="utf-8") == "new 中文" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("bad", [math.nan, math.inf, {1, 2}, torch.tensor(1.0)])
def test_what_json_cannot_hold_leaves_the_old_file_whole(bad, tmp_path):
    path = write_json({"old": 1}, tmp_path / "metrics.json")
    with pytest.raises((ValueError, TypeError)):
        write_json({"new": bad}, path)
    assert json.loads(path.read_text()) == {"old": 1} and list(tmp_path.iterdir()) == [path]
