"""The command `pocketrec`; what is heavy is imported by the command that needs it."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pocketrec.errors import UserError


class _Commands(TyperGroup):
    """Commands in the order they are used; a user's error is one sentence and exit code 2."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names as they stand in this file."""
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except OSError as error:  # a full disk, a folder that cannot be written
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    help="Benchmarks of compressed embedding tables for recommendation models.\n\n"
    "`pocketrec all quick` runs the suite `params/suites/quick.yaml` and builds its page.",
)

SUITES, RESULTS, TOOLS = "Suites", "Results", "Data and tools"

KAGGLE, RIVALS = "criteo-kaggle", "POCKETREC_RIVALS"

SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A name in params/suites, or a YAML file.")]
Method = Annotated[str | None, typer.Option(help="Only these methods, separated by commas.")]
Dataset = Annotated[str | None, typer.Option(help="Only these datasets.")]
Ratio = Annotated[str | None, typer.Option(help="Only these compression ratios.")]
Seed = Annotated[str | None, typer.Option(help="Only these seeds.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Runs at a time; the suite's, or what fills the cores.")]
Executor = Annotated[str, typer.Option(help="Where runs are executed: local, ray, submitit.")]


@app.command("all", rich_help_panel=SUITES)
def everything(
    suite: SuiteName,
    method: Method = None,
    dataset: Dataset = None,
    ratio: Ratio = None,
    seed: Seed = None,
    jobs: Jobs = None,
    executor: Executor = "local",
) -> None:
    """Run a suite and build its page; exit code 1 if a run failed."""
    code = _execute(suite, _filters(method, dataset, ratio, seed), jobs, executor, retry=False)
    if code not in (0, 1):
        raise typer.Exit(code)
    _measure(suite, again=False)
    collect(suite)
    try:
        dashboards(suite)
    except (UserError, OSError) as error:  # the page is built all the same, and says which dashboard stopped
        typer.echo(f"error: {error}", err=True)
        code = 1
    index(suite)
    raise typer.Exit(code)


@app.command(rich_help_panel=SUITES)
def plan(
    suite: SuiteName,
    method: Method = None,
    dataset: Dataset = None,
    ratio: Ratio = None,
    seed: Seed = None,
    jobs: Jobs = None,
) -> None:
    """List a suite's runs with state and estimated time."""
    from pocketrec.suite import display
    from pocketrec.suite.executors import local

    loaded, runs = _plan(suite, _filters(method, dataset, ratio, seed))
    display.show_plan(_console(), loaded.title, runs, jobs or local.default_jobs(loaded, runs))


@app.command(rich_help_panel=SUITES)
def run(
    suite: SuiteName,
    method: Method = None,
    dataset: Dataset = None,
    ratio: Ratio = None,
    seed: Seed = None,
    jobs: Jobs = None,
    executor: Executor = "local",
) -> None:
    """Execute what is not settled yet: new, stale and failed runs."""
    raise typer.Exit(_execute(suite, _filters(method, dataset, ratio, seed), jobs, executor, retry=False))


@app.command(rich_help_panel=SUITES)
def retry(
    suite: SuiteName,
    method: Method = None,
    dataset: Dataset = None,
    ratio: Ratio = None,
    seed: Seed = None,
    jobs: Jobs = None,
    executor: Executor = "local",
) -> None:
    """Execute only what has failed, and the timed runs that waited for it."""
    raise typer.Exit(_execute(suite, _filters(method, dataset, ratio, seed), jobs, executor, retry=True))


@app.command(rich_help_panel=SUITES)
def measure(suite: SuiteName) -> None:
    """Take the measurements of a paper's suite that are no training runs, alone on the machine."""
    _measure(suite, again=True)


@app.command(rich_help_panel=SUITES)
def status(
    suite: SuiteName,
    method: Method = None,
    dataset: Dataset = None,
    ratio: Ratio = None,
    seed: Seed = None,
) -> None:
    """Count a suite's runs by state, with the reasons of those that failed."""
    from pocketrec.suite import display

    loaded, runs = _plan(suite, _filters(method, dataset, ratio, seed))
    display.show_status(_console(), loaded.title, runs)


@app.command(rich_help_panel=RESULTS)
def collect(suite: SuiteName) -> None:
    """Write results.parquet from the records."""
    from pocketrec import report

    _console().print(f"results: {report.collect(_results(suite))}", soft_wrap=True)


