"""A suite beside published numbers: what is compared, and what is said where nothing can be."""

import pandas as pd
import pytest
import records

from pocketrec import paths, report
from pocketrec.errors import UserError
from pocketrec.report import literature

NUMBERS = """
title: Numbers of others
source: a paper
dataset: movies
budgets: [5, 50, 100]
rows: 1000
methods:
  full: [0.9, 0.9, 0.9]
  robe: [0.6, 0.7, 0.8]
  hashing: [0.5, null, 0.7]
"""


@pytest.fixture(autouse=True)
def numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    (tmp_path / "published").mkdir()
    (tmp_path / "published/others.yaml").write_text(NUMBERS)
    return tmp_path / "published/others.yaml"


def run(method, ratio, auc, seed=0):
    record = records.quality(method, "movies", ratio, seed)
    record["metrics"]["validation"]["auc"] = auc
    return record


@pytest.fixture
def results(tmp_path):
    infeasible = records.failed("infeasible", "it does not fit", "robe", "movies", 100, 0)
    found = [run("full", 1, 0.91), run("robe", 10, 0.69), run("robe", 10, 0.7, seed=1), run("robe", 5, 0.79)]
    found += [infeasible, run("hashing", 10, 0.6), records.failed("oom", "too much", "hashing", "movies", 5, 0)]
    return report.load_results(records.write(tmp_path / "suite", found, notebooks=False))


def test_every_published_cell_has_a_verdict(results):
    table = literature.beside(results, "others", tolerance=0.0051).set_index(["method", "budget"])
    assert table["verdict"].unstack().loc[["full", "robe", "hashing"]].values.tolist() == [
        ["reached"] * 3,
        ["no instance", "reached", "below"],
        ["not run", "only ours", "oom"],
    ]
    assert table.loc[("robe", 50), ["ours", "seeds"]].tolist() == pytest.approx([0.695, 2])
    assert table.loc[("robe", 100), "difference"] == pytest.approx(-0.01)


def test_the_tally_counts_the_full_table_once(results):
    found = literature.tally(literature.beside(results, "others", tolerance=0.0051), 0.0051)
    assert found.startswith("2 of 3 cells within 0.0051 of theirs or above, 1 further below; ")
    assert set(found.split("; ")[1].split(", ")) == {"1 no instance", "1 not run", "1 only ours", "1 oom"}


def test_the_tables_for_people(results):
    table = literature.beside(results, "others", tolerance=0.0051)
    assert literature.grid(table).loc["robe"].tolist() == ["– | .600", ".695 | .700", ".790 | .800"]
    assert literature.verdicts(table).loc["robe"].tolist() == ["no instance", "−.005", "below −.010"]


def test_the_picture_draws_theirs_where_ours_is_missing(results):
    figure = literature.auc_vs_budget(literature.beside(results[results["method"] != "hashing"], "others"))
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.axison]
    assert titles == ["robe: −.010 to −.005", "hashing: no cell in both"]
    lines = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 2]
    assert any(line.get_linestyle() == "--" and list(line.get_ydata()) == [0.5, 0.7] for line in lines)


def test_a_budget_above_the_tables_is_held_against_ratio_1(numbers, tmp_path):
    numbers.write_text(NUMBERS.replace("[5, 50, 100]", "[5, 50, 900]"))
    results = report.load_results(records.write(tmp_path / "suite", [run("robe", 1, 0.79)], notebooks=False))
    table = literature.beside(results, "others").set_index(["method", "budget"])
    assert table.loc[("robe", 900), "difference"] == pytest.approx(-0.01)


def test_parameters_that_differ_are_not_averaged(tmp_path):
    other = run("robe", 10, 0.7, seed=1)
    other["parameters"]["epochs"] = 1
    results = report.load_results(records.write(tmp_path / "suite", [run("robe", 10, 0.69), other], notebooks=False))
    with pytest.raises(UserError, match="robe at ratio 10 ran with different parameters"):
        literature.beside(results, "others")


def test_a_file_with_a_mistake_is_refused(numbers):
    numbers.write_text(NUMBERS.replace("[0.6, 0.7, 0.8]", "[0.6, 0.7]"))
    with pytest.raises(UserError, match=r"`methods.robe` has 2 numbers for 3 budgets"):
        literature.load("others")
    numbers.write_text(NUMBERS.replace("rows:", "row:"))
    with pytest.raises(UserError, match="key `rows?` is"):
        literature.load("others")
    with pytest.raises(UserError, match="did you mean 'others'"):
        literature.load("other")


def test_the_published_grid_in_the_repository(monkeypatch):
    monkeypatch.undo()
    table = literature.load("cce_movielens")
    assert len(table) == 90 and table["theirs"].dropna().between(0.5, 0.9).all()
    budget = table.set_index("budget")["ratio_requested"]
    assert isinstance(budget, pd.Series) and budget[512].unique().tolist() == [9710 / 1024]
