"""Compile what the operators would launch on a GPU that need not be there: `python compiled.py 90`.

Prints the name of every kernel that became machine code, once for each of its variants.
"""

import itertools
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from pocketrec.kernels import gather, gpu, interaction, projection, quantized, robe, tensor_train, universal_hash


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
        found = kernel.run(*arguments, grid=grid, warmup=True, **constants)
        assert found.asm["cubin"] and found.metadata.shared <= gpu.SHARED, (kernel.__name__, constants, found.metadata)
        print(f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}")

    return compile


def calls():
    """Call every operator with every kind of argument; nobody reads the results."""
    ids, often = torch.zeros(4, 2, dtype=torch.int64), torch.zeros(1000, dtype=torch.int64)
    for dtype, width in itertools.product([torch.float32, torch.bfloat16], [16, 17]):
        table, gradient = torch.zeros(9, width, dtype=dtype), torch.zeros(4, 2, width, dtype=dtype)
        gather.rows(table, ids)
        gather.rows(table[:1], ids[0, :1])
        for keep in (True, False):
            gather.table_rows(table, ids, ids[0], ids[0], None, keep)
        for total in (None, torch.zeros(9)):
            gather.train_rows(table, total, ids.int(), gradient, 0.1, 1e-8)
    gather.sum_rows(torch.zeros(1000, 16), often, 9)
    gather.noted(ids, ids[0], ids[0, :1].int())
    universal_hash.slots(ids, ids[:2], ids[:2], ids[:2])
    array, first = torch.zeros(64), torch.zeros(4, 16)
    for kind, own in itertools.product(range(3), [None, torch.zeros(2, dtype=torch.bool)]):
        place, sizes = robe.Hash(ids[0], ids[1], ids[1], kind), torch.full((1 if own is None else 2,), 32)
        out, starts = robe.read_blocks(array, ids, *place, sizes, sizes, 8, own)
        robe.flip(out, ids, ids[0], often[:16], often[:16], kind)
        interaction.pair_blocks(array, ids, None if own is None else first, *place, sizes, sizes, 8, own)
    for total in (None, array.clone()):
        robe.train_blocks(array, total, starts, out, sizes, sizes, 8, 0.1, 1e-8)
        robe.train_blocks(array, total, starts, out, sizes, sizes, 8, 0.1, 1e-8, ids, ids[0] + 1)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        interaction.pair_rows(torch.zeros(9, 16), ids, first)
        for width, columns in ((5, 3), (128, 64)):
            project_and_train(width, columns)
    for precision, rank, factors in (
        ("highest", 5, (1, 3, 5)),
        ("highest", 16, (2, 2, 4)),
        ("highest", 64, (4, 4, 4)),
        ("high", 32, (4, 4, 8)),
    ):
        torch.set_float32_matmul_precision(precision)
        multiply_and_train(rank, factors)
    for bits in (8, 4):
        quantized.unpacked_rows(torch.zeros(9, 24, dtype=torch.uint8), ids[0], 16, bits)


def multiply_and_train(rank, factors):
    """Tensor trains: few and many lookups of three cores, and two."""
    q1, q2, q3 = factors
    first, middle, last = (torch.zeros(9, width) for width in (q1 * rank, rank * q2 * rank, rank * q3))
    radices, ids = torch.ones(9, 3, dtype=torch.int64), torch.zeros(4, 9, dtype=torch.int64)
    tensor_train.multiply([first, middle, last], ids, None, radices, factors)
    tensor_train.multiply([first, middle, last], ids[0, :2].int(), ids[0, :2].int(), radices, factors)
    tensor_train.multiply([first, last], ids, None, radices[:, :2], (q1, q3))
    gradient = torch.zeros(4, 9, q1 * q2 * q3)
    tensor_train.train([first, middle, last], [], gradient, ids, None, radices, factors, 0.1, 0.0)


def project_and_train(width, columns):
    table, ids, matrices = torch.zeros(9, width), torch.zeros(4, 2, dtype=torch.int64), torch.zeros(2, width, columns)
    projection.project(table, ids, ids[0] + 4, ids[0], None, matrices)
    for total in (None, torch.zeros(9)):
        projection.train(table, total, ids, torch.zeros(4, 2, columns), matrices, 0.1, 0.0)


gpu.on_gpu = lambda numbers: True
for family in (gather, robe, tensor_train, projection):
    family.on_processor = lambda floats: False
JITFunction.__getitem__ = compile_instead
triton.runtime.driver.set_active(Driver(int(sys.argv[1])))
calls()
