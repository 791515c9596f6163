import json
import shutil

import pandas as pd
import pytest
import records

from pocketrec import report
from pocketrec.errors import UserError
from pocketrec.report.columns import DTYPES, METRICS, STATUSES
from pocketrec.report.results import SCHEMA, is_baseline, is_full
from pocketrec.suite import record

# fmt: off
PROMISED = {
    "method", "dataset", "ratio_requested", "ratio_achieved", "inference_bytes", "training_bytes",
    "optimizer_bytes", "seed", "status", "reason", "auc", "log_loss", "ne", "calibration", "pr_auc",
    "accuracy", "auc_head", "auc_torso", "auc_tail", "validation_auc", "validation_log_loss",
    "bayes_auc", "bayes_log_loss", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms",
    "inference_samples_per_s", "train_samples_per_s", "steps", "seconds", "model_ratio", "key", "run",
    "started",
}
# fmt: on


def test_one_typed_row_a_quality_run(suite):
    results = report.load_results(suite)
    assert set(results) >= PROMISED
    assert len(results) == 60
    assert results.dtypes.astype(str).to_dict() == DTYPES
    assert set(results["status"]) == set(STATUSES)


def test_numbers_are_the_records(suite):
    row = report.load_results(suite).set_index("run").loc["robe/planted/r100-s1"]
    kept = records.quality("robe", "planted", 100, 1)
    assert row["auc"] == kept["metrics"]["test"]["auc"]
    assert row["auc_tail"] == kept["metrics"]["slices"]["tail"]["auc"]
    assert row["inference_bytes"] == kept["sizes"]["inference_bytes"]
    assert row["bayes_auc"] == 0.7801


def test_what_was_not_reached_is_missing(suite):
    lost = report.load_results(suite).query("status != 'done'")
    assert lost[["auc", "inference_bytes", "latency_p50_ms", "auc_delta"]].isna().all(axis=None)
    assert (lost["reason"] != "").all()


def test_latency_comes_from_the_timed_sibling(suite):
    row = report.load_results(suite).set_index("run").loc["robe/planted/r100-s1"]
    speed = [s for s in records.timed("robe", "planted", 100)["speed"] if s["part"] == "model"]
    assert (row["latency_p99_ms"], row["latency_batch"]) == (speed[0]["p99_ms"], 1)
    assert (row["inference_samples_per_s"], row["inference_batch"]) == (speed[-1]["samples_per_s"], 2048)


def test_difference_to_the_full_table_is_paired_by_seed(suite):
    results = report.load_results(suite).set_index("run")
    expected = results.loc["robe/planted/r10-s2", "auc"] - results.loc["full/planted/r1-s2", "auc"]
    assert results.loc["robe/planted/r10-s2", "auc_delta"] == pytest.approx(expected)
    assert results.query("method == 'full'")["auc_delta"].isna().all()


def test_a_further_axis_is_a_variant_not_a_seed(tmp_path):
    runs = []
    for epochs in (1, 2):
        run = records.quality("robe", "planted", 10, 0, run=f"robe/planted/r10-s0-epochs{epochs}")
        runs.append(run | {"parameters": run["parameters"] | {"epochs": epochs}})
    timed = records.timed("robe", "planted", 10)
    timed["parameters"]["source"] = "../r10-s0-epochs2"
    results = report.load_results(records.write(tmp_path, [*runs, timed]))
    assert list(results["variant"]) == ["epochs=1", "epochs=2"]
    assert list(results["latency_p50_ms"].notna()) == [False, True]
    assert len(report.summary(results)) == 2


def test_a_full_table_in_codes_is_compressed_and_one_table_is_the_baseline(tmp_path):
    runs = [records.quality("robe", "planted", 10, 0)]
    for options in ({"quantize": "none"}, {"quantize": "int8"}, {"dim": 2}, {"precision": "bf16"}):
        run = records.quality("full", "planted", 1, 0)
        run["run"] += "-" + "".join(map(str, options.values()))
        defaults = {"quantize": "none", "dim": 16, "precision": "float32"}
        run["parameters"] = run["parameters"] | defaults | options
        run["sizes"]["ratio_achieved"] = 2.7 if options.get("quantize") == "int8" else 1.0
        run["metrics"]["validation"]["auc"] -= 0.01 * (options.get("dim") == 2) - 0.01 * ("precision" in options)
        runs.append(run)
    results = report.load_results(records.write(tmp_path, runs, notebooks=False))
    assert list(results.loc[~is_full(results), "variant"]) == ["dim=16, precision=float32, quantize=int8", ""]
    assert list(results.loc[is_baseline(results), "variant"]) == ["dim=16, precision=float32"]
    assert results["auc_delta"].notna().sum() == len(results) - 1


