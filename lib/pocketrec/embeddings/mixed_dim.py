"""Mixed dimensions: the more rows a table has the narrower it is, and a matrix widens it again.

    e(t, x) = E_t[x] W_t,   E_t in R^{n_t x d_t},   W_t in R^{d_t x dim} (none where d_t = dim)
    d_t = min(dim, max(1, floor(lambda n_t^-alpha)))
    bytes = 4 sum_t (n_t d_t + d_t dim)

Ginart, Naumov, Mudigere, Yang & Zou, "Mixed Dimension Embeddings with Application to Memory-Efficient
Recommendation Systems", 2019. The budget gives lambda. `alpha` 0 is the same width for all; published code
takes 0.3. Since d_t >= 1, no ratio much above dim exists.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from pocketrec.embeddings.base import (
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


class MixedDim(Embedding):
    """Tables of different widths, those of one width stacked."""

    name = "mixed_dim"
    paper = "2019"

    @classmethod
    def solve(
        cls, cardinalities: Sequence[int], dim: int, budget_bytes: float, *, alpha: float = 0.3
    ) -> dict[str, Any]:
        """Bisect lambda, whose largest useful value gives every table the full width."""

        def widths(scale: float) -> list[int]:
            return [min(dim, max(1, int(scale * n**-alpha))) for n in cardinalities]

        def size(widths: list[int]) -> int:
            return sum(stored.bytes() for stored in cls.stored(cardinalities, dim, widths=widths).values())

        if size([dim] * len(cardinalities)) <= budget_bytes:  # without a matrix, it may be smaller than any other
            return {"widths": [dim] * len(cardinalities)}
        least = size(widths(0))
        if least > budget_bytes:
            raise Infeasible(
                f"mixed_dim with a single column a table needs {megabytes(least)}; the budget is "
                f"{megabytes(budget_bytes)}: its largest ratio is about {dim}"
            )
        low, high = 0.0, 1.01 * dim * max(cardinalities) ** alpha
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if size(widths(middle)) <= budget_bytes else (low, middle)
        return {"widths": widths(low)}

    @classmethod
    def stored(cls, cardinalities: Sequence[int], dim: int, *, widths: Sequence[int]) -> dict[str, Stored]:
        kept = {}
        for width, features in _by_width(widths).items():
            kept[f"tables.{width}.weight"] = Stored((sum(cardinalities[t] for t in features), width), "rows")
            if width < dim:
                kept[f"projections.{width}.weight"] = Stored((len(features), width, dim), "array")
        return kept

    def __init__(self, cardinalities: Sequence[int], dim: int, *, seed: int, widths: Sequence[int]) -> None:
        super().__init__(cardinalities, dim, seed, widths=list(widths))
        self.tables, self.projections = nn.ModuleDict(), nn.ModuleDict()
        draw, draw_projection = generator(seed), generator(seed, 1)
        for width, features in _by_width(widths).items():
            rows = [self.cardinalities[t] for t in features]
            table = self.tables[str(width)] = Rows(sum(rows), width)
            draw_tables(table.weight, rows, rows, draw)
            if width < dim:
                projection = self.projections[str(width)] = Weights(len(features), width, dim)
                uniform_(projection.weight.data, sqrt(3 / width), draw_projection)  # keeps the variance of a row
            self.constant(f"columns_{width}", torch.tensor(features))
            self.constant(f"limits_{width}", torch.tensor(rows))
            self.constant(f"offsets_{width}", offsets(rows))
        by_width = [t for features in _by_width(widths).values() for t in features]
        self.constant("order", torch.tensor(by_width).argsort())

    def lookup(self, ids: Tensor) -> Tensor:
        parts = []
        for width, table in self.tables.items():
            columns, limits, starts = (getattr(self, f"{name}_{width}") for name in ("columns", "limits", "offsets"))
            own, tables = ids.index_select(1, columns), gather.Tables(limits, starts)
            widened = width in self.projections
            parts.append(table.projected(own, tables, self.projections[width]()) if widened else table(own, tables))
        return torch.cat(parts, 1).index_select(1, self.order)

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        width = self.config["widths"][feature]
        features = _by_width(self.config["widths"])[width]
        place = features.index(feature)
        table = self.tables[str(width)].weight.split([self.cardinalities[t] for t in features])[place][rows]
        return table if width == self.dim else table @ self.projections[str(width)].weight[place]


def _by_width(widths: Sequence[int]) -> dict[int, list[int]]:
    """Return the features of each width, narrowest first."""
    return {width: [t for t, w in enumerate(widths) if w == width] for width in sorted(set(widths))}
