"""Where runs are executed: this machine, a Ray cluster, or Slurm. One class a file, made by name."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from pocketrec.errors import UserError, unknown
from pocketrec.suite.job import Ended
from pocketrec.suite.plan import Run
from pocketrec.suite.spec import Suite

CLASSES = {"local": "Local", "ray": "Ray", "submitit": "Submitit"}


class Executor(Protocol):
    """Executes runs; planning, locks and records are the runner's."""

    def prepare(self, runs: list[Run]) -> list[Run]:
        """Make ready for these runs; one that cannot start takes the reason as its problem.

        Raises:
            UserError: no machine at hand has what a run asks for.
        """

    def slots(self, runs: list[Run]) -> int:
        """How many of these runs, all timed or none, it executes at a time."""

    def execute(
        self, run: Run, folder: Path, lock: int, stopped: Callable[[], bool], say: Callable[[str], None]
    ) -> Ended:
        """Execute a run, and wait for it.

        Args:
            run: the run.
            folder: holds its notebook, and in the end all that it made.
            lock: descriptor of the run's lock.
            stopped: asked now and then whether to end it.
            say: takes a sentence that a person should read.

        Raises:
            process.Busy: stopped before it began.
        """

    def close(self) -> None:
        """Let go of what it holds; it can be used again."""


def find(name: str) -> Callable[[Suite], Executor]:
    """Return the class of an executor.

    Raises:
        UserError: there is none of that name, or its package is not installed.
    """
    if name not in CLASSES:
        raise unknown("executor", name, CLASSES, "--executor")
    if name != "local" and find_spec(name) is None:
        raise UserError(f"--executor {name}: the package is missing: pip install -c constraints.txt -e '.[cluster]'")
    return getattr(import_module(f"{__name__}.{name}"), CLASSES[name])
