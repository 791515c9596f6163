"""TT-Rec: what its suite's records and measurements say of its claims, in tables, pictures and verdicts.

`load` reads a suite's folder; every other function takes what it returns, shows what is there, and says which command
makes what is missing. What the measured tables hold is said in `pocketrec.papers.tt_rec`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from pocketrec.report.claims import FAILS, HOLDS, UNTESTED, Verdict
from pocketrec.report.columns import signed, times
from pocketrec.report.plots import ALARM, CEILING, FULL, INK, MUTED, colour, house_style, panels, put_title, sentence
from pocketrec.report.results import load_measured, read_records, tidy
from pocketrec.report.speed import FOREIGN
from pocketrec.report.statistics import LEVEL, by_seed, corrected, half_width, on_same_rows, same_mean, summary

INITS = ("sampled_gaussian", "scaled_gaussian", "gaussian", "uniform")
PLAIN_INITS = ("gaussian", "uniform")
INIT_LOOK = {
    "sampled_gaussian": ("#d55e00", "-", "D"),
    "scaled_gaussian": ("#0072b2", "-", "s"),
    "gaussian": ("#7b8794", (0, (4, 2)), "o"),
    "uniform": ("#009e73", (0, (1.2, 1.4)), "^"),
}
DATASET_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c613c")
ROUTE_COLOURS = {
    "plain PyTorch": "#7b8794",
    "plain PyTorch, unique ids": INK,
    "cce": "#d55e00",
    "tt-pytorch": "#009e73",
    "tensorly-torch": "#cc79a7",
    "FBTT-Embedding": "#0072b2",
}
OURS, PLAIN, BAGS, FLOOR = "pocketrec", "plain PyTorch", "26 x nn.EmbeddingBag", "MLPs only"
CONTRACTED = "pocketrec, contracted"
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
NO_LOSS = 0.001  # of AUC
MOST_LOSS = 0.003  # of accuracy, the published 0.3 %
NO_OVERHEAD = 0.05  # of a training step
PUBLISHED_SPEED = 3
QUIET = 0.5  # share of samples that may be disturbed before times say nothing
FULL_SUITE = "tt_rec_criteo_kaggle"


@dataclass
class Evidence:
    """What a suite left behind.

    Attributes:
        suite: its name.
        runs: a row a run, as `load_results` has it, with `init` and `cache`, which `variant` names.
        measured: tables by name; those that were not measured are absent.
    """

    suite: str
    runs: pd.DataFrame
    measured: dict[str, pd.DataFrame]

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
    named = runs["init"] + runs["cache"].map(lambda cache: f", cache {cache:g}" if cache else "")
    return Evidence(Path(results).resolve().name, runs.assign(variant=named), load_measured(results))


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


def compare_sizes(evidence: Evidence) -> pd.DataFrame:
    """Return the published ratios beside arithmetic from published cardinalities."""
    columns = ["data", "tables compressed", "rank", "published", "where", "by arithmetic", "difference"]
    sizes = evidence.table("sizes")
    if sizes.empty:
        return pd.DataFrame(columns=columns)
    rows = []
    for model, claimed, where, tables, rank in PUBLISHED:
        ratio = _ratio(sizes, model, tables, rank)
        gap = f"{ratio / claimed - 1:+.1%}".replace("-", "−")
        rows.append([MODELS[model], tables, rank, f"{claimed}×", where, f"{ratio:.1f}×", gap])
    return pd.DataFrame(rows, columns=columns)


def _ratio(sizes: pd.DataFrame, model: str, tables: int, rank: int) -> float:
    row = sizes[(sizes["model"] == model) & (sizes["tables"] == tables) & (sizes["rank"] == rank)]
    return float(row["ratio"].iloc[0])


def size_table(evidence: Evidence) -> pd.DataFrame:
    """Return the ratio of every rank (column) and number of compressed tables (row); `ceiling`: no cores at all."""
    sizes = evidence.table("sizes")
    if sizes.empty:
        return pd.DataFrame({"missing": [f"no sizes: {evidence.measure}"]})
    named = sizes.assign(
        data=sizes["model"].map(MODELS),
        rank=sizes["rank"].map(lambda rank: f"rank {rank}", na_action="ignore").astype("object").fillna("ceiling"),
        text=sizes["ratio"].map(lambda ratio: f"{ratio:.1f}×"),
    )
    table = named.pivot(index=["data", "tables"], columns="rank", values="text")
    return table[list(dict.fromkeys(named["rank"]))]


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
    handles = [Line2D([], [], color=h, linestyle=d, linewidth=2.2, label=i) for i, (h, d, _) in INIT_LOOK.items()]
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
        for init, rows in table.groupby("init"):
            hue, dash, marker = INIT_LOOK[init]
            ax.plot(rows["rank"], rows[column], color=hue, linestyle=dash, marker=marker, label=init, markersize=6)
        _ranks_axis(ax, sorted(table["rank"].unique()))
        ax.set(yscale="log", xlabel="Rank", ylabel=words)
    axes[0].axhline(1, color=INK, linestyle=CEILING, linewidth=1.2)
    put_title(axes[0], _width_finding(table), 50)
    put_title(axes[1], _shape_finding(table), 50)
    axes[1].legend(frameon=False, fontsize=9)
    return figure


def _width_finding(table: pd.DataFrame, near: float = 1.25) -> str:
    widths = table.groupby("init")["std_ratio"].agg(["min", "max"])
    off = widths[(widths["max"] > near) | (widths["min"] < 1 / near)]
    words = ", ".join(f"{init} is {low:,.3g} to {high:,.3g} times the target" for init, low, high in off.itertuples())
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


def moments(evidence: Evidence) -> pd.DataFrame:
    """Return width and shape of every initialisation and rank for people."""
    table = evidence.table("moments")
    if table.empty:
        return pd.DataFrame({"missing": [f"no initial values: {evidence.measure}"]})
    named = {
        "std_ratio": "width / target",
        "excess_kurtosis": "excess kurtosis",
        "ks": "KS to target",
        "ks_shape": "KS of shape",
        "near_zero": "near zero (normal: 0.080)",
    }
    return table[["init", "rank", *named]].rename(columns=named).round(3)


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


def _cells(evidence: Evidence, metric: str = "auc") -> dict[tuple, pd.Series]:
    """Return, by dataset, ratio and variant of `tt_rec` (or `full`), the metric by seed."""
    return {
        (dataset, ratio if method == "tt_rec" else 1.0, variant if method == "tt_rec" else "full"): values
        for (dataset, method, variant, ratio), values in by_seed(evidence.runs, metric).items()
        if method in ("tt_rec", "full")
    }


def init_differences(evidence: Evidence) -> pd.DataFrame:
    """Return the difference in test AUC between each Gaussian without its middle and each plain initialisation.

    Columns: dataset, ratio, init, against, difference, half, seeds, p (corrected for the number of tests).
    """
    cells = _cells(evidence)
    rows = [
        {"dataset": dataset, "ratio": ratio, "init": init, "against": plain}
        | {"difference": g.mean, "half": g.half, "seeds": g.seeds, "p": g.p}
        for dataset, ratio in dict.fromkeys(cell[:2] for cell in cells)
        for init in INITS[:2]
        for plain in PLAIN_INITS
        if (dataset, ratio, init) in cells and (dataset, ratio, plain) in cells
        for g in [gap(cells[dataset, ratio, init], cells[dataset, ratio, plain])]
    ]
    columns = ["dataset", "ratio", "init", "against", "difference", "half", "seeds", "p"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p=corrected(table["p"].astype("float64")))


def init_table(evidence: Evidence) -> Styler | pd.DataFrame:
    """Return `init_differences` for people."""
    table = init_differences(evidence)
    if table.empty:
        return pd.DataFrame({"missing": [f"no two initialisations have finished: {evidence.run}"]})
    shown = table[["dataset"]].assign(
        ratio=table["ratio"].map(times),
        pair=table["init"] + " − " + table["against"],
        **{"difference in AUC": [str(Gap(*row)) for row in table[["difference", "half", "seeds", "p"]].to_numpy()]},
        seeds=table["seeds"],
        p=table["p"].map(_p),
    )
    return shown.style.hide(axis="index").set_properties(subset=["difference in AUC", "p"], **{"text-align": "right"})


def _p(p: float) -> str:
    return "–" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


@house_style
def init_auc(evidence: Evidence) -> Figure:
    """Test AUC of each initialisation at each ratio, a panel a dataset; whiskers are 95 % intervals over seeds."""
    runs = evidence.runs[evidence.runs["cache"] == 0]
    cells = summary(runs).dropna(subset="auc")
    trains = cells[cells["method"] == "tt_rec"]
    if trains.empty:
        return sentence(f"No run of tt_rec has finished: {evidence.run}.")
    datasets = list(trains["dataset"].unique())
    figure, axes = panels(len(datasets), 5.2, 3.7)
    for ax, dataset in zip(axes, datasets, strict=True):
        rows = trains[trains["dataset"] == dataset]
        _across(ax, cells[(cells["dataset"] == dataset) & (cells["method"] == "full")])
        ratios = sorted(rows["ratio_requested"].unique())
        for place, init in enumerate(INITS):
            line = rows[rows["variant"] == init].sort_values("ratio_requested")
            hue, _, marker = INIT_LOOK[init]
            x = [ratios.index(ratio) + 0.14 * (place - 1.5) for ratio in line["ratio_requested"]]
            ax.errorbar(
                x, line["auc"], line["auc_ci"].fillna(0), color=hue, marker=marker, ls="none", label=init, mew=0
            )
        ax.set_xticks(range(len(ratios)), [times(ratio) for ratio in ratios])
        ax.set(xlim=(-0.5, len(ratios) - 0.5), xlabel="Compression requested", ylabel="Test AUC (mean, 95 % interval)")
        put_title(ax, f"{dataset}: {_best_init(rows)}", 50)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=5, frameon=False)
    return figure


def _across(ax: Axes, full: pd.DataFrame) -> None:
    for row in full.to_dict("records"):
        half = 0 if pd.isna(row["auc_ci"]) else row["auc_ci"]
        ax.axhline(row["auc"], color=FULL[0], linewidth=1.8, label="full table")
        ax.axhspan(row["auc"] - half, row["auc"] + half, color=FULL[0], alpha=0.16, linewidth=0)


def _best_init(rows: pd.DataFrame) -> str:
    first = rows[rows["ratio_requested"] == rows["ratio_requested"].min()].sort_values("auc")
    best, worst = first.iloc[-1], first.iloc[0]
    gain = f", {best['auc'] - worst['auc']:.4f} above {worst['variant']}" if len(first) > 1 else ""
    return f"at {times(best['ratio_requested'])} {best['variant']} is highest{gain}"


def losses(evidence: Evidence) -> pd.DataFrame:
    """Return one row a dataset and ratio: what the initialisation that validates best loses against the full table.

    Columns: dataset, ratio, init, auc and accuracy (`Gap`s to the full table).
    """
    validation, columns = _cells(evidence, "validation_auc"), ["dataset", "ratio", "init", "auc", "accuracy"]
    auc, accuracy = _cells(evidence), _cells(evidence, "accuracy")
    rows = []
    for dataset, ratio in dict.fromkeys(cell[:2] for cell in validation if cell[2] != "full"):
        best = max(
            (i for i in INITS if (dataset, ratio, i) in validation), key=lambda i: _mean(validation, dataset, ratio, i)
        )
        full, cell = (dataset, 1.0, "full"), (dataset, ratio, best)
        if full in auc and cell in auc and full in accuracy and cell in accuracy:
            rows.append([dataset, ratio, best, gap(auc[cell], auc[full]), gap(accuracy[cell], accuracy[full])])
    return pd.DataFrame(rows, columns=columns).sort_values(["dataset", "ratio"], ignore_index=True)


def _mean(cells: dict[tuple, pd.Series], *cell: object) -> float:
    return cells[cell].mean()


def loss_table(evidence: Evidence) -> pd.DataFrame:
    """Return `losses` for people."""
    table = losses(evidence)
    if table.empty:
        return pd.DataFrame({"missing": [f"no tt_rec beside a full table of the same seeds: {evidence.run}"]})
    return pd.DataFrame(
        {
            "dataset": table["dataset"],
            "ratio": table["ratio"].map(times),
            "initialisation": table["init"],
            "AUC − full table": table["auc"].map(str),
            "accuracy − full table": table["accuracy"].map(str),
            "seeds": [gap.seeds for gap in table["auc"]],
        }
    )


def same_rows(evidence: Evidence) -> Styler | pd.DataFrame:
    """Return the differences of test AUC to the full table on the very same test rows, for people."""
    table = on_same_rows(evidence.measured)
    if table.empty:
        return pd.DataFrame({"missing": [f"not tested on the same rows: {evidence.measure}"]})
    shown = table[["dataset", "variant"]].assign(ratio=table["ratio_requested"].map(times))
    for name in ("difference", "low", "high"):
        shown[name] = table[name].map(signed)
    return shown.assign(p=table["p"].map(_p)).style.hide(axis="index")


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


def hit_rate_table(evidence: Evidence, shares: Sequence[float] = (0.001, 0.01, 0.1)) -> pd.DataFrame:
    """Return hit rates at some sizes for people: best, reached while training, and on test rows."""
    table = evidence.table("hit_rates")
    if table.empty:
        return pd.DataFrame({"missing": [f"no hit rates: {evidence.measure}"]})
    rows = pd.concat([_at_share(table, share) for share in shares]).sort_values(["dataset", "share"])
    rates = {name: rows[name].map("{:.1%}".format) for name in ("best", "reached", "test")}
    shown = rows[["dataset", "tables", "rows", "cache"]].assign(share=rows["share"].map("{:.2%}".format), **rates)
    return shown.rename(columns={"tables": "tables compressed", "cache": "cached rows"}).reset_index(drop=True)


def cache_auc(evidence: Evidence) -> pd.DataFrame:
    """Return what a cache of a share of the budget changes in AUC, against no cache in the same budget."""
    cells = _cells(evidence)
    shares = evidence.runs.set_index("variant")["cache"].to_dict()
    rows = []
    for (dataset, ratio, variant), values in cells.items():
        plain = (dataset, ratio, variant.partition(",")[0])
        if shares.get(variant) and plain in cells:
            difference = gap(values, cells[plain])
            rows.append(
                [dataset, times(ratio), f"{shares[variant]:.0%}", values.mean(), str(difference), difference.seeds]
            )
    columns = ["dataset", "ratio", "share of the budget", "AUC", "AUC − without a cache", "seeds"]
    if not rows:
        return pd.DataFrame({"missing": [f"no run with a cache beside one without: {evidence.run}"]})
    return pd.DataFrame(rows, columns=columns).round({"AUC": 4})


# training steps


def overheads(evidence: Evidence) -> pd.DataFrame:
    """Return one row a tensor train and batch: what its training step takes above that of a full table.

    Columns: batch, rank, cache, route, ratio, hit_rate, ms, over_full and over_bags (shares of their step: medians
    over rounds, in which all were timed in turn), disturbed (share of rounds).
    """
    columns = ["batch", "rank", "cache", "route", "ratio", "hit_rate", "ms", "over_full", "over_bags", "disturbed"]
    steps = evidence.table("steps")
    if steps.empty:
        return pd.DataFrame(columns=columns)
    base = steps.pivot_table(index=["batch", "round"], columns="embedding", values="ms", aggfunc="first")
    base = base.reindex(columns=["full", BAGS]).rename(columns={"full": "full_ms", BAGS: "bags_ms"})
    trains = steps[steps["embedding"] == "tt_rec"].join(base, on=["batch", "round"])
    trains = trains.assign(
        over_full=trains["ms"] / trains["full_ms"] - 1,
        over_bags=trains["ms"] / trains["bags_ms"] - 1,
        disturbed=trains["foreign"] > FOREIGN,
    )
    groups = trains.groupby(["batch", "rank", "cache", "route"])
    table = groups[["ratio", "hit_rate", "ms", "over_full", "over_bags"]].median()
    return table.join(groups["disturbed"].mean()).reset_index()[columns]


def overhead_table(evidence: Evidence) -> pd.DataFrame:
    """Return `overheads` for people."""
    table = overheads(evidence)
    if table.empty:
        return pd.DataFrame({"missing": [f"no training step was timed: {evidence.measure}"]})
    rate = table["hit_rate"].map("{:.0%}".format, na_action="ignore").astype("object").fillna("–")
    return pd.DataFrame(
        {
            "batch": table["batch"],
            "rank": table["rank"],
            "cached rows": table["cache"],
            "way": table["route"],
            "ratio": table["ratio"].map(lambda ratio: f"{ratio:.0f}×"),
            "hit rate": rate,
            "ms a step": table["ms"].round(2),
            "above full": table["over_full"].map(_percent),
            "above 26 EmbeddingBags": table["over_bags"].map(_percent),
            "rounds disturbed": table["disturbed"].map("{:.0%}".format),
        }
    )


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
        ax.set(yscale="log", xlabel="Rank", ylabel="Training step (ms)")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        ours = rows[(rows["route"] == OURS) & (rows["cache"] == 0)]["over_full"]
        put_title(ax, f"batch {batch:,}: tensor trains change the full table's step by {_range(ours)}", 50)
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


def refills(evidence: Evidence) -> pd.DataFrame:
    """Return how long it takes to fill the cache anew, which a training does about twenty times."""
    table = evidence.table("refills")
    if table.empty:
        return pd.DataFrame({"missing": [f"no refill was timed: {evidence.measure}"]})
    longest = table.groupby(["rank", "cache", "rows"], as_index=False)["ms"].max().round(1)
    return longest.rename(columns={"cache": "cached rows", "rows": "rows counted", "ms": "longest ms"})


# kernels


def speedups(evidence: Evidence) -> pd.DataFrame:
    """Return how many times faster our lookups are than each way that is not ours, a row a point.

    Columns: route, dim, batch, ids, work, rank, distinct, ours_ms, ms, speedup (of medians).
    """
    columns = ["route", "dim", "batch", "ids", "work", "rank", "distinct", "ours_ms", "ms", "speedup"]
    samples = evidence.table("kernels")
    if samples.empty:
        return pd.DataFrame(columns=columns)
    point = ["dim", "batch", "ids", "work", "rank"]
    medians = samples.groupby([*point, "route"], as_index=False).agg(
        ms=("ms", "median"), distinct=("distinct", "first")
    )
    ours = medians[medians["route"] == OURS].set_index(point)["ms"].rename("ours_ms")
    table = medians[~medians["route"].isin([OURS, CONTRACTED])].join(ours, on=point)
    return table.assign(speedup=table["ms"] / table["ours_ms"])[columns].reset_index(drop=True)


def against_fastest(evidence: Evidence) -> pd.DataFrame:
    """Return `speedups` against the fastest other way at each point."""
    table = speedups(evidence).dropna(subset="speedup")
    return table.loc[table.groupby(["dim", "batch", "ids", "work", "rank"])["ms"].idxmin()].reset_index(drop=True)


def kernel_table(evidence: Evidence) -> pd.DataFrame:
    """Return the times of every way for people, a column a rank, in ms."""
    samples = evidence.table("kernels")
    if samples.empty:
        return pd.DataFrame({"missing": [f"no kernel was timed: {evidence.measure}"]})
    table = samples.pivot_table(index=["dim", "work", "ids", "route"], columns="rank", values="ms", aggfunc="median")
    return table.rename(columns="rank {}".format).round(3)


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
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        here = fastest[(fastest["dim"] == dim) & (fastest["work"] == work)]["speedup"]
        put_title(ax, f"{work}, dim {dim}: {here.min():.2g} to {here.max():.2g} times the fastest other way", 50)
    routes = sorted(table["route"].unique())
    handles = [Line2D([], [], color=ROUTE_COLOURS.get(route, MUTED), label=route) for route in routes]
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
    return "; ".join(f"{row.dataset} at {times(row.ratio)}: {row.auc} AUC" for row in table.itertuples())


def _advice_init(evidence: Evidence) -> str:
    runs = evidence.runs[(evidence.runs["method"] == "tt_rec") & (evidence.runs["cache"] == 0)]
    cells = summary(runs).dropna(subset="validation_auc")
    if cells.empty:
        return f"not known: {evidence.run}"
    best = cells.loc[cells.groupby(["dataset", "ratio_requested"])["validation_auc"].idxmax()]
    counts = best["variant"].value_counts()
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
        f"changes by {_range(rows['over_full'])}"
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
    table = table[table["ratio"] >= 100]
    if table.empty:
        return Verdict(
            claim, published, "no run at 100× beside a full table", UNTESTED, "the suite's runs", evidence.run
        )
    return Verdict(claim, published, _loss_words(table), *_judged(table["auc"], NO_LOSS, evidence))


def _small_loss(evidence: Evidence) -> Verdict:
    claim = "Accuracy falls by 0.3 % at most"
    published, table = f"−0.03 % to −0.3 % of accuracy from 4× to 221× on Kaggle ({FINAL})", losses(evidence)
    if table.empty:
        return Verdict(claim, published, "no run beside a full table", UNTESTED, "the suite's runs", evidence.run)
    return Verdict(claim, published, _loss_words(table), *_judged(table["accuracy"], MOST_LOSS, evidence))


def _loss_words(table: pd.DataFrame) -> str:
    return "; ".join(
        f"{row.dataset} at {times(row.ratio)}: {row.auc} AUC, {row.accuracy} accuracy ({row.auc.seeds} seeds)"
        for row in table.itertuples()
    )


def _judged(gaps: Sequence[Gap], most: float, evidence: Evidence) -> tuple[str, str, str]:
    """Judge losses against the most that is allowed: by whole intervals; return verdict, needs and command."""
    low = [gap.mean - gap.half for gap in gaps]
    high = [gap.mean + gap.half for gap in gaps]
    if any(end < -most for end in high):
        return FAILS, "", ""
    if all(end >= -most for end in low):
        return HOLDS, "", ""
    return (
        UNTESTED,
        "more seeds: the intervals reach past the bound",
        f"more seeds in {evidence.suite}.yaml, then {evidence.run}",
    )


def _criteo(evidence: Evidence) -> Iterator[Verdict]:
    if not evidence.runs["dataset"].str.startswith("criteo").any():
        yield Verdict(
            "The same holds on Criteo's own rows",
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
    table = table[(table["init"] == init) & (table["seeds"] >= 5)]
    if table.empty or table["p"].isna().any():
        return Verdict(claim, published, "fewer than five seeds of a pair", UNTESTED, "the suite's runs", evidence.run)
    here = "; ".join(
        f"{row.dataset} at {times(row.ratio)}: {Gap(row.difference, row.half, row.seeds, row.p)} over {row.against} "
        f"(p {_p(row.p)})"
        for row in table.itertuples()
    )
    better = (table["difference"] > 0) & (table["p"] < LEVEL)
    return Verdict(claim, published, here, HOLDS if better.all() else FAILS)


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
    cores = "on this processor, at ranks 8 and 32 without a cache"
    disturbed = ours["disturbed"].mean()
    here += f" ({cores}; {disturbed:.0%} of rounds disturbed by others)"
    if disturbed > QUIET:
        return Verdict(claim, published, here, UNTESTED, "a quiet machine", evidence.measure)
    return Verdict(claim, published, here, HOLDS if ours["over_full"].max() <= NO_OVERHEAD else FAILS)


def _kernel_verdict(evidence: Evidence) -> Verdict:
    claim = "A kernel for tensor trains is three times faster than what there was before"
    published, table = f"3× the best implementation before ({FINAL})", against_fastest(evidence)
    if table.empty:
        return Verdict(claim, published, "no kernel was timed", UNTESTED, "a quiet machine", evidence.measure)
    worst, best = table.loc[table["speedup"].idxmin()], table.loc[table["speedup"].idxmax()]
    routes = ", ".join(sorted(speedups(evidence)["route"].unique()))
    here = (
        f"this project's kernel on this processor, beside {routes}: {worst['speedup']:.2g}× the fastest of them "
        f"({worst['work']}, dim {worst['dim']}, rank {worst['rank']}, {worst['ids']} ids) to {best['speedup']:.2g}× "
        f"({best['work']}, dim {best['dim']}, rank {best['rank']}, {best['ids']} ids)"
    )
    disturbed = (evidence.table("kernels")["foreign"] > FOREIGN).mean()
    here += f"; {disturbed:.0%} of samples disturbed by others"
    if disturbed > QUIET:
        return Verdict(claim, published, here, UNTESTED, "a quiet machine", evidence.measure)
    return Verdict(claim, published, here, HOLDS if worst["speedup"] >= PUBLISHED_SPEED else FAILS)


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
