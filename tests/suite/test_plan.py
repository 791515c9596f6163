"""The plan: names, filters, estimates, and keys that change with what can change a result."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from test_spec import here

from pocketrec.errors import UserError
from pocketrec.files import write_json
from pocketrec.suite import cli, plan, spec
from pocketrec.suite.executors import local

__all__ = ["here"]

SUITE = """
timed: latency
grid: {method: [robe, full], dataset: tiny, ratio: [10, 2.5], seed: [0, 1]}
"""


@pytest.fixture
def package(here, tmp_path, monkeypatch):
    """Return a copy of the package whose files the keys are made from."""
    copy = tmp_path / "package"
    shutil.copytree(plan.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(plan, "PACKAGE", copy)
    for name, method in sys.modules["pocketrec.embeddings"].METHODS.items():
        module = ModuleType(f"method_{name}")
        module.__file__ = str(copy / "embeddings" / f"{name}.py")
        Path(module.__file__).touch()
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(method, "__module__", module.__name__)
    (copy / "measure.py").touch()
    return copy


def runs_of(here, text=SUITE, **filters):
    here.suite("p", text)
    return plan.plan(spec.load("p"), **filters)


def keys(runs):
    return {run.name: run.key for run in runs}


def test_names_and_kinds(here):
    names = [run.name for run in runs_of(here)]
    assert names[:4] == ["robe/tiny/r10-s0", "robe/tiny/r10-s1", "robe/tiny/r2.5-s0", "robe/tiny/r2.5-s1"]
    assert names[8:10] == ["robe/tiny/r10-latency", "robe/tiny/r2.5-latency"]
    assert [run.kind for run in runs_of(here)] == ["quality"] * 8 + ["timed"] * 4


def test_parameters_of_the_grid_stand_in_the_name(here):
    runs = runs_of(here, "grid: {method: robe, dataset: tiny, epochs: [1, 0.5], layers: [[4, 2]]}")
    assert [run.name for run in runs] == [
        "robe/tiny/r100-s0-epochs1-layers4x2",
        "robe/tiny/r100-s0-epochs0.5-layers4x2",
    ]


def test_filters(here):
    assert len(runs_of(here, method="robe", ratio="10")) == 3
    assert [run.name for run in runs_of(here, method="robe", ratio="10", seed="1")] == ["robe/tiny/r10-s1"]
    assert len(runs_of(here, ratio="10.0,2.5", method="full,robe")) == 12


@pytest.mark.parametrize(
    ("filters", "message"),
    [({"method": "rob"}, "unknown method 'rob'; did you mean 'robe'?"), ({"ratio": "11"}, "unknown ratio '11'")],
)
def test_filters_that_match_nothing(here, filters, message):
    with pytest.raises(UserError) as error:
        runs_of(here, **filters)
    assert message in str(error.value)


def test_a_key_is_the_same_the_second_time(here, package):
    assert keys(runs_of(here)) == keys(runs_of(here))
    assert len(set(keys(runs_of(here)).values())) == 12


@pytest.mark.parametrize("file", ["training.py", "metrics.py", "embeddings/base.py", "models/dlrm.py"])
def test_shared_code_changes_every_key(here, package, file):
    before = keys(runs_of(here))
    with (package / file).open("a") as code:
        code.write("\nchanged = True\n")
    assert not set(before.values()) & set(keys(runs_of(here)).values())


def test_a_methods_file_changes_its_own_keys(here, package):
    before = keys(runs_of(here))
    (package / "embeddings/robe.py").write_text("changed = True\n")
    after = keys(runs_of(here))
    assert {name for name in after if before[name] != after[name]} == {n for n in after if n.startswith("robe/")}


def test_measuring_changes_the_timed_keys_only(here, package):
    before = keys(runs_of(here))
    (package / "measure.py").write_text("changed = True\n")
    after = keys(runs_of(here))
    assert {name for name in after if before[name] != after[name]} == {n for n in after if "latency" in n}


@pytest.mark.parametrize("file", ["report/plots.py", "suite/runner.py", "embeddings/brand_new.py"])
def test_reports_and_the_suite_change_no_key(here, package, file, monkeypatch):
    before = keys(runs_of(here))
    changed = package / file
    changed.parent.mkdir(exist_ok=True)
    changed.write_text("changed = True\n")
    if file.startswith("embeddings"):
        module = ModuleType("brand_new")
        module.__file__ = str(changed)
        monkeypatch.setitem(sys.modules, "brand_new", module)
        new = type("New", (), {"knobs": {}, "__module__": "brand_new"})
        monkeypatch.setitem(sys.modules["pocketrec.embeddings"].METHODS, "new", new)
    assert keys(runs_of(here)) == before


def test_the_template_changes_keys_by_its_code_only(here):
    before = runs_of(here)[0]
    notebook = here.path / "notebooks/train.ipynb"
    text = notebook.read_text()
    notebook.write_text(text.replace('"metadata": {}', '"metadata": {"a": 1}'))
    assert runs_of(here)[0].key == before.key
    notebook.write_text(text.replace("import os, time", "import os, time  # changed"))
    assert runs_of(here)[0].key != before.key


@pytest.mark.parametrize(
    "more", ["fixed: {device: cuda}", "knobs: {robe: {block_size: 4}}", "options: {tiny: {rows: 20}}"]
)
def test_parameters_knobs_and_options_change_keys(here, more):
    assert runs_of(here)[0].key != runs_of(here, SUITE + more)[0].key


def test_states_and_estimates(here):
    quality, *_, timed = runs_of(here)
    assert (quality.state, quality.seconds, quality.pending) == ("todo", 20, True)
    found = {"schema": 1, "key": quality.key, "status": "done", "kind": "quality", "method": "robe", "dataset": "tiny"}
    write_json(quality.folder / "record.json", found | {"seconds": 50.0})
    again = runs_of(here)
    assert (again[0].state, again[0].pending) == ("done", False)
    assert {run.seconds for run in again if run.kind == "quality"} == {50.0}
    assert again[-1].seconds == timed.seconds == 20
    assert plan.total_seconds(again, jobs=2) == 7 * 50 / 2 + 4 * 20


def test_a_filter_takes_a_number_however_it_is_written(here):
    text = "grid: {method: robe, dataset: tiny, ratio: [1000, 1_500_000], seed: [20240101, 7]}"
    assert [run.name for run in runs_of(here, text, seed="20240101", ratio="1e3")] == ["robe/tiny/r1000-s20240101"]
    assert len(runs_of(here, text, ratio="1500000.0")) == 2
    with pytest.raises(UserError, match="unknown seed '20240102'"):
        runs_of(here, text, seed="20240102")


def test_a_value_that_diverged_under_other_settings_is_searched_again(here):
    run = runs_of(here)[0]
    found = {"schema": 1, "key": "other", "status": "diverged", "kind": "search", "method": "robe", "dataset": "tiny"}
    write_json(run.folder / "record.json", found | {"seconds": 1.0})
    assert plan.state_of("p", run.name, run.key, "search")[0] == "stale"
    assert plan.state_of("p", run.name, "other", "search")[0] == "diverged"


@pytest.mark.parametrize(
    ("status", "same_key", "state"),
    [
        ("done", False, "stale"),
        ("infeasible", False, "stale"),
        ("infeasible", True, "infeasible"),
        ("failed", True, "failed"),
        ("failed", False, "failed"),
    ],
)
def test_state_of_a_record(here, status, same_key, state):
    run = runs_of(here)[0]
    found = {"schema": 1, "key": run.key if same_key else "other", "status": status, "reason": "why", "kind": "quality"}
    write_json(run.folder / "record.json", found | {"method": "robe", "dataset": "tiny", "seconds": 1.0})
    assert plan.state_of("p", run.name, run.key)[0] == state


def test_a_broken_record_counts_as_none(here):
    run = runs_of(here)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "record.json").write_text("{")
    found = runs_of(here)[0]
    assert (found.state, found.pending) == ("failed", True) and found.reason.endswith("record.json cannot be read")


def test_runs_are_frozen(here):
    run = runs_of(here)[0]
    assert replace(run, state="done").state == "done"
    with pytest.raises(AttributeError):
        run.state = "done"


def test_on_a_gpu_one_run_at_a_time_unless_the_suite_says_more(here, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)

    def jobs(text):
        runs = runs_of(here, text)
        return local.default_jobs(spec.load("p"), runs)

    text = "grid: {method: [robe, full], dataset: tiny}\n"
    assert jobs(text) == 8
    assert jobs(text + "fixed: {device: cuda}") == 1
    assert jobs(text + "fixed: {device: cuda}\njobs: 3") == 3


def test_stale_records_and_those_of_no_run_are_counted(here, capsys):
    runs = runs_of(here, "grid: {method: robe, dataset: tiny, seed: [0, 1, 2]}")
    for run in runs:
        found = {"schema": 1, "key": run.key, "status": "done", "kind": "quality", "method": "robe", "dataset": "tiny"}
        write_json(run.folder / "record.json", found | {"seconds": 1.0})
    cli._strays("p")
    assert capsys.readouterr().err == ""
    runs_of(here, "grid: {method: robe, dataset: tiny, seed: [0, 1]}\nfixed: {epochs: 3}")
    cli._strays("p")
    said = capsys.readouterr().err
    assert said.startswith("p: 2 stale records") and "and 1 of runs not in" in said
    cli._strays(str(runs[0].folder.parents[2]))  # a folder asks for nothing
    assert capsys.readouterr().err == ""
