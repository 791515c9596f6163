"""Means over seeds and what they say."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from pocketrec.report.columns import CELL, FAILURES, METRICS, OFF, STATUSES, TIE, natural, seeds_of, signed, size, times
from pocketrec.report.results import is_baseline, is_full, score

CHANCE = 0.5  # AUC of a model that knows nothing
KEEPS = 0.95  # the share of the full table's gain that counts as kept in a finding
NEAR = 1.01  # sizes closer than that are equal
ENOUGH = 3  # seeds, for an interval that is worth drawing
PAST = 0.01  # a table whose last validation AUC is further below its highest has been trained too long
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
    order = ["dataset", "ratio_requested", "method", "variant"]
    return table.reset_index().sort_values(
        order, ignore_index=True, key=lambda column: column.map(natural) if column.name == "variant" else column
    )


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
    spread are missing. Cells that are equal seed by seed, as those of two names for one model, differ by nothing: 1.
    """
    both = a.index.intersection(b.index)
    if len(both) >= 2:
        differences = b[both] - a[both]
        if (differences == 0).all():
            return 1.0, "paired"
        return (stats.ttest_1samp(differences, 0).pvalue, "paired") if differences.nunique() > 1 else (np.nan, "")
    if min(len(a), len(b)) >= 2 and max(a.nunique(), b.nunique()) > 1:
        return stats.ttest_ind(a, b, equal_var=False).pvalue, "Welch"
    return np.nan, ""


def corrected(p: pd.Series) -> pd.Series:
    """Correct p-values for their number (Benjamini and Hochberg); missing ones stay missing and do not count."""
    known = p.dropna().astype("float64")
    return pd.Series(stats.false_discovery_control(known), known.index).reindex(p.index)


def differences(results: pd.DataFrame, to: Literal["full", "best"] = "full") -> pd.DataFrame:
    """Return one row a cell: by how much its AUC differs from the baseline's, or from that of the best of its ratio.

    The baseline is that of `is_baseline`; the best is chosen by validation AUC, and a full table in codes, whose
    size is its own, has no rivals. `difference` is a mean over the seeds that both cells have, `difference_ci` half of
    its 95 % interval, `p` that of `same_mean`, corrected within the dataset. The reference itself is no row.
    `reference` names the other cell.
    """
    seeds = by_seed(results, "auc")
    references = _references(summary(results).dropna(subset="auc"), to)
    rows = []
    for cell, other in references.items():
        gap = (seeds[cell] - seeds[other]).dropna()
        p, test = same_mean(seeds[other], seeds[cell])
        mean = gap.mean() if len(gap) else seeds[cell].mean() - seeds[other].mean()
        found = {"reference": _name(other), "difference": mean, "difference_ci": half_width(gap.std(), len(gap))}
        rows.append(dict(zip(CELL, cell, strict=True)) | found | {"seeds": len(gap), "p": p, "test": test})
    table = pd.DataFrame(rows, columns=[*CELL, "reference", "difference", "difference_ci", "seeds", "p", "test"])
    table = table.assign(p=table.groupby("dataset")["p"].transform(corrected))
    return table.astype(dict.fromkeys(("ratio_requested", "difference", "difference_ci", "p"), "float64"))


def by_seed(results: pd.DataFrame, metric: str) -> dict[tuple, pd.Series]:
    """Return, for each cell, the metric of its finished runs by seed."""
    done = results[results["status"] == "done"].dropna(subset=metric)
    return {cell: rows.drop_duplicates("seed").set_index("seed")[metric] for cell, rows in done.groupby(CELL)}


def _references(cells: pd.DataFrame, to: str) -> dict[tuple, tuple]:
    """Return the cell that each one is compared with, where there is one other than itself."""
    if to == "full":
        shared, best = ["dataset"], cells[is_baseline(cells)]
    else:
        shared, cells = ["dataset", "ratio_requested"], cells[cells["method"] != "full"]
        best = cells.assign(score=score(cells)).sort_values("score", ascending=False).drop_duplicates(shared)
    pairs = cells[CELL].merge(best[CELL], on=shared, suffixes=("", "_"))
    others = [f"{name}_" if f"{name}_" in pairs else name for name in CELL]
    found = zip(
        pairs[CELL].itertuples(index=False, name=None), pairs[others].itertuples(index=False, name=None), strict=True
    )
    return {cell: other for cell, other in found if cell != other}


def _name(cell: tuple) -> str:
    _, method, variant, ratio = cell
    return f"{label({'method': method, 'variant': variant})} {times(ratio)}"


def tied_with_best(results: pd.DataFrame) -> pd.Series:
    """Tell, for each cell of a method, whether it is the best of its dataset and ratio or not distinguishable from it.

    That is: the test over seeds does not find it worse than the one that validation chose, which proves no equality.
    NA where there are too few seeds for any test. The index is that of `CELL`.
    """
    rivals = differences(results, "best").set_index(CELL)
    found = pd.DataFrame([c for c in by_seed(results, "auc") if c[1] != "full"], columns=CELL)
    cells = pd.MultiIndex.from_frame(found.astype({"ratio_requested": "float64"}))
    tied = pd.Series(True, cells, dtype="boolean", name="tied")
    tied[rivals.index] = not_worse(rivals["difference"], rivals["p"])
    return tied


