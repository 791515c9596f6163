"""Runs on other machines: a run's folder travels there and back as bytes, so that no folder need be shared."""

import hashlib
import io
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pocketrec
from pocketrec.suite import job
from pocketrec.suite.job import Ended
from pocketrec.suite.plan import Run
from pocketrec.suite.spec import Limits

ATTEMPTS = 3

Parcel = bytes


class NoResult(Exception):
    """A machine has sent nothing back; says what the run's status is if that stays so, and whether to try again."""

    def __init__(self, reason: str, status: str = "crashed", *, again: bool = True) -> None:
        super().__init__(reason)
        self.status = status
        self.again = again


def asks(run: Run) -> tuple[int, int]:
    """CPUs and GPUs that a run needs on one machine: its threads, and where its device is a GPU one, per process."""
    processes, threads = (int(run.parameters.get(name) or 1) for name in ("nproc", "threads"))
    return processes * threads, processes * str(run.parameters.get("device")).startswith("cuda")


def execute(
    run: Run,
    folder: Path,
    once: Callable[[Parcel], tuple[Ended, Parcel]],
    stopped: Callable[[], bool],
    say: Callable[[str], None],
) -> Ended:
    """Execute a run somewhere, and again elsewhere when its machine is lost.

    Args:
        run: the run.
        folder: holds its notebook, and in the end all that it made.
        once: has some machine `carry_out` a parcel, or raises `NoResult`.
        stopped: whether it is to end.
        say: takes a sentence that a person should read.
    """
    source = [run.folder.parent / Path(run.source).name] if run.source else []
    parcel = pack(folder, *source)
    for left in reversed(range(ATTEMPTS)):
        try:
            ended, made = once(parcel)
        except NoResult as problem:
            if stopped():
                return job.refuse(folder, "interrupted", job.INTERRUPTED)
            if not problem.again or not left:
                times = f" ({ATTEMPTS} times)" if problem.again else ""
                return job.refuse(folder, problem.status, f"{problem}{times}")
            say(f"{problem}; tried again")
        else:
            unpack(made, folder.parent)
            return ended
    raise AssertionError("the last attempt returns")


def carry_out(run: Run, name: str, parcel: Parcel, limits: Limits, code: str) -> tuple[Ended, Parcel]:
    """Execute a run on this machine: prepare its data where that is not done, then do as the local executor does.

    Args:
        run: the run.
        name: of its folder in the parcel.
        parcel: that folder and, for a timed run, the one of the run that it measures.
        limits: what it may take.
        code: the sender's `fingerprint`.

    Returns:
        how it ended, and its folder as a parcel.
    """
    with tempfile.TemporaryDirectory(prefix="pocketrec-") as place:
        unpack(parcel, Path(place))
        folder = Path(place) / name
        if problem := _other(run, code) or job.prepare(run):
            ended = job.refuse(folder, "failed", problem)
        else:
            ended = job.execute(run, folder, limits)
        if run.settles(ended.outcome["status"]):
            shutil.rmtree(run.checkpoints, ignore_errors=True)
        return ended, pack(folder)


def _other(run: Run, code: str) -> str:
    """Say why the result of this machine would not be that of the run's key, or ""."""
    from pocketrec import data

    if fingerprint() != code:
        return "a machine of the cluster has other code; bring all to the same commit"
    name = run.data["name"]
    if data.digest(name, run.options) != run.data["digest"]:
        return f"a machine of the cluster has other raw data for {name}; put one copy on a folder that all see"
    return ""


@cache
def fingerprint() -> str:
    """Hash of the package's files: all machines of a cluster must agree on it."""
    package = Path(pocketrec.__file__).parent
    names = {file: file.relative_to(package).as_posix() for file in package.rglob("*") if file.is_file()}
    kept = [(name, file) for file, name in names.items() if "__pycache__" not in name and not file.name.startswith(".")]
    parts = [(name, hashlib.sha256(file.read_bytes()).hexdigest()) for name, file in sorted(kept)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def pack(*folders: Path) -> Parcel:
    """Return folders with all that is in them, each under its own name."""
    parcel = io.BytesIO()
    with tarfile.open(fileobj=parcel, mode="w") as tar:
        for folder in folders:
            tar.add(folder, arcname=folder.name)
    return parcel.getvalue()


def unpack(parcel: Parcel, place: Path) -> None:
    """Put the folders of a parcel into a place, over what is there."""
    with tarfile.open(fileobj=io.BytesIO(parcel)) as tar:
        tar.extractall(place, filter="data")
