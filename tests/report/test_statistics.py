import numpy as np
import pandas as pd
import pytest
import records
from scipy import stats

from pocketrec import report
from pocketrec.report.columns import DTYPES
from pocketrec.report.statistics import finding, half_width, verdict
from pocketrec.report.tables import best, cells


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
        ([("full", 1, 0.8), ("robe", 10, 0.79), ("robe", 100, 0.788), ("robe", 1000, 0.7)], "robe at 100× keeps 96.0%"),
        ([("full", 1, 0.8), ("robe", 10, 0.7), ("hashing", 10, 0.75)], "hashing at 10× keeps 83.3%"),
        ([("full", 1, 0.8), ("robe", 1000, 0.81)], "robe at 1,000× reaches the full table's AUC"),
        ([("robe", 10, 0.7)], "robe reaches AUC 0.7000 at 10×"),
        ([("full", 1, 0.8)], "the full table reaches AUC 0.8000"),
    ],
)
def test_finding(runs, sentence):
    assert finding(_runs(*runs)).startswith(sentence)


def test_verdict(suite):
    text = verdict(report.load_results(suite))
    assert text.startswith("51 of 60 runs done, 3 infeasible, 1 failed")
