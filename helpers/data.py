"""CIFAR-100 from torchvision, a prepared .npz, class folders, or drawn demo data; and its split."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import tokenize
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import check_integrity
from tqdm.auto import tqdm

from . import demo_data
from .config import TrainingConfig
from .files import replacing
from .system import cpu_cores, progress_style

log = logging.getLogger("cifar100")

IMAGE_SIZE = 32
NPZ_NAME = "cifar100.npz"
ARRAYS = ("x_train", "y_train", "x_test", "y_test", "classes")      # in an .npz
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}

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


class DataError(RuntimeError):
    """The data set is unavailable or one of its files is wrong. The message names the file and the remedy."""


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
        """Mean and standard deviation of each colour channel of the training images, in [0, 1]."""
        values = torch.arange(256, dtype=torch.float64) / 255
        means, deviations = [], []
        for channel in self.train_images.unbind(-1):
            share = torch.bincount(channel.flatten().int(), minlength=256).double() / channel.numel()
            mean = (share * values).sum()
            means.append(round(mean.item(), 6))
            deviations.append(round((share * (values - mean) ** 2).sum().sqrt().item(), 6))
        return tuple(means), tuple(deviations)

    def fingerprint(self) -> str:
        """CRC-32 of the ordered training images. Sources differ in their order, and the split depends on it."""
        return f"{zlib.crc32(np.ascontiguousarray(self.train_images)):08x}"

    def __str__(self) -> str:
        superclasses = f" in {len(self.superclass_names)} superclasses" if self.superclass_names else ""
        return (f"{self.note + ': ' if self.note else ''}{len(self.train_images):,} training and "
                f"{len(self.test_images):,} test images, {self.num_classes} classes{superclasses}, from {self.source}")


# Sources ---------------------------------------------------------------------------------------------------

def load_cifar100(config: TrainingConfig) -> ImageData:
    """Load and check the data set that `data_source`, `data_dir` and `download` select. Raises DataError."""
    folder = Path(config.data_dir).expanduser()
    if not _find_local(folder) and _find_local(folder / "cifar100"):    # archives of class folders unpack to there
        folder /= "cifar100"
    source = (_find_local(folder) or "torchvision") if config.data_source == "auto" else config.data_source
    data = {"drawn": _from_drawing, "npz": lambda: _from_npz(folder / NPZ_NAME),
            "folder": lambda: _from_folders(folder, config.progress),
            "torchvision": lambda: _from_torchvision(folder, config.download)}[source]()
    if data.num_classes != config.num_classes:
        raise DataError(f"num_classes={config.num_classes}, but {data.source} holds {data.num_classes} classes; "
                        f"set num_classes={data.num_classes}, or data_dir to another set")
    return data


def _find_local(folder: Path) -> str | None:
    """The `data_source` found in a folder, or None."""
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return "folder"
    if (folder / NPZ_NAME).is_file():
        return "npz"
    names = ("cifar-100-python", "cifar-100-python.tar.gz")
    return "torchvision" if any((folder / name).exists() for name in names) else None


def _from_drawing() -> ImageData:
    drawn = demo_data.draw_demo_data()
    return ImageData(*(torch.from_numpy(drawn[name]) for name in ARRAYS[:4]), drawn["classes"], drawn["superclasses"],
                     torch.from_numpy(drawn["superclass_of"]), "this project's own drawing", demo_data.DEMO_NOTE)


def _from_torchvision(folder: Path, download: bool) -> ImageData:
    """The original archive, checked by its md5."""
    archive = folder / datasets.CIFAR100.filename
    is_here = check_integrity(archive, datasets.CIFAR100.tgz_md5)      # if so, `download` only unpacks it
    try:
        train, test = (datasets.CIFAR100(str(folder), train=train, download=download or is_here)
                       for train in (True, False))
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        if is_here:
            raise DataError(f"{archive} is intact but could not be unpacked: {error}; unpack it yourself, or set "
                            "data_dir to a writable folder with 350 MB of free space") from error
        raise DataError(_how_to_get_cifar100(folder, download, error)) from error
    return _checked(f"the torchvision files in {folder}", train.data, np.array(train.targets), test.data,
                    np.array(test.targets), train.classes)


def _how_to_get_cifar100(folder: Path, download: bool, error: Exception) -> str:
    reason = f"the download failed: {error}" if download else "download=False"
    archive = folder / datasets.CIFAR100.filename
    damaged = f"\n{archive} is damaged: its md5 is not the original's" if archive.exists() else ""
    return (f"CIFAR-100 is not in data_dir='{folder}' and {reason}{damaged}\nDo one of these:\n"
            "  - connect to the network and keep download=True\n"
            f"  - put cifar-100-python.tar.gz (from https://www.cs.toronto.edu/~kriz/cifar.html) into {folder}\n"
            f"  - put class folders there: {folder}/train/<class>/*.png and {folder}/test/<class>/*.png\n"
            f"  - put {NPZ_NAME} there: x_train uint8 [N,32,32,3], y_train, x_test, y_test, classes\n"
            "  - set data_dir to a folder that holds one of these (on Kaggle: under /kaggle/input)\n"
            "  - set preset='demo' to try everything on a small drawn data set instead of CIFAR-100")


def _from_npz(path: Path) -> ImageData:
    try:
        arrays = _read_npz(path, ARRAYS)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; data_source='auto' tries other sources as well") from None
    except _NOT_AN_NPZ as error:
        raise DataError(f"{path}: cannot be read ({error}); write it again, with plain arrays only") from error
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise DataError(f"{path}: lacks the array{'s' * (len(missing) > 1)} {', '.join(missing)}; must hold "
                        f"{', '.join(ARRAYS)}")
    return _checked(str(path), *arrays.values())


# What numpy.load and zipfile raise for truncated, damaged, foreign and pickled files.
_NOT_AN_NPZ = (OSError, ValueError, EOFError, TypeError, KeyError, NotImplementedError, RuntimeError, SyntaxError,
               MemoryError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


def _read_npz(path: Path, names) -> dict[str, np.ndarray]:
    """The arrays of `names` that the file holds, their CRCs checked. Raises one of _NOT_AN_NPZ."""
    arrays = np.load(path, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array")
    with arrays:
        return {name: _read_array(arrays.zip, name) for name in names if name in arrays.files}


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array, and the rest of its file: zipfile compares the CRC at the end, which a wrong shape would not reach."""
    with archive.open(f"{name}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{name} holds more than its header says")
    return array


