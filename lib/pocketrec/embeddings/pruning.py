"""Magnitude pruning: train the full table, let go of its small elements step by step, serve what is left.

    e(t, x) = E_t[x] * (|E_t[x]| > cutoff)
    bytes = 6 k + b (ceil(N / floor(2^16 / dim)) + 1),   k elements kept of N dim, N = sum_t n_t

They are served as compressed sparse rows, each of which holds floor(2^16 / dim) rows of the stacked tables, so that
a column fits in two bytes: k values (4), k columns (2) and where each row begins (b = 4; 8 from 2^31 elements).
k is a hard cap that fills the budget; where fewer are left the rest is padding.

Deng et al., "DeepLight: Deep Lightweight Feature Interactions for Accelerating CTR Predictions in Ad Serving", WSDM
2021, with the cubic schedule of Zhu & Gupta, "To prune, or not to prune", 2017: `prunings` times, evenly spaced
over the first `until` of the training, all but the largest elements of all tables together are set to zero, down
to k. A zero receives no gradient and stays one, so that no mask is kept; training is as large as the full table.
What is evaluated or deployed before the schedule's end is cut to the k largest.
"""

from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketrec.embeddings.base import (
    FLOAT_BYTES,
    Embedding,
    Infeasible,
    generator,
    megabytes,
    offsets,
    tensor_bytes,
    uniform_,
)
from pocketrec.embeddings.stores import Array, Rows, Stored

SPAN = 1 << 16  # elements that a column of two bytes tells apart