def not_worse(difference: pd.Series, p: pd.Series) -> pd.Series:
    """Tell which differences no test finds below zero; NA where there was no test."""
    return (p.ge(LEVEL) | (difference > 0)).astype("boolean").mask(p.isna())


def with_loss(cells: pd.DataFrame) -> pd.DataFrame:
    """Add `auc_loss` to a `summary`, and `reference`, the name of what it is against: the dataset's one baseline.

    The loss is a mean over the seeds that both have, with half of its 95 % interval in `auc_loss_ci`; where they share
    none, that of the means, without an interval. Where no baseline has finished, `reference` is "", and the loss that
    to the dataset's highest AUC.
    """
    baseline = cells[is_baseline(cells)].set_index("dataset")
    known = cells["dataset"].isin(baseline.index)
    zero = cells["dataset"].map(baseline["auc"].to_dict()).astype("float64")
    zero = zero.fillna(cells.groupby("dataset")["auc"].transform("max"))
    names = {dataset: label(row) for dataset, row in baseline.iterrows()}
    return cells.assign(
        auc_loss=(-cells["auc_delta"]).where(known).fillna(zero - cells["auc"]),
        auc_loss_ci=cells["auc_delta_ci"].where(known),
        reference=pd.Series([names.get(dataset, "") for dataset in cells["dataset"]], cells.index, dtype="str"),
    )


def front(cells: pd.DataFrame, x: str) -> pd.Series:
    """Tell which cells of `with_loss` no other of the dataset beats: in AUC at the same `x`, or in `x` at the same AUC.

    Sizes within 1 % count as equal, and times, each taken once, within 10 %. A cell that lacks either is not on the
    front.
    """
    near = TIE if x.startswith("latency") else NEAR
    ahead = pd.Series(False, cells.index)
    for _, rows in cells.dropna(subset=["auc_loss", x]).groupby("dataset"):
        loss, cost = rows["auc_loss"].to_numpy(), rows[x].to_numpy(dtype=float)
        gain = loss - loss[:, None]
        beats = (cost[:, None] <= near * cost) & ((gain > 0) | ((gain == 0) & (cost[:, None] < cost)))
        ahead[rows.index] = ~beats.any(axis=0)
    return ahead


def highest_ratio(results: pd.DataFrame, loss: float = 0.005) -> pd.DataFrame:
    """Return for each dataset and method the most compressed cell whose mean AUC is within `loss` of the baseline's.

    `sure` tells whether the whole 95 % interval is; `reference` names the baseline, "" where none has finished. A
    method that has no such cell has a row without a ratio; cells with a failed seed do not count.
    """
    cells = with_loss(summary(results))
    cells = cells[~is_full(cells) & (cells["n_failed"] == 0)]
    within = cells[(cells["reference"] != "") & (cells["auc_loss"] <= loss)]
    within = within.sort_values("ratio_achieved").drop_duplicates(CELL[:3], keep="last")
    shown = ["ratio_requested", "ratio_achieved", "inference_bytes", "auc", "auc_loss", "auc_loss_ci"]
    named = [*CELL[:3], "reference"]
    table = cells[named].drop_duplicates().merge(within[[*named, *shown]], how="left", on=named)
    table["sure"] = table["auc_loss"] + table["auc_loss_ci"] <= loss
    return table.sort_values(["dataset", "ratio_achieved"], ascending=[True, False], ignore_index=True)


def finding(results: pd.DataFrame) -> str:
    """Say in one sentence what one dataset's runs show about AUC against compression.

    It is about the `compromise`; where every configuration ran in the same two variants, about what these differ by.
    """
    cells = _whole_cells(results, ["auc"])
    if cells.empty:
        return "no run has finished"
    if twins := _twins(results, cells):
        return twins
    small, full = cells[~is_full(cells)], cells[is_baseline(cells)]
    if small.empty:
        return f"the full table reaches AUC {cells['auc'].max():.4f}"
    if full.empty:
        row = _best_by_ratio(small).iloc[-1]
        return f"{label(row)} reaches AUC {row['auc']:.4f} at {times(row['ratio'])}, beside no full table"
    row, keeps = compromise(small, full)
    of = " of several seeds" if small["n"].min() == 1 < row["n"] else ""
    rule = "keeps 95 % at a higher ratio" if keeps else "keeps 95 %, it is the best at the lowest ratio"
    kept = f"{label(row)} at {times(row['ratio'])} {_kept(row, full.iloc[0])} ({seeds_of(row['n'])})"
    worn = "".join(f"; {text}" for text in overtrained(full).values())
    return f"{kept}; on validation none{of} {rule}{worn}"


