"""Which method for so many megabytes and milliseconds? An answer from the records of any suites at hand.

A set is one dataset in one suite: scores of the same dataset in two suites come from different models, rows or
parameters, and are never set beside each other. Bytes are those of the embedding as it is served; the time is the
99th percentile of a request of the smallest batch that was timed.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pocketrec.errors import UserError
from pocketrec.report.columns import CELL, FAILURES, METRICS, size, times
from pocketrec.report.plots import (
    INK,
    MUTED,
    house_style,
    label_points,
    log_axis,
    look,
    loss_axis,
    panels,
    put_title,
    sentence,
)
from pocketrec.report.results import is_baseline, load_results, score
from pocketrec.report.statistics import (
    by_seed,
    corrected,
    front,
    label,
    not_worse,
    ratios,
    same_mean,
    summary,
    tied_with_best,
    true_ratio,
    with_loss,
)

SIZE, TIME = "inference_bytes", "latency_p99_ms"


def gather(folders: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Return the runs of several suites' folders as `load_results` does, `dataset` naming the set: `planted, quick`.

    A folder without records is left out; `UserError` when none has any. A single folder may stand for itself.
    """
    found = {}
    for folder in _folders(folders):
        if any(folder.rglob("record.json")) or (folder / "results.parquet").exists():
            place = folder.resolve()
            found[f"{place.parent.name}/{place.name}" if place.name in found else place.name] = load_results(folder)
    if not found:
        raise UserError("results: none of the folders holds a record; run a suite first, as with `make run`")
    return pd.concat([runs.assign(dataset=runs["dataset"] + f", {suite}") for suite, runs in found.items()])


def _folders(folders: str | Path | Iterable[str | Path]) -> list[Path]:
    return [Path(folder) for folder in ([folders] if isinstance(folders, str | Path) else folders)]


