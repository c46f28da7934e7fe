"""Checks of the settings: type, range, and contradictions between them."""

from __future__ import annotations

import datetime
import math
import operator
import re
import typing
import unicodedata
from collections.abc import Collection
from pathlib import Path

from .text import UNPRINTABLE, did_you_mean

LONGEST = 255       # bytes of a file's name, on nearly every file system
# On Windows these are devices, whatever follows the first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}     # as YAML reads them


def coerce(value, hint):
    """(value as the hinted type, fault or "").

    Text that means one value of the type is that value: papermill's -p and the command line bring `false`, `1e-3` and
    `[8, 16]` as text, and so does YAML for some of them. A NumPy value counts as the plain one.
    """
    options = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    value = plain(value)
    if value is None:
        return value, "" if type(None) in options else "must not be empty"
    kind = options[0]
    if typing.get_origin(kind) is tuple:
        pairs = [coerce(item, typing.get_args(kind)[0]) for item in _items(value)]
        fault = next((f"{fault}; write several as [64, 192, 256]" for _, fault in pairs if fault), "")
        return tuple(item for item, _ in pairs), fault
    if kind is bool:
        value = _TRUTH.get(value.strip().lower(), value) if isinstance(value, str) else value
        return value, "" if isinstance(value, bool) else "must be true or false"
    if kind is str:
        return _text(value, may_be_none=type(None) in options)
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        return value, f"must be {'a whole' if kind is int else 'a'} number"
    if kind is int:
        return (int(number), "") if number.is_integer() else (value, "must be a whole number")
    return number, ""


def plain(value):
    """The value, of a NumPy array or number the same in Python's types, which compare to one truth."""
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, type) else value


def _items(value) -> list:
    """The items of a list, also of one that is text: "[8, 16]", "8,16" or ["[8,", "16]"]."""
    items = list(value) if isinstance(value, (tuple, list)) else [value]
    if items and all(isinstance(item, str) for item in items):
        text = " ".join(items).strip()
        if (text[:1], text[-1:]) in (("[", "]"), ("(", ")")):
            text = text[1:-1]
        items = re.split(r"\s*,\s*|\s+", text.strip()) if text.strip() else []
    return items


def _text(value, may_be_none: bool):
    """(value as text, fault or "")."""
    # YAML and papermill read a run_name such as 7 or 2025-01-31 as a number or a date.
    if isinstance(value, bool) or not isinstance(value, (str, Path, int, float, datetime.date)):
        return value, "must be text; quote it in YAML and Python, and give papermill -r in place of -p"
    try:
        text = str(value)
    except ValueError:      # more digits than Python writes
        return value, "is too long"
    if text == "None" and may_be_none:
        return value, "is the text 'None'; leave the setting out for none (in YAML: null)"
    odd = next((character for character in text if unicodedata.category(character) in UNPRINTABLE), "")
    if odd:
        return value, f"holds the character U+{ord(odd):04X}, which cannot be written; leave it out"
    if any(len(part.encode()) > LONGEST for part in Path(text).parts):
        return value, f"is longer than a file's name may be, {LONGEST} bytes in UTF-8"
    return text, "" if text or may_be_none else "must not be empty"


def folder_name_fault(name: str) -> str:
    """Why `name` is no plain folder name on every system, or ""."""
    is_plain = not set(name) & set('/\\:*?"<>|') and name == name.rstrip(". ") != "" and not _DEVICES.fullmatch(name)
    return "" if is_plain else "must be a plain folder name"


def range_fault(value, rules) -> str:
    """Fault of a value of the right type, or "". `rules`: the metadata of `config.setting`."""
    for item in value if isinstance(value, tuple) else [value]:
        if item is None:
            continue
        if rules["choices"] and item not in rules["choices"]:
            return f"must be one of {', '.join(rules['choices'])}{did_you_mean(str(item), rules['choices'])}"
        for rule, words, is_broken in (("low", "at least", operator.lt), ("above", "above", operator.le),
                                       ("high", "at most", operator.gt), ("below", "below", operator.ge)):
            if rules[rule] is not None and is_broken(item, rules[rule]):
                return f"must be {words} {rules[rule]}"
        if rules["least"] is not None and 0 < item < rules["least"]:
            return f"must be 0 or at least {rules['least']}"
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
    if right("run_name") and config.run_name and (fault := folder_name_fault(config.run_name)):
        faults.append(f"run_name={config.run_name!r}: {fault}; set runs_dir to choose where it is")
    if right("drive", "checkpoint_dir") and config.drive and config.checkpoint_dir:
        faults.append(f"checkpoint_dir={config.checkpoint_dir!r}: drive=True puts checkpoints on Google Drive; "
                      "give one of the two")
    return faults


# (settings, what they need to have an effect, whether that holds)
_NEEDS = [
    (("data_dir", "download"), "another data_source than 'drawn'", lambda config: config.data_source != "drawn"),
    (("flip",), "another augmentation_strength than 'none'", lambda config: config.augmentation_strength != "none"),
    (("dropout_rate", "flip"), "model='CIFAR100CNN'", lambda config: config.model == "CIFAR100CNN"),
    (("crop_mode",), "crop_padding above 0", lambda config: (
        config.augmentation_strength != "none" if config.crop_padding is None else config.crop_padding > 0)),
    (("lr_milestones", "lr_gamma"), "lr_scheduler='step'", lambda config: config.lr_scheduler == "step"),
    (("min_delta",), "patience above 0", lambda config: config.patience > 0),
    (("patience", "min_delta"), "val_size above 0", lambda config: config.val_size > 0),
    (("self_distillation",), "mix_probability below 1, as mixed images are not distilled",
     lambda config: config.mix_probability < 1 or not config.mixes),
    (("self_distillation",), "epochs of at least 4", lambda config: config.epochs >= 4),
    (("mix_probability",), "mixup_alpha or cutmix_alpha above 0", lambda config: config.mixes),
    (("mixup_alpha", "cutmix_alpha"), "mix_probability above 0", lambda config: config.mix_probability > 0),
    (("image_growth_fraction",), "start_image_size below 32", lambda config: config.start_image_size < 32),
    (("start_image_size",), "image_growth_fraction above 0", lambda config: config.image_growth_fraction > 0)]
# Ingredients, each with the value that asks for none.
_OFF = {"patience": 0, "self_distillation": 0, "mixup_alpha": 0, "cutmix_alpha": 0, "start_image_size": 32}


def unmet_needs(config, given: Collection[str]) -> dict[str, str]:
    """The ingredients in a TrainingConfig, and those of the settings `given`, that have no effect in it, each with what
    it needs."""
    return {name: need for names, need, is_met in _NEEDS if not is_met(config) for name in names
            if (name in given or name in _OFF) and getattr(config, name) != _OFF.get(name, ...)}
