"""A DLRM's training step in several processes of this machine, over gloo, and the rates that it rests on.

    sharded      every process keeps some of the full tables and looks up for all: ids go out, vectors come back,
                 gradients go out (all-to-all), and the gradients of the MLPs are averaged (all-reduce)
    replicated   every process keeps the whole array; its gradient is averaged with those of the MLPs

Each process has one thread and its own part of the batch; a step takes as long as that of the slowest. All that is
timed is timed in turn, the parts as well as the steps, in all processes at once.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pocketrec import embeddings, models
from pocketrec.cost_model import REPLICATED, SHARDED, dlrm
from pocketrec.data import Batch
from pocketrec.kernels import native
from pocketrec.measure import zipf_ids
from pocketrec.optim import SGD, in_place, optimizers
from pocketrec.speed.dlrm import Nothing, Rival
from pocketrec.training import train_step

LR = 0.01
Call = Callable[[], Any]


@dataclass(frozen=True)
class Plan:
    """What is timed: steps of each batch (over all processes), width and way, and the parts at `reference` and more.

    Attributes:
        ratios: of the arrays, which are `pss` with `knobs`.
        bytes: sizes of messages whose all-to-all and all-reduce are timed.
        reference: batch and width at which lookups are timed alone; the MLPs are at every batch and width.
    """

    cardinalities: Sequence[int]
    num_dense: int
    bottom_mlp: Sequence[int]
    top_mlp: Sequence[int]
    ratios: Sequence[float]
    dims: Sequence[int]
    batches: Sequence[int]
    bytes: Sequence[int]
    reference: tuple[int, int]
    knobs: dict[str, Any] = field(default_factory=dict)
    processes: int = 2
    rounds: int = 30


def bench(plan: Plan) -> pd.DataFrame:
    """Start the processes and time everything; return one row a part and setting.

    Columns: part (`step`, `lookup`, `MLPs`, `all-to-all`, `all-reduce`), way, batch (over all processes), dim, ratio,
    bytes (of a message, in each process), ms (median over the rounds of the slowest process), p20, p80; features,
    weights, macs, table_bytes, array_bytes of the model, as in `cost_model.Model`; processes, rounds.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, (plan, folder), plan.processes)
        return pd.read_parquet(Path(folder) / "times.parquet")


def join(folder: str, rank: int, processes: int) -> None:
    """Make this process one of several that talk over the loopback interface and meet in a file of `folder`."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)


def _loopback() -> str:
    """Return the name of the interface of this machine that no other machine reaches."""
    found = psutil.net_if_addrs().items()
    return next((name for name, addresses in found if any(a.address == "127.0.0.1" for a in addresses)), "lo")


def _process(rank: int, plan: Plan, folder: str) -> None:
    join(folder, rank, plan.processes)
    native.keep_memory()
    calls = _calls(plan)
    rows = []
    for settings, times in zip(calls, _slowest(list(calls.values()), plan.rounds), strict=True):
        p20, ms, p80 = np.percentile(times, [20, 50, 80])
        sizes = _sizes(plan, **dict(settings)) | {"processes": plan.processes, "rounds": len(times)}
        rows.append(dict(settings) | {"ms": ms, "p20": p20, "p80": p80} | sizes)
    if rank == 0:
        pd.DataFrame(rows).to_parquet(Path(folder) / "times.parquet")
    dist.destroy_process_group()


def _sizes(plan: Plan, dim: int | None, ratio: float | None, **_: Any) -> dict[str, Any]:
    """Return what the cost model asks of a model, where a row has one."""
    if not dim:
        return {}
    model = asdict(dlrm(plan.cardinalities, dim, plan.num_dense, plan.bottom_mlp, plan.top_mlp, ratio or 1))
    return model | {"dim": dim, "array_bytes": model["array_bytes"] if ratio else None}


def _slowest(calls: Sequence[Call], rounds: int) -> np.ndarray:
    """Time every call in turn after warming up; return the ms of the slowest process, float64 [calls, rounds]."""
    times = torch.zeros(len(calls), rounds + 2, dtype=torch.float64)
    for turn in range(rounds + 2):
        for place, call in enumerate(calls):
            dist.barrier()
            start = time.perf_counter()
            call()
            times[place, turn] = (time.perf_counter() - start) * 1e3
    dist.all_reduce(times, dist.ReduceOp.MAX)
    return times[:, 2:].numpy()


def _calls(plan: Plan) -> dict[tuple, Call]:
    """Return everything that is timed, by the columns that say what it is."""
    calls: dict[tuple, Call] = {}
    for size in plan.bytes:
        message = nn.Parameter(torch.zeros(size // 4))
        message.grad = torch.zeros_like(message)
        calls[_row("all-to-all", bytes=size)] = partial(_exchanged, message.grad)
        calls[_row("all-reduce", bytes=size)] = partial(average_gradients, [message])
    batch, dim = plan.reference
    calls[_row("lookup", way=SHARDED, batch=batch, dim=dim)] = _lookup(plan, full(plan.cardinalities, dim), batch)
    for ratio in plan.ratios:
        replicated = _row("lookup", way=REPLICATED, batch=batch, dim=dim, ratio=ratio)
        calls[replicated] = _lookup(plan, _array(plan, dim, ratio), batch)
    for dim in plan.dims:
        ways: list[tuple[dict[str, Any], nn.Module]] = [({"way": SHARDED}, Sharded(plan.cardinalities, dim))]
        ways += [({"way": REPLICATED, "ratio": ratio}, _array(plan, dim, ratio)) for ratio in plan.ratios]
        for batch in plan.batches:
            nothing = Nothing(plan.cardinalities, dim)
            calls[_row("MLPs", batch=batch, dim=dim)] = _step(plan, nothing, batch, average=False)
            for way, embedding in ways:
                calls[_row("step", batch=batch, dim=dim, **way)] = _step(plan, embedding, batch)
    return calls


def _array(plan: Plan, dim: int, ratio: float) -> embeddings.Embedding:
    return embeddings.build("pss", cardinalities=plan.cardinalities, dim=dim, ratio=ratio, **plan.knobs)


def _row(part: str, **more: Any) -> tuple:
    return tuple({"part": part, "way": None, "batch": None, "dim": None, "ratio": None, "bytes": None, **more}.items())


def full(cardinalities: Sequence[int], dim: int, part: int = 0, parts: int = 1) -> embeddings.Embedding:
    """Return the full tables of one of `parts` equal groups of neighbouring features."""
    count = len(cardinalities) // parts
    return embeddings.build("full", cardinalities=cardinalities[part * count :][:count], dim=dim, seed=part)


class Sharded(Rival):
    """Full tables of which every process keeps as many, and trains those for all; looks up as any embedding does.

    Raises:
        ValueError: when the features cannot be shared out evenly.
    """

    def __init__(self, cardinalities: Sequence[int], dim: int) -> None:
        super().__init__()
        self.cardinalities, self.out_dim = tuple(cardinalities), dim
        self.processes = dist.get_world_size()
        if len(cardinalities) % self.processes:
            raise ValueError(f"{len(cardinalities)} tables cannot be shared out evenly to {self.processes} processes")
        self.tables = full(cardinalities, dim, dist.get_rank(), self.processes)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed this process's ids int32 [batch, features] -> [batch, features, dim]; all must have as many rows."""
        batch, features = ids.shape
        to_owners = ids.view(batch, self.processes, -1).transpose(0, 1)  # [processes, batch, features of one]
        asked = _exchanged(to_owners).view(self.processes * batch, -1)
        vectors = self.tables(asked).view(self.processes, batch, -1, self.out_dim)
        return _Exchange.apply(vectors).transpose(0, 1).reshape(batch, features, self.out_dim)


