"""Compositional embeddings: an id is written as k digits, and its row is composed of one row a digit.

    e(t, x) = W_1[x div c^(k-1)] * W_2[(x div c^(k-2)) mod c] * ... * W_k[x mod c],   c = c_t,
    or + or concatenation in place of *
    bytes = 4 w sum_t (ceil(n_t / c^(k-1)) + (k-1) c),   w = dim, or dim / k with `operation: concat`

`partition: remainders` is the paper's other partition (its Chinese remainders): the digits are x mod m_1 ... x mod
m_k for k numbers m without a common divisor, all near m_1 = c_t, whose product is at least n_t. Every factor then has
as many rows as the budget allows, where quotients have few rows whenever there is room for many remainders.

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

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial, reduce
from math import gcd, inf, prod, sqrt
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

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        parts: int = 2,
        operation: str = "multiply",
        partition: str = "digits",
        threshold: int = 200,
        init: str = "one",
    ) -> dict[str, Any]:
        """Share rows out, take for each table the base with the most rows in its share, and spend what is left."""
        width = _width(dim, parts, operation)

        def cost(n: int, base: int) -> float:  # in floats
            rows = _factors(n, base, parts, partition)
            return n * dim if base == 1 else sum(rows) * width if prod(rows) >= n else inf

        def best_base(n: int, floats: float) -> int:
            least = _least_base(n, parts, partition)
            bases = range(2, least + 1) if partition == "digits" else range(n, least - 1, -1)  # ever fewer rows
            if n * dim <= floats or not bases or cost(n, least) >= n * dim:
                return 1
            fits = bisect_left(bases, True, key=lambda base: cost(n, base) <= floats)
            return bases[min(fits, len(bases) - 1)]

        budget = int(budget_bytes) // FLOAT_BYTES
        rows = share_out(cardinalities, budget, threshold, lambda n, rows: cost(n, best_base(n, rows * dim)))
        if rows is None:
            least = FLOAT_BYTES * sum(cost(n, best_base(n, dim)) for n in cardinalities)
            raise Infeasible(
                f"quotient_remainder in {parts} parts takes at least {megabytes(least)} of a "
                f"{megabytes(budget_bytes)} budget, about {parts} n^(1/{parts}) rows a table; more parts take less"
            )
        bases = [best_base(n, share * dim) for n, share in zip(cardinalities, rows, strict=True)]
        left = budget - sum(map(cost, cardinalities, bases))
        for t in sorted(range(len(bases)), key=cardinalities.__getitem__):
            taken = cost(cardinalities[t], bases[t])
            bases[t] = best_base(cardinalities[t], taken + left)
            left -= cost(cardinalities[t], bases[t]) - taken
        return {"bases": bases, "parts": parts, "operation": operation, "partition": partition, "init": init}

    @classmethod
    def stored(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        *,
        bases: Sequence[int],
        parts: int,
        operation: str,
        partition: str,
        init: str,
    ) -> dict[str, Stored]:
        composed = _composed(bases)
        rows = sum(sum(_factors(cardinalities[t], bases[t], parts, partition)) for t in composed)
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
        partition: str,
        init: str,
    ) -> None:
        if operation not in OPERATIONS or init not in ("one", "published", "symmetric"):
            raise ValueError(
                f"quotient_remainder: operation must be one of {list(OPERATIONS)} and init 'one', 'published' or "
                f"'symmetric', got {operation!r} and {init!r}"
            )
        config = {"parts": parts, "operation": operation, "partition": partition, "init": init}
        super().__init__(cardinalities, dim, seed, bases=list(bases), **config)
        self.composed = _composed(bases)
        self.whole = WholeTables(self.cardinalities, self.composed, dim, generator(seed))
        digits = [_factors(self.cardinalities[t], bases[t], parts, partition) for t in self.composed]
        if partition == "digits":
            powers = [[bases[t] ** (parts - 1 - j) for j in range(parts)] for t in self.composed]
        else:
            powers = [[1] * parts for _ in self.composed]
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
        bases, parts, partition = (self.config[name] for name in ("bases", "parts", "partition"))
        if bases[feature] == 1:
            return self.whole.materialize(feature)[rows]
        sizes = [_factors(self.cardinalities[t], bases[t], parts, partition) for t in self.composed if t <= feature]
        end = sum(map(sum, sizes))
        left, factors = self.feature_rows(feature, rows).tolist(), []
        for size in reversed(sizes[-1]):  # the last digit first, as one converts a number by hand
            end -= size
            factors.append([end + x % size for x in left])
            if partition == "digits":
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


def _factors(n: int, base: int, parts: int, partition: str) -> list[int]:
    """Rows of each factor: the quotient first, or numbers from `base` down that share no divisor."""
    if partition == "digits":
        return [-(-n // base ** (parts - 1)), *[base] * (parts - 1)]
    if partition != "remainders":
        raise ValueError(f"quotient_remainder: partition must be 'digits' or 'remainders', got {partition!r}")
    found = [base]
    while len(found) < parts:
        below = range(max(found[-1] - 1, 1), 0, -1)
        found.append(next(m for m in below if all(gcd(m, other) == 1 for other in found)))
    return found


def _least_base(n: int, parts: int, partition: str) -> int:
    """Return the base that takes the fewest rows, about parts n^(1/parts)."""
    base = max(2, round(n ** (1 / parts)))
    if partition == "remainders":
        while prod(_factors(n, base, parts, partition)) < n:
            base += 1
    return base


def _width(dim: int, parts: int, operation: str) -> int:
    if parts < 2 or (operation == "concat" and dim % parts):
        raise ValueError(f"quotient_remainder: parts must be at least 2, and divide dim to concatenate; got {parts}")
    return dim // parts if operation == "concat" else dim
