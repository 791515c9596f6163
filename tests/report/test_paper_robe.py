"""ROBE's verdicts follow from the records and measurements, and what is missing is said."""

import json
import math
from itertools import product
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import records

from pocketrec.report import claims
from pocketrec.report.papers import robe

NOTEBOOK = Path(__file__).parents[2] / "notebooks/paper_robe.ipynb"
FULL = [0.8000, 0.8020, 0.8010, 0.7990, 0.8005]
NOISE = [0.0001, -0.0001, 0.0, 0.0002, -0.0002]
LOSSES = {10: 0.0, 100: 0.0004, 1000: 0.004}  # of blocks of 32


def run(method, ratio, auc, seed, block_size=None):
    record = records.quality(method, "planted", ratio, seed, suite="paper_robe")
    record["metrics"]["test"]["auc"] = auc
    if method == "robe":
        record["parameters"] |= {"knobs": {"block_size": block_size}, "dim": 32}
        record["run"] += f"-block_size{block_size}"
    return record


def runs(losses=LOSSES):
    found = [run("full", 1, auc, seed) for seed, auc in enumerate(FULL)]
    for (ratio, loss), seed in product(losses.items(), range(5)):
        found.append(run("robe", ratio, FULL[seed] - loss + NOISE[seed], seed, 32))
        if seed < 2:
            found.append(run("robe", ratio, FULL[seed] - 2 * loss + NOISE[seed], seed, 8))
            found.append(run("hashing", ratio, FULL[seed] - 0.02 + NOISE[seed], seed))
    return found


def sample(part, ms, embedding="", block_size=None, **more):
    point = {"shape": "MLPerf", "dim": 128, "table_bytes": 10**10, "batch": 2048, "ids": "zipf", "device": "cpu"}
    rest = {"bytes": 10**6, "flops": 10**9, "foreign": 0.0, "core_to_core_ns": 60.0}
    return point | rest | {"part": part, "ms": ms, "embedding": embedding, "block_size": block_size} | more


def timings(**more):
    """Timed calls of one point: a model of 10 ms, of which 4 are the full table's lookup, and 2 ROBE's."""
    rows = [sample("model", 10.0, "full"), sample("lookup", 4.0, "full"), sample("limit", 2.0, "full")]
    rows += [sample("model", 12.0, robe.BAGS), sample("lookup", 6.0, robe.BAGS)]
    rows += [sample("model", 8.0, "robe", 32), sample("lookup", 2.0, "robe", 32), sample("limit", 1.0, "robe", 32)]
    rows += [sample("lookup", 5.0, "robe", 1), sample("interaction", 1.0, bytes=0), sample("MLPs", 5.0, bytes=0)]
    rows += [sample("copy", 1.0, flops=0), sample("product", 2.5, bytes=0)]
    return [row | more for row in rows]


def on_the_same_rows(ratio=1000.0):
    row = {"dataset": "planted", "method": "robe", "variant": "block_size=32", "ratio_requested": ratio, "seed": None}
    row |= {"difference": -0.004, "low": -0.005, "high": -0.003, "p": 0.001, "reason": "", "command": ""}
    return pd.DataFrame([row, row | {"seed": 0, "difference": 1.0}]).astype({"seed": "Int64"})


def evidence(folder, found=None, **measured):
    records.write(folder, runs() if found is None else found, notebooks=False)
    (folder / "measured").mkdir()
    for name, table in measured.items():
        table.to_parquet(folder / "measured" / f"{name}.parquet")
    return robe.load(folder)


@pytest.fixture
def whole(tmp_path):
    speed = pd.DataFrame([*timings(), *timings(ids="uniform"), *timings(table_bytes=10**6, ids="uniform")])
    return evidence(tmp_path, speed=speed, same_rows=on_the_same_rows(), machine=pd.DataFrame([{"processor": "one"}]))


def test_block_sizes_are_variants_and_the_most_seeds_carry_the_verdict(whole):
    assert set(whole.runs.loc[whole.runs["method"] == "robe", "variant"]) == {"Z=8", "Z=32"}
    assert (whole.suite, whole.block_size) == ("paper_robe", "Z=32")


def test_a_default_block_is_the_largest_divisor_up_to_32():
    assert robe._block_size({"parameters": {"dim": 64, "knobs": {}}}) == "Z=32"
    assert robe._block_size({"parameters": {"dim": 24, "knobs": {"block_size": None}}}) == "Z=24"


def test_the_solved_block_size_counts_where_the_record_has_it():
    solved = {"embedding": {"name": "robe", "block_size": 16}}
    assert robe._block_size(solved | {"parameters": {"dim": 32, "knobs": {"block_size": None}}}) == "Z=16"


def test_the_highest_ratio_has_three_readings(whole):
    table = robe.reach(whole).set_index("configuration")
    assert table.loc["robe, Z=32", ["surely", "by the mean", "not ruled out"]].tolist() == ["100×"] * 3
    two = table.loc["robe, Z=8"]  # two seeds that differ by 0.0002: an interval of 0.0013 to either side
    assert two[["surely", "by the mean", "not ruled out"]].tolist() == ["none", "100×", "100×"]
    assert table.loc["hashing", "by the mean"] == "none"
    assert (table.loc["robe, Z=32", "seeds"], two["seeds"]) == ("5", "2")


def test_both_tests_stand_side_by_side(whole):
    row = robe.both_tests(whole).set_index("ratio_requested").loc[1000]
    assert row["difference"] == pytest.approx(-0.004)
    assert row[["rows_difference", "rows_low", "rows_high"]].tolist() == [-0.004, -0.005, -0.003]


@pytest.mark.parametrize("ratio", [1000, 1080.4])
@pytest.mark.parametrize(
    ("loss", "verdict"), [(0.0002, claims.HOLDS), (0.004, claims.FAILS), (0.001, claims.UNDECIDED)]
)
def test_quality_is_judged_by_the_whole_interval(tmp_path, ratio, loss, verdict):
    """At the suite's own ratio of 1,000 or more."""
    there, here, *_ = robe.verdicts(evidence(tmp_path, runs({10: 0.1, ratio: loss, 10_000: 0.1})))
    assert here.verdict == verdict and "over 5 seeds, Z=32" in here.here
    assert ("more seeds" in here.needs) == (verdict == claims.UNDECIDED)
    assert there.verdict == claims.UNTESTED and there.command == "make all SUITE=robe_criteo_tb"


def test_gains_and_what_a_free_lookup_would_give(whole):
    row = robe.largest(whole).iloc[0]
    assert (row["gain"], row["gain_over_bags"], row["free"]) == pytest.approx((1.25, 1.5, 10 / 6))
    assert (row["low"], row["high"]) == pytest.approx((1.25, 1.25))  # one sample has no spread


@pytest.mark.parametrize(
    ("auc", "verdict"), [(0.8040, claims.HOLDS), (0.8010, claims.FAILS), (0.8025, claims.UNDECIDED)]
)
def test_on_criteo_tb_itself_the_target_is_judged(tmp_path, auc, verdict):
    found = [run("robe", 1000, auc + NOISE[seed], seed, 32) | {"dataset": "criteo-tb"} for seed in range(5)]
    found = robe.verdicts(evidence(tmp_path, found))
    assert len(found) == 4  # the target and three places of the full table
    assert found[0].verdict == verdict and "5 seeds" in found[0].here


def terabyte(auc, test_rows=89_000_000, clicks=0.033):
    """The suite `robe_criteo_tb`: one seed, 4,185 times, no full table."""
    entropy = -clicks * math.log(clicks) - (1 - clicks) * math.log(1 - clicks)
    data = {"rows": {"train": 4_000_000_000, "test": test_rows}, "cardinalities": [882_774_585]}
    found = [run("robe", 4185.005, auc, 0, size) | {"dataset": "criteo-tb", "data": data} for size in (1, 8, 32, 128)]
    for record in found:
        record["suite"] = "robe_criteo_tb"
        record["metrics"]["test"] |= {"log_loss": 0.8 * entropy, "ne": 0.8}
    return found


@pytest.mark.parametrize(
    ("auc", "verdict"), [(0.8040, claims.HOLDS), (0.8010, claims.FAILS), (0.8026, claims.UNDECIDED)]
)
def test_a_single_seed_at_the_suites_own_ratio_is_judged_by_test_rows(tmp_path, auc, verdict):
    found = evidence(tmp_path, terabyte(auc))
    target = robe.verdicts(found)[0]
    assert target.verdict == verdict and "± 0.0003 over other test rows, from a single seed" in target.here
    assert "4,185×, Z=128" in target.here and not robe.missing(found)["what"].str.contains("criteo-tb").any()


def test_the_interval_over_rows_is_that_of_other_draws():
    """Scores of exponential laws, for which Hanley and McNeil's formula is exact."""
    auc, positives, negatives = 0.8, 40, 60
    rng = np.random.default_rng(0)
    high, low = rng.exponential(auc / (1 - auc), (4000, positives, 1)), rng.exponential(1, (4000, 1, negatives))
    share = positives / (positives + negatives)
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    row = pd.Series({"dataset": "x", "auc": auc, "log_loss": 0.9 * entropy, "ne": 0.9})
    half = robe._half_over_rows(row, pd.DataFrame([{"dataset": "x", "test rows": positives + negatives}]))
    assert half / 1.96 == pytest.approx((high > low).mean((1, 2)).std(), rel=0.05)
    assert math.isnan(robe._half_over_rows(row, pd.DataFrame()))


def test_the_setting_is_that_of_the_records(tmp_path):
    data = {"rows": {"train": 900_000}, "cardinalities": [10, 20]}
    mlps = {"bottom_mlp": [64], "top_mlp": [128, 64], "train_rows": 400_000, "batch_size": 1024}
    found = [record | {"data": data, "parameters": record["parameters"] | mlps} for record in runs()]
    (row,) = evidence(tmp_path, found).setting.to_dict("records")
    assert (row["training rows"], row["ids"], row["MLPs"], row["seeds"]) == (400_000, 30, "64 and 128-64", "up to 5")


def test_the_set_up_is_a_sentence_of_the_records():
    data = {"rows": {"train": 900_000}, "cardinalities": [10, 20]}
    how = {"bottom_mlp": [64], "top_mlp": [128, 64], "batch_size": 1024, "table_optimizer": "sgd", "dense_lr": 0.2}
    found = [record | {"data": data} for record in runs()]
    for record, lr in zip(found, (0.3, *[0.1] * len(found)), strict=False):
        record["parameters"] |= how | {"table_lr": lr, "dim": 32}
    said = robe.set_up(found)
    assert said.startswith(
        "planted: dim 32; 900,000 training rows; 2 epochs; batch 1,024; tables by sgd at 0.1 or 0.3;"
    )
    assert "AMD EPYC 7742, 2 cores" in said
    assert robe.set_up([]) == "No training run has finished."


def on_gpu(folder, robe_ms=1.5):
    """A bench of whole models on a GPU: at the larger batch 30 ms from the host's memory, 1.2 ms from the GPU's."""
    ms = {"full, in main memory": 30.0, "full": 1.4, "robe": robe_ms, "full, CUDA graph": 1.2}
    ms["robe, CUDA graph"] = robe_ms
    rows = [
        {"embedding": name, "work": work, "batch": batch, "dim": 128, "ms": each * scale, "foreign": 0.0}
        for name, each in ms.items()
        for work, batch, scale in (("answers", 65_536, 1), ("answers", 2048, 0.5), ("request", 1, 0.001))
    ]
    folder.mkdir()
    pd.DataFrame(rows).to_parquet(folder / "dlrm.parquet")
    (folder / "machine.json").write_text(json.dumps({"device": "NVIDIA H200"}))


