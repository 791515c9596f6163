import pytest
import records
from scipy import stats

from pocketrec import report


def _suite(folder, gain=0.0, seeds=(0, 1, 2), cells=(("robe", 10), ("robe", 100), ("full", 1))):
    runs = [records.quality(method, "planted", ratio, seed) for method, ratio in cells for seed in seeds]
    for place, record in enumerate(runs):
        record["metrics"]["test"]["auc"] += gain + 1e-5 * (place % 2) * (gain != 0)
    return records.write(folder, runs, notebooks=False)


def _row(table, ratio):
    return table.set_index("ratio_requested").loc[ratio]


def test_equal_sets_are_the_same(tmp_path):
    table = report.compare(_suite(tmp_path / "a"), _suite(tmp_path / "b"))
    assert set(table["flag"]) == {"same"}


@pytest.mark.parametrize(("gain", "flag"), [(0.01, "better"), (-0.01, "worse")])
def test_paired_over_common_seeds(tmp_path, gain, flag):
    table = report.compare(_suite(tmp_path / "a"), _suite(tmp_path / "b", gain))
    assert set(table["flag"]) == {flag}
    assert set(table["test"]) == {"paired"}
    assert table["difference"].to_numpy() == pytest.approx(gain, rel=0.01)


def test_welch_over_other_seeds(tmp_path):
    a, b = _suite(tmp_path / "a"), _suite(tmp_path / "b", 0.02, seeds=(5, 6, 7))
    row = _row(report.compare(a, b), 10)
    old, new = (report.load_results(path).query("ratio_requested == 10")["auc"] for path in (a, b))
    assert row["test"] == "Welch"
    assert row["p"] >= stats.ttest_ind(old, new, equal_var=False).pvalue  # corrected for three comparisons


def test_a_single_seed_has_no_test(tmp_path):
    table = report.compare(_suite(tmp_path / "a", seeds=(0,)), _suite(tmp_path / "b", 0.01, seeds=(0,)))
    assert table["p"].isna().all()
    assert set(table["flag"]) == {"unclear"}


def test_missing_and_new_cells_are_listed(tmp_path):
    a = _suite(tmp_path / "a", cells=[("robe", 10), ("robe", 100)])
    b = _suite(tmp_path / "b", cells=[("robe", 100), ("robe", 1000)])
    assert report.compare(a, b).set_index("ratio_requested")["flag"].to_dict() == {
        10: "missing",
        100: "same",
        1000: "new",
    }
