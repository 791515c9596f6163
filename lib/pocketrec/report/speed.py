"""Tables and pictures of `pocketrec bench`, and the bars that it is held against.

A ratio compares medians of samples that were taken in turn in one process. A bar that speaks of several settings
counts the worst of them.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter
from pandas.io.formats.style import Styler

from pocketrec.errors import UserError
from pocketrec.report.plots import (
    ALARM,
    FULL,
    INK,
    MUTED,
    colour,
    house_style,
    panels,
    plain_ticks,
    put_title,
    sentence,
)

REFERENCE = "facebookresearch/dlrm"
OURS, PLAIN, BAGS, FBGEMM, CCE = "pocketrec", "plain PyTorch", "26 x nn.EmbeddingBag", "FBGEMM", "cce"
AUTHORS, TENSORLY = "universal_memory_allocation", "tensorly-torch"
KNOWN = "limit"  # what samples call the reading by known indices
CONTRACTED, APART = "pocketrec, contracted", "pocketrec, looked up and then paired"
HOSTED, GRAPH = "full, in main memory", "CUDA graph"
FUSED = "fused nn.Embedding"
TORCH = [BAGS, FUSED, "fused nn.EmbeddingBag"]
VERSIONS = ("there", "here")
WAY = ["family", "route", "ratio", "block_size", "hash", "rank"]
POINT = ["dim", "batch", "ids", "work"]
FOREIGN = 0.1  # cores that others may use before a sample counts as disturbed
QUIET = 0.5  # share of samples that may be disturbed before times say nothing


@dataclass
class Speed:
    """What a bench left behind: medians, samples, the whole model and the machine."""

    samples: pd.DataFrame
    dlrm: pd.DataFrame
    profile: pd.DataFrame
    machine: dict[str, Any]
    medians: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        self.medians = medians(self.samples)
        self.medians["share_of_copy"] = self.medians.pop("gb_s_needed") / self.machine.get("copy_gb_s", float("nan"))
        # on a GPU known indices gain nothing; a processor's caches beat its copies, and nothing is captured
        self.medians[["share_of_known"] if self.on_gpu else ["share_of_copy", "launch"]] = float("nan")

    @property
    def on_gpu(self) -> bool:
        return self.machine.get("device", "cpu") != "cpu"


def load(folder: str | Path) -> Speed:
    """Read `results/speed`; the parts that were not measured are empty."""
    folder = Path(folder)
    if not (folder / "machine.json").exists():
        raise UserError(f"{folder}: nothing measured yet: run `pocketrec bench`")
    empty = pd.DataFrame(columns=[*WAY, *POINT, "ms", "foreign", "core_to_core_ns", "lookups", "bytes_moved", "reason"])
    return Speed(
        pd.read_parquet(folder / "samples.parquet") if (folder / "samples.parquet").exists() else empty,
        pd.read_parquet(folder / "dlrm.parquet") if (folder / "dlrm.parquet").exists() else pd.DataFrame(),
        pd.read_csv(folder / "profile.csv") if (folder / "profile.csv").exists() else pd.DataFrame(),
        json.loads((folder / "machine.json").read_text()),
    )


def medians(samples: pd.DataFrame) -> pd.DataFrame:
    """Return one row a way and point: ms, p20, p80, ns_per_lookup, gb_s, disturbed (share of samples), samples.

    gb_s counts every row that is looked up, gb_s_needed what must move at the least.
    """
    timed = samples[samples["ms"].notna()]
    timed = timed.reindex(columns=[*timed.columns, *({"bytes_needed", "launch"} - {*timed.columns})])
    groups = timed.groupby([*WAY, *POINT], dropna=False)
    table = groups.agg(
        ms=("ms", "median"),
        p20=("ms", lambda ms: ms.quantile(0.2)),
        p80=("ms", lambda ms: ms.quantile(0.8)),
        lookups=("lookups", "first"),
        bytes_moved=("bytes_moved", "first"),
        bytes_needed=("bytes_needed", "first"),
        launch=("launch", "first"),
        disturbed=("foreign", lambda cores: (cores > FOREIGN).mean()),
        samples=("ms", "size"),
    ).reset_index()
    table["ns_per_lookup"] = table["ms"] * 1e6 / table["lookups"]
    table["gb_s"] = table["bytes_moved"] / table["ms"] / 1e6
    table["gb_s_needed"] = table["bytes_needed"] / table["ms"] / 1e6
    return table.drop(columns=["lookups", "bytes_moved"]).assign(share_of_known=_shares(table))


def _shares(table: pd.DataFrame) -> pd.Series:
    """Return the share of the speed of known indices that a forward pass has: same memory, same block, same point."""
    on = ["family", "ratio", "block_size", *POINT]
    known = table.loc[table["route"] == KNOWN, [*on, "ms"]].rename(columns={"ms": "known"})
    return table[on].merge(known, on=on, how="left")["known"].to_numpy() / table["ms"]


def not_timed(speed: Speed) -> Styler:
    """Return what was not timed, and why; what gave wrong numbers stands here too."""
    if "reason" not in speed.samples or speed.samples["reason"].isna().all():
        return _remark("Everything that was asked for was timed.")
    rows = speed.samples[speed.samples["reason"].notna()]
    return _people(rows[["family", "route", "dim", "reason"]].drop_duplicates().rename(columns=str.capitalize))


def state(speed: Speed) -> Styler:
    """Return what the machine is, what it can, and its mood while samples were taken."""
    known, rows = speed.machine, {}
    for name, key, text in _STATE:
        if known.get(key) is not None:
            rows[name] = text(known[key]) if callable(text) else text.format(known[key])
    if known.get("dirty"):
        rows["Commit"] += ", with uncommitted changes"
    hops = speed.samples["core_to_core_ns"].dropna()
    if len(hops):
        rows["Core to core, while timing"] = f"{hops.quantile(0.2):.0f} to {hops.quantile(0.8):.0f} ns"
    kept = speed.samples["foreign"].dropna()
    disturbed = (kept > FOREIGN).mean()
    rows["Samples that others disturbed"] = f"{disturbed:.0%} of {len(kept):,}" if len(kept) else "none taken"
    if disturbed > FOREIGN:
        rows["Samples that others disturbed"] += "; ratios stand, as all ways were timed in turn; times do not compare"
    return _people(pd.DataFrame({"": rows.keys(), " ": rows.values()}))


def _reading(share: float) -> str:
    return f"{share:.0%} of an epoch" if share > 0 else "nothing that could be measured"


_STATE = (
    ("Commit", "commit", "{:.12}"),
    ("Processor", "processor", "{}"),
    ("Cores", "cores", "{}"),
    ("Threads", "threads", "{}"),
    ("Timed on", "device", "{}"),
    ("Driver", "driver", "{}"),
    ("torch", "torch", "{}"),
    ("Triton", "triton", "{}"),
    ("Command", "command", "{}"),
    ("A copy", "copy_gb_s", "{:,.1f} GB/s, bytes read and written"),
    ("Random rows of 64 bytes, in cache", "rows_in_cache_m_s", "{:,.0f} million a second"),
    ("Random rows of 64 bytes, out of cache", "rows_out_of_cache_m_s", "{:,.0f} million a second"),
    ("Core to core", "core_to_core_ns", "{:.0f} ns"),
    ("Cores that others took", "foreign_cores_meanwhile", "{:.2f}"),
    ("Huge pages", "huge_pages", lambda setting: re.search(r"\[(.*)\]|$", setting)[1] or setting),
    ("Memory", "how", "{}"),
    ("Reading the data costs", "reading_share", _reading),
)


def times(speed: Speed, **where: Any) -> pd.DataFrame:
    """Return the medians at some points, what says nothing left out."""
    table = _where(speed.medians, where).drop(columns=[*where, "bytes_needed"])
    return table.sort_values(["family", "work", "ms"], ignore_index=True).dropna(axis=1, how="all")


_COLUMNS = {
    "work": ("Work", "{}"),
    "ms": ("Time (ms)", "{:,.4f}"),
    "p20": ("p20", "{:,.4f}"),
    "p80": ("p80", "{:,.4f}"),
    "ns_per_lookup": ("ns a lookup", "{:,.2f}"),
    "gb_s": ("GB/s", "{:,.1f}"),
    "share_of_known": ("Speed of known indices", "{:.0%}"),
    "share_of_copy": ("Speed of a copy", "{:.0%}"),
    "launch": ("Launched by", "{}"),
    "disturbed": ("Disturbed", "{:.0%}"),
}


def listing(speed: Speed, **where: Any) -> Styler:
    """Return `times` for people: every way at these points."""
    table = times(speed, **where)
    if table.empty:
        return _remark(f"Nothing was timed at {', '.join(f'{name} {value}' for name, value in where.items())}.")
    ways = pd.Series([way(row) for row in table.reindex(columns=WAY).to_dict("records")], name="Way")
    shown = {name: words for name, words in _COLUMNS.items() if name in table}
    renamed = table[[*shown]].rename(columns={name: words for name, (words, _) in shown.items()})
    style = _people(pd.concat([ways, renamed], axis=1), dict(shown.values()))
    return style.set_table_attributes('class="tall"')  # it scrolls in its page


def operators(speed: Speed, most: int = 15) -> Styler:
    """Return torch's operators in a training step, the longest first."""
    if speed.profile.empty:
        return _remark("Not measured here: `pocketrec bench --family dlrm` takes the profile of a step on a processor.")
    names = {"operator": "Operator", "ms": "Time (ms)", "calls": "Calls", "share": "Share of the step"}
    formats = {"Time (ms)": "{:,.3f}", "Calls": "{:,.0f}", "Share of the step": "{:.1%}"}
    return _people(speed.profile.head(most).rename(columns=names)[[*names.values()]], formats)


