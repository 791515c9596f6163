"""Processes and locks of the operating system: watching a run, ending all of it, and taking turns."""

import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Protocol

import psutil

POLL_SECONDS = 0.25
MACHINE_LOCK = Path(tempfile.gettempdir()) / f"pocketrec-{os.getuid()}.lock"
MACHINE_QUEUE = MACHINE_LOCK.with_suffix(".queue")


class Busy(Exception):
    """Another process holds the lock."""


def _nothing() -> None:
    pass


@contextmanager
def locked(
    path: Path,
    *,
    shared: bool = False,
    give_up: Callable[[], bool] | None = None,
    waits: Callable[[], None] = _nothing,
) -> Iterator[int]:
    """Hold a lock that ends with its holders; yield its descriptor, which a child may be given as well.

    Args:
        path: the lock's file, made when missing and never removed.
        shared: together with other shared holders.
        give_up: asked while waiting; None does not wait.
        waits: called once if there is something to wait for.

    Raises:
        Busy: the lock is held and there is no waiting (any longer).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if give_up is None or give_up():
                    raise Busy(str(path)) from None
                waits()
                waits = _nothing
                time.sleep(POLL_SECONDS)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def machine(
    *, shared: bool = False, give_up: Callable[[], bool] = lambda: False, waits: Callable[[], None] = _nothing
) -> Iterator[int]:
    """Hold this machine as `locked` does, alone or together with others.

    Whoever waits to have it alone lets no others in meanwhile: they come and go, and it might wait for ever.
    """
    waits = cache(waits)  # says it once, of two locks
    with ExitStack() as held:
        with locked(MACHINE_QUEUE, shared=shared, give_up=give_up, waits=waits):
            handle = held.enter_context(locked(MACHINE_LOCK, shared=shared, give_up=give_up, waits=waits))
        yield handle


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # a folder of results may be for reading only
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)


def family(pid: int) -> list[psutil.Process]:
    """A process and all its descendants, as far as they are alive."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory(processes: list[psutil.Process]) -> int:
    """Bytes that the processes hold for themselves; mapped files, which several runs share, do not count."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            info = process.memory_info()
            total += info.rss - getattr(info, "shared", 0)
    return total


def kill(processes: list[psutil.Process]) -> None:
    """End processes at once and wait until they are gone (a kernel is in a session of its own)."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


class Worker(Protocol):
    """A process that executes a run."""

    pid: int
    returncode: int | None

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, or raise `subprocess.TimeoutExpired`."""


def watch(worker: Worker, *, seconds: float, memory_bytes: float, stopped: Callable[[], bool]) -> str | None:
    """Wait for a worker and end its whole family when it must not go on.

    Returns:
        None when it ended by itself, else "timeout", "oom" or "interrupted".
    """
    deadline = time.monotonic() + seconds
    known: set[psutil.Process] = set()
    verdict = None
    try:
        while verdict is None:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(POLL_SECONDS)
                break
            alive = family(worker.pid)
            known.update(alive)
            verdict = _verdict(alive, deadline, memory_bytes, stopped)
    except KeyboardInterrupt:  # how a cluster ends what runs in a main thread
        verdict = "interrupted"
    kill([*known, *family(worker.pid)])
    worker.wait()
    return verdict


def _verdict(
    alive: list[psutil.Process], deadline: float, memory_bytes: float, stopped: Callable[[], bool]
) -> str | None:
    if stopped():
        return "interrupted"
    if time.monotonic() > deadline:
        return "timeout"
    return "oom" if memory(alive) > memory_bytes else None


def kernel_oom_kills() -> int:
    """How many processes the operating system has killed for lack of memory since it started."""
    count = 0
    for file in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with suppress(OSError):
            lines = Path(file).read_text(encoding="utf-8").splitlines()
            count += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return count
