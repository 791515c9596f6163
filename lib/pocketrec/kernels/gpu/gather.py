"""Rows of a table on a GPU; `pocketrec.kernels.gather` has the formulas.

Rows are float32, bfloat16 or float16; sums and updates are float32. To read moves index, rows and output once. To train
sorts the index; the first place of every row that occurs then has a program, which adds the row's gradients in the
order of the batch and writes the row once. Rows that occur often are shared out: a program ends with its part of LONG
places, and a second launch joins the sums. No atomics: the same bits every time. Nothing waits for the device, so that
a training step can be captured in a CUDA graph.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pocketrec.kernels.gpu import launch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE = 2048  # numbers a program reads at once
GROUP = 8  # gradients of one row read at once
LONG = 128  # sorted places that one program sums, at most
JOINED = 32  # sums of one row read at once
BLOCK = 1024  # places that a program sorts out
NARROW = 2**31 - 1  # more rows than that need more than 32 bits


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
def _read_tables(
    p_table,
    p_ids,
    p_starts,
    p_index,
    p_out,
    count,
    rows,
    FEATURES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    o_n, o_w = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_W)
    m_n, m_w = o_n < count, o_w < WIDTH
    # [BLOCK_N]
    b_index = tl.load(p_ids + o_n, mask=m_n, other=-1).to(tl.int64)
    b_index += tl.load(p_starts + o_n % FEATURES, mask=m_n, other=0)
    if p_index is not None:
        tl.store(p_index + o_n, b_index, mask=m_n)
    m_row = m_n & (b_index >= 0) & (b_index < rows)
    # [BLOCK_N, BLOCK_W]
    b_rows = tl.load(p_table + b_index[:, None] * WIDTH + o_w, mask=m_row[:, None] & m_w, other=0)
    tl.store(p_out + o_n[:, None] * WIDTH + o_w, b_rows, mask=m_n[:, None] & m_w)


@triton.jit
def _keys(p_index, p_keys, count, rows, BLOCK: tl.constexpr):
    """Narrow an index; what lies outside comes last."""
    o_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    # [BLOCK]
    b_index = tl.load(p_index + o_n, mask=o_n < count, other=0).to(tl.int64)
    b_key = tl.where((b_index >= 0) & (b_index < rows), b_index, rows)
    tl.store(p_keys + o_n, b_key.to(p_keys.dtype.element_ty), mask=o_n < count)


@triton.jit
def _finish(p_out, p_total, row, b_sum, lr, eps, STORED: tl.constexpr, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr):
    """Update a row by the sum of its gradients, or keep the sum."""
    o_w = tl.arange(0, BLOCK_W)
    p_row = p_out + row.to(tl.int64) * WIDTH + o_w
    if STORED:
        tl.store(p_row, b_sum, mask=o_w < WIDTH)
    else:
        b_row = tl.load(p_row, mask=o_w < WIDTH, other=0).to(tl.float32)
        if p_total is not None:
            total = tl.load(p_total + row).to(tl.float32) + tl.sum(b_sum * b_sum, 0) / WIDTH
            tl.store(p_total + row, total)
            b_sum /= tl.sqrt(total) + eps
        tl.store(p_row, b_row - lr * b_sum, mask=o_w < WIDTH)


@triton.jit
def _sum(
    p_out,
    p_total,
    p_keys,
    p_order,
    p_slots,
    p_gradient,
    p_parts,
    count,
    rows,
    lr,
    eps,
    WIDTH: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    i_n = tl.program_id(0).to(tl.int64)
    o_w = tl.arange(0, BLOCK_W)
    key, part = tl.load(p_keys + i_n), i_n // LONG
    first = key != tl.load(p_keys + i_n - 1, mask=i_n > 0, other=-1)
    if (first | (i_n == part * LONG)) & (key < rows):
        b_sum = tl.zeros([BLOCK_W], tl.float32)
        end = tl.minimum((part + 1) * LONG, count)
        n = i_n
        while n < end:
            o_k = n + tl.arange(0, BLOCK_K)
            m_k = o_k < end
            # [BLOCK_K]
            m_k = m_k & (tl.load(p_keys + o_k, mask=m_k, other=-1) == key)
            b_order = tl.load(p_order + o_k, mask=m_k, other=0)
            # [BLOCK_K, BLOCK_W]
            m_gradient = m_k[:, None] & (o_w < WIDTH)
            b_gradient = tl.load(p_gradient + b_order[:, None] * WIDTH + o_w, mask=m_gradient, other=0)
            b_sum += tl.sum(b_gradient.to(tl.float32), 0)
            found = tl.sum(m_k.to(tl.int32), 0)
            n += found
            end = tl.where(found < BLOCK_K, n, end)
        goes_on = tl.load(p_keys + n, mask=n < count, other=-1) == key
        if first & (goes_on == 0):
            row = key
            if p_slots is not None:
                row = tl.load(p_slots + i_n)
            _finish(p_out, p_total, row, b_sum, lr, eps, p_slots is not None, WIDTH, BLOCK_W)
        else:
            # what began in a part before, and what began here and goes on
            i_sum = 2 * part + first.to(tl.int64)
            tl.store(p_parts + i_sum * WIDTH + o_w, b_sum, mask=o_w < WIDTH)


@triton.jit
def _join(
    p_out,
    p_total,
    p_keys,
    p_slots,
    p_parts,
    count,
    rows,
    lr,
    eps,
    WIDTH: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64)
    o_w, next_ = tl.arange(0, BLOCK_W), (part + 1) * LONG
    key = tl.load(p_keys + next_ - 1, mask=next_ < count, other=-1)
    goes_on = tl.load(p_keys + next_, mask=next_ < count, other=-2) == key
    begins = tl.load(p_keys + part * LONG - 1, mask=part > 0, other=-1) != key
    if goes_on & begins & (key < rows):
        b_sum = tl.load(p_parts + (2 * part + 1) * WIDTH + o_w, mask=o_w < WIDTH, other=0)
        n = part + 1
        end = tl.cdiv(count, LONG).to(tl.int64)
        while n < end:
            o_k = n + tl.arange(0, BLOCK_K)
            m_k = o_k < end
            # [BLOCK_K]
            m_k = m_k & (tl.load(p_keys + o_k * LONG, mask=m_k, other=-1) == key)
            # [BLOCK_K, BLOCK_W]
            m_parts = m_k[:, None] & (o_w < WIDTH)
            b_sum += tl.sum(tl.load(p_parts + 2 * o_k[:, None] * WIDTH + o_w, mask=m_parts, other=0), 0)
            found = tl.sum(m_k.to(tl.int32), 0)
            n += found
            end = tl.where(found < BLOCK_K, n, end)
        row = key
        if p_slots is not None:
            row = tl.load(p_slots + next_)
        _finish(p_out, p_total, row, b_sum, lr, eps, p_slots is not None, WIDTH, BLOCK_W)


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Read rows: int32 or int64 [...] -> [..., width]; zeros for an index outside the table."""
    out, blocks = table.new_empty(*index.shape, table.shape[1]), _tile(table)
    programs = triton.cdiv(index.numel(), blocks["BLOCK_N"])
    launch(_read, programs, table, index.contiguous(), out, index.numel(), len(table), WIDTH=table.shape[1], **blocks)
    return out


