"""A bench against another version of the project."""

import pandas as pd
import pytest

from pocketrec import paths
from pocketrec.errors import UserError
from pocketrec.report import speed
from pocketrec.speed import refs


def sampled(version, ms, family="robe"):
    point = {"dim": 16, "batch": 64, "ids": "zipf", "work": "forward"}
    way = {"family": family, "route": speed.OURS, "ratio": 10.0, "block_size": 8, "hash": None, "rank": None}
    return [way | point | {"version": version, "ms": value} for value in ms]


def test_what_changed_between_two_versions():
    rows = sampled("there", [2.0, 2.1, 2.2]) + sampled("here", [1.0, 1.1, 1.2])
    rows += sampled("there", [1.0, 1.5, 3.0], "table") + sampled("here", [1.1, 1.7, 3.2], "table")
    rows += sampled("there", [1.0], "hashing") + sampled("here", [1.0], "mlet")
    table = speed.versions(pd.DataFrame(rows)).set_index("family")
    assert table["change"].to_dict() == {"robe": "faster", "table": "same", "hashing": "gone", "mlet": "new"}
    assert table.loc["robe", "times faster"] == pytest.approx(2.1 / 1.1)


def test_one_version_alone_says_so():
    assert speed.versions(pd.DataFrame(sampled("here", [1.0])))["change"].tolist() == ["new"]


def test_a_ref_that_does_not_exist_is_one_sentence():
    if not (paths.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    with pytest.raises(UserError, match="--ref nowhere"):
        refs.samples("nowhere", [])
