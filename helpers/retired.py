"""Removed settings and a removed network, so that files with them can be read. docs/RESULTS.md and
docs/ABLATIONS.md cover those that were measured."""

from __future__ import annotations

from .text import shown

TAG, COMMIT = "v1", "cfbe0af"      # the last version that had them
LATER = {"pooling": "60a8b91"}      # of settings that came after it, the last commit
ANY = object()          # for a setting that never shaped the weights
NETWORK = ("model", "pooling", "pool_first", "skip", "input_skip", "mean_features")     # weights of another network

# Name: the value it has in effect today.
RETIRED = {
    "flip_equivariant": True, "pooling": "max_blur", "whitening": True, "pool_first": False, "skip": True,
    "norm_scale": False, "input_skip": False, "mean_features": False, "decay_norm_and_bias": True,
    "norm_learning_rate": 0.05, "head_learning_rate": 0.5, "head_momentum": 0.85, "self_distillation_from": 0.75,
    "mix_until": 1.0, "channels_last": True, "data_placement": ANY, "eval_batch_size": ANY, "flip_tta": ANY}


def without_retired(settings: dict) -> tuple[dict, dict]:
    """`settings` in today's names, and by name the retired ones whose value can no longer be expressed. Drops those
    with today's value. FastCNN is read as FlipCNN and listed as gone."""
    kept = {name: value for name, value in settings.items() if name not in RETIRED}
    gone = {name: value for name, value in settings.items()
            if name in RETIRED and value is not None and RETIRED[name] not in (ANY, value)}
    model = settings.get("model")
    if model == "FastCNN":
        kept["model"], gone["model"] = "FlipCNN", model
    if model in ("FastCNN", "CIFAR100CNN"):     # one fault is enough; they had no effect
        gone = {name: value for name, value in gone.items() if name not in ("flip_equivariant", "pooling")}
    return kept, gone


def without_fp32(settings: dict) -> dict:
    """`precision="fp32"` of earlier versions as `mixed_precision=False`. Call it after merging layers, as a later layer
    may set `precision`."""
    is_fp32 = settings.get("precision") == "fp32"
    return settings | {"mixed_precision": False, "precision": "auto"} if is_fp32 else settings


def refusals(gone: dict) -> list[str]:
    """A sentence for each setting that `without_retired` could not express."""
    now = {name: f"is no longer a setting, and in effect {value!r}" for name, value in RETIRED.items()} | {
        "flip_equivariant": "is no longer a setting; the layers of model='FlipCNN' commute with mirroring",
        "model": "is no longer a network; model='FlipCNN' took its place"}
    return [f"{name}={shown(value)}: {now[name]}; {last_version(name)} has it" for name, value in gone.items()]


def last_version(name: str) -> str:
    """The version to go back to for a retired setting."""
    return f"commit {LATER[name]}" if name in LATER else f"tag {TAG} (commit {COMMIT})"
