import cells
import numpy as np
import pandas as pd
import pytest
import records

from pocketrec.report.claims import FAILS, HOLDS, UNDECIDED, UNTESTED
from pocketrec.report.papers import mlet


def run(dataset, d, k, seed, auc, noise=1e-4):
    """The record of one run: plain AUC grows by 0.01 with every doubling of d."""
    knobs = {"hidden": k} if k else {}
    method = "mlet" if k else "full"
    record = records.quality(method, dataset, 1, seed, run=f"{method}/{dataset}/r1-dim{d}-hidden{k}-s{seed}")
    wobble = np.random.default_rng([d, k, seed]).normal(0, noise)
    record["metrics"]["test"]["auc"] = auc + wobble
    record["metrics"]["validation"]["auc"] = auc + 0.01 - wobble
    record["suite"] = "paper_mlet"
    record["parameters"] |= {"dim": d, "knobs": knobs}
    record["sizes"] |= {"inference_bytes": 1000 * d, "training_bytes": 1000 * (k or d)}
    return record


def suite(folder, times, hidden=(32, 64, 128), datasets=mlet.DATASETS, noise=1e-4):
    """A suite in which a two-layer table is as good as a plain one `times[dataset]` times wider."""
    found = []
    for dataset in datasets:
        for d in mlet.WIDTHS:
            found += [run(dataset, d, 0, s, 0.7 + 0.01 * np.log2(d), noise) for s in range(5)]
            for k in (k for k in hidden if k >= d):
                auc = 0.7 + 0.01 * np.log2(d * times[dataset])
                found += [run(dataset, d, k, s, auc, noise) for s in range(mlet.SEEDS[k])]
    return mlet.load(records.write(folder, found, notebooks=False))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    times = {"planted": 4 * 2**0.5, "bookcrossing": 1, "movielens-1m": 0.5}
    return suite(tmp_path_factory.mktemp("results") / "paper_mlet", times)


def times(cost=0.4, rounds=5, foreign=0.0):
    rows = [
        {"dataset": "planted", "model": model, "batch": 128, "d": d, "k": k, "work": work, "round": number}
        | {"ms": (1 if work == "step" else 0.3) * (1 + cost * (k > 0)) * (1 + 0.1 * number), "foreign": foreign}
        for model in ("suite", "authors")
        for d in (4, 16, 64)
        for k in (0, 64, 128)
        for work in ("step", "tables")
        for number in range(rounds)
    ]
    return pd.DataFrame(rows)


def ranks(two=8.0):
    rows = [
        {"dataset": "planted", "d": 16, "k": k, "seed": seed, "feature": f"C{feature}", "ids": 10 ** (1 + feature)}
        | {"weight": weight, "effective_rank": two if k else 12.0, "stable_rank": 3.0}
        for k in (0, 64)
        for seed in range(3)
        for feature in range(4)
        for weight in ("ids", "lookups")
    ]
    return pd.DataFrame(rows)


def test_the_plain_width_as_good_is_found(runs):
    found = mlet.equal_width(runs).query("k == 64").set_index(["dataset", "d"])
    assert found.loc[("planted", 4), "width"] / 4 == pytest.approx(4 * 2**0.5, rel=0.05)
    assert found.loc[("bookcrossing", 16), "width"] == pytest.approx(16, rel=0.05)
    assert found.loc[("movielens-1m", 16), "width"] == pytest.approx(8, rel=0.05)
    assert found.loc[("planted", 32), "width"] == np.inf  # no plain table is as good
    assert (found["low"] <= found["width"]).all() and (found["width"] <= found["high"]).all()
    assert found["gain"].loc[("planted", 8)] == pytest.approx(0.025, abs=3e-4)


def test_the_interval_is_that_of_the_paired_test(tmp_path):
    """Seeds that move all tables alike leave no doubt; those that move them apart do."""
    alike = suite(tmp_path / "alike", dict.fromkeys(mlet.DATASETS, 4.0), noise=0.0)
    moved = alike.assign(auc=alike["auc"] + 0.005 * alike["seed"].astype(float))
    narrow = mlet.equal_width(moved).query("k == 64 and d == 4")
    assert (narrow["high"] / narrow["low"] < 1.05).all()
    apart = alike.assign(auc=alike["auc"] + 0.005 * alike["seed"].astype(float) * (alike["k"] == 0))
    wide = mlet.equal_width(apart).query("k == 64 and d == 4")
    assert (wide["high"] / wide["low"] > 1.3).all()


def test_where_plain_tables_get_worse_with_width_the_narrowest_as_good_counts(runs):
    plain = pd.DataFrame([[0.70, 0.72, 0.71]] * 3, columns=[2, 8, 32]) + np.arange(3)[:, None] * 1e-5
    found = mlet._equal(pd.Series([0.715] * 3), plain, 0.05)
    assert found["width"] == pytest.approx(2 ** (1 + 1.5), rel=0.02)
    worse = mlet._equal(pd.Series([0.69] * 3), plain, 0.05)
    assert (worse["width"], worse["low"], worse["high"]) == (2, 0, 2)
    best = mlet._equal(pd.Series([0.73] * 3), plain, 0.05)
    assert (best["width"], best["low"], best["high"]) == (np.inf,) * 3


def test_verdicts(runs):
    planted, books, films, theirs, cost = mlet.verdicts(runs, {"times": times()})
    assert planted.verdict == HOLDS and "d = 4: 5.7" in planted.here
    assert (books.verdict, films.verdict) == (FAILS, FAILS)
    assert (theirs.verdict, theirs.command) == (UNTESTED, "make all SUITE=mlet_criteo_kaggle")
    assert cost.verdict == FAILS and "the authors' model +40%" in cost.here and "the suite's model" in cost.here
    assert "training the authors' model takes" in cost.claim
    assert mlet.verdicts(runs, {"times": times(0.2)})[-1].verdict == HOLDS


def test_the_cost_is_not_judged_where_others_used_the_machine_nor_where_quartiles_reach_across(runs):
    noisy = mlet.verdicts(runs, {"times": times(0.2, foreign=0.8)})[-1]
    assert (noisy.verdict, noisy.needs) == (UNTESTED, "steps timed on a quiet machine")
    assert "100% of rounds disturbed" in noisy.here
    assert "others used more than 0.1 cores: 0.80 on average" in mlet.disturbed({"times": times(foreign=0.8)})
    moody = times(0.25)
    moody.loc[moody["k"] > 0, "ms"] *= 0.9 + 0.05 * moody["round"]
    assert mlet.verdicts(runs, {"times": moody})[-1].verdict == UNDECIDED


def test_too_few_seeds_decide_nothing(runs):
    noisy = runs.assign(auc=runs["auc"] + np.random.default_rng(0).normal(0, 0.02, len(runs)))
    first = mlet.verdicts(noisy, {})[0]
    assert first.verdict == UNDECIDED and "more seeds" in first.needs and first.command


def test_what_is_missing_is_said_with_a_command(runs):
    assert mlet.missing(runs).empty
    part = runs[(runs["dataset"] != "bookcrossing") & ~((runs["k"] == 64) & (runs["d"] == 8) & (runs["seed"] == 4))]
    table = mlet.missing(part)
    assert (table["dataset"] == "bookcrossing").sum() == 4
    row = table[table["dataset"] == "planted"].iloc[0]
    assert (row["missing at d"], row["command"]) == ("8", "pocketrec run paper_mlet --dataset planted --method mlet")
    judged = mlet.verdicts(part, {})
    assert judged[1].verdict == UNTESTED and judged[1].command
    assert judged[-1].verdict == UNTESTED and judged[-1].command == "pocketrec measure paper_mlet"


def test_the_suite_as_published_is_judged_by_its_own_data(runs):
    large = runs[runs["dataset"] == "planted"].assign(dataset="criteo-kaggle", suite="mlet_criteo_kaggle")
    theirs, cost = mlet.verdicts(large, {})
    assert theirs.verdict == HOLDS and cost.command == "pocketrec measure mlet_criteo_kaggle"
    assert mlet.missing(large).empty


def test_on_the_same_rows_cells_over_seeds_are_shown():
    cell = {"dataset": "planted", "variant": "dim=4, hidden=64", "reference": "full, dim=16", "difference": -0.001}
    rows = [cell | {"seed": seed, "low": -0.003, "high": 0.001, "p": 0.3} for seed in (0, 1, pd.NA)]
    shown = mlet.same_rows({"same_rows": pd.DataFrame(rows)})
    assert shown["AUC − its AUC [95 %]"].tolist() == ["−0.0010 [−0.0030, +0.0010]"]
    assert shown[["two layers", "against", "p"]].iloc[0].tolist() == ["d = 4, k = 64", "plain, d = 16", "0.300"]
    assert "not measured yet" in mlet.same_rows({}).iloc[0, 0]


def test_the_cost_is_paired_by_round():
    table = mlet.cost(times(0.25)).query("k == 64")
    assert np.allclose(table[["cost", "low", "high"]], 0.25)
    moody = times(0.25)
    moody.loc[moody["k"] == 64, "ms"] *= 1 + 0.01 * moody["round"]
    table = mlet.cost(moody).query("k == 64")
    assert np.allclose(table[["low", "cost", "high"]], np.array([1.01, 1.02, 1.03]) * 1.25 - 1)
    assert np.allclose(table["tables"], 0.3)


def test_directions_of_features_that_could_have_more(runs):
    table = mlet.directions(ranks())
    assert set(table["feature"]) == {"C1", "C2", "C3"}  # C0 has 10 ids, too few for 16 directions
    assert (table["two"] < table["plain"]).all() and (table["seeds"] == 3).all()


def test_no_loss_against_the_best_plain_table(runs):
    found = mlet.without_loss(runs).query("k == 64").set_index("dataset")
    assert found.loc["planted", ["plain_d", "d"]].tolist() == [64, 16]
    assert found.loc["movielens-1m", "d"] is pd.NA
    assert "4 times fewer bytes served, while training keeps 1 times the bytes" in mlet.advice(runs)


def test_validation_chooses_and_test_rows_are_only_read_off(runs):
    lucky = runs.assign(auc=runs["auc"] + 0.5 * ((runs["k"] == 0) & (runs["d"] == 2)))
    row = mlet.without_loss(lucky).query("k == 64").set_index("dataset").loc["planted"]
    assert (row["plain_d"], row["d"]) == (64, 16) and row["plain_auc"] == pytest.approx(0.76, abs=1e-3)
    assert row["auc"] == pytest.approx(0.765, abs=1e-3)


def test_the_page_names_its_suite_and_set_up(tmp_path):
    found = [run("planted", d, k, 0, 0.7) | {"suite": "paper_mlet_sgd"} for d in (4, 16) for k in (0, 64)]
    search = {"parameter": "table_lr", "validation_auc": {"0.2": 0.6, "1": 0.7}, "chosen": 1.0}
    for record in found:
        record["parameters"] |= {"table_optimizer": "sgd", "table_lr": 1.0}
        record |= {"search": search, "data": {"rows": {"train": 1000}, "cardinalities": [9]}}
    said = mlet.about(records.write(tmp_path / "paper_mlet_sgd", found, notebooks=False))
    first = (
        "The suite `paper_mlet_sgd` trains its tables by SGD: plain ones and two-layer ones with k = 64, of widths d ="
    )
    assert said.startswith(f"{first} 4 and 16.") and "planted: dim 4 or 16; 1,000 training rows" in said
    assert "In 4 of 4 searches the chosen value is an end of the list that was tried (0 the lowest, 4 the" in said


@pytest.mark.parametrize("part", ["all", "one dataset", "plain only", "one seed", "nothing"])
def test_pictures_and_tables_work_with_what_there_is(runs, part):
    cut = {
        "all": runs,
        "one dataset": runs[runs["dataset"] == "planted"],
        "plain only": runs[runs["k"] == 0],
        "one seed": runs[runs["seed"] == 0],
        "nothing": runs.iloc[:0],
    }[part]
    measured = {} if part == "nothing" else {"times": times(), "ranks": ranks(), "skipped": pd.DataFrame()}
    for table in (mlet.seeds, mlet.missing, mlet.sizes, mlet.worth, mlet.without_loss, mlet.advice):
        assert table(cut) is not None
    for figure in (mlet.auc_vs_width, mlet.narrower):
        assert all(ax.get_title(loc="left") for ax in figure(cut).axes if ax.axison)
    for figure in (mlet.cost_vs_width, mlet.step_parts, mlet.ranks_side_by_side):
        assert all(ax.get_title(loc="left") for ax in figure(measured).axes if ax.axison)
    assert len(mlet.costs(measured)) and len(mlet.ranks(measured)) and mlet.disturbed(measured)
    assert len(mlet.verdicts(cut, measured)) == 5


def test_the_notebook_shows_what_there_is(tmp_path):
    """From one run alone, without measurements."""
    folder = records.write(tmp_path / "paper_mlet", [run("planted", 4, 64, 0, 0.7)], notebooks=False)
    _, verdicts, *shown = [value for value in cells.execute("paper_mlet", results=str(folder)) if value is not None]
    assert (verdicts.data["verdict"] == UNTESTED).all() and verdicts.data["command"].str.contains("mlet").all()
    assert len(shown) > 12


def test_the_drawing():
    assert {"F = E W\nn × d"} <= {text.get_text() for text in mlet.drawing().axes[0].texts}
