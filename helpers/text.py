"""Names, durations and tables in readable form."""

from __future__ import annotations

import difflib
import itertools
import textwrap
import unicodedata
import zlib
from collections.abc import Iterable

UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")      # Unicode categories: controls, lone surrogates, separators of lines


def readable(name: str, columns: int | None = None) -> str:
    """The name of a class or superclass in one line without underscores; cut to `columns`, see `fitted`."""
    text = "".join("\ufffd" if unicodedata.category(character) in UNPRINTABLE else character
                   for character in str(name).replace("_", " "))
    return text if columns is None else fitted(text, columns)


def columns_of(text: str) -> int:
    """Width of a text in columns of a terminal: a Chinese character takes two, a mark above or below another none."""
    return sum(0 if unicodedata.category(character) in ("Mn", "Me", "Cf") else
               2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def fitted(text: str, columns: int) -> str:
    """`text` in at most so many columns: what is too much is cut from its middle, since long names often differ at
    their ends only."""
    if columns_of(text) <= columns and len(text) <= 3 * columns:
        return text
    start, end = "", ""
    for number, character in enumerate(itertools.chain.from_iterable(zip(text, reversed(text)))):
        grown = (start, character + end) if number % 2 else (start + character, end)
        if columns_of("".join(grown)) > columns - 1 or len("".join(grown)) > 3 * columns:
            break
        start, end = grown
    return f"{start}…{end}"


def wrapped(text: str, columns: int) -> list[str]:
    """`text` in lines of about so many columns."""
    return textwrap.wrap(text, max(1, columns * len(text) // max(columns_of(text), 1)))


def shown(value) -> str:
    """repr(value) in at most 80 characters of one line, for messages about values of any kind and size."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):        # more digits than Python writes; a list in a list in a list …
        text = f"<a {type(value).__name__} too large to write>"
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:60]} … {text[-12:]}"


def did_you_mean(word: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """"; did you mean 'name'?" with the name that is nearest to a misspelt word, "" if none is near."""
    near = difflib.get_close_matches(word[:80], names, 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_line(error: Exception) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shortened(name: str, length: int) -> str:
    """Cut a name to `length` bytes of UTF-8, ending in a checksum so that different names stay different."""
    content = name.encode(errors="surrogatepass")
    if len(content) <= length:
        return name
    return f"{content[:length - 9].decode(errors='ignore')}-{zlib.crc32(content):08x}"


def short_text(value) -> str:
    """A setting's value in the name of a run: `64x192x256`."""
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def duration(seconds: float) -> str:
    """In words: "45 s", "17 min", "1 h 50 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def epoch_line(row: dict, epochs: int) -> str:
    """A row of the History in one line."""
    loss = "–" if row["val_loss"] is None else f"{row['val_loss']:.3f}"
    validation = ("" if row["val_top1"] is None else
                  f"  val loss {loss}  top-1 {row['val_top1']:5.2f} %  top-5 {row['val_top5']:5.2f} %")
    return (f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  train loss {row['train_loss']:.3f}  "
            f"accuracy {row['train_accuracy']:5.2f} %{validation}  lr {row['learning_rate']:.4f}  "
            f"{row['images_per_second']:,.0f} images/s  {row['seconds']:,.0f} s")


def table(rows: list[dict]) -> str:
    """Dicts as a text table; numbers right-aligned, missing values empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *[["" if row.get(name) is None else str(row[name]) for name in columns] for row in rows]]
    widths = [max(columns_of(line[index]) for line in cells) for index in range(len(columns))]
    left = [not any(_is_number(line[index]) for line in cells[1:]) for index in range(len(columns))]
    lines = ([_padded(*cell) for cell in zip(line, widths, left)] for line in cells)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _padded(text: str, columns: int, to_left: bool) -> str:
    gap = " " * (columns - columns_of(text))
    return text + gap if to_left else gap + text


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()


def layers_text(rows: list[dict]) -> str:
    """The table of `models.layer_table` with a line of totals."""
    total = {"layer": "all", "output": "", "parameters": sum(row["parameters"] for row in rows),
             "mflops": sum(row["mflops"] for row in rows)}
    return table([{"layer": row["layer"], "output": "×".join(map(str, row["output"])),
                   "parameters": f"{row['parameters']:,}", "MFLOP": f"{row['mflops']:.2f}"} for row in [*rows, total]])


def results_text(results: dict) -> str:
    """The results of `CIFAR100Pipeline.evaluate` in a few lines."""
    lines = [f"top-1 {results['top1']:.2f} %, top-5 {results['top5']:.2f} % on {results['images']:,} test images"]
    if results["note"]:
        lines[0] = f"{results['note']}: {lines[0]}"
    lines.append(f"with flip TTA {results['flip_tta']['top1']:.2f} % and {results['flip_tta']['top5']:.2f} %")
    worst, best = (readable(results[name], 40) for name in ("worst_class", "best_class"))
    lines.append(f"classes: mean {results['class_mean']:.2f} %, standard deviation {results['class_std']:.2f}, from "
                 f"{results['class_min']:.0f} % ({worst}) to {results['class_max']:.0f} % ({best})")
    if results["superclass_top1"] is not None:
        lines.append(f"superclasses: {results['superclass_top1']:.2f} % of the predictions fall in the right one")
    lines.append(f"expected calibration error {results['expected_calibration_error']:.4f}, "
                 f"{results['uncalibrated_error']:.4f} without the temperature {results['temperature']:.3f}")
    return "\n".join(lines)
