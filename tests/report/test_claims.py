"""Verdicts on a paper's claims."""

import math

import pytest

from pocketrec.report import claims

HOLD = claims.Verdict("a thousand times smaller", "1000x", "1024x ± 3", claims.HOLDS)
OPEN = claims.Verdict("on a GPU", "3.1x", "", claims.UNTESTED, needs="a GPU", command="make all SUITE=x")


def test_the_table_shows_every_claim_and_no_empty_column():
    text = claims.table([HOLD]).to_html()
    assert "1024x ± 3" in text and "holds here" in text and "command" not in text
    assert "make all SUITE=x" in claims.table([HOLD, OPEN]).to_html()
    assert "claim" in claims.table([]).to_html()


def test_the_tally_counts_each_answer():
    fails = claims.Verdict("fast", "3x", "2x", claims.FAILS)
    assert claims.tally([HOLD, HOLD, fails, OPEN]) == "2 hold here, 1 does not hold here, 1 cannot be tested here"
    assert claims.tally([]) == "no claim was tested"


def test_there_are_four_answers():
    with pytest.raises(ValueError, match="holds here"):
        claims.Verdict("fast", "3x", "2x", "maybe")


@pytest.mark.parametrize(
    ("low", "high", "bounds", "verdict"),
    [
        ([1, 2], [2, 3], {"most": 3}, claims.HOLDS),
        ([1, 2], [2, 3.1], {"most": 3}, claims.UNDECIDED),
        ([1, 3.1], [2, 3.2], {"most": 3}, claims.FAILS),
        ([5, 4], [6, 9], {"least": 4}, claims.HOLDS),
        ([5, 1], [6, 3], {"least": 4}, claims.FAILS),
        ([-1], [1], {"least": -1, "most": 1}, claims.HOLDS),
        ([math.nan], [math.nan], {"most": 3}, claims.UNDECIDED),
        ([], [], {"most": 3}, claims.UNDECIDED),
    ],
)
def test_intervals_decide_in_one_way(low, high, bounds, verdict):
    assert claims.by_interval(low, high, **bounds) == verdict
