"""The page of a suite: one HTML file that carries its pictures and asks the network for nothing."""

import io
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import nbformat
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from pocketrec.errors import UserError
from pocketrec.files import atomic
from pocketrec.report import plots
from pocketrec.report.columns import FAILURES, METRICS, times
from pocketrec.report.pages import template
from pocketrec.report.results import curves, read_records, speed, tidy
from pocketrec.report.statistics import finding, label, summary, verdict
from pocketrec.report.tables import HEADLINE, best, cells

_THEME = {plots.INK: "ink", plots.MUTED: "muted", plots.GRID: "rule", plots.ALARM: "alarm", plots.PAPER: "paper"}
HALF = 6.0  # inches: a wider figure takes the whole width of the page
_HARDWARE = {"cpu": "CPU", "cores": "Cores", "memory_gb": "Memory (GB)", "os": "System"}
_HARDWARE |= {"gpu": "GPU", "driver": "Driver"}
_SOFTWARE = {"commit": "Commit", "dirty": "Uncommitted changes", "python": "Python", "torch": "torch"}
_SOFTWARE |= {"numpy": "NumPy", "triton": "Triton"}


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
        findings={name: _sentence(finding(rows)) for name, rows in results.groupby("dataset")},
        sections=_sections(found, results),
        dashboards=_dashboards(suite_dir),
        environments=environments,
        machines=_count_machines(environments["machines"]),
        troubles=_troubles(suite_dir, found),
        groups=_groups(suite_dir, found),
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    with atomic(suite_dir / "index.html", "w") as file:
        file.write(html)
    return suite_dir / "index.html"


def _question(results: pd.DataFrame) -> str:
    ratios = sorted(results.loc[results["method"] != "full", "ratio_requested"].dropna().unique())
    if not ratios:
        return "What does the full table reach?"
    by = times(ratios[0]) if len(ratios) == 1 else f"{times(ratios[0])} to {times(ratios[-1])}"
    return f"How much quality is left when the embedding tables shrink {by}, and at what speed?"


def _sentence(text: str) -> str:
    """Return a reason or finding as a sentence, without the type that its status already names."""
    return text.removeprefix("Infeasible: ")


def _sections(found: list[dict[str, Any]], results: pd.DataFrame) -> list[dict[str, Any]]:
    """Return for each dataset its headline table and pictures."""
    points, samples = curves(found), speed(found)
    return [
        {"dataset": dataset, "table": _table(rows), "pictures": _pictures(dataset, rows, points, samples)}
        for dataset, rows in results.groupby("dataset")
    ]


def _pictures(
    dataset: str, rows: pd.DataFrame, points: pd.DataFrame, samples: pd.DataFrame
) -> dict[str, dict[str, Any]]:
    """Draw every picture of a dataset: those without anything to show are left out, save the status map."""
    points, samples = (frame[frame["dataset"] == dataset] if len(frame) else frame for frame in (points, samples))
    drawn = {"status": plots.status_map(rows)}
    if rows["auc"].notna().any():
        drawn = {"ratio": plots.auc_vs_ratio(rows), "bytes": plots.auc_vs_bytes(rows)} | drawn
    if len(points):
        drawn["curves"] = plots.learning_curves(points)
    if len(samples):
        drawn["latency"] = plots.latency(samples)
    return {name: _picture(figure, f"{dataset} {name}") for name, figure in drawn.items()}


def _picture(figure: Figure, name: str) -> dict[str, Any]:
    """Return a figure as SVG; the title of a single panel becomes a caption, which wraps as the page does."""
    titles = [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes]
    caption = titles[0] if len(titles) == 1 else ""
    if caption:
        figure.axes[0].set_title("", loc="left")
    return {"wide": figure.get_figwidth() > HALF, "caption": caption, "svg": _svg(figure, name, "; ".join(titles))}