def test_the_highest_validation_auc_of_the_curve_is_kept(tmp_path):
    run = records.quality("full", "planted", 1, 0)
    (row,) = report.load_results(records.write(tmp_path, [run])).to_dict("records")
    assert row["peak_auc"] == max(run["curve"]["validation_auc"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"schema": 2}', "schema 2 is not 1"),
        ('{"schema": 1, "status": "won"}', "unknown status 'won'"),
        ('{"schema": 1, "seconds": NaN}', "it holds NaN"),
    ],
)
def test_an_unreadable_record_is_a_failed_row(tmp_path, text, reason):
    records.write(tmp_path, [records.quality("robe", "planted", 10, 0)])
    file = tmp_path / "runs/robe/planted/r100-s7/record.json"
    file.parent.mkdir()
    file.write_text(text)
    row = report.load_results(tmp_path).set_index("run").loc["robe/planted/r100-s7"]
    assert (row["method"], row["ratio_requested"], row["seed"], row["status"]) == ("robe", 100, 7, "failed")
    assert reason in row["reason"]


@pytest.mark.parametrize("value", ["0.8", True, [1]])
def test_a_number_of_another_type_is_refused(tmp_path, value):
    run = records.quality("robe", "planted", 10, 0)
    run["metrics"]["test"]["auc"] = value
    results = report.load_results(records.write(tmp_path, [run]))
    assert list(results["reason"]) == ["record.json cannot be read: auc is not a number"]


def test_where_a_record_lies_says_which_run_it_is(tmp_path):
    run = records.quality("robe", "planted", 10, 0) | {"run": "../../elsewhere"}
    folder = tmp_path / "runs/robe/planted/r10-s0"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(run))
    assert list(report.load_results(tmp_path)["run"]) == ["robe/planted/r10-s0"]


def test_a_single_run_folder_and_an_unfinished_one(tmp_path):
    records.write(tmp_path, [records.quality("robe", "planted", 10, 0)])
    unfinished = tmp_path / "runs/robe/planted/.r100-s0.tmp/record.json"
    unfinished.parent.mkdir()
    unfinished.write_text("{")
    assert len(report.load_results(tmp_path)) == 1
    assert len(report.load_results(tmp_path / "runs/robe/planted/r10-s0")) == 1


def test_parquet_is_the_same_table_and_serves_without_records(suite, tmp_path):
    copy = shutil.copytree(suite, tmp_path / "copy", ignore=shutil.ignore_patterns("*.ipynb", "*.html"))
    results = report.load_results(copy)
    path = report.collect(copy)
    shutil.rmtree(copy / "runs")
    pd.testing.assert_frame_equal(report.load_results(copy), results)
    pd.testing.assert_frame_equal(report.load_results(path), results)


def test_collect_is_whole_or_absent(suite, tmp_path, monkeypatch):
    records.write(tmp_path, [records.quality("robe", "planted", 10, 0)])
    before = report.collect(tmp_path).read_bytes()

    def full_disk(self, file, **_):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full_disk)
    with pytest.raises(OSError, match="no space"):
        report.collect(tmp_path)
    assert (tmp_path / "results.parquet").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_suites_are_not_mixed(tmp_path):
    for name in ("one", "two/replaced", "two"):
        records.write(tmp_path / name, [records.quality("robe", "planted", 10, 0)], notebooks=False)
    with pytest.raises(UserError, match=r"holds suites, whose results do not mix; name one of .*one, .*two"):
        report.load_results(tmp_path)
    assert len(report.load_results(tmp_path / "two")) == 1
    assert len(report.load_results(tmp_path / "one/runs/robe")) == 1
    records.write(tmp_path / "all/three", [records.quality("robe", "planted", 10, 0)], notebooks=False)
    assert len(report.load_results(tmp_path / "all")) == 1  # one suite alone in a folder is that suite
    records.write(tmp_path / "set", [records.quality("robe", "runs", 10, 0)], notebooks=False)
    assert len(report.load_results(tmp_path / "set")) == 1  # of a dataset of that name