def overtrained(cells: pd.DataFrame) -> dict[str, str]:
    """Say of each dataset whose full table, a row of `summary`, was trained too long how far it had come down."""
    past = cells[is_baseline(cells)].set_index("dataset").eval("peak_auc - validation_auc")
    text = "the full table was kept as it ended, {:.3f} below its best validation AUC"
    return {dataset: text.format(fall) for dataset, fall in past.items() if fall > PAST}


def size_finding(results: pd.DataFrame) -> str:
    """Say in one sentence what the same compromise as in `finding` costs in bytes."""
    cells = _whole_cells(results, ["auc", "inference_bytes"])
    small, full = cells[~is_full(cells)], cells[is_baseline(cells)]
    if small.empty or full.empty or _twins(results, cells):
        return finding(results)
    row, _ = compromise(small, full)
    kept, whole = size(row["inference_bytes"]), size(full["inference_bytes"].iloc[0])
    return f"{label(row)} {_kept(row, full.iloc[0])} in {kept} of {whole} ({seeds_of(row['n'])})"


def _whole_cells(results: pd.DataFrame, needed: list[str]) -> pd.DataFrame:
    """Return the cells to draw conclusions from: those with a failed seed only where there are no others.

    A mean over the seeds that survived is not to be set beside one over all of them.
    """
    cells = with_loss(summary(results)).dropna(subset=needed)
    whole = cells[cells["n_failed"] == 0]
    return cells if whole.empty else whole


def _twins(results: pd.DataFrame, cells: pd.DataFrame) -> str:
    """Say by how much two variants differ, where every configuration ran in both and in no other; else ""."""
    variants = sorted(cells["variant"].unique())
    if len(variants) != 2 or (cells.groupby(["method", "ratio_requested"]).size() != 2).any():
        return ""
    zero = next(iter(cells.loc[is_baseline(cells), "variant"]), variants[0])
    (other,) = set(variants) - {zero}
    seeds = by_seed(results, "auc")
    said = []
    for row in cells[cells["variant"] == other].to_dict("records"):
        cell = tuple(row[name] for name in CELL)
        gap = (seeds[cell] - seeds[cell[0], cell[1], zero, cell[3]]).dropna()
        said.append(f"{signed(gap.mean(), half_width(gap.std(), len(gap)))} ({_name((*cell[:2], '', cell[3]))})")
    return f"{other} changes the AUC against {zero} by {', '.join(said)}; {seeds_of(cells['n'].iloc[0])}"


def compromise(small: pd.DataFrame, full: pd.DataFrame) -> tuple[pd.Series, bool]:
    """Return the most compressed cell that keeps 95 % of the full table's AUC above chance, and whether there is one.

    If none does, it is the best at the lowest ratio. Validation AUC decides; a cell of one seed is taken only where no
    cell has several.
    """
    best = _best_by_ratio(small[small["n"] >= min(2, small["n"].max())])
    keeping = best[score(best) - CHANCE >= KEEPS * (score(full).iloc[0] - CHANCE)]
    return (keeping.iloc[-1], True) if len(keeping) else (best.iloc[0], False)


def _best_by_ratio(cells: pd.DataFrame) -> pd.DataFrame:
    cells = cells.assign(ratio=true_ratio(cells))
    return cells.loc[score(cells).groupby(cells["ratio"]).idxmax()].sort_values("ratio")


def _kept(row: pd.Series, full: pd.Series) -> str:
    """Say how much of the full table's test AUC a cell keeps, with the interval."""
    name = "the full table's AUC" if label(full) == "full" else f"the AUC of {label(full)}"
    gain, half = full["auc"] - CHANCE, row["auc_loss_ci"]
    if row["auc_loss"] <= 0:
        word = "is not told apart from" if half >= -row["auc_loss"] else "reaches"  # a missing interval tells nothing
        return f"{word} {name}: {signed(-row['auc_loss'], half)}"
    share, interval = 100 * (1 - row["auc_loss"] / gain), "" if pd.isna(half) else f" ± {100 * half / gain:.1f}"
    return f"keeps {share:.1f}{interval} % of {name} above chance"


def true_ratio(cells: pd.DataFrame) -> pd.Series:
    """Return the ratio to call a cell by: the requested one, or the achieved where they differ by more than 5 %."""
    off = (cells["ratio_achieved"] / cells["ratio_requested"] - 1).abs() > OFF
    return cells["ratio_requested"].mask(off, cells["ratio_achieved"].map("{:.3g}".format).astype(float))


def ratios(cells: pd.DataFrame) -> list[str]:
    """Write the ratio of each cell, `10×`; where the achieved one differs by more than 5 %, both: `10× → 16×`."""
    pairs = zip(cells["ratio_requested"], true_ratio(cells), strict=True)
    return [times(asked) if asked == true else f"{times(asked)} → {times(true)}" for asked, true in pairs]


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
    return tested[columns].reset_index(drop=True).astype({"positives": "Int64", "negatives": "Int64"})