def _people(table: pd.DataFrame, formats: dict[str, str] | None = None) -> Styler:
    """Style a table to be read: words to the left, a dash for what is missing."""
    table = table.infer_objects()
    words = [place for place, name in enumerate(table) if not pd.api.types.is_numeric_dtype(table[name])]
    left = [{"selector": f".col{place}", "props": "text-align: left; white-space: normal"} for place in words]
    return table.style.hide(axis="index").format(formats, na_rep="–").set_table_styles(left)


def _remark(text: str) -> Styler:
    """Return a sentence in a table's place."""
    return pd.DataFrame([text]).style.hide(axis="index").hide(axis="columns")


def _where(table: pd.DataFrame, where: dict[str, Any]) -> pd.DataFrame:
    for name, value in where.items():
        table = table[table[name].isin(value) if isinstance(value, list) else table[name] == value]
    return table


# the bars


@dataclass(frozen=True)
class Bar:
    """Ours shall be `need` times faster than a rival, at every point where both were measured.

    `best` takes the fastest of several rivals. With the unit `share`, ours is asked for a share of the rival's speed.
    """

    text: str
    need: float
    ours: dict[str, Any]
    rival: dict[str, Any]
    best: bool = False
    unit: str = "times"

    def measured(self, table: pd.DataFrame) -> float | None:
        ours, rival = _where(table, {"route": OURS} | self.ours), _where(table, self.rival)
        joined = [name for name in (*POINT, "rank") if name in ours]
        rival = rival[rival["work"].isin(ours["work"])]
        fastest = rival.groupby(joined, dropna=False)["ms"].agg("min" if self.best else "median").rename("rival")
        both = ours.merge(fastest.reset_index(), on=joined)
        return None if both.empty else float((both["rival"] / both["ms"]).min())


