"""Rows of tables that are products of small matrices, one slice of each core.

    row(t, x) = G_1[i_1] .. G_K[i_K],   x = (i_1 p_2 + i_2) p_3 + i_3,   G_k[i] in R^{r_{k-1} x q_k x r_k}
    multiply(cores, *Place)[j] = row(tables[j], ids[j])
    gradients(g, cores, *Place)[k] = the gradient of core k, dense
    train(cores, totals, g, *Place, lr, eps): each core as `gather.train_rows` does, SGD where there are no totals

A core [slices, r_{k-1} q_k r_k] holds the slices of all tables, one table after another: `radices` [tables, K] says
how many each has, and `factors` are the q_k. ids are [batch, tables], or [n] with `tables` [n] beside them; an id
below 0 asks for nothing and gets zeros.

The C++ takes three cores, and reads two. Of three it computes a repeated id once and G_1[i_1] G_2[i_2] once a pair,
and sums gradients in an order that does not depend on the number of threads: the same bits for any. For some sizes
(`constants`) it is compiled once more, with loops over matrices of just these. A GPU's kernels, for as many cores and
ranks that fit on chip, sum in an order of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pocketrec.kernels import gather, gpu, native
from pocketrec.kernels.operators import on_processor, operator


class Place(NamedTuple):
    """Which rows, as above: int64 ids [batch, tables] or [n], `tables` [n] or None, `radices` [tables, cores]."""

    ids: Tensor
    tables: Tensor | None
    radices: Tensor
    factors: Sequence[int]


def slices(ids: Tensor, tables: Tensor | None, radices: Tensor) -> Tensor:
    """Return which row of each core holds an id's slice, int64 [..., cores]."""
    strides = radices.flip(1).cumprod(1).flip(1) // radices  # the last digit counts ones
    starts = radices.cumsum(0) - radices
    where = slice(None) if tables is None else tables
    return ids.unsqueeze(-1) // strides[where] % radices[where] + starts[where]


