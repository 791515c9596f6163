"""Means over seeds and what they say."""

import numpy as np
import pandas as pd
from scipy import stats

from pocketrec.report.columns import CELL, FAILURES, METRICS, STATUSES, times

CHANCE = 0.5  # AUC of a model that knows nothing
KEEPS = 0.95  # the share of the full table's gain that counts as kept in a finding


def half_width(std: pd.Series | float, n: pd.Series | int) -> pd.Series | float:
    """Return half of the 95 % t-interval of a mean: t(0.975, n − 1) · std / √n; NaN below two values."""
    count = np.asarray(n, dtype=float)
    factor = stats.t.ppf(0.975, np.where(count > 1, count - 1, np.nan)) / np.sqrt(np.maximum(count, 1))
    return std * factor


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row a dataset, method, variant and requested ratio, over its seeds.

    `n` finished runs, `n_failed`, `n_infeasible`, `status` (`done` when any is) with its `reason`; for every
    metric `<name>` the mean and `<name>_n` the values it rests on, and `<name>_ci`, half of the 95 %
    t-interval, where seeds vary the metric and two of them are there.
    """
    done = results[results["status"] == "done"].groupby(CELL)
    table = _counts(results)
    columns = {}
    for name, metric in METRICS.items():
        values = done[name]
        columns[name] = values.mean().astype("float64")
        columns[f"{name}_n"] = values.count()
        if metric.interval:
            columns[f"{name}_ci"] = half_width(values.std().astype("float64"), values.count())
    table = table.join(pd.DataFrame(columns))
    counts = [f"{name}_n" for name in METRICS]
    table[counts] = table[counts].fillna(0).astype("int64")
    return table.reset_index().sort_values(["dataset", "ratio_requested", "method", "variant"], ignore_index=True)


def _counts(results: pd.DataFrame) -> pd.DataFrame:
    """Return how the runs of each cell ended, and the status that stands for them."""
    status = results["status"]
    flags = results[CELL].assign(
        n=status == "done", n_failed=status.isin(FAILURES), n_infeasible=status == "infeasible"
    )
    worst = results.assign(rank=status.map({name: rank for rank, name in enumerate(STATUSES)})).sort_values("rank")
    first = worst.drop_duplicates(CELL).set_index(CELL)[["status", "reason"]]
    return flags.groupby(CELL, dropna=False).sum().join(first)


def finding(results: pd.DataFrame) -> str:
    """Say in one sentence what one dataset's runs show about AUC against compression."""
    cells = _whole_cells(results, ["auc"])
    if cells.empty:
        return "no run has finished"
    small, full = cells[cells["method"] != "full"], cells[cells["method"] == "full"]
    if small.empty:
        return f"the full table reaches AUC {full['auc'].max():.4f}"
    if full.empty:
        row = _best_by_ratio(small).iloc[-1]
        return f"{label(row)} reaches AUC {row['auc']:.4f} at {times(row['ratio_requested'])}"
    row, share = best_compromise(small, full)
    at = f"{label(row)} at {times(row['ratio_requested'])}"
    return (
        f"{at} reaches the full table's AUC" if share >= 1 else f"{at} keeps {share:.1%} of the full table's AUC gain"
    )


def size_finding(results: pd.DataFrame) -> str:
    """Say in one sentence what the same compromise as in `finding` costs in bytes."""
    cells = _whole_cells(results, ["auc", "inference_bytes"])
    small, full = cells[cells["method"] != "full"], cells[cells["method"] == "full"]
    if small.empty or full.empty:
        return finding(results)
    row, share = best_compromise(small, full)
    sizes = (row["inference_bytes"], full["inference_bytes"].max())
    kept, whole = (METRICS["inference_bytes"].text(size) for size in sizes)
    return f"{label(row)} keeps {share:.1%} of the AUC gain in {kept} of {whole} MB"


def _whole_cells(results: pd.DataFrame, needed: list[str]) -> pd.DataFrame:
    """Return the cells to draw conclusions from: those with a failed seed only where there are no others.

    A mean over the seeds that survived is not to be set beside one over all of them.
    """
    cells = summary(results).dropna(subset=needed)
    whole = cells[cells["n_failed"] == 0]
    return cells if whole.empty else whole


def best_compromise(small: pd.DataFrame, full: pd.DataFrame) -> tuple[pd.Series, float]:
    """Return the most compressed cell that keeps 95 % of the AUC gain, else the best at the lowest ratio.

    The gain is AUC − 0.5. The second value is the share that the cell keeps.
    """
    best = _best_by_ratio(small)
    kept = (best["auc"] - CHANCE) / (full["auc"].max() - CHANCE)
    row = best[kept >= KEEPS].iloc[-1] if (kept >= KEEPS).any() else best.iloc[0]
    return row, kept[row.name]


def _best_by_ratio(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.loc[cells.groupby("ratio_requested")["auc"].idxmax()].sort_values("ratio_requested")


def label(row: pd.Series) -> str:
    """Name a configuration apart from its ratio: the method, with its variant where it has one."""
    return f"{row['method']}, {row['variant']}" if row["variant"] else row["method"]


def verdict(results: pd.DataFrame) -> str:
    """Count how runs ended: `36 of 40 done, 3 infeasible, 1 failed (oom)`."""
    count = results["status"].value_counts()
    failed = count.reindex(FAILURES).dropna().astype(int)
    parts = [f"{count.get('done', 0)} of {len(results)} runs done"]
    parts += [f"{count['infeasible']} infeasible"] if "infeasible" in count else []
    parts += [f"{number} {name}" for name, number in failed.items()]
    return ", ".join(parts)
