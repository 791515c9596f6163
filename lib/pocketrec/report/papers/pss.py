"""PSS at 10,000x: iterations to the same quality, the cost of a step, the time of both, and what a projection loses.

Everything comes from the records of a suite and from what `pocketrec measure` left beside them. What is missing is said
to be missing. Times on GPUs come from `pocketrec.cost_model` and are predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation
from pandas.io.formats.style import Styler

from pocketrec import cost_model
from pocketrec.files import read_yaml
from pocketrec.paths import PARAMS
from pocketrec.report.claims import UNDECIDED, UNTESTED, Verdict, by_interval
from pocketrec.report.columns import CELL, probability, seeds_of, signed, times
from pocketrec.report.plots import (
    ALARM,
    CEILING,
    FULL,
    GRID,
    INK,
    MUTED,
    End,
    colour,
    house_style,
    label_right,
    panels,
    put_title,
    sentence,
)
from pocketrec.report.results import curves, load_measured, read_records, tidy
from pocketrec.report.statistics import differences, half_width, on_same_rows, overtrained, summary

METHOD, RATIO = "pss", 10_000
CRITEO, BASELINE = "pss_criteo_tb", "full_criteo_tb"  # suites: the claim's own data, and the full table to hold it to
NO_LOSS = 0.001  # of AUC
SLOPE, SLOPE_OFF = -0.5, 0.02  # of the logarithm of the error over that of the memory
ITERATIONS, LATENCY, AUC = 4.5, 4.3, 0.8025  # as published
SOURCE = "Desai & Shrivastava, NeurIPS 2022, abstract"
MOMENTS = (1 / 6, 1 / ITERATIONS, 1 / 3, 1 / 2, 2 / 3, 9 / 10)  # of the full table's way to its best score
TERABYTE = "criteo-tb-40m"
BAND_SEEDS = 3  # that a band in a picture takes
WORKERS = (1, 2, 4, 8, 16, 32, 64)
BATCHES = (2048, 8192, 32_768, 131_072)


@dataclass
class Evidence:
    """A suite's name, runs, curves (with `epoch`, passes over the training rows so far) and measurements."""

    suite: str
    runs: pd.DataFrame
    curves: pd.DataFrame
    measured: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """The command that trains."""
        return f"make run SUITE={self.suite}"

    @property
    def measure(self) -> str:
        """The command that measures."""
        return f"make measure SUITE={self.suite}"

    @property
    def more_seeds(self) -> tuple[str, str]:
        """What a decision needs where intervals are too wide, and how to get it."""
        return "more seeds", f"more seeds in params/suites/{self.suite}.yaml, then make all SUITE={self.suite}"

    @property
    def ratio(self) -> float:
        """The ratio that stands for the published 10,000: the lowest that is as high and has finished."""
        done = self.runs[(self.runs["method"] == METHOD) & (self.runs["status"] == "done")]
        return done.loc[done["ratio_achieved"] >= RATIO, "ratio_requested"].min() if len(done) else np.nan

    @property
    def datasets(self) -> list[str]:
        """Datasets with a learning curve, those read in a single pass first."""
        if self.curves.empty:
            return []
        return list(self.curves.groupby("dataset")["epoch"].max().sort_values(kind="stable").index)

    @property
    def streams(self) -> list[str]:
        """Datasets of which no row was read twice."""
        return [name for name in self.datasets if self.of(name)["epoch"].max() <= 1]

    def of(self, dataset: str) -> pd.DataFrame:
        """Return the curves of one dataset."""
        return self.curves[self.curves["dataset"] == dataset]


def load(results: str | Path) -> Evidence:
    """Read a suite's folder; the parts that are not there are empty.

    A suite without a full table is held against that of `full_criteo_tb` in the folder beside it, if there is one.
    """
    folder = Path(results).resolve()
    records = read_records(folder)
    if not any(record["method"] == "full" for record in records):
        own = {record["dataset"] for record in records}
        records += [record for record in read_records(folder.parent / BASELINE) if record["dataset"] in own]
    found = curves(records)
    if "validation_auc" not in found:
        found = pd.DataFrame()
    else:
        found = found.dropna(subset="validation_auc")
        rows = {record["run"]: _rows(record) for record in records}
        found = found.assign(epoch=found["samples"] / found["run"].map(rows))
        found = found[found["status"] == "done"]
    return Evidence(folder.name, tidy(records), found, load_measured(folder))


def _rows(record: dict[str, Any]) -> float:
    """Return how many rows a run reads in a pass."""
    parameters = record.get("parameters", {})
    rows = record.get("data", {}).get("rows", {}).get("train", np.inf)
    rows = min(rows, parameters.get("train_rows") or np.inf)
    seen = max(record.get("curve", {}).get("samples", [0]))
    return rows if np.isfinite(rows) else seen / parameters.get("epochs", 1)


def missing(evidence: Evidence) -> pd.DataFrame:
    """Return what the conclusions lack, and the command that makes it: what, reason, command."""
    rows = []
    if not len(evidence.runs):
        rows.append(("training runs", "none has ended", evidence.run))
    unfinished = evidence.runs[~evidence.runs["status"].isin(["done", "infeasible"])]
    retry = f"make retry SUITE={evidence.suite}"
    rows += [(row.run, f"{row.status}: {row.reason}", retry) for row in unfinished.itertuples()]
    names = [name for name in ("latency", "parallel", "projection") if _lacks(evidence, name)]
    rows += [(name, "not measured", evidence.measure) for name in names]
    table = pd.DataFrame(rows, columns=["what", "reason", "command"])
    skipped = evidence.measured.get("skipped", table.iloc[:0])
    return pd.concat([table, skipped], ignore_index=True)


def _shown(table: pd.DataFrame) -> Styler:
    """Lay a table out as the report's others: no index, nothing cut off."""
    wrapped = {"text-align": "left", "vertical-align": "top", "white-space": "normal"}
    return table.style.hide(axis="index").set_properties(**wrapped)


def _lacks(evidence: Evidence, name: str) -> bool:
    return name not in evidence.measured or evidence.measured[name].empty


# how it works


@house_style
def drawing(rows: int = 5, dim: int = 4, size: int = 6) -> Figure:
    """Draw a small table whose elements are all elements of one array, in its colours, by chance."""
    place = np.random.default_rng(3).integers(0, size, (rows, dim))
    sign = np.random.default_rng(1).choice(["+", "−"], (rows, dim))
    hues = sns.color_palette("Set2", size)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 2.7), width_ratios=[dim, size], layout="constrained")
    for (x, i), slot in np.ndenumerate(place):
        _cell(left, i, x, hues[slot], f"{sign[x, i]}M[{slot}]")
    for slot, hue in enumerate(hues):
        _cell(right, slot, (rows - 1) / 2, hue, f"M[{slot}]")
    _bare(left, dim, rows, f"A table: {rows * dim} numbers, none stored")
    _bare(right, size, rows, f"The array M: {size} numbers, all that is stored")
    left.set_yticks(range(rows), [f"id {x}" for x in range(rows)])
    return figure


