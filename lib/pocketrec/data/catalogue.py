"""The datasets of `params/datasets`: their options, their digests, and their prepared folders."""

import errno
import hashlib
import json
import pkgutil
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout
from polars.exceptions import PolarsError

from pocketrec import paths
from pocketrec.data import columns, fetch, published, rows, sources, text
from pocketrec.data import raw as _raw
from pocketrec.data.options import resolve
from pocketrec.data.prepared import Dataset
from pocketrec.errors import UserError, unknown
from pocketrec.files import read_yaml, source_hash

KEYS = {"title", "source", "about", "licence", "file", "raw", "published", "options", "recipe"}


@dataclass(frozen=True)
class _Choice:
    """A dataset with its options resolved: what one prepared folder holds."""

    name: str
    content: dict[str, Any]
    source: ModuleType
    options: Any

    @property
    def digest(self) -> str:
        shared = (rows, columns, text) if "raw" in self.content else (rows, columns)
        code = [source_hash(Path(module.__file__)) for module in (*shared, self.source)]
        identify = getattr(self.source, "fingerprint", lambda options: None)
        pin = _raw.fingerprint(self.name) if "raw" in self.content else self.content.get("file", {}).get("sha256")
        parts = [asdict(self.options), pin, code, identify(self.options)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def available() -> list[str]:
    """Names of the datasets: one YAML file each in `params/datasets`."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def recipe(name: str) -> dict[str, Any]:
    """Model and training parameters that suit a dataset, as its YAML suggests them."""
    return dict(_content(name).get("recipe") or {})


def licence(name: str) -> str:
    """Return the terms of a dataset, as its YAML states them."""
    return _content(name).get("licence", "none stated")


def published_tables() -> dict[str, tuple[list[int], int]]:
    """Return cardinalities and dim of the published tables that have a name; without a dim, the recipe's."""
    found = {}
    for dataset in available():
        dim = recipe(dataset).get("dim")
        tables = (_content(dataset).get("published") or {}).get("tables", [])
        found |= {table["name"]: (table["cardinalities"], table.get("dim", dim)) for table in tables if "name" in table}
    return found


def published_cardinalities(name: str) -> list[int]:
    """Return the largest tables that were published of a dataset."""
    tables = _content(name).get("published", {}).get("tables")
    if not tables:
        raise UserError(f"{_folder() / name}.yaml: has no published cardinalities")
    return max((table["cardinalities"] for table in tables), key=sum)


def digest(name: str, options: Mapping[str, Any] | None = None) -> str:
    """Hash of all that determines the arrays: options, pinned input, and the code that prepares them.

    Raises `UserError` for an unknown dataset or option.
    """
    return _choose(name, options).digest


def load(name: str, **options: Any) -> Dataset:
    """Open a dataset, preparing it first where that has not been done."""
    return Dataset.open(prepare(name, options))


def prepare(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    raw: Path | Sequence[Path] = (),
    download: bool = False,
    progress: bool = True,
) -> Path:
    """Return the folder with the arrays of a dataset, building it where it is not there.

    `raw` is the user's own copy of a file that would be downloaded, or of several; `download` fetches raw files
    that are not pinned, and goes on where an earlier attempt broke off. Of several processes one
    builds and the others wait. A build is done in a sibling folder that takes the final name when it is whole.
    """
    choice = _choose(name, options)
    if download and "raw" in choice.content:
        _raw.download(name, choice.content["raw"], progress)
    own = _own_file(choice, [raw] if isinstance(raw, Path) else list(raw))
    folder = paths.DATA / "prepared" / f"{name}-{choice.digest[:12]}"
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    with FileLock(_lock(folder)):
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            _build(choice, folder, own, progress)
    return folder


def _own_file(choice: _Choice, given: list[Path]) -> Path | None:
    """Return the user's copy of the pinned file, or remember those of files that are not pinned."""
    if given and "raw" in choice.content:
        _raw.remember(choice.name, given, choice.content["raw"]["names"])
    elif given and "file" not in choice.content:
        raise UserError(f"{choice.name}: takes no raw file, since it is not one that is downloaded")
    elif len(given) > 1:
        raise UserError(f"{choice.name}: takes one raw file, not {len(given)}")
    return given[0] if given and "file" in choice.content else None


def _is_whole(folder: Path) -> bool:
    """Whether a prepared folder is there and no array of it is missing or cut short."""
    try:
        return Dataset.open(folder).is_whole
    except (OSError, ValueError, KeyError):
        return False


def _build(choice: _Choice, folder: Path, own: Path | None, progress: bool) -> None:
    temporary = folder.with_name(f".{folder.name}.building")
    scratch = temporary / "scratch"
    shutil.rmtree(temporary, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        pin = choice.content.get("file")
        files = _raw.files(choice.name) if "raw" in choice.content else []
        inputs = rows.Inputs(fetch.get(pin, own) if pin else None, scratch, progress, files)
        found = choice.source.rows(choice.options, inputs)
        if "published" in choice.content:
            found.notes |= published.compare(choice.content["published"], choice.options, found)
        rows.write(temporary, found, _meta(choice))
        shutil.rmtree(scratch)
        temporary.rename(folder)
    except (OSError, PolarsError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error):
            raise UserError(
                f"{folder.parent}: no space left on this disk, so nothing was kept; make room, "
                "or set POCKETREC_DATA to a folder on a larger one"
            ) from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _meta(choice: _Choice) -> dict[str, Any]:
    return {
        "name": choice.name,
        "title": choice.content.get("title", choice.name),
        "source": choice.content["source"],
        "digest": choice.digest,
        "options": asdict(choice.options),
    }


def _sweep(folder: Path) -> None:
    """Remove what builds of processes that no longer run have left: their lock is free."""
    for left in folder.glob(".*.building"):
        try:
            with FileLock(_lock(folder / left.stem.removeprefix(".")), timeout=0):
                shutil.rmtree(left, ignore_errors=True)
        except Timeout:
            continue


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _folder() -> Path:
    return paths.PARAMS / "datasets"


def _content(name: str) -> dict[str, Any]:
    if name not in available():
        raise unknown("dataset", name, available(), _folder())
    path = _folder() / f"{name}.yaml"
    content = read_yaml(path)
    for key in content:
        if key not in KEYS:
            raise unknown("key", key, KEYS, path)
    for key in ("file", "raw", "published", "options", "recipe"):
        if not isinstance(content.get(key) or {}, dict):
            raise UserError(f"{path}: `{key}` must be a mapping of names to values, got {content[key]!r}")
    return content


def _choose(name: str, options: Mapping[str, Any] | None) -> _Choice:
    content, path = _content(name), _folder() / f"{name}.yaml"
    known = [module.name for module in pkgutil.iter_modules(sources.__path__)]
    if content.get("source") not in known:
        raise unknown("source", content.get("source"), known, path)
    source = import_module(f"{sources.__name__}.{content['source']}")
    layers = {str(path): content.get("options") or {}, f"options of {name}": options or {}}
    return _Choice(name, content, source, resolve(source.Options, layers))
