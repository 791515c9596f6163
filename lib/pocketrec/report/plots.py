"""The pictures. Each takes a tidy frame of `report.results` and returns a figure.

A method has the same colour and marker everywhere. The text of a figure's title is its finding.
"""

import textwrap
import zlib
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import pairwise
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from pocketrec.files import spelled
from pocketrec.report.columns import METRICS, TIE, natural, times
from pocketrec.report.results import is_baseline, is_full
from pocketrec.report.statistics import (
    ENOUGH,
    finding,
    front,
    half_width,
    label,
    size_finding,
    summary,
    true_ratio,
    verdict,
    with_loss,
)

INK, MUTED, GRID, ALARM, PAPER = "#1f2933", "#667380", "#dde2e8", "#c2342b", "#ffffff"
CEILING = (0, (5, 4))  # dashes of the best reachable score
ON_DARK, ON_LIGHT = "#f7f9fb", "#101418"  # text inside coloured cells
FULL = ("#7b8794", "o")
# Okabe and Ito's colours, told apart by the colour-blind, the darker ones first. A method keeps its place; those
# beyond the eighth share a colour with another marker.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f6bb8", "#8c613c")
_MARKERS = ("s", "D", "^", "v", "P", "X", "<", ">")
_DASHES = ("-", (0, (4, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)))  # one a variant; then with another marker
CROWD = 6  # lines of a panel; where there are more, their bands would hide them
_WORDS = {"table_lr": "learning rate of the tables"}  # for parameters that are searched
_KNOWN = ("robe", "hashing", "low_dim", "quotient_remainder", "tt_rec", "mlet", "cce", "cafe")
_KNOWN += ("dhe", "dpq", "hash_embeddings", "memcom", "mgqe", "mixed_dim", "pruning", "pss")

_STYLE = sns.axes_style("ticks") | {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.labelsize": 10,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.8,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "figure.dpi": 110,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.12,
}


class End(NamedTuple):
    """Where a line ends at the right, and what is written beside it; without a marker that is a line across."""

    height: float
    text: str
    colour: str
    marker: str = ""


