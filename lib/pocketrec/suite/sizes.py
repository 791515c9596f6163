"""What every method would take on tables of a given size: arithmetic, without a large tensor."""

import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pocketrec import data, embeddings, paths
from pocketrec.embeddings import Infeasible
from pocketrec.embeddings.base import megabytes
from pocketrec.errors import unknown

RATIOS = (2, 10, 100, 1000, 10_000)


def tables(name: str) -> tuple[list[int], int]:
    """Return cardinalities and dim: of tables that were published of a dataset, or of a dataset as it is prepared.

    Published tables are known by their `name` in `params/datasets`; nothing is prepared for them.
    """
    published = data.published_tables()
    if name not in published and name not in data.available():
        raise unknown("tables or dataset", name, sorted({*published, *data.available()}), paths.PARAMS / "datasets")
    return published.get(name) or (data.load(name).cardinalities, data.recipe(name).get("dim", 16))


def sizes(
    cardinalities: Sequence[int], dim: int, ratios: Sequence[float] = RATIOS, quantize: Any = None
) -> pd.DataFrame:
    """Return one row a method and requested ratio.

    Columns: method, ratio_requested, ratio_achieved and inference_bytes (missing where infeasible), reason.
    """
    rows = []
    for method in embeddings.available():
        for ratio in ratios:
            found: dict[str, Any] = {"method": method, "ratio_requested": ratio}
            try:
                config = embeddings.solve(method, cardinalities, dim, ratio, quantize)
            except Infeasible as reason:
                rows.append(found | {"reason": str(reason)})
                continue
            taken = embeddings.inference_bytes(method, cardinalities, dim, config, quantize)
            achieved = embeddings.full_bytes(cardinalities, dim) / taken
            rows.append(found | {"inference_bytes": taken, "ratio_achieved": achieved, "size": megabytes(taken)})
    columns = ["method", "ratio_requested", "ratio_achieved", "inference_bytes", "size", "reason"]
    return pd.DataFrame(rows, columns=columns)


SMALL = ([30_000, 2_000, 50], 16)  # tables on which the bytes in training are those of real tensors


def overview() -> pd.DataFrame:
    """Return one row a method, for people who choose: what it is, what it saves, how far it goes.

    Columns: method, paper, idea (first sentence of its file), inference and training (bytes over those of full
    tables, on small tables at 8 times smaller), largest_ratio (achieved on Criteo-Kaggle; infinite when it
    reaches 100,000).
    """
    kaggle = tables("criteo-kaggle")
    rows = [
        {
            "method": name,
            "paper": method.paper,
            "idea": sys.modules[method.__module__].__doc__.split("\n")[0].rstrip("."),
            **_shares(name),
            "largest_ratio": _largest_ratio(name, *kaggle),
        }
        for name, method in embeddings.METHODS.items()
    ]
    return pd.DataFrame(rows).set_index("method").loc[embeddings.available()].reset_index()


def _shares(name: str) -> dict[str, float]:
    cardinalities, dim = SMALL
    ratio = embeddings.METHODS[name].only_ratio or 8
    storage = embeddings.build(name, cardinalities=cardinalities, dim=dim, ratio=ratio).storage()
    full = embeddings.full_bytes(cardinalities, dim)
    return {"inference": storage.inference_bytes / full, "training": storage.training_bytes / full}


def _largest_ratio(name: str, cardinalities: Sequence[int], dim: int) -> float:
    """Achieved at the last feasible of 101 ratios from 1 to 100,000, evenly spaced in their logarithm."""
    achieved = 1.0
    for step in range(101):
        try:
            config = embeddings.solve(name, cardinalities, dim, 10 ** (step / 20))
        except Infeasible:
            continue
        if step == 100:
            return float("inf")
        taken = embeddings.inference_bytes(name, cardinalities, dim, config)
        achieved = max(achieved, embeddings.full_bytes(cardinalities, dim) / taken)
    return achieved


def markdown(overview: pd.DataFrame) -> str:
    """Write the overview as the README has it."""
    lines = ["| method | paper | idea | bytes in training | largest ratio |", "|---|---|---|---|---|"]
    for row in overview.itertuples():
        largest = "any" if row.largest_ratio == float("inf") else f"{row.largest_ratio:,.0f}×"
        training = f"{row.training:.0%} of full"
        lines.append(f"| `{row.method}` | {row.paper or '–'} | {row.idea} | {training} | {largest} |")
    return "\n".join(lines)
