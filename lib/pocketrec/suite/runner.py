"""Executes what is pending of a plan: side by side, watched, and each run with a record that says how it ended."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Protocol

import pocketrec
from pocketrec import paths
from pocketrec.errors import UserError
from pocketrec.files import atomic, write_json
from pocketrec.suite import nursery, process, record
from pocketrec.suite.execute import NOTEBOOK, OUT_OF_DISK, PARTIAL
from pocketrec.suite.plan import Run
from pocketrec.suite.spec import Limits, Suite

INTERRUPTED = 130
BUDGET_TOLERANCE = 1.02
SYSTEM_OOM = "the operating system ended it for lack of memory"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")


class Listener(Protocol):
    """Who is told how a suite goes."""

    def started(self, run: Run) -> None:
        """A run has begun."""

    def finished(self, run: Run, found: dict[str, Any] | None) -> None:
        """A run has ended with this record; None when it could not be written or the run had to be left out."""

    def say(self, text: str) -> None:
        """Something a person should read."""


def default_jobs(suite: Suite, runs: list[Run]) -> int:
    """As many runs at a time as the suite says, else as fill the cores."""
    threads = max(int(run.parameters.get("threads") or 1) * int(run.parameters.get("nproc") or 1) for run in runs)
    return suite.jobs or max(1, (os.cpu_count() or 1) // threads)


def execute(suite: Suite, runs: list[Run], *, jobs: int, listener: Listener) -> int:
    """Execute the pending runs of a plan; what another process executes meanwhile is waited for.

    Returns:
        exit code: 0 all settled, 1 a run failed, 130 interrupted by Ctrl-C or SIGTERM.
    """
    runner = _Runner(suite, jobs, listener)
    return runner.execute([run for run in runs if run.pending])


class _Runner:
    def __init__(self, suite: Suite, jobs: int, listener: Listener) -> None:
        self.limits = suite.limits
        self.jobs = jobs
        self.listener = listener
        self.since = time.time()
        self.environment = record.environment()
        self.stop = threading.Event()
        self.failed = False
        self.nurseries: dict[tuple, nursery.Nursery] = {}
        self.nurseries_lock = threading.Lock()

    def execute(self, runs: list[Run]) -> int:
        with _sigterm_as_ctrl_c():
            try:
                runs = self._prepare(runs)
                self._side_by_side([run for run in runs if run.kind != "timed"])
                for run in [run for run in runs if run.kind == "timed"]:
                    self._side_by_side([run])
            except KeyboardInterrupt:
                return INTERRUPTED
            finally:
                for warm in self.nurseries.values():
                    warm.close()
        return 1 if self.failed else 0

    def _prepare(self, runs: list[Run]) -> list[Run]:
        """Prepare each dataset once; a run whose dataset cannot be had takes the reason as its problem."""
        from pocketrec import data

        problems: dict[str, str] = {}
        for run in runs:
            name = run.data["name"]
            if run.problem or name in problems:
                continue
            try:
                data.prepare(name, run.options, progress=sys.stderr.isatty())
                problems[name] = ""
            except UserError as error:
                problems[name] = str(error)
            except Exception as error:
                problems[name] = f"{type(error).__name__}: {error}"
        return [replace(run, problem=run.problem or problems[run.data["name"]]) for run in runs]

    def _side_by_side(self, runs: list[Run]) -> None:
        """Execute each run once; those that another process holds come last, and are waited for."""
        pool = ThreadPoolExecutor(self.jobs)
        try:
            futures = {pool.submit(self._one, run, wait=False): run for run in runs}
            _wait(futures)
            busy = [run for future, run in futures.items() if not future.result()]
            _wait([pool.submit(self._one, run, wait=True) for run in busy])
        except BaseException:
            self.stop.set()
            raise
        finally:
            with _ctrl_c_ignored(self.stop.is_set()):
                pool.shutdown(cancel_futures=True)

    def _one(self, run: Run, *, wait: bool) -> bool:
        """Execute a run unless that is no longer needed; return False when another process holds it."""
        if self.stop.is_set():
            return True
        try:
            with process.locked(run.lock, give_up=self.stop.is_set if wait else None) as lock:
                self._settle(run, lock)
        except process.Busy:
            return self.stop.is_set()
        except Exception as error:  # whatever it is, the other runs go on
            self._finish(run, None, f"{run.name}: no record could be written: {type(error).__name__}: {error}")
        return True

    def _settle(self, run: Run, lock: int) -> None:
        if (found := self._settled_meanwhile(run)) is not None:
            self._finish(run, found)
        elif run.source and not self._source_is_done(run):
            self._finish(run, None)
        elif run.problem:
            self._finish(run, self._refuse(run, "failed", run.problem))
        elif reason := _infeasible(run):
            self._finish(run, self._refuse(run, "infeasible", reason))
        else:
            with process.locked(process.MACHINE_LOCK, shared=run.kind != "timed", give_up=self.stop.is_set) as machine:
                self.listener.started(run)
                self._finish(run, self._execute(run, (lock, machine)))

    def _finish(self, run: Run, found: dict[str, Any] | None, problem: str = "") -> None:
        if problem:
            self.listener.say(problem)
        if problem or (found and not run.settles(found["status"])):
            self.failed = True
        self.listener.finished(run, found)

    def _settled_meanwhile(self, run: Run) -> dict[str, Any] | None:
        """Return the record that another process has written since the plan was made."""
        found = record.read(run.folder)
        if found is None or found["key"] != run.key or found["status"] == "interrupted":
            return None
        recent = (run.folder / "record.json").stat().st_mtime > self.since
        return found if recent or run.settles(found["status"]) else None

    def _source_is_done(self, run: Run) -> bool:
        found = record.read(run.folder.parent / Path(run.source).name)
        return found is not None and found["status"] == "done"

    def _refuse(self, run: Run, status: str, reason: str) -> dict[str, Any]:
        """Write the record of a run that cannot start, or need not."""
        with _workplace(run) as folder:
            (folder / "log.txt").write_text(reason + "\n", encoding="utf-8")
            return self._publish(run, folder, {"status": status, "reason": reason}, record.now(), 0.0)

    def _execute(self, run: Run, locks: tuple[int, ...]) -> dict[str, Any]:
        with _workplace(run) as folder:
            started, clock, kills = record.now(), time.monotonic(), process.kernel_oom_kills()
            verdict, code = self._work(run, folder, locks)
            seconds = time.monotonic() - clock
            outcome = _outcome(folder, verdict, code, self.limits, process.kernel_oom_kills() > kills)
            return self._publish(run, folder, outcome, started, seconds)

    def _work(self, run: Run, folder: Path, locks: tuple[int, ...]) -> tuple[str | None, int]:
        """Start the worker, which holds the locks as well until it ends, and wait for it."""
        write_json(folder / "job.json", {"parent": os.getpid(), "parameters": run.arguments})
        with (folder / "log.txt").open("wb") as log:
            worker = self._forked(run, folder, log, locks) or _started(run, folder, log, locks)
        verdict = process.watch(
            worker,
            seconds=self.limits.minutes * 60,
            memory_bytes=(self.limits.memory_gb or float("inf")) * 1e9,
            stopped=self.stop.is_set,
        )
        return verdict, worker.returncode

    def _forked(self, run: Run, folder: Path, log: IO, locks: tuple[int, ...]) -> process.Worker | None:
        """Start a worker that shares its imports with others, or return None where it must start cold."""
        environment = _environment(run)
        if sys.platform != "linux" or run.parameters.get("device", "cpu") != "cpu":
            return None
        shared = run.template.path, *(environment[name] for name in THREAD_VARIABLES)
        with self.nurseries_lock:
            if shared not in self.nurseries:
                self.nurseries[shared] = nursery.Nursery(run.template, environment)
        try:
            return self.nurseries[shared].start(folder, log.fileno(), environment, locks)
        except OSError:
            return None

    def _publish(self, run: Run, folder: Path, outcome: dict[str, Any], started: str, seconds: float) -> dict[str, Any]:
        """Write the record as the last file and give the folder its name."""
        outcome, sections = _with_metrics(folder, outcome)
        if OUT_OF_DISK in outcome.get("reason", ""):
            _make_room(folder)
        for name in ("job.json", "outcome.json", PARTIAL):
            (folder / name).unlink(missing_ok=True)
        found = {
            "schema": record.SCHEMA,
            "suite": run.suite,
            "run": run.name,
            "kind": run.kind,
            "key": run.key,
            **outcome,
            **run.identity,
            "parameters": run.parameters,
            **({"search": run.search} if run.search else {}),
            "started": started,
            "seconds": round(seconds, 3),
            **sections,
            "environment": {**self.environment, **sections.get("environment", {})},
            "data": {**run.data, **sections.get("data", {})},
        }
        write_json(folder / "record.json", found)
        _take_place(run, folder)
        if run.settles(found["status"]):
            shutil.rmtree(run.checkpoints, ignore_errors=True)
        return found


def _started(run: Run, folder: Path, log: IO, locks: tuple[int, ...]) -> subprocess.Popen:
    """Start a worker from nothing."""
    return subprocess.Popen(
        [sys.executable, "-m", "pocketrec.suite.execute", "job.json"],
        cwd=folder,
        env=_environment(run),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=locks,
    )


def _infeasible(run: Run) -> str:
    """Return why no instance of the method fits the run's budget: by arithmetic, so that no notebook is started."""
    if not {"method", "ratio", "dim", "quantize", "knobs"} <= run.parameters.keys():
        return ""  # another template, which may mean something else
    from pocketrec import data, embeddings

    method, ratio, dim, quantize, knobs = (run.parameters[n] for n in ("method", "ratio", "dim", "quantize", "knobs"))
    cardinalities = data.load(run.data["name"], **run.options).cardinalities
    try:
        embeddings.solve(method, cardinalities, dim, ratio, None if quantize == "none" else quantize, **knobs)
    except embeddings.Infeasible as reason:
        return f"Infeasible: {reason}"
    except Exception:
        return ""  # the notebook shows it, with its cell
    return ""


