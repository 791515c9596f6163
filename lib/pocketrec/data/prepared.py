"""A prepared folder as memory-mapped arrays, and batches of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

BLOCK = 2**12  # rows read together
BUFFER = 2**20  # rows shuffled together
SCAN = 2**18  # rows looked at together where all are read


class Batch(NamedTuple):
    """dense float32 [B, D], ids int32 or int64 [B, F], labels float32 [B]."""

    dense: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Dataset:
    """Memory-mapped arrays of N rows, which lie in the order train, validation, test.

    labels uint8 [N], dense float32 [N, D] (D may be 0), ids int32 or int64 [N, F]; counts [sum of the
    cardinalities], how often each id occurs in training rows, features one after the other (None where
    there are too many ids); teacher float32 [N], the true probability of a positive label, where it is known.
    """

    name: str
    meta: dict[str, Any]
    labels: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    counts: np.ndarray | None
    teacher: np.ndarray | None

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

    def split(self, name: str) -> slice:
        """Rows of `train`, `validation` or `test`."""
        return slice(*self.meta["splits"][name])

    def rows(self, split: str) -> int:
        """Number of rows of a split."""
        rows = self.split(split)
        return rows.stop - rows.start

    @property
    def offsets(self) -> np.ndarray:
        """Where each feature starts in `counts`, int64 [F]."""
        return np.cumsum([0, *self.cardinalities[:-1]])

    def summary(self) -> dict[str, Any]:
        """What a record says of the data: name, digest, options, cardinalities and rows of each split."""
        kept = {key: self.meta[key] for key in ("name", "digest", "options", "cardinalities")}
        return kept | {"rows": {name: self.rows(name) for name in ("train", "validation", "test")}}

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
        device: str = "cpu",
    ) -> Iterator[Batch]:
        """Yield every row of a split once; only the last batch may be smaller than `batch_size`.

        Without a seed rows come in order. With one, blocks of a few thousand neighbouring rows are drawn at
        random into a buffer of about a million rows, which is then permuted: memory stays bounded, and the
        same seed gives the same order. `limit` takes only the first rows of the split.
        """
        rows = self.split(split)
        stop = rows.stop if limit is None else min(rows.stop, rows.start + limit)
        buffers = self._ordered(rows.start, stop, batch_size)
        if seed is not None:
            buffers = self._shuffled(rows.start, stop, batch_size, np.random.default_rng(seed))
        for dense, ids, labels in buffers:
            arrays = dense, ids, labels.astype(np.float32)
            yield Batch(*(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays))

    def _ordered(self, start: int, stop: int, batch_size: int) -> Iterator[list[np.ndarray]]:
        for first in range(start, stop, batch_size):
            rows = slice(first, min(first + batch_size, stop))
            yield [np.array(array[rows]) for array in (self.dense, self.ids, self.labels)]

    def _shuffled(
        self, start: int, stop: int, batch_size: int, generator: np.random.Generator
    ) -> Iterator[list[np.ndarray]]:
        block = batch_size * -(-BLOCK // batch_size)
        starts = np.arange(start, stop, block)
        generator.shuffle(starts[: (stop - start) // block])  # a smaller block at the end stays there
        together = max(1, BUFFER // block)
        for first in range(0, len(starts), together):
            blocks = [slice(s, min(s + block, stop)) for s in starts[first : first + together]]
            arrays = self.dense, self.ids, self.labels
            buffer = [np.concatenate([array[rows] for rows in blocks]) for array in arrays]
            order = generator.permutation(len(buffer[0]))
            for begin in range(0, len(order), batch_size):
                rows = order[begin : begin + batch_size]
                yield [array.take(rows, axis=0) for array in buffer]


def _top_share(counts: np.ndarray, ids: int) -> float:
    return float(np.partition(counts, -ids)[-ids:].sum() / max(1, counts.sum()))
