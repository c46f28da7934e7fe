"""Shared by the tests of the grid: a stub notebook, planned runs, their metrics.json, and a parser of the report."""

from html.parser import HTMLParser
from pathlib import Path

import nbformat

from helpers.files import write_json
from helpers.tools.grid import grid_runs, read_items
from helpers.tools.grid_report import Run

STUB = ("""\
# Parameters: papermill adds its own below
preset = None""", """\
from helpers.config import TrainingConfig
from helpers.notebook_settings import notebook_settings
config = TrainingConfig.from_settings(notebook_settings(globals()))
print("a line of the notebook's own")""", """\
import json, os, pathlib, signal, time
if config.learning_rate > 0.5:
    raise ValueError("the <loss> is\\nnot finite & never was")
if config.epochs == 77:
    asked_to_stop = []
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.append(True))
    config.run_dir.joinpath("started").touch()
    end = time.monotonic() + 120
    while not asked_to_stop and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(6)       # a slow step; papermill alone kills after 5 seconds
    config.run_dir.joinpath("saved").touch()
    os._exit(1)
accuracy = 100 * config.learning_rate
history = [{"epoch": epoch, "train_accuracy": accuracy * epoch, "val_top1": accuracy + epoch} for epoch in (1, 2)]
config.run_dir.joinpath("metrics.json").write_text(json.dumps({
    "name": config.name, "note": "drawn demo data", "config": config.to_dict(), "history": history,
    "training": {"seconds": 90, "petaflops": 0.5, "stopped": ""},
    "results": {"top1": accuracy + 3, "top5": accuracy + 30}}))""")


def write_stub(folder: Path) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in STUB]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / "stub.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def plan(*items, folder="runs/g") -> list[Run]:
    values, files, faults = read_items(list(items))
    assert not faults
    return grid_runs(values, files, folder)


def write_metrics(run: Run, top1=50.0, note="", validated=(40.0, 45.0), stopped="", config=None) -> None:
    history = [{"epoch": epoch, "train_accuracy": 30.0, "val_top1": value}
               for epoch, value in enumerate(validated, start=1)]
    write_json({"name": run.config.name, "note": note, "config": config or run.config.to_dict(),
                "history": history, "training": {"seconds": 90.0, "petaflops": 0.5, "stopped": stopped},
                "results": {"top1": top1, "top5": top1 + 10}}, run.folder / "metrics.json")


class Page(HTMLParser):
    """A parsed page: tables as lists of {column: text}, links, images, tags and text. Checks that tags match."""

    EMPTY = {"meta", "img", "br"}

    def __init__(self):
        super().__init__()
        self.tables, self.links, self.images, self.tags, self.text, self.classes = [], [], [], [], "", []
        self.open, self.cells, self.attributes = [], [], []

    @classmethod
    def of(cls, source):
        page = cls()
        page.feed(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
        page.close()
        assert page.open == []
        return page

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.attributes += attributes.items()
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.cells = []
            self.classes.append(attributes.get("class"))
        elif tag in ("th", "td"):
            self.cells.append("")
        elif tag == "a":
            self.links.append(attributes["href"])
        elif tag == "img":
            self.images.append(attributes["src"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "tr":
            if "thead" in self.open:
                self.columns = self.cells
            else:
                assert len(self.cells) == len(self.columns)
                self.tables[-1].append(dict(zip(self.columns, self.cells)))

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
            if {"td", "th"} & set(self.open):
                self.cells[-1] += data
