"""yaml_files: whatever a file holds, it is plain values or one line that says why not, at once."""

import os
import time

import pytest

from helpers.yaml_files import LARGEST, YamlError, parse_yaml, read_yaml

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join(9 * ['*' + before])}]\n" for before, name in zip("abcdefgh", "bcdefghi"))


@pytest.mark.parametrize("text, says", [
    (BOMB, "alias"), ("&a [*a]", "alias"), ("seed: 2025-02-30", "day is out of range"),
    ("seed: 0x_", "'0x_' is no value"),
    ("seed: " + "9" * 5000, "digits"), ("a: " + "[" * 3000, "brackets"), ("- " * 3000 + "a", "brackets"),
    ("a: !!int ''", "'' is no value"), ("a: !!bool maybe", "'maybe'"), ("a: !!timestamp x", "'x'"),
    ("? [a]\n: 3", "unhashable"), ("epochs: 3\nepochs: 5", "'epochs' appears twice"), ("a: [1", "line 1"),
    ("a: !!python/object/apply:os.system [x]", "constructor"),
    ("a: !!x" + "9" * 5000, "constructor"), ("\0", "UTF-8"), ("a: \ud800", "UTF-8"),
    (b"a: \xb4\xfa", "UTF-8"), ("--- 1\n--- 2", "another document")])
def test_odd_yaml_is_one_short_line_at_once(text, says):
    start = time.perf_counter()
    with pytest.raises(YamlError) as caught:
        parse_yaml(text)
    assert time.perf_counter() - start < 5
    assert says in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_later_line_may_replace_a_merged_one_but_not_an_own():
    assert parse_yaml("<<: {epochs: 3, seed: 1}\nepochs: 5") == {"epochs": 5, "seed": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_a_windows_editor_is_read(encoding, tmp_path):
    (tmp_path / "mine.yaml").write_text("run_name: 貓\n", encoding=encoding)
    assert read_yaml(tmp_path / "mine.yaml") == {"run_name": "貓"}


@pytest.mark.parametrize("numbers", ["1:" * 30_000 + "1", "9" * 60_000, "1" + "_" * 60_000])
def test_the_largest_file_is_read_or_refused_at_once(numbers):
    start = time.perf_counter()
    try:
        parse_yaml(f"seed: {numbers}")
    except YamlError:
        pass
    assert time.perf_counter() - start < 5


def test_a_file_without_an_end_is_refused(tmp_path):
    (tmp_path / "large.yaml").write_text("#" * (LARGEST + 1))
    for path in [tmp_path / "large.yaml", *(["/dev/zero"] if os.path.exists("/dev/zero") else [])]:
        with pytest.raises(YamlError, match="larger than 64 KB"):
            read_yaml(path)