def _bars() -> Iterable[Bar]:
    at = {"dim": 16, "batch": 2048, "ids": "zipf"}
    hashes = (("multiply_shift", "multiply-shift", (5, 20, 3)), ("universal", "exact hash", (4, 15, 2.5)))
    for hash, words, needs in hashes:
        robe = {"family": "robe", "ratio": 1000, "block_size": 16, "hash": hash} | at
        cce = {"family": "robe", "route": CCE, "ratio": 1000, "block_size": 16}
        rivals = {BAGS: {"route": BAGS}, "cce's ROBE": cce, FBGEMM: {"route": FBGEMM}}
        for (name, rival), need in zip(rivals.items(), needs, strict=True):
            yield Bar(f"ROBE-16 forward, {words}, against {name}", need, robe | {"work": "forward"}, rival)
        text = f"ROBE-16 forward, {words}, against its authors' PyTorch"
        yield Bar(text, needs[1], robe | {"work": "forward"}, cce | {"route": AUTHORS})
        known = {"family": "robe", "route": KNOWN, "ratio": 1000, "block_size": 16}
        if hash == "multiply_shift":
            text = "ROBE-16 forward, share of the speed of known indices"
            yield Bar(text, 0.8, robe | {"work": "forward"}, known, unit="share")
            for (name, rival), need in zip(rivals.items(), (10, 11, 4), strict=True):
                yield Bar(f"ROBE-16 step against {name}", need, robe | {"work": "step"}, rival)
            for ratio, need in ((100, 15), (10, 25)):
                larger = robe | {"work": "step", "ratio": ratio}
                yield Bar(f"ROBE-16 step at {ratio}× against cce's ROBE", need, larger, cce | {"ratio": ratio})
    wide = {"family": "robe", "ratio": 1000, "block_size": 32, "hash": "multiply_shift"}
    wide |= {"dim": 128, "batch": [2048, 65_536]}
    for work, need in (("forward", 15), ("step", 8)):
        rival = {"family": "robe", "route": CCE, "ratio": 1000, "block_size": 32}
        yield Bar(f"ROBE-32, dim 128, {work} against cce's ROBE", need, wide | {"work": work}, rival)
    table = {"family": "table", "work": "step"} | at
    for rival, need in ((FUSED, 4), (BAGS, 6), (FBGEMM, 3)):
        yield Bar(f"Full table, step against {rival}", need, table, {"route": rival})
    any_robe = {"family": "robe", "block_size": [8, 16, 32, 64, 128], "batch": 2048}
    for work in ("forward", "step"):
        text = f"ROBE, any ratio, any Z of 8 or more, {work} against torch's fastest full table"
        yield Bar(text, 1, any_robe | {"work": work}, {"family": "table", "route": TORCH}, best=True)
    for work, need in (("forward", 8), ("step", 12)):
        train = {"family": "tensor_train", "work": work, "batch": 2048}
        plain = {"family": "tensor_train", "route": PLAIN}
        yield Bar(f"Tensor train, ranks 8 to 64, {work} against plain batched matmul", need, train, plain)
        for rival, name in ((CCE, "cce's"), (TENSORLY, "tensorly-torch's")):
            yield Bar(f"Tensor train, ranks 8 to 64, {work} against {name}", 20, train, plain | {"route": rival})
    served = {"family": "tensor_train", "route": CONTRACTED, "work": "forward", "batch": 2048}
    yield Bar("Tensor train, contracted, forward against plain batched matmul", 20, served, plain)


