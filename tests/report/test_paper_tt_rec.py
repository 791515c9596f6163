"""TT-Rec's notebook: verdicts follow their rules, and nothing that is missing stops it."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import records
from matplotlib.figure import Figure

from pocketrec.report import claims
from pocketrec.report.claims import FAILS, HOLDS, UNDECIDED, UNTESTED
from pocketrec.report.papers import tt_rec

PICTURES = ("sizes", "densities", "shapes", "init_auc", "hit_rates", "steps", "kernels")
TABLES = ("compare_sizes", "size_table", "moments", "loss_table", "init_table", "hit_rate_table", "cache_auc")
TABLES += ("same_rows", "overhead_table", "refills", "kernel_table", "missing", "choosing", "verdict_table")
OFF = {"sampled_gaussian": -0.02, "scaled_gaussian": 0.004, "gaussian": 0.0, "uniform": 0.001}


def run(method, ratio, seed, auc, dataset="planted", **knobs):
    name = "-".join([f"r{ratio}", *map(str, knobs.values()), f"s{seed}"])
    record = records.quality(method, dataset, ratio, seed, run=f"{method}/{dataset}/{name}")
    record["parameters"]["knobs"] = knobs
    for part in ("test", "validation"):
        record["metrics"][part] |= {"auc": auc, "accuracy": auc - 0.1}
    return record


def suite(loss=0.0, seeds=5, off=OFF):
    """Return runs at 10x and 100x that lose `loss` against the full table, with a little noise of each."""
    noise = np.random.default_rng(0).normal(0, 1e-4, 1000).tolist()
    runs = [run("full", 1, seed, 0.75) for seed in range(seeds)]
    for ratio, (init, by), seed in product((10, 100), off.items(), range(seeds)):
        runs.append(run("tt_rec", ratio, seed, 0.75 - loss + by + noise.pop(), init=init, cache=0))
    runs += [run("tt_rec", 10, seed, 0.76 + noise.pop(), init="scaled_gaussian", cache=0.2) for seed in (0, 1)]
    return runs


def sizes(of=1.0):
    rows = [
        {"model": model, "dim": 16, "tables": k, "rank": rank, "bytes": 1, "ratio": claimed * of}
        for model, claimed, _, k, rank in tt_rec.PUBLISHED
    ]
    rows += [{"model": m, "dim": 16, "tables": k, "rank": None, "ratio": 300.0} for m in tt_rec.MODELS for k in (3, 7)]
    return pd.DataFrame(rows).astype({"rank": "Int64"})


def steps(full=10.0, train=10.2):
    ms = {("full", None, None, "pocketrec"): full, (tt_rec.BAGS, None, None, "plain PyTorch"): 20.0}
    ms |= {(tt_rec.FLOOR, None, None, "plain PyTorch"): 8.0, ("tt_rec", 8, 100, "pocketrec"): 9.0}
    ms |= {("tt_rec", rank, 0, "pocketrec"): train for rank in (8, 32)} | {("tt_rec", 8, 0, "plain PyTorch"): 50.0}
    rows = [
        {"embedding": name, "rank": rank, "cache": cache, "route": route, "batch": 128, "round": n, "ms": each + n}
        | {"foreign": 0.0, "ratio": 100.0, "hit_rate": 0.4 if cache else None}
        for n in range(3)
        for (name, rank, cache, route), each in ms.items()
    ]
    return pd.DataFrame(rows).astype({"rank": "Int64", "cache": "Int64"})


def kernels(plain=4.0, unique=3.5):
    routes = {"pocketrec": 1.0, "plain PyTorch": plain, "plain PyTorch, unique ids": unique}
    routes["pocketrec, contracted"] = 0.5  # faster, but no rival
    rows = [
        {"route": route, "dim": 16, "batch": 64, "ids": ids, "work": work, "rank": rank, "distinct": 0.5}
        | {"ms": ms * (1 + 0.001 * turn), "foreign": 0.0}
        for (route, ms), ids, work, rank in product(routes.items(), ("zipf", "uniform"), ("forward", "step"), (8, 64))
        for turn in range(3)
    ]
    return pd.DataFrame(rows)


def moments():
    rows = [
        {"init": init, "rank": rank, "std_ratio": 13.8 * rank if init == "sampled_gaussian" else 1.0}
        | {"excess_kurtosis": 0.0, "ks": 0.1, "ks_shape": 0.1 / rank, "near_zero": 0.08, "entries": 10}
        for init, rank in product(tt_rec.INITS, (1, 8))
    ]
    return pd.DataFrame(rows)


def density():
    rows = product(tt_rec.INITS, (1, 8), np.linspace(-3, 3, 7))
    return pd.DataFrame(rows, columns=["init", "rank", "log10"]).assign(density=0.1)


def hit_rates():
    share = np.geomspace(1e-3, 1, 4)
    table = pd.DataFrame({"share": share, "cache": (1000 * share).astype(int), "best": share**0.5})
    return table.assign(dataset="planted", tables=5, rows=1000, reached=0.9 * share**0.5, test=0.8 * share**0.5)


def refills():
    return pd.DataFrame({"rank": [8, 8], "cache": [100, 100], "rows": [1000, 1000], "ms": [3.0, 2.0]})


def same_rows():
    cell = {"dataset": "planted", "method": "tt_rec", "ratio_requested": 10.0, "p": 0.001}
    cell |= {"variant": "cache=0.2, init=scaled_gaussian, rank=8"}
    tested = cell | {"difference": -0.002, "low": -0.003, "high": -0.001, "positives": 9, "negatives": 9}
    return pd.DataFrame([tested | {"seed": seed} for seed in (pd.NA, 0)]).astype({"seed": "Int64"})


MEASURED = {"sizes": sizes, "same_rows": same_rows, "moments": moments, "density": density, "hit_rates": hit_rates}
MEASURED |= {"steps": steps, "refills": refills, "kernels": kernels}


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a suite's folder and loads it; what is None is left out."""

    def write(runs=(), **tables):
        path = tmp_path / "paper_tt_rec"
        records.write(path, list(runs), notebooks=False)
        (path / "measured").mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            table.to_parquet(path / "measured" / f"{name}.parquet")
        return tt_rec.load(path)

    return write


