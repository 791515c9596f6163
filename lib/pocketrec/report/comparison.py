"""Two sets of results side by side."""

from pathlib import Path

import pandas as pd
from scipy import stats

from pocketrec.report.columns import CELL, METRICS
from pocketrec.report.results import load_results

LEVEL = 0.05


def compare(a: str | Path, b: str | Path, metric: str = "auc") -> pd.DataFrame:
    """Return one row a configuration of either set: what `metric` was in `a`, is in `b`, and if that says much.

    The test over seeds is paired where two seeds are in both sets, else Welch's where each has two; `p` is
    corrected for the number of comparisons (Benjamini and Hochberg). `flag` is `better` or `worse` where the
    corrected p is below 0.05, `same` for equal numbers, `unclear` otherwise, `missing` where only `a` has a
    finished run, `new` where only `b` has. Equal configurations mean equal parameters, not equal machines.
    """
    sides = [_seeds(load_results(path), metric) for path in (a, b)]
    keys = sides[0].index.union(sides[1].index)
    rows = [_row(sides[0].get(key), sides[1].get(key)) for key in keys]
    table = pd.DataFrame(rows, index=keys.set_names(CELL)).astype({"p": "float64"})
    tested = table["p"].notna()
    table.loc[tested, "p"] = stats.false_discovery_control(table.loc[tested, "p"])
    higher = METRICS[metric].better == "higher"
    clear = table["flag"].eq("unclear") & (table["p"] < LEVEL)
    gained = (table["difference"] > 0) == higher
    table.loc[clear & gained, "flag"] = "better"
    table.loc[clear & ~gained, "flag"] = "worse"
    return table.reset_index()


def _seeds(results: pd.DataFrame, metric: str) -> pd.Series:
    """Return, for each configuration, the metric of its finished runs by seed."""
    done = results[results["status"] == "done"].dropna(subset=metric)
    return pd.Series({key: rows.set_index("seed")[metric] for key, rows in done.groupby(CELL)}, dtype=object)


def _row(a: pd.Series | None, b: pd.Series | None) -> dict[str, object]:
    if a is None or b is None:
        row = {"a": None if a is None else a.mean(), "b": None if b is None else b.mean()}
        return row | {"difference": None, "p": None, "test": "", "flag": "new" if a is None else "missing"}
    p, test = _test(a, b)
    row = {"a": a.mean(), "b": b.mean(), "difference": b.mean() - a.mean(), "p": p, "test": test}
    return row | {"flag": "same" if a.sort_index().equals(b.sort_index()) else "unclear"}


def _test(a: pd.Series, b: pd.Series) -> tuple[float | None, str]:
    """Return the p-value of equal means and the test it comes from; none where seeds or spread are missing."""
    both = a.index.intersection(b.index)
    if len(both) >= 2:
        differences = b[both] - a[both]
        return (stats.ttest_1samp(differences, 0).pvalue, "paired") if differences.nunique() > 1 else (None, "")
    if min(len(a), len(b)) >= 2 and max(a.nunique(), b.nunique()) > 1:
        return stats.ttest_ind(a, b, equal_var=False).pvalue, "Welch"
    return None, ""
