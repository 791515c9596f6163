"""A table of the user's own: CSV or TSV (plain or .gz), or Parquet. A dataset is a file in `params/datasets`:

    title: My clicks
    source: table
    options:
      path: data/clicks.csv.gz       # relative to the folder that holds params/
      label: clicked                 # 0 or 1
      categorical: [user, item, city]
      dense: [price, age]            # optional
      split: time:when               # numbers or ISO dates; or random (the default), or position; 8:1:1
      separator: ";"                 # CSV only; the default is a comma, or a tab for .tsv
      quotes: false                  # CSV only; whether fields may stand in double quotes: by default not between tabs
      min_count: 2                   # rarer values share id 0 with missing and unseen ones; default 1
      transform: log1p               # of dense columns; or standardise (the default), or none
      vocabulary: train              # ids of values in training rows (the default), or of all rows
      split_seed: 0                  # of a random split
    recipe: {dim: 16, bottom_mlp: [64], top_mlp: [256, 128], batch_size: 1024, epochs: 1}

An empty field, quoted or not, is a missing value: id 0 of a categorical column; of a dense one the mean, which is 0
after `standardise`, and 0 with the other transforms. Values are compared as text. A CSV is copied once into a Parquet
file that is removed in the end; memory holds the vocabularies, the time column if there is one, and a few blocks of
rows, whatever the size of the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.exceptions import PolarsError
from pyarrow import csv
from tqdm import tqdm

from pocketrec import paths
from pocketrec.data import identity
from pocketrec.data.columns import Transform, Vocabulary, encode
from pocketrec.data.rows import Inputs, Rows
from pocketrec.errors import UserError, unknown

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
TIME = "__time__"
ISO = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$"
TEXT_BLOCK = 2**24  # bytes of a CSV that are parsed together
SHOWN = 60  # characters of a value that a message quotes


@dataclass(frozen=True)
class Options:
    """The keys shown above."""

    path: str
    label: str
    categorical: list[str]
    dense: list[str] = field(default_factory=list)
    separator: str | None = None
    quotes: bool | None = None
    split: str = "random"
    split_seed: int = 0
    vocabulary: Vocabulary = "train"
    min_count: int = 1
    transform: Transform = "standardise"

    def __post_init__(self):
        """Refuse columns named twice and splits that do not exist."""
        names = [self.label, *self.dense, *self.categorical]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"column {twice!r} is named twice among label, dense and categorical")
        if not self.categorical:
            raise ValueError("option 'categorical' names no column")
        if self.split not in ("random", "position") and not self.split.startswith("time:"):
            raise ValueError(f"option 'split' is {self.split!r}; known: random, position, time:<column>")
        if self.min_count < 1:
            raise ValueError(f"option 'min_count' is {self.min_count}; it must be at least 1")
        if self.separator is not None and len(self.separator.encode()) != 1:
            raise ValueError(f"option 'separator' is {self.separator!r}; it must be one character")

    @property
    def file(self) -> Path:
        """The table's absolute path."""
        return (paths.ROOT / Path(self.path).expanduser()).absolute()

    @property
    def is_parquet(self) -> bool:
        """Whether the file's name says Parquet."""
        return self.file.suffix.lower() in (".parquet", ".pq")

    @property
    def time(self) -> list[str]:
        """The column of the split, if there is one."""
        return [self.split.removeprefix("time:")] if self.split.startswith("time:") else []


def fingerprint(options: Options) -> str:
    """Hash of the file's content."""
    try:
        return identity.content(options.file)
    except UserError as error:
        raise UserError(f"{error}; set option 'path' to your table") from None


