"""The machine under test: its memory made steady, its limits, how fast its cores talk, and who else is busy on it.

Three things falsify timings on a machine that is shared. The allocator hands large tensors back after every call,
and the page faults of the next one cost several times the lookup: `native.keep_memory`. Without huge pages, most of
a random read from a table of gigabytes is the translation of its address: `huge`, for every table alike. Virtual
cores move, which changes the cost of every parallel region, and other processes take a core for milliseconds:
`core_to_core` and `Load` tell.
"""

from __future__ import annotations

import ctypes
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketrec.kernels import native
from pocketrec.measure import synchronize

MADV_HUGEPAGE = 14  # sys/mman.h
HUGE_PAGE = 1 << 21
GATHER_WIDTH = 16  # floats of a row in the limits of the machine: one cache line
IN_CACHE, OUT_OF_CACHE = 1 << 19, 1 << 28  # floats: 2 MB and 1 GB


def huge(tensor: Tensor) -> Tensor:
    """Ask for huge pages below a tensor of the main memory, before anything was written to it; return it."""
    start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    first = -(-start // HUGE_PAGE) * HUGE_PAGE
    length = (start + size - first) // HUGE_PAGE * HUGE_PAGE
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise and tensor.device.type == "cpu" and length > 0 and platform.system() == "Linux":
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), MADV_HUGEPAGE)
    return tensor


def fill(tensor: Tensor, seed: int = 0) -> Tensor:
    """Fill a large tensor with random numbers that repeat every 4 MB: every page is real, and it takes no time."""
    flat = tensor.detach().view(-1)
    pattern = torch.empty(1 << 20, device=flat.device).uniform_(
        -0.1, 0.1, generator=torch.Generator(flat.device).manual_seed(seed)
    )
    for part in flat.split(len(pattern)):
        part.copy_(pattern[: len(part)])
    return tensor


def core_to_core() -> float | None:
    """Return the nanoseconds from one core to another; None where they cannot be had."""
    functions = native.library("probe")
    if functions is None or torch.get_num_threads() < 2:
        return None
    return min(functions.core_to_core(2000) for _ in range(3))


def limits(device: str) -> dict[str, float]:
    """Measure what no lookup can beat: a copy in GB/s, and random rows of 64 bytes in millions a second.

    Keys: copy_gb_s (bytes read and written), rows_in_cache_m_s, rows_out_of_cache_m_s.
    """
    source = fill(huge(torch.empty(OUT_OF_CACHE, device=device)))
    half, times = OUT_OF_CACHE // 2, 1 if device == "cpu" else 20  # a GPU works on while more is asked of it
    seconds = _best(lambda: [copy(source[:half], source[half:]) for _ in range(times)]) / times
    found = {"copy_gb_s": 8 * half / seconds / 1e9}
    lookups = 1 << 20
    out = torch.empty(lookups, GATHER_WIDTH, device=device)
    for name, size in (("rows_in_cache_m_s", IN_CACHE), ("rows_out_of_cache_m_s", OUT_OF_CACHE)):
        table = source[:size].view(-1, GATHER_WIDTH)
        index = torch.randint(len(table), (lookups,), device=device, dtype=torch.int32)
        # in small pieces, into an output that stays in cache too
        pieces = [(index[i : i + 8192], out[:8192]) for i in range(0, lookups, 8192)]
        if device != "cpu":
            pieces = [(index, out)]
        seconds = _best(lambda t=table, p=pieces: [gather(t, i, o) for i, o in p])
        found[name] = lookups / seconds / 1e6
    return found


def copy(source: Tensor, target: Tensor) -> None:
    """Copy floats with all threads."""
    functions = native.library("probe") if source.device.type == "cpu" else None
    if functions is None:
        target.copy_(source)
    else:
        functions.copy_all(*native.pointers(source, target), len(source), torch.get_num_threads())


def gather(table: Tensor, index: Tensor, out: Tensor) -> None:
    """Read rows, which may overlap, by int32 indices that are right, into memory that is there."""
    functions = native.library("probe") if table.device.type == "cpu" else None
    if functions is None:
        torch.index_select(table, 0, index.flatten(), out=out.view(-1, table.shape[1]))
        return
    pointers = native.pointers(table, index, out)
    functions.gather_limit(*pointers, table.stride(0), table.shape[1], index.numel(), native.threads(out.numel()))


def _best(call: Any, repeats: int = 5) -> float:
    """Return the shortest of several times in seconds: a limit is what was reached."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def description(device: str) -> dict[str, Any]:
    """Return what the machine is, in words for people."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    found = {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "huge_pages": next((line.strip() for line in _lines("/sys/kernel/mm/transparent_hugepage/enabled")), "unknown"),
    }
    missing = {family: native.problem(family) for family in native.families() if native.problem(family)}
    return found | ({"missing_kernels": missing} if missing else {})


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
