"""A prepared folder as memory-mapped arrays, and batches of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from pocketrec.data.ahead import ahead

BLOCK = 2**12  # rows read together
BUFFER = 2**20  # rows shuffled together
SCAN = 2**18  # rows looked at together where all are read


class Batch(NamedTuple):
    """dense float32 [B, D], ids int32 or int64 [B, F], labels float32 [B]."""

    dense: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor


class Window(NamedTuple):
    """Arrays of rows that are shuffled together, and the order in which they are to be taken."""

    arrays: list[np.ndarray]
    order: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Memory-mapped arrays of N rows, which lie in the order train, validation, test.

    labels uint8 [N], dense float32 [N, D] (D may be 0), ids int32 or int64 [N, F]; counts [sum of the
    cardinalities], how often each id occurs in training rows, features one after the other (None where
    there are too many ids); teacher float32 [N], the true probability of a positive label, where it is known.
    Where not all training rows are used (`thinned`), `train_rows` is how many; else 0.
    """

    name: str
    meta: dict[str, Any]
    labels: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    counts: np.ndarray | None
    teacher: np.ndarray | None
    train_rows: int = 0

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Map the arrays of a folder that `prepare` made."""
        meta = json.loads((folder / "meta.json").read_text())
        names = ("labels", "dense", "ids", "counts", "teacher")
        files = {name: folder / f"{name}.npy" for name in names}
        arrays = {name: np.load(file, mmap_mode="r") if file.exists() else None for name, file in files.items()}
        return cls(name=meta["name"], meta=meta, **arrays)

    @property
    def is_whole(self) -> bool:
        """Whether every array is there with as many rows as `meta.json` says."""
        wanted = {"labels": self.meta["rows"], "dense": self.meta["rows"], "ids": self.meta["rows"]}
        if self.meta["counts"]:
            wanted["counts"] = sum(self.cardinalities)
        found = {name: getattr(self, name) for name in wanted}
        return all(array is not None and len(array) == wanted[name] for name, array in found.items())

    @property
    def cardinalities(self) -> list[int]:
        """Number of ids of each feature."""
        return self.meta["cardinalities"]

    @property
    def feature_names(self) -> list[str]:
        """Names of the categorical features."""
        return self.meta["feature_names"]

    @property
    def num_dense(self) -> int:
        """Number of dense features, D."""
        return self.dense.shape[1]

    @property
    def digest(self) -> str:
        """Hash of all that determines the arrays."""
        return self.meta["digest"]

    def thinned(self, train_rows: int) -> "Dataset":
        """Return this dataset with only so many training rows, evenly spaced, and their counts; 0 means all.

        Not the first ones: files are often sorted by user, and most users of the test rows would then be unknown.
        """
        if not 0 < train_rows < self.rows("train"):
            return self
        fewer = replace(self, counts=None, train_rows=train_rows)
        return fewer if self.counts is None else replace(fewer, counts=fewer._counted())

    def _counted(self) -> np.ndarray:
        counts = np.zeros(sum(self.cardinalities), np.int64)
        for start in range(0, self.rows("train"), SCAN):
            ids = self.ids[self.taken("train", start, start + SCAN)]
            for first, column in zip(self.offsets, ids.T, strict=True):
                found = np.bincount(column)
                counts[first : first + len(found)] += found
        return counts

    def split(self, name: str) -> slice:
        """Rows of `train`, `validation` or `test`, those that are left out among them."""
        return slice(*self.meta["splits"][name])

    def rows(self, split: str) -> int:
        """Number of rows of a split that are used."""
        rows = self.split(split)
        return self.train_rows if self.train_rows and split == "train" else rows.stop - rows.start

    def taken(self, split: str, start: int = 0, stop: int | None = None) -> slice | np.ndarray:
        """Return where the used rows of a split lie, the `start`-th to before the `stop`-th: an index of arrays."""
        whole, count = self.split(split), self.rows(split)
        stop = count if stop is None else min(stop, count)
        if count == whole.stop - whole.start:
            return slice(whole.start + start, whole.start + stop)
        return whole.start + np.arange(start, stop, dtype=np.int64) * (whole.stop - whole.start) // count

    @property
    def offsets(self) -> np.ndarray:
        """Where each feature starts in `counts`, int64 [F]."""
        return np.cumsum([0, *self.cardinalities[:-1]])

    def summary(self) -> dict[str, Any]:
        """What a record says of the data: name, digest, options, cardinalities and all rows of each split."""
        kept = {key: self.meta[key] for key in ("name", "digest", "options", "cardinalities")}
        return kept | {"rows": {name: stop - start for name, (start, stop) in self.meta["splits"].items()}}

    def feature_counts(self) -> list[np.ndarray]:
        """Occurrences of each id in training rows, one array a feature."""
        return np.split(self.counts, np.cumsum(self.cardinalities)[:-1])

    def describe(self) -> pd.DataFrame:
        """One row a feature: cardinality and, where ids were counted, how its training rows concentrate.

        Shares lie in [0, 1]: of training rows with the most frequent id, of training rows with the most
        frequent hundredth of the ids, and of test rows whose id no training row has.
        """
        table = pd.DataFrame({"feature": self.feature_names, "cardinality": self.cardinalities})
        if self.counts is None:
            return table
        table["top_id_share"] = [_top_share(counts, 1) for counts in self.feature_counts()]
        table["top_percent_share"] = [_top_share(c, -(-len(c) // 100)) for c in self.feature_counts()]
        table["unseen_in_test"] = self._unseen_shares
        return table

    @cached_property
    def _unseen_shares(self) -> np.ndarray:
        test = self.split("test")
        unseen = np.zeros(len(self.offsets), np.int64)
        for start in range(test.start, test.stop, SCAN):
            ids = self.ids[start : min(start + SCAN, test.stop)]
            unseen += (self.counts[ids + self.offsets] == 0).sum(axis=0)
        return unseen / max(1, self.rows("test"))

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int | None = None,
        limit: int | None = None,
        skip: int = 0,
        device: str = "cpu",
    ) -> Iterator[Batch]:
        """Yield every row of a split once; only the last batch may be smaller than `batch_size`.

        Without a seed rows come in order. With one, blocks of a few thousand neighbouring rows are drawn at
        random into windows of about a million rows, which are then permuted: the same seed gives the same order,
        and memory holds two windows (330 MB in Criteo's shape) and a few batches, whatever the size of the dataset.
        What comes next is read in threads while the caller works; for a GPU it is pinned, and copied without waiting.

        Args:
            limit: take only the first rows of the split.
            skip: leave out that many batches, without reading them: to go on in the middle.
        """
        count = self.rows(split) if limit is None else min(limit, self.rows(split))
        if seed is None:
            arrays = self._ordered(split, count, batch_size, skip * batch_size)
        else:
            windows = self._windows(split, count, batch_size, np.random.default_rng(seed), skip * batch_size)
            arrays = _permuted(windows, batch_size)
        yield from ahead((_batch(device, *found) for found in arrays), 2)

    def _ordered(self, split: str, count: int, batch_size: int, skip: int) -> Iterator[list[np.ndarray]]:
        for first in range(skip, count, batch_size):
            rows = self.taken(split, first, min(first + batch_size, count))
            yield [np.array(array[rows]) for array in (self.dense, self.ids, self.labels)]

    def _windows(
        self, split: str, count: int, batch_size: int, generator: np.random.Generator, skip: int
    ) -> Iterator[Window]:
        """Read blocks drawn at random, many together; the first `skip` rows of the whole order are left out."""
        block = batch_size * -(-BLOCK // batch_size)
        starts = np.arange(0, count, block)
        generator.shuffle(starts[: count // block])  # a smaller block at the end stays there
        together = max(1, BUFFER // block)
        for first in range(0, len(starts), together):
            spans = [(s, min(s + block, count)) for s in starts[first : first + together].tolist()]
            order = generator.permutation(sum(stop - start for start, stop in spans))
            order, skip = order[skip:], max(0, skip - len(order))
            if len(order):
                blocks, arrays = [self.taken(split, *span) for span in spans], (self.dense, self.ids, self.labels)
                yield Window([np.concatenate([array[rows] for rows in blocks]) for array in arrays], order)


def _permuted(windows: Iterator[Window], batch_size: int) -> Iterator[list[np.ndarray]]:
    for arrays, order in ahead(windows, 1):
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            yield [array.take(rows, axis=0) for array in arrays]


def _batch(device: str, dense: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Batch:
    tensors = [torch.from_numpy(array) for array in (dense, ids, labels.astype(np.float32))]
    if torch.device(device).type == "cuda":
        tensors = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    return Batch(*tensors)


def _top_share(counts: np.ndarray, ids: int) -> float:
    return float(np.partition(counts, -ids)[-ids:].sum() / max(1, counts.sum()))
