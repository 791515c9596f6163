"""TT-Rec, what is measured beside its training runs.

sizes       bytes by arithmetic, a row a model, number of compressed tables and rank (missing: whole tables alone)
moments     entries of a fresh tensor train beside their target, a row an initialisation and rank
density     their histogram over log10 |entry / target|
hit_rates   the share of lookups that a cache of hot rows answers, a row a dataset and size of the cache
steps       a whole DLRM's training step, a row a sample
refills     how long it takes to fill the cache anew
kernels     lookups and training steps of one large table, a row a sample as in `speed.bench`
same_rows   the differences of AUC to the full table on the same test rows, see `pocketrec.same_rows`
skipped     what could not be measured, why, and the command that measures it

Yin, Acun, Liu & Wu, "TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models", MLSys 2021.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

from pocketrec import data, embeddings
from pocketrec.data import Dataset
from pocketrec.embeddings.base import full_bytes, undrawn
from pocketrec.embeddings.tt_rec import INITS, REFILLS, TTRec
from pocketrec.embeddings.whole_tables import WholeTables, largest
from pocketrec.errors import UserError
from pocketrec.kernels import native
from pocketrec.measure import synchronize, zipf_ids
from pocketrec.models import DLRM
from pocketrec.optim import SGD
from pocketrec.report.results import read_records
from pocketrec.same_rows import same_rows
from pocketrec.same_rows import skipped as untested
from pocketrec.speed import bench, dlrm, machine
from pocketrec.speed.contestants import OURS, PLAIN, RANKS, Tables, Unavailable
from pocketrec.suite.sizes import tables as published_tables

MODELS = ("criteo-kaggle", "criteo-tb-10m")
COMPRESSED = (3, 5, 7)  # of 26 tables, the largest
CACHES = (0.001, 0.01)  # of the rows of the compressed tables
RATIO = 10  # at which the suite trains, and at which the method chooses the tables of the hit rates
DATASETS: dict[str, dict[str, Any]] = {"planted": {}, "bookcrossing": {}, "movielens-1m": {}}
BINS = np.linspace(-5, 5, 101)  # of log10 |entry / target|
MOST_ROWS = 1_000_000  # training rows that hit rates are counted on
CHUNK = 4096  # rows embedded at once: at rank 64 a row's slices take 33 kB
RIVALS = "POCKETREC_RIVALS"


@dataclass(frozen=True)
class Extent:
    """How much is measured: all of it, or a little of everything."""

    tables: Sequence[int]  # of the whole model
    batches: Sequence[int]
    ranks: Sequence[int]
    warm_rows: int  # that fill the cache before it is timed
    table_rows: int  # of the one table of initial values
    entries: int  # of each initialisation and rank, a seed
    init_ranks: Sequence[int]
    datasets: dict[str, dict[str, Any]]
    kernels: bench.Options
    kernel_rows: int

    @classmethod
    def whole(cls, suite_dir: Path, device: str) -> Extent:
        """Return the extent that is published: Criteo-Kaggle's tables, and the datasets of the suite's runs."""
        kaggle, _ = published_tables("criteo-kaggle")
        options = bench.Options(
            families=["tensor_train"], dims=(16, 64), batches=(2048,), device=device, rivals=_rivals_folder()
        )
        return cls(
            tables=kaggle,
            batches=(128, 2048),
            ranks=RANKS,
            warm_rows=200_000,
            table_rows=max(kaggle),
            entries=1 << 18,
            init_ranks=(1, 2, 4, *RANKS),
            datasets=DATASETS | _datasets(suite_dir),
            kernels=options,
            kernel_rows=max(kaggle),
        )

    @classmethod
    def little(cls) -> Extent:
        """Return an extent of about a second."""
        quick = {"rounds": 2, "patience": 0, "ids": ("zipf", "uniform")}
        return cls(
            tables=[60_000] * 7 + [50, 3],
            batches=(16,),
            ranks=(8,),
            warm_rows=2000,
            table_rows=20_000,
            entries=1 << 12,
            init_ranks=(1, 8),
            datasets={"planted": {"rows": 4000, "scale": 0.0001}},
            kernels=bench.Options(families=["tensor_train"], dims=(16,), batches=(16,), **quick),
            kernel_rows=200_000,
        )


def measure(suite_dir: Path, small: bool = False) -> dict[str, pd.DataFrame]:
    """Return the tables that the module names; `small` measures a little of everything, for tests.

    Datasets and their options, and the device, are those of the suite's runs. Rivals are taken from the folder that
    POCKETREC_RIVALS names (see `speed.rivals`).
    """
    device = _device(suite_dir)
    extent = Extent.little() if small else Extent.whole(suite_dir, device)
    native.keep_memory()
    moments, density = initial_values(extent)
    hit_rates, without_data = _hit_rates(extent.datasets)
    steps, refills, without_memory = training_steps(extent, device)
    kernels, without_peer = _kernels(extent)
    tested = same_rows(suite_dir)
    skipped = pd.DataFrame(
        [*without_data, *without_memory, *without_peer], columns=["what", "reason", "command"], dtype="str"
    )
    return {
        "sizes": sizes(),
        "moments": moments,
        "density": density,
        "hit_rates": hit_rates,
        "steps": steps,
        "refills": refills,
        "kernels": kernels,
        "same_rows": tested,
        "skipped": pd.concat([skipped, untested(tested)], ignore_index=True),
    }


# sizes


def sizes() -> pd.DataFrame:
    """Return what TT-Rec takes on published tables: model, dim, tables, rank, bytes, ratio."""
    rows = []
    for model, count, rank in product(MODELS, COMPRESSED, (None, *RANKS)):
        cardinalities, dim = published_tables(model)
        compressed = largest(cardinalities, count)
        if rank:
            kept = TTRec.stored(cardinalities, dim, tables=compressed, rank=rank, cores=3, cache=0)
            taken = sum(stored.bytes() for stored in kept.values())
        else:
            taken = WholeTables.stored(cardinalities, compressed, dim).bytes()
        found = {"model": model, "dim": dim, "tables": count, "rank": rank, "bytes": taken}
        rows.append(found | {"ratio": full_bytes(cardinalities, dim) / taken})
    return pd.DataFrame(rows).astype({"rank": "Int64"})


# initial values


def initial_values(extent: Extent) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return moments and density of fresh tensor trains; entries are in units of the target, 1 / sqrt(3 rows).

    Moments: std_ratio, excess_kurtosis, ks (the largest distance between the distribution and the normal one of the
    target), ks_shape (the same once both have one width), near_zero (share of entries below a tenth of their own
    width; 0.080 of a normal distribution). Density: `density` over the middles `log10` of equal bins.
    """
    moments, density = [], []
    for init, rank in tqdm(list(product(INITS, extent.init_ranks)), "initial values", unit="table"):
        of = {"init": init, "rank": rank}
        entries = fresh_entries(init, rank, extent.table_rows, extent.entries) * sqrt(3 * extent.table_rows)
        own = entries / entries.std()
        moments.append(
            of
            | {
                "std_ratio": entries.std(),
                "excess_kurtosis": stats.kurtosis(entries),
                "ks": stats.ks_1samp(entries, stats.norm.cdf).statistic,
                "ks_shape": stats.ks_1samp(own, stats.norm.cdf).statistic,
                "near_zero": (np.abs(own) < 0.1).mean(),
                "entries": len(entries),
            }
        )
        counts, _ = np.histogram(np.log10(np.abs(entries).clip(1e-30)), BINS)
        middles, width = (BINS[1:] + BINS[:-1]) / 2, BINS[1] - BINS[0]
        density += [
            of | {"log10": x, "density": n / len(entries) / width} for x, n in zip(middles, counts, strict=True)
        ]
    return pd.DataFrame(moments), pd.DataFrame(density)