def _wait(futures: Iterable[Future]) -> None:
    """Wait for all, waking often: a library that takes over SIGINT leaves a sleeping main thread deaf to Ctrl-C."""
    left = set(futures)
    while left:
        finished, left = wait(left, timeout=process.POLL_SECONDS)
        for future in finished:
            future.result()


@contextmanager
def _workplace(run: Run) -> Iterator[Path]:
    """A hidden sibling of the run's folder that holds a copy of the template."""
    folder = run.folder.with_name(f".{run.folder.name}.running")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        shutil.copyfile(run.template.path, folder / NOTEBOOK)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_place(run: Run, folder: Path) -> None:
    """Put a finished run where it belongs; an older result that was done is kept among the replaced ones."""
    before = record.read(run.folder)
    if before and before["status"] == "done" and before["key"] != run.key:
        kept = paths.RESULTS / run.suite / "replaced" / f"{run.name}-{before['key'][:8]}"
        number = 1
        while kept.exists():
            number += 1
            kept = kept.with_name(f"{run.folder.name}-{before['key'][:8]}-{number}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        run.folder.rename(kept)
    elif run.folder.exists():
        shutil.rmtree(run.folder)
    folder.rename(run.folder)


def _environment(run: Run) -> dict[str, str]:
    threads = str(run.parameters.get("threads") or os.cpu_count() or 1)
    return {
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, threads),
        "POCKETREC_ROOT": str(paths.ROOT),
        "POCKETREC_DATA": str(paths.DATA),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "TQDM_MININTERVAL": "10",
    }


