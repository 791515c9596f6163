"""Times every contestant in turn, at every batch size, width and distribution of ids, and keeps the samples.

A sample is the median of calls in a row that take some milliseconds; a round takes one sample of every contestant,
so that a change of the machine's speed meets them all. While a round ran, others may have been busy: above a tenth of
a core it is taken again, until patience ends, and every sample says how much it was. What gives wrong numbers is not
timed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from pocketrec.embeddings.base import full_bytes
from pocketrec.measure import Load, synchronize, zipf_ids
from pocketrec.speed import contestants, machine, rivals
from pocketrec.speed.contestants import LR, Contestant, Lookup, Tables, Unavailable, fits

DIMS, BATCHES, IDS = (16, 64, 128), (1, 64, 2048, 65_536), ("zipf", "uniform")
QUICK = {"dims": (16,), "batches": (2048,), "ids": IDS}
FULL = {"dims": DIMS, "batches": BATCHES, "ids": IDS}
FAMILIES = ("table", "int8", "int4", "hashing", "mlet", "robe", "tensor_train", "tensor_trains", "pairs")
LARGE = ("table", "int8", "int4", "mlet", "pairs")
SMALL_ROTATION = 8
WORKS = ("forward", "step")
GRAPH = "CUDA graph"
FOREIGN = 0.1  # cores that others may use while a round runs
SAMPLE_SECONDS = 0.006
INDEXED = {"forward": 12, "step": 30}  # embeddings that take as much as what indexes each element does meanwhile
MOST_SAMPLES = 64 * 2048  # of all rotating batches: what more would read is in no cache anyway
MOST_BATCHES = 1024


@dataclass
class Options:
    """What is timed, and for how long.

    Attributes:
        rounds: clean rounds of each point.
        patience: rounds that may be taken again for the load of others, as a multiple of `rounds`.
        rivals: folder of checkouts, see `speed.rivals`.
    """

    dims: Sequence[int] = QUICK["dims"]
    batches: Sequence[int] = QUICK["batches"]
    ids: Sequence[str] = QUICK["ids"]
    families: Sequence[str] = FAMILIES
    works: Sequence[str] = WORKS
    full: bool = False
    rounds: int = 15
    patience: float = 1
    device: str = "cpu"
    rivals: Path | None = None


@dataclass
class Run:
    """A contestant with the lookup that was built for it, or why there is none."""

    contestant: Contestant
    lookup: Lookup | None = None
    problem: str = ""
    samples: list[dict[str, Any]] = field(default_factory=list)


def bench(cardinalities: Sequence[int], options: Options) -> pd.DataFrame:
    """Return one row a sample.

    Columns: family, route, ratio, block_size, hash, rank; dim, batch, ids (`zipf` or `uniform`), work (`forward`
    without gradients, or `step`: forward, backward and SGD); ms, foreign (cores that others used meanwhile),
    core_to_core_ns, lookups, bytes_moved and bytes_needed of one call, launch. The first bytes count every row that is
    looked up; the second are the least that must move: ids and output, and each number that is touched once, or the
    gradient and each of these three times as well. launch is `CUDA graph` for what a GPU replays, `eager` for the
    rest. What was not timed is one row without ms, with `reason`.
    """
    groups = [("all tables", cardinalities, set(options.families) - {"tensor_train"})]
    groups += [("largest table", [max(cardinalities)], set(options.families) & {"tensor_train"})]
    frames = []
    for dim in options.dims:
        for name, sizes, families in groups:
            found = [c for c in _contestants(name, dim, options) if c.family in families]
            if found:
                tables = Tables(sizes, dim, options.device)
                frames.append(_group(tables, found, options, f"{name}, dim {dim}"))
            gc.collect()
    return pd.concat(frames, ignore_index=True).assign(device=options.device)


def _contestants(group: str, dim: int, options: Options) -> Iterator[Contestant]:
    if group == "all tables":
        yield from contestants.table_contestants(dim, options.full)
        yield from rivals.table_rivals(dim, options.full, options.rivals)
    else:
        yield from contestants.train_contestants()
        yield from rivals.train_rivals(options.rivals)


def _group(tables: Tables, found: Sequence[Contestant], options: Options, title: str) -> pd.DataFrame:
    runs = [_built(c, tables) for c in tqdm(found, f"{title}: building and checking", unit="way")]
    points = [(batch, ids, work) for batch in options.batches for ids in options.ids for work in options.works]
    for batch, ids, work in (bar := tqdm(points, title, unit="point")):
        bar.set_postfix_str(f"batch {batch:,}, {ids} ids, {work}")
        _point(tables, runs, batch, ids, work, options)
    known = {"reason": None, "dim": tables.dim}
    rows = [run.contestant.settings | known | sample for run in runs for sample in run.samples]
    return pd.DataFrame(rows)


def _built(contestant: Contestant, tables: Tables) -> Run:
    """Build one way and hold it against the obvious one, in this process and over the memory that is timed."""
    run = Run(contestant)
    try:
        if not tables.device.startswith(contestant.only):
            raise Unavailable(f"runs on {contestant.only} only")
        lookup = contestant.build(tables)
        problem = wrong(lookup, tables)
    except Unavailable as reason:
        run.problem = f"not timed: {reason}"
    except Exception as error:  # code of others, and compilers, may fail in any way; the rest is timed
        run.problem = f"not timed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    else:
        run.lookup, run.problem = (None, f"wrong, and not timed: {problem}") if problem else (lookup, "")
    if run.problem:
        run.samples.append({"reason": run.problem})
    return run


def wrong(lookup: Lookup, tables: Tables, batch: int = 256) -> str:
    """Say in what a lookup's output or training step differs from the obvious way; empty where it does not."""
    ids = zipf_ids(tables.cardinalities, batch, seed=1).to(tables.device)
    prepared = lookup.prepare(ids)
    with torch.inference_mode():
        before = lookup.forward(prepared).clone()
        far = _difference(before, lookup.expected(ids))
    if far > 1e-4:
        return f"the output is {far:.2g} off, relative to its size"
    if not lookup.step:
        return ""
    gradient = torch.randn(before.shape, generator=torch.Generator().manual_seed(2)).to(tables.device)
    moved = _after_plain_step(lookup, ids, gradient) - before
    lookup.step(prepared, gradient)
    with torch.inference_mode():
        far = _difference(lookup.forward(prepared) - before, moved)
    return f"what a training step changes is {far:.2g} off, relative to its size" if far > 1e-3 else ""


