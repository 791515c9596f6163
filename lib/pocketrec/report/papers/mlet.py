"""MLET in pictures: how much narrower a table trained through two layers may be, what that costs, and why.

Reads a suite of the paper and what `pocketrec.papers.mlet.measure` left beside it. A run is of the served width d, with
the hidden width k, or k = 0 for the plain table of width d.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import PercentFormatter
from pandas.io.formats.style import Styler
from scipy import stats

from pocketrec.report.claims import UNDECIDED, UNTESTED, Verdict, by_interval
from pocketrec.report.columns import probability, signed
from pocketrec.report.contents import listed, set_up
from pocketrec.report.plots import CEILING, FULL, GRID, INK, MUTED, colour, house_style, panels, put_title, sentence
from pocketrec.report.results import load_results, load_searches, read_records
from pocketrec.report.speed import FOREIGN, QUIET
from pocketrec.report.statistics import LEVEL, half_width

SOURCE = "Ghaemmaghami et al., 2020, on Criteo-Kaggle and Avazu"
SMALLER, COST = (4, 8), 0.25  # published: times that d shrinks at equal accuracy, and what training costs on average
PUBLISHED, PUBLISHED_COST = f"4 to 8 times smaller d ({SOURCE})", f"+25 % run time on average ({SOURCE})"
SUITE = "paper_mlet"
DATASETS, WIDTHS = ("planted", "bookcrossing", "movielens-1m"), (2, 4, 8, 16, 32, 64)
THEIRS, AS_PUBLISHED = "criteo-kaggle", "mlet_criteo_kaggle"  # their data, and the suite that trains on it
UNMEASURED = "not measured yet: the table of verdicts has the command"
SEEDS = {0: 5, 64: 5, 32: 2, 128: 2}  # that the suite plans for each hidden width
MAIN = 64  # the hidden width that carries the verdict
SWEPT = "bookcrossing"  # where the others are tried
TRIED = sum(SMALLER[0] * d <= WIDTHS[-1] for d in WIDTHS)  # widths at which a plain table 4 times wider is there
OPTIMIZERS = {"sgd": "SGD", "adagrad": "Adagrad", "adam": "Adam", "adamw": "AdamW"}
OCTAVE = 64  # points between a width and its double, where a plain table's AUC is read off


def load(results: str | Path) -> pd.DataFrame:
    """Return one row a finished run: the columns of `load_results`, with suite, d and k.

    A run with a hidden width below d is left out: it was trained with k = d.
    """
    found = read_records(Path(results))
    parameters = {record["run"]: record.get("parameters", {}) for record in found}
    runs = load_results(results).dropna(subset="auc")
    runs = runs.assign(suite=next((record["suite"] for record in found if "suite" in record), SUITE))
    runs = runs[(runs["status"] == "done") & runs["method"].isin(["full", "mlet"]) & runs["run"].isin(parameters)]
    said = [parameters[run] for run in runs["run"]]
    runs = runs.assign(d=[found["dim"] for found in said], k=[found["knobs"].get("hidden", 0) for found in said])
    return runs[(runs["k"] == 0) | (runs["k"] >= runs["d"])].sort_values(["dataset", "k", "d", "seed"])


def about(results: str | Path) -> str:
    """Say what a suite's folder holds: its tables and how they were trained, from the records."""
    records, runs = read_records(Path(results)), load(results)
    if runs.empty:
        return f"No run of a plain or two-layer table of `{suite(runs)}` has finished."
    of = {record["run"]: record for record in records}
    used = [of[run] for run in runs["run"]]
    optimizers = {record["parameters"].get("table_optimizer", "?") for record in used}
    by = listed({OPTIMIZERS.get(optimizer, optimizer) for optimizer in optimizers}, "and")
    hidden = listed({*runs["k"]} - {0}, "and") if (runs["k"] > 0).any() else ""
    two = f"two-layer ones with k = {hidden}" if hidden else "no two-layer ones"
    widths = listed({*runs["d"]}, "and")
    tables = f"The suite `{suite(runs)}` trains its tables by {by}: plain ones and {two}, of widths d = {widths}."
    return f"{tables} {set_up(used)} {searched(results)}"


def searched(results: str | Path) -> str:
    """Say how many searches chose an end of their list, beyond which a better value may lie."""
    tried = load_searches(results)
    chosen = tried[tried["chosen"]]
    if chosen.empty:
        return "Nothing was searched."
    lowest, highest = ((chosen["end"] == end).sum() for end in ("lowest", "highest"))
    said = f"In {lowest + highest} of {len(chosen)} searches the chosen value is an end of the list that was tried"
    beyond = f" ({lowest} the lowest, {highest} the highest), and a better one may lie beyond."
    return said + (beyond if lowest + highest else ".")


