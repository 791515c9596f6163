"""Deep hash embeddings: no table; a small network computes a row from many hashes of the id.

    e(t, x) = W_{L+1} y_L + b_{L+1},   y_l = relu(W_l y_{l-1} + b_l) in R^h,   y_0 = u(t, x) in [-1, 1)^k
    u_j(t, x) = ((a_tj x + b_tj) mod 2^64) / 2^63, taken as signed
    bytes = 4 sum_{t in tables} ((k + 1) h + (L - 1) (h + 1) h + (h + 1) dim) + 4 dim sum_{t not in tables} n_t

Kang et al., "Learning to Embed Categorical Features without Embedding Tables for Recommendation", KDD 2021; its
networks are 5 layers deep with batch normalisation and Mish over 1024 hashes.

The largest `tables` are encoded, by default as few as leave room for 16 hidden units; each has an encoder of its
own, since one for all would cost T times the multiplications a lookup at equal bytes. What tells ids apart is the
number of hashes: k = 16 h, up to 1024, unless `hashes` says otherwise. No batch normalisation, under which a row
would depend on the batch around it. A lookup costs as many multiplications as its encoder has weights.

Adagrad, whose first steps are as large as its learning rate whatever the gradient, would overwrite weights of a
network: they are kept in a unit of 3 / sqrt(inputs), so that a step moves them in proportion.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from pocketrec.embeddings.base import Embedding, Infeasible, generator, megabytes, uniform_
from pocketrec.embeddings.stores import Stored, Weights
from pocketrec.embeddings.whole_tables import WholeTables, largest
from pocketrec.kernels import multiply_shift

ENOUGH_HIDDEN, MOST_HIDDEN = 16, 1024
HASHES_PER_UNIT, MOST_HASHES = 16, 1024
UNIT = 3.0
OUTPUT_SCALE = 0.1  # of a row at the start


class DHE(Embedding):
    """One encoder for each of the largest tables, all of one shape; the rest stay whole."""

    name = "dhe"
    paper = "KDD 2021"

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        hashes: int | None = None,
        layers: int = 2,
        tables: int | None = None,
    ) -> dict[str, Any]:
        """Encode as few tables as leave room for hidden units, then bisect the largest hidden width."""
        if layers < 1 or (hashes is not None and hashes < 1) or (tables is not None and tables < 0):
            raise ValueError(
                f"dhe: layers and hashes must be at least 1, and tables at least 0; got {layers}, {hashes} and {tables}"
            )
        counts = range(len(cardinalities) + 1) if tables is None else [min(tables, len(cardinalities))]

        def config(count: int, hidden: int) -> dict[str, Any]:
            k = hashes or min(MOST_HASHES, HASHES_PER_UNIT * hidden)
            return {"tables": largest(cardinalities, count), "hidden": hidden, "layers": layers, "hashes": k}

        def size(count: int, hidden: int) -> int:
            return sum(stored.bytes() for stored in cls.stored(cardinalities, dim, **config(count, hidden)).values())

        best, chosen = 0, 0
        for count in counts:
            hidden = bisect_right(range(1, MOST_HIDDEN + 1), budget_bytes, key=lambda h, c=count: size(c, h))
            if hidden and hidden >= best:  # short of enough, a small table is worth less than an encoder's weights
                best, chosen = hidden, count
            if best >= ENOUGH_HIDDEN:
                break
        if not best:
            least = min(size(count, 1) for count in counts)
            raise Infeasible(
                f"dhe with one hidden unit needs {megabytes(least)}; the budget is {megabytes(budget_bytes)}, "
                "tables kept whole included"
            )
        return config(chosen, best)

    @classmethod
    def stored(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        *,
        tables: Sequence[int],
        hidden: int,
        layers: int,
        hashes: int,
    ) -> dict[str, Stored]:
        kept = {"whole.table.weight": WholeTables.stored(cardinalities, tables, dim)}
        for i, (inputs, outputs) in enumerate(pairwise([hashes, *[hidden] * layers, dim])):
            kept[f"layers.{i}.weight"] = Stored((len(tables), inputs + 1, outputs), "array")  # the last row is a bias
        return kept

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        *,
        seed: int,
        tables: Sequence[int],
        hidden: int,
        layers: int,
        hashes: int,
    ) -> None:
        super().__init__(
            cardinalities, dim, seed, tables=list(tables), hidden=hidden, layers=layers, hashes=hashes
        )  # fmt: skip
        self.whole = WholeTables(self.cardinalities, tables, dim, generator(seed))
        widths = [hashes, *[hidden] * layers, dim]
        self.layers = nn.ModuleList(Weights(len(tables), a + 1, b) for a, b in pairwise(widths))
        self.units = [UNIT / sqrt(inputs) for inputs in widths[:-1]]
        # of a layer's outputs, over the mean square of its inputs: 1/3 of hashes, 1/2 after a relu
        scales = [sqrt(3), *[sqrt(2)] * (layers - 1), OUTPUT_SCALE]
        draw = generator(seed, 1)
        for layer, scale in zip(self.layers, scales, strict=True):
            uniform_(layer.weight.data, sqrt(3) * scale / UNIT, draw)
            layer.weight.data[:, -1] = 0
        self.constant("columns", torch.tensor(tables, dtype=torch.long))
        self.constant("hash_coefficients", multiply_shift.coefficients(generator(seed, 2), 2, len(tables), 1, hashes))

    def lookup(self, ids: Tensor) -> Tensor:
        a, b = self.hash_coefficients  # [tables, 1, k] each
        hashed = ids[:, self.columns].T.unsqueeze(-1) * a + b  # [tables, batch, k], modulo 2^64
        y = None
        for layer, unit in zip(self.layers, self.units, strict=True):
            weight = layer() * unit
            y = hashed.to(weight.dtype) * 2.0**-63 if y is None else y.relu()
            y = torch.baddbmm(weight[:, -1:], y, weight[:, :-1])  # [tables, batch, outputs]
        return self.whole(ids, y.transpose(0, 1))

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        if feature not in self.config["tables"]:
            return self.whole.materialize(feature)[rows]
        t = self.config["tables"].index(feature)
        pairs = list(zip(*self.hash_coefficients[:, t, 0].tolist(), strict=True))
        ids = self.feature_rows(feature, rows).tolist()
        y = [[multiply_shift.signed(a * x + b) / 2**63 for a, b in pairs] for x in ids]
        y = self.layers[0].weight.new_tensor(y).view(len(ids), len(pairs))
        for layer, unit in zip(self.layers, self.units, strict=True):
            z = torch.cat([y, y.new_ones(len(ids), 1)], 1) @ (layer()[t] * unit)
            y = z.clamp(min=0)
        return z
