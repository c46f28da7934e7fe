"""widgets: the logic against plain loops, the widgets by hand, and the Stop button in a real kernel."""

import functools
import io
import queue
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jupyter_client.manager import start_new_kernel
from matplotlib.figure import Figure
from PIL import Image

from cifar100_pipeline import CIFAR100Pipeline, DataError
from helpers.data import ImageData, stratified_split
from helpers.lesson import plots, widgets
from helpers.lesson.own_picture import answer, trust
from helpers.metrics import Evaluation, History

ROOT = Path(__file__).resolve().parent.parent
CLASSES, IMAGES = 6, 200


@pytest.fixture(scope="module")
def evaluation():
    """Logits that are often right; classes 0, 1 and 2 are of one superclass, the others of another."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    logits = torch.randn(IMAGES, CLASSES, generator=generator) + 1.5 * F.one_hot(labels, CLASSES)
    return Evaluation.from_logits(logits, labels, [f"class_{index}" for index in range(CLASSES)],
                                  torch.tensor([0, 0, 0, 1, 1, 1]), ("small", "large"))


@pytest.fixture(scope="module")
def images():
    return torch.randint(256, (IMAGES, 32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def small_pipeline(runs, name, **settings):
    """A narrow network and four classes that differ in colour, in all three splits."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 4
    colours = torch.tensor([[170, 90, 90], [90, 170, 90], [90, 90, 170], [128, 128, 128]])[labels][:, None, None]
    images = (colours + torch.randint(-120, 121, (240, 32, 32, 3), generator=generator)).clamp(0, 255).to(torch.uint8)
    pipeline = CIFAR100Pipeline.from_preset(
        "demo", run_name=name, runs_dir=str(runs), model="FlipCNN", widths=[16, 16, 16], optimizer="sgd",
        learning_rate=0.2, num_classes=4, batch_size=16, val_size=80, patience=0, augmentation="none", device="cpu",
        **settings)
    pipeline.data = ImageData(images[:200], labels[:200], images[200:], labels[200:],
                              ("red", "green", "blue", "grey"))
    return pipeline


def is_png(content):
    return bytes(content).startswith(b"\x89PNG")


# Errors ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("outcome", ["wrong", "right", "all"])
@pytest.mark.parametrize("key, descending", [("confidence", True), ("confidence", False), ("loss", True)])
@pytest.mark.parametrize("true, predicted, superclass", [(None, None, None), (2, None, None), (None, 4, None),
                                                         (2, 4, None), (None, None, 1), (2, None, 1)])
