"""Rows of tensor trains on a GPU; `pocketrec.kernels.tensor_train` has the formulas.

Lookups are placed first, one launch: an id is read, its row of each core written (24 bytes). They are then sorted by
their slice of the middle core, the large one, which is so read from the L2 cache once for BLOCK_N lookups; when there
are fewer of them than slices the sort is saved. Nothing but embeddings is written, each once. Repeated ids are computed
again.

To train gives a program some hundred sorted lookups. It writes the gradients of their slices of the outer cores, one of
each a lookup, (q_1 + q_3) rank numbers, and the sum of those of the middle core, one for each slice that it meets:
what [lookups, rank q_2 rank] numbers would be is never written. `gather.train_rows` then sums what belongs to
one slice. No atomics: the same bits every time. Cores and sums are float32, products as torch allows
(`torch.set_float32_matmul_precision`, `gpu.precision`): to read makes them without matrix units, which is then faster.

Three cores are read and trained, two are read, as long as `tiles` finds room on chip for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from pocketrec.kernels.gpu import LEAST, SHARED, gather, launch, piece_of, precision

DTYPES = (torch.float32,)
PLACED = 256  # lookups a program places
CHUNK = 16  # numbers of the second rank on chip at once
TILE = 2048  # numbers of a tile that grows with the lookups


@triton.jit
def _place(p_ids, p_tables, p_radices, p_starts, p_index, count, TABLES: tl.constexpr, BLOCK: tl.constexpr):
    o_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < count
    # [BLOCK]
    b_id = tl.load(p_ids + o_n, mask=m_n, other=-1).to(tl.int64)
    b_table = o_n % TABLES
    if p_tables is not None:
        b_table = tl.load(p_tables + o_n, mask=m_n, other=-1).to(tl.int64)
    m_table = m_n & (b_table >= 0) & (b_table < TABLES)
    b_1 = tl.load(p_radices + b_table * 3, mask=m_table, other=1)
    b_2 = tl.load(p_radices + b_table * 3 + 1, mask=m_table, other=1)
    b_3 = tl.load(p_radices + b_table * 3 + 2, mask=m_table, other=1)
    m_inside = m_table & (b_id >= 0) & (b_id < b_1 * b_2 * b_3)
    p_start = p_starts + b_table * 3
    b_row1 = tl.load(p_start, mask=m_table, other=0) + b_id // (b_2 * b_3)
    b_row2 = tl.load(p_start + 1, mask=m_table, other=0) + b_id // b_3 % b_2
    b_row3 = tl.load(p_start + 2, mask=m_table, other=0) + b_id % b_3
    tl.store(p_index + o_n, tl.where(m_inside, b_row1, -1), mask=m_n)
    tl.store(p_index + count + o_n, tl.where(m_inside, b_row2, -1), mask=m_n)
    tl.store(p_index + 2 * count + o_n, tl.where(m_inside, b_row3, -1), mask=m_n)


@triton.jit
def _lookups(p_index, p_order, n, stop, count, BLOCK_N: tl.constexpr):
    """Return which lookups come next, and their rows of the outer cores, [BLOCK_N] each, -1 for none."""
    o_n = n + tl.arange(0, BLOCK_N)
    b_lookup = tl.where(o_n < stop, o_n, -1)
    if p_order is not None:
        b_lookup = tl.load(p_order + o_n, mask=o_n < stop, other=-1)
    b_row1 = tl.load(p_index + b_lookup, mask=b_lookup >= 0, other=-1)
    b_row3 = tl.load(p_index + 2 * count + b_lookup, mask=b_lookup >= 0, other=-1)
    return b_lookup, b_row1, b_row3


@triton.jit
def _matrices(b_row, o_i, o_j, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return where elements of some matrices lie, one behind another, and which there are: [BLOCK_N, BLOCK, BLOCK]."""
    o_i, o_j = o_i[None, :, None], o_j[None, None, :]
    b_row = b_row[:, None, None]
    return (b_row * ROWS + o_i) * COLUMNS + o_j, (b_row >= 0) & (o_i < ROWS) & (o_j < COLUMNS)


@triton.jit
def _middle(i_s, o_r, s, RANK: tl.constexpr, Q2: tl.constexpr, BLOCK_2: tl.constexpr, CHUNK: tl.constexpr):
    """Return where a slice of the middle core has some of its columns, [BLOCK_R, BLOCK_2 CHUNK], and which it has."""
    o_2, o_s = tl.arange(0, BLOCK_2 * CHUNK) // CHUNK, tl.arange(0, BLOCK_2 * CHUNK) % CHUNK + s
    o_r, m_column = o_r[:, None], (o_2 < Q2) & (o_s < RANK)
    return (i_s * RANK + o_r) * (Q2 * RANK) + o_2 * RANK + o_s, (i_s >= 0) & (o_r < RANK) & m_column


