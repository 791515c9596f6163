"""Blocks of one array on a GPU; `pocketrec.kernels.robe` has the formulas.

To read takes two launches: one places every block, one thread each, so that no hash is computed twice, and writes its
start (8 bytes); one reads starts, reads the array, from the L2 cache where it fits, and writes every embedding once. No
element index is kept. To train or sum adds up the gradients of each id as `gather` does, since adding to the same few
blocks again and again is what takes long; their sums are added to the array by float32 atomics, in whichever order they
arrive, and may differ in their last bits from run to run. Adagrad then passes over the array once, reading sums and
changing what they touch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pocketrec.kernels.gpu import gather, launch, universal_hash

DTYPES = (torch.float32,)
TILE = 512  # numbers of blocks a program moves
PASSED = 2048  # numbers it changes where all are passed over
PLACED = 256  # blocks a program places
UNIVERSAL, MULTIPLY_SHIFT = tl.constexpr(0), tl.constexpr(1)
AUTHORS_PRIME = tl.constexpr(2038074743)


@triton.jit
def hashed(b_id, b_table, b_piece, b_multiplier, KIND: tl.constexpr):
    """Hash (feature, id, piece), uint64."""
    b_id, b_table, b_piece = b_id.to(tl.uint64), b_table.to(tl.uint64), b_piece.to(tl.uint64)
    b_multiplier = b_multiplier.to(tl.uint64)
    if KIND == UNIVERSAL:
        return universal_hash.add(universal_hash.add(universal_hash.multiply(b_multiplier, b_id), b_table), b_piece)
    total = b_id * b_multiplier + b_table + b_piece
    return total >> 32 if KIND == MULTIPLY_SHIFT else total % AUTHORS_PRIME


@triton.jit
def wrapped(b_start, b_base, b_size, o_z):
    """Return elements of blocks, which wrap around in their windows, and whether they are inside."""
    b_within = b_start - b_base + o_z
    b_within = tl.where(b_within >= b_size, b_within - b_size, b_within)
    return b_base + b_within, (b_within >= 0) & (b_within < b_size)


@triton.jit
def narrowed(b_start, b_base, b_size, BLOCK_Z: tl.constexpr):
    """Return starts in 32 bits, before the window for a block that does not start in it."""
    m_inside = (b_start >= b_base) & (b_start < b_base + b_size)
    return tl.where(m_inside, b_start, b_base - BLOCK_Z).to(tl.int32)


@triton.jit
def _place(
    p_ids,
    p_table,
    p_piece,
    p_multiplier,
    p_sizes,
    p_bases,
    p_own,
    p_starts,
    count,
    FEATURES: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_n, o_row, o_c = o_n < count, o_n // PIECES, o_n % PIECES
    o_f = o_row % FEATURES
    # [BLOCK]
    b_id = tl.load(p_ids + o_row, mask=m_n, other=0).to(tl.int64)
    b_size = tl.load(p_sizes + o_f * STRIDE, mask=m_n, other=BLOCK_SIZE)
    b_table = tl.load(p_table + o_f, mask=m_n, other=0)
    b_piece = tl.load(p_piece + o_c, mask=m_n, other=0)
    b_multiplier = tl.load(p_multiplier + o_c, mask=m_n, other=0)
    b_hash = hashed(b_id, b_table, b_piece, b_multiplier, KIND)
    if KIND == UNIVERSAL:
        b_start = b_hash % b_size.to(tl.uint64)
    elif KIND == MULTIPLY_SHIFT:
        b_start = (b_hash * b_size.to(tl.uint64)) >> 32
    else:
        b_start = b_hash % (b_size - BLOCK_SIZE + 1).to(tl.uint64)
    b_start = b_start.to(tl.int64)
    if p_own is not None:
        b_own = tl.load(p_own + o_f, mask=m_n, other=0)
        b_start = tl.where(b_own != 0, (b_id * PIECES + o_c) * BLOCK_SIZE, b_start)
    b_start += tl.load(p_bases + o_f * STRIDE, mask=m_n, other=0)
    tl.store(p_starts + o_n, b_start, mask=m_n)


@triton.jit
def _blocks(
    p_starts,
    p_sizes,
    p_bases,
    o_row,
    o_c,
    m_n,
    FEATURES: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    SMALL: tl.constexpr,
    BLOCK_Z: tl.constexpr,
):
    """Return where the elements of blocks are, piece o_c of lookup o_row, and which there are: [BLOCK_N, BLOCK_Z]."""
    o_f, o_z = o_row % FEATURES, tl.arange(0, BLOCK_Z)
    # [BLOCK_N]
    b_start = tl.load(p_starts + o_row * PIECES + o_c, mask=m_n, other=0)
    b_base = tl.load(p_bases + o_f * STRIDE, mask=m_n, other=0)
    b_size = tl.load(p_sizes + o_f * STRIDE, mask=m_n, other=0)
    if SMALL:
        b_start = narrowed(b_start, b_base, b_size, BLOCK_Z)
        b_base, b_size = b_base.to(tl.int32), b_size.to(tl.int32)
    # [BLOCK_N, BLOCK_Z]
    b_element, m_inside = wrapped(b_start[:, None], b_base[:, None], b_size[:, None], o_z)
    m_there = m_n[:, None] & (o_z < BLOCK_SIZE)
    return b_element, m_there, m_there & m_inside


@triton.jit(do_not_specialize=["width"])
def _read(
    p_array,
    p_starts,
    p_sizes,
    p_bases,
    p_out,
    blocks,
    width,
    FEATURES: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    SMALL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_Z: tl.constexpr,
):
    # neighbouring programs read blocks of one feature: those that occur often are in the nearest cache
    programs = tl.cdiv(blocks, BLOCK_N)
    i_f, i_p = tl.program_id(0).to(tl.int64) // programs, tl.program_id(0).to(tl.int64) % programs
    o_n = i_p * BLOCK_N + tl.arange(0, BLOCK_N)
    o_row, o_c = o_n // PIECES * FEATURES + i_f, o_n % PIECES
    b_element, m_out, m_inside = _blocks(
        p_starts, p_sizes, p_bases, o_row, o_c, o_n < blocks, FEATURES, PIECES, BLOCK_SIZE, STRIDE, SMALL, BLOCK_Z
    )
    b_out = tl.load(p_array + b_element, mask=m_inside, other=0)
    # `width` is BLOCK_SIZE, which the compiler is not told: it would give a thread neighbouring numbers, that are
    # written at once but read one by one, far apart from those of the next thread
    tl.store(p_out + (o_row * PIECES + o_c)[:, None] * width + tl.arange(0, BLOCK_Z), b_out, mask=m_out)


@triton.jit(do_not_specialize=["width"])
def _add(
    p_array,
    p_starts,
    p_sizes,
    p_bases,
    p_gradient,
    p_lookups,
    p_count,
    count,
    width,
    scale,
    FEATURES: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    SMALL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_Z: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_N
    if p_count is not None:
        count = tl.load(p_count)
    if first < count * PIECES:
        o_n = first + tl.arange(0, BLOCK_N)
        m_n, o_row, o_c = o_n < count * PIECES, o_n // PIECES, o_n % PIECES
        o_gradient = o_n[:, None] * width + tl.arange(0, BLOCK_Z)
        if p_lookups is not None:
            o_row = tl.load(p_lookups + o_row, mask=m_n, other=0)
        b_element, _, m_add = _blocks(
            p_starts, p_sizes, p_bases, o_row, o_c, m_n, FEATURES, PIECES, BLOCK_SIZE, STRIDE, SMALL, BLOCK_Z
        )
        b_gradient = tl.load(p_gradient + o_gradient, mask=m_add, other=0)
        tl.atomic_add(p_array + b_element, b_gradient * scale, mask=m_add, sem="relaxed")


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


@triton.jit
def _flip(
    p_values,
    p_ids,
    p_table,
    p_piece,
    p_multiplier,
    p_out,
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
    b_multiplier = tl.load(p_multiplier + o_n % DIM, mask=m_n, other=0)
    b_hash = hashed(b_id, b_table, b_piece, b_multiplier, KIND)
    b_bit = b_hash & 1 if KIND == UNIVERSAL else b_hash >> 31
    b_value = tl.load(p_values + o_n, mask=m_n, other=0)
    tl.store(p_out + o_n, tl.where(b_bit != 0, b_value, -b_value), mask=m_n)


def place_blocks(
    ids: Tensor,
    table: Tensor,
    piece: Tensor,
    multiplier: Tensor,
    kind: int,
    sizes: Tensor,
    bases: Tensor,
    block_size: int,
    own: Tensor | None,
) -> Tensor:
    """Return where blocks start: ids [batch, features] -> int64 [batch, features, pieces]."""
    starts = ids.new_empty(*ids.shape, len(piece), dtype=torch.int64)
    tensors = (ids.contiguous(), table, piece, multiplier, sizes, bases, own, starts)
    shape = {**where(starts, sizes, block_size), "KIND": kind, "BLOCK": PLACED}
    launch(_place, triton.cdiv(starts.numel(), PLACED), *tensors, starts.numel(), **shape)
    return starts


def read_blocks(array: Tensor, ids: Tensor, *placing: Tensor | int | None) -> tuple[Tensor, Tensor]:
    """Read blocks and return them with their starts, as `pocketrec.kernels.robe.read_blocks` does."""
    starts, (sizes, bases, block_size) = place_blocks(ids, *placing), placing[4:7]
    (batch, features, pieces), shape = starts.shape, _tile(array, starts, sizes, block_size)
    out, programs = array.new_empty(batch, features, pieces * block_size), triton.cdiv(batch * pieces, shape["BLOCK_N"])
    launch(_read, features * programs, array, starts, sizes, bases, out, batch * pieces, block_size, **shape)
    return out, starts


def add_blocks(
    array: Tensor,
    starts: Tensor,
    gradient: Tensor,
    sizes: Tensor,
    bases: Tensor,
    block_size: int,
    scale: float,
    ids: Tensor | None = None,
    limits: Tensor | None = None,
) -> None:
    """Add scaled gradients of blocks to an array, in place.

    With ids and their limits the gradients of an id that occurs often are summed first.
    """
    if not starts.numel():
        return
    lookups = count = None
    if ids is not None and limits is not None:
        index = (ids + (limits.cumsum(0) - limits)).flatten()
        gradient, lookups, count = gather.sums_by_lookup(index, gradient.flatten(0, 1))
    shape = _tile(array, starts, sizes, block_size)
    tensors = (array, starts.contiguous(), sizes, bases, gradient, lookups, count)
    programs = triton.cdiv(starts.numel(), shape["BLOCK_N"])
    launch(_add, programs, *tensors, starts.shape[:2].numel(), block_size, scale, **shape)


def adagrad(array: Tensor, total: Tensor, summed: Tensor, lr: float, eps: float) -> None:
    """Apply Adagrad element by element, in place."""
    launch(_adagrad, triton.cdiv(len(array), PASSED), array, total, summed, len(array), lr, eps, BLOCK=PASSED)


def flip(values: Tensor, ids: Tensor, table: Tensor, piece: Tensor, multiplier: Tensor, kind: int) -> Tensor:
    """Multiply every value by +1 or -1, as `pocketrec.kernels.robe.flip` does."""
    out, (features, dim) = torch.empty_like(values), values.shape[1:]
    tensors = (values, ids.contiguous(), table, piece, multiplier, out)
    shape = {"FEATURES": features, "DIM": dim, "BLOCK": PASSED}
    launch(_flip, triton.cdiv(values.numel(), PASSED), *tensors, values.numel(), KIND=kind, **shape)
    return out


def where(starts: Tensor, sizes: Tensor, block_size: int) -> dict[str, int]:
    """Return the constants by which a kernel finds the window of a block of starts [batch, features, pieces]."""
    _, features, pieces = starts.shape
    return {"FEATURES": features, "PIECES": pieces, "BLOCK_SIZE": block_size, "STRIDE": int(len(sizes) > 1)}


def small(array: Tensor) -> bool:
    """Return whether 32 bits tell all elements apart, also those of a block that is yet to wrap around."""
    return array.numel() < 2**30


def _tile(array: Tensor, starts: Tensor, sizes: Tensor, block_size: int) -> dict[str, int]:
    """Return the constants of a kernel whose programs move some blocks."""
    block_z = triton.next_power_of_2(block_size)
    shape = {"SMALL": small(array), "BLOCK_N": max(1, TILE // block_z), "BLOCK_Z": block_z, "num_warps": 2}
    return where(starts, sizes, block_size) | shape
