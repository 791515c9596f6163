"""The headline table, as text with its best entries marked."""

from collections.abc import Sequence

import pandas as pd
from pandas.io.formats.style import Styler

from pocketrec.report.columns import CELL, METRICS, times
from pocketrec.report.statistics import differences, front, highest_ratio, label, summary, tied_with_best, with_loss

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
    """Mark the best entry of each contested metric of `cells` among rivals of one dataset and ratio."""
    groups = table.groupby(_RIVALS, dropna=False)
    marks = {METRICS[name].axis: groups[name].transform(METRICS[name].best) for name in _CONTESTED}
    return pd.DataFrame(marks, index=table.index).astype(bool)


def headline(results: pd.DataFrame) -> Styler:
    """Return the headline table for a notebook: mean ± half of the 95 % interval, the best in bold."""
    table = summary(results)
    table = table[table["n"] > 0].reset_index(drop=True)
    names = table[["dataset", "method", "variant"]].assign(ratio=table["ratio_requested"].map(times))
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
    loss = [_signed(*pair) for pair in zip(table["auc_loss"], table["auc_loss_ci"], strict=True)]
    shown = _names(table).assign(**cells(table, ("inference_bytes", "latency_p99_ms", "auc")), **{"AUC loss": loss})
    marks = {"best for its size": table["size"], "best for its time": table["time"]}
    return _plain(shown.assign(**{name: mark.map({True: "✓", False: ""}) for name, mark in marks.items()}))


def reach(results: pd.DataFrame, loss: float = 0.005) -> Styler:
    """Return how far each method goes within a loss of AUC, as `highest_ratio` finds it."""
    table = highest_ratio(results, loss)
    shown = _names(table).assign(**cells(table, ("ratio_achieved", "inference_bytes", "auc")))
    shown["AUC loss"] = [_signed(*pair) for pair in zip(table["auc_loss"], table["auc_loss_ci"], strict=True)]
    found = table["ratio_requested"].notna()
    shown["ratio"] = table["ratio_requested"].map(times).where(found, "none")
    return _plain(shown.assign(sure=table["sure"].map({True: "yes", False: "no"}).where(found, "–")))


def standing(results: pd.DataFrame, method: str) -> Styler:
    """Return how a method stands on each dataset at each ratio: among its rivals, and against the full table."""
    table = summary(results)
    ranks = table[table["method"] != "full"].groupby(_RIVALS)["auc"]
    table = table.assign(rank=ranks.rank(ascending=False), rivals=ranks.transform("count"))
    table = table[table["method"] == method]
    table = table.merge(differences(results)[[*CELL, "difference", "difference_ci", "p"]], how="left", on=CELL)
    table = table.merge(tied_with_best(results).reset_index(), how="left", on=CELL)
    shown = _names(table).assign(**cells(table, ("inference_bytes", "auc")))
    shown["AUC − full table"] = [
        _signed(*pair) for pair in zip(table["difference"], table["difference_ci"], strict=True)
    ]
    shown["p"] = ["–" if pd.isna(p) else f"{p:.3f}" for p in table["p"]]
    shown["rank"] = [
        "–" if pd.isna(r) else f"{r:.0f} of {n:.0f}" for r, n in zip(table["rank"], table["rivals"], strict=True)
    ]
    shown["tied with the best"] = (
        table["tied"].map({True: "yes", False: "no"}).fillna("not known").where(table["n"] > 0, "–")
    )
    shown["ended"] = table["status"].str.cat(table["reason"].str.removeprefix("Infeasible: "), sep=" ").str.strip()
    return _plain(shown)


def sizes(results: pd.DataFrame) -> Styler:
    """Return the real bytes of each configuration: at inference, in training, with its optimizer."""
    table = summary(results).dropna(subset="inference_bytes")
    names = ("ratio_achieved", "model_ratio", "inference_bytes", "training_bytes", "optimizer_bytes")
    return _plain(pd.concat([_names(table), cells(table, names)], axis=1))


def numbers(results: pd.DataFrame, names: Sequence[str]) -> Styler:
    """Return chosen metrics of each configuration, with intervals."""
    table = summary(results)
    return _plain(pd.concat([_names(table), cells(table, names)], axis=1))


def _names(table: pd.DataFrame) -> pd.DataFrame:
    names = {"dataset": table["dataset"], "method": [label(row) for row in table.to_dict("records")]}
    return pd.DataFrame(names | {"ratio": table["ratio_requested"].map(times)}, index=table.index)


def _signed(mean: float, half: float) -> str:
    """Write a difference in AUC: `+0.0012 ± 0.0004`."""
    return METRICS["auc_delta"].text(mean, half)


def _plain(table: pd.DataFrame) -> Styler:
    styler = table.reset_index(drop=True).style.hide(axis="index")
    return styler.set_properties(subset=list(table)[3:], **{"text-align": "right"})
