"""CIFAR-100 or another set: class folders, the published files, a prepared .npz, or drawn demo data; and its split."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import logging
import os
import re
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import download_url

from . import demo_data
from .class_folders import find_splits, is_class, list_images, missing_splits, subfolders
from .config import TrainingConfig
from .files import foreign_content, replacing
from .image_files import IMAGE_SIZE, DataError, decode, picture_suffixes
from .locks import turn
from .original_files import find_original, find_parquet, read_original, read_parquet
from .text import first_line

log = logging.getLogger("cifar100")

NPZ_NAME = "cifar100.npz"
ARRAYS = ("x_train", "y_train", "x_test", "y_test", "classes")      # in an .npz
DECODER = 2             # raise it when the same pictures give other pixels
# What else than pictures may be somebody's data.
DATA_SUFFIXES = {".npz", ".npy", ".parquet", ".arrow", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar",
                 ".csv", ".h5", ".hdf5", ".mat", ".pkl", ".pickle", ".tfrecord", ".heic"}
# The published files of CIFAR-10 and CIFAR-100, and what `_cache_path` names.
KNOWN = re.compile(r"cifar-100?-(python|batches-py|binary|batches-bin|matlab|batches-mat)(\.tar\.gz)?|"
                   r"cifar100-[0-9a-f]{16}\.npz")

# The 20 superclasses of CIFAR-100 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).
SUPERCLASSES = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor"}


@dataclass(frozen=True)
class ImageData:
    """An image classification set in memory. `note` says so when it is not the real CIFAR-100."""

    train_images: Tensor            # uint8 [N, 32, 32, 3]
    train_labels: Tensor            # int64 [N]
    test_images: Tensor             # uint8 [M, 32, 32, 3]
    test_labels: Tensor             # int64 [M]
    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...] = ()
    superclass_of: Tensor | None = None     # int64 [num_classes]; None without superclasses
    source: str = ""
    note: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each colour channel of the training images, in [0, 1]. A deviation below one
        grey level becomes 1: one can divide by it, and such a channel says nothing."""
        values = torch.arange(256, dtype=torch.float64) / 255
        means, deviations = [], []
        for channel in self.train_images.unbind(-1):
            share = torch.bincount(channel.flatten().int(), minlength=256).double() / channel.numel()
            mean = (share * values).sum()
            means.append(round(mean.item(), 6))
            deviation = (share * (values - mean) ** 2).sum().sqrt().item()
            deviations.append(1.0 if deviation < 1 / 255 else round(deviation, 6))
        return tuple(means), tuple(deviations)

    def identity(self) -> dict:
        """What a resumed training must find again, by its name in messages: classes, and CRC-32 of the ordered training
        images and labels. Sources differ in their order, and the split depends on it."""
        return {"classes": list(self.class_names), "training images": len(self.train_labels),
                **{f"fingerprint of the training {what}": f"{zlib.crc32(np.ascontiguousarray(tensor)):08x}"
                   for what, tensor in (("images", self.train_images), ("labels", self.train_labels))}}

    def __str__(self) -> str:
        superclasses = f" in {len(self.superclass_names)} superclasses" if self.superclass_names else ""
        return (f"{self.note + ': ' if self.note else ''}{len(self.train_images):,} training and "
                f"{len(self.test_images):,} test images, {self.num_classes} classes{superclasses}, from {self.source}")


# Sources ---------------------------------------------------------------------------------------------------

def load_cifar100(config: TrainingConfig) -> ImageData:
    """Load and check the data set that `data_source`, `data_dir` and `download` select. Raises DataError."""
    try:
        source, folder = _find(config)
        data = {"drawn": _from_drawing, "npz": lambda: _from_npz(folder / NPZ_NAME),
                "folder": lambda: _from_folders(folder, config), "parquet": lambda: _from_parquet(folder, config),
                "torchvision": lambda: _from_original(folder, config.download)}[source]()
    except OSError as error:
        raise DataError(f"{error.filename or config.data_dir}: cannot be read now ({error.strerror or error}); try "
                        "again, or copy the data to a disk of this machine and set data_dir to it") from error
    if data.num_classes != config.num_classes:
        raise DataError(f"num_classes={config.num_classes}, but {data.source} holds {data.num_classes} classes; "
                        f"set num_classes={data.num_classes}, or data_dir to another set")
    return data


