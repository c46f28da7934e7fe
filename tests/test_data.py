"""data: every source against the arrays it was made of, every broken file, and the split."""

import dataclasses
import errno
import logging
import os
import shutil
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import data as data_module
from helpers.data import DataError, ImageData, load_cifar100, stratified_split
from helpers.image_files import network_input

# The official table, typed from https://www.cs.toronto.edu/~kriz/cifar.html in its own spelling and order.
OFFICIAL_SUPERCLASSES = """
aquatic mammals: beaver, dolphin, otter, seal, whale
fish: aquarium fish, flatfish, ray, shark, trout
flowers: orchids, poppies, roses, sunflowers, tulips
food containers: bottles, bowls, cans, cups, plates
fruit and vegetables: apples, mushrooms, oranges, pears, sweet peppers
household electrical devices: clock, computer keyboard, lamp, telephone, television
household furniture: bed, chair, couch, table, wardrobe
insects: bee, beetle, butterfly, caterpillar, cockroach
large carnivores: bear, leopard, lion, tiger, wolf
large man-made outdoor things: bridge, castle, house, road, skyscraper
large natural outdoor scenes: cloud, forest, mountain, plain, sea
large omnivores and herbivores: camel, cattle, chimpanzee, elephant, kangaroo
medium-sized mammals: fox, porcupine, possum, raccoon, skunk
non-insect invertebrates: crab, lobster, snail, spider, worm
people: baby, boy, girl, man, woman
reptiles: crocodile, dinosaur, lizard, snake, turtle
small mammals: hamster, mouse, rabbit, shrew, squirrel
trees: maple, oak, palm, pine, willow
vehicles 1: bicycle, bus, motorcycle, pickup truck, train
vehicles 2: lawn-mower, rocket, streetcar, tank, tractor
"""
# What the data files call a class where it is not the table's word with underscores.
NAMES_IN_FILES = {"orchids": "orchid", "poppies": "poppy", "roses": "rose", "sunflowers": "sunflower",
                  "tulips": "tulip", "bottles": "bottle", "bowls": "bowl", "cans": "can", "cups": "cup",
                  "plates": "plate", "apples": "apple", "mushrooms": "mushroom", "oranges": "orange", "pears": "pear",
                  "sweet peppers": "sweet_pepper", "computer keyboard": "keyboard", "maple": "maple_tree",
                  "oak": "oak_tree", "palm": "palm_tree", "pine": "pine_tree", "willow": "willow_tree",
                  "lawn-mower": "lawn_mower"}


def official_superclasses() -> dict[str, set[str]]:
    table = {}
    for line in OFFICIAL_SUPERCLASSES.strip().splitlines():
        superclass, members = line.split(": ")
        table[superclass] = {NAMES_IN_FILES.get(name, name.replace(" ", "_")) for name in members.split(", ")}
    return table


def assert_holds(data: ImageData, arrays: dict) -> None:
    """The tensors are these arrays, with the promised types."""
    for tensor, name in ((data.train_images, "x_train"), (data.train_labels, "y_train"),
                         (data.test_images, "x_test"), (data.test_labels, "y_test")):
        assert np.array_equal(tensor.numpy(), arrays[name])
        assert tensor.dtype == (torch.uint8 if name.startswith("x") else torch.int64)
    assert data.class_names == tuple(arrays["classes"])


def error_of(config) -> str:
    with pytest.raises(DataError) as caught:
        load_cifar100(config)
    return str(caught.value)


@pytest.fixture
def count_decoded(monkeypatch):
    """A list that grows by a path with each image file that is opened."""
    decoded, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path: decoded.append(path) or open_image(path))
    return decoded


# Class folders and their cache -----------------------------------------------------------------------------

def test_class_folders_give_the_images_they_hold(folders, arrays, config_for):
    data = load_cifar100(config_for(folders))
    assert_holds(data, arrays)
    assert str(folders) in str(data) and not data.note and data.superclass_of is None


def test_the_second_time_the_cache_is_read_and_gives_the_same(folders, arrays, config_for, count_decoded):
    load_cifar100(config_for(folders))
    assert len(count_decoded) == 24 and (folders / "cifar100.npz").is_file()
    assert_holds(load_cifar100(config_for(folders)), arrays)
    assert len(count_decoded) == 24


