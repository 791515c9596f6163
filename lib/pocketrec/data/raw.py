"""Raw files that are too large or too closed to pin: where the user's copies lie is remembered in `DATA/raw`.

A dataset's YAML says in `raw` which file names belong to it (`names`, a regular expression), where they can be had
(`from`: one list of addresses a file, tried in turn), and how else (`help`).
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pocketrec import paths
from pocketrec.data import fetch, identity
from pocketrec.errors import UserError
from pocketrec.files import write_json


def remember(name: str, given: Sequence[Path], pattern: str) -> None:
    """Take these files, and those of a folder whose names fit, as a dataset's from now on, in the order of names."""
    found: list[Path] = []
    parts: list[object] = []
    for path in map(Path, given):
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        fitting = [file for file in inside if path.is_file() or re.fullmatch(pattern, file.name)]
        if not fitting or not fitting[0].is_file():
            raise UserError(f"{path}: no such file" if not path.is_dir() else f"{path}: no file named like {pattern}")
        found += [file.absolute() for file in fitting]
        # in a folder the number of a day tells parts apart: what has none is the whole set, under whatever name
        parts += [re.findall(r"_(\d+)", f.name) if path.is_dir() else f.name.partition(".")[0] for f in fitting]
    twice = [file.name for file, part in zip(found, parts, strict=True) if parts.count(part) > 1]
    if twice:
        raise UserError(f"{found[0].parent}: {' and '.join(twice)} are the same part; give `--raw` one of them")
    found.sort(key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)])
    write_json(_record(name), [{"path": str(file)} for file in found])


def download(name: str, where: dict[str, Any], progress: bool = True) -> None:
    """Fetch the files of a dataset from the addresses of its YAML, and take them as its from now on.

    An address with `{0..23}` stands for as many files.
    """
    if not where["from"]:
        raise UserError(
            f"{name}: cannot be fetched without you: {where['help']}; then `pocketrec prepare {name} --raw FILE`"
        )
    folder = paths.DATA / "downloads" / name
    remedy = f"try later, or get it by hand ({where['help']}), then `pocketrec prepare {name} --raw FILE`"
    addresses = [each for alternatives in where["from"] for each in zip(*map(_expand, alternatives), strict=True)]
    found = [fetch.resume(list(each), folder / each[0].rpartition("/")[2], remedy, progress) for each in addresses]
    remember(name, found, where["names"])


def _expand(address: str) -> list[str]:
    """Return the addresses that one with a range in braces stands for."""
    range_ = re.search(r"\{(\d+)\.\.(\d+)\}", address)
    if not range_:
        return [address]
    return [address.replace(range_[0], str(number)) for number in range(int(range_[1]), int(range_[2]) + 1)]


def files(name: str) -> list[Path]:
    """Return the files of a dataset, in order."""
    return [Path(state["path"]) for state in _remembered(name)]


def fingerprint(name: str) -> list[Any]:
    """Name and content of every file, in order."""
    try:
        return [[file.name, identity.content(file)] for file in files(name)]
    except UserError as error:
        raise UserError(f"{error}; `pocketrec prepare {name} --raw FILE` says where it is now") from None


def _remembered(name: str) -> list[dict[str, Any]]:
    if not _record(name).is_file():
        raise UserError(
            f"{name}: where its raw files are is not known; `pocketrec prepare {name} --raw FILE` takes yours, and "
            f"`pocketrec prepare {name} --download` fetches them where that is possible"
        )
    return json.loads(_record(name).read_text())


def _record(name: str) -> Path:
    return paths.DATA / "raw" / f"{name}.json"