def bars(speed: Speed) -> pd.DataFrame:
    """Return every bar: what it asks, what was measured, and `reached`, `not reached` or `not measured`."""
    rows = list(_gpu_bars(speed)) if speed.on_gpu else list(_cpu_bars(speed))
    table = pd.DataFrame(rows, columns=["bar", "asks", "need", "measured", "unit"])
    reached = (table["measured"] >= table["need"]).where(
        table["asks"] == "at least", table["measured"] <= table["need"]
    )
    table["verdict"] = reached.map({True: "reached", False: "not reached"}).where(
        table["measured"].notna(), "not measured"
    )
    return table


def reached(speed: Speed) -> Styler:
    """Return the bars for people."""
    return _people(_written(bars(speed)))


def _written(table: pd.DataFrame) -> pd.DataFrame:
    """Write `bars` with units, and what was measured in as many digits as tell it from what is asked."""
    rows = table.to_dict("records")
    asks = [f"{row['asks']} {_amount(row['need'], row['unit'])}" for row in rows]
    measured = [_measured(row) for row in rows]
    return pd.DataFrame({"Bar": table["bar"], "Asks": asks, "Measured": measured, "Verdict": table["verdict"]})


def _amount(value: float, unit: str, digits: int | None = None) -> str:
    if unit == "share":
        return f"{value:.{(digits or 2) - 2}%}"
    number = f"{value:g}" if digits is None else f"{value:.{digits}f}"
    return f"{number}×" if unit == "times" else f"{number} {unit}"


def _measured(row: dict[str, Any]) -> str:
    value, need, unit = row["measured"], row["need"], row["unit"]
    if pd.isna(value):
        return "–"
    told = (digits for digits in range(2, 7) if _amount(value, unit, digits) != _amount(need, unit, digits))
    return _amount(value, unit, 2 if value == need else next(told, 7))


def _cpu_bars(speed: Speed) -> Iterable[tuple[str, str, float, float | None, str]]:
    for bar in _bars():
        yield bar.text, "at least", bar.need, bar.measured(speed.medians), bar.unit
    for words, way in (("ROBE-16", {"family": "robe", "block_size": 16}), ("Full table", {"family": "table"})):
        one = _where(speed.medians, way | {"route": OURS, "dim": 16, "batch": 1, "work": "forward"})
        slowest = one["ms"].max() * 1e3 if len(one) else None
        yield f"{words}, a lookup of 26 features from Python", "at most", 10.0, slowest, "µs"
    yield from _model_bars(speed.dlrm)


_ON_GPU: dict[str, dict[str, Any]] = {
    "Full table": {"family": "table"},
    "int8 rows": {"family": "int8"},
    "int4 rows": {"family": "int4"},
    "Hashing": {"family": "hashing"},
    "MLET": {"family": "mlet"},
    "ROBE-128": {"family": "robe", "ratio": 1000, "block_size": 128, "hash": "multiply_shift"},
    "ROBE-32": {"family": "robe", "ratio": 1000, "block_size": 32, "hash": "multiply_shift"},
    "26 tensor trains, rank 8": {"family": "tensor_trains", "rank": 8},
    "26 tensor trains, rank 32": {"family": "tensor_trains", "rank": 32},
}


