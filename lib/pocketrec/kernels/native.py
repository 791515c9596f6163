"""The C++ of `csrc/`, compiled at first use for this processor and called by pointer.

One file is one library with plain C functions, built by `g++` in about a second into a cache that is keyed by the
sources, the compiler, its flags and the processor. It shares torch's OpenMP threads. Where there is no compiler,
or the build fails, `library` returns None, every operator takes its plain PyTorch path, and `pocketrec doctor`
says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared", "-fopenmp"]
# where vectors of 512 bits exist they are worth using: lookups are bound by loads and stores
WIDE = ["-mprefer-vector-width=512"]
TYPES = {"void": None, "i64": ctypes.c_int64, "u64": ctypes.c_uint64, "int": ctypes.c_int, "float": ctypes.c_float}

_on = os.environ.get("POCKETREC_KERNELS", "on").lower() not in ("off", "0", "no", "false")
_loaded: dict[tuple[str, str], tuple[ctypes.CDLL | None, str]] = {}


@contextmanager
def off() -> Iterator[None]:
    """Take the plain PyTorch path of every operator meanwhile."""
    global _on
    before, _on = _on, False
    try:
        yield
    finally:
        _on = before


def on() -> bool:
    """Return whether operators may leave their plain PyTorch path."""
    return _on


def library(family: str, constants: str = "") -> ctypes.CDLL | None:
    """Return the functions of one family, compiled if need be; None where they cannot be had or are switched off.

    Args:
        constants: flags as `-DRANK=8 -DQ1=2`, for a library of its own in which these numbers are known: its loops over
            small matrices are unrolled.
    """
    return (_loaded.get((family, constants)) or _load(family, constants))[0] if _on else None


def problem(family: str) -> str:
    """Return why a family's functions cannot be had; empty where they can."""
    return _load(family)[1] if _on else "switched off by POCKETREC_KERNELS or by the program"


def missing() -> dict[str, str]:
    """Return the families that this process asked for and did not get, each with the reason."""
    asked = [family for family, _ in _loaded] if _on else families()
    return {family: problem(family) for family in asked if problem(family)}


def families() -> list[str]:
    """Return the names of all families."""
    return sorted(source.stem for source in SOURCES.glob("*.cpp"))


def pointers(*tensors: Tensor | None) -> list[int | None]:
    """Return where the numbers of contiguous tensors lie, None for none."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _load(family: str, constants: str = "") -> tuple[ctypes.CDLL | None, str]:
    if (family, constants) not in _loaded:
        _loaded[family, constants] = _built(family, constants)
    return _loaded[family, constants]


def _built(family: str, constants: str) -> tuple[ctypes.CDLL | None, str]:
    # a sanitizer build, or another compiler, through the variables that compilers' users know
    compiler = os.environ.get("CXX", "g++")
    flags = [*FLAGS, *constants.split(), *os.environ.get("POCKETREC_CXXFLAGS", "").split()]
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None, f"no C++ compiler: {compiler} does not run (install g++)"
    if "Free Software Foundation" in version and platform.machine() == "x86_64":
        flags += WIDE
    source = SOURCES / f"{family}.cpp"
    headers = [header.read_text() for header in sorted(SOURCES.glob("*.h"))]
    parts = [source.read_text(), *headers, version, *flags, _processor()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    cached = _cache_folder() / f"{family}-{key}.so"
    try:
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
                built = Path(folder) / "built.so"
                subprocess.run(
                    [compiler, *flags, "-o", str(built), str(source)], capture_output=True, text=True, check=True
                )
                os.replace(built, cached)
        return _declared(ctypes.CDLL(str(cached)), source.read_text()), ""
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} could not build {source.name}: {error.stderr.strip().splitlines()[-1:]}"
    except OSError as error:
        return None, f"{source.name} could not be built or loaded: {error}"


@cache
def keep_memory() -> bool:
    """Let this process keep large buffers that it frees; return whether it can be told so: its C library is glibc.

    Otherwise tensors of some tens of megabytes go back to the system and are handed out anew, page by page, at every
    step: a tenth of a training step at batch 2,048, and four to seven times a lookup at batch 65,536.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # glibc's malloc.h
    if platform.libc_ver()[0] != "glibc":
        return False
    libc, settings = ctypes.CDLL(None), ((mmap_max, 0), (trim_threshold, (1 << 31) - 1), (top_pad, 1 << 26))
    return all([libc.mallopt(option, value) for option, value in settings])


def _declared(library: ctypes.CDLL, source: str) -> ctypes.CDLL:
    """Tell ctypes the arguments of every function that the source declares `extern "C"`, on one line or several."""
    for returned, name, arguments in re.findall(r'^extern "C" (\w+) (\w+)\(([^)]*)\)', source, re.MULTILINE):
        function = getattr(library, name)
        function.restype = TYPES[returned]
        function.argtypes = [
            ctypes.c_void_p if "*" in argument else TYPES[argument.split()[0]] for argument in arguments.split(",")
        ]
    return library


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketrec" / "kernels"


def _processor() -> str:
    """Return what `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    except OSError:
        return f"{platform.machine()} {platform.processor()}"


def threads(work: int, least: int = 4096) -> int:
    """Return how many threads are worth their start for `work` numbers moved."""
    return 1 if work < 2 * least else min(torch.get_num_threads(), work // least)
