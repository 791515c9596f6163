"""PSS beside its training runs: what a step costs here and on two processes, and what a random projection loses.

latency       a training step of the suite's models and of a table of gigabytes, in turn in one process
parallel      steps of two processes, sharded and replicated, and the rates that they rest on
projection    the suite's trained table, projected to arrays of many sizes and read back
dense         one of its tables, projected by the dense signs that the bound speaks of
bound         the memory that is enough for an error, by `embeddings.pss.projection_rows`
same_rows     the differences of AUC to the full table on the same test rows, see `same_rows`
skipped       what was not measured, and why
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pocketrec import data, embeddings, models, training
from pocketrec.data import Batch
from pocketrec.data.sources import planted
from pocketrec.embeddings.base import Embedding, full_bytes, undrawn
from pocketrec.embeddings.pss import Pss, projection_rows
from pocketrec.kernels import native
from pocketrec.metrics import scores
from pocketrec.optim import in_place, optimizers
from pocketrec.report.results import read_records
from pocketrec.same_rows import same_rows
from pocketrec.same_rows import skipped as untested
from pocketrec.speed import machine, parallel
from pocketrec.speed.bench import Options, drawn_ids, rounds
from pocketrec.speed.contestants import Unavailable, fits
from pocketrec.speed.dlrm import FLOOR, Nothing

RATIO = 10_000
BLOCKS = {"mapping": "block", "sign": False}  # the published instance
LARGE, LARGE_DIM = "criteo-kaggle", 64  # 8.6 GB
PROJECTED = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)  # ratios
SEEDS = 3
EPSILONS = np.geomspace(0.003, 0.9, 40)
DENSE_EPSILONS = (0.9, 0.6, 0.4, 0.25, 0.15)
DENSE_ROWS = 20_000  # of the table that is projected densely, at most
CHUNK = 8192  # rows of every table that are projected at a time


@dataclass(frozen=True)
class Shape:
    """The sizes of a model: tables, numbers, MLPs."""

    name: str
    cardinalities: Sequence[int]
    dim: int
    num_dense: int
    bottom_mlp: Sequence[int]
    top_mlp: Sequence[int]
    batch_size: int = 2048


TINY = Shape("tiny", (50, 3, 400, 7), 8, 2, (8,), (8,), 64)


def measure(suite_dir: Path, small: bool = False) -> dict[str, pd.DataFrame]:
    """Measure alone on the machine; return the tables that the module names.

    `small` takes tiny sizes in place of all but the suite's own, for tests.
    """
    native.keep_memory()
    skipped: list[dict[str, str]] = []
    trained = _trained(suite_dir)
    if not trained:
        skipped.append(_skip("the suite's own sizes and table", f"{suite_dir} keeps no trained full table", "run"))
    shapes = [_shape(record) for record in trained] + [TINY if small else _large()]
    tested = same_rows(suite_dir)
    tables = {
        "same_rows": tested,
        "latency": latency(shapes, Options(rounds=2 if small else 15, patience=0 if small else 1), skipped),
        "parallel": parallel.bench(_plan(small)),
    }
    if trained:
        smallest = min(trained, key=lambda record: record["sizes"]["full_bytes"])
        folder = suite_dir / "runs" / smallest["run"]
        tables["projection"] = projection(folder, smallest["parameters"], PROJECTED, 1 if small else SEEDS)
        tables["dense"] = dense(folder, DENSE_EPSILONS, 1 if small else SEEDS)
        tables["bound"] = bound(_shape(smallest))
    left_out = [pd.DataFrame(skipped, columns=["what", "reason", "command"]), untested(tested)]
    return tables | {"skipped": pd.concat(left_out, ignore_index=True)}


def _trained(suite_dir: Path) -> list[dict[str, Any]]:
    """Return the record of one run of the full table for each dataset whose model is still there."""
    found = [
        record
        for record in read_records(suite_dir)
        if record["method"] == "full" and record["status"] == "done" and record.get("kind", "quality") == "quality"
        if (suite_dir / "runs" / record["run"] / "embedding.safetensors").exists()
    ]
    first = {record["dataset"]: record for record in sorted(found, key=lambda r: r["run"], reverse=True)}
    return list(first.values())


def _shape(record: dict[str, Any]) -> Shape:
    parameters = record["parameters"]
    rows = data.load(parameters["dataset"], **parameters["dataset_options"])
    kept = {name: parameters[name] for name in ("dim", "bottom_mlp", "top_mlp", "batch_size")}
    return Shape(record["dataset"], tuple(rows.cardinalities), num_dense=rows.num_dense, **kept)


def _large() -> Shape:
    """Return the largest tables at hand with the MLPs of the papers."""
    recipe = data.recipe(LARGE)
    mlps = {name: recipe[name] for name in ("bottom_mlp", "top_mlp")}
    return Shape(f"{LARGE}, dim {LARGE_DIM}", data.published_cardinalities(LARGE), LARGE_DIM, planted.DENSE, **mlps)


def _plan(small: bool) -> parallel.Plan:
    if small:
        few = {"ratios": (10, 100), "dims": (8,), "batches": (64, 256), "bytes": (4096, 1 << 16), "rounds": 2}
        return parallel.Plan(TINY.cardinalities, 2, (8,), (8,), reference=(64, 8), knobs=BLOCKS, **few)
    return parallel.Plan(
        planted.Options().cardinalities,
        planted.DENSE,
        (64,),
        (128, 64),
        ratios=(10, 1000),
        dims=(16, 64),
        batches=(256, 1024, 4096),
        bytes=tuple(1 << power for power in (12, 14, 16, 18, 20, 22, 24)),
        reference=(1024, 16),
        knobs=BLOCKS,
    )


def _skip(what: str, reason: str, verb: str) -> dict[str, str]:
    return {"what": what, "reason": reason, "command": f"make {verb} SUITE=paper_pss"}


# what a step costs


def latency(shapes: Sequence[Shape], options: Options, skipped: list[dict[str, str]]) -> pd.DataFrame:
    """Time training steps with the full table, with arrays 10,000 times smaller, and with none; one row a sample.

    Columns: tables, table_bytes, embedding (`MLPs only`, `full`, `pss` by block as published, `pss, element`), batch,
    round (samples of one round were taken in turn), ms, foreign (cores that others used), core_to_core_ns, threads.
    """
    rows = []
    for shape in tqdm(shapes, "training steps", unit="model"):
        size = full_bytes(shape.cardinalities, shape.dim)
        try:
            fits(size, "cpu")
        except Unavailable as reason:
            skipped.append(_skip(f"training steps on {shape.name}", str(reason), "measure"))
            continue
        about = {"tables": shape.name, "table_bytes": size, "batch": shape.batch_size}
        for number, taken in enumerate(rounds(_steps(shape), options)):
            state = {"foreign": taken.foreign, "core_to_core_ns": taken.core_to_core_ns}
            state |= {"round": number, "threads": torch.get_num_threads()}
            rows += [about | {"embedding": name, "ms": ms} | state for name, ms in taken.ms.items()]
    return pd.DataFrame(rows)


def _steps(shape: Shape) -> dict[str, Callable[[], Any]]:
    """Return a training step of each embedding, over the same batches."""
    ids = drawn_ids(shape.cardinalities, shape.batch_size, "zipf", "cpu")
    dense = torch.rand(shape.batch_size, shape.num_dense)
    labels = torch.rand(shape.batch_size).round()
    batches = [Batch(dense, part, labels) for part in ids]
    built = {
        FLOOR: Nothing(shape.cardinalities, shape.dim),
        "full": _embedding("full", shape),
        "pss": _embedding("pss", shape, ratio=RATIO, **BLOCKS),
        "pss, element": _embedding("pss", shape, ratio=RATIO),
    }
    return {name: _step(embedding, shape, batches) for name, embedding in built.items()}


def _embedding(name: str, shape: Shape, **settings: Any) -> Embedding:
    ratio = min(settings.pop("ratio", 1), full_bytes(shape.cardinalities, shape.dim) / 4 / shape.dim)
    with undrawn():
        embedding = embeddings.build(name, cardinalities=shape.cardinalities, dim=shape.dim, ratio=ratio, **settings)
    for parameter in embedding.parameters():
        machine.fill(machine.huge(parameter.data))
    return embedding


def _step(embedding: nn.Module, shape: Shape, batches: Sequence[Batch]) -> Callable[[], Any]:
    model = models.DLRM(embedding, shape.num_dense, shape.bottom_mlp, shape.top_mlp)
    optims = optimizers(model, table_optimizer="adagrad", table_lr=0.01, dense_lr=1e-3)
    turn = cycle(batches)

    def step() -> None:
        with in_place(model.embedding, optims[0]):
            training.train_step(model, next(turn), optims)

    return step


# what a projection loses


def projection(folder: Path, parameters: dict[str, Any], ratios: Sequence[float], seeds: int) -> pd.DataFrame:
    """Project a run's trained table to arrays of signed single elements and read it back; one row an array and seed.

    Columns: dataset, rows, dim, ratio, floats of the array, m (floats / dim), seed; `rms` and `worst`, the error of the
    elements, relative to the mean norm of the table's columns; `element`, the root mean square of the elements
    themselves on that scale; `validation_auc` of the run's model with what was read back; `full_auc` with the table.
    """
    model = models.load(folder)
    rows = data.load(parameters["dataset"], **parameters["dataset_options"])
    table, dim, count = model.embedding, model.embedding.dim, sum(model.embedding.cardinalities)
    norm = sqrt(sum(float((part * mask).square().sum()) for _, part, mask in _parts(table)) / dim)
    about = {"dataset": parameters["dataset"], "rows": count, "dim": dim}
    about |= {"element": 1 / sqrt(count), "full_auc": _auc(model, rows)}
    found = []
    for ratio, seed in tqdm([(r, s) for r in ratios for s in range(seeds)], "projections", unit="array"):
        model.embedding = array = projected(table, max(1, round(count * dim / ratio)), seed)
        squared, worst = _errors(table, array)
        sizes = {"ratio": ratio, "floats": array.sizes[0], "m": array.sizes[0] / dim, "seed": seed}
        errors = {"rms": sqrt(squared / count / dim) / norm, "worst": worst / norm}
        found.append(about | sizes | errors | {"validation_auc": _auc(model, rows)})
    return pd.DataFrame(found)


def projected(table: Embedding, floats: int, seed: int) -> Pss:
    """Return PSS by signed single elements whose array is the random projection of a table.

    An element of the array is the signed sum of all elements of the table that are placed there: the transpose of
    the lookup, and so what the lookup's backward pass adds up.
    """
    with undrawn():
        array = Pss(table.cardinalities, table.dim, seed=seed, sizes=[floats], block_size=1)
    array.array.weight.data.zero_()
    for ids, part, mask in _parts(table):
        (gradient,) = torch.autograd.grad(array(ids), array.array.weight, part * mask)
        array.array.weight.data += gradient
    return array.requires_grad_(False)


@torch.inference_mode()
def _errors(table: Embedding, array: Embedding) -> tuple[float, float]:
    """Return the sum of the squared errors of all elements, and the largest error."""
    squared, worst = 0.0, 0.0
    for ids, part, mask in _parts(table):
        error = (array(ids) - part) * mask
        squared += float(error.square().sum())
        worst = max(worst, float(error.abs().max()))
    return squared, worst


def _parts(table: Embedding) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield every row of every table once: ids [n, features], rows [n, features, dim], which count [n, features, 1]."""
    limits = torch.tensor(table.cardinalities)
    for start in range(0, int(limits.max()), CHUNK):
        numbers = torch.arange(start, min(start + CHUNK, int(limits.max())))[:, None]
        mask = numbers < limits
        ids = numbers.minimum(limits - 1)
        yield ids, table(ids), mask[..., None]


