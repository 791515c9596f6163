"""ROBE beyond training runs: is a model that answers from an array 1000 times smaller faster, and where is the time?

A DLRM answers requests from tables that are as large as the memory allows, and from a ROBE array, in turn in one
process. Beside the whole models their parts are timed, each alone, and what the machine can do at best: rows gathered
by indices that are known, a copy, a product of matrices. Tables of all sizes are the beginning of one memory, which is
written once and has huge pages below it: nothing is trained, every row that is read is real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle, islice, product
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pocketrec import embeddings
from pocketrec.embeddings.base import full_bytes, megabytes, undrawn
from pocketrec.kernels import native
from pocketrec.models import DLRM
from pocketrec.same_rows import same_rows, skipped
from pocketrec.speed import dlrm, machine
from pocketrec.speed.bench import IDS, Options, drawn_ids, rounds
from pocketrec.speed.contestants import Tables, limit
from pocketrec.speed.dlrm import BAGS, NUM_DENSE
from pocketrec.suite.sizes import tables as published_tables

RATIO = 1000
FULL, ROBE = "full", "robe"
BLOCKS = (1, 8, 16, 32, 128)
MOST_MEMORY = 0.65  # of what is free: the models, the ids and their outputs need room too


@dataclass(frozen=True)
class Shape:
    """A DLRM: published tables, which keep their proportions at any size, and hidden widths of its MLPs."""

    name: str
    tables: str
    bottom_mlp: tuple[int, ...]
    top_mlp: tuple[int, ...]


SHAPES = (
    Shape("MLPerf", "criteo-tb-40m", (512, 256), (1024, 1024, 512, 256)),
    Shape("Criteo-Kaggle", "criteo-kaggle", (512, 256, 64), (512, 256)),
)


@dataclass(frozen=True)
class Plan:
    """What is timed.

    Attributes:
        sizes: bytes of the full tables; the last is the one that the claim is about.
        batches: samples a request, at the largest size; the others see the middle one.
        rotated: bytes of rows that the batches read before they come again: more than any cache keeps.
        side: of the matrices whose product shows what the processor can do.
        rounds, patience: see `bench.Options`.
    """

    sizes: tuple[int, ...]
    batches: tuple[int, ...] = (64, 2048, 16_384)
    rotated: int = 1 << 28
    side: int = 1024
    rounds: int = 11
    patience: float = 1

    @property
    def usual(self) -> int:
        """The batch at which every size is timed."""
        return self.batches[len(self.batches) // 2]


SMALL = Plan(sizes=(1 << 20, 1 << 22), batches=(4, 16), rotated=1 << 18, side=64, rounds=2, patience=0)


def measure(suite_dir: Path, small: bool = False) -> dict[str, pd.DataFrame]:
    """Test the suite's differences on the same rows, and time the models; a few minutes, or seconds when `small`.

    Tables: `same_rows`, see `same_rows`; `speed`, see `speed`; `machine`, one row; and `skipped`, what was not
    measured: what, reason, command.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = SMALL if small else largest_plan(device)
    tested, samples = same_rows(suite_dir), speed(plan, device)
    left_out = pd.concat([skipped(tested), _too_large(plan, Path(suite_dir).name)], ignore_index=True)
    about = {name: str(value) for name, value in machine.description(device).items()}
    return {"same_rows": tested, "speed": samples, "machine": pd.DataFrame([about]), "skipped": left_out}


def largest_plan(device: str) -> Plan:
    """Return sizes from 2 MB in steps of eight, and last what the memory allows, at most the paper's own table."""
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    largest = min(real_bytes(), int(MOST_MEMORY * free))
    steps = [1 << power for power in range(21, 64, 3)]
    side = 8192 if device == "cuda" else Plan.side
    return Plan(sizes=(*(size for size in steps if size < largest / 2), largest), side=side)


def real_bytes() -> int:
    """Return the size of the paper's full tables: MLPerf's, 96 GB."""
    return full_bytes(*published_tables(SHAPES[0].tables))


