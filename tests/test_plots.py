"""plots: every figure says what it shows, stands apart from pyplot, and survives odd data."""

import inspect
import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from helpers.lesson import plots
from helpers.metrics import Evaluation, History

NOTE = "drawn demo data"
NAMES = [f"class_{label}" for label in range(10)]
SUPERCLASS_OF = torch.arange(10) // 2
SUPERCLASSES = [f"group_{place}" for place in range(5)]


def history(epochs=6, validated=True):
    record = History()
    for epoch in range(1, epochs + 1):
        scores = (2.0 / epoch, 10.0 * epoch, 12.0 * epoch) if validated else (None, None, None)
        record.append(epoch=epoch, train_loss=3.0 / epoch, train_accuracy=9.0 * epoch, val_loss=scores[0],
                      val_top1=scores[1], val_top5=scores[2], learning_rate=0.1 / epoch, seconds=30.0 * epoch,
                      petaflops=0.1 * epoch)
    return record


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def evaluated(grouped=True, perfect=False, absent=False):
    """90 images of ten classes; `absent`: none of the last class."""
    labels = torch.arange(90) % (9 if absent else 10)
    logits = torch.randn(90, 10, generator=torch.Generator().manual_seed(3))
    logits[torch.arange(90), labels] += 50.0 if perfect else 1.0
    groups = (SUPERCLASS_OF, SUPERCLASSES) if grouped else ()
    return Evaluation.from_logits(logits, labels, NAMES, *groups)


ROWS = [{"batch_size": 64, "images_per_second": 900.0, "images_per_second_min": 850.0,
         "images_per_second_max": 950.0, "memory_mb": 300.0, "error": None},
        {"batch_size": 128, "images_per_second": None, "images_per_second_min": None,
         "images_per_second_max": None, "memory_mb": None, "error": "CUDA out of memory. Tried to allocate 2 GiB"}]
RUNS = [{"name": "long", "history": history(), "top1": 61.0, "top5": 85.0, "seconds": 180.0, "petaflops": 0.6},
        {"name": "short", "history": None, "top1": 40.0, "top5": None, "seconds": 2.0, "petaflops": None}]
LAYERS = [{"layer": "conv1", "parameters": 432, "mflops": 0.9}, {"layer": "head", "parameters": 1000, "mflops": 0.0}]

FIGURES = {
    "training_curves": lambda **keys: plots.training_curves(history(), **keys),
    "learning_rate_schedule": lambda **keys: plots.learning_rate_schedule([0.1, 0.2, 0.1, 0.0], 2, **keys),
    "compare_runs": lambda **keys: plots.compare_runs(RUNS, [("ResNet", 75.0, 93.0), ("other", None, 90.0)], **keys),
    "ablation": lambda **keys: plots.ablation(
        [{"change": name, "val_top1": accuracy, "difference": accuracy - 60.5}
         for name, accuracy in (("full", 60), ("full", 61), ("less", 55))],
        "full", **keys),
    "record": lambda **keys: plots.record(
        [{"name": "quick", "preset": "quick", "top1": 70.0, "top1_by_run": [69.5, 70.5], "petaflops": 0.2,
          "minutes": 9.0, "runs": 2, "machine": {"device": "cpu", "cpu_cores": 2}}],
        {"name": "reference", "top1": 78.0, "petaflops": 70.0, "minutes": 150.0}, **keys),
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
    "learning_rate_range": lambda **keys: plots.learning_rate_range([0.01, 0.1, 1.0], [4.0, 3.0, 5.0], 0.1, **keys),
    "first_layer_filters": lambda **keys: plots.first_layer_filters(torch.randn(24, 3, 2, 2), **keys),
    "grad_cam_overlay": lambda **keys: plots.grad_cam_overlay(images(4), torch.rand(4, 32, 32), NAMES[:4], **keys),
    "class_map": lambda **keys: plots.class_map(np.random.default_rng(0).normal(size=(10, 2)), NAMES, SUPERCLASS_OF,
                                                SUPERCLASSES, 0.4, **keys),
    "superclass_affinity": lambda **keys: plots.superclass_affinity(np.eye(5) - 0.1, SUPERCLASSES, **keys),
    "throughput": lambda **keys: plots.throughput(ROWS, **keys),
    "model_layers": lambda **keys: plots.model_layers(LAYERS, **keys),
}
PICTURES = {"sample_grid", "augmentation_preview", "confused_pairs", "confident_errors", "first_layer_filters",
            "grad_cam_overlay", "explained_prediction"}


def texts(figure):
    """All that is written on a figure, tick labels too."""
    found = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return [text for text in found if text]


def shown_axes(figure):
    return [axes for axes in figure.axes if axes.axison]


# Every figure ----------------------------------------------------------------------------------------------

def test_no_figure_is_left_out():
    drawing = {name for name, item in vars(plots).items()
               if inspect.isfunction(item) and item.__module__ == plots.__name__ and not name.startswith("_")}
    assert drawing - {"themed", "png_of"} == set(FIGURES)


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
    assert box.y0 > title.y0 + title.height / 2 - 1     # it lies in the upper, empty line of the title
    assert NOTE not in texts(FIGURES[name]())


