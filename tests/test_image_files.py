"""image_files: one decoder for every way in, every format, and one clear line for what is no picture."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from helpers import image_files
from helpers.data import load_cifar100
from helpers.image_files import DataError, network_input, open_picture, picture_suffixes

ROOT = Path(__file__).resolve().parent.parent
RANDOM = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)


def error_of(source, **more) -> str:
    with pytest.raises(DataError) as caught:
        network_input(source, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RANDOM[..., :3]).save(path, exif=exif)


ODD = {
    "16 bits": lambda path: Image.fromarray(RANDOM[..., 0].astype(np.uint16) * 257).save(path),
    "transparent": lambda path: Image.fromarray(RANDOM).save(path),
    "grey and transparent": lambda path: Image.fromarray(RANDOM[..., 2:]).convert("LA").save(path),
    "a transparent colour": lambda path: Image.fromarray(RANDOM[..., 0]).quantize(8).save(path, transparency=3),
    "turned": turned,
    "plain": lambda path: Image.fromarray(RANDOM[..., :3]).save(path)}


@pytest.mark.parametrize("kind", ODD)
def test_training_and_prediction_see_the_same_pixels(kind, folders, config_for):
    path = folders / "train" / "ant" / "000.png"
    ODD[kind](path)
    trained = load_cifar100(config_for(folders)).train_images[0]
    assert torch.equal(trained, network_input(path))
    with open(path, "rb") as file:
        assert torch.equal(trained, network_input(file))
    expected = {"16 bits": RANDOM[..., :1].repeat(3, 2), "plain": RANDOM[..., :3],
                "turned": np.rot90(RANDOM[..., :3], -1)}.get(kind)
    assert expected is None or np.array_equal(trained.numpy(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RANDOM[..., :3]).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    assert np.array_equal(network_input(tmp_path / "a.png").numpy(), expected)


def test_damaged_tags_do_not_cost_a_good_picture(tmp_path):
    Image.fromarray(RANDOM[..., :3]).save(tmp_path / "a.png", exif=b"Exif\0\0hello")
    assert np.array_equal(network_input(tmp_path / "a.png").numpy(), RANDOM[..., :3])


def test_what_is_transparent_lies_on_white():
    assert network_input(Image.new("RGBA", (32, 32), (0, 0, 0, 0))).min() == 255
    assert network_input(Image.new("RGBA", (32, 32), (0, 0, 0, 255))).max() == 0


@pytest.mark.parametrize("suffix", ["webp", "bmp", "tif", "tiff", "gif", "jfif", "jpe", "ppm", "tga", "avif", "png"])
def test_every_format_that_pillow_writes_is_read(suffix, tmp_path):
    if suffix in ("webp", "avif") and not features.check(suffix):
        pytest.skip(f"this Pillow has no {suffix}")
    path = tmp_path / f"picture.{suffix}"
    Image.new("RGB", (32, 32), (200, 100, 50)).save(path, "JPEG" if suffix in ("jfif", "jpe") else None)
    assert path.suffix in picture_suffixes()
    assert np.abs(network_input(path, resize=False).numpy().astype(int) - (200, 100, 50)).max() <= 4


def test_formats_that_pillow_only_recognises_are_no_pictures():
    assert {".png", ".jpg", ".jpeg", ".gif", ".bmp"} <= picture_suffixes()
    assert not {".mpg", ".h5", ".pdf", ".txt", ".npz"} & picture_suffixes()


def test_the_size_is_looked_at_before_decoding(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("1", (9000, 9000)).save(path)
    monkeypatch.setattr(image_files, "_upright_rgb", lambda picture: pytest.fail("was decoded"))
    assert "9000×9000" in error_of(path) and "50 million" in error_of(path)
    assert "9000×9000" in error_of(path, resize=False) and "resize=true" in error_of(path, resize=False)


def test_a_large_photograph_is_decoded_small(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (8000, 7000), (200, 100, 50)).save(path)
    assert open_picture(path).width < 2500
    assert "8000×7000" in error_of(path, resize=False)


def make_link(path):
    path.symlink_to(path.with_name("nothing"))


@pytest.mark.parametrize("make, says", [(make_link, "a link to nothing"), (lambda path: path.mkdir(), "a folder"),
                                        (lambda path: os.mkfifo(path), "a pipe"), (lambda path: None, "no such file"),
                                        (lambda path: path.touch(), "empty"),
                                        (lambda path: path.write_text("<!DOCTYPE html>"), "web page"),
                                        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
                                         "Git LFS")])
def test_what_is_named_like_a_picture_is_told(make, says, tmp_path):
    try:
        make(tmp_path / "x.png")
    except (OSError, AttributeError):
        pytest.skip("this system makes none")
    assert says in error_of(tmp_path / "x.png") and "x.png" in error_of(tmp_path / "x.png")


@pytest.mark.parametrize("given, says", [
    (None, "NoneType"), (3.5, "float"), (b"bytes", "bytes"), (np.zeros((32, 32, 3)), "float64 [32, 32, 3]"),
    (torch.zeros(3, 32, 32), "float32 [3, 32, 32]"), (torch.zeros(3, 32, 32, dtype=torch.uint8), "uint8 [3, 32, 32]"),
    (np.zeros((0, 32, 3), np.uint8), "[0, 32, 3]"), (np.zeros((2, 32, 32, 3), np.uint8), "[2, 32, 32, 3]"),
    (Image.new("RGB", (0, 5)), "no pixels"), (Image.new("F", (5, 5)), "32 bits"), ("a\0b", "no such file"),
    (Image.fromarray(np.full((5, 5), 70000, np.int32)), "32 bits")])
def test_what_cannot_be_a_picture_gets_one_line(given, says):
    assert says in error_of(given)


def test_arrays_and_tensors_are_pictures():
    pixels = RANDOM[..., :3]
    assert np.array_equal(network_input(pixels), pixels)
    assert np.array_equal(network_input(torch.from_numpy(pixels)), pixels)
    assert np.array_equal(network_input(RANDOM[..., 0]), RANDOM[..., :1].repeat(3, 2))


@pytest.mark.parametrize("suffix", ["PNG", "AVIF", "WEBP", "JPEG"])
def test_the_first_half_of_a_picture_is_refused(suffix):
    content = io.BytesIO()
    if suffix in ("AVIF", "WEBP") and not features.check(suffix.lower()):
        pytest.skip(f"this Pillow has no {suffix}")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)).save(content, suffix)
    half = io.BytesIO(content.getvalue()[:len(content.getvalue()) // 2])
    assert "half" in error_of(half, name="half")


def test_pillow_prints_no_warnings_of_its_own(tmp_path):
    """In a process of its own: pytest has other filters."""
    Image.new("1", (9600, 9600)).save(tmp_path / "large.png")
    tags = b"II*\0\x08\0\0\0\x01\0" + b"\x0e\x01\x02\0\xff\xff\0\0\xff\xff\0\0" + bytes(4)
    (tmp_path / "damaged.tif").write_bytes(tags)
    source = ("import sys\nfrom helpers.image_files import DataError, network_input\nfor path in sys.argv[1:]:\n"
              "    try:\n        network_input(path)\n    except DataError as error:\n        print(error)\n")
    done = subprocess.run([sys.executable, "-W", "default", "-c", source, *map(str, sorted(tmp_path.iterdir()))],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 2 and done.stdout.count(str(tmp_path)) == 2
