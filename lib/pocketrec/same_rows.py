"""Is the AUC of one run higher than that of another, on the very same test rows?

    AUC_a - AUC_b = mean_i (p_i - q_i),   p_i, q_i: the share of negatives that either ranks below positive i
    variance      = var_i(p_i - q_i) / positives + var_j(r_j - s_j) / negatives,   r_j, s_j likewise for negative j

DeLong, DeLong & Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating Characteristic
Curves", Biometrics 1988, with the shares read off ranks as in Sun & Xu, "Fast Implementation of DeLong's Algorithm",
IEEE Signal Processing Letters 2014. None of the project's libraries has this test.

The test takes both models as they are: its interval is about other test rows, not about another training. Over the
seeds of a cell the shares are averaged, so that the chance of the seeds gets small and that of the rows remains.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from pocketrec import data
from pocketrec.errors import UserError
from pocketrec.report.columns import CELL
from pocketrec.report.results import read_records, tidy

TWO_SIDED = stats.norm.ppf(0.975)
KEPT = 16  # runs whose shares stay in memory: those of a cell, and the references that the next ones have too
TESTED = ["difference", "low", "high", "p", "positives", "negatives"]
TEXTS = ["dataset", "method", "variant", "reference", "reason", "command"]
COLUMNS = [*CELL, "seed", "reference", "reference_ratio", *TESTED, "reason", "command"]
RUN_AGAIN = "rm -r results/{suite}/runs/{method}/{dataset} && pocketrec run {suite}"


class Shares(NamedTuple):
    """Of the other class, the share ranked on the right side: of each positive float64 [p], of each negative [n]."""

    positives: np.ndarray
    negatives: np.ndarray


def shares(scores: np.ndarray, labels: np.ndarray) -> Shares:
    """Return how each row stands among those of the other class; a tie counts a half.

    Args:
        scores: [rows], higher for a likelier positive.
        labels: bool [rows], some of each.
    """
    positive, negative = scores[labels], scores[~labels]
    among_all = stats.rankdata(np.concatenate([positive, negative]))
    below = (among_all[: len(positive)] - stats.rankdata(positive)) / len(negative)
    above = 1 - (among_all[len(positive) :] - stats.rankdata(negative)) / len(positive)
    return Shares(below, above)


def delong(a: Shares, b: Shares) -> dict[str, float]:
    """Return the difference of two AUCs on the same rows with its 95 % interval and the p-value of none.

    Keys: difference (a minus b), low, high, p, positives, negatives. Models that rank alike differ by 0 for sure: p 1.
    """
    gaps = [a.positives - b.positives, a.negatives - b.negatives]
    difference = gaps[0].mean()
    error = np.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps))
    p = 2 * stats.norm.sf(abs(difference) / error) if error else float(difference == 0)
    low, high = difference - TWO_SIDED * error, difference + TWO_SIDED * error
    return dict(zip(TESTED, (difference, low, high, p, *map(len, gaps)), strict=True))


def same_rows(suite_dir: Path | str, pairs: Iterable[tuple[str, str]] | None = None) -> pd.DataFrame:
    """Test differences of test AUC between finished runs of a suite, on the rows that both have scored.

    Args:
        suite_dir: with the test predictions beside the records, as a suite leaves them.
        pairs: names of runs (`run` in `load_results`), the one and its reference; by default every run against the
            full table of the same dataset and seed, and variant where the full table has several.

    Returns:
        One row a pair and, without a seed, one row for the mean over the pairs of a cell. Columns: dataset, method,
        variant, ratio_requested, seed; reference (method and variant) and reference_ratio; difference of the AUCs,
        low, high, p, positives, negatives. What could not be tested has no numbers, but a `reason` and the `command`
        that helps.
    """
    suite_dir = Path(suite_dir)
    records = {record["run"]: record for record in read_records(suite_dir)}
    runs = tidy(list(records.values())).query("status == 'done'").set_index("run")
    pairs = list(against_full(runs.reset_index()) if pairs is None else pairs)

    @lru_cache(KEPT)
    def scored(run: str) -> Shares:
        labels = _labels(records[run])
        return shares(_predictions(suite_dir, records[run], len(labels)), labels)

    groups: dict[tuple, list[tuple[str, str]]] = {}
    for run, reference in pairs:
        cells = [tuple(runs.loc[name, CELL]) for name in (run, reference)]
        groups.setdefault((*cells[0], *cells[1]), []).append((run, reference))
    rows = []
    for members in tqdm(groups.values(), "same test rows", unit="cell"):
        rows += _cell(members, runs, scored, records)
    types = {"seed": "Int64"} | dict.fromkeys(TESTED, "float64") | dict.fromkeys(TEXTS, "str")
    return pd.DataFrame(rows, columns=COLUMNS).astype(types)


def against_full(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Pair each finished run with the full table of the same dataset and seed, and variant where it has several."""
    done = runs[runs["status"] == "done"]
    full = done[done["method"] == "full"]
    on = ["dataset", "seed", "variant"] if full["variant"].nunique() > 1 else ["dataset", "seed"]
    pairs = done[done["method"] != "full"].merge(full.drop_duplicates(on), on=on, suffixes=("", "_full"))
    return list(pairs[["run", "run_full"]].itertuples(index=False, name=None))


