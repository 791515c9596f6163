"""What the embedding costs inside a whole model: a DLRM's training step and one request, in Criteo-Kaggle's shape.

The floor is the same model with an embedding that looks nothing up: MLPs and interaction only. What a step takes
above it is the embedding's share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pocketrec import embeddings, training
from pocketrec.data import Batch, Dataset
from pocketrec.embeddings.base import undrawn
from pocketrec.embeddings.full import Full
from pocketrec.kernels import interaction
from pocketrec.measure import synchronize
from pocketrec.models import DLRM
from pocketrec.optim import in_place, optimizers
from pocketrec.speed import rivals
from pocketrec.speed.bench import GRAPH, Options, captured, drawn_ids, rounds
from pocketrec.speed.contestants import Tables, Unavailable
from pocketrec.speed.machine import fill, huge

NUM_DENSE, BATCH, LR = 13, 2048, 0.01
HELD = 64  # batches in memory: more than a cache takes
BOTTOM, TOP = (512, 256, 64), (512, 256)  # of Criteo-Kaggle's configuration, as `DLRM` has it
FLOOR, BAGS, REFERENCE = "MLPs only", "26 x nn.EmbeddingBag", "facebookresearch/dlrm"
COMPILED, UNPAIRED = "robe, compiled MLPs", "robe, interaction by PyTorch"
HOSTED = "full, in main memory"
LOWER = (FLOOR, "full", "robe")  # timed in bf16 as well
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "robe": {"name": "robe", "ratio": 1000, "block_size": 16, "hash": "multiply_shift"},
    "tt_rec rank 32": {"name": "tt_rec", "rank": 32, "tables": 7},
}


class Rival(nn.Module):
    """What a DLRM asks of an embedding that is none of ours."""

    def pairs(self, ids: Tensor, first: Tensor | None = None) -> None:
        """Leave the products to the model."""


class Nothing(Rival):
    """Looks nothing up: its vectors are there, and what becomes of their gradient costs nothing."""

    def __init__(self, cardinalities: Sequence[int], dim: int) -> None:
        super().__init__()
        self.cardinalities, self.out_dim = tuple(cardinalities), dim
        self.nothing = nn.Parameter(torch.zeros(()))
        self.held: dict[int, Tensor] = {}

    def forward(self, ids: Tensor) -> Tensor:
        if len(ids) not in self.held:
            with torch.inference_mode(False):  # a training may come after a request
                self.held[len(ids)] = torch.zeros(len(ids), len(self.cardinalities), self.out_dim, device=ids.device)
        return _Held.apply(self.held[len(ids)], self.nothing)


class _Held(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, nothing: Tensor) -> Tensor:
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        return None, None


class _Bags(Rival):
    """One sparse `nn.EmbeddingBag` a feature, over the memory of the full table."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.cardinalities, self.out_dim = tuple(tables.cardinalities), tables.dim
        parts = tables.weight.detach().split(list(tables.cardinalities))
        self.bags = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(part, freeze=False, mode="sum", sparse=True) for part in parts
        )

    def forward(self, ids: Tensor) -> Tensor:
        return torch.stack([bag(ids[:, f : f + 1]) for f, bag in enumerate(self.bags)], 1)


def bench(cardinalities: Sequence[int], options: Options, dim: int = 16) -> pd.DataFrame:
    """Time training steps at batch 2,048 and answers to requests of one row, one row a sample.

    Columns: embedding (with `, bf16` where the MLPs' products are, with `, compiled MLPs` by `torch.compile`, with
    `, interaction by PyTorch` where no kernel pairs), work (`training step` or `request`), batch, ms, foreign,
    core_to_core_ns. The reference code of DLRM is among them where its checkout is at hand.
    """
    tables = Tables(cardinalities, dim, options.device)
    models = {name: model(name, tables) for name in tqdm([FLOOR, BAGS, *METHODS], "models", unit="model")}
    models[UNPAIRED] = _unpaired(model("robe", tables))
    frames = []
    for batch, work in ((BATCH, "training step"), (1, "request")):
        ids = drawn_ids(cardinalities, batch, "zipf", options.device)
        make = _training if batch == BATCH else _request
        calls = {name: make(m, ids) for name, m in models.items()}
        if batch == BATCH:
            calls |= {f"{name}, bf16": _training(models[name], ids, torch.bfloat16) for name in LOWER}
            calls[COMPILED] = _training(_compiled(model("robe", tables)), ids)
            calls |= _reference(tables, ids, options.rivals)
        frames += [
            {"embedding": name, "work": work, "batch": batch, "ms": ms}
            | {"foreign": taken.foreign, "core_to_core_ns": taken.core_to_core_ns}
            for taken in rounds(calls, options)
            for name, ms in taken.ms.items()
        ]
    return pd.DataFrame(frames)