def chain(parts: Sequence[Tensor], factors: Sequence[int]) -> list[Tensor]:
    """Multiply slices, [n, r_{k-1} q_k r_k] each -> the products from the left, [n, q_1 .. q_k, r_k] each."""
    products, count = [parts[0].new_ones(len(parts[0]), 1, 1)], len(parts[0])
    for part, q in zip(parts, factors, strict=True):
        left = products[-1]
        product = torch.bmm(left, part.view(count, left.shape[2], part.shape[1] // left.shape[2]))
        products.append(product.view(count, left.shape[1] * q, part.shape[1] // (left.shape[2] * q)))
    return products[1:]


def _multiply(cores: Sequence[Tensor], *place: Any) -> Tensor:
    place = Place(*place)
    if kernels := _kernels(cores, place.factors):
        return kernels.multiply(cores, *place)
    functions, shape = _functions(cores, place.factors), (*place.ids.shape, prod(place.factors))
    if functions is None or len(cores) not in (2, 3):
        kept, _, parts = _parts(cores, place)
        out = cores[0].new_zeros(shape)
        out[kept] = chain(parts, place.factors)[-1].squeeze(2)
        return out
    place, out = _contiguous(place), cores[0].new_empty(shape)
    read = functions.tensor_train if len(cores) == 3 else functions.tensor_train_of_two
    tensors = (*cores, *place[:3], out)
    _checked(place, read(*native.pointers(*tensors), *_sizes(cores, place), _threads(place)))
    return out


def _gradients(gradient: Tensor, cores: Sequence[Tensor], *place: Any) -> list[Tensor]:
    dense = [torch.zeros_like(core) for core in cores]
    _train_into(dense, None, cores, gradient, Place(*place), -1.0, 0.0)
    return dense


def _train(cores: Sequence[Tensor], totals: Sequence[Tensor], gradient: Tensor, *rest: Any) -> None:
    *place, lr, eps = rest
    _train_into(cores, totals, cores, gradient, Place(*place), lr, eps)


def _train_into(
    targets: Sequence[Tensor],
    totals: Sequence[Tensor] | None,
    cores: Sequence[Tensor],
    gradient: Tensor,
    place: Place,
    lr: float,
    eps: float,
) -> None:
    """Train `targets`, which may be the cores, by the gradient at the cores."""
    torch.autograd.graph.increment_version([*targets, *(totals or [])])
    totals, gradient = totals or [None] * len(cores), gradient.contiguous()
    if len(cores) == 3 and (kernels := _kernels(cores, place.factors, *targets, gradient)):
        return kernels.train(targets, totals, cores, gradient, *place, lr, eps)
    functions = _functions(cores, place.factors) if len(cores) == 3 and on_processor(gradient) else None
    if functions is None:
        kept, index, parts = _parts(cores, place)
        shares = _chain_gradients(parts, place.factors, gradient[kept])
        for target, total, rows, share in zip(targets, totals, index.unbind(1), shares, strict=True):
            gather.train_rows(target, total, rows, share, lr, eps)
        return
    place = _contiguous(place)
    tensors = (*cores, *targets, *totals, *place[:3], gradient)
    sizes = (*_sizes(cores, place), lr, eps, _threads(place))
    _checked(place, functions.train_tensor_train(*native.pointers(*tensors), *sizes))


def _chain_gradients(parts: Sequence[Tensor], factors: Sequence[int], gradient: Tensor) -> list[Tensor]:
    """Return the gradients of slices [n, ...] by that of their product, [n, dim]."""
    products, found = chain(parts, factors), []
    right = gradient.unsqueeze(2)  # [n, q_1 .. q_k, r_k]
    for left, part in zip(products[-2::-1], parts[:0:-1], strict=True):
        matrix = part.view(len(part), left.shape[2], part.shape[1] // left.shape[2])
        right = right.reshape(len(part), left.shape[1], matrix.shape[2])
        found.append(torch.bmm(left.mT, right).flatten(1))
        right = torch.bmm(right, matrix.mT)
    return [right.flatten(1), *reversed(found)]


def _parts(cores: Sequence[Tensor], place: Place) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return which ids ask for something, and for those the rows of the cores and what they hold."""
    kept, limits = place.ids >= 0, place.radices.prod(1)
    wrong = place.ids >= (limits if place.tables is None else limits[place.tables])
    _checked(place, int(wrong.flatten().byte().argmax()) if wrong.any() else -1)
    index = slices(place.ids, place.tables, place.radices)[kept]
    return kept, index, [core.index_select(0, rows) for core, rows in zip(cores, index.unbind(1), strict=True)]


def _checked(place: Place, wrong: int) -> None:
    if wrong >= 0:
        raise IndexError(f"id {place.ids.flatten()[wrong].item()} is outside its table")


def _kernels(cores: Sequence[Tensor], factors: Sequence[int], *floats: Tensor) -> Any:
    kernels = gpu.library("tensor_train", *cores, *floats)
    return kernels if kernels and kernels.tiles(cores[0].shape[1] // factors[0], *factors) else None


def _functions(cores: Sequence[Tensor], factors: Sequence[int]) -> Any:
    if not all(map(on_processor, cores)):
        return None
    known = constants(cores[0].shape[1] // factors[0], *factors)
    return native.library("tensor_train", known) or native.library("tensor_train")


@cache
def constants(rank: int, *factors: int) -> str:
    """Return what a library for these sizes alone is compiled with; empty where it would gain little, or is rare."""
    if rank not in (8, 16, 32) or len(factors) not in (2, 3) or not {2, 4, 8, 16}.issuperset(factors):
        return ""
    return f"-DRANK={rank} " + " ".join(f"-DQ{k}={q}" for k, q in enumerate((1, *factors)[-3:], 1))


def _contiguous(place: Place) -> Place:
    ids, tables = (None if t is None else t.long().contiguous() for t in place[:2])
    return Place(ids, tables, place.radices.contiguous(), place.factors)


def _sizes(cores: Sequence[Tensor], place: Place) -> tuple[int, ...]:
    rank = cores[0].shape[1] // place.factors[0]
    return len(place.radices), place.ids.numel(), rank, *place.factors


def _threads(place: Place) -> int:
    return native.threads(place.ids.numel(), 128)


_PLACE = "Tensor ids, Tensor? tables, Tensor radices, int[] factors"

multiply = operator(
    f"tensor_train(Tensor[] cores, {_PLACE}) -> Tensor",
    _multiply,
    lambda cores, ids, tables, radices, factors: cores[0].new_empty(*ids.shape, prod(factors)),
    backward=lambda ctx, gradient: (gradients(gradient, *ctx.inputs), *[None] * 4),
    save=lambda ctx, inputs, output: ctx.__dict__.update(inputs=inputs),
)
gradients = operator(
    f"tensor_train_gradients(Tensor gradient, Tensor[] cores, {_PLACE}) -> Tensor[]",
    _gradients,
    lambda gradient, cores, *_: [torch.empty_like(core) for core in cores],
)
train = operator(
    f"train_tensor_train(Tensor(a!)[] cores, Tensor(b!)[] totals, Tensor gradient, {_PLACE}, float lr, "
    "float eps) -> ()",
    _train,
    lambda *_: None,
)
