"""Reading a suite: what it means, and one clear sentence for whatever is wrong with it."""

import json

import pytest
import standins

from pocketrec import paths
from pocketrec.errors import UserError
from pocketrec.suite import plan, spec

GRID = "grid: {method: [robe, full], dataset: tiny, ratio: [10, 100]}\n"


@pytest.fixture
def here(root, monkeypatch):
    """Return the root, seen by this process, with stand-ins for data and embeddings."""
    for name in ("params", "notebooks", "results"):
        monkeypatch.setattr(paths, name.upper(), root.path / name)
    monkeypatch.setattr(paths, "ROOT", root.path)
    for module in (standins.data, standins.embeddings):
        monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
        monkeypatch.setattr(f"pocketrec.{module.__name__.rpartition('.')[2]}", module, raising=False)
    return root


def load(root, text):
    root.suite("s", text)
    return spec.load("s")


def test_grid_is_a_product_of_lists_zipped_axes_and_single_values(here):
    suite = load(here, 'grid: {"method, ratio": [[full, 1], [robe, 100]], dataset: tiny, seed: [0, 1]}')
    assert [(c["method"], c["ratio"], c["seed"]) for c in suite.cells] == [
        ("full", 1.0, 0),
        ("full", 1.0, 1),
        ("robe", 100.0, 0),
        ("robe", 100.0, 1),
    ]


def test_all_methods_and_one_that_exists_at_one_ratio_only(here, monkeypatch):
    monkeypatch.setattr(standins.Full, "only_ratio", 1)
    suite = load(here, "grid: {method: all, dataset: tiny, ratio: [10, 100]}")
    assert [(c["method"], c["ratio"]) for c in suite.cells] == [("full", 1.0), ("robe", 10.0), ("robe", 100.0)]


@pytest.mark.parametrize("ratio", ["", "ratio: 100"])
def test_the_full_table_runs_at_its_ratio_where_none_is_in_the_grid(here, monkeypatch, ratio):
    monkeypatch.setattr(standins.Full, "only_ratio", 1)
    suite = load(here, f"grid: {{method: all, dataset: tiny}}\nfixed: {{{ratio}}}")
    found = {run.identity["method"]: run.parameters["ratio"] for run in plan.plan(suite)}
    assert found == {"full": 1.0, "robe": 100.0 if ratio else suite.notebook.parameters["ratio"]}


def test_a_ratio_that_was_not_asked_for_is_no_axis(here, monkeypatch):
    monkeypatch.setattr(standins.Full, "only_ratio", 1)
    both = "grid: {method: all, dataset: tiny}\n"
    with pytest.raises(UserError, match="exclude: unknown axis 'ratio'"):
        load(here, both + "fixed: {ratio: 10}\nexclude: [{ratio: 10}]")


def test_a_knob_is_an_axis_where_its_method_is_fixed(here):
    suite = load(here, "grid: {dataset: tiny, robe.block_size: [1, 8]}\nfixed: {method: robe}")
    assert [cell["robe.block_size"] for cell in suite.cells] == [1, 8]


def test_exclude(here):
    suite = load(here, GRID + "exclude: [{method: full, ratio: [10]}, {method: robe, ratio: 100}]")
    assert [(c["method"], c["ratio"]) for c in suite.cells] == [("robe", 10), ("full", 100)]


def test_a_knob_of_one_method_is_an_axis_of_its_cells_alone(here):
    suite = load(here, "grid: {method: [robe, full], dataset: tiny, robe.block_size: [1, 8]}")
    assert [(c["method"], c.get("robe.block_size")) for c in suite.cells] == [("robe", 1), ("robe", 8), ("full", None)]
    runs = plan.plan(suite)
    assert [run.parameters["knobs"] for run in runs][:2] == [{"block_size": 1}, {"block_size": 8}]
    assert runs[0].name.endswith("s0-block_size1")


def test_several_grids_are_joined_without_repetition(here):
    few, many = "{method: full, dataset: tiny, seed: [0, 1]}", "{method: [full, robe], dataset: tiny, seed: 0}"
    suite = load(here, f"grid: [{few}, {many}]\nexclude: [{{seed: 1}}]")
    assert [(c["method"], c["seed"]) for c in suite.cells] == [("full", 0), ("robe", 0)]


