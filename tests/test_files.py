"""files: JSON and text that are written whole or not at all."""

import json
import math
from pathlib import Path

import pytest
import torch

from helpers.files import discard, foreign_content, replacing, sweep, write_json, write_text


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


def test_temporary_files_of_dead_writers_are_swept_and_those_of_living_ones_never(tmp_path):
    dead = [".final.pt.4711.tmp", ".cifar100.npz.4711.tmp", ".metrics.json.4711-0a1b2c.tmp"]
    others = [".final.pt.tmp", "final.pt.4711.tmp", ".swp", ".editor.tmp"]
    for name in dead + others:
        (tmp_path / name).write_bytes(b"half")
    with replacing(tmp_path / "large.pt") as file:
        write_text("another file", tmp_path / "small.txt")      # sweeps
        sweep(tmp_path)
        file.write(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "large.pt", "small.txt"])
    assert (tmp_path / "large.pt").read_bytes() == b"whole"


def test_an_error_of_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(_number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*page.html"):
        write_text("new", tmp_path / "page.html")


@pytest.mark.parametrize("link", [Path.hardlink_to, Path.symlink_to])
def test_what_is_deleted_stays_where_it_has_another_name(tmp_path, link):
    """As in a backup of hard links, or a run continued from a link to another run's checkpoint."""
    (tmp_path / "kept").write_bytes(b"content")
    link(tmp_path / "gone", tmp_path / "kept")
    discard(tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"content"


@pytest.mark.parametrize("start, says", [
    (b"<!-- saved --><html>", "it is text, not the file itself: '<!-- saved"), ("404：找不到".encode(), "404：找不到"),
    (b'{"error":\n "Entry not found"}', """'{"error": "Entry not found"}'"""), (b"<HTML>", "web page"),
    (b"PK\x03\x04weights", ""), (b"\x80\x02}q", ""), (b"", "")])
def test_text_in_place_of_a_file_is_told(start, says):
    assert says in foreign_content(start) if says else foreign_content(start) == ""


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with replacing(tmp_path / "file") as first, replacing(tmp_path / "file") as second:
        first.write(b"first")
        second.write(b"second")
    assert (tmp_path / "file").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1


def test_without_locks_nothing_is_swept_and_all_is_written(tmp_path, monkeypatch):
    def no_locks(_file):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("helpers.files.try_lock", no_locks)
    (tmp_path / ".final.pt.4711.tmp").touch()
    write_text("new", tmp_path / "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".final.pt.4711.tmp", "page.html"]
