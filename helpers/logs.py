"""Logging to a run's train.log and to the screen, above a progress bar; neither may end a training."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from pathlib import Path

from tqdm.auto import tqdm

from .files import write_text

log = logging.getLogger("cifar100")
epoch_log = logging.getLogger("cifar100.epoch")      # one line per epoch; not on the screen if that has a bar

_EPOCH = re.compile(r"\S+ \S+ INFO epoch +(\d+)/")      # `text.epoch_line` in the file


class _FileHandler(logging.Handler):
    """Opens the file for each message, so that a deleted folder or a full disk costs lines and nothing else."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.is_failing = path, False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(self.format(record) + "\n")
            self.is_failing = False
        except OSError as error:
            if not self.is_failing:
                self.is_failing = True      # before the message, which comes here too
                log.warning("could not write to %s (%s); its next messages are on the screen only", self.path, error)


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):      # nobody reads any more
            tqdm.write(self.format(record))


def log_to(path, style: str) -> None:
    """Send log messages to the file `path`, if any, and to the screen, no longer elsewhere. With `style` "bar" the
    screen omits the line of each epoch, with "none" all but warnings."""
    to_screen = _ConsoleHandler(logging.WARNING if style == "none" else logging.INFO)
    if style == "bar":
        to_screen.addFilter(lambda record: record.name != epoch_log.name)
    for handler in log.handlers[:]:
        handler.close()
        log.removeHandler(handler)
    if path is not None:
        to_file = _FileHandler(Path(path))
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(to_file)
    log.addHandler(to_screen)
    log.setLevel(logging.INFO)
    log.propagate = False


def forget_epochs(path, after: int) -> None:
    """Take the lines of epochs beyond `after` out of a log: a killed training continues from an older checkpoint and
    does them again."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
        kept = [line for line in lines if not ((epoch := _EPOCH.match(line)) and int(epoch[1]) > after)]
        if kept[-1] or kept != lines:       # a killed process may also leave half a line
            write_text("\n".join(kept).rstrip("\n") + "\n", path)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("could not tidy up %s: %s", path, error)


class _Outlasting:
    """A text stream whose reader may leave: what nobody takes is dropped."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, work) -> None:
        try:
            work()
        except BrokenPipeError:         # from now on to nowhere, also what the stream still holds
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except OSError:                 # a lost terminal, a full disk
            pass


def outlast_readers() -> None:
    """Let standard output and error be closed, as by `| head` or `>&-`, and take any character, without an end to the
    program."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")
        with contextlib.suppress(AttributeError):       # some replacements have none
            stream.reconfigure(errors="backslashreplace", line_buffering=True)      # a file too has it at a SIGTERM
        setattr(sys, name, _Outlasting(stream))
