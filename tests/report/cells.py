"""Notebooks, cell by cell in this process: fast, and what their last expressions gave is at hand."""

import ast
from pathlib import Path
from typing import Any

import nbformat

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def execute(name: str, **parameters: Any) -> list[Any]:
    """Run a notebook's code cells with parameters; return the value that each cell shows."""
    scope: dict[str, Any] = {}
    shown = []
    for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type != "code":
            continue
        body = ast.parse(cell.source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), name, "exec"), scope)
        if "parameters" in cell.metadata.get("tags", []):
            scope |= parameters
        shown.append(eval(compile(ast.Expression(last.value), name, "eval"), scope) if last else None)
    return shown
