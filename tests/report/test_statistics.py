import numpy as np
import pandas as pd
import pytest
import records
from scipy import stats

from pocketrec import report
from pocketrec.report.columns import DTYPES
from pocketrec.report.statistics import (
    corrected,
    differences,
    finding,
    half_width,
    highest_ratio,
    ratios,
    same_mean,
    tied_with_best,
    true_ratio,
    verdict,
    with_loss,
)
from pocketrec.report.tables import best, cells, reach


@pytest.mark.parametrize("n", [2, 3, 10])
def test_half_width_is_scipys_t_interval(n):
    values = np.random.default_rng(n).normal(0.8, 0.01, n)
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert half_width(values.std(ddof=1), n) == pytest.approx((high - low) / 2)


def test_summary_of_a_cell(suite):
    results = report.load_results(suite)
    table = report.summary(results).set_index(["dataset", "method", "ratio_requested"])
    row = table.loc[("bookcrossing", "robe", 100)]
    aucs = results.query("dataset == 'bookcrossing' and method == 'robe' and ratio_requested == 100")["auc"]
    assert row["auc"] == pytest.approx(aucs.mean())
    assert row["auc_ci"] == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(aucs))
    assert (row["n"], row["auc_n"], row["status"]) == (3, 3, "done")


def test_summary_counts_what_failed(suite):
    table = report.summary(report.load_results(suite)).set_index(["dataset", "method", "ratio_requested"])
    lost, part = table.loc[("planted", "hashing", 10)], table.loc[("planted", "robe", 100)]
    assert (lost["n"], lost["n_failed"], lost["status"]) == (0, 3, "crashed")
    assert (part["n"], part["n_failed"], part["status"]) == (2, 1, "done")
    assert table.loc[("bookcrossing", "low_dim", 1000), "n_infeasible"] == 3


def test_no_interval_without_seeds_to_make_one(suite, tmp_path):
    assert not {"inference_bytes_ci", "latency_p50_ms_ci"} & set(report.summary(report.load_results(suite)))
    single = report.load_results(records.write(tmp_path, [records.quality("robe", "planted", 10, 0)]))
    assert report.summary(single)["auc_ci"].isna().all()
    assert "±" not in cells(report.summary(single))["AUC"].item()


def test_best_is_marked_among_equal_budgets(suite):
    table = report.summary(report.load_results(suite))
    marked = table[best(table)["AUC"]]
    assert set(marked["method"]) == {"robe"}
    assert (marked.groupby("dataset")["ratio_requested"].nunique() == 3).all()
    fastest = table[best(table)["Latency p50 (ms)"]]
    assert "hashing" in set(fastest["method"])


def test_headline_for_a_notebook(suite):
    html = report.headline(report.load_results(suite)).to_html()
    assert "Size at inference (MB)" in html
    assert "font-weight: bold" in html


def _runs(*aucs: tuple[str, float, float]) -> pd.DataFrame:
    rows = [{"dataset": "d", "method": m, "variant": "", "ratio_requested": r, "auc": auc} for m, r, auc in aucs]
    return pd.DataFrame(rows).reindex(columns=list(DTYPES)).assign(status="done", variant="")


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        (
            [("full", 1, 0.8), ("robe", 10, 0.79), ("robe", 100, 0.788), ("robe", 1000, 0.7)],
            "robe at 100× keeps 96.0 %",
        ),
        ([("full", 1, 0.8), ("robe", 10, 0.7), ("hashing", 10, 0.75)], "hashing at 10× keeps 83.3 %"),
        ([("full", 1, 0.8), ("robe", 1000, 0.81)], "robe at 1,000× reaches the full table's AUC: +0.0100 (one seed)"),
        ([("robe", 10, 0.7)], "robe reaches AUC 0.7000 at 10×"),
        ([("full", 1, 0.8)], "the full table reaches AUC 0.8000"),
    ],
)
def test_finding(runs, sentence):
    assert finding(_runs(*runs)).startswith(sentence)


@pytest.mark.parametrize(
    ("aucs", "words"),
    [
        ([0.8006, 0.8004, 0.7996, 0.8006], "is not told apart from the full table's AUC: +0.0003 ± 0.0008 (4 seeds)"),
        ([0.8106, 0.8104, 0.8096, 0.8106], "reaches the full table's AUC: +0.0103 ± 0.0008 (4 seeds)"),
    ],
)
def test_a_finding_tells_a_tie_from_a_gain(aucs, words):
    assert words in finding(_seeded(full_1=[0.8] * 4, robe_10=aucs))


