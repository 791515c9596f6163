"""Rows of a table by index: read, summed into a gradient, or trained in place.

    rows(table, index)[j] = table[index[j]]
    table_rows(table, ids, limits, starts)[b, f] = table[starts[f] + ids[b, f]], where 0 <= ids[b, f] < limits[f];
        with a hash, table[starts[f] + h_f(ids[b, f])]
    sum_rows(g, index, n)[r] = sum over {j: index[j] = r} of g[j]
    train_rows(table, total, index, g, lr, eps): with G = sum_rows(g, index, n), for the rows r that occur,
        SGD, total None:       table[r] -= lr G[r]
        row-wise Adagrad:      total[r] += mean(G[r]^2),   table[r] -= lr G[r] / (sqrt(total[r]) + eps)

Rows are float32 or bfloat16; sums, accumulators and updates are float32, and a row of bfloat16 is rounded once.

Training reads each gradient and writes each touched row once; no gradient tensor is made. Every row has one writer,
which adds in the order of the batch: the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketrec.kernels import gpu, native, operators, universal_hash
from pocketrec.kernels.operators import operator

DTYPES = (torch.float32, torch.bfloat16)
INTEGERS = {torch.int32: 4, torch.int64: 8}
NOWHERE = torch.empty(0, dtype=torch.int64)  # instead of where was read, if that is not kept


class Tables(NamedTuple):
    """Tables that are stacked in one: how many ids each has and where its rows start, int64 [features].

    Where ids share rows, `hash` has the a, b and size of each table's hash, int64 [3, features]: see `universal_hash`.
    """

    limits: Tensor
    starts: Tensor
    hash: Tensor | None = None


def check_ids(ids: Tensor, limits: Tensor) -> Tensor:
    """Widen ids to int64, in one pass that raises `IndexError` where 0 <= id < limit does not hold.

    Args:
        ids: int32 or int64 [batch, features], on the CPU.
        limits: int64 [features], rows of each table.
    """
    functions = native.library("gather")
    if functions is None:
        ids = ids.long()
        bad = ((ids < 0) | (ids >= limits)).flatten()
        refuse(ids, limits, int(bad.byte().argmax()) if bad.any() else -1)
        return ids
    ids, size = integers(ids)
    wide = torch.empty_like(ids, dtype=torch.int64) if size == 4 else None
    pointers = native.pointers(ids, limits, wide)
    refuse(ids, limits, functions.check_ids(*pointers, *ids.shape, size, native.threads(ids.numel())))
    return ids if wide is None else wide


def integers(ids: Tensor) -> tuple[Tensor, int]:
    """Return ids as the C++ takes them, contiguous, and the bytes of one: 4 or 8."""
    if ids.dtype not in INTEGERS:
        ids = ids.long()
    return ids.contiguous(), INTEGERS[ids.dtype]


def refuse(ids: Tensor, limits: Tensor, position: int) -> None:
    """Raise `IndexError` for the id at a flat position, unless that is negative."""
    if position >= 0:
        row, feature = divmod(position, ids.shape[1])
        raise IndexError(
            f"id {ids[row, feature].item()} of feature {feature} (row {row} of the batch) is outside its table "
            f"of {limits[feature].item()} rows"
        )


def kept(places: Tensor, ids: Tensor) -> Tensor:
    """Return where a lookup of ids has read, which its gradient needs."""
    if places.numel() < ids.numel():
        raise ValueError("a lookup has no gradient unless it is called with keep=True")
    return places


def stacked(ids: Tensor, tables: Tables) -> Tensor:
    """Return the rows of ids [batch, features] in tables that are stacked; where ids can be checked they are."""
    ids = checked(ids, tables.limits)
    return (ids if tables.hash is None else universal_hash.slot(ids, *tables.hash)) + tables.starts


def checked(ids: Tensor, limits: Tensor) -> Tensor:
    """Return ids as int64, checked by `check_ids` unless a GPU or a compiled graph has them."""
    return check_ids(ids, limits) if ids.is_cpu and not torch.compiler.is_compiling() else ids.long()


def noted(ids: Tensor, limits: Tensor, seen: Tensor) -> Tensor:
    """Return ids as int64, 0 instead of one outside its table; then `seen`, int32 [1], becomes 1, and nobody waits."""
    if kernels := gpu.library("ids", limits):
        return kernels.checked(ids, limits, seen)
    ids = ids.long()
    bad = (ids < 0) | (ids >= limits)
    seen |= bad.any()
    return ids.masked_fill(bad, 0)


def on_processor(floats: Tensor) -> bool:
    """Return whether the C++ takes these numbers."""
    return operators.on_processor(floats, DTYPES)


def _reader(table: Tensor) -> tuple[CDLL | None, Sequence[int]]:
    """Return the functions that read rows, and the shape in floats that they take a table to have; None for no way.

    To read is to copy: two bfloat16 pass for a float, unless one is left over, or they lie across two.
    """
    if not on_processor(table):
        return None, ()
    shape = table.shape
    if table.dtype is not torch.float32:
        rows, width = shape
        if width % 2 or table.data_ptr() % 4:
            return None, ()
        shape = rows, width // 2
    return native.library("gather"), shape


def _rows(table: Tensor, index: Tensor) -> Tensor:
    if kernels := gpu.library("gather", table):
        return kernels.rows(table, index)
    functions, shape = _reader(table)
    if functions is None:
        return F.embedding(index, table)
    index = index.long().contiguous()
    out = table.new_empty(*index.shape, table.shape[1])
    pointers = native.pointers(table, index, out)
    bad = functions.gather(*pointers, *shape, index.numel(), native.threads(out.numel()))
    refuse_index(index, bad, table)
    return out


def _table_rows(
    table: Tensor, ids: Tensor, limits: Tensor, starts: Tensor, hash: Tensor | None = None, keep: bool = True
) -> tuple[Tensor, Tensor]:
    if kernels := gpu.library("gather", table):
        ids = ids if hash is None else universal_hash.slot(ids.long(), *hash)
        return kernels.table_rows(table, ids, starts, keep)
    functions, shape = _reader(table)
    if functions is None:
        index = stacked(ids, Tables(limits, starts, hash))
        return _rows(table, index), index if keep else index.new_empty(0)
    ids, size = integers(ids)
    batch, features = ids.shape
    out = table.new_empty(batch, features, table.shape[1])
    index = ids.new_empty(batch, features, dtype=torch.int64) if keep else NOWHERE
    pointers = native.pointers(table, ids, limits, starts, hash, index if keep else None, out)
    bad = functions.gather_tables(*pointers, *shape, batch, features, size, native.threads(out.numel()))
    if bad >= 0:
        refuse(ids, limits, bad)
    return out, index


def _sum_rows(gradient: Tensor, index: Tensor, count: int) -> Tensor:
    gradient = gradient.contiguous()
    if kernels := gpu.library("gather", gradient):
        return kernels.sum_rows(gradient, index, count)
    table = gradient.new_zeros(count, gradient.shape[-1])
    if not _trained(table, None, index, gradient, -1.0, 0.0):
        wide = table.to(_exact(table))
        table.copy_(wide.index_add_(0, index.long().flatten(), gradient.view(-1, gradient.shape[-1]).to(wide.dtype)))
    return table


def _train_rows(table: Tensor, total: Tensor | None, index: Tensor, gradient: Tensor, lr: float, eps: float) -> None:
    torch.autograd.graph.increment_version([table] if total is None else [table, total])
    gradient = gradient.contiguous()
    if kernels := gpu.library("gather", table, gradient):
        return kernels.train_rows(table, total, index, gradient, lr, eps)
    if not _trained(table, total, index, gradient, lr, eps):
        rows, place = index.long().flatten().unique(return_inverse=True)
        before = table.index_select(0, rows)
        gradient = gradient.view(-1, table.shape[1]).to(_exact(gradient))
        summed = gradient.new_zeros(len(rows), table.shape[1]).index_add_(0, place, gradient)
        if total is not None:
            total[rows] += summed.square().mean(1)
            summed /= (total[rows].sqrt() + eps).unsqueeze(1)
        table.index_copy_(0, rows, before.sub(summed, alpha=lr).to(table.dtype))


def _exact(numbers: Tensor) -> torch.dtype:
    """Return the type in which such numbers are summed and updated."""
    return torch.promote_types(numbers.dtype, torch.float32)


def _trained(table: Tensor, total: Tensor | None, index: Tensor, gradient: Tensor, *rates: float) -> bool:
    """Train rows by the C++; return whether there is any for these numbers."""
    known = on_processor(table) and on_processor(gradient) and (total is None or operators.on_processor(total))
    functions = native.library("gather") if known else None
    if functions is None:
        return False
    index = index.long().contiguous()
    pointers, sizes = native.pointers(table, total, index, gradient), (table.element_size(), gradient.element_size())
    threads = native.threads(gradient.numel())
    bad = functions.train(*pointers, *table.shape, index.numel(), *rates, *sizes, threads)
    refuse_index(index, bad, table)
    return True


def refuse_index(index: Tensor, bad: int, table: Tensor) -> None:
    """Raise `IndexError` for the index at a flat position, unless that is negative."""
    if bad >= 0:
        raise IndexError(f"index {index.flatten()[bad].item()} is outside a table of {len(table)} rows")


rows = operator(
    "rows(Tensor table, Tensor index) -> Tensor",
    _rows,
    lambda table, index: table.new_empty(*index.shape, table.shape[1]),
    backward=lambda ctx, gradient: (sum_rows(gradient, ctx.index, ctx.count), None),
    save=lambda ctx, inputs, output: ctx.__dict__.update(index=inputs[1], count=inputs[0].shape[0]),
)
# table_rows(table, ids, *Tables, keep) -> the rows [batch, features, width], and their index, empty unless it is kept
table_rows = operator(
    "table_rows(Tensor table, Tensor ids, Tensor limits, Tensor starts, Tensor? hash=None, bool keep=True) "
    "-> (Tensor, Tensor)",
    _table_rows,
    lambda table, ids, limits, starts, hash=None, keep=True: (
        table.new_empty(*ids.shape, table.shape[1]),
        ids.new_empty(ids.shape if keep else (0,), dtype=torch.int64),
    ),
    backward=lambda ctx, gradient, _: (sum_rows(gradient, ctx.index, ctx.count), *[None] * 5),
    save=lambda ctx, inputs, output: ctx.__dict__.update(index=kept(output[1], inputs[1]), count=inputs[0].shape[0]),
)
sum_rows = operator(
    "sum_rows(Tensor gradient, Tensor index, SymInt count) -> Tensor",
    _sum_rows,
    lambda gradient, index, count: gradient.new_empty(count, gradient.shape[-1]),
)
train_rows = operator(
    "train_rows(Tensor(a!) table, Tensor(b!)? total, Tensor index, Tensor gradient, float lr, float eps) -> ()",
    _train_rows,
    lambda table, total, index, gradient, lr, eps: None,
)
