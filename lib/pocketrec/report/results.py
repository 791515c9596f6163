"""From `record.json` files to one tidy table."""

import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from pocketrec.errors import UserError
from pocketrec.files import atomic, spelled
from pocketrec.report.columns import CELL, DTYPES, METRICS, OFF, STATUSES

SCHEMA = 1
_AXES = {"method", "dataset", "ratio", "seed", "run_dir", "checkpoint_minutes"}  # or without effect


def load_results(path: str | Path) -> pd.DataFrame:
    """Return one row a quality run of a suite's folder, a bundle, a run's folder or a results.parquet.

    The records count where there are any, else `results.parquet`. What a run did not reach is missing
    (NaN or NA). Latency comes from the timed run of the same configuration: at its smallest batch
    (`latency_batch`), and samples per second at its largest (`inference_batch`). `auc_delta` is the AUC minus
    that of the dataset's baseline (`is_baseline`) with the same seed. `searched` names what a search chose for the
    run, as `table_lr=0.1`. A record that cannot be read is a row with status `failed` and the reason.
    """
    path = Path(path)
    found = read_records(path)
    if found:
        return tidy(found)
    parquet = path if path.suffix == ".parquet" else path / "results.parquet"
    if not parquet.is_file():
        raise UserError(f"{path}: no record.json below it and no results.parquet; `pocketrec run` makes them")
    return pd.read_parquet(parquet).reindex(columns=list(DTYPES)).astype(DTYPES)


def collect(suite_dir: str | Path) -> Path:
    """Write `results.parquet` of a suite's folder, whole or not at all, and return its path."""
    results = load_results(suite_dir)
    path = Path(suite_dir) / "results.parquet"
    with atomic(path) as file:
        results.to_parquet(file, index=False)
    return path


def is_full(rows: pd.DataFrame) -> pd.Series:
    """Tell which rows, of runs or of a `summary`, are of a full table; one that is served in codes is compressed."""
    return (rows["method"] == "full") & ~(rows["ratio_achieved"] > 1 + OFF)


def score(rows: pd.DataFrame) -> pd.Series:
    """Return what a choice between rows rests on: their validation AUC; the test's only where that is missing."""
    return rows["validation_auc"].fillna(rows["auc"])


def is_baseline(rows: pd.DataFrame) -> pd.Series:
    """Tell which rows are of their dataset's baseline: of its full tables in float32 the one with the best `score`.

    There is one a dataset, whatever variants ran, so that all losses of a dataset have the same zero.
    """
    full = is_full(rows) & ~rows["variant"].str.contains("bf16") & rows["auc"].notna()
    means = score(rows[full]).groupby([rows.loc[full, name] for name in CELL]).mean()
    best = means.sort_values().groupby("dataset").tail(1).index
    return full & pd.MultiIndex.from_frame(rows[CELL]).isin(best)


def load_curves(path: str | Path) -> pd.DataFrame:
    """Return one row a point of a learning curve: identity and best reachable AUC, step, samples, seconds, scores."""
    return curves(read_records(Path(path)))


