"""Executes what is pending of a plan: side by side, watched, and each run with a record that says how it ended."""

import json
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pocketrec import paths
from pocketrec.files import write_json
from pocketrec.suite import job, process, record
from pocketrec.suite.execute import NOTEBOOK, OUT_OF_DISK, PARTIAL
from pocketrec.suite.executors import Executor
from pocketrec.suite.job import Ended
from pocketrec.suite.plan import Run

INTERRUPTED = 130
BUDGET_TOLERANCE = 1.02


class Listener(Protocol):
    """Who is told how a suite goes."""

    def started(self, run: Run) -> None:
        """A run has begun."""

    def finished(self, run: Run, found: dict[str, Any] | None) -> None:
        """A run has ended with this record; None when it could not be written or the run had to be left out."""

    def say(self, text: str) -> None:
        """Something a person should read."""


def execute(runs: list[Run], executor: Executor, *, jobs: int | None = None, listener: Listener) -> int:
    """Execute the pending runs of a plan; what another process executes meanwhile is waited for.

    Args:
        runs: the plan.
        executor: where they are executed.
        jobs: training runs at a time; as many as the executor takes when None.
        listener: is told how it goes.

    Returns:
        exit code: 0 all settled, 1 a run failed, 130 interrupted by Ctrl-C or SIGTERM.

    Raises:
        UserError: the executor lacks what a run needs.
    """
    return _Runner(executor, listener).execute([run for run in runs if run.pending], jobs)


def note_searches(runs: Iterable[Run]) -> None:
    """Write into the records of runs that stand what their searches have found since: more values, the same choice."""
    for run in runs:
        before = record.read(run.folder) if run.search and not run.pending else None
        if before and before.get("search") != run.search:
            with suppress(process.Busy), process.locked(run.lock):
                found = record.read(run.folder)
                if found and found["key"] == run.key:
                    write_json(run.folder / "record.json", found | {"search": run.search})


class _Runner:
    def __init__(self, executor: Executor, listener: Listener) -> None:
        self.executor = executor
        self.listener = listener
        self.since = time.time()
        self.stop = threading.Event()
        self.failed = False

    def execute(self, runs: list[Run], jobs: int | None) -> int:
        with _sigterm_as_ctrl_c():
            try:
                runs = self.executor.prepare(runs)
                timed = [run for run in runs if run.kind == "timed"]
                others = [run for run in runs if run.kind != "timed"]
                for some, at_a_time in ((others, jobs), (timed, None)):
                    if some:
                        self._side_by_side(some, at_a_time or self.executor.slots(some))
            except KeyboardInterrupt:
                return INTERRUPTED
            finally:
                self.executor.close()
        return 1 if self.failed else 0

    def _side_by_side(self, runs: list[Run], jobs: int) -> None:
        """Execute each run once; those that another process holds come last, and are waited for."""
        pool = ThreadPoolExecutor(jobs)
        try:
            futures = {pool.submit(self._one, run, wait=False): run for run in runs}
            _wait(futures)
            busy = [run for future, run in futures.items() if not future.result()]
            _wait([pool.submit(self._one, run, wait=True) for run in busy])
        except BaseException:
            self.stop.set()
            self.listener.say("stopping: what runs is ended, and begins again next time")
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
        elif run.problem and (before := record.read(run.folder)) and before["status"] == "done":
            self._finish(run, None, f"{run.name}: {run.problem}; its result stays as it is")
        elif run.source and not self._source_is_done(run):
            self._finish(run, None)
        else:
            self.listener.started(run)
            self._finish(run, self._execute(run, lock))

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

    def _execute(self, run: Run, lock: int) -> dict[str, Any]:
        with _workplace(run) as folder:
            if run.problem:
                return self._publish(run, folder, job.refuse(folder, "failed", run.problem))
            say = partial(self._say, run)
            return self._publish(run, folder, self.executor.execute(run, folder, lock, self.stop.is_set, say))

    def _say(self, run: Run, text: str) -> None:
        self.listener.say(f"{run.name}: {text}")

    def _publish(self, run: Run, folder: Path, ended: Ended) -> dict[str, Any]:
        """Write the record as the last file and give the folder its name."""
        outcome, sections = _with_metrics(folder, ended.outcome)
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
            "started": ended.started,
            "seconds": round(ended.seconds, 3),
            **sections,
            "environment": {**ended.environment, **sections.get("environment", {})},
            "data": {**run.data, **sections.get("data", {})},
        }
        write_json(folder / "record.json", found)
        _take_place(run, folder)
        if run.settles(found["status"]):
            shutil.rmtree(run.checkpoints, ignore_errors=True)
        return found


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
    """Put a finished run where it belongs; one that was done, or cannot be read, is kept among the replaced ones."""
    before, unreadable = record.read(run.folder), (run.folder / "record.json").exists()
    if (before["status"] == "done" and before["key"] != run.key) if before else unreadable:
        mark = before["key"][:8] if before else "unreadable"
        kept = paths.RESULTS / run.suite / "replaced" / f"{run.name}-{mark}"
        number = 1
        while kept.exists():
            number += 1
            kept = kept.with_name(f"{run.folder.name}-{mark}-{number}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        run.folder.rename(kept)
    elif run.folder.exists():
        shutil.rmtree(run.folder)
    folder.rename(run.folder)


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
