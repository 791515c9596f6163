"""Raw text files into Parquet: blocks of whole lines, parsed side by side, with every malformed line accounted for.

A file is plain, .gz, .zip, or .tar.gz; of an archive the member is read whose name is asked for. Memory holds a few
blocks, whatever the size of the files.
"""

import gzip
import re
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from polars.exceptions import PolarsError
from tqdm import tqdm

from pocketrec.data.columns import ROW
from pocketrec.errors import UserError

BLOCK = 2**24  # bytes of text parsed together
WORKERS = 2
SHOWN = 5  # malformed lines that a message quotes

Kind = Literal["label", "integer", "hex", "ignored"]
PATTERNS = {  # what polars reads as such, for lines that are looked at one by one
    "label": r" *\+?0*[01]",
    "integer": "(?: *[+-]?[0-9]{1,18})?",
    "hex": r"(?:\+?0*[0-9a-fA-F]{1,8})?",
    "ignored": r"[^,\t]*",
}
READ_AS = {"label": pl.UInt8, "integer": pl.Int64, "hex": pl.String, "ignored": pl.String}


@dataclass(frozen=True)
class Format:
    """Lines of fields: `columns` names them with their kinds; an empty field of any but a label is missing."""

    separator: str
    columns: dict[str, Kind]
    has_header: bool = False

    def names(self, kind: Kind) -> list[str]:
        """Return the columns of a kind."""
        return [name for name, found in self.columns.items() if found == kind]

    @property
    def line(self) -> re.Pattern[bytes]:
        """What a whole line looks like."""
        return re.compile(self.separator.join(PATTERNS[kind] for kind in self.columns.values()).encode())

    @property
    def header(self) -> bytes:
        """The first line of a file with a header."""
        return self.separator.join(self.columns).encode()


@dataclass
class Table:
    """The files as one table: Parquet files in their order, lines of each raw file, and what was left out."""

    parquet: list[Path] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    malformed: int = 0
    examples: list[str] = field(default_factory=list)

    def scan(self) -> pl.LazyFrame:
        """Return the table in the order of the lines, whose numbers, from 0 on, are its column `ROW`."""
        return pl.scan_parquet(self.parquet)

    def notes(self) -> dict[str, object]:
        """Return what a prepared folder says of malformed lines."""
        return (
            {"malformed lines left out": self.malformed, "the first of them": self.examples} if self.malformed else {}
        )


class _Block(NamedTuple):
    file: Path
    first: int  # number of its first line in the file, from 1 on
    row: int  # number of its first row in the table, from 0 on
    lines: int
    text: bytes


