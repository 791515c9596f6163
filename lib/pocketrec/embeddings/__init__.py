"""Compression methods for embedding tables, all behind one contract (`base.Embedding`).

e = embeddings.build("robe", cardinalities=[1000, 20], dim=16, ratio=100, seed=0, block_size=8)
e(ids)                                    # [batch, 2, 16]
embeddings.save(e.deploy(), "e.safetensors")
"""

import json
from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from pkgutil import ModuleInfo, iter_modules
from traceback import extract_tb
from types import ModuleType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pocketrec.embeddings.apart import Apart
from pocketrec.embeddings.base import Embedding, Infeasible, Storage, full_bytes, megabytes, tensor_bytes, undrawn
from pocketrec.embeddings.stores import CODE_BYTES, Quantize
from pocketrec.errors import UserError, unknown

__all__ = [
    "METHODS",
    "Embedding",
    "Infeasible",
    "Storage",
    "available",
    "build",
    "full_bytes",
    "load",
    "save",
]


def _imported(file: ModuleInfo) -> ModuleType:
    try:
        return import_module(f"{__name__}.{file.name}")
    except Exception as error:  # whatever is wrong in a method that someone is writing
        path = file.module_finder.find_spec(file.name).origin
        lines = [f":{frame.lineno}" for frame in extract_tb(error.__traceback__) if frame.filename == path]
        where = f"{path}{lines[-1] if lines else ''}"
        raise UserError(f"{where}: cannot be imported: {type(error).__name__}: {error}") from error


def _discover() -> dict[str, type[Embedding]]:
    """Return the methods by name: every class of the contract that a file beside this one defines."""
    found: dict[str, type[Embedding]] = {}
    for file in iter_modules(__path__):
        module = _imported(file)
        for kind in vars(module).values():
            own = isinstance(kind, type) and issubclass(kind, Embedding) and kind.__module__ == module.__name__
            if not own or kind in (Embedding, Apart):
                continue
            name = vars(kind).get("name")
            taken = f"is called {name!r} like that of {found[name].__module__}" if name in found else ""
            if taken or not isinstance(name, str):
                fault = taken or "has no `name` that is text"
                raise UserError(f"{module.__file__}: the method {kind.__name__} {fault}; give it a name of its own")
            found[name] = kind
    return found


METHODS: dict[str, type[Embedding]] = _discover()
_KINDS = METHODS | {Apart.name: Apart}  # what may stand in a saved file


def available() -> list[str]:
    """Names of all methods, the full table first."""
    return sorted(METHODS, key=lambda name: (name != "full", name))


def build(
    name: str,
    *,
    cardinalities: Sequence[int],
    dim: int,
    ratio: float = 1,
    seed: int = 0,
    quantize: Quantize | None = None,
    apart: bool = False,
    **knobs: Any,
) -> Embedding:
    """Build the largest instance of a method whose inference form is `ratio` times smaller than full tables.

    Args:
        name: one of `available()`.
        cardinalities: rows of each feature's table.
        dim: width of the embedding.
        ratio: bytes of the full float32 tables over the bytes allowed at inference; at least 1.
        seed: same seed, same values.
        quantize: the codes it will be served in (`deploy(quantize)`): the budget then binds that form.
        apart: give every table an instance of its own, and an equal share of the bytes; see `embeddings.apart`.
        knobs: choices of the method, see its `knobs`.

    Raises:
        UserError: for an unknown method or knob, or a ratio below 1.
        Infeasible: when no instance fits.
    """
    config = solve(name, cardinalities, dim, ratio, quantize, apart, **knobs)
    cardinalities = [int(n) for n in cardinalities]
    return _KINDS[Apart.name if apart else name](cardinalities, int(dim), seed=int(seed), **config)


