"""Removed settings, so that files with them can be read. docs/RESULTS.md covers those that were measured."""

from __future__ import annotations

TAG, COMMIT = "v1", "cfbe0af"      # the last version that had them
ANY = object()          # for a setting that never shaped the weights

# Name: the value it has in effect today.
RETIRED = {
    "whitening": True, "pool_first": False, "skip": True, "norm_scale": False, "input_skip": False,
    "mean_features": False, "decay_norm_and_bias": True, "norm_learning_rate": 0.05, "head_learning_rate": 0.5,
    "head_momentum": 0.85, "self_distillation_from": 0.75, "mix_until": 1.0, "channels_last": True,
    "data_placement": ANY, "eval_batch_size": ANY, "flip_tta": ANY}


def without_retired(settings: dict) -> tuple[dict, dict]:
    """`settings` in today's names, and by name the retired ones whose value can no longer be expressed. Drops those
    with today's value. `flip_equivariant` became FlipCNN, `precision="fp32"` became `mixed_precision=False`."""
    kept = {name: value for name, value in settings.items() if name not in RETIRED and name != "flip_equivariant"}
    gone = {name: value for name, value in settings.items()
            if name in RETIRED and value is not None and RETIRED[name] not in (ANY, value)}
    equivariant, model = settings.get("flip_equivariant"), settings.get("model")
    if equivariant is not None and (model is None or model == "FlipCNN" and not equivariant):
        gone["flip_equivariant"] = equivariant
    elif equivariant and model == "FastCNN":
        kept["model"] = "FlipCNN"
    if settings.get("precision") == "fp32":
        kept |= {"mixed_precision": False, "precision": "auto"}
    return kept, gone


def refusals(gone: dict) -> list[str]:
    """A sentence for each setting that `without_retired` could not express."""
    return [f"{name}={value!r}: is replaced by networks; set model='FlipCNN' for layers that commute with mirroring, "
            "or 'FastCNN' for ordinary ones" if name == "flip_equivariant" else
            f"{name}={value!r}: is no longer a setting, and in effect {RETIRED[name]!r}; tag {TAG} (commit {COMMIT}) "
            "has it"
            for name, value in gone.items()]