@pytest.mark.parametrize("name", sorted(set(FIGURES) - PICTURES))
def test_axes_are_labelled(name):
    figure = FIGURES[name]()
    for axes in shown_axes(figure):
        shared = {"x": axes.get_shared_x_axes(), "y": axes.get_shared_y_axes()}
        for side in "xy":
            labels = [getattr(other, f"get_{side}label")() for other in shared[side].get_siblings(axes)]
            labels.append(getattr(figure, f"_sup{side}label"))
            colour_bar = axes.get_label() == "<colorbar>"
            columns = name == "class_accuracy_bars"     # its columns go on with the first one's axis
            assert any(labels) or colour_bar or columns, f"{side} axis of {axes}"


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_written_beyond_the_edge(name):
    figure = FIGURES[name](note=NOTE)
    tight = figure.get_tightbbox()      # inches
    assert tight.x0 > -0.02 and tight.x1 < figure.get_figwidth() + 0.02
    assert tight.y0 > -0.02 and tight.y1 < figure.get_figheight() + 0.02


def test_a_long_note_is_wrapped():
    figure = plots.explained_prediction(images(1)[0], NAMES[:5], np.linspace(0.5, 0.1, 5), torch.rand(32, 32),
                                        note="a rather long note " * 15)
    box, title = figure.texts[-1].get_window_extent(), figure._suptitle.get_window_extent()
    assert 0 < box.x0 and box.x1 < figure.bbox.width and title.y0 + 12 < box.y0 < box.y1 < figure.bbox.height


# What they show --------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("grouped", [True, False])
def test_sample_grid_names_all_classes_and_boxes_the_missing(grouped):
    groups = (SUPERCLASS_OF, SUPERCLASSES) if grouped else ()
    figure = plots.sample_grid(images(9), np.arange(9), NAMES, *groups)
    names = [name.replace("_", " ") for name in NAMES + grouped * SUPERCLASSES]
    assert set(names) <= set(texts(figure))
    assert len(figure.axes[0].images) == 9 and len(figure.axes[0].patches) == 1


def test_sample_grid_places_the_first_image_of_each_class():
    pictures = images(20)
    shown = plots.sample_grid(torch.from_numpy(pictures), torch.arange(20) % 10, NAMES).axes[0].images
    for label, image in enumerate(shown):
        np.testing.assert_array_equal(image.get_array(), pictures[label])


def test_augmentation_preview_starts_each_line_with_the_original():
    original, augmented = images(2), torch.rand(2, 3, 3, 32, 32)
    shown = plots.augmentation_preview(original, augmented).axes[0].images
    assert len(shown) == 8
    np.testing.assert_array_equal(shown[4].get_array(), original[1])
    np.testing.assert_array_equal(shown[6].get_array(), augmented[1, 1].permute(1, 2, 0))


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


def test_reliability_diagram_states_the_calibration_error():
    evaluation = evaluated()
    error = 100 * evaluation.expected_calibration_error
    assert any(f"expected calibration error {error:.1f} %" in text
               for text in texts(plots.reliability_diagram(evaluation)))


def test_throughput_shows_what_did_not_run():
    figure = plots.throughput(ROWS)
    assert len(figure.axes) == 2 and "out of memory" in texts(figure)
    assert any("900 images/s at 64" in text for text in texts(figure))
    assert len(plots.throughput(ROWS[1:]).axes) == 1       # nothing ran, nothing measured


def test_compare_runs_marks_published_results():
    figure = FIGURES["compare_runs"]()
    written = [text.get_text() for text in figure.legends[0].get_texts()]
    assert written == ["long: top-1 61.00 %, top-5 85.00 %, 180 s, 0.6 PFLOP", "short: top-1 40.00 %, 2 s",
                       "ResNet: top-1 75.00 %, top-5 93.00 % (published)", "other: top-5 90.00 % (published)"]
    assert figure.axes[1].get_xscale() == "log"


@pytest.mark.parametrize("draw", [
    lambda: plots.training_curves(History()),
    lambda: plots.learning_rate_schedule([0.1], 1),
    lambda: plots.compare_runs([]),
    lambda: plots.compare_runs([{"name": "no validation", "history": history(1, validated=False), "top1": None}]),
    lambda: plots.class_accuracy_bars(evaluated(grouped=False, perfect=True, absent=True)),
    lambda: plots.confusion_matrix(evaluated(grouped=False, absent=True)),
    lambda: plots.confusion_matrix(evaluated(perfect=True)),
    lambda: plots.reliability_diagram(evaluated(perfect=True)),
    lambda: plots.confident_errors(evaluated(grouped=False), images(90), n=1),
    lambda: plots.augmentation_preview(images(1), torch.rand(1, 1, 3, 16, 16)),
])
def test_odd_data_are_drawn(draw):
    assert isinstance(draw(), Figure)
    assert plt.get_fignums() == []


# What it learned -------------------------------------------------------------------------------------------

