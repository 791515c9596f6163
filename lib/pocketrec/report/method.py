"""What is known of one method: its own words, and the knobs that its runs used."""

import ast
from pathlib import Path

import pandas as pd

from pocketrec.report.results import read_records

_FILES = Path(__file__).parents[1] / "embeddings"


def about(method: str) -> str:
    """Return what a method's file says of it, as Markdown; the file is read, not imported."""
    for file in sorted(_FILES.glob("*.py")):
        module = ast.parse(file.read_text(encoding="utf-8"))
        for node in module.body:
            if isinstance(node, ast.ClassDef) and _name(node) == method:
                return "\n\n".join(filter(None, (ast.get_docstring(module), ast.get_docstring(node))))
    return f"`{method}` has no file here; its records were made elsewhere."


def _name(node: ast.ClassDef) -> str | None:
    """Return the value of `name = "..."` in a class."""
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="name")], value=ast.Constant(value=str(name))):
                return name
    return None


def knobs(path: str | Path, method: str) -> pd.DataFrame:
    """Return each knob of a method with the values that the runs of a suite's folder gave it, and in how many runs."""
    rows = [
        {"knob": knob, "value": "–" if value is None else str(value), "runs": record["run"]}
        for record in read_records(Path(path))
        if record["method"] == method and record.get("kind", "quality") == "quality"
        for knob, value in record.get("parameters", {}).get("knobs", {}).items()
    ]
    table = pd.DataFrame(rows, columns=["knob", "value", "runs"])
    return table.groupby(["knob", "value"], as_index=False)["runs"].count()