@pytest.mark.parametrize("change", ["changed", "added", "deleted"])
def test_the_cache_is_made_anew_when_a_file_is(change, folders, config_for, count_decoded):
    load_cifar100(config_for(folders))
    path = folders / "train" / "ant" / "000.png"
    white = Image.new("RGB", (32, 32), "white")
    if change == "deleted":
        path.unlink()
    else:
        white.save(path if change == "changed" else path.with_name("a new one.png"))
    data = load_cifar100(config_for(folders))
    assert len(count_decoded) > 24
    assert len(data.train_images) == {"changed": 18, "added": 19, "deleted": 17}[change]
    is_white = (data.train_images == 255).flatten(1).all(1)
    assert is_white.sum() == (change != "deleted") and data.train_labels.bincount()[1:].tolist() == [6, 6]


def test_the_cache_is_made_anew_when_a_file_of_the_same_size_is_newer(folders, config_for, count_decoded):
    path = folders / "train" / "ant" / "000.png"
    for colour, seconds in (("white", 1_000_000), ("black", 1_000_001)):
        Image.new("RGB", (32, 32), colour).save(path, compress_level=0)
        os.utime(path, (seconds, seconds))
        data = load_cifar100(config_for(folders))
    assert len(count_decoded) == 48 and data.train_images[0].max() == 0


def test_a_cache_that_outlives_its_folders_is_a_source(folders, tmp_path, arrays, config_for):
    load_cifar100(config_for(folders))
    (tmp_path / "elsewhere").mkdir()
    (folders / "cifar100.npz").rename(tmp_path / "elsewhere" / "cifar100.npz")
    assert_holds(load_cifar100(config_for(tmp_path / "elsewhere")), arrays)


def test_folders_that_cannot_be_written_to_are_cached_under_data(folders, arrays, config_for, monkeypatch,
                                                                 count_decoded):
    can_write = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(folders) and can_write(path, mode))
    for _ in range(2):
        assert_holds(load_cifar100(config_for(folders)), arrays)
    assert len(count_decoded) == 24
    assert not (folders / "cifar100.npz").exists() and len(list((folders.parent / "work/data").glob("*.npz"))) == 1


def test_a_cache_that_cannot_be_kept_is_a_warning(folders, arrays, config_for, monkeypatch, caplog):
    monkeypatch.setattr(data_module.np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    assert_holds(load_cifar100(config_for(folders)), arrays)
    assert "disk full" in caplog.text
    assert not list(folders.glob("*.npz")) and not list(folders.glob(".*"))       # no half a file


@pytest.mark.parametrize("content", ["arrays", "truncated"])
def test_a_users_own_npz_is_never_overwritten(content, folders, arrays, npz, config_for):
    own = folders / "cifar100.npz"
    own.write_bytes(npz.read_bytes() if content == "arrays" else npz.read_bytes()[:1000])
    before = own.read_bytes()
    for _ in range(2):
        assert_holds(load_cifar100(config_for(folders)), arrays)
    assert own.read_bytes() == before


def test_folders_are_found_in_a_subfolder_cifar100(folders, arrays, config_for):
    folders.rename(folders.parent / "cifar100")
    assert_holds(load_cifar100(config_for(folders.parent)), arrays)


def test_files_that_are_no_images_of_the_set_are_passed_over(folders, arrays, config_for):
    for name in (".DS_Store", "train/.DS_Store", "train/README.txt", "train/ant/.DS_Store", "train/ant/._000.png",
                 "train/ant/Thumbs.db", "train/.ipynb_checkpoints/x.png"):
        (folders / name).parent.mkdir(exist_ok=True)
        (folders / name).write_bytes(b"no picture")
    assert_holds(load_cifar100(config_for(folders)), arrays)


def test_suffixes_in_capitals_and_jpeg_are_read(folders, arrays, config_for):
    (folders / "train/ant/000.png").rename(folders / "train/ant/000.PNG")
    smooth = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    Image.fromarray(smooth).save(folders / "test/cat/900.JPG", "JPEG")
    Image.fromarray(smooth).save(folders / "test/cat/901.jpeg", "JPEG")
    data = load_cifar100(config_for(folders))
    assert np.array_equal(data.train_images.numpy(), arrays["x_train"])
    assert np.abs(data.test_images[-2:].numpy().astype(int) - smooth).max() <= 3 and data.test_labels[-1] == 2


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA"])
def test_greyscale_palette_and_transparent_pictures_become_rgb(mode, folders, config_for):
    grey = (np.arange(1024) % 256).astype(np.uint8).reshape(32, 32)
    ramp = Image.fromarray(grey).convert("RGB").convert(mode)
    ramp.save(folders / "train/ant/000.png")
    assert np.array_equal(load_cifar100(config_for(folders)).train_images[0].numpy(), np.array(ramp.convert("RGB")))


def test_ten_classes_train_like_cifar10_folders(tmp_path, write_folders, config_for):
    random = np.random.default_rng(1)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    arrays = {"x_train": random.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), "y_train": np.arange(20) // 2,
              "x_test": random.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8), "y_test": np.arange(10),
              "classes": np.array(names)}
    data = load_cifar100(config_for(write_folders(tmp_path, arrays), num_classes=10))
    assert_holds(data, arrays)
    assert data.num_classes == 10 and data.superclass_names == ()


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def _resize(path):
    Image.new("RGB", (64, 48)).save(path)


