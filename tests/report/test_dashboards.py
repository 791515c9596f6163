import ast
import shutil
from base64 import b64decode, b64encode
from io import BytesIO

import nbformat
import numpy as np
import pytest
import records
from PIL import Image

from pocketrec import report
from pocketrec.errors import UserError
from pocketrec.paths import NOTEBOOKS
from pocketrec.report import dashboard

DASHBOARDS = sorted(NOTEBOOKS.glob("dashboard_*.ipynb"))
ALONE = ("overview", "pareto")  # those that need nothing but a suite
FORBIDDEN = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_thin_and_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])] == [code[0].source]
    for cell in code:
        assert (cell.outputs, cell.execution_count) == ([], None)
        assert len(cell.source.splitlines()) <= 12
        assert not any(isinstance(node, FORBIDDEN) for node in ast.walk(ast.parse(cell.source)))
    assert notebook.cells[-1].cell_type == "code"


def test_a_lighter_picture_keeps_pale_colours_and_stands_on_white():
    drawn = np.random.default_rng(0).integers(200, 255, (64, 64, 4), dtype=np.uint8)  # more colours than a palette has
    drawn[:32] = (232, 240, 247, 255)
    drawn[:, :8] = (0, 0, 0, 0)
    file = BytesIO()
    Image.fromarray(drawn).save(file, "png")
    light = Image.open(BytesIO(b64decode(dashboard._lighter(b64encode(file.getvalue()).decode()))))
    assert light.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    assert np.abs(np.subtract(light.convert("RGB").getpixel((20, 20)), (232, 240, 247))).max() <= 8


def test_dashboards_run_on_records(tmp_path):
    found = [record for record in records.suite(seeds=2) if record["method"] in ("full", "robe")]
    suite = records.write(tmp_path / "quick", found, notebooks=False)
    pages = report.dashboards(suite, progress=False)
    assert [page.stem for page in pages] == [f"dashboard_{name}" for name in ("method_full", "method_robe", *ALONE)]
    index = report.index(suite).read_text()
    for page in pages:
        text = page.with_suffix(".ipynb").read_text()
        assert str(tmp_path) not in text
        assert '"output_type": "error"' not in text
        assert len(text) < 1_000_000
        assert "data:image/png" in page.read_text()
        assert f"dashboards/{page.name}" in index
    assert "MLSys 2022" in pages[1].read_text()  # the method's own words


def test_a_dashboard_that_stops_says_so_and_the_page_still_builds(tmp_path):
    shutil.copy(NOTEBOOKS / "dashboard_pareto.ipynb", tmp_path / "dashboard_b.ipynb")
    notebook = nbformat.read(NOTEBOOKS / "dashboard_pareto.ipynb", as_version=4)
    notebook.cells.insert(1, nbformat.v4.new_code_cell("1 / 0"))
    nbformat.write(notebook, tmp_path / "dashboard_a.ipynb")
    suite = records.write(tmp_path / "one", [records.quality("robe", "planted", 10, 0)], notebooks=False)
    with pytest.raises(UserError, match=r"dashboard_a\.html stopped with ZeroDivisionError: division by zero"):
        report.dashboards(suite, notebooks=tmp_path, progress=False)
    assert "division by zero" in (suite / "dashboards/dashboard_a.html").read_text()
    assert (suite / "dashboards/dashboard_b.html").exists()
    assert "stopped early" in report.index(suite).read_text()


def test_a_suite_has_a_dashboard_of_its_own_which_copes_with_missing_cells(tmp_path):
    shutil.copy(NOTEBOOKS / "cce_movielens.ipynb", tmp_path)
    suite = records.write(tmp_path / "cce_movielens", records.suite(seeds=1), notebooks=False)
    (page,) = report.dashboards(suite, notebooks=tmp_path, progress=False)
    assert page.stem == "cce_movielens" and "82 not run" in page.read_text()
    assert report.dashboards(records.write(tmp_path / "other", records.suite(seeds=1)), tmp_path, progress=False) == []
