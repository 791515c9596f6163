"""ROBE's claims put to the test: quality by ratio and block size, and the speed of a DLRM that answers from it.

From the records of a suite and the tables that `pocketrec.papers.robe.measure` left beside them. Every picture and
table takes the `Evidence`, and says what is missing where it has too little of it. The speed on a GPU is that of a
`pocketrec bench` whose folder lies beside the suite's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, Wedge
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from pandas.io.formats.style import Styler
from scipy.optimize import brentq
from scipy.special import entr

from pocketrec.report import plots, statistics
from pocketrec.report import speed as benched
from pocketrec.report.claims import UNDECIDED, UNTESTED, Verdict, by_interval
from pocketrec.report.columns import CELL, FAILURES, probability, signed, times
from pocketrec.report.contents import set_up
from pocketrec.report.plots import CEILING, GRID, INK, MUTED, colour, house_style, look
from pocketrec.report.results import load_measured, load_results, read_records
from pocketrec.report.speed import FOREIGN, GRAPH, HOSTED, QUIET, Speed

LOSS = 0.001  # of AUC: what still counts as the full table's quality
RATIO = 1000
SPEEDUP = 3.1
TARGET = 0.8025  # AUC
CRITEO = "criteo-tb"
ABSTRACT = "Desai, Chou & Shrivastava, MLSys 2022, abstract"
QUALITY = f"AUC ≥ {TARGET} on Criteo-TB with 100 MB in place of 100 GB ({ABSTRACT})"
FASTER = f"{SPEEDUP} times, on a single GPU, for tables of 100 GB ({ABSTRACT})"
ELSEWHERE = f"no figure; {SPEEDUP} times for tables of 100 GB, more than a GPU then held ({ABSTRACT})"
GPU_BENCH = "pocketrec bench --device cuda --family dlrm"
FULL, ROBE, BAGS = "full", "robe", "26 x nn.EmbeddingBag"
NAMES = {FULL: "full table", ROBE: "ROBE 1,000×", BAGS: "26 bags over it"}
HUES = {FULL: plots.FULL[0], ROBE: colour("robe"), BAGS: "#8c613c"}
POINT = ["shape", "table_bytes", "batch", "ids"]
WAY = ["part", "embedding", "block_size"]
TIMES = [*POINT, *WAY, "ms", "p20", "p80", "us_per_sample", "gb_s", "gflop_s", "disturbed"]
_SIGNED = FuncFormatter(lambda value, _: f"{value:+.4g}".replace("-", "−") if value else "0")
PARTS = {"lookup": "lookup", "interaction": "interaction", "MLPs": "MLPs", "rest": "the rest"}


@dataclass(frozen=True)
class Evidence:
    """What a suite left behind.

    Attributes:
        suite: its name, for the commands that fill gaps.
        runs: as `load_results`; ROBE's `variant` is its block size, `Z=32`.
        measured: the tables of `pocketrec measure`, by name.
        speed: medians of the timed calls, one row a way and point.
        setting: what was trained, one row a dataset.
        about: the same with the optimizers and the machine, in sentences.
        gpu: the bench of a GPU, where its folder lies beside the suite's.
    """

    suite: str
    runs: pd.DataFrame
    measured: dict[str, pd.DataFrame]
    speed: pd.DataFrame
    setting: pd.DataFrame
    about: str
    gpu: Speed | None

    @property
    def datasets(self) -> list[str]:
        """The datasets on which anything ran, the generated one last."""
        return sorted(self.runs["dataset"].unique(), key=lambda name: (name == "planted", name))

    @property
    def block_size(self) -> str:
        """The variant that carries the verdict: that with the most seeds, then the longest blocks."""
        seeds = self.runs[self.runs["method"] == ROBE].groupby("variant")["seed"].nunique()
        return max(seeds.index, key=lambda name: (seeds[name], _size(name)), default="")

    def ratio(self, dataset: str) -> float:
        """Return the ratio that is judged on a dataset: the lowest that the suite has of `RATIO` or more, else NaN."""
        own = self.runs[(self.runs["dataset"] == dataset) & (self.runs["method"] == ROBE)]["ratio_requested"]
        return own[own >= RATIO].min()

    @cached_property
    def gaps(self) -> pd.DataFrame:
        """`statistics.differences` to the full table, with ratio_achieved and whether it is `within` `LOSS`.

        `within` is `yes` or `no` where the whole 95 % interval over seeds is, else `open`.
        """
        table = statistics.differences(self.runs)
        table = table.astype(dict.fromkeys(["ratio_requested", "difference", "difference_ci"], "float64"))
        achieved = self.runs.groupby(CELL)["ratio_achieved"].mean().to_dict()
        table["ratio_achieved"] = [achieved[cell] for cell in table[CELL].itertuples(index=False, name=None)]
        worst, best = table["difference"] - table["difference_ci"], table["difference"] + table["difference_ci"]
        return table.assign(within=np.select([worst >= -LOSS, best < -LOSS], ["yes", "no"], "open"))


def load(results: str | Path) -> Evidence:
    """Read the folder of a suite."""
    runs, records = load_results(results), read_records(Path(results))
    blocks = {record["run"]: _block_size(record) for record in records if record["method"] == ROBE}
    runs = runs.assign(variant=runs["run"].map(blocks).fillna(runs["variant"]))
    measured = load_measured(results)
    suite = next((record["suite"] for record in records if record.get("suite")), Path(results).resolve().name)
    speed = medians(measured.get("speed", pd.DataFrame()))
    return Evidence(suite, runs, measured, speed, _setting(records), set_up(records), _gpu(Path(results).resolve()))


def _gpu(results: Path) -> Speed | None:
    """Read the first bench of a whole model on a GPU that lies beside a suite's folder."""
    found = (benched.load(file.parent) for file in sorted(results.parent.glob("speed*/machine.json")))
    return next((bench for bench in found if bench.on_gpu and len(bench.dlrm)), None)


def _trained(records: list[dict]) -> list[dict]:
    """Return the records of finished training runs that say what they were trained on."""
    quality = (record for record in records if record.get("kind", "quality") == "quality")
    return [record for record in quality if record["status"] == "done" and record.get("data")]


def _training_rows(record: dict) -> int:
    return min(record["parameters"].get("train_rows") or np.inf, record["data"]["rows"]["train"])