def curves(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Return what `load_curves` does, from records already read."""
    rows = [
        identity | {"bayes_auc": _dig(record, "metrics.bayes.auc")} | dict(zip(record["curve"], values, strict=True))
        for record, identity in _quality(found)
        if record.get("curve")
        for values in zip_longest(*record["curve"].values())
    ]
    return pd.DataFrame(rows)


def load_speed(path: str | Path) -> pd.DataFrame:
    """Return one row a part and batch size of each timed run: p50_ms, p95_ms, p99_ms, samples_per_s."""
    return speed(read_records(Path(path)))


def load_searches(path: str | Path) -> pd.DataFrame:
    """Return one row a value that a search has tried for a configuration.

    Columns: dataset, method, variant, ratio_requested; parameter, value (numbers, or text as soon as one is none),
    validation_auc; chosen, and `end`: `lowest` or `highest` where the chosen number is the least or the greatest of
    several, so that a better one may lie beyond.
    """
    return searches(read_records(Path(path)))


def searches(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Return what `load_searches` does, from records already read."""
    rows = [
        {name: identity[name] for name in CELL}
        | {"parameter": search["parameter"], "value": value, "validation_auc": auc}
        | {"chosen": value == spelled(search["chosen"])}
        for record, identity in _quality(found)
        for search in [record.get("search", {})]
        if "chosen" in search
        for value, auc in search.get("validation_auc", {}).items()
    ]
    columns = [*CELL, "parameter", "value", "validation_auc", "chosen"]
    tried = pd.DataFrame(rows, columns=columns).astype({"chosen": "bool"})
    tried = tried.drop_duplicates([*CELL, "value"], ignore_index=True)
    numbers = pd.to_numeric(tried["value"], errors="coerce")
    if numbers.isna().any():
        return tried.assign(end="")
    tried["value"] = numbers.astype(float)
    values = tried.groupby(CELL)["value"]
    ends = {"lowest": values.transform("min"), "highest": values.transform("max")}
    tried["end"] = ""
    for name, end in ends.items():
        tried.loc[tried["chosen"] & (tried["value"] == end) & (ends["lowest"] < ends["highest"]), "end"] = name
    return tried


def load_measured(path: str | Path) -> dict[str, pd.DataFrame]:
    """Return the tables in a suite's folder that `pocketrec measure` has made, by name; none where it has not run."""
    with unpacked(path) as folder:
        return {file.stem: pd.read_parquet(file) for file in sorted((folder / "measured").glob("*.parquet"))}


@contextmanager
def unpacked(path: str | Path) -> Iterator[Path]:
    """Give the folder of results that a bundle holds, for as long as the block lasts; a folder is given as it is."""
    path = Path(path)
    if path.suffix != ".zip":
        yield path
        return
    with TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not a bundle that can be read: {error}") from None
        found = [*Path(folder).glob("*/results.parquet")]
        if not found:
            raise UserError(f"{path}: holds no results.parquet; `pocketrec bundle` writes one that does")
        yield found[0].parent


def speed(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Return what `load_speed` does: timed samples, each with the variant of the quality run it measured."""
    variants = {record["run"]: identity["variant"] for record, identity in _quality(found)}
    rows = [
        {
            "dataset": record["dataset"],
            "method": record["method"],
            "variant": variants.get(_source(record), ""),
            "ratio_requested": float(record["ratio"]),
            "run": record["run"],
        }
        | sample
        for record in found
        if record.get("kind") == "timed" and record["status"] == "done"
        for sample in record.get("speed", [])
    ]
    return pd.DataFrame(rows)


def cells_of_runs(found: list[dict[str, Any]]) -> dict[str, tuple]:
    """Return the cell, as in `CELL`, of each quality run, and of each timed one that measured such a run."""
    cells = {record["run"]: tuple(identity[name] for name in CELL) for record, identity in _quality(found)}
    timed = {record["run"]: _source(record) for record in found if record.get("kind") == "timed"}
    return cells | {run: cells[source] for run, source in timed.items() if source in cells}


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read every record below a folder or in a bundle, timed ones included; `run` is the place it was found at."""
    with unpacked(path) as folder:
        return _below(folder)


def _below(path: Path) -> list[dict[str, Any]]:
    root = path / "runs" if (path / "runs").is_dir() else path
    files = sorted(file for file in root.rglob("record.json") if not _hidden(file.relative_to(root)))
    names = {file.relative_to(root).as_posix().partition("/runs/")[0] for file in files} if root == path else set()
    suites = sorted(root / name for name in names if (root / name / "runs").is_dir())
    if len(suites) > 1:
        raise UserError(f"{path}: holds suites, whose results do not mix; name one of {', '.join(map(str, suites))}")
    if suites:
        return _below(suites[0])
    found = [_read(file) for file in files]
    for record, file in zip(found, files, strict=True):
        if root.name == "runs":
            record["run"] = file.parent.relative_to(root).as_posix()
    return found


def tidy(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Turn records into the table that `load_results` describes."""
    rows = [identity | _numbers(record) for record, identity in _quality(found)]
    results = pd.DataFrame(rows).reindex(columns=list(DTYPES)).astype(DTYPES)
    return _with_delta(_with_latency(results, speed(found)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(file: Path) -> dict[str, Any]:
    """Read one record, or make one that says why it cannot be read."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
        _check(record)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        return _unreadable(file, f"record.json cannot be read: {error}")
    return record


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def _check(record: dict[str, Any]) -> None:
    """Raise where a record lacks what every table needs, or keeps something else in a number's place."""
    if record.get("schema") != SCHEMA:
        raise ValueError(f"schema {record.get('schema')!r} is not {SCHEMA}")
    if record.get("status") not in STATUSES:
        raise ValueError(f"unknown status {record.get('status')!r}")
    for key, kind in (("run", str), ("method", str), ("dataset", str), ("ratio", (int, float))):
        if not isinstance(record.get(key), kind):
            raise ValueError(f"{key} is missing or no {getattr(kind, '__name__', 'number')}")
    for name, value in _numbers(record).items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"{name} is not a number")


def _unreadable(file: Path, reason: str) -> dict[str, Any]:
    """Return a failed record that knows only what its folder `method/dataset/r100-s0` says."""
    method, dataset, cell = ("?", "?", "?", *file.parent.parts)[-3:]
    ratio, seed = re.search(r"\br([\d.]+)", cell), re.search(r"\bs(\d+)", cell)
    record = {"run": f"{method}/{dataset}/{cell}", "method": method, "dataset": dataset}
    record |= {"kind": "timed" if "latency" in cell else "quality", "status": "failed", "reason": reason}
    if ratio:
        record["ratio"] = float(ratio[1])
    if seed:
        record["seed"] = int(seed[1])
    return record


def _dig(record: dict[str, Any], path: str) -> Any:
    """Follow `metrics.test.auc` into nested sections; None where one is absent."""
    value: Any = record
    for key in path.split("."):
        value = value.get(key) if value is not None else None
    return value


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    numbers = {metric.name: _dig(record, metric.path) for metric in METRICS.values() if metric.path}
    scores = (_dig(record, "curve") or {}).get("validation_auc", [])
    return numbers | {"peak_auc": max((auc for auc in scores if auc is not None), default=None)}


def _quality(found: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each quality record with the columns that say which run it is."""
    quality = [record for record in found if record.get("kind", "quality") == "quality"]
    variants = _variants(quality)
    return [(record, _identity(record) | {"variant": variants[record["run"]]}) for record in quality]


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    columns = {name: record.get(name) for name in ("method", "dataset", "seed", "key", "run", "started")}
    search = record.get("search") or {}
    chose = "chosen" in search and search.get("validation_auc")  # else the first was taken, for none had a score
    return columns | {
        "ratio_requested": record.get("ratio"),
        "searched": f"{search['parameter']}={spelled(search['chosen'])}" if chose else "",
        "status": record["status"],
        "reason": record.get("reason", ""),
    }


def _variants(quality: list[dict[str, Any]]) -> dict[str, str]:
    """Name, for each run, the parameters that tell it from others of its method, dataset and ratio.

    Without it, runs that differ in a further axis (`epochs=2`) would be averaged as if they were seeds.
    """
    settings = pd.DataFrame(
        {"run": record["run"], "method": record["method"], "dataset": record["dataset"]}
        | {"ratio": record.get("ratio"), "name": name, "value": str(value)}
        for record in quality
        for name, value in flat(record.get("parameters", {}))
        if name != record.get("search", {}).get("parameter", "").rpartition(".")[2]  # chosen for each cell, not an axis
    )
    names = {record["run"]: "" for record in quality}
    if settings.empty:
        return names
    values = settings.groupby(["method", "dataset", "ratio", "name"])["value"].transform("nunique")
    axes = settings.loc[values > 1, ["method", "dataset", "name"]].drop_duplicates()
    told = settings.merge(axes)
    told["text"] = told["name"] + "=" + told["value"]
    told = told[told["text"] != "quantize=none"]
    return names | told.groupby("run")["text"].agg(", ".join).to_dict()


def flat(parameters: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the parameters that are no axis of their own, those inside `knobs` one by one."""
    for name, value in sorted(parameters.items()):
        if isinstance(value, dict):
            yield from flat(value)
        elif name not in _AXES:
            yield name, value


def _source(record: dict[str, Any]) -> str:
    """Return the quality run that a timed run measured: its sibling, named by the parameter `source`."""
    folder = record["run"].rpartition("/")[0]
    return f"{folder}/{Path(record.get('parameters', {}).get('source', '')).name}"


def _with_latency(results: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Give every finished run of a configuration the times of its timed sibling."""
    if samples.empty:
        return results
    model = samples[samples["part"] == "model"].sort_values("batch")
    small = model.drop_duplicates(CELL, keep="first").set_index(CELL)
    large = model.drop_duplicates(CELL, keep="last").set_index(CELL)
    times = small[["p50_ms", "p95_ms", "p99_ms", "batch"]].add_prefix("latency_")
    times[["inference_samples_per_s", "inference_batch"]] = large[["samples_per_s", "batch"]]
    joined = results[[*CELL, "status"]].join(times, on=CELL)
    joined.loc[joined["status"] != "done", times.columns] = float("nan")
    return results.assign(**joined[times.columns].astype({name: DTYPES[name] for name in times}))


def _with_delta(results: pd.DataFrame) -> pd.DataFrame:
    """Add the AUC's difference to the baseline of the same dataset and seed."""
    baseline = is_baseline(results)
    pair = ["dataset", "seed"]
    reference = results[baseline].drop_duplicates(pair).set_index(pair)["auc"].rename("full_auc")
    delta = results["auc"] - results.join(reference, on=pair)["full_auc"]
    return results.assign(auc_delta=delta.mask(baseline))
