"""The headline table, as text with its best entries marked."""

import pandas as pd
from pandas.io.formats.style import Styler

from pocketrec.report.columns import METRICS, times
from pocketrec.report.statistics import summary

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


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Write the headline metrics of a `summary` as text with intervals, one row a configuration."""
    return pd.DataFrame({METRICS[name].axis: _texts(table, name) for name in HEADLINE}, index=table.index)


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
