"""The interactive parts of the notebook: the live view of training, the error explorer, a picture of your own.

ipywidgets (7 and 8) and IPython are imported only to show something, so everything else works without them. The caller
passes the functions that compute something about an image.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import math
import os
import sys
import threading
import time
from importlib import util

import numpy as np
from PIL import Image

from ..data import DataError
from ..logs import epoch_log, log
from ..metrics import Evaluation
from ..system import peak_memory_mb, progress_style
from ..text import duration, readable
from ..trainer import READ_SECONDS, Trainer
from . import plots

PAGE_SIZE = 24
WIDE = {"width": "100%", "max_width": "1000px"}
ANY = -1        # not None, which a dropdown takes as no choice
ORDERS = {"most confident first": ("confidence", True), "least confident first": ("confidence", False),
          "highest loss first": ("loss", True), "lowest loss first": ("loss", False)}


def can_show() -> bool:
    """Can the user click: does a notebook front end show the output, and is ipywidgets installed?"""
    return progress_style() == "bar" and in_kernel()


def shows_live_view(live: bool | str, progress: str) -> bool:
    """Does training show the live view? `live` is True, False or "auto" (if a notebook's front end shows a bar). Raises
    ValueError for another value, and for True without a kernel."""
    if live not in (True, False, "auto"):
        raise ValueError(f"live={live!r}: must be True, False or 'auto'")
    if live is True and not in_kernel():
        raise ValueError("live=True: needs a notebook's kernel and ipywidgets (pip install ipywidgets); live='auto' "
                         "shows the live view only with both")
    return progress_style(progress) == "bar" and can_show() if live == "auto" else live


def in_kernel() -> bool:
    """Can this process show widgets: is it a notebook kernel, and is ipywidgets installed?"""
    return "ipykernel" in sys.modules and util.find_spec("ipywidgets") is not None


class LiveView:
    """Curves, numbers and a Stop button for training in the running cell, updated in place.

        with LiveView(trainer) as view:
            trainer.on_epoch = trainer.on_progress = view.update
            trainer.fit(show_bar=False)

    At the end a plain picture of the curves remains, which a saved notebook shows without a widget. Where clicks do not
    reach a running cell, a hint at the notebook's own stop button replaces the button.
    """

    def __init__(self, trainer: Trainer, note: str = ""):
        import ipywidgets
        from IPython.display import display
        self.trainer, self.note, self._display = trainer, note, display
        self._picture = ipywidgets.Image(format="png", layout=WIDE)
        self._numbers = ipywidgets.HTML()
        self.button = ipywidgets.Button(description="Stop", icon="stop", button_style="warning",
                                        tooltip="end training after this step, with a checkpoint")
        self.button.on_click(lambda _: self._stop())
        self._stream = _message_stream()
        stop = self.button if self._stream else ipywidgets.HTML(
            "To stop training, press the notebook's stop (■) button: that also saves a checkpoint.")
        self._box = ipywidgets.VBox([self._numbers, self._picture, stop])
        self._watching = contextlib.ExitStack()
        self._figure, self._running, self._open, self._fault = None, [], False, ""
        self._draw()                # before training, since the first figure is the slowest
        self._draw_if_due, self._write_if_due = rate_limited(self._draw), rate_limited(self._write)

    def __enter__(self) -> LiveView:
        self._start, self._first_flops, self._seconds = time.perf_counter(), self.trainer.flops, 0.0
        self._all_flops, self._open = self.trainer.total_flops(), True
        # By hand: ipywidgets 7 bypasses `display`, which then could not replace the widget at the end.
        view = {"version_major": 2, "version_minor": 0, "model_id": self._box.model_id}
        self._handle = self._display({"application/vnd.jupyter.widget-view+json": view, "text/plain": "training …"},
                                     raw=True, display_id=True)
        if self._stream:
            self._watching.enter_context(_noticing_clicks(self._stream, self.button.comm.comm_id, self._stop))
        return self

    def __exit__(self, *_) -> None:
        self._watching.close()
        self._open, self._running = False, []
        trained = time.perf_counter() - self._start
        epoch_log.info("updates of the live view took %.3f of %.3f seconds, %.2f %%", self._seconds, trained,
                       100 * self._seconds / trained)
        png = {"image/png": base64.b64encode(content).decode()} if (content := self._png(self.summary())) else {}
        self._handle.update(png | {"text/plain": self.summary()}, raw=True)
        self._picture.close()       # not the button: a late click still needs its handler,
        self.trainer = self._figure = None      # which keeps this object, but need not keep the images and the network

    def update(self, trainer: Trainer) -> None:
        """Check for a click, and show the state of `trainer` if due; a hook of the Trainer."""
        start = time.perf_counter()
        if self._stream:
            self._stream.flush()
        point = trainer.progress()
        self._running = [] if point["train_loss"] is None else [*self._running, point]
        self._write_if_due()
        self._draw_if_due()
        self._seconds += time.perf_counter() - start

    def summary(self) -> str:
        """The progress of training and its best validation accuracy, in words."""
        history, trainer = self.trainer.history, self.trainer
        if not len(history):
            return f"training, step {trainer.step} of {trainer.total_steps}"
        why = {"early": ", stopped early", "interrupted": ", interrupted"}.get(history.stopped, "")
        best = "" if history.best_epoch is None else (
            f"; best validation accuracy {history.best_top1:.1f} % in epoch {history.best_epoch}")
        return f"{len(history)} of {trainer.config.epochs} epochs in {duration(history['seconds'][-1])}{why}{best}"

    def _stop(self) -> None:
        if self._open and not self.button.disabled:
            self.button.disabled, self.button.description = True, "Stopping …"
            self.trainer.stop("button")

    def _write(self) -> None:
        trainer, history, now = self.trainer, self.trainer.history, self.trainer.progress()
        speed = history["images_per_second"][-1] if now["train_loss"] is None else now["images_per_second"]
        parts = [f"epoch {now['epoch']:.1f} of {trainer.config.epochs}"]
        if now["train_loss"] is not None:
            parts.append(f"training loss {now['train_loss']:.3f}, accuracy {now['train_accuracy']:.1f} %")
        if history.best_epoch is not None:
            parts.append(f"validation {history['val_top1'][-1]:.1f} % (best {history.best_top1:.1f} % in epoch "
                         f"{history.best_epoch})")
        parts += [f"learning rate {now['learning_rate']:.4g}", f"{speed:,.0f} images/s"]
        if (memory := peak_memory_mb(trainer.device)) is not None:
            where = "device" if trainer.device.type == "cuda" else "process"
            parts.append(f"{where} memory {memory / 1024:.1f} GB at most")
        if done := trainer.flops - self._first_flops:
            seconds = (time.perf_counter() - self._start) / done        # per FLOP, since images may grow
            parts.append(f"about {duration(seconds * max(self._all_flops - trainer.flops, 0))} left")
        self._numbers.value = html.escape(" · ".join(parts))

    def _draw(self) -> None:
        self._picture.value = self._png()

    def _png(self, title: str = "") -> bytes:
        """The curves; empty if they cannot be drawn, which must not end the training."""
        try:
            self._figure = plots.live_curves(self.trainer.history, self._running, title, self.note, self._figure)
            return plots.png_of(self._figure)
        except Exception as error:      # of matplotlib
            fault = f"the live curves could not be drawn: {type(error).__name__}: {error}"
            if fault != self._fault:        # else again every two seconds
                log.warning("%s", fault)
            self._fault = fault
            return b""


def rate_limited(act):
    """A function that calls `act` at most every READ_SECONDS and spends under 1 % of the time in it."""
    due = -math.inf

    def act_if_due() -> None:
        nonlocal due
        start = time.perf_counter()
        if start >= due:
            act()
            due = start + max(READ_SECONDS, 125 * (time.perf_counter() - start))
    return act_if_due


def _message_stream():
    """The ZMQStream that brings the front end's messages to this thread; None if clicks do not arrive.

    The kernel handles a click only after the running cell, but its message can be read before. VS Code sends none while
    a cell runs. ipykernel 7 reads the front end's socket in another thread, which passes messages to the main thread
    through a pair of sockets.
    """
    from IPython import get_ipython
    kernel = getattr(get_ipython(), "kernel", None)
    if "VSCODE_PID" in os.environ or threading.current_thread() is not threading.main_thread():
        return None
    if getattr(kernel, "shell_channel_thread", None) is None:
        stream = getattr(kernel, "shell_stream", None)
    else:
        find_pair = getattr(kernel.shell_channel_thread.manager, "get_shell_channel_to_subshell_pair", None)
        stream = find_pair(None).to_stream if find_pair else None
    return stream if callable(getattr(stream, "_recv_callback", None)) else None


@contextlib.contextmanager
def _noticing_clicks(stream, comm_id: str, act):
    """Within this context, `stream.flush()` calls `act()` if a click on the button `comm_id` has arrived. Every
    message, clicks included, still goes to the kernel, which handles them in order after the cell."""
    from IPython import get_ipython
    session, pass_on = get_ipython().kernel.session, stream._recv_callback

    def look(frames):
        if _is_click(session, frames, comm_id):
            act()
        return pass_on(frames)

    stream.on_recv(look, copy=False)
    try:
        yield
    finally:
        stream.on_recv(pass_on, copy=False)


def _is_click(session, frames, comm_id: str) -> bool:
    """Do the ZMQ frames of a message hold a click on the button `comm_id`?"""
    try:
        _, parts = session.feed_identities(frames, copy=False)
        # Without its content, deserialize does not record the signature: the kernel can read the message again.
        message = session.deserialize(parts, content=False, copy=False)
    except (ValueError, TypeError):
        return False        # the kernel reports the fault
    content = session.unpack(message["content"]) if message["msg_type"] == "comm_msg" else {}
    if content.get("comm_id") != comm_id:       # other libraries' messages may hold anything
        return False
    return (content.get("data", {}).get("content") or {}).get("event") == "click"


def select_images(evaluation: Evaluation, true: int | None = None, predicted: int | None = None,
                  superclass: int | None = None, outcome: str = "wrong", key: str = "confidence",
                  descending: bool = True) -> np.ndarray:
    """Indices, int64 [n], of the evaluated images that pass all filters, stably sorted by `key`; None passes all.

    true, predicted: a class; superclass: that of the true class; outcome: "wrong", "right" or "all"; key: "confidence"
    or "loss" (cross entropy of the image).
    """
    labels, predictions = evaluation.labels.numpy(), evaluation.predictions.numpy()
    passes = (outcome == "all") | ((labels == predictions) == (outcome == "right"))
    if true is not None:
        passes &= labels == true
    if predicted is not None:
        passes &= predictions == predicted
    if superclass is not None:
        passes &= evaluation.superclass_of.numpy()[labels] == superclass
    chosen = np.flatnonzero(passes)
    values = evaluation.confidences.numpy()[chosen] if key == "confidence" else losses(evaluation)[chosen]
    return chosen[np.argsort(-values if descending else values, kind="stable")]


def losses(evaluation: Evaluation) -> np.ndarray:
    """Cross entropy of each image, float32 [N], in nats."""
    probabilities = evaluation.probabilities.gather(1, evaluation.labels[:, None])[:, 0].numpy()
    return -np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def page_of(indices: np.ndarray, page: int) -> tuple[np.ndarray, int, int]:
    """(indices on page `page`, its number, number of pages); a page out of range becomes the nearest."""
    pages = max(1, math.ceil(len(indices) / PAGE_SIZE))
    page = min(max(page, 0), pages - 1)
    return indices[page * PAGE_SIZE:(page + 1) * PAGE_SIZE], page, pages


class ErrorExplorer:
    """Test images by class, outcome, confidence and loss, in pages; a click on an image explains it. `images` are the
    evaluated ones, uint8 [N, 32, 32, 3]; `explain(index)` returns a Figure about one of them, None if it cannot be
    drawn, as long as `is_current()` says that the evaluated network is still there. `box` is the widget to show,
    `thumbnails` hold its pictures and buttons, `words` and `detail` are the explanation."""

    def __init__(self, evaluation: Evaluation, images, explain, note: str = "", is_current=lambda: True):
        import ipywidgets
        self.evaluation, self.images, self.explain, self.is_current = evaluation, images, explain, is_current
        names = [readable(name) for name in evaluation.class_names]
        classes = sorted(zip(names, range(len(names))))
        self.true = _dropdown("true class", [("any", ANY), *classes])
        self.predicted = _dropdown("predicted", [("any", ANY), *classes])
        superclasses = [(name, place) for place, name in enumerate(evaluation.superclass_names)]
        self.superclass = _dropdown("superclass", [("any", ANY), *superclasses])
        self.outcome = _dropdown("outcome", [("wrong", "wrong"), ("right", "right"), ("wrong and right", "all")])
        self.order = _dropdown("order", list(ORDERS.items()))
        filters = [self.true, self.predicted, *([self.superclass] if superclasses else []), self.outcome, self.order]
        self.back, self.forward = (ipywidgets.Button(icon=icon, tooltip=tooltip, layout={"width": "42px"})
                                   for icon, tooltip in (("arrow-left", "page before"), ("arrow-right", "next page")))
        self.where = ipywidgets.Label()
        self.thumbnails = [_Thumbnail(self._pick) for _ in range(PAGE_SIZE)]
        self.words = ipywidgets.HTML()
        self.detail = ipywidgets.Image(format="png", layout=WIDE | {"display": "none"})
        self._messages = ipywidgets.Output()
        rows = [ipywidgets.HBox(filters, layout={"flex_flow": "row wrap"}),
                ipywidgets.HBox([self.back, self.forward, self.where]), self.words, self.detail, self._messages,
                ipywidgets.HBox([thumbnail.box for thumbnail in self.thumbnails],
                                layout={"flex_flow": "row wrap", "max_width": "1000px"})]
        self.box = ipywidgets.VBox(([ipywidgets.HTML(f"<b>{html.escape(note)}</b>")] if note else []) + rows)
        for widget in filters:
            widget.observe(lambda _: self.show(0), "value")
        self.back.on_click(lambda _: self.show(self.page - 1))
        self.forward.on_click(lambda _: self.show(self.page + 1))
        self.show(0)

    def show(self, page: int) -> None:
        """Apply the filters and show a page, counted from 0."""
        key, descending = self.order.value
        classes = [None if choice.value == ANY else choice.value
                   for choice in (self.true, self.predicted, self.superclass)]
        indices = select_images(self.evaluation, *classes, self.outcome.value, key, descending)
        self.shown, self.page, pages = page_of(indices, page)
        self.where.value = (f"page {self.page + 1} of {pages}, {len(indices):,} images; each button has the predicted "
                            "class, click it to see why"
                            if len(indices) else "no image passes these filters")
        self.back.disabled, self.forward.disabled = self.page == 0, self.page == pages - 1
        self.words.value, self.detail.layout.display = "", "none"
        for place, thumbnail in enumerate(self.thumbnails):
            if place < len(self.shown):
                index = int(self.shown[place])
                thumbnail.show(index, self.images[index], *self._caption(index))
            else:
                thumbnail.hide()

    def _caption(self, index: int) -> tuple[bool, str, str]:
        """(is it right?, predicted class, all in words)."""
        label, prediction = int(self.evaluation.labels[index]), int(self.evaluation.predictions[index])
        name, true = (readable(self.evaluation.class_names[place]) for place in (prediction, label))
        share = 100 * self.evaluation.confidences[index]
        return label == prediction, name, f"test image {index}: {true}, predicted {name} with {share:.0f} %"

    def _pick(self, index: int) -> None:
        self._messages.clear_output()
        with self._messages:        # an error in a callback would appear nowhere else
            if not self.is_current():
                self.words.value = "These pictures are of an earlier network: run the cell again."
                self.detail.layout.display = "none"
                return
            words = html.escape(self._caption(index)[2])
            self.words.value = f"{words} …"     # it may take seconds
            figure = self.explain(index)        # None: a line below says why
            self.detail.value = plots.png_of(figure) if figure else b""
            self.words.value, self.detail.layout.display = words, "" if figure else "none"


class _Thumbnail:
    """A small picture above a button that picks it."""

    def __init__(self, pick):
        import ipywidgets
        self.picture = ipywidgets.Image(format="png", width=96, height=96)
        self.button = ipywidgets.Button(layout={"width": "156px"})
        self.button.on_click(lambda _: pick(self.index))
        self.box = ipywidgets.VBox([self.picture, self.button], layout={"align_items": "center", "width": "162px"})

    def show(self, index: int, image, right: bool, name: str, words: str) -> None:
        self.index = index
        content = io.BytesIO()
        picture = Image.fromarray(np.asarray(image)).resize((96, 96), Image.Resampling.NEAREST)     # visible pixels
        picture.save(content, format="png", compress_level=1)
        self.picture.value = content.getvalue()
        self.button.description = f"{'✓' if right else '✗'} {name}"
        self.button.tooltip = words
        self.box.layout.display = ""

    def hide(self) -> None:
        self.box.layout.display = "none"


def _dropdown(description: str, options: list):
    import ipywidgets
    return ipywidgets.Dropdown(description=description, options=options, value=options[0][1],
                               layout={"width": "230px"}, style={"description_width": "75px"})


class OwnPicture:
    """A button to upload a picture, and what the network makes of it. `answer(content, name)` takes a file's bytes and
    name and returns a Figure and a text; its DataError appears as a line. `box` is the widget to show."""

    def __init__(self, answer):
        import ipywidgets
        self.answer = answer
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="Choose a picture",
                                            layout={"width": "200px"})
        self.message = ipywidgets.HTML("any picture will do; its central square counts")
        self.picture = ipywidgets.Image(format="png", layout=WIDE | {"display": "none"})
        self._messages = ipywidgets.Output()
        self.box = ipywidgets.VBox([self.upload, self.message, self.picture, self._messages])
        self.upload.observe(lambda change: self.show(change["new"]), "value")

    def show(self, uploaded) -> None:
        """Answer for the last file in FileUpload's `value`."""
        files = uploaded_files(uploaded)
        if not files:
            return
        name, content = files[-1]
        self._messages.clear_output()
        self.message.value, self.picture.layout.display = html.escape(f"{name} …"), "none"
        with self._messages:        # an error in a callback would appear nowhere else
            try:
                figure, words = self.answer(content, name)
                self.picture.value = plots.png_of(figure)
                self.message.value, self.picture.layout.display = html.escape(f"{name}: {words}"), ""
            except DataError as error:
                self.message.value = html.escape(str(error))
            except Exception:
                self.message.value = html.escape(f"{name}: no answer, see below")
                raise


def uploaded_files(value) -> list[tuple[str, bytes]]:
    """(name, content) of the files in FileUpload's `value`: by name in ipywidgets 7, a tuple of dicts in 8."""
    if isinstance(value, dict):
        return [(name, bytes(file["content"])) for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]
