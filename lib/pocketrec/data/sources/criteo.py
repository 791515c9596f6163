"""Criteo's display advertising logs in their original format, which two sets share.

A line is a label, 13 integers and 26 values of 8 hexadecimal digits, separated by tabs; an empty field is missing.

* Criteo-Kaggle: `train.txt`, seven days, 45,840,617 lines. The papers' split is by position: six sevenths for
  training, the first half of the rest for testing, its second half for validation (DLRM, `data_utils.py`).
* Criteo-TB: `day_0` to `day_23`, 4.37 billion lines. The last file, likewise halved, is held out (MLPerf).
"""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from pocketrec.data import text
from pocketrec.data.columns import Transform, Vocabulary, encode, held_out, thinned
from pocketrec.data.rows import Inputs, Rows

DENSE = [f"I{i}" for i in range(1, 14)]
FEATURES = [f"C{i}" for i in range(1, 27)]
FORMAT = text.Format("\t", {"label": "label"} | dict.fromkeys(DENSE, "integer") | dict.fromkeys(FEATURES, "hex"))


@dataclass(frozen=True)
class Options:
    """The papers' choices; where each comes from stands in the datasets' YAML files.

    * `days`: parts of equal size a single file is cut into; of them, or of several files, the last is held out;
    * `id_cap`: categorical values are taken modulo this, which makes ids collide;
    * `drop_negatives`: share of the negative rows left out, from all splits, chosen by a hash of row number
      and `split_seed`;
    * `malformed_share`: lines that do not have the format are left out and reported, up to this share of them.
    """

    split: Literal["position", "random"] = "position"
    split_seed: int = 0
    days: int = 7
    id_cap: int | None = None
    drop_negatives: float = 0.0
    transform: Transform = "log1p"
    min_count: int = 1
    vocabulary: Vocabulary = "train"
    malformed_share: float = 1e-4

    def __post_init__(self):
        """Refuse what has no meaning."""
        if self.id_cap is not None and self.id_cap < 1:
            raise ValueError(f"option 'id_cap' is {self.id_cap}; it must be at least 1, or null for none")
        if not 0 <= self.drop_negatives < 1 or not 0 <= self.malformed_share < 1:
            raise ValueError("options 'drop_negatives' and 'malformed_share' must be at least 0 and below 1")
        if self.min_count < 1 or self.days < 2:
            raise ValueError("option 'min_count' must be at least 1, and 'days' at least 2")


def rows(options: Options, inputs: Inputs) -> Rows:
    """Parse the files into Parquet, and encode that."""
    table = text.to_parquet(
        inputs.files, "train.txt", FORMAT, inputs.scratch,
        malformed_share=options.malformed_share, progress=inputs.progress,
    )  # fmt: skip
    last = table.lines[-1] if len(table.lines) > 1 else sum(table.lines) // options.days
    found = table.scan()
    if options.id_cap is not None:
        found = found.with_columns(pl.col(FEATURES) % options.id_cap)
    encoded = encode(
        found,
        label=pl.col("label"),
        categorical=FEATURES,
        dense={name: pl.col(name) for name in DENSE},
        transform=options.transform,
        split=held_out(sum(table.lines), last) if options.split == "position" else "random",
        split_seed=options.split_seed,
        keep=thinned(pl.col("label"), options.drop_negatives, options.split_seed),
        vocabulary=options.vocabulary,
        min_count=options.min_count,
        where=inputs.files[0],
        progress=inputs.progress,
    )
    encoded.notes |= table.notes()
    return encoded
