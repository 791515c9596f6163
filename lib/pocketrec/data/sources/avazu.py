"""Avazu's click-through-rate challenge in its original format: 40,428,967 rows of ten days, 22 features.

A row is a number, the label, the hour as YYMMDDHH, and 21 categorical values: integers, or 8 hexadecimal digits.
All 22 columns from the hour on are features, and none is dense (Hetu and CAFE); or the hour of the day is (MLET). The
papers' split holds out the last 4,218,938 rows, the last day; their first half is the test set here, the second the
validation set.
"""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from pocketrec.data import text
from pocketrec.data.columns import Vocabulary, encode, held_out
from pocketrec.data.rows import Inputs, Rows

HEXADECIMAL = [
    "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
    "device_id", "device_ip", "device_model",
]  # fmt: skip
FEATURES = [
    "hour", "C1", "banner_pos", *HEXADECIMAL, "device_type", "device_conn_type",
    *(f"C{i}" for i in range(14, 22)),
]  # fmt: skip
FORMAT = text.Format(
    ",",
    {"id": "ignored", "click": "label"} | {name: "hex" if name in HEXADECIMAL else "integer" for name in FEATURES},
    has_header=True,
)
ROWS, LAST_DAY = 40_428_967, 4_218_938


@dataclass(frozen=True)
class Options:
    """The papers' choices; where each comes from stands in the dataset's YAML file.

    `hour`: one of the 22 features, or `dense`: its hour of the day as the only number, ln(1 + hour), and 21 features;
    `malformed_share`: lines that do not have the format are left out and reported, up to this share of them.
    """

    split: Literal["position", "random"] = "position"
    split_seed: int = 0
    hour: Literal["feature", "dense"] = "feature"
    min_count: int = 1
    vocabulary: Vocabulary = "train"
    malformed_share: float = 1e-4

    def __post_init__(self):
        """Refuse what has no meaning."""
        if self.min_count < 1 or not 0 <= self.malformed_share < 1:
            raise ValueError("option 'min_count' must be at least 1, and 'malformed_share' at least 0 and below 1")


def rows(options: Options, inputs: Inputs) -> Rows:
    """Parse the files into Parquet, and encode that."""
    table = text.to_parquet(
        inputs.files, "train.csv", FORMAT, inputs.scratch,
        malformed_share=options.malformed_share, progress=inputs.progress,
    )  # fmt: skip
    total = sum(table.lines)
    encoded = encode(
        table.scan(),
        label=pl.col("click"),
        categorical=FEATURES if options.hour == "feature" else FEATURES[1:],
        dense={} if options.hour == "feature" else {"hour": pl.col("hour") % 100},
        transform="log1p",
        split=held_out(total, total * LAST_DAY // ROWS) if options.split == "position" else "random",
        split_seed=options.split_seed,
        vocabulary=options.vocabulary,
        min_count=options.min_count,
        where=inputs.files[0],
        progress=inputs.progress,
    )
    encoded.notes |= table.notes()
    return encoded
