"""Checkpoints: written whole or not at all, rotated, and read without running code from the file."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import logging
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from .files import discard, foreign_content, replacing
from .system import is_out_of_memory
from .text import first_line

log = logging.getLogger("cifar100")

KEEP_NEWEST = 2
WEIGHTS = ("state_dict", "net", "model")        # where others keep what is "model_state_dict" here
STEPS = "step_*.pt"
BEST = "best.pt"

# What rebuilds NumPy numbers and arrays, under its names in NumPy 1 and 2: plain data, which published checkpoints have
# among their results.
_NUMPY_DATA = [np.ndarray, np.dtype, codecs.encode, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdU"}] + [
    (rebuild, f"numpy.{core}.multiarray.{rebuild.__name__}") for core in ("core", "_core")
    for rebuild in (np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0])]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or belongs to another configuration. The message says what to do."""


class ReadError(CheckpointError):
    """Reading a checkpoint failed, though the file may be good."""


class NotSaved(OSError):
    """The last checkpoint of a training could not be written. The message says what is lost and what is safe."""


def save_atomically(state: dict, path) -> Path:
    """`torch.save` to a temporary file, flushed to disk and then renamed to `path`; tensors as those of a CPU, so that
    any machine can read them. Raises OSError when that fails; torch.save alone raises RuntimeError on a full disk, and
    where memory is short."""
    content = io.BytesIO()
    try:
        torch.save(tree_map_only(torch.Tensor, torch.Tensor.cpu, state), content)
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or is_out_of_memory(error) or "inline_container" in str(error)):
            raise
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path)) from error
    with replacing(path) as file:
        file.write(content.getbuffer())
    return Path(path)


