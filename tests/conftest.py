"""What the tests share: a tiny data set as arrays, as class folders, as .npz and as ImageData."""

import logging
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():       # before torchvision imports Triton
    os.environ.setdefault("TRITON_INTERPRET", "1")

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS.parent))       # plain `pytest` puts only tests/ there

from helpers.config import TrainingConfig  # noqa: E402
from helpers.data import ImageData  # noqa: E402

torch.set_num_threads(1)        # the networks and batches here are too small for more

# As in a terminal's foreground: background jobs ignore Ctrl-C, those of nohup SIGHUP, and so would their children.
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if signal.getsignal(number := getattr(signal, name, signal.SIGINT)) is signal.SIG_IGN:
        signal.signal(number, handler)

CLASSES = ("ant", "bee", "cat")
FOR_A_GPU = {"gpu", "test_fused.py"}        # in tests/: what takes a GPU where there is one


# A GPU does not promise the same bits twice, and tests keep their tensors on the CPU: so `device="auto"` is the CPU for
# all tests but those of the GPU. As one run of pytest has both kinds, and a process cannot hide its GPU and find it
# again, this is no environment variable. It holds for a module, so for fixtures that train too. Child processes see the
# machine as it is: notebooks and train.py run on its GPU.
@pytest.fixture(autouse=True, scope="module")
def automatic_device(request):
    """Let the automatic device be the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        if FOR_A_GPU.isdisjoint(request.path.relative_to(TESTS).parts):
            patch.setattr("helpers.trainer.SAVE_SECONDS", 0.0)      # tests train an epoch in no time
            patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Each test draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def project_log():
    """Give each test the project's logger as a program finds it: what an earlier test's pipeline set is gone."""
    log = logging.getLogger("cifar100")
    before = log.handlers, log.level, log.propagate
    log.handlers, log.level, log.propagate = [], logging.NOTSET, True
    yield
    for handler in log.handlers:
        handler.close()
    log.handlers, log.level, log.propagate = before


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """A set of three classes, six training and two test images each, as a prepared .npz holds it."""
    random = np.random.default_rng(0)
    return {"x_train": random.integers(0, 256, (18, 32, 32, 3), dtype=np.uint8),
            "y_train": np.repeat(np.arange(3), 6),
            "x_test": random.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8),
            "y_test": np.repeat(np.arange(3), 2),
            "classes": np.array(CLASSES)}


@pytest.fixture
def write_folders():
    """A function that writes such arrays as PNG files in `<folder>/train/<class>/` and `<folder>/test/<class>/`."""
    def write(folder: Path, arrays: dict) -> Path:
        for split in ("train", "test"):
            for number, (pixels, label) in enumerate(zip(arrays[f"x_{split}"], arrays[f"y_{split}"])):
                path = folder / split / str(arrays["classes"][label]) / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
        return folder
    return write


@pytest.fixture
def folders(tmp_path, arrays, write_folders, monkeypatch) -> Path:
    """The set as class folders; the test runs in a directory of its own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return write_folders(tmp_path / "set", arrays)


@pytest.fixture
def npz(tmp_path, arrays) -> Path:
    """The set as `cifar100.npz`, made by a user."""
    path = tmp_path / "cifar100.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def tiny_data(arrays) -> ImageData:
    names = ("x_train", "y_train", "x_test", "y_test")
    return ImageData(*(torch.from_numpy(arrays[name]) for name in names), CLASSES)


@pytest.fixture
def config_for():
    """A function that makes the configuration which loads the set in a folder."""
    def make(folder, num_classes=3, **settings) -> TrainingConfig:
        return TrainingConfig(data_dir=str(folder), num_classes=num_classes, progress="none", **settings)
    return make
