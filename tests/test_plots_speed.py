"""plots.speed: the fastest batch size and those that failed are marked."""

from helpers.lesson import plots
from plot_data import ROWS, texts


def test_throughput_shows_what_did_not_run():
    figure = plots.throughput(ROWS)
    assert len(figure.axes) == 2 and "out of memory" in texts(figure)
    assert any("900 images/s at 64" in text for text in texts(figure))
    assert len(plots.throughput(ROWS[1:]).axes) == 1       # nothing ran, nothing measured
