"""Fonts for names in any script: which of those installed have the characters, and what to install where none has."""

from __future__ import annotations

import functools
import logging
import unicodedata

from matplotlib import font_manager

from ...text import UNPRINTABLE

log = logging.getLogger("cifar100")

# Taken first where several fonts have a Chinese character: these write it as in Taiwan, the last two nearly so.
PREFERRED = ("Noto Sans CJK TC", "Noto Sans TC", "Source Han Sans TC", "Microsoft JhengHei", "PingFang TC", "Heiti TC",
             "Noto Sans CJK HK", "Noto Sans CJK JP")
BOX = "□"
# The first word of a character's Unicode name, for those that Debian's fonts-noto-cjk has.
_CJK = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH", "KANGXI"}
_UNREADABLE = (OSError, RuntimeError, ValueError, LookupError)      # what matplotlib raises for fonts it cannot use
_tried, _told = set(), set()
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)    # not every font has a bold face


def fonts_for(text: str) -> tuple[list[str], dict[int, str]]:
    """For the characters of `text` that the current sans-serif font lacks: the installed families that have them, and
    for `str.translate` a box in place of each that none has. Says once which those are, and what to install."""
    characters = {character for character in set(text) if not character.isspace()}
    no_text = {character for character in characters if unicodedata.category(character) in UNPRINTABLE}
    changes = dict.fromkeys(map(ord, no_text), "\ufffd")
    lacking = characters - no_text - _characters("sans-serif")
    if not lacking:
        return [], changes
    families, missing = _families_with(lacking)
    if missing and _find_new_fonts():
        families, missing = _families_with(lacking)
    missing, unseen = ({character for character in missing if _is_invisible(character) == invisible}
                       for invisible in (False, True))
    if missing - _told:
        _told.update(missing)
        packages = " ".join(sorted({_package(character) for character in missing}))
        log.warning("no installed font has %s: figures show %s instead. On Linux, Colab and Kaggle, install some with "
                    "`apt-get install -y %s` (in a cell: with ! before it), elsewhere from fonts.google.com/noto, and "
                    "draw again", "".join(sorted(missing))[:20], BOX, packages)
    box = BOX if BOX in _characters("sans-serif") else "?"
    return families, changes | dict.fromkeys(map(ord, missing), box) | dict.fromkeys(map(ord, unseen), "")


def _families_with(characters: set[str]) -> tuple[list[str], set[str]]:
    """(families that together have as many of the characters as possible, the rest of the characters)."""
    installed, chosen = {entry.name for entry in font_manager.fontManager.ttflist}, []
    for family in PREFERRED:
        if family in installed and characters & _characters(family):
            chosen.append(family)
            characters = characters - _characters(family)
    others = sorted(name for name in installed if not name.lstrip(".").startswith(("Last", "Adobe Blank")))
    while characters and others:
        best = max(others, key=lambda family: len(characters & _characters(family)))
        if not characters & _characters(best):
            break
        chosen.append(best)
        characters = characters - _characters(best)
    return chosen, characters


@functools.lru_cache(maxsize=4096)
def _characters(family: str) -> frozenset[str]:
    """The characters of a family in its regular weight, in which figures write names. `findfont` warns where a family
    has only another weight."""
    upright = [entry for entry in font_manager.fontManager.ttflist if (entry.name, entry.style) == (family, "normal")]
    regular = min(upright, key=lambda entry: abs(font_manager.weight_dict.get(entry.weight, entry.weight) - 400),
                  default=None)
    path = regular.fname if regular else font_manager.findfont(font_manager.FontProperties(family=[family]))
    try:
        return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
    except _UNREADABLE:
        return frozenset()


def _find_new_fonts() -> bool:
    """Register fonts installed since matplotlib made its list, which it does once a machine; were there any?"""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    new = set(font_manager.findSystemFonts()) - known - _tried
    _tried.update(new)
    for path in new:
        try:
            font_manager.fontManager.addfont(path)
        except _UNREADABLE as error:        # such as a bitmap font of coloured emoji
            log.debug("cannot use the font %s: %s", path, error)
    return bool(new)


def _is_invisible(character: str) -> bool:
    """Does it only join or vary its neighbours, as in an emoji of several parts?"""
    return unicodedata.category(character) == "Cf" or "VARIATION SELECTOR" in unicodedata.name(character, "")


def _package(character: str) -> str:
    """The package of Debian and Ubuntu whose font has the character."""
    if unicodedata.category(character) in ("So", "Sk", "Cn") or 0x1F000 <= ord(character) < 0x20000:
        return "fonts-symbola"      # in outlines; matplotlib cannot draw coloured emoji
    return "fonts-noto-cjk" if set(unicodedata.name(character, "").split()[:1]) & _CJK else "fonts-noto-core"