def _setting(records: list[dict]) -> pd.DataFrame:
    """Return what was trained, one row a dataset.

    Columns: dataset, training and test rows, ids (of all features), epochs, dim, MLPs, batch, seeds.
    """
    rows = {}
    for record in _trained(records):
        parameters, data = record["parameters"], record["data"]
        found = {"training rows": _training_rows(record), "test rows": data["rows"].get("test")}
        found |= {"ids": sum(data["cardinalities"]), "epochs": f"{parameters.get('epochs', np.nan):g}"}
        found |= {"dim": parameters.get("dim")}
        found |= {"MLPs": _mlps(parameters), "batch": parameters.get("batch_size")}
        seeds = rows.get(record["dataset"], {}).get("seeds", set()) | {record["seed"]}
        rows[record["dataset"]] = {"dataset": record["dataset"]} | found | {"seeds": seeds}
    return pd.DataFrame(row | {"seeds": f"up to {len(row['seeds'])}"} for row in rows.values())


def _mlps(parameters: dict) -> str:
    return " and ".join("-".join(map(str, parameters.get(name, []))) for name in ("bottom_mlp", "top_mlp"))


def _block_size(record: dict) -> str:
    """Name the block size of a run: as it was solved, or in a record without it the largest divisor of dim up to 32."""
    if "embedding" in record:
        return f"Z={record['embedding']['block_size']}"
    parameters = record.get("parameters", {})
    dim = parameters.get("dim", 32)
    default = max(z for z in range(1, 33) if dim % z == 0)
    return f"Z={parameters.get('knobs', {}).get('block_size') or default}"


def _size(variant: str) -> int:
    return int(variant.partition("=")[2] or 0)


def medians(samples: pd.DataFrame) -> pd.DataFrame:
    """Return one row a way and point: ms, p20, p80, us_per_sample, gb_s, gflop_s, disturbed (share of samples)."""
    if samples.empty:
        return pd.DataFrame(columns=TIMES)
    groups = samples.groupby([*POINT, *WAY], dropna=False)
    table = groups.agg(
        ms=("ms", "median"),
        p20=("ms", lambda ms: ms.quantile(0.2)),
        p80=("ms", lambda ms: ms.quantile(0.8)),
        bytes=("bytes", "first"),
        flops=("flops", "first"),
        disturbed=("foreign", lambda cores: (cores > FOREIGN).mean()),
    ).reset_index()
    table["us_per_sample"] = table["ms"] * 1e3 / table["batch"]
    table["gb_s"] = (table["bytes"] / table["ms"] / 1e6).where(table["bytes"] > 0)
    table["gflop_s"] = (table["flops"] / table["ms"] / 1e6).where(table["flops"] > 0)
    return table


# what is missing


def missing(evidence: Evidence) -> pd.DataFrame:
    """Return what the notebook lacks, why, and the command that makes it: what, reason, command."""
    runs, suite = evidence.runs, evidence.suite
    rows = []
    for status, lost in runs[runs["status"].isin(FAILURES)].groupby("status"):
        what = f"{len(lost)} runs of {', '.join(sorted(lost['method'].unique()))}"
        rows.append((what, f"{status}: {lost['reason'].iloc[0]}", f"pocketrec retry {suite}"))
    done = runs[runs["status"] == "done"]
    for dataset in evidence.datasets or ["any dataset"]:
        for method in (ROBE,) if dataset == CRITEO else (FULL, ROBE):  # there the target is the published one
            if not ((done["dataset"] == dataset) & (done["method"] == method)).any():
                rows.append((f"{method} on {dataset}", "no run has finished", f"pocketrec run {suite}"))
    for name, what in (("speed", "the speed of the models"), ("same_rows", "the test on the same rows")):
        if name not in evidence.measured:
            rows.append((what, "not measured yet", f"pocketrec measure {suite}"))
    if evidence.gpu is None:
        rows.append(("the speed on a GPU", "no bench of one lies beside the suite", GPU_BENCH))
    table = pd.DataFrame(rows, columns=["what", "reason", "command"])
    return pd.concat([table, evidence.measured.get("skipped", table[:0])], ignore_index=True)


# quality


def reach(evidence: Evidence) -> pd.DataFrame:
    """Return, a row a dataset and configuration, the highest ratio whose AUC is within `LOSS` of the full table's.

    Three readings of it: `surely`, where the whole 95 % interval over seeds lies within; by the `mean`; and `not ruled
    out`, where some of the interval does. The first and the last are the ends of a 95 % interval of the ratio, as fine
    as the grid.
    """
    table = evidence.gaps
    rows = []
    for (dataset, method, variant), cells in table.groupby(["dataset", "method", "variant"]):
        ratio = cells["ratio_requested"]
        rows.append(
            {
                "dataset": dataset,
                "configuration": statistics.label({"method": method, "variant": variant}),
                "seeds": _span(cells["seeds"]),
                "surely": _highest(ratio[cells["within"] == "yes"]),
                "by the mean": _highest(ratio[cells["difference"] >= -LOSS]),
                "not ruled out": _highest(ratio[cells["within"] != "no"]),
                "of": f"{times(ratio.min())} to {times(ratio.max())}",
                "place": (method != ROBE, method, _size(variant)),
            }
        )
    columns = ["dataset", "configuration", "seeds", "surely", "by the mean", "not ruled out", "of", "place"]
    found = pd.DataFrame(rows, columns=columns).sort_values(["dataset", "place"], ignore_index=True)
    return found.drop(columns="place")


def _highest(ratios: pd.Series) -> str:
    return times(ratios.max()) if len(ratios) else "none"


def _span(values: pd.Series) -> str:
    return " to ".join(dict.fromkeys(str(end) for end in (values.min(), values.max())))


@house_style
def auc(evidence: Evidence) -> Figure:
    """Test AUC against the ratio, a panel a dataset: a line a block size, the rivals, the full table, the ceiling."""
    cells = statistics.summary(evidence.runs).dropna(subset=["auc", "ratio_achieved"])
    if cells.empty:
        return plots.sentence(f"No AUC to show: {statistics.verdict(evidence.runs)}.")
    cells = cells.assign(label=cells.apply(statistics.label, axis=1))
    datasets = [name for name in evidence.datasets if name in set(cells["dataset"])]
    figure, axes = plots.panels(len(datasets), 6.0, 4.4)
    for ax, dataset in zip(axes, datasets, strict=True):
        rows = cells[cells["dataset"] == dataset]
        ends = plots.lines_across(ax, rows)
        small = rows[rows["method"] != FULL].assign(y=lambda rows: rows["auc"], half=lambda rows: rows["auc_ci"])
        ends += _lines(ax, small, evidence)
        ax.set(xscale="log", xlabel="Compression achieved (×)", ylabel="Test AUC (mean, 95 % band)")
        if len(small):
            plots.log_axis(ax, small["ratio_achieved"], times)
        plots.label_right(ax, ends)
        plots.put_title(ax, f"{dataset}: {_reached(evidence, dataset)}", 58)
    return figure