@pytest.fixture
def whole(folder):
    return folder(suite(), **{name: make() for name, make in MEASURED.items()})


def verdict(evidence, words):
    (only,) = [v for v in tt_rec.verdicts(evidence) if words in v.claim]
    return only


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_drawn_with_a_title_that_says_something(whole, name):
    figure = getattr(tt_rec, name)(whole)
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.has_data()]
    assert titles and all(len(title) > 20 for title in titles)
    assert all(ax.get_xlabel() for ax in figure.axes if ax.has_data())


def test_the_drawing_counts_what_it_draws():
    (ax,) = tt_rec.drawing().axes
    assert "38,160 floats" in ax.get_title(loc="left")


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_shown(whole, name):
    assert getattr(tt_rec, name)(whole) is not None


@pytest.mark.parametrize("left_out", [None, "runs", *MEASURED])
def test_whatever_is_missing_is_said_with_its_command(folder, left_out):
    kept = {name: make() for name, make in MEASURED.items() if name != left_out}
    evidence = folder([] if left_out == "runs" else suite(seeds=1), **kept)
    for name in (*PICTURES, *TABLES):
        shown = getattr(tt_rec, name)(evidence)
        assert isinstance(shown, Figure) or shown is not None
    said = tt_rec.missing(evidence)["command"]
    assert said.str.contains("paper_tt_rec").any() == (
        left_out in ("runs", "sizes", "moments", "hit_rates", "steps", "kernels")
    )


def test_an_empty_folder_claims_nothing(folder):
    evidence = folder()
    every = tt_rec.verdicts(evidence)
    assert {v.verdict for v in every} == {UNTESTED} and all(v.command and v.needs for v in every)
    assert "cannot be tested here" in tt_rec.tally(evidence) and claims.table(every) is not None


@pytest.mark.parametrize(("of", "expected"), [(1.01, HOLDS), (1.2, FAILS)])
def test_sizes_hold_where_arithmetic_agrees(folder, of, expected):
    evidence = folder(sizes=sizes(of))
    assert verdict(evidence, "Criteo-Kaggle, dim").verdict == verdict(evidence, "Criteo-TB").verdict == expected


@pytest.mark.parametrize(
    ("loss", "seeds", "nothing", "little"),
    [(0.0, 5, HOLDS, HOLDS), (0.006, 5, FAILS, HOLDS), (0.01, 5, FAILS, FAILS), (0.0, 1, UNDECIDED, UNDECIDED)],
)
def test_losses_are_judged_by_whole_intervals(folder, loss, seeds, nothing, little):
    evidence = folder(suite(loss, seeds))
    assert verdict(evidence, "Nothing is lost").verdict == nothing
    assert verdict(evidence, "Accuracy falls").verdict == little


def test_losses_are_those_of_the_start_that_validates_best(folder):
    assert set(tt_rec.losses(folder(suite()))["init"]) == {"scaled_gaussian"}


def test_an_initialisation_is_better_only_against_both_others(folder):
    evidence = folder(suite())
    assert verdict(evidence, "divided by rank").verdict == HOLDS and verdict(evidence, "as published").verdict == FAILS
    evidence = folder(suite(off=OFF | {"uniform": 0.004}))
    assert verdict(evidence, "divided by rank").verdict == UNDECIDED  # the difference to uniform may be none