def _svg(figure: Figure, name: str, title: str) -> Markup:
    """Return a figure as inline SVG whose text and lines take the page's font and colours, light or dark."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| id="[\w.]+_\d+"', "", svg)  # inline SVG needs neither
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    for ink, variable in _THEME.items():
        svg = svg.replace(ink, f"var(--{variable})")
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))


def _table(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the headline table of one dataset as rows of text cells, a group a requested ratio."""
    table = summary(rows).dropna(subset="ratio_requested")
    text, marks = cells(table), best(table)
    marks = marks.reindex(columns=text.columns, fill_value=False)
    groups: dict[str, list] = {}
    for place, row in table.iterrows():
        entry = {"label": label(row), "colour": plots.colour(row["method"]), "n": row["n"]}
        entry |= {"status": row["status"], "reason": _sentence(row["reason"])}
        entry["cells"] = list(zip(text.loc[place], marks.loc[place], strict=True))
        groups.setdefault(times(row["ratio_requested"]), []).append(entry)
    columns = [METRICS[name] for name in HEADLINE]
    return {"columns": columns, "groups": groups, "batches": _batches(table), "marked": marks.any(axis=None)}


def _batches(table: pd.DataFrame) -> str:
    """Say at which batch size latency and throughput were measured."""
    sizes = table[["latency_batch", "inference_batch"]].dropna().drop_duplicates()
    parts = [f"latency at batch {small:,.0f}, throughput at batch {large:,.0f}" for small, large in sizes.values]
    return "; ".join(parts)


def _dashboards(suite_dir: Path) -> list[dict[str, Any]]:
    pages = sorted(suite_dir.glob("dashboards/*.html"))
    return [
        {
            "name": page.stem.removeprefix("dashboard_").replace("_", " "),
            "link": _link(suite_dir, page),
            "failed": _stopped(page.with_suffix(".ipynb")),
        }
        for page in pages
    ]


def _stopped(notebook: Path) -> bool:
    """Tell whether papermill noted an exception in an executed notebook."""
    if not notebook.exists():
        return False
    return bool(nbformat.read(notebook, as_version=4).metadata.get("papermill", {}).get("exception"))


def _environments(found: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """Return the distinct machines and sets of software, a row each, with the runs on it."""
    environments = pd.DataFrame(record["environment"] for record in found if record.get("environment"))
    return {"machines": _distinct(environments, _HARDWARE), "software": _distinct(environments, _SOFTWARE)}


def _count_machines(machines: pd.DataFrame) -> int:
    """Count machines; a run that never touched its GPU does not name one and is no further machine."""
    gpus = machines.get("GPU", pd.Series(dtype="str"))
    hosts = machines.drop(columns=["GPU", "Driver", "Runs"], errors="ignore").drop_duplicates()
    return max(len(hosts), gpus[gpus != "–"].nunique())


def _distinct(environments: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    columns = [name for name in names if name in environments]
    shown = environments[columns].astype("object").replace({True: "yes", False: "no"}).fillna("–").astype("str")
    return shown.rename(columns=names).value_counts().rename("Runs").reset_index() if columns else pd.DataFrame()


def _troubles(suite_dir: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs that failed, timed ones included."""
    return [_entry(suite_dir, record) for record in found if record["status"] in FAILURES]


def _groups(suite_dir: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every run, grouped by dataset and method."""
    groups: dict[tuple[str, str], list] = {}
    for record in found:
        groups.setdefault((record["dataset"], record["method"]), []).append(_entry(suite_dir, record))
    return [
        {
            "name": f"{dataset} · {method}",
            "colour": plots.colour(method),
            "runs": sorted(runs, key=lambda run: (run["order"], run["run"])),
            "done": sum(run["status"] == "done" for run in runs),
            "failed": sum(run["status"] in FAILURES for run in runs),
        }
        for (dataset, method), runs in sorted(groups.items())
    ]


def _entry(suite_dir: Path, record: dict[str, Any]) -> dict[str, Any]:
    folder = suite_dir / "runs" / record["run"]
    files = {"notebook": ("run.html", "run.ipynb"), "record": ("record.json",), "log": ("log.txt",)}
    present = {name: [folder / file for file in names if (folder / file).exists()] for name, names in files.items()}
    auc = record.get("metrics", {}).get("test", {}).get("auc")
    return {
        "run": record["run"],
        "order": record.get("ratio", float("inf")),
        "status": record["status"],
        "reason": record.get("reason", ""),
        "auc": METRICS["auc"].text(auc if auc is not None else float("nan")),
        "seconds": f"{record['seconds']:,.1f}" if "seconds" in record else "–",
        "links": {name: _link(suite_dir, paths[0]) for name, paths in present.items() if paths},
    }


def _link(suite_dir: Path, path: Path) -> str:
    return quote(path.relative_to(suite_dir).as_posix())