def at_equal_bytes(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row a set and ratio: who has the highest validation AUC within those bytes, and what the test rows say.

    The best, its size and its AUC, those not distinguishable from it by the test over seeds, how many are worse, those
    whose seeds are too few for a test, and the methods that have no instance as small. A method that stays more than
    5 % below the bytes has the ratio it achieves behind its name.
    """
    cells = summary(runs).assign(score=score)
    full = cells[is_baseline(cells)].set_index("dataset")["auc"]
    cells = cells[cells["method"] != "full"].merge(tied_with_best(runs).reset_index(), "left", CELL)
    rows = []
    for (dataset, ratio), group in cells.groupby(["dataset", "ratio_requested"]):
        done = group[group["auc"].notna()].sort_values("score", ascending=False)
        if done.empty:
            continue
        best, others = done.iloc[0], done.iloc[1:]
        tied, unknown = others["tied"].fillna(False).astype(bool), others["tied"].isna()
        about = {"set": dataset, "ratio": times(ratio), "size": size(best[SIZE])}
        about |= {"full table": METRICS["auc"].text(full.get(dataset)), "best": _names(done.head(1))}
        about |= {"AUC": METRICS["auc"].text(best["auc"], best["auc_ci"])}
        about |= {"not distinguishable from it": _names(others[tied])}
        about |= {"worse": int((~tied & ~unknown).sum()), "too few seeds to tell": _names(others[unknown])}
        rows.append(about | {"no instance as small": _names(group[group["status"] == "infeasible"])})
    return pd.DataFrame(rows)


def _names(cells: pd.DataFrame) -> str:
    """Name cells of one requested ratio, with the achieved one where that is another."""
    off = true_ratio(cells).where(true_ratio(cells) != cells["ratio_requested"])
    marks = ["" if pd.isna(ratio) else f" ({times(ratio)})" for ratio in off]
    return ", ".join(label(row) + mark for row, mark in zip(cells.to_dict("records"), marks, strict=True))


def shortlist(runs: pd.DataFrame, megabytes: float, milliseconds: float) -> pd.DataFrame:
    """Return every method's best cell that fits, by set: the one with the highest validation AUC.

    A cell fits that takes no more bytes and, where it was timed, no more time. Beside the columns of `summary`: `rank`
    by validation AUC in the set, those that the test rows do not tell from the first sharing theirs; `of`, the methods
    that fit; `tied` (NA where seeds are too few for a test), `p` of the difference to the first, corrected within the
    set.
    """
    cells = summary(runs).assign(score=score)
    fits = (cells[SIZE] <= megabytes * 1e6) & ~(cells[TIME] > milliseconds) & cells["auc"].notna()
    chosen = cells[fits & (cells["n_failed"] == 0)].sort_values(["dataset", "score"], ascending=[True, False])
    chosen = chosen.drop_duplicates(["dataset", "method"])
    seeds = by_seed(runs, "auc")
    tables = [_ranked(rows, seeds) for _, rows in chosen.groupby("dataset")]
    return pd.concat(tables, ignore_index=True) if tables else chosen.assign(p=0.0, tied=True, rank=0.0, of=0)


def _ranked(rows: pd.DataFrame, seeds: dict[tuple, pd.Series]) -> pd.DataFrame:
    """Rank the cells of one set, the best first, by the test over seeds against it."""
    names = list(rows[CELL].itertuples(index=False, name=None))
    p = corrected(pd.Series([same_mean(seeds[names[0]], seeds[name])[0] for name in names[1:]], rows.index[1:]))
    rows = rows.assign(p=p.reindex(rows.index))
    tied = not_worse(rows["auc"] - rows["auc"].iloc[0], rows["p"])
    tied.iloc[0] = True
    place = pd.Series(range(1, len(rows) + 1), rows.index, dtype=float)
    rank = place.mask(tied.fillna(False).astype(bool), place[tied.fillna(False).astype(bool)].mean())
    return rows.assign(tied=tied, rank=rank, of=len(rows))


def shown(listed: pd.DataFrame) -> pd.DataFrame:
    """Lay a shortlist out for people."""
    texts = {METRICS[name].axis: listed[name].map(METRICS[name].text) for name in (SIZE, TIME)}
    auc = [METRICS["auc"].text(*pair) for pair in zip(listed["auc"], listed["auc_ci"], strict=True)]
    names = listed.apply(label, axis=1) if len(listed) else []
    table = pd.DataFrame({"set": listed["dataset"], "method": names, "ratio": ratios(listed)})
    table = table.assign(**texts, AUC=auc, rank=listed["rank"].map("{:g}".format))
    told = listed["tied"].map({True: "not distinguishable", False: "worse"}).fillna("too few seeds")
    told = told.mask(~listed["dataset"].duplicated(), "the first")
    return table.assign(**{"beside the first": told}).replace({METRICS[TIME].axis: {"–": "not timed"}})


def overall(runs: pd.DataFrame, listed: pd.DataFrame) -> pd.DataFrame:
    """Return a row a method, the best first: on how many datasets it ran, fits, is first or not distinguishable.

    A dataset counts once, in the suite that ran most methods on it. `rank` is the mean over the datasets where the
    method fits of (rank - 1) / (methods - 1): 0 is always first, 1 always last.
    """
    sets = widest(runs)
    listed, ran = listed[listed["dataset"].isin(sets)], runs[runs["dataset"].isin(sets)]
    listed = listed.assign(
        tied=listed["tied"].fillna(False).astype(bool), rank=(listed["rank"] - 1) / (listed["of"] - 1).clip(lower=1)
    )
    columns = {"fits": ("dataset", "nunique"), "first_or_tied": ("tied", "sum"), "rank": ("rank", "mean")}
    table = (
        listed.groupby("method")
        .agg(**columns)
        .join(ran.groupby("method")["dataset"].nunique().rename("ran"), how="outer")
    )
    table = table.fillna({"fits": 0, "first_or_tied": 0}).assign(datasets=len(sets))
    table = table.astype({"fits": int, "first_or_tied": int, "ran": int})
    table = table.sort_values(["first_or_tied", "rank"], ascending=[False, True]).reset_index()
    return table[["method", "datasets", "ran", "fits", "first_or_tied", "rank"]].round({"rank": 2})


def widest(runs: pd.DataFrame) -> list[str]:
    """Return for each dataset the set of the suite that ran most methods on it."""
    methods = runs.groupby("dataset")["method"].nunique().sort_values(ascending=False, kind="stable")
    return list(methods.index[~methods.index.str.rsplit(", ", n=1).str[0].duplicated()])


def recommendation(runs: pd.DataFrame, megabytes: float, milliseconds: float) -> str:
    """Say in a sentence a set, and one over all, what to take for so many megabytes and milliseconds."""
    listed = shortlist(runs, megabytes, milliseconds)
    sets = sorted(runs["dataset"].unique())
    lines = [_sentence_of(name, listed[listed["dataset"] == name]) for name in sets]
    return "\n".join([*lines, _over_all(overall(runs, listed)) if len(listed) else "Over all: nothing fits."])


def _sentence_of(name: str, listed: pd.DataFrame) -> str:
    if listed.empty:
        return f"{name}: nothing that ran fits; allow more bytes or time, or run higher ratios."
    best = listed.iloc[0]
    time = "not timed" if pd.isna(best[TIME]) else f"{METRICS[TIME].text(best[TIME])} ms"
    auc = METRICS["auc"].text(best["auc"], best["auc_ci"])
    ratio = times(true_ratio(listed).iloc[0])
    text = f"{name}: take {label(best)} at {ratio}, first on validation (test AUC {auc}, {size(best[SIZE])}, {time})"
    others = listed.iloc[1:]
    tied = others[others["tied"].fillna(False).astype(bool)]
    text += f"; not distinguishable from it: {', '.join(tied['method'])}" if len(tied) else ""
    unknown = others["tied"].isna()
    return text + (f"; too few seeds to test {unknown.sum()} others" if unknown.any() else "") + "."


def _over_all(table: pd.DataFrame) -> str:
    """Name the method that is most often first or not distinguishable from it, by mean rank where several are."""
    first = table.iloc[0]
    same = table[(table["first_or_tied"] == first["first_or_tied"]) & (table["rank"] == first["rank"])]
    gap = f", and did not run on {first['datasets'] - first['ran']}" if first["ran"] < first["datasets"] else ""
    return (
        f"Over all: {' or '.join(same['method'])}, first or not distinguishable from it on {first['first_or_tied']} of "
        f"{first['datasets']} datasets{gap}; where it fits, its mean rank is {first['rank']:.2f} "
        "(0: always first, 1: always last)."
    )


def lacking(runs: pd.DataFrame, folders: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Return what the answer does not rest on: what is missing, in which set, and the remedy."""
    rows = [
        {"set": str(folder), "missing": "any record", "remedy": f"pocketrec run {folder.name}"}
        for folder in _folders(folders)
        if not any(folder.rglob("record.json")) and not (folder / "results.parquet").exists()
    ]
    every = set(runs["method"])
    for name, found in runs.groupby("dataset"):
        suite = name.rpartition(", ")[2]
        cells, run = summary(found), f"pocketrec run {suite}"
        cells = cells[cells["n"] > 0]
        untimed, failed = int(cells[TIME].isna().sum()), found[found["status"].isin(FAILURES)]
        absent, single = sorted(every - set(found["method"])), int((cells["n"] < 2).sum())
        gaps = [
            (absent, f"methods: {', '.join(absent)}", f"name them in params/suites/{suite}.yaml, and {run}"),
            (untimed, f"times of {untimed} of {len(cells)} cells", f"`timed: latency` in the suite, and {run}"),
            (single, f"a second seed of {single} of {len(cells)} cells", f"more seeds in the suite, and {run}"),
            (len(failed), f"{len(failed)} runs that failed", f"pocketrec retry {suite}"),
        ]
        rows += [{"set": name, "missing": what, "remedy": remedy} for there, what, remedy in gaps if there]
    return pd.DataFrame(rows, columns=["set", "missing", "remedy"])


@house_style
def trade_off(runs: pd.DataFrame, x: str = SIZE, limit: float | None = None) -> Figure:
    """AUC loss against real bytes, or against p99 latency, a panel a set, with the front and the limit.

    Solid: on the front. Ringed: not distinguishable from the best of its ratio by the test over seeds. Faded: beaten.
    """
    cells = with_loss(summary(runs)).dropna(subset=["auc_loss", x])
    if cells.empty:
        return sentence(f"No {METRICS[x].label} to show: give the suite `timed: latency`, and run it.")
    cells = cells.merge(tied_with_best(runs).reset_index(), "left", CELL)
    tied = cells["tied"].fillna(False).astype(bool) | is_baseline(cells)
    cells = cells.assign(x=cells[x] * METRICS[x].scale, ahead=front(cells, x), tied=tied)
    cells = cells.assign(label=cells.apply(label, axis=1)).sort_values("x")
    figure, axes = panels(cells["dataset"].nunique(), 5.6, 4.2)
    for ax, (name, rows) in zip(axes, cells.groupby("dataset"), strict=True):
        ax.set(xscale="log", xlabel=METRICS[x].axis, ylabel=loss_axis(rows))
        _points(ax, rows, limit)
        ahead = ", ".join(rows.loc[rows["ahead"], "label"].unique())
        put_title(ax, f"{name}: the front for {'size' if x == SIZE else 'time, taken once,'} is {ahead}", 54)
    marks = {method: look(method) for method in sorted(cells["method"].unique())}
    lines = [Line2D([], [], ls="", color=hue, marker=mark, label=name) for name, (hue, mark) in marks.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=6, frameon=False)
    return figure


def _points(ax: Axes, rows: pd.DataFrame, limit: float | None) -> None:
    for row in rows.sort_values("ahead", kind="stable").to_dict("records"):
        hue, marker = look(row["method"])
        if row["ahead"]:
            half = 0 if pd.isna(row["auc_loss_ci"]) else row["auc_loss_ci"]
            ax.errorbar(row["x"], row["auc_loss"], half, color=hue, marker=marker, markersize=7, mew=0)
        else:
            face, strength = ("none", 0.8) if row["tied"] else (hue, 0.2)
            ax.plot(row["x"], row["auc_loss"], marker, color=hue, mfc=face, markersize=7, alpha=strength)
    ax.axhline(0, color=MUTED, linewidth=1)
    ahead = rows[rows["ahead"]]
    ax.step(ahead["x"], ahead["auc_loss"], where="post", color=MUTED, linewidth=1, zorder=1)
    log_axis(ax, rows["x"] if limit is None else pd.Series([*rows["x"], limit]), "{:,.3g}".format)
    if limit is not None:
        ax.axvline(limit, color=INK, linewidth=1, linestyle="--")
    ax.margins(y=0.12)
    label_points(ax, ahead)
