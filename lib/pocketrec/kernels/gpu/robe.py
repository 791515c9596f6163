"""Blocks of one array on a GPU; `pocketrec.kernels.robe` has the formulas.

To read moves ids once, writes every start (8 bytes a block) and every embedding once, and reads the array from the L2
cache where it fits; no element index is kept. To train or sum reads starts and gradients once and adds to the array by
float32 atomics, in whichever order they arrive: sums may differ in their last bits from run to run. Adagrad then passes
over the array once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pocketrec.kernels.gpu import launch, universal_hash

DTYPES = (torch.float32,)
TILE = 2048  # numbers a program moves
UNIVERSAL, MULTIPLY_SHIFT = tl.constexpr(0), tl.constexpr(1)
AUTHORS_PRIME = tl.constexpr(2038074743)


@triton.jit
def hashed(b_id, b_table, b_piece, multiplier, KIND: tl.constexpr):
    """Hash (feature, id, piece), uint64."""
    b_id, b_table, b_piece = b_id.to(tl.uint64), b_table.to(tl.uint64), b_piece.to(tl.uint64)
    multiplier = multiplier.to(tl.uint64)
    if KIND == UNIVERSAL:
        return universal_hash.add(universal_hash.add(universal_hash.multiply(multiplier, b_id), b_table), b_piece)
    total = b_id * multiplier + b_table + b_piece
    return total >> 32 if KIND == MULTIPLY_SHIFT else total % AUTHORS_PRIME


@triton.jit
def placed(
    p_ids,
    p_table,
    p_piece,
    p_sizes,
    p_bases,
    p_own,
    multiplier,
    o_row,
    o_f,
    o_c,
    mask,
    PIECES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    KIND: tl.constexpr,
):
    """Return where blocks start within their windows, the windows' sizes and bases; offsets of any one shape."""
    b_id = tl.load(p_ids + o_row, mask=mask, other=0)
    b_size = tl.load(p_sizes + o_f * STRIDE, mask=mask, other=BLOCK_SIZE)
    b_base = tl.load(p_bases + o_f * STRIDE, mask=mask, other=0)
    b_table = tl.load(p_table + o_f, mask=mask, other=0)
    b_piece = tl.load(p_piece + o_c, mask=mask, other=0)
    b_hash = hashed(b_id, b_table, b_piece, multiplier, KIND)
    if KIND == UNIVERSAL:
        b_start = b_hash % b_size.to(tl.uint64)
    elif KIND == MULTIPLY_SHIFT:
        b_start = (b_hash * b_size.to(tl.uint64)) >> 32
    else:
        b_start = b_hash % (b_size - BLOCK_SIZE + 1).to(tl.uint64)
    b_start = b_start.to(tl.int64)
    if p_own is not None:
        b_own = tl.load(p_own + o_f, mask=mask, other=0)
        b_start = tl.where(b_own != 0, (b_id * PIECES + o_c) * BLOCK_SIZE, b_start)
    return b_start, b_size, b_base


@triton.jit
def wrapped(b_start, b_size, o_z):
    """Return elements of blocks within their windows, which they wrap around in, and whether they are inside."""
    b_within = b_start + o_z
    b_within = tl.where(b_within >= b_size, b_within - b_size, b_within)
    return b_within, (b_within >= 0) & (b_within < b_size)


@triton.jit(do_not_specialize=["multiplier"])
def _read(
    p_array,
    p_ids,
    p_table,
    p_piece,
    p_sizes,
    p_bases,
    p_own,
    p_starts,
    p_out,
    multiplier: tl.int64,
    count,
    FEATURES: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_Z: tl.constexpr,
):
    i_n = tl.program_id(0).to(tl.int64)
    o_n, o_z = i_n * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_Z)
    m_n, o_row = o_n < count, o_n // PIECES
    # [BLOCK_N]
    b_start, b_size, b_base = placed(
        p_ids,
        p_table,
        p_piece,
        p_sizes,
        p_bases,
        p_own,
        multiplier,
        o_row,
        o_row % FEATURES,
        o_n % PIECES,
        m_n,
        PIECES,
        BLOCK_SIZE,
        STRIDE,
        KIND,
    )
    tl.store(p_starts + o_n, b_start + b_base, mask=m_n)
    # [BLOCK_N, BLOCK_Z]
    b_within, m_within = wrapped(b_start[:, None], b_size[:, None], o_z)
    m_out = m_n[:, None] & (o_z < BLOCK_SIZE)
    b_out = tl.load(p_array + b_base[:, None] + b_within, mask=m_out & m_within, other=0)
    tl.store(p_out + o_n[:, None] * BLOCK_SIZE + o_z, b_out, mask=m_out)