def _cell(ax: Axes, x: float, y: float, hue: Any, text: str) -> None:
    ax.add_patch(plt.Rectangle((x - 0.48, y - 0.44), 0.96, 0.88, facecolor=hue, edgecolor="none"))
    ax.text(x, y, text, ha="center", va="center", fontsize=8.5, color=INK)


def _bare(ax: Axes, wide: int, tall: int, title: str) -> None:
    ax.set(xlim=(-0.6, wide - 0.4), ylim=(tall - 0.4, -0.6))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(False)
    put_title(ax, title, 60)


# iterations to the same quality


def reached(evidence: Evidence) -> pd.DataFrame:
    """Return how many samples each run needs to be as good as the full table of its seed is after some.

    That is at its first scoring, and at shares of the samples up to the best score of the full table's mean curve. One
    row a compressed run and target; between two scorings a curve is taken as straight. Columns: dataset, method,
    variant, ratio_requested, seed, moment (the share), full (samples of the full table), target (its validation AUC
    there), mean_target (over the seeds), samples (missing where not reached), first (there by the first scoring),
    within (samples of the run).
    """
    rows = []
    for dataset in evidence.datasets:
        points = evidence.of(dataset).sort_values("samples")
        full = {seed: curve for seed, curve in points[points["method"] == "full"].groupby("seed")}
        for (run, seed), curve in points[points["method"] != "full"].groupby(["run", "seed"]):
            if seed not in full:
                continue
            about = {name: curve[name].iloc[0] for name in ("dataset", "method", "variant", "ratio_requested")}
            for moment, samples, mean_target in _moments(points[points["method"] == "full"]):
                target = float(np.interp(samples, full[seed]["samples"], full[seed]["validation_auc"]))
                needed, first = _crossing(curve, target)
                rows.append(
                    about
                    | {"run": run, "seed": seed, "moment": moment, "full": samples, "target": target}
                    | {"mean_target": mean_target}
                    | {"samples": needed, "first": first, "within": curve["samples"].max()}
                )
    return pd.DataFrame(rows)


def _moments(full: pd.DataFrame) -> list[tuple[float, float, float]]:
    """Return shares of the way to the best of the mean curve, from the first scoring on; samples and AUC there."""
    mean = full.groupby("samples")["validation_auc"].mean()
    first, best = mean.index[0], mean.idxmax()
    later = [moment for moment in MOMENTS if moment * best > 1.01 * first]
    shares = [(moment, moment * best) for moment in (first / best, *later)]
    return [(moment, samples, float(np.interp(samples, mean.index, mean))) for moment, samples in shares]


def _crossing(curve: pd.DataFrame, target: float) -> tuple[float, bool]:
    """Return the samples at which a curve first reaches a target, NaN if never, and whether it was there at once."""
    auc, samples = curve["validation_auc"].to_numpy(), curve["samples"].to_numpy(dtype=float)
    there = np.flatnonzero(auc >= target)
    if not len(there):
        return np.nan, False
    after = there[0]
    if after == 0:
        return samples[0], True
    before = after - 1
    share = (target - auc[before]) / (auc[after] - auc[before])
    return samples[before] + share * (samples[after] - samples[before]), False


def iterations(evidence: Evidence) -> pd.DataFrame:
    """Return how many times the full table's samples each compressed cell needs, over the seeds of both.

    The mean is geometric, of ratios paired by seed, with its 95 % t-interval (`low`, `high`); it is missing unless all
    seeds got there, and `more_than` then says what they exceed, for the stream ended. `at_most`: reached by the first
    scoring, so the ratio may be smaller. Columns beside: dataset, method, variant, ratio_requested, moment, target
    (mean over the full table's seeds), seeds, reached (seeds that got there), within.
    """
    found = reached(evidence)
    if found.empty:
        return found
    cell = ["dataset", "method", "variant", "ratio_requested", "moment"]
    rows = [dict(zip(cell, key, strict=True)) | _paired(part) for key, part in found.groupby(cell)]
    return pd.DataFrame(rows)


def _paired(part: pd.DataFrame) -> dict[str, Any]:
    logs = np.log(part["samples"] / part["full"])
    all_there = bool(logs.notna().all())
    mean, half = logs.mean(), half_width(logs.std(), len(logs))
    return {
        "target": part["mean_target"].iloc[0],
        "times": np.exp(mean) if all_there else np.nan,
        "low": np.exp(mean - half) if all_there else np.nan,
        "high": np.exp(mean + half) if all_there else np.nan,
        "more_than": np.nan if all_there else (part["within"] / part["full"]).min(),
        "at_most": bool(part["first"].any()),
        "seeds": len(part),
        "reached": int(part["samples"].notna().sum()),
        "within": part["within"].max(),
    }


def iteration_table(evidence: Evidence, dataset: str) -> Styler:
    """Lay `iterations` out for people: a row a target, a column a ratio."""
    table = iterations(evidence)
    if table.empty or dataset not in set(table["dataset"]):
        return _shown(pd.DataFrame({"missing": [f"no pair of learning curves on {dataset}: {evidence.run}"]}))
    table = table[table["dataset"] == dataset].assign(text=lambda t: [_times_text(row) for row in t.to_dict("records")])
    table["AUC"] = table["target"].map("{:.4f}".format)
    table["full at"] = table["moment"].map("{:.0%} of its way".format)
    table["cell"] = [f"{_cell_name(row)} ({seeds_of(row['seeds'])})" for row in table.to_dict("records")]
    order = table.sort_values("ratio_requested")["cell"].unique()
    shown = table.pivot_table(index=["moment", "AUC", "full at"], columns="cell", values="text", aggfunc="first")
    return _shown(shown.reindex(columns=order).droplevel("moment").fillna("–").rename_axis(columns=None).reset_index())


def _cell_name(row: dict[str, Any]) -> str:
    name = f"{row['method']} {times(row['ratio_requested'])}"
    return f"{name}, {row['variant']}" if row["variant"] else name


def _times_text(row: dict[str, Any]) -> str:
    if pd.isna(row["times"]):
        within = EngFormatter(sep=" ", places=1)(row["within"])
        there = f"{row['reached']} of {seeds_of(row['seeds'])}"
        return f"above {row['more_than']:.2g}×: not reached within {within} samples ({there})"
    interval = "" if pd.isna(row["low"]) else f" ({row['low']:.2f} to {row['high']:.2f})"
    return f"{'at most ' if row['at_most'] else ''}{row['times']:.2f}×{interval}"


@house_style
def learning(evidence: Evidence) -> Figure:
    """Validation AUC by samples, a panel a dataset; darker is smaller. Bands: 95 % intervals, from three seeds on."""
    if not evidence.datasets:
        return sentence(f"No learning curve to show: {evidence.run}.")
    figure, axes = panels(len(evidence.datasets), 5.8, 4.1)
    for ax, dataset in zip(axes, evidence.datasets, strict=True):
        _learning_panel(ax, evidence.of(dataset))
        put_title(ax, f"{dataset}: {_learning_finding(evidence, dataset)}", 56)
    return figure