def table_rows(table: Tensor, ids: Tensor, starts: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Read rows of stacked tables, and where they are if that is kept, as `pocketrec.kernels.gather.table_rows` does.

    Args:
        ids: int32 or int64 [batch, features], inside their tables: here only the stack as a whole has an end.
    """
    out, blocks = table.new_empty(*ids.shape, table.shape[1]), _tile(table)
    index = ids.new_empty(ids.shape if keep else (0,), dtype=torch.int64)
    tensors = (table, ids.contiguous(), starts, index if keep else None, out)
    shape = {"FEATURES": ids.shape[1], "WIDTH": table.shape[1], **blocks}
    launch(_read_tables, triton.cdiv(ids.numel(), blocks["BLOCK_N"]), *tensors, ids.numel(), len(table), **shape)
    return out, index


def _tile(table: Tensor) -> dict[str, int]:
    block_w = triton.next_power_of_2(table.shape[1])
    return {"BLOCK_N": max(1, TILE // block_w), "BLOCK_W": block_w}


def sum_rows(gradient: Tensor, index: Tensor, count: int) -> Tensor:
    """Sum the gradients of rows, [...] and [..., width] -> [count, width]."""
    table = gradient.new_zeros(count, gradient.shape[-1])
    train_rows(table, None, index, gradient, -1.0, 0.0)
    return table


def train_rows(table: Tensor, total: Tensor | None, index: Tensor, gradient: Tensor, lr: float, eps: float) -> None:
    """Train rows in place, as `pocketrec.kernels.gather.train_rows` does."""
    if index.numel():
        _summed(table, total, *_sorted(index, len(table)), None, gradient, len(table), lr, eps)


def sums(index: Tensor, gradient: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the gradients of every index below a limit that occurs, [n] and [n, width].

    Returns:
        these indices in order [n], then as many `limit`s as fill it up; their float32 sums [n, width], as far as there
        are any; and how many there are, int64 [1].
    """
    keys, order = _sorted(index, limit)
    first = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=first[1:])
    slots = first.cumsum(0) - 1
    found = torch.full_like(keys, limit).scatter_(0, slots, keys)
    out = gradient.new_empty(len(keys), gradient.shape[-1], dtype=torch.float32)
    _summed(out, None, keys, order, slots, gradient, limit, 0.0, 0.0)
    return found, out, (found < limit).sum().view(1)


def _sorted(index: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Sort an index, the others behind: return keys and where they were."""
    keys = index.new_empty(index.numel(), dtype=torch.int32 if limit < NARROW else torch.int64)
    launch(_keys, triton.cdiv(len(keys), BLOCK), index.contiguous(), keys, len(keys), limit, BLOCK=BLOCK)
    return keys.sort(stable=True)


def _summed(
    out: Tensor,
    total: Tensor | None,
    keys: Tensor,
    order: Tensor,
    slots: Tensor | None,
    gradient: Tensor,
    limit: int,
    lr: float,
    eps: float,
) -> None:
    count, width = len(keys), gradient.shape[-1]
    blocks = {"WIDTH": width, "LONG": LONG, "BLOCK_W": triton.next_power_of_2(width)}
    parts = gradient.new_empty(2 * triton.cdiv(count, LONG), width, dtype=torch.float32)
    rates = (count, limit, lr, eps)
    warps = min(4, max(1, blocks["BLOCK_W"] // 128))
    launch(
        _sum, count, out, total, keys, order, slots, gradient, parts, *rates, BLOCK_K=GROUP, num_warps=warps, **blocks
    )
    launch(_join, triton.cdiv(count, LONG) - 1, out, total, keys, slots, parts, *rates, BLOCK_K=JOINED, **blocks)