@pytest.mark.parametrize(("robe_ms", "there"), [(1.5, claims.FAILS), (0.3, claims.HOLDS)])
def test_the_throughput_is_judged_by_the_place_of_the_full_table(tmp_path, robe_ms, there):
    on_gpu(tmp_path / "speed_h200", robe_ms)
    host, gpu, processor = robe.verdicts(evidence(tmp_path / "paper_robe"))[-3:]
    assert (host.verdict, gpu.verdict, processor.verdict) == (claims.HOLDS, there, claims.UNTESTED)
    assert f"{30 / robe_ms:.3g} times" in host.here and f"{1.2 / robe_ms:.3g} times" in gpu.here


@pytest.mark.parametrize(("ms", "verdict"), [(8.0, claims.FAILS), (3.0, claims.HOLDS)])
def test_throughput_is_compared_at_the_best_batch_of_each(tmp_path, ms, verdict):
    rows = [sample("model", 10.0, "full"), sample("model", ms, "robe", 32), sample("model", 20.0, robe.BAGS)]
    rows += [
        sample("lookup", 4.0, "full"),
        sample("model", 1.0, "full", batch=64),
        sample("model", 9.0, "robe", batch=64),
    ]
    found = robe.verdicts(evidence(tmp_path, speed=pd.DataFrame(rows)))[-1]
    assert found.verdict == verdict and f"{10 / ms:.3g} times [" in found.here and "with zipf ids" in found.here


def test_throughput_that_scatters_or_was_disturbed_is_not_judged(tmp_path):
    rows = [sample("model", ms, name, foreign=ms == 10.0) for name in ("full", "robe") for ms in (1.0, 1.0, 10.0)]
    found = evidence(tmp_path, speed=pd.DataFrame(rows))
    assert robe.verdicts(found)[-1].verdict == claims.UNDECIDED
    found.measured["speed"]["foreign"] = 1.0
    assert robe.verdicts(found)[-1].needs == "a quiet machine"


def test_parts_and_limits(whole):
    part = robe.shares(whole).set_index(["ids", "embedding"]).loc[("zipf", "full")]
    assert part[["lookup", "interaction", "MLPs", "rest", "model"]].tolist() == pytest.approx(
        [x * 1e3 / 2048 for x in (4, 1, 5, 0, 10)]
    )
    table = robe.limits(whole).query("ids == 'zipf'").set_index("part")["share"]
    assert table.to_dict() == pytest.approx(
        {"lookup, full table": 0.5, "lookup, ROBE 1,000×": 0.5, "MLPs": 0.5, "interaction": 2.5}
    )


def test_nothing_measured_is_said_with_its_command(tmp_path):
    found = evidence(
        tmp_path, [run("robe", 10, 0.79, 0, 32), records.failed("oom", "too much", "robe", "planted", 100, 0)]
    )
    table = robe.missing(found)
    commands = {f"pocketrec {word} paper_robe" for word in ("retry", "run", "measure")}
    assert set(table["command"]) == commands | {robe.GPU_BENCH}
    assert [verdict.verdict for verdict in robe.verdicts(found)] == [claims.UNTESTED] * 5
    assert found.setting.empty  # these records tell nothing of their data
    for picture in (robe.loss, robe.intervals, robe.throughput, robe.by_size, robe.parts, robe.roofline):
        (text,) = picture(found).axes[0].texts
        assert "No difference" in text.get_text() or "pocketrec measure paper_robe" in text.get_text()


@pytest.mark.parametrize("part", ["whole", "runs alone"])
def test_the_notebook_rebuilds_from_the_folder(whole, tmp_path, part):
    if part == "runs alone":
        for file in (tmp_path / "measured").iterdir():
            file.unlink()
    names = {}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
            names |= {"results": str(tmp_path)}
    assert len(names["verdicts"]) == 5
