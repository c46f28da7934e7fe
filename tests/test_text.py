"""text: tables, durations and results in words."""

import numpy
import pytest
import torch

from helpers.metrics import Evaluation
from helpers.text import columns_of, duration, fitted, layers_text, readable, results_text, shortened, shown, table


def test_table_aligns_words_left_and_numbers_right_and_leaves_gaps_empty():
    text = table([{"name": "a", "value": "1,234"}, {"name": "longer", "value": 5}, {"name": "b", "more": "x"}])
    assert text.splitlines() == ["name    value  more",
                                 "a       1,234",
                                 "longer      5",
                                 "b              x"]
    assert table([]) == ""


def test_a_table_counts_a_chinese_character_as_two_columns():
    lines = table([{"name": "貓", "value": 1}, {"name": "longer", "value": 22}]).splitlines()
    assert lines[1:] == ["貓          1", "longer     22"]
    assert columns_of("แมว") == 3 and columns_of("ก็") == 1 and columns_of("a貓") == 3


@pytest.mark.parametrize("name, columns, says", [
    ("aquarium fish", 14, "aquarium fish"), ("n02123045_tabby_cat_01", 11, "n0212…at_01"),
    ("貓" * 20, 11, "貓貓貓…貓貓"),
    ("e" + "\u0301" * 200, 10, None), ("x", 1, "x"), ("", 5, "")])
def test_a_long_name_is_cut_in_its_middle(name, columns, says):
    cut = fitted(name, columns)
    assert says in (None, cut) and columns_of(cut) <= columns and len(cut) <= 3 * columns + 1


def test_names_from_outside_are_readable():
    assert readable("pickup_truck") == "pickup truck" and readable("a\nb\x1b[31m\udce9") == "a\ufffdb\ufffd[31m\ufffd"
    assert readable("a_rather_long_name_indeed", 10) == "a rat…deed"


def test_any_value_is_shown_in_one_short_line():
    for value in (10**5000, "x" * 10**6, list(range(10**5)), numpy.zeros((30, 30)), {"a": "\n"}):
        assert len(shown(value)) <= 80 and "\n" not in shown(value)
    assert shown("text") == "'text'" and shown([8, 16]) == "[8, 16]"


def test_a_short_name_is_short_in_bytes_and_still_its_own():
    names = {shortened("貓" * 50 + end, 60) for end in ("", "a", "b")}
    assert len(names) == 3 and all(len(name.encode()) <= 60 and name.startswith("貓" * 10) for name in names)
    assert shortened("short", 60) == "short" and len(shortened("\udce9" * 99, 60)) == 9


def test_layers_are_summed():
    lines = layers_text([{"layer": "conv1", "output": [64, 32, 32], "parameters": 1_728, "mflops": 3.5},
                         {"layer": "fc", "output": [100], "parameters": 51_300, "mflops": 0.25}]).splitlines()
    assert "64×32×32" in lines[1] and "1,728" in lines[1]
    assert lines[-1].split() == ["all", "53,028", "3.75"]


@pytest.fixture
def results() -> dict:
    labels = torch.arange(4).repeat(5)
    logits = torch.nn.functional.one_hot(labels, 4).float() * 3
    logits[:2] = logits[:2].roll(1, 1)      # one image of class a and one of class b are taken for another
    return {"note": "", "flip_tta": {"top1": 91.25, "top5": 100.0}, "uncalibrated_error": 0.2, "temperature": 0.6,
            **Evaluation.from_logits(logits, labels, list("abcd"), torch.tensor([0, 0, 1, 1]),
                                     ["first", "second"]).summary()}


def test_results_in_words_hold_the_numbers(results):
    text = results_text(results)
    assert "top-1 90.00 %" in text and "20 test images" in text
    assert "mean 90.00 %" in text and "from 80 % (a)" in text and "to 100 % (c)" in text
    assert "with flip TTA 91.25 %" in text and "superclasses" in text
    assert "0.2000 without the temperature 0.600" in text


def test_results_on_drawn_data_say_so_first(results):
    assert results_text(results | {"note": "drawn demo data"}).startswith("drawn demo data")


def test_results_without_superclasses_do_not_mention_them(results):
    assert "superclass" not in results_text(results | {"superclass_top1": None})


def test_durations_are_readable():
    assert [duration(seconds) for seconds in (4.4, 600, 7260)] == ["4 s", "10 min", "2 h 01 min"]
