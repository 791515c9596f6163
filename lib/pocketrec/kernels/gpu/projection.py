"""Rows times the matrix of their table on a GPU; `pocketrec.kernels.projection` has the formulas.

To read moves index, rows and matrices once, and writes each product once: rows of the wide table stay on chip.

To train sums the gradients of a row first, as narrow as they are (`gather.sums`), so that each row that occurs is
multiplied, read and written once, with its accumulator. A program takes some hundred of the rows in the order of their
tables, and writes one sum of the gradient of a matrix for each table that it meets; those are summed in turn. No
atomics: the same bits every time, as long as no row is of two tables. Sums are float32, products as torch allows
(`torch.set_float32_matmul_precision`, `gpu.precision`).

Matrices are on chip whole: `tiles` says which are small enough.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from pocketrec.kernels.gpu import LEAST, SHARED, gather, launch, piece_of, precision

DTYPES = (torch.float32,)
CHUNK = 32  # more numbers of a row than that are multiplied in turns
TILE = 4096  # numbers of the rows that a program trains together


@triton.jit
def _read(
    p_table,
    p_index,
    p_matrices,
    p_out,
    batch,
    rows,
    FEATURES: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_b, i_f = tl.program_id(0).to(tl.int64) // FEATURES, tl.program_id(0) % FEATURES
    o_n, o_d = i_b * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    m_n, m_d = o_n < batch, o_d < COLUMNS
    # [BLOCK_N]
    b_index = tl.load(p_index + o_n * FEATURES + i_f, mask=m_n, other=-1).to(tl.int64)
    m_row = (b_index >= 0) & (b_index < rows)
    b_out = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for w in range(0, WIDTH, CHUNK):
        o_w = w + tl.arange(0, CHUNK)
        m_w = o_w < WIDTH
        # [BLOCK_N, CHUNK]
        b_rows = tl.load(p_table + b_index[:, None] * WIDTH + o_w, mask=m_row[:, None] & m_w, other=0)
        # [CHUNK, BLOCK_D]
        o_matrix, m_matrix = (i_f * WIDTH + o_w[:, None]) * COLUMNS + o_d, m_w[:, None] & m_d
        b_matrix = tl.load(p_matrices + o_matrix, mask=m_matrix, other=0)
        b_out = tl.dot(b_rows, b_matrix, b_out, input_precision=PRECISION)
    tl.store(p_out + (o_n[:, None] * FEATURES + i_f) * COLUMNS + o_d, b_out, mask=m_n[:, None] & m_d)


@triton.jit
def _train(
    p_table,
    p_target,
    p_total,
    p_keys,
    p_ends,
    p_summed,
    p_matrices,
    p_sums,
    p_owners,
    p_count,
    piece,
    rows,
    lr,
    eps,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    o_w, o_d = tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_D)
    m_w, m_d = o_w < WIDTH, o_d < COLUMNS
    o_matrix, m_matrix = o_w[:, None] * COLUMNS + o_d, m_w[:, None] & m_d
    i_p = tl.program_id(0).to(tl.int64)
    start, end = i_p * piece, tl.minimum((i_p + 1) * piece, tl.load(p_count))
    while start < end:
        i_f = tl.load(p_keys + start).to(tl.int64) // (rows + 2)
        stop = tl.minimum(end, tl.load(p_ends + i_f))
        # [BLOCK_W, BLOCK_D]
        b_matrix = tl.load(p_matrices + i_f * (WIDTH * COLUMNS) + o_matrix, mask=m_matrix, other=0)
        b_sum = tl.zeros([BLOCK_W, BLOCK_D], tl.float32)
        for n in range(start, stop, BLOCK_N):
            o_n = n + tl.arange(0, BLOCK_N)
            # [BLOCK_N]
            b_row = tl.load(p_keys + o_n, mask=o_n < stop, other=0).to(tl.int64) % (rows + 2) - 1
            m_row = (b_row >= 0) & (b_row < rows)
            # [BLOCK_N, BLOCK_W]
            o_row, m_rows = b_row[:, None] * WIDTH + o_w, m_row[:, None] & m_w
            b_rows = tl.load(p_table + o_row, mask=m_rows, other=0)
            # [BLOCK_N, BLOCK_D]
            b_summed = tl.load(p_summed + o_n[:, None] * COLUMNS + o_d, mask=m_row[:, None] & m_d, other=0)
            b_sum = tl.dot(tl.trans(b_rows), b_summed, b_sum, input_precision=PRECISION)
            b_step = tl.dot(b_summed, tl.trans(b_matrix), input_precision=PRECISION)
            if p_total is not None:
                b_total = tl.load(p_total + b_row, mask=m_row, other=1) + tl.sum(b_step * b_step, 1) / WIDTH
                tl.store(p_total + b_row, b_total, mask=m_row)
                b_step /= (tl.sqrt(b_total) + eps)[:, None]
            b_target = tl.load(p_target + o_row, mask=m_rows, other=0)
            tl.store(p_target + o_row, b_target - lr * b_step, mask=m_rows)
        i_sum = i_p + i_f  # one of its own: from one table to the next, or one program, this grows
        tl.store(p_sums + i_sum * (WIDTH * COLUMNS) + o_matrix, b_sum, mask=m_matrix)
        tl.store(p_owners + i_sum, i_f)
        start = stop


@cache
def tiles(width: int, columns: int) -> dict[str, int] | None:
    """Return the sizes of a program's tiles; None for a matrix that has no room on chip beside its gradient."""
    block_w, block_d = (max(LEAST, triton.next_power_of_2(size)) for size in (width, columns))
    for block_n in (64, 32, LEAST):
        # read once for each of two products
        bytes_ = 8 * (block_n * (block_w + block_d) + block_w * block_d)
        if bytes_ <= SHARED and block_n * block_w <= TILE:
            shape = {"WIDTH": width, "COLUMNS": columns, "BLOCK_N": block_n, "BLOCK_W": block_w, "BLOCK_D": block_d}
            return shape | {"num_warps": 8 if block_w * block_d >= TILE else 4, "num_stages": 2}
    return None


