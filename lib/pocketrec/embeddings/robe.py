"""ROBE-Z: all tables are windows into one circular array, placed by a hash, Z elements at a time.

    e(t, x)_i = g M[(h(t, x, i div Z) + i mod Z) mod |M|]
    h(t, x, c) = ((A t + B x + C c + D) mod P) mod |M|,   g = 1, or +1/-1 by a second hash (`sign`)
    bytes = 4 |M|

Desai, Chou & Shrivastava, "Random Offset Block Embedding Array (ROBE) for CriteoTB benchmark MLPerf DLRM
model: 1000x compression and 3.1x faster inference", MLSys 2022. The array's size |M| is the budget itself,
so any ratio can be had; P = 2^61 - 1 here, exactly. `block_size` Z divides dim: Z = 1 shares single
elements, Z = dim whole rows. One initial scale serves all tables: U(-s, s) with s = 1/sqrt(largest n_t) as
in the authors' DLRM fork, or `init_scale`.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from pocketrec.embeddings import universal_hash
from pocketrec.embeddings.base import FLOAT_BYTES, Embedding, Infeasible, generator, megabytes, uniform_
from pocketrec.embeddings.stores import Array, Stored


class Robe(Embedding):
    """One array of `size` floats serves every table."""

    name = "robe"
    knobs = {"block_size": 16, "sign": False, "init_scale": None}

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        block_size: int = 16,
        sign: bool = False,
        init_scale: float | None = None,
    ) -> dict[str, Any]:
        """The whole budget is the array."""
        if block_size < 1 or dim % block_size:
            raise ValueError(f"robe: block_size must divide dim = {dim}, got {block_size}")
        size = min(int(budget_bytes) // FLOAT_BYTES, dim * sum(cardinalities))
        if size < block_size:
            raise Infeasible(f"a {megabytes(budget_bytes)} budget does not hold one ROBE block of {block_size} floats")
        return {"size": size, "block_size": block_size, "sign": sign, "init_scale": init_scale}

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
        block_size: int = 16,
        sign: bool = False,
        init_scale: float | None = None,
    ) -> None:
        super().__init__(cardinalities, dim, seed, size=size, block_size=block_size, sign=sign, init_scale=init_scale)
        self.array = Array(size)
        uniform_(self.array.weight.data, init_scale or 1 / sqrt(max(self.cardinalities)), generator(seed))
        draw = generator(seed, 1)
        self.place = tuple(universal_hash.coefficients(draw, 4).tolist())  # A, B, C, D
        self.flip = tuple(universal_hash.coefficients(draw, 4).tolist())
        self.constant("within_block", torch.arange(block_size))

    def lookup(self, ids: Tensor) -> Tensor:
        size, blocks = self.config["size"], self.dim // self.config["block_size"]
        start = self._hash(self.place, ids, blocks) % size  # [batch, features, blocks]
        index = start.unsqueeze(-1) + self.within_block  # [batch, features, blocks, Z]
        index = torch.where(index >= size, index - size, index)
        values = self.array(index).view(*ids.shape, self.dim)
        if self.config["sign"]:
            bit = self._hash(self.flip, ids, self.dim) & 1
            values = values * (2 * bit - 1)
        return values

    def _hash(self, coefficients: Sequence[int], ids: Tensor, pieces: int) -> Tensor:
        """Hash (table, id, piece) into [0, P): [batch, features] -> [batch, features, pieces]."""
        a, b, c, d = coefficients
        row = universal_hash.multiply(ids.new_tensor(b), ids, wide=max(self.cardinalities) >= 1 << 31)
        table = ids.new_tensor([(a * t + d) % universal_hash.P for t in range(ids.shape[1])])
        piece = ids.new_tensor([c * i % universal_hash.P for i in range(pieces)])
        return universal_hash.add(universal_hash.add(row, table).unsqueeze(-1), piece)

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        ids = self.feature_rows(feature, rows).tolist()
        size, width = self.config["size"], self.config["block_size"]

        def hashed(coefficients: Sequence[int], x: int, piece: int) -> int:
            a, b, c, d = coefficients
            return (a * feature + b * x + c * piece + d) % universal_hash.P

        slots = [(hashed(self.place, x, i // width) % size + i % width) % size for x in ids for i in range(self.dim)]
        table = self.array.weight[slots].view(-1, self.dim)
        if self.config["sign"]:
            bits = [hashed(self.flip, x, i) % 2 for x in ids for i in range(self.dim)]
            table = table * (2 * table.new_tensor(bits).view_as(table) - 1)
        return table
