import cells
import pandas as pd
import pytest
import records

from pocketrec.errors import UserError
from pocketrec.report import choice

WOBBLE = (0.0004, -0.0003, -0.0001)
LOSS = {"robe": 0.002, "hashing": 0.02, "cafe": 0.0021, "full": 0.0}


def cell(method, dataset, ratio, auc, seeds=3, ms=None):
    """Records of one configuration: seeds a little apart, and times where `ms` is given."""
    found = [records.quality(method, dataset, ratio, seed) for seed in range(seeds)]
    for seed, record in enumerate(found):
        wobble = WOBBLE[(seed + list(LOSS).index(method)) % 3]
        record["metrics"]["test"]["auc"] = auc + wobble
        record["metrics"]["validation"]["auc"] = auc + wobble
    if ms is not None:
        found.append(records.timed(method, dataset, ratio))
        for sample in found[-1]["speed"]:
            sample["p99_ms"] = ms
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two suites: one with four methods on two datasets, one that was timed, with two methods on one."""
    root = tmp_path_factory.mktemp("results")
    wide = [
        record
        for dataset in ("planted", "bookcrossing")
        for method, loss in LOSS.items()
        for ratio in ([1] if method == "full" else [10, 100])
        for record in cell(method, dataset, ratio, 0.75 - loss - 0.01 * (ratio == 100))
    ]
    timed = [
        record
        for method, auc, ms in (("robe", 0.74, 2.0), ("hashing", 0.73, 0.5))
        for record in cell(method, "planted", 10, auc, ms=ms)
    ]
    records.write(root / "wide", wide, notebooks=False)
    records.write(root / "timed", timed, notebooks=False)
    return [root / "wide", root / "timed", root / "absent"]


@pytest.fixture(scope="module")
def runs(folders):
    return choice.gather(folders)


def test_sets_of_two_suites_are_kept_apart(runs):
    assert set(runs["dataset"]) == {"planted, wide", "bookcrossing, wide", "planted, timed"}


def test_without_any_record_it_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="run a suite first"):
        choice.gather([tmp_path])


def test_one_folder_may_stand_for_itself(folders):
    assert len(choice.gather(str(folders[0]))) == len(choice.gather(folders[:1]))
    assert choice.lacking(choice.gather(folders[0]), str(folders[0])).equals(
        choice.lacking(choice.gather(folders[:1]), folders[:1])
    )


def test_a_shortlist_keeps_to_both_limits(runs):
    small = runs["inference_bytes"][runs["ratio_requested"] == 10].max() / 1e6
    listed = choice.shortlist(runs, small, 1.0).set_index(["dataset", "method"])
    assert "full" not in listed.index.get_level_values("method")  # too large
    assert ("planted, timed", "robe") not in listed.index  # too slow
    assert ("planted, timed", "hashing") in listed.index
    assert (listed["ratio_requested"] == 10).all()  # the better of the cells that fit
    assert choice.shortlist(runs, small / 5, 1.0).set_index(["dataset", "method"])["ratio_requested"].eq(100).all()


def test_those_tied_with_the_best_share_their_rank(runs):
    small = runs["inference_bytes"][runs["ratio_requested"] == 10].max() / 1e6
    listed = choice.shortlist(runs, small, 10).query("dataset == 'planted, wide'").set_index("method")
    assert listed["rank"].to_dict() == {"robe": 1.5, "cafe": 1.5, "hashing": 3.0}
    assert listed["tied"].to_dict() == {"robe": True, "cafe": True, "hashing": False}
    told = list(choice.shown(listed.reset_index())["beside the first"])
    assert told == ["the first", "not distinguishable", "worse"]


def test_validation_chooses_and_the_test_rows_only_judge(runs):
    luck = runs["auc"] + 0.05 * (runs["method"] == "hashing")
    shifted = runs.assign(auc=luck)
    small = runs["inference_bytes"][runs["ratio_requested"] == 10].max() / 1e6
    listed = choice.shortlist(shifted, small, 10).query("dataset == 'planted, wide'").set_index("method")
    assert listed.index[0] == "robe" and listed["tied"].all()  # better by the test is not worse
    assert "take robe at 10×, first on validation" in choice.recommendation(shifted, small, 10)
    assert set(choice.at_equal_bytes(shifted)["best"]) >= {"robe"}


def test_a_cell_with_fewer_bytes_than_its_rivals_is_marked(runs):
    off = runs.assign(ratio_achieved=runs["ratio_requested"] * (1 + 0.6 * (runs["method"] == "cafe")))
    row = choice.at_equal_bytes(off).set_index(["set", "ratio"]).loc[("bookcrossing, wide", "10×")]
    assert row["not distinguishable from it"] == "cafe (16×)"
    assert "10× → 16×" in set(choice.shown(choice.shortlist(off, 1e3, 10))["ratio"])


def test_ties_at_equal_bytes(runs):
    row = choice.at_equal_bytes(runs).set_index(["set", "ratio"]).loc[("bookcrossing, wide", "10×")]
    assert (row["best"], row["not distinguishable from it"], row["worse"]) == ("robe", "cafe", 1)


def test_the_recommendation_follows_the_records(runs):
    small = runs["inference_bytes"][runs["ratio_requested"] == 10].max() / 1e6
    books, slow, planted, over = choice.recommendation(runs, small, 1.0).splitlines()
    assert books.startswith("bookcrossing, wide: take robe at 10×") and "not distinguishable from it: cafe" in books
    assert slow.startswith("planted, timed: take hashing") and "0.500 ms" in slow
    assert "not timed" in planted
    assert over.startswith("Over all: cafe or robe, first or not distinguishable from it on 2 of 2 datasets")
    assert "nothing that ran fits" in choice.recommendation(runs, 1e-6, 1.0)


def test_what_is_lacking_has_a_remedy(runs, folders):
    table = choice.lacking(runs, folders)
    said = table.groupby("set")["missing"].agg("; ".join)
    assert said[str(folders[2])] == "any record"
    assert said["planted, wide"] == "times of 7 of 7 cells"
    assert said["planted, timed"] == "methods: cafe, full"
    assert table["remedy"].str.len().gt(0).all()


def test_one_seed_ties_nobody(tmp_path):
    found = [r for m in ("robe", "hashing") for r in cell(m, "planted", 10, 0.75 - LOSS[m], seeds=1)]
    runs = choice.gather([records.write(tmp_path / "one", found, notebooks=False)])
    listed = choice.shortlist(runs, 1e3, 1)
    assert listed["tied"].isna().tolist() == [False, True] and listed["rank"].tolist() == [1, 2]
    assert "too few seeds to test 1 others" in choice.recommendation(runs, 1e3, 1)


@pytest.mark.parametrize("x", [choice.SIZE, choice.TIME])
def test_the_picture_names_the_front(runs, x):
    titles = [ax.get_title(loc="left") for ax in choice.trade_off(runs, x, 1.0).axes if ax.axison]
    assert titles and all("the front for" in title for title in titles)
    assert choice.trade_off(runs.iloc[:0], x).axes


def test_an_empty_shortlist_is_an_empty_table(runs):
    assert choice.shown(choice.shortlist(runs, 1e-9, 1)).empty
    assert isinstance(choice.overall(runs, choice.shortlist(runs, 1e-9, 1)), pd.DataFrame)


def test_the_notebook_answers(folders, capsys):
    shown = cells.execute("which_method", results=[str(folder) for folder in folders], megabytes=1e3)
    assert "Over all: full" in capsys.readouterr().out
    assert len(shown[-1])


def test_full_tables_alone_have_no_rivals(runs):
    assert choice.at_equal_bytes(runs[runs["method"] == "full"]).empty