def solve(
    name: str,
    cardinalities: Sequence[int],
    dim: int,
    ratio: float,
    quantize: Quantize | None = None,
    apart: bool = False,
    **knobs: Any,
) -> dict[str, Any]:
    """Return the config that `build` would use; arithmetic only. Raises as `build` does."""
    if name not in METHODS:
        raise unknown("method", name, METHODS, "embeddings")
    method = METHODS[name]
    try:
        cardinalities, dim = [int(n) for n in cardinalities], int(dim)
    except (TypeError, ValueError):
        raise UserError(
            f"embeddings: cardinalities must be whole numbers and dim one, got {cardinalities!r} and {dim!r}"
        ) from None
    for knob in knobs.keys() - method.knobs.keys():
        raise unknown(f"knob of {name}", knob, method.knobs, "embeddings")
    knobs = {knob: method.knob(knob, value, f"embeddings: {knob} of {name}") for knob, value in knobs.items()}
    if not ratio >= 1:
        raise UserError(f"embeddings: ratio must be at least 1, got {ratio}")
    if quantize is not None and quantize not in CODE_BYTES:
        raise unknown("quantisation", quantize, CODE_BYTES, "embeddings")
    if not cardinalities or min(cardinalities) < 1 or dim < 1:
        raise UserError(f"embeddings: cardinalities and dim must be positive, got {cardinalities} and {dim}")
    if apart:
        method, knobs = Apart, {"of": name, **knobs}
    full = full_bytes(cardinalities, dim)
    if quantize is None:
        return method.solve(cardinalities, dim, full / ratio, **knobs)
    return _solve_quantized(method, cardinalities, dim, full / ratio, quantize, **knobs)


def inference_bytes(
    name: str, cardinalities: Sequence[int], dim: int, config: dict[str, Any], quantize: Quantize | None = None
) -> int:
    """Return the bytes at inference of a config; arithmetic only."""
    stored = _KINDS[name].stored(cardinalities, dim, **config)
    return sum(tensor.bytes(quantize) for tensor in stored.values())


def _solve_quantized(
    method: type[Embedding],
    cardinalities: Sequence[int],
    dim: int,
    budget_bytes: float,
    quantize: Quantize,
    **knobs: Any,
) -> dict[str, Any]:
    """Bisect the float32 budget whose quantised instance just fits: a method need not know of codes."""
    low, high, config, why = 0.0, 8 * budget_bytes, None, ""  # int4 saves at most a factor of 8
    for _ in range(50):
        middle = (low + high) / 2
        try:
            found = method.solve(cardinalities, dim, middle, **knobs)
        except Infeasible as error:
            low, why = middle, f"; in floats {error}"
            continue
        if inference_bytes(method.name, cardinalities, dim, found, quantize) <= budget_bytes:
            low, config = middle, found
        else:
            high = middle
    if config is None:
        raise Infeasible(f"{method.name} in {quantize} codes does not fit a {megabytes(budget_bytes)} budget{why}")
    return config


def save(embedding: Embedding, path: str | PathLike) -> int:
    """Write a module in its inference form as safetensors; return the bytes of its tensors, the header aside.

    Raises:
        UserError: where training keeps other tensors than serving, and `deploy` was not called; or without a folder.
    """
    if embedding.state_dict().keys() != embedding.inference_tensors().keys():
        raise UserError(f"{path}: {embedding.name} trains in another form than it is served in: save its deploy()")
    if not Path(path).parent.is_dir():
        raise UserError(f"{path}: its folder does not exist")
    about = {
        "method": embedding.name,
        "cardinalities": embedding.cardinalities,
        "dim": embedding.dim,
        "seed": embedding.seed,
        "config": embedding.config,
        "quantize": embedding.quantize,
    }
    tensors = {name: tensor.contiguous() for name, tensor in embedding.state_dict().items()}
    temporary = Path(f"{path}.part")
    try:
        save_file(tensors, temporary, metadata={"pocketrec": json.dumps(about)})
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return sum(tensor_bytes(embedding).values())


def load(path: str | PathLike) -> Embedding:
    """Rebuild a saved module in its inference form, without drawing its initial values.

    Raises:
        UserError: when the file is missing, truncated, or was not written by `save`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("pocketrec", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as a saved embedding: {error}") from None
    if about is None or about["method"] not in _KINDS:
        raise UserError(f"{path}: not an embedding written by pocketrec.embeddings.save")
    method = _KINDS[about["method"]]
    with undrawn():
        embedding = method(about["cardinalities"], about["dim"], seed=about["seed"], **about["config"])
        embedding = embedding.deploy(about["quantize"])
    try:
        embedding.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path}: its tensors are not those of a saved {about['method']}: {error}") from None
    return embedding.eval().requires_grad_(False)
