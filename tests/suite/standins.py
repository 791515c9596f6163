"""The command line over stand-ins for `pocketrec.data` and `pocketrec.embeddings`, which import torch.

python standins.py run bad --jobs 2        with POCKETREC_ROOT set
"""

import hashlib
import json
import sys
from types import ModuleType

import polars  # noqa: F401  it takes over SIGINT, as it does for users

import pocketrec
from pocketrec import paths
from pocketrec.errors import UserError, conform, unknown
from pocketrec.files import read_yaml

data = ModuleType("pocketrec.data")
embeddings = ModuleType("pocketrec.embeddings")


class Robe:
    knobs = {"block_size": 8}
    only_ratio = None
    knob = staticmethod(lambda name, value, where: conform(value, int, where))


class Full:
    knobs = {}
    only_ratio = None  # unlike the real one: the tests want it in every cell


embeddings.METHODS = {"robe": Robe, "full": Full}
embeddings.available = lambda: ["full", "robe"]


def _dataset(name):
    return read_yaml(paths.PARAMS / "datasets" / f"{name}.yaml")


def available():
    return sorted(path.stem for path in (paths.PARAMS / "datasets").glob("*.yaml"))


def digest(name, options=None):
    known = _dataset(name).get("options", {})
    for option in options or {}:
        if option not in known:
            raise unknown("option", option, known, f"options of {name}")
    return hashlib.sha256(json.dumps([name, options]).encode()).hexdigest()


def prepare(name, options=None, *, raw=None, progress=True):
    if _dataset(name).get("missing"):
        raise UserError(f"{name}: the file raw.csv is missing; put it into {paths.DATA}")


data.available, data.digest, data.prepare = available, digest, prepare
data.recipe = lambda name: _dataset(name).get("recipe", {})


def install():
    for module in (data, embeddings):
        sys.modules[module.__name__] = module
        setattr(pocketrec, module.__name__.rpartition(".")[2], module)


if __name__ == "__main__":
    install()
    from pocketrec.suite.cli import app

    app()
