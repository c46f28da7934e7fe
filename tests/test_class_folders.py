"""class_folders: which folders are splits and classes, which files pictures, and what is told of the others."""


import numpy as np
import pytest
from PIL import Image

from helpers.class_folders import find_splits, list_images
from helpers.data import load_cifar100
from helpers.image_files import DataError


@pytest.fixture
def listed(folders, caplog):
    """A function that lists the set: (number of pictures, what was told)."""
    def look():
        files = list_images(dict(zip(("train", "test"), find_splits(folders))))
        return sum(len(paths) for split in files.values() for paths in split.values()), caplog.text
    return look


def test_every_format_counts(folders, config_for):
    for number, suffix in enumerate(("webp", "bmp", "tif", "gif", "jfif")):
        Image.new("RGB", (32, 32), "white").save(folders / f"train/ant/z{number}.{suffix}",
                                                 "JPEG" if suffix == "jfif" else None)
    data = load_cifar100(config_for(folders))
    assert len(data.train_images) == 23 and data.train_labels.bincount().tolist() == [11, 6, 6]


def test_what_is_left_out_is_counted_and_told(folders, listed):
    assert listed() == (24, "")
    for name in ("train/ant/a.heic", "train/bee/b.HEIC", "test/bee/notes.txt", "train/stray.json", "test/cat/none"):
        (folders / name).write_bytes(b"no picture")
    (folders / "train/ant/more").mkdir()
    count, told = listed()
    assert count == 24
    for kind in ("2 .heic", "1 .txt", "1 .json", "1 without suffix", "1 folder"):
        assert kind in told


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", "lost+found", ".ipynb_checkpoints", "$RECYCLE.BIN"])
def test_folders_of_the_system_are_no_classes(name, folders, listed):
    for split in ("train", "test"):
        (folders / split / name).mkdir()
        (folders / split / name / "x.png").write_bytes(b"")
        (folders / split / "ant" / name).mkdir()
    assert listed() == (24, "")


def test_empty_class_folders_are_told_with_their_names(folders, listed):
    for name in ("dog", "eel"):
        (folders / "train" / name).mkdir()
    (folders / "train" / "dog" / "IMG_1.heic").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        listed()
    assert all(text in str(caught.value) for text in (str(folders / "train" / "dog"), "eel", "1 .heic"))


def test_a_test_folder_without_classes_yields_to_val(folders, listed):
    (folders / "test").rename(folders / "val")
    (folders / "test").mkdir()
    (folders / "test" / "0001.png").write_bytes(b"")
    assert find_splits(folders) == (folders / "train", folders / "val")
    assert "test is not read" in listed()[1]


def test_a_validation_folder_beside_test_is_told(folders, listed):
    (folders / "val" / "ant").mkdir(parents=True)
    count, told = listed()
    assert count == 24 and "val is not read" in told


@pytest.mark.parametrize("make, says", [(lambda path: path.symlink_to("nothing"), "a link to nothing"),
                                        (lambda path: path.mkdir(), "a folder")])
def test_what_is_named_like_a_picture_and_is_none_is_named(make, says, folders, config_for):
    try:
        make(folders / "train" / "ant" / "x.png")
    except OSError:
        pytest.skip("this system makes none")
    with pytest.raises(DataError, match=f"x.png.*{says}"):
        load_cifar100(config_for(folders))


def test_a_pipe_is_not_waited_for(folders, config_for):
    os = pytest.importorskip("posix")
    os.mkfifo(folders / "train" / "ant" / "f.png")
    with pytest.raises(DataError, match="f.png.*a pipe"):
        load_cifar100(config_for(folders))


@pytest.mark.parametrize("name", ["👩\u200d🔬", "می\u200cخواهم", "貓\u3000狗", "a\u00a0b", "$\\foo$"])
def test_a_class_may_have_any_name_in_one_line(name, folders, config_for):
    """Joiners belong to emoji and to Persian, and there are spaces of several kinds."""
    for split in ("train", "test"):
        (folders / split / "ant").rename(folders / split / name)
    assert name in load_cifar100(config_for(folders)).class_names


def test_names_in_another_encoding(folders, config_for):
    """As an archive from Windows unpacks them: a picture may be called so, a class not."""
    try:
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folders / "train" / "ant" / "\udcac\udcbc.png")
    except (OSError, UnicodeError):
        pytest.skip("this system has no such names")
    assert len(load_cifar100(config_for(folders)).train_images) == 19
    for split in ("train", "test"):
        (folders / split / "ant").rename(folders / split / "\udcac\udcbc")
    with pytest.raises(DataError, match="rename the folder"):
        load_cifar100(config_for(folders))
