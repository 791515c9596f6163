"""Rows of codes, each row with a scale and an offset of its own: `code * scale + offset`, in torch's packed formats.

8 bits: a byte a code, then scale and offset as float32
4 bits: two codes a byte, the even column in its low half, then scale and offset as float16
"""

import torch
from torch import Tensor

from pocketrec.kernels import gpu, native
from pocketrec.kernels.operators import operator

READERS = {
    8: torch.ops.quantized.embedding_bag_byte_rowwise_offsets,
    4: torch.ops.quantized.embedding_bag_4bit_rowwise_offsets,
}


SCALES = {8: torch.float32, 4: torch.float16}


def pack(rows: Tensor, bits: int) -> Tensor:
    """Pack float32 rows [rows, width] on the CPU into uint8 [rows, bytes]; an odd width gets its last column twice."""
    if bits == 8:
        return torch.ops.quantized.embedding_bag_byte_prepack(rows)
    even = torch.cat([rows, rows[:, -1:]], 1) if rows.shape[1] % 2 else rows
    return torch.ops.quantized.embedding_bag_4bit_prepack(even)


def unpacked(packed: Tensor, width: int, bits: int) -> Tensor:
    """Turn packed rows, uint8 [rows, bytes], into float32 [rows, width]."""
    codes, scales = _split(packed, bits)
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
    scales = scales.clone(memory_format=torch.contiguous_format).view(SCALES[bits]).float()
    return codes[:, :width] * scales[:, :1] + scales[:, 1:]


def elements(packed: Tensor, row: Tensor, column: Tensor, bits: int) -> Tensor:
    """Read single numbers of packed rows as float32: int64 [k] and [k] -> [k]."""
    codes, scales = _split(packed, bits)
    scale, offset = scales.index_select(0, row).view(SCALES[bits]).float().unbind(1)
    if bits == 8:
        return codes[row, column] * scale + offset
    pair = codes[row, column // 2]
    return torch.where(column % 2 == 0, pair & 15, pair >> 4) * scale + offset


def _split(packed: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Tell codes from scale and offset, as views of bytes."""
    tail = 2 * SCALES[bits].itemsize
    return packed[:, :-tail], packed[:, -tail:]


def _unpacked_rows(packed: Tensor, index: Tensor, width: int, bits: int) -> Tensor:
    if kernels := gpu.library("quantized", packed):
        return kernels.unpacked_rows(packed, index, width, bits)
    if packed.device.type != "cpu" or not native.on():
        return unpacked(packed.index_select(0, index), width, bits)
    # bags of one row each: torch has a fast kernel for those
    bags = torch.arange(len(index), dtype=index.dtype)
    return READERS[bits](packed, index.contiguous(), bags)[:, :width].contiguous()


# rows of packed, uint8 [rows, bytes], by index [k] -> float32 [k, width]
unpacked_rows = operator(
    "unpacked_rows(Tensor packed, Tensor index, int width, int bits) -> Tensor",
    _unpacked_rows,
    lambda packed, index, width, bits: packed.new_empty(index.shape[0], width, dtype=torch.float32),
)
