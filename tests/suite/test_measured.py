"""Measurements of a suite: kept beside its runs, taken again only when their code has changed."""

import json
from types import ModuleType

import pandas as pd
import pytest

from pocketrec import paths, report
from pocketrec.errors import UserError
from pocketrec.suite import measured, spec

SUITE = "paper: robe\ngrid: {method: robe, dataset: planted}\n"


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Return a loaded suite of a paper whose measurements are one small table."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    paper = ModuleType("pocketrec.papers.robe")
    paper.measure = lambda folder: {"serving": pd.DataFrame({"ms": [1.0, 2.0], "of": [folder.name] * 2})}
    monkeypatch.setitem(__import__("sys").modules, paper.__name__, paper)
    monkeypatch.setattr(spec, "_paper", lambda where, content: content.get("paper", ""))
    path = tmp_path / "claims.yaml"
    path.write_text(SUITE)
    return spec.load(str(path))


def test_tables_lie_beside_the_runs_and_are_up_to_date(suite):
    assert not measured.up_to_date(suite)
    measured.measure(suite)
    assert report.load_measured(suite.folder)["serving"]["of"].tolist() == ["claims", "claims"]
    assert measured.up_to_date(suite)


def test_other_code_makes_them_stale(suite, monkeypatch):
    measured.measure(suite)
    monkeypatch.setattr(measured, "code_hash", lambda patterns: "another")
    assert not measured.up_to_date(suite)


def test_a_further_run_makes_them_stale(suite):
    measured.measure(suite)
    run = suite.folder / "runs/robe/planted/r10-s0/record.json"
    run.parent.mkdir(parents=True)
    found = {"schema": 1, "status": "done", "key": "k", "kind": "quality", "method": "robe", "dataset": "planted"}
    run.write_text(json.dumps(found | {"seconds": 1.0}))
    assert not measured.up_to_date(suite)
    measured.measure(suite)
    assert measured.up_to_date(suite)
    run.write_text(json.dumps(found | {"seconds": 1.0, "key": "of other settings"}))
    assert not measured.up_to_date(suite)


def test_one_that_stops_leaves_nothing(suite, monkeypatch):
    def stop(folder):
        raise RuntimeError("no")

    monkeypatch.setattr(__import__("sys").modules["pocketrec.papers.robe"], "measure", stop)
    with pytest.raises(RuntimeError):
        measured.measure(suite)
    assert report.load_measured(suite.folder) == {}


def test_a_suite_without_a_paper_has_nothing_to_measure(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(SUITE.replace("paper: robe\n", ""))
    assert measured.up_to_date(spec.load(str(path)))
    with pytest.raises(UserError, match="nothing to measure"):
        measured.measure(spec.load(str(path)))