def rows(options: Options, inputs: Inputs) -> Rows:
    """Check the columns and encode the table, block by block.

    Raises `UserError` for a file that cannot be read, columns that are not there, labels other than 0 and 1,
    and dense values that are no numbers, with the first such row.
    """
    try:
        return _rows(options, inputs)
    except (PolarsError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        if reason == "Empty CSV file":
            raise UserError(f"{options.file}: the file is empty") from None
        if "straddl" in reason or "chunker" in reason:  # a field as long as a block
            reason += "; is a quote never closed? Option `quotes: false` takes quotes as text"
        if "utf" in reason.lower():
            reason += "; save it as UTF-8"
        raise UserError(f"{options.file}: cannot be read: {reason}") from None


def _rows(options: Options, inputs: Inputs) -> Rows:
    columns = [options.label, *options.dense, *options.categorical, *_more(options)]
    if options.is_parquet:
        table = pl.scan_parquet(options.file)
        _check_columns(options, table.collect_schema().names())
        table = table.select(columns).with_columns(pl.col(pl.String).replace("", None))
    else:
        with _open_csv(options) as reader:
            _check_columns(options, reader.schema.names)
        table = _to_parquet(options, columns, inputs)
    label = _number(options.label)
    _check_values(options, table, options.label, label.is_in([0.0, 1.0]), "labels must be 0 or 1")
    for name in options.dense:
        number = _number(name).cast(pl.Float32)
        fine = pl.col(name).is_null() | number.is_finite() | number.is_nan()
        _check_values(options, table, name, fine, "dense values must be finite numbers below 3e38, or empty")
    if options.time:
        table = table.with_columns(_time(options, table, *options.time).alias(TIME))
    return encode(
        table.with_columns(pl.col(options.categorical).cast(pl.String)),
        label=label,
        categorical=options.categorical,
        dense={name: _number(name).fill_nan(None) for name in options.dense},
        transform=options.transform,
        split=f"time:{TIME}" if options.time else options.split,
        split_seed=options.split_seed,
        vocabulary=options.vocabulary,
        min_count=options.min_count,
        where=options.file,
        progress=inputs.progress,
    )


def _more(options: Options) -> list[str]:
    return [name for name in options.time if name not in (options.label, *options.dense, *options.categorical)]


def _number(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Float64, strict=False)


def _time(options: Options, table: pl.LazyFrame, name: str) -> pl.Expr:
    """Return what orders the rows: text is compared as numbers where all of it is, else as ISO dates."""
    there = pl.col(name).is_not_null() & _number(name).is_nan().fill_null(False).not_()
    _check_values(options, table, name, there, "every row needs its time")
    if table.collect_schema()[name] != pl.String:
        return pl.col(name)
    if table.select(_number(name).is_not_null().all()).collect(engine="streaming").item():
        return _number(name)
    rule = "times must all be numbers, or all dates like 2024-12-31 or 2024-12-31 09:30:00"
    _check_values(options, table, name, pl.col(name).str.contains(ISO), rule)
    return pl.col(name)


def _open_csv(options: Options, columns: Sequence[str] = ()) -> csv.CSVStreamingReader:
    """Open a CSV to be read block by block, as text; one of its lines with another number of fields is an error."""
    quotes = _quotes(options)
    return csv.open_csv(
        options.file,
        csv.ReadOptions(block_size=TEXT_BLOCK),
        csv.ParseOptions(delimiter=_separator(options), quote_char=quotes and '"', newlines_in_values=quotes),
        csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _separator(options: Options) -> str:
    return options.separator or ("\t" if ".tsv" in options.file.suffixes else ",")


def _quotes(options: Options) -> bool:
    return _separator(options) != "\t" if options.quotes is None else options.quotes


def _check_columns(options: Options, found: list[str]) -> None:
    if len(found) == 1 and not options.is_parquet:
        seen = [f"{SEPARATORS[sign]} ({sign!r})" for sign in SEPARATORS if sign in found[0]]
        raise UserError(
            f"{options.file}: only one column with the separator {_separator(options)!r}; the first line has "
            f"{' and '.join(seen) or 'none of ' + ', '.join(SEPARATORS.values())}: set option 'separator'"
        )
    for name in (options.label, *options.dense, *options.categorical, *options.time):
        if name not in found:
            raise unknown("column", name, found, options.file)
        if found.count(name) > 1:
            raise UserError(f"{options.file}: {found.count(name)} columns are called {name!r}")


def _check_values(options: Options, table: pl.LazyFrame, name: str, fine: pl.Expr, rule: str) -> None:
    """Find the first row whose value breaks the rule; rows count from 1, the header aside."""
    wrong = table.select(pl.col(name)).with_row_index("#", offset=1).filter(~fine.fill_null(False)).head(1)
    for row, value in wrong.collect(engine="streaming").iter_rows():
        shown = "empty" if value is None else repr(value)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
        raise UserError(f"{options.file}: row {row}: column {name!r} is {shown}; {rule}")


def _to_parquet(options: Options, columns: list[str], inputs: Inputs) -> pl.LazyFrame:
    """Copy the columns needed of a CSV; a quote that was not meant as one has lines in it that are rows."""
    path = inputs.scratch / "table.parquet"
    with (
        _open_csv(options, columns) as reader,
        pq.ParquetWriter(path, reader.schema) as writer,
        tqdm(unit="row", unit_scale=True, desc="read", disable=not inputs.progress) as bar,
    ):
        for batch in reader:
            writer.write_batch(batch)
            bar.update(batch.num_rows)
    table = pl.scan_parquet(path)
    if _quotes(options):
        for name in columns:
            swallowed = pl.col(name).str.contains("\n") & pl.col(name).str.contains(_separator(options), literal=True)
            rule = "it holds a line break and a separator; where quotes are plain text, set option `quotes: false`"
            _check_values(options, table, name, ~swallowed.fill_null(False), rule)
    return table
