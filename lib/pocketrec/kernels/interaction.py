"""Dot products of all pairs of a sample's vectors, which follow a DLRM's lookup; for inference at once with it.

    v = (first, e_1, .., e_F) or (e_1, .., e_F),   out[b] = (<v_i, v_j> for i > j, by i and then j)

`pairs` takes vectors that are there: C++ for float32 on a processor, for the gradient too, and PyTorch elsewhere.
`pair_rows` looks them up in a table of rows and `pair_blocks` in an array of blocks, without gradients; a GPU never
writes them.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from pocketrec.kernels import gather, gpu, native, robe
from pocketrec.kernels.operators import operator


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

    Raises:
        ValueError: for other shapes.
    """
    if not vectors.is_cpu or vectors.dtype != torch.float32 or (first is not None and first.dtype == torch.float64):
        return plain(vectors, first, index)
    return pair_vectors(vectors, None if first is None else first.float())  # autocast may have made it bfloat16


def plain(vectors: Tensor, first: Tensor | None = None, index: Tensor | None = None) -> Tensor:
    """Return what `pairs` does, by PyTorch alone."""
    vectors = _together(vectors, first)
    index = below_diagonal(vectors.shape[1], vectors.device) if index is None else index
    return (vectors @ vectors.mT).flatten(1).gather(1, index.expand(len(vectors), -1))


def _together(vectors: Tensor, first: Tensor | None) -> Tensor:
    return vectors if first is None else torch.cat([first.unsqueeze(1), vectors], 1)


def _room(like: Tensor, batch: int, vectors: int) -> Tensor:
    return like.new_empty(batch, vectors * (vectors - 1) // 2)


def _room_for_pairs(vectors: Tensor, first: Tensor | None) -> Tensor:
    if vectors.ndim != 3 or (first is not None and first.shape != (vectors.shape[0], vectors.shape[2])):
        found = f"{list(vectors.shape)} and {None if first is None else list(first.shape)}"
        raise ValueError(f"vectors must be [batch, features, dim] and first [batch, dim] or none, got {found}")
    return _room(vectors, vectors.shape[0], vectors.shape[1] + (first is not None))


def _pair_vectors(vectors: Tensor, first: Tensor | None) -> Tensor:
    out, functions = _room_for_pairs(vectors, first), _functions(vectors, first)
    if functions is None:
        with torch.autocast(vectors.device.type, enabled=False):
            return plain(vectors, first)
    vectors, first = _contiguous(vectors, first)
    threads = native.threads(vectors.numel() + out.numel())
    functions.pair_vectors(*native.pointers(first, vectors, out), *vectors.shape, threads)
    return out


def _gradients(gradient: Tensor, vectors: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    room, functions = _room_for_pairs(vectors, first), _functions(gradient, vectors, first)
    if gradient.shape != room.shape:
        raise ValueError(f"the gradient of these pairs is {list(room.shape)}, got {list(gradient.shape)}")
    if functions is None:
        with torch.autocast(vectors.device.type, enabled=False):
            return _plain_gradients(gradient, vectors, first)
    gradient, vectors, first = _contiguous(gradient, vectors, first)
    of_vectors, of_first = _gradients_room(gradient, vectors, first)
    threads = native.threads(vectors.numel() + gradient.numel())
    pointers = native.pointers(gradient, first, vectors, of_first, of_vectors)
    functions.pair_gradients(*pointers, *vectors.shape, threads)
    return of_vectors, of_first


def _plain_gradients(gradient: Tensor, vectors: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    together = _together(vectors, first)
    batch, count, _ = together.shape
    below = below_diagonal(count, together.device).expand(batch, -1)
    weights = gradient.new_zeros(batch, count * count).scatter_(1, below, gradient).view(batch, count, count)
    found = (weights + weights.mT) @ together
    if first is None:
        return found, found.new_empty(0)
    return found[:, 1:].clone(), found[:, 0].clone()


def _gradients_room(gradient: Tensor, vectors: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return memory for both gradients; that of a first vector which is not there is empty."""
    return vectors.new_empty(vectors.shape), vectors.new_empty(0 if first is None else first.shape)


def _contiguous(*given: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in given]


def _functions(*floats: Tensor | None) -> Any:
    ours = all(t is None or (t.is_cpu and t.dtype == torch.float32) for t in floats)
    return native.library("interaction") if ours else None


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    vectors, first = ctx.saved_tensors
    of_vectors, of_first = pair_gradients(gradient, vectors, first)
    return of_vectors, None if first is None else of_first


def _no_second(ctx: Any, *gradients: Tensor) -> NoReturn:
    raise NotImplementedError("the products of pairs have no second derivative; `plain` has")


def _pair_rows(table: Tensor, index: Tensor, first: Tensor | None) -> Tensor:
    if kernels := gpu.library("interaction", table):
        return kernels.pair_rows(table, index, first)
    return pairs(gather.rows(table, index), first)


def _pair_blocks(array: Tensor, ids: Tensor, first: Tensor | None, *where: Tensor | int | None) -> Tensor:
    if kernels := gpu.library("interaction", array):
        return kernels.pair_blocks(array, ids, first, *where)
    return pairs(robe.read_blocks(array, ids, *where)[0], first)


def _room_for_lookup(numbers: Tensor, ids: Tensor, first: Tensor | None, *_: Tensor | int | None) -> Tensor:
    return _room(numbers, ids.shape[0], ids.shape[1] + (first is not None))


# vectors [batch, features, dim], first [batch, dim] or none
pair_vectors = operator(
    "pair_vectors(Tensor vectors, Tensor? first) -> Tensor",
    _pair_vectors,
    _room_for_pairs,
    backward=_backward,
    save=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
pair_gradients = operator(
    "pair_gradients(Tensor gradient, Tensor vectors, Tensor? first) -> (Tensor, Tensor)",
    _gradients,
    _gradients_room,
    backward=_no_second,
    save=lambda ctx, inputs, output: None,
)
# index [batch, features], first [batch, width] or none
pair_rows = operator("pair_rows(Tensor table, Tensor index, Tensor? first) -> Tensor", _pair_rows, _room_for_lookup)
# as `robe.read_blocks`
pair_blocks = operator(
    "pair_blocks(Tensor array, Tensor ids, Tensor? first, Tensor table, Tensor piece, Tensor multiplier, int kind, "
    "Tensor sizes, Tensor bases, int block_size, Tensor? own) -> Tensor",
    _pair_blocks,
    _room_for_lookup,
)
