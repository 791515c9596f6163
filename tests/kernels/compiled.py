"""Compile what a call would launch, for GPUs that need not be there: `python compiled.py 80 90`.

Prints one line a compute capability and kernel: the numbers, the name, the bytes of machine code, the bytes that its
registers spill.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from pocketrec.kernels import gather, gpu, interaction, quantized, robe, universal_hash

CALLS = {}


class Driver:
    """Stands for the driver of a GPU; device and compute capability are one number."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)


def compiled(kernel, grid):
    """What `kernel[grid]` gives instead of a launch."""

    def compile(*arguments, **constants):
        binary = kernel.run(*arguments, grid=grid, warmup=True, **constants)
        capability = triton.runtime.driver.active.capability
        print(capability, f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}", len(binary.asm["cubin"]))

    return compile


def calls(table, ids, width=16):
    """Call every operator once, with tensors that nobody computes on."""
    gather.rows(table, ids)


gpu.on_gpu = lambda numbers: True
JITFunction.__getitem__ = compiled
