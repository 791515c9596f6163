"""Clustered compositional embeddings: ids that have become alike share a row, and a hash parts them again.

    e(t, x) = concat_{j < c} (T_tj[h_tj(x)] + U_tj[g_tj(x)]),   T_tj, U_tj in R^{k x dim/c}
    bytes = 4 dim (sum_{t whole} n_t + 2 k |shared|) + b c sum_{t shared} n_t + 1

h is a stored map of b bytes an entry (1, 2 or 4, as k asks), g a universal hash; before the first clustering h
holds a hash too. At `clusterings` evenly spaced points in the first half of the training K-means runs over the
vectors that each column gives now: h becomes the assignment, T the centroids, g a fresh hash, and U the mean of
what they miss.

Tsang & Ahle, "Clustering the Sketch: Dynamic Compression for Embedding Tables", NeurIPS 2023. All shared tables
have the same k; a table that is no larger kept whole is kept whole. The maps are stored and counted here, which
parameter counts leave out, and end the ratios at 4 dim / (b c). `columns: None` takes the most of 4, 2 and 1 whose
maps take at most half of the budget; where they do not divide dim, their greatest common divisor with it.
Accumulators of what K-means rewrote start anew.
"""

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor

from pocketrec.embeddings.base import (
    FLOAT_BYTES,
    Embedding,
    Infeasible,
    generator,
    megabytes,
    offsets,
    uniform_,
)
from pocketrec.embeddings.stores import Rows, Stored
from pocketrec.kernels import gather, universal_hash

MAP_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # int16 holds 0 to 65535 by its bits