@house_style
def loss(evidence: Evidence) -> Figure:
    """AUC minus the full table's of the same seed, against the ratio; the dashed line is `LOSS` below it."""
    table = evidence.gaps.dropna(subset=["difference", "ratio_achieved"])
    if table.empty:
        return plots.sentence("No difference to show: no compressed run has a full table with its seed.")
    table = table.assign(y=table["difference"], half=table["difference_ci"])
    datasets = [name for name in evidence.datasets if name in set(table["dataset"])]
    figure, axes = plots.panels(len(datasets), 6.0, 4.4)
    for ax, dataset in zip(axes, datasets, strict=True):
        rows = table[table["dataset"] == dataset]
        ax.set_yscale("symlog", linthresh=2 * LOSS, linscale=0.8)
        ax.axhline(0, color=plots.FULL[0], linewidth=1.8)
        ax.axhline(-LOSS, color=INK, linewidth=1.2, linestyle=CEILING)
        ends = [plots.End(0, "full", plots.FULL[0]), *_lines(ax, rows, evidence)]
        low, high = min(rows["y"].min(), -2 * LOSS), max(rows["y"].max(), LOSS)
        ax.set(xscale="log", xlabel="Compression achieved (×)", ylim=(1.6 * low, 1.6 * high))
        ax.set_ylabel("AUC − full table (paired by seed, 95 % band)")
        ax.yaxis.set_major_formatter(_SIGNED)
        plots.log_axis(ax, rows["ratio_achieved"], times)
        plots.label_right(ax, ends)
        plots.put_title(ax, f"{dataset}: {_at_ratio(evidence, dataset)}", 58)
    return figure


def _lines(ax: Axes, cells: pd.DataFrame, evidence: Evidence) -> list[plots.End]:
    """Draw `y` with a band of `half` where three seeds or more make one; return the end of each line."""
    ends = []
    blocks = sorted(cells.loc[cells["method"] == ROBE, "variant"].unique(), key=_size)
    shades = dict(zip(blocks, sns.light_palette(colour("robe"), len(blocks) + 2)[2:], strict=True))
    for (method, variant), line in cells.groupby(["method", "variant"]):
        line = line.sort_values("ratio_requested")
        hue, marker = look(method)
        hue = shades.get(variant, hue) if method == ROBE else hue
        main = method == ROBE and variant == evidence.block_size
        x = line["ratio_achieved"]
        style = {"linewidth": 2.6 if main else 1.4, "markersize": 7 if main else 5, "zorder": 3 if main else 2}
        ax.plot(x, line["y"], marker=marker, color=hue, markeredgewidth=0, **style)
        seeds = line["seeds"] if "seeds" in line else line["n"]
        half = line["half"].where(seeds >= 3, 0).fillna(0)
        ax.fill_between(x, line["y"] - half, line["y"] + half, color=hue, alpha=0.18, linewidth=0)
        name = f"robe {variant}" if method == ROBE else method
        ends.append(plots.End(line["y"].iloc[-1], name, hue, marker))
    return ends


def _reached(evidence: Evidence, dataset: str) -> str:
    """Say how far the verdict's block size keeps the full table's AUC."""
    table = reach(evidence)
    name = statistics.label({"method": ROBE, "variant": evidence.block_size})
    row = table[(table["dataset"] == dataset) & (table["configuration"] == name)]
    if row.empty:
        return "nothing to compare with the full table yet"
    row = row.iloc[0]
    if row["by the mean"] == "none":
        return f"ROBE {evidence.block_size} is nowhere within {LOSS} of the full table"
    sure = "surely" if row["surely"] == row["by the mean"] else f"surely {row['surely']}"
    return f"ROBE {evidence.block_size} is within {LOSS} of the full table at {row['by the mean']} ({sure})"


def _cell(evidence: Evidence, dataset: str) -> pd.Series | None:
    """Return the gap of the verdict's block size at the ratio that is judged, where there is one."""
    table = evidence.gaps
    row = table[
        (table["dataset"] == dataset)
        & (table["method"] == ROBE)
        & (table["variant"] == evidence.block_size)
        & (table["ratio_requested"] == evidence.ratio(dataset))
    ]
    return row.iloc[0] if len(row) and pd.notna(row.iloc[0]["difference"]) else None


def _at_ratio(evidence: Evidence, dataset: str) -> str:
    row = _cell(evidence, dataset)
    if row is None:
        return f"{times(RATIO)} has not run"
    side = "within" if row["difference"] >= -LOSS else "beyond"
    return f"{signed(row['difference'])} at {times(row['ratio_requested'])}, {side} {LOSS}"


# the same test rows


def both_tests(evidence: Evidence) -> pd.DataFrame:
    """Return the verdict's block size by dataset and ratio: its loss with the interval over seeds and that over rows.

    Columns: dataset, ratio_requested, seeds; difference, difference_ci (half of the interval) and p over seeds;
    rows_difference, rows_low, rows_high and rows_p over rows. Both p are corrected for their number in a dataset.
    """
    table = evidence.gaps
    table = table[(table["method"] == ROBE) & (table["variant"] == evidence.block_size)]
    table = table[["dataset", "ratio_requested", "seeds", "difference", "difference_ci", "p"]]
    on = ["dataset", "ratio_requested"]
    table = table.merge(_over_rows(evidence), on=on, how="left").sort_values(on, ignore_index=True)
    return table.assign(rows_p=table.groupby("dataset")["rows_p"].transform(statistics.corrected).astype("float64"))


def tests(evidence: Evidence) -> Styler:
    """Lay out `both_tests` for people."""
    table = both_tests(evidence)
    rows = table[["rows_difference", "rows_low", "rows_high"]].itertuples(index=False)
    shown = table[["dataset"]].assign(ratio=table["ratio_requested"].map(times), seeds=table["seeds"])
    shown["AUC − full table, over seeds"] = list(map(signed, table["difference"], table["difference_ci"]))
    shown["p over seeds"] = table["p"].map(probability)
    shown["over test rows [95 %]"] = [
        "–" if pd.isna(middle) else f"{signed(middle)} [{signed(low)}, {signed(high)}]" for middle, low, high in rows
    ]
    return shown.assign(**{"p over rows": table["rows_p"].map(probability)}).style.hide(axis="index")


