"""MEmCom: ids share rows by remainder, and a trained number of each id's own scales its row.

    e(t, x) = U_t[x mod m_t] v_t[x]  (+ w_t[x], with `bias`),   U_t in R^{m_t x dim},   v_t, w_t in R^{n_t}
    bytes = 4 sum_t (m_t dim + n_t), or 4 sum_t (m_t dim + 2 n_t) with `bias`; 4 n_t dim for a table kept whole

Pansare et al., "Learning Compressed Embeddings for On-Device Inference" (MEmCom), MLSys 2022. No two ids have
the same row once trained, but a number an id is kept, so that no ratio above dim exists (dim / 2 with `bias`).
Rows are shared out as in the hashing trick; a table that would gain nothing is kept whole. v starts at 0.01 and w
at 0: rows start near 0, and Adagrad, whose first steps are as large for any gradient, soon sets v for each id. From
v = 1, a hashed table to start, it ends below the hashing trick on Book-Crossing at 10x (AUC 0.792 against 0.795),
from 0.01 above it (0.799).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pocketrec.embeddings.base import (
    FLOAT_BYTES,
    Embedding,
    Infeasible,
    draw_tables,
    generator,
    megabytes,
    offsets,
    share_out,
)
from pocketrec.embeddings.stores import Narrow, Rows, Stored

SCALE = 0.01  # at which all v start


class Memcom(Embedding):
    """Rows shared by x mod m, each use scaled by a number of the id's own."""

    name = "memcom"
    paper = "MLSys 2022"

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        bias: bool = False,
        threshold: int = 200,
    ) -> dict[str, Any]:
        """Share the rows out; a table whose rows and numbers would take as much as itself is kept whole."""

        def cost(n: int, rows: int) -> int:  # in floats
            return min(n * dim, rows * dim + n * (1 + bias))

        rows = share_out(cardinalities, int(budget_bytes) // FLOAT_BYTES, threshold, cost)
        if rows is None:
            least = FLOAT_BYTES * sum(cost(n, 1) for n in cardinalities)
            raise Infeasible(
                f"memcom keeps {'two numbers' if bias else 'one number'} an id: at least {megabytes(least)}, which a "
                f"{megabytes(budget_bytes)} budget does not hold; its largest ratio is about {dim / (1 + bias):g}"
            )
        rows = [n if cost(n, m) == n * dim else m for n, m in zip(cardinalities, rows, strict=True)]
        return {"rows": rows, "bias": bias}

    @classmethod
    def stored(
        cls, cardinalities: Sequence[int], dim: int, *, rows: Sequence[int], bias: bool = False
    ) -> dict[str, Stored]:
        own = Stored((sum(n for n, m in zip(cardinalities, rows, strict=True) if m < n), 1), "array")
        numbers = {"scale.weight": own} | ({"shift.weight": own} if bias else {})
        return {"table.weight": Stored((sum(rows), dim), "rows")} | (numbers if own.shape[0] else {})

    def __init__(
        self, cardinalities: Sequence[int], dim: int, *, seed: int, rows: Sequence[int], bias: bool = False
    ) -> None:
        super().__init__(cardinalities, dim, seed, rows=list(rows), bias=bias)
        self.table = Rows(sum(rows), dim)
        self.constant("rows", torch.tensor(rows))
        self.constant("offsets", offsets(rows))
        draw_tables(self.table.weight, self.config["rows"], self.cardinalities, generator(seed))
        self.shared = [t for t, n in enumerate(self.cardinalities) if rows[t] < n]
        if self.shared:
            self.constant("shared_at", torch.tensor(self.shared))
            sizes = [self.cardinalities[t] for t in self.shared]
            self.constant("own_offsets", offsets(sizes))
            self.scale = Narrow(sum(sizes), 1)
            self.scale.weight.data.fill_(SCALE)
            if bias:
                self.shift = Narrow(sum(sizes), 1)
                self.shift.weight.data.zero_()

    def lookup(self, ids: Tensor) -> Tensor:
        rows = self.table(ids % self.rows + self.offsets)  # [batch, features, dim]
        if not self.shared:
            return rows
        own = ids.index_select(1, self.shared_at) + self.own_offsets
        scaled = rows.index_select(1, self.shared_at) * self.scale(own)  # [batch, shared, dim] * [batch, shared, 1]
        if self.config["bias"]:
            scaled = scaled + self.shift(own)
        return rows.index_copy(1, self.shared_at, scaled)

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        size, n = self.config["rows"][feature], self.cardinalities[feature]
        start = sum(self.config["rows"][:feature])
        slots = [x % size for x in self.feature_rows(feature, rows).tolist()]
        table = self.table.weight[start : start + size][slots]
        if size == n:
            return table
        start = sum(self.cardinalities[t] for t in self.shared if t < feature)
        table = table * self.scale.weight[start : start + n][rows]
        return table + self.shift.weight[start : start + n][rows] if self.config["bias"] else table