@triton.jit
def _outer(Q1: tl.constexpr, Q2: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr):
    """Return which row of an embedding [q_1 q_2, q_3] each of [BLOCK_1 BLOCK_2] is, or one that is not there."""
    o_1, o_2 = tl.arange(0, BLOCK_1 * BLOCK_2) // BLOCK_2, tl.arange(0, BLOCK_1 * BLOCK_2) % BLOCK_2
    return tl.where(o_2 < Q2, o_1 * Q2 + o_2, Q1 * Q2)


@triton.jit
def _multiply(b_left, b_right, PRECISION: tl.constexpr):
    """Multiply matrices, [BLOCK_N, I, K] and [BLOCK_N, K, J]; a product of a GPU has 16 terms or more."""
    if b_left.shape[2] < 16:
        return tl.sum(b_left[:, :, :, None] * b_right[:, None, :, :], 2)
    else:
        return tl.dot(b_left, b_right, input_precision=PRECISION)


@triton.jit
def _read(
    p_first,
    p_middle,
    p_last,
    p_index,
    p_slices,
    p_order,
    p_ends,
    p_out,
    count,
    piece,
    RANK: tl.constexpr,
    Q1: tl.constexpr,
    Q2: tl.constexpr,
    Q3: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr,
    BLOCK_3: tl.constexpr,
    BLOCK_R: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_1, o_3, o_r = tl.arange(0, BLOCK_1), tl.arange(0, BLOCK_3), tl.arange(0, BLOCK_R)
    start = tl.program_id(0).to(tl.int64) * piece
    end = tl.minimum(start + piece, count)
    while start < end:
        i_s, stop = tl.load(p_slices + start), end
        if p_ends is not None:
            stop = tl.minimum(end, tl.load(p_ends + i_s + 1))
        for n in range(start, stop, BLOCK_N):
            b_lookup, b_row1, b_row3 = _lookups(p_index, p_order, n, stop, count, BLOCK_N)
            # [BLOCK_N BLOCK_1, BLOCK_R]
            o_first, m_first = _matrices(b_row1, o_1, o_r, Q1, RANK)
            b_first = tl.load(p_first + o_first, mask=m_first, other=0).reshape(BLOCK_N * BLOCK_1, BLOCK_R)
            b_out = tl.zeros([BLOCK_N, BLOCK_1 * BLOCK_2, BLOCK_3], tl.float32)
            for s in range(0, RANK, CHUNK):
                o_s = s + tl.arange(0, CHUNK)
                # [BLOCK_N, BLOCK_1 BLOCK_2, CHUNK]
                if p_middle is None:
                    o_product, m_product = _matrices(b_row1, o_1, o_s, Q1, RANK)
                    b_product = tl.load(p_first + o_product, mask=m_product, other=0)
                else:
                    o_middle, m_middle = _middle(i_s, o_r, s, RANK, Q2, BLOCK_2, CHUNK)
                    b_middle = tl.load(p_middle + o_middle, mask=m_middle, other=0)
                    b_product = tl.dot(b_first, b_middle, input_precision=PRECISION)
                    b_product = b_product.reshape(BLOCK_N, BLOCK_1 * BLOCK_2, CHUNK)
                # [BLOCK_N, CHUNK, BLOCK_3]
                o_last, m_last = _matrices(b_row3, o_s, o_3, RANK, Q3)
                b_last = tl.load(p_last + o_last, mask=m_last, other=0)
                b_out += _multiply(b_product, b_last, PRECISION)
            o_out, m_out = _matrices(b_lookup, _outer(Q1, Q2, BLOCK_1, BLOCK_2), o_3, Q1 * Q2, Q3)
            tl.store(p_out + o_out, b_out, mask=m_out)
        start = stop


@triton.jit
def _share(
    p_first,
    p_middle,
    p_last,
    p_index,
    p_slices,
    p_order,
    p_ends,
    p_gradient,
    p_of_first,
    p_of_last,
    p_sums,
    p_owners,
    count,
    piece,
    RANK: tl.constexpr,
    Q1: tl.constexpr,
    Q2: tl.constexpr,
    Q3: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_1: tl.constexpr,
    BLOCK_2: tl.constexpr,
    BLOCK_3: tl.constexpr,
    BLOCK_R: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_1, o_3, o_r = tl.arange(0, BLOCK_1), tl.arange(0, BLOCK_3), tl.arange(0, BLOCK_R)
    i_p = tl.program_id(0).to(tl.int64)
    end = tl.minimum((i_p + 1) * piece, count)
    start = tl.maximum(i_p * piece, tl.load(p_ends))  # behind those that ask for nothing
    while start < end:
        i_s = tl.load(p_slices + start)
        stop = tl.minimum(end, tl.load(p_ends + i_s + 1))
        i_sum = i_p + i_s  # one of its own: from one slice to the next, or one program, this grows
        tl.store(p_owners + i_sum, i_s)
        for n in range(start, stop, BLOCK_N):
            b_lookup, b_row1, b_row3 = _lookups(p_index, p_order, n, stop, count, BLOCK_N)
            # [BLOCK_N BLOCK_1, BLOCK_R]
            o_first, m_first = _matrices(b_row1, o_1, o_r, Q1, RANK)
            b_first = tl.load(p_first + o_first, mask=m_first, other=0).reshape(BLOCK_N * BLOCK_1, BLOCK_R)
            # [BLOCK_N, BLOCK_1 BLOCK_2, BLOCK_3]
            o_out, m_out = _matrices(b_lookup, _outer(Q1, Q2, BLOCK_1, BLOCK_2), o_3, Q1 * Q2, Q3)
            b_gradient = tl.load(p_gradient + o_out, mask=m_out, other=0)
            b_of_first = tl.zeros([BLOCK_N * BLOCK_1, BLOCK_R], tl.float32)
            for s in range(0, RANK, CHUNK):
                o_s = s + tl.arange(0, CHUNK)
                # [BLOCK_R, BLOCK_2 CHUNK]
                o_middle, m_middle = _middle(i_s, o_r, s, RANK, Q2, BLOCK_2, CHUNK)
                b_middle = tl.load(p_middle + o_middle, mask=m_middle, other=0)
                # [BLOCK_N, CHUNK, BLOCK_3]
                o_last, m_last = _matrices(b_row3, o_s, o_3, RANK, Q3)
                b_last = tl.load(p_last + o_last, mask=m_last, other=0)
                b_product = tl.dot(b_first, b_middle, input_precision=PRECISION)
                b_product = b_product.reshape(BLOCK_N, BLOCK_1 * BLOCK_2, CHUNK)
                b_of_last = _multiply(b_product.permute(0, 2, 1), b_gradient, PRECISION)
                o_last, m_last = _matrices(b_lookup, o_s, o_3, RANK, Q3)
                tl.store(p_of_last + o_last, b_of_last, mask=m_last)
                # [BLOCK_N BLOCK_1, BLOCK_2 CHUNK], the gradient of the product of the first two
                b_of_product = _multiply(b_gradient, b_last.permute(0, 2, 1), PRECISION)
                b_of_product = b_of_product.reshape(BLOCK_N * BLOCK_1, BLOCK_2 * CHUNK)
                b_of_first = tl.dot(b_of_product, tl.trans(b_middle), b_of_first, input_precision=PRECISION)
                b_of_middle = tl.dot(tl.trans(b_first), b_of_product, input_precision=PRECISION)
                o_sum, _ = _middle(i_sum, o_r, s, RANK, Q2, BLOCK_2, CHUNK)
                if n > start:  # each thread reads again what it wrote
                    b_of_middle += tl.load(p_sums + o_sum, mask=m_middle, other=0)
                tl.store(p_sums + o_sum, b_of_middle, mask=m_middle)
            o_first, m_first = _matrices(b_lookup, o_1, o_r, Q1, RANK)
            tl.store(p_of_first + o_first, b_of_first.reshape(BLOCK_N, BLOCK_1, BLOCK_R), mask=m_first)
        start = stop


@cache
def tiles(rank: int, *factors: int) -> dict[str, int] | None:
    """Return the sizes of a program's tiles, for as many lookups as fit on chip; None if not even one does.

    Every two matrices that are multiplied lie in shared memory, and so do the next ones, which are read meanwhile.
    """
    if len(factors) not in (2, 3):
        return None
    q1, q2, q3 = (factors[0], 1, factors[-1]) if len(factors) == 2 else factors
    block_r, block_2 = max(LEAST, triton.next_power_of_2(rank)), triton.next_power_of_2(q2)
    for block_n in (16, 8, 4, 2, 1):
        block_1 = max(triton.next_power_of_2(q1), LEAST // block_n)
        # where products of 16 terms would need zeros added, sums of fewer are sooner done
        summed = block_1 * block_2 < LEAST
        block_3 = max(triton.next_power_of_2(q3), 1 if summed else LEAST)
        first, product, last = block_1 * block_r, block_1 * block_2 * CHUNK, CHUNK * block_3
        bytes_ = 10 * (block_n * (first + product + last) + block_r * block_2 * CHUNK)
        if block_n * max(first, product * block_3 if summed else product, last) <= TILE and bytes_ <= SHARED:
            shape = {"RANK": rank, "Q1": q1, "Q2": q2, "Q3": q3, "BLOCK_N": block_n, "CHUNK": CHUNK}
            shape |= {"BLOCK_1": block_1, "BLOCK_2": block_2, "BLOCK_3": block_3, "BLOCK_R": block_r}
            return shape | {"num_warps": 8 if first * block_2 >= 512 else 4, "num_stages": 2}
    return None


def multiply(
    cores: Sequence[Tensor], ids: Tensor, tables: Tensor | None, radices: Tensor, factors: Sequence[int]
) -> Tensor:
    """Read rows of two or three cores, as `pocketrec.kernels.tensor_train.multiply` does; zeros for an id outside."""
    out, shape = cores[0].new_empty(*ids.shape, prod(factors)), _constants(cores, factors, "ieee")
    first, middle, last = cores if len(cores) == 3 else (cores[0], None, cores[1])
    index, count = _placed(ids, tables, radices), ids.numel()
    slices, order, ends, piece = index[1], None, None, 1 if len(cores) == 3 else shape["BLOCK_N"]
    if middle is not None and count > len(middle):
        slices, order, ends = _sorted(slices, len(middle))
        piece = piece_of(count, shape["BLOCK_N"])
    tensors = (first, middle, last, index, slices, order, ends, out)
    launch(_read, triton.cdiv(count, piece), *tensors, count, piece, **shape)
    return out


def train(
    targets: Sequence[Tensor],
    totals: Sequence[Tensor | None],
    cores: Sequence[Tensor],
    gradient: Tensor,
    ids: Tensor,
    tables: Tensor | None,
    radices: Tensor,
    factors: Sequence[int],
    lr: float,
    eps: float,
) -> None:
    """Train `targets`, which may be the cores, in place by the gradient at the three cores."""
    count, shape = ids.numel(), _constants(cores, factors, "tf32x3")
    if not count:
        return
    index = _placed(ids, tables, radices)
    piece = piece_of(count, shape["BLOCK_N"])
    programs = triton.cdiv(count, piece)
    of_first, of_last = (core.new_empty(count, core.shape[1]) for core in (cores[0], cores[2]))
    sums = cores[1].new_empty(programs + len(cores[1]), cores[1].shape[1])
    owners = index.new_full((len(sums),), -1)
    tensors = (*cores, index, *_sorted(index[1], len(cores[1])), gradient, of_first, of_last, sums, owners)
    launch(_share, programs, *tensors, count, piece, **shape)
    shares = ((index[0], of_first), (owners, sums), (index[2], of_last))
    for target, total, (rows, share) in zip(targets, totals, shares, strict=True):
        gather.train_rows(target, total, rows, share, lr, eps)


def _placed(ids: Tensor, tables: Tensor | None, radices: Tensor) -> Tensor:
    """Return which row of each of three cores, or of two and a third between them, lookups need, int64 [3, n]."""
    if radices.shape[1] == 2:
        radices = torch.stack([radices[:, 0], torch.ones_like(radices[:, 0]), radices[:, 1]], 1)
    index = ids.new_empty(3, ids.numel(), dtype=torch.int64)
    tensors = (ids.contiguous(), None if tables is None else tables.contiguous(), radices.contiguous())
    shape = {"TABLES": len(radices), "BLOCK": PLACED}
    starts = radices.cumsum(0) - radices
    launch(_place, triton.cdiv(ids.numel(), PLACED), *tensors, starts, index, ids.numel(), **shape)
    return index


def _sorted(slices: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort lookups by their slice; return slices, lookups, and where those of none and of each slice end."""
    slices, order = slices.sort(stable=True)
    return slices, order, torch.searchsorted(slices, torch.arange(-1, count, device=slices.device), right=True)


def _constants(cores: Sequence[Tensor], factors: Sequence[int], exact: str) -> dict[str, int | str]:
    return tiles(cores[0].shape[1] // factors[0], *factors) | {"PRECISION": precision(exact)}