def _find(config: TrainingConfig) -> tuple[str, Path]:
    """The `data_source`, and the folder that holds it: `data_dir`, one in it, or one that it wraps.
    Raises DataError for several sets, and for data of an unknown kind, which CIFAR-100 must not replace unasked."""
    folder, wanted = Path(config.data_dir).expanduser(), config.data_source
    if wanted != "drawn":
        if folder.is_file():
            raise DataError(f"data_dir='{folder}': is a file; set data_dir to the folder that holds it")
        for place in (folder, folder / "cifar100"):     # archives of class folders unpack to there
            if source := _source_in(place, wanted):
                return source, place
        inner = [folder]
        for _ in range(4):      # as archives and Kaggle wrap a set, in folders that hold but one
            inner = subfolders(inner[0])
            inside = [(source, place) for place in inner if (source := _source_in(place, wanted))]
            if len(inside) > 1:
                names = ", ".join(place.name for _, place in inside)
                raise DataError(f"data_dir='{folder}': holds several data sets, {names}; set data_dir to one of them")
            if inside:
                return inside[0]
            if len(inner) != 1:
                break
    if wanted == "auto":
        _refuse_other_data(folder)
        if config.num_classes != 100:
            raise DataError(f"num_classes={config.num_classes}, but data_dir='{folder}' holds no data set, and "
                            f"CIFAR-100, the only one to download, has 100 classes\n{_ways(folder)}")
        wanted = "torchvision"
    return wanted, folder


def _source_in(folder: Path, wanted: str) -> str | None:
    """The `data_source` that a folder holds, `wanted` or with "auto" the first; None if there is none."""
    is_here = {"folder": find_splits, "parquet": find_parquet, "npz": lambda folder: (folder / NPZ_NAME).is_file(),
               "torchvision": find_original}
    return next((source for source, look in is_here.items() if wanted in ("auto", source) and look(folder)), None)


def _refuse_other_data(folder: Path) -> None:
    """Raise DataError if a folder without a known data set holds pictures, arrays or archives all the same."""
    example = _some_data(folder)
    if example is None:
        return
    there, missing = [path.name for path in subfolders(folder)], missing_splits(folder)
    among = f", with the folders {', '.join(there[:8])}{' …' * (len(there) > 8)}" if there else ""
    lacking = f"; class folders need {' and '.join(missing)} as well" if missing else ""
    raise DataError(f"data_dir='{folder}': holds data, such as {example}, but not in a form known here{among}{lacking}"
                    f". CIFAR-100 is not downloaded in place of them.\n{_ways(folder)}\n"
                    "  - set data_source='torchvision' to download CIFAR-100 into this folder all the same")


def _some_data(folder: Path) -> Path | None:
    """A file that may be somebody's data, at most five levels down; none of torchvision's archives and our caches."""
    suffixes = picture_suffixes() | DATA_SUFFIXES
    for place, names, files in os.walk(folder, followlinks=True):
        deep = len(Path(place).relative_to(folder).parts) >= 5
        names[:] = [] if deep else [name for name in names if is_class(name) and not KNOWN.fullmatch(name)]
        for name in sorted(files):
            if Path(name).suffix.lower() in suffixes and is_class(name) and not KNOWN.fullmatch(name):
                return Path(place) / name
    return None


def _from_drawing() -> ImageData:
    drawn = demo_data.draw_demo_data()
    return ImageData(*(torch.from_numpy(drawn[name]) for name in ARRAYS[:4]), drawn["classes"], drawn["superclasses"],
                     torch.from_numpy(drawn["superclass_of"]), "this project's own drawing", demo_data.DEMO_NOTE)


def _from_original(folder: Path, download: bool) -> ImageData:
    """CIFAR-100 as published, each file checked by its md5."""
    arrays = read_original(folder)
    if arrays is None:
        failure = "download=False"
        if download:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with turn(folder / ".download"):        # or two processes write into one archive
                    download_url(datasets.CIFAR100.url, str(folder), datasets.CIFAR100.filename,
                                 datasets.CIFAR100.tgz_md5)
                arrays = read_original(folder)
                failure = "what was downloaded is not it"
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                failure = f"the download failed: {error}"
    if arrays is None:
        archive = folder / datasets.CIFAR100.filename
        lacks = (f"{archive} is damaged: its md5 is not the original's" if archive.exists() else
                 f"CIFAR-100 is not in data_dir='{folder}'")
        raise DataError(f"{lacks} and {failure}\n{_ways(folder)}\n"
                        "  - connect to the network and keep download=True\n"
                        "  - set preset='demo' to try everything on a small drawn data set instead of CIFAR-100")
    return _checked(f"the original files in {folder}", *arrays)


def _ways(folder: Path) -> str:
    """What `data_dir` may hold."""
    return ("Do one of these:\n"
            f"  - put class folders there: {folder}/train/<class>/*.png and {folder}/test/<class>/*.png\n"
            f"  - put {NPZ_NAME} there: x_train uint8 [N,32,32,3], y_train, x_test, y_test, classes\n"
            f"  - put cifar-100-python.tar.gz (from https://www.cs.toronto.edu/~kriz/cifar.html) into {folder}, or its "
            "files train, test and meta\n"
            "  - put the files train*.parquet and test*.parquet of Hugging Face's cifar100 there\n"
            "  - set data_dir to a folder that holds one of these (on Kaggle: under /kaggle/input)")


