"""Class folders, train/<class>/*.png and test/<class>/*.png, under the names that people and their tools give them."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from pathlib import Path

from .image_files import DataError, open_picture, picture_suffixes
from .text import UNPRINTABLE

log = logging.getLogger("cifar100")

SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
# What operating systems, network drives and Jupyter leave behind.
NO_CLASSES = {"__macosx", "@eadir", "lost+found", "$recycle.bin", "#recycle", "system volume information",
              "__pycache__", "thumbs.db", "desktop.ini"}


def is_class(name: str) -> bool:
    """Can a file or folder of this name belong to a data set?"""
    return not name.startswith(".") and name.lower() not in NO_CLASSES


def subfolders(folder: Path) -> list[Path]:
    """Sorted, without those of the system; none if there is no such folder."""
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir()] if folder.is_dir() else []


def _entries(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if is_class(entry.name)), key=lambda entry: entry.name)


def _named(folder: Path, split: str) -> list[Path]:
    """The subfolders with a name of this split, the best name first, in capitals or not."""
    by_name = {path.name.lower(): path for path in subfolders(folder)}
    return [by_name[name] for name in SPLITS[split] if name in by_name]


def missing_splits(folder: Path) -> list[str]:
    """Of train and test, those that a folder holds under no name."""
    return [split for split in SPLITS if not _named(folder, split)]


def find_splits(folder: Path) -> tuple[Path, Path] | None:
    """The folders of training and test images in `folder`; None unless both are there. A `test` without class folders,
    as competitions have it, yields to a `val` with them."""
    if missing_splits(folder):
        return None
    test = _named(folder, "test")
    return _named(folder, "train")[0], next((path for path in test if subfolders(path)), test[0])


def list_images(splits: dict[str, Path]) -> dict[str, dict[str, list[Path]]]:
    """For each split and each class the sorted picture files; warns of files that are left out. Raises DataError for a
    class folder that is empty or that one split lacks, and for what is named like a picture and is no file."""
    left_out, files = Counter(), {}
    for split, folder in splits.items():
        files[split] = {path.name: _pictures(path, left_out) for path in subfolders(folder)}
        left_out.update(_kind(entry) for entry in _entries(folder) if not entry.is_dir())
        empty = [name for name, paths in files[split].items() if not paths]
        if empty or not files[split]:
            raise DataError(f"{folder / empty[0] if empty else folder}: holds no picture that Pillow reads"
                            f"{_listed(', nor do ', empty[1:])}{_listed('; there are ', _counted(left_out))}; put "
                            "pictures right into it, or delete it")
    for here, there in (("train", "test"), ("test", "train")):
        if missing := sorted(set(files[there]) - set(files[here])):
            raise DataError(f"{splits[here]}: lacks the class folder{'s' * (len(missing) > 1)}{_listed(' ', missing)} "
                            f"that {splits[there]} has; add or remove them")
    parent = splits["test"].parent
    if unread := [path.name for path in _named(parent, "test") if path != splits["test"]]:
        log.warning("%s: %s not read; val_size images of %s are the validation split", parent, ", ".join(unread) + (
            " is" if len(unread) == 1 else " are"), splits["train"].name)
    if left_out:
        log.warning("%s: left out, as no pictures that Pillow reads: %s", parent, ", ".join(_counted(left_out)))
    return files


def _pictures(folder: Path, left_out: Counter) -> list[Path]:
    """The picture files in a class folder; counts the others."""
    if any(unicodedata.category(character) in UNPRINTABLE for character in folder.name):
        raise DataError(f"{str(folder)!r}: is no name for a class; rename the folder, in one line of UTF-8")
    found, suffixes = [], picture_suffixes()
    for entry in _entries(folder):
        if Path(entry.name).suffix.lower() not in suffixes:
            left_out[_kind(entry)] += 1
            continue
        if not entry.is_file():
            open_picture(entry.path)        # raises, and says what it is
        found.append(Path(entry.path))
    return found


def _kind(entry: os.DirEntry) -> str:
    return "folder" if entry.is_dir() else Path(entry.name).suffix.lower() or "without suffix"


def _counted(kinds: Counter) -> list[str]:
    return [f"{count} {kind}{'s' * (kind == 'folder' and count > 1)}" for kind, count in kinds.most_common()]


def _listed(words: str, names: list[str]) -> str:
    """`words` and at most five names; "" without any."""
    return f"{words}{', '.join(names[:5])}{', …' * (len(names) > 5)}" if names else ""
