"""Is a value of the type and in the range that its setting asks for?"""

from __future__ import annotations

import datetime
import difflib
import math
import typing
from pathlib import Path


def coerce(value, hint):
    """(value as the hinted type, fault or ""). YAML reads 1e-3 as text and 1 as int; both are meant as numbers."""
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
    if kind is str:     # a run_name such as 7 or 2025-01-31 is a number or a date to YAML and papermill
        is_text = isinstance(value, (str, Path, int, float, datetime.date)) and not isinstance(value, bool)
        if value == "None" and type(None) in options:
            return value, "is the text 'None'; leave the setting out for none (in YAML: null)"
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
    """What is wrong with a value of the right type, "" for nothing. `rules` are the metadata of `config.setting`."""
    for item in value if isinstance(value, tuple) else [value]:
        if item is None:
            continue
        if rules["choices"] and item not in rules["choices"]:
            near = difflib.get_close_matches(str(item), rules["choices"], n=1)
            return (f"must be one of {', '.join(rules['choices'])}"
                    + (f"; did you mean {near[0]!r}?" if near else ""))
        if rules["low"] is not None and item < rules["low"]:
            return f"must be at least {rules['low']}"
        if rules["above"] is not None and item <= rules["above"]:
            return f"must be above {rules['above']}"
        if rules["high"] is not None and item > rules["high"]:
            return f"must be at most {rules['high']}"
        if rules["below"] is not None and item >= rules["below"]:
            return f"must be below {rules['below']}"
    return ""
