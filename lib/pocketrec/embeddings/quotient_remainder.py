"""Compositional embeddings: an id is written as k digits, and its row is composed of one row a digit.

    e(t, x) = W_1[x div c^(k-1)] * W_2[(x div c^(k-2)) mod c] * ... * W_k[x mod c],   c = c_t,
    or + or concatenation in place of *
    bytes = 4 w sum_t (ceil(n_t / c^(k-1)) + (k-1) c),   w = dim, or dim / k with `operation: concat`

Shi, Mudigere, Naumov & Yang, "Compositional Embeddings Using Complementary Partitions for Memory-Efficient
Recommendation Systems", KDD 2020. k = `parts` = 2 is the quotient-remainder trick with c collisions; no two ids
have all digits in common. The rows of a table fall no lower than about k n^(1/k) (c = n^(1/k)), hence a largest
ratio of about sqrt(n) / 2 for k = 2. A table that would not gain is kept whole, and so are tables of up to
`threshold` rows (200 in DLRM's public code) where the budget allows; what is left goes to the smallest tables.

`init: published` is that code's U(1/sqrt(n), 1) for every factor: the square root is the lower bound and 1 the
upper one, so that all numbers start positive and a product of two has a mean of 1/4 or more. `symmetric` is
U(-1/sqrt(n), 1/sqrt(n)) for every factor, whose product starts near 1/n. `one` draws
the first factor so and the others around 1, U(0.9, 1.1), where they multiply: nearly a hashed table to start, at
the scale of a full one. On Book-Crossing it is the best of the three at 100x (AUC 0.775, 0.771 symmetric, 0.768
published).
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from pocketrec.embeddings.base import (
    FLOAT_BYTES,
    Embedding,
    Infeasible,
    generator,
    megabytes,
    share_out,
    uniform_,
)
from pocketrec.embeddings.stores import Rows, Stored
from pocketrec.embeddings.whole_tables import WholeTables


class QuotientRemainder(Embedding):
    """Rows composed of `parts` digits of the id: multiplied, added or concatenated."""

    name = "quotient_remainder"
    paper = "KDD 2020"
    knobs = {"parts": 2, "operation": "multiply", "threshold": 200, "init": "one"}

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        parts: int = 2,
        operation: str = "multiply",
        threshold: int = 200,
        init: str = "one",
    ) -> dict[str, Any]:
        """Share rows out, take for each table the smallest base that fits its share, and spend what is left."""
        width = _width(dim, parts, operation)

        def cost(n: int, base: int) -> int:  # in floats
            return n * dim if base == 1 else sum(_digits(n, base, parts)) * width

        def smallest_base(n: int, floats: float) -> int:
            low, high = 1, max(2, round(n ** (1 / parts)))  # the cost falls that far
            if cost(n, high) >= n * dim:
                return 1
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if cost(n, middle) <= floats else (middle + 1, high)
            return low

        budget = int(budget_bytes) // FLOAT_BYTES
        rows = share_out(cardinalities, budget, threshold, lambda n, rows: cost(n, smallest_base(n, rows * dim)))
        if rows is None:
            least = FLOAT_BYTES * sum(cost(n, smallest_base(n, dim)) for n in cardinalities)
            raise Infeasible(
                f"quotient_remainder in {parts} parts takes at least {megabytes(least)} of a "
                f"{megabytes(budget_bytes)} budget, about {parts} n^(1/{parts}) rows a table; more parts take less"
            )
        bases = [smallest_base(n, share * dim) for n, share in zip(cardinalities, rows, strict=True)]
        left = budget - sum(map(cost, cardinalities, bases))
        for t in sorted(range(len(bases)), key=cardinalities.__getitem__):
            taken = cost(cardinalities[t], bases[t])
            bases[t] = smallest_base(cardinalities[t], taken + left)
            left -= cost(cardinalities[t], bases[t]) - taken
        return {"bases": bases, "parts": parts, "operation": operation, "init": init}

    @classmethod
    def stored(
        cls, cardinalities: Sequence[int], dim: int, *, bases: Sequence[int], parts: int, operation: str, init: str
    ) -> dict[str, Stored]:
        composed = _composed(bases)
        rows = sum(sum(_digits(cardinalities[t], bases[t], parts)) for t in composed)
        return {
            "whole.table.weight": WholeTables.stored(cardinalities, composed, dim),
            "factors.weight": Stored((rows, _width(dim, parts, operation)), "rows"),
        }

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        *,
        seed: int,
        bases: Sequence[int],
        parts: int,
        operation: str,
        init: str,
    ) -> None:
        if operation not in OPERATIONS or init not in ("one", "published", "symmetric"):
            raise ValueError(
                f"quotient_remainder: operation must be one of {list(OPERATIONS)} and init 'one', 'published' or "
                f"'symmetric', got {operation!r} and {init!r}"
            )
        config = {"bases": list(bases), "parts": parts, "operation": operation, "init": init}
        super().__init__(cardinalities, dim, seed, **config)
        self.composed = _composed(bases)
        self.whole = WholeTables(self.cardinalities, self.composed, dim, generator(seed))
        digits = [_digits(self.cardinalities[t], bases[t], parts) for t in self.composed]
        powers = [[bases[t] ** (parts - 1 - j) for j in range(parts)] for t in self.composed]
        sizes = [size for table in digits for size in table]
        self.factors = Rows(sum(sizes), _width(dim, parts, operation))
        self.constant("composed_at", torch.tensor(self.composed, dtype=torch.long))
        # [composed, parts] each
        self.constant("digits", torch.tensor(digits, dtype=torch.long).view(-1, parts))
        self.constant("powers", torch.tensor(powers, dtype=torch.long).view(-1, parts))
        self.constant("factor_offsets", (self.digits.flatten().cumsum(0) - self.digits.flatten()).view(-1, parts))
        self._draw(sizes, generator(seed, 1))

    def _draw(self, sizes: Sequence[int], draw: torch.Generator) -> None:
        parts, operation, init = (self.config[name] for name in ("parts", "operation", "init"))
        for place, table in enumerate(self.factors.weight.data.split(sizes) if sizes else ()):
            bound = 1 / sqrt(self.cardinalities[self.composed[place // parts]])
            if init == "published":
                uniform_(table, (1 - bound) / 2, draw).add_((1 + bound) / 2)
            elif init == "one" and operation == "multiply" and place % parts:
                uniform_(table, 0.1, draw).add_(1)
            else:
                uniform_(table, bound, draw)

    def lookup(self, ids: Tensor) -> Tensor:
        x = ids.index_select(1, self.composed_at).unsqueeze(-1)  # [batch, composed, 1]
        digits = x // self.powers % self.digits  # [batch, composed, parts]
        factors = self.factors(digits + self.factor_offsets).unbind(2)
        return self.whole(ids, OPERATIONS[self.config["operation"]](factors))

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        n, base, parts = self.cardinalities[feature], self.config["bases"][feature], self.config["parts"]
        if base == 1:
            return self.whole.materialize(feature)[rows]
        upto = [t for t in self.composed if t <= feature]
        end = sum(sum(_digits(self.cardinalities[t], self.config["bases"][t], parts)) for t in upto)
        left, factors = self.feature_rows(feature, rows).tolist(), []
        for size in reversed(_digits(n, base, parts)):  # the last digit first, as one converts a number by hand
            end -= size
            factors.append([end + x % size for x in left])
            left = [x // size for x in left]
        return OPERATIONS[self.config["operation"]]([self.factors.weight[slots] for slots in reversed(factors)])


OPERATIONS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "multiply": partial(reduce, torch.mul),
    "add": partial(reduce, torch.add),
    "concat": partial(torch.cat, dim=-1),
}


def _composed(bases: Sequence[int]) -> list[int]:
    """Features that are not kept whole."""
    return [t for t, base in enumerate(bases) if base > 1]


def _digits(n: int, base: int, parts: int) -> list[int]:
    """Rows of each factor, the quotient first."""
    return [-(-n // base ** (parts - 1)), *[base] * (parts - 1)]


def _width(dim: int, parts: int, operation: str) -> int:
    if parts < 2 or (operation == "concat" and dim % parts):
        raise ValueError(f"quotient_remainder: parts must be at least 2, and divide dim to concatenate; got {parts}")
    return dim // parts if operation == "concat" else dim