@pytest.mark.parametrize("spoil, says", [(_truncate, "cannot be read"), (_resize, "64×48"),
                                         (lambda path: path.write_bytes(b""), "cannot be read"),
                                         (lambda path: path.write_bytes(b"GIF?"), "cannot be read")])
def test_a_spoilt_image_is_named(spoil, says, folders, config_for):
    path = folders / "train" / "bee" / "007.png"
    spoil(path)
    message = error_of(config_for(folders))
    assert str(path) in message and says in message
    assert not (folders / "cifar100.npz").exists()


@pytest.mark.parametrize("split, other", [("test", "train"), ("train", "test")])
def test_a_class_that_one_split_lacks_is_named(split, other, folders, config_for):
    (folders / split / "bee").rename(folders.parent / "away")
    message = error_of(config_for(folders))
    assert str(folders / split) in message and "bee" in message and str(folders / other) in message


def test_an_absent_split_and_an_empty_one_are_named(folders, config_for):
    (folders / "test").rename(folders.parent / "away")
    assert str(folders / "test") in error_of(config_for(folders, data_source="folder"))
    (folders / "test").mkdir()
    assert str(folders / "test") in error_of(config_for(folders))


# Layouts, and data of another kind -------------------------------------------------------------------------

@pytest.mark.parametrize("train, test", [("Train", "Test"), ("training", "val"), ("train", "valid"),
                                         ("TRAIN", "Validation"), ("train", "testing")])
def test_splits_under_other_names_are_found_and_said(train, test, folders, arrays, config_for):
    for name, other in (("train", train), ("test", test)):
        (folders / name).rename(folders / f"{other}.")
        (folders / f"{other}.").rename(folders / other)
    for _ in range(2):      # the second time from the cache
        data = load_cifar100(config_for(folders))
        assert_holds(data, arrays)
        assert str(folders / train) in str(data) and str(folders / test) in str(data)


def test_a_wrapping_folder_is_looked_into(folders, arrays, config_for):
    (folders.parent / "kaggle").mkdir()
    folders.rename(folders.parent / "kaggle" / "my pictures")
    data = load_cifar100(config_for(folders.parent / "kaggle"))
    assert_holds(data, arrays)
    assert "my pictures" in str(data)


def test_of_several_sets_none_is_chosen(folders, write_folders, arrays, config_for, no_network):
    write_folders(folders.parent / "other", arrays)
    message = error_of(config_for(folders.parent))
    assert "several" in message and "other" in message and "set" in message and not no_network


@pytest.mark.parametrize("layout", ["flat", "only train", "deep", "an archive", "an array", "HEIC"])
def test_a_set_in_an_unknown_form_is_not_replaced_by_cifar100(layout, folders, config_for, no_network):
    if layout == "flat":
        for path in (folders / "train").iterdir():
            path.rename(folders / path.name)
        (folders / "train").rmdir()
        shutil.rmtree(folders / "test")
    elif layout == "only train":
        shutil.rmtree(folders / "test")
    elif layout == "deep":
        (folders.parent / "deep" / "deeper").mkdir(parents=True)
        (folders.parent / "deep" / "another").mkdir()
        folders.rename(folders.parent / "deep" / "deeper" / "set")
        (folders.parent / "deep").rename(folders)
    else:
        shutil.rmtree(folders)
        folders.mkdir()
        (folders / {"an archive": "all.zip", "an array": "mine.npz", "HEIC": "IMG_1.HEIC"}[layout]).write_bytes(b"mine")
    message = error_of(config_for(folders, num_classes=100))
    assert not no_network and "not downloaded in place of them" in message and "data_source='torchvision'" in message
    found = {"flat": "ant", "only train": "train", "deep": "deeper", "an archive": "all.zip", "an array": "mine.npz",
             "HEIC": "IMG_1.HEIC"}[layout]
    assert found in message
    if layout in ("flat", "only train"):
        assert "need train and test as well" in message if layout == "flat" else "need test as well" in message
    error_of(config_for(folders, num_classes=100, data_source="torchvision"))
    assert no_network       # that was asked for


@pytest.mark.parametrize("name", ["cifar-10-images/a/1.png", "cifar100-mine/a/1.png", "cifar-10.zip", "train.csv"])
def test_names_like_those_of_downloads_are_data_of_ones_own(name, tmp_path, config_for, no_network):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    assert "not downloaded in place of them" in error_of(config_for(tmp_path)) and not no_network


def test_linked_folders_are_data_of_ones_own(folders, tmp_path, config_for, no_network):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pictures").symlink_to(folders / "train")
    assert "not downloaded in place of them" in error_of(config_for(tmp_path / "data")) and not no_network


def test_a_disk_that_cannot_be_read_now_is_told(folders, config_for, monkeypatch):
    """As Google Drive after many requests."""
    def failing(folder):
        raise OSError(errno.EIO, "Input/output error", str(folder))

    monkeypatch.setattr(os, "scandir", failing)
    message = error_of(config_for(folders))
    assert message.startswith(f"{folders}: cannot be read now (Input/output error); try again")


def test_folders_around_a_set_are_looked_into(folders, config_for):
    outer = folders.parent / "outer"
    (outer / "set" / "__MACOSX").mkdir(parents=True)
    folders.rename(outer / "set" / "set")
    data = load_cifar100(config_for(outer))
    assert len(data.train_images) == 18 and str(outer / "set" / "set") in data.source


def test_what_downloads_leave_behind_is_no_data_of_ones_own(tmp_path, config_for, no_network):
    for name in ("cifar-10-python.tar.gz", "cifar100-0123456789abcdef.npz", ".x.zip", "notes.txt",
                 "cifar-10-batches-py/data.pkl", "__MACOSX/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    error_of(config_for(tmp_path, num_classes=100))
    assert no_network


def test_a_data_dir_that_is_a_file_is_named(npz, config_for):
    assert "is a file" in error_of(config_for(npz))


def test_pictures_of_another_size_are_resized_on_request(folders, config_for):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    picture.save(folders / "train" / "ant" / "000.png")
    assert "resize=true" in error_of(config_for(folders))
    data = load_cifar100(config_for(folders, resize=True))
    assert torch.equal(data.train_images[0], network_input(picture))
    assert "70×50" in error_of(config_for(folders))         # the cache is of resized ones


# A prepared .npz -------------------------------------------------------------------------------------------

def test_a_prepared_npz_gives_its_arrays(npz, arrays, config_for):
    assert_holds(load_cifar100(config_for(npz.parent)), arrays)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, ">i8", np.uint64])
def test_labels_of_any_whole_number_type_and_names_as_bytes_are_taken(dtype, npz, arrays, config_for):
    np.savez(npz, **{**arrays, "y_train": arrays["y_train"].astype(dtype), "classes": arrays["classes"].astype("S")})
    assert_holds(load_cifar100(config_for(npz.parent)), arrays)


def _with(**changes):
    return lambda arrays: {**arrays, **{name: change(arrays[name]) for name, change in changes.items()}}


BROKEN = {
    "an array is missing": (lambda arrays: {"x_train": arrays["x_train"]}, "lacks the arrays y_train, x_test"),
    "pickled objects": (_with(y_train=lambda y: y.astype(object)), "plain arrays"),
    "pickled names": (_with(classes=lambda names: names.astype(object)), "plain arrays"),
    "names in Big5": (_with(classes=lambda names: np.array([b"\xbf\xdf", b"a", b"b"])), "not UTF-8"),
    "a single class": (lambda arrays: {**arrays, "y_train": arrays["y_train"] * 0, "y_test": arrays["y_test"] * 0,
                                       "classes": np.array(["ant"])}, "at least two"),
    "images as floats": (_with(x_train=lambda x: x / 255), "x_train is float64"),
    "channels first": (_with(x_test=lambda x: x.transpose(0, 3, 1, 2)), "x_test is uint8 [6, 3, 32, 32]"),
    "another size": (_with(x_train=lambda x: x[:, :28, :28]), "[18, 28, 28, 3]"),
    "flat images": (_with(x_train=lambda x: x.reshape(18, -1)), "[18, 3072]"),
    "no images": (_with(x_test=lambda x: x[:0]), "x_test is uint8 [0, 32, 32, 3]"),
    "one label too few": (_with(y_train=lambda y: y[1:]), "y_train is int64 [17]"),
    "labels in a column": (_with(y_train=lambda y: y[:, None]), "[18, 1]"),
    "labels as floats": (_with(y_test=lambda y: y.astype(float)), "y_test is float64"),
    "a label too large": (_with(y_train=lambda y: y + 1), "labels from 1 to 3"),
    "a negative label": (_with(y_train=lambda y: y - 1), "labels from -1 to 1"),
    "a class without images": (_with(y_test=lambda y: np.where(y == 1, 0, y)), "no image of class 'bee'"),
    "a class twice": (_with(classes=lambda names: np.array(["ant", "bee", "ant"])), "distinct"),
    "a single name": (_with(classes=lambda names: np.array("ant")), "distinct"),
}


@pytest.mark.parametrize("spoil, says", BROKEN.values(), ids=BROKEN)
def test_a_wrong_npz_is_named_with_what_is_wrong(spoil, says, npz, arrays, config_for):
    np.savez(npz, **spoil(arrays))
    message = error_of(config_for(npz.parent))
    assert str(npz) in message and says in message


