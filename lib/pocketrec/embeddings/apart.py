"""Tables apart: every table is an instance of a method by itself, within an equal share of the bytes.

    e(t, x) = e_t(0, x),   bytes = sum_t bytes_t

No method but a way to use any: most share one budget out by the number of rows, or keep one array for all tables, and
so a table of few ids that tell much, the films beside the users, gets little. From the smallest table to the largest,
each may take an equal part of what is left: what one does not need is shared by all that are larger. Where the parts
differ in width, as those of `mlet` do, the narrower ones end in zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketrec import embeddings
from pocketrec.embeddings.base import Embedding, Infeasible
from pocketrec.embeddings.stores import Stored


class Apart(Embedding):
    """One instance of the method `of` a table; `parts` holds the config of each."""

    name = "apart"

    @classmethod
    def solve(
        cls, cardinalities: Sequence[int], dim: int, budget_bytes: float, *, of: str, **knobs: Any
    ) -> dict[str, Any]:
        """Solve for one table after the other; what is infeasible for one of them is for all."""
        kind, left = embeddings.METHODS[of], budget_bytes
        parts: list[dict[str, Any]] = [{}] * len(cardinalities)
        for done, t in enumerate(sorted(range(len(parts)), key=cardinalities.__getitem__)):
            n, share = cardinalities[t], left / (len(parts) - done)
            try:
                parts[t] = kind.solve([n], dim, share, **knobs)
            except Infeasible as reason:
                raise Infeasible(f"table {t} of {n:,} rows, apart from the others: {reason}") from None
            left -= sum(stored.bytes() for stored in kind.stored([n], dim, **parts[t]).values())
        return {"of": of, "parts": parts}

    @classmethod
    def stored(
        cls, cardinalities: Sequence[int], dim: int, *, of: str, parts: Sequence[dict[str, Any]]
    ) -> dict[str, Stored]:
        kind = embeddings.METHODS[of]
        return {
            f"parts.{t}.{name}": stored
            for t, (n, config) in enumerate(zip(cardinalities, parts, strict=True))
            for name, stored in kind.stored([n], dim, **config).items()
        }

    def __init__(
        self, cardinalities: Sequence[int], dim: int, *, seed: int, of: str, parts: Sequence[dict[str, Any]]
    ) -> None:
        super().__init__(cardinalities, dim, seed, of=of, parts=list(parts))
        kind, tables = embeddings.METHODS[of], enumerate(zip(self.cardinalities, parts, strict=True))
        own_seed = seed * len(parts)  # no two tables of any two seeds share one
        self.parts = nn.ModuleList(kind([n], dim, seed=own_seed + t, **config) for t, (n, config) in tables)
        self.out_dim = max(part.out_dim for part in self.parts)
        self.keeps_zeros = kind.keeps_zeros

    def lookup(self, ids: Tensor) -> Tensor:
        columns = ids.T.contiguous().unsqueeze(-1)  # [features, batch, 1]
        return torch.cat([self._widened(p.lookup(column)) for p, column in zip(self.parts, columns, strict=True)], 1)

    def _widened(self, rows: Tensor) -> Tensor:
        return rows if rows.shape[-1] == self.out_dim else F.pad(rows, (0, self.out_dim - rows.shape[-1]))

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        return self._widened(self.parts[feature].materialize(0, rows))

    def inference_tensors(self) -> dict[str, int]:
        parts = enumerate(part.inference_tensors() for part in self.parts)
        return {f"parts.{t}.{name}": count for t, part in parts for name, count in part.items()}

    def folded(self) -> Apart:
        return deepcopy(self, {id(self.parts): nn.ModuleList(part.folded() for part in self.parts)})

    def adapt(self, step: int, total: int, optimizer: torch.optim.Optimizer) -> None:
        for part in self.parts:
            part.adapt(step, total, optimizer)