def look(method: str) -> tuple[str, str]:
    """Return the method's colour and marker. One without a place of its own gets it from its name."""
    if method == "full":
        return FULL
    if method in _KNOWN:
        place = _KNOWN.index(method)
        return _COLOURS[place % 8], _MARKERS[(place + place // 8 * 4) % 8]
    code = zlib.crc32(method.encode())
    return _COLOURS[code % 8], _MARKERS[code // 8 % 8]


def colour(method: str) -> str:
    """Return the method's colour, the same in every figure."""
    return look(method)[0]


def house_style(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the house style, and leave no figure open for a notebook to show twice."""

    @wraps(draw)
    def styled(*args, **kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            figure = draw(*args, **kwargs)
            plt.close(figure)
        return figure

    return styled


def sentence(text: str) -> Figure:
    """Return a figure that only says why there is nothing to draw."""
    figure, ax = plt.subplots(figsize=(5.6, 1.0), layout="constrained")
    ax.set_axis_off()
    ax.text(0, 0.5, textwrap.fill(text, 72), color=MUTED, va="center", transform=ax.transAxes)
    return figure


def panels(count: int, width: float, height: float, columns: int = 2, **kwargs) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels of a width and height in inches, row by row, and their axes."""
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **kwargs)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count])


def _room(labels: pd.Series) -> float:
    """Return the inches that labels need beyond those of a method's name."""
    return 0.085 * max(0, labels.str.len().max() - 14)


def put_title(ax: Axes, text: str, width: int) -> None:
    """Write a panel's title, its finding, in lines of up to `width` characters."""
    ax.set_title(textwrap.fill(text, width))


@house_style
def auc_vs_ratio(results: pd.DataFrame, method: str = "") -> Figure:
    """Test AUC against the achieved ratio, a panel a dataset; a few lines have bands, 95 % intervals over seeds.

    With a `method`, the others are grey lines without a name, and the title is about that method.
    """
    return _tradeoff(results, "ratio_achieved", finding, method)


@house_style
def auc_vs_bytes(results: pd.DataFrame) -> Figure:
    """Test AUC against the real bytes of the inference form, a panel a dataset."""
    return _tradeoff(results, "inference_bytes", size_finding)


def _tradeoff(results: pd.DataFrame, x: str, finding: Callable[[pd.DataFrame], str], method: str = "") -> Figure:
    cells = summary(results).dropna(subset=["auc", x])
    if cells.empty:
        return sentence(f"No AUC to show: {verdict(results)}.")
    cells = cells.assign(x=cells[x] * METRICS[x].scale, label=cells.apply(label, axis=1))
    datasets = list(cells["dataset"].unique())
    tall = max(3.9, 0.26 * cells.groupby("dataset")["label"].nunique().max() + 1.2)
    figure, axes = panels(len(datasets), 5.6 + _room(cells["label"]), tall)
    for ax, dataset in zip(axes, datasets, strict=True):
        shown = cells[cells["dataset"] == dataset]
        meant = is_full(shown) | (shown["method"] == method) | (method == "")
        crowded = shown.loc[meant, "label"].nunique() > CROWD
        ax.set(xscale="log", xlabel=METRICS[x].axis)
        ax.set_ylabel("Test AUC (mean over seeds)" if crowded else "Test AUC (mean, 95 % band)")
        for rows, *_ in _lines(shown[~meant]):
            rows = rows.sort_values("ratio_requested")
            ax.plot(rows["x"], rows["auc"], color=GRID, linewidth=1.4, marker="o", markersize=3, zorder=1)
        if x == "ratio_achieved":
            others = shown.loc[~is_baseline(shown), "x"]
            log_axis(ax, others if len(others) else shown["x"], times)
        else:
            log_axis(ax, shown["x"], "{:,.3g}".format)
            ax.invert_xaxis()  # compression grows to the right, as with ratios
        drawn = shown[meant]
        _tradeoff_panel(ax, drawn.assign(auc_ci=drawn["auc_ci"].where(is_baseline(drawn) | (not crowded))), x)
        rows = results[results["dataset"] == dataset]
        rows = rows[is_full(rows) | (rows["method"] == method)] if method else rows
        put_title(ax, f"{dataset}: {finding(rows)}", 52)
    return figure


def _tradeoff_panel(ax: Axes, cells: pd.DataFrame, x: str) -> None:
    """Draw a line a method, the baseline and the ceiling as lines across, each labelled beside the axes."""
    baseline = is_baseline(cells)
    ends = lines_across(ax, cells) + [_series(ax, *line) for line in _lines(cells[~baseline])]
    if x != "ratio_achieved":
        ax.plot(cells.loc[baseline, "x"], cells.loc[baseline, "auc"], FULL[1], color=FULL[0], markersize=7)
    label_right(ax, ends)


@house_style
def against(results: pd.DataFrame, x: str, y: str) -> Figure:
    """Any metric against any other, a panel a dataset, a line a method; whiskers are 95 % intervals."""
    cells = summary(results).dropna(subset=[x, y])
    if cells.empty:
        return sentence(f"Nothing to show of {METRICS[y].label} against {METRICS[x].label}: {verdict(results)}.")
    cells = cells.assign(label=cells.apply(label, axis=1))
    groups = list(cells.groupby("dataset"))
    figure, axes = panels(len(groups), 6.4, 4.2)
    for ax, (dataset, rows) in zip(axes, groups, strict=True):
        for line, dash, marker in _lines(rows):
            line = line.sort_values("ratio_requested")
            hue = colour(line["method"].iloc[0])
            half = line[f"{y}_ci"].fillna(0) * METRICS[y].scale if f"{y}_ci" in line else None
            values = line[x] * METRICS[x].scale, line[y] * METRICS[y].scale
            ax.errorbar(*values, half, color=hue, marker=marker, ls=dash, lw=1.4, label=line["label"].iloc[0], mew=0)
        if rows[x].min() > 0 and rows[x].max() > 20 * rows[x].min():
            ax.set_xscale("log")
            log_axis(ax, rows[x] * METRICS[x].scale, "{:,.4g}".format)
        ax.set(xlabel=METRICS[x].axis, ylabel=METRICS[y].axis)
        best = rows[y].idxmin() if METRICS[y].better == "lower" else rows[y].idxmax()
        best_label = f"{rows['label'][best]} at {times(true_ratio(rows)[best])}"
        put_title(ax, f"{dataset}: {METRICS[y].label} is best with {best_label}", 52)
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@house_style
def pareto(results: pd.DataFrame, x: str = "inference_bytes") -> Figure:
    """AUC loss against bytes, or against `x="latency_p99_ms"`, a panel a dataset; what another cell beats is faded."""
    cells = with_loss(summary(results)).dropna(subset=["auc_loss", x])
    if cells.empty:
        return sentence(f"No {METRICS[x].label.lower()} to show: {verdict(results)}.")
    cells = cells.assign(x=cells[x] * METRICS[x].scale, ahead=front(cells, x), label=cells.apply(label, axis=1))
    cells = cells.sort_values("x")
    datasets = sorted(cells["dataset"].unique())
    figure, axes = panels(len(datasets), 5.6, 4.2)
    for ax, dataset in zip(axes, datasets, strict=True):
        rows = cells[cells["dataset"] == dataset].sort_values("ahead", kind="stable")
        ax.set(xscale="log", xlabel=METRICS[x].axis, ylabel=loss_axis(rows))
        _pareto_panel(ax, rows)
        names = rows.loc[rows["ahead"], "label"].unique()
        kind = "its time, taken once," if x.startswith("latency") else "its size"
        put_title(ax, f"{dataset}: the best AUC for {kind} is that of {', '.join(names)}", 52)
    return figure


def loss_axis(cells: pd.DataFrame) -> str:
    """Name the axis of a loss of `with_loss`, with what it is against."""
    return f"AUC loss to {cells['reference'].iloc[0] or 'the best cell'} (mean, 95 % interval)"


def _pareto_panel(ax: Axes, cells: pd.DataFrame) -> None:
    for row in cells.to_dict("records"):
        hue, marker = look(row["method"])
        half = 0 if pd.isna(row["auc_loss_ci"]) else row["auc_loss_ci"]
        strength = 1 if row["ahead"] else 0.25
        ax.errorbar(row["x"], row["auc_loss"], half, color=hue, marker=marker, markersize=7, alpha=strength, mew=0)
    ax.axhline(0, color=FULL[0], linewidth=1.2)
    ahead = cells[cells["ahead"]]
    ax.step(ahead["x"], ahead["auc_loss"], where="post", color=MUTED, linewidth=1, zorder=1)
    log_axis(ax, cells["x"], "{:,.3g}".format)
    ax.margins(y=0.12)
    label_points(ax, ahead)


def label_points(ax: Axes, points: pd.DataFrame) -> None:
    """Name points where there is room: a label that would cover another or leave the axes is left out."""
    canvas = ax.figure.canvas
    canvas.draw()
    taken, inside = [], ax.get_window_extent()
    for row in points.assign(ratio=true_ratio(points)).to_dict("records"):
        text = f"{row['label']} {times(row['ratio'])}"
        for place, align, rise in (((7, 6), "left", "bottom"), ((-7, 6), "right", "bottom"), ((7, -6), "left", "top")):
            note = ax.annotate(
                text, (row["x"], row["auc_loss"]), place, textcoords="offset points", ha=align, va=rise, fontsize=9
            )
            note.set_bbox({"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.5})
            box = note.get_window_extent()
            free = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if free and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            note.remove()


def _lines(frame: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, str | tuple, str]]:
    """Yield the rows of each method and variant with dash and marker: solid and the method's own for its first."""
    for name, method in frame.groupby("method"):
        variants = sorted(method["variant"].unique(), key=natural)
        first = (*_MARKERS, FULL[1]).index(look(name)[1])
        for place, variant in enumerate(variants):
            marker = look(name)[1] if place < len(_DASHES) else _MARKERS[(first + place // len(_DASHES)) % 8]
            yield method[method["variant"] == variant], _DASHES[place % len(_DASHES)], marker


def _series(ax: Axes, rows: pd.DataFrame, dash: str | tuple, marker: str) -> End:
    """Draw one line with its band; return its compressed end."""
    rows = rows.sort_values("ratio_requested")
    hue = colour(rows["method"].iloc[0])
    ax.plot(rows["x"], rows["auc"], marker=marker, color=hue, ls=dash, markersize=7, linewidth=1.8, mew=0)
    _band(ax, rows["x"], rows["auc"], rows["auc_ci"].where(rows["auc_n"] >= ENOUGH), hue)
    last = rows.iloc[-1]
    return End(last["auc"], last["label"], hue, marker)


def _band(ax: Axes, x: pd.Series, mean: pd.Series, half: pd.Series, colour: str) -> None:
    """Draw intervals around a line, where they are known: a band, or a bar at a point without a neighbour."""
    known = half.notna()
    alone = known & ~known.shift(1, fill_value=False) & ~known.shift(-1, fill_value=False)
    ax.fill_between(x, mean - half, mean + half, color=colour, alpha=0.16, linewidth=0)
    ax.errorbar(x[alone], mean[alone], half[alone], color=colour, linestyle="none", linewidth=1.2, capsize=3)


def lines_across(ax: Axes, cells: pd.DataFrame) -> list[End]:
    """Draw the baseline with its band and the best reachable AUC; return the end of each."""
    found = []
    for row in cells[is_baseline(cells)].to_dict("records"):
        ax.axhline(row["auc"], color=FULL[0], linewidth=1.8)
        half = 0 if pd.isna(row["auc_ci"]) else row["auc_ci"]
        ax.axhspan(row["auc"] - half, row["auc"] + half, color=FULL[0], alpha=0.16, linewidth=0)
        found.append(End(row["auc"], row["label"], FULL[0]))
    if _ceiling(ax, cells["bayes_auc"].mean(), cells["auc"]):
        found.append(End(cells["bayes_auc"].mean(), "ceiling", INK))
    return found


def _ceiling(ax: Axes, best: float, scores: pd.Series) -> bool:
    """Draw the best reachable AUC as a line; only name it at the edge where that would stretch the axis by a third."""
    if pd.isna(best):
        return False
    low, high = scores.min(), scores.max()
    if best - high > (high - low) / 3:
        text = f"best reachable {best:.3f} ↑"
        ax.annotate(text, (0.99, 0.99), xycoords="axes fraction", ha="right", va="top", color=INK, fontsize=8.5)
        ax.margins(y=0.11)  # room for it
        return False
    ax.axhline(best, color=INK, linewidth=1.2, linestyle=CEILING)
    return True


def plain_ticks(axis: Axis, steps: tuple[float, ...] = (), text: Callable[[float], str] = "{:,g}".format) -> None:
    """Tick a logarithmic axis in plain numbers, at some steps of a decade: 1, 2, 5, or more if it shows but one."""
    low, high = axis.get_view_interval()
    steps = steps or ((1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 5, 7))
    axis.set_major_locator(LogLocator(subs=steps, numticks=40))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())


def log_axis(ax: Axes, values: pd.Series, text: Callable[[float], str]) -> None:
    """Tick a logarithmic axis in plain numbers."""
    room = 1.25 if values.nunique() > 1 else 2
    low, high = values.min() / room, values.max() * room
    ax.set_xlim(low, high)
    plain_ticks(ax.xaxis, (1, 2, 5) if high / low < 60 else (1,), text)


def _spread(ax: Axes, heights: list[float]) -> list[float]:
    """Move labels apart by their own height, on any scale; return heights in their order.

    They stay beside the axis, not beside its title: closer where there are too many.
    """
    tall = ax.get_position().height * ax.figure.get_figheight()
    gap = min(0.19 / tall, 1 / max(1, len(heights) - 1))
    left, _ = ax.get_xlim()
    ax.get_ylim()  # what is drawn settles the limits, and these the scale
    seen = ax.transData - ax.transAxes
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = [seen.transform((left, height))[1] for height in heights]
    for _ in range(500):
        for below, above in pairwise(order):
            overlap = gap - (placed[above] - placed[below])
            if overlap > 1e-9:
                placed[below] -= overlap / 2
                placed[above] += overlap / 2
        placed = [min(max(height, 0), 1) for height in placed]
    return [seen.inverted().transform((0, height))[1] for height in placed]


def label_right(ax: Axes, ends: list[End]) -> None:
    """Write what lines are called beside the right edge, with their markers, no text over another."""
    indent = 18 if any(end.marker for end in ends) else 6
    beside = ax.get_yaxis_transform() + ScaledTranslation(10 / 72, 0, ax.figure.dpi_scale_trans)
    for height, end in zip(_spread(ax, [end.height for end in ends]), ends, strict=True):
        style = {"textcoords": "offset points", "color": end.colour, "va": "center"}
        ax.annotate(end.text, (1, height), (indent, 0), ("axes fraction", "data"), **style)
        if end.marker:
            mark = Line2D([1], [height], color=end.colour, marker=end.marker, markersize=5.5, mew=0, transform=beside)
            ax.add_artist(mark).set_clip_on(False)


@house_style
def learning_curves(curves: pd.DataFrame) -> Figure:
    """Validation AUC against training samples for each dataset (row) and ratio (panel), mean over seeds.

    Bands are 95 % intervals, of three seeds or more; in a panel of more than six lines there are none.

    The dashed line is the best AUC that can be reached on the test rows, where the data's teacher is known.

    `curves` is what `load_curves` returns. The full table stands in every panel of its dataset; in codes it learns the
    same, and is left out.
    """
    curves = curves.dropna(subset="validation_auc") if "validation_auc" in curves else curves.iloc[:0]
    curves = (
        curves[~((curves["method"] == "full") & curves["variant"].str.contains("quantize="))] if len(curves) else curves
    )
    if curves.empty:
        return sentence("No learning curve to show: no run recorded a validation score.")
    curves = curves.assign(label=curves.apply(label, axis=1))
    wanted = _curve_panels(curves)
    figure, axes = panels(len(wanted), 4.1, 3.3, columns=3, sharey=curves["dataset"].nunique() == 1)
    figure.set_figheight(figure.get_figheight() + 0.06 * curves["label"].nunique())  # for the legend
    reachable = False
    for ax, (name, rows) in zip(axes, wanted, strict=True):
        reachable |= _curve_panel(ax, rows)
        put_title(ax, name, 36)
    _legend(figure, curves, reachable)
    return figure


def _curve_panels(curves: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    full = curves[curves["method"] == "full"]
    small = curves[curves["method"] != "full"]
    if small.empty:
        return [(dataset, rows) for dataset, rows in full.groupby("dataset")]
    return [
        (f"{dataset} at {times(ratio)}: {_peak(rows)}", pd.concat([full[full["dataset"] == dataset], rows]))
        for (dataset, ratio), rows in small.groupby(["dataset", "ratio_requested"])
    ]


def _peak(rows: pd.DataFrame) -> str:
    """Name the method whose mean validation AUC gets highest in a panel."""
    means = rows.groupby(["label", "samples"])["validation_auc"].mean()
    (name, _), best = means.idxmax(), means.max()
    return f"{name} climbs to {best:.4f}"


def _curve_panel(ax: Axes, rows: pd.DataFrame) -> bool:
    """Draw a line a method and the best reachable score; tell whether that is in the picture."""
    heights, crowded = [], rows["label"].nunique() > CROWD
    for line, dash, marker in _lines(rows):
        points = line.groupby("samples")["validation_auc"].agg(["mean", "std", "count"]).reset_index()
        hue, mean = colour(line["method"].iloc[0]), points["mean"]
        marks = {"marker": marker, "markevery": max(1, len(points) // 5), "markersize": 5, "mew": 0}
        ax.plot(points["samples"], mean, color=hue, ls=dash, linewidth=1.6, **marks)
        half = half_width(points["std"], points["count"]).where((points["count"] >= ENOUGH) & (not crowded))
        _band(ax, points["samples"], mean, half, hue)
        heights.append(mean)
    drawn = _ceiling(ax, rows["bayes_auc"].mean(), pd.concat(heights))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.set(xlabel="Training samples", ylabel="Validation AUC")
    return drawn


def _legend(figure: Figure, frame: pd.DataFrame, reachable: bool) -> None:
    """Write the methods once, above all panels, the full table first."""
    handles = [
        Line2D([], [], color=colour(row["method"].iloc[0]), ls=dash, marker=marker, mew=0, label=row["label"].iloc[0])
        for row, dash, marker in _lines(frame.drop_duplicates("label"))
    ]
    handles.sort(key=lambda handle: handle.get_color() != FULL[0])
    if reachable:
        handles.append(Line2D([], [], color=INK, linestyle=CEILING, linewidth=1.2, label="ceiling (best reachable)"))
    figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False)


@house_style
def status_map(results: pd.DataFrame) -> Figure:
    """Method × requested ratio, a panel a dataset: how every cell ended.

    A finished cell is coloured by its AUC and tells its seeds; an infeasible one is hatched; a failed one
    carries a cross and its status; a blank one was not run.
    """
    cells = summary(results).dropna(subset="ratio_requested")
    if cells.empty:
        return sentence(f"No cell to show: {verdict(results)}.")
    cells = cells.assign(label=cells.apply(label, axis=1))
    datasets = list(cells["dataset"].unique())
    wide = cells.groupby("dataset")["ratio_requested"].nunique().max()
    names = list(cells.groupby("dataset")["label"].nunique())
    tall = [max(names[place : place + 2]) for place in range(0, len(names), 2)]  # of each row of panels
    width = max(3.4, 1.1 * wide + 1.2)
    height = 0.58 * sum(tall) / len(tall) + 1.2
    figure, axes = panels(len(datasets), width + _room(cells["label"]), height, height_ratios=tall)
    for place, (ax, dataset) in enumerate(zip(axes, datasets, strict=True)):
        _status_panel(ax, cells[cells["dataset"] == dataset], tall[place // 2], wide)
        put_title(ax, f"{dataset}: {verdict(results[results['dataset'] == dataset])}", int(9.3 * width))
    return figure


def _status_panel(ax: Axes, cells: pd.DataFrame, tall: int, wide: int) -> None:
    """Draw the cells of a dataset, as large as if there were `tall` rows of `wide`."""
    ratios = sorted(cells["ratio_requested"].unique())
    names = sorted(cells["label"].unique(), key=lambda name: (name.split(",")[0] != "full", natural(name)))
    shade = mpl.cm.ScalarMappable(mpl.colors.Normalize(cells["auc"].min(), cells["auc"].max()), "crest")
    for row in cells.to_dict("records"):
        _status_cell(ax, ratios.index(row["ratio_requested"]), names.index(row["label"]), row, shade)
    ax.set(xlim=(-0.5, wide - 0.5), ylim=(tall - 0.5, -0.5), xlabel="Compression requested (×)")
    ax.set_xticks(range(len(ratios)), [times(ratio) for ratio in ratios])
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _status_cell(ax: Axes, x: int, y: int, row: dict, shade: mpl.cm.ScalarMappable) -> None:
    corner, width, height = (x - 0.47, y - 0.44), 0.94, 0.88
    if row["status"] == "done":
        face = shade.to_rgba(row["auc"])
        edge = ALARM if row["n_failed"] else face
        ax.add_patch(Rectangle(corner, width, height, facecolor=face, edgecolor=edge, linewidth=1.8))
        text, ink = f"{row['auc']:.4f}\n{_seeds(row)}", _readable(face)
    elif row["status"] == "infeasible":
        ax.add_patch(Rectangle(corner, width, height, facecolor="none", edgecolor=MUTED, hatch="////"))
        text, ink = "infeasible", INK
    else:
        ax.add_patch(Rectangle(corner, width, height, facecolor="none", edgecolor=ALARM, linewidth=1.8))
        text, ink = f"✕ {row['status']}\n{_short(row['reason'])}", ALARM
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 2} if row["status"] == "infeasible" else None
    ax.text(x, y, text, ha="center", va="center", fontsize=8.5, color=ink, linespacing=1.4, bbox=box)


def _short(reason: str, length: int = 21) -> str:
    return reason if len(reason) <= length else f"{reason[: length - 1]}…"


def _readable(face: tuple[float, ...]) -> str:
    red, green, blue, _ = face
    return ON_LIGHT if 0.30 * red + 0.59 * green + 0.11 * blue > 0.5 else ON_DARK


def _seeds(row: dict) -> str:
    """`3 seeds`, or `2 seeds, ✕ 1` where one failed."""
    seeds = f"{row['n']} seed{'s' * (row['n'] != 1)}"
    lost = row["n_failed"] + row["n_infeasible"]
    return f"{seeds}, ✕ {lost}" if lost else seeds


@house_style
def searches(tried: pd.DataFrame) -> Figure:
    """The value that each configuration got from its search, a panel a dataset; ringed: at an end of the list."""
    chosen = tried[tried["chosen"]]
    if chosen.empty:
        return sentence("Nothing was searched: the suite has fixed every parameter.")
    methods = sorted(chosen["method"].unique(), reverse=True)
    datasets = list(chosen["dataset"].unique())
    values = tried["value"].drop_duplicates()
    values = sorted(values) if pd.api.types.is_numeric_dtype(values) else list(values)
    name = _WORDS.get(chosen["parameter"].iloc[0], chosen["parameter"].iloc[0])
    most = chosen.groupby(["dataset", "method"]).size().max()
    figure, axes = panels(len(datasets), 5.4, 1.5 + max(0.24, 0.055 * most) * len(methods), sharey=True)
    for ax, dataset in zip(axes, datasets, strict=True):
        _search_panel(ax, chosen[chosen["dataset"] == dataset], methods, values)
        ax.set(xlim=(-0.6, len(values) - 0.4), xlabel=f"Best {name}")
        ax.set_xticks(range(len(values)), [spelled(value) for value in values])
    return figure


def _search_panel(ax: Axes, chosen: pd.DataFrame, methods: list[str], values: list[float | str]) -> None:
    for method, rows in chosen.groupby("method"):
        gap = min(0.11, 0.8 / len(rows))
        across = [methods.index(method) + gap * (place - (len(rows) - 1) / 2) for place in range(len(rows))]
        hue, marker = look(method)
        places = [values.index(value) for value in rows["value"]]
        ax.plot(places, across, color=hue, marker=marker, markersize=5, linestyle="none")
        for x, y, end in zip(places, across, rows["end"], strict=True):
            if end:
                ax.plot(x, y, "o", mfc="none", mec=ALARM, mew=1.1, markersize=9)
    ax.set_yticks(range(len(methods)), methods)
    ax.set_ylim(-0.6, len(methods) - 0.4)
    if isinstance(values[0], str):
        word, wins = chosen["value"].mode()[0], chosen["value"].value_counts().max()
        said = f"{word} is the best in {wins} of {len(chosen)} searches"
    else:
        said = f"{(chosen['end'] != '').sum()} of {len(chosen)} best values lie at an end of the list"
    put_title(ax, f"{chosen['dataset'].iloc[0]}: {said}", 40)


@house_style
def latency(speed: pd.DataFrame, part: str = "model") -> Figure:
    """Latency of each configuration at each batch size, timed once: a dot at p50, a whisker to p99.

    `speed` is what `load_speed` returns; `part` is `model` (the whole forward) or `lookup`.
    """
    rows = speed[speed["part"] == part] if len(speed) else speed
    if rows.empty:
        return sentence("No latency to show: no timed run has finished.")
    rows = rows.assign(label=rows.apply(label, axis=1) + " " + rows["ratio_requested"].map(times))
    groups = list(rows.groupby(["dataset", "batch"]))
    tall = rows.groupby("dataset")["label"].nunique().max()
    columns = min(3, rows["batch"].nunique())
    figure, axes = panels(len(groups), 4.1, 0.26 * tall + 1.3, columns)
    for ax, ((dataset, batch), group) in zip(axes, groups, strict=True):
        order = group.assign(variant=group["variant"].map(natural))
        order = order.sort_values(["ratio_requested", "method", "variant"], ascending=False).index
        _latency_panel(ax, group.loc[order])
        put_title(ax, f"{dataset}, batch {batch:,}: {_fastest(group)}", 32)
    return figure


def _latency_panel(ax: Axes, rows: pd.DataFrame) -> None:
    for place, row in enumerate(rows.to_dict("records")):
        colour, marker = look(row["method"])
        ax.plot([row["p50_ms"], row["p99_ms"]], [place, place], color=colour, linewidth=2, alpha=0.45)
        ax.plot(row["p50_ms"], place, marker, color=colour, markersize=7, markeredgewidth=0)
    ax.set_yticks(range(len(rows)), rows["label"])
    ax.set(xlim=(0, 1.06 * rows["p99_ms"].max()), ylim=(-0.6, len(rows) - 0.4), xlabel="Latency, p50 to p99 (ms)")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


def _fastest(rows: pd.DataFrame) -> str:
    """Name the fastest, timed once, or count those that differ from it by less than such a time tells."""
    fastest = rows.loc[rows["p50_ms"].idxmin()]
    near = int((rows["p50_ms"] <= TIE * fastest["p50_ms"]).sum())
    who = f"{fastest['label']} answers first" if near == 1 else f"{near} of {len(rows)} within 10 % of the fastest"
    return f"{who}, {fastest['p50_ms']:.3g}\N{NO-BREAK SPACE}ms (timed once)"


@house_style
def changes(table: pd.DataFrame) -> Figure:
    """Differences in AUC that `compare` found, a panel a dataset; grey where they pass no factor or no test."""
    table = table.dropna(subset="difference")
    if table.empty:
        return sentence("No change to show: no configuration is finished in both sets.")
    table = table.assign(label=table.apply(label, axis=1) + " " + table["ratio_requested"].map(times))
    groups = list(table.groupby("dataset"))
    tall = max(len(rows) for _, rows in groups)
    figure, axes = panels(len(groups), 5.6, 0.26 * tall + 1.4)
    for ax, (dataset, rows) in zip(axes, groups, strict=True):
        rows = rows.sort_values(["ratio_requested", "method", "variant"], ascending=False)
        told = rows["flag"].isin(["better", "worse"])
        for place, row in enumerate(rows.to_dict("records")):
            hue, marker = look(row["method"]) if row["flag"] in ("better", "worse") else (MUTED, "o")
            ax.plot([0, row["difference"]], [place, place], color=hue, linewidth=1.6, alpha=0.5)
            ax.plot(row["difference"], place, marker, color=hue, markersize=7, markeredgewidth=0)
        ax.axvline(0, color=INK, linewidth=1, linestyle=CEILING)
        ax.set_yticks(range(len(rows)), rows["label"])
        ax.set(ylim=(-0.6, len(rows) - 0.4), xlabel="Change of the mean AUC (second set − first set)")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        better = int((rows["flag"] == "better").sum())
        put_title(
            ax,
            f"{dataset}: {better} better, {int(told.sum()) - better} worse, {int((~told).sum())} the same or unclear",
            52,
        )
    return figure
