"""The uncompressed table, one row an id: the baseline of every ratio.

    e(t, x) = E_t[x],   E_t in R^{n_t x dim},   bytes = 4 dim sum_t n_t

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", 2019;
initialised U(-1/sqrt(n_t), 1/sqrt(n_t)) per table as its public code does.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pocketrec.embeddings.base import (
    Embedding,
    Infeasible,
    draw_tables,
    full_bytes,
    generator,
    megabytes,
    offsets,
)
from pocketrec.embeddings.stores import Rows, Stored
from pocketrec.kernels import gather, interaction


class Full(Embedding):
    """One row an id. Nothing is shared, nothing is saved."""

    name = "full"
    paper = "DLRM, 2019"
    only_ratio = 1
    checks_ids = True

    @classmethod
    def solve(cls, cardinalities: Sequence[int], dim: int, budget_bytes: float) -> dict[str, Any]:
        """Feasible at ratio 1 only."""
        needed = full_bytes(cardinalities, dim)
        if needed > budget_bytes:
            raise Infeasible(
                f"the full table needs {megabytes(needed)} and exists at ratio 1 only; "
                f"the budget is {megabytes(budget_bytes)}"
            )
        return {}

    @classmethod
    def stored(cls, cardinalities: Sequence[int], dim: int) -> dict[str, Stored]:
        return {"table.weight": Stored((sum(cardinalities), dim), "rows")}

    def __init__(self, cardinalities: Sequence[int], dim: int, *, seed: int) -> None:
        super().__init__(cardinalities, dim, seed)
        self.table = Rows(sum(cardinalities), dim)  # all tables stacked
        self.constant("offsets", offsets(self.cardinalities))
        draw_tables(self.table.weight, self.cardinalities, self.cardinalities, generator(seed))

    def lookup(self, ids: Tensor) -> Tensor:
        of = self._buffers  # as attributes they would take longer to find
        tables = gather.Tables(of["limits"], of["offsets"])
        return self._modules["table"].forward(ids, tables)  # called as a module it would take longer

    def lookup_pairs(self, ids: Tensor, first: Tensor | None) -> Tensor | None:
        quantized = type(self.table) is not Rows
        return None if quantized else interaction.pair_rows(self.table.weight, ids + self.offsets, first)

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        start = sum(self.cardinalities[:feature])
        return self.table.weight[start : start + self.cardinalities[feature]][rows]