def _after_plain_step(lookup: Lookup, ids: Tensor, gradient: Tensor) -> Tensor:
    """Return the output after an SGD step through autograd, which is then taken back."""
    gradients = torch.autograd.grad(lookup.expected(ids), lookup.weights, gradient)
    with torch.no_grad():
        for weight, change in zip(lookup.weights, gradients, strict=True):
            weight.add_(change, alpha=-LR)
        after = lookup.expected(ids).clone()
        for weight, change in zip(lookup.weights, gradients, strict=True):
            weight.add_(change, alpha=LR)
    return after


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def _point(tables: Tables, runs: Sequence[Run], batch: int, ids: str, work: str, options: Options) -> None:
    """Time all ways at one point, and add the samples to their runs."""
    batches = drawn_ids(tables.cardinalities, batch, ids, tables.device)
    # small, so that weights which are trained thousands of times on the same batches stay finite
    draw = torch.Generator(tables.device).manual_seed(0)
    gradient = torch.randn(batch, len(tables.cardinalities), tables.dim, device=tables.device, generator=draw)
    gradient *= 1e-4
    timed = [run for run in runs if run.lookup and (work == "forward" or run.lookup.step)]
    lookups, unique = batch * len(tables.cardinalities), len((batches[0] + tables.offsets).unique())
    about = {"batch": batch, "ids": ids, "work": work, "lookups": lookups}
    calls, abouts, pool = {}, {}, torch.cuda.graph_pool_handle() if gradient.is_cuda else None
    for place, run in enumerate(timed):
        # ways that share a table start at different batches: no one reads what another has just brought to the cache
        start = place * len(batches) // len(timed)
        own = [*batches[start:], *batches[:start]]
        # the other families' numbers fit a cache, or nearly, whatever is asked of them
        prepared = [run.lookup.prepare(b) for b in (own if run.contestant.family in LARGE else own[:SMALL_ROTATION])]
        try:
            if run.contestant.family == "robe" and run.contestant.route not in (contestants.OURS, contestants.LIMIT):
                fits(INDEXED[work] * gradient.nbytes, tables.device)
            with torch.inference_mode(work == "forward"):
                calls[place], launch = _call(run.lookup, prepared, gradient, work, pool)
        except (Unavailable, torch.OutOfMemoryError) as error:
            reason = f"not timed, {work} at batch {batch:,}: {str(error).partition(chr(10))[0]}"
            run.samples.append(about | {"reason": reason})
        else:
            # out, and for a step the gradient in and the numbers read and written again
            moved = run.lookup.itemsize * tables.dim * lookups * (2 if work == "forward" else 5)
            needed = _needed(run, tables, batch, unique, work)
            abouts[place] = about | {"bytes_moved": moved, "bytes_needed": needed, "launch": launch}
    with torch.inference_mode(work == "forward"):
        taken = rounds(calls, options)
    for round_ in taken:
        for place, ms in round_.ms.items():
            timed[place].samples.append(
                abouts[place] | {"ms": ms, "foreign": round_.foreign, "core_to_core_ns": round_.core_to_core_ns}
            )


