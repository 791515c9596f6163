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
    "train_samples_per_s",
)
_RIVALS = ["dataset", "ratio_requested"]  # the best is the best at the same budget


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Write the headline metrics of a `summary` as text with intervals, one row a configuration."""
    return pd.DataFrame(
        {
            METRICS[name].axis: [
                METRICS[name].text(*pair)
                for pair in zip(table[name], table.get(f"{name}_ci", table[name] * float("nan")), strict=True)
            ]
            for name in HEADLINE
        },
        index=table.index,
    )


def best(table: pd.DataFrame) -> pd.DataFrame:
    """Mark, in the shape of `cells`, the best entry of each metric among rivals of one dataset and ratio."""
    return pd.DataFrame(
        {
            METRICS[name].axis: table.groupby(_RIVALS)[name].transform(METRICS[name].best).astype(bool)
            for name in HEADLINE
        },
        index=table.index,
    )


def headline(results: pd.DataFrame) -> Styler:
    """Return the headline table for a notebook: mean ± half of the 95 % interval, the best in bold."""
    table = summary(results)
    table = table[table["n"] > 0].reset_index(drop=True)
    names = table[["dataset", "ratio_requested", "method", "variant"]]
    names = names.assign(ratio_requested=names["ratio_requested"].map(times)).rename(
        columns={"ratio_requested": "ratio"}
    )
    marks = best(table).map(lambda mark: "font-weight: bold" if mark else "")
    shown = pd.concat([names, cells(table)], axis=1)
    if not names["variant"].any():
        shown = shown.drop(columns="variant")
    styler = shown.style.apply(lambda column: marks.get(column.name, pd.Series("", column.index))).hide(
        axis="index"
    )
    return styler.set_properties(subset=list(marks), **{"text-align": "right"})
