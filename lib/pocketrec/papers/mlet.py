"""MLET put to the test, beside its training runs: what a second layer costs in training, and what it does to tables.

    times   whole training steps and the tables' part of them, plain tables against two layers, in turn
    ranks   how many directions the tables that the runs saved make use of
    same_rows  the differences in AUC once more, on the very same test rows

The effective rank is exp of the entropy of the singular values, taken as shares of their sum: d where all are equal,
1 where one is all there is (Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO
2007). The stable rank is the sum of their squares over the largest square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from pocketrec import data, embeddings, models, training
from pocketrec.data import Batch, Dataset
from pocketrec.kernels import native
from pocketrec.optim import in_place, optimizers
from pocketrec.report.results import read_records
from pocketrec.same_rows import same_rows
from pocketrec.same_rows import skipped as untested
from pocketrec.speed.bench import Options, rounds
from pocketrec.speed.contestants import Unavailable, fits

WIDTHS, HIDDEN = (4, 16, 64), (32, 64, 128)
RANKED_WIDTH = 16
TESTED_HIDDEN, WIDER = 64, (1, 4)  # tested on the same rows against plain tables so many times as wide
LR = 0.01  # small: the same batches come again and again
ROTATED_ROWS = 2**17  # of the batches that are trained on in turn
# benghaem/dlrm_mlet, workflow/criteo_kaggle_ex.sh
AUTHORS = {"bottom_mlp": [512, 256, 64], "top_mlp": [512, 256], "batch_size": 128, "table_optimizer": "sgd"}
AUTHORS_DATASETS = ("criteo-kaggle", "planted")  # theirs, and one of its shape


def measure(suite_dir: Path, small: bool = False) -> dict[str, pd.DataFrame]:
    """Time training, and take the ranks of the tables that the suite's runs saved; it wants the machine alone.

    Args:
        suite_dir: a suite's folder; its records say on which data and with which model to train.
        small: one width, one hidden width and one round, as a test of the code.

    Returns:
        times: one row a sample. dataset, model (`suite`, or `authors`: their MLPs and batch), d, k (0: plain), work
            (`step`, or `tables`: lookup, backward pass and update of the tables alone), batch, threads, round, ms,
            foreign (cores that others used meanwhile), core_to_core_ns.
        ranks: one row a run, feature and weight of the rows (`ids`: every id that training saw counts once,
            `lookups`: as often as it was seen). dataset, d, k, seed, feature, ids, weight, effective_rank, stable_rank.
        same_rows: as `same_rows` returns it, of runs with k = 64 against plain tables of the same width and of
            four times that.
        skipped: what was not measured, reason, command that changes it.
    """
    suite_dir = Path(suite_dir)
    runs = {name: list(found) for name, found in groupby(_runs(suite_dir), lambda record: record["dataset"])}
    times, ranks, skipped = [], [], []
    for name, found in runs.items():
        dataset = data.load(name, **found[0]["parameters"]["dataset_options"])
        try:
            times += _times(dataset, found[0]["parameters"], small)
        except Unavailable as reason:
            what, command = f"{name}: times of training steps", f"pocketrec measure {suite_dir.name}"
            skipped.append({"what": what, "reason": str(reason), "command": command})
        wide = [record for record in found if record["parameters"]["dim"] == RANKED_WIDTH]
        saved = [record for record in wide if (_folder(suite_dir, record) / "embedding.safetensors").exists()]
        for record in tqdm(saved, f"{name}: ranks", unit="model"):
            ranks += _ranks(dataset, record, _folder(suite_dir, record))
        if not wide or len(saved) < len(wide):
            skipped.append(_skipped(name, len(saved), len(wide), suite_dir.name))
    if not runs:
        reason = f"{suite_dir} holds no finished run of full or mlet"
        skipped.append({"what": "all", "reason": reason, "command": f"pocketrec run {suite_dir.name}"})
    tested = same_rows(suite_dir, _pairs([record for found in runs.values() for record in found]))
    skipped += untested(tested).to_dict("records")
    return {
        "times": pd.DataFrame(times),
        "ranks": pd.DataFrame(ranks),
        "same_rows": tested,
        "skipped": pd.DataFrame(skipped, columns=["what", "reason", "command"]),
    }


def _pairs(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pair two-layer runs with the plain ones that they are tested against, of the same seed."""
    plain = {
        (record["dataset"], record["parameters"]["dim"], record["seed"]): record["run"]
        for record in runs
        if record["method"] == "full"
    }
    wanted = [
        (record["run"], (record["dataset"], times * record["parameters"]["dim"], record["seed"]))
        for record in runs
        if record["parameters"]["knobs"].get("hidden") == TESTED_HIDDEN
        for times in WIDER
    ]
    return [(run, plain[cell]) for run, cell in wanted if cell in plain]


def _runs(suite_dir: Path) -> list[dict[str, Any]]:
    """Return the finished quality runs of both kinds of table, by dataset."""
    found = [
        record
        for record in read_records(suite_dir)
        if (record.get("kind", "quality"), record["status"]) == ("quality", "done")
        and record["method"] in ("full", "mlet")
    ]
    return sorted(found, key=lambda record: record["dataset"])


