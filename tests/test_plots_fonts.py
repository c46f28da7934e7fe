"""plots.fonts: names in any script are drawn with an installed font, or told with what to install."""

import warnings

import matplotlib
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from helpers.lesson import plots
from helpers.lesson.plots import fonts
from helpers.metrics import Evaluation
from plot_data import RUNS, images, texts


def write_font(path, family: str, characters: str):
    """A font in which each of the characters is a square."""
    pen = TTGlyphPen(None)
    for draw, point in zip((pen.moveTo, pen.lineTo, pen.lineTo, pen.lineTo), ((0, 0), (0, 900), (900, 900), (900, 0))):
        draw(point)
    pen.closePath()
    glyphs = [".notdef", *(f"g{ord(character):x}" for character in characters)]
    font = FontBuilder(1000)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap({ord(character): name for character, name in zip(characters, glyphs[1:])})
    font.setupGlyf({name: pen.glyph() for name in glyphs})
    font.setupHorizontalMetrics({name: (1000, 0) for name in glyphs})
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2(usWeightClass=400)
    font.setupPost()
    font.save(path)
    return str(path)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that puts a font of some characters where the system's fonts are, as `apt-get install` does."""
    shipped, paths = matplotlib.get_data_path(), []
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [
        one for one in font_manager.fontManager.ttflist if one.fname.startswith(shipped)])
    monkeypatch.setattr(fonts, "_told", set())
    fonts._characters.cache_clear()
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *_, **__: paths)
    yield lambda family, characters: paths.append(write_font(tmp_path / f"{family}.ttf", family, characters))
    fonts._characters.cache_clear()


def families_of(figure, name: str) -> list[str]:
    return next(text.get_fontfamily() for text in figure.axes[0].texts if text.get_text() == name)


def draw(*names: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")      # matplotlib warns of each glyph that it lacks
        figure = plots.sample_grid(images(len(names)), range(len(names)), list(names))
        plots.png_of(figure)
    return figure


def test_a_font_installed_a_moment_ago_is_taken(install, caplog):
    assert "□" in texts(draw("ꀀ", "cat"))
    install("Yi of the test", "ꀀꀁ")
    figure = draw("ꀀ", "cat")
    assert families_of(figure, "ꀀ") == ["sans-serif", "Yi of the test"]
    assert families_of(draw("cat"), "cat") == ["sans-serif"]


def test_the_font_that_writes_as_in_taiwan_goes_first_and_another_fills_its_gaps(install):
    install("AAA of everything", "鼂鼃ꃀ")
    install("Noto Sans CJK TC", "鼂鼃")
    assert families_of(draw("鼂", "鼃ꃀ"), "鼂") == ["sans-serif", "Noto Sans CJK TC", "AAA of everything"]


@pytest.mark.parametrize("name, package", [("龘龗", "fonts-noto-cjk"), ("ハㄅ한", "fonts-noto-cjk"),
                                           ("แมว", "fonts-noto-core"), ("🦖🩻", "fonts-symbola")])
def test_without_a_font_one_line_says_what_to_install(name, package, install, caplog):
    for _ in range(2):
        figure = draw("cat", name, "dog " + name)
    assert "□" * len(name) in texts(figure) and "cat" in texts(figure)
    line, = [record.getMessage() for record in caplog.records]
    assert f"apt-get install -y {package}" in line and "Colab" in line and all(character in line for character in name)


def test_what_only_joins_the_parts_of_an_emoji_needs_no_glyph(install, caplog):
    install("Emoji of the test", "🦕🦖")
    written = "".join(texts(draw("🦕\u200d🦖\ufe0f\U000e0101")))
    assert "🦕🦖" in written.replace("\u200d", "").replace("\ufe0f", "")
    assert not caplog.records


def test_controls_and_lone_surrogates_are_marked(install, caplog):
    figure = plots.compare_runs([RUNS[0] | {"name": "a\x1b\udce9b"}])
    assert any("a\ufffd\ufffdb" in text for text in texts(figure)) and not caplog.records


def test_names_within_an_evaluation_and_a_dict_count_too(install, caplog):
    install("Gothic of the test", "𐌰")
    bars = plots.class_accuracy_bars(Evaluation.from_logits(torch.eye(2), torch.arange(2), ("𐌰", "cat")))
    for figure in (bars, plots.compare_runs([RUNS[0] | {"name": "𐌰"}])):
        assert any("𐌰" in text for text in texts(figure)) and not caplog.records