def test_learning_rate_range_marks_the_rates():
    figure = plots.learning_rate_range([0.01, 0.1, 1.0], [4.0, 3.0, 5.0], 0.1, [3.5, 4.0, 4.0], configured=0.5)
    assert figure.axes[0].get_xscale() == "log"
    points, curve, *marks = figure.axes[0].lines
    assert list(points.get_ydata()) == [4, 3, 5] and list(curve.get_ydata()) == [3.5, 4, 4]
    assert [mark.get_xdata()[0] for mark in marks] == [0.1, 0.5]
    assert any("rule of thumb" in text for text in texts(figure))


def test_filters_are_shown_around_grey_with_their_norms():
    weights = torch.zeros(2, 3, 2, 2)
    weights[0, 0, 0, 1], weights[0, 2, 1, 1] = 3.0, -4.0
    figure = plots.first_layer_filters(weights)
    first, second = (image.get_array() for image in figure.axes[0].images)
    np.testing.assert_allclose(first[0, 0], [0.5, 0.5, 0.5])
    np.testing.assert_allclose(first[0, 1], [0.875, 0.5, 0.5])      # 0.5 + 3 / (2 · 4)
    np.testing.assert_allclose(first[1, 1], [0.5, 0.5, 0.0])
    np.testing.assert_allclose(second, 0.5)
    assert {"5", "0"} <= set(texts(figure))


def test_heat_maps_lie_on_their_pictures():
    pictures, heat = images(2), np.random.default_rng(1).random((2, 32, 32))
    shown = plots.grad_cam_overlay(pictures, torch.from_numpy(heat), ["one", "two"]).axes[0].images
    for place in range(2):
        plain, below, above = shown[3 * place:3 * place + 3]
        np.testing.assert_array_equal(plain.get_array(), pictures[place])
        np.testing.assert_array_equal(below.get_array(), pictures[place])
        np.testing.assert_array_equal(above.get_array(), heat[place])
        assert list(above.get_extent()) == list(below.get_extent())
    with pytest.raises(ValueError, match="heat_maps"):
        plots.grad_cam_overlay(pictures, heat[:1], ["one", "two"])


def test_seeds_of_one_change_share_a_line_and_show_their_mean():
    rows = [{"change": name, "val_top1": 60 + difference, "difference": difference}
            for name, difference in [("base", 0.0), ("wider", 1.0), ("wider", 2.0), ("no skip", -3.0)]]
    axes = plots.ablation(rows, "base").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no skip", "wider"]
    assert [text.get_text() for text in axes.texts] == ["-3.0", "+1.5"]


def test_class_map_tells_twenty_superclasses_apart():
    points = np.random.default_rng(0).normal(size=(100, 2))
    names, groups = [f"class {label:02d}" for label in range(100)], [f"group {place}" for place in range(20)]
    figure = plots.class_map(points, names, np.arange(100) % 20, groups, 0.25)
    kinds = {line.get_label(): (line.get_color(), line.get_marker()) for line in figure.axes[0].lines
             if line.get_label() in groups}
    assert len(kinds) == len(set(kinds.values())) == 20
    drawn = {tuple(point): line.get_label() for line in figure.axes[0].lines if line.get_label() in groups
             for point in line.get_xydata()}
    assert all(drawn[tuple(point)] == groups[label % 20] for label, point in enumerate(points))
    assert any("25 %" in text for text in texts(figure))
    assert not any("%" in text for text in texts(plots.class_map(points, names, kept=math.nan)))


def test_names_on_the_class_map_are_near_their_points_and_do_not_cover_each_other():
    points = np.random.default_rng(0).normal(size=(100, 2))
    names = [f"class {label:02d}" for label in range(100)]
    axes = plots.class_map(points, names).axes[0]
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert set(boxes) == set(names)
    listed = list(boxes.values())
    assert not any(one.overlaps(other) for place, one in enumerate(listed) for other in listed[:place])
    for name, pixel in zip(names, axes.transData.transform(points)):
        box = boxes[name]
        assert np.hypot(*(np.clip(pixel, box.min, box.max) - pixel)) < 110


def test_class_map_leaves_out_a_class_without_images():
    points = np.array([[0.0, 1.0], [np.nan, np.nan], [2.0, 0.0]])
    written = texts(plots.class_map(points, ["cat", "dog", "emu"]))
    assert "cat" in written and "emu" in written and "dog" not in written


def test_superclasses_that_pull_alike_are_neighbours():
    sides = np.array([1, -1, 1, -1])
    figure = plots.superclass_affinity(0.3 * np.outer(sides, sides) + 0.7 * np.eye(4), ["a", "b", "c", "d"])
    order = "".join(label.get_text() for label in figure.axes[0].get_xticklabels())
    assert set(order[:2]) in ({"a", "c"}, {"b", "d"})
    cells = figure.axes[0].collections[0].get_array().reshape(4, 4)
    assert np.ma.getmaskarray(cells).diagonal().all()
    np.testing.assert_allclose(cells[0, 1:], [30, -30, -30])
    plots.superclass_affinity(np.full((3, 3), np.nan), ["a", "b", "c"])
