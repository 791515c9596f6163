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
    """What a row is, and which part of the data it belongs to.

    * `split`: 8:1:1 `random`, or by `time`, the earliest ratings first; `last` keeps the last two ratings of every
      person for validation and the one before them for test, a person's ratings of the same second in the order of
      the file.
    * `features`: `all` that is known, or the ids of `user and movie` alone.
    * `neutral`: a rating of 3 is a `negative`, or `dropped`.
    * `sampled_negatives`: adds to every row one of the same person and part, with another row's film and label 0: the
      films of all rows, permuted.
    """

    split: Literal["random", "time", "last"] = "random"
    vocabulary: Vocabulary = "all"
    split_seed: int = 0
    features: Literal["all", "user and movie"] = "all"
    neutral: Literal["negative", "dropped"] = "negative"
    sampled_negatives: bool = False

    def __post_init__(self):
        """Refuse to sample negatives for films whose genres and year would be the other film's."""
        if self.sampled_negatives and (self.split != "last" or self.features == "all"):
            raise ValueError("option 'sampled_negatives' needs split: last and features: user and movie")


def rows(options: Options, inputs: Inputs) -> Rows:
    """Join ratings, films and people, in the order of the ratings; the label is a rating of 4 or 5."""
    with zipfile.ZipFile(inputs.file) as archive:
        ratings = _read(archive, "ratings.dat", ["user", "movie", "rating", "time"])
        movies = _read(archive, "movies.dat", ["movie", "title", "genres"])
        users = _read(archive, "users.dat", ["user", "gender", "age", "occupation", "zip"])
    rating = pl.col("rating").cast(pl.UInt8)
    ratings = ratings.with_columns(pl.col("time").cast(pl.Int64), label=rating >= 4)
    if options.neutral == "dropped":
        ratings = ratings.filter(rating != 3)
    ratings = ratings.with_columns(split=_last())
    if options.sampled_negatives:
        films = pl.col("movie").shuffle(options.split_seed)
        ratings = pl.concat([ratings, ratings.with_columns(films, label=pl.lit(False))])
    table = ratings.join(movies, on="movie", how="left", maintain_order="left")
    table = table.join(users, on="user", how="left", maintain_order="left")
    splits = {"random": "random", "time": "time:time", "last": pl.col("split")}
    return encode(
        table.with_columns(pl.col("title").str.extract(r"\((\d{4})\)$").alias("year")).lazy(),
        label=pl.col("label"),
        categorical=FEATURES if options.features == "all" else FEATURES[:2],
        vocabulary=options.vocabulary,
        split=splits[options.split],
        split_seed=options.split_seed,
        progress=inputs.progress,
    )


def _last() -> pl.Expr:
    """Return 1 (validation) for the last two ratings of a person, 2 (test) for the one before them, else 0."""
    later = pl.len().over("user") - pl.col("time").rank("ordinal").over("user")
    return pl.when(later < 2).then(1).when(later == 2).then(2).otherwise(0)


def _read(archive: zipfile.ZipFile, name: str, columns: list[str]) -> pl.DataFrame:
    """Read a latin-1 file with the separator `::` as strings."""
    text = archive.read(f"ml-1m/{name}").decode("latin-1").replace("::", "\t")
    return pl.read_csv(
        text.encode(), separator="\t", quote_char=None, has_header=False, new_columns=columns, infer_schema=False
    )
