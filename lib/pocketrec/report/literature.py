"""A suite beside the numbers that others published: `params/published/<name>.yaml`.

    title, source     what the numbers are and where they stand
    dataset           on which ours ran
    budgets           floats for each of two tables, divided by their width
    rows              of both tables together: the ratio of a budget is rows / (2 budget)
    methods           for each method its score at each budget, null where theirs could not run

A score is the highest validation AUC of any epoch.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pocketrec import paths
from pocketrec.errors import UserError, unknown
from pocketrec.files import read_yaml
from pocketrec.report.plots import INK, house_style, look
from pocketrec.report.statistics import summary

KEYS = ("title", "source", "dataset", "budgets", "rows", "methods")


def load(name: str) -> pd.DataFrame:
    """Return the published numbers, one row a method and budget: dataset, method, budget, ratio_requested, theirs."""
    folder = paths.PARAMS / "published"
    if not (folder / f"{name}.yaml").exists():
        raise unknown("published results", name, [path.stem for path in folder.glob("*.yaml")], folder)
    path = folder / f"{name}.yaml"
    content = read_yaml(path)
    for key in content.keys() ^ set(KEYS):
        raise UserError(f"{path}: key `{key}` is {'unknown' if key in content else 'missing'}; it has {KEYS}")
    budgets, methods = content["budgets"], content["methods"]
    for method, scores in methods.items():
        if len(scores) != len(budgets):
            raise UserError(f"{path}: `methods.{method}` has {len(scores)} numbers for {len(budgets)} budgets")
    table = pd.DataFrame(methods, index=pd.Index(budgets, name="budget"), dtype="float64")
    table = table.rename_axis(columns="method").T.stack(future_stack=True).rename("theirs").reset_index()
    return table.assign(dataset=content["dataset"], ratio_requested=content["rows"] / (2 * table["budget"]))


def beside(results: pd.DataFrame, name: str, tolerance: float = 0.005) -> pd.DataFrame:
    """Return one row a published method and budget, with ours: the highest validation AUC of any epoch.

    Columns: method, budget, theirs, ours (mean over seeds), seeds, difference, verdict. A verdict is `reached`
    where ours is no more than `tolerance` below theirs, `below`, or why there is none: `no instance` of ours is as
    small, `only ours` has one, a run that failed, or `not run`. The full table stands in every budget, and
    a budget above it is held against ours at ratio 1.
    """
    place = ["dataset", "method", "ratio_requested"]
    cells = summary(results)[[*place, "validation_auc", "n", "status"]]
    cells = cells.assign(ratio_requested=cells["ratio_requested"].round(6))
    if (twice := cells[place].duplicated()).any():
        method, ratio = cells.loc[twice, place[1:]].iloc[0]
        raise UserError(
            f"{method} at ratio {ratio:g} ran with different parameters; compare a suite in which it has one"
        )
    table = load(name)
    full = table["method"] == "full"
    table["ratio_requested"] = table["ratio_requested"].mask(full, 1).clip(lower=1).round(6)
    table = table.merge(cells, "left", place)
    table = table.rename(columns={"validation_auc": "ours", "n": "seeds"}).fillna({"seeds": 0})
    table["difference"] = table["ours"] - table["theirs"]
    table["verdict"] = [_verdict(row, tolerance) for row in table.to_dict("records")]
    return table[["method", "budget", "theirs", "ours", "seeds", "difference", "verdict"]].astype({"seeds": "int64"})


def _verdict(row: dict[str, object], tolerance: float) -> str:
    if row["status"] == "done":
        if pd.isna(row["theirs"]):
            return "only ours"
        return "reached" if row["difference"] >= -tolerance else "below"
    return "not run" if pd.isna(row["status"]) else "no instance" if row["status"] == "infeasible" else row["status"]


def grid(table: pd.DataFrame) -> pd.DataFrame:
    """Lay out `beside` for people: `ours | theirs` for each method and budget, a word where there is no such pair."""
    return _wide(table, [_pair(row) for row in table.to_dict("records")])


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Lay out the verdicts of `beside` for people: the difference where theirs is reached, else what it is."""
    return _wide(table, [_judged(row) for row in table.to_dict("records")])


def tally(table: pd.DataFrame, tolerance: float = 0.005) -> str:
    """Say in one sentence how ours compare, the full table counted once; `tolerance` is that of `beside`."""
    cells = table[(table["method"] != "full") | (table["budget"] == table["budget"].max())]
    count = cells["verdict"].value_counts()
    compared = cells["difference"].notna().sum()
    rest = ", ".join(f"{n} {name}" for name, n in count.drop(["reached", "below"], errors="ignore").items())
    near = f"within {tolerance:g} of theirs or above"
    found = f"{count.get('reached', 0)} of {compared} cells {near}, {count.get('below', 0)} further below"
    return f"{found}; {rest}" if rest else found


def _wide(table: pd.DataFrame, text: list[str]) -> pd.DataFrame:
    order = table["method"].unique()
    return table.assign(text=text).pivot(index="method", columns="budget", values="text").loc[order]


def _pair(row: dict[str, float]) -> str:
    return " | ".join("–" if pd.isna(row[side]) else f"{row[side]:.3f}".lstrip("0") for side in ("ours", "theirs"))


def _judged(row: dict[str, object]) -> str:
    if pd.isna(row["difference"]):
        return str(row["verdict"])
    return _signed(row["difference"]) if row["verdict"] == "reached" else f"below {_signed(row['difference'])}"


def _signed(difference: float) -> str:
    return f"{difference:+.3f}".replace("-", "−").replace("0.", ".")


@house_style
def auc_vs_budget(table: pd.DataFrame) -> Figure:
    """Validation AUC against the budget, a panel a method: ours solid, theirs dashed, the full tables as thin lines."""
    full, methods = table[table["method"] == "full"], [m for m in table["method"].unique() if m != "full"]
    rows = -(-len(methods) // 3)
    figure, axes = plt.subplots(
        rows, 3, figsize=(11, 2.7 * rows), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for ax in axes.flat[len(methods) :]:
        ax.set_axis_off()
    for ax, method in zip(axes.flat, methods, strict=False):
        for side, dash in (("ours", "-"), ("theirs", "--")):
            ax.axhline(full[side].mean(), color=look("full")[0], linestyle=dash, linewidth=1)
        _panel(ax, table[table["method"] == method], method)
    for ax in axes[:, 0]:
        ax.set_ylabel("Validation AUC")
    lines = [Line2D([], [], color=INK, linestyle=dash) for dash in ("-", "--")]
    figure.legend(lines, ["ours", "theirs"], loc="outside upper left", ncols=2, frameon=False)
    figure.supxlabel("Floats for each table, divided by its width (grey: the full tables)", fontsize=10)
    return figure


def _panel(ax: Axes, cells: pd.DataFrame, method: str) -> None:
    colour, marker = look(method)
    for side, dash, fill in (("theirs", "--", "none"), ("ours", "-", colour)):
        points = cells.dropna(subset=side)
        ax.plot(points["budget"], points[side], color=colour, linestyle=dash, marker=marker, mfc=fill, markersize=6)
    ax.set_xscale("log", base=2)
    ax.set_xticks(cells["budget"][::2], [f"{budget:,}" for budget in cells["budget"][::2]])
    ax.minorticks_off()
    compared = cells["difference"].dropna()
    ends = dict.fromkeys(_signed(end) for end in (compared.min(), compared.max()) if len(compared))
    ax.set_title(f"{method}: {' to '.join(ends) or 'no cell in both'}")