class Pruning(Embedding):
    """The full table in training, its `keep` largest elements at inference."""

    name = "pruning"
    paper = "ICLR 2021"
    knobs = {"until": 0.8, "prunings": 20}

    @classmethod
    def solve(
        cls, cardinalities: Sequence[int], dim: int, budget_bytes: float, *, until: float = 0.8, prunings: int = 20
    ) -> dict[str, Any]:
        """Fill what the row pointers leave of the budget."""
        pointers = _blocks(cardinalities, dim) + 1
        left = int(budget_bytes) - FLOAT_BYTES * pointers
        keep = left // (FLOAT_BYTES + 2)
        if keep >= 1 << 31:
            keep = (left - 4 * pointers) // (FLOAT_BYTES + 2)
        if keep < 1:
            raise Infeasible(
                f"pruning keeps {megabytes(FLOAT_BYTES * pointers)} of row pointers and at least one element, "
                f"more than a {megabytes(budget_bytes)} budget"
            )
        return {"keep": min(keep, dim * sum(cardinalities)), "until": until, "prunings": prunings}

    @classmethod
    def stored(cls, cardinalities: Sequence[int], dim: int, *, keep: int, **_: Any) -> dict[str, Stored]:
        return {
            "values.weight": Stored((keep,), "array"),
            "columns": Stored((keep,), "fixed", 2),
            "pointers": Stored((_blocks(cardinalities, dim) + 1,), "fixed", 4 if keep < 1 << 31 else 8),
        }

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        *,
        seed: int,
        keep: int,
        until: float = 0.8,
        prunings: int = 20,
    ) -> None:
        super().__init__(cardinalities, dim, seed, keep=keep, until=until, prunings=prunings)
        self.constant("starts", offsets(self.cardinalities))
        self.constant("column", torch.arange(dim))
        self.table = Rows(sum(self.cardinalities), dim)
        self.served = False
        self._cut: tuple[Any, float] = (None, 0.0)
        draw = generator(seed)
        for table in self.table.weight.data.split(self.cardinalities):
            uniform_(table, len(table) ** -0.5, draw)

    def lookup(self, ids: Tensor) -> Tensor:
        if self.served:
            return self._read(ids + self.starts)
        rows = self.table(ids + self.starts)
        return rows * (rows.detach().abs() > (0 if self.training else self._cutoff()))

    def _read(self, row: Tensor) -> Tensor:
        """Read rows [batch, features] of the stacked tables from the sparse form -> [batch, features, dim]."""
        per_block, last = SPAN // self.dim, self.config["keep"] - 1
        first = (row % per_block * self.dim).unsqueeze(-1)  # column of the row's first element
        low, end = (self.pointers[row // per_block + i].long().unsqueeze(-1) for i in (0, 1))
        high = end
        for _ in range(SPAN.bit_length()):  # find where columns reach `first`
            middle = (low + high) // 2
            less = (low < high) & (self._columns(middle.clamp(max=last)) < first)
            low, high = torch.where(less, middle + 1, low), torch.where(less, high, middle)
        place = low + self.column
        column = self._columns(place.clamp(max=last)) - first
        inside = (place < end) & (column < self.dim)
        values = self.values(place.clamp(max=last)) * inside
        return torch.zeros_like(values).scatter_add(-1, column * inside, values)

    def _columns(self, place: Tensor) -> Tensor:
        """Read columns as int64; int16 holds 0 to 65535 by its bits."""
        return self.columns[place].long() & (SPAN - 1)

    def _cutoff(self) -> float:
        """Return the magnitude above which at most `keep` elements lie, found anew when the table has changed."""
        weight = self.table.weight
        state = weight.data_ptr(), weight._version
        if self._cut[0] != state:
            self._cut = state, cutoff(weight.detach(), self.config["keep"])
        return self._cut[1]

    @torch.no_grad()
    def adapt(self, step: int, total: int, optimizer: torch.optim.Optimizer) -> None:
        prunings, weight = self.config["prunings"], self.table.weight
        end = max(1, self.config["until"] * total)
        done, before = (min(prunings, int(s / end * prunings)) for s in (step, step - 1))
        if done > before:
            keep = self.config["keep"]
            keep += int((weight.numel() - keep) * (1 - done / prunings) ** 3)
            weight *= weight.abs() > cutoff(weight, keep)

    @torch.no_grad()
    def folded(self) -> Embedding:
        if self.served:
            return deepcopy(self)
        keep, weight = self.config["keep"], self.table.weight
        per_block = SPAN // self.dim
        row, column = (weight.abs() > self._cutoff()).nonzero()[:keep].unbind(1)
        count = torch.bincount(row // per_block, minlength=_blocks(self.cardinalities, self.dim))
        served = copy(self)
        served.served, served._modules, served._buffers = True, {}, dict(self._buffers)
        served.values = Array(keep)
        served.values.weight = nn.Parameter(weight.new_zeros(keep))
        served.values.weight[: len(row)] = weight[row, column]
        columns = torch.zeros(keep, dtype=torch.int16, device=weight.device)
        columns[: len(row)] = (row % per_block * self.dim + column).to(torch.int16)
        served.register_buffer("columns", columns)
        pointers = F.pad(count.cumsum(0), (1, 0))
        served.register_buffer("pointers", pointers.int() if keep < 1 << 31 else pointers)
        return served

    def inference_tensors(self) -> dict[str, int]:
        if self.served:
            return tensor_bytes(self)
        return {name: s.bytes() for name, s in self.stored(self.cardinalities, self.dim, **self.config).items()}

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        start = sum(self.cardinalities[:feature])
        if not self.served:
            table = self.table.weight[start : start + self.cardinalities[feature]][rows]
            return table if self.training else torch.where(table.abs() > self._cutoff(), table, 0)
        per_block = SPAN // self.dim
        values = self.values(torch.arange(self.config["keep"], device=self.column.device))
        elements, pointers = {}, self.pointers.tolist()
        columns = [c % SPAN for c in self.columns.tolist()]
        for block in range(len(pointers) - 1):
            for i in range(pointers[block], pointers[block + 1]):
                elements[block * per_block + columns[i] // self.dim, columns[i] % self.dim] = i
        table = values.new_zeros(len(self.feature_rows(feature, rows)), self.dim)
        for row, x in enumerate(self.feature_rows(feature, rows).tolist()):
            for column in range(self.dim):
                if (start + x, column) in elements:
                    table[row, column] = values[elements[start + x, column]]
        return table


def cutoff(weight: Tensor, keep: int) -> float:
    """Return a magnitude that at most `keep` elements exceed: 0 if no more are non-zero, else the next one's."""
    if int(weight.count_nonzero()) <= keep:
        return 0.0
    return weight.abs().flatten().kthvalue(weight.numel() - keep).values.item()


def _blocks(cardinalities: Sequence[int], dim: int) -> int:
    """Return the number of compressed rows."""
    return -(-sum(cardinalities) // (SPAN // dim))
