"""Tables and pictures of `pocketrec bench`, and the bars that it is held against.

A ratio compares medians of samples that were taken in turn in one process. A bar that speaks of several settings
counts the worst of them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from pocketrec.errors import UserError
from pocketrec.report.plots import ALARM, FULL, INK, MUTED, colour, house_style, panels, put_title, sentence

REFERENCE = "facebookresearch/dlrm"
OURS, PLAIN, LIMIT, BAGS, FBGEMM, CCE = "pocketrec", "plain PyTorch", "limit", "26 x nn.EmbeddingBag", "FBGEMM", "cce"
CONTRACTED, APART = "pocketrec, contracted", "pocketrec, looked up and then paired"
HOSTED, GRAPH = "full, in main memory", "CUDA graph"
FUSED = "fused nn.Embedding"
TORCH = [BAGS, FUSED, "fused nn.EmbeddingBag"]
VERSIONS = ("there", "here")
WAY = ["family", "route", "ratio", "block_size", "hash", "rank"]
POINT = ["dim", "batch", "ids", "work"]
FOREIGN = 0.1  # cores that others may use before a sample counts as disturbed


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
        self.medians[["share_of_limit"] if self.on_gpu else ["share_of_copy", "launch"]] = float("nan")

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
    return table.drop(columns=["lookups", "bytes_moved"]).assign(share_of_limit=_shares(table))


def _shares(table: pd.DataFrame) -> pd.Series:
    """Return the share of the limit that a forward pass reaches: same size of memory, same block, same point."""
    on = ["family", "ratio", "block_size", *POINT]
    limits = table.loc[table["route"] == LIMIT, [*on, "ms"]].rename(columns={"ms": "limit"})
    return table[on].merge(limits, on=on, how="left")["limit"].to_numpy() / table["ms"]


def not_timed(speed: Speed) -> pd.DataFrame:
    """Return what was not timed, and why; what gave wrong numbers stands here too."""
    if "reason" not in speed.samples:
        return pd.DataFrame(columns=["family", "route", "dim", "reason"])
    rows = speed.samples[speed.samples["reason"].notna()]
    return rows[["family", "route", "dim", "reason"]].drop_duplicates(ignore_index=True)


def state(speed: Speed) -> pd.Series:
    """Return what the machine is, its limits and its mood while samples were taken."""
    hops = speed.samples["core_to_core_ns"].dropna()
    spread = f"{hops.quantile(0.2):.0f} to {hops.quantile(0.8):.0f}" if len(hops) else "not measured"
    kept = speed.samples["foreign"].dropna()
    disturbed = f"{(kept > FOREIGN).mean():.0%} of {len(kept):,}" if len(kept) else "none taken"
    return pd.Series(speed.machine | {"core to core while timing, ns": spread, "samples others disturbed": disturbed})


def times(speed: Speed, **where: Any) -> pd.DataFrame:
    """Return the medians at some points for people, columns that say nothing left out."""
    table = _where(speed.medians, where).drop(columns=[*where, "bytes_needed"])
    shown = table.dropna(axis=1, how="all").sort_values(["family", "work", "ms"], ignore_index=True)
    return shown.round(
        {"ms": 4, "p20": 4, "p80": 4, "ns_per_lookup": 2, "gb_s": 1, "share_of_limit": 2, "share_of_copy": 2}
    )


def _where(table: pd.DataFrame, where: dict[str, Any]) -> pd.DataFrame:
    for name, value in where.items():
        table = table[table[name].isin(value) if isinstance(value, list) else table[name] == value]
    return table


# the bars


@dataclass(frozen=True)
class Bar:
    """Ours shall be `need` times faster than a rival, at every point where both were measured.

    `best` takes the fastest of several rivals. `need` below 1 is a share of a limit.
    """

    text: str
    need: float
    ours: dict[str, Any]
    rival: dict[str, Any]
    best: bool = False

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
        limit = {"family": "robe", "route": LIMIT, "ratio": 1000, "block_size": 16}
        if hash == "multiply_shift":
            text = "ROBE-16 forward, share of the random-gather limit"
            yield Bar(text, 0.8, robe | {"work": "forward"}, limit)
            for (name, rival), need in zip(rivals.items(), (10, 11, 4), strict=True):
                yield Bar(f"ROBE-16 step against {name}", need, robe | {"work": "step"}, rival)
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
        yield Bar(f"Tensor train, ranks 8 to 64, {work} against cce's", 20, train, plain | {"route": CCE})
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
    return table.round({"measured": 2})


def _cpu_bars(speed: Speed) -> Iterable[tuple[str, str, float, float | None, str]]:
    for bar in _bars():
        yield bar.text, "at least", bar.need, bar.measured(speed.medians), "times"
    one = _where(speed.medians, {"family": "robe", "route": OURS, "dim": 16, "batch": 1, "work": "forward"})
    slowest = one[one["block_size"] == 16]["ms"].max() * 1e3 if len(one) else None
    yield "ROBE-16, a lookup of 26 features from Python", "at most", 10.0, slowest, "µs"
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
        yield f"{name}, forward, share of a copy's speed", "at least", 0.7, forward, "times"
        if way["family"] not in ("int8", "int4"):
            yield f"{name}, backward and update, share of a copy's speed", "at least", 0.5, backward, "times"
    for words, ratio in (("full table", None), ("ROBE-32", 1000)):
        found = table[
            (table["family"] == "pairs") & (table["ratio"].isna() if ratio is None else table["ratio"] == ratio)
        ]
        ms = found.pivot(index="ids", columns="route", values="ms")
        gain = (ms[APART] / ms[OURS]).min() if {APART, OURS} <= set(ms) else None
        yield f"Lookup and interaction at once, {words}, against one after the other", "at least", 1, gain, "times"
    yield from _gpu_model_bars(speed.dlrm)


def _gpu_model_bars(dlrm: pd.DataFrame) -> Iterable[tuple[str, str, float, float | None, str]]:
    robe, full = f"robe, {GRAPH}", f"full, {GRAPH}"
    ms = dlrm.groupby(["work", "batch", "embedding"])["ms"].median() if len(dlrm) else pd.Series(dtype=float)
    largest = dlrm["batch"].max() if len(dlrm) else 65_536
    for work in ("answers", "training step"):
        for rival, need in ((HOSTED, 3.1), (BAGS, 1), (full, 1)):
            if work == "answers" or rival != HOSTED:
                known = {(work, largest, robe), (work, largest, rival)} <= set(ms.index)
                value = ms[work, largest, rival] / ms[work, largest, robe] if known else None
                yield f"DLRM, {work}, batch {largest:,}, robe against {rival}", "at least", need, value, "times"


def _model_bars(dlrm: pd.DataFrame) -> Iterable[tuple[str, str, float, float | None, str]]:
    ms = dlrm.groupby(["work", "embedding"])["ms"].median() if len(dlrm) else {}
    for name, need in (("robe", 3), ("tt_rec rank 32", 1.8)):
        value = ms["request", BAGS] / ms["request", name] if len(ms) else None
        yield f"DLRM, one request, {name} against {BAGS}", "at least", need, value, "times"
    for name, need in (("full", 1.5), ("robe", 1.5), ("tt_rec rank 32", 6)):
        value = ms["training step", name] - ms["training step", "MLPs only"] if len(ms) else None
        yield f"DLRM, training step, {name} above its MLPs", "at most", need, value, "ms"
    known = len(ms) and {("training step", REFERENCE), ("training step", "robe, bf16")} <= set(ms.index)
    value = ms["training step", REFERENCE] / ms["training step", "robe, bf16"] if known else None
    yield f"DLRM, training step, robe in bf16 against {REFERENCE} as it is", "at least", 2, value, "times"


def overview(folder: str | Path) -> str:
    """Write the bars and what was not timed, for a terminal."""
    speed = load(folder)
    table = bars(speed)
    table["need"] = table["asks"] + " " + table["need"].map("{:g}".format)
    text = table.drop(columns="asks").to_string(index=False, na_rep="–")
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


@house_style
def against_bars(speed: Speed) -> Figure:
    """Draw every ratio that was measured, and the tick that it has to reach."""
    table = bars(speed)
    found = table[table["measured"].notna() & (table["unit"] == "times")].iloc[::-1].reset_index(drop=True)
    if found.empty:
        return sentence("No ratio to show: neither side of any bar was measured.")
    figure, ax = plt.subplots(figsize=(9, 0.27 * len(found) + 1.2), layout="constrained")
    hues = found["verdict"].map({"reached": colour("robe"), "not reached": ALARM})
    ax.barh(found.index, found["measured"], color=hues, height=0.62, alpha=0.85)
    ax.plot(found["need"], found.index, "|", color=INK, markersize=11, markeredgewidth=2)
    for place, row in found.iterrows():
        ax.annotate(
            f"{row['measured']:.2g}",
            (row["measured"], place),
            (5, 0),
            textcoords="offset points",
            va="center",
            color=MUTED,
        )
    ax.set_yticks(found.index, found["bar"])
    ax.set(xscale="log", xlabel="Times faster (tick: what is asked)", ylim=(-0.6, len(found) - 0.4))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.grid(False, axis="y")
    reached = (found["verdict"] == "reached").sum()
    ax.set_title(f"{reached} of {len(found)} measured ratios reach their bar")
    return figure


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
    "limit of the table": ({"family": "table", "route": LIMIT}, INK, ":"),
}


@house_style
def against_batch(speed: Speed, y: str = "ms", dim: int = 16) -> Figure:
    """Draw `ms` or `gb_s` against the batch size, by skew of the ids and by work, for the ways that matter most."""
    table = _where(speed.medians, {"dim": dim})
    table = table[table.groupby("ids")["batch"].transform("nunique") > 1]
    if table.empty:
        return sentence(f"One batch size of dim {dim} was measured: `pocketrec bench --batch 1,64,2048,65536 --add`.")
    wanted = [(ids, work) for ids in ("zipf", "uniform") if ids in set(table["ids"]) for work in ("forward", "step")]
    figure, axes = panels(len(wanted), 5.4, 3.6)
    for ax, (ids, work) in zip(axes, wanted, strict=True):
        point = _where(table, {"ids": ids, "work": work})
        for name, (where, hue, dash) in _LINES.items():
            line = _where(point, where).sort_values("batch")
            if _where(table, where).empty:
                continue
            ax.plot(line["batch"], line[y], color=hue, linestyle=dash, marker="o", markersize=4, label=name)
        ax.set(xscale="log", yscale="log", xlabel="Batch", ylabel={"ms": "Time (ms)", "gb_s": "GB/s"}[y])
        put_title(ax, f"{ids} ids, {work}, dim {dim}: {_gain(point, work)}", 48)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _gain(table: pd.DataFrame, work: str) -> str:
    def at(name: str) -> pd.Series:
        return _where(table, _LINES[name][0] | {"work": work}).groupby("batch")["ms"].median()

    gain = (at("26 bags") / at("ours, ROBE 1000×")).dropna()
    return f"ROBE {gain.min():.2g} to {gain.max():.2g} times faster than 26 bags" if len(gain) else "26 bags missing"


@house_style
def roofline(speed: Speed, batch: int = 2048) -> Figure:
    """Draw the share of the limit that our forward passes reach, and that the rivals reach.

    The limit is that of random rows; on a GPU the speed of a copy, counting the bytes that must move.
    """
    table = _where(speed.medians, {"batch": batch, "work": "forward", "ids": "zipf"})
    share = "share_of_copy" if speed.on_gpu else "share_of_limit"
    found = table[table[share].notna() & (table["route"] != LIMIT)].assign(share=table[share])
    if found.empty:
        return sentence(f"No limit was measured at batch {batch:,}.")
    found = found.sort_values(["dim", "share"]).reset_index(drop=True)
    figure, axes = panels(found["dim"].nunique(), 6.4, 0.2 * found.groupby("dim").size().max() + 1.4, columns=2)
    for ax, (dim, rows) in zip(axes, found.groupby("dim"), strict=True):
        rows = rows.tail(30).reset_index(drop=True)
        _shares_panel(ax, rows)
        first = rows[rows["route"] == OURS]["share"]
        said = f"ours reach {first.min():.0%} to {first.max():.0%} of the limit" if len(first) else "ours not measured"
        put_title(ax, f"dim {dim}, batch {batch:,}: {said}", 56)
    return figure


def _shares_panel(ax: Axes, rows: pd.DataFrame) -> None:
    hues = [colour(row.family) if row.route == OURS else "#c3cad1" for row in rows.itertuples()]
    ax.barh(rows.index, rows["share"], color=hues, height=0.66)
    ax.axvline(1, color=INK, linewidth=1)
    ax.set_yticks(rows.index, [way(row) for row in rows.to_dict("records")], fontsize=8)
    ax.set(xlabel="Share of the limit", ylim=(-0.6, len(rows) - 0.4))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.grid(False, axis="y")


def way(row: dict[str, Any]) -> str:
    """Name a way for a picture: `robe 1,000× Z=16 multiply_shift, pocketrec`."""
    words = [row["family"]]
    words += [f"{row['ratio']:,.0f}×"] if pd.notna(row["ratio"]) else []
    words += [f"Z={row['block_size']:.0f}"] if pd.notna(row["block_size"]) else []
    words += [row["hash"]] if isinstance(row["hash"], str) else []
    words += [f"rank {row['rank']:.0f}"] if pd.notna(row["rank"]) else []
    return " ".join(words) + f", {row['route']}"


@house_style
def model(speed: Speed) -> Figure:
    """Draw a DLRM's training step and request, with the part above the MLPs in colour."""
    if speed.dlrm.empty:
        return sentence("The whole model was not measured: `pocketrec bench --family dlrm --add`.")
    if speed.on_gpu:
        return _model_on_gpu(speed.dlrm)
    ms = speed.dlrm.groupby(["work", "embedding"])["ms"].median()
    figure, axes = panels(2, 5.4, 2.6)
    for ax, work in zip(axes, ("training step", "request"), strict=True):
        times = ms[work].sort_values(ascending=False)
        lower = times.index.str.endswith(", bf16")
        floor = pd.Series(times["MLPs only"], times.index).mask(lower, times.get("MLPs only, bf16"))
        ax.barh(times.index, floor, color="#c3cad1")
        ax.barh(times.index, (times - floor).clip(lower=0), left=floor, color=colour("robe"))
        ax.set(xlabel="Time (ms)")
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
        least = times["MLPs only"]
        put_title(ax, f"{work.capitalize()}: ROBE adds {times['robe'] - least:.2g} ms to {least:.3g}", 48)
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
        ax.set(xlabel="Time (ms)", xscale="log", ylim=(-0.6, len(order) - 0.4))
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        ax.grid(False, axis="y")
        gain = replayed["full"] / replayed["robe"]
        put_title(ax, f"{work.capitalize()}, batch {batch:,}: robe {gain:.2g} times as fast as full", 52)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure
