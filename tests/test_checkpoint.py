"""checkpoint: whole or not at all, rotated, the newest readable one found, no code run from a file."""

import logging
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import checkpoint
from helpers.checkpoint import CheckpointError

ROOT = Path(__file__).resolve().parent.parent


def state_at(step):
    return {"model_state_dict": {"weight": torch.full((50, 4), float(step))}, "step": step}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def set_age(path, seconds):
    """Make a file look as if it had been written that long ago."""
    written = path.stat().st_mtime - seconds
    os.utime(path, (written, written))


# Writing ---------------------------------------------------------------------------------------------------

def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    weights = {"weight": torch.randn(3, 4), "half": torch.randn(5).half(), "count": torch.tensor(7)}
    rest = {"history": [{"epoch": 1, "val_top1": None, "train_loss": 0.1}], "best": -float("inf"), "text": "類別"}
    path = checkpoint.save_atomically({"model_state_dict": weights, **rest}, tmp_path / "new folder" / "state.pt")
    loaded = checkpoint.load(path)
    found = loaded.pop("model_state_dict")
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    assert loaded == rest
    assert names_in(path.parent) == ["state.pt"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = checkpoint.save_atomically(state_at(1), tmp_path / "state.pt")

    def write_half(_state, file):
        file.write(b"half a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(type(error)):
        checkpoint.save_atomically(state_at(2), path)
    assert names_in(tmp_path) == ["state.pt"]
    assert checkpoint.load(path)["step"] == 1


def test_a_full_disk_is_an_os_error(tmp_path):
    resource = pytest.importorskip("resource")
    path = checkpoint.save_atomically(state_at(1), tmp_path / "state.pt")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError):
            checkpoint.save_atomically(state_at(2), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names_in(tmp_path) == ["state.pt"]
    assert checkpoint.load(path)["step"] == 1


def test_rotation_keeps_the_newest_two_and_everything_with_another_name(tmp_path):
    for name in ("best.pt", "final.pt", "notes.txt"):
        (tmp_path / name).write_text("mine")
    for step in (10, 20, 30, 40):
        checkpoint.save_step(state_at(step), tmp_path)
    assert names_in(tmp_path) == ["best.pt", "final.pt", "notes.txt", "step_0000030.pt", "step_0000040.pt"]


def test_a_run_that_starts_over_pushes_out_the_files_of_the_earlier_one(tmp_path):
    for step in (1000, 2000):
        set_age(checkpoint.save_step(state_at(step), tmp_path), seconds=3600)
    checkpoint.save_step(state_at(10), tmp_path)
    assert checkpoint.load_newest(tmp_path)[1]["step"] == 10
    checkpoint.save_step(state_at(20), tmp_path)
    assert names_in(tmp_path) == ["step_0000010.pt", "step_0000020.pt"]


def test_a_clock_put_back_does_not_cost_the_newest(tmp_path):
    for step in (10, 20):
        set_age(checkpoint.save_step(state_at(step), tmp_path), seconds=-3600)
    assert checkpoint.save_step(state_at(30), tmp_path).exists()


def test_half_written_files_of_a_killed_run_are_swept_up(tmp_path):
    (tmp_path / ".step_0000010.pt.12345.tmp").write_bytes(b"half")
    (tmp_path / ".best.pt.12345.tmp").write_bytes(b"half")
    checkpoint.save_step(state_at(20), tmp_path)
    assert names_in(tmp_path) == ["step_0000020.pt"]


# Reading ---------------------------------------------------------------------------------------------------

def test_nothing_to_load(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None
    assert checkpoint.load_newest(tmp_path / "no such folder") is None
    with pytest.raises(CheckpointError, match="there.pt: no such checkpoint"):
        checkpoint.load(tmp_path / "there.pt")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_a_truncated_newest_is_reported_and_passed_over(tmp_path, caplog, share):
    checkpoint.save_step(state_at(10), tmp_path)
    newest = checkpoint.save_step(state_at(20), tmp_path)
    content = newest.read_bytes()
    newest.write_bytes(content[:int(share * len(content))])
    with caplog.at_level(logging.WARNING, "cifar100"):
        path, state = checkpoint.load_newest(tmp_path)
    assert (path.name, state["step"]) == ("step_0000010.pt", 10)
    assert "skipped" in caplog.text and str(newest) in caplog.text


def test_an_empty_file_of_a_kill_while_deleting_is_ignored_and_swept(tmp_path, caplog):
    """It has the newest time."""
    for step in (10, 20):
        checkpoint.save_step(state_at(step), tmp_path)
    (tmp_path / "step_0000005.pt").touch()
    with caplog.at_level(logging.WARNING, "cifar100"):
        assert checkpoint.load_newest(tmp_path)[1]["step"] == 20
    checkpoint.save_step(state_at(30), tmp_path)
    assert caplog.text == "" and names_in(tmp_path) == ["step_0000020.pt", "step_0000030.pt"]


def assert_refused_or_the_same(path, damaged):
    """A flip in padding changes nothing."""
    path.write_bytes(damaged)
    try:
        loaded = checkpoint.load(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return False
    assert loaded["step"] == 10 and torch.equal(loaded["model_state_dict"]["weight"], torch.full((50, 4), 10.0))
    return True


def test_no_flipped_bit_and_no_lost_sector_is_believed(tmp_path):
    """torch alone does not look at the archive's CRCs."""
    path = checkpoint.save_step(state_at(10), tmp_path)
    content, draw, harmless = path.read_bytes(), random.Random(0), 0
    weights = content.index(torch.full((50, 4), 10.0).numpy().tobytes())
    places = [draw.randrange(len(content)) for _ in range(300)] + list(range(weights, weights + 800, 8))
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        harmless += assert_refused_or_the_same(path, flipped)
    assert harmless < len(places) / 2
    for start in range(0, len(content), 512):
        lost = bytes(len(content[start:start + 512]))
        assert_refused_or_the_same(path, content[:start] + lost + content[start + 512:])


def test_a_flipped_bit_is_passed_over_for_the_previous_checkpoint_in_one_line(tmp_path, caplog):
    checkpoint.save_step(state_at(10), tmp_path)
    newest = checkpoint.save_step(state_at(20), tmp_path)
    content = bytearray(newest.read_bytes())
    content[content.index(torch.full((50, 4), 20.0).numpy().tobytes()) + 2] ^= 1
    newest.write_bytes(content)
    assert torch.load(newest, weights_only=True)["step"] == 20      # torch believes it
    with caplog.at_level(logging.WARNING, "cifar100"):
        assert checkpoint.load_newest(tmp_path)[1]["step"] == 10
    line, = caplog.messages
    assert str(newest) in line and "CRC" in line


class ClaimsMemory:
    """An array of 728 TiB in a few bytes."""

    def __reduce__(self):
        return np.zeros(0).__reduce__()[0], (np.ndarray, (10**14,), b"d")


def test_an_array_that_claims_all_memory_does_not_bar_the_way_to_an_older_checkpoint(tmp_path, caplog):
    checkpoint.save_step(state_at(10), tmp_path)
    newest = tmp_path / "step_0000020.pt"
    torch.save(state_at(20) | {"history": ClaimsMemory()}, newest)
    with pytest.raises(CheckpointError, match="step_0000020.pt: claims more memory than there is"):
        checkpoint.load(newest)
    with caplog.at_level(logging.WARNING, "cifar100"):
        assert checkpoint.load_newest(tmp_path)[1]["step"] == 10


LITTLE_MEMORY = """
import os, resource, sys
import torch
from helpers import checkpoint
what, path = sys.argv[1:]
big = {"model_state_dict": {"weight": torch.ones(5_000_000)}, "step": 20}
if what == "load":
    checkpoint.save_atomically(big, path)
    del big
pages = int(open("/proc/self/statm").read().split()[0])
free = {"load": 30_000_000, "save": 10_000_000}[what]      # of 20 MB, which loading has twice in memory
resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + free,) * 2)
try:
    checkpoint.load(path) if what == "load" else checkpoint.save_atomically(big, path)
except (OSError, checkpoint.CheckpointError) as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory")
@pytest.mark.parametrize("what, says", [("load", "ReadError .*run.pt: cannot be read now.* memory"),
                                        ("save", "OSError .*Cannot allocate memory: .*run.pt")])
def test_too_little_memory_is_neither_damage_nor_the_end_of_a_training(tmp_path, what, says):
    """A good checkpoint passed over as damaged would be replaced by those of a run that starts over."""
    child = subprocess.run([sys.executable, "-c", LITTLE_MEMORY, what, str(tmp_path / "run.pt")], text=True, cwd=ROOT,
                           capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert re.match(says, child.stdout), child.stdout + child.stderr
    assert names_in(tmp_path) == (["run.pt"] if what == "load" else [])


@pytest.mark.parametrize("value, kind, fits", [
    (3, int, True), (3.0, int, False), (True, int, False), ("x", str, True), (None, (None, dict), True),
    ({"a": 1}, {str: int}, True), ({"a": "x"}, {str: int}, False), ({1: 1}, {str: int}, False), ([], [dict], True),
    ([3], [dict], False), ({}, [dict], False)])
def test_a_part_is_taken_in_its_type_or_named(value, kind, fits):
    if fits:
        assert checkpoint.take({"part": value}, "part", kind, "a.pt") == value
        return
    with pytest.raises(CheckpointError, match="a.pt: its part 'part'"):
        checkpoint.take({"part": value}, "part", kind, "a.pt")
    with pytest.raises(CheckpointError, match="a.pt: lacks its part 'other'"):
        checkpoint.take({"part": value}, "other", kind, "a.pt")


def test_a_reading_error_is_no_damage_and_is_not_passed_over(tmp_path, monkeypatch):
    checkpoint.save_step(state_at(10), tmp_path)
    newest = checkpoint.save_step(state_at(20), tmp_path)
    whole = type(newest).read_bytes

    def refuse(path):
        if path == newest:
            raise OSError(5, "Input/output error")
        return whole(path)

    monkeypatch.setattr(type(newest), "read_bytes", refuse)
    with pytest.raises(CheckpointError, match="step_0000020.pt: cannot be read now .*; try again"):
        checkpoint.load_newest(tmp_path)


def test_an_old_checkpoint_that_cannot_be_deleted_does_not_lose_the_new_one(tmp_path, monkeypatch):
    for step in (10, 20):
        checkpoint.save_step(state_at(step), tmp_path)
    monkeypatch.setattr(checkpoint, "discard", lambda path: (_ for _ in ()).throw(PermissionError(13, "in use")))
    assert checkpoint.save_step(state_at(30), tmp_path).name == "step_0000030.pt"
    monkeypatch.undo()
    checkpoint.save_step(state_at(40), tmp_path)
    assert [path.name for path in checkpoint.list_steps(tmp_path)] == ["step_0000040.pt", "step_0000030.pt"]


def test_damaged_files_raise_nothing_but_checkpoint_error(tmp_path):
    """Bytes overwritten at random, most of them in the pickle, which comes first."""
    path = checkpoint.save_step(state_at(10), tmp_path)
    content, draw = path.read_bytes(), random.Random(0)
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(draw.choice([1, 5, 50])):
            damaged[draw.randrange(min(600, len(damaged)))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            checkpoint.load(path)
        except CheckpointError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"<html>404 not found</html>", b"PK\x03\x04" + b"\0" * 100])
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "step_0000001.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="step_0000001.pt: is truncated or not a checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [[1, 2], {"weights": 3}, torch.zeros(3), {}])
def test_other_content_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="other.pt: has no 'model_state_dict'"):
        checkpoint.load(tmp_path / "other.pt")


def test_a_bare_state_dict_is_taken_as_weights(tmp_path):
    weights = {"conv1.weight": torch.randn(2, 3), "bn1.num_batches_tracked": torch.tensor(4)}
    torch.save(weights, tmp_path / "weights.pt")
    loaded = checkpoint.load(tmp_path / "weights.pt")["model_state_dict"]
    assert loaded.keys() == weights.keys() and torch.equal(loaded["conv1.weight"], weights["conv1.weight"])


class RunsCode:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_file_with_code_is_refused_and_the_code_not_run(tmp_path):
    torch.save({"model_state_dict": {}, "config": RunsCode(tmp_path / "was run")}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="evil.pt: holds a posix.mkdir|nt.mkdir"):
        checkpoint.load(tmp_path / "evil.pt")
    assert names_in(tmp_path) == ["evil.pt"]


def test_a_foreign_object_is_named_and_the_file_not_called_broken(tmp_path):
    torch.save({"model_state_dict": {}, "config": SimpleNamespace(epochs=150)}, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError) as refusal:
        checkpoint.load(tmp_path / "theirs.pt")
    assert "SimpleNamespace" in str(refusal.value) and "delete" not in str(refusal.value)


# Same run? -------------------------------------------------------------------------------------------------

def test_the_same_settings_pass():
    checkpoint.check_same_run({"epochs": 3, "widths": [1, 2]}, {"widths": [1, 2], "epochs": 3}, "a.pt", "run")


def test_every_differing_setting_is_named_with_both_values():
    saved = {"epochs": 3, "seed": 1, "gone": True, "model": "FlipCNN"}
    current = {"epochs": 4, "seed": 1, "added": 0.5, "model": "CIFAR100CNN"}
    with pytest.raises(CheckpointError) as refusal:
        checkpoint.check_same_run(saved, current, "a.pt", "run")
    message = str(refusal.value)
    for line in ("epochs: 3 in the checkpoint, 4 now", "gone: True in the checkpoint, None now",
                 "added: None in the checkpoint, 0.5 now", "model: 'FlipCNN' in the checkpoint, 'CIFAR100CNN' now"):
        assert line in message
    assert "seed" not in message and "resume='never'" in message and "run_name='run'" in message and "a.pt" in message


def test_numpy_numbers_and_arrays_are_plain_data(tmp_path):
    """As in published checkpoints, whose results come from NumPy."""
    results = {"top1": np.float64(78.25), "right": np.int64(7825), "by class": np.arange(4, dtype=np.float32)}
    torch.save({"model_state_dict": {"weight": torch.ones(2)}, "test_results": results}, tmp_path / "published.pt")
    loaded = checkpoint.load(tmp_path / "published.pt")["test_results"]
    assert loaded["top1"] == 78.25 and loaded["right"] == 7825
    np.testing.assert_array_equal(loaded["by class"], results["by class"])