def _over_rows(evidence: Evidence) -> pd.DataFrame:
    """Return the test on the same rows of the verdict's block size: of the mean over seeds, or of the one seed."""
    columns = ["dataset", "ratio_requested", "rows_difference", "rows_low", "rows_high", "rows_p"]
    tested = evidence.measured.get("same_rows")
    if tested is None:
        return pd.DataFrame(columns=columns).astype({"ratio_requested": "float64"})
    ours = tested[(tested["method"] == ROBE) & tested["difference"].notna()]
    ours = ours[_is_block(ours["variant"], evidence)]
    ours = ours.sort_values("seed", na_position="first").drop_duplicates(["dataset", "ratio_requested"])
    names = {"difference": "rows_difference", "low": "rows_low", "high": "rows_high", "p": "rows_p"}
    return ours.rename(columns=names)[columns]


def _is_block(variants: pd.Series, evidence: Evidence) -> pd.Series:
    """Tell which variants, as records name them (`block_size=32`, or nothing for the only one), are the verdict's."""
    sizes = variants.str.extract(r"block_size=(\w+)", expand=False)
    return sizes.isna() | (sizes == str(_size(evidence.block_size)))


@house_style
def intervals(evidence: Evidence) -> Figure:
    """The loss at each ratio with two 95 % intervals: over seeds (another training), over rows (another test set)."""
    table = both_tests(evidence).dropna(subset="difference")
    if table.empty:
        return plots.sentence("No difference to show: no compressed run has a full table with its seed.")
    datasets = [name for name in evidence.datasets if name in set(table["dataset"])]
    figure, axes = plots.panels(len(datasets), 6.0, 2.6)
    for ax, dataset in zip(axes, datasets, strict=True):
        rows = table[table["dataset"] == dataset].reset_index(drop=True)
        hues = (colour("robe"), "#d55e00")
        ax.errorbar(
            rows["difference"],
            rows.index + 0.12,
            xerr=rows["difference_ci"],
            fmt="s",
            color=hues[0],
            label="over seeds",
        )
        middle, half = rows["rows_difference"], (rows["rows_high"] - rows["rows_low"]) / 2
        ax.errorbar(middle, rows.index - 0.12, xerr=half, fmt="D", color=hues[1], label="over test rows (DeLong)")
        ax.axvline(0, color=plots.FULL[0], linewidth=1.8)
        ax.axvline(-LOSS, color=INK, linewidth=1.2, linestyle=CEILING)
        ax.set_yticks(rows.index, rows["ratio_requested"].map(times))
        ax.set(xlabel="AUC − full table (95 % interval; dashed: the tolerated loss)", ylim=(len(rows) - 0.5, -0.5))
        ax.set_xscale("symlog", linthresh=2 * LOSS, linscale=1.5)
        ax.xaxis.set_major_formatter(_SIGNED)
        ax.grid(axis="x")
        told = (rows["rows_p"] < 0.05).sum()
        known = rows["rows_p"].notna().sum()
        said = f"{told} of {known} ratios differ on the same rows" if known else "the same rows were not tested yet"
        plots.put_title(ax, f"{dataset}, {evidence.block_size}: {said}", 58)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


# speed


def gains(evidence: Evidence) -> pd.DataFrame:
    """Return, a row a point, how many times the throughput of the full table is ROBE's.

    Columns: shape, table_bytes, batch, ids; full, bags, robe (µs a sample of the whole model); gain over our full
    table with its spread low to high (see `_gain`), gain_over_bags; free: the gain if ROBE's lookup took no time, by
    the full table's lookup timed alone, which no compression can beat while the rest of the model stays as it is.
    """
    speed = evidence.speed
    if speed.empty:
        return pd.DataFrame(columns=[*POINT, "full", "bags", "robe", "gain", "low", "high", "gain_over_bags", "free"])
    whole = speed[speed["part"] == "model"].set_index(POINT)
    of = {name: whole[whole["embedding"] == name] for name in (FULL, BAGS, ROBE)}
    lookups = speed[(speed["part"] == "lookup") & (speed["embedding"] == FULL)].set_index(POINT)["us_per_sample"]
    us = [rows["us_per_sample"] for rows in of.values()]
    table = pd.concat(us, axis=1, keys=["full", "bags", "robe"]).sort_index()
    table = table.assign(**_gain(of[FULL], of[ROBE]), gain_over_bags=table["bags"] / table["robe"])
    rest = (table["full"] - lookups.reindex(table.index)).clip(lower=0)
    return table.assign(free=table["full"] / rest.where(rest > 0)).reset_index()


def _gain(slow: Any, fast: Any) -> dict[str, Any]:
    """Return how many times faster the second is: by the medians, and low to high from one's p20 to the other's p80."""
    ends = {"low": slow["p20"] / fast["p80"], "high": slow["p80"] / fast["p20"]}
    return {"gain": slow["ms"] / fast["ms"]} | ends


def largest(evidence: Evidence) -> pd.DataFrame:
    """Return the rows of `gains` with the largest tables of each shape."""
    table = gains(evidence)
    return table[table["table_bytes"] == table.groupby("shape")["table_bytes"].transform("max")]


def throughput_gain(evidence: Evidence, shape: str) -> pd.DataFrame:
    """Return, by distribution of ids, how the throughputs at the largest tables compare, each at its best batch.

    Columns: gain, low, high, as `_gain` has them.
    """
    speed = evidence.speed[(evidence.speed["part"] == "model") & (evidence.speed["shape"] == shape)]
    speed = speed[speed["table_bytes"] == speed["table_bytes"].max()]
    rows = {
        ids: _gain(*(_at_best(own[own["embedding"] == name]) for name in (FULL, ROBE)))
        for ids, own in speed.groupby("ids")
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["gain", "low", "high"]).rename_axis("ids")


def _at_best(rows: pd.DataFrame) -> pd.Series:
    """Return ms, p20 and p80 of a sample at the batch that takes the least time for one."""
    each = rows[["ms", "p20", "p80"]].div(rows["batch"], axis=0)
    return each.loc[each["ms"].idxmin()]


