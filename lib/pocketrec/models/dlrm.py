"""DLRM: dense features through a bottom MLP, all vectors paired by dot products, a top MLP.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", 2019.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from pocketrec.embeddings.base import Embedding, generator
from pocketrec.kernels import interaction
from pocketrec.models.base import Backbone

MLP_STREAM = 999  # of the generators of a seed; methods draw from the first few


class DLRM(Backbone):
    """Click model over `num_dense` numbers and the features that `embedding` embeds.

        z = [x, {<v_i, v_j>}_{i<j}],   x = bottom(dense),   v = (x, e_1, .., e_F),   logit = top(z)

    Without dense features there is no bottom MLP, and z holds the products of the embeddings alone.

    Args:
        embedding: any method of `pocketrec.embeddings`.
        num_dense: number of dense features; may be 0.
        bottom_mlp: hidden widths; the last layer of width `embedding.out_dim` is added.
        top_mlp: hidden widths; the last layer of width 1 is added.
        seed: of the initial MLP weights, N(0, 2/(m+n)) with biases N(0, 1/m) as in DLRM's public code.
    """

    name = "dlrm"

    def __init__(
        self,
        embedding: Embedding,
        num_dense: int,
        bottom_mlp: Sequence[int] = (512, 256, 64),
        top_mlp: Sequence[int] = (512, 256),
        seed: int = 0,
    ) -> None:
        super().__init__(embedding, num_dense=num_dense, bottom_mlp=list(bottom_mlp), top_mlp=list(top_mlp))
        width = embedding.out_dim
        vectors = len(embedding.cardinalities) + (num_dense > 0)
        self.register_buffer("pairs", interaction.below_diagonal(vectors), persistent=False)
        draw = generator(seed, MLP_STREAM)
        self.bottom = mlp([num_dense, *bottom_mlp, width], draw, last=nn.ReLU()) if num_dense else None
        inputs = len(self.pairs) + (width if num_dense else 0)
        if not inputs:
            raise ValueError("DLRM needs two features or a dense one: there is nothing to pair")
        self.top = mlp([inputs, *top_mlp, 1], draw, last=nn.Identity())

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Return logits [batch] from dense float [batch, num_dense] and ids [batch, features]."""
        x = None if self.bottom is None else self.bottom(dense)
        products = self.embedding.pairs(ids, x)
        if products is None:
            products = self.interact(self.embedding(ids), x)
        return self.top(products if x is None else torch.cat([x, products], 1)).squeeze(1)

    def interact(self, vectors: Tensor, first: Tensor | None) -> Tensor:
        """Return the dot products of all pairs of vectors [batch, features, dim] and `first` [batch, dim]."""
        return interaction.pairs(vectors, first, self.pairs)


def mlp(widths: Sequence[int], draw: torch.Generator, last: nn.Module) -> nn.Sequential:
    """Return linear layers of the given widths with ReLU between them and `last` after the last."""
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        linear = nn.Linear(n, m)
        nn.init.normal_(linear.weight, 0, sqrt(2 / (m + n)), generator=draw)
        nn.init.normal_(linear.bias, 0, sqrt(1 / m), generator=draw)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1], last)