def _learning_panel(ax: Axes, points: pd.DataFrame) -> None:
    hues, ends = _hues(points), []
    for cell, part in points.groupby(["method", "variant", "ratio_requested"]):
        stats = part.groupby("samples")["validation_auc"].agg(["mean", "std", "count"])
        half = half_width(stats["std"], stats["count"])
        ax.plot(stats.index, stats["mean"], color=hues[cell], linewidth=1.8, marker="o", markersize=3)
        half = half.where(stats["count"] >= BAND_SEEDS)
        ax.fill_between(
            stats.index, stats["mean"] - half, stats["mean"] + half, color=hues[cell], alpha=0.2, linewidth=0
        )
        row = dict(zip(("method", "variant", "ratio_requested"), cell, strict=True))
        name = "full" if cell[0] == "full" else _cell_name(row)
        ends.append(End(stats["mean"].iloc[-1], name, hues[cell]))
    if points["bayes_auc"].notna().any():
        ax.axhline(points["bayes_auc"].mean(), color=INK, linewidth=1.2, linestyle=CEILING)
        ends.append(End(points["bayes_auc"].mean(), "best reachable", INK))
    epochs = points["epoch"].max()
    if epochs > 1:
        for epoch in range(1, int(np.ceil(epochs))):
            ax.axvline(points["samples"].max() * epoch / epochs, color=GRID, linewidth=1, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    passes = f", {epochs:.2g} passes" if epochs > 1 else ", none read twice"
    ax.set(xlabel=f"Training samples{passes}", ylabel="Validation AUC (mean, 95 % band)")
    label_right(ax, ends)


def _hues(points: pd.DataFrame) -> dict[tuple, Any]:
    """Return a colour a cell: grey for full, a method's own for the others, darker the smaller they are."""
    hues: dict[tuple, Any] = {}
    for method, part in points.groupby("method"):
        cells = part[["method", "variant", "ratio_requested"]].drop_duplicates().sort_values("ratio_requested")
        shades = sns.light_palette(colour(method), len(cells) + 2)[2:] if method != "full" else [FULL[0]] * len(cells)
        hues |= dict(zip(cells.itertuples(index=False, name=None), shades, strict=True))
    return hues


def _learning_finding(evidence: Evidence, dataset: str) -> str:
    points = evidence.of(dataset)
    last = points[points["samples"] == points.groupby("run")["samples"].transform("max")]
    means = last.groupby(["method", "ratio_requested"])["validation_auc"].mean()
    full = points[points["method"] == "full"].groupby("samples")["validation_auc"].mean()
    small = means[means.index.get_level_values(0) == METHOD]
    if full.empty or small.empty:
        return "one of full and pss has not finished"
    ratio = small.index.get_level_values(1).max()
    gap = small[METHOD, ratio] - full.iloc[-1]
    if dataset in evidence.streams:
        return f"at the end of the stream pss {times(ratio)} lies {signed(gap)} from the full table"
    fall = full.iloc[-1] - full.max()
    kept = points[(points["method"] == METHOD) & (points["ratio_requested"] == ratio)]
    kept = kept.groupby("samples")["validation_auc"].mean()
    other = kept.iloc[-1] - kept.max()
    return f"after its best the full table changes by {signed(fall)}, pss {times(ratio)} by {signed(other)}"


def overfitting(evidence: Evidence) -> Styler:
    """Return where each cell's curve peaks and how far it falls after, over seeds; only where rows were read again."""
    rows = []
    for dataset in [name for name in evidence.datasets if name not in evidence.streams]:
        for cell, part in evidence.of(dataset).groupby(["method", "variant", "ratio_requested"]):
            runs = [curve.sort_values("samples") for _, curve in part.groupby("run")]
            best = [curve.loc[curve["validation_auc"].idxmax()] for curve in runs]
            fall = pd.Series(
                [c["validation_auc"].iloc[-1] - b["validation_auc"] for c, b in zip(runs, best, strict=True)]
            )
            loss = np.mean([c["train_loss"].iloc[-1] for c in runs]) if "train_loss" in part else np.nan
            row = dict(zip(("method", "variant", "ratio_requested"), cell, strict=True))
            half = half_width(fall.std(), len(fall))
            rows.append(
                {
                    "dataset": dataset,
                    "configuration": "full" if cell[0] == "full" else _cell_name(row),
                    "seeds": len(runs),
                }
                | {"best AUC": f"{np.mean([b['validation_auc'] for b in best]):.4f}"}
                | {"after passes": f"{np.mean([b['epoch'] for b in best]):.2g}"}
                | {"AUC from there to the end": signed(fall.mean(), half)}
                | {"last training loss": "–" if np.isnan(loss) else f"{loss:.4f}", "ratio": cell[2]}
            )
    table = pd.DataFrame(rows) if rows else pd.DataFrame({"": ["no row was read twice"]})
    return _shown(table.sort_values(["dataset", "ratio"]).drop(columns="ratio") if rows else table)


@house_style
def iteration_ratios(evidence: Evidence) -> Figure:
    """Iterations against the full table's, by the quality aimed at; a triangle where the run ended before.

    Whiskers are 95 % intervals over three seeds or more; two say next to nothing, and stand in the table. Triangles of
    one height and quality stand side by side.
    """
    table = iterations(evidence)
    if table.empty:
        return sentence(f"No pair of learning curves: {evidence.run}.")
    datasets = [name for name in evidence.datasets if name in set(table["dataset"])]
    figure, axes = panels(len(datasets), 5.8, 4.0)
    named: dict[str, Any] = {}
    for ax, dataset in zip(axes, datasets, strict=True):
        rows = table[table["dataset"] == dataset]
        named |= _ratio_panel(ax, rows, _hues(evidence.of(dataset)))
        put_title(ax, f"{dataset}: {_ratio_finding(rows)}", 56)
    handles = [Line2D([], [], color=hue, marker="o", markersize=5, label=name) for name, hue in named.items()]
    handles.append(Line2D([], [], color=MUTED, marker="^", ls="none", label="more: not reached before the end"))
    handles.append(Line2D([], [], color=FULL[0], label="full"))
    handles.append(Line2D([], [], color=INK, linestyle=CEILING, label=f"published, {ITERATIONS}×"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _ratio_panel(ax: Axes, table: pd.DataFrame, hues: dict[tuple, Any]) -> dict[str, Any]:
    """Draw a dataset's ratios; return the colour of each configuration by its name."""
    ax.axhline(1, color=FULL[0], linewidth=1.4)
    ax.axhline(ITERATIONS, color=INK, linewidth=1.2, linestyle=CEILING)
    groups, named = list(table.groupby(["ratio_requested", "method", "variant"])), {}
    for place, (_, rows) in enumerate(groups):
        about = rows.iloc[0].to_dict()
        rows, hue = rows.sort_values("target"), hues[about["method"], about["variant"], about["ratio_requested"]]
        told = rows["seeds"] >= BAND_SEEDS
        whisker = [(rows["times"] - rows["low"]).where(told), (rows["high"] - rows["times"]).where(told)]
        ax.errorbar(rows["target"], rows["times"], np.nan_to_num(whisker), color=hue, marker="o", ms=5, lw=1.6)
        never = rows[rows["times"].isna()]
        aside = ScaledTranslation((place - (len(groups) - 1) / 2) / 9, 0, ax.figure.dpi_scale_trans)
        style = {"linestyle": "none", "marker": "^", "color": hue, "markersize": 7}
        ax.plot(never["target"], never["more_than"], transform=ax.transData + aside, **style)
        named[_cell_name(about)] = hue
    ax.set(yscale="log", xlabel="Quality aimed at (validation AUC)", ylabel="Samples, times the full table's")
    heights, aims = table["times"].fillna(table["more_than"]), table["target"]
    room = 0.08 * max(aims.max() - aims.min(), 0.01)
    ax.set(xlim=(aims.min() - room, aims.max() + room))
    ax.set(ylim=(min(1, heights.min()) / 1.15, 1.15 * max(ITERATIONS, heights.max())))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    _plain_log(ax, "y", [0.25, 0.5, 1, 2, 3, 5, 10, 20])
    return named


def _plain_log(ax: Axes, axis: str, ticks: list[float]) -> None:
    which = ax.yaxis if axis == "y" else ax.xaxis
    which.set_major_locator(FixedLocator(ticks))
    which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    which.set_minor_locator(NullLocator())


def _ratio_finding(table: pd.DataFrame) -> str:
    rows = table[(table["method"] == METHOD) & (table["ratio_requested"] == table["ratio_requested"].max())]
    rows = rows.sort_values("target")
    if rows.empty:
        return "pss has not finished"
    there, never = rows[rows["times"].notna()], rows[rows["times"].isna()]
    ratio = times(rows["ratio_requested"].iloc[0])
    if there.empty:
        return f"pss {ratio} reaches none of the qualities before its end"
    low, high = f"{there['times'].min():.2g}", f"{there['times'].max():.2g}"
    span = f"{low} times the samples" if low == high else f"{low} to {high} times the samples"
    return f"pss {ratio} needs {span}" + (
        f", and does not reach {len(never)} of {len(rows)} qualities" if len(never) else ""
    )


# what a step costs here


def latency(evidence: Evidence) -> pd.DataFrame:
    """Return the median training step of each embedding, and how many times faster than with the full table it is.

    `gain` is the geometric mean over rounds, in each of which all were timed in turn, with its 95 % t-interval.
    Columns: tables, table_gb, batch, embedding, ms, gain, low, high, rounds, foreign (median cores that others used).
    """
    if _lacks(evidence, "latency"):
        return pd.DataFrame()
    rows = []
    for (tables, size, batch), part in evidence.measured["latency"].groupby(["tables", "table_bytes", "batch"]):
        wide = part.pivot_table(index="round", columns="embedding", values="ms")
        for name in wide:
            logs = np.log(wide["full"] / wide[name])
            mean, half = logs.mean(), half_width(logs.std(), len(logs))
            times_ = {"gain": np.exp(mean), "low": np.exp(mean - half), "high": np.exp(mean + half)}
            rows.append(
                {"tables": tables, "table_gb": size / 1e9, "batch": batch, "embedding": name, "ms": wide[name].median()}
                | times_
                | {"rounds": len(logs), "foreign": part["foreign"].median()}
            )
    return pd.DataFrame(rows).sort_values(["table_gb", "ms"], ignore_index=True)


def latency_table(evidence: Evidence) -> Styler:
    """Return `latency` for people."""
    table = latency(evidence)
    if table.empty:
        return _shown(pd.DataFrame({"missing": [f"no training step was timed: {evidence.measure}"]}))
    told = {
        "tables": table["tables"],
        "GB": table["table_gb"].map("{:.2g}".format),
        "batch": table["batch"].map("{:,}".format),
        "embedding": table["embedding"],
        "median (ms)": table["ms"].map("{:.3g}".format),
        "times faster than full, by round": [_gain_text(row) for row in table.to_dict("records")],
        "rounds": table["rounds"],
        "cores others used": table["foreign"].map("{:.2f}".format),
    }
    return _shown(pd.DataFrame(told))


def _gain_text(row: dict[str, Any]) -> str:
    if row["embedding"] == "full":
        return "–"
    interval = "" if pd.isna(row["low"]) else f" ({row['low']:.2f} to {row['high']:.2f})"
    return f"{row['gain']:.2f}×{interval}"


@house_style
def step_times(evidence: Evidence) -> Figure:
    """A training step on this machine: grey is what the MLPs take alone, a panel each model.

    Bars are medians over rounds. Gains compare steps of the same round, and need not follow from two medians.
    """
    table = latency(evidence)
    if table.empty:
        return sentence(f"No training step was timed: {evidence.measure}.")
    names = list(dict.fromkeys(table["tables"]))
    figure, axes = panels(len(names), 5.4, 2.4)
    for ax, name in zip(axes, names, strict=True):
        rows = table[table["tables"] == name].set_index("embedding")
        shown = [n for n in ("pss, element", "pss", "full") if n in rows.index]
        floor = rows["ms"].get("MLPs only", 0.0)
        hues = [FULL[0] if n == "full" else colour(METHOD) for n in shown]
        ax.barh(shown, rows.loc[shown, "ms"], color=hues, height=0.6)
        ax.barh(shown, floor, color=GRID, height=0.6)
        for place, n in enumerate(shown):
            gain = "" if n == "full" else f"; {_gain_text(rows.loc[n].to_dict() | {'embedding': n})}"
            text = f"{rows.loc[n, 'ms']:.3g} ms{gain}"
            ax.annotate(text, (rows.loc[n, "ms"], place), (5, 0), textcoords="offset points", va="center", color=MUTED)
        ax.set(xlabel="Training step (median, ms); gains by round", xlim=(0, 1.9 * rows["ms"].max()))
        ax.grid(axis="x")
        ax.grid(False, axis="y")
        gain = rows["gain"].get(METHOD, np.nan)
        size = rows["table_gb"].iloc[0]
        put_title(ax, f"{name}, {size:.2g} GB: with {times(RATIO)} less a step is {gain:.2f} times as fast", 52)
    return figure


# what a step costs on many GPUs: predictions


def terabyte(ratio: float = RATIO) -> cost_model.Model:
    """Return the claim's model, MLPerf's DLRM on Criteo-TB with 96 GB of tables, and an array `ratio` times smaller."""
    about = read_yaml(PARAMS / "datasets" / "criteo-tb.yaml")
    recipe = about["recipe"]
    (cardinalities,) = [t["cardinalities"] for t in about["published"]["tables"] if t["name"] == TERABYTE]
    return cost_model.dlrm(cardinalities, recipe["dim"], 13, recipe["bottom_mlp"], recipe["top_mlp"], ratio)


def assumptions() -> Styler:
    """Return what the predictions for GPUs rest on, for people."""
    table = cost_model.assumptions()
    table = table.groupby(["assumption", "value", "unit", "reached", "source"], sort=False)["machine"].agg("; ".join)
    table = table.reset_index()[["assumption", "machine", "value", "unit", "reached", "source"]]
    told = {"value": table["value"].map("{:.4g}".format), "reached": table["reached"].map("{:.0%}".format)}
    return _shown(table.assign(**told))


def rates(evidence: Evidence) -> Styler:
    """Return the rates of two processes of this machine that the model was given, and where they come from."""
    if _lacks(evidence, "parallel"):
        return _shown(pd.DataFrame({"missing": [f"no step of two processes was timed: {evidence.measure}"]}))
    here = cost_model.calibrated(evidence.measured["parallel"])
    units = {"flops": (1e-9, "GFLOP/s"), "latency": (1e6, "µs"), "fixed": (1e3, "ms")}
    sources = {"link": "all-to-all over gloo", "reduce": "all-reduce over gloo", "latency": "either, nothing to send"}
    sources |= {"memory": "lookups in full tables", "cache": "lookups in the array", "stream": "updates of the array"}
    sources |= {"flops": "MLPs at several batches", "fixed": "MLPs, no samples"}
    rows = []
    for name, source in sources.items():
        scale, unit = units.get(name, (1e-9, "GB/s"))
        rows.append((name, f"{getattr(here, name) * scale:.3g}", unit, f"measured here: {source}"))
    return _shown(pd.DataFrame(rows, columns=["rate", "value", "unit", "source"]))


def predicted_and_measured(evidence: Evidence) -> pd.DataFrame:
    """Return the steps of two processes beside the model's predictions; see `cost_model.checked`."""
    if _lacks(evidence, "parallel"):
        return pd.DataFrame()
    times_ = evidence.measured["parallel"]
    return cost_model.checked(times_, cost_model.calibrated(times_))


def check_table(evidence: Evidence) -> Styler:
    """Return `predicted_and_measured` for people."""
    table = predicted_and_measured(evidence)
    if table.empty:
        return _shown(pd.DataFrame({"missing": [f"no step of two processes was timed: {evidence.measure}"]}))
    told = {
        "way": table["way"],
        "batch": table["batch"].map("{:,}".format),
        "dim": table["dim"],
        "ratio": table["ratio"].map(times, na_action="ignore").astype("object").fillna("–"),
        "measured (ms)": table["measured_ms"].map("{:.3g}".format),
        "20 % to 80 %": [f"{low:.3g} to {high:.3g}" for low, high in zip(table["p20"], table["p80"], strict=True)],
        "predicted (ms)": table["predicted_ms"].map("{:.3g}".format),
        "off by": table["off"].map(lambda off: f"{off:+.0%}".replace("-", "−")),
    }
    return _shown(pd.DataFrame(told))


@house_style
def model_check(evidence: Evidence) -> Figure:
    """Predicted against measured steps of two processes; on the line the model is right."""
    table = predicted_and_measured(evidence)
    if table.empty:
        return sentence(f"No step of two processes was timed: {evidence.measure}.")
    figure, ax = plt.subplots(figsize=(5.6, 4.4), layout="constrained")
    for way, hue, marker in ((cost_model.SHARDED, FULL[0], "o"), (cost_model.REPLICATED, colour(METHOD), "D")):
        rows = table[table["way"] == way]
        label = {"sharded": "full tables, sharded", "replicated": "array, replicated"}[way]
        ax.plot(rows["measured_ms"], rows["predicted_ms"], marker, color=hue, label=label, markersize=7)
    low, high = (
        table[["measured_ms", "predicted_ms"]].min().min() / 1.3,
        table[["measured_ms", "predicted_ms"]].max().max() * 1.3,
    )
    ax.plot([low, high], [low, high], color=INK, linewidth=1.2)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ax.set(xlabel="Measured step, two processes (ms)", ylabel="Predicted (ms)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    ax.legend(frameon=False)
    far = table["off"].abs()
    put_title(
        ax,
        f"The prediction of {len(table)} steps is off by {far.median():.0%} in the median, {far.max():.0%} at most",
        60,
    )
    return figure


def predictions(ratio: float = RATIO) -> pd.DataFrame:
    """Return the predicted steps of the claim's model on 1 to 64 GPUs; see `cost_model.predictions`."""
    machines = [cost_model.gpu(name) for name in cost_model.PEAKS]
    return cost_model.predictions(terabyte(ratio), machines, WORKERS, BATCHES)


@house_style
def where_it_comes_from() -> Figure:
    """Predicted: how many times faster a step is with the array replicated than with full tables, by GPUs and batch.

    Framed where the published 4.3 is reached; hatched where the full tables do not fit, or one host's memory does not
    serve all GPUs.
    """
    predicted = predictions()
    wanted = [
        (f"{name}: sharded", cost_model.gains(predicted[predicted["machine"] == name])) for name in cost_model.PEAKS
    ]
    first = next(iter(cost_model.PEAKS))
    offloaded = cost_model.gains(predicted[predicted["machine"] == first], cost_model.OFFLOADED)
    wanted.append((f"{first.split(',')[0]}: tables in the host's memory", offloaded))
    figure, axes = panels(len(wanted), 5.6, 2.9, sharey=True)
    for ax, (name, table) in zip(axes, wanted, strict=True):
        _gain_panel(ax, table)
        put_title(ax, f"Predicted. {name}, {_gain_finding(table)}", 58)
    return figure


def _gain_panel(ax: Axes, table: pd.DataFrame) -> None:
    grid = table.pivot_table(index="batch", columns="workers", values="gain").reindex(index=BATCHES, columns=WORKERS)
    shade = plt.cm.ScalarMappable(
        plt.Normalize(-np.log(LATENCY), np.log(LATENCY)), sns.diverging_palette(30, 230, l=72, as_cmap=True)
    )
    for (y, x), gain in np.ndenumerate(grid.to_numpy()):
        if np.isnan(gain):
            ax.add_patch(plt.Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, facecolor="none", edgecolor=GRID, hatch="////"))
            continue
        edge = INK if gain >= LATENCY else "none"
        face = shade.to_rgba(np.log(gain))
        ax.add_patch(plt.Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, facecolor=face, edgecolor=edge, linewidth=2))
        ax.text(x, y, f"{gain:.1f}×", ha="center", va="center", fontsize=9, color=INK)
    ax.set(
        xlim=(-0.5, len(WORKERS) - 0.5), ylim=(-0.5, len(BATCHES) - 0.5), xlabel="GPUs", ylabel="Batch over all GPUs"
    )
    ax.set_xticks(range(len(WORKERS)), WORKERS)
    ax.set_yticks(range(len(BATCHES)), [f"{batch:,}" for batch in BATCHES])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _gain_finding(table: pd.DataFrame) -> str:
    there = table[table["gain"] >= LATENCY]
    if there.empty:
        return f"{table['gain'].min():.1f} to {table['gain'].max():.1f} times: nowhere {LATENCY}"
    workers, batches = sorted(there["workers"].unique()), sorted(there["batch"].unique())
    span = f"{workers[0]} to {workers[-1]} GPUs" if len(workers) > 1 else f"{workers[0]} GPU{'s' * (workers[0] > 1)}"
    return f"{LATENCY} and more on {span}, from batch {batches[0]:,}"


def sensitivity(machine: str, workers: int = 16, batch: int = 32_768, factor: float = 2) -> Styler:
    """Return how the predicted gain moves when one assumption is halved or doubled."""
    table = cost_model.sensitivity(terabyte(), cost_model.gpu(machine), workers, batch, factor)
    named = {"lower": f"÷ {factor:g}", "as_is": "as assumed", "higher": f"× {factor:g}"}
    return _shown(table.assign(**{name: table[name].map("{:.2f}×".format) for name in named}).rename(columns=named))


def parts(machine: str, workers: int = 16, batch: int = 32_768) -> Styler:
    """Return what a predicted step is made of in ms, a row a way."""
    table = cost_model.predictions(terabyte(), [cost_model.gpu(machine)], [workers], [batch])
    named = {name: f"{name} (ms)" for name in cost_model.PARTS} | {
        "ms": "step (ms)",
        "overlapped_ms": "overlapped (ms)",
    }
    table = table.assign(**{name: table[name].map("{:.3f}".format) for name in named})
    return _shown(table[["way", *named]].rename(columns=named))


# the time to a quality


def time_to_quality(evidence: Evidence) -> pd.DataFrame:
    """Return the points of the trade-off at the highest ratio: each measured target with each measured step.

    Columns: dataset, target, tables, iterations, low, high, more_than, latency, latency_low, latency_high, time (times
    the full table's, missing where the quality was not reached).
    """
    aims, steps = iterations(evidence), latency(evidence)
    if aims.empty or steps.empty:
        return pd.DataFrame()
    aims = aims[(aims["method"] == METHOD) & (aims["ratio_requested"] == aims["ratio_requested"].max())]
    steps = steps[steps["embedding"] == METHOD][["tables", "table_gb", "gain", "low", "high"]]
    steps = steps.rename(columns={"gain": "latency", "low": "latency_low", "high": "latency_high"})
    both = aims.rename(columns={"times": "iterations"}).merge(steps, how="cross")
    both = both[(both["tables"] == both["dataset"]) | ~both["tables"].isin(aims["dataset"])]
    return both.assign(time=both["iterations"] / both["latency"]).reset_index(drop=True)


@house_style
def trade_off(evidence: Evidence) -> Figure:
    """Iterations against latency: above the line the compressed model is sooner there, below it later.

    A hollow point with an arrow is a quality that was not reached, at what it exceeds. Predictions are dashed.
    """
    points = time_to_quality(evidence)
    figure, ax = plt.subplots(figsize=(8.4, 6.2), layout="constrained")
    line = np.array([0.4, 40])
    ax.fill_between(line, line, 40, color=colour(METHOD), alpha=0.08, linewidth=0)
    ax.plot(line, line, color=INK, linewidth=1.4)
    ax.text(0.5, 15, "compressed is sooner", color=MUTED)
    ax.text(12, 0.65, "full is sooner", color=MUTED)
    ax.plot(ITERATIONS, LATENCY, "*", color=INK, markersize=15, linestyle="none")
    handles = [Line2D([], [], color=INK, marker="*", ms=12, ls="none", label=f"published: {ITERATIONS} and {LATENCY}")]
    shapes = ["o", "s", "D", "P", "X"]
    named = sorted(set(zip(points.get("dataset", []), points.get("tables", []), strict=True)))
    for (dataset, tables), marker in zip(named, shapes, strict=False):
        _trade_points(ax, points[(points["dataset"] == dataset) & (points["tables"] == tables)], marker)
        label = f"{dataset}, its own step" if dataset == tables else f"{dataset}, step of {tables}"
        handles.append(Line2D([], [], color=colour(METHOD), marker=marker, ms=6, ls="none", label=label))
    for text, gain in _predicted_gains():
        ax.axhline(gain, color=MUTED, linewidth=1, linestyle=CEILING)
        ax.annotate(
            text, (1, gain), (6, 0), ("axes fraction", "data"), textcoords="offset points", color=MUTED, va="center"
        )
    ax.set(xscale="log", yscale="log", xlim=line, ylim=(0.6, 20))
    ax.set(xlabel="Iterations to the same quality, compressed over full", ylabel="Time of a step, full over compressed")
    for axis in "xy":
        _plain_log(ax, axis, [0.5, 1, 2, 4.5, 10, 20])
    if len(points) and points["iterations"].isna().any():
        words = "hollow, with an arrow: not reached, lies further right"
        handles.append(Line2D([], [], color=colour(METHOD), marker="o", mfc="none", ms=6, ls="none", label=words))
    figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    put_title(ax, _trade_finding(points), 84)
    return figure


def _trade_points(ax: Axes, rows: pd.DataFrame, marker: str) -> None:
    style = {"color": colour(METHOD), "marker": marker, "linestyle": "none", "markersize": 6}
    there, never = rows[rows["iterations"].notna()], rows[rows["iterations"].isna()]
    if len(there):
        whisker = np.nan_to_num([there["iterations"] - there["low"], there["high"] - there["iterations"]])
        ax.errorbar(there["iterations"], there["latency"], xerr=whisker, elinewidth=0.8, **style)
    ax.plot(never["more_than"], never["latency"], markerfacecolor="none", **style)
    for x, y in zip(never["more_than"], never["latency"], strict=True):
        arrow = {"arrowstyle": "<-", "color": colour(METHOD), "linewidth": 0.8, "shrinkA": 0, "shrinkB": 3}
        ax.annotate("", (x, y), (12, 0), textcoords="offset points", arrowprops=arrow)


def _predicted_gains() -> Iterator[tuple[str, float]]:
    """Yield some predictions for the figure: words and gain."""
    model = terabyte()
    for name, workers, batch, against in (
        ("A100 80 GB, InfiniBand", 8, 32_768, cost_model.SHARDED),
        ("A100 80 GB, InfiniBand", 16, 32_768, cost_model.SHARDED),
        (cost_model.ETHERNET, 16, 32_768, cost_model.SHARDED),
    ):
        table = cost_model.predictions(model, [cost_model.gpu(name)], [workers], [batch])
        yield f"predicted, {workers} × {name}", float(cost_model.gains(table, against)["gain"].iloc[0])


def _trade_finding(points: pd.DataFrame) -> str:
    if points.empty:
        return "Published: 4.5 times the iterations at 1/4.3 of the time, 1.05 times the time. Nothing measured yet"
    own = points[points["dataset"] == points["tables"]]
    own = own if len(own) else points
    sooner, known = int((own["time"] < 1).sum()), int(own["time"].notna().sum())
    never = len(own) - known
    text = f"Here {times(own['ratio_requested'].iloc[0])} is sooner at {sooner} of {len(own)} qualities"
    return text + (
        f", later at {known - sooner}, and never there at {never}" if never else f" and later at {known - sooner}"
    )


# the bound


def exponent(evidence: Evidence) -> tuple[float, float]:
    """Return the exponent of the error against memory, and half of its 95 % interval over seeds; NaN without any.

    A line through the logarithms for each seed; arrays as large as the table or nearly are in it as well.
    """
    if _lacks(evidence, "projection"):
        return np.nan, np.nan
    slopes = pd.Series(
        [
            np.polyfit(np.log(part["m"]), np.log(part["rms"]), 1)[0]
            for _, part in evidence.measured["projection"].groupby("seed")
        ]
    )
    return slopes.mean(), half_width(slopes.std(), len(slopes))


@house_style
def projection(evidence: Evidence) -> Figure:
    """Left: the error of a projected table against the memory, with theory and bound. Right: the AUC that it costs."""
    if _lacks(evidence, "projection"):
        return sentence(f"No table was projected: {evidence.measure}.")
    table = evidence.measured["projection"]
    figure, (left, right) = panels(2, 5.8, 4.3)
    bound = evidence.measured.get("bound", pd.DataFrame(columns=["m", "epsilon"]))
    _error_panel(left, table, bound, evidence.measured.get("dense"))
    slope, half = exponent(evidence)
    margin = "" if np.isnan(half) else f" ± {half:.3f}"
    put_title(
        left,
        f"{table['dataset'].iloc[0]}: the error goes as memory to the power {slope:.3f}{margin}".replace("-", "−"),
        56,
    )
    _lost_panel(right, table, evidence.runs)
    return figure


def _error_panel(ax: Axes, table: pd.DataFrame, bound: pd.DataFrame, dense: pd.DataFrame | None) -> None:
    scale = 4 * table["dim"].iloc[0] / 1e6  # MB of a row of the array
    m = np.geomspace(table["m"].min(), table["m"].max(), 50)
    ax.plot(m * scale, m**-0.5, color=INK, linewidth=1.2, label="theory, rms: 1/√m")
    ax.plot(table["m"] * scale, table["rms"], "o", color=colour(METHOD), markersize=5, label="measured, rms")
    ax.plot(table["m"] * scale, table["worst"], "^", color=ALARM, markersize=5, label="measured, worst element")
    inside = bound[bound["m"].between(m[0], m[-1])]
    if dense is not None:
        style = {"marker": "x", "linestyle": "none", "markersize": 6}
        ax.plot(dense["m"] * scale, dense["worst"], color=INK, label="measured, dense signs, worst element", **style)
    ax.plot(
        inside["m"] * scale,
        inside["epsilon"],
        color=ALARM,
        linewidth=1.4,
        linestyle=CEILING,
        label="bound, worst element",
    )
    ax.axhline(table["element"].iloc[0], color=FULL[0], linewidth=1.2, label="size of an element itself")
    ax.set(xscale="log", yscale="log", xlabel="Memory of the array (MB)", ylabel="Error, relative to a column's norm")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    ax.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _lost_panel(ax: Axes, table: pd.DataFrame, runs: pd.DataFrame) -> None:
    dataset = table["dataset"].iloc[0]
    projected = table.groupby("ratio")["validation_auc"].mean()
    ax.plot(projected.index, projected, "o-", color=ALARM, markersize=5, label="table trained, then projected")
    done = runs[(runs["status"] == "done") & (runs["dataset"] == dataset) & (runs["method"] == METHOD)]
    trained = done.groupby("ratio_requested")["validation_auc"].mean()
    ax.plot(trained.index, trained, "D-", color=colour(METHOD), markersize=5, label="array trained (pss)")
    ax.axhline(table["full_auc"].iloc[0], color=FULL[0], linewidth=1.4, label="the trained table itself")
    ax.set(xscale="log", xlabel="Compression", ylabel="Validation AUC")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: times(value)))
    ax.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    both = [ratio for ratio in trained.index if ratio in projected.index]
    text = f"{dataset}: the array is trained, not projected"
    if both:
        text += (
            f": at {times(max(both))} that is worth {signed(trained[max(both)] - projected[max(both)], digits=3)} AUC"
        )
    put_title(ax, text, 56)


