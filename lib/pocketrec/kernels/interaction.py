"""Dot products of all pairs of a sample's vectors, which follow a DLRM's lookup; for inference at once with it.

    v = (first, e_1, .., e_F) or (e_1, .., e_F),   out[b] = (<v_i, v_j> for i > j, by i and then j)

`pairs` takes vectors that are there: C++ on a processor, for the gradient too, and PyTorch elsewhere. `pair_rows` looks
them up in a table of rows and `pair_blocks` in an array of blocks, without gradients; a GPU never writes them.
"""

from typing import Any

import torch
from torch import Tensor

from pocketrec.kernels import gather, gpu, native, robe
from pocketrec.kernels.operators import on_processor, operator


def below_diagonal(count: int, device: torch.device | None = None) -> Tensor:
    """Return where a flat matrix [count, count] has what lies below its diagonal, int64 [count (count - 1) / 2]."""
    i, j = torch.tril_indices(count, count, -1, device=device)
    return i * count + j


def pairs(vectors: Tensor, first: Tensor | None = None, index: Tensor | None = None) -> Tensor:
    """Return the dot products of all pairs of vectors [batch, features, dim], and of `first` [batch, dim] before them.

    Args:
        index: `below_diagonal` of their number, for PyTorch; made where it is not given.

    Returns:
        [batch, n (n - 1) / 2], what lies below the diagonal, row by row.
    """
    if vectors.is_cpu and vectors.dtype == torch.float32 and native.library("interaction"):
        return pair_vectors(vectors, None if first is None else first.float())  # autocast may have made it bfloat16
    return plain(vectors, first, index)


def plain(vectors: Tensor, first: Tensor | None = None, index: Tensor | None = None) -> Tensor:
    """Return what `pairs` does, by PyTorch alone."""
    vectors = vectors if first is None else torch.cat([first.unsqueeze(1), vectors], 1)
    index = below_diagonal(vectors.shape[1], vectors.device) if index is None else index
    return (vectors @ vectors.mT).flatten(1).gather(1, index.expand(len(vectors), -1))


def _pair_vectors(vectors: Tensor, first: Tensor | None) -> Tensor:
    vectors, first = vectors.contiguous(), None if first is None else first.contiguous()
    functions = _functions(vectors, first)
    if functions is None:
        return plain(vectors, first)
    out = _products(vectors, vectors, first)
    functions.pair_vectors(*native.pointers(first, vectors, out), *vectors.shape, native.threads(out.numel()))
    return out


def _gradients(gradient: Tensor, vectors: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the gradients of both; that of a first one which is not there is empty."""
    gradient, vectors, first = (None if t is None else t.contiguous() for t in (gradient, vectors, first))
    functions = _functions(vectors, first, gradient)
    if functions is None:
        leaves = [None if t is None else t.detach().requires_grad_() for t in (vectors, first)]
        with torch.enable_grad():
            products = plain(*leaves)
        found = torch.autograd.grad(products, [t for t in leaves if t is not None], gradient)
        return found if len(found) == 2 else (*found, vectors.new_empty(0))
    found = torch.empty_like(vectors), vectors.new_empty(0) if first is None else torch.empty_like(first)
    pointers = native.pointers(gradient, first, vectors, None if first is None else found[1], found[0])
    functions.pair_gradients(*pointers, *vectors.shape, native.threads(gradient.numel()))
    return found


def _functions(*floats: Tensor | None) -> Any:
    return native.library("interaction") if all(t is None or on_processor(t) for t in floats) else None


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    vectors, first = ctx.saved_tensors
    of_vectors, of_first = pair_gradients(gradient, vectors, first)
    return of_vectors, None if first is None else of_first


def _pair_rows(table: Tensor, index: Tensor, first: Tensor | None) -> Tensor:
    if kernels := gpu.library("interaction", table):
        return kernels.pair_rows(table, index, first)
    return pairs(gather.rows(table, index), first)


def _pair_blocks(array: Tensor, ids: Tensor, first: Tensor | None, *where: Tensor | int | None) -> Tensor:
    if kernels := gpu.library("interaction", array):
        return kernels.pair_blocks(array, ids, first, *where)
    return pairs(robe.read_blocks(array, ids, *where)[0], first)


def _products(numbers: Tensor, ids: Tensor, first: Tensor | None, *_: Tensor | int | None) -> Tensor:
    vectors = ids.shape[1] + (first is not None)
    return numbers.new_empty(ids.shape[0], vectors * (vectors - 1) // 2)


# vectors [batch, features, dim], first [batch, dim] or none
pair_vectors = operator(
    "pair_vectors(Tensor vectors, Tensor? first) -> Tensor",
    _pair_vectors,
    lambda vectors, first: _products(vectors, vectors, first),
    backward=_backward,
    save=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
pair_gradients = operator(
    "pair_gradients(Tensor gradient, Tensor vectors, Tensor? first) -> (Tensor, Tensor)",
    _gradients,
    lambda gradient, vectors, first: (
        torch.empty_like(vectors),
        vectors.new_empty(0) if first is None else torch.empty_like(first),
    ),
)
# index [batch, features], first [batch, width] or none
pair_rows = operator("pair_rows(Tensor table, Tensor index, Tensor? first) -> Tensor", _pair_rows, _products)
# as `robe.read_blocks`
pair_blocks = operator(
    "pair_blocks(Tensor array, Tensor ids, Tensor? first, Tensor table, Tensor piece, Tensor multiplier, int kind, "
    "Tensor sizes, Tensor bases, int block_size, Tensor? own) -> Tensor",
    _pair_blocks,
    _products,
)
