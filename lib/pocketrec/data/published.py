"""What a prepared dataset has beside what was published of it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pocketrec.data.rows import Rows


def compare(published: Mapping[str, Any], options: Any, found: Rows) -> dict[str, Any]:
    """Return notes on row counts and cardinalities: the published ones beside those of the files.

    `published` has `rows`, and `tables`: a list of cardinalities, each with its source and the options it is for.
    Cardinalities are compared when the rows are all there and the options are those of a table.
    """
    chosen = asdict(options)
    fitting = [table for table in published["tables"] if table["options"].items() <= chosen.items()]
    rows = sum(found.split_rows)
    if not chosen.get("drop_negatives") and rows != published["rows"]:
        return {"published": f"{rows:,} rows instead of {published['rows']:,}: not the whole set, so not compared"}
    notes = f"{rows:,} rows, all that were published" if not chosen.get("drop_negatives") else f"{rows:,} rows"
    if not fitting:
        return {"published": f"{notes}; no cardinalities were published for these options"}
    other = {
        name: [count, wanted]
        for (name, count), wanted in zip(found.distinct.items(), fitting[0]["cardinalities"], strict=True)
        if count != wanted
    }
    if not other:
        return {"published": f"{notes}; all {len(found.distinct)} cardinalities are those of {fitting[0]['source']}"}
    differing = ", ".join(f"{name} has {count:,} instead of {wanted:,}" for name, (count, wanted) in other.items())
    return {"published": f"{notes}; cardinalities unlike those of {fitting[0]['source']}: {differing}"}
