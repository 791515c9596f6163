"""Two sets of results side by side."""

from pathlib import Path

import numpy as np
import pandas as pd

from pocketrec.report.columns import CELL, METRICS
from pocketrec.report.results import cells_of_runs, flat, load_results, read_records
from pocketrec.report.statistics import LEVEL, by_seed, corrected, same_mean

HARDWARE = ("cpu", "cores", "memory_gb", "gpu")
VERSIONS = ("os", "driver", "python", "torch", "numpy", "triton")
CODE = ("commit", "dirty")
MACHINE = ("cpu", "cores", "gpu")  # what must be the same for times to compare
UNKNOWN = "not recorded"

SCORES = ("auc", "log_loss", "auc_tail", "inference_bytes")
TIMES = ("latency_p50_ms", "latency_p99_ms", "inference_samples_per_s", "train_samples_per_s")
# a change must be as large as this factor to be worth a line: scores move by 1e-4 from seed to seed
FACTORS = {name: 1.001 for name in SCORES} | {name: 1.1 for name in TIMES}


def compare(a: str | Path, b: str | Path, metric: str = "auc", factor: float | None = None) -> pd.DataFrame:
    """Return one row a configuration of either set: what `metric` was in `a`, is in `b`, and if that says much.

    The test over seeds is paired where two seeds are in both sets, else Welch's where each has two; `p` is
    corrected for the number of comparisons (Benjamini and Hochberg). `flag` is `better` or `worse` where the
    corrected p is below 0.05 and the larger value at least `factor` times the smaller one (by default 1.001 for
    scores, 1.1 for times), `same` for equal numbers, `missing` where only `a` has a finished run, `new` where only
    `b` has, `untested` where seeds are too few but the change is as large as the factor, `unclear` otherwise.
    Configurations are matched by dataset, method, variant and ratio: `surroundings` says which other parameters differ.
    """
    return _compared(load_results(a), load_results(b), metric, factor or FACTORS.get(metric, 1.001))


def _compared(a: pd.DataFrame, b: pd.DataFrame, metric: str, factor: float) -> pd.DataFrame:
    sides = [by_seed(results, metric) for results in (a, b)]
    keys = sorted(sides[0].keys() | sides[1].keys())
    rows = [_row(sides[0].get(key), sides[1].get(key)) for key in keys]
    names = ["a", "b", "difference", "p", "test", "flag"]
    table = pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(keys, names=CELL), columns=names)
    table = table.astype({name: "float64" for name in names[:4]}).assign(p=lambda frame: corrected(frame["p"]))
    both = table["flag"] == "unclear"
    large = _factor(table["a"], table["b"]) >= factor
    gained = (table["difference"] > 0) == (METRICS[metric].better == "higher")
    table.loc[both & large & table["p"].isna(), "flag"] = "untested"
    clear = both & large & (table["p"] < LEVEL)
    table.loc[clear & gained, "flag"] = "better"
    table.loc[clear & ~gained, "flag"] = "worse"
    return table.reset_index()


def changes(a: str | Path, b: str | Path) -> pd.DataFrame:
    """Return the rows of `compare` over all metrics that are better, worse, or large without a test.

    Times are left out where the hardware of the two sets differs, or is not known.
    """
    names = (*SCORES, *(TIMES if same_hardware(a, b) else ()))
    sides = load_results(a), load_results(b)
    tables = [_compared(*sides, name, FACTORS[name]).assign(metric=METRICS[name].axis) for name in names]
    found = pd.concat(tables, ignore_index=True)
    found = found[found["flag"].isin(["better", "worse", "untested"])]
    return found[[*CELL, "metric", "a", "b", "difference", "p", "flag"]].reset_index(drop=True)


def surroundings(a: str | Path, b: str | Path) -> pd.DataFrame:
    """Return parameters that differ, then hardware, versions and code of both sets, a row each, and if they agree.

    Parameters are those of configurations that both sets have; `data` is the digest of a dataset.
    """
    sides = [_environments(path) for path in (a, b)]
    groups = {"hardware": HARDWARE, "versions": VERSIONS, "code": CODE}
    rows = [
        {"what": group, "name": name, "a": sides[0][name], "b": sides[1][name]}
        for group, names in groups.items()
        for name in names
        if {side[name] for side in sides} != {UNKNOWN}
    ]
    table = pd.DataFrame([*_parameters(a, b), *rows], columns=["what", "name", "a", "b"])
    same = (table["a"] == table["b"]).map({True: "yes", False: "no"})
    return table.assign(same=same).sort_values("same", kind="stable", ignore_index=True)


def text(a: str | Path, b: str | Path) -> str:
    """Write a comparison for a terminal: surroundings that differ, changes, then what only one set has."""
    around, cells = surroundings(a, b), compare(a, b)
    differ = around[around["same"] == "no"].drop(columns="same")
    lone = cells[cells["flag"].isin(["missing", "new"])][[*CELL, "flag"]]
    counts = ", ".join(f"{number} {flag}" for flag, number in cells["flag"].value_counts().items())
    parts = [
        _section("Surroundings that differ", differ, "the same parameters, hardware, versions and code"),
        *(() if same_hardware(a, b) else ("Times are not compared: the hardware differs or is not known.",)),
        _section("Changes that are large enough and pass a test over seeds", changes(a, b), "none"),
        _section("Finished in one set only", lone, "none"),
        f"AUC of all configurations: {counts or 'none'}",
    ]
    return "\n\n".join(parts)


def _parameters(a: str | Path, b: str | Path) -> list[dict[str, str]]:
    """Return the parameters that differ between runs of the same configuration and seed, one row a parameter."""
    sides = [_settings(path) for path in (a, b)]
    found: dict[str, tuple[set[str], set[str]]] = {}
    for run in sides[0].keys() & sides[1].keys():
        one, other = sides[0][run], sides[1][run]
        for name in one.keys() | other.keys():
            values = one.get(name, UNKNOWN), other.get(name, UNKNOWN)
            if values[0] != values[1]:
                for known, value in zip(found.setdefault(name, (set(), set())), values, strict=True):
                    known.add(value)
    return [
        {"what": "parameters", "name": name, "a": "; ".join(sorted(one)), "b": "; ".join(sorted(other))}
        for name, (one, other) in sorted(found.items())
    ]


def _settings(path: str | Path) -> dict[tuple, dict[str, str]]:
    """Return the parameters of each training run, and the digest of its data, by configuration and seed."""
    found = read_records(Path(path))
    cells = cells_of_runs(found)
    settings = {}
    for record in found:
        if record.get("kind", "quality") == "quality" and record["run"] in cells:
            told = {name: str(value) for name, value in flat(record.get("parameters", {}))}
            told["data"] = record.get("data", {}).get("digest", UNKNOWN)[:12]
            settings[*cells[record["run"]], record.get("seed")] = told
    return settings


def _section(title: str, table: pd.DataFrame, nothing: str) -> str:
    return f"{title}: {nothing}" if table.empty else f"{title}\n{table.to_string(index=False, na_rep='–')}"


def same_hardware(a: str | Path, b: str | Path) -> bool:
    """Tell whether both sets name the same machine; a set of several machines equals no other."""
    table = surroundings(a, b)
    machine = table[table["name"].isin(MACHINE)]
    single = ~machine[["a", "b"]].apply(lambda side: side.str.contains("; ", regex=False)).any(axis=None)
    return bool(len(machine) and single and (machine["same"] == "yes").all())


def _environments(path: str | Path) -> dict[str, str]:
    """Return what the records of a set say of their surroundings; several values are listed."""
    found = [record.get("environment", {}) for record in read_records(Path(path))]
    values = {name: sorted({str(one[name]) for one in found if name in one}) for name in (*HARDWARE, *VERSIONS, *CODE)}
    return {name: "; ".join(said) or UNKNOWN for name, said in values.items()}


def _row(a: pd.Series | None, b: pd.Series | None) -> dict[str, object]:
    if a is None or b is None:
        row = {"a": None if a is None else a.mean(), "b": None if b is None else b.mean()}
        return row | {"difference": None, "p": None, "test": "", "flag": "new" if a is None else "missing"}
    p, test = same_mean(a, b)
    row = {"a": a.mean(), "b": b.mean(), "difference": b.mean() - a.mean(), "p": p, "test": test}
    return row | {"flag": "same" if a.sort_index().equals(b.sort_index()) else "unclear"}


def _factor(a: pd.Series, b: pd.Series) -> pd.Series:
    """Return how many times the larger of two values is the smaller one."""
    return np.maximum(a, b) / np.minimum(a, b)