def load(path) -> dict:
    """Read the dict in a checkpoint with `weights_only=True`. Weights from elsewhere, bare, under one of WEIGHTS (then
    named in "under") or as safetensors, become {"model_state_dict": …}. Raises CheckpointError naming the file, or its
    subclass ReadError when the file may be good."""
    try:
        content = io.BytesIO(Path(os.path.expanduser(path)).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (OSError, MemoryError) as error:
        raise ReadError(f"{path}: cannot be read now ({error}); try again later. Google Drive also refuses for some "
                        "hours after heavy reading") from error
    if content.getvalue()[8:9] == b"{" and int.from_bytes(content.getvalue()[:8], "little") < 1e8:
        return {"model_state_dict": _read_safetensors(content.getvalue(), path)}
    trusted = torch.serialization.safe_globals(_NUMPY_DATA)     # no damage where an older torch has no such function
    try:
        _check_kind(content.getvalue())
        _check_sums(content)
        with trusted:
            state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:      # whatever such bytes make zipfile, pickle and torch raise
        if is_out_of_memory(error):     # for arrays that are there; one that claims more is NumPy's MemoryError
            raise ReadError(f"{path}: cannot be read now, since memory is short ({_reason(error)}); close other "
                            "programs and try again") from error
        raise CheckpointError(f"{path}: {_why_unreadable(error)}") from error
    if not isinstance(state, dict) or "model_state_dict" not in state:
        state = _weights_from_elsewhere(state)
    if state is None:
        raise CheckpointError(f"{path}: has no 'model_state_dict'; it is not a checkpoint of this project, nor bare "
                              f"weights or weights under {', '.join(WEIGHTS)}")
    return state


def _check_kind(content: bytes) -> None:
    """Raise ValueError for what comes in place of a checkpoint: a pointer, a page, the first part of a download."""
    if not content:
        raise ValueError("it is empty")
    if why := foreign_content(content[:512]):
        raise ValueError(why)
    if content.startswith(b"PK\x03\x04") and b"PK\x05\x06" not in content[-66_000:]:     # the archive's directory
        raise ValueError("its end is missing, as of a download that broke off")


def _weights_from_elsewhere(state) -> dict | None:
    def are_weights(found) -> bool:
        return isinstance(found, dict) and bool(found) and all(isinstance(tensor, torch.Tensor)
                                                               for tensor in found.values())

    if are_weights(state):
        return {"model_state_dict": state}
    names = [name for name in WEIGHTS if isinstance(state, dict) and are_weights(state.get(name))]
    return {"model_state_dict": state[names[0]], "under": names[0]} if names else None


def _read_safetensors(content: bytes, path) -> dict:
    try:
        from safetensors import SafetensorError, torch as safetensors
    except ImportError:
        raise CheckpointError(f"{path}: seems to hold safetensors; pip install safetensors to read them") from None
    try:
        return safetensors.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is truncated or no safetensors ({error}); download it again") from error


def _check_sums(content: io.BytesIO) -> None:
    """Raise BadZipFile for a damaged archive: torch ignores its CRCs and takes a flipped bit for a weight."""
    is_archive = content.read(4) == b"PK\x03\x04"      # as torch tells; its earlier format has no sums
    damaged = zipfile.ZipFile(content).testzip() if is_archive else None
    if damaged:
        raise zipfile.BadZipFile(f"damaged: the CRC of {damaged} is wrong")
    content.seek(0)


def _why_unreadable(error: Exception) -> str:
    refused = re.search(r"unsupported (?:global: )?GLOBAL (\S+)", str(error), re.IGNORECASE)
    if refused:
        return (f"holds a {refused[1]}, and reading anything but tensors and plain values could run code; save only "
                "{'model_state_dict': model.state_dict()} where it was made")
    if isinstance(error, MemoryError):
        return f"claims more memory than there is ({error}); delete it"
    return f"is truncated or not a checkpoint ({_reason(error)}); delete it"


def _reason(error: Exception) -> str:
    """Without torch's advice to load with weights_only=False, which would run code from the file."""
    if "TorchScript" in str(error):
        return "it is a TorchScript archive; save only its state_dict() where it was made"
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    line = reason[1] if reason else first_line(error)
    return "it holds more than tensors and plain values" if "weights_only" in line else line


@contextlib.contextmanager
def part(path, name: str):
    """What a missing or wrong part `name` of the checkpoint `path` raises in the block becomes a CheckpointError."""
    try:
        yield
    except (torch.OutOfMemoryError, CheckpointError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        why = f"lacks its part {name!r}" if isinstance(error, KeyError) and error.args == (name,) else (
            f"its part {name!r} is not what this version writes ({first_line(error)})")
        raise CheckpointError(f"{path}: {why}; delete it or name an older one") from error


def take(state: dict, name: str, kind, path):
    """The part `name` of a checkpoint's `state`. `kind` is a type, [kind] for lists, {str: kind} for dicts, or a tuple
    of alternatives. Raises CheckpointError naming the part."""
    with part(path, name):
        if not _fits(state[name], kind):
            raise TypeError(f"found {type(state[name]).__name__}: {str(state[name])[:60]}")
        return state[name]


def _fits(value, kind) -> bool:
    if isinstance(kind, tuple):
        return any(_fits(value, one) for one in kind)
    if isinstance(kind, list):
        return isinstance(value, list) and all(_fits(item, kind[0]) for item in value)
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(isinstance(key, str) and _fits(item, kind[str])
                                               for key, item in value.items())
    return value is None if kind is None else isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def step_path(folder, step: int) -> Path:
    return Path(folder) / f"step_{step:07d}.pt"


def save_step(state: dict, folder) -> Path:
    """Save as `step_<step>.pt` in `folder`; delete all but the newest two."""
    folder = Path(folder)
    path = save_atomically(state, step_path(folder, state["step"]))
    others = [other for other in list_steps(folder) if other != path]   # keeps the new one even if the clock went back
    for old in [*others[KEEP_NEWEST - 1:], *(other for other in folder.glob(STEPS) if not other.stat().st_size)]:
        with contextlib.suppress(OSError):      # held open by a virus scanner, say; the next one deletes it
            discard(old)
    return path


def list_steps(folder) -> list[Path]:
    """The `step_*.pt` files in `folder`, last written first: a run started over has fewer steps than older files.
    Leaves out empty ones, whose deletion was interrupted."""
    found = []
    for path in Path(folder).glob(STEPS):
        with contextlib.suppress(FileNotFoundError):        # deleted at this moment
            stat = path.stat()
            found += [(stat.st_mtime_ns, path.name, path)] if stat.st_size else []
    return [path for *_, path in sorted(found, reverse=True)]


def safe_files(folder) -> str:
    """In words: the checkpoints in `folder` that a training can continue from or that hold its weights."""
    names = [path.name for path in list_steps(folder)[:1]]
    names += [name for name in (BEST, "final.pt") if (Path(folder) / name).is_file()]
    return f"{', '.join(names)} in {folder}" if names else "nothing"


def load_newest(folder) -> tuple[Path, dict] | None:
    """(path, state) of the newest readable checkpoint, or None; warns of damaged ones. Raises ReadError, since a run
    that starts over would delete the good checkpoints."""
    for path in list_steps(folder):
        try:
            return path, load(path)
        except ReadError:
            raise
        except CheckpointError as error:
            log.warning("skipped: %s", error)
    return None


def load_at(path) -> tuple[Path, dict]:
    """(path, state) of a checkpoint, or of the newest readable one in a folder, perhaps a run's. Raises
    CheckpointError."""
    path = Path(os.path.expanduser(path))
    if not path.is_dir():
        return path, load(path)
    found = load_newest(path) or load_newest(path / "checkpoints")
    if found is None:
        raise CheckpointError(f"resume={str(path)!r}: the folder holds no readable step_*.pt; give one that does, a "
                              "file, or resume='auto' for this run's own")
    return found


def check_same_run(saved: dict, current: dict, path, name: str) -> None:
    """Raise CheckpointError naming every training setting in which `saved`, of the run `name`, and `current` differ."""
    lines = "\n".join(f"  - {name}: {saved.get(name)!r} in the checkpoint, {current.get(name)!r} now"
                      for name in dict.fromkeys([*saved, *current]) if saved.get(name) != current.get(name))
    if lines:
        raise CheckpointError(f"{path} is from another configuration:\n{lines}\nSet these back, and run_name={name!r}, "
                              "to continue it; choose another run_name, or resume='never' to start over.")