def test_knobs_are_layered(here):
    here.write("params/methods/robe.yaml", "knobs: {block_size: 16}\n")
    assert load(here, GRID).knobs["robe"] == {"block_size": 16}
    assert load(here, GRID + "knobs: {robe: {block_size: 4}}").knobs["robe"] == {"block_size": 4}


def test_numbers_of_yaml_1_2(here):
    assert load(here, GRID + "fixed: {epochs: 1e-3}").fixed == {"epochs": 1e-3}


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "NaN": ("fixed: {epochs: .nan}\n" + GRID, "`epochs` must be a finite number"),
        "infinity in a list": ("grid: {method: robe, dataset: tiny, epochs: [1, .inf]}", "must be a finite number"),
        "no threads": ("fixed: {threads: 0}\n" + GRID, "`threads` must be above 0"),
        "negative epochs": ("fixed: {epochs: -1}\n" + GRID, "`epochs` must be above 0"),
        "unknown key": ("gird: {}", "unknown key 'gird'; did you mean 'grid'?"),
        "duplicate key": (GRID + GRID, "s.yaml:"),
        "empty file": ("", "expected a mapping"),
        "empty grid": ("grid: {}", "`grid` is empty"),
        "no grid": ("title: x", "`grid` is empty"),
        "grid is a list": ("grid: [1]", "`grid` must be a mapping"),
        "empty axis": ("grid: {method: [], dataset: tiny}", "axis `method` is empty"),
        "unknown axis": ("grid: {method: robe, sed: 1}", "unknown axis 'sed'; did you mean 'seed'?"),
        "knob of no method": ("grid: {method: robe, rob.block_size: 1}", "unknown method 'rob'; did you mean 'robe'?"),
        "knob of no run": (
            "grid: {method: full, dataset: tiny, robe.block_size: 1}",
            "add it, or drop",
        ),
        "axis of no knob": ("grid: {method: robe, robe.block: 1}", "unknown knob of robe 'block'; did you mean"),
        "knob axis of another type": ("grid: {method: robe, robe.block_size: big}", "expected int, found 'big'"),
        "empty list of grids": ("grid: []", "`grid` is empty"),
        "unknown paper": (GRID + "paper: rob", "unknown paper 'rob'"),
        "axis twice": (
            'grid: {method: robe, dataset: tiny, seed: 1, "seed, ratio": [[1, 2]]}',
            "axis `seed` stands in `grid` twice",
        ),
        "zipped of another length": ('grid: {"method, ratio": [[robe]]}', "needs lists of 2 values, got ['robe']"),
        "value twice": ("grid: {method: robe, dataset: tiny, seed: [1, 1]}", "lists 1 twice"),
        "unknown method": ("grid: {method: rob, dataset: tiny}", "unknown method 'rob'; did you mean 'robe'?"),
        "method is no name": ("grid: {method: 3, dataset: tiny}", "`method` must be a name, got 3"),
        "unknown dataset": ("grid: {method: robe, dataset: tinny}", "unknown dataset 'tinny'; did you mean 'tiny'?"),
        "dataset is a path": ("grid: {method: robe, dataset: ../../x}", "unknown dataset '../../x'"),
        "ratio 0": ("grid: {method: robe, dataset: tiny, ratio: 0}", "`ratio` must be at least 1, got 0"),
        "ratio below 1": ("grid: {method: robe, dataset: tiny, ratio: 0.5}", "`ratio` must be at least 1"),
        "ratio nan": ("grid: {method: robe, dataset: tiny, ratio: .nan}", "`ratio` must be a finite number"),
        "ratio is text": ("grid: {method: robe, dataset: tiny, ratio: ten}", "`ratio` must be of type float"),
        "seed negative": ("grid: {method: robe, dataset: tiny, seed: -1}", "`seed` must be 0 or above, and below 2^63"),
        "seed is a float": ("grid: {method: robe, dataset: tiny, seed: 1.5}", "`seed` must be of type int"),
        "seed is a truth": ("grid: {method: robe, dataset: tiny, seed: true}", "`seed` must be of type int"),
        "unknown parameter": (GRID + "fixed: {epoch: 1}", "unknown parameter 'epoch'; did you mean 'epochs'?"),
        "parameter of another type": (GRID + "fixed: {layers: 3}", "`layers` must be of type list, like [8, 4]"),
        "knobs as an axis": ("grid: {knobs: [{}]}", "`knobs` cannot be an axis: set it under the suite's key"),
        "run_dir fixed": (GRID + "fixed: {run_dir: /tmp}", "`run_dir` cannot be a fixed parameter"),
        "unknown method of knobs": (GRID + "knobs: {rope: {}}", "unknown method under `knobs` 'rope'"),
        "unknown knob": (
            GRID + "knobs: {robe: {block: 3}}",
            "unknown knob of robe 'block'; did you mean 'block_size'?",
        ),
        "knob of another type": (GRID + "knobs: {robe: {block_size: big}}", "`block_size`: expected int, found 'big'"),
        "unknown dataset of options": (GRID + "options: {tin: {}}", "unknown dataset under `options` 'tin'"),
        "unknown option": (GRID + "options: {tiny: {row: 3}}", "unknown option 'row'; did you mean 'rows'?"),
        "unknown limit": (GRID + "limits: {minute: 3}", "unknown limit 'minute'; did you mean 'minutes'?"),
        "limit 0": (GRID + "limits: {minutes: 0}", "`limits.minutes` must be a number above 0"),
        "jobs 0": (GRID + "jobs: 0", "`jobs` must be a number above 0, got 0"),
        "unknown notebook": (GRID + "notebook: tran", "unknown notebook 'tran'; did you mean 'train'?"),
        "notebook outside": (GRID + "notebook: ../../x", "is not the name of a notebook"),
        "exclude of an unknown axis": (GRID + "exclude: [{ration: 1}]", "unknown axis 'ration'; did you mean"),
        "exclude of a missing value": (GRID + "exclude: [{method: rob}]", "not in the grid; did you mean 'robe'?"),
        "exclude of everything": (GRID + "exclude: [{dataset: tiny}]", "leaves no run"),
        "exclude is no list": (GRID + "exclude: {method: robe}", "`exclude` must be a list of mappings"),
    }.values(),
)
def test_what_is_wrong_is_said(here, text, message):
    with pytest.raises(UserError) as error:
        load(here, text)
    assert message in str(error.value)
    assert str(here.path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../s", "params/suites/..yaml", "nothing"])
def test_names_that_lead_nowhere(here, name):
    with pytest.raises(UserError):
        spec.load(name)


def test_values_cannot_leave_the_results(here):
    here.notebook("train", 'method: str = "robe"\ndataset: str = "tiny"\nplace: str = ""')
    suite = load(here, "grid: {method: robe, dataset: tiny, place: [../../../../x, '/etc']}")
    for run in plan.plan(suite):
        assert run.folder.resolve().is_relative_to(here.path / "results/s/runs/robe/tiny")


def test_names_that_collide_are_refused(here):
    here.notebook("train", 'method: str = "robe"\ndataset: str = "tiny"\nplace: str = ""')
    suite = load(here, "grid: {method: robe, dataset: tiny, place: [a/b, a_b]}")
    with pytest.raises(UserError, match="two runs would share the folder"):
        plan.plan(suite)


def test_options_are_checked_by_the_data_themselves(root, monkeypatch):
    monkeypatch.setattr(paths, "NOTEBOOKS", root.path / "notebooks")
    text = "grid: {method: robe, dataset: planted}\noptions: {planted: {row: 3}}\n"
    with pytest.raises(UserError, match="unknown option 'row'; did you mean 'rows'"):
        spec.load(str(root.suite("real", text)))


def test_a_suite_named_after_a_paper_is_answered_by_its_notebook():
    for path in (paths.PARAMS / "suites").glob("paper_*.yaml"):
        paper = spec.load(str(path)).paper
        assert paper and path.stem.startswith(f"paper_{paper}")
        assert (paths.NOTEBOOKS / f"paper_{paper}.ipynb").exists()


def test_a_parameter_that_is_computed_is_refused(tmp_path):
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "rows: int = 10 * 1000"}
    for source, message in (
        ("rows: int = 10 * 1000", "parameter `rows` must be a plain value"),
        ("rows =", "no Python"),
    ):
        (tmp_path / "own.ipynb").write_text(json.dumps({"cells": [cell | {"source": source}]}))
        with pytest.raises(UserError, match=f"own.ipynb: .*{message}"):
            _ = spec.Template(tmp_path / "own.ipynb").parameters
