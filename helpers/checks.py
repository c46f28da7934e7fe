"""Checks of the settings: type, range, and contradictions between them."""

from __future__ import annotations

import datetime
import difflib
import math
import operator
import typing
from pathlib import Path


def coerce(value, hint):
    """(value as the hinted type, fault or ""). YAML reads 1e-3 as text and 1 as int; both may mean a float."""
    options = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    if value is None:
        return value, "" if type(None) in options else "must not be empty"
    kind = options[0]
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, (tuple, list)) else [value]
        pairs = [coerce(item, typing.get_args(kind)[0]) for item in items]
        return tuple(item for item, _ in pairs), next((fault for _, fault in pairs if fault), "")
    if kind is bool:
        return value, "" if isinstance(value, bool) else "must be true or false"
    if kind is str:
        if value == "None" and type(None) in options:
            return value, "is the text 'None'; leave the setting out for none (in YAML: null)"
        # YAML and papermill read a run_name such as 7 or 2025-01-31 as a number or a date.
        is_text = isinstance(value, (str, Path, int, float, datetime.date)) and not isinstance(value, bool)
        return (str(value), "") if is_text else (value, "must be text")
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        return value, f"must be {'a whole' if kind is int else 'a'} number"
    if kind is int:
        return (int(number), "") if number.is_integer() else (value, "must be a whole number")
    return number, ""


def range_fault(value, rules) -> str:
    """Fault of a value of the right type, or "". `rules`: the metadata of `config.setting`."""
    for item in value if isinstance(value, tuple) else [value]:
        if item is None:
            continue
        if rules["choices"] and item not in rules["choices"]:
            near = difflib.get_close_matches(str(item), rules["choices"], n=1)
            return f"must be one of {', '.join(rules['choices'])}" + (f"; did you mean {near[0]!r}?" if near else "")
        for rule, words, is_broken in (("low", "at least", operator.lt), ("above", "above", operator.le),
                                       ("high", "at most", operator.gt), ("below", "below", operator.ge)):
            if rules[rule] is not None and is_broken(item, rules[rule]):
                return f"must be {words} {rules[rule]}"
    return ""


def cross_faults(config, wrong: set[str]) -> list[str]:
    """Contradictions between the settings of a TrainingConfig, except those named in `wrong`, which already failed."""
    def right(*names: str) -> bool:
        return wrong.isdisjoint(names)

    faults = []
    if right("model", "widths") and config.widths is not None:
        stages = 4 if config.model == "CIFAR100CNN" else 3
        if len(config.widths) != stages:
            faults.append(f"widths={list(config.widths)}: give {stages} of them for {config.model}")
        if config.model == "FlipCNN" and any(width % 2 for width in config.widths):
            faults.append(f"widths={list(config.widths)}: the channels of FlipCNN come in pairs; make them even")
    if right("precision", "mixed_precision") and config.precision != "auto" and not config.mixed_precision:
        faults.append(f"precision={config.precision!r}: contradicts mixed_precision=False; "
                      "set mixed_precision=True, or precision to 'auto'")
    if right("lr_scheduler", "lr_milestones", "epochs") and config.lr_scheduler == "step":
        if list(config.lr_milestones) != sorted(set(config.lr_milestones)):
            faults.append(f"lr_milestones={list(config.lr_milestones)}: must be in ascending order")
        elif not config.lr_milestones or config.lr_milestones[0] >= config.epochs:
            faults.append(f"lr_milestones={list(config.lr_milestones)}: none is within epochs={config.epochs}; "
                          "give earlier epochs or use lr_scheduler='cosine'")
    if right("run_name") and config.run_name and (set(config.run_name) & set('/\\:*?"<>|')
                                                  or config.run_name.strip(". ") == ""):
        faults.append(f"run_name={config.run_name!r}: must be a plain folder name; set runs_dir to choose where it is")
    if right("drive", "checkpoint_dir") and config.drive and config.checkpoint_dir:
        faults.append(f"checkpoint_dir={config.checkpoint_dir!r}: drive=True puts checkpoints on Google Drive; "
                      "give one of the two")
    return faults
