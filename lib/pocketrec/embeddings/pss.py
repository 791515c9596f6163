"""PSS: every number of every table is some number of a small array, signed by chance; the map is the method.

    e(t, x)_i = g(t, x, i) M_t[phi(t, x, i)],   g = +1/-1 by a hash, or 1 without `sign`
    phi(t, x, i) = (h(t, x, i div Z) + i mod Z) mod |M_t|,   Z = 1, 32 or dim (`mapping: element | block | row`)
    bytes = 4 |M|  with M_t = M for all tables (`scope: one array`), or 4 sum_t |M_t|  (`scope: per table`)

Desai & Shrivastava, "The trade-offs of model size in large recommendation models: a 10000x compressed criteo-tb
DLRM model (100 GB parameters to mere 10 MB)", NeurIPS 2022. The default, single elements with signs, is a random
projection of the stacked tables, and `projection_rows` says how much memory one needs. The published 10 MB model is
`mapping: block, sign: false`: ROBE-32 with 2.7 million floats, by the chunk size of its released weights. Arrays of
their own get the hashing trick's rows, and one with room for a whole table keeps it as it is, which a hash does not
even at ratio 1 (63 % of the slots used).
"""

from collections.abc import Sequence
from math import ceil, log, sqrt
from typing import Any

import torch

from pocketrec.embeddings.base import FLOAT_BYTES, Infeasible, generator, megabytes, share_out, uniform_
from pocketrec.embeddings.robe import Robe, largest_divisor
from pocketrec.embeddings.stores import Stored


class Pss(Robe):
    """One array, or one a table, read through a hashed map of elements, blocks or rows."""

    name = "pss"
    paper = "NeurIPS 2022"

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        mapping: str = "element",
        scope: str = "one array",
        sign: bool = True,
        threshold: int = 200,
        init_scale: float | None = None,
    ) -> dict[str, Any]:
        """The budget is the array, or is shared out among the tables; `threshold` as in hashing, per table only."""
        widths = {"element": 1, "block": largest_divisor(dim, 32), "row": dim}
        if mapping not in widths or scope not in ("one array", "per table"):
            raise ValueError(
                f"pss: mapping must be one of {list(widths)} and scope 'one array' or 'per table', "
                f"got {mapping!r} and {scope!r}"
            )
        block_size, budget = widths[mapping], int(budget_bytes) // FLOAT_BYTES
        if scope == "one array":
            sizes = [min(budget, dim * sum(cardinalities))]
        else:
            sizes = [dim * rows for rows in share_out(cardinalities, budget // dim, threshold) or [0]]
        if min(sizes) < block_size:
            least = f"a block of {block_size} floats" if scope == "one array" else "a row for every table"
            raise Infeasible(f"a {megabytes(budget_bytes)} budget does not hold {least}")
        return {"sizes": sizes, "block_size": block_size, "scope": scope, "sign": sign, "init_scale": init_scale}

    @classmethod
    def stored(cls, cardinalities: Sequence[int], dim: int, *, sizes: Sequence[int], **_: Any) -> dict[str, Stored]:
        return super().stored(cardinalities, dim, size=sum(sizes))

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        *,
        seed: int,
        sizes: Sequence[int],
        block_size: int,
        scope: str = "one array",
        sign: bool = True,
        init_scale: float | None = None,
    ) -> None:
        if len(sizes) != (1 if scope == "one array" else len(cardinalities)):
            raise ValueError(f"pss: scope {scope!r} goes with another number of arrays than {len(sizes)}")
        super().__init__(
            cardinalities, dim, seed=seed, size=sum(sizes), block_size=block_size, sign=sign, init_scale=init_scale
        )
        self.config = {
            "sizes": list(sizes),
            "block_size": block_size,
            "scope": scope,
            "sign": sign,
            "init_scale": init_scale,
        }
        self.per_table = scope == "per table"
        whole = torch.tensor(sizes).eq(self.limits * dim)  # tables that keep a place for every id
        self._windows(sizes, own=whole if self.per_table else None)
        if self.per_table:
            draw = generator(seed)
            for part, n in zip(self.array.weight.data.split(self.sizes), self.cardinalities, strict=True):
                uniform_(part, 1 / sqrt(n) if init_scale is None else init_scale, draw)

    def _start(self, feature: int, x: int, piece: int) -> int:
        if self.per_table and self.sizes[feature] == self.cardinalities[feature] * self.dim:
            return x * self.dim + piece * self.block_size
        return super()._start(feature, x, piece)


def projection_rows(rows: int, dim: int, epsilon: float, failure: float = 0.01) -> int:
    """Return how many rows m of `dim` floats approximate a table of `rows` rows: memory for (1 +- epsilon).

    With R [m, rows] of independent signs +-1/sqrt(m), keep A = R E [m, dim] in place of E [rows, dim] and read
    E[x, j] as <R 1_x, A_j>. With probability 1 - failure every element of E is then right to epsilon times the
    norm of its column, and every column's squared norm to a factor of 1 +- epsilon, once

        m >= ln(4 rows dim / failure) / (epsilon^2 / 4 - epsilon^3 / 6)

    The memory, 4 dim m bytes, grows with 1 / epsilon^2 and only with the logarithm of the rows.

    Derived here, not read: the paper's abstract claims "upper bounds on the learnable memory requirements" for
    (1 +- epsilon) and "exponentially fewer parameters"; its theorem, constants and notion of approximation were
    not seen. The derivation: Achlioptas, "Database-friendly random projections", 2003, bounds either tail of the
    squared norm of a projected unit vector by exp(-m (epsilon^2 / 4 - epsilon^3 / 6)); the inner product of two
    unit vectors u, v is ((u + v)^2 - (u - v)^2) / 4, four tails with an error of at most epsilon; the union is
    over all (x, j).

    What it does not say: the error is relative to a column, so a row much smaller than its column is lost; R is
    dense here, while sharing has one sign a number, where the error has the same variance, at most 2 / m for
    unit vectors (Weinberger et al., 2009), but a logarithmic dependence on `failure` only for vectors without
    dominant entries; and it is about projecting a table that exists, not about training the array.

    Raises:
        ValueError: unless 0 < epsilon < 1 and 0 < failure < 1.
    """
    if not (0 < epsilon < 1 and 0 < failure < 1):
        raise ValueError(f"epsilon and failure must lie between 0 and 1, got {epsilon} and {failure}")
    return ceil(log(4 * rows * dim / failure) / (epsilon**2 / 4 - epsilon**3 / 6))
