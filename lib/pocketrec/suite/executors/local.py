"""Runs side by side on this machine."""

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

from pocketrec.suite import job, nursery, process
from pocketrec.suite.job import Ended
from pocketrec.suite.plan import Run
from pocketrec.suite.spec import Suite


def default_jobs(suite: Suite, runs: list[Run]) -> int:
    """As many runs at a time as the suite says, else as fill the cores; on a GPU, which they would share, one."""
    threads = max(int(run.parameters.get("threads") or 1) * int(run.parameters.get("nproc") or 1) for run in runs)
    on_gpu = any(run.parameters.get("device", "cpu") != "cpu" for run in runs)
    return suite.jobs or (1 if on_gpu else max(1, (os.cpu_count() or 1) // threads))


class Local:
    """Runs are processes of this machine; they hold their locks even when the runner is killed."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.nurseries: dict[tuple, nursery.Nursery] = {}
        self.nurseries_lock = threading.Lock()

    def prepare(self, runs: list[Run]) -> list[Run]:
        """Prepare each dataset once."""
        problems: dict[str, str] = {}
        for run in runs:
            name = run.data["name"]
            if not run.problem and name not in problems:
                problems[name] = job.prepare(run, progress=sys.stderr.isatty())
        return [replace(run, problem=run.problem or problems[run.data["name"]]) for run in runs]

    def slots(self, runs: list[Run]) -> int:
        """As many as fill the cores; a timed run is alone."""
        return 1 if runs[0].kind == "timed" else default_jobs(self.suite, runs)

    def execute(
        self, run: Run, folder: Path, lock: int, stopped: Callable[[], bool], say: Callable[[str], None]
    ) -> Ended:
        """Execute a run here."""
        return job.execute(run, folder, self.suite.limits, start=self._start, locks=(lock,), stopped=stopped, say=say)

    def close(self) -> None:
        """End the nurseries."""
        while self.nurseries:
            self.nurseries.popitem()[1].close()

    def _start(self, run: Run, folder: Path, log: IO, locks: tuple[int, ...]) -> process.Worker:
        return self._forked(run, folder, log, locks) or job.start(run, folder, log, locks)

    def _forked(self, run: Run, folder: Path, log: IO, locks: tuple[int, ...]) -> process.Worker | None:
        """Start a worker that shares its imports with others, or return None where it must start cold."""
        environment = job.environment(run)
        if sys.platform != "linux" or run.parameters.get("device", "cpu") != "cpu":
            return None
        shared = run.template.path, *(environment[name] for name in job.THREAD_VARIABLES)
        with self.nurseries_lock:
            if shared not in self.nurseries:
                self.nurseries[shared] = nursery.Nursery(run.template, environment)
        try:
            return self.nurseries[shared].start(folder, log.fileno(), environment, locks)
        except OSError:
            return None