def _gpu_bars(speed: Speed) -> Iterable[tuple[str, str, float, float | None, str]]:
    """Yield shares of the speed of a copy, counting the bytes that must move, and the models' ratios."""
    table = _where(speed.medians, {"dim": 128, "batch": 65_536})
    copy = speed.machine["copy_gb_s"]
    for name, way in _ON_GPU.items():
        ours = _where(table, way | {"route": OURS}).pivot(index="ids", columns="work", values=["ms", "bytes_needed"])
        forward = backward = None
        if ("ms", "forward") in ours:
            forward = (ours["bytes_needed", "forward"] / ours["ms", "forward"]).min() / 1e6 / copy
        if ("ms", "step") in ours:
            behind = {of: ours[of, "step"] - ours[of, "forward"] for of in ("bytes_needed", "ms")}
            backward = (behind["bytes_needed"] / behind["ms"]).min() / 1e6 / copy
        yield f"{name}, forward, share of a copy's speed", "at least", 0.7, forward, "share"
        if way["family"] not in ("int8", "int4"):
            yield f"{name}, backward and update, share of a copy's speed", "at least", 0.5, backward, "share"
    for words, ratio in (("full table", None), ("ROBE-32", 1000)):
        found = table[
            (table["family"] == "pairs") & (table["ratio"].isna() if ratio is None else table["ratio"] == ratio)
        ]
        ms = found.pivot(index="ids", columns="route", values="ms")
        gain = (ms[APART] / ms[OURS]).min() if {APART, OURS} <= set(ms) else None
        yield f"Lookup and interaction at once, {words}, against one after the other", "at least", 1, gain, "times"
    yield from _gpu_model_bars(speed.dlrm)


def _gpu_model_bars(dlrm: pd.DataFrame) -> Iterable[tuple[str, str, float, float | None, str]]:
    """Yield ratios of models that were launched alike: as CUDA graphs, and by torch where one side has no graph."""
    ms = dlrm.groupby(["work", "batch", "embedding"])["ms"].median() if len(dlrm) else pd.Series(dtype=float)
    largest = dlrm["batch"].max() if len(dlrm) else 65_536
    for work in ("answers", "training step"):
        for rival, need in ((HOSTED, 3.1), (BAGS, 1), ("full", 1)):
            if work == "training step" and rival == HOSTED:
                continue
            suffix, launched = ("", "launched by torch") if rival == HOSTED else (f", {GRAPH}", f"as a {GRAPH}")
            pair = [(work, largest, f"{rival}{suffix}"), (work, largest, f"robe{suffix}")]
            value = ms[pair[0]] / ms[pair[1]] if {*pair} <= set(ms.index) else None
            yield (
                f"DLRM, {work}, batch {largest:,}, robe against {rival}, both {launched}",
                "at least",
                need,
                value,
                "times",
            )


def _model_bars(dlrm: pd.DataFrame) -> Iterable[tuple[str, str, float, float | None, str]]:
    ms = dlrm.groupby(["work", "embedding"])["ms"].median() if len(dlrm) else {}
    for name, need in (("robe", 3), ("tt_rec rank 32", 1.8)):
        value = ms["request", BAGS] / ms["request", name] if len(ms) else None
        yield f"DLRM, one request, {name} against {BAGS}", "at least", need, value, "times"
    for name, need in (("full", 1.5), ("robe", 1.5), ("tt_rec rank 32", 6)):
        value = _above(dlrm, "training step", name) if len(ms) else None
        yield f"DLRM, training step, {name} above its MLPs", "at most", need, value, "ms"
    known = len(ms) and {("training step", REFERENCE), ("training step", "robe, bf16")} <= set(ms.index)
    value = ms["training step", REFERENCE] / ms["training step", "robe, bf16"] if known else None
    note = "; bf16 is emulated here" if known and _slower_in_bf16(ms) > 2 else ""
    yield f"DLRM, training step, robe in bf16 against {REFERENCE} as it is{note}", "at least", 2, value, "times"


def _above(dlrm: pd.DataFrame, work: str, name: str, floor: str = "MLPs only") -> float:
    """Return by how many milliseconds one model exceeds another, by the median of rounds: each timed both."""
    rows = dlrm[dlrm["work"] == work]
    rounds = rows.groupby("embedding").cumcount().rename("round")
    ms = rows.pivot_table(index=rounds, columns="embedding", values="ms")
    return float((ms[name] - ms[floor]).median())


def _slower_in_bf16(ms: pd.Series) -> float:
    """Return how many times longer the MLPs' training step takes in bf16; a processor that emulates it takes many."""
    step = ms["training step"]
    return step.get("MLPs only, bf16", 0) / step["MLPs only"]


def overview(folder: str | Path) -> str:
    """Write the bars and what was not timed, for a terminal."""
    speed = load(folder)
    table = bars(speed)
    text = _written(table).to_string(index=False)
    return f"{text}\n\n{verdict(table)}; samples in {Path(folder).resolve()}, pictures in notebooks/speed.ipynb"


