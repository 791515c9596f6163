"""What tells a user's file from another one: its content, hashed once for each size and time of change."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pocketrec import paths
from pocketrec.errors import UserError
from pocketrec.files import write_json

BLOCK = 2**24
SLOW = 2**30  # bytes that take a second or more


def content(file: Path) -> str:
    """Return the SHA-256 of a file's content; of one that is away, what it was when it was last seen.

    So a result stays valid where its data is touched or put away. Raises `UserError` for a file never seen.
    """
    known = _known()
    before = known.get(str(file), {})
    if not file.is_file():
        if before:
            return before["sha256"]
        raise UserError(f"{file}: no such file")
    found = file.stat()
    state = {"bytes": found.st_size, "changed": found.st_mtime_ns}
    if before.items() >= state.items():
        return before["sha256"]
    try:
        state["sha256"] = _hash(file, found.st_size)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    with suppress(OSError):  # a data folder that cannot be written: hashed again next time
        write_json(_file(), _known() | {str(file): state})
    return state["sha256"]


def _hash(file: Path, size: int) -> str:
    digest = hashlib.sha256()
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"hashing {file.name}", disable=size < SLOW or None)
    with bar, file.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _known() -> dict[str, Any]:
    try:
        known = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _file() -> Path:
    return paths.DATA / "hashes.json"
