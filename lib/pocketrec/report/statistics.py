"""Means over seeds and what they say."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from pocketrec.report.columns import CELL, FAILURES, METRICS, STATUSES, times

CHANCE = 0.5  # AUC of a model that knows nothing
KEEPS = 0.95  # the share of the full table's gain that counts as kept in a finding
NEAR = 1.01  # sizes and times closer than that are equal
LEVEL = 0.05  # of a test, after the correction for how many there are


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


def same_mean(a: pd.Series, b: pd.Series) -> tuple[float, str]:
    """Return the p-value of equal means of two cells, indexed by seed, and the test that gave it.

    It is paired where two seeds are in both, else Welch's where each has two; NaN and "" where seeds or
    spread are missing.
    """
    both = a.index.intersection(b.index)
    if len(both) >= 2:
        differences = b[both] - a[both]
        return (stats.ttest_1samp(differences, 0).pvalue, "paired") if differences.nunique() > 1 else (np.nan, "")
    if min(len(a), len(b)) >= 2 and max(a.nunique(), b.nunique()) > 1:
        return stats.ttest_ind(a, b, equal_var=False).pvalue, "Welch"
    return np.nan, ""


def corrected(p: pd.Series) -> pd.Series:
    """Correct p-values for their number (Benjamini and Hochberg); missing ones stay missing and do not count."""
    known = p.dropna().astype("float64")
    return pd.Series(stats.false_discovery_control(known), known.index).reindex(p.index)


def differences(results: pd.DataFrame, to: Literal["full", "best"] = "full", metric: str = "auc") -> pd.DataFrame:
    """Return one row a compressed cell: by how much it differs from the full table, or from the best of its ratio.

    `difference` is a mean over the seeds that both cells have, `difference_ci` half of its 95 % interval,
    `p` that of `same_mean`, corrected within the dataset. The best cell itself is no row. `reference` names
    the other cell.
    """
    seeds = by_seed(results, metric)
    references = _references(summary(results).dropna(subset=metric), to, metric)
    rows = []
    for cell, other in references.items():
        gap = (seeds[cell] - seeds[other]).dropna()
        p, test = same_mean(seeds[other], seeds[cell])
        mean = gap.mean() if len(gap) else seeds[cell].mean() - seeds[other].mean()
        found = {"reference": _name(other), "difference": mean, "difference_ci": half_width(gap.std(), len(gap))}
        rows.append(dict(zip(CELL, cell, strict=True)) | found | {"seeds": len(gap), "p": p, "test": test})
    table = pd.DataFrame(rows, columns=[*CELL, "reference", "difference", "difference_ci", "seeds", "p", "test"])
    return table.assign(p=table.groupby("dataset")["p"].transform(corrected).astype("float64"))


def by_seed(results: pd.DataFrame, metric: str) -> dict[tuple, pd.Series]:
    """Return, for each cell, the metric of its finished runs by seed."""
    done = results[results["status"] == "done"].dropna(subset=metric)
    return {cell: rows.drop_duplicates("seed").set_index("seed")[metric] for cell, rows in done.groupby(CELL)}


def _references(cells: pd.DataFrame, to: str, metric: str) -> dict[tuple, tuple]:
    """Return the cell that each compressed one is compared with, where there is one other than itself.

    That is the full table, of the same variant if it has several, or the best of the same dataset and ratio.
    """
    small, full = cells[cells["method"] != "full"], cells[cells["method"] == "full"]
    if to == "full":
        rivals, shared = full, ["dataset", "variant"] if full["variant"].nunique() > 1 else ["dataset"]
    else:
        rivals, shared = small, ["dataset", "ratio_requested"]
    best = rivals.sort_values(metric, ascending=METRICS[metric].better == "lower").drop_duplicates(shared)
    pairs = small[CELL].merge(best[CELL], on=shared, suffixes=("", "_"))
    others = [f"{name}_" if f"{name}_" in pairs else name for name in CELL]
    found = zip(
        pairs[CELL].itertuples(index=False, name=None), pairs[others].itertuples(index=False, name=None), strict=True
    )
    return {cell: other for cell, other in found if cell != other}


def _name(cell: tuple) -> str:
    _, method, variant, ratio = cell
    return f"{label({'method': method, 'variant': variant})} {times(ratio)}"


def tied_with_best(results: pd.DataFrame, metric: str = "auc") -> pd.Series:
    """Tell, for each compressed cell, whether it is the best of its dataset and ratio or tied with it.

    Tied: the test over seeds does not tell the two apart. NA where there are too few seeds for any test. The
    index is that of `CELL`.
    """
    rivals = differences(results, "best", metric).set_index(CELL)["p"]
    cells = pd.MultiIndex.from_tuples([c for c in by_seed(results, metric) if c[1] != "full"], names=CELL)
    tied = pd.Series(True, cells, dtype="boolean", name="tied")
    tied[rivals.index] = rivals.ge(LEVEL).astype("boolean").mask(rivals.isna())
    return tied


def with_loss(cells: pd.DataFrame) -> pd.DataFrame:
    """Add `auc_loss` to a `summary`: against the full table with the same seeds, or against a dataset's best cell.

    The second, which has no interval, only where the full table has not finished.
    """
    full = (cells["method"] == "full") & cells["auc"].notna()
    known = cells["dataset"].isin(cells.loc[full, "dataset"])
    to_best = cells.groupby("dataset")["auc"].transform("max") - cells["auc"]
    loss = (-cells["auc_delta"]).where(known, to_best).mask(full, 0.0)
    return cells.assign(auc_loss=loss, auc_loss_ci=cells["auc_delta_ci"].where(known & ~full))


def front(cells: pd.DataFrame, x: str) -> pd.Series:
    """Tell which cells of `with_loss` no other of the dataset beats: in AUC at the same `x`, or in `x` at the same AUC.

    Values of `x` within 1 % count as equal. A cell that lacks either is not on the front.
    """
    ahead = pd.Series(False, cells.index)
    for _, rows in cells.dropna(subset=["auc_loss", x]).groupby("dataset"):
        loss, cost = rows["auc_loss"].to_numpy(), rows[x].to_numpy(dtype=float)
        gain = loss - loss[:, None]
        beats = (cost[:, None] <= NEAR * cost) & ((gain > 0) | ((gain == 0) & (cost[:, None] < cost)))
        ahead[rows.index] = ~beats.any(axis=0)
    return ahead


def highest_ratio(results: pd.DataFrame, loss: float = 0.005) -> pd.DataFrame:
    """Return for each dataset and method the most compressed cell whose mean AUC is within `loss` of the full table's.

    `sure` tells whether the whole 95 % interval is. A method that has no such cell has a row without a ratio;
    cells with a failed seed do not count.
    """
    cells = summary(results)
    cells = cells[(cells["method"] != "full") & (cells["n_failed"] == 0)]
    cells = cells.assign(auc_loss=-cells["auc_delta"], auc_loss_ci=cells["auc_delta_ci"])
    within = cells[cells["auc_loss"] <= loss].sort_values("ratio_achieved").drop_duplicates(CELL[:3], keep="last")
    shown = ["ratio_requested", "ratio_achieved", "inference_bytes", "auc", "auc_loss", "auc_loss_ci"]
    table = cells[CELL[:3]].drop_duplicates().merge(within[[*CELL[:3], *shown]], how="left", on=CELL[:3])
    table["sure"] = table["auc_loss"] + table["auc_loss_ci"] <= loss
    return table.sort_values(["dataset", "ratio_achieved"], ascending=[True, False], ignore_index=True)


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


def label(row: Mapping[str, Any] | pd.Series) -> str:
    """Name a configuration apart from its ratio: the method, with its variant where it has one."""
    return f"{row['method']}, {row['variant']}" if row["variant"] else row["method"]


def verdict(results: pd.DataFrame) -> str:
    """Count how runs ended: `36 of 40 done, 3 infeasible, 1 failed (oom)`."""
    if results.empty:
        return "no training run has ended yet"
    count = results["status"].value_counts()
    failed = count.reindex(FAILURES).dropna().astype(int)
    parts = [f"{count.get('done', 0)} of {len(results)} runs done"]
    parts += [f"{count['infeasible']} infeasible"] if "infeasible" in count else []
    parts += [f"{number} {name}" for name, number in failed.items()]
    return ", ".join(parts)


def on_same_rows(measured: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the tests of `pocketrec.same_rows`, a row a cell: of the mean over seeds, or of the only seed.

    Columns: dataset, method, variant, ratio_requested; difference of the AUC to the reference's, low, high (95 %, over
    other test rows), p, positives, negatives.
    """
    columns = [*CELL, "difference", "low", "high", "p", "positives", "negatives"]
    tested = measured.get("same_rows", pd.DataFrame(columns=["seed", *columns])).dropna(subset="difference")
    tested = tested.sort_values("seed", na_position="first").drop_duplicates(CELL).sort_values(CELL)
    return tested[columns].reset_index(drop=True)