def fresh_entries(init: str, rank: int, rows: int, count: int, dim: int = 16, seeds: int = 4) -> np.ndarray:
    """Return entries of rows drawn at random from a fresh tensor train, float64 [about seeds count]."""
    found = []
    for seed in range(seeds):
        train = embeddings.build("tt_rec", cardinalities=[rows], dim=dim, seed=seed, tables=1, rank=rank, init=init)
        ids = torch.randint(rows, (count // dim, 1), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            found += [train(part).double().flatten() for part in ids.split(CHUNK)]
    return torch.cat(found).numpy()


# the cache


def _hit_rates(datasets: dict[str, dict[str, Any]]) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    frames, skipped = [], []
    for name, options in tqdm(datasets.items(), "hit rates", unit="dataset"):
        try:
            frames.append(hit_rates(data.load(name, **options)))
        except UserError as error:
            skipped.append(
                {"what": f"hit rates of {name}", "reason": str(error), "command": f"pocketrec prepare {name}"}
            )
    return (pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()), skipped


def hit_rates(dataset: Dataset, shares: Sequence[float] = tuple(np.geomspace(1e-4, 1, 17))) -> pd.DataFrame:
    """Return the share of lookups that a cache answers, for caches of some share of the compressed tables' rows.

    Columns: dataset, tables, rows, share, cache (rows), best (the ids most read in training, known beforehand),
    reached (over one training in which the cache is filled by the counts so far, as `TTRec` does it), test (the
    cache that training ends with, on test rows).
    """
    dim = data.recipe(dataset.name).get("dim", 16)
    chosen = embeddings.solve("tt_rec", dataset.cardinalities, dim, RATIO)["tables"]
    rows = sum(dataset.cardinalities[t] for t in chosen)
    train, test = (_keys(dataset, split, chosen) for split in ("train", "test"))
    caches = np.unique(np.maximum(1, (np.asarray(shares) * rows).astype(int)))
    whole = np.bincount(train.ravel(), minlength=rows)
    return pd.DataFrame(
        {
            "dataset": dataset.name,
            "tables": len(chosen),
            "rows": rows,
            "share": caches / rows,
            "cache": caches,
            "best": _answered(whole, train, caches),
            "reached": _answered_while_training(train, rows, caches),
            "test": _answered(whole, test, caches),
        }
    )


def _keys(dataset: Dataset, split: str, tables: Sequence[int]) -> np.ndarray:
    """Return the ids of compressed tables, numbered across them, int64 [rows, tables], in some order of training."""
    start = np.cumsum([0, *(dataset.cardinalities[t] for t in tables[:-1])])
    order = np.random.default_rng(0).permutation(dataset.rows(split))[:MOST_ROWS]
    return dataset.ids[dataset.split(split)][order][:, tables] + start


def _answered(counts: np.ndarray, keys: np.ndarray, caches: np.ndarray) -> np.ndarray:
    """Return the share of keys that are among the most counted ones, for each number of those."""
    place = np.empty_like(counts)
    place[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.searchsorted(np.sort(place[keys.ravel()]), caches) / max(1, keys.size)


def _answered_while_training(keys: np.ndarray, rows: int, caches: np.ndarray) -> np.ndarray:
    """Return the share of keys answered when the cache is filled after each twentieth; at first it is empty."""
    counts, answered = np.zeros(rows, dtype=np.int64), np.zeros(len(caches))
    for done, part in enumerate(np.array_split(keys, REFILLS)):
        if done:
            answered += _answered(counts, part, caches) * part.size
        counts += np.bincount(part.ravel(), minlength=rows)
    return answered / keys.size


# a whole model's training step


def training_steps(extent: Extent, device: str = "cpu") -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, str]]]:
    """Time training steps of a DLRM around full tables and tensor trains, all in turn, and what refills take.

    Steps: embedding (`MLPs only`, `26 x nn.EmbeddingBag`, `full`, `tt_rec`), route, rank, cache (rows), ratio,
    batch, round, ms, foreign, hit_rate. Refills: rank, cache, rows (of the compressed tables), ms.
    """
    tables = Tables(extent.tables, 16, device)
    models, refills, skipped = [], [], []
    for about, build in tqdm(list(_models(extent, tables)), "models", unit="model"):
        try:
            models.append((about, build()))
        except Unavailable as reason:
            command = "pocketrec measure paper_tt_rec, on a machine with more memory"
            skipped.append(
                {"what": f"training step of {about['embedding']}", "reason": str(reason), "command": command}
            )
    for about, model in models:
        if about.get("cache"):
            ms = _warmed(model.embedding, extent)
            compressed = sum(extent.tables[t] for t in model.embedding.config["tables"])
            refills += [{"rank": about["rank"], "cache": about["cache"], "rows": compressed, "ms": each} for each in ms]
    samples = [row for batch in extent.batches for row in _timed_steps(models, batch, extent, tables)]
    steps = pd.DataFrame(samples).astype({"rank": "Int64", "cache": "Int64"})
    return steps, pd.DataFrame(refills, columns=["rank", "cache", "rows", "ms"]), skipped


def _models(extent: Extent, tables: Tables) -> Iterator[tuple[dict[str, Any], Callable[[], DLRM]]]:
    """Yield what each model is, and how it is built."""
    for name in (dlrm.FLOOR, dlrm.BAGS, "full"):
        yield {"embedding": name, "route": OURS if name == "full" else PLAIN}, lambda n=name: dlrm.model(n, tables)
    compressed = sum(extent.tables[t] for t in largest(extent.tables, 7))
    for rank, share in product(extent.ranks, (0, *CACHES)):
        about = {"embedding": "tt_rec", "rank": rank, "cache": int(share * compressed)}
        for route in (OURS, PLAIN) if not share else (OURS,):
            yield about | {"route": route}, lambda a=about: _tt_model(tables, a["rank"], a["cache"])


def _tt_model(tables: Tables, rank: int, cache: int) -> DLRM:
    with undrawn():
        embedding = embeddings.build(
            "tt_rec", cardinalities=tables.cardinalities, dim=tables.dim, tables=7, rank=rank, cache=cache
        )
    for parameter in embedding.parameters():
        machine.fill(machine.huge(parameter.data))
    return DLRM(embedding, dlrm.NUM_DENSE).to(tables.device)


@torch.no_grad()
def _warmed(embedding: nn.Module, extent: Extent) -> list[float]:
    """Fill a cache by lookups like those that are timed; return the milliseconds of the filling, three times."""
    ids = zipf_ids(extent.tables, extent.warm_rows, seed=1)
    for part in ids.split(CHUNK):
        embedding.train()(part.to(embedding.limits.device))
    optimizer, ms = SGD(embedding.parameters(), lr=dlrm.LR), []
    for _ in range(3):
        synchronize()
        start = time.perf_counter()
        embedding.adapt(1, REFILLS, optimizer)
        synchronize()
        ms.append((time.perf_counter() - start) * 1e3)
    return ms


