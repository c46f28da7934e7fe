"""original_files: the published pickles and Parquet files, whole, moved, changed and cut off."""

import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import data as data_module
from helpers import original_files
from helpers.data import DataError, load_cifar100


@pytest.fixture
def original(tmp_path, arrays, monkeypatch):
    """The tiny set as files of the original's form, in cifar-100-python and packed beside it; no network."""
    rows = {split: {"data": arrays[f"x_{split}"].transpose(0, 3, 1, 2).reshape(-1, 3072),
                    "fine_labels": arrays[f"y_{split}"].tolist()} for split in ("train", "test")}
    rows["meta"] = {"fine_label_names": arrays["classes"].tolist()}
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, content in rows.items():
        (folder / name).write_bytes(pickle.dumps(content, 2))
    archive = folder.with_name("cifar-100-python.tar.gz")
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, folder.name)
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in rows}
    monkeypatch.setattr(original_files, "MD5", md5)
    monkeypatch.setattr(original_files.datasets.CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(data_module, "download_url", lambda *_: pytest.fail("tried to download"))
    return folder.parent


def assert_holds(data, arrays):
    for tensor, name in ((data.train_images, "x_train"), (data.train_labels, "y_train"),
                         (data.test_images, "x_test"), (data.test_labels, "y_test")):
        assert np.array_equal(tensor.numpy(), arrays[name]) and tensor.is_contiguous()
    assert data.class_names == tuple(arrays["classes"])


@pytest.mark.parametrize("there", ["all", "unpacked", "packed", "bare", "bare in a folder"])
def test_the_original_is_read_wherever_its_files_lie(there, original, arrays, config_for):
    folder, archive = original / "cifar-100-python", original / "cifar-100-python.tar.gz"
    if there != "all":
        archive.unlink() if there != "packed" else [path.unlink() for path in folder.iterdir()]
    if there == "bare":
        for path in folder.iterdir():
            path.rename(original / path.name)
        folder.rmdir()
    if there == "bare in a folder":
        folder.rename(original / "kaggle")
    data = load_cifar100(config_for(original))
    assert_holds(data, arrays)
    assert str(original) in str(data)


def test_a_download_is_read_where_it_lies(original, arrays, config_for, monkeypatch):
    content = (original / "cifar-100-python.tar.gz").read_bytes()

    def download(url, root, filename, md5):
        os.makedirs(root, exist_ok=True)
        with open(os.path.join(root, filename), "wb") as file:
            file.write(content)
    monkeypatch.setattr(data_module, "download_url", download)
    assert_holds(load_cifar100(config_for(original / "new", data_source="torchvision")), arrays)


def test_parquet_files_of_which_some_are_missing_are_told(tmp_path, config_for):
    for name in ("train-00000-of-00002", "test-00000-of-00001"):
        (tmp_path / f"{name}.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="train-00000-of-00002.parquet: is one of 2 files, of which 1 can be seen"):
        load_cifar100(config_for(tmp_path))


def spoil(path, how):
    content = bytearray(path.read_bytes())
    if how == "changed":
        content[-40] ^= 1
    path.write_bytes({"cut off": content[:len(content) // 2], "web page": b"<html>sign in</html>",
                      "empty": b""}.get(how, content))


@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize("how", ["changed", "cut off", "web page", "empty", "missing"])
def test_a_file_that_is_not_the_original_is_named(name, how, original, config_for):
    (original / "cifar-100-python.tar.gz").unlink()
    path = original / "cifar-100-python" / name
    path.unlink() if how == "missing" else spoil(path, how)
    with pytest.raises(DataError) as caught:
        load_cifar100(config_for(original))
    message = str(caught.value)
    assert str(path) in message and "is not in data_dir" not in message
    assert {"missing": "is missing", "web page": "web page"}.get(how, "is not the original") in message
    assert how == "missing" or path.exists()


def test_a_good_archive_replaces_a_bad_file_and_leaves_it(original, arrays, config_for, caplog):
    path = original / "cifar-100-python" / "train"
    spoil(path, "changed")
    before = path.read_bytes()
    assert_holds(load_cifar100(config_for(original)), arrays)
    assert path.read_bytes() == before and "instead" in caplog.text


class RunsCode:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_with_code_is_not_opened(original, config_for, tmp_path):
    (original / "cifar-100-python.tar.gz").unlink()
    (original / "cifar-100-python" / "meta").write_bytes(pickle.dumps(RunsCode(tmp_path / "was run")))
    with pytest.raises(DataError, match="is not the original"):
        load_cifar100(config_for(original))
    assert not (tmp_path / "was run").exists()


# Parquet ---------------------------------------------------------------------------------------------------

NAMES = sorted(member for members in data_module.SUPERCLASSES.values() for member in members.split())


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """The folder of a set of 100 classes in Hugging Face's form, two training files and one test file; its pixels."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    monkeypatch.chdir(tmp_path)
    folder, random, pixels = tmp_path / "hub", np.random.default_rng(0), {}
    folder.mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pixels[name] = random.integers(0, 256, (100, 32, 32, 3), np.uint8)
        rows = [{"bytes": png_of(image), "path": None} for image in pixels[name]]
        parquet.write_table(pyarrow.table({"img": rows, "fine_label": list(range(100)),
                                           "coarse_label": [0] * 100}), folder / f"{name}.parquet")
    return folder, pixels


def png_of(image) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def test_parquet_files_are_read_and_kept(parquet, config_for, monkeypatch):
    folder, pixels = parquet
    for _ in range(2):
        data = load_cifar100(config_for(folder, num_classes=100))
        assert np.array_equal(data.train_images, np.concatenate(list(pixels.values())[:2]))
        assert data.class_names == tuple(NAMES) and len(data.superclass_names) == 20
        assert torch.equal(data.test_labels, torch.arange(100)) and "Parquet" in str(data)
        monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)     # the second time from the .npz


@pytest.mark.parametrize("content, says", [(b"PAR1 half", "cannot be read"), (b"<html>", "web page"), (b"", "cannot")])
def test_a_damaged_parquet_file_is_named(content, says, parquet, config_for):
    path = parquet[0] / "test-00000-of-00001.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        load_cifar100(config_for(parquet[0], num_classes=100))
    assert str(path) in str(caught.value)


def test_parquet_of_another_set_says_what_it_lacks(parquet, config_for):
    import pyarrow
    path = parquet[0] / "train-00000-of-00002.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": [1]}), path)
    with pytest.raises(DataError, match="img.*fine_label"):
        load_cifar100(config_for(parquet[0], num_classes=100))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, config_for, monkeypatch):
    for name in ("train-0.parquet", "test-0.parquet"):
        (tmp_path / name).write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match="pip install pyarrow"):
        load_cifar100(config_for(tmp_path))