def project(table: Tensor, index: Tensor, matrices: Tensor) -> Tensor:
    """Read rows [batch, features] and multiply each: -> [batch, features, columns]; zeros for an index outside."""
    (batch, features), (_, width, columns) = index.shape, matrices.shape
    out, shape = table.new_empty(batch, features, columns), tiles(width, columns).copy()
    shape["CHUNK"] = min(CHUNK, shape.pop("BLOCK_W"))
    programs = features * triton.cdiv(batch, shape["BLOCK_N"])
    tensors = (table, index.contiguous(), matrices, out, batch, len(table))
    launch(_read, programs, *tensors, FEATURES=features, PRECISION=precision(), **shape)
    return out


def train(
    target: Tensor,
    total: Tensor | None,
    table: Tensor,
    index: Tensor,
    gradient: Tensor,
    matrices: Tensor,
    lr: float,
    eps: float,
) -> Tensor:
    """Train `target`, which may be the table, in place, and return the gradient of the matrices."""
    features, width, columns = matrices.shape
    if not index.numel():
        return torch.zeros_like(matrices)
    # a number for every row of every table, and for what lies before its rows and behind
    numbers = torch.arange(1, features + 1, device=index.device) * (len(table) + 2)
    keys = index.long().clamp(-1, len(table)) + 1 + (numbers - numbers[0])
    found, summed, count = gather.sums(keys, gradient, features * (len(table) + 2))
    shape = tiles(width, columns)
    piece = piece_of(len(found), shape["BLOCK_N"])
    programs = triton.cdiv(len(found), piece)
    sums = matrices.new_empty(programs + features, width * columns)
    owners = found.new_full((len(sums),), -1)
    ends = torch.searchsorted(found, numbers.to(found.dtype))
    tensors = (table, target, total, found, ends, summed, matrices, sums, owners, count)
    launch(_train, programs, *tensors, piece, len(table), lr, eps, PRECISION=precision(), **shape)
    return gather.sum_rows(sums, owners, features).view_as(matrices)
