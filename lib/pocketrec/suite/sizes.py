"""What every method would take on tables of a given size: arithmetic, without a tensor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pocketrec import data, embeddings, paths
from pocketrec.embeddings import Infeasible
from pocketrec.embeddings.base import megabytes
from pocketrec.errors import UserError, unknown
from pocketrec.files import read_yaml

RATIOS = (2, 10, 100, 1000, 10_000)


def tables(name: str) -> tuple[list[int], int]:
    """Return cardinalities and dim of `params/tables/<name>.yaml`, or of a dataset and its recipe."""
    folder = paths.PARAMS / "tables"
    published = [path.stem for path in folder.glob("*.yaml")]
    if name in published:
        return _published(folder / f"{name}.yaml")
    if name not in data.available():
        raise unknown("tables or dataset", name, [*published, *data.available()], paths.PARAMS)
    return data.load(name).cardinalities, data.recipe(name).get("dim", 16)


def _published(path: Path) -> tuple[list[int], int]:
    content = read_yaml(path)
    try:
        return [int(n) for n in content["cardinalities"]], int(content["dim"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: needs `dim`, a number, and `cardinalities`, a list of numbers") from None


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
