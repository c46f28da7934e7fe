"""plots.runs: published results and the seeds of a change are told apart."""

from helpers.lesson import plots
from plot_data import PUBLISHED, RUNS


def test_compare_runs_marks_published_results():
    figure = plots.compare_runs(RUNS, PUBLISHED)
    written = [text.get_text() for text in figure.legends[0].get_texts()]
    assert written == ["long: top-1 61.00 %, top-5 85.00 %, 180 s, 0.6 PFLOP",
                       "short: top-1 40.00 %, top-5 70.00 %, 2 s, 0.01 PFLOP",
                       "stopped: top-1 1.00 %, top-5 5.00 %, 0 s, 0 PFLOP",
                       "ResNet: top-1 75.00 %, top-5 93.00 % (published)",
                       "other: top-1 70.00 %, top-5 90.00 % (published)"]
    assert figure.axes[1].get_xscale() == "log"


def test_many_runs_with_long_names_leave_the_panels_their_height():
    runs = [RUNS[0] | {"name": f"{number}-" + "learning_rate=0.1-" * 8} for number in range(40)]
    figure = plots.compare_runs(runs)
    assert min(axes.get_window_extent().height for axes in figure.axes) > 200


def test_seeds_of_one_change_share_a_line_and_show_their_mean():
    rows = [{"change": name, "val_top1": 60 + difference, "difference": difference}
            for name, difference in [("base", 0.0), ("wider", 1.0), ("wider", 2.0), ("no skip", -3.0)]]
    axes = plots.ablation(rows, "base").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no skip", "wider"]
    assert [text.get_text() for text in axes.texts] == ["-3.0", "+1.5"]
