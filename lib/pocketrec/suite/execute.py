"""The worker: executes one run's notebook in a process of its own and says how it ended.

python -m pocketrec.suite.execute job.json      in the run's folder
"""

import errno
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pocketrec.errors import unknown
from pocketrec.files import write_json
from pocketrec.suite.spec import Template

NOTEBOOK = "run.ipynb"
PARTIAL = "executing.ipynb"
START_ATTEMPTS = 3
KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=40", "--HistoryManager.enabled=False"]
OUT_OF_MEMORY = re.compile(r"can't allocate memory|cannot allocate memory|out of memory", re.IGNORECASE)
OUT_OF_DISK = "No space left on device"


def classify(name: str, message: str) -> tuple[str, str]:
    """Return the status and the one-line reason of an exception, by its name and message."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", message).strip()
    line = text.splitlines()[0][:300] if text else ""
    reason = f"{name}: {line}" if line else name
    if name in ("Infeasible", "Diverged"):
        return name.lower(), reason
    if name.endswith(("MemoryError", "OutOfMemoryError")) or OUT_OF_MEMORY.search(text):
        return "oom", reason
    return "failed", f"the disk is full ({reason})" if OUT_OF_DISK in text else reason


def execute(parameters: dict[str, Any]) -> dict[str, Any]:
    """Execute `run.ipynb` of the working directory into `executing.ipynb`.

    Returns:
        status, and unless it is "done" the reason and `failed_cell`, the n of the cell shown as `In [n]`.
    """
    # jsonschema would compile a grammar of IRIs, 1.5 s a process, which no notebook needs
    sys.modules["rfc3987_syntax"] = None
    import papermill
    from nbclient.exceptions import DeadKernelError

    cells = _Cells()
    try:
        _check_parameters(parameters)
        _with_retries(cells, lambda: _papermill(papermill, parameters, cells))
    except papermill.PapermillExecutionError as error:
        status, reason = classify(error.ename, error.evalue)
        return {"status": status, "reason": reason, "failed_cell": error.exec_count or cells.started}
    except DeadKernelError:
        reason = "the notebook's kernel died without an error of Python"
        return {"status": "crashed", "reason": reason, "failed_cell": cells.started}
    except Exception as error:
        status, reason = classify(type(error).__name__, str(error))
        return {"status": status, "reason": reason, "failed_cell": cells.started}
    return {"status": "done"}


class _Cells:
    """Counts the code cells as they start, and logs them."""

    def __init__(self) -> None:
        self.started = 0

    def __call__(self, cell: dict[str, Any], cell_index: int) -> None:
        self.started += 1
        line = cell["source"].strip().splitlines()[0]
        sys.stdout.write(f"{time.strftime('%H:%M:%S')} In [{self.started}]: {line}\n")
        sys.stdout.flush()


def _check_parameters(parameters: dict[str, Any]) -> None:
    known = Template(Path(NOTEBOOK)).parameters
    for name in parameters:
        if name not in known:
            raise unknown("parameter", name, known, NOTEBOOK)


def _papermill(papermill: Any, parameters: dict[str, Any], cells: _Cells) -> None:
    papermill.execute_notebook(
        NOTEBOOK,
        PARTIAL,
        parameters,
        kernel_name="python3",
        language="python",
        progress_bar=False,
        start_timeout=120,
        iopub_timeout=60,
        coalesce_streams=True,
        extra_arguments=KERNEL_ARGUMENTS,
        on_cell_execute=cells,
    )


def _with_retries(cells: _Cells, action: Callable[[], None]) -> None:
    """Try again when no cell had started: kernels that start together can race for the same ports."""
    for left in reversed(range(START_ATTEMPTS)):
        try:
            return action()
        except RuntimeError:
            if cells.started or not left:
                raise


def main(job: str) -> int:
    """Execute the job, write `outcome.json`; the exit code tells a full disk, where nothing can be written."""
    outcome = execute(json.loads(Path(job).read_text(encoding="utf-8"))["parameters"])
    try:
        write_json(Path("outcome.json"), {key: value for key, value in outcome.items() if value})
    except OSError as error:
        return errno.ENOSPC if error.errno == errno.ENOSPC else 1
    return 0


def _end_with(parent: int) -> None:
    from pocketrec.suite.process import family, kill

    while os.getppid() == parent:
        time.sleep(0.5)
    kill(family(os.getpid())[1:])
    os._exit(1)


if __name__ == "__main__":
    runner = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["parent"]
    threading.Thread(target=_end_with, args=(runner,), daemon=True).start()
    sys.exit(main(sys.argv[1]))
