"""Sizes by arithmetic, of the published tables and of a dataset."""

import pytest

from pocketrec import embeddings, paths
from pocketrec.data.sources import planted
from pocketrec.embeddings import full_bytes
from pocketrec.errors import UserError
from pocketrec.files import read_yaml
from pocketrec.suite import spec
from pocketrec.suite.sizes import RATIOS, sizes, tables

PUBLISHED = {
    "criteo-kaggle": (33_762_577, 16),
    "criteo-tb-10m": (49_126_297, 64),
    "criteo-tb-40m": (187_767_399, 128),
    "avazu": (9_449_445, 16),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tables_have_their_published_rows_and_need_no_data(name, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "none")
    cardinalities, dim = tables(name)
    assert (sum(cardinalities), dim) == PUBLISHED[name] and not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("quantize", [None, pytest.param("int8", marks=pytest.mark.slow)])
def test_every_method_gives_a_size_or_a_reason(name, quantize):
    table = sizes(*tables(name), quantize=quantize)
    assert len(table) == len(embeddings.available()) * len(RATIOS)
    feasible = table[table.reason.isna()]
    assert (feasible.ratio_achieved >= feasible.ratio_requested * 0.9999).all()
    infeasible = table[table.reason.notna()]
    assert infeasible.ratio_achieved.isna().all() and infeasible.reason.str.len().gt(20).all()


def test_unknown_tables_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'criteo-kaggle'"):
        tables("criteo-kagle")


def test_the_planted_dataset_has_the_published_tables():
    assert tables("criteo-kaggle")[0] == planted.CRITEO_KAGGLE


def test_the_suite_beside_published_numbers_has_their_budgets_to_the_float():
    suite = spec.load("cce_movielens")
    content = read_yaml(paths.PARAMS / "published/cce_movielens.yaml")
    cardinalities = [6041, content["rows"] - 6041]
    budgets = set()
    for cell in suite.cells:
        assert cell["method"] in content["methods"]
        if cell["method"] != "full":
            floats = full_bytes(cardinalities, suite.fixed["dim"]) / cell["ratio"] / 4
            budgets.add(floats / (2 * suite.fixed["dim"]))
    # a budget above the tables is held against all of them
    assert budgets == {min(budget, content["rows"] / 2) for budget in content["budgets"]}
