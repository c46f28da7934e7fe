"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path):
    """Yield a temporary path beside `path`, making its folder; it replaces `path` if the block succeeds, else goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(content: dict, path) -> Path:
    """Write `content` to `path` whole or not at all."""
    text = json.dumps(content, indent=1, allow_nan=False)
    text = re.sub(r"\[[\s\d.,e+-]+\]", lambda numbers: " ".join(numbers[0].split()), text)  # number lists on one line
    return write_text(text + "\n", path)


def write_text(text: str, path) -> Path:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def foreign_content(start: bytes) -> str:
    """What a file with these first bytes is when it came in place of another: a Git LFS pointer, a web page; or ""."""
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; `git lfs pull` fetches that"
    if re.match(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype )?html", start, re.IGNORECASE):
        return "it is a web page; download the file itself, perhaps after signing in"
    return ""