def _timed_steps(
    models: Sequence[tuple[dict[str, Any], DLRM]], batch: int, extent: Extent, tables: Tables
) -> Iterator[dict[str, Any]]:
    ids = bench.drawn_ids(extent.tables, batch, "zipf", tables.device)
    calls = {place: _step(about, model, ids) for place, (about, model) in enumerate(models)}
    rates = [model.embedding.cache_hit_rate(torch.cat(ids)) if about.get("cache") else None for about, model in models]
    ratios = [_ratio(model, tables) for _, model in models]
    for number, taken in enumerate(bench.rounds(calls, extent.kernels)):
        for place, ms in taken.ms.items():
            found = {"batch": batch, "round": number, "ms": ms, "foreign": taken.foreign}
            empty = {"rank": None, "cache": None}
            yield empty | models[place][0] | {"ratio": ratios[place], "hit_rate": rates[place]} | found


def _step(about: dict[str, Any], model: DLRM, ids: Sequence[Tensor]) -> Callable[[], Any]:
    step = dlrm._training(model, ids)
    plain = about["embedding"] == "tt_rec" and about["route"] == PLAIN

    def call() -> None:
        with native.off() if plain else nullcontext():
            step()

    return call


def _ratio(model: DLRM, tables: Tables) -> float | None:
    if not isinstance(model.embedding, embeddings.Embedding):
        return None
    return full_bytes(tables.cardinalities, tables.dim) / model.embedding.storage().inference_bytes


# kernels


def _kernels(extent: Extent) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Time one table's lookups and steps; `distinct` is the share of a batch's ids that are no repetition."""
    samples = bench.bench([extent.kernel_rows], extent.kernels)
    untimed = samples[samples["reason"].notna()] if "reason" in samples else samples.iloc[:0]
    repeated = pd.DataFrame(
        {"batch": batch, "ids": ids, "distinct": _distinct(extent.kernel_rows, batch, ids)}
        for batch, ids in product(extent.kernels.batches, extent.kernels.ids)
    )
    timed = samples[samples["ms"].notna()].drop(columns=["reason", "ratio", "block_size", "hash"], errors="ignore")
    skipped = [
        {"what": f"kernel: {row.route}", "reason": row.reason, "command": _command(row.route)}
        for row in untimed.drop_duplicates(["route", "reason"]).itertuples()
    ]
    return timed.merge(repeated, "left", ["batch", "ids"]).astype({"rank": "Int64"}), skipped


def _distinct(rows: int, batch: int, ids: str) -> float:
    return float(np.mean([len(part.unique()) / part.numel() for part in bench.drawn_ids([rows], batch, ids, "cpu")]))


def _command(route: str) -> str:
    return f"{RIVALS}=FOLDER pocketrec measure paper_tt_rec, with {route} in FOLDER as pocketrec/speed/rivals.py says"


# the suite


def _device(suite_dir: Path) -> str:
    """Return the device of the suite's runs."""
    found = [record.get("parameters", {}).get("device") for record in read_records(suite_dir)]
    return next(filter(None, found), "cpu")


def _datasets(suite_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the datasets of the suite's runs with their options."""
    return {
        record["dataset"]: record["parameters"].get("dataset_options", {})
        for record in read_records(suite_dir)
        if record.get("parameters")
    }


def _rivals_folder() -> Path | None:
    return Path(os.environ[RIVALS]) if os.environ.get(RIVALS) else None
