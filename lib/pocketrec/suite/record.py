"""The record of a run: one small JSON that stands alone, and the notebook's half of it."""

import json
import math
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from pocketrec import paths
from pocketrec.errors import UserError
from pocketrec.files import write_json

SCHEMA = 1
STATUSES = ("done", "failed", "crashed", "oom", "timeout", "diverged", "infeasible", "interrupted")
SETTLED = ("done", "infeasible")
FAILURES = tuple(status for status in STATUSES if status not in SETTLED)
SECTIONS = ("data", "embedding", "sizes", "metrics", "training", "curve", "speed", "memory", "environment")


def read(folder: Path) -> dict[str, Any] | None:
    """Return the record of a run's folder, or None when it has none that can be read."""
    try:
        found = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or found.get("status") not in STATUSES:
        return None
    return found if found.keys() >= {"key", "kind", "method", "dataset", "seconds"} else None


def require(folder: Path | str) -> dict[str, Any]:
    """Return the record of a run that a notebook builds on.

    Raises:
        UserError: when the folder holds none, or its run is not done.
    """
    found = read(Path(folder))
    if found is None or found.get("status") != "done":
        state = "no record" if found is None else f"a run that is {found.get('status')}"
        raise UserError(f"{folder}: {state}; run the suite first, or set `source` to the folder of a done run")
    return found


def now() -> str:
    """The time as ISO 8601 in UTC; two of them compare as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def publish(run_dir: str | Path, **sections: Any) -> None:
    """Add sections to the run's `metrics.json`, atomically; a notebook calls it whenever it has reached one.

    Args:
        run_dir: the run's folder, or "" (a notebook opened by hand) to save nothing.
        sections: any of `SECTIONS`; arrays and scalars of numpy and torch become lists and numbers.

    Raises:
        ValueError: for an unknown section, or a number that is NaN or infinite.
    """
    if unknown := sections.keys() - set(SECTIONS):
        raise ValueError(f"a record has no section {sorted(unknown)}; it has {', '.join(SECTIONS)}")
    plain = json.loads(json.dumps(sections, default=lambda value: value.tolist()))
    for place, value in _numbers(plain):
        if not math.isfinite(value):
            raise ValueError(f"{place} is {value}; what was not reached must be left out")
    if not run_dir:
        return
    file = Path(run_dir) / "metrics.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    environment = before.get("environment", {}) | plain.pop("environment", {}) | accelerator() | _kernels()
    write_json(file, before | plain | ({"environment": environment} if environment else {}))


def _numbers(content: Any, place: str = "") -> list[tuple[str, float]]:
    if isinstance(content, float):
        return [(place, content)]
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [found for key, value in pairs for found in _numbers(value, f"{place}.{key}".lstrip("."))]


def accelerator() -> dict[str, Any]:
    """Name and driver of the GPU that this process has used, if any."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = {"gpu": torch.cuda.get_device_name(), "driver": _output(query).split("\n")[0]}
    return {key: value for key, value in found.items() if value}


def _kernels() -> dict[str, str]:
    """Say which C++ kernels this process asked for in vain, if any: it is then several times slower."""
    native = sys.modules.get("pocketrec.kernels.native")
    missing = native.missing() if native else {}
    return {"missing_kernels": "; ".join(f"{name}: {why}" for name, why in missing.items())} if missing else {}


def environment() -> dict[str, Any]:
    """Code, versions and machine of a run, without the names of host and user; torch is not imported."""
    commit = _output(["git", "rev-parse", "HEAD"])
    changed = _output(["git", "status", "--porcelain", "--", ".", ":!results"])
    return {
        **({"commit": commit, "dirty": bool(changed)} if commit else {}),
        "python": platform.python_version(),
        **_versions("torch", "numpy", "triton"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "os": platform.platform(),
    }


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
