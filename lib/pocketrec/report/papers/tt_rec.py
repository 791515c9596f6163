"""TT-Rec: what its suite's records and measurements say of its claims, in tables, pictures and verdicts.

`load` reads a suite's folder; every other function takes what it returns, shows what is there, and says which command
makes what is missing. What the measured tables hold is said in `pocketrec.papers.tt_rec`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from pandas.io.formats.style import Styler
from scipy import stats

from pocketrec.report import claims
from pocketrec.report.claims import FAILS, HOLDS, UNDECIDED, UNTESTED, Verdict, by_interval
from pocketrec.report.columns import CELL, probability, seeds_of, signed, times
from pocketrec.report.plots import (
    ALARM,
    CEILING,
    FULL,
    INK,
    MUTED,
    colour,
    house_style,
    panels,
    plain_ticks,
    put_title,
    sentence,
)
from pocketrec.report.results import load_measured, read_records, tidy
from pocketrec.report.speed import FOREIGN, QUIET
from pocketrec.report.statistics import corrected, half_width, on_same_rows, same_mean, summary

INITS = ("sampled_gaussian", "scaled_gaussian", "gaussian", "uniform")
PLAIN_INITS = ("gaussian", "uniform")
INIT_NAMES = {"sampled_gaussian": "sampled Gaussian", "scaled_gaussian": "scaled Gaussian", "gaussian": "Gaussian"}
INIT_LOOK = {
    "sampled_gaussian": ("#d55e00", "-", "D"),
    "scaled_gaussian": ("#0072b2", (0, (6, 2)), "s"),
    "gaussian": ("#7b8794", (0, (4, 2)), "o"),
    "uniform": ("#009e73", (0, (1.2, 1.4)), "^"),
}
DATASET_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c613c")
ROUTE_COLOURS = {
    "plain PyTorch": "#8c613c",
    "plain PyTorch, unique ids": INK,
    "cce": "#d55e00",
    "tt-pytorch": "#009e73",
    "tensorly-torch": "#cc79a7",
    "FBTT-Embedding": "#0072b2",
}
OURS, PLAIN, BAGS, FLOOR = "pocketrec", "plain PyTorch", "26 x nn.EmbeddingBag", "MLPs only"
CONTRACTED, UNIQUE = "pocketrec, contracted", "plain PyTorch, unique ids"
ROUTE_NAMES = {OURS: "this project", CONTRACTED: "this project, contracted before", UNIQUE: f"{PLAIN} on distinct ids"}
MODELS = {"criteo-kaggle": "Criteo-Kaggle, dim 16", "criteo-tb-10m": "Criteo-TB of 10 M ids, dim 64"}
FIRST, FINAL = "arXiv 2101.11714, first version", "MLSys 2021"
# as published: times, in which version, and the tables and rank that give it by arithmetic
PUBLISHED = (
    ("criteo-kaggle", 4, FINAL, 3, 8),
    ("criteo-kaggle", 117, FIRST, 7, 32),
    ("criteo-kaggle", 221, FINAL, 7, 8),
    ("criteo-tb-10m", 112, FINAL, 7, 8),
)
PUBLISHED_RANKS = (8, 32)
SIZE_TOLERANCE = 0.03  # published ratios are whole numbers: 4x may be 4.1x
AROUND = (100, 120)  # ratios that stand for the published 112 and 117
NO_LOSS = 0.001  # of AUC
MOST_LOSS = 0.003  # of accuracy, the published 0.3 %
NO_OVERHEAD = 0.05  # of a training step
LEAST_SEEDS = 5  # that a verdict on initial values takes
PUBLISHED_SPEED = 3
FULL_SUITE = "tt_rec_criteo_kaggle"


@dataclass
class Evidence:
    """What a suite left behind.

    Attributes:
        suite: its name.
        runs: a row a run, as `load_results` has it; of `tt_rec` with `init`, `cache` and `rest`, the other parameters
            that tell its configurations apart.
        measured: tables by name; those that were not measured are absent.
        records: of the quality runs that have finished.
    """

    suite: str
    runs: pd.DataFrame
    measured: dict[str, pd.DataFrame]
    records: list[dict[str, Any]]

    def table(self, name: str) -> pd.DataFrame:
        """Return a measured table, empty where it was not measured."""
        return self.measured.get(name, pd.DataFrame())

    @property
    def measure(self) -> str:
        """The command that measures."""
        return f"pocketrec measure {self.suite}"

    @property
    def run(self) -> str:
        """The command that trains, measures and reports."""
        return f"make all SUITE={self.suite}"

    @property
    def more_seeds(self) -> tuple[str, str]:
        """What a decision needs where intervals are too wide, and how to get it."""
        return "more seeds", f"more seeds in params/suites/{self.suite}.yaml, then {self.run}"


def load(results: str | Path) -> Evidence:
    """Read a suite's folder, whatever there is of it."""
    records = read_records(Path(results))
    runs = tidy(records)
    knobs = {
        record["run"]: record.get("parameters", {}).get("knobs", {})
        for record in records
        if record["method"] == "tt_rec"
    }
    own = runs["run"].map(lambda run: knobs.get(run, {}))
    runs = runs.assign(init=own.map(lambda k: k.get("init", "")), cache=own.map(lambda k: float(k.get("cache", 0))))
    runs = runs.assign(rest=runs["variant"].map(lambda variant: ", ".join(_rest(variant))))
    done = [r for r in records if r.get("kind", "quality") == "quality" and r["status"] == "done"]
    return Evidence(Path(results).resolve().name, runs, load_measured(results), done)


def _rest(variant: str) -> list[str]:
    """Return what a variant says beside the start and the cache: `rank=8, tables=7` as `rank 8` and `tables 7`."""
    told = [part for part in re.split(r", (?=\w+=)", variant) if part]
    return [part.replace("=", " ", 1) for part in told if not part.startswith(("init=", "cache="))]


def _name(init: str) -> str:
    return INIT_NAMES.get(init, init)


def _readable(variant: str) -> str:
    """Write a variant for people: `cache=0.2, init=scaled_gaussian` as `scaled Gaussian, cache of 20%`."""
    told = dict(re.findall(r"(init|cache)=([^,]+)", variant))
    cached = float(told.get("cache", 0))
    words = [_name(told["init"])] if "init" in told else []
    return ", ".join([*words, *([f"cache of {cached:.0%}"] if cached else []), *_rest(variant)])


def _about(ratio: float) -> str:
    """Write an achieved ratio to three digits."""
    return times(float(f"{ratio:.3g}"))


def _shown(table: pd.DataFrame) -> Styler:
    """Lay a table out as the report's others: no index, numbers to the right."""
    numbers = [name for name in table if pd.api.types.is_numeric_dtype(table[name])]
    styled = table.style.hide(axis="index").set_properties(**{"text-align": "left"})
    return styled.format("{:,}", subset=[n for n in numbers if pd.api.types.is_integer_dtype(table[n])]).set_properties(
        subset=numbers, **{"text-align": "right"}
    )


def _lacking(text: str) -> Styler:
    return _shown(pd.DataFrame({"missing": [text]}))


