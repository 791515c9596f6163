"""From a table with named columns to ids: vocabularies first, then blocks of rows, both streamed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl
from tqdm import tqdm

from pocketrec.data.rows import Block, Rows, random_split
from pocketrec.errors import UserError

BLOCK = 2**18
ROW = "__row__"

Vocabulary = Literal["all", "train"]
Transform = Literal["standardise", "log1p", "none"]


def encode(
    table: pl.LazyFrame,
    *,
    label: pl.Expr,
    categorical: Sequence[str],
    dense: Mapping[str, pl.Expr] | None = None,
    transform: Transform = "standardise",
    split: str | pl.Expr = "random",
    split_seed: int = 0,
    vocabulary: Vocabulary = "train",
    min_count: int = 1,
    where: object = "table",
    progress: bool = False,
) -> Rows:
    """Split the rows 8:1:1 and give every categorical column contiguous ids.

    * `label` is 0 or 1, `dense` are floats with nulls where missing, `categorical` columns become strings.
    * `split` is `random` (a hash of row number and `split_seed`), `position`, or `time:<column>`, where the
      latest tenth is the test set, and rows of the same time stay together; or an expression that is 0 for a
      training row, 1 for validation and 2 for test.
    * The ids of a column are the places of its values in sorted order, from 1 on, so they do not tell how
      frequent a value is. Id 0 stands for a missing value and for one outside the vocabulary, which holds
      the values of training rows (`train`) or of all rows (`all`) that occur there `min_count` times.
    * `standardise` brings dense columns to mean 0 and variance 1 on training rows, `log1p` takes
      log(1 + max(x, 0)); a missing value is then 0.

    Memory holds the vocabularies, the time column if there is one, and a few blocks of rows. Raises
    `UserError`, which names `where`, when there are no training rows or they are all of one class.
    """
    dense = dense or {}
    features = [f"feature{i}" for i in range(len(categorical))]
    numbers = [f"dense{i}" for i in range(len(dense))]
    table = table.with_row_index(ROW)
    table = table.select(
        label.cast(pl.UInt8).alias("label"),
        _split(table, split, split_seed).alias("split"),
        *[value.cast(pl.Float64).alias(new) for new, value in zip(numbers, dense.values(), strict=True)],
        *[pl.col(name).cast(pl.String).alias(new) for new, name in zip(features, categorical, strict=True)],
    )
    split_rows = _split_rows(table, where)
    seen = table if vocabulary == "all" else table.filter(pl.col("split") == 0)
    values = [_values(seen, name, min_count) for name in features]
    numeric = _transformed(table, numbers, transform)
    return Rows(
        cardinalities={name: len(known) + 1 for name, known in zip(categorical, values, strict=True)},
        dense_names=list(dense),
        split_rows=split_rows,
        blocks=_blocks(table.with_columns(numeric), values, numbers, sum(split_rows), progress),
        notes={"vocabulary": vocabulary, "id 0": "missing, or not in the vocabulary"},
    )


def _split(table: pl.LazyFrame, split: str | pl.Expr, seed: int) -> pl.Expr:
    """Return the expression for 0 (train), 1 (validation) or 2 (test)."""
    if isinstance(split, pl.Expr):
        return split.cast(pl.UInt8)
    if split == "random":
        return pl.col(ROW).map_batches(
            lambda rows: pl.Series(random_split(rows.to_numpy(), seed)),
            return_dtype=pl.UInt8,
            is_elementwise=True,
        )
    name = ROW if split == "position" else split.removeprefix("time:")
    ordered = table.select(pl.col(name).sort()).collect(engine="streaming")[name]
    first, second = (ordered[len(ordered) * tenths // 10] if len(ordered) else None for tenths in (8, 9))
    return (pl.col(name) >= first).cast(pl.UInt8) + (pl.col(name) >= second).cast(pl.UInt8)


def _split_rows(table: pl.LazyFrame, where: object) -> list[int]:
    counted = table.group_by("split").agg(pl.len(), pl.col("label").sum().cast(pl.Int64).alias("positives"))
    counts = {code: (rows, positives) for code, rows, positives in counted.collect(engine="streaming").iter_rows()}
    rows, positives = counts.get(0, (0, 0))
    if rows == 0:
        raise UserError(f"{where}: no training rows: too few rows, or a split that gives none to training")
    if positives in (0, rows):
        raise UserError(f"{where}: every training row has the label {int(positives > 0)}; both 0 and 1 must occur")
    for code, name in ((1, "validation"), (2, "test")):
        if code not in counts:
            raise UserError(
                f"{where}: no {name} rows: too few rows, or a split by a time with too few different values; "
                "choose another split"
            )
    return [counts[code][0] for code in range(3)]


def _values(table: pl.LazyFrame, name: str, min_count: int) -> pl.DataFrame:
    """Return the vocabulary of a column, sorted, with ids from 1 on."""
    counted = table.filter(pl.col(name).is_not_null()).group_by(name).len()
    kept = counted.filter(pl.col("len") >= min_count).select(name).sort(name)
    return kept.collect(engine="streaming").with_row_index(f"{name}.id", offset=1)


def _transformed(table: pl.LazyFrame, names: list[str], transform: Transform) -> list[pl.Expr]:
    values = {name: pl.col(name) for name in names}
    if transform == "log1p":
        values = {name: value.clip(lower_bound=0).log1p() for name, value in values.items()}
    elif transform == "standardise" and names:
        train = table.filter(pl.col("split") == 0)
        means = train.select(pl.col(names).mean()).collect(engine="streaming").row(0, named=True)
        spreads = train.select(pl.col(names).std(ddof=0)).collect(engine="streaming").row(0, named=True)
        values = {name: (value - means[name]) / (spreads[name] or 1.0) for name, value in values.items()}
    return [value.fill_null(0).alias(name) for name, value in values.items()]


def _blocks(
    table: pl.LazyFrame, vocabularies: list[pl.DataFrame], numbers: list[str], total: int, progress: bool
) -> Iterator[Block]:
    """Look all ids up in one streamed query, whose order is that of the table."""
    for values in vocabularies:
        table = table.join(values.lazy(), on=values.columns[1], how="left", maintain_order="left")
    ids = [values.columns[0] for values in vocabularies]
    encoded = table.select("label", "split", *numbers, pl.col(ids).fill_null(0))
    with tqdm(total=total, unit="row", unit_scale=True, desc="encode", disable=not progress) as bar:
        for frame in encoded.collect_batches(chunk_size=BLOCK, engine="streaming"):
            labels, split = frame["label"].to_numpy(), frame["split"].to_numpy()
            yield Block(labels, _matrix(frame, numbers, np.float32), _matrix(frame, ids, np.int64), split)
            bar.update(len(frame))


def _matrix(frame: pl.DataFrame, names: list[str], dtype: type) -> np.ndarray:
    matrix = np.empty((len(frame), len(names)), dtype)
    for column, name in enumerate(names):
        matrix[:, column] = frame[name].to_numpy()
    return matrix