def dense(folder: Path, epsilons: Sequence[float], seeds: int) -> pd.DataFrame:
    """Project one table of a run by dense random signs into the memory that is enough for an error, and read it back.

    It is the largest table of at most 20,000 rows. Columns: feature, rows, dim, epsilon, m (`projection_rows`), seed;
    `rms` and `worst`, the error of the elements, relative to the norm of their column.
    """
    embedding = models.load(folder).embedding
    sizes = [n if n <= DENSE_ROWS else 0 for n in embedding.cardinalities]
    feature, dim = int(np.argmax(sizes)), embedding.dim
    table = embedding.materialize(feature)[:DENSE_ROWS]
    found = []
    for epsilon in epsilons:
        m = projection_rows(len(table), dim, epsilon)
        for seed in range(seeds):
            error = (densely_read(table, m, seed) - table) / table.norm(dim=0)
            errors = {"rms": float(error.square().mean().sqrt()), "worst": float(error.abs().max())}
            about = {"feature": feature, "rows": len(table), "dim": dim, "epsilon": epsilon, "m": m, "seed": seed}
            found.append(about | errors)
    return pd.DataFrame(found)


def densely_read(table: Tensor, m: int, seed: int) -> Tensor:
    """Return R^T R table for a table [rows, dim] and R [m, rows] of independent signs over the root of m."""
    draw, read = torch.Generator().manual_seed(seed), torch.zeros_like(table)
    for rows in torch.arange(m).split(256):
        signs = torch.randint(2, (len(rows), len(table)), generator=draw, dtype=torch.int8).to(table.dtype) * 2 - 1
        read += signs.T @ (signs @ table)
    return read / m


def _auc(model: nn.Module, rows: data.Dataset) -> float | None:
    return scores(*training.predict(model, rows, "validation")).get("auc")


def bound(shape: Shape) -> pd.DataFrame:
    """Return how many rows m keep every element of the tables within epsilon: epsilon, m, floats (m times dim)."""
    rows = [(epsilon, projection_rows(sum(shape.cardinalities), shape.dim, epsilon)) for epsilon in EPSILONS]
    return pd.DataFrame([(e, m, m * shape.dim) for e, m in rows], columns=["epsilon", "m", "floats"])
