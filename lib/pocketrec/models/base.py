"""What every backbone shares: an embedding of the contract, and the form that is served."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

from torch import Tensor, nn

from pocketrec.embeddings.base import Embedding, full_bytes
from pocketrec.embeddings.stores import Quantize


class Backbone(nn.Module):
    """A click model over an embedding. A subclass gives `forward(dense, ids) -> logits [batch]`.

    Attributes:
        name: what params files and saved models call it.
        shape: the arguments, beside the embedding and the seed, that rebuild it.
    """

    name: ClassVar[str]

    def __init__(self, embedding: Embedding, **shape: Any) -> None:
        super().__init__()
        self.embedding = embedding
        self.shape = shape

    def deploy(self, quantize: Quantize | None = None) -> Backbone:
        """Return a copy with the embedding in its inference form, ready to predict."""
        served = deepcopy(self, {id(self.embedding): self.embedding.deploy(quantize)})  # the table is copied once
        return served.eval().requires_grad_(False)

    def dense_state(self) -> dict[str, Tensor]:
        """Return the weights outside the embedding, by name."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("embedding.")}

    def sizes(self, ratio: float, quantize: Quantize | None = None) -> dict[str, float]:
        """Return real bytes and ratios for a record, served as `deploy(quantize)`.

        ratio_achieved counts the embedding alone (full float32 tables over the inference form), model_ratio
        the MLPs as well: at 10,000x those are the larger part.
        """
        storage = self.embedding.storage(quantize)
        full = full_bytes(self.embedding.cardinalities, self.embedding.dim)
        dense = sum(t.numel() * t.element_size() for t in self.dense_state().values())
        return {
            "full_bytes": full,
            "budget_bytes": full / ratio,
            "ratio_requested": ratio,
            "ratio_achieved": full / storage.inference_bytes,
            "inference_bytes": storage.inference_bytes,
            "training_bytes": storage.training_bytes,
            "optimizer_bytes": storage.optimizer_bytes,
            "dense_bytes": dense,
            "model_ratio": (full + dense) / (storage.inference_bytes + dense),
        }
