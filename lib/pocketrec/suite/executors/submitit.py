"""Runs as jobs of Slurm, through submitit; `params/submitit.yaml` says with which options."""

import math
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from pocketrec import paths
from pocketrec.errors import UserError, unknown
from pocketrec.files import read_yaml
from pocketrec.suite.executors import remote
from pocketrec.suite.executors.remote import NoResult, Parcel
from pocketrec.suite.job import Ended
from pocketrec.suite.plan import Run
from pocketrec.suite.spec import Suite

DEFAULTS = {"cluster": "slurm", "jobs": 100, "preparation_minutes": 60, "options": {}}
POLL_SECONDS = 1
STATUSES = {"TIMEOUT": "timeout", "OUT_OF_MEMORY": "oom", "CANCELLED": "interrupted"}  # of jobs not to be tried again


class Submitit:
    """Runs are jobs; the folder of results must be one that all machines see, as a home folder on Slurm is."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.file = paths.PARAMS / "submitit.yaml"
        given = read_yaml(self.file) if self.file.exists() else {}
        for key in given.keys() - DEFAULTS.keys():
            raise unknown("key", key, DEFAULTS, self.file)
        self.settings = DEFAULTS | given

    def prepare(self, runs: list[Run]) -> list[Run]:
        """Refuse options that submitit does not know, and a machine without Slurm; data is prepared by the jobs."""
        folder = self._folder(runs[0])
        try:
            self._executor(runs[0], folder)
        except Exception as error:
            cluster = self.settings["cluster"]
            raise UserError(f"{self.file}: cluster {cluster} cannot be used so: {str(error).splitlines()[0]}") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if self.settings["cluster"] == "slurm":
            _check_accounting()
        return runs

    def slots(self, runs: list[Run]) -> int:
        """As many as may wait in Slurm's queue."""
        return int(self.settings["jobs"])

    def execute(
        self, run: Run, folder: Path, lock: int, stopped: Callable[[], bool], say: Callable[[str], None]
    ) -> Ended:
        """Execute a run where Slurm places it."""
        try:
            return remote.execute(run, folder, partial(self._once, run, folder.name, stopped), stopped, say)
        finally:
            shutil.rmtree(self._folder(run), ignore_errors=True)

    def close(self) -> None:
        """Nothing is held."""

    def _folder(self, run: Run) -> Path:
        return paths.RESULTS / run.suite / ".submitit" / run.name.replace("/", "--")

    def _executor(self, run: Run, folder: Path) -> submitit.AutoExecutor:
        cluster = self.settings["cluster"]
        executor = submitit.AutoExecutor(folder, cluster=cluster, **{f"{cluster}_max_pickle_size_gb": 100.0})
        cpus, gpus = remote.asks(run)
        asked: dict[str, Any] = {
            "name": f"pocketrec-{run.suite}",
            "timeout_min": math.ceil(self.suite.limits.minutes + self.settings["preparation_minutes"]),
            "cpus_per_task": cpus,
            "gpus_per_node": gpus,
            "slurm_exclusive": True if run.kind == "timed" else None,
        }
        executor.update_parameters(**asked | self.settings["options"])
        return executor

    def _once(self, run: Run, name: str, stopped: Callable[[], bool], parcel: Parcel) -> tuple[Ended, Parcel]:
        executor = self._executor(run, self._folder(run))
        try:
            submitted = executor.submit(remote.carry_out, run, name, parcel, self.suite.limits, remote.fingerprint())
        except (FailedJobError, FailedSubmissionError) as error:
            raise NoResult(f"not accepted: {error}", "failed", again=False) from None
        while not submitted.done():
            if stopped():
                submitted.cancel()
                raise NoResult("cancelled")
            time.sleep(POLL_SECONDS)
        try:
            return submitted.result()
        except FailedJobError as error:  # an exception of Python
            reason = _last_line(error)
            raise NoResult(reason, "timeout" if "timed-out" in reason else "failed", again=False) from None
        except UncompletedJobError:
            state = submitted.state.partition(" ")[0]  # Slurm says who has cancelled it
            status = STATUSES.get(state, "crashed")
            submitted.cancel(check=False)  # after a node's failure Slurm would start it again as well
            raise NoResult(f"its job ended without a result ({state})", status, again=state not in STATUSES) from None


def _check_accounting() -> None:
    asked = subprocess.run(["sacct", "--noheader", "--format=JobID"], capture_output=True, text=True)
    if asked.returncode:
        raise UserError(f"sacct: {asked.stderr.strip()}; without accounting, a job that is lost would never be missed")


def _last_line(error: FailedJobError) -> str:
    """Return the exception at the end of the trace that submitit shows between two lines of dashes."""
    trace = str(error).split("-" * 22)[1].strip()
    return trace.splitlines()[-1]