# the verdicts


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Return what became of the paper's claims."""
    return [
        _no_loss(evidence),
        *_criteo(evidence),
        _more_iterations(evidence),
        _latency_here(evidence),
        _latency_there(),
        _slope(evidence),
        _dense_bound(evidence),
        _own_bound(evidence),
        _theorem(),
    ]


def _no_loss(evidence: Evidence) -> Verdict:
    claim = "10,000 times smaller tables lose no quality: on the data here"
    published = f"Criteo-TB: 100 GB become 10 MB at AUC {AUC} ({SOURCE}; weights file)"
    found, worn = differences(evidence.runs), overtrained(summary(evidence.runs))
    found = found[(found["method"] == METHOD) & (found["ratio_requested"] == evidence.ratio)]
    if found.empty:
        here = f"No finished pair of full and pss at {times(RATIO)} or more"
        return Verdict(claim, published, here, UNTESTED, "both", f"make all SUITE={evidence.suite}")
    told = [
        f"{row['dataset']} at {times(row['ratio_requested'])}: test AUC "
        f"{signed(row['difference'], row['difference_ci'])} ({seeds_of(row['seeds'])}{_on_rows(evidence, row)})"
        + (f", but {worn[row['dataset']]}" if row["dataset"] in worn else "")
        for row in found.to_dict("records")
    ]
    fair = found[~found["dataset"].isin(worn)]  # beside a table that was trained too long no loss is no merit
    gap, half = fair["difference"], fair["difference_ci"]
    verdict = UNDECIDED if fair.empty else by_interval(gap - half, gap + half, least=-NO_LOSS)
    return Verdict(claim, published, "; ".join(told), verdict, *(evidence.more_seeds if verdict == UNDECIDED else ()))


