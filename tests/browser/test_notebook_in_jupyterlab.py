"""The notebook in JupyterLab, in a real browser, on the drawn demo data: what a student sees and clicks.

Runs where Playwright, JupyterLab and Debian's chromium are installed:

    pip install jupyterlab playwright && apt-get install chromium fonts-noto-cjk

Screenshots lie in tests/browser/screenshots/ afterwards, which git ignores; look at them.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

import pytest
import torch
from PIL import Image

HOW = "install what is missing with: pip install jupyterlab playwright && apt-get install chromium fonts-noto-cjk"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name, found in [("Playwright", util.find_spec("playwright")), ("JupyterLab",
           util.find_spec("jupyterlab")), ("chromium", CHROMIUM)] if not found]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', no '.join(MISSING)}; {HOW}")

ROOT = Path(__file__).resolve().parent.parent.parent
SCREENSHOTS = Path(__file__).resolve().parent / "screenshots"
NOTEBOOK = "CIFAR_100_CNN_Training.ipynb"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
SECONDS = 300       # for any one thing to happen

READY = """() => {
    const panel = window.jupyterapp?.shell.currentWidget
    return panel?.context?.isReady && panel.sessionContext?.session?.kernel?.status == "idle"
}"""
CODE_CELLS = """() => window.jupyterapp.shell.currentWidget.context.model.toJSON().cells
    .filter(cell => cell.cell_type == "code")
    .map(cell => ({source: [cell.source].flat().join(""), count: cell.execution_count, outputs: cell.outputs.map(
        output => ({kinds: Object.keys(output.data ?? {}), error: output.ename && `${output.ename}: ${output.evalue}`,
                    text: [output.text ?? output.data?.["text/plain"] ?? ""].flat().join("")}))}))"""
# Cells out of sight are not in the page. Returns the cell's place.
SCROLL = """async source => {
    const notebook = window.jupyterapp.shell.currentWidget.content
    const place = notebook.widgets.findIndex(cell => cell.model.type == "code"
                                             && cell.model.sharedModel.source.includes(source))
    notebook.activeCellIndex = place
    await notebook.scrollToItem(place, "start")
    notebook.widgets[place].node.dataset.place = place
    return place
}"""


class Student:
    """A browser page with the notebook open, and what one does in it."""

    def __init__(self, page, name: str):
        self.page, self.name, self._shots = page, name, 0

    def run_all(self) -> None:
        self.page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")

    def cells(self) -> list[dict]:
        """The code cells: `source`, `count` (None before they have run), `outputs` (`text`, `kinds`, `error`)."""
        return self.page.evaluate(CODE_CELLS)

    def cell(self, source: str) -> dict:
        return next(cell for cell in self.cells() if source in cell["source"])

    def text(self, source: str) -> str:
        return "\n".join(output["text"] for output in self.cell(source)["outputs"])

    def wait_for(self, condition, what: str):
        """What `condition()` returns as soon as that is true."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
            self.fail_on_errors()
            time.sleep(0.5)
        self.look("timeout")
        raise TimeoutError(f"{what} did not happen in {SECONDS} s")

    def wait_for_the_end(self) -> None:
        self.wait_for(lambda: all(cell["count"] for cell in self.cells()), "the end of the notebook")
        self.fail_on_errors()

    def fail_on_errors(self) -> None:
        for cell in self.cells():
            for output in cell["outputs"]:
                assert not output.get("error"), f"{cell['source']}: {output['error']}"

    def scroll_to(self, source: str):
        """Bring a cell into sight; returns the locator of its outputs."""
        place = self.page.evaluate(SCROLL, source)
        self.page.wait_for_timeout(500)
        return self.page.locator(f".jp-Cell[data-place='{place}'] .jp-Cell-outputArea")

    def look(self, what: str) -> None:
        """Take a screenshot."""
        self._shots += 1
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{self.name}-{self._shots:02d}-{what}.png")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def student(browser, tmp_path, request):
    """A function that opens the notebook with settings of the demo preset in JupyterLab and returns a Student."""
    servers, pages = [], []

    def open_notebook(**settings) -> Student:
        copy_project(tmp_path, {"preset": "demo", **settings})
        server, address = start_jupyterlab(tmp_path)
        servers.append(server)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        pages.append(page)
        page.set_default_timeout(60_000)
        page.goto(f"{address}/lab/tree/{NOTEBOOK}?reset")
        page.wait_for_function(READY)
        return Student(page, request.node.name.removeprefix("test_"))

    yield open_notebook
    for page in pages:
        page.close()
    for server in servers:
        server.terminate()
        server.wait(60)


