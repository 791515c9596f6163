"""The report on PSS says what records and measurements hold, and what they lack."""

import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import records

from pocketrec import cost_model
from pocketrec.report.claims import FAILS, HOLDS, UNTESTED
from pocketrec.report.papers import pss

SLOWER = {10: 1.5, 10_000: 3.0}
SAMPLES = np.arange(1, 13) * 100_000
HERE = cost_model.Machine("two processes", 2e10, 4e9, 8e9, 6e9, np.inf, 1e9, 7e8, np.inf, 2, 3e-4, 2e-3)


def run(method, dataset, ratio, seed):
    """A record whose curve saturates: that of pss takes a known number of times the samples of the full table."""
    epochs = 4 if dataset == "bookcrossing" else 1
    auc = 0.78 - 0.1 * np.exp(-SAMPLES / SLOWER.get(ratio, 1) / 400_000) + 0.0004 * seed
    if method == "full" and epochs > 1:
        auc = auc - 0.01 * np.maximum(SAMPLES - 600_000, 0) / 600_000
    curve = {"step": SAMPLES // 2048, "samples": SAMPLES, "seconds": SAMPLES / 1e5, "train_loss": 1 - auc}
    curve = {name: values.tolist() for name, values in (curve | {"validation_auc": auc}).items()}
    record = records.quality(method, dataset, ratio, seed, curve=curve)
    record["parameters"] |= {"epochs": epochs}
    return record


def written(folder, *, seeds=3):
    runs = [run(m, d, r, s) for d in ("planted", "bookcrossing") for m, r in CELLS for s in range(seeds)]
    return records.write(folder, runs, notebooks=False)


CELLS = (("full", 1), ("pss", 10), ("pss", 10_000))


def timed(machine=HERE):
    """What `speed.parallel.bench` would return on a machine that does exactly what the model says."""
    rows = []
    for size in (1 << 12, 1 << 16, 1 << 20):
        rows.append({"part": "all-to-all", "bytes": size, "ms": 1e3 * cost_model.all_to_all(machine, 2, size)})
        rows.append({"part": "all-reduce", "bytes": size, "ms": 1e3 * cost_model.all_reduce(machine, 2, size)})
    for way, ratio in (("sharded", None), ("replicated", 10), ("replicated", 1000)):
        for batch in (256, 4096):
            model = cost_model.dlrm([1000, 20_000], 16, 13, [64], [128, 64], ratio or 1)
            parts = cost_model.step(model, machine, 2, batch, way)
            sizes = asdict(model) | {"array_bytes": model.array_bytes if ratio else None}
            about = {"way": way, "batch": batch, "ratio": ratio} | sizes
            rows.append(about | {"part": "step", "ms": 1e3 * sum(parts.values())})
            rows.append(about | {"part": "lookup", "ms": 1e3 * parts["lookup"]})
            rows.append(about | {"part": "MLPs", "ms": 1e3 * (parts["fixed"] + parts["MLPs"])})
    return pd.DataFrame(rows).assign(processes=2, p20=lambda t: t["ms"], p80=lambda t: t["ms"], rounds=3)


def measured():
    steps = {"MLPs only": 20.0, "full": 30.0, "pss": 25.0, "pss, element": 28.0}
    latency = pd.DataFrame(
        {"tables": tables, "table_bytes": size, "batch": 2048, "embedding": name, "round": turn, "foreign": 0.0}
        | {"ms": ms * (1 + 0.001 * turn) * (4 if tables == "large" and name == "full" else 1)}
        for tables, size in (("planted", 6.4e8), ("large", 8.6e9))
        for turn in range(3)
        for name, ms in steps.items()
    )
    projection = pd.DataFrame(
        {"dataset": "bookcrossing", "rows": 590_000, "dim": 16, "ratio": ratio, "m": 590_000 / ratio, "seed": seed}
        | {"rms": (590_000 / ratio) ** -0.5 * (1 + 0.001 * seed), "worst": 5 * (590_000 / ratio) ** -0.5}
        | {"element": 590_000**-0.5, "full_auc": 0.75, "validation_auc": 0.75 - 0.05 * np.log10(ratio)}
        for ratio in (1, 10, 100, 1000, 10_000)
        for seed in range(3)
    )
    epsilon = np.geomspace(0.003, 0.9, 40)
    bound = pd.DataFrame({"epsilon": epsilon, "m": np.ceil(22 / (epsilon**2 / 4 - epsilon**3 / 6))})
    tested = {"dataset": "planted", "method": "pss", "variant": "", "ratio_requested": 1e4, "difference": -0.018}
    tested |= {"low": -0.0185, "high": -0.0175, "p": 1e-9, "positives": 9, "negatives": 9}
    same_rows = pd.DataFrame([tested | {"seed": seed} for seed in (pd.NA, 0)]).astype({"seed": "Int64"})
    dense = pd.DataFrame({"epsilon": [0.9, 0.4], "m": [200, 800], "rms": [0.07, 0.035], "worst": [0.35, 0.2]})
    return {
        "same_rows": same_rows,
        "dense": dense,
        "latency": latency,
        "projection": projection,
        "bound": bound,
        "parallel": timed(),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = written(tmp_path_factory.mktemp("results") / "paper_pss")
    (folder / "measured").mkdir()
    for name, table in measured().items():
        table.to_parquet(folder / "measured" / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def evidence(folder):
    return pss.load(folder)


def test_iterations_are_those_that_the_curves_were_made_with(evidence):
    table = pss.iterations(evidence)
    assert set(table["dataset"]) == {"planted", "bookcrossing"}
    found = table[(table["dataset"] == "planted") & table["times"].notna()]
    assert len(found) > 6
    for ratio, slower in SLOWER.items():
        rows = found[found["ratio_requested"] == ratio]
        np.testing.assert_allclose(rows["times"], slower, rtol=0.08)  # curves are taken as straight between scorings
        assert (rows["low"] <= rows["times"]).all() and (rows["times"] <= rows["high"]).all()


def test_what_the_stream_did_not_reach_is_said_and_not_extrapolated(evidence):
    table = pss.iterations(evidence)
    late = table[(table["dataset"] == "planted") & (table["ratio_requested"] == 10_000) & (table["moment"] > 0.6)]
    assert late["times"].isna().all() and (late["reached"] < late["seeds"]).all()
    np.testing.assert_allclose(late["more_than"], 1 / late["moment"])
    text = pss.iteration_table(evidence, "planted").to_string()
    assert "not reached within 1.2 M samples" in text and "NaN" not in text


def test_a_target_reached_by_the_first_scoring_is_at_most_that():
    curve = pd.DataFrame({"samples": [100, 200], "validation_auc": [0.7, 0.8]})
    assert pss._crossing(curve, 0.65) == (100.0, True)
    assert pss._crossing(curve, 0.75) == (pytest.approx(150.0), False)
    assert np.isnan(pss._crossing(curve, 0.81)[0])


def test_overfitting_is_looked_for_only_where_rows_come_again(evidence):
    table = pss.overfitting(evidence)
    assert set(table["dataset"]) == {"bookcrossing"}
    full = table[table["cell"] == "full"].iloc[0]
    assert full["AUC from there to the end"].startswith("−0.0")
    assert full["after passes"] < 4


def test_the_machine_is_found_again_and_the_steps_are_predicted(evidence):
    found = cost_model.calibrated(timed())
    for rate in ("flops", "memory", "stream", "cache", "link", "reduce", "latency", "fixed"):
        assert getattr(found, rate) == pytest.approx(getattr(HERE, rate), rel=1e-6), rate
    table = pss.predicted_and_measured(evidence)
    assert len(table) == 6
    assert table["off"].abs().max() < 1e-6


def test_verdicts_with_everything_measured(evidence):
    loss, more, here, there, bound = pss.verdicts(evidence)
    assert "3 seeds; on the same rows −0.0185 to −0.0175" in loss.here
    assert loss.verdict == UNTESTED and "SUITE=pss_criteo_tb" in loss.command
    assert more.verdict == HOLDS and "planted" in more.here
    assert here.verdict == HOLDS and "large (8.6 GB): 4.80×" in here.here
    assert there.verdict == UNTESTED and there.here.startswith("Predicted")
    assert bound.verdict == HOLDS and "power −0.500" in bound.here


def test_a_step_that_is_not_faster_fails_the_claim(evidence):
    slow = evidence.measured["latency"].query("tables == 'planted'")
    found = pss.Evidence(evidence.runs, evidence.curves, {"latency": slow})
    assert pss._latency_here(found).verdict == FAILS


def test_a_worst_element_above_the_bound_fails_the_claim(evidence):
    dense = evidence.measured["dense"].assign(worst=[0.2, 0.5])
    found = pss.Evidence(evidence.runs, evidence.curves, evidence.measured | {"dense": dense})
    assert pss._bound(found).verdict == FAILS
    assert "1 of 2 projections" in pss._bound(found).here


FIGURES = ("learning", "iteration_ratios", "step_times", "model_check", "trade_off", "projection")
TABLES = ("same_rows", "reached", "iterations", "overfitting", "latency", "rates", "predicted_and_measured", "missing")


def test_every_picture_and_table_is_drawn(evidence):
    for name in FIGURES:
        figure = getattr(pss, name)(evidence)
        assert figure.axes and figure.axes[0].get_xlabel(), name
    assert all(len(getattr(pss, name)(evidence)) for name in TABLES if name != "missing")
    assert len(pss.where_it_comes_from().axes) == 4
    assert pss.drawing().axes


@pytest.mark.parametrize("kept", ["nothing", "full alone", "no measurement"])
def test_partial_results_say_what_is_missing(tmp_path, kept):
    folder = tmp_path / "paper_pss"
    folder.mkdir()
    if kept != "nothing":
        cells = [("full", 1)] if kept == "full alone" else CELLS
        records.write(folder, [run(m, "planted", r, 0) for m, r in cells], notebooks=False)
    evidence = pss.load(folder)
    assert len(pss.verdicts(evidence)) == 5
    assert {"latency", "parallel", "projection"} <= set(pss.missing(evidence)["what"])
    for name in FIGURES:
        assert getattr(pss, name)(evidence).axes, name
    for name in TABLES:
        getattr(pss, name)(evidence)
    pss.iteration_table(evidence, "planted")


def test_no_torch_is_imported():
    code = "from pocketrec.report.papers import pss\nimport sys\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
