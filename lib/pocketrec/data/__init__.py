"""From raw files to memory-mapped arrays and batches: one folder a dataset and choice of options."""

from pocketrec.data.catalogue import (
    available,
    digest,
    licence,
    load,
    prepare,
    published_cardinalities,
    published_tables,
    recipe,
)
from pocketrec.data.prepared import Batch, Dataset

__all__ = [
    "Batch",
    "Dataset",
    "available",
    "digest",
    "licence",
    "load",
    "prepare",
    "published_cardinalities",
    "published_tables",
    "recipe",
]
