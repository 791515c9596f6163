"""The headline table, as text with its best entries marked."""

from collections.abc import Sequence

import pandas as pd
from pandas.io.formats.style import Styler

from pocketrec.report.columns import CELL, METRICS, probability
from pocketrec.report.results import score
from pocketrec.report.statistics import (
    differences,
    front,
    highest_ratio,
    label,
    ratios,
    summary,
    tied_with_best,
    with_loss,
)

HEADLINE = (
    "ratio_achieved",
    "inference_bytes",
    "auc",
    "auc_delta",
    "log_loss",
    "latency_p50_ms",
    "latency_p99_ms",
    "inference_samples_per_s",
)
_CONTESTED = HEADLINE[2:]  # rivals have the same byte budget: who stays further below it wins nothing
_RIVALS = ["dataset", "ratio_requested"]


def cells(table: pd.DataFrame, names: Sequence[str] = HEADLINE) -> pd.DataFrame:
    """Write metrics of a `summary` as text with intervals, one row a configuration."""
    return pd.DataFrame({METRICS[name].axis: _texts(table, name) for name in names}, index=table.index)


def _texts(table: pd.DataFrame, name: str) -> list[str]:
    half_widths = table.get(f"{name}_ci", pd.Series(float("nan"), table.index))
    return [METRICS[name].text(mean, half) for mean, half in zip(table[name], half_widths, strict=True)]


def best(table: pd.DataFrame) -> pd.DataFrame:
    """Mark the best entry of each contested metric of `cells` among the methods of one dataset and ratio."""
    groups = table[table["method"] != "full"].groupby(_RIVALS, dropna=False)
    marks = {METRICS[name].axis: groups[name].transform(METRICS[name].best) for name in _CONTESTED}
    return pd.DataFrame(marks, index=table.index).eq(True)


def headline(results: pd.DataFrame) -> Styler:
    """Return the headline table for a notebook: mean ± half of the 95 % interval, the best in bold.

    A ratio `10× → 16×` is asked for and achieved, where they differ by more than 5 %: such a cell has fewer bytes than
    its rivals.
    """
    table = summary(results)
    table = table[table["n"] > 0].reset_index(drop=True)
    names = table[["dataset", "method", "variant"]].assign(ratio=ratios(table))
    bold = best(table).map(lambda mark: "font-weight: bold" if mark else "")
    text = cells(table)
    styler = pd.concat([names if names["variant"].any() else names.drop(columns="variant"), text], axis=1).style
    styler = styler.apply(lambda column: bold[column.name], subset=list(bold))
    return styler.set_properties(subset=list(text), **{"text-align": "right"}).hide(axis="index")


def choices(results: pd.DataFrame) -> Styler:
    """Return the cells that none beats in AUC at their size, or at their time: what there is to choose from."""
    table = with_loss(summary(results))
    size, time = front(table, "inference_bytes"), front(table, "latency_p99_ms")
    table = table.assign(size=size, time=time)[size | time].sort_values(["dataset", "inference_bytes"])
    shown = _names(table).assign(**cells(table, ("inference_bytes", "latency_p99_ms", "auc")), **_loss(table))
    marks = {"best for its size": table["size"], "best for its time": table["time"]}
    return _plain(shown.assign(**{name: mark.map({True: "✓", False: ""}) for name, mark in marks.items()}))


def reach(results: pd.DataFrame, loss: float = 0.005) -> Styler:
    """Return how far each method goes within a loss of AUC, as `highest_ratio` finds it."""
    table = highest_ratio(results, loss)
    shown = _names(table).assign(**cells(table, ("ratio_achieved", "inference_bytes", "auc")))
    shown = shown.assign(**_loss(table))
    found = table["ratio_requested"].notna()
    shown["ratio"] = shown["ratio"].where(found, "none").where(table["reference"] != "", "no reference")
    return _plain(shown.assign(sure=table["sure"].map({True: "yes", False: "no"}).where(found, "–")))


def standing(results: pd.DataFrame, method: str) -> Styler:
    """Return how a method stands on each dataset at each ratio: among its rivals, and against the baseline.

    Validation AUC ranks; the difference and its test are those of the test rows.
    """
    table = summary(results)
    ranks = table.assign(score=score(table))[table["method"] != "full"].groupby(_RIVALS)["score"]
    table = table.assign(rank=ranks.rank(ascending=False, method="min"), rivals=ranks.transform("count"))
    table = table[table["method"] == method]
    table = table.merge(
        differences(results)[[*CELL, "reference", "difference", "difference_ci", "p"]], how="left", on=CELL
    )
    table = table.merge(tied_with_best(results).reset_index(), how="left", on=CELL)
    shown = _names(table).assign(**cells(table, ("inference_bytes", "auc")))
    shown["AUC − full table"] = [
        _signed(*pair) for pair in zip(table["difference"], table["difference_ci"], strict=True)
    ]
    shown["against"] = table["reference"].fillna("–")
    shown["p"] = table["p"].map(probability)
    shown["rank"] = [
        "–" if pd.isna(r) else f"{r:.0f} of {n:.0f}" for r, n in zip(table["rank"], table["rivals"], strict=True)
    ]
    told = table["tied"].map({True: "not distinguishable", False: "worse"}).fillna("too few seeds")
    shown["beside the best"] = told.where(table["rank"].notna(), "–").mask(table["rank"] == 1, "the best")
    shown["ended"] = table["status"].str.cat(table["reason"].str.removeprefix("Infeasible: "), sep=" ").str.strip()
    return _plain(shown)


def sizes(results: pd.DataFrame) -> Styler:
    """Return the real bytes of each configuration: at inference, in training, with its optimizer."""
    table = summary(results).dropna(subset="inference_bytes")
    names = ("ratio_achieved", "model_ratio", "inference_bytes", "training_bytes", "optimizer_bytes")
    return _plain(pd.concat([_names(table), cells(table, names)], axis=1))


def numbers(results: pd.DataFrame, names: Sequence[str]) -> Styler:
    """Return chosen metrics of each configuration, with intervals, and how many seeds they rest on."""
    table = summary(results)
    return _plain(pd.concat([_names(table), cells(table, names), table["n"].rename("seeds")], axis=1))


def _names(table: pd.DataFrame) -> pd.DataFrame:
    names = {"dataset": table["dataset"], "method": [label(row) for row in table.to_dict("records")]}
    return pd.DataFrame(names | {"ratio": ratios(table)}, index=table.index)


def _loss(table: pd.DataFrame) -> dict[str, object]:
    """Return the columns that say what a cell of `with_loss` loses, and to what."""
    losses = [_signed(*pair) for pair in zip(table["auc_loss"], table["auc_loss_ci"], strict=True)]
    return {"AUC loss": losses, "against": table["reference"].where(table["reference"] != "", "no reference")}


def _signed(mean: float, half: float) -> str:
    """Write a difference in AUC: `+0.0012 ± 0.0004`."""
    return METRICS["auc_delta"].text(mean, half)


def _plain(table: pd.DataFrame) -> Styler:
    styler = table.reset_index(drop=True).style.hide(axis="index")
    return styler.set_properties(subset=list(table)[3:], **{"text-align": "right"})
