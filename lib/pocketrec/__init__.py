"""PocketRec: compressed embedding tables, benchmarked side by side on quality, real bytes and latency.

    from pocketrec import embeddings, load_results

Submodules are imported when first named, so that reading results does not load torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load_results":
        return import_module("pocketrec.report").load_results
    try:
        return import_module(f"pocketrec.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"pocketrec.{name}":
            raise
        raise AttributeError(f"module 'pocketrec' has no attribute {name!r}") from None
