"""Rows of a table by index: read, summed into a gradient, or trained in place.

    rows(table, index)[j] = table[index[j]]
    sum_rows(g, index, n)[r] = sum over {j: index[j] = r} of g[j]
    train_rows(table, total, index, g, lr, eps): with G = sum_rows(g, index, n), for the rows r that occur,
        SGD, total None:       table[r] -= lr G[r]
        row-wise Adagrad:      total[r] += mean(G[r]^2),   table[r] -= lr G[r] / (sqrt(total[r]) + eps)

Training reads each gradient and writes each touched row once; no gradient tensor is made. Every row has one
writer, which adds in the order of the batch (SGD) or against it (Adagrad): the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketrec.kernels import gpu, native
from pocketrec.kernels.operators import on_processor, operator


def check_ids(ids: Tensor, limits: Tensor) -> tuple[Tensor, int]:
    """Widen ids and find one outside its table, in one pass.

    Args:
        ids: int32 or int64 [batch, features], on the CPU.
        limits: int64 [features], rows of each table.

    Returns:
        The ids as int64, and the first flat position where 0 <= id < limit does not hold, or -1.
    """
    functions = native.library("gather")
    if functions is None or ids.dtype not in (torch.int32, torch.int64):
        ids = ids.long()
        bad = ((ids < 0) | (ids >= limits)).flatten()
        return ids, int(bad.byte().argmax()) if bad.any() else -1
    ids = ids.contiguous()
    if ids.dtype is torch.int64:
        bad = functions.check_int64(*map(native.pointer, (ids, limits)), *ids.shape, native.threads(ids.numel()))
        return ids, bad
    wide = torch.empty_like(ids, dtype=torch.int64)
    pointers = map(native.pointer, (ids, limits, wide))
    return wide, functions.check_int32(*pointers, *ids.shape, native.threads(ids.numel()))


def _rows(table: Tensor, index: Tensor) -> Tensor:
    if kernels := gpu.library("gather", table):
        return kernels.rows(table, index)
    functions = native.library("gather") if on_processor(table) else None
    if functions is None:
        return F.embedding(index, table)
    index = index.long().contiguous()
    out = table.new_empty(*index.shape, table.shape[1])
    pointers = map(native.pointer, (table, index, out))
    bad = functions.gather(*pointers, *table.shape, index.numel(), native.threads(out.numel()))
    _check(index, bad, table)
    return out


def _sum_rows(gradient: Tensor, index: Tensor, count: int) -> Tensor:
    width = gradient.shape[-1]
    gradient = gradient.contiguous()
    if kernels := gpu.library("gather", gradient):
        return kernels.sum_rows(gradient, index, count)
    table = gradient.new_zeros(count, width)
    functions = native.library("gather") if on_processor(gradient) else None
    if functions is None:
        return table.index_add_(0, index.long().flatten(), gradient.view(-1, width))
    _train(functions.sgd, table, None, index, gradient, -1.0, 0.0)
    return table


def _train_rows(table: Tensor, total: Tensor | None, index: Tensor, gradient: Tensor, lr: float, eps: float) -> None:
    torch.autograd.graph.increment_version([table] if total is None else [table, total])
    gradient = gradient.contiguous()
    if kernels := gpu.library("gather", table, gradient):
        return kernels.train_rows(table, total, index, gradient, lr, eps)
    functions = native.library("gather") if on_processor(table) and on_processor(gradient) else None
    if functions is None:
        rows, place = index.long().flatten().unique(return_inverse=True)
        gradient = gradient.view(-1, table.shape[1])
        summed = gradient.new_zeros(len(rows), table.shape[1]).index_add_(0, place, gradient)
        if total is not None:
            total[rows] += summed.square().mean(1)
            summed /= (total[rows].sqrt() + eps).unsqueeze(1)
        table.index_add_(0, rows, summed, alpha=-lr)
    else:
        _train(functions.sgd if total is None else functions.adagrad, table, total, index, gradient, lr, eps)


def _train(
    function: Callable, table: Tensor, total: Tensor | None, index: Tensor, gradient: Tensor, *rates: float
) -> None:
    index = index.long().contiguous()
    pointers = map(native.pointer, (table, total, index, gradient))
    bad = function(*pointers, *table.shape, index.numel(), *rates, native.threads(gradient.numel()))
    _check(index, bad, table)


def _check(index: Tensor, bad: int, table: Tensor) -> None:
    if bad >= 0:
        raise IndexError(f"index {index.flatten()[bad].item()} is outside a table of {len(table)} rows")


rows = operator(
    "rows(Tensor table, Tensor index) -> Tensor",
    _rows,
    lambda table, index: table.new_empty(*index.shape, table.shape[1]),
    backward=lambda ctx, gradient: (sum_rows(gradient, ctx.index, ctx.count), None),
    save=lambda ctx, inputs, output: ctx.__dict__.update(index=inputs[1], count=inputs[0].shape[0]),
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
