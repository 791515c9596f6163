"""ROBE-Z: all tables are windows into one circular array, placed by a hash, Z elements at a time.

    e(t, x)_i = g M[(h(t, x, i div Z) + i mod Z) mod |M|]
    h(t, x, c) = ((A t + B_c x + C c + D) mod P) mod |M|,   g = 1, or +1/-1 by a second hash (`sign`)
    bytes = 4 |M|

Desai, Chou & Shrivastava, "Random Offset Block Embedding Array (ROBE) for CriteoTB benchmark MLPerf DLRM
model: 1000x compression and 3.1x faster inference", MLSys 2022. The array's size |M| is the budget itself,
so any ratio can be had. `block_size` Z divides dim: Z = 1 shares single elements, Z = dim whole rows; the
default is the largest divisor of dim up to 32, the block of the authors' 10,000x model: longer ones gain no
speed (two cache lines) and make two ids that collide share more. P = 2^61 - 1, exactly, or with
`hash: multiply_shift` the high word of the sum modulo 2^64, which costs less and needs |M| <= 2^31.

`layout: paper` has the paper's one B for all pieces: C c then moves the blocks of all ids alike, so that two ids that
share one block share nearly all of them, as if whole rows were hashed. With a B_c for each piece, the default, they
are shared independently. On MovieLens 1M (GMF, dim 32, Z = 8, 9.5 times smaller) that takes the AUC after eight
epochs from 0.753 to 0.776; with a single block a row the two are the same.
`layout: authors` is what their public code computes: x' = x + rows of all tables before, one start a block,

    h(x', c) = ((R3 x' + R2 c + R1) mod 2038074743) mod (|M| - Z + 1)

with fixed constants, no sign and no wrap. One initial scale serves all tables: U(-s, s) with
s = 1/sqrt(largest n_t) as in the authors' DLRM fork, or `init_scale`.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from pocketrec.embeddings.base import FLOAT_BYTES, Embedding, Infeasible, generator, megabytes, offsets, uniform_
from pocketrec.embeddings.stores import Array, Stored
from pocketrec.kernels import interaction, multiply_shift, robe, universal_hash

AUTHORS_R1, AUTHORS_R2, AUTHORS_R3 = 634329019, 1825252241, 871205356  # numpy's RandomState(1024).randint(0, prime)


class Robe(Embedding):
    """One array of `size` floats serves every table."""

    name = "robe"
    paper = "MLSys 2022"
    checks_ids = True

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        block_size: int | None = None,
        hash: str = "universal",
        layout: str = "independent",
        sign: bool = False,
        init_scale: float | None = None,
    ) -> dict[str, Any]:
        """The whole budget is the array."""
        block_size = largest_divisor(dim, 32) if block_size is None else block_size
        size = min(int(budget_bytes) // FLOAT_BYTES, dim * sum(cardinalities))
        if size < block_size:
            raise Infeasible(f"a {megabytes(budget_bytes)} budget does not hold one ROBE block of {block_size} floats")
        return {
            "size": size,
            "block_size": block_size,
            "hash": hash,
            "layout": layout,
            "sign": sign,
            "init_scale": init_scale,
        }

    @classmethod
    def stored(cls, cardinalities: Sequence[int], dim: int, *, size: int, **_: Any) -> dict[str, Stored]:
        return {"array.weight": Stored((size,), "array")}

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        *,
        seed: int,
        size: int,
        block_size: int,
        hash: str = "universal",
        layout: str = "independent",
        sign: bool = False,
        init_scale: float | None = None,
    ) -> None:
        super().__init__(
            cardinalities,
            dim,
            seed,
            size=size,
            block_size=block_size,
            hash=hash,
            layout=layout,
            sign=sign,
            init_scale=init_scale,
        )
        if block_size < 1 or dim % block_size:
            raise ValueError(f"{self.name}: block_size must divide dim = {dim}, got {block_size}")
        if init_scale is not None and init_scale <= 0:
            raise ValueError(f"{self.name}: init_scale must be above 0, got {init_scale}")
        if hash not in ("universal", "multiply_shift") or layout not in ("independent", "paper", "authors"):
            raise ValueError(
                f"{self.name}: hash must be 'universal' or 'multiply_shift' and layout 'independent', 'paper' or "
                f"'authors', got {hash!r} and {layout!r}"
            )
        if hash == "multiply_shift" and size > multiply_shift.MAX_SLOTS:
            raise ValueError(f"{self.name}: multiply_shift reaches 2^31 floats, not {size}: take hash: universal")
        if layout == "authors" and (sign or hash != "universal" or sum(cardinalities) * robe.AUTHORS_PRIME >= 1 << 63):
            raise ValueError(f"{self.name}: layout: authors has a hash of its own, no sign, and room for 4.5e9 rows")
        self.block_size, self.hash, self.layout, self.sign = block_size, hash, layout, sign
        self.kind = robe.HASHES.index("authors" if layout == "authors" else hash)
        self.array = Array(size)
        scale = 1 / sqrt(max(self.cardinalities)) if init_scale is None else init_scale
        uniform_(self.array.weight.data, scale, generator(seed))
        draw = generator(seed, 1)
        family = universal_hash if hash == "universal" else multiply_shift
        self.place = tuple(family.coefficients(draw, 4).tolist())  # A, B, C, D
        self.flip = tuple(family.coefficients(draw, 4).tolist())
        if layout == "authors":
            self.place = (AUTHORS_R3, AUTHORS_R3, AUTHORS_R2, AUTHORS_R1)
        self._terms("place", dim // block_size, generator(seed, 2))
        if sign:
            self._terms("flip", dim, generator(seed, 3))
        self._windows([size])

    def _terms(self, name: str, pieces: int, draw: torch.Generator) -> None:
        """Keep the terms of a hash: A t + D for each table, C c and the multiplier B_c for each piece."""
        a, b, c, d = getattr(self, name)
        family = universal_hash if self.hash == "universal" else multiply_shift
        more = (
            family.coefficients(draw, pieces - 1)
            if self.layout == "independent"
            else torch.tensor(b).expand(pieces - 1)
        )
        self.constant(f"{name}_multiplier", torch.cat([torch.tensor([b]), more]))
        tables = offsets(self.cardinalities).tolist() if self.layout == "authors" else range(len(self.cardinalities))
        self.constant(f"{name}_table", torch.tensor([self._reduced(a * t + d) for t in tables]))
        self.constant(f"{name}_piece", torch.tensor([self._reduced(c * i) for i in range(pieces)]))

    def _reduced(self, value: int) -> int:
        if self.layout == "authors":
            return value
        return value % universal_hash.P if self.hash == "universal" else multiply_shift.signed(value)

    def _windows(self, sizes: Sequence[int], own: Tensor | None = None) -> None:
        """Say which part of the array serves a table: all of it, or the next `sizes[t]` floats; `own` as in kernels."""
        self.sizes = list(sizes)
        self.constant("window_sizes", torch.tensor(sizes))  # [1 or features]
        self.constant("window_bases", offsets(sizes))
        self.constant("own", own)
        self._kept: tuple[robe.Hash, robe.Windows] | None = None

    def lookup(self, ids: Tensor) -> Tensor:
        place, windows = self._where()
        of = self._buffers  # as attributes they would take longer to find than the blocks
        values = self._modules["array"].blocks(ids, of["limits"], place, windows, of["own"])
        if not self.sign:
            return values
        return robe.flip(values, ids, self.flip_table, self.flip_piece, self.flip_multiplier, place.kind)

    def lookup_pairs(self, ids: Tensor, first: Tensor | None) -> Tensor | None:
        if self.sign or type(self.array) is not Array:
            return None
        place, windows = self._where()
        return interaction.pair_blocks(self.array.weight, ids, first, *place, *windows, self.own)

    def _where(self) -> tuple[robe.Hash, robe.Windows]:
        of, kept = self._buffers, self._kept
        if kept is None or kept[0].table is not of["place_table"]:  # not yet put together, or moved since
            place = robe.Hash(of["place_table"], of["place_piece"], of["place_multiplier"], self.kind)
            kept = place, robe.Windows(of["window_sizes"], of["window_bases"], self.block_size)
            if not torch.compiler.is_compiling():  # an export takes no tensors beside parameters and buffers
                self._kept = kept
        return kept

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        ids, width = self.feature_rows(feature, rows).tolist(), self.block_size
        window = feature % len(self.sizes)
        size, base = self.sizes[window], sum(self.sizes[:window])
        slots = [base + (self._start(feature, x, i // width) + i % width) % size for x in ids for i in range(self.dim)]
        table = self.array.weight[slots].view(-1, self.dim)
        if self.sign:
            bit = 1 if self.hash == "universal" else 1 << 63
            signs = [1 if self._mixed("flip", feature, x, i) & bit else -1 for x in ids for i in range(self.dim)]
            table = table * table.new_tensor(signs).view_as(table)
        return table

    def _start(self, feature: int, x: int, piece: int) -> int:
        size = self.sizes[feature % len(self.sizes)]
        if self.layout == "authors":
            row = sum(self.cardinalities[:feature]) + x
            hashed = (row * AUTHORS_R3 + piece * AUTHORS_R2 + AUTHORS_R1) % robe.AUTHORS_PRIME
            return hashed % (size - self.block_size + 1)
        mixed = self._mixed("place", feature, x, piece)
        return mixed % size if self.hash == "universal" else ((mixed >> 32) * size) >> 32

    def _mixed(self, name: str, feature: int, x: int, piece: int) -> int:
        a, _, c, d = getattr(self, name)
        b = int(getattr(self, f"{name}_multiplier")[piece])
        modulus = universal_hash.P if self.hash == "universal" else 1 << 64
        return (a * feature + b * x + c * piece + d) % modulus


def largest_divisor(dim: int, limit: int) -> int:
    """Return the largest divisor of dim that is at most `limit`."""
    return max(z for z in range(1, limit + 1) if dim % z == 0)