@triton.jit
def _add(
    p_array,
    p_starts,
    p_gradient,
    p_sizes,
    p_bases,
    count,
    scale,
    FEATURES: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_Z: tl.constexpr,
):
    i_n = tl.program_id(0).to(tl.int64)
    o_n, o_z = i_n * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_Z)
    m_n, o_f = o_n < count, o_n // PIECES % FEATURES
    # [BLOCK_N]
    b_size = tl.load(p_sizes + o_f * STRIDE, mask=m_n, other=1)
    b_base = tl.load(p_bases + o_f * STRIDE, mask=m_n, other=0)
    b_start = tl.load(p_starts + o_n, mask=m_n, other=0) - b_base
    # [BLOCK_N, BLOCK_Z]
    b_within, m_within = wrapped(b_start[:, None], b_size[:, None], o_z)
    m_add = m_n[:, None] & (o_z < BLOCK_SIZE) & m_within
    b_gradient = tl.load(p_gradient + o_n[:, None] * BLOCK_SIZE + o_z, mask=m_add, other=0)
    tl.atomic_add(p_array + b_base[:, None] + b_within, b_gradient * scale, mask=m_add, sem="relaxed")


@triton.jit
def _adagrad(p_array, p_total, p_summed, count, lr, eps, BLOCK: tl.constexpr):
    o_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    # [BLOCK]
    b_summed = tl.load(p_summed + o_n, mask=o_n < count, other=0)
    m_touched = b_summed != 0
    b_total = tl.load(p_total + o_n, mask=m_touched, other=1) + b_summed * b_summed
    b_array = tl.load(p_array + o_n, mask=m_touched, other=0)
    tl.store(p_total + o_n, b_total, mask=m_touched)
    tl.store(p_array + o_n, b_array - lr * b_summed / (tl.sqrt(b_total) + eps), mask=m_touched)


@triton.jit(do_not_specialize=["multiplier"])
def _flip(
    p_values,
    p_ids,
    p_table,
    p_piece,
    p_out,
    multiplier: tl.int64,
    count,
    FEATURES: tl.constexpr,
    DIM: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_n, o_row = o_n < count, o_n // DIM
    # [BLOCK]
    b_id = tl.load(p_ids + o_row, mask=m_n, other=0)
    b_table = tl.load(p_table + o_row % FEATURES, mask=m_n, other=0)
    b_piece = tl.load(p_piece + o_n % DIM, mask=m_n, other=0)
    b_hash = hashed(b_id, b_table, b_piece, multiplier, KIND)
    b_bit = b_hash & 1 if KIND == UNIVERSAL else b_hash >> 31
    b_value = tl.load(p_values + o_n, mask=m_n, other=0)
    tl.store(p_out + o_n, tl.where(b_bit != 0, b_value, -b_value), mask=m_n)


def read_blocks(
    array: Tensor,
    ids: Tensor,
    table: Tensor,
    piece: Tensor,
    multiplier: int,
    kind: int,
    sizes: Tensor,
    bases: Tensor,
    block_size: int,
    own: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Read blocks and return them with their starts, as `pocketrec.kernels.robe.read_blocks` does."""
    starts = ids.new_empty(*ids.shape, len(piece), dtype=torch.int64)
    out = array.new_empty(*ids.shape, len(piece) * block_size)
    programs, shape = _shape(starts, sizes, block_size)
    tensors = (array, ids.contiguous(), table, piece, sizes, bases, own, starts, out)
    launch(_read, programs, *tensors, multiplier, starts.numel(), KIND=kind, **shape)
    return out, starts


def add_blocks(
    array: Tensor, starts: Tensor, gradient: Tensor, sizes: Tensor, bases: Tensor, block_size: int, scale: float
) -> None:
    """Add scaled gradients of blocks to an array, in place."""
    programs, shape = _shape(starts, sizes, block_size)
    launch(_add, programs, array, starts.contiguous(), gradient, sizes, bases, starts.numel(), scale, **shape)


def adagrad(array: Tensor, total: Tensor, summed: Tensor, lr: float, eps: float) -> None:
    """Apply Adagrad element by element, in place."""
    launch(_adagrad, triton.cdiv(len(array), TILE), array, total, summed, len(array), lr, eps, BLOCK=TILE)


def flip(values: Tensor, ids: Tensor, table: Tensor, piece: Tensor, multiplier: int, kind: int) -> Tensor:
    """Multiply every value by +1 or -1, as `pocketrec.kernels.robe.flip` does."""
    out, (features, dim) = torch.empty_like(values), values.shape[1:]
    tensors, shape = (values, ids.contiguous(), table, piece, out), {"FEATURES": features, "DIM": dim, "BLOCK": TILE}
    launch(_flip, triton.cdiv(values.numel(), TILE), *tensors, multiplier, values.numel(), KIND=kind, **shape)
    return out


def _shape(starts: Tensor, sizes: Tensor, block_size: int) -> tuple[int, dict[str, int]]:
    """Return the number of programs over starts [batch, features, pieces], and the constants of their kernel."""
    _, features, pieces = starts.shape
    block_z = triton.next_power_of_2(block_size)
    block_n = max(1, TILE // block_z)
    shape = {"FEATURES": features, "PIECES": pieces, "BLOCK_SIZE": block_size, "STRIDE": int(len(sizes) > 1)}
    return triton.cdiv(starts.numel(), block_n), shape | {"BLOCK_N": block_n, "BLOCK_Z": block_z}
