"""The first few of the odd configurations that `python tests/odd_settings.py` makes by the thousand."""

from odd_settings import campaign


def test_odd_configurations_are_refused_by_name_or_can_be_used():
    found = campaign(120, seed=3, train=0.1)
    assert found["refused"] > 60 and found["accepted"] > 5 and found["trained"] > 0
