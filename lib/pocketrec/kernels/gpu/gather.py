"""Rows of a table on a GPU; `pocketrec.kernels.gather` has the formulas.

Rows are float32, bfloat16 or float16; sums and updates are float32. To read moves index, rows and output once. To train
sorts the index and gives each row that occurs one program, which adds its gradients in an order of its own: the same
bits every time, without atomics. Beside the sort it reads each gradient once, and reads and writes each touched row and
its accumulator once; a row that occurs very often costs its partial sums as well.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pocketrec.kernels.gpu import launch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE = 2048  # numbers a program reads at once
GROUP = 8  # gradients of one row read at once
LONG = 256  # more gradients than that of one row are shared out to several programs


@triton.jit
def _read(
    p_table,
    p_index,
    p_out,
    count,
    rows,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    o_n, o_w = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_W)
    m_n, m_w = o_n < count, o_w < WIDTH
    # [BLOCK_N]
    b_index = tl.load(p_index + o_n, mask=m_n, other=-1).to(tl.int64)
    m_row = (b_index >= 0) & (b_index < rows)
    # [BLOCK_N, BLOCK_W]
    b_rows = tl.load(p_table + b_index[:, None] * WIDTH + o_w, mask=m_row[:, None] & m_w, other=0)
    tl.store(p_out + o_n[:, None] * WIDTH + o_w, b_rows, mask=m_n[:, None] & m_w)


@triton.jit
def _segment(
    p_ends,
    p_order,
    p_gradient,
    i_s,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Return the sum of gradients between two ends, float32 [BLOCK_W]."""
    o_w = tl.arange(0, BLOCK_W)
    start, end = tl.load(p_ends + i_s - 1, mask=i_s > 0, other=0), tl.load(p_ends + i_s)
    b_sum = tl.zeros([BLOCK_W], tl.float32)
    for first in range(start, end, BLOCK_K):
        o_k = first + tl.arange(0, BLOCK_K)
        m_k = o_k < end
        # [BLOCK_K]
        b_order = tl.load(p_order + o_k, mask=m_k, other=0)
        # [BLOCK_K, BLOCK_W]
        m_gradient = m_k[:, None] & (o_w < WIDTH)
        b_gradient = tl.load(p_gradient + b_order[:, None] * WIDTH + o_w, mask=m_gradient, other=0)
        b_sum += tl.sum(b_gradient.to(tl.float32), 0)
    return b_sum


@triton.jit
def _sum(
    p_out,
    p_ends,
    p_order,
    p_gradient,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    i_s = tl.program_id(0).to(tl.int64)
    o_w = tl.arange(0, BLOCK_W)
    b_sum = _segment(p_ends, p_order, p_gradient, i_s, WIDTH, BLOCK_K, BLOCK_W)
    tl.store(p_out + i_s * WIDTH + o_w, b_sum, mask=o_w < WIDTH)


@triton.jit
def _train(
    p_table,
    p_total,
    p_rows,
    p_ends,
    p_order,
    p_gradient,
    rows,
    lr,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    i_s = tl.program_id(0).to(tl.int64)
    o_w = tl.arange(0, BLOCK_W)
    row = tl.load(p_rows + i_s).to(tl.int64)
    if (row >= 0) & (row < rows):
        b_step = _segment(p_ends, p_order, p_gradient, i_s, WIDTH, BLOCK_K, BLOCK_W)
        if p_total is not None:
            total = tl.load(p_total + row).to(tl.float32) + tl.sum(b_step * b_step, 0) / WIDTH
            tl.store(p_total + row, total)
            b_step /= tl.sqrt(total) + eps
        # [BLOCK_W]
        b_row = tl.load(p_table + row * WIDTH + o_w, mask=o_w < WIDTH, other=0).to(tl.float32)
        tl.store(p_table + row * WIDTH + o_w, b_row - lr * b_step, mask=o_w < WIDTH)


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Read rows: int32 or int64 [...] -> [..., width]; zeros for an index outside the table."""
    out = table.new_empty(*index.shape, table.shape[1])
    blocks = {"BLOCK_W": triton.next_power_of_2(table.shape[1])}
    blocks["BLOCK_N"] = max(1, TILE // blocks["BLOCK_W"])
    programs = triton.cdiv(index.numel(), blocks["BLOCK_N"])
    launch(_read, programs, table, index.contiguous(), out, index.numel(), len(table), WIDTH=table.shape[1], **blocks)
    return out


def sum_rows(gradient: Tensor, index: Tensor, count: int) -> Tensor:
    """Sum the gradients of rows, [...] and [..., width] -> [count, width]."""
    table = gradient.new_zeros(count, gradient.shape[-1])
    train_rows(table, None, index, gradient, -1.0, 0.0)
    return table


def train_rows(table: Tensor, total: Tensor | None, index: Tensor, gradient: Tensor, lr: float, eps: float) -> None:
    """Train rows in place, as `pocketrec.kernels.gather.train_rows` does."""
    if not index.numel():
        return
    found, *segments = _segments(index, gradient)
    blocks = _blocks(gradient)
    launch(_train, len(found), table, total, found, *segments, len(table), lr, eps, **blocks)


def sums(index: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the gradients of every index that occurs, [n] and [n, width]: return these, sorted, and float32 sums."""
    if not index.numel():
        return index, gradient.float()
    found, *segments = _segments(index, gradient)
    out = gradient.new_empty(len(found), gradient.shape[-1], dtype=torch.float32)
    launch(_sum, len(found), out, *segments, **_blocks(gradient))
    return found, out


def _segments(index: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what occurs in an index, where the gradients of each end, their order, and the gradients."""
    keys, order = index.flatten().sort(stable=True)
    found, lengths = keys.unique_consecutive(return_counts=True)
    if int(lengths.max()) > LONG:
        # a row that half of the batch names would keep one program busy long after the others are done
        last = torch.ones_like(keys, dtype=torch.bool)
        last[:-1] = keys[1:] != keys[:-1]
        last[LONG - 1 :: LONG] = True
        ends = last.nonzero().flatten() + 1
        pieces = gradient.new_empty(len(ends), gradient.shape[-1], dtype=torch.float32)
        launch(_sum, len(ends), pieces, ends, order, gradient, **_blocks(gradient))
        gradient, order = pieces, torch.arange(len(ends), device=ends.device)
        lengths = keys[ends - 1].unique_consecutive(return_counts=True)[1]
    return found, lengths.cumsum(0), order, gradient


def _blocks(gradient: Tensor) -> dict[str, int]:
    width = gradient.shape[-1]
    blocks = {"WIDTH": width, "BLOCK_K": GROUP, "BLOCK_W": triton.next_power_of_2(width)}
    return blocks | {"num_warps": min(4, max(1, GROUP * blocks["BLOCK_W"] // 256))}