# what a tensor train is


@house_style
def drawing(rows: int = 10_131_227, rank: int = 8) -> Figure:
    """Draw how a row of 16 floats is read from three cores, with the sizes of one table."""
    dim, digits, widths = 16, _near_cubic(rows), (2, 2, 4)
    ranks = ((1, rank), (rank, rank), (rank, 1))
    floats = sum(p * left * q * right for p, q, (left, right) in zip(digits, widths, ranks, strict=True))
    figure, ax = plt.subplots(figsize=(10, 3.4), layout="constrained")
    ax.set_axis_off()
    ax.set(xlim=(-0.2, 14.4), ylim=(-1.6, 2.9), aspect="equal")
    ax.text(0, 1.05, "row x", fontsize=11, va="center")
    places = ((1.5, 2.2, 0.45), (5.0, 2.2, 1.5), (8.9, 0.9, 1.5))  # left, width, height
    names = (f"1 × 2·{rank}", f"{rank} × 2·{rank}", f"{rank} × 4")
    for k, (place, name) in enumerate(zip(places, names, strict=True)):
        _core(ax, place, f"G{'₁₂₃'[k]}[i{'₁₂₃'[k]}]", name, digits[k])
    for x, sign in ((0.95, "="), (4.45, "×"), (8.35, "×"), (10.75, "=")):
        ax.text(x, 1.05, sign, fontsize=15, va="center", ha="center")
    for j in range(dim):
        ax.add_patch(Rectangle((11.1 + 0.19 * j, 0.93), 0.19, 0.24, facecolor=colour("tt_rec"), edgecolor="white"))
    ax.text(12.6, 1.4, f"{dim} floats", ha="center", color=MUTED, fontsize=9)
    words = (
        f"x = (i₁ · {digits[1]} + i₂) · {digits[2]} + i₃ picks one slice of each core.\n"
        f"Folded on the way: 2 × {rank} times {rank} × 2·{rank} is 4 × {rank}, times {rank} × 4 is 4 × 4, the row."
    )
    ax.text(0, -1.5, words, fontsize=10, va="bottom", linespacing=1.5)
    ax.set_title(
        f"A table of {rows:,} × {dim} = {rows * dim / 1e6:,.0f} M floats as three cores of rank {rank}: "
        f"{floats:,} floats, {times(round(rows * dim / floats))} fewer"
    )
    return figure


