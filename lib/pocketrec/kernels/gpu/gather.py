"""Rows of a table on a GPU; `pocketrec.kernels.gather` has the formulas.

Rows are float32, bfloat16 or float16; sums and updates are float32. To read moves index, rows and output once. To train
sorts the index; a program then adds up some sorted gradients, row by row, and writes each row that lies among them.
What lies across two programs or more is left as sums, which a second launch joins. No atomics: the same bits every
time. Nothing waits for the device, so that a training step can be captured in a CUDA graph.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pocketrec.kernels.gpu import launch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE = 2048  # numbers a program reads at once
SUMMED = 2048  # numbers of gradients a program sums at once
LEAST, MOST = 16, 128  # gradients that it sums
COLUMNS = 256  # more of them are summed in turns
JOINED = 64  # sums of parts read at once
BLOCK = 1024  # places that a program sorts out
NARROW = 2**31 - 1  # more rows than that need more than 32 bits


@triton.jit
def _read(
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
    if p_starts is not None:
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
def _add_up(first_a, sum_a, first_b, sum_b):
    """Go on with a sum, or with a new one where that is the first of a row."""
    return first_a | first_b, tl.where(first_b != 0, sum_b, sum_a + sum_b)


@triton.jit
def _grown(p_total, b_row, b_square, m_row, lr, eps):
    """Add mean squares to Adagrad's accumulators, and return the rates of these rows, [BLOCK]."""
    b_total = tl.load(p_total + b_row, mask=m_row, other=1).to(tl.float32) + b_square
    tl.store(p_total + b_row, b_total, mask=m_row)
    return lr / (tl.sqrt(b_total) + eps)


@triton.jit
def _update(p_out, b_row, b_sum, m_row, b_rate, w, STORED: tl.constexpr, WIDTH: tl.constexpr):
    """Update some columns of rows by the sums of their gradients, [BLOCK, BLOCK_W], or keep the sums."""
    o_w = w + tl.arange(0, b_sum.shape[1])
    o_row, m_out = b_row.to(tl.int64)[:, None] * WIDTH + o_w, m_row[:, None] & (o_w < WIDTH)
    if not STORED:
        b_sum = tl.load(p_out + o_row, mask=m_out, other=0).to(tl.float32) - b_rate[:, None] * b_sum
    tl.store(p_out + o_row, b_sum, mask=m_out)


@triton.jit
def _sums(p_gradient, b_order, m_first, m_k, w, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr):
    """Sum some columns of gradients, each with those of its row that come before in this part, [BLOCK_K, BLOCK_W]."""
    o_w = w + tl.arange(0, BLOCK_W)
    m_gradient = m_k[:, None] & (o_w < WIDTH)
    b_gradient = tl.load(p_gradient + b_order[:, None] * WIDTH + o_w, mask=m_gradient, other=0)
    b_first = tl.broadcast_to(m_first.to(tl.int32)[:, None], BLOCK_K, BLOCK_W)
    _, b_sum = tl.associative_scan((b_first, b_gradient.to(tl.float32)), 0, _add_up)
    return b_sum


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
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64)
    o_k = part * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < count
    # [BLOCK_K]
    b_key = tl.load(p_keys + o_k, mask=m_k, other=-1)
    m_first = b_key != tl.load(p_keys + o_k - 1, mask=m_k & (o_k > 0), other=-1)
    m_last = b_key != tl.load(p_keys + o_k + 1, mask=o_k + 1 < count, other=-1)
    b_order = tl.load(p_order + o_k, mask=m_k, other=0)
    m_k = m_k & (b_key < rows)
    m_begun = b_key != tl.load(p_keys + part * BLOCK_K - 1, mask=part > 0, other=-1)
    m_whole, m_end = m_k & m_begun & m_last, m_last | (o_k == part * BLOCK_K + BLOCK_K - 1)
    b_row, b_rate = b_key, tl.full([BLOCK_K], 0, tl.float32) + lr
    if p_slots is not None:
        b_row = tl.load(p_slots + o_k, mask=m_k, other=0)
    if (p_total is not None) & (WIDTH > BLOCK_W):  # the rate depends on all columns
        b_square = tl.zeros([BLOCK_K], tl.float32)
        for w in range(0, WIDTH, BLOCK_W):
            b_sum = _sums(p_gradient, b_order, m_first, m_k, w, WIDTH, BLOCK_K, BLOCK_W)
            b_square += tl.sum(b_sum * b_sum, 1)
        b_rate = _grown(p_total, b_row, b_square / WIDTH, m_whole, lr, eps)
    for w in range(0, WIDTH, BLOCK_W):
        # [BLOCK_K, BLOCK_W]
        b_sum = _sums(p_gradient, b_order, m_first, m_k, w, WIDTH, BLOCK_K, BLOCK_W)
        # what began in a part before, and what began here and goes on
        o_w = w + tl.arange(0, BLOCK_W)
        o_part = (2 * part + m_begun.to(tl.int64))[:, None] * WIDTH + o_w
        m_part = (m_k & m_end & (m_whole == 0))[:, None] & (o_w < WIDTH)
        tl.store(p_parts + o_part, b_sum, mask=m_part)
        if (p_total is not None) & (WIDTH <= BLOCK_W):
            b_rate = _grown(p_total, b_row, tl.sum(b_sum * b_sum, 1) / WIDTH, m_whole, lr, eps)
        _update(p_out, b_row, b_sum, m_whole, b_rate, w, p_slots is not None, WIDTH)


