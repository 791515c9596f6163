"""Fewer dimensions: narrow tables, widened again by one matrix a table. The honest trivial baseline.

    e(t, x) = E_t[x] W_t,   E_t in R^{n_t x k},   W_t in R^{k x dim},   bytes = 4 (k sum_t n_t + T k dim)

With `projection: false` the model sees k dimensions (`out_dim = k`) and no matrix is kept. Since k >= 1,
no ratio above dim exists.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

from torch import Tensor

from pocketrec.embeddings.base import (
    FLOAT_BYTES,
    Embedding,
    Infeasible,
    draw_tables,
    generator,
    megabytes,
    offsets,
    uniform_,
)
from pocketrec.embeddings.stores import Rows, Stored, Weights
from pocketrec.kernels import gather


class LowDim(Embedding):
    """Tables of k < dim columns, the same k for all, projected to dim."""

    name = "low_dim"
    checks_ids = True

    @classmethod
    def solve(
        cls, cardinalities: Sequence[int], dim: int, budget_bytes: float, *, projection: bool = True
    ) -> dict[str, Any]:
        """Closed form: bytes are linear in k."""
        per_column = FLOAT_BYTES * (sum(cardinalities) + (len(cardinalities) * dim if projection else 0))
        width = min(dim, int(budget_bytes // per_column))
        if width < 1:
            raise Infeasible(
                f"low_dim with a single column needs {megabytes(per_column)}; the budget is {megabytes(budget_bytes)}: "
                f"its largest ratio is about {dim}"
            )
        return {"width": width, "projection": projection}

    @classmethod
    def stored(
        cls, cardinalities: Sequence[int], dim: int, *, width: int, projection: bool = True
    ) -> dict[str, Stored]:
        table = {"table.weight": Stored((sum(cardinalities), width), "rows")}
        widening = {"projection.weight": Stored((len(cardinalities), width, dim), "array")}
        return table | (widening if projection else {})

    def __init__(
        self, cardinalities: Sequence[int], dim: int, *, seed: int, width: int, projection: bool = True
    ) -> None:
        super().__init__(cardinalities, dim, seed, width=width, projection=projection)
        self.table = Rows(sum(cardinalities), width)
        self.constant("offsets", offsets(self.cardinalities))
        draw_tables(self.table.weight, self.cardinalities, self.cardinalities, generator(seed))
        if projection:
            self.projection = Weights(len(cardinalities), width, dim)
            uniform_(self.projection.weight.data, sqrt(3 / width), generator(seed, 1))  # keeps the variance of a row
        else:
            self.out_dim = width

    def lookup(self, ids: Tensor) -> Tensor:
        tables = gather.Tables(self.limits, self.offsets)
        if not self.config["projection"]:
            return self.table(ids, tables)
        return self.table.projected(ids, tables, self.projection())

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        start = sum(self.cardinalities[:feature])
        narrow = self.table.weight[start : start + self.cardinalities[feature]][rows]
        return narrow @ self.projection()[feature] if self.config["projection"] else narrow