def test_two_seeds_say_nothing_of_initialisations(folder):
    found = verdict(folder(suite(seeds=2)), "divided by rank")
    assert found.verdict == UNDECIDED and "seeds in params/suites/paper_tt_rec.yaml" in found.command


def kaggle(seeds=3, loss=0.002):
    """Return runs of the shape of `tt_rec_criteo_kaggle`: tables and rank vary, and all are asked for 1x."""
    runs = [run("full", 1, seed, 0.80 + 0.001 * seed, dataset="criteo-kaggle") for seed in range(seeds)]
    achieved = {(3, 8): 4.1, (7, 8): 222.2, (3, 32): 4.06, (7, 32): 118.2}
    for ((tables, rank), ratio), seed in product(achieved.items(), range(seeds)):
        knobs = {"tables": tables, "rank": rank, "init": "sampled_gaussian", "cache": 0.0}
        lost = loss if ratio > 200 else 0.0
        record = run("tt_rec", 1, seed, 0.80 + 0.001 * seed - lost, dataset="criteo-kaggle", **knobs)
        record["sizes"]["ratio_achieved"] = ratio
        runs.append(record)
    return runs


def test_configurations_of_one_ratio_are_no_seeds_of_each_other(folder):
    evidence = folder(kaggle())
    table = tt_rec.losses(evidence)
    assert list(table["ratio"]) == pytest.approx([4.06, 4.1, 118.2, 222.2])
    assert list(table["rest"]) == ["rank 32, tables 3", "rank 8, tables 3", "rank 32, tables 7", "rank 8, tables 7"]
    assert [gap.seeds for gap in table["auc"]] == [3] * 4
    assert [gap.mean for gap in table["auc"]] == pytest.approx([0, 0, 0, -0.002])
    assert {v.verdict for v in tt_rec.verdicts(evidence) if "Nothing is lost" in v.claim} == {HOLDS}
    assert "118× (rank 32, tables 7)" in verdict(evidence, "Nothing is lost").here
    ticks = [text.get_text() for text in tt_rec.init_auc(evidence).axes[0].get_xticklabels()]
    assert ticks == ["4.06×", "4.1×", "118×", "222×"]
    for name in (*PICTURES, *TABLES):
        assert getattr(tt_rec, name)(evidence) is not None


def test_variants_are_written_for_people(whole):
    shown = tt_rec.same_rows(whole).data
    assert list(shown["configuration"]) == ["scaled Gaussian, cache of 20%, rank 8"]


def test_differences_are_paired_by_seed(folder):
    table = tt_rec.init_differences(folder(suite())).set_index(["ratio", "init", "against"])
    row = table.loc[(10.0, "scaled_gaussian", "gaussian")]
    assert row["difference"] == pytest.approx(0.004, abs=3e-4) and row["half"] < 5e-4 and row["seeds"] == 5


def test_a_cache_is_compared_with_none_of_the_same_start(folder):
    row = tt_rec.cache_auc(folder(suite())).data.iloc[0]
    assert row["share of the budget"] == "20%" and row["AUC − without a cache"].startswith("+0.006")


@pytest.mark.parametrize(("train", "expected"), [(10.2, HOLDS), (14.0, FAILS)])
def test_a_step_is_held_against_the_full_table_of_the_same_round(folder, train, expected):
    evidence = folder(steps=steps(train=train))
    assert verdict(evidence, "training step").verdict == expected
    plain = tt_rec.overheads(evidence).set_index(["route", "cache", "rank"])["over_bags"]
    assert plain["plain PyTorch", 0, 8] == pytest.approx((50 / 20 * 51 / 21 * 52 / 22) ** (1 / 3) - 1)


@pytest.mark.parametrize(("unique", "expected"), [(3.5, HOLDS), (2.0, FAILS)])
def test_a_kernel_is_held_against_the_fastest_other_way(folder, unique, expected):
    evidence = folder(kernels=kernels(unique=unique))
    assert verdict(evidence, "This project's kernel").verdict == expected
    assert set(tt_rec.against_fastest(evidence)["route"]) == {"plain PyTorch, unique ids"}


def test_times_of_a_busy_machine_say_nothing(folder):
    evidence = folder(steps=steps().assign(foreign=1.0), kernels=kernels().assign(foreign=1.0))
    for words in ("training step", "This project's kernel"):
        assert verdict(evidence, words).verdict == UNTESTED and "quiet" in verdict(evidence, words).needs


def test_runs_on_criteo_take_its_row_away(folder):
    words = "Criteo's own rows"
    assert any(words in v.claim for v in tt_rec.verdicts(folder(suite())))
    evidence = folder([run("full", 1, 0, 0.8, dataset="criteo-kaggle")])
    assert not any(words in v.claim for v in tt_rec.verdicts(evidence))