def _needed(run: Run, tables: Tables, batch: int, unique: int, work: str) -> int:
    """Return the bytes that a call must move: ids and output, and what it touches; see `bench`."""
    features, lookup = len(tables.cardinalities), run.lookup
    held = sum(w.numel() * w.element_size() for w in lookup.weights)
    size, row = lookup.memory or (held or full_bytes(tables.cardinalities, tables.dim), 4 * tables.dim)
    touched = min(size, unique * row)
    paired = run.contestant.family == "pairs"
    out = lookup.itemsize * batch * (features * (features - 1) // 2 if paired else features * tables.dim)
    forward = 8 * batch * features + out + touched
    return forward if work == "forward" else forward + out + 2 * touched


def _call(
    lookup: Lookup, prepared: Sequence[Any], gradient: Tensor, work: str, pool: Any
) -> tuple[Callable[[], Any], str]:
    """Return what takes the next of the batches, and whether a GPU replays it as a CUDA graph."""
    calls = [partial(lookup.forward, b) if work == "forward" else partial(lookup.step, b, gradient) for b in prepared]
    launch = "eager"
    if gradient.is_cuda:
        calls[0]()
        with suppress(RuntimeError):  # what waits for the device cannot be captured
            calls, launch = [captured(call, pool) for call in calls], GRAPH
        torch.cuda.synchronize()
    turn = cycle(calls)
    return lambda: next(turn)(), launch


def captured(call: Callable[[], Any], pool: Any = None) -> Callable[[], None]:
    """Capture a call on a GPU as a CUDA graph, after it has run, and return what replays it.

    It must not wait for the device. Graphs of one `pool` may write over each other's results.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels that are compiled or chosen by a first call must be there
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        call()

    def replay(_: Any = call) -> None:  # a graph does not keep what it reads
        graph.replay()

    return replay


def drawn_ids(
    cardinalities: Sequence[int], batch: int, ids: str, device: str, count: int | None = None
) -> list[Tensor]:
    """Return different batches of ids [batch, features].

    By default so many that no cache keeps the rows of all; of single samples so many that only the largest one can.
    """
    count = count or int(np.clip(MOST_SAMPLES // batch, 4, MOST_BATCHES))
    if ids == "zipf":
        drawn = zipf_ids(cardinalities, count * batch)
    else:
        draw = torch.Generator().manual_seed(0)
        drawn = torch.stack([torch.randint(n, (count * batch,), generator=draw) for n in cardinalities], 1)
    return list(drawn.to(device).split(batch))


@dataclass
class Round:
    """One sample of every way in milliseconds, and what the machine was like meanwhile."""

    ms: dict[Any, float]
    foreign: float
    core_to_core_ns: float | None


def rounds(calls: dict[Any, Callable[[], Any]], options: Options) -> list[Round]:
    """Warm up, then take rounds until enough are clean, or patience ends and the least disturbed are kept."""
    repeats = {name: _repeats(call) for name, call in calls.items()}
    taken: list[Round] = []
    while True:
        taken.append(_round(calls, repeats, options.device))
        clean = sum(found.foreign <= FOREIGN for found in taken)
        if clean >= options.rounds or len(taken) >= (1 + options.patience) * options.rounds:
            return sorted(taken, key=lambda found: found.foreign)[: options.rounds]


def _repeats(call: Callable[[], Any]) -> int:
    """Warm a call up; return how many of it fill a sample."""
    for _ in range(2):
        call()
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return int(np.clip(SAMPLE_SECONDS / (time.perf_counter() - start), 1, 500))


def _round(calls: dict[Any, Callable[[], Any]], repeats: dict[Any, int], device: str) -> Round:
    hop, load = machine.core_to_core(), Load()
    ms = {name: _sample(call, repeats[name], device) for name, call in calls.items()}
    return Round(ms, load.share(), hop)


def _sample(call: Callable[[], Any], repeats: int, device: str) -> float:
    """Return the milliseconds of a call: the median of some in a row, on a GPU their mean."""
    if device != "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronize()
        return (time.perf_counter() - start) * 1e3 / repeats
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3
