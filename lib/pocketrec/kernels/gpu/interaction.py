"""Lookup and dot interaction on a GPU; `pocketrec.kernels.interaction` has the formula.

One program a sample: its vectors stay on chip. What moves is ids, the first vector, the numbers looked up (from the L2
cache where a ROBE array fits it) and the products. With 26 features and vectors of 128 numbers that is 2.1 kB a sample
beside the lookups; embeddings written and read again would be 27 kB more. Products are float32 unless torch allows
TF32 (`torch.set_float32_matmul_precision`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pocketrec.kernels.gpu import launch
from pocketrec.kernels.gpu.robe import placed, wrapped

DTYPES = (torch.float32,)
LEAST = 16  # rows and columns of a matrix product on a GPU


@triton.jit
def _store(p_out, b_vectors, i_b, VECTORS: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr):
    """Store the products below the diagonal."""
    # [BLOCK_V, BLOCK_V]
    b_products = tl.dot(b_vectors, tl.trans(b_vectors), input_precision=PRECISION)
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
    o_v, o_w = tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_W)
    o_f = o_v - (VECTORS - FEATURES)
    # [BLOCK_V]
    b_index = tl.load(p_index + i_b * FEATURES + o_f, mask=(o_f >= 0) & (o_f < FEATURES), other=-1).to(tl.int64)
    m_row = (b_index >= 0) & (b_index < rows)
    # [BLOCK_V, BLOCK_W]
    m_vectors = m_row[:, None] & (o_w < WIDTH)
    b_vectors = tl.load(p_table + b_index[:, None] * WIDTH + o_w, mask=m_vectors, other=0)
    if p_first is not None:
        b_first = tl.load(p_first + i_b * WIDTH + o_w, mask=o_w < WIDTH, other=0)
        b_vectors = tl.where(o_v[:, None] == 0, b_first, b_vectors)
    _store(p_out, b_vectors, i_b, VECTORS, BLOCK_V, PRECISION)


@triton.jit(do_not_specialize=["multiplier"])
def _blocks(
    p_array,
    p_ids,
    p_first,
    p_table,
    p_piece,
    p_sizes,
    p_bases,
    p_own,
    p_out,
    multiplier: tl.int64,
    VECTORS: tl.constexpr,
    FEATURES: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_b = tl.program_id(0).to(tl.int64)
    o_v, o_c = tl.arange(0, BLOCK_V)[:, None], tl.arange(0, BLOCK_C)[None, :]
    o_z = tl.arange(0, BLOCK_Z)[None, None, :]
    o_f = o_v - (VECTORS - FEATURES)
    # [BLOCK_V, BLOCK_C]
    m_block = (o_f >= 0) & (o_f < FEATURES) & (o_c < PIECES)
    b_start, b_size, b_base = placed(
        p_ids,
        p_table,
        p_piece,
        p_sizes,
        p_bases,
        p_own,
        multiplier,
        i_b * FEATURES + o_f,
        o_f,
        o_c,
        m_block,
        PIECES,
        BLOCK_SIZE,
        STRIDE,
        KIND,
    )
    # [BLOCK_V, BLOCK_C, BLOCK_Z]
    b_within, m_within = wrapped(b_start[:, :, None], b_size[:, :, None], o_z)
    m_vectors = m_block[:, :, None] & (o_z < BLOCK_SIZE) & m_within
    b_vectors = tl.load(p_array + b_base[:, :, None] + b_within, mask=m_vectors, other=0)
    if p_first is not None:
        # [1, BLOCK_C, BLOCK_Z]
        o_d = o_c[:, :, None] * BLOCK_SIZE + o_z
        m_first = (o_c[:, :, None] < PIECES) & (o_z < BLOCK_SIZE)
        b_first = tl.load(p_first + i_b * PIECES * BLOCK_SIZE + o_d, mask=m_first, other=0)
        b_vectors = tl.where(o_v[:, :, None] == 0, b_first, b_vectors)
    # zeros between blocks that are no power of two add nothing to a product
    b_vectors = tl.reshape(b_vectors, [BLOCK_V, BLOCK_C * BLOCK_Z])
    _store(p_out, b_vectors, i_b, VECTORS, BLOCK_V, PRECISION)


def pair_rows(table: Tensor, index: Tensor, first: Tensor | None) -> Tensor:
    """Read rows and pair them, as `pocketrec.kernels.interaction.pair_rows` does."""
    out, shape = _shape(table, index, first)
    width = table.shape[1]
    shape |= {"WIDTH": width, "BLOCK_W": max(LEAST, triton.next_power_of_2(width))}
    launch(_rows, len(index), table, index.contiguous(), _whole(first), out, len(table), **shape)
    return out


def pair_blocks(
    array: Tensor,
    ids: Tensor,
    first: Tensor | None,
    table: Tensor,
    piece: Tensor,
    multiplier: int,
    kind: int,
    sizes: Tensor,
    bases: Tensor,
    block_size: int,
    own: Tensor | None,
) -> Tensor:
    """Read blocks and pair them, as `pocketrec.kernels.interaction.pair_blocks` does."""
    out, shape = _shape(array, ids, first)
    block_c = triton.next_power_of_2(len(piece))
    shape |= {"PIECES": len(piece), "BLOCK_SIZE": block_size, "STRIDE": int(len(sizes) > 1), "KIND": kind}
    shape |= {"BLOCK_C": block_c, "BLOCK_Z": max(LEAST // block_c, triton.next_power_of_2(block_size))}
    tensors = (array, ids.contiguous(), _whole(first), table, piece, sizes, bases, own, out)
    launch(_blocks, len(ids), *tensors, multiplier, **shape)
    return out


def _whole(first: Tensor | None) -> Tensor | None:
    return None if first is None else first.contiguous()


def _shape(numbers: Tensor, ids: Tensor, first: Tensor | None) -> tuple[Tensor, dict[str, int | str]]:
    """Return where the products go, and the constants that both kernels know."""
    batch, features = ids.shape
    vectors = features + (first is not None)
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    shape = {"VECTORS": vectors, "FEATURES": features, "PRECISION": precision}
    shape["BLOCK_V"] = max(LEAST, triton.next_power_of_2(vectors))
    return numbers.new_empty(batch, vectors * (vectors - 1) // 2), shape