def _criteo(evidence: Evidence) -> Iterator[Verdict]:
    done = evidence.runs[(evidence.runs["status"] == "done") & (evidence.runs["method"] == METHOD)]
    if not done["dataset"].str.startswith("criteo").any():
        yield Verdict(
            "10,000 times smaller tables lose no quality: on Criteo-TB's own rows",
            f"AUC {AUC} ({SOURCE}; weights file)",
            "No model was trained on them",
            UNTESTED,
            "Criteo-TB and GPUs: eight for the full table, one for pss",
            f"make all SUITE={BASELINE} && make all SUITE={CRITEO}",
        )


def differences_table(evidence: Evidence) -> Styler:
    """Return the differences of test AUC to the full table over seeds, for people."""
    table = differences(evidence.runs)
    if table.empty:
        return _shown(pd.DataFrame({"missing": [f"no finished pair of full and pss: {evidence.run}"]}))
    gaps = zip(table["difference"], table["difference_ci"], strict=True)
    told = {
        "dataset": table["dataset"],
        "configuration": [_cell_name(row) for row in table.to_dict("records")],
        "AUC − full table": [signed(*gap) for gap in gaps],
        "seeds": table["seeds"],
        "p": table["p"].map(probability),
    }
    if worn := overtrained(summary(evidence.runs)):
        told["beside"] = table["dataset"].map(worn).fillna("")
    return _shown(pd.DataFrame(told))