def on_gpu(cardinalities: Sequence[int], options: Options) -> pd.DataFrame:
    """Time training steps and answers on a GPU, each as torch launches it and as a CUDA graph, at the largest width.

    Columns are those of `bench`, and dim.

    `answers` are those to many rows at once, one after another without waiting, `request` that to one row until it is
    there. Products of float32 are TF32, in all ways alike. The table `in main memory` is looked up by the processor,
    and its rows are sent over; ids and numbers lie on the GPU for all others.
    """
    dim, before = max(options.dims), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    frames: list[dict[str, Any]] = []
    try:
        tables = Tables(cardinalities, dim, options.device)
        models = {name: model(name, tables) for name in tqdm([FLOOR, BAGS, *METHODS], "models", unit="model")}
        hosted = _Hosted(Tables(cardinalities, dim), options.device)
        models[HOSTED] = DLRM(hosted, NUM_DENSE).to(options.device)
        for batch, work in [(b, w) for b in options.batches for w in ("training step", "answers")] + [(1, "request")]:
            frames += _on_gpu_at(models, cardinalities, batch, work, options)
    finally:
        torch.set_float32_matmul_precision(before)
    return pd.DataFrame(frames)


def _on_gpu_at(
    models: dict[str, DLRM], cardinalities: Sequence[int], batch: int, work: str, options: Options
) -> list[dict[str, Any]]:
    ids, make = drawn_ids(cardinalities, batch, "zipf", options.device), _training if work[0] == "t" else _request
    calls = {name: make(m, ids) for name, m in models.items() if name != HOSTED}
    for name in list(calls):
        try:
            calls[f"{name}, {GRAPH}"] = _captured(make, models[name], ids)
        except RuntimeError as error:  # what waits for the device cannot be captured
            tqdm.write(f"{name}, {work}, batch {batch:,}: no {GRAPH}: {str(error).strip().partition(chr(10))[0]}")
            torch.cuda.synchronize()
    if work[0] != "t":
        on_host = drawn_ids(cardinalities, batch, "zipf", "cpu", len(ids))
        calls[HOSTED] = _request(models[HOSTED], on_host, _dense(ids[0]))
    if work == "request":
        calls = {name: lambda call=call: (call(), synchronize()) for name, call in calls.items()}
    return [
        {"embedding": name, "work": work, "batch": batch, "dim": models[FLOOR].embedding.out_dim, "ms": ms}
        | {"foreign": taken.foreign, "core_to_core_ns": taken.core_to_core_ns}
        for taken in rounds(calls, options)
        for name, ms in taken.ms.items()
    ]


def _captured(make: Callable[..., Callable[[], Any]], model: DLRM, batches: Sequence[Tensor]) -> Callable[[], Any]:
    """Capture what `make` makes over ids in one place; return what copies the next ones there and replays."""
    held, turn = batches[0].clone(), cycle(batches)
    replay = captured(make(model, [held]))

    def next_one() -> None:
        held.copy_(next(turn))
        replay()

    return next_one


class _Hosted(Rival):
    """The full table in main memory: rows are read by the processor, into pages that a GPU can fetch."""

    def __init__(self, tables: Tables, device: str) -> None:
        super().__init__()
        self.cardinalities, self.out_dim, self.device = tuple(tables.cardinalities), tables.dim, device
        self.table = tables.weight.detach(), tables.offsets
        self.pages: dict[torch.Size, Tensor] = {}

    def forward(self, ids: Tensor) -> Tensor:
        weight, starts = self.table
        if ids.shape not in self.pages:
            self.pages[ids.shape] = torch.empty(ids.numel(), self.out_dim, pin_memory=torch.cuda.is_available())
        rows = self.pages[ids.shape]
        synchronize()  # the last rows have left
        torch.index_select(weight, 0, (ids + starts).flatten(), out=rows)
        return rows.to(self.device, non_blocking=True).view(*ids.shape, -1)


def model(name: str, tables: Tables, methods: Mapping[str, dict[str, Any]] = METHODS, **mlps: Sequence[int]) -> DLRM:
    """Build a DLRM around an embedding by its name here; every uncompressed one reads the same memory.

    `mlps` are the hidden widths of `DLRM`, its defaults otherwise.
    """
    if name == FLOOR:
        embedding: nn.Module = Nothing(tables.cardinalities, tables.dim)
    elif name == BAGS:
        embedding = _Bags(tables)
    else:
        settings = dict(methods[name])
        with undrawn():
            embedding = embeddings.build(
                settings.pop("name"), cardinalities=tables.cardinalities, dim=tables.dim, **settings
            )
        if isinstance(embedding, Full):
            embedding.table.weight = nn.Parameter(tables.weight.data)
        else:
            for parameter in embedding.parameters():
                fill(huge(parameter.data))
    return DLRM(embedding, NUM_DENSE, **mlps).to(tables.device)


def _compiled(model: DLRM) -> DLRM:
    model.bottom, model.top = torch.compile(model.bottom), torch.compile(model.top)
    return model


def _unpaired(model: DLRM) -> DLRM:
    model.interact = partial(interaction.plain, index=model.pairs)
    return model


