"""One training on many processes of one machine, each with its share of every batch and, on GPUs, one of its own.

`fit` starts the processes, torchrun-style, from wherever it is called, a notebook included. In them the ordinary loop
of `training` runs; what it asks of the functions below is nothing where there is only one process.

Compressed models are replicated. The mean loss of a batch of n rows is the mean over P processes of their own mean
losses, each weighed by its rows p_i: L = 1/P sum_i w_i L_i with w_i = P p_i / n. So the averaged gradients are those of
one process with the whole batch, and the learning curve is the same to rounding. Dense gradients are averaged by
DistributedDataParallel, which overlaps that with the backward pass; the sparse ones of row tables are gathered, so that
a step costs what the batch touched. The full table is spread row by row over the processes by TorchRec.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from pocketrec.data import Batch, Dataset
from pocketrec.embeddings.base import megabytes
from pocketrec.embeddings.full import Full
from pocketrec.embeddings.stores import Rows
from pocketrec.errors import UserError

if TYPE_CHECKING:
    from pocketrec.training import History

TIMEOUT = timedelta(minutes=30)  # of waiting for another process: longer than scoring the largest validation set
SHARED_MEMORY = Path("/dev/shm")
INSTALL = (
    "pip install tensordict==0.15.3 pyre-extensions==0.0.32, then pip install --no-deps torchrec==1.8.0 "
    "fbgemm-gpu-cpu==1.8.0 (fbgemm-gpu==1.8.0 for GPUs)"
)


class Died(Exception):
    """A process of the training ended without an error of Python."""


class _Job(NamedTuple):
    """What every process is given; the model's tensors lie in shared memory, and the first one writes them back."""

    folder: Path
    nproc: int
    threads: int
    model: nn.Module
    data: Path
    train_rows: int
    arguments: dict[str, Any]


def fit(model: nn.Module, dataset: Dataset, nproc: int, arguments: dict[str, Any]) -> History:
    """Train in place as `training.fit(model, dataset, **arguments)` does, on `nproc` processes of this machine.

    Each uses as many threads as this process does, and on `cuda` the GPU of its number. A full table comes from host
    memory and goes back there: it may be larger than a GPU.

    Raises:
        UserError: for what cannot be trained so, or not on this machine.
        Died: a process was killed, and the others were ended.
        Exception: whatever a process raised, and the others were ended.
    """
    _check(model, nproc, arguments)
    device = arguments["device"]
    with tempfile.TemporaryDirectory(prefix="pocketrec-") as name:
        folder = Path(name)
        data = Path(dataset.ids.filename).parent
        shared = model.cpu().share_memory()
        job = _Job(folder, nproc, torch.get_num_threads(), shared, data, dataset.train_rows, arguments)
        _run(job)
        history = pickle.loads((folder / "history").read_bytes())
        if not isinstance(model.embedding, Full):
            model.to(device)
        elif arguments["table_optimizer"] == "adagrad":  # TorchRec keeps it to itself
            history.optimizer_bytes = model.embedding.storage().optimizer_bytes
        return history


def _check(model: nn.Module, nproc: int, arguments: dict[str, Any]) -> None:
    where = f"nproc: {nproc}"
    device = torch.device(arguments["device"])
    if device.index is not None:
        raise UserError(f"{where}: each process takes a GPU of its own: set device: {device.type}, not {device}")
    if device.type == "cuda" and torch.cuda.device_count() < nproc:
        raise UserError(f"{where}: this machine has {torch.cuda.device_count()} GPUs; take as many processes or fewer")
    if isinstance(model.embedding, Full):
        _check_torchrec(where, arguments)
    elif arguments["updates"] != "autograd":
        raise UserError(f"{where}: gradients travel between processes: take updates: autograd")
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < size:
        raise UserError(
            f"{where}: {SHARED_MEMORY} has {megabytes(free)} left and the model takes {megabytes(size)}; enlarge it "
            "(docker run --shm-size, or mount -o remount,size=)"
        )


