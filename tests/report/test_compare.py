import json
import shutil

import pytest
import records
from scipy import stats

from pocketrec import report
from pocketrec.report.comparison import text


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
    assert set(table["flag"]) == {"untested"}


def test_missing_and_new_cells_are_listed(tmp_path):
    a = _suite(tmp_path / "a", cells=[("robe", 10), ("robe", 100)])
    b = _suite(tmp_path / "b", cells=[("robe", 100), ("robe", 1000)])
    assert report.compare(a, b).set_index("ratio_requested")["flag"].to_dict() == {
        10: "missing",
        100: "same",
        1000: "new",
    }


def test_a_change_must_be_large_and_tested(tmp_path):
    a, b = _suite(tmp_path / "a"), _suite(tmp_path / "b", 0.0002)
    assert set(report.compare(a, b)["flag"]) == {"unclear"}  # significant, and too small to matter
    assert set(report.compare(a, b, factor=1.00001)["flag"]) == {"better"}


def _timed(folder, slower=1.0, **environment):
    """A suite with a timed run, on another machine if asked for."""
    found = [records.quality("robe", "planted", 10, seed) for seed in range(3)] + [records.timed("robe", "planted", 10)]
    for record in found:
        record["environment"] = records.ENVIRONMENT | environment
    for sample in found[-1]["speed"]:
        for name in ("p50_ms", "p95_ms", "p99_ms"):
            sample[name] *= slower
    return records.write(folder, found, notebooks=False)


def test_times_of_the_same_machine_are_compared(tmp_path):
    table = report.changes(_timed(tmp_path / "a"), _timed(tmp_path / "b", slower=2))
    assert set(table["metric"]) == {"Latency p50 (ms)", "Latency p99 (ms)"}
    assert set(table["flag"]) == {"untested"}  # one timed run each: no seeds
    assert report.changes(tmp_path / "a", _timed(tmp_path / "c", slower=1.05)).empty


def test_times_of_another_machine_are_withheld(tmp_path):
    a, b = _timed(tmp_path / "a"), _timed(tmp_path / "b", slower=2, cpu="Intel Xeon 8480", torch="2.14.0", commit="abc")
    assert report.changes(a, b).empty
    differ = report.surroundings(a, b).query("same == 'no'")
    assert differ["name"].tolist() == ["cpu", "torch", "commit"]
    shown = text(a, b)
    assert shown.index("Intel Xeon 8480") < shown.index("Times are not compared") < shown.index("Changes")


def test_a_set_without_records_does_not_vouch_for_its_hardware(tmp_path):
    a, b = _timed(tmp_path / "a"), _timed(tmp_path / "b", slower=2)
    report.collect(b)
    shutil.rmtree(b / "runs")
    assert report.changes(a, b).empty
    assert set(report.surroundings(a, b)["b"]) == {"not recorded"}


def test_the_page_of_a_comparison(tmp_path):
    a, b = _suite(tmp_path / "a"), _suite(tmp_path / "b", 0.01)
    page = report.comparison_page(a, b, tmp_path / "compared.html")
    assert str(tmp_path) not in page.with_suffix(".ipynb").read_text()
    assert "<th>better</th>" in page.read_text()


def test_parameters_that_differ_come_first(tmp_path):
    a, b = _suite(tmp_path / "a"), _suite(tmp_path / "b")
    for file in b.rglob("record.json"):
        record = json.loads(file.read_text())
        if record["method"] == "robe":
            record["parameters"]["epochs"] = 7
            file.write_text(json.dumps(record))
    first = report.surroundings(a, b).iloc[0]
    assert (first["what"], first["name"], first["b"], first["same"]) == ("parameters", "epochs", "7", "no")
    assert "epochs" in text(a, b)
    assert not (report.surroundings(a, a)["what"] == "parameters").any()
