"""locks: a folder belongs to one process, as long as it lives."""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers import locks
from helpers.locks import FolderInUse, claim, turn, why_read_only

ROOT = Path(__file__).resolve().parent.parent
CLAIM = "import sys; from helpers.locks import claim; claim(sys.argv[1]); print('mine', flush=True); "


def in_another_process(folder, then="sys.stdin.read()"):
    """A process that has the folder until it is killed."""
    child = subprocess.Popen([sys.executable, "-c", CLAIM + then, str(folder)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout.readline() == "mine\n"
    return child


def test_those_who_wait_for_their_turn_come_one_after_the_other(tmp_path):
    inside, most = [], []

    def visit():
        with turn(tmp_path / "lock"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=visit) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1, 1, 1]


def test_the_second_process_is_told_who_has_the_folder_until_that_one_ends(tmp_path):
    folder = tmp_path / "runs" / "mine"
    child = in_another_process(folder)
    try:
        with pytest.raises(FolderInUse, match=f"mine is in use by process {child.pid} on .*another run_name"):
            claim(folder)
        assert str(why_read_only(tmp_path / "free", folder)).startswith(str(folder))
    finally:
        child.kill()
        child.communicate()
    claim(folder)
    assert why_read_only(folder) is None
    assert f"process {os.getpid()} on" in (folder / ".lock").read_text()


def test_a_process_may_claim_its_folder_again_by_any_name(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for name in ("there", "link", "there"):
        claim(tmp_path / name)


def test_a_folder_deleted_meanwhile_is_noticed_and_claimed_anew(tmp_path, caplog):
    folder = tmp_path / "run"
    claim(folder)
    shutil.rmtree(folder)
    with caplog.at_level(logging.WARNING, "cifar100"):
        claim(folder)
    assert "run was deleted or taken over" in caplog.text and (folder / ".lock").exists()
    shutil.rmtree(folder)
    child = in_another_process(folder)      # which has begun anew there
    try:
        with pytest.raises(FolderInUse):
            claim(folder)
    finally:
        child.kill()
        child.communicate()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_a_child_does_not_keep_the_lock_of_its_killed_parent(tmp_path):
    parent = in_another_process(tmp_path, "import os, time; os.fork() or print(os.getpid(), flush=True); time.sleep(9)")
    orphan = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    try:
        claim(tmp_path)
    finally:
        os.kill(orphan, 9)
        parent.communicate()


def test_a_folder_that_cannot_be_is_one_error_with_the_remedy(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match="file.*: no run can be kept there .*; choose another runs_dir"):
            claim(folder)
    assert "no run can be kept" in str(why_read_only(tmp_path / "file"))


def test_where_there_are_no_locks_one_line_says_so(tmp_path, monkeypatch, caplog):
    def no_locks(_file):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks, "try_lock", no_locks)
    with caplog.at_level(logging.WARNING, "cifar100"):
        claim(tmp_path)
        claim(tmp_path)
    assert len(caplog.messages) == 1 and "cannot be locked" in caplog.text