def _check_torchrec(where: str, arguments: dict[str, Any]) -> None:
    if any(find_spec(name) is None for name in ("torchrec", "fbgemm_gpu")):
        raise UserError(f"{where}: TorchRec spreads the full table, and is not installed: {INSTALL}; or take nproc: 1")
    if arguments["table_optimizer"] not in ("adagrad", "sgd") or arguments["schedule"] != "constant":
        raise UserError(f"{where}: TorchRec updates the full table by adagrad or sgd at a constant learning rate")
    if arguments["checkpoint"]:
        raise UserError(f"{where}: a full table that TorchRec spreads has no checkpoints: take checkpoint_minutes: 0")


def _run(job: _Job) -> None:
    """Start the processes and wait for all; when one fails, end the others and raise what it raised."""
    # processes are forked from a server that has imported what they need, and nothing else has happened in
    mp.get_context("forkserver").set_forkserver_preload(["pocketrec.training"])
    context = mp.start_processes(_work, (job,), nprocs=job.nproc, join=False, start_method="forkserver")
    try:
        while not context.join():
            pass
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        raise _reason(job, [process.exitcode for process in context.processes]) from error
    finally:
        for process in context.processes:
            process.kill()


def _reason(job: _Job, codes: list[int | None]) -> Exception:
    """Return why a training failed: a process that was killed, else the first that raised; others only lost touch."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0 and code != -signal.SIGTERM:
            return Died(f"process {rank} of {job.nproc} was ended by signal {signal.Signals(-code).name} in training")
    failures = sorted(job.folder.glob("failure-*"), key=lambda file: file.stat().st_mtime_ns)
    if failures:
        return pickle.loads(failures[0].read_bytes())
    return Died(f"a process of {job.nproc} ended in training; their exit codes are {codes}")


def _work(rank: int, job: _Job) -> None:
    """Be one process of a training."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with _group(rank, job) as device:
            _train(rank, job, device)
    except Exception as error:
        _keep(job.folder / f"failure-{rank}", error)
        raise


def _end_with_parent() -> None:
    """End with the process that called `fit`: nobody takes the result, and the next one goes on from the checkpoint."""
    mp.parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)


def _train(rank: int, job: _Job, device: str) -> None:
    from pocketrec import training

    arguments = job.arguments | {"device": device, "updates": "autograd"}
    replica = _replica(job.model, arguments)
    dataset = replace(Dataset.open(job.data), train_rows=job.train_rows)  # nobody asks for counts here
    history = training.fit(replica, dataset, **arguments)
    if isinstance(replica.embedding, Sharded):
        replica.embedding.write_back(job.model.embedding)
        job.model.load_state_dict(replica.dense_state(), strict=False)
    elif rank == 0:
        job.model.load_state_dict(replica.state_dict())
    if rank == 0:
        _keep(job.folder / "history", history)
    dist.barrier()


@contextmanager
def _group(rank: int, job: _Job) -> Iterator[str]:
    """Join the others; yield the device of this process."""
    torch.set_num_threads(job.threads)
    cuda = job.arguments["device"] == "cuda"
    if cuda:
        torch.cuda.set_device(rank)
    meeting = f"file://{job.folder / 'meeting'}"
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=meeting, rank=rank, world_size=job.nproc, timeout=TIMEOUT
    )
    yield f"cuda:{rank}" if cuda else job.arguments["device"]
    dist.destroy_process_group()


def _keep(file: Path, content: Any) -> None:
    """Write a pickle; an exception that cannot be pickled becomes its text."""
    try:
        data = pickle.dumps(content)
        pickle.loads(data)
    except Exception:
        data = pickle.dumps(RuntimeError(f"{type(content).__name__}: {content}"))
    file.write_bytes(data)


def _replica(model: nn.Module, arguments: dict[str, Any]) -> nn.Module:
    """Return a copy in this process' own memory; of a full table, this process' part."""
    if not isinstance(model.embedding, Full):
        return deepcopy(model).to(arguments["device"])
    bare = copy(model)
    bare._modules = model._modules | {"embedding": nn.Identity()}
    replica = deepcopy(bare).to(arguments["device"])
    replica.embedding = Sharded(
        model.embedding, arguments["table_optimizer"], arguments["table_lr"], arguments["device"]
    )
    return replica