def test_filters_and_order_are_those_of_a_plain_loop(evaluation, true, predicted, superclass, outcome, key,
                                                     descending):
    expected = []
    for index in range(IMAGES):
        label, prediction = evaluation.labels[index].item(), evaluation.predictions[index].item()
        value = (evaluation.probabilities[index].max().item() if key == "confidence"
                 else F.nll_loss(evaluation.probabilities[index].log()[None], evaluation.labels[index][None]).item())
        if ((true is None or label == true) and (predicted is None or prediction == predicted)
                and (superclass is None or label // 3 == superclass)
                and (outcome == "all" or (label == prediction) == (outcome == "right"))):
            expected.append((-value if descending else value, index))
    found = widgets.select_images(evaluation, true, predicted, superclass, outcome, key, descending)
    assert found.tolist() == [index for _, index in sorted(expected)]


def test_losses_stay_finite_where_a_probability_is_zero():
    logits = torch.tensor([[200.0, -200.0], [1.0, 2.0]])
    evaluation = Evaluation.from_logits(logits, torch.tensor([1, 1]), ("a", "b"))
    losses = widgets.losses(evaluation)
    assert np.isfinite(losses).all() and losses[0] > 80
    assert losses[1] == pytest.approx(F.cross_entropy(logits[1:], torch.tensor([1])).item())


def test_pages_cut_the_indices_without_gap():
    indices = np.arange(100, 150)
    pages = [widgets.page_of(indices, page) for page in range(3)]
    assert [len(part) for part, _, _ in pages] == [24, 24, 2]
    assert np.concatenate([part for part, _, _ in pages]).tolist() == indices.tolist()
    assert all(count == 3 for _, _, count in pages)
    assert widgets.page_of(indices, 7)[1] == 2 and widgets.page_of(indices, -1)[1] == 0
    assert widgets.page_of(indices[:0], 0)[1:] == (0, 1)
    assert widgets.page_of(indices[:48], 0)[2] == 2


def test_the_explorer_of_an_earlier_network_explains_nothing(evaluation, images):
    explorer = widgets.ErrorExplorer(evaluation, images, lambda index: pytest.fail("asked another network"),
                                     is_current=lambda: False)
    explorer.thumbnails[0].button.click()
    assert "earlier network: run the cell again" in explorer.words.value and explorer.detail.layout.display == "none"


def test_the_explorer_shows_what_its_filters_say(evaluation, images):
    asked = []

    def explain(index):
        asked.append(index)
        return Figure((1, 1)) if len(asked) == 1 else None      # could not be drawn
    explorer = widgets.ErrorExplorer(evaluation, images, explain, note="drawn demo data")
    labels, predictions = evaluation.labels.numpy(), evaluation.predictions.numpy()
    wrong = np.flatnonzero(labels != predictions)
    assert f"{len(wrong)} images" in explorer.where.value
    assert explorer.shown[0] == wrong[evaluation.confidences.numpy()[wrong].argmax()]

    explorer.outcome.value, explorer.true.value = "all", 2
    members = np.flatnonzero(labels == 2)
    assert set(explorer.shown) <= set(members) and f"{len(members)} images" in explorer.where.value
    explorer.forward.click()
    assert explorer.page == 1 and explorer.back.disabled is False
    explorer.true.value = widgets.ANY
    assert explorer.page == 0 and f"{IMAGES} images" in explorer.where.value

    first = explorer.thumbnails[0]
    picture = np.asarray(Image.open(io.BytesIO(first.picture.value)))
    assert np.array_equal(picture[1::3, 1::3], images[explorer.shown[0]].numpy())
    first.button.click()
    assert asked == [explorer.shown[0]] and is_png(explorer.detail.value)
    assert explorer.words.value == first.button.tooltip and explorer.detail.layout.display == ""
    explorer.thumbnails[1].button.click()
    assert explorer.words.value == explorer.thumbnails[1].button.tooltip and explorer.detail.layout.display == "none"

    explorer.true.value, explorer.superclass.value = 2, 1       # class 2 is of superclass 0
    assert "no image" in explorer.where.value and explorer.forward.disabled
    assert explorer.words.value == "" and explorer.detail.layout.display == "none"      # of another page
    assert {thumbnail.box.layout.display for thumbnail in explorer.thumbnails} == {"none"}


def test_without_superclasses_there_is_no_filter_for_them(images):
    plain = Evaluation.from_logits(torch.eye(4), torch.arange(4), ("a", "b", "c", "d"))
    explorer = widgets.ErrorExplorer(plain, images[:4], None)
    assert "no image" in explorer.where.value       # nothing is wrong
    explorer.outcome.value = "right"
    assert len(explorer.shown) == 4


# A picture of your own -------------------------------------------------------------------------------------

def png(mode="RGB", size=(40, 60), color="red"):
    content = io.BytesIO()
    Image.new(mode, size, color).save(content, format="png")
    return content.getvalue()


@pytest.mark.parametrize("value", [
    {"a.png": {"metadata": {"name": "a.png"}, "content": b"12"}},                               # ipywidgets 7
    ({"name": "a.png", "type": "image/png", "size": 2, "content": memoryview(b"12")},),         # ipywidgets 8
])
def test_an_upload_is_read_in_both_versions_of_ipywidgets(value):
    assert widgets.uploaded_files(value) == [("a.png", b"12")]
    assert widgets.uploaded_files(type(value)()) == []


def test_an_upload_is_answered_and_a_broken_one_gets_one_line():
    def answer(content, name):
        if name == "broken<.png":
            raise DataError(f"{name}: cannot be read")
        return Figure((1, 1)), "apple 90 %, pear 4 %"
    own = widgets.OwnPicture(answer)
    own.show({"broken<.png": {"content": b""}})
    assert own.message.value == "broken&lt;.png: cannot be read" and own.picture.layout.display == "none"
    own.show({"fine.png": {"content": png()}})
    assert is_png(own.picture.value) and own.picture.layout.display == ""
    assert own.message.value == "fine.png: apple 90 %, pear 4 %"


# Training --------------------------------------------------------------------------------------------------

def test_drawing_takes_less_than_a_hundredth_of_the_time(monkeypatch):
    now, drawn = [0.0], []
    monkeypatch.setattr(widgets, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def draw(seconds):
        drawn.append(now[0])
        now[0] += seconds
    for seconds in (0.001, 0.5):
        drawn.clear()
        act = widgets.rate_limited(functools.partial(draw, seconds))
        start = now[0]
        while now[0] < start + 500:
            act()
            now[0] += 0.1
        gaps = np.diff(drawn)
        assert min(gaps) >= max(2, 100 * seconds)
        assert len(drawn) * seconds < 0.01 * (now[0] - start) + seconds     # the first comes at once


def test_the_running_epoch_continues_the_curve():
    history = History([{"epoch": 1, "train_loss": 4.0, "train_accuracy": 10.0, "val_loss": 3.9, "val_top1": 12.0}])
    running = [{"epoch": 1.5, "train_loss": 3.5, "train_accuracy": 15.0}]
    figure = plots.live_curves(history, running)
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_xydata().tolist() for line in dashed] == [[[1, 4.0], [1.5, 3.5]]]
    again = plots.live_curves(history, (), figure=figure)
    assert again is figure and not [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    empty = plots.png_of(plots.live_curves(History()))
    assert Image.open(io.BytesIO(empty)).size[0] == 1000


def test_curves_that_cannot_be_drawn_are_a_line_and_not_the_end_of_the_training(monkeypatch, caplog):
    def fail(*_, **__):
        raise ValueError("no font")
    monkeypatch.setattr(plots, "live_curves", fail)
    widgets.LiveView(SimpleNamespace(history=History()))
    assert [record.getMessage() for record in caplog.records] == [
        "the live curves could not be drawn: ValueError: no font"]


def test_a_finished_live_view_lets_go_of_its_trainer():
    view = widgets.LiveView(SimpleNamespace(history=History(), flops=0, total_flops=lambda: 1, step=0, total_steps=1))
    view._display = lambda *_, **__: SimpleNamespace(update=lambda *_, **__: None)
    with view:
        pass
    assert view.trainer is None
    view.button.click()     # a late click


CELL = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch
torch.set_num_threads(1)
from test_widgets import small_pipeline
pipeline = small_pipeline(RUNS, "live", epochs=100_000, checkpoint_interval=10**6, progress="bar")
epochs_seen = []
pipeline.train(lambda trainer: epochs_seen.append(len(trainer.history)), live=True)
"""


@pytest.fixture(scope="module")
def clicked(tmp_path_factory):
    """(messages of the cell, runs folder, text of the cell below) of a training that a click has stopped."""
    runs = tmp_path_factory.mktemp("live")
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        client.execute(f"RUNS = {str(runs)!r}" + CELL)
        messages, below, end = [], None, time.monotonic() + 120
        while time.monotonic() < end:
            message = client.get_iopub_msg(timeout=120)
            messages.append(message)
            assert message["msg_type"] != "error", message["content"]
            if below is None and "validation" in numbers_in(message, messages):
                below = client.execute("print(pipeline.history.stopped, pipeline.trainer.stop_requested, "
                                       "len(pipeline.history) == len(epochs_seen) > 0, pipeline.trainer.step)")
                button = next(comm for comm, model in models(messages).items() if model == "ButtonModel")
                client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": "another's", "data": "text"}))
                client.shell_channel.send(client.session.msg("comm_msg", {
                    "comm_id": button, "data": {"method": "custom", "content": {"event": "click"}}}))
            if (below and message["parent_header"].get("msg_id") == below
                    and message["content"].get("execution_state") == "idle"):
                break
        with pytest.raises(queue.Empty):        # the click, which the kernel handles now, changes nothing any more
            while True:
                message = client.get_iopub_msg(timeout=1)
                if "another's" not in message["content"].get("text", ""):       # of which the kernel knows nothing
                    messages.append(message)
                    assert message["msg_type"] == "status"
        said = [message["content"]["text"] for message in messages
                if message["msg_type"] == "stream" and message["parent_header"].get("msg_id") == below]
        return messages, runs, "".join(said)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def models(messages):
    """Widget models by the id of their comm."""
    return {message["content"]["comm_id"]: message["content"]["data"]["state"]["_model_name"]
            for message in messages if message["msg_type"] == "comm_open"}


def numbers_in(message, messages):
    """The line of numbers that a message brings, "" for another message."""
    if message["msg_type"] != "comm_msg" or models(messages).get(message["content"]["comm_id"]) != "HTMLModel":
        return ""
    return message["content"]["data"].get("state", {}).get("value", "")


def test_a_click_on_stop_ends_a_running_training_with_a_checkpoint(clicked):
    _, runs, below = clicked
    stopped, who, every_epoch_was_seen, step = below.split()
    assert (stopped, who, every_epoch_was_seen) == ("interrupted", "button", "True")
    saved = torch.load(max((runs / "live" / "checkpoints").glob("step_*.pt")), weights_only=True)
    assert saved["step"] == int(step) < 500_000


def test_the_live_view_shows_numbers_and_leaves_a_plain_picture(clicked):
    messages, runs, _ = clicked
    numbers = [numbers_in(message, messages) for message in messages]
    for part in ("training loss", "validation", "best", "learning rate", "images/s", "memory", "left"):
        assert any(part in text for text in numbers), part
    shown = [message for message in messages if message["msg_type"] == "display_data"]
    assert len(shown) == 1 and "application/vnd.jupyter.widget-view+json" in shown[0]["content"]["data"]
    last = [message for message in messages if message["msg_type"] == "update_display_data"][-1]["content"]
    assert last["transient"] == shown[0]["content"]["transient"]
    assert set(last["data"]) == {"image/png", "text/plain"} and "interrupted" in last["data"]["text/plain"]
    streams = "".join(message["content"]["text"] for message in messages if message["msg_type"] == "stream")
    assert "step/s" not in streams and "epoch 1" not in streams         # neither a bar nor the lines
    log = (runs / "live" / "train.log").read_text()
    assert "epoch      1/" in log and re.search(r"live view took [\d.]+ of [\d.]+ seconds, [\d.]+ %", log)


# The pipeline ----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    pipeline = small_pipeline(tmp_path_factory.mktemp("runs"), "own", epochs=2, progress="none")
    pipeline.train()
    return pipeline


def test_without_a_front_end_the_explorer_is_a_figure_and_a_line(pipeline, capsys):
    figure = pipeline.explore_errors()
    assert isinstance(figure, Figure) and "pipeline.explore_errors()" in capsys.readouterr().out


def test_with_a_front_end_the_explorer_explains_what_is_clicked(pipeline, monkeypatch):
    monkeypatch.setattr(widgets, "can_show", lambda: True)
    kept = []
    monkeypatch.setattr(widgets, "ErrorExplorer", lambda *given: kept.append(given) or SimpleNamespace(box="box"))
    assert pipeline.explore_errors() == "box"
    evaluation, images, explain, _, is_current = kept[0]
    assert is_current() and evaluation is pipeline.evaluation and images is pipeline.data.test_images
    figure = explain(3)
    assert pipeline.data.class_names[pipeline.data.test_labels[3]] in figure.get_suptitle()
    monkeypatch.setattr(pipeline, "evaluation", None)       # as after load_weights
    assert not is_current()


def test_own_pictures_of_every_kind_are_answered(pipeline, tmp_path):
    for number, (mode, size) in enumerate([("RGB", (40, 60)), ("RGBA", (1, 1)), ("L", (300, 2)), ("P", (64, 64)),
                                           ("1", (33, 32)), ("I;16", (40, 40))]):
        path = tmp_path / f"{number}.png"
        Image.new(mode, size).save(path)
        assert isinstance(pipeline.try_your_own_image(path), Figure)
    frames = [Image.new("RGB", (50, 50), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert pipeline.as_input(tmp_path / "moving.gif")[16, 16].tolist() == [255, 0, 0]
    sixteen = Image.fromarray(np.full((32, 32), 257 * 100, np.uint16))
    assert set(pipeline.as_input(sixteen).flatten().tolist()) == {100}


def test_what_is_no_picture_gets_one_line(pipeline, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(png(size=(400, 400))[:60])
    (tmp_path / "huge.png").write_bytes(png("1", (400, 400), 1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    for name in ("empty.png", "text.jpg", "cut.png", "huge.png", "missing.png"):
        assert pipeline.try_your_own_image(tmp_path / name) is None
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1 and name in lines[0] and "PNG" in lines[0]


def test_without_a_path_or_a_front_end_a_line_says_what_to_do(pipeline, capsys):
    assert pipeline.try_your_own_image() is None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "path" in lines[0]


def test_an_upload_widget_is_returned_where_one_can_be_clicked(pipeline, monkeypatch):
    monkeypatch.setattr(widgets, "can_show", lambda: True)
    kept = []
    monkeypatch.setattr(widgets, "OwnPicture", lambda answer: kept.append(answer) or SimpleNamespace(box="box"))
    assert pipeline.try_your_own_image() == "box"
    figure, words = kept[0](png(), "red.png")
    assert "predicted" in figure.get_suptitle()
    assert words.count(" %") == min(5, len(pipeline.class_names))
    with pytest.raises(DataError, match="^red.png: "):
        kept[0](b"", "red.png")


def test_the_reliable_confidence_is_measured_on_the_validation_split(pipeline):
    chosen = stratified_split(pipeline.data.train_labels, 80, pipeline.config.seed)[1]
    images, labels = pipeline.data.train_images[chosen], pipeline.data.train_labels[chosen]
    sure, right = [], []
    for pixels, label in zip(images, labels):
        (name, confidence), *_ = pipeline.predict(pixels)
        sure.append(confidence)
        right.append(name == pipeline.class_names[label])
    found = pipeline.network.reliable_confidence
    top = np.array(right)[np.argsort(sure)[::-1]].cumprod().sum()       # so many of the surest are all right
    if top:
        assert min(sure) - 1e-5 <= found <= sorted(sure, reverse=True)[top - 1] + 1e-5
    else:
        assert np.isnan(found)


def test_the_verdict_names_the_threshold_or_says_that_there_is_none():
    assert "care" in trust(0.5, 0.6, 4) and "60.0 %" in trust(0.5, 0.6, 4) and "knows 4 classes" in trust(0.5, 0.6, 4)
    assert "care" not in trust(0.7, 0.6, 4)
    assert "care" in trust(0.99, float("nan"), 4)
    assert "not known" in trust(0.99, None, 4)


def test_an_uploaded_picture_is_opened_once(pipeline, monkeypatch):
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *given, **more: opened.append(given) or open_image(*given, **more))
    answer(pipeline.network, io.BytesIO(png()), "red.png")
    assert len(opened) == 1


def test_loaded_weights_bring_their_reliable_confidence_or_have_none(pipeline, tmp_path):
    path = pipeline.save()
    loaded = CIFAR100Pipeline.from_checkpoint(path, runs_dir=str(tmp_path))
    assert loaded.network.reliable_confidence == pytest.approx(pipeline.network.reliable_confidence, nan_ok=True)
    assert loaded.network.temperature == pipeline.network.temperature != 1
    state = torch.load(path, weights_only=True)
    del state["reliable_confidence"], state["temperature"]
    torch.save(state, tmp_path / "older.pt")
    loaded.load_weights(tmp_path / "older.pt")
    assert loaded.network.reliable_confidence is None and loaded.network.temperature == 1
    loaded.data = pipeline.data
    loaded.build_trainer()          # whose validation split these weights may have been trained on
    assert loaded.network.reliable_confidence is None


def test_the_live_view_needs_a_kernel(pipeline, monkeypatch):
    monkeypatch.setattr(widgets, "in_kernel", lambda: False)
    with pytest.raises(ValueError, match="live=True"):
        pipeline.train(live=True)
    with pytest.raises(ValueError, match="live='maybe'"):
        pipeline.train(live="maybe")
    assert widgets.shows_live_view("auto", "bar") is False


def test_the_project_imports_without_ipython_and_ipywidgets():
    code = "import sys; sys.modules.update(IPython=None, ipywidgets=None); import cifar100_pipeline"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
