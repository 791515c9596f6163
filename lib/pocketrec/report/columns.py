"""Every number of a run, declared once: tables, axes and the marking of the best follow from here."""

import re
from dataclasses import dataclass
from typing import Literal

import pandas as pd

IDENTITY = {
    "method": "str",
    "dataset": "str",
    "variant": "str",  # parameters beyond the four axes that differ between runs, "" for none
    "ratio_requested": "float64",
    "seed": "Int64",
    "searched": "str",  # what a search chose, as `table_lr=0.1`, "" for nothing
    "status": "str",
    "reason": "str",
    "key": "str",
    "run": "str",
    "started": "datetime64[us, UTC]",
}

CELL = ["dataset", "method", "variant", "ratio_requested"]  # what the seeds of one configuration share

# The worst comes first: it names a cell whose seeds ended differently and none of them is done.
FAILURES = ("failed", "crashed", "oom", "timeout", "diverged", "interrupted")
STATUSES = ("done", *FAILURES, "infeasible")

OFF = 0.05  # a ratio further than that from the requested one is not called by its name
TIE = 1.1  # times closer than that are equal: each was taken once


@dataclass(frozen=True)
class Metric:
    """One number of a run.

    `path` leads to it in record.json (empty: derived from other runs). A shown number is the stored one
    times `scale`, in `unit`. `interval` is false where seeds do not vary it: sizes, and the latency of a
    configuration, which is timed once.
    """

    name: str
    label: str
    path: str
    unit: str = ""
    digits: str = ".4f"
    better: Literal["higher", "lower", ""] = ""
    scale: float = 1.0
    interval: bool = True
    dtype: Literal["float64", "Int64"] = "float64"

    @property
    def axis(self) -> str:
        """The label with its unit: `Size at inference (MB)`."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float, half_width: float | None = None) -> str:
        """Format a stored value for people: `0.8003 ± 0.0012`; a missing one is a dash."""
        if pd.isna(value):
            return "–"
        if self.unit == "MB":
            return size(value).removesuffix(" MB")
        sign = "+" if self.name == "auc_delta" else ""
        shown = f"{value * self.scale:{sign}{self.digits}}".replace("-", "−")
        return shown if half_width is None or pd.isna(half_width) else f"{shown} ± {half_width:{self.digits}}"

    def best(self, values: pd.Series) -> pd.Series:
        """Mark the best of several values, and a time within `TIE` of it; none where no direction or rival exists."""
        if not self.better or values.count() < 2:
            return pd.Series(False, values.index)
        near = 1.0 if self.interval else TIE
        return values >= values.max() / near if self.better == "higher" else values <= values.min() * near


def _size(name: str, label: str) -> Metric:
    return Metric(name, label, f"sizes.{name}", "MB", ",.3f", "lower", 1e-6, interval=False, dtype="Int64")


def _test(name: str, label: str, better: Literal["higher", "lower", ""]) -> Metric:
    return Metric(name, label, f"metrics.test.{name}", better=better)


def _timed(name: str, label: str, unit: str, digits: str, better: Literal["higher", "lower", ""]) -> Metric:
    dtype = "Int64" if name.endswith("_batch") else "float64"
    return Metric(name, label, "", unit, digits, better, interval=False, dtype=dtype)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("ratio_achieved", "Compression achieved", "sizes.ratio_achieved", "×", ",.1f", interval=False),
        Metric("model_ratio", "Whole model", "sizes.model_ratio", "×", ",.1f", interval=False),
        _size("inference_bytes", "Size at inference"),
        _size("training_bytes", "Size in training"),
        _size("optimizer_bytes", "Optimizer state"),
        _test("auc", "AUC", "higher"),
        Metric("auc_delta", "AUC − full table", "", better="higher"),
        _test("log_loss", "Log loss", "lower"),
        _test("ne", "Normalised entropy", "lower"),
        _test("calibration", "Calibration", ""),
        _test("pr_auc", "PR-AUC", "higher"),
        _test("accuracy", "Accuracy", "higher"),
        Metric("auc_head", "AUC, frequent ids", "metrics.slices.head.auc", better="higher"),
        Metric("auc_torso", "AUC, middling ids", "metrics.slices.torso.auc", better="higher"),
        Metric("auc_tail", "AUC, rare ids", "metrics.slices.tail.auc", better="higher"),
        Metric("validation_auc", "Validation AUC", "metrics.validation.auc", better="higher"),
        Metric("peak_auc", "Highest validation AUC of the curve", ""),
        Metric("validation_log_loss", "Validation log loss", "metrics.validation.log_loss", better="lower"),
        Metric("bayes_auc", "Best reachable AUC", "metrics.bayes.auc"),
        Metric("bayes_log_loss", "Best reachable log loss", "metrics.bayes.log_loss"),
        _timed("latency_p50_ms", "Latency p50", "ms", ",.3f", "lower"),
        _timed("latency_p95_ms", "Latency p95", "ms", ",.3f", "lower"),
        _timed("latency_p99_ms", "Latency p99", "ms", ",.3f", "lower"),
        _timed("latency_batch", "Batch of the latency", "samples", ",.0f", ""),
        _timed("inference_samples_per_s", "Throughput", "samples/s", ",.0f", "higher"),
        _timed("inference_batch", "Batch of the throughput", "samples", ",.0f", ""),
        Metric("train_samples_per_s", "Training throughput", "training.samples_per_s", "samples/s", ",.0f", "higher"),
        Metric("steps", "Steps", "training.steps", digits=",.0f", dtype="Int64"),
        Metric("seconds", "Wall clock of the run", "seconds", "s", ",.1f"),
    )
}

DTYPES = IDENTITY | {metric.name: metric.dtype for metric in METRICS.values()}


def times(ratio: float) -> str:
    """Write a ratio as people say it: `1,000×`, `2.5×`."""
    return f"{ratio:,.4g}×" if ratio < 1000 else f"{ratio:,.0f}×"


def size(count: float) -> str:
    """Write bytes with three digits: `3.70 MB`, `648 MB`, below 0.1 MB `64.8 kB`."""
    scaled, unit = (count / 1e3, "kB") if abs(count) < 1e5 else (count / 1e6, "MB")
    digits = f"{scaled:#.3g}".rstrip(".") if abs(scaled) < 999.5 else f"{scaled:,.0f}"
    return f"{digits} {unit}"


def probability(p: float) -> str:
    """Write a p-value: `0.032`, `< 0.001`; a missing one is a dash."""
    return "–" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def seeds_of(count: int) -> str:
    """Write how many seeds a mean rests on: `one seed`, `5 seeds`."""
    return "one seed" if count == 1 else f"{count} seeds"


def natural(text: str) -> str:
    """Return a key that sorts text by the numbers in it: `dim=4` before `dim=16`."""
    return re.sub(r"\d+(\.\d+)?", lambda number: f"{float(number[0]):020.6f}", text)


def signed(value: float, half_width: float = float("nan"), digits: int = 4) -> str:
    """Write a difference as people do: `−0.0012 ± 0.0004`; a missing one is a dash."""
    if pd.isna(value):
        return "–"
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if pd.isna(half_width) else f"{text} ± {half_width:.{digits}f}"