def test_a_search_without_a_score_has_chosen_nothing(tmp_path):
    search = {"parameter": "schedule", "validation_auc": {}, "chosen": "constant", "seconds": 9.0}
    found = [records.quality("robe", "planted", 10, 0) | {"search": search}]
    folder = records.write(tmp_path / "suite", found, notebooks=False)
    assert report.load_results(folder)["searched"].tolist() == [""] and report.load_searches(folder).empty


def test_nothing_to_read_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no record.json below it"):
        report.load_results(tmp_path)


def test_curves_and_speed(suite):
    curves, speed = report.load_curves(suite), report.load_speed(suite)
    assert {"method", "dataset", "ratio_requested", "seed", "variant", "samples", "validation_auc"} <= set(curves)
    assert len(curves) == 18 * 51
    assert len(speed) == 20 * 6


def test_statuses_and_schema_are_the_runners():
    assert (set(STATUSES), SCHEMA) == (set(record.STATUSES), record.SCHEMA)


def test_each_metric_formats_itself():
    assert METRICS["auc"].text(0.80034, 0.00121) == "0.8003 ± 0.0012"
    assert METRICS["auc_delta"].text(-0.0131) == "−0.0131"
    assert METRICS["inference_bytes"].text(3_773_786) == "3.77"
    assert METRICS["inference_bytes"].text(64_824) == "64.8 kB"
    assert METRICS["inference_bytes"].text(1_234_567_890) == "1,235"
    assert METRICS["auc"].text(float("nan")) == "–"
    assert METRICS["inference_bytes"].axis == "Size at inference (MB)"


def searched(method, ratio, chosen, seed=0):
    scores = {"0.01": 0.71, "0.1": 0.72, "1": 0.70}
    record = records.quality(method, "planted", ratio, seed)
    return record | {"search": {"parameter": "table_lr", "validation_auc": scores, "chosen": chosen, "seconds": 9.0}}


def test_a_best_value_at_an_end_of_its_list_is_told(tmp_path):
    found = [searched("robe", 10, 0.1, seed) for seed in (0, 1)]
    found += [searched("robe", 100, 0.01), searched("full", 1, 1.0), records.quality("hashing", "planted", 10, 0)]
    tried = report.load_searches(records.write(tmp_path / "suite", found, notebooks=False))
    assert len(tried) == 9 and set(tried["parameter"]) == {"table_lr"}
    table = report.load_results(tmp_path / "suite").set_index(["method", "ratio_requested", "seed"])["searched"]
    assert table["robe", 10, 1] == "table_lr=0.1" and table["hashing", 10, 0] == ""
    best = tried[tried["chosen"]].set_index(["method", "ratio_requested"])
    assert best["end"].to_dict() == {("robe", 10): "", ("robe", 100): "lowest", ("full", 1): "highest"}
    assert (tried.loc[~tried["chosen"], "end"] == "").all()


def test_words_and_large_numbers_that_were_searched_are_told(tmp_path):
    def found(parameter, chosen, *values):
        search = {
            "parameter": parameter,
            "validation_auc": dict.fromkeys(values, 0.7),
            "chosen": chosen,
            "seconds": 9.0,
        }
        return [records.quality("robe", "planted", 10, 0) | {"search": search}]

    words = records.write(tmp_path / "words", found("schedule", "plateau", "constant", "plateau"), notebooks=False)
    tried = report.load_searches(words).set_index("value")
    assert tried["chosen"].to_dict() == {"constant": False, "plateau": True} and (tried["end"] == "").all()
    rows = records.write(tmp_path / "rows", found("train_rows", 1234567, "10", "1234567"), notebooks=False)
    assert report.load_searches(rows).set_index("value")["end"].to_dict() == {10: "", 1234567: "highest"}


def test_a_suite_without_a_search_has_none(suite):
    assert report.load_searches(suite).empty