def _training(model: DLRM, batches: Sequence[Tensor], lower: torch.dtype | None = None) -> Callable[[], Any]:
    """Return a training step: binary cross-entropy, SGD in place for tables and arrays, Adam for the rest.

    In a `lower` dtype are the products of the MLPs.
    """
    optims = optimizers(model, table_optimizer="sgd", table_lr=LR, dense_lr=1e-3)
    for group in optims[-1].param_groups:
        group["capturable"] = batches[0].is_cuda  # in a CUDA graph Adam counts its steps on the device
    dense = _dense(batches[0])
    labels = dense[:, 0].round()
    turn = cycle(Batch(dense, ids, labels) for ids in batches)
    precision = torch.autocast(dense.device.type, lower, enabled=lower is not None)

    def step() -> None:
        training.train_step(model, next(turn), optims, precision)

    def in_place_step() -> None:
        with in_place(model.embedding, optims[0]):
            step()

    return in_place_step if isinstance(model.embedding, embeddings.Embedding) else step


def _reference(tables: Tables, batches: Sequence[Tensor], folder: Path | None) -> dict[str, Callable[[], Any]]:
    """Return the training step of the reference code, as it is: 26 sparse bags, and SGD for everything."""
    try:
        network = rivals.reference_dlrm(tables, folder, (NUM_DENSE, *BOTTOM), TOP)
    except Unavailable as reason:
        tqdm.write(f"{REFERENCE}: {reason}")
        return {}
    optim = torch.optim.SGD(network.parameters(), lr=LR)
    dense = torch.rand(len(batches[0]), NUM_DENSE, device=batches[0].device)
    labels, turn = torch.rand(len(dense), 1).round(), cycle([ids.T.contiguous() for ids in batches])
    offsets = torch.arange(len(dense)).expand(len(tables.cardinalities), -1)

    def step() -> None:
        loss = network.loss_fn(network(dense, offsets, next(turn)), labels)
        optim.zero_grad()
        loss.backward()
        optim.step()

    return {REFERENCE: step}


def _dense(ids: Tensor) -> Tensor:
    """Draw numbers for the rows of ids [batch, features] where these lie."""
    draw = torch.Generator(ids.device).manual_seed(0)
    return torch.rand(len(ids), NUM_DENSE, device=ids.device, generator=draw)


def _request(model: DLRM, batches: Sequence[Tensor], dense: Tensor | None = None) -> Callable[[], Any]:
    dense, turn = _dense(batches[0]) if dense is None else dense, cycle(batches)
    return torch.inference_mode()(lambda: model(dense, next(turn)))


def profile(cardinalities: Sequence[int], name: str = "robe", steps: int = 20, dim: int = 16) -> pd.DataFrame:
    """Say where the milliseconds of one training step go: torch's operators by their own time, the largest first.

    Columns: operator, ms (a step), calls (a step), share.
    """
    tables = Tables(cardinalities, dim)
    step = _training(model(name, tables), drawn_ids(cardinalities, BATCH, "zipf", "cpu"))
    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as taken:
        for _ in range(steps):
            step()
    rows = [
        {"operator": event.key, "ms": event.self_cpu_time_total / 1e3 / steps, "calls": event.count / steps}
        for event in taken.key_averages()
    ]
    table = pd.DataFrame(rows).sort_values("ms", ascending=False, ignore_index=True)
    return table.assign(share=table.ms / table.ms.sum())


def reading(dataset: Dataset, rows: int = 0, batch: int = BATCH, dim: int = 16) -> dict[str, float]:
    """Train the DLRM of Criteo-Kaggle, ROBE at 1,000 times, for an epoch of a dataset, and say what reading costs.

    Args:
        rows: only so many of the training rows; 0 takes all.

    Returns:
        reading_steps: how many steps were taken;
        reading_step_ms: what one takes, its batch read and shuffled meanwhile;
        reading_waiting_share: the share of the epoch in which the next batch was not there yet;
        reading_share: the share that was saved when batches lay in memory, so that no thread needed a processor.
    """
    embedding = embeddings.build("robe", cardinalities=dataset.cardinalities, dim=dim, ratio=1000, block_size=16)
    network = DLRM(embedding, dataset.num_dense)
    dataset = dataset.thinned(rows)
    history = training.fit(network, dataset, batch_size=batch, evaluations=1, keep="last")
    steps, share = history.steps, history.waited / history.seconds
    held = list(dataset.batches("train", batch, seed=0, limit=HELD * batch))
    optims = optimizers(network, table_optimizer="adagrad", table_lr=0.05, dense_lr=1e-3)
    with in_place(network.embedding, optims[0]):
        for kept in held:
            training.train_step(network, kept, optims)
        start = time.perf_counter()
        for kept in islice(cycle(held), steps):
            training.train_step(network, kept, optims)
        seconds = time.perf_counter() - start
    return {
        "reading_steps": steps,
        "reading_step_ms": history.seconds * 1e3 / steps,
        "reading_waiting_share": share,
        "reading_share": 1 - seconds / history.seconds,
    }
