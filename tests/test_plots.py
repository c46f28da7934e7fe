"""plots: every figure stands apart from pyplot, shows its note, labels its axes and survives odd data."""

import importlib
import inspect
import pkgutil
import warnings

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure

from helpers.lesson import plots
from helpers.metrics import History
from plot_data import NAMES, PUBLISHED, ROWS, RUNS, SUPERCLASS_OF, SUPERCLASSES, evaluated, history, images, texts

NOTE = "drawn demo data"
LAYERS = [{"layer": "conv1", "parameters": 432, "mflops": 0.9}, {"layer": "head", "parameters": 1000, "mflops": 0.0}]
FIGURES = {
    "training_curves": lambda **keys: plots.training_curves(history(), **keys),
    "learning_rate_schedule": lambda **keys: plots.learning_rate_schedule([0.1, 0.2, 0.1, 0.0], 2, **keys),
    "compare_runs": lambda **keys: plots.compare_runs(RUNS, PUBLISHED, **keys),
    "ablation": lambda **keys: plots.ablation(
        [{"change": name, "val_top1": accuracy, "difference": accuracy - 60.5}
         for name, accuracy in (("full", 60), ("full", 61), ("less", 55))],
        "full", **keys),
    "record": lambda **keys: plots.record(
        [{"name": "quick", "preset": "quick", "top1": 70.0, "top1_std": 0.5, "petaflops": 0.2,
          "minutes": 9.0, "runs": 2, "machine": {"device": "cpu", "cpu_cores": 2}}],
        [{"name": "reference", "top1": 78.0, "petaflops": 70.0}], PUBLISHED[:1], **keys),
    "sample_grid": lambda **keys: plots.sample_grid(images(30), np.arange(30) % 10, NAMES, SUPERCLASS_OF,
                                                    SUPERCLASSES, **keys),
    "augmentation_preview": lambda **keys: plots.augmentation_preview(images(2), torch.rand(2, 3, 3, 32, 32),
                                                                      NAMES[:2], **keys),
    "class_accuracy_bars": lambda **keys: plots.class_accuracy_bars(evaluated(), **keys),
    "confusion_matrix": lambda **keys: plots.confusion_matrix(evaluated(), **keys),
    "confused_pairs": lambda **keys: plots.confused_pairs(evaluated(), images(90), **keys),
    "confident_errors": lambda **keys: plots.confident_errors(evaluated(), images(90), **keys),
    "reliability_diagram": lambda **keys: plots.reliability_diagram(evaluated(), **keys),
    "live_curves": lambda **keys: plots.live_curves(history(), title="epoch 6 of 9", **keys),
    "small_multiples": lambda **keys: plots.small_multiples([{"name": "one", "history": history()}] * 4, **keys),
    "explained_prediction": lambda **keys: plots.explained_prediction(
        images(1)[0], NAMES[:5], np.linspace(0.5, 0.1, 5), torch.rand(32, 32), true=NAMES[1],
        neighbours=[(picture, NAMES[0], 0.9) for picture in images(8)], remark="A remark.", **keys),
    "learning_rate_range": lambda **keys: plots.learning_rate_range([0.01, 0.1, 1.0], [4.0, 3.0, 5.0], 0.1,
                                                                    [3.5, 4.0, 4.0], 0.5, **keys),
    "first_layer_filters": lambda **keys: plots.first_layer_filters(torch.randn(24, 3, 2, 2), **keys),
    "grad_cam_overlay": lambda **keys: plots.grad_cam_overlay(images(4), torch.rand(4, 32, 32), NAMES[:4], **keys),
    "class_map": lambda **keys: plots.class_map(np.random.default_rng(0).normal(size=(10, 2)), NAMES, SUPERCLASS_OF,
                                                SUPERCLASSES, 0.4, **keys),
    "superclass_affinity": lambda **keys: plots.superclass_affinity(np.eye(5) - 0.1, SUPERCLASSES, **keys),
    "throughput": lambda **keys: plots.throughput(ROWS, **keys),
    "model_layers": lambda **keys: plots.model_layers(LAYERS, **keys),
}
NAMED = {"augmentation_preview", "class_accuracy_bars", "class_map", "compare_runs", "confident_errors",
         "confused_pairs", "explained_prediction", "grad_cam_overlay", "sample_grid"}
# With names of a user's own classes, which have no superclasses.
UNGROUPED = {name: FIGURES[name] for name in NAMED} | {
    "confusion_matrix": lambda **keys: plots.confusion_matrix(evaluated(grouped=False), **keys),
    "sample_grid": lambda **keys: plots.sample_grid(images(30), np.arange(30) % 10, NAMES, **keys)}
PICTURES = {"sample_grid", "augmentation_preview", "confused_pairs", "confident_errors", "first_layer_filters",
            "grad_cam_overlay", "explained_prediction"}


def shown_axes(figure):
    return [axes for axes in figure.axes if axes.axison]


def test_no_figure_is_left_out():
    sections = {info.name for info in pkgutil.iter_modules(plots.__path__)} - {"fonts", "theme"}
    drawing = {name for section in sections
               for name, item in vars(importlib.import_module(f"{plots.__name__}.{section}")).items()
               if inspect.isfunction(item) and item.__module__.endswith(f".{section}") and not name.startswith("_")}
    assert drawing == set(FIGURES) == set(plots.__all__) - {"png_of"}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_stands_apart_from_pyplot_and_the_callers_theme(name):
    mine = plt.figure()
    try:
        with matplotlib.rc_context({"figure.facecolor": "black", "axes.facecolor": "black", "font.size": 5}):
            before = dict(matplotlib.rcParams)
            figure = FIGURES[name]()
            assert dict(matplotlib.rcParams) == before
        assert isinstance(figure, Figure) and plt.get_fignums() == [mine.number]
    finally:
        plt.close(mine)
    assert matplotlib.colors.to_rgb(figure.get_facecolor()) == (1, 1, 1)
    assert figure.get_figwidth() == 10
    assert min(text.get_fontsize() for text in figure.findobj(matplotlib.text.Text) if text.get_text()) >= 9