def test_a_finding_says_its_rule_its_seeds_and_its_interval():
    results = _seeded(**RIVALS | {"cce_100": [0.79]})  # of one seed, where others have four
    assert finding(results) == (
        "robe at 10× keeps 98.7 ± 0.2 % of the full table's AUC above chance (4 seeds); "
        "on validation none of several seeds keeps 95 % at a higher ratio"
    )


def test_validation_chooses_what_a_finding_is_about():
    results = _seeded(**RIVALS)
    results["validation_auc"] = results["auc"] - 0.05 * (results["method"] == "robe")
    assert finding(results).startswith("cce at 10× keeps 98.7")


def test_a_full_table_that_was_trained_too_long_is_told():
    results = _seeded(**RIVALS).assign(validation_auc=lambda runs: runs["auc"])
    results["peak_auc"] = results["auc"] + 0.06 * (results["method"] == "full")
    assert "the full table was kept as it ended, 0.060 below its best validation AUC" in finding(results)


def test_two_variants_of_everything_are_compared():
    one, other = (
        _seeded(**{cell: RIVALS[cell] for cell in ("full_1", "robe_10")}).assign(variant=name)
        for name in ("precision=float32", "precision=bf16")
    )
    results = pd.concat([one, other.assign(auc=other["auc"] - 0.001)], ignore_index=True)
    assert finding(results) == (
        "precision=bf16 changes the AUC against precision=float32 by "
        "−0.0010 ± 0.0000 (full 1×), −0.0010 ± 0.0000 (robe 10×); 4 seeds"
    )


def test_all_losses_of_a_dataset_are_against_one_full_table():
    wide, narrow = (
        _seeded(full_1=aucs).assign(variant=name) for name, aucs in (("dim=16", [0.80, 0.81]), ("dim=2", [0.79, 0.81]))
    )
    lone = _seeded(mlet_1=[0.78, 0.80]).assign(variant="dim=16, hidden=64")
    results = pd.concat([wide, narrow, lone], ignore_index=True)
    results["auc_delta"] = (results["auc"] - results["seed"].map({0: 0.80, 1: 0.81})).where(
        results["variant"] != "dim=16"
    )
    table = with_loss(report.summary(results)).set_index("variant")
    assert table["auc_loss"].round(4).to_dict() == {"dim=16": 0, "dim=2": 0.005, "dim=16, hidden=64": 0.015}
    assert set(table["reference"]) == {"full, dim=16"}
    assert set(differences(results)["reference"]) == {"full, dim=16 1×"}


def test_without_a_full_table_there_is_no_reference():
    table = reach(_seeded(robe_10=[0.79, 0.78], hashing_10=[0.77, 0.76])).data
    assert set(table["ratio"]) == {"no reference"}


def test_a_ratio_that_was_missed_is_told():
    cells = report.summary(_seeded(**RIVALS)).query("method == 'robe'")
    cells = cells.assign(ratio_achieved=[16.0, 104.0])
    assert ratios(cells) == ["10× → 16×", "100×"] and list(true_ratio(cells)) == [16, 100]


def test_a_better_test_score_is_not_worse():
    results = _seeded(**RIVALS)
    results["validation_auc"] = results["auc"] + 0.05 * (results["method"] == "hashing")
    tied = tied_with_best(results)
    assert tied[:, "hashing", :, 10.0].all() and tied[:, "robe", :, 10.0].all()


def test_verdict(suite):
    text = verdict(report.load_results(suite))
    assert text.startswith("51 of 60 runs done, 3 infeasible, 1 failed")


def _seeded(**cells: list[float]) -> pd.DataFrame:
    """Runs of `method_ratio` with an AUC a seed, on one dataset."""
    rows = [
        {"method": name.rpartition("_")[0], "ratio_requested": float(name.rpartition("_")[2]), "seed": seed, "auc": auc}
        for name, aucs in cells.items()
        for seed, auc in enumerate(aucs)
    ]
    table = pd.DataFrame(rows).reindex(columns=list(DTYPES)).assign(dataset="d", variant="", status="done", reason="")
    full = table[table["method"] == "full"].set_index("seed")["auc"]
    table["auc_delta"] = (table["auc"] - table["seed"].map(full)).where(table["method"] != "full")
    return table.assign(ratio_achieved=table["ratio_requested"]).astype(DTYPES)


