"""What a person sees of a suite: tables, progress, and where to look when something failed."""

from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from pocketrec.suite import record
from pocketrec.suite.plan import Run, total_seconds

COLOURS = {"done": "green", "infeasible": "blue", "todo": "default", "stale": "yellow", "running": "cyan"}
LINKS = 3


def coloured(state: str) -> str:
    """Return a state in its colour."""
    return f"[{COLOURS.get(state, 'red')}]{state}[/]"


def counts(states: list[str]) -> str:
    """Return how many runs are in which state, the settled ones first."""
    order = [*record.SETTLED, "running", "todo", "stale", *record.FAILURES]
    found = Counter(states)
    return ", ".join(f"{found[state]} {coloured(state)}" for state in order if found[state])


def show_plan(console: Console, title: str, runs: list[Run], jobs: int) -> None:
    """Print one row a run and the sums."""
    name = Column("run", overflow="fold", min_width=min(max(len(run.name) for run in runs), console.width - 32))
    table = Table(name, "kind", "state", "about", title=escape(title), title_justify="left")
    for run in runs:
        about = f"{run.seconds:.0f} s" if run.pending else ""
        reason = f" [dim]{escape(run.reason or run.problem)}[/]" if run.reason or run.problem else ""
        table.add_row(run.name, run.kind, coloured(run.state) + reason, about)
    console.print(table)
    minutes = total_seconds(runs, jobs) / 60
    console.print(f"{counts([run.state for run in runs])}; about {minutes:.1f} minutes with {jobs} at a time")


def show_status(console: Console, title: str, runs: list[Run]) -> None:
    """Print how many runs are in which state, and each failure with its reason."""
    console.print(f"[bold]{escape(title)}[/]: {counts([run.state for run in runs])}")
    for run in runs:
        if run.state in record.FAILURES and not run.settles(run.state):
            console.print(f"  {run.name}: {coloured(run.state)}: {escape(run.reason)}")
            console.print(f"    {escape(str(run.folder / 'run.ipynb'))}", soft_wrap=True)


def show_sizes(console: Console, sizes: Any) -> None:
    """Print the achieved ratio and size of each method by requested ratio, then the reasons of what cannot be."""
    ratios = sorted(sizes["ratio_requested"].unique())
    table = Table(Column("method", no_wrap=True), *(f"{ratio:,}×" for ratio in ratios))
    for method, rows in sizes.groupby("method", sort=False):
        cells = rows.set_index("ratio_requested")
        feasible = cells["reason"].isna()
        text = {r: f"{cells['ratio_achieved'][r]:,.1f}×\n[dim]{cells['size'][r]}[/]" for r in ratios if feasible[r]}
        table.add_row(str(method), *(text.get(r, "[blue]infeasible[/]") for r in ratios))
    console.print(table)
    for row in sizes[sizes["reason"].notna()].itertuples():
        console.print(f"[dim]{row.method} at {row.ratio_requested:,}×:[/] {escape(row.reason)}", soft_wrap=True)


class Display:
    """Shows runs as they start and end: a bar on a terminal, else one line for each that ended."""

    def __init__(self, console: Console, runs: list[Run]) -> None:
        self.console = console
        self.left = len(runs)
        self.ended: list[tuple[Run, dict[str, Any] | None]] = []
        self.running: list[str] = []
        self.bar = Progress(
            TextColumn("{task.fields[counts]}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("to go"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[running]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=sum(run.seconds for run in runs) or 1, counts="", running="")
        self._update()

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def started(self, run: Run) -> None:
        """Show that a run has begun."""
        self.running.append(run.name)
        self._update()

    def finished(self, run: Run, found: dict[str, Any] | None) -> None:
        """Show how a run has ended; without a record it was left out."""
        if run.name in self.running:
            self.running.remove(run.name)
        self.left -= 1
        self.ended.append((run, found))
        state = found["status"] if found else "left out"
        without = "its quality run is not done" if run.source else ""
        detail = found.get("reason") or f"{found['seconds']:.1f} s" if found else without
        self.console.print(f"{run.name}: {coloured(state)} [dim]{escape(detail)}[/]", soft_wrap=True)
        self._update(run.seconds)

    def say(self, text: str) -> None:
        """Show a sentence."""
        self.console.print(f"[red]{escape(text)}[/]", soft_wrap=True)

    def links(self) -> None:
        """Point at the first failures: reason, notebook, log."""
        failures = [(run, found) for run, found in self.ended if found and not run.settles(found["status"])]
        if not failures:
            return
        self.console.print(f"\n[red]{len(failures)} failed[/]; look at")
        for run, found in failures[:LINKS]:
            self.console.print(f"  {run.name}: {escape(found['reason'])}", soft_wrap=True)
            for name in ("run.ipynb", "log.txt"):
                self.console.print(f"    {escape(str(run.folder / name))}", soft_wrap=True)

    def _update(self, seconds: float = 0) -> None:
        failed = sum(1 for run, found in self.ended if found and not run.settles(found["status"]))
        done = len(self.ended) - failed
        text = f"[green]{done} done[/], [red]{failed} failed[/], {self.left} left"
        self.bar.update(self.task, advance=seconds, counts=text, running=", ".join(self.running))
