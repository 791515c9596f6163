"""Lookup and dot interaction on a GPU; `pocketrec.kernels.interaction` has the formula.

One program a sample; its vectors never leave the chip. What moves is ids, the first vector, the numbers looked up (from
the L2 cache where a ROBE array fits it) and the products; blocks are placed by a launch before, 16 bytes a block. With
26 features and vectors of 128 numbers, rows move 2.1 kB a sample beside the lookups, blocks of 32 numbers 3.8 kB;
embeddings written and read again would be 27 kB more. Products are as exact as torch asks
(`torch.set_float32_matmul_precision`, `gpu.precision`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pocketrec.kernels.gpu import LEAST, launch, precision
from pocketrec.kernels.gpu.robe import narrowed, place_blocks, small, where, wrapped

DTYPES = (torch.float32,)
CHUNK = 128  # more numbers of a vector than that are multiplied in turns


@triton.jit
def _store(p_out, b_products, i_b, VECTORS: tl.constexpr, BLOCK_V: tl.constexpr):
    """Store the products below the diagonal of [BLOCK_V, BLOCK_V]."""
    o_i, o_j = tl.arange(0, BLOCK_V)[:, None], tl.arange(0, BLOCK_V)[None, :]
    o_pair = i_b * (VECTORS * (VECTORS - 1) // 2) + o_i * (o_i - 1) // 2 + o_j
    tl.store(p_out + o_pair, b_products, mask=(o_j < o_i) & (o_i < VECTORS))


@triton.jit
def _rows(
    p_table,
    p_index,
    p_first,
    p_out,
    rows,
    VECTORS: tl.constexpr,
    FEATURES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    o_v = tl.arange(0, BLOCK_V)
    o_f = o_v - (VECTORS - FEATURES)
    # [BLOCK_V]
    b_index = tl.load(p_index + i_b * FEATURES + o_f, mask=(o_f >= 0) & (o_f < FEATURES), other=-1).to(tl.int64)
    m_row = (b_index >= 0) & (b_index < rows)
    b_products = tl.zeros([BLOCK_V, BLOCK_V], tl.float32)
    for w in range(0, WIDTH, BLOCK_W):
        o_w = w + tl.arange(0, BLOCK_W)
        m_w = o_w < WIDTH
        # [BLOCK_V, BLOCK_W]
        b_vectors = tl.load(p_table + b_index[:, None] * WIDTH + o_w, mask=m_row[:, None] & m_w, other=0)
        if p_first is not None:
            b_first = tl.load(p_first + i_b * WIDTH + o_w, mask=m_w, other=0)
            b_vectors = tl.where(o_v[:, None] == 0, b_first, b_vectors)
        b_products = tl.dot(b_vectors, tl.trans(b_vectors), b_products, input_precision=PRECISION)
    _store(p_out, b_products, i_b, VECTORS, BLOCK_V)


@triton.jit
def _blocks(
    p_array,
    p_starts,
    p_first,
    p_sizes,
    p_bases,
    p_out,
    VECTORS: tl.constexpr,
    FEATURES: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    SMALL: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    o_v, o_z = tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_Z)
    o_f = o_v - (VECTORS - FEATURES)
    m_f = (o_f >= 0) & (o_f < FEATURES)
    # [BLOCK_V]
    b_base = tl.load(p_bases + o_f * STRIDE, mask=m_f, other=0)
    b_size = tl.load(p_sizes + o_f * STRIDE, mask=m_f, other=0)
    b_products = tl.zeros([BLOCK_V, BLOCK_V], tl.float32)
    for c in range(0, PIECES, BLOCK_C):
        o_c = c + tl.arange(0, BLOCK_C)
        m_c = o_c < PIECES
        # [BLOCK_V, BLOCK_C]
        m_block = m_f[:, None] & m_c
        b_start = tl.load(p_starts + (i_b * FEATURES + o_f[:, None]) * PIECES + o_c, mask=m_block, other=0)
        if SMALL:
            b_start = narrowed(b_start, b_base[:, None], b_size[:, None], BLOCK_Z)
        # [BLOCK_V, BLOCK_C, BLOCK_Z]
        m_z = (o_z < BLOCK_SIZE)[None, None, :]
        b_window, b_length = b_base.to(b_start.dtype)[:, None, None], b_size.to(b_start.dtype)[:, None, None]
        b_element, m_inside = wrapped(b_start[:, :, None], b_window, b_length, o_z[None, None, :])
        b_vectors = tl.load(p_array + b_element, mask=m_block[:, :, None] & m_z & m_inside, other=0)
        if p_first is not None:
            o_first = (i_b * PIECES + o_c[:, None]) * BLOCK_SIZE + o_z
            b_first = tl.load(p_first + o_first, mask=m_c[:, None] & (o_z < BLOCK_SIZE), other=0)
            b_vectors = tl.where(o_v[:, None, None] == 0, b_first[None, :, :], b_vectors)
        b_vectors = b_vectors.reshape(BLOCK_V, BLOCK_C * BLOCK_Z)
        b_products = tl.dot(b_vectors, tl.trans(b_vectors), b_products, input_precision=PRECISION)
    _store(p_out, b_products, i_b, VECTORS, BLOCK_V)


def pair_rows(table: Tensor, index: Tensor, first: Tensor | None) -> Tensor:
    """Read rows and pair them, as `pocketrec.kernels.interaction.pair_rows` does."""
    out, shape = _shape(table, index, first)
    shape |= {"WIDTH": table.shape[1], "BLOCK_W": _chunk(table.shape[1])}
    launch(_rows, len(index), table, index.contiguous(), _whole(first), out, len(table), **shape)
    return out


def pair_blocks(array: Tensor, ids: Tensor, first: Tensor | None, *placing: Tensor | int | None) -> Tensor:
    """Read blocks and pair them, as `pocketrec.kernels.interaction.pair_blocks` does."""
    starts, (sizes, bases, block_size) = place_blocks(ids, *placing), placing[4:7]
    out, shape = _shape(array, ids, first)
    block_z = triton.next_power_of_2(block_size)
    # a product of a GPU has 16 terms or more
    pieces = max(LEAST // block_z, min(CHUNK // block_z, triton.next_power_of_2(starts.shape[2])), 1)
    shape |= {"SMALL": small(array), **where(starts, sizes, block_size), "BLOCK_C": pieces, "BLOCK_Z": block_z}
    launch(_blocks, len(ids), array, starts, _whole(first), sizes, bases, out, **shape)
    return out


def _chunk(width: int) -> int:
    """Return how many numbers of every vector are on chip at once."""
    return min(CHUNK, max(LEAST, triton.next_power_of_2(width)))


def _whole(first: Tensor | None) -> Tensor | None:
    return None if first is None else first.contiguous()


def _shape(numbers: Tensor, ids: Tensor, first: Tensor | None) -> tuple[Tensor, dict[str, int | str]]:
    """Return where the products go, and the constants that both kernels know."""
    batch, features = ids.shape
    vectors = features + (first is not None)
    shape = {"VECTORS": vectors, "FEATURES": features, "PRECISION": precision()}
    shape["num_warps"] = 1 if shape["PRECISION"] == "tf32" else 2
    shape["BLOCK_V"] = max(LEAST, triton.next_power_of_2(vectors))
    return numbers.new_empty(batch, vectors * (vectors - 1) // 2), shape
