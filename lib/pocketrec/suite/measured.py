"""Measurements of a suite that are no training runs: `pocketrec.papers.<paper>.measure`, kept beside its runs.

results/<suite>/measured/<table>.parquet   the tables that it returns
results/<suite>/measured/about.json        when, on what machine, by which code; written last
"""

import hashlib
import json
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from pocketrec.errors import UserError
from pocketrec.files import atomic, write_json
from pocketrec.suite import process, record
from pocketrec.suite.plan import SHARED_CODE, TIMED_CODE, code_hash
from pocketrec.suite.spec import Suite

ABOUT = "about.json"


def up_to_date(suite: Suite) -> bool:
    """Whether the suite's measurements, if it has any, were made by the code as it is, over the runs as they are."""
    try:
        found = json.loads((_folder(suite) / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return not suite.paper
    return found["of"] == _of(suite)


def measure(suite: Suite, waits: Callable[[], None] = lambda: None) -> list[Path]:
    """Measure alone on the machine, keep every table, and return their files.

    `waits` is called once if there are runs to wait for.

    Raises:
        UserError: for a suite without a paper.
    """
    if not suite.paper:
        raise UserError(f"{suite.path}: has no `paper`, so there is nothing to measure but its runs")
    paper = import_module(f"pocketrec.papers.{suite.paper}")
    started, clock = record.now(), time.monotonic()
    with process.machine(waits=waits):
        tables = paper.measure(suite.folder)
    written = [_folder(suite) / f"{name}.parquet" for name in tables]
    for path, table in zip(written, tables.values(), strict=True):
        with atomic(path) as file:
            table.to_parquet(file)
    about = {
        "paper": suite.paper,
        "started": started,
        "seconds": round(time.monotonic() - clock, 1),
        "of": _of(suite),
        "environment": record.environment(),
    }
    write_json(_folder(suite) / ABOUT, about)
    return written


def _folder(suite: Suite) -> Path:
    return suite.folder / "measured"


def _of(suite: Suite) -> dict[str, str]:
    """Return what the measurements rest on: the code, and the runs that are done, whose models they may read."""
    found = [record.read(file.parent) for file in sorted(suite.folder.glob("runs/*/*/*/record.json"))]
    done = [(run["key"], run.get("started")) for run in found if run and run["status"] == "done"]
    code = code_hash((f"papers/{suite.paper}.py", "same_rows.py", *SHARED_CODE, *TIMED_CODE))
    return {"code": code, "runs": hashlib.sha256(json.dumps(done).encode()).hexdigest()}
