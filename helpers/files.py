"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from pathlib import Path

from .locks import try_lock

# .final.pt.4711-0c1d2e.tmp; without the last number in earlier versions.
_TEMPORARY = re.compile(r"\..+\.\d+(-[0-9a-f]{6})?\.tmp")


@contextlib.contextmanager
def replacing(path):
    """Yield a binary file beside `path`, making its folder; once flushed to disk it replaces `path`, or it goes if the
    block fails. Also sweeps that folder. An OSError names `path`, which that of a full disk alone does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    file = _open_temporary(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name != "nt":         # while it is locked, so that nobody sweeps it
                os.replace(file.name, path)
        if os.name == "nt":             # which renames closed files only
            os.replace(file.name, path)
    except OSError as error:
        if error.errno is not None:     # else it is a message already
            error.filename = error.filename or str(path)
        raise
    finally:
        Path(file.name).unlink(missing_ok=True)


def _open_temporary(path: Path):
    """A new file, locked to show that its writer lives."""
    while True:
        file = open(path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp"), "xb")
        with contextlib.suppress(OSError):      # without locks nobody sweeps
            if not try_lock(file) or not os.path.exists(file.name):     # swept before it was locked
                file.close()
                continue
        return file


def sweep(folder) -> None:
    """Delete the temporary files that killed processes left in `folder`; those of living ones are locked."""
    for path in Path(folder).glob(".*.tmp"):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):      # in use, swept by another process, or there are no locks
            if os.name == "nt":
                path.unlink()
                continue
            with open(path, "r+b") as file:
                if try_lock(file):
                    discard(path)


def discard(path: Path) -> None:
    """Delete a file and its content: Google Drive moves a deleted file to the bin, where it still takes its space. What
    has the content under another name, a link's target or a backup by hard links, keeps it."""
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
            os.truncate(path, 0)
        path.unlink()


def write_json(content: dict, path) -> Path:
    """Write `content` to `path` whole or not at all."""
    text = json.dumps(content, indent=1, allow_nan=False)
    text = re.sub(r"\[[\s\d.,e+-]+\]", lambda numbers: " ".join(numbers[0].split()), text)  # number lists on one line
    return write_text(text + "\n", path)


def write_text(text: str, path) -> Path:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())
    return Path(path)


def foreign_content(start: bytes) -> str:
    """What a file with these first bytes is when it came in place of one that is no text: a Git LFS pointer, a web
    page, a server's message; else ""."""
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; `git lfs pull` fetches that"
    if re.match(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype )?html", start, re.IGNORECASE):
        return "it is a web page; download the file itself, perhaps after signing in"
    if re.fullmatch(rb"[^\x00-\x08\x0e-\x1f\x7f]+", start):
        return f"it is text, not the file itself: {' '.join(start.decode(errors='replace').split())[:80]!r}"
    return ""