def versions(samples: pd.DataFrame, factor: float = 1.05) -> pd.DataFrame:
    """Return one row a way and point of ours: ms `there` and `here`, how many times faster here, and if that counts.

    `change` is `faster` or `slower` where the medians differ by `factor` and the spreads (p20 to p80) do not meet,
    `new` or `gone` where only one version has the way, else `same`.
    """
    timed = samples[samples["ms"].notna() & (samples["route"] == OURS)]
    timed = timed.assign(**{name: timed[name].astype(object).where(timed[name].notna(), "") for name in WAY})
    levels = [0.2, 0.5, 0.8]
    ms = timed.groupby([*WAY, *POINT, "version"], sort=False)["ms"].quantile(levels).unstack(["version", -1])
    table = ms.reindex(columns=pd.MultiIndex.from_product([VERSIONS, levels]))
    table.columns = [f"{level} {version}" for version, level in table.columns]
    slow, fast = table["0.5 there"], table["0.5 here"]
    table["times faster"] = slow / fast
    table["change"] = "same"
    table.loc[(slow > factor * fast) & (table["0.2 there"] > table["0.8 here"]), "change"] = "faster"
    table.loc[(fast > factor * slow) & (table["0.2 here"] > table["0.8 there"]), "change"] = "slower"
    table.loc[slow.isna(), "change"] = "new"
    table.loc[fast.isna(), "change"] = "gone"
    table = table.rename(columns={"0.5 there": "ms there", "0.5 here": "ms here"}).reset_index()
    return table[[*WAY, *POINT, "ms there", "ms here", "times faster", "change"]].sort_values("times faster")


def verdict(table: pd.DataFrame) -> str:
    """Say in a sentence how many bars were reached."""
    counts = table["verdict"].value_counts()
    return ", ".join(f"{counts.get(name, 0)} {name}" for name in ("reached", "not reached", "not measured"))


# pictures


_KINDS = (
    (("times",), "Times faster", "reach what is asked (tick)"),
    (("share",), "Share of the speed", "reach what is asked (tick)"),
    (("ms", "µs"), "Time ÷ time allowed", "stay within what is allowed (tick)"),
)


@house_style
def against_bars(speed: Speed) -> Figure:
    """Draw every bar that was measured, a panel a kind, and the tick that it has to reach."""
    table = bars(speed)
    found = table[table["measured"].notna()]
    parts = [(found[found["unit"].isin(units)], words, done) for units, words, done in _KINDS]
    parts = [part for part in parts if len(part[0])]
    if not parts:
        return sentence("No bar to show: neither side of any was measured.")
    size = (10, 0.27 * len(found) + 1.1 * len(parts))
    heights = {"height_ratios": [len(rows) + 0.5 for rows, *_ in parts]}
    figure, axes = plt.subplots(len(parts), 1, figsize=size, layout="constrained", squeeze=False, gridspec_kw=heights)
    for ax, (rows, words, done) in zip(axes.flat, parts, strict=True):
        _bar_panel(ax, rows.iloc[::-1].reset_index(drop=True))
        ax.set_xlabel(words)
        ax.set_title(f"{words}: {(rows['verdict'] == 'reached').sum()} of {len(rows)} {done}")
    return figure


def _bar_panel(ax: Axes, rows: pd.DataFrame) -> None:
    at, tick, unit = rows["measured"], rows["need"], rows["unit"].iloc[0]
    if unit in ("ms", "µs"):
        at, tick = at / tick, tick / tick
    hues = rows["verdict"].map({"reached": colour("robe"), "not reached": ALARM})
    ax.hlines(rows.index, tick, at, color=hues, linewidth=2, alpha=0.5)
    ax.scatter(at, rows.index, color=hues, s=36, zorder=3)
    ax.plot(tick, rows.index, "|", color=INK, markersize=11, markeredgewidth=2)
    for place, row in enumerate(rows.to_dict("records")):
        right = (max(at[place], tick[place]), place)
        ax.annotate(_measured(row), right, (8, 0), textcoords="offset points", va="center", color=MUTED)
    ax.set_yticks(rows.index, rows["bar"])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    low, high = min(at.min(), tick.min()), max(at.max(), tick.max())
    if unit == "times":
        ax.set(xscale="log", xlim=(low / 1.25, high * 1.7))
        plain_ticks(ax.xaxis, (1, 2, 5) if high < 100 * low else (1,))
    else:
        ax.set_xlim(0, 1.2 * high)
        ax.xaxis.set_major_formatter(PercentFormatter(1) if unit == "share" else "{x:g}")
    _read_across(ax)


