"""A parameter chosen on validation: every value once, on one seed, before the runs that need it."""

import pytest
from tests.suite.conftest import PARAMETERS, PREAMBLE

from pocketrec import report

PUBLISH = """
if lr == 9.0: raise Diverged("the loss is nan")
best = {"robe": 0.3, "full": 0.1}[method]
scores = {"validation": {"auc": 0.8 - abs(lr - best)}}
publish(run_dir, sizes={"budget_bytes": 100, "inference_bytes": 100}, metrics=scores)
if score_test: publish(run_dir, metrics={**scores, "test": {"auc": 0.75}})
"""
SUITE = """
grid: {method: [robe, full], dataset: tiny, ratio: 100, seed: [3, 4]}
search: {lr: [0.1, 0.3, 9.0]}
"""


@pytest.fixture(scope="module")
def searched(shared_root):
    shared_root.notebook("train", PARAMETERS + "lr: float = 0.5\nscore_test: bool = True\n", PREAMBLE, PUBLISH)
    shared_root.suite("search", SUITE)
    code, out, err = shared_root.call("run", "search", "--jobs", "2")
    assert code == 0, out + err  # a value that diverged is an answer
    return shared_root


def test_every_value_is_tried_once_and_without_the_test_rows(searched):
    found = {name: record for name, record in searched.records("search").items() if record["kind"] == "search"}
    assert sorted(found) == [f"{m}/tiny/r100-search-lr{lr}" for m in ("full", "robe") for lr in ("0.1", "0.3", "9")]
    for record in found.values():
        assert record["seed"] == 3 and record["parameters"]["score_test"] is False
        assert "test" not in record.get("metrics", {})


@pytest.mark.parametrize(("method", "best"), [("robe", 0.3), ("full", 0.1)])
def test_every_seed_runs_with_the_value_of_the_best_validation(searched, method, best):
    records = searched.records("search")
    for seed in (3, 4):
        record = records[f"{method}/tiny/r100-s{seed}"]
        assert record["parameters"]["lr"] == best and record["metrics"]["test"]
        assert record["search"]["chosen"] == best and record["search"]["parameter"] == "lr"
        assert set(record["search"]["validation_auc"]) == {"0.1", "0.3"}  # what diverged has no score
        assert record["search"]["seconds"] > 0


def test_nothing_is_done_twice(searched):
    before = searched.ran()
    assert "nothing to do" in searched.call("run", "search", "--method", "robe", "--seed", "4")[1]
    assert searched.ran() == before


def test_a_knob_is_searched_for_its_method_alone_and_used(searched):
    grid = SUITE.splitlines()[1].replace("[3, 4]", "3")
    searched.suite("knob", grid + "\nfixed: {lr: 0.1}\nsearch: {robe.block_size: [8, 16]}")
    code, out, err = searched.call("run", "knob")
    assert code == 0, out + err
    records = searched.records("knob")
    assert {n for n in records if "search" in n} == {f"robe/tiny/r100-search-block_size{z}" for z in (8, 16)}
    found = records["robe/tiny/r100-s3"]
    assert found["parameters"]["knobs"]["block_size"] == found["search"]["chosen"]
    assert "search" not in records["full/tiny/r100-s3"]
    found = report.load_results(searched.path / "results/knob")
    assert set(found["variant"]) == {""}  # chosen for each cell, and so no axis


def test_records_learn_of_values_that_were_tried_later(searched):
    before = searched.ran()
    searched.suite("search", SUITE.replace("0.3, 9.0", "0.3, 0.5, 9.0"))
    assert searched.call("run", "search")[0] == 0
    assert len(searched.ran()) == len(before) + 2  # one search run a method, and no other
    found = searched.records("search")["robe/tiny/r100-s3"]
    assert set(found["search"]["validation_auc"]) == {"0.1", "0.3", "0.5"} and found["search"]["chosen"] == 0.3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {lr: [0.1]}", "at least two values"),
        ("search: {lr: [0.1, 0.3], seed: [1, 2]}", "one parameter"),
        ("search: {ratio: [1, 2]}", "sets already"),
        ("search: {rl: [1, 2]}", "unknown axis 'rl'"),
        ("search: {lr: [0.1, 0.1]}", "twice"),
        ("search: {'lr, epochs': [[0.1, 1], [0.3, 1]]}", "one parameter"),
        ("search: {robe.blocksize: [8, 16]}", "unknown knob of robe 'blocksize'"),
        ("fixed: {score_test: false}", "test rows alone"),
        ("exclude: [{method: robe}]\nsearch: {robe.block_size: [8, 16]}", "no run is of robe"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(searched, text, message):
    searched.suite("wrong", SUITE.splitlines()[1] + "\n" + text)
    code, _, err = searched.call("plan", "wrong")
    assert code == 2 and message in err and "wrong.yaml" in err