@app.command(rich_help_panel=RESULTS)
def dashboards(suite: SuiteName) -> None:
    """Build the dashboards from the records."""
    from pocketrec import report

    folder = _results(suite)
    report.load_results(folder)  # says what to do where there is nothing yet
    report.dashboards(folder, own=_own_dashboard(suite))


@app.command(rich_help_panel=RESULTS)
def index(suite: SuiteName) -> None:
    """Build the suite's page and say where it is."""
    from pocketrec import report

    folder = _results(suite)
    _strays(suite)
    report.convert(folder)
    page = report.index(folder, question=_title(suite))
    _console().print(f"open {page}\n  or {Path(page).resolve().as_uri()}", soft_wrap=True)


@app.command(rich_help_panel=RESULTS)
def publish(suite: SuiteName) -> None:
    """Keep a suite's records, page and dashboards in results/published/."""
    from pocketrec import paths, report

    folder = _results(suite)
    _strays(suite)
    target = paths.RESULTS / "published" / folder.name
    page = report.publish(folder, target, question=_title(suite), own=_own_dashboard(suite))
    _console().print(f"kept {page.parent}", soft_wrap=True)


@app.command(rich_help_panel=RESULTS)
def bundle(
    suite: SuiteName,
    to: Annotated[Path | None, typer.Option(help="The file to write; beside the folder of results otherwise.")] = None,
) -> None:
    """Write one zip to send: page, notebooks, records, environment."""
    from pocketrec import report

    folder = _results(suite)
    _strays(suite)
    report.convert(folder)
    path, left_out = report.bundle(folder, to, question=_title(suite), params=_params(suite))
    _console().print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)
    for name in left_out:
        _console().print(f"left out, above 1 MB: {name}", soft_wrap=True)


@app.command(rich_help_panel=RESULTS)
def compare(
    a: Annotated[str, typer.Argument(help="What was: a suite, a folder of results or a bundle.")],
    b: Annotated[str, typer.Argument(help="What is.")],
    page: Annotated[Path | None, typer.Option(help="Write the comparison as a page, too.")] = None,
) -> None:
    """Compare the results of two suites, folders or bundles."""
    from pocketrec import report
    from pocketrec.report.comparison import text

    with report.unpacked(_results(a)) as one, report.unpacked(_results(b)) as other:
        typer.echo(text(one, other))
        if page:
            _console().print(f"open {report.comparison_page(one, other, page)}", soft_wrap=True)


@app.command(rich_help_panel=TOOLS)
def prepare(
    dataset: Annotated[str, typer.Argument(help="A name in params/datasets.")],
    raw: Annotated[list[Path] | None, typer.Option(help="Your own copy of the raw file, or a folder of them.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch large raw files, or go on doing so.")] = False,
    choose: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the set.")
    ] = None,
) -> None:
    """Fetch and prepare a dataset, with its default options where none are set."""
    from pocketrec import data

    if download:
        typer.echo(f"licence: {data.licence(dataset)}", err=True)
    folder = data.prepare(dataset, _options(choose or []), raw=raw or (), download=download)
    found = data.Dataset.open(folder)
    for name, note in found.meta["notes"].items():
        typer.echo(f"{name}: {note}", err=True)
    rows = ", ".join(f"{found.rows(split):,} {split}" for split in ("train", "validation", "test"))
    tables = ", ".join(f"{name} {n:,}" for name, n in zip(found.feature_names, found.cardinalities, strict=True))
    typer.echo(f"rows: {rows}\nids of each feature: {tables}", err=True)
    typer.echo(folder)