def same_rows(evidence: Evidence) -> Styler:
    """Return the differences of test AUC to the full table on the same rows, with their intervals: a row a cell.

    Of the mean over seeds, or of the only seed: the interval is about other test rows, not about another training.
    """
    table = on_same_rows(evidence.measured)
    if table.empty:
        return _shown(pd.DataFrame({"missing": [f"not tested on the same rows: {evidence.measure}"]}))
    told = {
        "dataset": table["dataset"],
        "configuration": [_cell_name(row) for row in table.to_dict("records")],
        "AUC − full table": table["difference"].map(signed),
        "95 % interval": [f"{signed(a)} to {signed(b)}" for a, b in zip(table["low"], table["high"], strict=True)],
        "p": table["p"].map(probability),
        "test rows": (table["positives"] + table["negatives"]).map("{:,.0f}".format),
    }
    return _shown(pd.DataFrame(told))


def _on_rows(evidence: Evidence, row: dict[str, Any]) -> str:
    """Write the interval of a cell's difference over test rows, where it was tested."""
    tested = on_same_rows(evidence.measured)
    same = (tested[CELL] == [row[name] for name in CELL]).all(axis=1)
    found = tested[same].to_dict("records")
    return f"; on the same rows {signed(found[0]['low'])} to {signed(found[0]['high'])}" if found else ""


