"""plots.evaluation: order, names and numbers are those of the evaluation."""

import numpy as np
import pytest
import torch

from helpers.lesson import plots
from helpers.metrics import Evaluation
from plot_data import evaluated, images, texts


def test_class_bars_are_sorted_and_name_a_class_without_images():
    evaluation = evaluated(absent=True)
    axes = plots.class_accuracy_bars(evaluation).axes[0]
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == sorted(widths, reverse=True) and len(widths) == 10
    assert "no images" in texts(axes) and axes.get_yticklabels()[-1].get_text() == "class 9"
    assert axes.lines[0].get_xdata()[0] == pytest.approx(evaluation.class_mean)


def test_confusion_matrix_is_grouped_by_superclass():
    names, groups = ["a", "b", "c"], torch.tensor([1, 0, 1])
    labels, guesses = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 1, 2])
    logits = 5.0 * torch.nn.functional.one_hot(guesses, 3)
    axes = plots.confusion_matrix(Evaluation.from_logits(logits, labels, names, groups, ["first", "second"])).axes[0]
    shares = np.ma.filled(axes.collections[0].get_array(), 0).reshape(3, 3)     # classes in the order b, a, c
    np.testing.assert_allclose(shares, [[100, 0, 0], [0, 50, 50], [0, 0, 100]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]


def test_confusion_matrix_of_many_classes_names_some_at_their_own_place():
    evaluation = Evaluation.from_logits(torch.eye(100), torch.arange(100), [f"c{label}" for label in range(100)])
    axes = plots.confusion_matrix(evaluation).axes[0]
    for place, label in zip(axes.get_xticks(), axes.get_xticklabels()):
        assert label.get_text() == f"c{place - 0.5:.0f}"


@pytest.mark.parametrize("names, rotation", [("cat dog rose bicycle".split(), 0), (["rather long"] * 10, 90)])
def test_confusion_matrix_writes_few_names_as_one_reads(names, rotation):
    classes = len(names)
    evaluation = Evaluation.from_logits(torch.eye(classes), torch.arange(classes), names)
    assert plots.confusion_matrix(evaluation).axes[0].get_xticklabels()[0].get_rotation() == rotation


def test_confused_pairs_show_the_mistaken_and_the_class_they_passed_for():
    labels, guesses, pictures = torch.tensor([0, 0, 1]), torch.tensor([1, 0, 1]), images(3)
    logits = 5.0 * torch.nn.functional.one_hot(guesses, 2)
    figure = plots.confused_pairs(Evaluation.from_logits(logits, labels, ["cat", "dog"]), pictures)
    assert "cat taken for dog: 50 % (1 of 2)" in texts(figure)
    mistaken, example = figure.axes[0].images
    np.testing.assert_array_equal(mistaken.get_array(), pictures[0])
    np.testing.assert_array_equal(example.get_array(), pictures[2])


@pytest.mark.parametrize("draw", [plots.confused_pairs, plots.confident_errors])
def test_pictures_of_mistakes_need_the_evaluated_images_and_some_mistakes(draw):
    with pytest.raises(ValueError, match="images holds 5 pictures, but 90 were evaluated"):
        draw(evaluated(), images(5))
    assert any("every prediction is right" in text for text in texts(draw(evaluated(perfect=True), images(90))))


def test_reliability_diagram_shows_the_points_before_a_temperature():
    evaluation, before = evaluated(), evaluated(perfect=True)
    figure = plots.reliability_diagram(evaluation, before)
    points = next(line for line in figure.axes[0].lines if line.get_marker() == "D")
    np.testing.assert_array_equal(points.get_xdata(), before.calibration.confidence)
    np.testing.assert_array_equal(points.get_ydata(), before.calibration.accuracy)
    assert any("without the temperature" in text for text in texts(figure))


def test_reliability_diagram_states_the_calibration_error():
    evaluation = evaluated()
    error = 100 * evaluation.expected_calibration_error
    assert any(f"expected calibration error {error:.1f} %" in text
               for text in texts(plots.reliability_diagram(evaluation)))
