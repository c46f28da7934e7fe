"""settings_page: docs/SETTINGS.md is what TrainingConfig says."""

from helpers.config import EVERYDAY, GROUPS, SETTINGS, by_group
from helpers.tools.settings_page import PAGE, settings_page


def test_the_committed_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run `make docs`"


def test_every_setting_has_a_row_and_a_group():
    lines = settings_page().splitlines()
    rows = [line.split("|")[1].strip(" *`") for line in lines if line.startswith(("| `", "| **"))]
    assert rows == list(SETTINGS) == [name for names in by_group().values() for name in names]
    assert list(by_group()) == list(GROUPS.values())
    assert len(SETTINGS) <= 51 and len(EVERYDAY) <= 14
