"""Tables kept whole beside those that a method compresses.

A few tables hold most rows (Criteo-Kaggle: 7 of 26 hold 99.6 %), and a small one costs little and is read often,
so some methods compress the largest tables alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pocketrec.embeddings.base import draw_tables, offsets
from pocketrec.embeddings.stores import Rows, Stored


def largest(cardinalities: Sequence[int], count: int) -> list[int]:
    """Return the features of the `count` largest tables, in order of feature."""
    return sorted(sorted(range(len(cardinalities)), key=lambda t: -cardinalities[t])[:count])


class WholeTables(nn.Module):
    """One row an id for every feature that is not `compressed`; initialised U(-1/sqrt(n_t), 1/sqrt(n_t))."""

    def __init__(self, cardinalities: Sequence[int], compressed: Sequence[int], dim: int, draw: torch.Generator):
        super().__init__()
        self.features = [t for t in range(len(cardinalities)) if t not in compressed]
        self.rows = [cardinalities[t] for t in self.features]
        self.table = Rows(sum(self.rows), dim)
        draw_tables(self.table.weight, self.rows, self.rows, draw)
        self.table.weight.requires_grad_(bool(self.rows))
        for name, value in {
            "offsets": offsets(self.rows) if self.rows else torch.empty(0, dtype=torch.long),
            "columns": torch.tensor(self.features, dtype=torch.long),
            "compressed": torch.tensor([*compressed], dtype=torch.long),
            "order": torch.tensor([*self.features, *compressed]).argsort(),
        }.items():
            self.register_buffer(name, value, persistent=False)

    @staticmethod
    def stored(cardinalities: Sequence[int], compressed: Sequence[int], dim: int) -> Stored:
        """Return what `table.weight` holds."""
        rows = sum(n for t, n in enumerate(cardinalities) if t not in compressed)
        return Stored((rows, dim), "rows")

    def forward(self, ids: Tensor, embedded: Tensor) -> Tensor:
        """Join with the compressed features [batch, compressed, dim], in order of feature."""
        if not self.features:
            return embedded
        whole = self.table(ids[:, self.columns] + self.offsets)
        return _InOrder.apply(whole, embedded, self.order, self.columns, self.compressed)

    def materialize(self, feature: int) -> Tensor:
        """Return the table of a feature that is kept whole."""
        return self.table.weight.split(self.rows)[self.features.index(feature)]


class _InOrder(torch.autograd.Function):
    """Joins two parts, their columns in order; the way back that autograd finds by itself takes four times as long."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, order: Tensor, *columns: Tensor) -> Tensor:
        ctx.columns = columns
        return torch.cat([one, other], 1).index_select(1, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient.index_select(1, part) for part in ctx.columns), None, None, None
