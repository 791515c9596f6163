"""A suite's results as one file to send: page, executed notebooks, records, table, and what to install."""

import getpass
import json
import re
import shutil
import socket
import zipfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pocketrec import paths
from pocketrec.errors import UserError
from pocketrec.files import atomic
from pocketrec.report.results import collect
from pocketrec.report.site import index

PATTERNS = ("runs/*/*/*/record.json", "runs/*/*/*/run.*", "runs/*/*/*/log.txt", "dashboards/*.*")
ENVIRONMENT = ("constraints.txt", "environment.yml", "pyproject.toml")
LARGEST = 1_000_000  # bytes of a notebook


def bundle(
    suite_dir: str | Path,
    target: str | Path | None = None,
    question: str | None = None,
    params: Iterable[Path] = (),
) -> tuple[Path, list[str]]:
    """Write a suite's results into one zip, by default beside its folder; return it and the notebooks left out.

    It opens anywhere, and whatever reads a folder of results takes it. `params` are the YAML files of the suite, its
    datasets and its methods, to go with it; `target` may be a folder. Models and predictions stay behind, and so do
    notebooks above 1 MB, with their pages. The paths of this machine, its name and that of its user are taken out of
    every text.

    Raises:
        UserError: when the folder has no record.
    """
    suite_dir = Path(suite_dir).resolve()
    name = f"{suite_dir.name}.zip"
    target = suite_dir.with_name(name) if target is None else Path(target)
    target = target / name if target.is_dir() else target
    if not any(suite_dir.glob(PATTERNS[0])):
        raise UserError(f"{suite_dir}: no record.json below it, so there is nothing to bundle")
    with TemporaryDirectory() as folder:
        copy = Path(folder) / suite_dir.name
        left_out = _copy(suite_dir, copy)
        for path in params:
            place = copy / "params" / _kind(path) / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(_without_names(path.read_text(encoding="utf-8")), encoding="utf-8")
        collect(copy)
        index(copy, title=suite_dir.name, question=question)
        with atomic(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(copy.rglob("*")):
                archive.write(path, path.relative_to(folder))
    return target, left_out


def _kind(path: Path) -> str:
    """Return the folder of `params` that a file belongs to; a suite may lie anywhere."""
    kinds = (kind for kind in ("datasets", "methods") if path.resolve().parent == (paths.PARAMS / kind).resolve())
    return next(kinds, "suites")


def _copy(suite_dir: Path, copy: Path) -> list[str]:
    """Copy what is to be sent, with no name of this machine in it; return the notebooks that are too large."""
    files = [path for pattern in PATTERNS for path in sorted(suite_dir.glob(pattern))]
    large = {path for path in files if path.suffix == ".ipynb" and path.stat().st_size >= LARGEST}
    for path in files:
        if path not in large and path.with_suffix(".ipynb") not in large:
            place = copy / path.relative_to(suite_dir)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(anonymous(path.read_text(encoding="utf-8", errors="replace")), encoding="utf-8")
    if (suite_dir / "measured").is_dir():
        shutil.copytree(suite_dir / "measured", copy / "measured")
    for name in ENVIRONMENT:
        if (paths.ROOT / name).exists():
            (copy / "environment").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(paths.ROOT / name, copy / "environment" / name)
    return [path.relative_to(suite_dir).as_posix() for path in sorted(large)]


def anonymous(text: str) -> str:
    """Take this machine's folders, its name and its user's out of a text; of JSON, out of what is no key."""
    try:
        content = json.loads(text)
    except ValueError:
        return _without_names(text)
    return json.dumps(_anonymous(content), indent=1, ensure_ascii=False) + "\n"


def _anonymous(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _anonymous(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_anonymous(value) for value in content]
    return _without_names(content) if isinstance(content, str) else content


def _without_names(text: str) -> str:
    for folder, name in ((paths.ROOT, "."), (paths.DATA, "data"), (Path.home(), "~")):
        if folder != folder.parent:  # a container's home may be the root of all folders
            text = re.sub(rf"{re.escape(str(folder))}(?![\w-])", name, text)
    for word, name in ((socket.gethostname(), "host"), (getpass.getuser(), "user")):
        if word not in ("localhost", "root"):  # words that name nobody
            text = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", name, text)
    return text
