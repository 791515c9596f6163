"""Backbones: they take an embedding of the contract, never the name of a method."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from pocketrec import embeddings
from pocketrec.models.dlrm import DLRM

__all__ = ["DLRM", "load", "save"]


def save(model: DLRM, folder: Path | str) -> int:
    """Write a deployed model as `embedding.safetensors` and `mlp.safetensors`; return the embedding's bytes."""
    folder = Path(folder)
    about = {name: json.dumps(value) for name, value in model.shape.items()}
    save_file(model.dense_state(), folder / "mlp.safetensors", metadata=about)
    (folder / "mlp.safetensors").chmod(0o644)
    return embeddings.save(model.embedding, folder / "embedding.safetensors")


def load(folder: Path | str) -> DLRM:
    """Read back what `save` wrote, ready to predict."""
    folder = Path(folder)
    with safe_open(folder / "mlp.safetensors", framework="pt") as file:
        shape = {name: json.loads(value) for name, value in file.metadata().items()}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = DLRM(embeddings.load(folder / "embedding.safetensors"), **shape)
    model.load_state_dict(weights, strict=False)
    return model.eval().requires_grad_(False)
