"""Tables and pictures of one run, for the notebook that is that run."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from pocketrec.report.columns import METRICS
from pocketrec.report.plots import ALARM, colour, house_style

_SIZES = {
    "full_bytes": "full float32 tables",
    "budget_bytes": "budget at the requested ratio",
    "inference_bytes": "embedding at inference",
    "training_bytes": "embedding in training",
    "optimizer_bytes": "state of Adagrad, if that trains it",
    "dense_bytes": "MLPs",
}
_SCORES = ("auc", "log_loss", "ne", "calibration", "pr_auc", "accuracy")


def sizes(found: dict[str, float]) -> pd.DataFrame:
    """Return the bytes of a run in megabytes, and how often each goes into the full tables."""
    table = pd.DataFrame({"MB": {label: found[name] / 1e6 for name, label in _SIZES.items()}})
    table["full tables ÷ this"] = found["full_bytes"] / (table["MB"] * 1e6)
    return table.round({"MB": 4, "full tables ÷ this": 1})


def scores(parts: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Return the scores by part of the data: validation, test, its thirds by frequency, and the best reachable."""
    flat = {name: part for name, part in parts.items() if name != "slices"} | parts.get("slices", {})
    table = pd.DataFrame(flat).T.reindex(columns=[name for name in _SCORES if any(name in p for p in flat.values())])
    return table.rename(columns=lambda name: METRICS[name].label if name in METRICS else name).round(4)


@house_style
def learning_curve(curve: pd.DataFrame) -> Figure:
    """Draw training loss and validation AUC over the samples seen; a ring marks the best evaluation."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    millions = curve["samples"] / 1e6
    left.plot(millions, curve["train_loss"], color=colour("full"), marker="o")
    left.set(xlabel="Samples seen (millions)", ylabel="Log loss (nats)", title="Training loss since the last point")
    right.set(xlabel="Samples seen (millions)", ylabel="AUC")
    if "validation_auc" not in curve:
        right.set_title("Validation AUC does not exist: one class only")
        return figure
    best = curve["validation_auc"].idxmax()
    right.plot(millions, curve["validation_auc"], color=colour("robe"), marker="o")
    right.plot(millions[best], curve["validation_auc"][best], "o", ms=13, mfc="none", mec=ALARM)
    right.set_title(f"Validation AUC, best {curve['validation_auc'][best]:.4f}")
    return figure


@house_style
def request_times(speed: pd.DataFrame) -> Figure:
    """Draw median and p99 of a request against its batch size, for the whole model and its lookup alone."""
    figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for part, hue in (("model", colour("robe")), ("lookup", colour("hashing"))):
        rows = speed[speed["part"] == part].sort_values("batch")
        above = [0 * rows["p50_ms"], rows["p99_ms"] - rows["p50_ms"]]
        ax.errorbar(rows["batch"], rows["p50_ms"], yerr=above, color=hue, marker="o", capsize=3, label=part)
    ax.set(xscale="log", yscale="log", xlabel="Rows in a request", ylabel="Time (ms)")
    ax.set_xticks(sorted(speed["batch"].unique()), [f"{size:,}" for size in sorted(speed["batch"].unique())])
    ax.minorticks_off()
    ax.set_title("Time of a request: median, whisker to p99")
    ax.legend(frameon=False)
    return figure