@pytest.mark.parametrize("content", ["half", "empty", "text", "a single array", "damaged", "a pickle", "<html>"])
def test_a_file_that_is_no_npz_is_named(content, npz, arrays, config_for):
    if content == "a single array":
        with open(npz, "wb") as file:
            np.save(file, arrays["x_train"])
    elif content == "damaged":      # inside the compressed pixels
        np.savez_compressed(npz, **arrays)
        spoilt = bytearray(npz.read_bytes())
        spoilt[2000:2100] = bytes(100)
        npz.write_bytes(spoilt)
    else:
        whole = npz.read_bytes()
        start = {"half": whole[:len(whole) // 2], "empty": b"", "text": b"no arrays", "a pickle": b"\x80\x04}."}
        npz.write_bytes(start.get(content, content.encode()))
    message = error_of(config_for(npz.parent))
    assert str(npz) in message and "cannot be read" in message and "pickle" not in message     # nor NumPy's advice
    assert content != "text" or "it is text, not the file itself: 'no arrays'" in message
    assert ("web page" in message) == (content == "<html>")


def test_no_flipped_bit_of_an_npz_is_believed(npz, arrays, config_for):
    """Also where it makes an array smaller, so that NumPy does not reach the CRC: here the names of classes."""
    np.savez(npz, **{**arrays, "classes": arrays["classes"].astype("<U1900")})
    content, draw = npz.read_bytes(), np.random.default_rng(0)
    smaller = content.index(b"<U1900") + 3
    for place, bit in [(smaller, 0), *zip(draw.integers(0, len(content), 150), draw.integers(0, 8, 150))]:
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << bit
        npz.write_bytes(spoilt)
        try:
            data = load_cifar100(config_for(npz.parent, data_source="npz"))
        except DataError as error:
            assert str(npz) in str(error)
        else:
            assert_holds(data, arrays)      # it was in padding
            assert place != smaller


def test_a_damaged_cache_of_class_folders_is_made_anew(folders, arrays, config_for, caplog):
    load_cifar100(config_for(folders))
    cache = folders / "cifar100.npz"
    content = bytearray(cache.read_bytes())
    content[content.index(arrays["x_train"][:1].tobytes())] ^= 1
    cache.write_bytes(content)
    with caplog.at_level(logging.WARNING, "cifar100"):
        assert_holds(load_cifar100(config_for(folders)), arrays)
    assert "decoding the images again" in caplog.text and str(cache) in caplog.text
    caplog.clear()
    load_cifar100(config_for(folders))
    assert caplog.text == ""


def test_an_npz_that_is_asked_for_and_absent_is_named(tmp_path, config_for):
    assert str(tmp_path / "cifar100.npz") in error_of(config_for(tmp_path, data_source="npz"))


def test_another_number_of_classes_than_configured_names_both(npz, config_for):
    message = error_of(config_for(npz.parent, num_classes=100))
    assert "num_classes=100" in message and str(npz) in message and "set num_classes=3" in message


# torchvision and the drawn set -----------------------------------------------------------------------------

@pytest.fixture
def no_network(monkeypatch):
    """Counts the attempts to download; each fails as it does without a network."""
    attempts = []

    def fail(*_, **__):
        attempts.append(1)
        raise urllib.error.URLError("Name or service not known")
    monkeypatch.setattr(data_module, "download_url", fail)
    return attempts


REMEDIES = ["connect", "cifar-100-python.tar.gz", "train/<class>", "test/<class>", "cifar100.npz", "/kaggle/input",
            "preset='demo'", "data_dir"]


def test_when_nothing_is_reachable_one_error_lists_every_remedy(tmp_path, config_for, no_network):
    message = error_of(config_for(tmp_path, num_classes=100))
    assert no_network and "Name or service not known" in message and str(tmp_path) in message
    assert [remedy for remedy in REMEDIES if remedy not in message] == []


def test_download_false_does_not_touch_the_network(tmp_path, config_for, no_network):
    message = error_of(config_for(tmp_path, num_classes=100, download=False))
    assert not no_network and "download=False" in message
    assert [remedy for remedy in REMEDIES if remedy not in message] == []


def test_cifar100_is_not_downloaded_for_another_number_of_classes(tmp_path, config_for, no_network):
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert "num_classes=10, but" in error_of(config_for(tmp_path, num_classes=10)) and not no_network


@pytest.mark.parametrize("download", [True, False])
def test_a_truncated_archive_is_named(download, tmp_path, config_for, no_network):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"\x1f\x8b half an archive")
    message = error_of(config_for(tmp_path, num_classes=100, download=download))
    assert f"{tmp_path / 'cifar-100-python.tar.gz'} is damaged" in message and "is not in data_dir" not in message
    assert bool(no_network) == download


def test_drawn_data_say_so_and_are_deterministic(config_for, tmp_path):
    config = config_for(tmp_path, data_source="drawn", num_classes=100)
    first, second = load_cifar100(config), load_cifar100(config)
    assert first.note == "drawn demo data" and str(first).startswith("drawn demo data")
    assert torch.equal(first.train_images, second.train_images) and torch.equal(first.test_labels, second.test_labels)
    assert first.num_classes == 100 and first.superclass_of.bincount().tolist() == [5] * 20
    assert first.train_images.shape[1:] == (32, 32, 3) and first.train_images.dtype == torch.uint8


# What a set knows of itself --------------------------------------------------------------------------------

def test_superclasses_are_the_official_ones(npz, config_for):
    official = official_superclasses()
    names = sorted(name for members in official.values() for name in members)
    assert len(official) == 20 and len(set(names)) == 100
    images, labels = np.zeros((100, 32, 32, 3), np.uint8), np.arange(100)
    np.savez(npz, x_train=images, y_train=labels, x_test=images, y_test=labels, classes=np.array(names))
    data = load_cifar100(config_for(npz.parent, num_classes=100))
    superclasses, superclass_of = data.superclass_names, data.superclass_of.tolist()
    members = {superclass: {name for name, number in zip(data.class_names, superclass_of)
                            if superclasses[number] == superclass} for superclass in superclasses}
    assert members == official and superclasses == tuple(official)


def test_channel_statistics_are_numpys(tiny_data, arrays):
    mean, std = tiny_data.channel_statistics()
    pixels = arrays["x_train"].astype(np.float64) / 255
    assert mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-6)
    assert std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-6)