RIVALS = {
    "full_1": [0.800, 0.802, 0.801, 0.799],
    "robe_10": [0.796, 0.7985, 0.7968, 0.795],  # always 0.004 below the full table, to a little
    "cce_10": [0.7965, 0.7978, 0.7971, 0.7944],  # now above, now below robe
    "hashing_10": [0.770, 0.7722, 0.7705, 0.7691],
    "robe_100": [0.780, 0.7822, 0.7811, 0.7788],
}


def test_differences_to_the_full_table_are_paired_by_seed():
    results = _seeded(**RIVALS)
    table = differences(results).set_index(["method", "ratio_requested"])
    gap = np.subtract(RIVALS["robe_10"], RIVALS["full_1"])
    low, high = stats.t.interval(0.95, 3, loc=gap.mean(), scale=stats.sem(gap))
    row = table.loc[("robe", 10)]
    assert (row["reference"], row["seeds"], row["test"]) == ("full 1×", 4, "paired")
    assert row["difference"] == pytest.approx(gap.mean())
    assert row["difference_ci"] == pytest.approx((high - low) / 2)
    raw = [stats.ttest_rel(RIVALS[name], RIVALS["full_1"]).pvalue for name in RIVALS if name != "full_1"]
    assert sorted(table["p"]) == pytest.approx(sorted(stats.false_discovery_control(raw)))


def test_differences_to_the_best_of_the_same_ratio():
    table = differences(_seeded(**RIVALS), "best").set_index("method")
    assert set(table.index) == {"cce", "hashing"}  # robe is the best at 10, and alone at 100
    assert set(table["reference"]) == {"robe 10×"}


def test_tied_with_the_best():
    tied = tied_with_best(_seeded(**RIVALS))
    assert {key[1::2]: value for key, value in tied.items()} == {
        ("robe", 10): True,
        ("cce", 10): True,
        ("hashing", 10): False,
        ("robe", 100): True,
    }


def test_a_single_seed_ties_nothing():
    tied = tied_with_best(_seeded(robe_10=[0.79], hashing_10=[0.78])).reset_index().set_index("method")["tied"]
    assert tied["robe"]
    assert pd.isna(tied["hashing"])


def test_same_mean_without_common_seeds_is_welchs():
    a, b = pd.Series([0.8, 0.81, 0.79], [0, 1, 2]), pd.Series([0.7, 0.73], [7, 8])
    assert same_mean(a, b) == (pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue), "Welch")
    assert np.isnan(same_mean(a, a + 1.0)[0])  # equal differences have no spread to test against
    assert np.isnan(same_mean(a[:1], b[:1])[0])
    assert same_mean(a, a) == (1.0, "paired")  # two names of one model


def test_missing_p_values_do_not_count_in_the_correction():
    found = corrected(pd.Series([0.01, np.nan, 0.04], ["a", "b", "c"]))
    assert found["a"] == pytest.approx(0.02)
    assert np.isnan(found["b"])


def test_highest_ratio_within_a_loss():
    table = highest_ratio(_seeded(**RIVALS), loss=0.01).set_index("method")
    assert (table.loc["robe", "ratio_requested"], table.loc["robe", "sure"]) == (10, True)
    assert pd.isna(table.loc["hashing", "ratio_requested"])
    assert not table.loc["hashing", "sure"]
    assert highest_ratio(_seeded(**RIVALS), loss=0.03).set_index("method").loc["robe", "ratio_requested"] == 100
    assert not highest_ratio(_seeded(**RIVALS), loss=0.0045).set_index("method").loc["cce", "sure"]


def test_nothing_finished_gives_empty_tables(tmp_path):
    lost = [records.failed("oom", "MemoryError", "robe", "planted", 10, 0)]
    results = report.load_results(records.write(tmp_path, lost))
    assert differences(results).empty
    assert tied_with_best(results).empty
    assert highest_ratio(results)["ratio_requested"].isna().all()
