"""The runs of a grid, and report.html: one self-contained page that compares them."""

from __future__ import annotations

import base64
import datetime
import glob
import html
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..config import TrainingConfig
from ..lesson import plots
from ..lesson.runs import differing_settings, finished_runs, joint_note, published_beside

DRAWN_RUNS = 10         # the figures show this many of the best runs; more exceed the distinct colours


@dataclass
class Run:
    """One run of the grid: the settings for papermill, their configuration, and the run's state."""

    settings: dict
    config: TrainingConfig
    state: str = "waiting"      # then "running", and "finished", "failed" or "interrupted"
    error: str = ""             # one line, if the run failed

    @property
    def folder(self) -> Path:
        return self.config.run_dir


def results_of(run: Run) -> dict | None:
    """The run's entry in `finished_runs`, if it has finished training with these settings and data; else None."""
    settings = run.config.training_settings()
    return next((found for found in finished_runs(glob.escape(str(run.folder)))
                 if found["settings"] == settings and found["data_dir"] == run.config.data_dir
                 and found["history"].stopped != "interrupted"), None)


def value_text(value) -> str:
    """A setting's value as in YAML and on the command line: `null`, `true`, `[64, 128]`."""
    return value if isinstance(value, str) else json.dumps(value)


STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --back: #ffffff; --faint: #5c5c5c; --line: #d4d4d4;
        --best: #e6f4ea; --link: #0b57d0; --note: #5c3d00; --note-back: #ffe9a8; --bad: #a8071a; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --back: #17181a; --faint: #a6a6a6; --line: #3f4145;
          --best: #1d3a26; --link: #8ab4f8; --note: #ffe9a8; --note-back: #4a3800; --bad: #ff9c9c; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1100px;
       margin: 0 auto; padding: 1rem; }