@pytest.mark.parametrize("spread", [(), (0,), (0, 2)])
def test_a_channel_without_spread_can_be_divided_by(tiny_data, spread):
    images = tiny_data.train_images.clone()
    for channel in {0, 1, 2} - set(spread):
        images[..., channel] = 7
    images[0, 0, 0, 1] += 1        # a single grey level in a single pixel is no spread either
    mean, std = dataclasses.replace(tiny_data, train_images=images).channel_statistics()
    assert [deviation == 1 for deviation in std] == [channel not in spread for channel in range(3)]
    assert all(mean[channel] == pytest.approx(7 / 255, abs=1e-5) for channel in {0, 1, 2} - set(spread))


# Split -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("val_size", [0, 1, 7, 100, 333, 500])
@pytest.mark.parametrize("counts", [[200] * 5, [500, 300, 150, 41, 9]])
def test_split_has_the_exact_size_and_each_class_its_share(val_size, counts):
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(counts))
    labels = labels[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    train, val = stratified_split(labels, val_size, seed=1)
    assert len(val) == val_size and sorted(train.tolist() + val.tolist()) == list(range(1000))
    assert train.dtype == val.dtype == torch.int64
    taken = labels[val].bincount(minlength=5).tolist()
    for count, number in zip(counts, taken):
        assert abs(number - val_size * count / 1000) < 1


def test_split_of_the_real_sizes_takes_fifty_of_each_class():
    labels = torch.arange(50_000) % 100
    _, val = stratified_split(labels, 5000, seed=42)
    assert labels[val].bincount().tolist() == [50] * 100


def test_split_depends_on_the_seed_alone():
    labels = torch.arange(300) % 3
    first, again, other = (stratified_split(labels, 60, seed)[1] for seed in (1, 1, 2))
    torch.manual_seed(99)
    assert torch.equal(first, again) and torch.equal(first, stratified_split(labels, 60, 1)[1])
    assert not torch.equal(first, other)


@pytest.mark.parametrize("val_size", [298, 299, 300, 1000])
def test_split_that_leaves_a_class_nothing_to_train_on_is_refused(val_size):
    with pytest.raises(ValueError, match=f"val_size={val_size}"):
        stratified_split(torch.arange(300) % 3, val_size, 0)


@pytest.mark.parametrize("counts", [[200] * 5, [500, 300, 150, 41, 9]])
def test_train_size_takes_each_class_its_share_and_leaves_the_validation_split_alone(counts):
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(counts))
    labels = labels[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    everything, val = stratified_split(labels, 200, seed=1)
    train, same_val = stratified_split(labels, 200, seed=1, train_size=400)
    assert torch.equal(val, same_val) and len(train) == 400 and set(train.tolist()) < set(everything.tolist())
    for number, left in zip(labels[train].bincount().tolist(), labels[everything].bincount().tolist()):
        assert abs(number - left / 2) < 1
    assert train.dtype == torch.int64 and torch.equal(train, train.sort().values)
    assert torch.equal(stratified_split(labels, 200, 1, train_size=800)[0], everything)
    assert len(stratified_split(labels, 0, 1, train_size=400)[0]) == 400


@pytest.mark.parametrize("train_size, remedy", [(241, "at most the 240 .* val_size=60"), (2, "choose a larger one")])
def test_train_size_beyond_what_is_there_or_below_one_a_class_is_refused(train_size, remedy):
    with pytest.raises(ValueError, match=f"train_size={train_size}: .*{remedy}"):
        stratified_split(torch.arange(300) % 3, 60, 0, train_size)