def _more_iterations(evidence: Evidence) -> Verdict:
    claim = "The same quality takes 4.5 times the iterations"
    published = f"{ITERATIONS}× ({SOURCE})"
    table = iterations(evidence)
    if not table.empty:
        table = table[(table["method"] == METHOD) & (table["ratio_requested"] == evidence.ratio)]
        table = table[np.isclose(table["moment"], 1 / ITERATIONS)]
    if table.empty:
        here = f"No curves of full and pss at {times(RATIO)} or more"
        return Verdict(claim, published, here, UNTESTED, "both", evidence.run)
    aim = "to the quality that the full table has after 1/4.5 of its way"
    here = "; ".join(
        f"{row['dataset']}, {seeds_of(row['seeds'])}, {aim}: {_times_text(row)}" for row in table.to_dict("records")
    )
    never = (table["reached"] == 0) & (table["seeds"] > 1) & (table["more_than"] > 0.99 * ITERATIONS)
    low, high = table["low"].mask(never, np.inf), table["high"].mask(never, np.inf)
    verdict = by_interval(low, high, most=ITERATIONS)
    needs = ("more seeds, or a longer run", evidence.more_seeds[1])
    return Verdict(claim, published, here, verdict, *(needs if verdict == UNDECIDED else ()))


def _latency_here(evidence: Evidence) -> Verdict:
    claim = "A training step is 4.3 times faster: in one process of this machine"
    published = f"{LATENCY}× ({SOURCE}; hardware not stated there)"
    table = latency(evidence)
    if table.empty:
        return Verdict(claim, published, "No step was timed", UNTESTED, "a measurement", evidence.measure)
    rows = table[table["embedding"] == METHOD]
    told = "; ".join(
        f"{row['tables']} ({row['table_gb']:.2g} GB): {_gain_text(row)}" for row in rows.to_dict("records")
    )
    verdict = by_interval(rows["low"], rows["high"], least=LATENCY)
    here = f"{told}; batch {rows['batch'].iloc[0]:,}"
    return Verdict(
        claim, published, here, verdict, *(("more rounds", evidence.measure) if verdict == UNDECIDED else ())
    )


