"""What every source yields, and the one writer that turns it into a prepared folder."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pocketrec.data.ahead import ahead
from pocketrec.files import write_json

SPLITS = ("train", "validation", "test")
MAX_COUNTS = 2**28  # ids whose counts still fit in a gigabyte


class Block(NamedTuple):
    """Consecutive rows of a source.

    labels uint8 [B], dense float32 [B, D], ids integer [B, F], split uint8 [B] (0 train, 1 validation,
    2 test), teacher float32 [B] or None.
    """

    labels: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    split: np.ndarray
    teacher: np.ndarray | None = None


class Inputs(NamedTuple):
    """What a source works with: the pinned raw file or the user's raw files, if any, a folder for what it needs
    meanwhile, and whether to show progress.
    """

    file: Path | None
    scratch: Path
    progress: bool
    files: list[Path] = []


@dataclass
class Rows:
    """A dataset about to be written: its shape, known before the first row, and the stream of its rows.

    `distinct` is how many values each feature has in all rows, a missing one included, where that was counted;
    `counts` how often each id of a feature occurs in training rows, integers [cardinality] a feature, where that was.
    """

    cardinalities: dict[str, int]
    dense_names: list[str]
    split_rows: list[int]
    blocks: Iterator[Block]
    distinct: dict[str, int] = field(default_factory=dict)
    counts: list[np.ndarray] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


def id_dtype(cardinalities: Iterable[int]) -> type:
    """Return the integers that hold the ids of all features."""
    return np.int32 if max(cardinalities, default=0) < 2**31 else np.int64


def count_dtype(rows: int) -> type:
    """Return the integers that hold the occurrences of an id in that many rows."""
    return np.int32 if rows < 2**31 else np.int64


def mix(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 values in place: the finaliser of splitmix64 (Steele et al., OOPSLA 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


def random_split(rows: np.ndarray, seed: int) -> np.ndarray:
    """Split row numbers 8:1:1 by a hash of number and seed: 0 train, 1 validation, 2 test; uint8 [rows]."""
    tenth = _hashed(rows, seed) % np.uint64(10)
    return (tenth >= 8).astype(np.uint8) + (tenth == 9)


def uniform(rows: np.ndarray, seed: int) -> np.ndarray:
    """Hash row numbers and seed to float64 in [0, 1)."""
    return (_hashed(rows, seed) >> np.uint64(11)) * 2.0**-53


def _hashed(rows: np.ndarray, seed: int) -> np.ndarray:
    key = mix(np.array([seed % 2**64], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return mix(mix(rows.astype(np.uint64)) ^ key)


def write(folder: Path, rows: Rows, meta: dict[str, Any]) -> None:
    """Write arrays and `meta.json` into `folder`, a block of rows at a time.

    Memory holds two blocks and the counts of the ids (4 or 8 bytes an id, none above `MAX_COUNTS` ids).
    """
    counts = _Counts(rows)
    positives = np.zeros(3, np.int64)
    with ExitStack() as files:
        columns: dict[str, _Column] = {}
        for block in ahead(rows.blocks, 1):
            counts.add(block)
            positives += np.bincount(block.split, weights=block.labels, minlength=3).astype(np.int64)
            for name, array in _arrays(block, counts.id_dtype):
                if name not in columns:
                    columns[name] = _Column(folder / f"{name}.npy", array, rows.split_rows, files)
                columns[name].append(array, block.split)
    if counts.values is not None:
        np.save(folder / "counts.npy", counts.values)
    write_json(folder / "meta.json", meta | _shape(rows, positives) | {"counts": counts.values is not None})


def _arrays(block: Block, id_dtype: type) -> Iterator[tuple[str, np.ndarray]]:
    yield "labels", block.labels.astype(np.uint8, copy=False)
    yield "dense", block.dense.astype(np.float32, copy=False)
    yield "ids", block.ids.astype(id_dtype, copy=False)
    if block.teacher is not None:
        yield "teacher", block.teacher.astype(np.float32, copy=False)


def _shape(rows: Rows, positives: np.ndarray) -> dict[str, Any]:
    edges = np.cumsum([0, *rows.split_rows]).tolist()
    return {
        "feature_names": list(rows.cardinalities),
        "dense_names": rows.dense_names,
        "cardinalities": list(rows.cardinalities.values()),
        "rows": edges[-1],
        "splits": {name: edges[i : i + 2] for i, name in enumerate(SPLITS)},
        "positives": dict(zip(SPLITS, positives.tolist(), strict=True)),
        "notes": rows.notes,
    }


class _Column:
    """One .npy file, filled at three places at once: a cursor for each split."""

    def __init__(self, path: Path, sample: np.ndarray, split_rows: list[int], files: ExitStack):
        shape = (sum(split_rows), *sample.shape[1:])
        header = {"descr": sample.dtype.str, "fortran_order": False, "shape": shape}
        with path.open("wb") as file:
            np.lib.format.write_array_header_2_0(file, header)
            start = file.tell()
        width = sample.dtype.itemsize * int(np.prod(sample.shape[1:]))
        self.cursors: list[BinaryIO] = []
        for first in np.cumsum([0, *split_rows[:2]]).tolist():
            cursor = files.enter_context(path.open("r+b"))
            cursor.seek(start + first * width)
            self.cursors.append(cursor)

    def append(self, array: np.ndarray, split: np.ndarray) -> None:
        for code in np.flatnonzero(np.bincount(split)):
            chosen = split == code
            part = array if chosen.all() else array[chosen]
            self.cursors[code].write(np.ascontiguousarray(part).data)


class _Counts:
    """Occurrences of every id in training rows, and the check that no id is out of range."""

    def __init__(self, rows: Rows):
        self.cardinalities = np.array(list(rows.cardinalities.values()), np.int64)
        self.starts = np.cumsum(self.cardinalities) - self.cardinalities
        self.id_dtype = id_dtype(rows.cardinalities.values())
        total = int(self.cardinalities.sum())
        self.known = sum(map(len, rows.counts)) == total
        self.values = None
        if total <= MAX_COUNTS:
            kind = count_dtype(rows.split_rows[0])
            self.values = np.concatenate(rows.counts, dtype=kind) if self.known else np.zeros(total, kind)

    def add(self, block: Block) -> None:
        if not len(block.ids):
            return
        low, high = block.ids.min(axis=0), block.ids.max(axis=0)
        if (low < 0).any() or (high >= self.cardinalities).any():
            raise IndexError(f"ids out of range: {low} to {high} for cardinalities {self.cardinalities}")
        if self.values is not None and not self.known:
            train = block.split == 0
            places = self.starts + (block.ids if train.all() else block.ids[train])
            np.add.at(self.values, places.ravel(), self.values.dtype.type(1))  # any other 1 is fifty times slower