def _from_npz(path: Path) -> ImageData:
    try:
        arrays = _read_npz(path, ARRAYS)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; data_source='auto' tries other sources as well") from None
    except _NOT_AN_NPZ as error:
        if isinstance(error, OSError) and error.errno:      # of the disk, not of what the file holds
            raise
        why = (isinstance(error, zipfile.BadZipFile) and foreign_content(path.read_bytes()[:512]) or first_line(error))
        raise DataError(f"{path}: cannot be read ({why}); write it again, with plain arrays only") from error
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise DataError(f"{path}: lacks the array{'s' * (len(missing) > 1)} {', '.join(missing)}; must hold "
                        f"{', '.join(ARRAYS)}")
    return _checked(str(path), *arrays.values())


# What numpy and zipfile raise for truncated, damaged, foreign and pickled files.
_NOT_AN_NPZ = (OSError, ValueError, EOFError, TypeError, KeyError, NotImplementedError, RuntimeError, SyntaxError,
               MemoryError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


def _read_npz(path: Path, names) -> dict[str, np.ndarray]:
    """The arrays of `names` that the file holds, their CRCs checked. Raises one of _NOT_AN_NPZ."""
    with zipfile.ZipFile(path) as archive:      # of other files numpy.load says that one may unpickle them
        inside = set(archive.namelist())
        return {name: _read_array(archive, name) for name in names if f"{name}.npy" in inside}


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array, and the rest of its file: zipfile compares the CRC at the end, which a wrong shape would not reach."""
    with archive.open(f"{name}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{name} holds more than its header says")
    return array


def _from_folders(folder: Path, config: TrainingConfig) -> ImageData:
    """Class folders, decoded."""
    if not find_splits(folder):
        raise DataError(f"{folder / missing_splits(folder)[0]}: no such folder; class folders belong in "
                        "train/<class>/ and test/<class>/")
    splits = dict(zip(("train", "test"), find_splits(folder)))
    files = list_images(splits)
    classes = sorted(files["train"])

    def arrays() -> dict[str, np.ndarray]:
        made = {"classes": np.array(classes)}
        for split, by_class in files.items():
            made[f"x_{split}"] = decode([(path, str(path)) for name in classes for path in by_class[name]],
                                        config.resize, f"decoding {split} images", config.progress)
            made[f"y_{split}"] = np.repeat(np.arange(len(classes)), [len(by_class[name]) for name in classes])
        return made

    usual = [path.name for path in splits.values()] == ["train", "test"]
    return _decoded_once(folder, str(folder) if usual else " and ".join(map(str, splits.values())), config, arrays, [
        (f"{split}/{name}/{path.name}", path) for split, by_class in sorted(files.items())
        for name, paths in sorted(by_class.items()) for path in paths])


def _from_parquet(folder: Path, config: TrainingConfig) -> ImageData:
    """Hugging Face's files, decoded."""
    files = find_parquet(folder)
    if not files:
        raise DataError(f"{folder}: holds no train*.parquet and test*.parquet; data_source='auto' tries other sources")
    classes = sorted(member for members in SUPERCLASSES.values() for member in members.split())
    return _decoded_once(folder, f"the Parquet files in {folder}", config,
                         lambda: read_parquet(files, config.resize, config.progress) | {"classes": np.array(classes)},
                         [(path.name, path) for paths in files.values() for path in paths])


def _decoded_once(folder: Path, source: str, config: TrainingConfig, read, files: list[tuple[str, Path]]) -> ImageData:
    """The set that `read()` decodes; later calls take the .npz kept beside it until one of `files`, (name, path),
    changes."""
    digest = hashlib.sha256(f"decoder {DECODER}, resize {config.resize}\n".encode())
    for name, path in files:
        stat = path.stat()
        digest.update(os.fsencode(f"{name} {stat.st_size} {stat.st_mtime_ns}\n"))
    fingerprint = digest.hexdigest()[:16]
    cache = _cache_path(folder, fingerprint)
    if _cached_fingerprint(cache) == fingerprint:
        try:
            return dataclasses.replace(_from_npz(cache), source=source)
        except DataError as error:
            log.warning("decoding the images again: %s", error)
    arrays = read() | {"fingerprint": np.array(fingerprint)}
    data = _checked(source, *(arrays[name] for name in ARRAYS))
    _write_cache(cache, arrays)
    return data


def _cache_path(folder: Path, fingerprint: str) -> Path:
    """Beside the folders, or in ./data if those are read-only (Kaggle) or hold an .npz that is not our cache."""
    path = folder / NPZ_NAME
    if os.access(folder, os.W_OK) and (not path.exists() or _cached_fingerprint(path)):
        return path
    return Path("data") / f"cifar100-{fingerprint}.npz"


def _cached_fingerprint(path: Path) -> str | None:
    """The fingerprint in our cache; None for another or a missing file."""
    try:
        fingerprint = _read_npz(path, ["fingerprint"]).get("fingerprint")
    except _NOT_AN_NPZ:
        return None
    return None if fingerprint is None else str(fingerprint)


def _write_cache(path: Path, arrays: dict) -> None:
    try:
        with replacing(path) as file:
            np.savez(file, **arrays)
        log.info("kept the decoded images in %s", path)
    except OSError as error:
        log.warning("could not keep the decoded images in %s (%s); the next run decodes them again", path, error)


def _checked(name: str, x_train, y_train, x_test, y_test, classes) -> ImageData:
    """ImageData from arrays with checked shapes, types and labels. Raises DataError naming `name`."""
    classes = np.asarray(classes)
    if classes.ndim != 1 or len(np.unique(classes)) != len(classes):
        raise DataError(f"{name}: classes is {classes.dtype} {list(classes.shape)}; must be a list of distinct names")
    try:
        classes = tuple(item.decode() if isinstance(item, bytes) else str(item) for item in classes)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: classes holds bytes that are not UTF-8, {error.object!r}; write text") from error
    if len(classes) < 2:
        raise DataError(f"{name}: holds {len(classes)} class; training needs at least two")
    for split, images, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
        if images.dtype != np.uint8 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3) or not len(images):
            raise DataError(f"{name}: x_{split} is {images.dtype} {list(images.shape)}; must be uint8 "
                            f"[N, {IMAGE_SIZE}, {IMAGE_SIZE}, 3]")
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"{name}: y_{split} is {labels.dtype} {list(labels.shape)}; must be integers "
                            f"[{len(images)}], one per image")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(f"{name}: y_{split} holds labels from {labels.min()} to {labels.max()}; with "
                            f"{len(classes)} classes they must be from 0 to {len(classes) - 1}")
        absent = sorted(set(range(len(classes))) - set(labels.tolist()))
        if absent:
            raise DataError(f"{name}: y_{split} has no image of class {classes[absent[0]]!r}"
                            + (f" and {len(absent) - 1} more" if absent[1:] else ""))
    superclass_names, superclass_of = _superclasses(classes)
    # torchvision's arrays are not contiguous, but the same pixels must give the same batches bit for bit.
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in
               (x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64))]
    return ImageData(*tensors, classes, superclass_names, superclass_of, source=name)


