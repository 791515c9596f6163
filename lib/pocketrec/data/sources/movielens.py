"""MovieLens 1M (Harper and Konstan, TiiS 2015): 1,000,209 ratings of 3,706 films by 6,040 people."""

import zipfile
from dataclasses import dataclass
from typing import Literal

import polars as pl

from pocketrec.data.columns import Vocabulary, encode
from pocketrec.data.rows import Inputs, Rows

FEATURES = ["user", "movie", "gender", "age", "occupation", "zip", "genres", "year"]


@dataclass(frozen=True)
class Options:
    """`split`: 8:1:1 `random`, or by `time`, the earliest ratings first."""

    split: Literal["random", "time"] = "random"
    vocabulary: Vocabulary = "all"
    split_seed: int = 0


def rows(options: Options, inputs: Inputs) -> Rows:
    """Join ratings, films and people, in the order of the ratings; the label is a rating of 4 or 5."""
    with zipfile.ZipFile(inputs.file) as archive:
        ratings = _read(archive, "ratings.dat", ["user", "movie", "rating", "time"])
        movies = _read(archive, "movies.dat", ["movie", "title", "genres"])
        users = _read(archive, "users.dat", ["user", "gender", "age", "occupation", "zip"])
    table = ratings.join(movies, on="movie", how="left", maintain_order="left")
    table = table.join(users, on="user", how="left", maintain_order="left")
    year = pl.col("title").str.extract(r"\((\d{4})\)$")
    return encode(
        table.with_columns(pl.col("time").cast(pl.Int64), year.alias("year")).lazy(),
        label=pl.col("rating").cast(pl.UInt8) >= 4,
        categorical=FEATURES,
        vocabulary=options.vocabulary,
        split="time:time" if options.split == "time" else "random",
        split_seed=options.split_seed,
        progress=inputs.progress,
    )


def _read(archive: zipfile.ZipFile, name: str, columns: list[str]) -> pl.DataFrame:
    """Read a latin-1 file with the separator `::` as strings."""
    text = archive.read(f"ml-1m/{name}").decode("latin-1").replace("::", "\t")
    return pl.read_csv(
        text.encode(), separator="\t", quote_char=None, has_header=False, new_columns=columns, infer_schema=False
    )
