"""Synthetic records: what a suite leaves behind, without training anything."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import nbformat
import numpy as np

RATIOS = (10, 100, 1000)
LOSS = {"hashing": 0.028, "low_dim": 0.040, "robe": 0.015}
FULL = {"bookcrossing": (0.807, 37_737_856, 0.0), "planted": (0.726, 64_201_984, 0.7801)}
ENVIRONMENT = {
    "commit": "3f2a91c0d7e84b5a9c1f",
    "dirty": False,
    "python": "3.11.7",
    "torch": "2.13.0",
    "numpy": "2.4.6",
    "cpu": "AMD EPYC 7742",
    "cores": 2,
    "memory_gb": 23.4,
    "os": "Linux 6.1",
}


def quality(method: str, dataset: str, ratio: float, seed: int, **changes: Any) -> dict[str, Any]:
    """Return the record of a finished quality run with plausible, seeded numbers."""
    best, full_bytes, bayes = FULL.get(dataset, (0.78, 50_000_000, 0.0))
    rng = np.random.default_rng([seed, int(ratio), *method.encode(), *dataset.encode()])
    auc = best - LOSS.get(method, 0.03) * np.log10(ratio) + rng.normal(0, 0.0012)
    scores = {
        "auc": auc,
        "log_loss": 1.02 - 0.62 * auc,
        "ne": 1.75 - auc,
        "calibration": 1 + rng.normal(0, 0.01),
    }
    scores |= {"pr_auc": auc - 0.06, "accuracy": auc - 0.07}
    achieved = ratio * (1 + 0.004 * rng.random())
    achieved = achieved if method == "robe" else ratio * {"hashing": 1.01, "low_dim": 1.13}.get(method, 1.0)
    small = int(full_bytes / achieved)
    record = {
        "schema": 1,
        "suite": "quick",
        "run": f"{method}/{dataset}/r{ratio:g}-s{seed}",
        "kind": "quality",
        "key": f"{rng.integers(2**32):08x}",
        "status": "done",
        "method": method,
        "dataset": dataset,
        "ratio": ratio,
        "seed": seed,
        "parameters": {
            "method": method,
            "dataset": dataset,
            "ratio": ratio,
            "seed": seed,
            "epochs": 2,
            "knobs": {},
        },
        "started": f"2026-03-02T10:{seed:02d}:00+00:00",
        "seconds": 14.2 + rng.random(),
        "environment": ENVIRONMENT,
        "sizes": {
            "full_bytes": full_bytes,
            "budget_bytes": int(full_bytes / ratio),
            "ratio_requested": ratio,
            "ratio_achieved": achieved,
            "inference_bytes": small,
            "training_bytes": 2 * small,
            "optimizer_bytes": small // 16,
            "file_bytes": small + 512,
            "dense_bytes": 1_900_000,
            "model_ratio": (full_bytes + 1.9e6) / (small + 1.9e6),
        },
        "metrics": {
            "validation": {"auc": auc + 0.001, "log_loss": scores["log_loss"] - 0.001},
            "test": scores,
            "slices": {
                name: {"auc": auc + d, "rows": 900} for name, d in (("head", 0.02), ("torso", 0), ("tail", -0.05))
            },
        },
        "training": {
            "steps": 1800,
            "samples": 1_840_000,
            "seconds": 12.0,
            "samples_per_s": 140_000 + rng.normal(0, 4000),
        },
        "curve": curve(method, ratio, auc, rng),
    }
    if bayes:
        record["metrics"]["bayes"] = {"auc": bayes, "log_loss": 0.5102}
    return record | changes


def curve(method: str, ratio: float, auc: float, rng: np.random.Generator) -> dict[str, list[float]]:
    """A learning curve that saturates; the full table's turns down in its second half."""
    step = np.arange(100, 1801, 100)
    share = step / 1800
    shape = auc - 0.12 * np.exp(-(5 if method == "full" else 3) * share) + rng.normal(0, 0.001, len(step))
    shape -= 0.03 * np.maximum(share - 0.5, 0) if method == "full" else 0
    columns = {"step": step, "samples": step * 1024, "seconds": step / 150, "train_loss": 0.9 - 0.5 * shape}
    columns |= {"validation_auc": shape, "validation_log_loss": 1.02 - 0.62 * shape}
    return {name: values.tolist() for name, values in columns.items()}


