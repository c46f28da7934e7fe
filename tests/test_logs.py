"""logs: what goes to train.log and what to the screen."""

import io
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import logs
from helpers.logs import forget_epochs, log_to, outlast_readers

ROOT = Path(__file__).resolve().parent.parent

log = logging.getLogger("cifar100")


def test_a_character_that_the_terminal_lacks_does_not_end_the_program(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    outlast_readers()
    print("貓 a\udce9", flush=True)
    assert stream.buffer.getvalue().decode() == f"\\u8c93 a\\udce9{os.linesep}"


def say_everything() -> None:
    log.info("an event")
    log.warning("a warning")
    logging.getLogger("cifar100.epoch").info("an epoch")


@pytest.mark.parametrize("style, shown", [("lines", {"an event", "a warning", "an epoch"}),
                                          ("bar", {"an event", "a warning"}), ("none", {"a warning"})])
def test_log_goes_whole_to_the_file_and_by_style_to_the_screen(style, shown, tmp_path, capsys):
    path = tmp_path / "runs" / "mine" / "train.log"
    log_to(path, style)
    say_everything()
    screen = capsys.readouterr()
    assert set((screen.out + screen.err).split("\n")) - {""} == shown
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 3)[2:] for line in lines] == [["INFO", "an event"], ["WARNING", "a warning"],
                                                          ["INFO", "an epoch"]]


def test_a_second_log_takes_over_and_an_old_file_is_continued(tmp_path, capsys):
    log_to(tmp_path / "first.log", "lines")
    log.info("one")
    log_to(tmp_path / "second.log", "lines")
    log.info("two")
    log_to(tmp_path / "first.log", "lines")
    log.info("three")
    assert capsys.readouterr().out.split() == ["one", "two", "three"]      # each once
    texts = [[line.split()[-1] for line in (tmp_path / f"{name}.log").read_text().splitlines()]
             for name in ("first", "second")]
    assert texts == [["one", "three"], ["two"]]


def test_console_handler_writes_above_a_progress_bar(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(logs.tqdm, "write", written.append)
    log_to(tmp_path / "train.log", "bar")
    log.info("hello")
    assert written == ["hello"]


def test_a_deleted_folder_costs_no_later_line(tmp_path):
    path = tmp_path / "run" / "train.log"
    log_to(path, "lines")
    log.info("one")
    shutil.rmtree(path.parent)
    log.info("two")
    assert path.read_text(encoding="utf-8").endswith("INFO two\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
def test_a_full_disk_is_told_once_on_the_screen(capsys):
    log_to("/dev/full", "none")
    for word in ("one", "two"):
        log.warning(word)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "/dev/full" not in line] == ["one", "two"] and len(lines) == 3
    assert "No space left" in "".join(lines)


def test_a_screen_that_nobody_reads_ends_nothing(tmp_path, monkeypatch):
    def write(_text):
        raise BrokenPipeError

    monkeypatch.setattr(logs.tqdm, "write", write)
    log_to(tmp_path / "train.log", "lines")
    log.info("hello")
    assert "hello" in (tmp_path / "train.log").read_text()


def test_lines_of_epochs_that_are_done_again_go_and_all_others_stay(tmp_path):
    path = tmp_path / "train.log"
    log_to(path, "lines")
    for word in ("run 'x'", *(f"epoch {epoch:2}/10  train loss" for epoch in (8, 9, 10)), "epoch 10/10 is the last"):
        log.info(word)
    log.warning("epoch 10/10 of a warning")
    with open(path, "a") as file:
        file.write("2025-01-31 12:00:00 INFO half a li")      # of a killed process
    forget_epochs(path, after=8)
    log.info("goes on")
    texts = [line.split(" ", 3)[3] for line in path.read_text().splitlines()]
    assert texts == ["run 'x'", "epoch  8/10  train loss", "epoch 10/10 of a warning", "half a li", "goes on"]
    before = path.stat().st_mtime_ns
    forget_epochs(path, after=8)
    forget_epochs(tmp_path / "absent.log", after=8)
    assert path.stat().st_mtime_ns == before and not (tmp_path / "absent.log").exists()


PRINTS = """
import sys
from helpers.logs import outlast_readers
outlast_readers()
for _ in range(5000):
    print("a line that nobody reads \\ud800", flush=True)
    print("nor this one", file=sys.stderr)
open(sys.argv[1], "w").close()
"""


@pytest.mark.parametrize("closed", ["stdout", "stderr", "neither"])
def test_a_program_outlasts_the_readers_of_its_output(tmp_path, closed):
    pipes = {closed: subprocess.PIPE} if closed != "neither" else {}
    done = tmp_path / "done"
    child = subprocess.Popen([sys.executable, "-X", "dev", "-c", PRINTS, str(done)], cwd=ROOT,
                             **({"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | pipes))
    if pipes:
        getattr(child, closed).close()      # as `head` does
    assert child.wait(60) == 0 and done.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
def test_a_program_runs_without_standard_output(tmp_path):
    done = tmp_path / "done"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(PRINTS)} {shlex.quote(str(done))} >&- 2>&-"
    assert subprocess.run(command, shell=True, cwd=ROOT).returncode == 0 and done.exists()
