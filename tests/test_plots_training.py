"""plots.training: the curves show the history, the range test marks its rates."""

from helpers.lesson import plots
from helpers.metrics import History
from plot_data import history, texts


def test_training_curves_show_the_history_and_its_best_epoch():
    record = History([{"val_top1": 10.0}, {"val_top1": 50.0}, {"val_top1": 40.0}], stopped="early")
    figure = plots.training_curves(record)
    written = " ".join(texts(figure))
    assert "best: 50.0 % in epoch 2" in written and "stopped early after epoch 3" in written
    line = figure.axes[1].lines[0]
    assert list(line.get_xdata()) == [1, 2, 3] and list(line.get_ydata()) == [10, 50, 40]


def test_training_targets_are_called_soft_only_when_they_are():
    assert any("soft" in text for text in texts(plots.training_curves(history())))
    assert not any("soft" in text for text in texts(plots.training_curves(history(), soft_targets=False)))


def test_one_epoch_is_visible():
    figure = plots.training_curves(history(epochs=1))
    assert all(line.get_marker() not in ("", "None") for axes in figure.axes for line in axes.lines)


def test_missing_validation_is_said():
    figure = plots.training_curves(history(validated=False))
    assert any("no validation split" in text for text in texts(figure))
    assert len(figure.axes[0].lines) == 1


def test_learning_rate_range_marks_the_rates():
    figure = plots.learning_rate_range([0.01, 0.1, 1.0], [4.0, 3.0, 5.0], 0.1, [3.5, 4.0, 4.0], configured=0.5)
    assert figure.axes[0].get_xscale() == "log"
    points, curve, *marks = figure.axes[0].lines
    assert list(points.get_ydata()) == [4, 3, 5] and list(curve.get_ydata()) == [3.5, 4, 4]
    assert [mark.get_xdata()[0] for mark in marks] == [0.1, 0.5]
    assert any("rule of thumb" in text for text in texts(figure))
