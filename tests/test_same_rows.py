"""The paired test of two AUCs on the same rows, against its definition."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import paper_suites
import pytest
import torch
from scipy import stats
from torchmetrics.functional.classification import binary_auroc

from pocketrec import same_rows as paired
from pocketrec.same_rows import delong, same_rows, shares, skipped


def by_definition(scores, labels):
    """DeLong's components, one comparison after another."""
    wins = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in scores[~labels]] for x in scores[labels]])
    return wins.mean(1), wins.mean(0)


@pytest.fixture
def scored():
    draw = np.random.default_rng(3)
    labels = draw.random(60) < 0.3
    a = np.round(draw.normal(labels * 1.0, 1.0), 1)  # rounded: many ties
    return labels, a, np.round(0.5 * a + draw.normal(labels * 0.3, 0.6), 1)


def test_shares_are_those_of_all_comparisons(scored):
    labels, a, _ = scored
    for found, expected in zip(shares(a, labels), by_definition(a, labels), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_test_is_delongs(scored):
    labels, a, b = scored
    (pa, na), (pb, nb) = by_definition(a, labels), by_definition(b, labels)
    covariances = np.cov(pa, pb) / len(pa) + np.cov(na, nb) / len(na)
    variance = np.array([1, -1]) @ covariances @ np.array([1, -1])
    found = delong(shares(a, labels), shares(b, labels))
    unit = [torch.tensor((x - x.min()) / np.ptp(x)) for x in (a, b)]
    aucs = [float(binary_auroc(x, torch.tensor(labels).int())) for x in unit]
    assert found["difference"] == pytest.approx(aucs[0] - aucs[1], abs=1e-6)
    assert found["p"] == pytest.approx(2 * stats.norm.sf(abs(pa.mean() - pb.mean()) / np.sqrt(variance)))
    assert found["high"] - found["low"] == pytest.approx(2 * 1.959964 * np.sqrt(variance))


def test_the_same_ranking_differs_by_nothing_for_sure(scored):
    labels, a, _ = scored
    found = delong(shares(a, labels), shares(2 * a + 1, labels))
    assert (found["difference"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1)


def test_its_p_values_are_uniform_where_nothing_differs():
    draw, found = np.random.default_rng(5), []
    for _ in range(400):
        labels = draw.random(300) < 0.4
        both = draw.normal(labels * 0.8, 1.0)
        found.append(delong(*(shares(both + draw.normal(0, 1, 300), labels) for _ in range(2)))["p"])
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_runs_are_tested_against_the_full_table_of_their_seed(tmp_path, tiny):
    suite = paper_suites.write(tmp_path, tiny, {"full": 0.6, "robe": 0.9}, seeds=2)
    table = same_rows(suite)
    assert table["seed"].tolist() == [0, 1, pd.NA]
    assert (table["reference"] == "full").all() and (table["reference_ratio"] == 1).all()
    assert table["difference"].iloc[2] == pytest.approx(table["difference"].iloc[:2].mean())
    width = table["high"] - table["low"]
    assert width.iloc[2] < width.iloc[:2].min()  # the noise of two models is averaged
    assert (table["positives"] + table["negatives"] == tiny.rows("test")).all()
    assert skipped(table).empty


def test_pairs_can_be_named(tmp_path, tiny):
    suite = paper_suites.write(tmp_path, tiny, {"full": 0.6, "robe": 0.9}, seeds=1)
    (row,) = same_rows(suite, [("full/planted/r1-s0", "robe/planted/r100-s0")]).to_dict("records")
    assert (row["method"], row["reference"], row["reference_ratio"]) == ("full", "robe", 100)
    assert row["difference"] == -same_rows(suite)["difference"].item()


def test_what_is_missing_is_a_row_with_a_reason(tmp_path, tiny):
    suite = paper_suites.write(tmp_path, tiny, {"full": 0.6, "robe": 0.9}, seeds=2)
    (suite / "runs/robe/planted/r100-s0/predictions.npy").unlink()
    table = same_rows(suite)
    assert table["reason"].tolist() == ["the test predictions were not kept beside the record", ""]
    assert table["difference"].isna().tolist() == [True, False]
    assert skipped(table)["command"].item().endswith("&& pocketrec run paper_robe")


def test_labels_of_another_preparation_are_not_used(tmp_path, tiny):
    suite = paper_suites.write(tmp_path, tiny, {"full": 0.6, "robe": 0.9}, seeds=1, digest="0" * 64)
    assert "another way" in same_rows(suite)["reason"].item()


def test_where_the_full_table_has_variants_they_are_paired(tmp_path):
    names = [f"{method}-{dim}" for method, dim in product(("full", "robe"), (8, 16))]
    runs = pd.DataFrame({"run": names, "method": ["full"] * 2 + ["robe"] * 2, "variant": ["dim=8", "dim=16"] * 2})
    runs = runs.assign(status="done", dataset="d", seed=0)
    assert paired.against_full(runs) == [("robe-8", "full-8"), ("robe-16", "full-16")]


def test_a_truncated_file_is_missing(tmp_path, tiny):
    suite = paper_suites.write(tmp_path, tiny, {"full": 0.6, "robe": 0.9}, seeds=1)
    (suite / "runs/robe/planted/r100-s0/predictions.npy").write_bytes(b"")
    assert "cannot be read" in same_rows(suite)["reason"].item()


def test_a_single_click_is_too_few_for_a_test(tmp_path, tiny, monkeypatch):
    suite = paper_suites.write(tmp_path, tiny, {"full": 0.6, "robe": 0.9}, seeds=1)
    labels = np.zeros_like(tiny.labels)
    labels[tiny.split("test").start] = 1
    monkeypatch.setattr(paired.data, "load", lambda *_, **__: SimpleNamespace(labels=labels, split=tiny.split))
    table = same_rows(suite)
    assert table["difference"].isna().all() and "fewer than two clicks" in table["reason"].item()
    assert skipped(table)["command"].item() == ""