def on_gpu(evidence: Evidence) -> pd.DataFrame:
    """Return how the throughputs on a GPU compare, each at its best batch, by the place of the full table.

    A row for `host`, as torch launches both, and one for `GPU`, both as a CUDA graph: what waits for the processor
    cannot be one. Columns: gain, low, high, as `_gain` has them; absent rows were not measured.
    """
    rows = {}
    if evidence.gpu is not None:
        answers = evidence.gpu.dlrm[evidence.gpu.dlrm["work"] == "answers"]
        ms = answers.groupby(["embedding", "batch"])["ms"].quantile([0.5, 0.2, 0.8]).unstack()
        ms = ms.set_axis(["ms", "p20", "p80"], axis=1).reset_index()
        for place, full, robe in (("host", HOSTED, ROBE), ("GPU", f"{FULL}, {GRAPH}", f"{ROBE}, {GRAPH}")):
            if {full, robe} <= set(ms["embedding"]):
                rows[place] = _gain(*(_at_best(ms[ms["embedding"] == name]) for name in (full, robe)))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["gain", "low", "high"])


@house_style
def throughput(evidence: Evidence) -> Figure:
    """How many times faster the model with ROBE answers, at the largest tables; the tick is a lookup that is free.

    Whiskers go from low to high of `gains`. The title counts batches of the usual size or more.
    """
    rows = largest(evidence)
    if rows.empty:
        return _not_measured(evidence)
    shapes = _shapes(evidence)
    figure, axes = plots.panels(len(shapes), 6.0, 3.6)
    for ax, shape in zip(axes, shapes, strict=True):
        own = rows[rows["shape"] == shape].sort_values(["batch", "ids"]).reset_index(drop=True)
        hues = own["ids"].map({"zipf": colour("robe"), "uniform": "#56b4e9"})
        whiskers = {"ecolor": MUTED, "capsize": 3, "linewidth": 1.2}
        spread = [own["gain"] - own["low"], own["high"] - own["gain"]]
        ax.bar(own.index, own["gain"], color=hues, width=0.6, yerr=spread, error_kw=whiskers)
        ax.plot(own.index, own["free"], "_", color=INK, markersize=22, markeredgewidth=2)
        ax.axhline(1, color=plots.FULL[0], linewidth=1.4)
        ax.axhline(SPEEDUP, color=INK, linewidth=1.2, linestyle=CEILING)
        ax.annotate("published: 3.1", (0.01, SPEEDUP), (0, 4), ("axes fraction", "data"), textcoords="offset points")
        ax.set_xticks(own.index, [f"{row.batch:,}\n{row.ids}" for row in own.itertuples()])
        ax.set(
            xlabel="Batch and ids",
            ylabel="ROBE over full table (times)",
            ylim=(0, 1.12 * max(SPEEDUP, own["high"].max())),
        )
        usual = _usual_batch(evidence)
        gain = _range(own[own["batch"] >= usual]["gain"], ".2f")
        said = f"{gain} times the full table's throughput at batch {usual:,} and more"
        plots.put_title(ax, f"{shape}, {_gb(own['table_bytes'].iloc[0])}: {said}", 58)
    return figure


@house_style
def by_size(evidence: Evidence) -> Figure:
    """The rate of the lookups alone against the size of the full tables, with what the memory can do at best."""
    speed = evidence.speed[evidence.speed["part"].isin(["lookup", "limit"])]
    if speed.empty:
        return _not_measured(evidence)
    batch = _usual_batch(evidence)
    speed = speed[speed["batch"] == batch]
    speed = speed[(speed["embedding"] != ROBE) | (speed["block_size"] == _default_block(speed))]
    shapes = _shapes(evidence)
    figure, axes = plots.panels(2 * len(shapes), 6.0, 3.5, sharey=True)
    for ax, (shape, ids) in zip(axes, ((s, i) for s in shapes for i in ("zipf", "uniform")), strict=True):
        rows = speed[(speed["shape"] == shape) & (speed["ids"] == ids)]
        for (part, name), line in rows.groupby(["part", "embedding"]):
            line = line.sort_values("table_bytes")
            dash = ":" if part == "limit" else "-"
            label = f"{NAMES[name]}{', limit' if part == 'limit' else ''}"
            ax.plot(line["table_bytes"] / 1e6, line["gb_s"], dash, color=HUES[name], marker="o", ms=4, label=label)
        copies = evidence.speed[(evidence.speed["part"] == "copy") & (evidence.speed["shape"] == shape)]["gb_s"]
        ax.axhline(copies.median(), color=INK, linewidth=1.2, linestyle=CEILING, label="copy")
        ax.set(xscale="log", yscale="log", xlabel="Full tables (MB)", ylabel="Read and written (GB/s)")
        plots.log_axis(ax, rows["table_bytes"] / 1e6, "{:,.0f}".format)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        plots.put_title(ax, f"{shape}, {ids} ids: {_fall(rows)}", 58)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _fall(rows: pd.DataFrame) -> str:
    """Say what a row of 64 or 512 bytes costs more from the largest table than from the smallest."""
    own = rows[(rows["part"] == "lookup") & (rows["embedding"] == FULL)].sort_values("table_bytes")
    if len(own) < 2:
        return "one size was measured"
    slower = own["ms"].iloc[-1] / own["ms"].iloc[0]
    robe = rows[(rows["part"] == "lookup") & (rows["embedding"] == ROBE)].sort_values("table_bytes")
    gain = own["ms"].iloc[-1] / robe["ms"].iloc[-1] if len(robe) else np.nan
    return f"the largest table takes {slower:.2g} times the smallest's time, and {gain:.2g} times ROBE's"


@house_style
def parts(evidence: Evidence) -> Figure:
    """Where a sample's microseconds go at the usual batch and the largest tables."""
    table = shares(evidence)
    if table.empty:
        return _not_measured(evidence)
    shapes = _shapes(evidence)
    figure, axes = plots.panels(len(shapes), 6.0, 2.9)
    hues = {"lookup": colour("robe"), "interaction": "#e69f00", "MLPs": "#c3cad1", "rest": GRID}
    for ax, shape in zip(axes, shapes, strict=True):
        own = table[table["shape"] == shape].reset_index(drop=True)
        left = np.zeros(len(own))
        for part, hue in hues.items():
            ax.barh(own.index, own[part], left=left, color=hue, label=PARTS[part], height=0.66)
            left = left + own[part]
        ax.plot(own["model"], own.index, "|", color=INK, markersize=16, markeredgewidth=2, label="the whole, measured")
        ax.set_yticks(own.index, [f"{NAMES[row.embedding]}, {row.ids}" for row in own.itertuples()])
        ax.set(xlabel="Time of a sample (µs)", ylim=(len(own) - 0.5, -0.5))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        ax.grid(False, axis="y")
        lookup = own[own["embedding"] == FULL]
        said = f"the full table's lookup is {_range(100 * lookup['lookup'] / lookup['model'], '.0f')} % of the model"
        plots.put_title(ax, f"{shape}, batch {_usual_batch(evidence):,}: {said}", 44)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, frameon=False)
    return figure


