"""How long a training step takes on 1 to 64 workers, predicted from the bytes that it moves and the rates of a machine.

N workers train a batch of B samples, b = B / N each, with F features of width d in float32:

    sharded      full tables, an even part in every worker, which looks up for all. Ids go out, vectors come back,
                 gradients go out (three all-to-alls); the gradients of the MLPs are summed (all-reduce)
    replicated   a compressed array in every worker. No all-to-all; the all-reduce carries the array's gradient too
    offloaded    full tables in the memory of the host; vectors and gradients cross its bus. One node only

    step = fixed + MLPs + lookup + exchange + all-reduce        with V = 4 b F d and A the array's bytes

    MLPs          6 w b / flops              w multiply-adds a sample, forward and twice backward
    lookup        5 V / memory               rows read, written out; gradients read; rows read and written again
                  5 V / cache + 4 A / stream an array in cache; its gradient cleared and read, itself read and written
    exchange      S (N - 1) / N / link       for each all-to-all of S bytes a worker; between nodes over the network,
                                             at the same time
    all-reduce    2 S (g - 1) / g / reduce   S bytes, within a node of g workers, then 2 S (M - 1) / (M g) / network
                                             between M nodes, of which every worker carries its part

and `latency` times log2 N for every collective. Nothing overlaps; `overlapped` hides what can be hidden, and lies
below every real step. What is not counted: reading data, imbalance between shards, packing, hosts that are late.
Arithmetic only: it measures nothing, and a figure for a GPU is a prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import log2

import numpy as np
import pandas as pd
from scipy.optimize import nnls

SHARDED, REPLICATED, OFFLOADED = "sharded", "replicated", "offloaded"
WAYS = (SHARDED, REPLICATED, OFFLOADED)
PARTS = ("fixed", "MLPs", "lookup", "exchange", "all-reduce")
FLOAT, ID = 4, 4  # bytes
GB = 1e9


@dataclass(frozen=True)
class Model:
    """What is trained: `features` vectors of `dim` floats, `weights` of the MLPs, `macs` multiply-adds a sample."""

    features: int
    dim: int
    table_bytes: float
    array_bytes: float
    weights: int
    macs: int


def dlrm(
    cardinalities: Sequence[int],
    dim: int,
    num_dense: int,
    bottom_mlp: Sequence[int],
    top_mlp: Sequence[int],
    ratio: float,
) -> Model:
    """Return the sizes of `models.DLRM` over full tables, or over an array `ratio` times smaller."""
    vectors = len(cardinalities) + (num_dense > 0)
    inputs = vectors * (vectors - 1) // 2 + (dim if num_dense else 0)
    layers = [*pairwise([inputs, *top_mlp, 1])]
    layers += pairwise([num_dense, *bottom_mlp, dim]) if num_dense else []
    matrices = sum(n * m for n, m in layers)
    table_bytes = FLOAT * dim * sum(cardinalities)
    return Model(
        features=len(cardinalities),
        dim=dim,
        table_bytes=table_bytes,
        array_bytes=table_bytes / ratio,
        weights=matrices + sum(m for _, m in layers),
        macs=matrices + vectors * vectors * dim,
    )


@dataclass(frozen=True)
class Machine:
    """Rates of one worker that a program reaches, in bytes and operations a second.

    Attributes:
        flops: of the MLPs' products; a multiply-add counts two.
        memory: rows of tables that fit no cache, read or written.
        stream: memory that is read or written in order.
        cache: as `memory`, where the array lies in cache and only vectors and gradients pass through memory.
        capacity: bytes for tables.
        link: all-to-all within a node, what a worker sends.
        reduce: all-reduce within a node.
        network: what a worker sends to other nodes.
        node: workers in a node.
        latency: seconds of a collective of two workers that carries nothing.
        fixed: seconds of a step beside the rest: starting kernels, the optimizer.
        host: between a worker and the memory of its host, one way.
    """

    name: str
    flops: float
    memory: float
    stream: float
    cache: float
    capacity: float
    link: float
    reduce: float
    network: float
    node: int
    latency: float
    fixed: float
    host: float = 0.0


# What a program reaches of the vendor's peak. Assumed, alike for both ways.
REACHED = {"flops": 0.4, "memory": 0.8, "link": 0.8, "network": 0.8, "host": 0.8}
CACHE = 2.0  # times memory: 2 of 5 V pass through memory, less what unaligned blocks waste. Assumed
LATENCY, FIXED = 10e-6, 0.3e-3  # s. Assumed; kernels started by a graph: one by one they take several ms
PEAKS = {
    "A100 80 GB, InfiniBand": {
        "flops": (156e12, "TF32 matrix units: NVIDIA A100 data sheet"),
        "memory": (2039 * GB, "HBM2e: NVIDIA A100 data sheet (80 GB SXM)"),
        "capacity": (80 * GB, "NVIDIA A100 data sheet"),
        "link": (300 * GB, "NVLink 3, one way (600 GB/s both ways): NVIDIA A100 data sheet"),
        "network": (25 * GB, "one 200 Gb/s adapter a GPU: NVIDIA DGX A100 data sheet"),
        "host": (32 * GB, "PCIe 4.0 x16, one way"),
    },
    "H100 80 GB, InfiniBand": {
        "flops": (494.7e12, "TF32 matrix units, dense: NVIDIA H100 data sheet (SXM)"),
        "memory": (3350 * GB, "HBM3: NVIDIA H100 data sheet (SXM)"),
        "capacity": (80 * GB, "NVIDIA H100 data sheet"),
        "link": (450 * GB, "NVLink 4, one way (900 GB/s both ways): NVIDIA H100 data sheet"),
        "network": (50 * GB, "one 400 Gb/s adapter a GPU: NVIDIA DGX H100 data sheet"),
        "host": (64 * GB, "PCIe 5.0 x16, one way"),
    },
}
ETHERNET = "A100 80 GB, 100 Gb/s a node"
PEAKS[ETHERNET] = PEAKS["A100 80 GB, InfiniBand"] | {
    "network": (12.5 * GB / 8, "100 Gb/s Ethernet shared by the 8 GPUs of a node: the line rate")
}
NODE = 8
UNITS = {"flops": "TFLOP/s", "capacity": "GB", "latency": "µs", "fixed": "ms", "node": "GPUs"}
SCALES = {"flops": 1e-12, "latency": 1e6, "fixed": 1e3, "node": 1}


def gpu(name: str) -> Machine:
    """Return a machine of `PEAKS` with the shares of its peaks that programs reach."""
    peaks = {rate: value for rate, (value, _) in PEAKS[name].items()}
    reached = {rate: value * REACHED.get(rate, 1) for rate, value in peaks.items()}
    more = {"stream": reached["memory"], "cache": CACHE * reached["memory"], "reduce": reached["link"]}
    return Machine(name, **reached, **more, node=NODE, latency=LATENCY, fixed=FIXED)


def assumptions(names: Iterable[str] = tuple(PEAKS)) -> pd.DataFrame:
    """Return every figure that predictions for GPUs rest on: assumption, machine, value, unit, reached, source."""
    rows = [
        (rate, name, value * SCALES.get(rate, 1e-9), UNITS.get(rate, "GB/s"), REACHED.get(rate, 1.0), source)
        for name in names
        for rate, (value, source) in PEAKS[name].items()
    ]
    rows += [
        ("cache", "all", CACHE, "times memory", 1.0, "assumed: of five passes over the vectors two leave the cache"),
        ("latency", "all", LATENCY * 1e6, "µs x log2 N", 1.0, "assumed, for each collective"),
        ("fixed", "all", FIXED * 1e3, "ms a step", 1.0, "assumed: kernels started by a graph, not one by one"),
        ("node", "all", NODE, "GPUs", 1.0, "NVIDIA DGX data sheets"),
    ]
    return pd.DataFrame(rows, columns=["assumption", "machine", "value", "unit", "reached", "source"])


def calibrated(times: pd.DataFrame, name: str = "this machine") -> Machine:
    """Return the machine on which `speed.parallel.bench` timed the parts of a step: the rates that fit them best.

    Messages of several sizes give latency, link and reduce; MLPs at several batches fixed and flops; lookups memory,
    cache and stream. Relative errors are minimised, and no rate may be negative. The steps are not looked at.
    """
    workers = int(times["processes"].iloc[0])
    share = (workers - 1) / workers
    to_all, reduced, mlps = (times[times["part"] == part] for part in ("all-to-all", "all-reduce", "MLPs"))
    lookups = times[times["part"] == "lookup"]
    rows, array = (lookups[lookups["way"] == way] for way in (SHARDED, REPLICATED))
    start = np.full(len(to_all) + len(reduced), log2(workers))
    sent = np.concatenate([share * to_all["bytes"], 0 * reduced["bytes"]])
    summed = np.concatenate([0 * to_all["bytes"], 2 * share * reduced["bytes"]])
    latency, link, reduce = _costs([*to_all["ms"], *reduced["ms"]], start, sent, summed)
    fixed, flop = _costs(mlps["ms"], np.ones(len(mlps)), 6 * mlps["macs"] * mlps["batch"] / workers)
    (memory,) = _costs(rows["ms"], 5 * _vectors(rows, workers))
    cache, stream = _costs(array["ms"], 5 * _vectors(array, workers), 4 * array["array_bytes"])
    return Machine(
        name,
        flops=1 / flop,
        memory=1 / memory,
        stream=1 / stream,
        cache=1 / cache,
        capacity=float("inf"),
        link=1 / link,
        reduce=1 / reduce,
        network=float("inf"),
        node=workers,
        latency=latency,
        fixed=fixed,
    )


def _vectors(times: pd.DataFrame, workers: int) -> pd.Series:
    return FLOAT * times["batch"] / workers * times["features"] * times["dim"]


def _costs(ms: Sequence[float], *amounts: Sequence[float]) -> np.ndarray:
    """Return the seconds that one of each amount costs, by least squares of relative errors; at least 1e-15."""
    seconds = np.asarray(ms, dtype=float) / 1e3
    matrix = np.stack([np.asarray(amount, dtype=float) for amount in amounts], 1) / seconds[:, None]
    scale = np.abs(matrix).max(0)
    return np.maximum(nnls(matrix / scale, np.ones(len(seconds)))[0] / scale, 1e-15)


def checked(times: pd.DataFrame, machine: Machine) -> pd.DataFrame:
    """Return the steps that `speed.parallel.bench` timed beside their predictions.

    Columns: way, workers, batch, dim, ratio, measured_ms, p20, p80, predicted_ms, off (predicted / measured - 1).
    """
    steps = times[times["part"] == "step"]
    rows = []
    for row in steps.to_dict("records"):
        array = 0 if pd.isna(row["array_bytes"]) else row["array_bytes"]
        sizes = {name: row[name] for name in ("features", "dim", "table_bytes", "weights", "macs")}
        parts = step(Model(array_bytes=array, **sizes), machine, int(row["processes"]), row["batch"], row["way"])
        where = {
            "way": row["way"],
            "workers": int(row["processes"]),
            "batch": int(row["batch"]),
            "dim": int(row["dim"]),
        }
        predicted = 1e3 * sum(parts.values())
        rows.append(
            where
            | {"ratio": row["ratio"], "measured_ms": row["ms"], "p20": row["p20"], "p80": row["p80"]}
            | {"predicted_ms": predicted, "off": predicted / row["ms"] - 1}
        )
    columns = ["way", "workers", "batch", "dim", "ratio", "measured_ms", "p20", "p80", "predicted_ms", "off"]
    return pd.DataFrame(rows, columns=columns)


def step(model: Model, machine: Machine, workers: int, batch: float, way: str) -> dict[str, float]:
    """Return the seconds of each of `PARTS` of a step with a batch of `batch` samples over all workers."""
    if way not in WAYS:
        raise ValueError(f"way must be one of {', '.join(WAYS)}, got {way!r}")
    own = batch / workers
    vectors, ids = FLOAT * own * model.features * model.dim, ID * own * model.features
    summed = FLOAT * model.weights + (model.array_bytes if way == REPLICATED else 0)
    exchange = 0.0
    if way == SHARDED:
        exchange = sum(all_to_all(machine, workers, size) for size in (ids, vectors, vectors))
    elif way == OFFLOADED:
        exchange = (ids + 2 * vectors) / machine.host
    lookup = 5 * vectors / machine.memory
    if way == REPLICATED:
        lookup = 5 * vectors / machine.cache + 4 * model.array_bytes / machine.stream
    return {
        "fixed": machine.fixed,
        "MLPs": 6 * model.macs * own / machine.flops,
        "lookup": lookup,
        "exchange": exchange,
        "all-reduce": all_reduce(machine, workers, summed),
    }


def all_to_all(machine: Machine, workers: int, size: float) -> float:
    """Return the seconds in which every worker sends `size` bytes, to each worker the same part."""
    if workers == 1:
        return 0.0
    group = min(workers, machine.node)
    within, across = size * (group - 1) / workers / machine.link, size * (workers - group) / workers / machine.network
    return max(within, across) + machine.latency * log2(workers)


def all_reduce(machine: Machine, workers: int, size: float) -> float:
    """Return the seconds in which `size` bytes are summed over all workers, by node and then between nodes."""
    if workers == 1:
        return 0.0
    group = min(workers, machine.node)
    nodes = workers / group
    within = 2 * size * (group - 1) / group / machine.reduce
    across = 2 * size * (nodes - 1) / (nodes * group) / machine.network
    return within + across + machine.latency * log2(workers)


def overlapped(parts: dict[str, float]) -> float:
    """Return the seconds of a step whose communication hides behind its work, or the other way round."""
    return parts["fixed"] + max(parts["MLPs"] + parts["lookup"], parts["exchange"] + parts["all-reduce"])


def fits(model: Model, machine: Machine, workers: int, way: str) -> bool:
    """Tell whether tables or array fit the workers' memory, a tenth of which is left for everything else."""
    if way == OFFLOADED:
        return workers <= machine.node
    need = model.table_bytes / workers if way == SHARDED else model.array_bytes
    return need <= 0.9 * machine.capacity


def predictions(
    model: Model, machines: Iterable[Machine], workers: Iterable[int], batches: Iterable[float]
) -> pd.DataFrame:
    """Return one row a machine, number of workers, batch and way that fits.

    Columns: machine, workers, batch, way, the parts in ms, `ms` (their sum), `overlapped_ms`.
    """
    rows = []
    for machine, n, batch, way in product(machines, workers, batches, WAYS):
        if n <= batch and fits(model, machine, n, way):
            parts = step(model, machine, n, batch, way)
            times = {**parts, "ms": sum(parts.values()), "overlapped_ms": overlapped(parts)}
            where = {"machine": machine.name, "workers": n, "batch": batch, "way": way}
            rows.append(where | {name: 1e3 * seconds for name, seconds in times.items()})
    return pd.DataFrame(rows, columns=["machine", "workers", "batch", "way", *PARTS, "ms", "overlapped_ms"])


def gains(predicted: pd.DataFrame, against: str = SHARDED, ms: str = "ms") -> pd.DataFrame:
    """Return how many times faster a step with the array is: machine, workers, batch, gain; where both ways exist."""
    point = ["machine", "workers", "batch"]
    times = predicted.pivot_table(index=point, columns="way", values=ms).reindex(columns=[against, REPLICATED])
    return (times[against] / times[REPLICATED]).dropna().rename("gain").reset_index()


def sensitivity(model: Model, machine: Machine, workers: int, batch: float, factor: float = 2) -> pd.DataFrame:
    """Return the gain where one rate at a time is `factor` times lower and higher: assumption, lower, as_is, higher."""

    def gain(**changed: float) -> float:
        other = replace(machine, **changed)
        full, small = (sum(step(model, other, workers, batch, way).values()) for way in (SHARDED, REPLICATED))
        return full / small

    groups = {"link": ("link", "reduce"), "memory": ("memory", "stream")}
    rows = [
        (name, *(gain(**{n: getattr(machine, n) * f for n in groups.get(name, (name,))}) for f in (1 / factor, factor)))
        for name in ("flops", "memory", "cache", "link", "network", "latency", "fixed")
    ]
    table = pd.DataFrame(rows, columns=["assumption", "lower", "higher"])
    table.insert(2, "as_is", gain())
    return table.sort_values("higher", key=lambda high: -(high - table["lower"]).abs(), ignore_index=True)
