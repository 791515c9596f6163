"""Triton kernels for a GPU, one file a family, imported when a tensor on a GPU first asks for them.

Where triton is missing `library` returns None and plain PyTorch serves. A kernel reads and writes nothing outside
its tensors: what an index outside them names is read as zeros and never written, since a device cannot raise.

The tests run them on a GPU where there is one, else in Triton's interpreter, and compile them for compute capabilities
8.0, 9.0 and 10.0. Tiles of rows, blocks and interaction are chosen by measurements on an H200, those of tensor trains
and projections by arithmetic and by what the compiler makes of them.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pocketrec.kernels import native

LEAST = 16  # rows, columns and terms of a matrix product on a GPU
SHARED = 96 * 1024  # bytes that a program may keep on chip, on every GPU since compute capability 8.0
PROGRAMS = 1024  # enough to keep a GPU busy
LONGEST = 256  # things that one program takes one after another


def library(family: str, *floats: Tensor) -> ModuleType | None:
    """Return a family's functions if these numbers are what they take: contiguous, on a GPU, of its `DTYPES`."""
    if not on_gpu(floats[0]):  # what most calls end with: before anything that takes longer
        return None
    if not native.on() or not all(on_gpu(numbers) and numbers.is_contiguous() for numbers in floats):
        return None
    found = _load(family)[0]
    return found if found and all(numbers.dtype in found.DTYPES for numbers in floats) else None


def problem(family: str) -> str:
    """Return why a family's kernels cannot be had; empty where they can."""
    return _load(family)[1]


def on_gpu(numbers: Tensor) -> bool:
    """Return whether a tensor is where Triton's kernels run."""
    return numbers.is_cuda


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Start a kernel on the device of its first tensor; no program, no launch."""
    if programs:
        with torch.cuda.device_of(arguments[0]):
            kernel[(programs,)](*arguments, **constants)


def precision(exact: str = "tf32x3") -> str:
    """Return how products of float32 matrices are made: as TF32 where torch allows it, else `exact`.

    `tf32x3` is three products of TF32, as exact as float32 but for the last two bits, `ieee` one without matrix units.
    """
    return exact if torch.get_float32_matmul_precision() == "highest" else "tf32"


def piece_of(count: int, least: int) -> int:
    """Return how many of `count` things in a row one program takes, a power of two; it leaves one sum an owner."""
    each = -(-count // PROGRAMS)
    return max(least, min(LONGEST, 1 << max(0, each - 1).bit_length()))


@cache
def _load(family: str) -> tuple[ModuleType | None, str]:
    try:
        import_module("triton")
    except ImportError as error:
        return None, f"no triton: {error} (pip install 'pocketrec[gpu]')"
    return import_module(f"{__name__}.{family}"), ""
