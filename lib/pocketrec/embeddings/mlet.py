"""MLET: narrow tables that are trained as the product of a wide table and a matrix, and served folded.

    e(t, x) = E_t[x] W_t,   E_t in R^{n_t x k},   W_t in R^{k x d},   k >= d
    served: e(t, x) = F_t[x],   F_t = E_t W_t in R^{n_t x d}
    bytes = 4 d sum_t n_t (training: 4 k (sum_t n_t + T d))

Ghaemmaghami et al., "Training with Multi-Layer Embeddings for Model Reduction", 2020; with theory in "Enhancing
Cross-Category Learning in Recommendation Systems with Multi-Layer Embedding Training", ACML 2023.

Nothing nonlinear stands between the layers, so the served table could have been trained directly: the second
layer changes only how it is learned, since a step on W_t moves every row. The saving is that of the narrower
output (`out_dim = d`), hence no ratio above dim; training takes k / d times the served bytes, more than the full
table at the published k = `hidden` of 64 or 128. Initialised as published: E_t ~ U(-1/sqrt(n_t), 1/sqrt(n_t)),
W_t ~ N(0, 1/16).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pocketrec.embeddings.base import (
    FLOAT_BYTES,
    Embedding,
    Infeasible,
    draw_tables,
    generator,
    megabytes,
    offsets,
)
from pocketrec.embeddings.stores import Rows, Stored, Weights
from pocketrec.kernels import gather


class MLET(Embedding):
    """Tables of `width` columns; `hidden` is the wider one in training, or 0 once folded."""

    name = "mlet"
    paper = "2020"
    checks_ids = True

    @classmethod
    def solve(cls, cardinalities: Sequence[int], dim: int, budget_bytes: float, *, hidden: int = 64) -> dict[str, Any]:
        """Closed form: bytes are linear in the served width."""
        per_column = FLOAT_BYTES * sum(cardinalities)
        width = min(dim, int(budget_bytes // per_column))
        if width < 1:
            raise Infeasible(
                f"mlet with a single column needs {megabytes(per_column)}; the budget is {megabytes(budget_bytes)}: "
                f"its largest ratio is {dim}"
            )
        return {"width": width, "hidden": max(hidden, width)}

    @classmethod
    def stored(cls, cardinalities: Sequence[int], dim: int, *, width: int, **_: Any) -> dict[str, Stored]:
        return {"table.weight": Stored((sum(cardinalities), width), "rows")}

    def __init__(self, cardinalities: Sequence[int], dim: int, *, seed: int, width: int, hidden: int) -> None:
        super().__init__(cardinalities, dim, seed, width=width, hidden=hidden)
        self.out_dim = width
        self.table = Rows(sum(cardinalities), hidden or width)
        self.constant("offsets", offsets(self.cardinalities))
        if not hidden:
            return
        self.second = Weights(len(cardinalities), hidden, width)
        nn.init.normal_(self.second.weight, 0, 0.25, generator=generator(seed, 1))
        draw_tables(self.table.weight, self.cardinalities, self.cardinalities, generator(seed))

    def lookup(self, ids: Tensor) -> Tensor:
        tables = gather.Tables(self.limits, self.offsets)
        return self.table.projected(ids, tables, self.second()) if self.config["hidden"] else self.table(ids, tables)

    @torch.no_grad()
    def folded(self) -> MLET:
        """Multiply the two layers out, table by table."""
        if not self.config["hidden"]:
            return deepcopy(self)
        served = MLET(self.cardinalities, self.dim, seed=self.seed, width=self.out_dim, hidden=0)
        served.to(self.table.weight)
        torch.cat([self.materialize(f) for f in range(len(self.cardinalities))], out=served.table.weight.data)
        return served

    def inference_tensors(self) -> dict[str, int]:
        if not self.config["hidden"]:
            return super().inference_tensors()
        return self.planned_tensors()

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        table = self.table.weight.split(self.cardinalities)[feature][rows]
        return table @ self.second()[feature] if self.config["hidden"] else table
