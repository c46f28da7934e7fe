"""YAML from outside: read without surprises, or one error in a line."""

from __future__ import annotations

import os

import yaml

from .text import first_line, shown

LARGEST = 2**16     # bytes; the project's own files are below 2 KB

# What PyYAML raises, beside its YAMLError, for scalars such as 2025-02-30, `0x_`, 5,000 digits or `!!int ""`.
_ODD_SCALAR = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


class YamlError(ValueError):
    """The text is no YAML that means one thing. The message says why, in one line."""


class _Loader(yaml.SafeLoader):
    """Plain values only. Refuses aliases, ten lines of which can stand for gigabytes, and names given twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            _refuse("an alias (*); write the value itself", self.peek_event())
        return super().compose_node(parent, index)

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except _ODD_SCALAR as error:
            _refuse(f"{shown(node.value)} is no value ({error})", node)

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            _refuse(f"{shown(twice)} appears twice", node)
        return super().construct_mapping(node, deep)


def _refuse(why: str, place) -> None:
    raise yaml.MarkedYAMLError(problem=why, problem_mark=place.start_mark)


def read_yaml(path):
    """The plain values in the file `path`. Raises YamlError, and OSError if it cannot be read."""
    with open(os.path.expanduser(path), "rb") as file:        # bytes: PyYAML knows a Windows editor's UTF-16
        content = file.read(LARGEST + 1)        # a pipe or a device has no size
    if len(content) > LARGEST:
        raise YamlError(f"is larger than {LARGEST // 1024} KB; is it the right file?")
    return parse_yaml(content)


def parse_yaml(text: str | bytes):
    """The plain values in a YAML text. Raises YamlError."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        problem = error.problem if len(error.problem) <= 200 else f"{error.problem[:150]}…{error.problem[-49:]}"
        raise YamlError(f"cannot be read as YAML: {problem}, line {mark.line + 1}, column {mark.column + 1}"
                        if mark else f"cannot be read as YAML: {problem}") from None
    except yaml.YAMLError as error:
        remedy = "; save it as UTF-8" if isinstance(error, yaml.reader.ReaderError) else ""
        raise YamlError(f"cannot be read as YAML: {first_line(error)}{remedy}") from None
    except RecursionError:
        raise YamlError("cannot be read as YAML: too many brackets within each other") from None