@app.command(rich_help_panel=TOOLS)
def synth(
    dataset: Annotated[str, typer.Argument(help="criteo-kaggle, criteo-tb or avazu.")],
    rows: Annotated[int, typer.Option(min=10)],
    out: Annotated[Path | None, typer.Option(help="Where to; a folder in the data folder.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write raw files in a dataset's original format, drawn from the planted teacher."""
    from pocketrec import data, paths
    from pocketrec.data import synth

    folder = out or paths.DATA / "synth" / dataset
    synth.write(dataset, folder, data.published_cardinalities(dataset), rows, seed=seed)
    typer.echo(f"{folder}\nprepare them with: pocketrec prepare {dataset} --raw {folder}")


@app.command(rich_help_panel=TOOLS)
def methods() -> None:
    """List the methods: paper, idea, what they save, how far they go (as Markdown)."""
    from pocketrec.suite.sizes import markdown, overview

    typer.echo(markdown(overview()))


@app.command(rich_help_panel=TOOLS)
def sizes(
    tables: Annotated[str, typer.Argument(help="Published tables, as criteo-tb-40m, or a dataset.")],
    dim: Annotated[
        int | None, typer.Option(min=1, help="Width, instead of the one that belongs to the tables.")
    ] = None,
    quantize: Annotated[str | None, typer.Option(help="int8 or int4: the form that is served.")] = None,
) -> None:
    """Show what every method takes at 2 to 10,000 times smaller, or why it cannot; no table is made."""
    from pocketrec.suite import display
    from pocketrec.suite.sizes import sizes as compute
    from pocketrec.suite.sizes import tables as find

    if quantize not in (None, "int8", "int4"):
        raise UserError(f"--quantize must be int8 or int4, got {quantize}")
    cardinalities, own_dim = find(tables)
    display.show_sizes(_console(), compute(cardinalities, dim or own_dim, quantize=quantize))


@app.command(rich_help_panel=TOOLS)
def bench(
    tables: Annotated[str, typer.Option(help="Published tables, as criteo-tb-40m, or a dataset.")] = KAGGLE,
    full: Annotated[bool, typer.Option("--full", help="Every size, width and setting: hours, not minutes.")] = False,
    family: Annotated[str | None, typer.Option(help="table, robe, tensor_train, dlrm, ..., several by commas.")] = None,
    dim: Annotated[str | None, typer.Option(help="Widths, by commas: 16, 64, 128.")] = None,
    batch: Annotated[str | None, typer.Option(help="Batch sizes, by commas: 1, 64, 2048, 65536.")] = None,
    ids: Annotated[str | None, typer.Option(help="zipf, uniform.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Undisturbed samples to take of each point.")] = 15,
    patience: Annotated[float, typer.Option(min=0, help="Disturbed rounds taken again, per round.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    rivals: Annotated[Path | None, typer.Option(help="Folder of rivals' checkouts.", envvar=RIVALS)] = None,
    add: Annotated[bool, typer.Option("--add", help="Keep what was measured before at other points.")] = False,
    ref: Annotated[str | None, typer.Option(help="Compare with this commit of the project instead.")] = None,
) -> None:
    """Time every family of lookups and its rivals, forward and training step, alone on the machine."""
    from pocketrec import paths

    if ref:
        if add:
            raise UserError("--add goes with no --ref: two versions are compared anew")
        given = {"tables": tables, "family": family, "dim": dim, "batch": batch, "ids": ids, "rounds": rounds}
        given |= {"patience": patience, "device": device, "rivals": rivals and rivals.resolve()}
        arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
        return _versions(ref, arguments + ["--full"] * full)
    from pocketrec.speed import running
    from pocketrec.suite import process
    from pocketrec.suite.sizes import tables as find

    cardinalities, _ = find(tables)
    options = running.options(
        full, family, dim, batch, ids, rounds=rounds, patience=patience, device=device, rivals=rivals
    )
    folder = paths.RESULTS / "speed"
    with process.machine(waits=_waits):
        running.run(cardinalities, options, folder, add=add)
    from pocketrec.report import speed

    typer.echo(speed.overview(folder))


@app.command(rich_help_panel=TOOLS)
def doctor() -> None:
    """Show what this machine offers, and what is missing."""
    from pocketrec.suite.doctor import findings

    console = _console()
    for name, value, advice in findings():
        console.print(f"{name:>10}  {value}" + (f"  [yellow]{advice}[/]" if advice else ""), soft_wrap=True)


def _versions(ref: str, arguments: list[str]) -> None:
    """Print how many times faster this version is than another one, way by way."""
    from pocketrec import paths
    from pocketrec.files import atomic
    from pocketrec.report import speed
    from pocketrec.speed import refs

    samples = refs.samples(ref, arguments)
    table = speed.versions(samples)
    path = paths.RESULTS / "speed" / "versions.parquet"
    with atomic(path) as file:
        samples.to_parquet(file)
    said = table.dropna(axis="columns", how="all").round(3).fillna("").to_string(index=False)
    typer.echo(f"{said}\nthere is {ref}, here what is in {paths.ROOT}; samples: {path}")


def _options(given: list[str]) -> dict[str, Any]:
    """Read `name=value` as YAML reads `name: value`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    options = {}
    for pair in given:
        name, sign, value = pair.partition("=")
        try:
            options[name] = YAML(typ="safe", pure=True).load(value)
        except YAMLError:
            sign = ""
        if not sign:
            raise UserError(f"--set {pair}: expected OPTION=VALUE, as --set id_cap=10_000_000")
    return options


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _filters(method: str | None, dataset: str | None, ratio: str | None, seed: str | None) -> dict[str, str | None]:
    return {"method": method, "dataset": dataset, "ratio": ratio, "seed": seed}


def _plan(name: str, filters: dict[str, str | None]) -> tuple[Any, list[Any]]:
    from pocketrec.suite import plan, spec

    suite = spec.load(name)
    return suite, plan.plan(suite, **filters)


def _execute(name: str, filters: dict[str, str | None], jobs: int | None, executor: str, *, retry: bool) -> int:
    from pocketrec.suite import display, executors, record, runner, spec

    where = executors.find(executor)(spec.load(name))
    console, done, worst = _console(), 0, 0
    for stage in (("search",), ("quality", "timed")):  # the runs that a search serves depend on what it finds
        suite, runs = _plan(name, filters)
        if "quality" in stage:
            runner.note_searches(runs)
        pending = [run for run in runs if run.pending and run.kind in stage]
        if retry:
            failed = {run.name for run in pending if run.state in record.FAILURES}
            pending = [run for run in pending if failed & {run.name, run.source}]
        if not pending:
            continue
        with display.Display(console, pending) as shown:
            code = runner.execute(pending, where, jobs=jobs, listener=shown)
        shown.links()
        done, worst = done + len(pending), max(worst, code)
        if code == runner.INTERRUPTED:
            break
    states = display.counts([run.state for run in _plan(name, filters)[1]])
    console.print(f"[bold]{suite.name}[/]: {states}" + ("" if done else "; nothing to do"))
    return worst


def _measure(name: str, *, again: bool) -> None:
    """Measure what a suite's paper asks for beside its runs; unless `again`, only what is not up to date."""
    from pocketrec.suite import measured, spec

    suite = spec.load(name)
    if again or not measured.up_to_date(suite):
        for path in measured.measure(suite, _waits):
            _console().print(f"measured {path}", soft_wrap=True)


def _waits() -> None:
    typer.echo("waits for the runs of this machine to end", err=True)


def _own_dashboard(name: str) -> str | None:
    """Return the notebook that answers a suite: its paper's, or one of its own name."""
    from pocketrec.suite import spec

    if "/" in name and Path(name).is_dir():
        return None
    suite = spec.load(name)
    return f"paper_{suite.paper}" if suite.paper else suite.name


def _strays(name: str) -> None:
    """Say how many records of a suite are stale, or of runs that its file does not ask for: they are shown as well."""
    try:
        suite, runs = _plan(name, {})
    except UserError:  # a folder, or a suite whose file is not at hand
        return
    root = suite.folder / "runs"
    there = {file.parent.relative_to(root).as_posix() for file in root.glob("*/*/*/record.json")}
    stale, others = sum(run.state == "stale" for run in runs), len(there - {run.name for run in runs})
    if stale or others:
        typer.echo(
            f"{name}: {stale} stale records (`pocketrec run {name}` renews them) and {others} of runs not in "
            f"{suite.path} (remove or move their folders in {root}) are shown among the others",
            err=True,
        )


def _params(name: str) -> list[Path]:
    """Return the files that a suite, its datasets and its methods are written in, where the suite's is at hand."""
    from pocketrec import paths
    from pocketrec.suite import spec

    try:
        suite = spec.load(name)
    except UserError:
        return []
    datasets = [paths.PARAMS / "datasets" / f"{dataset}.yaml" for dataset in suite.options]
    methods = [paths.PARAMS / "methods" / f"{method}.yaml" for method in suite.knobs]
    return [suite.path, *(file for file in (*datasets, *methods) if file.exists())]


def _title(name: str) -> str | None:
    """Return what a suite asks, where its file is at hand."""
    from pocketrec.files import read_yaml
    from pocketrec.suite import spec

    if "/" in name and Path(name).is_dir():
        return None
    try:
        return read_yaml(spec.find(name)).get("title")
    except UserError:
        return None


def _results(name: str) -> Path:
    """Folder of results of a suite given by name or file, or a folder or bundle as it is."""
    from pocketrec import paths
    from pocketrec.suite import spec

    path = Path(name)
    if path.suffix == ".zip" or (path.is_dir() and "/" in name):
        return path
    if "/" in name and path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{name}: no such folder")
    return paths.RESULTS / spec.find(name).stem


if __name__ == "__main__":
    sys.exit(app())