@triton.jit
def _joined(
    p_parts,
    p_keys,
    key,
    part,
    end,
    w,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Sum some columns of what began in a part and goes on in those behind, [1, BLOCK_W]."""
    o_w = w + tl.arange(0, BLOCK_W)
    m_w = o_w < WIDTH
    b_sum = tl.load(p_parts + (2 * part + 1) * WIDTH + o_w, mask=m_w, other=0)
    n = part + 1
    while n < end:
        o_j = n + tl.arange(0, BLOCK_J)
        # [BLOCK_J]
        m_j = tl.load(p_keys + o_j * BLOCK_K, mask=o_j < end, other=-1) == key
        # [BLOCK_J, BLOCK_W]
        b_sum += tl.sum(tl.load(p_parts + 2 * o_j[:, None] * WIDTH + o_w, mask=m_j[:, None] & m_w, other=0), 0)
        found = tl.sum(m_j.to(tl.int32), 0)
        n += found
        end = tl.where(found < BLOCK_J, n, end)
    return b_sum[None, :]


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
    BLOCK_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64)
    next_, end = (part + 1) * BLOCK_K, tl.cdiv(count, BLOCK_K).to(tl.int64)
    key = tl.load(p_keys + next_ - 1)
    goes_on = tl.load(p_keys + next_) == key
    begins = tl.load(p_keys + part * BLOCK_K - 1, mask=part > 0, other=-1) != key
    if goes_on & begins & (key < rows):
        row = key
        if p_slots is not None:
            row = tl.load(p_slots + next_)
        b_row, m_row = tl.full([1], 0, tl.int64) + row, tl.full([1], 1, tl.int1)
        b_rate = tl.full([1], 0, tl.float32) + lr
        if p_total is not None:
            b_square = tl.zeros([1], tl.float32)
            for w in range(0, WIDTH, BLOCK_W):
                b_sum = _joined(p_parts, p_keys, key, part, end, w, WIDTH, BLOCK_K, BLOCK_J, BLOCK_W)
                b_square += tl.sum(b_sum * b_sum, 1)
            b_rate = _grown(p_total, b_row, b_square / WIDTH, m_row, lr, eps)
        for w in range(0, WIDTH, BLOCK_W):
            b_sum = _joined(p_parts, p_keys, key, part, end, w, WIDTH, BLOCK_K, BLOCK_J, BLOCK_W)
            _update(p_out, b_row, b_sum, m_row, b_rate, w, p_slots is not None, WIDTH)


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Read rows: int32 or int64 [...] -> [..., width]; zeros for an index outside the table."""
    return _rows(table, index, None, None, 1)


def table_rows(table: Tensor, ids: Tensor, starts: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Read rows of stacked tables, and where they are if that is kept, as `pocketrec.kernels.gather.table_rows` does.

    Args:
        ids: int32 or int64 [batch, features], inside their tables: here only the stack as a whole has an end.
    """
    index = ids.new_empty(ids.shape if keep else (0,), dtype=torch.int64)
    return _rows(table, ids, starts, index if keep else None, ids.shape[1]), index


def _rows(table: Tensor, ids: Tensor, starts: Tensor | None, index: Tensor | None, features: int) -> Tensor:
    """Read rows, and write where they are to `index`."""
    count, width = table.shape
    out, block_w = table.new_empty(*ids.shape, width), triton.next_power_of_2(width)
    shape = {"FEATURES": features, "WIDTH": width, "BLOCK_N": max(1, TILE // block_w), "BLOCK_W": block_w}
    programs = triton.cdiv(ids.numel(), shape["BLOCK_N"])
    launch(_read, programs, table, ids.contiguous(), starts, index, out, ids.numel(), count, **shape)
    return out


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
    slots = _slots(keys)
    found = torch.full_like(keys, limit).scatter_(0, slots, keys)
    return found, _stored(keys, order, slots, gradient, limit), (found < limit).sum().view(1)


def sums_by_lookup(index: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the gradients of every index that occurs, [n] and [n, width].

    Returns:
        float32 sums [n, width] and a lookup of each [n], as far as there are any; how many there are, int64 [1].
    """
    keys, order = index.sort(stable=True)
    slots = _slots(keys)
    lookups = torch.zeros_like(order).scatter_(0, slots, order)
    return _stored(keys, order, slots, gradient, torch.iinfo(keys.dtype).max), lookups, slots[-1:] + 1


def _slots(keys: Tensor) -> Tensor:
    """Number what occurs in sorted keys: [n] -> int64 [n]."""
    first = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=first[1:])
    return first.cumsum(0) - 1


def _stored(keys: Tensor, order: Tensor, slots: Tensor, gradient: Tensor, limit: int) -> Tensor:
    out = gradient.new_empty(len(keys), gradient.shape[-1], dtype=torch.float32)
    _summed(out, None, keys, order, slots, gradient, limit, 0.0, 0.0)
    return out


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
    block_w = min(COLUMNS, triton.next_power_of_2(width))
    blocks = {"WIDTH": width, "BLOCK_W": block_w, "BLOCK_K": max(LEAST, min(SUMMED // block_w, MOST))}
    parts = triton.cdiv(count, blocks["BLOCK_K"])
    sums = gradient.new_empty(2 * parts, width, dtype=torch.float32)
    rates = (count, limit, lr, eps)
    launch(_sum, parts, out, total, keys, order, slots, gradient, sums, *rates, num_warps=1, **blocks)
    launch(_join, parts - 1, out, total, keys, slots, sums, *rates, BLOCK_J=JOINED, **blocks)
