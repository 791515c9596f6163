"""One run on the machine that executes it: its worker process, and how that ended."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

import pocketrec
from pocketrec import paths
from pocketrec.errors import UserError
from pocketrec.files import atomic, write_json
from pocketrec.suite import process, record
from pocketrec.suite.execute import NOTEBOOK, OUT_OF_DISK, PARTIAL
from pocketrec.suite.plan import Run
from pocketrec.suite.spec import Limits

SYSTEM_OOM = "the operating system ended it for lack of memory"
INTERRUPTED = "stopped before its end"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")


@dataclass(frozen=True)
class Ended:
    """How a run ended: status, reason and failed cell; when it started; seconds taken; the machine it was on."""

    outcome: dict[str, Any]
    started: str
    seconds: float
    environment: dict[str, Any]


def prepare(run: Run, *, progress: bool = False) -> str:
    """Prepare the data of a run on this machine; return why it cannot be had, or ""."""
    from pocketrec import data

    try:
        data.prepare(run.data["name"], run.options, progress=progress)
    except UserError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def environment(run: Run) -> dict[str, str]:
    """Return the variables that a run's processes see."""
    threads = str(run.parameters.get("threads") or os.cpu_count() or 1)
    return {
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, threads),
        "POCKETREC_ROOT": str(paths.ROOT),
        "POCKETREC_DATA": str(paths.DATA),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "TQDM_MININTERVAL": "10",
    }


def start(run: Run, folder: Path, log: IO, locks: tuple[int, ...]) -> process.Worker:
    """Start a run's worker from nothing; it holds the locks as well until it ends."""
    return subprocess.Popen(
        [sys.executable, "-m", "pocketrec.suite.execute", "job.json"],
        cwd=folder,
        env=environment(run),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=locks,
    )


def execute(
    run: Run,
    folder: Path,
    limits: Limits,
    *,
    start: Callable[..., process.Worker] = start,
    locks: tuple[int, ...] = (),
    stopped: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda text: None,
) -> Ended:
    """Execute a run whose data is prepared; a timed one when no other runs on the machine.

    Args:
        run: the run.
        folder: where it works and leaves what it makes; it holds the notebook.
        limits: what it may take.
        start: like `start`; returns the worker.
        locks: descriptors that the worker holds as well until it ends.
        stopped: asked now and then whether to end it.
        say: told what it waits for.

    Raises:
        process.Busy: stopped while it waited for the machine.
    """
    if reason := _infeasible(run):
        return refuse(folder, "infeasible", reason)
    timed = run.kind == "timed"
    waits = partial(say, f"waits for {'all other runs' if timed else 'a timed run'} of this machine to end")
    with process.machine(shared=not timed, give_up=stopped, waits=waits) as machine:
        started, clock, kills = record.now(), time.monotonic(), process.kernel_oom_kills()
        write_json(folder / "job.json", {"parent": os.getpid(), "parameters": run.arguments})
        with (folder / "log.txt").open("wb") as log:
            worker = start(run, folder, log, (*locks, machine))
        verdict = process.watch(
            worker,
            seconds=limits.minutes * 60,
            memory_bytes=(limits.memory_gb or float("inf")) * 1e9,
            stopped=stopped,
        )
        seconds = time.monotonic() - clock
        outcome = _outcome(folder, verdict, worker.returncode, limits, process.kernel_oom_kills() > kills)
        return Ended(outcome, started, seconds, _machine())


def refuse(folder: Path, status: str, reason: str) -> Ended:
    """Say of a run that it cannot start, need not, or was lost."""
    (folder / "log.txt").write_text(reason + "\n", encoding="utf-8")
    return Ended({"status": status, "reason": reason}, record.now(), 0.0, _machine())


@cache
def _machine() -> dict[str, Any]:
    return record.environment()


def _infeasible(run: Run) -> str:
    """Return why no instance of the method fits the run's budget: by arithmetic, so that no notebook is started."""
    names = ("method", "ratio", "dim", "quantize", "apart", "knobs")
    if not {*names} <= run.parameters.keys():
        return ""  # another template, which may mean something else
    from pocketrec import data, embeddings

    method, ratio, dim, quantize, apart, knobs = (run.parameters[name] for name in names)
    cardinalities = data.load(run.data["name"], **run.options).cardinalities
    try:
        embeddings.solve(method, cardinalities, dim, ratio, None if quantize == "none" else quantize, apart, **knobs)
    except embeddings.Infeasible as reason:
        return f"Infeasible: {reason}"
    except Exception:
        return ""  # the notebook shows it, with its cell
    return ""


def _outcome(folder: Path, verdict: str | None, code: int, limits: Limits, oom_killed: bool) -> dict[str, Any]:
    """Say how a worker ended: by the runner's own hand, by what it wrote, or by its exit code."""
    _keep_notebook(folder)
    reasons = {
        "timeout": f"longer than the suite's limit of {limits.minutes:g} minutes",
        "oom": f"more memory than the suite's limit of {limits.memory_gb or 0:g} GB",
        "interrupted": INTERRUPTED,
    }
    if code == -signal.SIGTERM:  # the operating system ends with other signals; this one asks, as Slurm's scancel does
        verdict = verdict or "interrupted"
    if verdict:
        return {"status": verdict, "reason": reasons[verdict], **_last_cell(folder)}
    with suppress(OSError, ValueError):
        outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
        if outcome["status"] == "crashed" and oom_killed:
            outcome |= {"status": "oom", "reason": SYSTEM_OOM}
        return outcome
    if code == errno.ENOSPC:
        return {"status": "failed", "reason": f"the disk is full ({OUT_OF_DISK})", **_last_cell(folder)}
    if code == -signal.SIGKILL and oom_killed:
        return {"status": "oom", "reason": SYSTEM_OOM, **_last_cell(folder)}
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    reason = f"the process that ran the notebook ended with {ended}"
    return {"status": "crashed", "reason": reason, **_last_cell(folder)}


def _keep_notebook(folder: Path) -> None:
    """Take what was executed as the run's notebook when it is whole (a full disk truncates it)."""
    with suppress(OSError, ValueError):
        text = _impersonal((folder / PARTIAL).read_text(encoding="utf-8"))
        json.loads(text)
        with atomic(folder / NOTEBOOK, "w") as file:
            file.write(text)


def _impersonal(text: str) -> str:
    """Take this machine's folders out of tracebacks, so that a notebook can be sent to others."""
    folders = {paths.ROOT: "", Path(pocketrec.__file__).parents[2]: "", Path(sys.prefix): "environment/"}
    for folder, name in {**folders, Path(sys.base_prefix): "python/", Path.home(): "~/"}.items():
        if folder != folder.parent:  # a container's home may be the root of all folders
            text = text.replace(f"{folder}/", name)
    return text


def _last_cell(folder: Path) -> dict[str, int]:
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    started = [line for line in text.splitlines() if line[8:13] == " In ["]
    return {"failed_cell": len(started)} if started else {}
