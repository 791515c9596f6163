"""Rows of codes on a GPU; `pocketrec.kernels.quantized` has the formats.

Index and packed rows are read once, floats are written once: 1 or 1/2 byte in and 4 bytes out a number.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pocketrec.kernels.gpu import launch

DTYPES = (torch.uint8,)
TILE = 2048  # numbers a program writes


@triton.jit
def _float32(p_bytes, mask):
    """Return the float32 numbers that start at these bytes, aligned or not."""
    b_word = tl.load(p_bytes, mask=mask, other=0).to(tl.uint32)
    for i in tl.static_range(1, 4):
        b_word |= tl.load(p_bytes + i, mask=mask, other=0).to(tl.uint32) << (8 * i)
    return b_word.to(tl.float32, bitcast=True)


@triton.jit
def _float16(p_bytes, mask):
    """Return the float16 numbers that start at these bytes, as float32."""
    b_low, b_high = tl.load(p_bytes, mask=mask, other=0), tl.load(p_bytes + 1, mask=mask, other=0)
    b_word = b_low.to(tl.uint16) | (b_high.to(tl.uint16) << 8)
    return b_word.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _unpack(
    p_packed,
    p_index,
    p_out,
    count,
    rows,
    WIDTH: tl.constexpr,
    BYTES: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    o_n, o_w = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_W)
    m_n = o_n < count
    # [BLOCK_N]
    b_index = tl.load(p_index + o_n, mask=m_n, other=-1).to(tl.int64)
    m_row = (b_index >= 0) & (b_index < rows)
    p_row = p_packed + b_index * BYTES
    # [BLOCK_N, BLOCK_W]
    if BITS == 8:
        b_scale, b_offset = _float32(p_row + BYTES - 8, m_row), _float32(p_row + BYTES - 4, m_row)
        b_code = tl.load(p_row[:, None] + o_w, mask=m_row[:, None] & (o_w < WIDTH), other=0)
    else:
        b_scale, b_offset = _float16(p_row + BYTES - 4, m_row), _float16(p_row + BYTES - 2, m_row)
        o_pair = tl.arange(0, BLOCK_W // 2)
        b_pair = tl.load(p_row[:, None] + o_pair, mask=m_row[:, None] & (2 * o_pair < WIDTH), other=0)
        b_code = tl.interleave(b_pair & 15, b_pair >> 4)
    b_out = b_code.to(tl.float32) * b_scale[:, None] + b_offset[:, None]
    tl.store(p_out + o_n[:, None] * WIDTH + o_w, b_out, mask=m_n[:, None] & (o_w < WIDTH))


def unpacked_rows(packed: Tensor, index: Tensor, width: int, bits: int) -> Tensor:
    """Read rows as floats: int32 or int64 [k] -> float32 [k, width]; zeros for an index outside."""
    out = packed.new_empty(len(index), width, dtype=torch.float32)
    block_w = max(2, triton.next_power_of_2(width))
    shape = {"WIDTH": width, "BYTES": packed.shape[1], "BITS": bits}
    shape |= {"BLOCK_N": max(1, TILE // block_w), "BLOCK_W": block_w}
    programs = triton.cdiv(len(index), shape["BLOCK_N"])
    launch(_unpack, programs, packed, index.contiguous(), out, len(index), len(packed), **shape)
    return out