def shares(evidence: Evidence) -> pd.DataFrame:
    """Return µs a sample of each part, measured alone, at the usual batch and the largest tables.

    Columns: shape, ids, embedding, lookup, interaction, MLPs, rest (what the whole takes beyond their sum, or 0) and
    model (the whole).
    """
    speed = _usual(evidence)
    rows = []
    for (shape, ids), own in speed.groupby(["shape", "ids"], sort=False):
        shared = own[own["embedding"] == ""].set_index("part")["us_per_sample"]
        for name in (FULL, BAGS, ROBE):
            us = own[own["embedding"] == name].set_index("part")["us_per_sample"]
            if {"model", "lookup"} <= set(us.index):
                found = {"lookup": us["lookup"], "interaction": shared["interaction"], "MLPs": shared["MLPs"]}
                rest = max(0.0, us["model"] - sum(found.values()))
                rows.append(
                    {"shape": shape, "ids": ids, "embedding": name, **found, "rest": rest, "model": us["model"]}
                )
    return pd.DataFrame(rows, columns=["shape", "ids", "embedding", "lookup", "interaction", "MLPs", "rest", "model"])


def limits(evidence: Evidence) -> pd.DataFrame:
    """Return the parts beside what the machine can do at best, at the usual batch and the largest tables.

    Columns: shape, ids, part, rate and limit with their unit, share of the limit, us_per_sample, us_at_limit. The
    limit of a lookup is a gather by known indices from the same memory, that of the MLPs a product of matrices.
    """
    speed = _usual(evidence)
    rows = []
    for (shape, ids), own in speed.groupby(["shape", "ids"], sort=False):
        own = own.set_index(["part", "embedding"])
        for name in (FULL, ROBE):
            if ("lookup", name) in own.index and ("limit", name) in own.index:
                found, best = own.loc[("lookup", name)], own.loc[("limit", name)]
                rows.append(_against(shape, ids, f"lookup, {NAMES[name]}", found, best, "gb_s", "GB/s"))
        for part in ("MLPs", "interaction"):
            rows.append(_against(shape, ids, part, own.loc[(part, "")], own.loc[("product", "")], "gflop_s", "GFLOP/s"))
    return pd.DataFrame(rows)


def near_limits(evidence: Evidence) -> Styler:
    """Lay out `limits` for people."""
    table = limits(evidence)
    shown = table.reindex(columns=["shape", "ids", "part"])
    if len(table):
        for name in ("rate", "limit"):
            shown[name] = table[name].map("{:,.1f} ".format) + table["unit"]
        shown["share of the limit"] = table["share"].map("{:.0%}".format)
        shown["µs a sample"] = table["us_per_sample"].map("{:.2f}".format)
        shown["µs at the limit"] = table["us_at_limit"].map("{:.2f}".format)
    return shown.style.hide(axis="index")


def _against(
    shape: str, ids: str, part: str, found: pd.Series, best: pd.Series, rate: str, unit: str
) -> dict[str, object]:
    share = found[rate] / best[rate]
    us = found["us_per_sample"]
    numbers = {"rate": found[rate], "limit": best[rate], "unit": unit, "share": share}
    return {"shape": shape, "ids": ids, "part": part, **numbers, "us_per_sample": us, "us_at_limit": us * share}


@house_style
def roofline(evidence: Evidence) -> Figure:
    """Whole models under the machine's roofs: right of the ridge arithmetic is the limit, and no lookup matters."""
    speed = evidence.speed
    whole = speed[(speed["part"] == "model") & speed["embedding"].isin([FULL, ROBE])]
    if whole.empty:
        return _not_measured(evidence)
    speed = speed[speed["table_bytes"] == speed.groupby("shape")["table_bytes"].transform("max")]
    whole = whole.loc[whole.index.intersection(speed.index)]
    peak = speed[speed["part"] == "product"]["gflop_s"].median()
    figure, ax = plt.subplots(figsize=(10.5, 4.2), layout="constrained")
    x = whole["gflop_s"] / whole["gb_s"]
    span = np.geomspace(0.3, 2.5 * x.max(), 200)
    own = speed[(speed["part"] == "limit") & (speed["ids"] == "uniform") & (speed["batch"] == _usual_batch(evidence))]
    ridges = []
    for name in (FULL, ROBE):
        rate = own[(own["embedding"] == name) & (own["shape"] == _shapes(evidence)[0])]["gb_s"].median()
        label = f"rows at random, {NAMES[name]}: {rate:,.3g} GB/s"
        ax.plot(span, np.minimum(peak, rate * span), color=HUES[name], linewidth=1.8, zorder=1, label=label)
        ridges.append(peak / rate)
    for marker, (shape, rows) in zip("os^", whole.groupby("shape", sort=False), strict=False):
        for name, points in rows.groupby("embedding"):
            label = f"{shape}, {NAMES[name]}"
            ax.plot(x[points.index], points["gflop_s"], marker, color=HUES[name], alpha=0.8, label=label)
    label = f"product of matrices: {peak:,.3g} GFLOP/s"
    ax.axhline(peak, color=INK, linewidth=1.2, linestyle=CEILING, label=label)
    ax.set(xscale="log", yscale="log", xlabel="Operations for a byte that the lookup moves (FLOP/byte)")
    ax.set_ylabel("Reached by the whole model (GFLOP/s)")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    side = "right" if x.min() > max(ridges) else "left" if x.max() < min(ridges) else "on both sides"
    plots.put_title(ax, f"The models lie {side} of the ridge at {_range(pd.Series(ridges))} FLOP/byte", 70)
    return figure


def row_times(evidence: Evidence) -> Styler:
    """Lay out `block_sizes` for people."""
    return block_sizes(evidence).style.format("{:.1f}", na_rep="–")


def block_sizes(evidence: Evidence) -> pd.DataFrame:
    """Return nanoseconds of a looked-up row by block size, at the usual batch and the largest tables; a column each."""
    speed = evidence.speed
    if speed.empty:
        return pd.DataFrame(columns=[NAMES[FULL]])
    rows = speed[(speed["part"] == "lookup") & speed["embedding"].isin([FULL, ROBE])]
    rows = rows[rows["table_bytes"] == rows.groupby("shape")["table_bytes"].transform("max")]
    rows = rows[rows["batch"] == _usual_batch(evidence)]
    name = rows["block_size"].map("ROBE, Z={:.0f}".format).where(rows["embedding"] == ROBE, NAMES[FULL])
    rows = rows.assign(name=name, ns=rows["us_per_sample"] * 1e3 / 26, order=rows["block_size"].fillna(0))
    order = rows.sort_values("order")["name"].unique()
    return rows.pivot_table(index=["shape", "ids"], columns="name", values="ns", sort=False)[order].round(1)