def copy_project(folder: Path, settings: dict) -> None:
    """What a student has: the project with the notebook's outputs cleared and `settings` in its parameters cell."""
    for name in ("cifar100_pipeline.py", "requirements.txt", "helpers", "configs"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    notebook = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        if "parameters" in cell["metadata"].get("tags", ()):
            cell["source"] = "".join(cell["source"])
            for name, value in settings.items():
                cell["source"], found = re.subn(rf"^{name} = None", f"{name} = {value!r}", cell["source"], flags=re.M)
                assert found == 1, name
    (folder / NOTEBOOK).write_text(json.dumps(notebook), encoding="utf-8")


def start_jupyterlab(folder: Path):
    """(process, address) of a JupyterLab on loopback that serves `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    log = folder / "jupyterlab.log"
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
                               f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=",
                               "--expose-app-in-browser", f"--ServerApp.root_dir={folder}"],
                              stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=folder, env=environment)
    for _ in range(600):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return server, f"http://127.0.0.1:{port}"
        if server.poll() is not None:
            break
        time.sleep(0.1)
    server.kill()
    raise RuntimeError(f"JupyterLab does not answer:\n{log.read_text()}")


def pictures(place) -> list[str]:
    """Where the visible <img>s of a locator have their pictures from; another address for another picture."""
    return place.locator("img").evaluate_all("images => images.filter(i => i.offsetParent).map(i => i.src)")


def test_run_all_explore_and_upload(student, tmp_path):
    student = student(epochs=8)
    student.run_all()
    watch_training(student)
    student.wait_for_the_end()
    use_explorer(student)
    upload(student, tmp_path)


def watch_training(student: Student) -> None:
    training = "pipeline.train()"
    student.wait_for(lambda: student.cell(training)["outputs"], "the live view")
    view, seen, numbers = student.scroll_to(training), set(), set()

    def look_on() -> bool:
        found = set(pictures(view)) - seen
        seen.update(found)
        numbers.update(text for text in view.locator(".widget-html").all_inner_texts() if "images/s" in text)
        if found and len(seen) == 3:
            student.look("live-view")
        return student.cell(training)["count"]

    student.wait_for(look_on, "the end of the training")
    assert len(seen) >= 4, "the curves did not change during training"       # the first, the last and two between
    assert len(numbers) >= 3 and all("left" in text for text in numbers), "nor the numbers"
    kinds = [kind for output in student.cell(training)["outputs"] for kind in output["kinds"]]
    assert "image/png" in kinds and "application/vnd.jupyter.widget-view+json" not in kinds, "what the file keeps"
    student.look("after-training")


def use_explorer(student: Student) -> None:
    explorer = student.scroll_to("pipeline.explore_errors()")
    where = explorer.locator(".widget-label", has_text="page")
    where.wait_for()
    first_page = where.inner_text()
    choose(explorer, "outcome", "right")        # of which there are many, even after a short training
    student.wait_for(lambda: where.inner_text() != first_page, "another outcome")
    student.look("explorer")
    first_page, first_pictures = where.inner_text(), pictures(explorer)
    explorer.locator("button[title='next page']").click()
    student.wait_for(lambda: where.inner_text() != first_page and pictures(explorer)[0] != first_pictures[0],
                     "the next page")
    explorer.locator("button[title='page before']").click()
    student.wait_for(lambda: where.inner_text() == first_page, "the page before")

    right = explorer.locator("button:visible", has_text="✓")
    name = right.first.inner_text().removeprefix("✓").strip()
    choose(explorer, "true class", name)
    student.wait_for(lambda: right.count() and all(name in text for text in right.all_inner_texts()),
                     f"images of {name}, and no others")
    choose(explorer, "true class", "any")
    student.wait_for(lambda: right.count() == len(pictures(explorer)) > 1, "the images of all classes again")
    count = len(pictures(explorer))
    right.first.click()
    student.wait_for(lambda: len(pictures(explorer)) == count + 1, "the explanation")
    explorer.locator("img").last.scroll_into_view_if_needed()
    student.look("explained")


def choose(explorer, description: str, label: str) -> None:
    explorer.locator(".widget-dropdown", has_text=description).locator("select").select_option(label=label)


def choose_file(student: Student, cell, path: Path) -> None:
    with student.page.expect_file_chooser() as chooser:
        cell.locator("button", has_text="Choose a picture").click()
    chooser.value.set_files(path)


def upload(student: Student, folder: Path) -> None:
    cell = student.scroll_to("pipeline.try_your_own_image()")
    Image.new("RGBA", (300, 200), (200, 30, 30, 128)).save(folder / "red.png")
    (folder / "broken.png").write_bytes(b"no picture")
    answer = cell.locator(".widget-html")
    choose_file(student, cell, folder / "broken.png")
    student.wait_for(lambda: "cannot be read" in answer.inner_text(), "the line about a broken file")
    assert not pictures(cell)
    choose_file(student, cell, folder / "red.png")
    student.wait_for(lambda: answer.inner_text().startswith("red.png: ") and pictures(cell), "an answer")
    assert answer.inner_text().count("%") == 5
    cell.locator("img").scroll_into_view_if_needed()
    student.look("own-picture")


def test_stop_leaves_a_checkpoint_and_the_cells_below_go_on(student, tmp_path):
    student, training = student(epochs=500), "pipeline.train()"
    student.run_all()
    student.wait_for(lambda: student.cell(training)["outputs"], "the live view")
    view = student.scroll_to(training)
    student.wait_for(lambda: "validation" in " ".join(view.locator(".widget-html").all_inner_texts()),
                     "the first epoch")
    student.look("before-stop")
    view.locator("button", has_text="Stop").click()
    student.wait_for_the_end()
    student.scroll_to(training)
    student.look("after-stop")
    assert "top-1" in student.text("pipeline.evaluate()")
    step = int(re.search(r"stopped after step (\d+)", student.text(training))[1])
    state = torch.load(max(tmp_path.glob("runs/*/checkpoints/step_*.pt")), weights_only=True)
    assert state["step"] == step and state["stopped"] == "interrupted"

    student.page.evaluate("void window.jupyterapp.commands.execute('notebook:run-cell')")
    student.wait_for(lambda: f"step {step}" in student.text(training) and view.locator("button").count(),
                     "the training to go on")
    view.locator("button", has_text="Stop").click()
    student.wait_for(lambda: "stopped after" in student.text(training), "a second stop")
