"""Hash embeddings: a row is a sum of k rows found by k hashes, each times a trained weight of the id.

    e(t, x) = sum_j p_t[g_t(x)]_j B_t[h_tj(x)],   B_t in R^{m_t x dim},   p_t in R^{K_t x k}
    bytes = 4 sum_t (m_t dim + K_t k),  K_t = min(n_t, `weights` m_t);  4 n_t dim for a table kept whole

Svenstrup, Hansen & Winther, "Hash Embeddings for Efficient Word Representations", NeurIPS 2017. g_t is the id
itself where K_t = n_t (`weights: null`: always, which bounds the ratio by dim / k) and a hash elsewhere; here it is
independent of the h_j, so that ids which share their weights still differ. The paper advises K > 10 m, for word
vectors of hundreds of dimensions: at dim 16 that would be most of the budget. A public reimplementation starts
B at N(0, 0.1^2) and p at N(0, 0.0005^2); here p starts at 0.1 and B as a full table would: a small p is set early
for each id by Adagrad, whose first steps are as large for any gradient. Rows are shared out as in the hashing trick; a
table that would gain nothing is kept whole.
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
    share_out,
)
from pocketrec.embeddings.stores import Narrow, Rows, Stored
from pocketrec.embeddings.whole_tables import WholeTables
from pocketrec.kernels import universal_hash

IMPORTANCE = 0.1  # at which all weights start


class HashEmbeddings(Embedding):
    """Weighed sums of `hashes` rows, the weights learned, an id's own or hashed."""

    name = "hash_embeddings"
    paper = "NIPS 2017"

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        hashes: int = 2,
        weights: int | None = 4,
        threshold: int = 200,
    ) -> dict[str, Any]:
        """Share the rows out, each with its weights; a table that would take as much as itself is kept whole."""
        if hashes < 1 or (weights is not None and weights < 1):
            raise ValueError(
                "hash_embeddings: hashes and weights must be at least 1, or weights None for an id's own; "
                f"got {hashes} and {weights}"
            )

        def kept(n: int, rows: int) -> int:
            return n if weights is None else min(n, weights * rows)

        def cost(n: int, rows: int) -> int:  # in floats
            return min(n * dim, rows * dim + kept(n, rows) * hashes)

        rows = share_out(cardinalities, int(budget_bytes) // FLOAT_BYTES, threshold, cost)
        if rows is None:
            least = FLOAT_BYTES * sum(cost(n, 1) for n in cardinalities)
            raise Infeasible(
                f"hash_embeddings with a single row a table and its weights takes {megabytes(least)} of a "
                f"{megabytes(budget_bytes)} budget"
            )
        rows = [n if cost(n, m) == n * dim else m for n, m in zip(cardinalities, rows, strict=True)]
        return {"rows": rows, "weight_rows": list(map(kept, cardinalities, rows)), "hashes": hashes}

    @classmethod
    def stored(
        cls, cardinalities: Sequence[int], dim: int, *, rows: Sequence[int], weight_rows: Sequence[int], hashes: int
    ) -> dict[str, Stored]:
        hashed = _hashed(cardinalities, rows)
        return {
            "whole.table.weight": WholeTables.stored(cardinalities, hashed, dim),
            "table.weight": Stored((sum(rows[t] for t in hashed), dim), "rows"),
            "importance.weight": Stored((sum(weight_rows[t] for t in hashed), hashes), "array"),
        }

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        *,
        seed: int,
        rows: Sequence[int],
        weight_rows: Sequence[int],
        hashes: int,
    ) -> None:
        super().__init__(cardinalities, dim, seed, rows=list(rows), weight_rows=list(weight_rows), hashes=hashes)
        self.hashed = _hashed(self.cardinalities, rows)
        self.whole = WholeTables(self.cardinalities, self.hashed, dim, generator(seed))
        # one modulus a hash: the rows for each of the k, then the weights; [hashed, k + 1]
        sizes = torch.tensor([[rows[t]] * hashes + [weight_rows[t]] for t in self.hashed], dtype=torch.long)
        sizes = sizes.view(-1, hashes + 1)
        self.constant("sizes", sizes)
        self.constant("starts", sizes.cumsum(0) - sizes)
        self.constant("hashed_at", torch.tensor(self.hashed, dtype=torch.long))
        self.constant("own", sizes[:, -1] == self.limits[self.hashed_at])
        self.constant("coefficients", universal_hash.coefficients(generator(seed, 1), 2, *sizes.shape))
        self.table = Rows(sum(rows[t] for t in self.hashed), dim)
        self.importance = Narrow(sum(weight_rows[t] for t in self.hashed), hashes)
        self.importance.weight.data.fill_(IMPORTANCE)
        of_hashed = [rows[t] for t in self.hashed], [self.cardinalities[t] for t in self.hashed]
        draw_tables(self.table.weight, *of_hashed, generator(seed, 2))

    def lookup(self, ids: Tensor) -> Tensor:
        x = ids.index_select(1, self.hashed_at)  # [batch, hashed]
        slots = universal_hash.slots(x, *self.coefficients, self.sizes)  # [batch, hashed, k + 1]
        rows = self.table(slots[..., :-1] + self.starts[:, :-1])  # [batch, hashed, k, dim]
        weights = self.importance(torch.where(self.own, x, slots[..., -1]) + self.starts[:, -1])
        return self.whole(ids, (weights.unsqueeze(-1) * rows).sum(2))

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        if feature not in self.hashed:
            return self.whole.materialize(feature)[rows]
        size, kept = self.config["rows"][feature], self.config["weight_rows"][feature]
        place, ids = self.hashed.index(feature), self.feature_rows(feature, rows).tolist()
        start = sum(self.config["rows"][t] for t in self.hashed[:place])
        at = sum(self.config["weight_rows"][t] for t in self.hashed[:place])
        table = self.table.weight[start : start + size]
        *pairs, (a, b) = self.coefficients[:, place].T.tolist()
        own = kept == self.cardinalities[feature]
        weights = self.importance.weight[[at + (x if own else (a * x + b) % universal_hash.P % kept) for x in ids]]
        parts = [table[[(c * x + d) % universal_hash.P % size for x in ids]] for c, d in pairs]
        return sum(weights[:, j : j + 1] * part for j, part in enumerate(parts))


def _hashed(cardinalities: Sequence[int], rows: Sequence[int]) -> list[int]:
    """Features that are not kept whole."""
    return [t for t, n in enumerate(cardinalities) if rows[t] < n]