def _from_folders(folder: Path, progress: str) -> ImageData:
    """Decode class folders; later calls read the .npz kept beside them until a file changes."""
    files = {split: _list_images(folder / split) for split in ("train", "test")}
    for here, there in (("train", "test"), ("test", "train")):
        missing = sorted(set(files[there]) - set(files[here]))
        if missing:
            raise DataError(f"{folder / here}: lacks the class folder{'s' * (len(missing) > 1)} "
                            f"{', '.join(missing[:5])}{', …' * (len(missing) > 5)} that {folder / there} has; add or "
                            "remove them")
    fingerprint = _fingerprint(files)
    cache = _cache_path(folder, fingerprint)
    if _cached_fingerprint(cache) == fingerprint:
        try:
            return _from_npz(cache)
        except DataError as error:
            log.warning("decoding the images again: %s", error)
    classes = sorted(files["train"])
    arrays = {"classes": np.array(classes), "fingerprint": np.array(fingerprint)}
    for split, by_class in files.items():
        arrays[f"x_{split}"] = _decode([path for name in classes for path in by_class[name]], split, progress)
        arrays[f"y_{split}"] = np.repeat(np.arange(len(classes)), [len(by_class[name]) for name in classes])
    data = _checked(str(folder), *(arrays[name] for name in ARRAYS))
    _write_cache(cache, arrays)
    return data


def _list_images(folder: Path) -> dict[str, list[Path]]:
    """Class name → sorted image files."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; class folders belong in train/<class>/ and test/<class>/")
    found = {entry.name: sorted(path for path in entry.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES
                                and not path.name.startswith("."))
             for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")}
    empty = [name for name, paths in found.items() if not paths]
    if empty or not found:
        raise DataError(f"{folder / empty[0] if empty else folder}: holds no .png or .jpg image; add some or delete it")
    return found


def _fingerprint(files: dict) -> str:
    digest = hashlib.sha256()
    for split, by_class in sorted(files.items()):
        for name, paths in sorted(by_class.items()):
            for path in paths:
                stat = path.stat()
                digest.update(f"{split}/{name}/{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


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


def _decode(paths: list[Path], split: str, progress: str) -> np.ndarray:
    """uint8 [N, 32, 32, 3] of image files, in order."""
    with ThreadPoolExecutor(cpu_cores()) as pool:       # Pillow decodes outside the interpreter's lock
        return np.stack(list(tqdm(pool.map(_decode_image, paths), f"decoding {split} images", len(paths),
                                  disable=progress_style(progress) != "bar", leave=False)))


def _decode_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded ({error}); replace or delete the file") from error
    if pixels.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise DataError(f"{path}: {pixels.shape[1]}×{pixels.shape[0]} pixels; resize it to {IMAGE_SIZE}×{IMAGE_SIZE}")
    return pixels


def _checked(name: str, x_train, y_train, x_test, y_test, classes) -> ImageData:
    """ImageData from arrays with checked shapes, types and labels. Raises DataError naming `name`."""
    classes = np.asarray(classes)
    if classes.ndim != 1 or len(np.unique(classes)) != len(classes):
        raise DataError(f"{name}: classes is {classes.dtype} {list(classes.shape)}; must be a list of distinct names")
    classes = tuple(item.decode() if isinstance(item, bytes) else str(item) for item in classes)
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
        raise ValueError(f"val_size={val_size}: must be below the {len(labels)} training images")
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
