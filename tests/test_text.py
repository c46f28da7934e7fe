"""text: tables, durations and results in words."""

import pytest
import torch

from helpers.metrics import Evaluation
from helpers.text import duration, layers_text, results_text, table


def test_table_aligns_words_left_and_numbers_right_and_leaves_gaps_empty():
    text = table([{"name": "a", "value": "1,234"}, {"name": "longer", "value": 5}, {"name": "b", "more": "x"}])
    assert text.splitlines() == ["name    value  more",
                                 "a       1,234",
                                 "longer      5",
                                 "b              x"]
    assert table([]) == ""


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
    return {"note": "", **Evaluation.from_logits(logits, labels, list("abcd"), torch.tensor([0, 0, 1, 1]),
                                                 ["first", "second"]).summary()}


def test_results_in_words_hold_the_numbers(results):
    text = results_text(results)
    assert "top-1 90.00 %" in text and "20 test images" in text
    assert "mean 90.00 %" in text and "from 80 % (a)" in text and "to 100 % (c)" in text
    assert "TTA" not in text and "superclasses" in text and "calibration error" in text
    assert "with flip TTA 91.25 %" in results_text(results | {"flip_tta": {"top1": 91.25, "top5": 100.0}})


def test_results_on_drawn_data_say_so_first(results):
    assert results_text(results | {"note": "drawn demo data"}).startswith("drawn demo data")


def test_results_without_superclasses_do_not_mention_them(results):
    assert "superclass" not in results_text(results | {"superclass_top1": None})


def test_durations_are_readable():
    assert [duration(seconds) for seconds in (4.4, 600, 7260)] == ["4 s", "10 min", "2 h 01 min"]