def _folder(suite_dir: Path, record: dict[str, Any]) -> Path:
    return suite_dir / "runs" / record["run"]


def _skipped(dataset: str, saved: int, runs: int, suite: str) -> dict[str, str]:
    reason = f"{saved} of {runs} runs of dim {RANKED_WIDTH} have kept their embedding.safetensors"
    what = f"{dataset}: effective ranks of {'all' if not saved else 'some'} tables"
    again = f"rm -r results/{suite}/runs/*/{dataset} && pocketrec run {suite}"
    return {"what": what, "reason": reason, "command": again}


# times


def _times(dataset: Dataset, parameters: dict[str, Any], small: bool) -> Iterator[dict[str, Any]]:
    """Yield a row a sample on one dataset, of the model of the runs and, where the data is alike, of the authors'."""
    native.keep_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(parameters["threads"])
    settings = {"suite": parameters}
    if dataset.name in AUTHORS_DATASETS:
        settings["authors"] = parameters | AUTHORS
    points = [(name, d) for name in settings for d in (WIDTHS[:1] if small else WIDTHS)]
    try:
        for name, d in tqdm(points, f"{dataset.name}: timing", unit="width"):
            for row in _samples(dataset, settings[name], d, small):
                yield {"dataset": dataset.name, "model": name, "d": d, "threads": parameters["threads"]} | row
    finally:
        torch.set_num_threads(before)


def _samples(dataset: Dataset, parameters: dict[str, Any], d: int, small: bool) -> Iterator[dict[str, Any]]:
    """Time the plain table of width d and every wider two-layer one in turn."""
    size = min(parameters["batch_size"], dataset.rows("train"))
    taken = dataset.batches("train", size, seed=0, limit=max(ROTATED_ROWS, 4 * size))
    batches = [batch for batch in taken if len(batch.labels) == size]
    hidden = [k for k in (HIDDEN[:1] if small else HIDDEN) if k >= d]
    fits(4 * (d + sum(hidden)) * sum(dataset.cardinalities), "cpu")
    calls = {(k, work): call for k in (0, *hidden) for work, call in _calls(dataset, parameters, d, k, batches)}
    options = Options(rounds=1, patience=0) if small else Options(rounds=30)
    for number, found in enumerate(rounds(calls, options)):
        about = {"round": number, "foreign": found.foreign, "core_to_core_ns": found.core_to_core_ns}
        for (k, work), ms in found.ms.items():
            yield {"k": k, "work": work, "batch": size, "ms": ms} | about


def _calls(
    dataset: Dataset, parameters: dict[str, Any], d: int, k: int, batches: Sequence[Batch]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield both works of one model, each going round the batches."""
    knobs = {"hidden": k} if k else {}
    embedding = embeddings.build("mlet" if k else "full", cardinalities=dataset.cardinalities, dim=d, **knobs)
    mlps = parameters["bottom_mlp"], parameters["top_mlp"]
    model = models.build(parameters["model"], embedding, dataset.num_dense, *mlps)
    optims = optimizers(model, table_optimizer=parameters["table_optimizer"], table_lr=LR, dense_lr=1e-3)
    gradient = 1e-4 * torch.randn(len(batches[0].ids), len(dataset.cardinalities), d)
    turn = cycle(batches)

    def step() -> None:
        with in_place(embedding, optims[0]):
            training.train_step(model, next(turn), optims)

    def tables() -> None:
        optims[0].zero_grad()
        with in_place(embedding, optims[0]):
            embedding(next(turn).ids).backward(gradient)
        optims[0].step()

    yield "step", step
    yield "tables", tables


# ranks


def _ranks(dataset: Dataset, record: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row a feature and weight of one saved run: the table as it is served, the second layer multiplied in."""
    parameters = record["parameters"]
    k = parameters["knobs"]["hidden"] if record["method"] == "mlet" else 0
    about = {"dataset": dataset.name, "d": parameters["dim"], "k": k, "seed": record["seed"]}
    embedding = embeddings.load(folder / "embedding.safetensors")
    dataset = dataset.thinned(parameters["train_rows"])
    ids = dataset.ids[dataset.taken("train")]
    for feature, name in enumerate(dataset.feature_names):
        counts = torch.from_numpy(np.bincount(ids[:, feature], minlength=dataset.cardinalities[feature]))
        seen = counts > 0
        table = embedding.materialize(feature)[seen].double()
        for weight, times in (("ids", torch.ones(len(table))), ("lookups", counts[seen])):
            effective, stable = ranks(table * times.double().sqrt()[:, None])
            yield (
                about
                | {"feature": name, "ids": len(table), "weight": weight}
                | {
                    "effective_rank": effective,
                    "stable_rank": stable,
                }
            )


def ranks(table: Tensor) -> tuple[float, float]:
    """Return the effective and the stable rank of a matrix [rows, d], float64, by way of its d x d Gram matrix."""
    squares = torch.linalg.eigvalsh(table.mT @ table).clamp(min=0)
    shares = squares.sqrt() / squares.sqrt().sum()
    effective = torch.special.entr(shares).sum().exp()
    return effective.item(), (squares.sum() / squares.max()).item()