@pytest.mark.parametrize("name", FIGURES)
def test_note_is_shown_inside_the_figure_and_only_when_given(name):
    noted = FIGURES[name](note=NOTE)
    note = next(text for text in noted.texts if text.get_text() == NOTE)
    box, title = note.get_window_extent(), noted._suptitle.get_window_extent()
    assert box.y1 <= noted.bbox.height and 0 <= box.x0 and box.x1 <= noted.bbox.width
    assert box.y0 > title.y0 + title.height / 2 - 1     # in the title's upper, empty line
    assert NOTE not in texts(FIGURES[name]())


@pytest.mark.parametrize("name", sorted(set(FIGURES) - PICTURES))
def test_axes_are_labelled(name):
    figure = FIGURES[name]()
    for axes in shown_axes(figure):
        shared = {"x": axes.get_shared_x_axes(), "y": axes.get_shared_y_axes()}
        for side in "xy":
            labels = [getattr(other, f"get_{side}label")() for other in shared[side].get_siblings(axes)]
            labels.append(getattr(figure, f"_sup{side}label"))
            colour_bar = axes.get_label() == "<colorbar>" and axes.get_ylabel()
            assert any(labels) or colour_bar, f"{side} axis of {axes}"


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_written_beyond_the_edge(name):
    figure = FIGURES[name](note=NOTE)
    tight = figure.get_tightbbox()      # inches
    assert tight.x0 > -0.02 and tight.x1 < figure.get_figwidth() + 0.02
    assert tight.y0 > -0.02 and tight.y1 < figure.get_figheight() + 0.02


@pytest.fixture
def named(monkeypatch):
    """A function that gives the classes and runs of FIGURES other names; superclasses are never a user's."""
    before = list(NAMES)

    def rename(*others: str) -> None:
        NAMES[:] = [others[place % len(others)] + str(place) for place in range(len(NAMES))]
        for run, name in zip(RUNS, others * 2):
            monkeypatch.setitem(run, "name", name)
    yield rename
    NAMES[:] = before


@pytest.mark.parametrize("name", FIGURES)
def test_text_is_text_and_never_mathematics(name, named):
    assert not any("$" in text for text in texts(FIGURES[name]()))
    named("$\\foo$", "$^{$", "_a\\b%")
    with matplotlib.rc_context({"text.parse_math": True, "axes.formatter.use_mathtext": True}):
        figure = FIGURES[name]()
        assert plots.png_of(figure)
    assert ("$\\foo$" in "".join(texts(figure))) == (name in NAMED)


def test_a_run_whose_name_begins_with_an_underscore_is_in_the_legend(named):
    named("_mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "_mine: top-1 61.00 %" in "".join(texts(plots.compare_runs(RUNS, PUBLISHED)))


@pytest.mark.parametrize("kind", ["n01440764_very_long_class_name_indeed_" * 6, "x" * 255, "a long name " * 20])
@pytest.mark.parametrize("name", sorted(UNGROUPED))
def test_a_long_name_leaves_the_figure_whole(name, kind, named):
    named(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")      # constrained layout warns when axes collapse
        figure = UNGROUPED[name](note=NOTE)
        plots.png_of(figure)
    tight = figure.get_tightbbox()
    assert tight.x0 > -0.05 and tight.x1 < figure.get_figwidth() + 0.05
    assert tight.y0 > -0.05 and tight.y1 < figure.get_figheight() + 0.05
    sizes = [side for axes in figure.axes for side in axes.get_window_extent().size]
    assert figure.get_figheight() < 14 and min(sizes) > 15     # a colour bar is narrow


@pytest.mark.parametrize("name", FIGURES)
def test_a_notebook_shows_the_figure_as_a_picture_whatever_the_backend(name, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "backend", "TkAgg")        # which pyplot could not start here
    shown, _ = DisplayFormatter().format(FIGURES[name]())
    assert shown["image/png"].startswith(b"\x89PNG")


def test_a_long_note_is_wrapped():
    figure = plots.explained_prediction(images(1)[0], NAMES[:5], np.linspace(0.5, 0.1, 5), torch.rand(32, 32),
                                        note="a rather long note " * 15)
    box, title = figure.texts[-1].get_window_extent(), figure._suptitle.get_window_extent()
    assert 0 < box.x0 and box.x1 < figure.bbox.width and title.y0 + 12 < box.y0 < box.y1 < figure.bbox.height


@pytest.mark.parametrize("draw", [
    lambda: plots.training_curves(History()),
    lambda: plots.learning_rate_schedule([0.1], 1),
    lambda: plots.compare_runs([]),
    lambda: plots.compare_runs([RUNS[0] | {"name": "no validation", "history": history(1, validated=False)}]),
    lambda: plots.class_accuracy_bars(evaluated(grouped=False, perfect=True, absent=True)),
    lambda: plots.confusion_matrix(evaluated(grouped=False, absent=True)),
    lambda: plots.confusion_matrix(evaluated(perfect=True)),
    lambda: plots.reliability_diagram(evaluated(perfect=True)),
    lambda: plots.confident_errors(evaluated(grouped=False), images(90), n=1),
    lambda: plots.augmentation_preview(images(1), torch.rand(1, 1, 3, 16, 16), ["cat"]),
])
def test_odd_data_are_drawn(draw):
    assert isinstance(draw(), Figure)
    assert plt.get_fignums() == []
