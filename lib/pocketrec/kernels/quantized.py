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


def unpacked(packed: Tensor, width: int, bits: int) -> Tensor:
    """Turn packed rows, uint8 [rows, bytes], into float32 [rows, width]."""
    if bits == 8:
        codes, scales = packed[:, :-8], packed[:, -8:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    else:
        pairs, scales = (
            packed[:, :-4],
            packed[:, -4:].clone(memory_format=torch.contiguous_format).view(torch.float16).float(),
        )
        codes = torch.stack([pairs & 15, pairs >> 4], -1).flatten(1)
    return codes[:, :width] * scales[:, :1] + scales[:, 1:]


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