# what the loop asks


def rank() -> int:
    """Return the number of this process, 0 where it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def progress(**what: Any) -> tqdm:
    """Return a progress bar, which only the first process shows."""
    return tqdm(**what) if rank() == 0 else tqdm(**what, disable=True)


def say(text: str) -> None:
    """Show a line above the progress bar, once."""
    if rank() == 0:
        tqdm.write(text)


def replicated(model: nn.Module, optims: list[torch.optim.Optimizer]) -> nn.Module:
    """Return what to call in place of the model in training, so that the optimizers see averaged gradients.

    Raises `UserError` in the second step for a method whose structure follows the rows that a process reads.
    """
    if size() == 1:
        return model
    stores = {name: module for name, module in model.named_modules() if isinstance(module, Rows) and module.sparse}
    tables = [store.weight for store in stores.values()]
    if tables:
        optims[0].register_step_pre_hook(_Gatherer(model, tables))
    apart = {id(table) for table in tables}
    if all(id(p) in apart for p in model.parameters() if p.requires_grad):
        return model
    others = [f"{name}.weight" for name in stores] + [name for name, _ in model.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, others)
    return DistributedDataParallel(model)


def share(batch: Batch) -> tuple[Batch, float]:
    """Return the rows of a batch that are this process', and the weight of their mean loss.

    A batch with fewer rows than processes goes to each as a whole.
    """
    n, parts = len(batch.labels), size()
    if parts == 1 or n < parts:
        return batch, 1.0
    rows = slice(*_edges(n)[rank() : rank() + 2])
    return Batch(*(tensor[rows] for tensor in batch)), (rows.stop - rows.start) * parts / n


def gathered(part: Tensor, rows: int) -> Tensor:
    """Join what every process computed of its share [rows of it] of a batch of `rows`, in order -> [rows]."""
    if size() == 1 or rows < size():
        return part
    return _joined(part, [stop - start for start, stop in pairwise(_edges(rows))])


def mean(value: Tensor) -> Tensor:
    """Return the mean of a number over the processes."""
    if size() > 1:
        dist.all_reduce(value)
        value /= size()
    return value


def once(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what the first process computes, in every process."""
    if size() == 1:
        return function(*arguments)
    found = [function(*arguments) if rank() == 0 else None]
    dist.broadcast_object_list(found)
    return found[0]


def _edges(rows: int) -> list[int]:
    return [rows * number // size() for number in range(size() + 1)]


class _Gatherer:
    """Before a step of the table optimizer: gives sparse gradients the rows of all processes."""

    def __init__(self, model: nn.Module, tables: list[Tensor]) -> None:
        self.embedding, self.tables, self.steps = model.embedding, tables, 0

    def __call__(self, *_: Any) -> None:
        self.steps += 1
        if self.steps == 2:
            self._check_alike()
        for table in self.tables:
            if table.grad is not None and table.grad.is_sparse:
                table.grad = _all_rows(table.grad)
            elif table.grad is not None:
                mean(table.grad)

    def _check_alike(self) -> None:
        """Raise for a method that sees other rows in another process, and so would lose the others."""
        digest = hashlib.sha256()
        for buffer in self.embedding.buffers():
            digest.update(buffer.cpu().numpy().tobytes())
        found: list[Any] = [None] * size()
        dist.all_gather_object(found, digest.hexdigest())
        if len(set(found)) > 1:
            raise UserError(
                f"nproc: {size()}: {self.embedding.name} as it is configured learns its structure from the rows that "
                "one process reads: take nproc: 1"
            )


def _all_rows(gradient: Tensor) -> Tensor:
    """Return the mean of a sparse gradient [rows, width] over the processes, not coalesced."""
    index, values = gradient._indices()[0], gradient._values() / size()
    lengths = [index.new_zeros(1) for _ in range(size())]
    dist.all_gather(lengths, index.new_tensor([len(index)]))
    index, values = (_joined(tensor, [int(n) for n in lengths]) for tensor in (index, values))
    return torch.sparse_coo_tensor(index[None], values, gradient.shape, check_invariants=False)


def _joined(part: Tensor, lengths: list[int]) -> Tensor:
    """Join tensors of these lengths, one a process, in order."""
    padded = torch.cat([part, part.new_zeros(max(lengths) - len(part), *part.shape[1:])])
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])


