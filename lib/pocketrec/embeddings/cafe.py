"""Hot ids own a row, all others share by hashing; which ids are hot is learned from a sketch of gradient norms.

    e(t, x) = H[slot(t, x)] if (t, x) is hot, else E_t[h_t(x)],   H in R^{hot x dim}, E_t in R^{m_t x dim}
    bytes = 4 dim (hot + sum_t m_t) + b hot

slot is a binary search in the sorted hot ids, b = 4 bytes each (8 beyond 2^31 ids). Training keeps in addition
the slots (4 hot bytes) and the sketch: `hot` buckets of 4 entries, each an id and a float32 score.

Zhang et al., "CAFE: Towards Compact, Adaptive, and Fast Embedding for Large-scale Recommendation Models",
SIGMOD 2024. An id's score is the sum of its gradients' norms; in a full bucket a newcomer takes the place of the
lowest entry and adds to its score (SpaceSaving). At `refreshes` points within the training the `hot` highest scores of
the sketch become hot and all scores are multiplied by `decay`: no threshold to be tuned. A promoted id starts from
a copy of the row it shared, a demoted one frees its slot. Tables kept whole (`hashing`) have no hot ids.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from pocketrec.embeddings.base import (
    FLOAT_BYTES,
    Embedding,
    Infeasible,
    draw_tables,
    generator,
    megabytes,
    offsets,
    share_out,
    tensor_bytes,
    uniform_,
)
from pocketrec.embeddings.stores import Rows, Stored
from pocketrec.kernels import universal_hash

ENTRIES = 4  # of a bucket of the sketch


class Cafe(Embedding):
    """A hashed table whose hottest ids have left it for rows of their own."""

    name = "cafe"
    paper = "SIGMOD 2024"

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        hot_share: float = 0.3,
        threshold: int = 200,
        refreshes: int = 50,
        decay: float = 0.95,
    ) -> dict[str, Any]:
        """Give `hot_share` of the budget to hot ids and the rest to hashed tables."""
        row = FLOAT_BYTES * dim
        per_hot = row + _id_bytes(cardinalities)
        left = (budget_bytes - len(cardinalities) * row) // per_hot  # every table needs a row of its own
        hot = max(1, int(min(hot_share * budget_bytes // per_hot, left, sum(cardinalities))))
        rows = share_out(cardinalities, (int(budget_bytes) - hot * per_hot) // row, threshold)
        if rows is None:
            raise Infeasible(
                f"cafe with {hot} hot ids and a single row a table needs "
                f"{megabytes(hot * per_hot + len(cardinalities) * row)}; the budget is {megabytes(budget_bytes)}"
            )
        return {"hot": hot, "rows": rows, "refreshes": refreshes, "decay": decay}

    @classmethod
    def stored(
        cls, cardinalities: Sequence[int], dim: int, *, hot: int, rows: Sequence[int], **_: Any
    ) -> dict[str, Stored]:
        return {
            "table.weight": Stored((hot + sum(rows), dim), "rows"),
            "hot_ids": Stored((hot,), "fixed", _id_bytes(cardinalities)),
        }

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        *,
        seed: int,
        hot: int,
        rows: Sequence[int],
        refreshes: int = 50,
        decay: float = 0.95,
    ) -> None:
        super().__init__(cardinalities, dim, seed, hot=hot, rows=list(rows), refreshes=refreshes, decay=decay)
        self.table = Rows(hot + sum(rows), dim)  # hot rows, then the hashed tables stacked
        self.constant("starts", offsets(self.cardinalities))  # id x of table t is x + starts[t] among all
        self.constant("rows", torch.tensor(rows))
        self.constant("row_starts", offsets(rows) + hot)
        self.constant("whole", self.rows == self.limits)
        self.constant("hashes", universal_hash.coefficients(generator(seed, 1), 2, len(rows)))
        self.constant("bucket_hash", universal_hash.coefficients(generator(seed, 2), 2))
        ids = torch.int64 if _id_bytes(cardinalities) == 8 else torch.int32
        self.nobody = torch.iinfo(ids).max  # sorts behind every id
        self.register_buffer("hot_ids", torch.full((hot,), self.nobody, dtype=ids))
        self.register_buffer("hot_slots", torch.arange(hot, dtype=torch.int32))
        self.register_buffer("sketch_ids", torch.full((hot, ENTRIES), self.nobody, dtype=ids))
        self.register_buffer("sketch_scores", torch.zeros(hot, ENTRIES))
        draw = generator(seed)
        uniform_(self.table.weight.data[:hot], max(self.cardinalities) ** -0.5, draw)
        draw_tables(self.table.weight[hot:], self.config["rows"], self.cardinalities, draw)
        self._seen: tuple[Tensor, Tensor] | None = None  # ids and gradients of the last step

    def lookup(self, ids: Tensor) -> Tensor:
        unique = ids + self.starts
        place = torch.searchsorted(self.hot_ids, unique.to(self.hot_ids.dtype)).clamp(max=len(self.hot_ids) - 1)
        slot = place if self.served else self.hot_slots[place].long()
        index = torch.where(self.hot_ids[place] == unique, slot, self._shared(ids, slice(None)))
        rows = self.table(index)
        if self.training and rows.requires_grad and not torch.compiler.is_compiling():
            rows.register_hook(lambda gradient: self._see(unique, gradient))
        return rows

    def _see(self, ids: Tensor, gradient: Tensor | None) -> None:
        self._seen = None if gradient is None else (ids, gradient)

    def _shared(self, ids: Tensor, features: Tensor | slice) -> Tensor:
        """Return the shared row of ids, whose features broadcast against them."""
        slots = universal_hash.slot(ids, *self.hashes[:, features], self.rows[features])
        return torch.where(self.whole[features], ids, slots) + self.row_starts[features]

    @torch.no_grad()
    def adapt(self, step: int, total: int, optimizer: torch.optim.Optimizer) -> None:
        if self._seen is not None:
            (ids, gradient), self._seen = self._seen, None
            shared = (~self.whole).expand_as(ids)
            self._score(ids[shared], gradient[shared].norm(dim=1))
        parts = self.config["refreshes"] + 1  # of the training, which refreshes lie between: none comes after its end
        if step < total and step * parts // total > (step - 1) * parts // total:
            optimizer.reset(self.table.weight, self._refresh())
            self.sketch_scores *= self.config["decay"]

    def _score(self, ids: Tensor, norms: Tensor) -> None:
        """Add gradient norms [k] of ids [k] to the sketch."""
        ids, position = ids.unique(return_inverse=True)
        norms = norms.new_zeros(len(ids)).index_add_(0, position, norms).to(self.sketch_scores)
        a, b = self.bucket_hash
        bucket = universal_hash.add(universal_hash.multiply(a, ids), b) % len(self.sketch_ids)
        entries = self.sketch_ids[bucket] == ids.unsqueeze(1)  # [ids, entries]
        known, entry = entries.any(1), entries.int().argmax(1)
        self.sketch_scores.index_put_((bucket[known], entry[known]), norms[known], accumulate=True)
        # of the newcomers to a bucket only the strongest is let in: sorted by bucket, then norm, it is the last
        ids, norms, bucket = ids[~known], norms[~known], bucket[~known]
        order = norms.argsort()
        order = order[bucket[order].argsort(stable=True)]
        last = torch.ones_like(order, dtype=torch.bool)
        last[:-1] = bucket[order][1:] != bucket[order][:-1]
        ids, norms, bucket = (values[order[last]] for values in (ids, norms, bucket))
        weakest = self.sketch_scores[bucket].argmin(1)
        self.sketch_ids[bucket, weakest] = ids.to(self.sketch_ids.dtype)
        self.sketch_scores[bucket, weakest] += norms

    def _refresh(self) -> Tensor:
        """Make the highest scores of the sketch hot; return the slots that changed hands."""
        hot = len(self.hot_ids)
        top = self.sketch_ids.flatten()[self.sketch_scores.flatten().topk(hot).indices]
        top = top[top != self.nobody].sort().values
        stays = torch.isin(self.hot_ids, top)
        fresh = top[~torch.isin(top, self.hot_ids)]
        free = self.hot_slots[~stays]
        slots = free[: len(fresh)].long()
        feature = torch.searchsorted(self.starts, fresh.long(), right=True) - 1
        self.table.weight[slots] = self.table.weight[self._shared(fresh - self.starts[feature], feature)]
        nobody = self.hot_ids.new_full((len(free) - len(fresh),), self.nobody)
        ids, order = torch.cat([self.hot_ids[stays], fresh, nobody]).sort()
        self.hot_slots.copy_(torch.cat([self.hot_slots[stays], free])[order])
        self.hot_ids.copy_(ids)
        return slots

    @property
    def served(self) -> bool:
        """Whether this is the inference form: hot rows lie in the order of their ids, without slots and sketch."""
        return "hot_slots" not in self._buffers

    def folded(self) -> Embedding:
        served = deepcopy(self)
        if not self.served:
            served.table.weight.data[: len(self.hot_ids)] = self.table.weight.data[self.hot_slots.long()]
            for name in ("hot_slots", "sketch_ids", "sketch_scores"):
                del served._buffers[name]
        return served

    def inference_tensors(self) -> dict[str, int]:
        return {name: size for name, size in tensor_bytes(self).items() if not name.startswith(("hot_slots", "sketch"))}

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        start, size = sum(self.cardinalities[:feature]), self.config["rows"][feature]
        a, b = self.hashes[:, feature].tolist()
        slots = range(self.config["hot"]) if self.served else self.hot_slots.tolist()
        hot = dict(zip(self.hot_ids.tolist(), slots, strict=True))
        own = size == self.cardinalities[feature]
        first = self.config["hot"] + sum(self.config["rows"][:feature])
        ids = self.feature_rows(feature, rows).tolist()
        shared = [first + (x if own else (a * x + b) % universal_hash.P % size) for x in ids]
        return self.table.weight[[hot.get(start + x, row) for x, row in zip(ids, shared, strict=True)]]


def _id_bytes(cardinalities: Sequence[int]) -> int:
    return 4 if sum(cardinalities) < (1 << 31) - 1 else 8
