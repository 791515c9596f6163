"""Widgets to question a suite's results with: choose axes and methods, pick a cell, open its notebook."""

from os.path import relpath
from pathlib import Path

import ipywidgets as widgets
import pandas as pd
from IPython.display import HTML, display

from pocketrec.report import plots
from pocketrec.report.columns import CELL, METRICS, times
from pocketrec.report.results import load_curves, load_results
from pocketrec.report.statistics import label, summary
from pocketrec.report.tables import numbers, sizes

AXES = {metric.axis: metric.name for metric in METRICS.values() if metric.better or metric.name == "ratio_achieved"}
BY_FREQUENCY = ("auc", "auc_head", "auc_torso", "auc_tail")


def explore(path: str | Path) -> widgets.VBox:
    """Return the widgets over a suite's folder: a picture of any two numbers, and below it one cell in full."""
    runs, curves = load_results(path), load_curves(path)
    dataset = widgets.Dropdown(options=sorted(runs["dataset"].unique()), description="dataset")
    methods = widgets.SelectMultiple(description="methods", rows=6)
    x = widgets.Dropdown(options=AXES, value="inference_bytes", description="across")
    y = widgets.Dropdown(options=AXES, value="auc", description="upward")
    cell = widgets.Dropdown(description="cell")

    def offer_methods(_: object = None) -> None:
        methods.options = sorted(runs.loc[runs["dataset"] == dataset.value, "method"].unique())
        methods.value = methods.options

    def offer_cells(_: object = None) -> None:
        cell.options = options(chosen(runs, dataset.value, methods.value))

    dataset.observe(offer_methods, "value")
    methods.observe(offer_cells, "value")
    offer_methods()
    offer_cells()

    def picture(x: str, y: str, dataset: str, methods: tuple[str, ...]) -> None:
        display(plots.against(chosen(runs, dataset, methods), x, y))

    def one(cell: tuple | None) -> None:
        if cell is not None:
            display(*details(path, runs, curves, cell))

    chart = widgets.interactive_output(picture, {"x": x, "y": y, "dataset": dataset, "methods": methods})
    chosen_cell = widgets.interactive_output(one, {"cell": cell})
    controls = widgets.HBox([widgets.VBox([dataset, methods]), widgets.VBox([x, y, cell])])
    return widgets.VBox([controls, chart, chosen_cell])


def chosen(runs: pd.DataFrame, dataset: str, methods: tuple[str, ...]) -> pd.DataFrame:
    """Return the runs of one dataset and some methods."""
    return runs[(runs["dataset"] == dataset) & runs["method"].isin(methods)]


def options(runs: pd.DataFrame) -> list[tuple[str, tuple]]:
    """Return name and key of each cell that has a number, to choose from."""
    cells = summary(runs).dropna(subset="ratio_requested")
    cells = cells[cells["n"] > 0]
    return [
        (f"{label(row)} {times(row['ratio_requested'])}", tuple(row[name] for name in CELL))
        for row in cells.to_dict("records")
    ]


def details(path: str | Path, runs: pd.DataFrame, curves: pd.DataFrame, cell: tuple) -> list[object]:
    """Return what there is to show of one cell: its notebooks, sizes, AUC by frequency of the ids, learning curve."""
    own = _of(runs, cell)
    shown: list[object] = [HTML(_links(path, own["run"])), sizes(own), numbers(own, BY_FREQUENCY)]
    if len(curves):
        learned = _of(curves, cell)
        shown += [plots.learning_curves(learned)] if len(learned) else []
    return shown


def _of(frame: pd.DataFrame, cell: tuple) -> pd.DataFrame:
    return frame[(frame[CELL] == list(cell)).all(axis=1)]


def _links(path: str | Path, runs: pd.Series) -> str:
    """Return a link to the executed notebook of each run, or its name where that was not kept."""
    found = [(run, Path(path) / "runs" / run / "run.ipynb") for run in runs]
    items = [f'<a href="{relpath(file)}" target="_blank">{run}</a>' if file.exists() else run for run, file in found]
    return "<p>" + " · ".join(items) + "</p>"