# the full table


class Sharded(nn.Module):
    """The full table with the rows of each feature in equal parts on the processes, by TorchRec.

    It behaves as a method does in training; its updates are applied in the backward pass (FBGEMM's exact SGD and
    row-wise Adagrad), so it has no parameters of its own, and its part of the rows is its state.

    Args:
        full: the table to start from, in memory that all processes share.
    """

    name = "full"

    def __init__(self, full: Full, table_optimizer: str, table_lr: float, device: str) -> None:
        super().__init__()
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
        from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
        from torchrec.distributed.types import ShardingEnv

        self.cardinalities, self.dim, self.out_dim = full.cardinalities, full.dim, full.out_dim
        self.keys = [f"feature_{i}" for i in range(len(full.cardinalities))]
        self.starts = dict(zip(self.keys, full.offsets.tolist(), strict=True))
        tables = [
            EmbeddingBagConfig(name=key, feature_names=[key], num_embeddings=n, embedding_dim=full.dim)
            for key, n in zip(self.keys, full.cardinalities, strict=True)
        ]
        kind = {"sgd": EmbOptimType.EXACT_SGD, "adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}[table_optimizer]
        sharder = EmbeddingBagCollectionSharder({"optimizer": kind, "learning_rate": table_lr, "eps": 1e-8})
        whole = EmbeddingBagCollection(tables, device=torch.device("meta"))
        plan = construct_module_sharding_plan(
            whole,
            {key: row_wise(compute_kernel="fused") for key in self.keys},
            sharder=sharder,
            local_size=size(),
            world_size=size(),
            device_type=torch.device(device).type,
        )
        environment = ShardingEnv.from_process_group(dist.group.WORLD)
        # in a list, so that it is no submodule: torch would ask it for parameters and a state in TorchRec's own types
        self.collection = [sharder.shard(whole, plan, environment, torch.device(device))]
        for rows, part in self._parts():
            part.copy_(full.table.weight.detach()[rows])

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids [batch, features] -> [batch, features, dim]; every process must call it as often as the others."""
        if torch.is_inference_mode_enabled():  # in which FBGEMM's lookup is not there on a CPU
            with torch.inference_mode(False), torch.no_grad():
                return self._read(ids.clone())
        return self._read(ids)

    def _read(self, ids: Tensor) -> Tensor:
        from torchrec import KeyedJaggedTensor

        most = torch.tensor([len(ids)], device=ids.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)  # TorchRec wants as many rows of every process: some are empty
        lengths = torch.zeros(ids.shape[1], int(most), dtype=torch.int32, device=ids.device)
        lengths[:, : len(ids)] = 1
        bags = KeyedJaggedTensor(self.keys, ids.long().T.flatten(), lengths=lengths.flatten())
        return self.collection[0](bags).values().view(-1, ids.shape[1], self.dim)[: len(ids)]

    def pairs(self, ids: Tensor, first: Tensor | None = None) -> None:
        """Leave the products to the model."""

    def adapt(self, step: int, total: int, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: the table has no structure to change."""

    def write_back(self, full: Full) -> None:
        """Write this process' rows into the table that all share."""
        with torch.no_grad():
            for rows, part in self._parts():
                full.table.weight[rows] = part.to(full.table.weight.device)

    def get_extra_state(self) -> list[Tensor]:
        """Return this process' rows, for `state_dict`."""
        return [part for _, part in self._parts()]

    def set_extra_state(self, state: list[Tensor]) -> None:
        """Put rows back."""
        for (_, part), kept in zip(self._parts(), state, strict=True):
            part.copy_(kept)

    def _parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows among those of all stacked tables, and the tensor that holds them here."""
        for name, table in self.collection[0].state_dict().items():
            for shard in table.local_shards():
                start = self.starts[name.split(".")[1]] + shard.metadata.shard_offsets[0]
                yield slice(start, start + shard.metadata.shard_sizes[0]), shard.tensor.detach()
