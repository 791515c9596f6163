"""Blocks of one array: placed by a hash of (feature, id, block), read, and summed or trained in place.

    hash(f, x, c) = multiplier_c x + table_f + piece_c, reduced as `Hash.kind` says
    start(f, x, c) = base_f + hash(f, x, c) reduced to size_f
    read_blocks(array, ...)[b, f, c Z + i] = array[base_f + (start - base_f + i) mod size_f]

The kinds of hash: modulo 2^61 - 1 (`universal`), modulo 2^64 with its high word kept (`multiply_shift`), and modulo
2038074743 (`authors`, whose blocks never wrap); `pocketrec.embeddings.robe` says where each comes from. Training gives
every element one writer: the same bits for any number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pocketrec.kernels import gather, gpu, multiply_shift, native, universal_hash
from pocketrec.kernels.operators import on_processor, operator

HASHES = ("universal", "multiply_shift", "authors")
UNIVERSAL, MULTIPLY_SHIFT, AUTHORS = range(3)
AUTHORS_PRIME = 2038074743


class Hash(NamedTuple):
    """A hash of (feature, id, piece): int64 `table` [features], `piece` and `multiplier` [pieces], one of `HASHES`."""

    table: Tensor
    piece: Tensor
    multiplier: Tensor
    kind: int


class Windows(NamedTuple):
    """Parts of the array, one for all features or one each: int64 `sizes` and `bases` [1 or features]."""

    sizes: Tensor
    bases: Tensor
    block_size: int


def hashed(ids: Tensor, hash: Hash) -> Tensor:
    """Hash (feature, id, piece), not yet reduced to a size: [batch, features] -> int64 [batch, features, pieces]."""
    ids, table = ids.unsqueeze(-1), hash.table.unsqueeze(-1)
    if hash.kind == UNIVERSAL:
        return universal_hash.add(universal_hash.add(universal_hash.multiply(hash.multiplier, ids), table), hash.piece)
    total = ids * hash.multiplier + table + hash.piece
    return multiply_shift.high_word(total) if hash.kind == MULTIPLY_SHIFT else total % AUTHORS_PRIME


def starts(ids: Tensor, place: Hash, windows: Windows, own: Tensor | None = None) -> Tensor:
    """Return where blocks start: ids [batch, features] -> int64 [batch, features, blocks].

    Where `own` [features] is true, ids keep blocks of their own, one after another.
    """
    sizes, bases, block_size = windows.sizes.unsqueeze(1), windows.bases.unsqueeze(1), windows.block_size
    value, blocks = hashed(ids, place), len(place.piece)
    if place.kind == MULTIPLY_SHIFT:
        start = (value * sizes) >> 32
    else:
        start = value % (sizes - block_size + 1 if place.kind == AUTHORS else sizes)
    if own is not None:
        following = ids.unsqueeze(-1) * blocks + torch.arange(blocks, device=ids.device)
        start = torch.where(own.unsqueeze(1), following * block_size, start)
    return start + bases


def elements(starts: Tensor, windows: Windows) -> Tensor:
    """Return the index of every element, [batch, features, blocks] -> [batch, features, blocks, block_size]."""
    sizes, bases = windows.sizes.view(-1, 1, 1), windows.bases.view(-1, 1, 1)
    within = starts.unsqueeze(-1) - bases + torch.arange(windows.block_size, device=starts.device)
    return within % sizes + bases


def _read_by_torch(
    array: Tensor, ids: Tensor, place: Hash, windows: Windows, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    if kernels := gpu.library("robe", array):
        return kernels.read_blocks(array, ids, *place, *windows, own)
    start = starts(ids, place, windows, own)
    index = elements(start, windows)
    return array.index_select(0, index.flatten()).view(index.shape).flatten(2), start


def _read(
    array: Tensor,
    ids: Tensor,
    table: Tensor,
    piece: Tensor,
    multiplier: Tensor,
    kind: int,
    sizes: Tensor,
    bases: Tensor,
    block_size: int,
    own: Tensor | None,
    limits: Tensor | None = None,
    keep: bool = True,
) -> tuple[Tensor, Tensor]:
    functions = native.library("robe") if on_processor(array) else None
    if functions is None:
        place, windows = Hash(table, piece, multiplier, kind), Windows(sizes, bases, block_size)
        out, start = _read_by_torch(array, ids if limits is None else gather.checked(ids, limits), place, windows, own)
        return out, start if keep else start.new_empty(0)
    ids, size = gather.integers(ids)
    batch, features, blocks = *ids.shape, piece.numel()
    out = array.new_empty(batch, features, blocks * block_size)
    start = ids.new_empty(batch, features, blocks, dtype=torch.int64) if keep else gather.NOWHERE
    kept = start if keep else None
    pointers = native.pointers(array, ids, limits, table, piece, multiplier, sizes, bases, own, kept, out)
    shape = (batch, features, blocks, sizes.numel(), block_size)
    bad = functions.read_blocks(*pointers, *shape, size, kind, native.threads(out.numel()))
    if bad >= 0:
        if limits is not None and not 0 <= ids.flatten()[bad] < limits[bad % features]:
            gather.refuse(ids, limits, bad)
        raise IndexError(f"id {ids.flatten()[bad].item()} has no blocks of its own")
    return out, start


def _sum(
    gradient: Tensor,
    starts: Tensor,
    sizes: Tensor,
    bases: Tensor,
    block_size: int,
    count: int,
    ids: Tensor | None = None,
    limits: Tensor | None = None,
) -> Tensor:
    array = gradient.new_zeros(count)
    _add(array, starts, gradient.contiguous(), Windows(sizes, bases, block_size), 1.0, ids, limits)
    return array


def _add(
    array: Tensor,
    starts: Tensor,
    gradient: Tensor,
    windows: Windows,
    scale: float,
    ids: Tensor | None,
    limits: Tensor | None,
) -> None:
    """Add scaled gradients of blocks to an array, in place."""
    if kernels := gpu.library("robe", array, gradient):
        return kernels.add_blocks(array, starts, gradient, *windows, scale, ids, limits)
    functions = native.library("robe") if on_processor(array) and on_processor(gradient) else None
    if functions is None:
        array.index_add_(0, elements(starts, windows).flatten(), gradient.flatten(), alpha=scale)
        return
    starts = starts.contiguous()
    pointers = native.pointers(array, starts, gradient, windows.sizes, windows.bases)
    shape = (len(array), *starts.shape, len(windows.sizes), windows.block_size)
    functions.add_blocks(*pointers, *shape, scale, native.threads(gradient.numel()))


def _train(
    array: Tensor,
    total: Tensor | None,
    starts: Tensor,
    gradient: Tensor,
    sizes: Tensor,
    bases: Tensor,
    block_size: int,
    lr: float,
    eps: float,
    ids: Tensor | None = None,
    limits: Tensor | None = None,
) -> None:
    torch.autograd.graph.increment_version([array] if total is None else [array, total])
    gradient, windows = gradient.contiguous(), Windows(sizes, bases, block_size)
    functions = native.library("robe") if on_processor(array) and on_processor(gradient) else None
    if total is None:
        _add(array, starts, gradient, windows, -lr, ids, limits)
    elif kernels := gpu.library("robe", array, total, gradient):
        kernels.adagrad(array, total, _sum(gradient, starts, *windows, len(array), ids, limits), lr, eps)
    elif functions is None:
        summed = _sum(gradient, starts, *windows, len(array))
        total.addcmul_(summed, summed)
        array.addcdiv_(summed, total.sqrt().add_(eps), value=-lr)
    else:
        # to pass over all of the array is cheaper than to sort out its touched lines, until it is much larger
        starts, scratch = starts.contiguous(), _zeros(len(array)) if len(array) <= 4 * gradient.numel() else None
        pointers = native.pointers(array, total, scratch, starts, gradient, sizes, bases)
        shape = (len(array), *starts.shape, len(sizes), block_size)
        functions.adagrad_blocks(*pointers, *shape, lr, eps, native.threads(gradient.numel()))


_scratch = torch.zeros(0, dtype=torch.float32)


def _zeros(count: int) -> Tensor:
    """Return at least `count` zeros, which the caller leaves as zeros."""
    global _scratch
    if len(_scratch) < count:
        _scratch = torch.zeros(count, dtype=torch.float32)
    return _scratch


def _flip(values: Tensor, ids: Tensor, table: Tensor, piece: Tensor, multiplier: Tensor, kind: int) -> Tensor:
    if kernels := gpu.library("robe", values):
        return kernels.flip(values, ids, table, piece, multiplier, kind)
    functions = native.library("robe") if on_processor(values) else None
    if functions is None:
        value = hashed(ids, Hash(table, piece, multiplier, kind))
        bit = value & 1 if kind == UNIVERSAL else value >> 31
        return values * (2 * bit - 1)
    ids, out = ids.long().contiguous(), torch.empty_like(values)
    pointers = native.pointers(values, ids, table, piece, multiplier, out)
    functions.flip(*pointers, *out.shape, kind, native.threads(out.numel()))
    return out


_HASH, _WINDOWS = (
    "Tensor table, Tensor piece, Tensor multiplier, int kind",
    "Tensor sizes, Tensor bases, int block_size",
)

# read_blocks(array, ids, *Hash, *Windows, own, limits, keep) -> the embeddings [batch, features, dim], and `starts`,
# empty unless they are kept; an id that is not below its limit raises `IndexError`, on a processor
read_blocks = operator(
    f"read_blocks(Tensor array, Tensor ids, {_HASH}, {_WINDOWS}, Tensor? own, Tensor? limits=None, bool keep=True) "
    "-> (Tensor, Tensor)",
    _read,
    lambda array, ids, table, piece, multiplier, kind, sizes, bases, block_size, own, limits=None, keep=True: (
        array.new_empty(*ids.shape, piece.shape[0] * block_size),
        ids.new_empty((*ids.shape, piece.shape[0]) if keep else (0,), dtype=torch.int64),
    ),
    backward=lambda ctx, gradient, _: (
        sum_blocks(gradient, ctx.starts, *ctx.windows, ctx.count, *ctx.which),
        *[None] * 11,
    ),
    save=lambda ctx, inputs, output: ctx.__dict__.update(
        starts=gather.kept(output[1], inputs[1]),
        windows=inputs[6:9],
        count=inputs[0].shape[0],
        which=(inputs[1], inputs[10]),
    ),
)
# sum_blocks(gradient, starts, *Windows, count, ids, limits) -> the array's gradient [count]; a GPU that is told which
# ids were read, and how many each feature has, sums the gradients of those that occur often first
sum_blocks = operator(
    f"sum_blocks(Tensor gradient, Tensor starts, {_WINDOWS}, SymInt count, Tensor? ids=None, Tensor? limits=None) "
    "-> Tensor",
    _sum,
    lambda gradient, starts, sizes, bases, block_size, count, ids=None, limits=None: gradient.new_empty(count),
)
# train_blocks: `gather.train_rows` for blocks; Adagrad's `total` has one number an element
train_blocks = operator(
    f"train_blocks(Tensor(a!) array, Tensor(b!)? total, Tensor starts, Tensor gradient, {_WINDOWS}, float lr, "
    "float eps, Tensor? ids=None, Tensor? limits=None) -> ()",
    _train,
    lambda *_: None,
)
# flip(values, ids, *Hash): every value [batch, features, dim] times +1 or -1, by one bit of a hash
flip = operator(
    f"flip(Tensor values, Tensor ids, {_HASH}) -> Tensor",
    _flip,
    lambda values, ids, table, piece, multiplier, kind: torch.empty_like(values),
    backward=lambda ctx, gradient: (flip(gradient, *ctx.where), *[None] * 5),
    save=lambda ctx, inputs, output: ctx.__dict__.update(where=inputs[1:]),
)