class _Exchange(torch.autograd.Function):
    """Sends block i of [processes, ...] to process i, and the gradients back, as those of a mean over processes."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor) -> Tensor:
        return _exchanged(blocks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _exchanged(gradient) / dist.get_world_size()


def _exchanged(blocks: Tensor) -> Tensor:
    blocks = blocks.contiguous()
    received = torch.empty_like(blocks)
    dist.all_to_all_single(received, blocks)
    return received


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace dense gradients by their mean over all processes, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def training_step(model: nn.Module, batch: Batch, *, average: bool = True) -> Call:
    """Return a call that trains a model on this process's part of a batch: SGD for tables and array, Adam for MLPs."""
    optims = optimizers(model, table_optimizer="sgd", table_lr=LR, dense_lr=1e-3)
    sharded = isinstance(model.embedding, Sharded)
    others = [p for p in model.parameters() if not sharded or all(p is not t for t in model.embedding.parameters())]
    if average:
        optims[0].register_step_pre_hook(lambda *_: average_gradients(others))

    def step() -> None:
        if not sharded:
            train_step(model, batch, optims)
            return
        with in_place(model.embedding, optims[0]):
            train_step(model, batch, optims)

    return step


def _step(plan: Plan, embedding: nn.Module, batch: int, *, average: bool = True) -> Call:
    model = models.DLRM(embedding, plan.num_dense, plan.bottom_mlp, plan.top_mlp)
    own = batch // plan.processes
    data = Batch(torch.rand(own, plan.num_dense), _ids(plan, own), torch.rand(own).round())
    return training_step(model, data, average=average)


def _lookup(plan: Plan, embedding: embeddings.Embedding, batch: int) -> Call:
    """Return a lookup of one process's part of a batch, forward, backward and SGD, without the others."""
    ids = _ids(plan, batch // plan.processes)
    gradient = 1e-4 * torch.randn(*ids.shape, embedding.out_dim)
    optimizer = SGD(embedding.parameters(), lr=LR)

    def step() -> None:
        embedding(ids).backward(gradient)
        optimizer.step()
        optimizer.zero_grad()

    def in_rows() -> None:
        with in_place(embedding, optimizer):
            step()

    return in_rows if embedding.name == "full" else step


def _ids(plan: Plan, rows: int) -> Tensor:
    return zipf_ids(plan.cardinalities, rows, seed=dist.get_rank()).int()
