"""Lookup and dot interaction in one, for inference: of each sample only the products of its vectors are kept.

    v = (first, e_1, .., e_F) or (e_1, .., e_F),   out[b] = (<v_i, v_j> for i > j, by i and then j)

`pair_rows` looks its vectors up in a table of rows, `pair_blocks` in an array of blocks.
"""

import torch
from torch import Tensor

from pocketrec.kernels import gather, gpu, robe
from pocketrec.kernels.operators import operator


def below_diagonal(count: int, device: torch.device | None = None) -> Tensor:
    """Return where a flat matrix [count, count] has what lies below its diagonal, int64 [count (count - 1) / 2]."""
    i, j = torch.tril_indices(count, count, -1, device=device)
    return i * count + j


def pairs(vectors: Tensor, index: Tensor | None = None) -> Tensor:
    """Return the dot products of all pairs, [batch, n, dim] -> [batch, n (n - 1) / 2].

    `index`: `below_diagonal(n)`, made where it is not given.
    """
    index = below_diagonal(vectors.shape[1], vectors.device) if index is None else index
    return (vectors @ vectors.mT).flatten(1).gather(1, index.expand(len(vectors), -1))


def _with(first: Tensor | None, vectors: Tensor) -> Tensor:
    return vectors if first is None else torch.cat([first.unsqueeze(1), vectors], 1)


def _pair_rows(table: Tensor, index: Tensor, first: Tensor | None) -> Tensor:
    if kernels := gpu.library("interaction", table):
        return kernels.pair_rows(table, index, first)
    return pairs(_with(first, gather.rows(table, index)))


def _pair_blocks(array: Tensor, ids: Tensor, first: Tensor | None, *where: Tensor | int | None) -> Tensor:
    if kernels := gpu.library("interaction", array):
        return kernels.pair_blocks(array, ids, first, *where)
    return pairs(_with(first, robe.read_blocks(array, ids, *where)[0]))


def _products(numbers: Tensor, ids: Tensor, first: Tensor | None, *_: Tensor | int | None) -> Tensor:
    vectors = ids.shape[1] + (first is not None)
    return numbers.new_empty(ids.shape[0], vectors * (vectors - 1) // 2)


# index [batch, features], first [batch, width] or none
pair_rows = operator("pair_rows(Tensor table, Tensor index, Tensor? first) -> Tensor", _pair_rows, _products)
# as `robe.read_blocks`
pair_blocks = operator(
    "pair_blocks(Tensor array, Tensor ids, Tensor? first, Tensor table, Tensor piece, Tensor multiplier, int kind, "
    "Tensor sizes, Tensor bases, int block_size, Tensor? own) -> Tensor",
    _pair_blocks,
    _products,
)