def _too_large(plan: Plan, suite: str) -> pd.DataFrame:
    """Say so where the paper's table did not fit."""
    largest, real = plan.sizes[-1], real_bytes()
    row = {
        "what": f"the throughput with the paper's own tables of {real / 1e9:.0f} GB",
        "reason": f"they do not fit the memory of this machine; {megabytes(largest)} were measured",
        "command": f"pocketrec measure {suite}",
    }
    return pd.DataFrame([row] if largest < real else [], columns=list(row))


def speed(plan: Plan, device: str = "cpu") -> pd.DataFrame:
    """Time models and their parts, one row a sample.

    Columns: shape, dim, table_bytes (of the full tables), batch, ids (`zipf` or `uniform`); embedding (`full`, `robe`,
    26 bags, or "" where it does not matter), block_size (of ROBE) and part: `model`, `lookup`, its `limit` (rows by
    indices that are known, into memory that is there), `interaction`, `MLPs`, and what the machine can, `copy` and
    `product`; ms, bytes (read and written), flops, foreign (cores that others used) and core_to_core_ns.
    """
    memory = machine.huge(torch.empty(plan.sizes[-1] // 4, device=device))
    native.keep_memory()  # after it was asked for, so that it goes back to the system in the end
    machine.fill(memory)
    limits = _machine(memory, plan.side)
    frames = []
    for shape, size in (bar := tqdm(list(product(SHAPES, plan.sizes)), "DLRM by size of its tables", unit="size")):
        bar.set_postfix_str(f"{shape.name}, {size / 1e6:,.0f} MB")
        tables = part(memory, shape, size)
        models = built(tables, shape)
        whole = size == plan.sizes[-1]
        for batch, ids in product(plan.batches if whole else [plan.usual], IDS):
            blocks = [z for z in BLOCKS if whole and batch == plan.usual and tables.dim % z == 0]
            batches = _batches(tables, batch, ids, plan.rotated)
            frame = _timed([*_calls(models, tables, batches, blocks), *limits], plan)
            frames.append(frame.assign(shape=shape.name, dim=tables.dim, table_bytes=size, batch=batch, ids=ids))
    return pd.concat(frames, ignore_index=True).assign(device=device)


def part(memory: Tensor, shape: Shape, size: int) -> Tables:
    """Return tables in the proportions of a shape which take about `size` bytes at the beginning of the memory."""
    cardinalities, dim = published_tables(shape.tables)
    scale = size / full_bytes(cardinalities, dim)
    cardinalities = [max(1, int(scale * rows)) for rows in cardinalities]
    cardinalities[cardinalities.index(max(cardinalities))] -= max(0, sum(cardinalities) - size // (4 * dim))
    weight = memory[: sum(cardinalities) * dim].view(-1, dim)
    return Tables(cardinalities, dim, memory.device.type, nn.Parameter(weight))


def built(tables: Tables, shape: Shape) -> dict[str, DLRM]:
    """Return the same DLRM around the full tables, around the same ones as 26 bags, and around a ROBE array."""
    robe = {"name": "robe", "ratio": RATIO, "block_size": min(32, tables.dim)}
    methods, mlps = {FULL: {"name": "full"}, ROBE: robe}, {"bottom_mlp": shape.bottom_mlp, "top_mlp": shape.top_mlp}
    return {name: dlrm.model(name, tables, methods, **mlps).eval() for name in (FULL, BAGS, ROBE)}


def _batches(tables: Tables, batch: int, ids: str, rotated: int) -> list[Tensor]:
    """Draw as many batches as it takes to read `rotated` bytes of rows before they come again."""
    row_bytes = full_bytes([1] * len(tables.cardinalities), tables.dim)
    return drawn_ids(tables.cardinalities, batch, ids, tables.device, count=max(4, -(-rotated // (batch * row_bytes))))


@dataclass(frozen=True)
class Timed:
    """A call, what it is of, and what it has to move and to compute."""

    call: Callable[[], Any]
    part: str
    embedding: str = ""
    block_size: int | None = None
    bytes: int = 0
    flops: int = 0


def _timed(ways: Sequence[Timed], plan: Plan) -> pd.DataFrame:
    """Time all ways in turn, one row a sample."""
    calls = {place: torch.inference_mode()(way.call) for place, way in enumerate(ways)}
    rows = [
        {name: value for name, value in vars(ways[place]).items() if name != "call"}
        | {"ms": ms, "foreign": taken.foreign, "core_to_core_ns": taken.core_to_core_ns}
        for taken in rounds(calls, Options(rounds=plan.rounds, patience=plan.patience))
        for place, ms in taken.ms.items()
    ]
    return pd.DataFrame(rows)


def _calls(
    models: dict[str, DLRM], tables: Tables, batches: Sequence[Tensor], blocks: Sequence[int]
) -> Iterator[Timed]:
    """Yield whole models, their lookups and the limits of these, and the parts that all of them share.

    Each goes through the batches from its own place: no one reads what another has just brought to the cache.
    """
    turns = (cycle([*batches[start:], *batches[:start]]) for start in _places(len(batches)))
    width = models[ROBE].embedding.block_size
    dense = torch.rand(len(batches[0]), NUM_DENSE, device=tables.device)
    moved = 2 * batches[0].numel() * 4 * tables.dim
    shared = _shared(models[FULL], dense, batches[0])
    for name, model in models.items():
        about = {"embedding": name, "block_size": width if name == ROBE else None, "bytes": moved}
        yield Timed(_each(partial(model, dense), next(turns)), "model", **about, flops=sum(way.flops for way in shared))
        yield Timed(_each(model.embedding, next(turns)), "lookup", **about)
    for name, z, best in ((FULL, None, limit(tables)), (ROBE, width, limit(tables, RATIO, width))):
        prepared = [best.prepare(ids) for ids in islice(next(turns), len(batches))]
        yield Timed(_each(best.forward, cycle(prepared)), "limit", name, z, moved)
    for z in blocks:
        if z != width:
            yield Timed(_each(_array(tables, z), next(turns)), "lookup", ROBE, z, moved)
    yield from shared


def _each(call: Callable[[Any], Any], turn: Iterator[Any]) -> Callable[[], Any]:
    return lambda: call(next(turn))


def _array(tables: Tables, block_size: int) -> embeddings.Embedding:
    """Return a ROBE array for the tables, filled like all memory here."""
    with undrawn():
        robe = embeddings.build(
            "robe", cardinalities=tables.cardinalities, dim=tables.dim, ratio=RATIO, block_size=block_size
        )
    machine.fill(machine.huge(robe.array.weight.data))
    return robe.to(tables.device)


def _places(batches: int) -> Iterator[int]:
    """Yield places in a round of so many batches, each far from those just before."""
    return (int(batches * (0.618 * turn % 1)) for turn in count())


def _shared(model: DLRM, dense: Tensor, ids: Tensor) -> list[Timed]:
    """Return the interaction and the MLPs, on vectors and products that are there."""
    with torch.inference_mode():
        vectors, first = model.embedding(ids), model.bottom(dense)
        products = model.interact(vectors, first)
    batch, features, width = vectors.shape
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))

    def interaction() -> Tensor:
        return model.interact(vectors, first)

    def mlps() -> Tensor:
        return model.top(torch.cat([model.bottom(dense), products], 1))

    return [
        Timed(interaction, "interaction", flops=2 * batch * (features + 1) ** 2 * width),
        Timed(mlps, "MLPs", flops=2 * batch * weights),
    ]


def _machine(memory: Tensor, side: int) -> list[Timed]:
    """Return a copy of floats and a product of matrices: what the machine can do at best."""
    half = min(len(memory), machine.OUT_OF_CACHE) // 2
    matrix = torch.rand(side, side, device=memory.device)
    out = torch.empty_like(matrix)
    return [
        Timed(lambda: machine.copy(memory[:half], memory[half : 2 * half]), "copy", bytes=8 * half),
        Timed(lambda: torch.mm(matrix, matrix, out=out), "product", flops=2 * side**3),
    ]
