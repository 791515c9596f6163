"""The widgets of the notebook `explore`: what they offer, and what they show of a cell."""

import papermill
import pytest
import records

from pocketrec import report
from pocketrec.paths import NOTEBOOKS
from pocketrec.report.columns import METRICS
from pocketrec.report.widgets import chosen, details, options

QUERY = "dataset == 'planted' and method == 'robe' and ratio_requested == 10"


@pytest.fixture(scope="module")
def runs(suite):
    return report.load_results(suite)


def test_only_finished_cells_are_offered(runs):
    names = {name for name, _ in options(chosen(runs, "planted", ("hashing", "robe")))}
    assert names == {"hashing 100×", "hashing 1,000×", "robe 10×", "robe 100×", "robe 1,000×"}


def test_a_cell_in_full(suite, runs):
    (key,) = [key for name, key in options(chosen(runs, "planted", ("robe",))) if name == "robe 10×"]
    links, sizes, by_frequency, curve = details(suite, runs, report.load_curves(suite), key)
    assert links.data.count("run.ipynb") == 3
    kept = METRICS["inference_bytes"].text(runs.query(QUERY)["inference_bytes"].mean())
    assert sizes.data["Size at inference (MB)"].item() == kept
    assert by_frequency.data["AUC, rare ids"].item().startswith(f"{runs.query(QUERY)['auc_tail'].mean():.4f}")
    assert len(curve.axes) == 1


def test_choosing_a_dataset_offers_its_methods_and_cells(tmp_path):
    found = [records.quality("robe", "planted", 10, 0), records.quality("hashing", "bookcrossing", 100, 0)]
    box = report.explore(records.write(tmp_path, found))
    (dataset, methods), (*_, cell) = (column.children for column in box.children[0].children)
    assert (methods.value, [name for name, _ in cell.options]) == (("hashing",), ["hashing 100×"])
    dataset.value = "planted"
    assert (methods.value, [name for name, _ in cell.options]) == (("robe",), ["robe 10×"])
    assert cell.value == ("planted", "robe", "", 10.0)
    methods.value = ()
    assert (cell.options, cell.value) == ((), None)


def test_a_dataset_with_the_same_methods_changes_the_cell(suite):
    box = report.explore(suite)
    (dataset, _), (*_, cell) = (column.children for column in box.children[0].children)
    assert cell.value == ("bookcrossing", "full", "", 1.0)
    dataset.value = "planted"
    assert cell.value == ("planted", "full", "", 1.0)


def test_the_notebook_runs(suite, tmp_path):
    out = papermill.execute_notebook(
        NOTEBOOKS / "explore.ipynb", tmp_path / "out.ipynb", {"results": str(suite)}, progress_bar=False
    )
    assert "application/vnd.jupyter.widget-view+json" in out.cells[-1].outputs[-1].data