def _latency_there() -> Verdict:
    predicted = predictions()
    return Verdict(
        "A training step is 4.3 times faster: on several GPUs",
        f"{LATENCY}× ({SOURCE}; hardware not stated there)",
        f"Predicted from bytes and vendors' rates, not measured. Full tables spread over the GPUs, at most: "
        f"{_most(predicted, cost_model.SHARDED)}. Full tables in host memory, at most: "
        f"{_most(predicted, cost_model.OFFLOADED)}",
        UNTESTED,
        "several GPUs, and full tables spread over them by TorchRec",
    )


def _most(predicted: pd.DataFrame, against: str) -> str:
    """Name the highest predicted gain of each machine; of each GPU where nothing leaves the node."""
    found = cost_model.gains(predicted, against)
    machine = found["machine"].str.split(",").str[0] if against == cost_model.OFFLOADED else found["machine"]
    best = found.groupby(machine)["gain"].max()
    return "; ".join(f"{gain:.1f}× on {name}" for name, gain in best.items())


def _slope(evidence: Evidence) -> Verdict:
    claim = "The error of a projected table falls with the root of the memory"
    published = "theory, derived in embeddings/pss.py: memory to the power −0.5"
    slope, half = exponent(evidence)
    if np.isnan(slope):
        return Verdict(claim, published, "No table was projected", UNTESTED, "a measurement", evidence.measure)
    here = f"{_projected(evidence)}, one sign an element, as PSS has it: to the power {signed(slope, half, digits=3)}"
    verdict = by_interval([slope - half], [slope + half], most=SLOPE + SLOPE_OFF, least=SLOPE - SLOPE_OFF)
    return Verdict(claim, published, here, verdict, *(("more seeds", evidence.measure) if verdict == UNDECIDED else ()))


def _projected(evidence: Evidence) -> str:
    return f"{evidence.measured['projection']['dataset'].iloc[0]}, trained table"


def _dense_bound(evidence: Evidence) -> Verdict:
    claim = "Memory of order 1/ε² keeps every element within ε: with dense signs"
    published = "a bound for dense signs, derived in embeddings/pss.py"
    if _lacks(evidence, "dense") or _lacks(evidence, "projection"):
        return Verdict(claim, published, "No table was projected", UNTESTED, "a measurement", evidence.measure)
    dense = evidence.measured["dense"]
    share = dense["worst"] / dense["epsilon"]
    here = f"{_projected(evidence)}: the worst element lies below the bound in {_count(share)}"
    return Verdict(claim, published, here, by_interval(share, share, most=1))


def _own_bound(evidence: Evidence) -> Verdict:
    claim = "Memory of order 1/ε² keeps every element within ε: with one sign an element, as PSS has it"
    published = "the same bound; it is not derived for this map"
    if _lacks(evidence, "bound") or _lacks(evidence, "projection"):
        return Verdict(claim, published, "No table was projected", UNTESTED, "a measurement", evidence.measure)
    share = _of_bound(evidence)
    here = f"{_projected(evidence)}: the worst element lies below the bound in {_count(share)}"
    return Verdict(claim, published, here, by_interval(share, share, most=1))


def _count(share: pd.Series) -> str:
    return f"{int((share <= 1).sum())} of {len(share)} projections"


def _theorem() -> Verdict:
    return Verdict(
        "The paper's theorem: exponentially fewer numbers suffice to come within (1 ± ε) of the tables",
        f"an upper bound ({SOURCE})",
        "The theorem's statement and constants were not read",
        UNTESTED,
        "the text of the paper",
    )


def _of_bound(evidence: Evidence) -> pd.Series:
    """Return the worst element with one sign an element, over what the bound allows at its memory."""
    table, bound = evidence.measured["projection"], evidence.measured["bound"].sort_values("m")
    inside = table[table["m"].between(bound["m"].min(), bound["m"].max())]
    allowed = np.exp(np.interp(np.log(inside["m"]), np.log(bound["m"]), np.log(bound["epsilon"])))
    return inside["worst"] / allowed