def machine(evidence: Evidence) -> pd.Series:
    """Return what the machine is, and how often others disturbed it."""
    found = evidence.measured.get("machine")
    if found is None or found.empty:
        return pd.Series({"machine": f"not measured yet: pocketrec measure {evidence.suite}"})
    samples = evidence.measured["speed"]["foreign"]
    disturbed = f"{(samples > FOREIGN).mean():.0%} of {len(samples):,}"
    return pd.concat([found.iloc[0], pd.Series({"samples that others disturbed": disturbed})])


def _usual(evidence: Evidence) -> pd.DataFrame:
    """Return the medians at the usual batch, the largest tables and the block size of the whole models."""
    speed = evidence.speed
    if speed.empty:
        return speed
    speed = speed[speed["table_bytes"] == speed.groupby("shape")["table_bytes"].transform("max")]
    speed = speed[speed["batch"] == _usual_batch(evidence)]
    return speed[(speed["embedding"] != ROBE) | (speed["block_size"] == _default_block(speed))]


def _default_block(speed: pd.DataFrame) -> pd.Series:
    """Return, for each row, the block size of its shape's whole model."""
    own = speed[(speed["embedding"] == ROBE) & (speed["part"] == "limit")]
    return speed["shape"].map(own.groupby("shape")["block_size"].first())


def _usual_batch(evidence: Evidence) -> int:
    """Return the batch at which every size was timed."""
    sizes = evidence.speed.groupby("batch")["table_bytes"].nunique()
    return int(sizes.idxmax())


def _shapes(evidence: Evidence) -> list[str]:
    """Return the models that were timed, the paper's first."""
    return sorted(evidence.speed["shape"].unique(), key=lambda name: name != "MLPerf")


def _not_measured(evidence: Evidence) -> Figure:
    return plots.sentence(f"The speed was not measured yet: `pocketrec measure {evidence.suite}`.")


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _range(values: pd.Series, digits: str = ".2g") -> str:
    return " to ".join(dict.fromkeys(f"{end:{digits}}" for end in (values.min(), values.max())))


# the verdicts


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Return the paper's claims: quality at 1000 times, there and on the data at hand, and the throughput."""
    here = [_quality(evidence, dataset) for dataset in evidence.datasets if dataset != CRITEO]
    return [
        _target(evidence),
        *here,
        _faster_on_gpu(evidence, "host"),
        _faster_on_gpu(evidence, "GPU"),
        _faster(evidence),
    ]


def _target(evidence: Evidence) -> Verdict:
    """Judge the AUC on Criteo-TB itself, where the suite has it, by its interval over seeds, or over rows with one."""
    claim = "A DLRM with an array at least 1,000 times smaller than its tables reaches MLPerf's target on Criteo-TB"
    cells = statistics.summary(evidence.runs).dropna(subset="auc")
    ours = (cells["method"] == ROBE) & (cells["variant"] == evidence.block_size)
    cells = cells[ours & (cells["dataset"] == CRITEO) & (cells["ratio_requested"] == evidence.ratio(CRITEO))]
    if cells.empty:
        needs = "Criteo-TB (4.4 billion rows) and a GPU"
        return Verdict(claim, QUALITY, "not run", UNTESTED, needs, "make all SUITE=robe_criteo_tb")
    row = cells.iloc[0]
    one = row["n"] < 2
    half = _half_over_rows(row, evidence.setting) if one else row["auc_ci"]
    over = "over other test rows, from a single seed" if one else f"over {row['n']} seeds"
    here = f"AUC {row['auc']:.4f}" + ("" if pd.isna(half) else f" ± {half:.4f}")
    here += f" {over}, at {times(row['ratio_requested'])}, {evidence.block_size}"
    verdict = by_interval([row["auc"] - half], [row["auc"] + half], least=TARGET)
    if verdict == UNDECIDED:
        needs = f"more seeds than params/suites/{evidence.suite}.yaml names"
        return Verdict(claim, QUALITY, here, verdict, needs, f"pocketrec run {evidence.suite}")
    return Verdict(claim, QUALITY, here, verdict)


def _half_over_rows(row: pd.Series, setting: pd.DataFrame) -> float:
    """Return half of the 95 % interval of an AUC over other test rows, NaN where the record does not tell them.

    By Hanley & McNeil, "The meaning and use of the area under a ROC curve", Radiology 143, 1982. The share of
    positives, taken to be the rarer ones, is where the entropy of the labels is the log loss over the normalised one.
    """
    rows = setting[setting["dataset"] == row["dataset"]]["test rows"] if len(setting) else setting
    entropy = row["log_loss"] / row["ne"]
    if not len(rows) or not 0 < entropy < np.log(2) or pd.isna(rows.iloc[0]):
        return np.nan
    share = brentq(lambda p: entr(p) + entr(1 - p) - entropy, 0, 0.5)
    positives, negatives, auc = share * rows.iloc[0], (1 - share) * rows.iloc[0], row["auc"]
    both, many = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (both - auc**2) + (negatives - 1) * (many - auc**2)
    return 1.96 * np.sqrt(variance / (positives * negatives))


def _quality(evidence: Evidence, dataset: str) -> Verdict:
    """Judge the loss at the suite's ratio of `RATIO` or more by its interval over seeds."""
    row, suite = _cell(evidence, dataset), evidence.suite
    smaller = RATIO if row is None else row["ratio_requested"]
    claim = f"{smaller:,.0f} times smaller at no loss of quality: AUC within {LOSS} of the full table's on {dataset}"
    if row is None:
        return Verdict(claim, QUALITY, "not run yet", UNTESTED, "the suite's runs", f"pocketrec run {suite}")
    here = f"{signed(row['difference'], row['difference_ci'])} over {row['seeds']} seeds, {evidence.block_size}"
    rows = _over_rows(evidence)
    rows = rows[(rows["dataset"] == dataset) & (rows["ratio_requested"] == row["ratio_requested"])]
    if len(rows):
        low, high = (signed(rows.iloc[0][name]) for name in ("rows_low", "rows_high"))
        here += f"; on the same test rows {low} to {high}"
    half = row["difference_ci"]
    verdict = by_interval([row["difference"] - half], [row["difference"] + half], least=-LOSS)
    if verdict == UNDECIDED:
        needs = f"more seeds: the interval reaches to both sides of −{LOSS}"
        return Verdict(claim, QUALITY, here, verdict, needs, f"pocketrec run {suite}")
    return Verdict(claim, QUALITY, here, verdict)


