"""Notebooks are thin and stripped, and run as they stand."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from click.testing import CliRunner
from papermill.cli import papermill as papermill_command

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.filterwarnings("ignore")


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def is_parameters(cell):
    return "parameters" in cell.metadata.get("tags", [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestEveryNotebook:
    def test_is_stripped(self, path):
        assert all(cell.execution_count is None and not cell.outputs for cell in cells(path))

    def test_is_thin(self, path):
        for cell in cells(path):
            nodes = [type(node).__name__ for node in ast.walk(ast.parse(cell.source))]
            assert not {"FunctionDef", "ClassDef", "For", "While", "Lambda", "ListComp"} & set(nodes)
            assert is_parameters(cell) or len(cell.source.splitlines()) <= 12

    def test_says_what_to_look_at(self, path):
        assert len(cells(path, "markdown")) >= 2

    def test_explains_every_parameter(self, path):
        (parameters,) = [cell for cell in cells(path) if is_parameters(cell)]
        for line in parameters.source.splitlines():
            assert ":" in line.split("=")[0] and "  # " in line  # a type, and what it means
        found = papermill.inspect_notebook(str(path))
        assert found and all(p["inferred_type_name"] != "None" and p["help"] for p in found.values())


def test_train_runs_with_its_defaults(tmp_path):
    template = ROOT / "notebooks/train.ipynb"
    executed = papermill.execute_notebook(str(template), str(tmp_path / "out.ipynb"), cwd=tmp_path, progress_bar=False)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr" and "Warning" in output["text"]]
    assert [p.name for p in tmp_path.iterdir()] == ["out.ipynb"]  # opened by hand, it keeps nothing


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_papermill_explains_it(path):
    (parameters,) = [cell for cell in cells(path) if is_parameters(cell)]
    shown = CliRunner().invoke(papermill_command, ["--help-notebook", str(path)])
    assert shown.exit_code == 0
    assert "Unknown type" not in shown.output
    assert all(f"  {line.split(':')[0]}: " in shown.output for line in parameters.source.splitlines())


@pytest.mark.slow
def test_plain_papermill_runs_it(tmp_path):
    command = [sys.executable, "-m", "papermill", ROOT / "notebooks/train.ipynb", "out.ipynb"]
    tiny = ["-y", "dataset_options: {rows: 4000, scale: 0.0001}"]
    subprocess.run([*command, "-p", "method", "robe", "-p", "ratio", "1000", *tiny], cwd=tmp_path, check=True)
    text = (tmp_path / "out.ipynb").read_text()
    assert 'method = \\"robe\\"' in text
    assert "ratio = 1000" in text