def _near_cubic(rows: int) -> list[int]:
    """Return three nearly equal factors whose product is at least `rows`, as `embeddings.tt_rec` chooses them."""
    first = int(np.ceil(rows ** (1 / 3) - 1e-9))
    left = -(-rows // first)
    second = int(np.ceil(left**0.5 - 1e-9))
    return [first, second, -(-left // second)]


def _core(ax: Axes, place: tuple[float, float, float], name: str, shape: str, count: int) -> None:
    """Draw a stack of slices, the one that is read in front."""
    left, wide, tall = place
    middle = 1.05
    for back in (3, 2, 1):
        corner = (left + 0.12 * back, middle - tall / 2 + 0.12 * back)
        ax.add_patch(Rectangle(corner, wide, tall, facecolor="white", edgecolor=MUTED))
    ax.add_patch(Rectangle((left, middle - tall / 2), wide, tall, facecolor=colour("tt_rec"), edgecolor=INK))
    ax.text(left + wide / 2, middle, shape, ha="center", va="center", fontsize=9)
    ax.text(left + wide / 2, middle + 1.35, name, ha="center", fontsize=11)
    ax.text(left + wide / 2, middle - 1.0, f"one of {count} slices", ha="center", va="top", fontsize=9, color=MUTED)


# sizes


def compare_sizes(evidence: Evidence) -> Styler:
    """Return the published ratios beside arithmetic from published cardinalities."""
    columns = ["data", "tables compressed", "rank", "published", "where", "by arithmetic", "difference"]
    sizes = evidence.table("sizes")
    if sizes.empty:
        return _lacking(f"no sizes: {evidence.measure}")
    rows = []
    for model, claimed, where, tables, rank in PUBLISHED:
        ratio = _ratio(sizes, model, tables, rank)
        gap = f"{ratio / claimed - 1:+.1%}".replace("-", "−")
        rows.append([MODELS[model], tables, rank, f"{claimed}×", where, f"{ratio:.1f}×", gap])
    return _shown(pd.DataFrame(rows, columns=columns))


def _ratio(sizes: pd.DataFrame, model: str, tables: int, rank: int) -> float:
    row = sizes[(sizes["model"] == model) & (sizes["tables"] == tables) & (sizes["rank"] == rank)]
    return float(row["ratio"].iloc[0])


def size_table(evidence: Evidence) -> Styler:
    """Return the ratio of every rank (column) and number of compressed tables (row); `ceiling`: no cores at all."""
    sizes = evidence.table("sizes")
    if sizes.empty:
        return _lacking(f"no sizes: {evidence.measure}")
    named = sizes.rename(columns={"tables": "tables compressed"}).assign(
        data=sizes["model"].map(MODELS),
        rank=sizes["rank"].map(lambda rank: f"rank {rank}", na_action="ignore").astype("object").fillna("ceiling"),
        text=sizes["ratio"].map(lambda ratio: f"{ratio:.1f}×"),
    )
    table = named.pivot(index=["data", "tables compressed"], columns="rank", values="text").fillna("–")
    table = table[list(dict.fromkeys(named["rank"]))].rename_axis(columns=None).reset_index()
    return _shown(table).set_properties(subset=list(table)[2:], **{"text-align": "right"})


@house_style
def sizes(evidence: Evidence) -> Figure:
    """Ratio against rank for 3, 5 and 7 compressed tables, a panel a model; rings are the published figures."""
    table = evidence.table("sizes")
    if table.empty:
        return sentence(f"No sizes: {evidence.measure} works them out.")
    models = list(table["model"].unique())
    figure, axes = panels(len(models), 5.2, 3.6)
    for ax, model in zip(axes, models, strict=True):
        rows = table[table["model"] == model]
        for shade, (tables, line) in zip((0.45, 0.7, 1.0), rows.groupby("tables"), strict=False):
            ranked = line.dropna(subset="rank")
            ax.plot(ranked["rank"], ranked["ratio"], "P-", color=colour("tt_rec"), alpha=shade, markersize=6)
            ceiling = line.loc[line["rank"].isna(), "ratio"].iloc[0]
            ax.axhline(ceiling, color=MUTED, linestyle=CEILING, linewidth=0.9, zorder=1)
            ax.annotate(
                f"{tables} tables", (1, ceiling), (5, 0), ("axes fraction", "data"), "offset points", va="center"
            )
        marks = [(rank, claimed) for of, claimed, _, _, rank in PUBLISHED if of == model]
        ax.plot(*zip(*marks, strict=True), "o", mfc="none", mec=ALARM, markersize=12, mew=1.6, linestyle="none")
        for rank, claimed in marks:
            ax.annotate(f"{claimed}×", (rank, claimed), (9, -13), textcoords="offset points", color=ALARM)
        _ranks_axis(ax, sorted(table["rank"].dropna().unique()))
        ax.set(yscale="log", ylabel="Full tables / TT-Rec (×)", xlabel="Rank")
        plain_ticks(ax.yaxis)
        put_title(ax, f"{MODELS[model]}: tables kept whole end it at {times(round(rows['ratio'].max()))}", 50)
    return figure


def _ranks_axis(ax: Axes, ranks: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(ranks, [f"{rank}" for rank in ranks])
    ax.minorticks_off()


# initial values


@house_style
def densities(evidence: Evidence, ranks: Sequence[int] = (1, 8, 64)) -> Figure:
    """Density of fresh entries over |entry / target| on a log axis, a panel a rank, beside the target's own."""
    table, moments = evidence.table("density"), evidence.table("moments")
    shown = [rank for rank in ranks if len(table) and len(moments) and (table["rank"] == rank).any()]
    if not shown:
        return sentence(f"No initial values: {evidence.measure} draws them.")
    figure, axes = panels(len(shown), 4.2, 3.6, columns=3)
    for ax, rank in zip(axes, shown, strict=True):
        for init, rows in table[table["rank"] == rank].groupby("init"):
            hue, dash, _ = INIT_LOOK[init]
            ax.plot(10 ** rows["log10"], rows["density"], color=hue, linestyle=dash, linewidth=1.8)
        x = np.geomspace(1e-4, 1e4, 400)
        ax.plot(x, 2 * stats.norm.pdf(x) * x * np.log(10), color=INK, linestyle=CEILING, linewidth=1.2)
        ax.set(xscale="log", xlim=(1e-3, 3e3), xlabel="|entry| / target's standard deviation")
        wide = moments[(moments["rank"] == rank) & (moments["init"] == "sampled_gaussian")]["std_ratio"]
        put_title(ax, f"rank {rank}: as published, entries are {_said(wide)} times too wide", 38)
    axes[0].set_ylabel("Density (per factor of ten)")
    looks = [(_name(init), hue, dash) for init, (hue, dash, _) in INIT_LOOK.items()]
    handles = [Line2D([], [], color=hue, linestyle=dash, linewidth=2.2, label=name) for name, hue, dash in looks]
    handles.append(Line2D([], [], color=INK, linestyle=CEILING, label="target"))
    figure.legend(handles=handles, loc="outside upper left", ncols=5, frameon=False)
    return figure


def _said(values: pd.Series) -> str:
    return f"{values.iloc[0]:,.3g}" if len(values) else "not measured"


@house_style
def shapes(evidence: Evidence) -> Figure:
    """Width and shape of fresh entries against rank."""
    table = evidence.table("moments")
    if table.empty:
        return sentence(f"No initial values: {evidence.measure} draws them.")
    figure, axes = panels(2, 5.2, 3.5)
    for ax, (column, words) in zip(
        axes,
        {"std_ratio": "Width / target's (×)", "ks_shape": "Distance from a normal shape (KS)"}.items(),
        strict=True,
    ):
        for place, init in enumerate(init for init in INITS if init in set(table["init"])):
            rows = table[table["init"] == init]
            hue, dash, marker = INIT_LOOK[init]
            style = {"color": hue, "linestyle": dash, "marker": marker, "label": _name(init)}
            hollow = {"markerfacecolor": "none", "markersize": 9} if init == "scaled_gaussian" else {"markersize": 5}
            ax.plot(rows["rank"], rows[column], linewidth=2.6 if place == 0 else 1.4, **style, **hollow)
        _ranks_axis(ax, sorted(table["rank"].unique()))
        ax.set(yscale="log", xlabel="Rank", ylabel=words)
        ax.yaxis.set_major_formatter("{x:g}")
    axes[0].axhline(1, color=INK, linestyle=CEILING, linewidth=1.2)
    put_title(axes[0], _width_finding(table), 50)
    put_title(axes[1], _shape_finding(table), 50)
    axes[1].legend(frameon=False, fontsize=9)
    return figure


def _width_finding(table: pd.DataFrame, near: float = 1.25) -> str:
    widths = table.groupby("init")["std_ratio"].agg(["min", "max"])
    off = widths[(widths["max"] > near) | (widths["min"] < 1 / near)]
    words = ", ".join(
        f"{_name(init)} is {low:,.3g} to {high:,.3g} times the target" for init, low, high in off.itertuples()
    )
    return f"Width: {words or 'all are near the target'}"


def _shape_finding(table: pd.DataFrame) -> str:
    by_rank = table.pivot(index="rank", columns="init", values="ks_shape")
    low, high = by_rank.index.min(), by_rank.index.max()
    if "gaussian" not in by_rank or "scaled_gaussian" not in by_rank:
        return "Shape: not all initialisations were measured"
    first, last = by_rank.loc[low, "gaussian"], by_rank.loc[high, "gaussian"]
    cut = by_rank.loc[high, "scaled_gaussian"]
    return (
        f"Shape: plain Gaussian cores go from {first:.2g} at rank {low} to {last:.2g} at {high}, cut ones to {cut:.2g}"
    )


def moments(evidence: Evidence) -> Styler:
    """Return width and shape of every initialisation and rank for people."""
    table = evidence.table("moments")
    if table.empty:
        return _lacking(f"no initial values: {evidence.measure}")
    named = {
        "std_ratio": "width / target",
        "excess_kurtosis": "excess kurtosis",
        "ks": "KS to target",
        "ks_shape": "KS of shape",
        "near_zero": "near zero (normal: 0.080)",
    }
    table = table.assign(start=table["init"].map(_name), **{n: table[n].map(_number) for n in named})
    table = table[["start", "rank", *named]].rename(columns=named)
    return _shown(table).set_properties(subset=list(table)[2:], **{"text-align": "right"})


def _number(value: float) -> str:
    """Write a number of any size to three digits, without an exponent."""
    value = float(f"{value:.3g}")
    digits = 2 - int(np.floor(np.log10(abs(value)))) if value else 0
    return f"{value:,.{max(0, min(digits, 4))}f}".replace("-", "−")


@dataclass(frozen=True)
class Gap:
    """A mean difference over the seeds that two cells share, half of its 95 % interval, and the test's p."""

    mean: float
    half: float
    seeds: int
    p: float

    def __str__(self) -> str:
        half = f" ± {self.half:.4f}" if np.isfinite(self.half) else ""
        return f"{self.mean:+.4f}".replace("-", "−") + half


def gap(of: pd.Series, to: pd.Series) -> Gap:
    """Return by how much one cell is above another, both indexed by seed."""
    each = (of - to).dropna()
    p, _ = same_mean(to, of)
    return Gap(each.mean(), float(half_width(each.std(), len(each))), len(each), p)


class Cell(NamedTuple):
    """What the seeds of one tensor train share."""

    dataset: str
    ratio_requested: float
    rest: str
    init: str
    cache: float


def _cells(evidence: Evidence, metric: str = "auc") -> dict[Cell, pd.Series]:
    """Return the metric of each tensor train by seed."""
    done = evidence.runs[(evidence.runs["method"] == "tt_rec") & (evidence.runs["status"] == "done")]
    groups = done.dropna(subset=metric).groupby(list(Cell._fields))
    return {Cell(*cell): rows.set_index("seed")[metric] for cell, rows in groups}


def _full(evidence: Evidence, metric: str, of: Cell) -> pd.Series:
    """Return the metric of the full table by seed; where there are several, of that which differs in nothing else."""
    runs = evidence.runs
    done = runs[(runs["method"] == "full") & (runs["status"] == "done") & (runs["dataset"] == of.dataset)]
    same = done[done["rest"] == of.rest] if done["rest"].nunique() > 1 else done
    return same.dropna(subset=metric).set_index("seed")[metric]


def _achieved(evidence: Evidence) -> dict[Cell, float]:
    """Return the ratio that each tensor train achieved."""
    done = evidence.runs[evidence.runs["method"] == "tt_rec"].dropna(subset="ratio_achieved")
    return {Cell(*cell): ratio for cell, ratio in done.groupby(list(Cell._fields))["ratio_achieved"].mean().items()}


def init_differences(evidence: Evidence) -> pd.DataFrame:
    """Return the difference in test AUC between each Gaussian without its middle and each plain initialisation.

    Columns: dataset, ratio (achieved), rest, init, against, difference, half, seeds, p (corrected for the number of
    tests).
    """
    cells, achieved = _cells(evidence), _achieved(evidence)
    rows = [
        {"dataset": cell.dataset, "ratio": achieved[cell], "rest": cell.rest, "init": cell.init, "against": plain}
        | {"difference": g.mean, "half": g.half, "seeds": g.seeds, "p": g.p}
        for cell in cells
        if cell.init in INITS[:2] and not cell.cache
        for plain in PLAIN_INITS
        if cell._replace(init=plain) in cells
        for g in [gap(cells[cell], cells[cell._replace(init=plain)])]
    ]
    columns = ["dataset", "ratio", "rest", "init", "against", "difference", "half", "seeds", "p"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p=corrected(table["p"].astype("float64")))


def init_table(evidence: Evidence) -> Styler:
    """Return `init_differences` for people."""
    table = init_differences(evidence)
    if table.empty:
        return _lacking(f"no two initialisations have finished: {evidence.run}")
    shown = _named(table).assign(
        pair=table["init"].map(_name) + " − " + table["against"].map(_name),
        **{"difference in AUC": [str(Gap(*row)) for row in table[["difference", "half", "seeds", "p"]].to_numpy()]},
        seeds=table["seeds"],
        p=table["p"].map(probability),
    )
    return _shown(shown).set_properties(subset=["difference in AUC", "p"], **{"text-align": "right"})


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Return dataset and ratio for people, and the other parameters where any vary."""
    shown = table[["dataset"]].assign(ratio=table["ratio"].map(_about))
    return shown.assign(configuration=table["rest"]) if table["rest"].any() else shown


def _where(row: Any) -> str:
    """Name a row's place in a sentence: `criteo-kaggle at 118× (rank 32, tables 7)`."""
    return f"{row.dataset} at {_about(row.ratio)}" + (f" ({row.rest})" if row.rest else "")


@house_style
def init_auc(evidence: Evidence) -> Figure:
    """Test AUC of each initialisation at each size, a panel a dataset; whiskers are 95 % intervals over seeds."""
    cells = _without_cache(evidence).dropna(subset=["auc", "ratio_achieved"])
    trains = cells[cells["method"] == "tt_rec"]
    if trains.empty:
        return sentence(f"No run of tt_rec has finished: {evidence.run}.")
    datasets = list(trains["dataset"].unique())
    figure, axes = panels(len(datasets), 5.2, 3.7)
    for ax, dataset in zip(axes, datasets, strict=True):
        rows = trains[trains["dataset"] == dataset].sort_values("ratio_achieved")
        _across(ax, cells[(cells["dataset"] == dataset) & (cells["method"] == "full")])
        sizes = list(dict.fromkeys(zip(rows["ratio_requested"], rows["rest"], strict=True)))
        ratios = [rows.loc[(rows["ratio_requested"] == a) & (rows["rest"] == r), "ratio_achieved"] for a, r in sizes]
        for place, init in enumerate(INITS):
            line = rows[rows["init"] == init]
            hue, _, marker = INIT_LOOK[init]
            asked = zip(line["ratio_requested"], line["rest"], strict=True)
            x = [sizes.index(size) + 0.14 * (place - 1.5) for size in asked]
            style = {"color": hue, "marker": marker, "ls": "none", "label": _name(init), "mew": 0}
            ax.errorbar(x, line["auc"], line["auc_ci"].fillna(0), **style)
        ax.set_xticks(range(len(sizes)), [_about(ratio.mean()) for ratio in ratios])
        ax.set(xlim=(-0.5, len(sizes) - 0.5), xlabel="Compression achieved", ylabel="Test AUC (mean, 95 % interval)")
        put_title(ax, f"{dataset}: {_best_init(rows)}", 50)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=5, frameon=False)
    return figure


def _without_cache(evidence: Evidence) -> pd.DataFrame:
    """Return the `summary` of runs without a cache, with `init` and `rest`."""
    runs = evidence.runs[evidence.runs["cache"] == 0]
    return summary(runs).merge(runs[[*CELL, "init", "rest"]].drop_duplicates(CELL), on=CELL)


def _across(ax: Axes, full: pd.DataFrame) -> None:
    for row in full.to_dict("records"):
        half = 0 if pd.isna(row["auc_ci"]) else row["auc_ci"]
        ax.axhline(row["auc"], color=FULL[0], linewidth=1.8, label="full table")
        ax.axhspan(row["auc"] - half, row["auc"] + half, color=FULL[0], alpha=0.16, linewidth=0)


def _best_init(rows: pd.DataFrame) -> str:
    first = rows[(rows["ratio_requested"] == rows["ratio_requested"].min()) & (rows["rest"] == rows["rest"].iloc[0])]
    first = first.sort_values("auc")
    best, worst = first.iloc[-1], first.iloc[0]
    gain = f", {best['auc'] - worst['auc']:.4f} above {_name(worst['init'])}" if len(first) > 1 else ""
    return f"at {_about(best['ratio_achieved'])} {_name(best['init'])} is highest{gain}"


def losses(evidence: Evidence) -> pd.DataFrame:
    """Return one row a dataset and size: what the initialisation that validates best loses against the full table.

    Columns: dataset, ratio (achieved), rest, init, auc and accuracy (`Gap`s to the full table).
    """
    validation, auc, accuracy = (_cells(evidence, metric) for metric in ("validation_auc", "auc", "accuracy"))
    achieved, rows = _achieved(evidence), []
    for place in dict.fromkeys(cell[:3] for cell in validation if not cell.cache):
        rivals = [cell for cell in validation if cell[:3] == place and not cell.cache]
        best = max(rivals, key=lambda cell: validation[cell].mean())
        if best not in auc or best not in accuracy:
            continue
        gaps = [gap(of[best], _full(evidence, name, best)) for name, of in (("auc", auc), ("accuracy", accuracy))]
        if all(each.seeds for each in gaps):
            rows.append([best.dataset, achieved[best], best.rest, best.init, *gaps])
    columns = ["dataset", "ratio", "rest", "init", "auc", "accuracy"]
    return pd.DataFrame(rows, columns=columns).sort_values(["dataset", "ratio"], ignore_index=True)


def loss_table(evidence: Evidence) -> Styler:
    """Return `losses` for people."""
    table = losses(evidence)
    if table.empty:
        return _lacking(f"no tt_rec beside a full table of the same seeds: {evidence.run}")
    told = {
        "initialisation": table["init"].map(_name),
        "AUC − full table": table["auc"].map(str),
        "accuracy − full table": table["accuracy"].map(str),
        "seeds": [gap.seeds for gap in table["auc"]],
    }
    return _shown(_named(table).assign(**told)).set_properties(
        subset=["AUC − full table", "accuracy − full table"], **{"text-align": "right"}
    )


def same_rows(evidence: Evidence) -> Styler:
    """Return the differences of test AUC to the full table on the very same test rows, for people."""
    table = on_same_rows(evidence.measured)
    if table.empty:
        return _lacking(f"not tested on the same rows: {evidence.measure}")
    shown = table[["dataset"]].assign(configuration=table["variant"].map(_readable))
    shown = shown.assign(**{"ratio requested": table["ratio_requested"].map(times)})
    for name in ("difference", "low", "high"):
        shown[f"{name} in AUC" if name == "difference" else name] = table[name].map(signed)
    shown["p"] = table["p"].map(probability)
    return _shown(shown).set_properties(subset=list(shown)[2:], **{"text-align": "right"})


# the cache


@house_style
def hit_rates(evidence: Evidence) -> Figure:
    """Share of lookups answered against the size of the cache, a colour a dataset."""
    table = evidence.table("hit_rates")
    if table.empty:
        return sentence(f"No hit rates: {evidence.measure} counts them.")
    figure, ax = plt.subplots(figsize=(8.6, 4.2), layout="constrained")
    for hue, (dataset, rows) in zip(DATASET_COLOURS, table.groupby("dataset"), strict=False):
        ax.plot(rows["share"], rows["best"], color=hue, linewidth=1.8, label=dataset)
        ax.plot(rows["share"], rows["reached"], color=hue, linestyle=(0, (4, 2)), marker="P", markersize=4)
    ax.set(xscale="log", ylim=(0, 1.02), xlabel="Cached share of the compressed tables' rows")
    ax.set_ylabel("Share of lookups that the cache answers")
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    handles, names = ax.get_legend_handles_labels()
    handles += [Line2D([], [], color=INK), Line2D([], [], color=INK, linestyle=(0, (4, 2)), marker="P", markersize=4)]
    names += ["best, known beforehand", "reached while training"]
    ax.legend(handles, names, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    put_title(ax, _cache_finding(table), 66)
    return figure


def _cache_finding(table: pd.DataFrame, share: float = 0.01) -> str:
    near = _at_share(table, share)
    low, high = near["reached"].min(), near["reached"].max()
    few = f"{low:.0%} to {high:.0%}" if len(near) > 1 else f"{high:.0%}"
    return f"A cache of {share:.0%} of the rows answers {few} of the lookups of a training"


def _at_share(table: pd.DataFrame, share: float) -> pd.DataFrame:
    """Return, for each dataset, the row whose cache is nearest to a share."""
    distance = (np.log(table["share"]) - np.log(share)).abs()
    return table.loc[distance.groupby(table["dataset"]).idxmin()]


def hit_rate_table(evidence: Evidence, shares: Sequence[float] = (0.001, 0.01, 0.1)) -> Styler:
    """Return hit rates at some sizes for people: best, reached while training, and on test rows."""
    table = evidence.table("hit_rates")
    if table.empty:
        return _lacking(f"no hit rates: {evidence.measure}")
    rows = pd.concat([_at_share(table, share) for share in shares]).sort_values(["dataset", "share"])
    rates = {name: rows[name].map("{:.1%}".format) for name in ("best", "reached", "test")}
    shown = rows[["dataset", "tables", "rows", "cache"]].assign(share=rows["share"].map("{:.2%}".format), **rates)
    shown = shown.rename(columns={"tables": "tables compressed", "cache": "cached rows"}).reset_index(drop=True)
    return _shown(shown).set_properties(subset=list(shown)[1:], **{"text-align": "right"})


def cache_auc(evidence: Evidence) -> Styler:
    """Return what a cache of a share of the budget changes in AUC, against no cache in the same budget."""
    cells, achieved, rows = _cells(evidence), _achieved(evidence), []
    for cell, values in cells.items():
        plain = cell._replace(cache=0.0)
        if cell.cache and plain in cells:
            each = gap(values, cells[plain])
            place = {"dataset": cell.dataset, "ratio": achieved[cell], "rest": cell.rest, "share": f"{cell.cache:.0%}"}
            rows.append(place | {"auc": f"{values.mean():.4f}", "gap": str(each), "seeds": each.seeds})
    if not rows:
        return _lacking(f"no run with a cache beside one without: {evidence.run}")
    table = pd.DataFrame(rows)
    words = {"share of the budget": "share", "AUC": "auc", "AUC − without a cache": "gap", "seeds": "seeds"}
    shown = _named(table).assign(**{name: table[column] for name, column in words.items()})
    return _shown(shown).set_properties(subset=list(words), **{"text-align": "right"})


# training steps


def overheads(evidence: Evidence) -> pd.DataFrame:
    """Return one row a tensor train and batch: what its training step takes above that of a full table.

    Columns: batch, rank, cache, route, ratio, hit_rate, ms (median), over_full and over_bags (shares of their step:
    geometric means over rounds, in which all were timed in turn), low and high (95 % t-interval of over_full),
    disturbed (share of rounds).
    """
    columns = ["batch", "rank", "cache", "route", "ratio", "hit_rate", "ms", "over_full", "low", "high", "over_bags"]
    columns.append("disturbed")
    steps = evidence.table("steps")
    if steps.empty:
        return pd.DataFrame(columns=columns)
    base = steps.pivot_table(index=["batch", "round"], columns="embedding", values="ms", aggfunc="first")
    base = base.reindex(columns=["full", BAGS]).rename(columns={"full": "full_ms", BAGS: "bags_ms"})
    trains = steps[steps["embedding"] == "tt_rec"].join(base, on=["batch", "round"])
    trains = trains.assign(
        full=trains["ms"] / trains["full_ms"],
        bags=trains["ms"] / trains["bags_ms"],
        disturbed=trains["foreign"] > FOREIGN,
    )
    way = ["batch", "rank", "cache", "route"]
    groups = trains.groupby(way)
    full, bags = geometric(trains, way, "full") - 1, geometric(trains, way, "bags") - 1
    table = groups[["ratio", "hit_rate", "ms"]].median().join(groups["disturbed"].mean())
    table = table.join(full.rename(columns={"mean": "over_full"})).assign(over_bags=bags["mean"])
    return table.reset_index()[columns]


def geometric(samples: pd.DataFrame, by: Sequence[str], ratio: str) -> pd.DataFrame:
    """Return the geometric mean of a ratio over the rounds of each group, with its 95 % t-interval: mean, low, high."""
    logs = np.log(samples[ratio].astype("float64")).groupby([samples[name] for name in by])
    mean, half = logs.mean(), half_width(logs.std(), logs.count())
    return np.exp(pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half}))


def overhead_table(evidence: Evidence) -> Styler:
    """Return `overheads` for people."""
    table = overheads(evidence)
    if table.empty:
        return _lacking(f"no training step was timed: {evidence.measure}")
    rate = table["hit_rate"].map("{:.0%}".format, na_action="ignore").astype("object").fillna("–")
    shown = pd.DataFrame(
        {
            "batch": table["batch"],
            "rank": table["rank"],
            "cached rows": table["cache"],
            "way": table["route"],
            "ratio": table["ratio"].map(lambda ratio: f"{ratio:.0f}×"),
            "hit rate": rate,
            "ms a step": table["ms"].map("{:.2f}".format),
            "above full": table["over_full"].map(_percent),
            "95 % interval": [_between(*ends) for ends in zip(table["low"], table["high"], strict=True)],
            "above 26 EmbeddingBags": table["over_bags"].map(_percent),
            "rounds disturbed": table["disturbed"].map("{:.0%}".format),
        }
    )
    words = (
        "“ms a step” is a median over all rounds. “above …” compares steps of the same round, in which all took turns, "
        "and is their mean: it does not follow from two medians, and the order may differ."
    )
    shown = _shown(shown).set_properties(subset=list(shown)[4:], **{"text-align": "right"})
    return shown.set_caption(words).set_table_styles([{"selector": "caption", "props": "text-align: left"}])


def _between(low: float, high: float) -> str:
    return "–" if pd.isna(low) else f"{_percent(low)} to {_percent(high)}"


def _percent(share: float) -> str:
    return f"{share:+.0%}".replace("-", "−") if pd.notna(share) else "–"


@house_style
def steps(evidence: Evidence) -> Figure:
    """Time of a training step against rank, a panel a batch size; lines across are the full tables and the floor."""
    table, samples = overheads(evidence), evidence.table("steps")
    if table.empty:
        return sentence(f"No training step was timed: {evidence.measure} times them.")
    batches = sorted(table["batch"].unique())
    figure, axes = panels(len(batches), 5.4, 3.9)
    for ax, batch in zip(axes, batches, strict=True):
        rows = table[table["batch"] == batch]
        for name, hue, dash, marker, line in _step_lines(rows):
            ax.plot(line["rank"], line["ms"], color=hue, linestyle=dash, marker=marker, markersize=6, label=name)
        base = samples[(samples["batch"] == batch) & (samples["embedding"] != "tt_rec")]
        for name, ms in base.groupby("embedding")["ms"].median().items():
            ax.axhline(ms, color=FULL[0], linestyle=_ACROSS[name], linewidth=1.6, label=name)
        _ranks_axis(ax, sorted(rows["rank"].unique()))
        ax.set(yscale="log", xlabel="Rank", ylabel="Training step (median, ms)")
        plain_ticks(ax.yaxis)
        ours = rows[(rows["route"] == OURS) & (rows["cache"] == 0)]["over_full"]
        put_title(ax, f"batch {batch:,}: tensor trains change the full table's step by {_range(ours)}, by round", 50)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


_ACROSS = {"full": "-", BAGS: "--", FLOOR: ":"}


def _step_lines(rows: pd.DataFrame) -> Iterator[tuple]:
    caches = rows[rows["route"] == OURS].groupby("cache")
    for (cache, line), dash, marker in zip(caches, ("-", (0, (4, 2)), (0, (6, 2, 1.2, 2))), "Po^", strict=False):
        yield f"tt_rec, {cache:,} rows cached" if cache else "tt_rec", colour("tt_rec"), dash, marker, line
    plain = rows[rows["route"] == PLAIN]
    if len(plain):
        yield "tt_rec, plain PyTorch", ALARM, (0, (1.2, 1.4)), "v", plain


def _range(shares: pd.Series) -> str:
    if shares.dropna().empty:
        return "an unknown time"
    low, high = _percent(shares.min()), _percent(shares.max())
    return low if low == high else f"{low} to {high}"


def refills(evidence: Evidence) -> Styler:
    """Return how long it takes to fill the cache anew, which a training does about twenty times."""
    table = evidence.table("refills")
    if table.empty:
        return _lacking(f"no refill was timed: {evidence.measure}")
    longest = table.groupby(["rank", "cache", "rows"], as_index=False)["ms"].max()
    longest = longest.rename(columns={"cache": "cached rows", "rows": "rows counted", "ms": "longest (ms)"})
    return _shown(longest).format("{:.0f}", subset=["longest (ms)"])


# kernels


def speedups(evidence: Evidence) -> pd.DataFrame:
    """Return how many times faster our lookups are than each way that is not ours, a row a point.

    Columns: route, dim, batch, ids, work, rank, distinct, ms (median), speedup with low and high: the geometric mean
    over rounds, in which all were timed in turn, and its 95 % t-interval.
    """
    point = ["dim", "batch", "ids", "work", "rank"]
    columns = ["route", *point, "distinct", "ms", "speedup", "low", "high"]
    samples = evidence.table("kernels")
    if samples.empty:
        return pd.DataFrame(columns=columns)
    samples = samples.assign(round=samples.groupby([*point, "route"]).cumcount())  # they are kept in order
    ours = samples[samples["route"] == OURS].set_index([*point, "round"])["ms"].rename("ours")
    theirs = samples[~samples["route"].isin([OURS, CONTRACTED])].join(ours, on=[*point, "round"]).dropna(subset="ours")
    theirs = theirs.assign(gain=theirs["ms"] / theirs["ours"])
    table = theirs.groupby([*point, "route"]).agg(ms=("ms", "median"), distinct=("distinct", "first"))
    gains = geometric(theirs, [*point, "route"], "gain").rename(columns={"mean": "speedup"})
    return table.join(gains).reset_index()[columns]


def against_fastest(evidence: Evidence) -> pd.DataFrame:
    """Return `speedups` against the fastest other way at each point."""
    table = speedups(evidence)
    return table.loc[table.groupby(["dim", "batch", "ids", "work", "rank"])["ms"].idxmin()].reset_index(drop=True)


def kernel_table(evidence: Evidence) -> Styler:
    """Return the times of every way for people, a column a rank, in ms."""
    samples = evidence.table("kernels")
    if samples.empty:
        return _lacking(f"no kernel was timed: {evidence.measure}")
    samples = samples.assign(way=samples["route"].map(_route))
    table = samples.pivot_table(index=["dim", "work", "ids", "way"], columns="rank", values="ms", aggfunc="median")
    table = table.map(_number, na_action="ignore").fillna("–").rename(columns="rank {} (ms)".format)
    table = table.rename_axis(columns=None).reset_index()
    return _shown(table).set_properties(subset=list(table)[4:], **{"text-align": "right"})


def _route(route: str) -> str:
    return ROUTE_NAMES.get(route, route)


@house_style
def kernels(evidence: Evidence) -> Figure:
    """Times faster than each other way against rank, a panel a width and kind of work; dashed: no id twice."""
    table = speedups(evidence)
    if table.empty:
        return sentence(f"No kernel was timed: {evidence.measure} times them.")
    groups = list(table.groupby(["dim", "work"]))
    figure, axes = panels(len(groups), 5.2, 3.5, sharey=True)
    fastest = against_fastest(evidence)
    for ax, ((dim, work), rows) in zip(axes, groups, strict=True):
        for (route, ids), line in rows.groupby(["route", "ids"]):
            dash = "-" if ids == "zipf" else (0, (4, 2))
            ax.plot(
                line["rank"], line["speedup"], color=ROUTE_COLOURS.get(route, MUTED), linestyle=dash, marker="o", ms=4
            )
        ax.axhline(PUBLISHED_SPEED, color=ALARM, linewidth=1.4)
        ax.axhline(1, color=INK, linewidth=0.8)
        _ranks_axis(ax, sorted(table["rank"].unique()))
        ax.set(yscale="log", xlabel="Rank", ylabel="Times faster (×)")
        plain_ticks(ax.yaxis)
        here = fastest[(fastest["dim"] == dim) & (fastest["work"] == work)]["speedup"]
        put_title(ax, f"{work}, dim {dim}: {here.min():.2g} to {here.max():.2g} times the fastest other way", 50)
    routes = sorted(table["route"].unique())
    hues = [(route, ROUTE_COLOURS.get(route, MUTED)) for route in routes]
    handles = [Line2D([], [], color=hue, marker="s", ls="none", label=_route(route)) for route, hue in hues]
    handles += [Line2D([], [], color=MUTED, linestyle=d, label=_ids(table, i)) for i, d in _ID_DASHES.items()]
    handles.append(Line2D([], [], color=ALARM, label=f"published: {PUBLISHED_SPEED}×"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


_ID_DASHES = {"zipf": "-", "uniform": (0, (4, 2))}


def _ids(table: pd.DataFrame, ids: str) -> str:
    distinct = table.loc[table["ids"] == ids, "distinct"]
    return f"{ids} ids, {distinct.mean():.0%} distinct" if len(distinct) else f"{ids} ids"


# what is missing, and what follows


def missing(evidence: Evidence) -> pd.DataFrame:
    """Return what was not measured or has not finished, why, and the command that makes it."""
    rows = [
        {"what": name, "reason": "not measured", "command": evidence.measure}
        for name in ("sizes", "moments", "hit_rates", "steps", "kernels")
        if evidence.table(name).empty
    ]
    unfinished = evidence.runs[~evidence.runs["status"].isin(["done", "infeasible"])]
    rows += [
        {"what": row.run, "reason": row.reason or row.status, "command": f"pocketrec retry {evidence.suite}"}
        for row in unfinished.itertuples()
    ]
    if evidence.runs.empty:
        rows.append({"what": "training runs", "reason": "none was found", "command": evidence.run})
    skipped = evidence.table("skipped")
    return pd.concat([pd.DataFrame(rows, columns=["what", "reason", "command"]), skipped], ignore_index=True)


def choosing(evidence: Evidence) -> Styler:
    """Return what the numbers mean for someone who chooses, computed from what was found."""
    rows = {
        "How far can it go?": _advice_size(evidence),
        "At what loss?": _advice_loss(evidence),
        "Which initial values?": _advice_init(evidence),
        "A cache of hot rows?": _advice_cache(evidence),
        "What does training cost?": _advice_steps(evidence),
    }
    table = pd.DataFrame({"question": list(rows), "answer": list(rows.values())})
    return table.style.hide(axis="index").set_properties(**{"text-align": "left", "vertical-align": "top"})


def _advice_size(evidence: Evidence) -> str:
    table = evidence.table("sizes")
    if table.empty:
        return f"not measured: {evidence.measure}"
    ends = table[table["rank"].isna()].groupby("model")["ratio"].max()
    words = ", ".join(f"{times(round(end))} on {MODELS[model]}" for model, end in ends.items())
    return f"as far as the tables kept whole allow: {words} with seven compressed; the rank is then cheap below 16"


def _advice_loss(evidence: Evidence) -> str:
    table = losses(evidence)
    if table.empty:
        return f"not known: {evidence.run}"
    return "; ".join(f"{_where(row)}: {row.auc} AUC" for row in table.itertuples())


def _advice_init(evidence: Evidence) -> str:
    cells = _without_cache(evidence).dropna(subset="validation_auc")
    cells = cells[cells["method"] == "tt_rec"]
    if cells.empty:
        return f"not known: {evidence.run}"
    best = cells.loc[cells.groupby(["dataset", "ratio_requested", "rest"])["validation_auc"].idxmax()]
    counts = best["init"].map(_name).value_counts()
    return "best on validation: " + ", ".join(f"{init} in {n} of {len(best)} cells" for init, n in counts.items())


def _advice_cache(evidence: Evidence) -> str:
    table = evidence.table("hit_rates")
    return (
        f"not measured: {evidence.measure}"
        if table.empty
        else f"{_cache_finding(table)}, and costs its bytes in the budget"
    )


def _advice_steps(evidence: Evidence) -> str:
    table = overheads(evidence)
    ours = table[(table["route"] == OURS) & (table["cache"] == 0)]
    if ours.empty:
        return f"not measured: {evidence.measure}"
    return "; ".join(
        f"batch {batch:,}, ranks {rows['rank'].min()} to {rows['rank'].max()}: a full table's step "
        f"changes by {_range(rows['over_full'])}, by round"
        for batch, rows in ours.groupby("batch")
    )


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Return every claim with what was found here; the rule of each is in the module's constants."""
    return [
        _size_verdict(evidence, "criteo-kaggle", f"4× to 221× ({FINAL}); 117× ({FIRST})"),
        _size_verdict(evidence, "criteo-tb-10m", f"112× ({FINAL})"),
        _no_loss(evidence),
        _small_loss(evidence),
        *_criteo(evidence),
        _init_verdict(evidence, "sampled_gaussian", "as published"),
        _init_verdict(evidence, "scaled_gaussian", "divided by rank and variance"),
        _overhead_verdict(evidence),
        _kernel_verdict(evidence),
        *_cuda(evidence),
    ]


def verdict_table(evidence: Evidence) -> Styler:
    """Return the table of verdicts."""
    return claims.table(verdicts(evidence))


def tally(evidence: Evidence) -> str:
    """Say in one line how the claims fared."""
    return claims.tally(verdicts(evidence))


def _size_verdict(evidence: Evidence, model: str, published: str) -> Verdict:
    claim, table = f"The tables of {MODELS[model]} get this much smaller", evidence.table("sizes")
    if table.empty:
        return Verdict(claim, published, "not worked out", UNTESTED, "arithmetic alone", evidence.measure)
    own = [(_ratio(table, of, k, rank), claimed, k, rank) for of, claimed, _, k, rank in PUBLISHED if of == model]
    words = ", ".join(f"{ratio:.1f}× with {k} tables at rank {rank}" for ratio, _, k, rank in own)
    holds = all(abs(ratio / claimed - 1) <= SIZE_TOLERANCE for ratio, claimed, _, _ in own)
    return Verdict(claim, published, f"by arithmetic from published cardinalities: {words}", HOLDS if holds else FAILS)


def _no_loss(evidence: Evidence) -> Verdict:
    claim, published = "Nothing is lost at 117× or 112×", f"no loss on Kaggle ({FIRST}) and on TB ({FINAL})"
    table = losses(evidence)
    table = table[table["ratio"].between(*AROUND)]
    if table.empty:
        here = f"no run from {AROUND[0]}× to {AROUND[1]}× beside a full table"
        return Verdict(claim, published, here, UNTESTED, "the suite's runs", evidence.run)
    return Verdict(claim, published, _loss_words(table), *_judged(table["auc"], NO_LOSS, evidence))


def _small_loss(evidence: Evidence) -> Verdict:
    claim = "Accuracy falls by 0.3 % at most"
    published, table = f"−0.03 % to −0.3 % of accuracy from 4× to 221× on Kaggle ({FINAL})", losses(evidence)
    if table.empty:
        return Verdict(claim, published, "no run beside a full table", UNTESTED, "the suite's runs", evidence.run)
    return Verdict(claim, published, _loss_words(table), *_judged(table["accuracy"], MOST_LOSS, evidence))


def _loss_words(table: pd.DataFrame) -> str:
    return "; ".join(
        f"{_where(row)}: {row.auc} AUC, {row.accuracy} accuracy ({seeds_of(row.auc.seeds)})"
        for row in table.itertuples()
    )


def _judged(gaps: Sequence[Gap], most: float, evidence: Evidence) -> tuple[str, ...]:
    """Judge losses against the most that is allowed; return the verdict and, where it is open, needs and command."""
    verdict = by_interval([g.mean - g.half for g in gaps], [g.mean + g.half for g in gaps], least=-most)
    return (verdict, *evidence.more_seeds) if verdict == UNDECIDED else (verdict,)


def _criteo(evidence: Evidence) -> Iterator[Verdict]:
    if not evidence.runs["dataset"].str.startswith("criteo").any():
        yield Verdict(
            "Losses are as small on Criteo's own rows",
            f"Criteo-Kaggle and Criteo-TB ({FINAL})",
            "sizes and steps use their cardinalities; no model was trained on their rows",
            UNTESTED,
            "Criteo-Kaggle (45.8 M rows) and a GPU",
            f"pocketrec prepare criteo-kaggle --raw train.txt && make all SUITE={FULL_SUITE}",
        )


def _init_verdict(evidence: Evidence, init: str, words: str) -> Verdict:
    claim = f"A sampled Gaussian, {words}, trains to a better AUC than a Gaussian or uniform start"
    published = f"the initial distribution matters; no figure is quoted here ({FINAL})"
    table = init_differences(evidence)
    table = table[table["init"] == init]
    if table.empty:
        return Verdict(claim, published, "no pair of initialisations", UNTESTED, "the suite's runs", evidence.run)
    table = table[table["seeds"] >= LEAST_SEEDS]
    if table.empty:
        return Verdict(claim, published, f"fewer than {LEAST_SEEDS} seeds of a pair", UNDECIDED, *evidence.more_seeds)
    here = "; ".join(
        f"{_where(row)}: {Gap(row.difference, row.half, row.seeds, row.p)} over {_name(row.against)}"
        for row in table.itertuples()
    )
    verdict = by_interval(table["difference"] - table["half"], table["difference"] + table["half"], least=0)
    return Verdict(claim, published, here, verdict, *(evidence.more_seeds if verdict == UNDECIDED else ()))


def _overhead_verdict(evidence: Evidence) -> Verdict:
    claim = "A training step takes no longer than with full tables"
    published, table = f"no training-time overhead (TB: {FINAL}; Kaggle: {FIRST})", overheads(evidence)
    ours = table[(table["route"] == OURS) & (table["cache"] == 0) & table["rank"].isin(PUBLISHED_RANKS)]
    ours = ours.dropna(subset=["over_full", "over_bags"])
    if ours.empty:
        return Verdict(claim, published, "no step was timed", UNTESTED, "a quiet machine", evidence.measure)
    here = "; ".join(
        f"batch {batch:,}: {_range(rows['over_full'])} against this project's full table, {_range(rows['over_bags'])} "
        "against 26 EmbeddingBags"
        for batch, rows in ours.groupby("batch")
    )
    cores = "on this processor, at ranks 8 and 32 without a cache, in the same round"
    disturbed = ours["disturbed"].mean()
    here += f" ({cores}; {disturbed:.0%} of rounds disturbed by others)"
    return _timed(claim, published, here, disturbed, by_interval(ours["low"], ours["high"], NO_OVERHEAD), evidence)


def _timed(claim: str, published: str, here: str, disturbed: float, verdict: str, evidence: Evidence) -> Verdict:
    """Return a verdict by times, which say nothing where others kept the machine busy."""
    if disturbed > QUIET:
        return Verdict(claim, published, here, UNTESTED, "a quiet machine", evidence.measure)
    return Verdict(
        claim, published, here, verdict, *(("more rounds", evidence.measure) if verdict == UNDECIDED else ())
    )


def _kernel_verdict(evidence: Evidence) -> Verdict:
    claim = "This project's kernel for tensor trains is three times faster than other code for them"
    published = f"3×, of TT-Rec's own kernel over the best implementation before ({FINAL})"
    table = against_fastest(evidence)
    if table.empty:
        return Verdict(claim, published, "no kernel was timed", UNTESTED, "a quiet machine", evidence.measure)
    worst, best = table.loc[table["speedup"].idxmin()], table.loc[table["speedup"].idxmax()]
    routes = "; ".join(_route(route) for route in sorted(speedups(evidence)["route"].unique()))
    here = (
        f"on this machine, {worst['speedup']:.2g}× the fastest other way ({_point(worst)}) to {best['speedup']:.2g}× "
        f"({_point(best)}). The others: {routes}"
    )
    disturbed = (evidence.table("kernels")["foreign"] > FOREIGN).mean()
    here += f". {disturbed:.0%} of samples were disturbed by others"
    verdict = by_interval(table["low"], table["high"], least=PUBLISHED_SPEED)
    return _timed(claim, published, here, disturbed, verdict, evidence)


def _point(row: pd.Series) -> str:
    return f"{row['work']}, dim {row['dim']}, rank {row['rank']}, {row['ids']} ids"


def _cuda(evidence: Evidence) -> Iterator[Verdict]:
    kernels = evidence.table("kernels")
    if kernels.empty or "FBTT-Embedding" not in set(kernels["route"]):
        yield Verdict(
            "TT-Rec's own CUDA kernel is three times faster than those before it",
            f"3× ({FINAL})",
            "not run: its kernel needs a GPU",
            UNTESTED,
            "an NVIDIA GPU, FBTT-Embedding built and tt-pytorch beside it",
            f"POCKETREC_RIVALS=FOLDER {evidence.measure}",
        )