def _faster_on_gpu(evidence: Evidence, place: str) -> Verdict:
    """Judge the throughput on a GPU against a full table in the memory of the `host`, or in that of the `GPU`."""
    where = {"host": "the host's memory", "GPU": "the GPU's own memory"}[place]
    claim = f"On a GPU its inference throughput is {SPEEDUP} times that of the DLRM with full tables in {where}"
    published = FASTER if place == "host" else ELSEWHERE
    rows = on_gpu(evidence)
    if place not in rows.index:
        return Verdict(claim, published, "not measured", UNTESTED, "an NVIDIA GPU", GPU_BENCH)
    row, bench = rows.loc[place], evidence.gpu
    way = {"host": "both as torch launches them", "GPU": f"both as a {GRAPH}"}[place]
    here = (
        f"{_times(row)} on {bench.machine['device']}, each at its best batch, {way}; "
        f"a DLRM of dim {bench.dlrm['dim'].iloc[0]}, zipf ids"
    )
    if (bench.dlrm["foreign"] > FOREIGN).mean() > QUIET:
        return Verdict(claim, published, here, UNTESTED, "a quiet machine", GPU_BENCH)
    return _by_spread(Verdict(claim, published, here, UNDECIDED, "more rounds", GPU_BENCH), rows.loc[[place]])


def _faster(evidence: Evidence) -> Verdict:
    """Judge the throughput of MLPerf's DLRM, where this machine timed it, for both distributions of ids."""
    again, published = f"pocketrec measure {evidence.suite}", ELSEWHERE
    if evidence.speed.empty:
        claim = f"On a processor its inference throughput is {SPEEDUP} times that of the DLRM with full tables"
        return Verdict(claim, published, "not measured yet", UNTESTED, "the measurement", again)
    device = evidence.measured["speed"]["device"].iloc[0]
    on = "a processor" if device == "cpu" else device
    claim = f"On {on} its inference throughput is {SPEEDUP} times that of the DLRM with full tables"
    shape = _shapes(evidence)[0]
    gain, rows = throughput_gain(evidence, shape), largest(evidence)
    rows = rows[(rows["shape"] == shape) & (rows["batch"] >= _usual_batch(evidence))]
    words = " and ".join(f"{_times(row)} with {ids} ids" for ids, row in gain.iterrows())
    here = (
        f"{words}, {_gb(rows['table_bytes'].iloc[0])} of tables, each at its best batch; "
        f"{_range(rows['gain_over_bags'], '.3g')} times 26 bags of torch; "
        f"a free lookup would give {_range(rows['free'], '.3g')}"
    )
    if (evidence.measured["speed"]["foreign"] > FOREIGN).mean() > QUIET:
        return Verdict(claim, published, here, UNTESTED, "a quiet machine", again)
    return _by_spread(Verdict(claim, published, here, UNDECIDED, "more rounds on a quiet machine", again), gain)


def _by_spread(open_: Verdict, gain: pd.DataFrame) -> Verdict:
    """Settle a verdict on the throughput by the spread of all gains, where they do; needs and command then go."""
    verdict = by_interval(gain["low"], gain["high"], least=SPEEDUP)
    return open_ if verdict == UNDECIDED else replace(open_, verdict=verdict, needs="", command="")


def _times(row: pd.Series) -> str:
    return f"{row['gain']:.3g} times [{row['low']:.3g}, {row['high']:.3g}]"


# the drawing


@house_style
def windows(floats: int = 24, block_size: int = 4) -> Figure:
    """Draw what ROBE does: rows of two tables as windows into one circular array, placed by a hash."""
    figure, ax = plt.subplots(figsize=(8.6, 4.4), layout="constrained")
    ax.set(xlim=(-4.1, 2.6), ylim=(-1.65, 1.65), aspect="equal")
    ax.set_axis_off()
    rows = (("user", 17, "#0072b2", (2, 13)), ("user", 18, "#009e73", (21, 6)), ("film", 5, "#d55e00", (15, 19)))
    read = np.zeros(floats, int)
    for ring, (table, id_, hue, starts) in enumerate(rows):
        height = 1.0 - 0.85 * ring
        ax.text(-4.05, height, f"{table} {id_}", va="center", color=hue, fontweight="bold")
        for piece, start in enumerate(starts):
            left = -2.95 + 0.85 * piece
            for place in range(block_size):
                box = (left + 0.19 * place, height - 0.1)
                ax.add_patch(Rectangle(box, 0.17, 0.2, facecolor=hue, alpha=0.85, edgecolor="none"))
            ax.text(left + 0.09 * block_size, height - 0.26, f"block {piece}", ha="center", color=MUTED, fontsize=8)
            _arc(ax, start, block_size, floats, 1.12 + 0.08 * ring, 0.05, hue)
            middle = np.deg2rad(90 - (start + block_size / 2) * 360 / floats)
            spot = (0.4 + 1.36 * np.cos(middle), 1.36 * np.sin(middle))
            side = "left" if spot[0] > 0.4 else "right"
            ax.text(*spot, f"h({table}, {id_}, {piece})", color=hue, fontsize=9, ha=side, va="center")
            read[(start + np.arange(block_size)) % floats] += 1
    for place, count in enumerate(read):
        _arc(ax, place, 1, floats, 1.0, 0.2, ("none", "#b4bdc6", INK)[min(count, 2)], MUTED)
    words = f"one array of\n|M| = {floats} numbers\nfor all tables\n\nblack: shared by two\nempty: not read here"
    ax.text(0.4, 0, words, ha="center", va="center", color=MUTED, fontsize=9)
    ax.text(-4.05, -1.5, f"a row of {2 * block_size} numbers is two blocks of Z = {block_size}", color=MUTED)
    ax.set_title("Every row of every table is read from windows into one circular array")
    return figure


def _arc(
    ax: Axes, start: int, count: int, floats: int, radius: float, width: float, hue: str, edge: str = "white"
) -> None:
    """Draw `count` of the array's numbers from `start` on as a part of a ring, clockwise from the top."""
    step = 360 / floats
    first, last = 90 - (start + count) * step, 90 - start * step
    ax.add_patch(Wedge((0.4, 0), radius, first, last, width=width, facecolor=hue, edgecolor=edge))
