"""Raw files in the original format of Criteo and Avazu, drawn from the planted teacher at any size.

Features have given cardinalities. An id is written as the hexadecimal digits of a multiple of it that is one to one
modulo 2**32, or as a plain integer; Criteo's id 0 is a missing field. Dense values are the teacher's, after an
exponential and rounded: most are small, some negative, and the lowest are missing.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from tqdm import tqdm

from pocketrec.data.sources import avazu, criteo, planted
from pocketrec.data.text import Format
from pocketrec.errors import unknown
from pocketrec.files import atomic

FORMATS = {"criteo-kaggle": criteo.FORMAT, "criteo-tb": criteo.FORMAT, "avazu": avazu.FORMAT}
FILES = {"criteo-kaggle": ["train.txt"], "criteo-tb": [f"day_{day}" for day in range(24)], "avazu": ["train.csv"]}
BLOCK = 2 * planted.BLOCK  # rows of one task
WORKERS = 2
ODD = 2_654_435_761
DIGITS = np.array([f"{value:04x}".encode() for value in range(2**16)]).view(np.uint32)


@dataclass(frozen=True)
class Options(planted.Options):
    """The planted teacher over tables of these sizes."""

    sizes: tuple[int, ...] = ()

    @property
    def cardinalities(self) -> list[int]:
        """The sizes."""
        return list(self.sizes)


def write(
    name: str, folder: Path, cardinalities: Sequence[int], rows: int, *, seed: int = 0, progress: bool = True
) -> list[Path]:
    """Write `rows` rows into files named as the original ones; the same seed gives the same bytes."""
    if name not in FORMATS:
        raise unknown("raw format", name, FORMATS, "synth")
    form, files = FORMATS[name], FILES[name]
    dense_share = planted.Options.dense_share if form == criteo.FORMAT else 0.0
    teacher = planted.Teacher(Options(rows=rows, seed=seed, sizes=tuple(cardinalities), dense_share=dense_share))
    _ = teacher.calibration  # before threads ask for it
    edges = [rows * number // len(files) for number in range(len(files) + 1)]
    with tqdm(total=rows, unit="row", unit_scale=True, desc="synth", disable=not progress) as bar:
        for file, first, last in zip(files, edges, edges[1:], strict=False):
            with atomic(folder / file) as target:
                target.write(form.header + b"\n" if form.has_header else b"")
                for text, written in _texts(teacher, form, first, last):
                    target.write(text)
                    bar.update(written)
    return [folder / file for file in files]


def _texts(teacher: planted.Teacher, form: Format, first: int, last: int) -> Iterator[tuple[bytes, int]]:
    """Yield the text of rows in order; memory holds a few blocks of them."""
    pending: deque[Future] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(first, last, BLOCK):
            pending.append(pool.submit(_text, teacher, form, start, min(start + BLOCK, last)))
            if len(pending) > WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _text(teacher: planted.Teacher, form: Format, start: int, stop: int) -> tuple[bytes, int]:
    block = teacher.rows(start, stop)
    dense, ids = iter(block.dense.T), iter(block.ids.T)
    columns = {}
    for name, kind in form.columns.items():
        if kind == "ignored":
            columns[name] = pl.arange(start, stop, eager=True)
        elif kind == "label":
            columns[name] = block.labels
        elif kind == "hex":
            columns[name] = _hexadecimal(next(ids), missing=form == criteo.FORMAT)
        elif form == criteo.FORMAT:
            columns[name] = _integers(next(dense))
        else:
            columns[name] = _hour(next(ids)) if name == "hour" else next(ids)
    text = pl.DataFrame(columns).write_csv(separator=form.separator, include_header=False, quote_style="never")
    return text.encode(), stop - start


def _hexadecimal(ids: np.ndarray, *, missing: bool) -> pl.Series:
    """Write each id with eight digits, and 0 as missing."""
    values = (ids * ODD % 2**32).astype(np.uint32)
    digits = np.stack([DIGITS[values >> 16], DIGITS[values & 0xFFFF]], axis=1)
    offsets = np.arange(0, 8 * len(ids) + 8, 8, dtype=np.int32)
    text = pl.from_arrow(pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(digits)))
    return text.set(pl.Series(ids == 0), None) if missing else text


def _integers(dense: np.ndarray) -> pl.Series:
    values = np.floor(np.exp(1.5 * dense + 1)).astype(np.int64) - 2
    return pl.Series(values).set(pl.Series(dense < -1.5), None)


def _hour(ids: np.ndarray) -> np.ndarray:
    """Return hours as YYMMDDHH, from 21 October 2014 on."""
    return 14_102_100 + ids // 24 * 100 + ids % 24
