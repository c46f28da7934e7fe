"""Logging to a run's train.log and to the screen, above a progress bar."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

from tqdm.auto import tqdm

log = logging.getLogger("cifar100")
epoch_log = logging.getLogger("cifar100.epoch")      # one line per epoch; not on the screen if that has a bar


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


def write_any_text() -> None:
    """Let a character that the terminal or a file behind `>` cannot hold, as Chinese ones on some Windows consoles, be
    written as an escape, not end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def log_to(path, style: str) -> None:
    """Send log messages to the file `path` and to the screen, no longer elsewhere. With `style` "bar" the screen omits
    the line of each epoch, with "none" all but warnings."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    to_screen = _ConsoleHandler(logging.WARNING if style == "none" else logging.INFO)
    if style == "bar":
        to_screen.addFilter(lambda record: record.name != epoch_log.name)
    for handler in log.handlers[:]:
        handler.close()
        log.removeHandler(handler)
    log.addHandler(to_file)
    log.addHandler(to_screen)
    log.setLevel(logging.INFO)
    log.propagate = False
