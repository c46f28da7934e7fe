"""Locks that end with their process, and folders that belong to one.

The system keeps the locks: `flock` on POSIX, also over NFS and SMB, byte locks on Windows. Google Drive knows them
within one machine only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
import time
from pathlib import Path

try:
    import fcntl
except ImportError:     # Windows
    fcntl = None
    import msvcrt

log = logging.getLogger("cifar100")

NAME = ".lock"
HELD = BlockingIOError if fcntl is not None else PermissionError     # what locking raises then
_BEYOND = 2**30         # a byte behind the text, which others read
_claimed = {}           # by path: the open lock file, and the text in it


class FolderInUse(OSError):
    """Another process writes in the folder. The message says which, and what to do."""


def try_lock(file) -> bool:
    """Lock an open file until it is closed, at the latest by the end of the process. False if another open file has the
    lock. Raises OSError where the file system knows no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            place = os.lseek(file.fileno(), 0, os.SEEK_CUR)
            os.lseek(file.fileno(), _BEYOND, os.SEEK_SET)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(file.fileno(), place, os.SEEK_SET)
    except HELD:
        return False
    return True


@contextlib.contextmanager
def turn(path):
    """Wait in a `with` for the lock of the file `path`, which is made if need be; none where the system knows none."""
    with open(path, "ab") as file:
        with contextlib.suppress(OSError):
            while not try_lock(file):
                time.sleep(0.5)
        yield


def claim(folder, setting: str = "run_name") -> None:
    """Make `folder`, created if need be, this process's own until it ends; again at any time, which notices that the
    folder was deleted, or that a machine which does not see the lock took it. Raises FolderInUse, which names `setting`
    as the way out, and OSError where nothing can be written."""
    path = Path(folder).resolve() / NAME
    if path in _claimed:
        file, text = _claimed[path]
        if _holds(path, text):
            return
        del _claimed[path]
        file.close()
        log.warning("%s was deleted or taken over while this process worked there; it goes on in what is there now",
                    folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab", buffering=0)
    except OSError as error:
        raise OSError(f"{folder}: no run can be kept there ({error.strerror or error}); choose another runs_dir, "
                      "run_name or checkpoint_dir") from error
    try:
        is_ours = try_lock(file)
    except OSError as error:
        log.warning("%s cannot be locked (%s): see to it that no other process writes there", folder, error)
        is_ours = True
    if not is_ours:
        file.close()
        raise FolderInUse(f"{folder} is in use by {_holder(path)}: wait for its end, stop it, or choose another "
                          f"{setting}")
    text = (f"process {os.getpid()} on {platform.node()}, {Path(sys.argv[0]).name}, since "
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}".encode())
    file.truncate(0)
    try:
        file.write(text)
    except OSError:         # a full disk
        text = b""
    _claimed[path] = file, text


def why_read_only(*folders) -> OSError | None:
    """Claim the folders; what `claim` raises if this process may only look at one of them, else None."""
    try:
        for folder in folders:
            claim(folder)
    except OSError as error:
        return error
    return None


def _holds(path: Path, text: bytes) -> bool:
    try:
        return path.read_bytes() == text
    except FileNotFoundError:
        return False
    except OSError:         # some file systems let nobody read what is locked
        return True


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") or "another process"
    except OSError:
        return "another process"


def _leave_to_parent() -> None:
    while _claimed:
        _claimed.popitem()[1][0].close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)     # or the lock would last until the last child ends