def to_parquet(
    files: list[Path], member: str, form: Format, scratch: Path, *, malformed_share: float, progress: bool
) -> Table:
    """Parse the files one after the other; a malformed line is left out, counted and remembered with its place.

    Raises `UserError` when more than `malformed_share` of the lines are malformed, and for a file that cannot be
    read or is cut short.
    """
    table = Table()
    pending: deque[Future] = deque()
    with (
        tqdm(total=_bytes(files), unit="B", unit_scale=True, desc="read", disable=not progress) as bar,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        try:
            for file in files:
                before = sum(table.lines)
                table.lines.append(0)
                for block in _blocks(file, member, form, before, bar):
                    path = scratch / f"{len(table.parquet):06}.parquet"
                    table.parquet.append(path)
                    table.lines[-1] += block.lines
                    pending.append(pool.submit(_parse, block, form, path))
                    while len(pending) > WORKERS:
                        _add(table, pending.popleft().result())
            while pending:
                _add(table, pending.popleft().result())
        finally:
            pool.shutdown(cancel_futures=True)
    total = sum(table.lines)
    if not total:
        raise UserError(f"{files[0]}: the file has no rows")
    if table.malformed > malformed_share * total:
        raise UserError(
            f"{table.malformed:,} of {total:,} lines are malformed, more than the share {malformed_share:g} that "
            f"option 'malformed_share' allows: {'; '.join(table.examples)}"
        )
    return table


def _add(table: Table, malformed: list[str]) -> None:
    table.malformed += len(malformed)
    table.examples += malformed[: SHOWN - len(table.examples)]


def _parse(block: _Block, form: Format, path: Path) -> list[str]:
    """Write one block; one with a line that does not fit is looked at line by line. Returns the malformed lines."""
    rows, malformed = range(block.row, block.row + block.lines), []
    try:
        frame = _frame(block.text, block.lines, form)
    except (PolarsError, ValueError):
        text, rows, malformed = _well_formed(block, form)
        frame = _frame(text, len(rows), form)
    frame.insert_column(0, pl.Series(ROW, rows, pl.Int64))
    # looking for repeated values takes longer than writing them, and among hashes finds few
    repeating = form.names("integer")
    pq.write_table(frame.to_arrow(), path, use_dictionary=repeating, compression="none", write_statistics=False)
    return malformed


def _frame(text: bytes, lines: int, form: Format) -> pl.DataFrame:
    """Parse lines of which each has all its fields; raises `ValueError` or `PolarsError` otherwise."""
    schema = {name: READ_AS[kind] for name, kind in form.columns.items()}
    if _count(text, form.separator) != lines * (len(schema) - 1):
        raise ValueError("some line has too many or too few fields")
    if lines:
        frame = pl.read_csv(text, separator=form.separator, has_header=False, schema=schema, quote_char=None)
    else:
        frame = pl.DataFrame(schema=schema)
    label = frame[form.names("label")[0]]
    if len(frame) != lines or label.null_count() or (label > 1).any():
        raise ValueError("some line is empty, or has a label that is not 0 or 1")
    numbers = pl.col(form.names("hex")).str.to_integer(base=16, dtype=pl.UInt32)
    return frame.with_columns(numbers).drop(form.names("ignored"))


def _well_formed(block: _Block, form: Format) -> tuple[bytes, list[int], list[str]]:
    """Return the lines that have the format, their rows, and where the others are."""
    line, kept, rows, malformed = form.line, [], [], []
    for number, content in enumerate(block.text.split(b"\n")[:-1]):
        if line.fullmatch(content):
            kept.append(content + b"\n")
            rows.append(block.row + number)
        else:
            shown = content[:60].decode(errors="replace")
            malformed.append(f"{block.file}:{block.first + number}: {shown!r}")
    if len(malformed) > len(kept):
        raise UserError(
            f"{malformed[0]}: this and {len(malformed) - 1:,} of the next {len(kept) + len(malformed) - 1:,} lines "
            f"do not have the original format: {len(form.columns)} fields ({', '.join(list(form.columns)[:3])}, …)"
        )
    return b"".join(kept), rows, malformed


def _blocks(file: Path, member: str, form: Format, row: int, bar: tqdm) -> Iterator[_Block]:
    """Cut a file into blocks of whole lines."""
    line, done = 1, 0
    try:
        with open_text(file, member) as (stream, position):
            if form.has_header:
                line, header = 2, stream.readline().rstrip()
                if header != form.header:
                    raise UserError(f"{file}:1: expected the header {form.header[:60]!r}…, found {header[:60]!r}")
            while text := stream.read(BLOCK) + stream.readline():
                text = _unix(text)
                lines = _count(text, "\n")
                yield _Block(file, line, row, lines, text)
                line, row = line + lines, row + lines
                bar.update(position() - done)
                done = position()
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"{file}: cannot be read, or is cut short: {error}") from None


def _count(text: bytes, character: str) -> int:
    """Return how often a character occurs; twice as fast as `bytes.count` for one that occurs often."""
    return np.count_nonzero(np.frombuffer(text, np.uint8) == ord(character))


def _unix(text: bytes) -> bytes:
    """Return the lines with the ends that Unix gives them, the last one included."""
    text = text.replace(b"\r\n", b"\n") if b"\r" in text else text
    return text if text.endswith(b"\n") else text + b"\n"


@contextmanager
def open_text(file: Path, member: str) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """Open the text in a file, with a function that says how many of the file's bytes were read."""
    wanted = member, f"{member}.gz", Path(member).with_suffix(".gz").name, file.stem
    with ExitStack() as stack:
        raw = stream = stack.enter_context(file.open("rb"))
        name = file.name
        if name.endswith((".tar.gz", ".tgz")):
            tar = stack.enter_context(tarfile.open(fileobj=raw, mode="r|gz"))
            entry = next((entry for entry in tar if entry.isfile() and Path(entry.name).name in wanted), None)
            name, stream = (entry.name, tar.extractfile(entry)) if entry else (None, None)
        elif name.endswith(".zip"):
            archive = stack.enter_context(zipfile.ZipFile(raw))
            name = next((name for name in archive.namelist() if Path(name).name in wanted), None)
            stream = stack.enter_context(archive.open(name)) if name else None
        if stream is None:
            raise UserError(f"{file}: has no member {member}")
        if name.endswith(".gz"):
            stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
        yield stream, raw.tell


def _bytes(files: list[Path]) -> int:
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file")
    return sum(file.stat().st_size for file in files)
