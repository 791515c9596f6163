"""TT-Rec: the largest tables become tensor trains, where a row is a product of small matrices; the rest stay whole.

    e(t, x) = G_1[i_1] G_2[i_2] G_3[i_3],   x = (i_1 p_2 + i_2) p_3 + i_3,   G_k[i] in R^{r_{k-1} x q_k x r_k}
    p_1 p_2 p_3 >= n_t,   q_1 q_2 q_3 = dim,   r_0 = r_3 = 1,   r_1 = r_2 = rank
    bytes = 4 sum_{t in tables} sum_k p_k r_{k-1} q_k r_k + 4 dim sum_{t not in tables} n_t + cache (4 dim + 4)

Yin, Acun, Liu & Wu, "TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models", MLSys 2021.

Which tables: the largest `tables`, or those of more than `threshold` rows, or, with neither given, as few of the
largest as leave room for rank 16; a ratio above that of the whole tables alone needs more of them.

Initial values. A row of the full table has variance 1/(3 n); a product of Gaussians with that variance piles up at
0, so `sampled_gaussian` draws cores from N(0, 1) without its middle, |w| < 2. Published code scales each core by
(3 n)^(-1/6) and forgets rank and the variance 5.75 of what is left: at rank 32 rows start 442 times too wide.
`scaled_gaussian` divides by both; `gaussian` and `uniform` reach the same variance with the middle left in.

`contracted` returns a form that is read faster and takes more memory: G_1 and G_2 multiplied out once, for all pairs
of digits, so that a row is one small product; 4 p_1 p_2 q_1 q_2 rank bytes a table in their place.

The cache holds the most read rows of the compressed tables as private rows that are trained in place of the cores'
product: `cache` rows, or below 1 that share of the budget. Every 20th of a training it is filled anew by counts of
all lookups so far (int32 a row, in training only). A new row starts as the product of its cores, a row that stays
goes on learning, and the values of one that leaves are dropped: nothing is written back to the cores. At inference
a cached row costs its id besides its floats.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from math import ceil, erf, exp, pi, prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from pocketrec.embeddings.base import (
    FLOAT_BYTES,
    Embedding,
    Infeasible,
    generator,
    megabytes,
    tensor_bytes,
    uniform_,
)
from pocketrec.embeddings.stores import Rows, Stored, read_tensor_train
from pocketrec.embeddings.whole_tables import WholeTables, largest
from pocketrec.kernels import tensor_train

ENOUGH_RANK = 16
REFILLS = 20
INITS = ("sampled_gaussian", "scaled_gaussian", "uniform", "gaussian")
CUT = 2.0  # sampled Gaussian: |w| >= CUT
CUT_SHARE = erf(CUT / sqrt(2))
CUT_VARIANCE = 1 + CUT * sqrt(2 / pi) * exp(-(CUT**2) / 2) / (1 - CUT_SHARE)  # 5.75


class TTRec(Embedding):
    """Tensor trains for the largest tables, with a cache of learned hot rows on request."""

    name = "tt_rec"
    paper = "MLSys 2021"

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        cores: int = 3,
        rank: int | None = None,
        tables: int | None = None,
        threshold: int | None = None,
        init: str = "scaled_gaussian",
        cache: float = 0.0,
    ) -> dict[str, Any]:
        """Compress as few tables as allow the rank, then bisect the largest rank."""
        if None not in (tables, threshold) or min(tables or 0, threshold or 0) < 0:
            raise ValueError(
                f"tt_rec: give `tables`, how many to compress, or `threshold`, the rows above which; got {tables} and "
                f"{threshold}"
            )
        if threshold is not None:
            tables = sum(n > threshold for n in cardinalities)
        counts = range(len(cardinalities) + 1) if tables is None else [min(tables, len(cardinalities))]

        def size(compressed: list[int], rank: int) -> int:
            config = {"tables": compressed, "rank": rank, "cores": cores, "cache": cached(compressed)}
            return sum(stored.bytes() for stored in cls.stored(cardinalities, dim, **config).values())

        def cached(compressed: list[int]) -> int:
            rows = cache if cache >= 1 else cache * budget_bytes / (FLOAT_BYTES * dim + 8)
            return min(int(rows), sum(cardinalities[t] for t in compressed))

        best, chosen = 0, []
        for count in counts:
            compressed = largest(cardinalities, count)
            ranks = [rank] if rank else range(1, _most_rank(cardinalities, dim, compressed, cores) + 1)
            fitting = bisect_right(ranks, budget_bytes, key=lambda r: size(compressed, r))
            if fitting and ranks[fitting - 1] > best:
                best, chosen = ranks[fitting - 1], compressed
            if best >= (rank or ENOUGH_RANK) or (best and not chosen):
                break
        if not best:
            least = min((largest(cardinalities, count) for count in counts), key=lambda c: size(c, rank or 1))
            whole = WholeTables.stored(cardinalities, least, dim).bytes()
            raise Infeasible(
                f"tt_rec with {len(least)} of {len(cardinalities)} tables at rank {rank or 1} needs "
                f"{megabytes(size(least, rank or 1))}, {megabytes(whole)} of it in tables kept whole; "
                f"the budget is {megabytes(budget_bytes)}"
            )
        return {"tables": chosen, "rank": best, "cores": cores, "init": init, "cache": cached(chosen)}

    @classmethod
    def stored(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        *,
        tables: Sequence[int],
        rank: int,
        cores: int,
        cache: int,
        contracted: bool = False,
        **_: Any,
    ) -> dict[str, Stored]:
        radices = [_joined(factor_rows(cardinalities[t], cores), contracted) for t in tables]
        kept = {"whole.table.weight": WholeTables.stored(cardinalities, tables, dim)}
        for k, width in enumerate(_core_widths(_joined(factor_dim(dim, cores), contracted), rank)):
            kept[f"cores.{k}.weight"] = Stored((sum(p[k] for p in radices), width), "rows")
        if cache:
            kept["cached.weight"] = Stored((cache, dim), "rows")
            kept["cached_ids"] = Stored((cache,), "fixed", _id_type(cardinalities, tables).itemsize)
        return kept

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        *,
        seed: int,
        tables: Sequence[int],
        rank: int,
        cores: int = 3,
        init: str = "scaled_gaussian",
        cache: int = 0,
        contracted: bool = False,
    ) -> None:
        if init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
        config = {"rank": rank, "cores": cores, "init": init, "cache": cache, "contracted": contracted}
        super().__init__(cardinalities, dim, seed, tables=list(tables), **config)
        self.whole = WholeTables(self.cardinalities, tables, dim, generator(seed))
        rows = [self.cardinalities[t] for t in tables]
        self.factors = _joined(factor_dim(dim, cores), contracted)
        radices = [_joined(factor_rows(n, cores), contracted) for n in rows]
        radices = torch.tensor(radices, dtype=torch.long).view(-1, len(self.factors))
        widths = _core_widths(self.factors, rank)
        self.cores = nn.ModuleList(Rows(int(p.sum()), width) for p, width in zip(radices.T, widths, strict=True))
        self.constant("columns", torch.tensor(tables, dtype=torch.long))
        self.constant("radices", radices)  # [tables, cores]
        self.constant("offsets", torch.tensor([sum(rows[:i]) for i in range(len(rows))], dtype=torch.long))
        draw = generator(seed, 1)
        for core, p in zip(self.cores, radices.T.tolist(), strict=True):
            for part, n in zip(core.weight.data.split(p) if p else (), rows, strict=True):
                _draw_core(part, init, n, rank, len(self.factors), draw)
        if cache:
            self.cached = Rows(cache, dim)
            nn.init.zeros_(self.cached.weight)
            kind = _id_type(cardinalities, tables)
            self.register_buffer("cached_ids", torch.full((cache,), torch.iinfo(kind).max, dtype=kind))  # sorted
            self.register_buffer("slots", torch.arange(cache, dtype=torch.int32))  # where in `cached` each id lies
            self.register_buffer("counts", torch.zeros(sum(rows), dtype=torch.int32))

    def lookup(self, ids: Tensor) -> Tensor:
        whole, columns = self._modules["whole"], self._buffers["columns"]  # as attributes they would take longer
        rows = ids[:, columns] if whole.features else ids  # [batch, tables]
        if not self.config["cache"]:
            product = self._product(rows)
            return whole(ids, product) if whole.features else product
        keys, place, hit = self._find(rows)
        if self.training and self.counts is not None:
            self.counts.index_add_(0, keys.flatten(), torch.ones_like(keys, dtype=torch.int32).flatten())
        slot = place if self.slots is None else self.slots[place].long()
        computed = self._product(rows.masked_fill(hit, -1))  # what is cached is not multiplied
        return whole(ids, torch.where(hit.unsqueeze(-1), self.cached(slot), computed))

    def _product(self, rows: Tensor, tables: Tensor | None = None) -> Tensor:
        """Multiply the slices of rows [batch, tables], or of rows [n] of `tables` [n] -> [..., dim]."""
        place = tensor_train.Place(rows, tables, self._buffers["radices"], self.factors)
        return read_tensor_train(self._modules["cores"], place)

    def _find(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each row's key, its place among the cached ids and whether it is there, [batch, tables] each."""
        keys = rows + self.offsets
        place = torch.searchsorted(self.cached_ids, keys.to(self.cached_ids.dtype)).clamp(max=self.config["cache"] - 1)
        return keys, place, self.cached_ids[place] == keys

    @torch.no_grad()
    def adapt(self, step: int, total: int, optimizer: torch.optim.Optimizer) -> None:
        if self.config["cache"] and step < total and step % max(1, total // REFILLS) == 0:
            self._refill(optimizer)

    def _refill(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the cache hold the rows that were read most often so far."""
        hottest = self.counts.topk(self.config["cache"]).indices.sort().values
        stays, stayed = torch.isin(self.cached_ids, hottest), torch.isin(hottest, self.cached_ids)
        free = self.slots[~stays].long()
        come = hottest[~stayed]
        table = torch.searchsorted(self.offsets, come, right=True) - 1
        self.cached.weight[free] = self._product(come - self.offsets[table], table)
        optimizer.reset(self.cached.weight, free)
        slots = torch.empty_like(self.slots)
        slots[stayed], slots[~stayed] = self.slots[stays], self.slots[~stays]
        self.slots.copy_(slots)
        self.cached_ids.copy_(hottest)

    @torch.no_grad()
    def cache_hit_rate(self, ids: Tensor) -> float:
        """Return the share of lookups in compressed tables that the cache answers, for ids [batch, features]."""
        return (
            self._find(self._checked(ids)[:, self.columns])[2].double().mean().item() if self.config["cache"] else 0.0
        )

    def folded(self) -> TTRec:
        """Put the cached rows in the order of their ids, and forget counts."""
        served = deepcopy(self)
        if self.config["cache"] and self.slots is not None:
            served.cached.weight.data = self.cached.weight.data[self.slots.long()]
            served.slots = served.counts = None
        return served

    @torch.no_grad()
    def contracted(self) -> TTRec:
        """Return the served form whose first two cores are one: more bytes, fewer multiplications.

        Raises:
            ValueError: with fewer than three cores, where it would be the whole table, and in another form already.
        """
        if len(self.cores) < 3 or self.config["contracted"] or self.quantize:
            raise ValueError(f"only three cores or more of floats can be contracted, and once; got {self.config}")
        served = self.deploy()
        rank, (one, two, *_) = self.config["rank"], (core.weight for core in served.cores)
        tables = zip(one.split(self.radices[:, 0].tolist()), two.split(self.radices[:, 1].tolist()), strict=True)
        products = [
            torch.einsum("aqr,brs->abqs", first.unflatten(1, (-1, rank)), second.unflatten(1, (rank, -1))).flatten(2)
            for first, second in tables
        ]
        joined = Rows(0, 0).requires_grad_(False)
        none = one.new_empty(0, one.shape[1] * two.shape[1] // rank**2)
        joined.weight.data = torch.cat([none, *(product.flatten(0, 1) for product in products)])
        served.cores = nn.ModuleList([joined, *list(served.cores)[2:]])
        served.config = self.config | {"contracted": True}
        served.factors = _joined(self.factors)
        served.constant("radices", torch.cat([self.radices[:, :2].prod(1, keepdim=True), self.radices[:, 2:]], 1))
        return served

    def inference_tensors(self) -> dict[str, int]:
        return {name: count for name, count in tensor_bytes(self).items() if name not in ("slots", "counts")}

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        if feature not in self.config["tables"]:
            return self.whole.materialize(feature)[rows]
        ids, t = self.feature_rows(feature, rows), self.config["tables"].index(feature)
        cores, contracted = self.config["cores"], self.config["contracted"]
        q = _joined(factor_dim(self.dim, cores), contracted)
        p = _joined(factor_rows(self.cardinalities[feature], cores), contracted)
        table = ids.new_ones((len(ids), 1, 1)).to(self.cores[0].weight.dtype)
        for k, digit in enumerate(torch.unravel_index(ids, p)):
            start = int(self.radices[:t, k].sum())
            core = self.cores[k].weight[start : start + p[k]].view(p[k], table.shape[2], q[k], -1)
            table = torch.einsum("xar,xrbs->xabs", table, core[digit]).flatten(1, 2)
        table = table.reshape(len(ids), self.dim)
        if self.config["cache"]:
            first = sum(self.cardinalities[f] for f in self.config["tables"][:t])
            slots = range(self.config["cache"]) if self.slots is None else self.slots.tolist()
            cached = dict(zip(self.cached_ids.tolist(), slots, strict=True))
            for i, x in enumerate(ids.tolist()):
                if first + x in cached:
                    table[i] = self.cached.weight[cached[first + x]]
        return table


def factor_rows(rows: int, cores: int) -> list[int]:
    """Return `cores` nearly equal factors whose product is at least `rows`, by as little as that allows."""
    factors = []
    for left in range(cores, 1, -1):
        factors.append(ceil(rows ** (1 / left) - 1e-9))
        rows = ceil(rows / factors[-1])
    return [*factors, rows]


def factor_dim(dim: int, cores: int) -> list[int]:
    """Return `cores` ascending factors of dim, as equal as they can be: 16 = 2 2 4, 128 = 4 4 8, 17 = 1 1 17."""
    if cores == 1:
        return [dim]
    splits = [[*factor_dim(dim // last, cores - 1), last] for last in range(1, dim + 1) if dim % last == 0]
    return sorted(min(splits, key=sum))


def _joined(factors: list[int], contracted: bool = True) -> list[int]:
    """Return factors with the first two as one, where they are contracted."""
    return [factors[0] * factors[1], *factors[2:]] if contracted else factors


def _core_widths(factors: Sequence[int], rank: int) -> list[int]:
    """Return the floats of a slice of each core, r_{k-1} q_k r_k."""
    ranks = [1, *[rank] * (len(factors) - 1), 1]
    return [left * q * right for q, (left, right) in zip(factors, pairwise(ranks), strict=True)]


def _most_rank(cardinalities: Sequence[int], dim: int, tables: Sequence[int], cores: int) -> int:
    """Return the rank at which any table can be held exactly."""
    q, most = factor_dim(dim, cores), 1
    for t in tables:
        p = factor_rows(cardinalities[t], cores)
        sides = [(prod(p[:k]) * prod(q[:k]), prod(p[k:]) * prod(q[k:])) for k in range(1, cores)]
        most = max(most, *(min(side) for side in sides))
    return most


def _id_type(cardinalities: Sequence[int], tables: Sequence[int]) -> torch.dtype:
    """Return the smallest integer that numbers the rows of the compressed tables."""
    return torch.int32 if sum(cardinalities[t] for t in tables) < 2**31 - 1 else torch.int64


def _draw_core(core: Tensor, init: str, rows: int, rank: int, cores: int, draw: torch.Generator) -> None:
    """Fill a table's part of one core; all but `sampled_gaussian` give a row of the product variance 1/(3 rows)."""
    scale = (3 * rows) ** (-0.5 / cores)
    if init != "sampled_gaussian":
        scale *= rank ** (-0.5 * (cores - 1) / cores)
    if init == "uniform":
        uniform_(core, sqrt(3) * scale, draw)
        return
    cut = 0 if init == "gaussian" else CUT_SHARE
    scale /= sqrt(CUT_VARIANCE) if init == "scaled_gaussian" else 1
    unit = uniform_(core, 1, draw).double()  # by the inverse of the distribution of |w|
    size = torch.erfinv((cut + (1 - cut) * unit.abs()).clamp(max=1 - 1e-9)) * sqrt(2)
    core.copy_(unit.sign() * size * scale)
