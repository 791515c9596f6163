"""The page of a suite: one HTML file that carries its records, draws them itself and asks the network for nothing."""

import json
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
import pandas as pd
from markupsafe import Markup

from pocketrec.errors import UserError
from pocketrec.files import atomic
from pocketrec.report import contents
from pocketrec.report.columns import FAILURES, times
from pocketrec.report.pages import template
from pocketrec.report.results import read_records, tidy
from pocketrec.report.statistics import finding, verdict

_HARDWARE = {"cpu": "CPU", "cores": "Cores", "memory_gb": "Memory (GB)", "os": "System"}
_HARDWARE |= {"gpu": "GPU", "driver": "Driver"}
_SOFTWARE = {"commit": "Commit", "dirty": "Uncommitted changes", "python": "Python", "torch": "torch"}
_SOFTWARE |= {"numpy": "NumPy", "triton": "Triton", "missing_kernels": "Missing kernels"}


def index(suite_dir: str | Path, title: str | None = None, question: str | None = None) -> Path:
    """Build `index.html` of a suite's folder from its records and return its path.

    It links, relatively, to the notebooks, pages, records and logs that exist; `convert` and `dashboards`
    make the pages. `title` defaults to the suite's name, `question` to what its ratios ask.
    """
    suite_dir = Path(suite_dir)
    found = read_records(suite_dir)
    if not found:
        raise UserError(f"{suite_dir}: no record.json below it; `pocketrec run {suite_dir.name}` makes them")
    results = tidy(found)
    environments = _environments(found)
    html = template("index.html.j2").render(
        title=title or suite_dir.resolve().name,
        question=question or _question(results),
        verdict=verdict(results),
        others=_others(found),
        settings=defaultdict(str, contents.settings(found)),
        findings={name: finding(rows) for name, rows in results.groupby("dataset")},
        data=_embedded(contents.contents(suite_dir, title or suite_dir.resolve().name, found, results)),
        dashboards=_dashboards(suite_dir),
        environments=environments,
        machines=_count_machines(environments["machines"]),
        troubles=_troubles(suite_dir, found),
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    with atomic(suite_dir / "index.html", "w") as file:
        file.write(html)
    return suite_dir / "index.html"


def _question(results: pd.DataFrame) -> str:
    ratios = sorted(results.loc[results["method"] != "full", "ratio_requested"].dropna().unique())
    if not ratios:
        return "What does the full table reach?"
    if ratios == [1]:
        return "How much quality do the methods keep at the size of the full table?"
    by = times(ratios[0]) if len(ratios) == 1 else f"{times(ratios[0])} to {times(ratios[-1])}"
    return f"How much quality is left when the embedding tables shrink {by}, and at what speed?"


def _embedded(content: dict[str, Any]) -> Markup:
    """Return JSON that stands inside a script element without ending it."""
    return Markup(json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))


def _others(found: list[dict[str, Any]]) -> str:
    """Count what stands beside the runs: `, and 16 searches and 8 timings beside them`."""
    kinds = Counter(record.get("kind", "quality") for record in found)
    words = (("search", "search", "searches"), ("timed", "timing", "timings"))
    counted = [f"{kinds[kind]} {one if kinds[kind] == 1 else many}" for kind, one, many in words if kinds[kind]]
    return f", and {' and '.join(counted)} beside them" if counted else ""


def _dashboards(suite_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the links to the dashboards: those of all methods, and one a method."""
    links: dict[str, list[dict[str, Any]]] = {"Dashboards": [], "By method": []}
    for page in sorted(suite_dir.glob("dashboards/*.html")):
        name, method = page.stem.removeprefix("dashboard_"), page.stem.removeprefix("dashboard_method_")
        one = {"link": quote(page.relative_to(suite_dir).as_posix()), "failed": _stopped(page.with_suffix(".ipynb"))}
        if method != page.stem:
            links["By method"].append(one | {"name": method})
        else:
            links["Dashboards"].append(one | {"name": name.replace("_", " ")})
    return links


def _stopped(notebook: Path) -> bool:
    """Tell whether papermill noted an exception in an executed notebook."""
    if not notebook.exists():
        return False
    return bool(nbformat.read(notebook, as_version=4).metadata.get("papermill", {}).get("exception"))


def _environments(found: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """Return the distinct machines and sets of software, a row each, with the runs, searches and timings on it."""
    environments = pd.DataFrame(record["environment"] for record in found if record.get("environment"))
    return {"machines": _distinct(environments, _HARDWARE), "software": _distinct(environments, _SOFTWARE)}


def _count_machines(machines: pd.DataFrame) -> int:
    """Count machines; a run that never touched its GPU does not name one and is no further machine."""
    gpus = machines.get("GPU", pd.Series(dtype="str"))
    hosts = machines.drop(columns=["GPU", "Driver", "Records"], errors="ignore").drop_duplicates()
    return max(len(hosts), gpus[gpus != "–"].nunique())


def _distinct(environments: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    columns = [name for name in names if name in environments]
    shown = environments[columns].astype("object").replace({True: "yes", False: "no"}).fillna("–").astype("str")
    return shown.rename(columns=names).value_counts().rename("Records").reset_index() if columns else pd.DataFrame()


def _troubles(suite_dir: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs that failed, timed ones included."""
    return [contents.run(suite_dir, record) for record in found if record["status"] in FAILURES]
