"""Compile what the operators would launch on a GPU that need not be there: `python compiled.py 90`.

Prints the name of every kernel that became machine code, once for each of its variants.
"""

import itertools
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from pocketrec.kernels import gather, gpu, interaction, quantized, robe, universal_hash


class Driver:
    """Stands for the driver of a GPU of one compute capability."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target


def compile_instead(kernel, grid):
    """What `kernel[grid]` is here: it compiles and does not launch."""

    def compile(*arguments, **constants):
        assert kernel.run(*arguments, grid=grid, warmup=True, **constants).asm["cubin"]
        print(f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}")

    return compile


def calls():
    """Call every operator with every kind of argument; nobody reads the results."""
    ids, often = torch.zeros(4, 2, dtype=torch.int64), torch.zeros(1000, dtype=torch.int64)
    for dtype, width in itertools.product([torch.float32, torch.bfloat16], [16, 17]):
        table, gradient = torch.zeros(9, width, dtype=dtype), torch.zeros(4, 2, width, dtype=dtype)
        gather.rows(table, ids)
        gather.rows(table[:1], ids[0, :1])
        for total in (None, torch.zeros(9)):
            gather.train_rows(table, total, ids.int(), gradient, 0.1, 1e-8)
    gather.sum_rows(torch.zeros(1000, 16), often, 9)
    universal_hash.slots(ids, ids[:2], ids[:2], ids[:2])
    array, first = torch.zeros(64), torch.zeros(4, 16)
    for kind, own in itertools.product(range(3), [None, torch.zeros(2, dtype=torch.bool)]):
        place, sizes = robe.Hash(ids[0], ids[1], ids[1], kind), torch.full((1 if own is None else 2,), 32)
        out, starts = robe.read_blocks(array, ids, *place, sizes, sizes, 8, own)
        robe.flip(out, ids, ids[0], often[:16], often[:16], kind)
        interaction.pair_blocks(array, ids, None if own is None else first, *place, sizes, sizes, 8, own)
    for total in (None, array.clone()):
        robe.train_blocks(array, total, starts, out, sizes, sizes, 8, 0.1, 1e-8)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        interaction.pair_rows(torch.zeros(9, 16), ids, first)
    for bits in (8, 4):
        quantized.unpacked_rows(torch.zeros(9, 24, dtype=torch.uint8), ids[0], 16, bits)


gpu.on_gpu = lambda numbers: True
gather.on_processor = robe.on_processor = lambda floats: False
JITFunction.__getitem__ = compile_instead
triton.runtime.driver.set_active(Driver(int(sys.argv[1])))
calls()
