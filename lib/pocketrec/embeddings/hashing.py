"""The hashing trick: each table keeps a share of its rows, and ids that collide share a row.

    e(t, x) = E_t[h_t(x)],   E_t in R^{m_t x dim},   m_t = max(min(n_t, threshold), floor(share n_t))
    bytes = 4 dim sum_t m_t

Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009. Tables of up to `threshold`
rows are kept whole (DLRM's public code: 200) and larger ones get at least as many: at high ratios a small
table hashed in proportion would lose most of what it knows. Where the threshold alone would claim over half of
the budget it is halved until it does not (`base.share_out`). `hash: modulo` takes x mod m_t, which mixes early,
frequent ids with late, rare ones when ids are in order of first appearance.
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
from pocketrec.embeddings.stores import Rows, Stored
from pocketrec.kernels import gather, universal_hash


class Hashing(Embedding):
    """Per-table hashing with a threshold under which a table is kept whole."""

    name = "hashing"
    paper = "ICML 2009"
    checks_ids = True

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        threshold: int = 200,
        hash: str = "universal",
    ) -> dict[str, Any]:
        """Share the rows out; see `base.share_out`."""
        rows = share_out(cardinalities, int(budget_bytes) // (FLOAT_BYTES * dim), threshold)
        if rows is None:
            raise Infeasible(
                f"hashing with a single row a table needs {megabytes(len(cardinalities) * dim * FLOAT_BYTES)}; "
                f"the budget is {megabytes(budget_bytes)}"
            )
        return {"rows": rows, "hash": hash}

    @classmethod
    def stored(
        cls, cardinalities: Sequence[int], dim: int, *, rows: Sequence[int], hash: str = "universal"
    ) -> dict[str, Stored]:
        return {"table.weight": Stored((sum(rows), dim), "rows")}

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        *,
        seed: int,
        rows: Sequence[int],
        hash: str = "universal",
    ) -> None:
        if hash not in ("universal", "modulo"):
            raise ValueError(f"hash must be 'universal' or 'modulo', got {hash!r}")
        super().__init__(cardinalities, dim, seed, rows=list(rows), hash=hash)
        self.table = Rows(sum(rows), dim)  # all tables stacked
        self.constant("offsets", offsets(rows))
        drawn = universal_hash.coefficients(generator(seed, 1), 2, len(rows)) if hash == "universal" else ()
        self.constant("hash", universal_hash.unless_whole(self.limits, torch.tensor(rows), *drawn))
        draw_tables(self.table.weight, self.config["rows"], self.cardinalities, generator(seed))

    def lookup(self, ids: Tensor) -> Tensor:
        of = self._buffers  # as attributes they would take longer to find
        tables = gather.Tables(of["limits"], of["offsets"], of["hash"])
        return self._modules["table"].forward(ids, tables)  # called as a module it would take longer

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        size = self.config["rows"][feature]
        start = sum(self.config["rows"][:feature])
        a, b, _ = self.hash[:, feature].tolist()
        slots = self.feature_rows(feature, rows).tolist()
        if size < self.cardinalities[feature]:
            hashed = self.config["hash"] == "universal"
            slots = [((a * x + b) % universal_hash.P if hashed else x) % size for x in slots]
        return self.table.weight[start : start + size][slots]
