"""logs: what goes to train.log and what to the screen."""

import io
import logging
import os

import pytest

from helpers import logs
from helpers.logs import log_to

log = logging.getLogger("cifar100")


@pytest.fixture(autouse=True)
def no_handlers_left():
    """Leave the project's logger as it was."""
    before = log.handlers[:], log.level, log.propagate
    log.handlers = []
    yield
    for handler in log.handlers:
        handler.close()
    log.handlers, log.level, log.propagate = before


def test_a_character_that_the_terminal_lacks_does_not_end_the_program(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", stream)
    logs.write_any_text()
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