h1, code, .error { overflow-wrap: anywhere; }
a { color: var(--link); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
th { white-space: nowrap; }
tr.best { background: var(--best); font-weight: bold; }
tr.published, .faint { color: var(--faint); }
.note { color: var(--note); background: var(--note-back); padding: 0.1rem 0.4rem; font-weight: bold; }
.error { color: var(--bad); }
figure { margin: 1.5rem 0; }
img { max-width: 100%; background: #ffffff; }
"""


def ranked(finished: list[dict]) -> tuple[list[dict], str]:
    """The runs, best first, each with `validated` (top-1 in %, or None), and an explanation of the order. If every run
    has a validation split, that decides, so that the test split chooses nothing."""
    runs = [run | {"validated": _validated(run)} for run in finished]
    if all(run["validated"] is not None for run in runs):
        return sorted(runs, key=lambda run: -run["validated"]), (
            "Best validation accuracy first. Top-1 and top-5 are test accuracies, which do not affect the order: "
            "those of the first run show how it does on new images.")
    return sorted(runs, key=lambda run: -run["top1"]), (
        "Best test accuracy first, because some runs have no validation split. The best of many test accuracies is "
        "optimistic; set val_size above 0 in all runs to choose without the test split.")


def _validated(run: dict) -> float | None:
    """Validation top-1 of the tested weights: those of the best epoch with patience, else those of the last."""
    history = run["history"]
    return history.best_top1 if run["settings"].get("patience") else (history["val_top1"] or [None])[-1]


def html_report(name: str, runs: list[Run], command: str, notebook: str) -> str:
    """The self-contained page of a grid: tables of the finished and the other runs, and figures. Links to the executed
    notebooks, files called `notebook`, are relative to the grid's folder."""
    results = [(run, found) for run in runs if run.state == "finished" and (found := results_of(run))]
    finished, order = ranked([found | {"link": _link(run, notebook)} for run, found in results])
    published = published_beside(finished)
    others = [run for run in runs if all(run is not done for done, _ in results)]
    differing = differing_settings([{"settings": run.config.training_settings()} for run in runs])
    states = [run.state for run in runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    now = f"{datetime.datetime.now():%Y-%m-%d at %H:%M}"
    parts = [f"<h1>{html.escape(name)}</h1>", f"<p>Runs of {html.escape(notebook)}: {counts}.<br>"
             f"<span class='faint'>Written on {now} by</span> <code>{html.escape(command)}</code></p>"]
    parts += [f"<p><span class='note'>{html.escape(note)}</span> Numbers with this mark say nothing about "
              "CIFAR-100.</p>" for note in sorted({run["note"] for run in finished} - {""})]
    if finished:
        rows = [_finished_row(run, differing) for run in finished]
        rows += [{"run": f"{html.escape(name)} (published)", "top-1 %": f"{top1:.2f}", "top-5 %": f"{top5:.2f}"}
                 for name, top1, top5 in published]
        classes = ["best", *["plain"] * (len(finished) - 1), *["published"] * len(published)]
        parts += ["<h2>Finished</h2>", f"<p>{order}</p>", _table(rows, classes)]
        if published:
            parts.append("<p class='faint'>Published: results of others, not measured here.</p>")
    if others:
        parts += ["<h2>Not finished</h2>", _table([_other_row(run, differing, notebook) for run in others])]
    if finished:
        parts += ["<h2>Figures</h2>", *_figures(finished, differing, published)]
    return _page(name, "\n".join(parts))


def _finished_row(run: dict, differing: list[str]) -> dict[str, str]:
    note = f" <span class='note'>{html.escape(run['note'])}</span>" if run["note"] else ""
    return {"run": run["link"] + note, **_settings_cells(run["settings"], differing),
            "validation top-1 %": "–" if run["validated"] is None else f"{run['validated']:.2f}",
            "top-1 %": f"{run['top1']:.2f}", "top-5 %": f"{run['top5']:.2f}", "epochs": f"{run['epochs']}",
            "minutes": f"{run['seconds'] / 60:.1f}", "PFLOP": f"{run['petaflops']:.4f}"}


def _other_row(run: Run, differing: list[str], notebook: str) -> dict[str, str]:
    return {"run": _link(run, notebook), **_settings_cells(run.config.training_settings(), differing),
            "state": html.escape(run.state), "error": f"<span class='error'>{html.escape(run.error)}</span>"}


def _settings_cells(settings: dict, differing: list[str]) -> dict[str, str]:
    return {html.escape(name): html.escape(value_text(settings.get(name))) for name in differing}


def _link(run: Run, notebook: str) -> str:
    """The run's name, linked to its executed notebook if that exists."""
    name = html.escape(run.config.name)
    if not (run.folder / notebook).is_file():
        return name
    return f'<a href="{html.escape(quote(f"./{run.config.name}/{notebook}"))}">{name}</a>'


def _table(rows: list[dict[str, str]], classes: list[str] = ()) -> str:
    """A table of rows of HTML by column; columns that hold only numbers are right-aligned."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    right = {name for name in columns if all(re.fullmatch(r"[\d.]*|–", row.get(name, "")) for row in rows)}
    head = "".join(_cell("th", name, name in right) for name in columns)
    lines = []
    for row, kind in itertools.zip_longest(rows, classes, fillvalue="plain"):
        cells = "".join(_cell("td", row.get(name, ""), name in right) for name in columns)
        lines.append(f'<tr class="{kind}">{cells}</tr>')
    return ('<div class="scroll"><table>\n<thead><tr>' + head + "</tr></thead>\n<tbody>\n" + "\n".join(lines)
            + "\n</tbody></table></div>")


def _cell(tag: str, content: str, right: bool) -> str:
    return f"<{tag}{' class=number' if right else ''}>{content}</{tag}>"


def _figures(finished: list[dict], differing: list[str], published) -> list[str]:
    """Accuracy against cost and, for several runs, the training curves of each."""
    runs = [run | {"name": _short_name(run, differing)} for run in finished[:DRAWN_RUNS]]
    of_many = f" Shows the best {DRAWN_RUNS} of {len(finished)} runs." if len(finished) > DRAWN_RUNS else ""
    note = joint_note(runs)
    figures = [_figure(lambda: plots.compare_runs(runs, published, note),
                       "Accuracy against epochs, time and compute." + of_many)]
    if len(runs) > 1:
        figures.append(_figure(lambda: plots.small_multiples(runs, note),
                               "Accuracy by epoch, one panel per run." + of_many))
    return figures


def _figure(draw, caption: str) -> str:
    """The figure that `draw()` makes, or why it cannot be drawn: the tables must come all the same."""
    try:
        png = base64.b64encode(plots.png_of(draw())).decode()
    except Exception as error:      # of matplotlib
        return f"<p class='error'>{caption} This figure could not be drawn: {html.escape(str(error))}</p>"
    return f'<figure><img alt="{caption}" src="data:image/png;base64,{png}"><figcaption>{caption}</figcaption></figure>'


def _short_name(run: dict, differing: list[str]) -> str:
    """What distinguishes the run, if that is short; else its name, which includes what all runs share."""
    if not 1 <= len(differing) <= 3:
        return run["name"]
    return ", ".join(f"{name}={value_text(run['settings'].get(name))}" for name in differing)


def _page(title: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}</style></head>
<body>
{body}
</body></html>
"""
