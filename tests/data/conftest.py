import shutil
from pathlib import Path

import pytest

from pocketrec import paths


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a root of its own, with the project's datasets and no data."""
    shutil.copytree(paths.PARAMS / "datasets", tmp_path / "params" / "datasets")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params")
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    return tmp_path


@pytest.fixture
def contents():
    """Return the bytes of every file of a folder."""
    return lambda folder: {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
