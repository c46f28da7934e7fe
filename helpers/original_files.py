"""CIFAR-100 as published: the pickles from Toronto, packed, unpacked or bare, and Hugging Face's Parquet files."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from .files import foreign_content
from .image_files import DataError, decode

log = logging.getLogger("cifar100")

FOLDER, ARCHIVE = datasets.CIFAR100.base_folder, datasets.CIFAR100.filename
MD5 = dict([*datasets.CIFAR100.train_list, *datasets.CIFAR100.test_list,
            (datasets.CIFAR100.meta["filename"], datasets.CIFAR100.meta["md5"])])       # of train, test and meta


def find_original(folder: Path) -> bool:
    """Does a folder hold the original files, good or bad?"""
    return _unpacked(folder) is not None or (folder / ARCHIVE).is_file()


def _unpacked(folder: Path) -> Path | None:
    """Where the files train, test and meta lie: on Kaggle without their folder."""
    if any((folder / FOLDER / name).is_file() for name in MD5):
        return folder / FOLDER
    return folder if (folder / "train").is_file() and (folder / "test").is_file() else None


def read_original(folder: Path) -> list | None:
    """x_train, y_train, x_test, y_test and the class names, from the unpacked files or the archive; None if there are
    neither or the archive is damaged. A pickle can run code, so only the original's bytes are unpickled. Raises
    DataError for unpacked files that are not the original ones, without a good archive."""
    place, archive = _unpacked(folder), folder / ARCHIVE
    contents, faults = {}, []
    if place:
        contents = {name: (place / name).read_bytes() for name in MD5 if (place / name).is_file()}
        faults = _faults(place, contents)
    if not place or faults:
        if not check_integrity(archive, datasets.CIFAR100.tgz_md5):
            if not place:
                return None
            raise DataError(f"{'; '.join(faults)}. Put {ARCHIVE} (from https://www.cs.toronto.edu/~kriz/cifar.html) "
                            f"into {folder}, or delete {place if place != folder else 'the file'} to download it again")
        if faults:
            log.warning("reading %s instead: %s", archive, "; ".join(faults))
        with tarfile.open(archive) as packed:
            contents = {name: packed.extractfile(f"{FOLDER}/{name}").read() for name in MD5}
    return _arrays(*(pickle.loads(contents[name], encoding="latin1") for name in ("train", "test", "meta")))


def _faults(place: Path, contents: dict[str, bytes]) -> list[str]:
    faults = []
    for name, md5 in MD5.items():
        if name not in contents:
            faults.append(f"{place / name} is missing")
        elif (found := hashlib.md5(contents[name], usedforsecurity=False).hexdigest()) != md5:
            why = foreign_content(contents[name][:512]) or "it was changed or cut off"
            faults.append(f"{place / name} is not the original, whose md5 is {md5}, not {found}: {why}")
    return faults


def _arrays(train: dict, test: dict, meta: dict) -> list:
    arrays = []
    for split in (train, test):
        arrays += [split["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(split["fine_labels"])]
    return [*arrays, meta["fine_label_names"]]


def find_parquet(folder: Path) -> dict[str, list[Path]]:
    """The files of each split; empty unless both have some."""
    files = {split: sorted(folder.glob(f"{split}*.parquet")) for split in ("train", "test")}
    return files if all(files.values()) else {}


def read_parquet(files: dict[str, list[Path]], resize: bool, progress: str) -> dict[str, np.ndarray]:
    """x_train, y_train, x_test and y_test from the columns `img` and `fine_label`. Raises DataError."""
    for paths in files.values():
        parts = [re.fullmatch(r".*-of-(\d+)", path.stem) for path in paths]
        if all(parts) and len(paths) != int(parts[0][1]):
            raise DataError(f"{paths[0]}: is one of {int(parts[0][1])} files, of which {len(paths)} can be seen; "
                            "download the others too")
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{files['train'][0]}: reading Parquet files needs pyarrow; pip install pyarrow, or set "
                        "data_source to another form that data_dir holds") from None
    arrays = {}
    for split, paths in files.items():
        sources, labels = [], []
        for path in paths:
            try:
                table = parquet.read_table(path)
                labels.append(table["fine_label"].to_numpy())
                sources += [(io.BytesIO(row["bytes"]), f"{path}, row {number}")
                            for number, row in enumerate(table["img"].to_pylist())]
            except (ArrowException, OSError, KeyError, TypeError) as error:
                why = foreign_content(path.read_bytes()[:512]) or f"{type(error).__name__}: {error}".splitlines()[0]
                raise DataError(f"{path}: cannot be read ({why}); it must hold the columns img, with the bytes of "
                                "pictures, and fine_label, as Hugging Face's cifar100 does") from error
        if not sources:
            raise DataError(f"{paths[0]}: holds no rows")
        arrays[f"x_{split}"] = decode(sources, resize, f"decoding {split} images", progress)
        arrays[f"y_{split}"] = np.concatenate(labels)
    return arrays
