"""Attempts to break a training: damaged checkpoints, kills, two processes in one folder. See campaigns.py."""

import contextlib
import io
import json
import multiprocessing
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from cifar100_pipeline import CheckpointError, CIFAR100Pipeline, TrainingConfig

from helpers import checkpoint
from helpers.data import NPZ_NAME
from helpers.locks import FolderInUse

EPOCHS = 3
IN_USE, OTHER_SETTINGS = 3, 4       # exit statuses of a run that is refused
Outcomes = Iterator[tuple[str, bool]]


# Runs in processes of their own ----------------------------------------------------------------------------

def start(folder: Path, seed: int = 1) -> multiprocessing.Process:
    """A process that trains, evaluates and saves a small run in `folder`, with a checkpoint after each step."""
    child = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn").Process(
        target=run, args=(str(folder), seed))
    child.start()
    return child


def run(folder: str, seed: int) -> None:
    path = Path(folder)
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pipeline = CIFAR100Pipeline(TrainingConfig(
            data_dir=str(path.parent), num_classes=4, epochs=EPOCHS, batch_size=16, val_size=16, seed=seed,
            ema_decay=0.9, widths=(8, 16, 16, 16), runs_dir=str(path.parent), run_name=path.name, device="cpu",
            checkpoint_minutes=1e-9, progress="none", mixed_precision=False))
        try:
            pipeline.train()
            pipeline.evaluate()
            pipeline.save()
        except FolderInUse:
            sys.exit(IN_USE)
        except CheckpointError:
            sys.exit(OTHER_SETTINGS)


def finished(folder: Path, seed: int = 1) -> float:
    """Run to the end, on images of noise; the seconds that it took."""
    if not (path := folder.parent / NPZ_NAME).exists():
        noise, labels = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), np.uint8), np.arange(120) % 4
        np.savez(path, x_train=noise[:80], y_train=labels[:80], x_test=noise[80:], y_test=labels[80:],
                 classes=np.array(["one", "two", "three", "four"]))
    began = time.perf_counter()
    child = start(folder, seed)
    child.join()
    if child.exitcode:
        raise RuntimeError(f"a run that nobody disturbed ended with status {child.exitcode}")
    return time.perf_counter() - began


def weights_in(folder: Path) -> dict:
    return checkpoint.load(folder / "checkpoints" / "final.pt")["model_state_dict"]


def faults_of(folder: Path, whole: Path) -> str:
    """What distinguishes a finished run from `whole`, of the same settings, which nobody disturbed; "" for nothing."""
    log = (folder / "train.log").read_text(encoding="utf-8")
    metrics = [json.loads((one / "metrics.json").read_text(encoding="utf-8")) for one in (folder, whole)]
    wrong = {
        "other weights": not is_same(weights_in(folder), weights_in(whole)),
        "other results": metrics[0]["results"] != metrics[1]["results"],
        "metrics.json of another run": metrics[0]["config"]["seed"] != metrics[1]["config"]["seed"],
        "lines of the log": re.findall(r" INFO epoch (\d+)/", log) != [str(epoch + 1) for epoch in range(EPOCHS)],
        "a temporary file": any(folder.rglob(".*.tmp"))}
    return ", ".join(name for name, is_wrong in wrong.items() if is_wrong)


def is_same(one, other) -> bool:
    """Are two checkpoints equal bit for bit?"""
    pairs = list(zip(tree_leaves(one), tree_leaves(other), strict=True))
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


# Campaigns -------------------------------------------------------------------------------------------------

def flips(folder: Path, draw: random.Random, count: int) -> Outcomes:
    """Flip a bit of the newest checkpoint."""
    def flipped(content: bytes) -> bytes:
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        return bytes(damaged)

    return damages(folder, count, lambda _, content: flipped(content))


def sectors(folder: Path, draw: random.Random, count: int) -> Outcomes:
    """Overwrite a sector of 512 bytes of the newest checkpoint with zeros."""
    def zeroed(number: int, content: bytes) -> bytes:
        start = 512 * (number * (len(content) // 512) // count)
        return content[:start] + bytes(512) + content[start + 512:]

    return damages(folder, count, zeroed)


def damages(folder: Path, count: int, damage) -> Outcomes:
    finished(folder / "run")
    newest, older = checkpoint.list_steps(folder / "run" / "checkpoints")
    content, right = newest.read_bytes(), checkpoint.load(newest)
    for number in range(count):
        newest.write_bytes(damage(number, content))
        path, state = checkpoint.load_newest(newest.parent)
        if path == older:
            yield "passed over for the previous one", True
        else:
            same = is_same(state, right)
            yield ("no difference: it was in padding" if same else "believed"), same


def kills(folder: Path, draw: random.Random, count: int) -> Outcomes:
    """SIGKILL a run at any moment, start it again, and compare it, once it ends, with one that was never killed."""
    seconds, killed, place = finished(folder / "whole"), 0, folder / "run 0"
    while True:
        child = start(place)
        child.join(draw.uniform(0, seconds) if killed < count else None)
        if child.is_alive():
            child.kill()
            child.join()
            killed += 1
            yield "killed", True
            continue
        faults = f"status {child.exitcode}" if child.exitcode else faults_of(place, folder / "whole")
        yield faults or "ended as if never killed", not faults
        if killed >= count:
            return
        place = folder / f"run {killed}"


def processes(folder: Path, draw: random.Random, count: int) -> Outcomes:
    """Start a second process in the folder of a run, at once or later, with the same settings or another seed."""
    whole = {seed: folder / f"whole {seed}" for seed in (1, 2)}
    seconds = max(finished(path, seed) for seed, path in whole.items())
    for number in range(count):
        place, seeds = folder / f"run {number}", (1, draw.choice((1, 2)))
        first = start(place, seeds[0])
        time.sleep(draw.uniform(0, seconds) * draw.choice((0, 1)))
        second = start(place, seeds[1])
        for child in (first, second):
            child.join()
        statuses = [child.exitcode for child in (first, second)]
        winner = seeds[statuses.index(0)] if 0 in statuses else 1
        faults = faults_of(place, whole[winner]) if 0 in statuses else "nobody finished"
        refusals = sorted(set(statuses) - {0, IN_USE, OTHER_SETTINGS})
        faults += f" statuses {statuses}" if refusals or seeds[0] != seeds[1] and statuses == [0, 0] else ""
        what = {IN_USE: "one was refused", OTHER_SETTINGS: "the later one has other settings"}
        yield faults or what.get(max(statuses), "the later one found a finished run"), not faults