def _outcome(folder: Path, verdict: str | None, code: int, limits: Limits, oom_killed: bool) -> dict[str, Any]:
    """Say how a worker ended: by the runner's own hand, by what it wrote, or by its exit code."""
    _keep_notebook(folder)
    reasons = {
        "timeout": f"longer than the suite's limit of {limits.minutes:g} minutes",
        "oom": f"more memory than the suite's limit of {limits.memory_gb or 0:g} GB",
        "interrupted": "stopped before its end",
    }
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
        text = text.replace(f"{folder}/", name)
    return text


def _last_cell(folder: Path) -> dict[str, int]:
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    started = [line for line in text.splitlines() if line[8:13] == " In ["]
    return {"failed_cell": len(started)} if started else {}


def _with_metrics(folder: Path, outcome: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Join the notebook's metrics to its outcome; a run without them, or over its budget, has failed."""
    try:
        sections = json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError:
        sections = {}
    except ValueError as error:
        sections, outcome = {}, _failed(outcome, f"metrics.json cannot be used: {error}")
    if outcome["status"] == "done" and not sections:
        outcome = _failed(outcome, "the notebook ended without saving metrics.json")
    sizes = sections.get("sizes", {})
    used = max(sizes.get("inference_bytes", 0), sizes.get("file_bytes", 0))
    budget = sizes.get("budget_bytes", float("inf"))
    if used > BUDGET_TOLERANCE * budget:
        outcome = _failed(outcome, f"{used} bytes at inference are over the budget of {budget:.0f} bytes")
    return outcome, {name: sections[name] for name in record.SECTIONS if name in sections}


def _failed(outcome: dict[str, Any], reason: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason} if outcome["status"] == "done" else outcome


def _no_constant(word: str) -> None:
    raise ValueError(f"it holds {word}")


def _make_room(folder: Path) -> None:
    """Remove what a run without a disk left to write on has made, its notebook, log and curve aside."""
    for file in folder.iterdir():
        if file.name not in (NOTEBOOK, "log.txt", "curve.parquet", "metrics.json"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _ctrl_c_ignored(needed: bool) -> Iterator[None]:
    """While children are being ended, so that an impatient second Ctrl-C leaves none behind."""
    if not needed:
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
