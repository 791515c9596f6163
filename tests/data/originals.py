"""Small files in the original formats of Criteo and Avazu."""

from pathlib import Path

import numpy as np

from pocketrec.data.synth import FORMATS

ROWS = 3_000


def lines(name: str, rows: int = ROWS, seed: int = 0) -> list[bytes]:
    """Return lines in the original format, with missing and negative values, and no header."""
    generator = np.random.default_rng(seed)

    def field(kind: str, column: int) -> list[str]:
        values = (generator.zipf(1.3, rows) * 2_654_435_761 + column) % (2**32 if kind == "hex" else 10**5)
        missing = generator.random(rows) < 0.1
        if kind == "label":
            return [str(value) for value in generator.integers(0, 2, rows)]
        if kind == "ignored":
            return [f"{value}e+19" for value in generator.random(rows)]
        shown = [f"{value:08x}" if kind == "hex" else str(value - 3) for value in values]
        return ["" if absent else value for absent, value in zip(missing, shown, strict=True)]

    form = FORMATS[name]
    columns = [field(kind, column) for column, kind in enumerate(form.columns.values())]
    return [form.separator.join(fields).encode() for fields in zip(*columns, strict=True)]


def write(path: Path, name: str, content: list[bytes]) -> Path:
    header = [FORMATS[name].header] if FORMATS[name].has_header else []
    path.write_bytes(b"\n".join([*header, *content]) + b"\n")
    return path
