"""Backbones: they take an embedding of the contract, never the name of a method."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from pocketrec import embeddings
from pocketrec.errors import unknown
from pocketrec.models.base import Backbone
from pocketrec.models.dlrm import DLRM
from pocketrec.models.gmf import GMF

__all__ = ["DLRM", "GMF", "MODELS", "build", "load", "save"]

MODELS: dict[str, type[Backbone]] = {model.name: model for model in (DLRM, GMF)}


def build(
    name: str,
    embedding: embeddings.Embedding,
    num_dense: int,
    bottom_mlp: Sequence[int],
    top_mlp: Sequence[int],
    seed: int = 0,
) -> Backbone:
    """Build a model by name over an embedding and `num_dense` numbers; one without MLPs has no use for theirs."""
    if name not in MODELS:
        raise unknown("model", name, MODELS, "models")
    if name == "gmf":
        return GMF(embedding, num_dense)
    return DLRM(embedding, num_dense, bottom_mlp, top_mlp, seed=seed)


def save(model: Backbone, folder: Path | str) -> int:
    """Write a deployed model as `embedding.safetensors` and `mlp.safetensors`; return the embedding's bytes."""
    folder = Path(folder)
    about = {name: json.dumps(value) for name, value in {"model": model.name, **model.shape}.items()}
    save_file(model.dense_state(), folder / "mlp.safetensors", metadata=about)
    (folder / "mlp.safetensors").chmod(0o644)
    return embeddings.save(model.embedding, folder / "embedding.safetensors")


def load(folder: Path | str) -> Backbone:
    """Read back what `save` wrote, ready to predict."""
    folder = Path(folder)
    with safe_open(folder / "mlp.safetensors", framework="pt") as file:
        shape = {name: json.loads(value) for name, value in file.metadata().items()}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = shape.pop("model", "dlrm")
    model = MODELS[name](embeddings.load(folder / "embedding.safetensors"), **shape)
    model.load_state_dict(weights, strict=False)
    return model.eval().requires_grad_(False)