def name(k: int) -> str:
    """Name a kind of table."""
    return f"two layers, k = {k}" if k else "plain"


def suite(runs: pd.DataFrame) -> str:
    """Return the name of the suite that runs belong to."""
    return runs["suite"].iloc[0] if len(runs) else SUITE


# what there is


def seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """Count the seeds of every cell: a row a dataset and kind of table, a column a width d."""
    table = runs.pivot_table(index=["dataset", "k"], columns="d", values="seed", aggfunc="nunique", fill_value=0)
    return table.rename(index=name, level="k").rename_axis(["dataset", "table"])


def missing(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what `paper_mlet` plans and has not run: a row a dataset and kind of table, and the command that helps.

    Of another suite only the plan knows, as `pocketrec status` shows it.
    """
    found = runs.groupby(["dataset", "k", "d"])["seed"].nunique()
    rows = []
    datasets = DATASETS if suite(runs) == SUITE else ()
    plans = [(dataset, k) for dataset in datasets for k in SEEDS if k in (0, MAIN) or dataset == SWEPT]
    for dataset, k in plans:
        planned = SEEDS[k]
        lacking = [d for d in WIDTHS if (not k or k >= d) and found.get((dataset, k, d), 0) < planned]
        about = {"dataset": dataset, "table": name(k), "missing at d": ", ".join(map(str, lacking))}
        command = f"pocketrec run {SUITE} --dataset {dataset} --method {'mlet' if k else 'full'}"
        rows += [about | {"seeds planned": planned, "command": command}] if lacking else []
    return pd.DataFrame(rows, columns=["dataset", "table", "missing at d", "seeds planned", "command"])


def sizes(runs: pd.DataFrame) -> Styler:
    """Return the megabytes of each dataset's tables: served, whatever k, and in training."""
    megabytes = runs.assign(served=runs["inference_bytes"] / 1e6, training=runs["training_bytes"] / 1e6)
    served = megabytes.groupby(["dataset", "d"])["served"].first()
    training = megabytes.pivot_table(index=["dataset", "d"], columns="k", values="training").rename(columns=name)
    table = pd.concat({"served": served.to_frame("any"), "in training": training}, axis=1).astype(float)
    return table.style.format("{:,.2f}", na_rep="–")


# what it is worth


def equal_width(runs: pd.DataFrame, level: float = LEVEL) -> pd.DataFrame:
    """Return for each two-layer cell the width of the plain table with the same AUC, over the seeds that both have.

    Between two widths that ran, a plain table's AUC is read off a straight line over log d. Where it does not grow
    with d all the way, the narrowest table that gets there counts.

    Columns: dataset, k, d, seeds, auc, gain (over the plain table of width d) and gain_ci, narrowest and widest (plain
    tables that ran), width, low, high. The interval of `width` is that of the paired t-test over seeds at `level`:
    from the narrowest plain table that is not worse, to the narrowest that is better. Infinite where even the widest
    is not; `low` is 0 where the narrowest is not worse already. NaN with a single seed.
    """
    rows = []
    for dataset, found in runs.groupby("dataset"):
        aucs = found.pivot_table(index="seed", columns=["k", "d"], values="auc")
        plain = aucs[0] if 0 in aucs.columns.levels[0] else pd.DataFrame(index=aucs.index)
        for k, d in (cell for cell in aucs if cell[0] and len(plain.columns)):
            both = plain.assign(mlet=aucs[k, d]).dropna()
            if both.empty:
                continue
            gain = both["mlet"] - both[d] if d in both else pd.Series(dtype=float)
            about = {"dataset": dataset, "k": k, "d": d, "seeds": len(both), "auc": both["mlet"].mean()}
            about |= {"gain": gain.mean(), "gain_ci": half_width(gain.std(), len(gain))}
            about |= {"narrowest": plain.columns.min(), "widest": plain.columns.max()}
            rows.append(about | _equal(both["mlet"], both[plain.columns], level))
    columns = ["dataset", "k", "d", "seeds", "auc", "gain", "gain_ci", "narrowest", "widest", "width", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _equal(auc: pd.Series, plain: pd.DataFrame, level: float) -> dict[str, float]:
    """Find width, low and high for AUCs [seeds] among those of plain tables [seeds, widths]."""
    octaves = np.log2(plain.columns.to_numpy(dtype=float))
    fine = np.linspace(octaves[0], octaves[-1], round(OCTAVE * (octaves[-1] - octaves[0])) + 1)
    gaps = auc.to_numpy()[:, None] - np.stack([np.interp(fine, octaves, row) for row in plain.to_numpy()])
    gap, count = gaps.mean(0), len(gaps)

    def first(reached: np.ndarray) -> float:
        return 2 ** fine[reached.argmax()] if reached.any() else np.inf

    if count < 2:
        return {"width": first(gap <= 0), "low": np.nan, "high": np.nan}
    half = stats.t.ppf(1 - level / 2, count - 1) * gaps.std(0, ddof=1) / np.sqrt(count)
    low = 0.0 if gap[0] <= half[0] else first(gap <= half)
    return {"width": first(gap <= 0), "low": low, "high": first(gap < -half)}


def worth(runs: pd.DataFrame) -> pd.DataFrame:
    """Lay out `equal_width` for people: how many times narrower a two-layer table is than a plain one as good."""
    found = equal_width(runs)
    rows = found.to_dict("records")
    shown = found[["dataset", "k", "d", "seeds"]].assign(AUC=found["auc"].map("{:.4f}".format))
    shown["AUC − plain, same d"] = [signed(row["gain"], row["gain_ci"]) for row in rows]
    return shown.assign(**{"times narrower [95 %]": [_narrower(row) for row in rows]})


def _narrower(row: dict) -> str:
    """Write `5.2 [3.1, 8.0]`; outside the plain widths that ran only a bound is known: `> 16 [9.1, > 16]`."""

    def text(width: float) -> str:
        if np.isinf(width):
            return f"> {row['widest'] / row['d']:g}"
        if width <= row["narrowest"]:
            return f"≤ {row['narrowest'] / row['d']:g}"
        return f"{width / row['d']:.1f}" if width >= row["d"] else f"{width / row['d']:.2g}"

    ends = "" if pd.isna(row["low"]) else f" [{text(row['low'])}, {text(row['high'])}]"
    return text(row["width"]) + ends


def same_rows(measured: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Lay out the tests on the same test rows (DeLong), over the seeds of a cell: two layers minus plain."""
    if not _has(measured, "same_rows"):
        return pd.DataFrame({"the test on the same rows": [UNMEASURED]})
    table = measured["same_rows"]
    table = table[table["seed"].isna() & table["difference"].notna()]
    widths = [table[name].str.extract(r"dim=(\d+)", expand=False).astype(float) for name in ("variant", "reference")]
    table = table.assign(own=widths[0], other=widths[1]).sort_values(["dataset", "own", "other"])
    shown = table[["dataset"]].assign(
        **{"two layers": _words(table["variant"]), "against": _words(table["reference"].str.replace("full", "plain"))}
    )
    rows = table[["difference", "low", "high"]].itertuples(index=False)
    shown["AUC − its AUC [95 %]"] = [f"{signed(d)} [{signed(low)}, {signed(high)}]" for d, low, high in rows]
    return shown.assign(p=table["p"].map(probability))


def _words(variants: pd.Series) -> pd.Series:
    """Write `dim=16, hidden=64` as `d = 16, k = 64`."""
    return variants.str.replace("dim=", "d = ").str.replace("hidden=", "k = ")


def without_loss(runs: pd.DataFrame) -> pd.DataFrame:
    """Return for each dataset the best plain width, and the narrowest two-layer table as good; validation decides.

    Columns: dataset, plain_d, plain_auc (on test), k, d and auc (missing where none is as good), times_narrower.
    """
    means = runs.groupby(["dataset", "k", "d"])[["validation_auc", "auc"]].mean()
    rows = []
    for dataset, aucs in means.groupby("dataset"):
        aucs = aucs.droplevel("dataset")
        if 0 not in aucs.index.get_level_values("k"):
            continue
        plain = aucs.loc[0]
        best = plain["validation_auc"].idxmax()
        for k in sorted(set(aucs.index.get_level_values("k")) - {0}):
            own = aucs.loc[k]
            reached = own[own["validation_auc"] >= plain.loc[best, "validation_auc"]].sort_index()
            d, auc = (reached.index[0], reached["auc"].iloc[0]) if len(reached) else (np.nan, np.nan)
            found = {"dataset": dataset, "plain_d": best, "plain_auc": plain.loc[best, "auc"]}
            rows.append(found | {"k": k, "d": d, "auc": auc, "times_narrower": best / d})
    table = pd.DataFrame(rows, columns=["dataset", "plain_d", "plain_auc", "k", "d", "auc", "times_narrower"])
    return table.astype({"d": "Int64"})


def savings(runs: pd.DataFrame) -> Styler:
    """Lay out `without_loss` for people."""
    names = {
        "plain_d": "best plain d",
        "plain_auc": "its test AUC",
        "d": "narrowest d as good",
        "auc": "test AUC of that",
    }
    table = without_loss(runs).rename(columns=names | {"times_narrower": "times narrower"})
    forms = dict.fromkeys(["its test AUC", "test AUC of that"], "{:.4f}") | {"times narrower": "{:.3g}"}
    return table.style.hide(axis="index").format(forms, na_rep="none")


def advice(runs: pd.DataFrame) -> str:
    """Say for each dataset what two layers save whoever wants the AUC of the best plain table."""
    found = without_loss(runs).query("k == @MAIN")
    return "\n".join(_advice(row) for row in found.to_dict("records")) or "Nothing to advise yet: see what is missing."


def _advice(row: dict) -> str:
    best = f"{row['dataset']}: by validation the best plain table has d = {row['plain_d']}"
    best += f" (test AUC {row['plain_auc']:.4f})"
    if pd.isna(row["d"]):
        return f"{best}; no table trained through k = {row['k']} is as good."
    trained = f"training keeps {row['k'] / row['plain_d']:.3g} times the bytes of that plain table"
    if row["d"] >= row["plain_d"]:
        return f"{best}; trained through k = {row['k']}, none narrower is as good, and {trained}."
    return (
        f"{best}; trained through k = {row['k']}, d = {row['d']} is as good (test AUC {row['auc']:.4f}): "
        f"{row['times_narrower']:.3g} times fewer bytes served, while {trained}."
    )


# what it costs


def cost(times: pd.DataFrame) -> pd.DataFrame:
    """Return what a step with two layers takes above one with the plain table of the same width, paired by round.

    Columns: dataset, model, batch, d, k, step_ms (median), cost (median share above plain, 0.25 for a quarter) with
    its quartiles low and high over rounds, tables (the tables' share of the step; of the plain one where k is 0).
    """
    point = ["dataset", "model", "batch", "d"]
    rounds = times.pivot_table(index=[*point, "round"], columns=["work", "k"], values="ms")
    above = rounds["step"].div(rounds["step"][0], axis=0).sub(1).melt(ignore_index=False, value_name="cost")
    table = above.groupby([*point, "k"])["cost"].quantile([0.25, 0.5, 0.75]).unstack()
    table = table.set_axis(["low", "cost", "high"], axis=1).dropna()
    ms = times.groupby([*point, "k", "work"])["ms"].median().unstack()
    return table.assign(step_ms=ms["step"], tables=ms["tables"] / ms["step"]).reset_index()


def costs(measured: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Lay out `cost` for people; where nothing was timed, say what makes it."""
    if not _has(measured, "times"):
        return pd.DataFrame({"times of training steps": [UNMEASURED]})
    table = cost(measured["times"])
    shown = table[["dataset", "model", "batch", "d"]].assign(table=table["k"].map(name))
    shown["ms a step"] = table["step_ms"].map("{:.2f}".format)
    shown["above plain"] = table["cost"].map("{:+.0%}".format).where(table["k"] > 0, "")
    return shown.assign(**{"tables' share": table["tables"].map("{:.0%}".format)})


def disturbed(measured: dict[str, pd.DataFrame]) -> str:
    """Say how alone the machine was while it was timed."""
    if not _has(measured, "times"):
        return "Nothing was timed yet."
    rounds, share = _rounds(measured["times"]), _disturbed(measured["times"])
    often = f"During {share:.0%} of {len(rounds):,} rounds others used more than {FOREIGN:g} cores"
    return f"{often}: {rounds['foreign'].mean():.2f} on average."


def _rounds(times: pd.DataFrame) -> pd.DataFrame:
    return times.drop_duplicates(["dataset", "model", "d", "round"])


def _disturbed(times: pd.DataFrame) -> float:
    """Return the share of rounds in which others used the machine."""
    return (_rounds(times)["foreign"] > FOREIGN).mean()


def _has(measured: dict[str, pd.DataFrame], table: str) -> bool:
    return len(measured.get(table, ())) > 0


# why


def directions(ranks: pd.DataFrame, hidden: int = MAIN) -> pd.DataFrame:
    """Return the ranks of features with more ids than d, both kinds of table side by side, means over common seeds.

    Columns: dataset, weight, feature, ids, d, plain, two (effective ranks), stable_plain, stable_two, seeds.
    """
    wide = ranks[(ranks["ids"] > ranks["d"]) & ranks["k"].isin([0, hidden])]
    place = ["dataset", "weight", "feature", "ids", "d"]
    table = wide.pivot_table(index=[*place, "seed"], columns="k", values=["effective_rank", "stable_rank"]).dropna()
    kinds = [("effective_rank", 0), ("effective_rank", hidden), ("stable_rank", 0), ("stable_rank", hidden)]
    if table.empty or not {*kinds} <= {*table.columns}:
        return pd.DataFrame(columns=[*place, "plain", "two", "stable_plain", "stable_two", "seeds"])
    groups = table[kinds].set_axis(["plain", "two", "stable_plain", "stable_two"], axis=1).groupby(place)
    return groups.mean().assign(seeds=groups.size()).reset_index()


def ranks(measured: dict[str, pd.DataFrame], hidden: int = MAIN) -> pd.DataFrame:
    """Lay out `directions` for people: the mean over features, and in how many of them two layers use fewer."""
    table = directions(measured["ranks"], hidden) if _has(measured, "ranks") else pd.DataFrame()
    if table.empty:
        return pd.DataFrame({"effective ranks": [UNMEASURED]})
    groups = table.assign(fewer=table["two"] < table["plain"]).groupby(["dataset", "weight", "d"])
    shown = groups.agg(features=("feature", "size"), fewer=("fewer", "sum"), seeds=("seeds", "min"))
    means = groups[["plain", "two", "stable_plain", "stable_two"]].mean().round(2)
    words = ["effective rank, plain", "effective rank, two layers", "stable rank, plain", "stable rank, two layers"]
    return shown.rename(columns={"fewer": "fewer directions in"}).join(means.set_axis(words, axis=1)).reset_index()


# verdicts


def verdicts(runs: pd.DataFrame, measured: dict[str, pd.DataFrame]) -> list[Verdict]:
    """Judge the two published claims: the smaller dimension on each dataset, theirs too, and the cost of training."""
    found = equal_width(runs[runs["k"].isin([0, MAIN])], LEVEL / TRIED)
    datasets = dict.fromkeys([*(DATASETS if suite(runs) == SUITE else ()), *runs["dataset"], THEIRS])
    smaller = [_smaller(dataset, found[found["dataset"] == dataset], suite(runs)) for dataset in datasets]
    return [*smaller, _cost(measured, suite(runs))]


def _smaller(dataset: str, found: pd.DataFrame, suite: str) -> Verdict:
    """Judge one dataset by how many times narrower the best of the widths is, corrected for how many were tried."""
    claim, published = f"{dataset}: at some width d a table at least 4 times narrower reaches the same AUC", PUBLISHED
    ran = "not run" if found.empty else "too few seeds for an interval"
    found = found[SMALLER[0] * found["d"] <= found["widest"]].dropna(subset="low")
    if found.empty and dataset == THEIRS:
        needs = "Criteo-Kaggle (45.8 M rows) and 20 GB for tables in training"
        return Verdict(claim, published, "not run", UNTESTED, needs, f"make all SUITE={AS_PUBLISHED}")
    command = f"pocketrec run {suite} --dataset {dataset}"
    if found.empty:
        needs = f"two seeds of k = {MAIN}, and of plain tables 4 times wider"
        return Verdict(claim, published, ran, UNTESTED, needs, command)
    here = "; ".join(f"d = {row['d']}: {_narrower(row)} times" for row in found.to_dict("records"))
    best = [(found[end] / found["d"]).max() for end in ("low", "high")]
    verdict = by_interval(best[:1], best[1:], least=SMALLER[0])
    if verdict == UNDECIDED:
        return Verdict(claim, published, here, verdict, "more seeds: an interval reaches to both sides of 4", command)
    return Verdict(claim, published, here, verdict)


def _cost(measured: dict[str, pd.DataFrame], suite: str) -> Verdict:
    """Judge the cost by the model of the authors where it was timed, else by that of the suite."""
    published, quiet, command = PUBLISHED_COST, "steps timed on a quiet machine", f"pocketrec measure {suite}"
    table = cost(measured["times"]).query("k >= @MAIN") if _has(measured, "times") else pd.DataFrame()
    if table.empty:
        claim = "training the authors' model takes no more than 25 % longer on average"
        return Verdict(claim, published, "not timed", UNTESTED, quiet, command)
    models = table.groupby("model")[["low", "cost", "high"]].mean()
    judged = "authors" if "authors" in models.index else models.index[0]
    claim = f"training {_whose(judged)} takes no more than 25 % longer on average"
    here = "; ".join(
        f"{_whose(model)} {row['cost']:+.0%} [{row['low']:+.0%}, {row['high']:+.0%}]"
        for model, row in models.iterrows()
    )
    here = f"{here} (means over d and k of the median and of the quartiles)".replace("-", "−")
    if (share := _disturbed(measured["times"])) > QUIET:
        here += f"; {share:.0%} of rounds disturbed by others"
        return Verdict(claim, published, here, UNTESTED, quiet, command)
    verdict = by_interval([models.loc[judged, "low"]], [models.loc[judged, "high"]], most=COST)
    if verdict == UNDECIDED:
        return Verdict(claim, published, here, verdict, f"more {quiet}", command)
    return Verdict(claim, published, here, verdict)


# pictures


@house_style
def drawing() -> Figure:
    """Draw what is trained and what is served."""
    figure, ax = plt.subplots(figsize=(9, 3.1), layout="constrained")
    hue, n, k, d, row = colour("mlet"), 14, 13, 6, 11
    for x, height, width, face, text, below in (
        (0, n, k, hue, "E\nn × k", "trained: k numbers an id"),
        (k + 4, k, d, hue, "W\nk × d", "trained: one matrix a table"),
        (k + d + 14, n, d, FULL[0], "F = E W\nn × d", "served: d numbers an id"),
    ):
        ax.add_patch(Rectangle((x, n - height), width, height, facecolor=face, alpha=0.35, edgecolor=face))
        ax.text(x + width / 2, 6, text, ha="center", va="center")
        ax.text(x + width / 2, -0.8, below, ha="center", va="top", color=MUTED)
        if height == n:
            ax.add_patch(Rectangle((x, row), width, 1, facecolor=face))
    ax.text(-0.5, row + 0.5, "id x", ha="right", va="center")
    ax.text(k + 2, 6, "×", ha="center", va="center", fontsize=16)
    arrow = {"arrowstyle": "->", "color": INK, "linewidth": 1.4}
    ax.annotate("", (k + d + 12.5, 6), (k + d + 5.5, 6), arrowprops=arrow)
    ax.text(k + d + 9, 6.8, "multiplied out", ha="center", color=MUTED)
    ax.set(xlim=(-4, k + 2 * d + 17), ylim=(-2.5, n + 0.2), aspect="equal")
    ax.set_axis_off()
    return figure


def _shades(kinds: list[int]) -> dict[int, tuple]:
    """Give each kind of table its colour: grey for plain ones, darker for a wider hidden layer."""
    hidden = sorted({*kinds, *SEEDS} - {0})
    palette = sns.blend_palette(["#9fd3f5", colour("mlet"), "#0b4a72"], len(hidden))
    return {0: FULL[0]} | dict(zip(hidden, palette, strict=True))


def _legend(figure: Figure, shades: dict[int, tuple], kinds: list[int]) -> None:
    lines = [Line2D([], [], color=shades[k], marker="o" if not k else "s", label=name(k)) for k in sorted(kinds)]
    figure.legend(handles=lines, loc="outside upper left", ncols=4, frameon=False)


def _width_axis(ax: Axes, widths: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, map(str, widths))
    ax.minorticks_off()
    ax.set_xlabel("Served width d (floats a row)")


@house_style
def auc_vs_width(runs: pd.DataFrame) -> Figure:
    """Test AUC against d, a panel a dataset, a line a kind of table; bands are 95 % intervals over seeds."""
    if runs.empty:
        return sentence("No AUC to show: no run of a plain or two-layer table has finished.")
    kinds = sorted(runs["k"].unique())
    shades = _shades(kinds)
    figure, axes = panels(runs["dataset"].nunique(), 4.3, 3.7, columns=3)
    for ax, (dataset, rows) in zip(axes, runs.groupby("dataset"), strict=True):
        for k, line in rows.groupby("k"):
            points = line.groupby("d")["auc"].agg(["mean", "std", "count"])
            half = half_width(points["std"], points["count"]).where(points["count"] > 2, 0)
            ax.plot(points["mean"], color=shades[k], marker="s" if k else "o", markersize=5, linewidth=1.8)
            ax.fill_between(
                points.index, points["mean"] - half, points["mean"] + half, color=shades[k], alpha=0.16, linewidth=0
            )
        _width_axis(ax, sorted(rows["d"].unique()))
        ax.set_ylabel("Test AUC (mean, 95 % band)")
        put_title(ax, f"{dataset}: {_gain(rows)}", 40)
    _legend(figure, shades, kinds)
    return figure


def _gain(rows: pd.DataFrame) -> str:
    """Say where k = 64 is surely better than the plain table of the same width, and where surely worse."""
    found = equal_width(rows).query("k == @MAIN").dropna(subset="gain_ci")
    if found.empty:
        return f"k = {MAIN} and plain tables have not both run with two seeds"
    better = found.loc[found["gain"] > found["gain_ci"], "d"].tolist()
    worse = found.loc[found["gain"] < -found["gain_ci"], "d"].tolist()
    if not better and not worse:
        return f"k = {MAIN} is told apart from plain at no d"
    words = [
        f"{word} at " + ("every d" if len(ds) == len(found) else f"d = {', '.join(map(str, ds))}")
        for word, ds in (("better", better), ("worse", worse))
        if ds
    ]
    return f"k = {MAIN} is {' and '.join(words)}"


@house_style
def narrower(runs: pd.DataFrame) -> Figure:
    """Draw how many times narrower a two-layer table is than the plain one as good; whiskers are 95 % intervals."""
    found = equal_width(runs)
    if found.empty:
        return sentence("Nothing to compare: plain and two-layer tables have not both run on one dataset.")
    kinds = sorted(found["k"].unique())
    shades = _shades(kinds)
    several = found[found["seeds"] > 2]  # those with a whisker
    ends = [_seen(several, end) / several["d"] for end in ("low", "high")]
    times = pd.concat([_seen(found, "width") / found["d"], *ends])
    ticks = 2.0 ** np.arange(np.floor(np.log2(min(times.min(), 0.5))), np.ceil(np.log2(max(times.max(), 8))) + 1)
    figure, axes = panels(found["dataset"].nunique(), 4.3, 3.7, columns=3, sharey=True)
    for ax, (dataset, rows) in zip(axes, found.groupby("dataset"), strict=True):
        ax.axhspan(*SMALLER, color=GRID, alpha=0.7, linewidth=0)
        ax.axhline(1, color=INK, linewidth=1)
        widths = sorted(rows["d"].unique())
        for end, dash in (("widest", CEILING), ("narrowest", ":")):
            ax.plot(widths, rows.groupby("d")[end].first() / widths, color=MUTED, linewidth=1, linestyle=dash)
        for place, (k, line) in enumerate(rows.groupby("k")):
            _narrower_line(ax, line, shades[k], 1.06 ** (place - len(kinds) / 2))
        _width_axis(ax, widths)
        ax.set_yscale("log", base=2)
        ax.set_yticks(ticks, [f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in ticks])
        ax.set_ylim(ticks[0] / 1.2, ticks[-1] * 1.2)
        ax.minorticks_off()
        ax.set_ylabel("Plain d of the same AUC ÷ d")
        put_title(ax, f"{dataset}: {_most(rows)}", 40)
    _legend(figure, shades, kinds)
    return figure


def _seen(found: pd.DataFrame, end: str) -> pd.Series:
    """Return a width of `equal_width`, at most as far as plain tables ran."""
    return found[end].clip(found["narrowest"], found["widest"])


def _narrower_line(ax: Axes, line: pd.DataFrame, shade: tuple, aside: float) -> None:
    """Draw one k; a triangle marks a bound, where the plain tables that ran do not reach."""
    d = line["d"].to_numpy(dtype=float)
    middle, low, high = (_seen(line, end).to_numpy() / d for end in ("width", "low", "high"))
    ax.plot(d * aside, middle, color=shade, linewidth=1.2)
    several = (line["seeds"] > 2).to_numpy()
    ax.vlines((d * aside)[several], low[several], high[several], color=shade, linewidth=1.6)
    above, below = np.isinf(line["width"]).to_numpy(), (line["width"] <= line["narrowest"]).to_numpy()
    for marker, shown in (("^", above), ("v", below), ("s", ~above & ~below)):
        ax.plot((d * aside)[shown], middle[shown], marker, color=shade, markersize=6)


def _most(rows: pd.DataFrame) -> str:
    """Say how much k = 64 is worth over the widths where 4 times could be seen."""
    found = rows[(rows["k"] == MAIN) & (SMALLER[0] * rows["d"] <= rows["widest"])]
    if found.empty:
        return f"k = {MAIN} has not run"
    times = (_seen(found, "width") / found["d"]).round(1)
    least = " or less" if (found["width"] <= found["narrowest"]).any() else ""
    most = " or more" if np.isinf(found["width"]).any() else ""
    return f"k = {MAIN} is worth {times.min():g}{least} to {times.max():g}{most} times the width"


@house_style
def cost_vs_width(measured: dict[str, pd.DataFrame]) -> Figure:
    """Draw what a training step takes above the plain table's, a panel a model and dataset; whiskers are quartiles."""
    if not _has(measured, "times"):
        return sentence(f"Times of training steps: {UNMEASURED}.")
    table = cost(measured["times"]).query("k > 0")
    kinds = sorted(table["k"].unique())
    shades = _shades(kinds)
    groups = list(table.groupby(["model", "dataset"]))
    figure, axes = panels(len(groups), 3.6, 3.3, columns=4, sharey=True)
    for ax, ((model, dataset), rows) in zip(axes, groups, strict=True):
        ax.axhline(COST, color=MUTED, linewidth=1, linestyle=CEILING)
        ax.axhline(0, color=INK, linewidth=1)
        for place, (k, line) in enumerate(rows.groupby("k")):
            x = line["d"] * 1.06 ** (place - len(kinds) / 2)
            ax.plot(x, line["cost"], color=shades[k], marker="s", markersize=5)
            ax.vlines(x, line["low"], line["high"], color=shades[k], linewidth=1.6)
        _width_axis(ax, sorted(rows["d"].unique()))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_ylabel("Training step above plain (%)")
        mean = rows.loc[rows["k"] == MAIN, "cost"].mean()
        put_title(ax, f"{dataset}, {_whose(model)}, batch {rows['batch'].iloc[0]:,}: k = {MAIN} takes {mean:+.0%}", 36)
    _legend(figure, shades, kinds)
    return figure


def _whose(model: str) -> str:
    return {"authors": "the authors' model", "suite": "the suite's model"}[model]


@house_style
def step_parts(measured: dict[str, pd.DataFrame]) -> Figure:
    """Draw where a training step's milliseconds go, tables or the rest, at the middle width that was timed."""
    if not _has(measured, "times"):
        return sentence(f"Times of training steps: {UNMEASURED}.")
    table = cost(measured["times"])
    widths = sorted(table["d"].unique())
    d = widths[len(widths) // 2]
    groups = list(table[table["d"] == d].groupby(["model", "dataset"]))
    figure, axes = panels(len(groups), 3.6, 2.9, columns=4)
    for ax, ((model, dataset), rows) in zip(axes, groups, strict=True):
        rows = rows.iloc[::-1]
        part = rows["step_ms"] * rows["tables"].clip(upper=1)
        names = rows["k"].map(lambda k: f"k = {k}" if k else "plain")
        ax.barh(names, part, color=colour("mlet"))
        ax.barh(names, rows["step_ms"] - part, left=part, color="#c3cad1")
        ax.set(xlabel="Time a step (ms)")
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        ax.grid(axis="x")
        shares = rows.set_index("k")["tables"]
        last = MAIN if MAIN in shares else shares.index.max()
        said = f"tables take {shares[0]:.0%} of a plain step, {shares[last]:.0%} with k = {last}"
        put_title(ax, f"{dataset}, {_whose(model)}, d = {d}: {said}", 34)
    parts = [Patch(color=colour("mlet"), label="tables"), Patch(color="#c3cad1", label="MLPs and the rest")]
    figure.legend(handles=parts, loc="outside upper left", ncols=2, frameon=False)
    return figure


@house_style
def ranks_side_by_side(measured: dict[str, pd.DataFrame], weight: str = "lookups", hidden: int = MAIN) -> Figure:
    """Draw the effective rank of every feature's table, two layers against plain; a larger dot has more ids."""
    table = directions(measured["ranks"], hidden) if _has(measured, "ranks") else pd.DataFrame(columns=["weight"])
    table = table[table["weight"] == weight]
    if table.empty:
        return sentence(f"Effective ranks: {UNMEASURED}, which needs the tables that runs saved.")
    figure, axes = panels(table["dataset"].nunique(), 4.1, 4.1, columns=3)
    for ax, (dataset, rows) in zip(axes, table.groupby("dataset"), strict=True):
        d = rows["d"].iloc[0]
        ax.plot([1, d], [1, d], color=INK, linewidth=1)
        ax.scatter(rows["plain"], rows["two"], 12 * np.log10(rows["ids"]) ** 2, color=colour("mlet"), alpha=0.75, lw=0)
        ticks = [1, *range(4, d + 1, max(1, d // 4))]
        ax.set(xlim=(1, d), ylim=(1, d), xticks=ticks, yticks=ticks, aspect="equal")
        ax.set(xlabel=f"Effective rank of the plain table (of {d})")
        ax.set_ylabel(f"Effective rank, two layers, k = {hidden}")
        fewer = (rows["two"] < rows["plain"]).sum()
        means = f"{rows['two'].mean():.1f} directions with two layers, {rows['plain'].mean():.1f} plain"
        put_title(ax, f"{dataset}: {means}; fewer in {fewer} of {len(rows)} features", 34)
    return figure
