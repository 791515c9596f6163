"""What every backbone shares: an embedding of the contract, and the form that is served."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

from torch import Tensor, nn

from pocketrec.embeddings.base import Embedding
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