def _superclasses(classes: tuple[str, ...]) -> tuple[tuple[str, ...], Tensor | None]:
    """CIFAR-100's superclasses if `classes` are its classes, else none."""
    index = {member: number for number, members in enumerate(SUPERCLASSES.values()) for member in members.split()}
    if set(classes) != set(index):
        return (), None
    return tuple(SUPERCLASSES), torch.tensor([index[name] for name in classes])


# Split -----------------------------------------------------------------------------------------------------

def stratified_split(labels: Tensor, val_size: int, seed: int, train_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Ascending indices (train, validation), int64, with the same share of each class, rounded by largest remainders:
    `val_size` images, and `train_size` or all of the others. Raises ValueError when there are too few, or when a class
    is left without a training image."""
    if not 0 <= val_size < len(labels):
        raise ValueError(f"val_size={val_size}: must be below the {len(labels)} training images; choose a smaller one")
    counts = torch.bincount(labels)
    val_counts = _shares(counts, val_size)
    left = counts - val_counts
    if ((left == 0) & (counts > 0)).any():
        raise ValueError(f"val_size={val_size}: leaves a class without a training image; choose a smaller one")
    if train_size is None:
        train_counts = left
    elif train_size > left.sum():
        raise ValueError(f"train_size={train_size}: must be at most the {left.sum()} training images that "
                         f"val_size={val_size} leaves; omit it to train on all of them")
    else:
        train_counts = _shares(left, train_size)
        if ((train_counts == 0) & (counts > 0)).any():
            raise ValueError(f"train_size={train_size}: leaves a class without a training image; choose a larger one")
    generator = torch.Generator().manual_seed(seed)
    train, val = [], []
    for label, (val_count, train_count) in enumerate(zip(val_counts.tolist(), train_counts.tolist())):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        val.append(members[:val_count])
        train.append(members[val_count:val_count + train_count])
    return torch.cat(train).sort().values, torch.cat(val).sort().values


def _shares(counts: Tensor, size: int) -> Tensor:
    """Integers of sum `size`, in proportion to `counts`, int64 [num_classes]."""
    shares = counts.double() * size / counts.sum()
    numbers = shares.long()
    numbers[torch.argsort(shares - numbers, descending=True, stable=True)[:size - int(numbers.sum())]] += 1
    return numbers