def _read_across(ax: Axes) -> None:
    """Rule a panel whose rows have names."""
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.grid(False, axis="y")


_LINES = {
    "ours, full": ({"family": "table", "route": OURS}, FULL[0], "-"),
    "26 bags": ({"family": "table", "route": BAGS}, FULL[0], "--"),
    "FBGEMM": ({"family": "table", "route": FBGEMM}, "#8c613c", "--"),
    "fused Embedding": ({"family": "table", "route": FUSED}, "#cc79a7", "--"),
    "ours, ROBE 1000×": (
        {"family": "robe", "route": OURS, "ratio": 1000, "block_size": 16, "hash": "multiply_shift"},
        "#0072b2",
        "-",
    ),
    "cce's ROBE": ({"family": "robe", "route": CCE, "ratio": 1000, "block_size": 16}, "#0072b2", "--"),
    "table, known indices": ({"family": "table", "route": KNOWN}, INK, ":"),
}


@house_style
def against_batch(speed: Speed, dim: int = 16) -> Figure:
    """Draw times and GB/s against the batch size, by skew of the ids and by work, for the ways that matter most."""
    table = _where(speed.medians, {"dim": dim})
    table = table[table.groupby("ids")["batch"].transform("nunique") > 1]
    if table.empty:
        return sentence(f"Dim {dim} was not timed at two batch sizes: `pocketrec bench --batch 1,64,2048,65536 --add`.")
    sizes = sorted(table["batch"].unique())
    skews = [ids for ids in ("zipf", "uniform") if ids in set(table["ids"])]
    wanted = [(y, ids, work) for y in ("ms", "gb_s") for ids in skews for work in ("forward", "step")]
    figure, axes = panels(len(wanted), 5.4, 3.6)
    for ax, (y, ids, work) in zip(axes, wanted, strict=True):
        point = _where(table, {"ids": ids, "work": work})
        for name, (where, hue, dash) in _LINES.items():
            line = _where(point, where).sort_values("batch")
            if _where(table, where).empty:
                continue
            style = dash if line["batch"].nunique() > 2 else "none"  # two points are no curve
            face = hue if dash == "-" else "white"
            ax.plot(line["batch"], line[y], color=hue, linestyle=style, marker="o", ms=5, mfc=face, label=name)
        ax.set(xscale="log", yscale="log", xlabel="Batch", ylabel={"ms": "Time (ms)", "gb_s": "GB/s"}[y])
        ax.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        ax.xaxis.set_minor_locator(NullLocator())
        plain_ticks(ax.yaxis)
        put_title(ax, f"{ids} ids, {work}, dim {dim}: {_gain(point, work, y)}", 48)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _gain(table: pd.DataFrame, work: str, y: str) -> str:
    """Say how many times faster than 26 bags ROBE is, or how many GB/s both move."""

    def at(name: str) -> pd.Series:
        return _where(table, _LINES[name][0] | {"work": work}).groupby("batch")[y].median()

    bags, robe = at("26 bags"), at("ours, ROBE 1000×")
    both = robe.index.intersection(bags.index)
    if both.empty:
        return "ROBE or the 26 bags are missing"
    if y == "gb_s":
        return f"ROBE moves {_span(robe[both])} GB/s, 26 bags {_span(bags[both])}"
    return f"ROBE {_span(bags[both] / robe[both])} times faster than 26 bags"


def _span(values: pd.Series, text: str = "{:.2g}") -> str:
    """Write a range, `2 to 5`, or the one number that both ends are."""
    low, high = text.format(values.min()), text.format(values.max())
    return low if low == high else f"{low} to {high}"


@house_style
def roofline(speed: Speed, batch: int = 2048) -> Figure:
    """Draw what share of a reference's speed our forward passes have, and those of the rivals.

    It is the reading by known indices; on a GPU a copy, counting the bytes that must move.
    """
    table = _where(speed.medians, {"batch": batch, "work": "forward", "ids": "zipf"})
    share, what = ("share_of_copy", "a copy") if speed.on_gpu else ("share_of_known", "known indices")
    found = table[table[share].notna() & (table["route"] != KNOWN)]
    if found.empty:
        return sentence(f"Nothing to compare with was timed at batch {batch:,}.")
    found = found.assign(share=found[share]).sort_values(["dim", "share"]).reset_index(drop=True)
    figure, axes = panels(found["dim"].nunique(), 6.4, 0.2 * found.groupby("dim").size().max() + 1.4, columns=2)
    for ax, (dim, rows) in zip(axes, found.groupby("dim"), strict=True):
        rows = rows.tail(30).reset_index(drop=True)
        _shares_panel(ax, rows)
        ax.set_xlabel(f"Share of the speed of {what}")
        first = rows[rows["route"].str.startswith(OURS)]["share"]
        said = f"ours have {_span(first, '{:.0%}')} of the speed of {what}" if len(first) else "ours not measured"
        put_title(ax, f"dim {dim}, batch {batch:,}: {said}", 56)
    return figure


