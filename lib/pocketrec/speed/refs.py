"""The same bench by two versions of this project: the one at hand and another commit, in turn on one machine.

Each turn is a process of its own in a tree of its own; the order other, ours, ours, other lets a machine that warms
up or slows down meet both alike.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from pocketrec import paths
from pocketrec.errors import UserError

OURS, OTHER = "here", "there"
TURNS = (OTHER, OURS, OURS, OTHER)


def samples(ref: str, arguments: Sequence[str]) -> pd.DataFrame:
    """Run `pocketrec bench` with these arguments in turns; return its samples, with `version` here or there.

    Raises:
        UserError: without git, for a ref that does not exist, or when a version cannot run the bench.
    """
    taken = []
    with _trees(ref) as trees:
        for version in TURNS:
            root = trees[version]
            library = paths.ROOT if version == OURS else root
            environment = {**os.environ, "PYTHONPATH": str(library / "lib"), "POCKETREC_ROOT": str(root)}
            environment["POCKETREC_DATA"] = str(paths.DATA)
            done = subprocess.run([sys.executable, "-m", "pocketrec.suite.cli", "bench", *arguments], env=environment)
            if done.returncode:
                raise UserError(f"--ref {ref}: the bench ended with exit code {done.returncode} {version}; see above")
            taken.append(pd.read_parquet(root / "results/speed/samples.parquet").assign(version=version))
    return pd.concat(taken, ignore_index=True)


@contextmanager
def _trees(ref: str) -> Iterator[dict[str, Path]]:
    """Check a commit out beside this one, and give both a folder for their results."""
    with TemporaryDirectory() as folder:
        other, here = Path(folder) / "other", Path(folder) / "here"
        here.mkdir()
        for name in ("params", "notebooks"):
            (here / name).symlink_to(paths.ROOT / name)
        _git("worktree", "add", "--quiet", "--detach", str(other), ref, ref=ref)
        try:
            yield {OURS: here, OTHER: other}
        finally:
            _git("worktree", "remove", "--force", str(other), ref=ref)


def _git(*arguments: str, ref: str) -> None:
    try:
        done = subprocess.run(["git", "-C", str(paths.ROOT), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"--ref {ref}: needs git, which is not installed") from None
    if done.returncode:
        raise UserError(f"--ref {ref}: {done.stderr.strip().splitlines()[-1]}")
