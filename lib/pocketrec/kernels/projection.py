"""Rows of stacked tables, each multiplied by the matrix of its table: a wide table trained, a narrow one seen.

    project(table, ids, *Tables, matrices)[b, f] = table_rows(table, ids, *Tables)[b, f] @ matrices[f], see `gather`
    gradients(g, table, index, matrices): the gradients of both, dense
    train(table, total, index, g, matrices, lr, eps): trains the table as `gather.train_rows` does, and returns the
        gradient of the matrices

The C++ multiplies as it reads. To train it sums the gradients of a row that occurs often and multiplies once, in an
order that the batch alone decides: the same bits for any number of threads. A GPU's kernels do the same with matrices
that fit on chip. Elsewhere rows are read, then multiplied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pocketrec.kernels import gather, gpu, native
from pocketrec.kernels.operators import on_processor, operator


def _project(
    table: Tensor,
    ids: Tensor,
    limits: Tensor,
    starts: Tensor,
    hash: Tensor | None,
    matrices: Tensor,
    keep: bool = True,
) -> tuple[Tensor, Tensor]:
    if kernels := _kernels(table, matrices):
        index = gather.stacked(ids, gather.Tables(limits, starts, hash))
        return kernels.project(table, index, matrices), index if keep else index.new_empty(0)
    functions = _functions(table, matrices)
    if functions is None:
        rows, index = gather.table_rows(table, ids, limits, starts, hash, keep)
        return torch.einsum("bfk,fkd->bfd", rows, matrices), index
    ids, size = gather.integers(ids)
    (batch, features), (_, width, columns) = ids.shape, matrices.shape
    out = table.new_empty(batch, features, columns)
    index = ids.new_empty(batch, features, dtype=torch.int64) if keep else gather.NOWHERE
    pointers = native.pointers(table, ids, limits, starts, hash, matrices, index if keep else None, out)
    shape = (len(table), width, batch, features, columns)
    gather.refuse(ids, limits, functions.project(*pointers, *shape, size, native.threads(ids.numel() * width)))
    return out, index


def _gradients(gradient: Tensor, table: Tensor, index: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    dense = torch.zeros_like(table)
    return dense, _train_into(dense, None, table, index, gradient, matrices, -1.0, 0.0)


def _train(
    table: Tensor, total: Tensor | None, index: Tensor, gradient: Tensor, matrices: Tensor, lr: float, eps: float
) -> Tensor:
    torch.autograd.graph.increment_version([table] if total is None else [table, total])
    return _train_into(table, total, table, index, gradient, matrices, lr, eps)


def _train_into(
    target: Tensor, total: Tensor | None, table: Tensor, index: Tensor, gradient: Tensor, matrices: Tensor, *rates: Any
) -> Tensor:
    """Train `target`, which may be the table, by the gradient at the table; return that of the matrices."""
    gradient = gradient.contiguous()
    if kernels := _kernels(table, matrices, target, gradient):
        return kernels.train(target, total, table, index, gradient, matrices, *rates)
    functions = _functions(table, matrices) if on_processor(gradient) else None
    if functions is None:
        rows = gather.rows(table, index)
        gather.train_rows(target, total, index, torch.einsum("bfd,fkd->bfk", gradient, matrices), *rates)
        return torch.einsum("bfk,bfd->fkd", rows, gradient)
    index, found = index.long().contiguous(), torch.empty_like(matrices)
    pointers = native.pointers(table, target, total, index, gradient, matrices, found)
    (batch, features), (_, width, columns) = index.shape, matrices.shape
    shape = (len(table), width, batch, features, columns)
    bad = functions.train_projected(*pointers, *shape, *rates, native.threads(index.numel() * width))
    gather.refuse_index(index, bad, table)
    return found


def _kernels(table: Tensor, matrices: Tensor, *floats: Tensor) -> Any:
    kernels = gpu.library("projection", table, matrices, *floats)
    return kernels if kernels and kernels.tiles(*matrices.shape[1:]) else None


def _functions(table: Tensor, matrices: Tensor) -> Any:
    return native.library("projection") if on_processor(table) and on_processor(matrices) else None


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    table, ids, *_, matrices, _ = inputs
    ctx.save_for_backward(table, gather.kept(output[1], ids), matrices)


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    of_table, of_matrices = gradients(gradient, *ctx.saved_tensors)
    return of_table, *[None] * 4, of_matrices, None


# project(table [rows, k], ids, *Tables, matrices [features, k, d], keep) -> the products [batch, features, d], and
# their index as `gather.table_rows` gives it
project = operator(
    "project(Tensor table, Tensor ids, Tensor limits, Tensor starts, Tensor? hash, Tensor matrices, bool keep=True) "
    "-> (Tensor, Tensor)",
    _project,
    lambda table, ids, limits, starts, hash, matrices, keep=True: (
        table.new_empty(*ids.shape, matrices.shape[2]),
        ids.new_empty(ids.shape if keep else (0,), dtype=torch.int64),
    ),
    backward=_backward,
    save=_save,
)
gradients = operator(
    "project_gradients(Tensor gradient, Tensor table, Tensor index, Tensor matrices) -> (Tensor, Tensor)",
    _gradients,
    lambda gradient, table, index, matrices: (torch.empty_like(table), torch.empty_like(matrices)),
)
train = operator(
    "train_projected(Tensor(a!) table, Tensor(b!)? total, Tensor index, Tensor gradient, Tensor matrices, float lr, "
    "float eps) -> Tensor",
    _train,
    lambda table, total, index, gradient, matrices, lr, eps: torch.empty_like(matrices),
)