class Cce(Embedding):
    """Two tables of k rows a column: a learned map reads one, a hash the other."""

    name = "cce"
    paper = "NeurIPS 2023"

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        columns: int | None = None,
        clusterings: int = 1,
    ) -> dict[str, Any]:
        """Bisect k, whose size grows with it; the maps are part of that size."""
        if not 0 <= clusterings <= 255:
            raise ValueError(f"cce: clusterings must lie between 0 and 255, got {clusterings}")

        def size(rows: int, columns: int) -> int:
            return sum(s.bytes() for s in cls.stored(cardinalities, dim, rows=rows, columns=columns).values())

        for c in sorted({gcd(c, dim) for c in ([columns] if columns else [4, 2, 1])}, reverse=True):
            low, high = 0, max(cardinalities) + 1
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if size(middle, c) <= budget_bytes else (low, middle)
            maps = cls._maps(cardinalities, dim, low, c)
            if low and (columns or c == 1 or maps.bytes() <= budget_bytes / 2):
                return {"rows": low, "columns": c, "clusterings": clusterings}
        raise Infeasible(
            f"cce with k = 1 needs {megabytes(size(1, c))}, its maps alone "
            f"{megabytes(cls._maps(cardinalities, dim, 1, c).bytes())}; the budget is {megabytes(budget_bytes)}"
        )

    @staticmethod
    def _shared(cardinalities: Sequence[int], dim: int, rows: int, columns: int) -> list[int]:
        """Return the tables that are smaller with 2 k rows and a map than whole."""
        shared = FLOAT_BYTES * dim * 2 * rows
        return [
            t for t, n in enumerate(cardinalities) if shared + n * columns * _itemsize(rows) < FLOAT_BYTES * dim * n
        ]

    @classmethod
    def _maps(cls, cardinalities: Sequence[int], dim: int, rows: int, columns: int) -> Stored:
        shared = cls._shared(cardinalities, dim, rows, columns)
        return Stored((sum(cardinalities[t] for t in shared), columns), "fixed", _itemsize(rows))

    @classmethod
    def stored(
        cls, cardinalities: Sequence[int], dim: int, *, rows: int, columns: int, clusterings: int = 1
    ) -> dict[str, Stored]:
        shared = cls._shared(cardinalities, dim, rows, columns)
        kept = sum(2 * rows if t in shared else n for t, n in enumerate(cardinalities))
        return {
            "table.weight": Stored((kept * columns, dim // columns), "rows"),
            "map": cls._maps(cardinalities, dim, rows, columns),
            "rounds": Stored((1,), "fixed", 1),
        }

    def __init__(
        self, cardinalities: Sequence[int], dim: int, *, seed: int, rows: int, columns: int, clusterings: int = 1
    ) -> None:
        super().__init__(cardinalities, dim, seed, rows=rows, columns=columns, clusterings=clusterings)
        shared = self._shared(self.cardinalities, dim, rows, columns)
        sizes = [columns * (2 * rows if t in shared else n) for t, n in enumerate(self.cardinalities)]
        self.table = Rows(sum(sizes), dim // columns)  # of a shared table: T_0 .. T_{c-1}, U_0 .. U_{c-1}
        self.constant("starts", offsets(sizes))
        self.constant("column", torch.arange(columns))
        self.constant("shared", torch.tensor(shared, dtype=torch.long))
        self.constant("map_starts", offsets([self.cardinalities[t] for t in shared] or [0])[: len(shared)])
        # hashes 0 to `clusterings` are g after as many of them; the last fills the maps until there is one
        draw = generator(seed, 1)
        shape = (clusterings + 2, 2, len(shared), columns)
        self.constant("hashes", universal_hash.coefficients(draw, *shape))
        self.register_buffer("rounds", torch.zeros(1, dtype=torch.uint8))
        maps = [self._hash(torch.arange(self.cardinalities[t]), i, -1) for i, t in enumerate(shared)]
        entries = torch.cat([*maps, torch.empty(0, columns, dtype=torch.long)])
        self.register_buffer("map", entries.to(MAP_DTYPES[_itemsize(rows)]))
        draw = generator(seed)
        for t, piece in enumerate(self.table.weight.data.split(sizes)):
            # the sum of two has the variance of one row of a whole table
            uniform_(piece, (self.cardinalities[t] * (2 if t in shared else 1)) ** -0.5, draw)

    def lookup(self, ids: Tensor) -> Tensor:
        rows, columns = self.config["rows"], self.config["columns"]
        index = ids.unsqueeze(-1) * columns + self.column  # [batch, features, c]: the columns of whole tables
        x = ids.index_select(1, self.shared)
        index = index.index_copy(1, self.shared, self._codes(x + self.map_starts) + self.column * rows)
        a, b = self.hashes.index_select(0, self.rounds.long())[0]
        second = universal_hash.slots(x, a, b, torch.full_like(a, rows)) + (columns + self.column) * rows
        index = torch.cat([index, second], 1) + torch.cat([self.starts, self.starts[self.shared]]).unsqueeze(-1)
        first, second = self.table(index).split([ids.shape[1], x.shape[1]], 1)  # [batch, features, c, dim / c]
        return first.index_add(1, self.shared, second).flatten(2)

    def _codes(self, entries: Tensor) -> Tensor:
        """Read the maps as int64, [...] -> [..., c]."""
        return self.map[entries].long() & ((1 << 8 * self.map.element_size()) - 1)

    def _hash(self, x: Tensor, table: int, round: int) -> Tensor:
        """Hash ids of one shared table, [n] -> [n, c] in [0, k)."""
        a, b = self.hashes[round, :, table].unsqueeze(1)
        return universal_hash.slots(x.unsqueeze(1), a, b, torch.full_like(a, self.config["rows"])).squeeze(1)

    @torch.no_grad()
    def adapt(self, step: int, total: int, optimizer: torch.optim.Optimizer) -> None:
        clusterings, done = self.config["clusterings"], int(self.rounds)
        if done >= clusterings or step < total / 2 * (done + 1) / (clusterings + 1):
            return
        self.rounds += 1
        for i, t in enumerate(self.shared.tolist()):
            self._cluster(i, t, done)
            start = self.starts[t]
            optimizer.reset(self.table.weight, slice(start, start + 2 * self.config["rows"] * self.config["columns"]))

    def _cluster(self, table: int, feature: int, done: int) -> None:
        """Let K-means rewrite the map and both tables of one feature, column by column."""
        rows, columns, n = self.config["rows"], self.config["columns"], self.cardinalities[feature]
        start, map_start = self.starts[feature], self.map_starts[table]
        first, second = self.table.weight[start : start + 2 * columns * rows].view(2, columns, rows, -1)
        entries = self.map[map_start : map_start + n]
        ids = torch.arange(n, device=self.map.device)
        codes = self._codes(ids + map_start)
        old, new = (self._hash(ids, table, done + more) for more in (0, 1))
        draw = generator(self.seed, 2 + done * len(self.cardinalities) + feature)
        for j in range(columns):
            vectors = first[j, codes[:, j]] + second[j, old[:, j]]  # [n, dim / c]
            centroids = kmeans(vectors, rows, draw)
            nearest = assign(vectors, centroids)
            entries[:, j] = nearest.to(entries.dtype)
            first[j], second[j] = centroids, means(vectors - centroids[nearest], new[:, j], rows)[0]

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        n, k, c = self.cardinalities[feature], self.config["rows"], self.config["columns"]
        shared = self._shared(self.cardinalities, self.dim, k, c)
        start = c * sum(2 * k if t in shared else m for t, m in enumerate(self.cardinalities[:feature]))
        if feature not in shared:
            return self.table.weight[start : start + c * n].view(n, self.dim)[rows]
        tables = self.table.weight[start : start + 2 * c * k].view(2, c, k, -1)
        table = shared.index(feature)
        map_start = sum(self.cardinalities[t] for t in shared[:table])
        entries = self.map[map_start : map_start + n][rows].tolist()
        codes = [[e % (1 << 8 * self.map.element_size()) for e in entry] for entry in entries]
        a, b = self.hashes[int(self.rounds), :, table].tolist()
        ids = self.feature_rows(feature, rows).tolist()
        pieces = [
            tables[0, j, [entry[j] for entry in codes]]
            + tables[1, j, [(a[j] * x + b[j]) % universal_hash.P % k for x in ids]]
            for j in range(c)
        ]
        return torch.cat(pieces, 1)


def _itemsize(rows: int) -> int:
    return 1 if rows <= 1 << 8 else 2 if rows <= 1 << 16 else 4


def kmeans(points: Tensor, k: int, draw: torch.Generator, samples: int | None = None, iterations: int = 5) -> Tensor:
    """Return k centroids of points [n, width] by Lloyd's iterations on `samples` k of them, drawn on the CPU.

    By default 256 a centroid, as the authors have it, and fewer, down to 16, where that would be a billion distances.
    They are one matrix product, so that this runs where the points are. A centroid without points stays.
    """
    samples = samples or min(256, max(16, (1 << 30) // k**2))
    chosen = torch.randperm(len(points), generator=draw)[: samples * k].to(points.device)
    points = points[chosen]
    centroids = points[:k].clone()
    for _ in range(iterations):
        mean, count = means(points, assign(points, centroids), k)
        centroids = torch.where(count > 0, mean, centroids)
    return centroids


def assign(points: Tensor, centroids: Tensor, chunk: int | None = None) -> Tensor:
    """Return the nearest centroid of every point, int64 [n], in chunks of that many distances: what caches hold."""
    chunk = chunk or (1 << 20 if points.device.type == "cpu" else 1 << 26)
    norms = centroids.square().sum(1)
    parts = points.split(max(1, chunk // len(centroids)))
    return torch.cat([torch.addmm(norms, part, centroids.T, alpha=-2).argmin(1) for part in parts])


def means(points: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the mean of the points of each group [count, width], 0 where empty, and their number [count, 1].

    They are summed in one order, on a GPU too: all processes of a training come to the same bits.
    """
    number = torch.bincount(groups, minlength=count).unsqueeze(1)
    return gather.sum_rows(points, groups, count) / number.clamp(min=1), number