def _shares_panel(ax: Axes, rows: pd.DataFrame) -> None:
    hues = [colour(row.family) if row.route.startswith(OURS) else "#c3cad1" for row in rows.itertuples()]
    ax.barh(rows.index, rows["share"], color=hues, height=0.66)
    ax.axvline(1, color=INK, linewidth=1)
    ax.set_yticks(rows.index, [way(row) for row in rows.to_dict("records")], fontsize=8)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.set_ylim(-0.6, len(rows) - 0.4)
    _read_across(ax)


def way(row: dict[str, Any]) -> str:
    """Name a way for a picture: `robe 1,000× Z=16 multiply_shift, pocketrec`."""
    words = [row["family"]]
    words += [f"{row['ratio']:,.0f}×"] if pd.notna(row["ratio"]) else []
    words += [f"Z={row['block_size']:.0f}"] if pd.notna(row["block_size"]) else []
    words += [row["hash"]] if isinstance(row["hash"], str) else []
    words += [f"rank {row['rank']:.0f}"] if pd.notna(row["rank"]) else []
    return " ".join(words) + f", {'known indices' if row['route'] == KNOWN else row['route']}"


@house_style
def model(speed: Speed) -> Figure:
    """Draw a DLRM's training step and request, with the part above the MLPs in colour."""
    if speed.dlrm.empty:
        return sentence("The whole model was not measured: `pocketrec bench --family dlrm --add`.")
    if speed.on_gpu:
        return _model_on_gpu(speed.dlrm)
    ms = speed.dlrm.groupby(["work", "embedding"])["ms"].median()
    emulated = _slower_in_bf16(ms) > 2
    note = f"; bf16, emulated here, takes {_slower_in_bf16(ms):.2g} times as long" if emulated else ""
    if emulated:
        ms = ms[~ms.index.get_level_values("embedding").str.endswith(", bf16")]
    figure, axes = panels(2, 5.4, 2.6)
    for ax, work in zip(axes, ("training step", "request"), strict=True):
        times = ms[work].sort_values(ascending=False)
        floors = ["MLPs only, bf16" if name.endswith(", bf16") else "MLPs only" for name in times.index]
        above = [max(0, _above(speed.dlrm, work, *pair)) for pair in zip(times.index, floors, strict=True)]
        ax.barh(times.index, times[floors], color="#c3cad1")
        ax.barh(times.index, above, left=times[floors], color=colour("robe"))
        ax.set(xlabel="Time (ms)")
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        adds = _above(speed.dlrm, work, "robe")
        said = f"{work.capitalize()}: ROBE adds {adds:.2g} ms to {times['MLPs only']:.3g}"
        put_title(ax, said + (note if work == "training step" else ""), 48)
    return figure


def _model_on_gpu(dlrm: pd.DataFrame) -> Figure:
    """Draw what a model takes, launched by torch (rings) and as a CUDA graph (dots), by work and batch."""
    ms = dlrm.groupby(["work", "batch", "embedding"])["ms"].median()
    points = ms.index.droplevel("embedding").unique().sort_values()
    figure, axes = panels(len(points), 5.4, 2.9, columns=2)
    for ax, (work, batch) in zip(axes, points, strict=True):
        graph = ms.index.get_level_values("embedding").str.endswith(GRAPH)
        eager, replayed = (
            ms[~graph][work, batch],
            ms[graph][work, batch].rename(lambda name: name.removesuffix(f", {GRAPH}")),
        )
        order = eager.sort_values(ascending=False).index
        hues = [colour("robe") if name == "robe" else FULL[0] for name in order]
        ax.hlines(order, replayed.reindex(order), eager[order], color=hues, linewidth=1, alpha=0.5)
        ax.scatter(eager[order], order, facecolor="white", edgecolor=hues, s=34, zorder=3, label="launched by torch")
        ax.scatter(replayed.reindex(order), order, color=hues, s=34, zorder=3, label=GRAPH)
        low, high = min(eager.min(), replayed.min()) / 1.4, eager.max() * 1.4
        ax.set(xlabel="Time (ms)", xscale="log", xlim=(low, high), ylim=(-0.6, len(order) - 0.4))
        plain_ticks(ax.xaxis)
        _read_across(ax)
        gain = replayed["full"] / replayed["robe"]
        put_title(ax, f"{work.capitalize()}, batch {batch:,}: robe {gain:.2g} times as fast as full", 52)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure
