"""What the page of a suite knows: cells, their seeds, runs and curves, as one plain structure for its script."""

import math
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from pocketrec import paths
from pocketrec.report import literature
from pocketrec.report.columns import CELL, METRICS, TIE, Metric
from pocketrec.report.plots import look
from pocketrec.report.results import cells_of_runs, curves, is_baseline, is_full, score, searches, speed
from pocketrec.report.statistics import ENOUGH, NEAR, half_width, label, summary, tied_with_best, true_ratio, with_loss

AUC_LOSS = Metric("auc_loss", "AUC loss", "", better="lower")
SHOWN = ("ratio_achieved", "inference_bytes", "training_bytes", "auc", "log_loss", "auc_head", "auc_torso", "auc_tail")
SHOWN += ("train_samples_per_s", "seconds")
FILES = {"notebook": ("run.html", "run.ipynb"), "record": ("record.json",), "log": ("log.txt",)}
POINTS = 50  # of a learning curve; more are not seen


def contents(suite_dir: Path, name: str, found: list[dict[str, Any]], results: pd.DataFrame) -> dict[str, Any]:
    """Return everything the page shows of a suite's records; what is missing is None.

    A cell's `values` are `[mean, half of the 95 % interval]`. Its AUC loss is against the dataset's baseline, a full
    table with the same seeds, or, where a dataset has none, against its best cell.
    """
    cells = summary(results).dropna(subset="ratio_requested")
    places = {cell: place for place, cell in enumerate(cells[CELL].itertuples(index=False, name=None))}
    machines = _machines(found)
    shown = [METRICS[name] for name in SHOWN] + [AUC_LOSS]
    return {
        "near": {"inference_bytes": NEAR, "p99": TIE},
        "enough": ENOUGH,
        "metrics": {metric.name: _metric(metric) for metric in shown},
        "methods": {method: look(method) for method in sorted({record["method"] for record in found})},
        "datasets": {dataset: _lines(rows) for dataset, rows in cells.groupby("dataset")},
        "published": _published(name),
        "machines": list(dict.fromkeys(machines.values())),
        "cells": _cells(cells, results, curves(found), speed(found), machines),
        "runs": _runs(suite_dir, found, places),
    }


def _metric(metric: Metric) -> dict[str, Any]:
    digits = int(metric.digits.strip(",.f"))
    return {
        "label": metric.label,
        "unit": metric.unit,
        "digits": digits,
        "scale": metric.scale,
        "better": metric.better,
    }


def _published(name: str) -> list[dict[str, Any]]:
    """Return the validation AUC that others published for the cells of a suite of that name, none without a file."""
    if not (paths.PARAMS / "published" / f"{name}.yaml").exists():
        return []
    table = literature.load(name).dropna(subset="theirs")
    table["ratio_requested"] = table["ratio_requested"].mask(table["method"] == "full", 1)
    shown = table[["method", "ratio_requested", "theirs"]].drop_duplicates()
    return [{"method": method, "ratio": _number(ratio), "auc": auc} for method, ratio, auc in shown.to_numpy()]


def _lines(cells: pd.DataFrame) -> dict[str, Any]:
    """Return what stands as a line across a dataset's pictures: what losses are against, and the best reachable."""
    full = cells[is_baseline(cells)]
    return {
        "reference": _number(full["auc"].iloc[0] if len(full) else cells["auc"].max()),
        "against": label(full.iloc[0]).replace("full", "full table") if len(full) else "best cell",
        "ceiling": _number(cells["bayes_auc"].mean()),
    }


def _cells(
    cells: pd.DataFrame, results: pd.DataFrame, points: pd.DataFrame, samples: pd.DataFrame, machines: dict[str, str]
) -> list[dict[str, Any]]:
    if cells.empty:
        return []
    learned = {cell: _curve(rows) for cell, rows in points.groupby(CELL)} if len(points) else {}
    model = samples[samples["part"] == "model"].sort_values("batch") if len(samples) else samples
    timed = {cell: _speed(rows, machines) for cell, rows in model.groupby(CELL)} if len(model) else {}
    tied = {cell: bool(known) for cell, known in tied_with_best(results).dropna().items()}
    cells = cells.assign(full=is_full(cells), baseline=is_baseline(cells), best=cells.index.isin(_best(cells)))
    cells = cells.assign(called=true_ratio(cells), score=score(cells))
    return [
        {
            "dataset": row["dataset"],
            "method": row["method"],
            "label": label(row),
            "ratio": row["ratio_requested"],
            "called": row["called"],
            "status": row["status"],
            "reason": row["reason"].removeprefix("Infeasible: "),
            "seeds": [row["n"], row["n_failed"], row["n_infeasible"]],
            "full": row["full"],
            "baseline": row["baseline"],
            "best": row["best"],
            "score": _number(row["score"]),
            "tied": tied.get(cell),
            "values": {name: [_number(row[name]), _number(row.get(f"{name}_ci"))] for name in (*SHOWN, "auc_loss")},
            "curve": learned.get(cell),
            "speed": timed.get(cell),
        }
        for row in with_loss(cells).to_dict("records")
        for cell in [tuple(row[name] for name in CELL)]
    ]


def _best(cells: pd.DataFrame) -> pd.Index:
    """Return the index of the cell that validation chooses for each dataset and requested ratio."""
    rivals = cells[cells["method"] != "full"].dropna(subset="auc")
    return pd.Index(score(rivals).groupby([rivals["dataset"], rivals["ratio_requested"]]).idxmax())


def _number(value: Any) -> float | None:
    """Return a number with the digits that a picture shows, or None."""
    return None if value is None or pd.isna(value) or math.isinf(value) else float(f"{value:.7g}")


def _curve(rows: pd.DataFrame) -> dict[str, list] | None:
    """Return validation AUC by step, samples and seconds: the mean over seeds and half of its interval."""
    if "validation_auc" not in rows or rows["validation_auc"].isna().all():
        return None
    steps = rows.dropna(subset="validation_auc").groupby("step")
    table = steps[["samples", "seconds", "validation_auc"]].mean().reset_index()
    seeds = steps["validation_auc"].count()
    table["half"] = half_width(steps["validation_auc"].std(), seeds).where(seeds >= ENOUGH).to_numpy()
    every = -(-len(table) // POINTS)
    table = table.iloc[(len(table) - 1) % every :: every].rename(columns={"validation_auc": "auc"})
    return {name: [_number(value) for value in table[name]] for name in table}


def _speed(rows: pd.DataFrame, machines: dict[str, str]) -> dict[str, Any]:
    """Return the times of a cell by batch size, and the machine that they are from."""
    columns = ["batch", "p50_ms", "p99_ms", "samples_per_s"]
    batches = {str(batch): [_number(time) for time in times] for batch, *times in rows[columns].itertuples(index=False)}
    return {"machine": machines.get(rows["run"].iloc[0], ""), "batches": batches}


def _machines(found: list[dict[str, Any]]) -> dict[str, str]:
    """Name, for each timed run, the machine that it ran on."""
    timed = [record for record in found if record.get("kind") == "timed" and record.get("environment")]
    return {record["run"]: machine(record["environment"]) for record in timed}


def machine(environment: dict[str, Any]) -> str:
    """Name a machine: `AMD EPYC, 2 cores, 25.3 GB`, and its GPU where a run used one."""
    parts = (("cpu", "{}"), ("cores", "{} cores"), ("memory_gb", "{} GB"), ("gpu", "{}"))
    return ", ".join(text.format(environment[name]) for name, text in parts if name in environment)


def settings(found: list[dict[str, Any]]) -> dict[str, str]:
    """Say, for each dataset, what its quality runs were trained on, how, and on which machine."""
    quality = [record for record in found if record.get("kind", "quality") == "quality" and record.get("parameters")]
    names = sorted({record["dataset"] for record in quality})
    return {name: _setting([record for record in quality if record["dataset"] == name]) for name in names}


def set_up(found: list[dict[str, Any]]) -> str:
    """Say the same of finished runs in a sentence a dataset."""
    said = settings([record for record in found if record["status"] == "done"])
    return " ".join(f"{name}: {text}." for name, text in said.items()) or "No training run has finished."


def _setting(found: list[dict[str, Any]]) -> str:
    def used(name: str, text: str = "{}") -> list[str]:
        values = {record["parameters"][name] for record in found if name in record["parameters"]}
        return [text.format(listed(values))] if values else []

    epochs = used("epochs", "{} epochs")
    parts = [*used("model"), *used("dim", "dim {}"), *_rows(found)]
    parts += ["1 epoch" if epochs == ["1 epochs"] else text for text in epochs]
    tried = searches(found)
    parts += used("batch_size", "batch {}") + _rates(found, tried, "table", "tables")
    parts += _rates(found, tried, "dense", "MLPs") + _searched(tried)
    machines = dict.fromkeys(machine(record["environment"]) for record in found if record.get("environment"))
    return "; ".join(parts + ([f"on {' and '.join(machines)}"] if machines else []))


def _rows(found: list[dict[str, Any]]) -> list[str]:
    """Name the training rows that were used, and of how many where those were fewer."""
    known = {
        (record["parameters"].get("train_rows") or rows, rows)
        for record in found
        for rows in [record.get("data", {}).get("rows", {}).get("train")]
        if rows
    }
    return [
        f"{used:,} training rows" if used >= rows else f"{used:,} of {rows:,} training rows" for used, rows in known
    ]


def _rates(found: list[dict[str, Any]], tried: pd.DataFrame, part: str, words: str) -> list[str]:
    """Name the optimizer of tables or MLPs and its learning rates, those that a search tried where there was one."""
    name = f"{part}_lr"
    fixed = {record["parameters"][name] for record in found if name in record["parameters"]}
    optimizers = {record["parameters"].get(f"{part}_optimizer", "") for record in found}
    if not fixed:
        return []
    by = f" by {listed(optimizers)}" if all(optimizers) else ""
    return [f"{words}{by} at {_values(tried, name) or listed(fixed)}"]


def _values(tried: pd.DataFrame, name: str) -> str:
    """Name the values of a parameter that were searched, or nothing."""
    values = {*tried.loc[tried["parameter"] == name, "value"]}
    return f"{listed(values)}, the best on validation data of each cell" if values else ""


def _searched(tried: pd.DataFrame) -> list[str]:
    """Name what was searched, unless `_rates` does, and how many of the best values may have a better one beyond."""
    chosen = tried[tried["chosen"]]
    others = [name for name in chosen["parameter"].unique() if name not in ("table_lr", "dense_lr")]
    parts = [f"{name} of {_values(tried, name)}" for name in others]
    if at_end := (chosen["end"] != "").sum():
        parts.append(f"{at_end} of {len(chosen)} best values at an end of what was tried")
    return parts


def listed(values: set[Any], word: str = "or") -> str:
    """Write a few values: `2, 4 or 8`."""
    *first, last = [f"{value:,g}" if isinstance(value, int | float) else str(value) for value in sorted(values)]
    return f"{', '.join(first)} {word} {last}" if first else last


def _runs(suite_dir: Path, found: list[dict[str, Any]], places: dict[tuple, int]) -> list[dict[str, Any]]:
    """Return every run with its cell, where it has one, and the files beside it."""
    cells = cells_of_runs(found)
    return [run(suite_dir, record) | {"cell": places.get(cells.get(record["run"]))} for record in found]


def run(suite_dir: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return what is listed of one run: how it ended, and links to what exists of it."""
    folder = suite_dir / "runs" / record["run"]
    present = {name: [file for file in files if (folder / file).exists()] for name, files in FILES.items()}
    return {
        "run": record["run"],
        "kind": record.get("kind", "quality"),
        "dataset": record["dataset"],
        "method": record["method"],
        "seed": record.get("seed"),
        "status": record["status"],
        "reason": record.get("reason", ""),
        "auc": _number(record.get("metrics", {}).get("test", {}).get("auc")),
        "seconds": _number(record.get("seconds")),
        "links": {name: quote(f"runs/{record['run']}/{files[0]}") for name, files in present.items() if files},
    }