def skipped(tested: pd.DataFrame) -> pd.DataFrame:
    """Return what could not be tested, once for each reason: what, reason, command."""
    found = tested[tested["reason"] != ""]
    what = "the test on the same rows: " + found["method"] + " on " + found["dataset"]
    return found.assign(what=what)[["what", "reason", "command"]].drop_duplicates(ignore_index=True)


def _cell(members: list[tuple[str, str]], runs: pd.DataFrame, scored: Any, records: dict[str, Any]) -> list[dict]:
    """Test the pairs of one cell, and their mean."""
    run, reference = (runs.loc[name] for name in members[0])
    name = ", ".join(filter(None, [reference["method"], reference["variant"]]))
    about = {
        **run[CELL],
        "reference": name,
        "reference_ratio": reference["ratio_requested"],
        "reason": "",
        "command": "",
    }
    rows, found = [], []
    for pair in members:
        seed = {"seed": runs.loc[pair[0], "seed"]}
        try:
            both = [scored(name) for name in pair]
        except _Missing as missing:
            command = missing.command.format(**records[missing.run])
            rows.append(about | seed | {"reason": str(missing), "command": command})
        else:
            found.append(both)
            rows.append(about | seed | delong(*both))
    if len(found) > 1:
        means = [
            Shares(*(np.mean(part, axis=0) for part in zip(*side, strict=True))) for side in zip(*found, strict=True)
        ]
        rows.append(about | {"seed": pd.NA} | delong(*means))
    return rows


class _Missing(Exception):
    """Something of a run is not there, or not any more; the message says what, the command brings it back."""

    def __init__(self, run: str, message: str, command: str = RUN_AGAIN) -> None:
        super().__init__(message)
        self.run, self.command = run, command


def _predictions(suite_dir: Path, record: dict[str, Any], rows: int) -> np.ndarray:
    file = suite_dir / "runs" / record["run"] / "predictions.npy"
    if not file.exists():
        raise _Missing(record["run"], "the test predictions were not kept beside the record")
    try:
        predictions = np.load(file)
    except (EOFError, OSError, ValueError) as error:
        raise _Missing(record["run"], f"the test predictions cannot be read: {error}") from None
    if len(predictions) != rows:
        raise _Missing(record["run"], f"{len(predictions)} predictions are there for {rows} test rows")
    return predictions


def _labels(record: dict[str, Any]) -> np.ndarray:
    options = record["parameters"].get("dataset_options", {})
    try:
        if data.digest(record["dataset"], options) != record["data"]["digest"]:
            raise _Missing(record["run"], "the dataset is prepared in another way by now")
        rows = data.load(record["dataset"], **options)
    except UserError as error:
        raise _Missing(record["run"], f"the dataset cannot be had: {error}") from None
    labels = rows.labels[rows.split("test")] == 1
    if min(labels.sum(), (~labels).sum()) < 2:
        raise _Missing(record["run"], "the test rows hold fewer than two clicks, or than two others", "")
    return labels