def timed(method: str, dataset: str, ratio: float) -> dict[str, Any]:
    """Return the record of the timed run of a configuration, which measured its seed 0."""
    base = {"full": 0.21, "hashing": 0.20, "low_dim": 0.23, "robe": 0.26}.get(method, 0.25)
    speed = [
        {
            "part": part,
            "batch": batch,
            "p50_ms": p50,
            "p95_ms": 1.3 * p50,
            "p99_ms": 1.6 * p50,
            "samples_per_s": batch / p50 * 1e3,
        }
        for part, batch in product(("model", "lookup"), (1, 64, 2048))
        for p50 in [base * (1 if part == "model" else 0.3) * (1 + batch / 300)]
    ]
    kept = ("schema", "suite", "status", "method", "dataset", "ratio", "started", "environment", "key")
    record = {name: value for name, value in quality(method, dataset, ratio, 0).items() if name in kept}
    parameters = {"source": f"../r{ratio:g}-s0", "batch_sizes": [1, 64, 2048], "repeats": 200}
    run = f"{method}/{dataset}/r{ratio:g}-latency"
    return record | {"kind": "timed", "run": run, "seconds": 3.1, "parameters": parameters, "speed": speed}


def failed(status: str, reason: str, *cell: Any) -> dict[str, Any]:
    """Return a record of a run that did not reach its scores."""
    record = quality(*cell, status=status, reason=reason)
    for section in ("metrics", "training", "curve", "sizes"):
        del record[section]
    return record


def suite(seeds: int = 3) -> list[dict[str, Any]]:
    """Return the records of a suite with every status in it."""
    cells = [("full", 1), *product(LOSS, RATIOS)]
    runs = [quality(m, d, r, s) for (m, r), d, s in product(cells, FULL, range(seeds))]
    runs += [timed(m, d, r) for (m, r), d in product(cells, FULL)]
    named = {record["run"]: record for record in runs}
    sentence = "Infeasible: low_dim at 1000x: one dimension of 590,000 rows needs 2.4 MB; the budget is 0.04 MB"
    troubles = [failed("infeasible", sentence, "low_dim", "bookcrossing", 1000, s) for s in range(seeds)]
    troubles += [
        failed("oom", "MemoryError: the run took more than 4 GB", "hashing", "planted", 10, 0),
        failed("diverged", "Diverged: the loss is not finite at step 412", "hashing", "planted", 10, 1),
        failed("crashed", "DeadKernelError: Kernel died", "hashing", "planted", 10, 2),
        failed("timeout", "Timeout: longer than 10 minutes", "robe", "planted", 1000, 1),
        failed("failed", "KeyError: 'ratoi'", "robe", "planted", 100, 2),
        failed("interrupted", "KeyboardInterrupt", "low_dim", "planted", 100, 0),
    ]
    return list((named | {record["run"]: record for record in troubles}).values())


def write(folder: Path, records: list[dict[str, Any]], notebooks: bool = True) -> Path:
    """Write records, and what lies beside them, as the runner does; return the suite's folder."""
    for record in records:
        run = folder / "runs" / record["run"]
        run.mkdir(parents=True, exist_ok=True)
        (run / "record.json").write_text(json.dumps(record))
        if notebooks:
            nbformat.write(notebook(record), run / "run.ipynb")
            (run / "log.txt").write_text("training\n")
    return folder


def notebook(record: dict[str, Any]) -> nbformat.NotebookNode:
    """Return a small executed notebook: prose, code, text, a table and a picture."""
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
    table = "<table class='dataframe'><tr><th></th><th>auc</th></tr><tr><th>0</th><td>0.8</td></tr></table>"
    output = nbformat.v4.new_output
    code = nbformat.v4.new_code_cell(json.dumps(record["parameters"], indent=1), execution_count=1)
    code.outputs = [
        output("stream", text="step 100\n"),
        output("execute_result", {"text/html": table, "text/plain": "auc"}, execution_count=1),
        output("display_data", {"image/png": pixel}),
    ]
    title = nbformat.v4.new_markdown_cell(
        f"# {record['run']}\n\nWhat *this* run shows, [elsewhere](https://example.org)."
    )
    return nbformat.v4.new_notebook(cells=[title, code])
