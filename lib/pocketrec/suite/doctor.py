"""What the machine offers to PocketRec, in one line each."""

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from pocketrec import paths


def findings() -> Iterator[tuple[str, str, str]]:
    """Yield name, value and, where something is missing, a word of advice."""
    import torch

    from pocketrec.kernels import gpu, native

    yield "python", platform.python_version(), ""
    yield "torch", torch.__version__, ""
    yield "cores", f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads", ""
    if torch.cuda.is_available():
        yield "GPU", torch.cuda.get_device_name(), ""
        missing = gpu.problem("gather")
        yield "kernels on it", "missing" if missing else "Triton", f"{missing}: plain PyTorch serves" if missing else ""
    else:
        yield "GPU", "none", ""
    if (known := _instructions()) and platform.machine() in ("x86_64", "AMD64"):
        found = known & {"avx512_bf16", "amx_bf16"}
        advice = "" if found else "`precision: bf16` takes many times as long here as float32"
        yield "bf16", "by the processor" if found else "emulated", advice
    for family in native.families():
        missing = native.problem(family)
        advice = f"{missing}: plain PyTorch serves, 3 to 25 times slower" if missing else ""
        yield f"kernel {family}", "missing" if missing else "C++ for this processor", advice
    yield "parameters", str(paths.PARAMS), "" if paths.PARAMS.is_dir() else "not there: set POCKETREC_ROOT"
    yield "data", str(paths.DATA), "" if paths.DATA.is_dir() else "made by the first `pocketrec prepare`"
    free = shutil.disk_usage(paths.ROOT).free / 1e9
    yield "disk free", f"{free:.0f} GB", "" if free > 10 else "less than 10 GB"


def _instructions() -> set[str]:
    """Return what the processor has beside the basic instructions, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
