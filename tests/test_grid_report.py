"""grid_report: content and order of a grid's page, which is self-contained."""

import base64
import io
from urllib.parse import unquote

import matplotlib
from grid_runs import Page, plan, write_metrics
from PIL import Image

from helpers.lesson import plots
from helpers.lesson.runs import PUBLISHED
from helpers.metrics import History
from helpers.tools import grid_report
from helpers.tools.grid_report import Run, html_report


def finished_grid(folder, *tops, note="", **settings) -> list[Run]:
    runs = plan("preset=demo", f"seed={','.join(str(seed) for seed in range(len(tops)))}",
                *(f"{name}={value}" for name, value in settings.items()), folder=folder)
    for run, top1 in zip(runs, tops):
        write_metrics(run, top1, note, validated=(90 - top1, 95 - top1))
        run.state = "finished"
    return runs


def test_the_report_needs_no_network_and_has_a_dark_mode(tmp_path):
    source = html_report("g", finished_grid(tmp_path, 50.0, 60.0), "command", "n.ipynb")
    page = Page.of(source)
    assert not {"link", "script", "iframe"} & set(page.tags) and "@import" not in source and "url(" not in source
    assert not [value for _, value in page.attributes if value and "//" in value and not value.startswith("data:")]
    assert "prefers-color-scheme: dark" in source
    assert len(page.images) == 2        # the comparison and the small multiples
    for image in page.images:
        kind, content = image.split(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).width == 1000


def test_published_results_follow_and_are_marked(tmp_path):
    page = Page.of(html_report("g", finished_grid(tmp_path, 60.0), "command", "n.ipynb"))
    table, = page.tables
    assert table[0]["run"] == "demo-seed=0" and len(table) == 1 + len(PUBLISHED)
    assert [row["run"] for row in table[1:]] == [f"{name} (published)" for name, _, _ in PUBLISHED]
    assert [float(row["top-1 %"]) for row in table[1:]] == [top1 for _, top1, _ in PUBLISHED]
    assert page.links == []         # no executed notebook exists
    assert len(page.images) == 1    # a single run has no small multiples


def test_validation_accuracy_if_any_decides_the_order(tmp_path):
    runs = finished_grid(tmp_path, 50.0, 60.0, 55.0)        # higher test accuracy, lower validation accuracy
    page = Page.of(html_report("g", runs, "command", "n.ipynb"))
    assert [row["validation top-1 %"] for row in page.tables[0][:3]] == ["45.00", "40.00", "35.00"]
    assert "Best validation accuracy first" in page.text
    assert page.classes[1:5] == ["best", "plain", "plain", "published"]
    write_metrics(runs[0], 50.0, validated=(None, None))
    page = Page.of(html_report("g", runs, "command", "n.ipynb"))
    assert [row["top-1 %"] for row in page.tables[0][:3]] == ["60.00", "55.00", "50.00"]
    assert "Best test accuracy first" in page.text


def test_with_patience_the_best_epoch_counts_else_the_last(tmp_path):
    for patience, validated in ((0, "41.00"), (3, "48.00")):
        run, = plan("preset=demo", f"patience={patience}", "run_name=a", folder=tmp_path)
        write_metrics(run, validated=(40.0, 48.0, 41.0))
        run.state = "finished"
        page = Page.of(html_report("g", [run], "command", "n.ipynb"))
        assert page.tables[0][0]["validation top-1 %"] == validated


def test_the_report_escapes_everything(tmp_path):
    evil = "<script>alert('&')</script>\"x"
    run, = plan("preset=demo", "seed=1", folder=tmp_path)
    run.state, run.error = "failed", evil
    done, = finished_grid(tmp_path, 50.0, note=evil)
    run.config = run.config.replace(run_name="a&b'c")
    run.folder.mkdir()
    (run.folder / "n&'.ipynb").touch()
    page = Page.of(html_report(evil, [run, done], f"python {evil}", "n&'.ipynb"))
    assert "script" not in page.tags and page.text.count(evil) == 6      # title, heading, command, note twice, error
    assert [unquote(link) for link in page.links] == ["./a&b'c/n&'.ipynb"]


def test_before_the_first_run_the_report_lists_what_waits(tmp_path):
    page = Page.of(html_report("g", plan("widths=[8,8,8],[16,16,16]", folder=tmp_path), "command", "n.ipynb"))
    assert "2 waiting" in page.text and page.images == []
    assert [row["widths"] for row in page.tables[0]] == ["[8, 8, 8]", "[16, 16, 16]"]


def test_figures_show_the_best_of_many_runs(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(grid_report, "DRAWN_RUNS", 2)
    monkeypatch.setattr(plots, "small_multiples", lambda runs, note: drawn.append([run["name"] for run in runs])
                        or matplotlib.figure.Figure())
    page = Page.of(html_report("g", finished_grid(tmp_path, 50.0, 60.0, 40.0), "command", "n.ipynb"))
    assert drawn == [["seed=2", "seed=0"]] and page.text.count("best 2 of 3 runs") == 2


def test_a_figure_that_fails_leaves_the_tables(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no <picture>")
    runs = finished_grid(tmp_path, 60.0, 50.0)
    monkeypatch.setattr(grid_report.plots, "compare_runs", fail)
    page = html_report("g", runs, "command", "notebook.ipynb")
    assert "60.00" in page and "could not be drawn: no &lt;picture&gt;" in page and page.count("<figure>") == 1


def test_small_multiples_show_every_run_to_the_same_scale():
    runs = [{"name": f"run {number}", "history": History([
        {"epoch": epoch, "train_accuracy": 10.0 * epoch, "val_top1": 8.0 * epoch * number or None}
        for epoch in range(1, 4)])} for number in range(5)]
    figure = plots.small_multiples(runs, note="drawn demo data")
    assert [axes.get_title() for axes in figure.axes] == [run["name"] for run in runs]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert [len(axes.lines) for axes in figure.axes] == [1, 2, 2, 2, 2]         # the first has no validation split
    assert list(figure.axes[2].lines[1].get_ydata()) == [16.0, 32.0, 48.0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["training (augmented images)", "validation"]
    assert "drawn demo data" in [text.get_text() for text in figure.texts]
