"""Product quantisation learned in training: a row is a few codes, each the number of a word in a small codebook.

    e(t, x) = concat_{g < D} V_tg[code_tg(x)],   code_tg(x) = argmin_k |Q_t[x]_g - V_tg[k]|^2,   V_tg in R^{K x dim/D}
    bytes = N D log2(K) / 8 + 1 + 4 K dim |coded| + 4 dim sum_{t whole} n_t,   N = sum_{t coded} n_t

Chen, Li & Sun, "Differentiable Product Quantization for End-to-End Embedding Compression", ICML 2020, in its
vector-quantising form. Training keeps the queries Q, as large as the full tables and more; only codes, packed to
the bit, and codebooks are served. The forward pass gives the words; the gradient reaches them and,
straight through, the queries. A table smaller whole than coded is kept whole.

`mgqe` (Kang et al., "Learning Multi-granular Quantized Embeddings for Large-Vocab Categorical Features in
Recommender Systems", WWW 2020) lets all but the `head_share` most frequent ids choose among the first
K' = 2^tail_bits words only. Which those are is counted in training (4 N bytes) and settled anew at `SETTLINGS` points:

    bytes as above with K' for K in the codes, + H (D log2(K/K') / 8 + b) + 1,   H = head_share N

where b = 4 bytes (8 beyond 2^31 ids) name an id of the head: its codes lie there beside their high bits.
"""

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from math import ceil
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketrec.embeddings import base
from pocketrec.embeddings.base import (
    FLOAT_BYTES,
    Embedding,
    Infeasible,
    draw_tables,
    generator,
    megabytes,
    offsets,
    tensor_bytes,
    uniform_,
)
from pocketrec.embeddings.stores import Rows, Stored, Weights

CHUNK = 1 << 16  # rows encoded at a time
SETTLINGS = 20  # of who is in the head, in a training


class Dpq(Embedding):
    """D codes of `bits` bits a row; tables share no codebook."""

    name = "dpq"
    paper = "ICML 2020"

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        groups: int | None = None,
        bits: int | None = None,
    ) -> dict[str, Any]:
        """Try every number of groups that divides dim and every word length up to 8 bits."""
        return cls._largest(cardinalities, dim, budget_bytes, groups, bits, lambda bits: [(bits, 0.0)])

    @classmethod
    def _largest(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        groups: int | None,
        bits: int | None,
        granularities: Callable[[int], list[tuple[int, float]]],
    ) -> dict[str, Any]:
        """Return the config of most bits a row; `granularities` gives tail bits and share of the head for `bits`."""
        divisors, words = [d for d in range(1, dim + 1) if dim % d == 0], range(1, 9)
        if groups not in (None, *divisors) or bits not in (None, *words):
            raise ValueError(f"{cls.name}: groups must divide dim = {dim}, and bits be 1 to 8; got {groups} and {bits}")
        best, least = None, None
        for d in divisors if groups is None else [groups]:
            for b in words if bits is None else [bits]:
                coded = sum(cardinalities[t] for t in cls._coded(cardinalities, dim, d, b))
                for tail_bits, head_share in granularities(b):
                    head = int(head_share * coded)
                    config = {"groups": d, "bits": b, "tail_bits": tail_bits if head else b, "head": head}
                    size = sum(s.bytes() for s in cls.stored(cardinalities, dim, **config).values())
                    least = min(least or size, size)
                    # more bits a row first; of equals, longer words
                    if size <= budget_bytes and (best is None or (d * b, b) > best[0]):
                        best = (d * b, b), config
        if best is None:
            raise Infeasible(f"{cls.name} needs at least {megabytes(least)}; the budget is {megabytes(budget_bytes)}")
        return best[1]

    @staticmethod
    def _coded(cardinalities: Sequence[int], dim: int, groups: int, bits: int) -> list[int]:
        """Return the tables that are smaller as codes and a codebook than whole."""
        row, book = FLOAT_BYTES * dim, FLOAT_BYTES * dim * 2**bits
        return [t for t, n in enumerate(cardinalities) if n * groups * bits / 8 + book < n * row]

    @classmethod
    def stored(
        cls, cardinalities: Sequence[int], dim: int, *, groups: int, bits: int, tail_bits: int, head: int
    ) -> dict[str, Stored]:
        coded = cls._coded(cardinalities, dim, groups, bits)
        codes = sum(cardinalities[t] for t in coded)
        whole = sum(cardinalities) - codes
        kept = {
            "table.weight": Stored((whole, dim), "rows"),
            "codebook.weight": Stored((len(coded), groups, 2**bits, dim // groups), "array"),
            "codes": Stored((_bytes(codes * groups * tail_bits),), "fixed", 1),
        }
        if head:
            kept["head_codes"] = Stored((_bytes(head * groups * (bits - tail_bits)),), "fixed", 1)
            kept["head_ids"] = Stored((head,), "fixed", _id_bytes(cardinalities))
        return kept

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        *,
        seed: int,
        groups: int,
        bits: int,
        tail_bits: int,
        head: int,
    ) -> None:
        super().__init__(cardinalities, dim, seed, groups=groups, bits=bits, tail_bits=tail_bits, head=head)
        coded = self._coded(self.cardinalities, dim, groups, bits)
        self.served = False
        self.table = Rows(sum(self.cardinalities), dim)  # the queries; whole tables alone once served
        self.codebook = Weights(len(coded), groups, 2**bits, dim // groups)
        whole = [t for t in range(len(self.cardinalities)) if t not in coded]
        self.constant("starts", offsets(self.cardinalities))
        self.constant("coded", torch.tensor(coded, dtype=torch.long))
        self.constant("whole", torch.tensor(whole, dtype=torch.long))
        self.constant("code_starts", _offsets(self.cardinalities, coded))
        self.constant("whole_starts", _offsets(self.cardinalities, whole))
        self.constant("order", torch.tensor([*whole, *coded]).argsort())
        self.constant("books", torch.arange(len(coded) * groups).view(-1, groups) << bits)
        draw = generator(seed)
        draw_tables(self.table.weight, self.cardinalities, self.cardinalities, draw)
        for t, book in zip(coded, self.codebook.weight.data, strict=True):
            uniform_(book, self.cardinalities[t] ** -0.5, draw)
        if head:
            codes = sum(self.cardinalities[t] for t in coded)
            ids = torch.int64 if _id_bytes(cardinalities) == 8 else torch.int32
            self.register_buffer("head_ids", torch.arange(head, dtype=ids))
            self.register_buffer("counts", torch.zeros(codes, dtype=torch.int32))
        self._seen: Tensor | None = None  # entries of the last training batch

    def lookup(self, ids: Tensor) -> Tensor:
        entries = ids.index_select(1, self.coded) + self.code_starts
        if self.served:
            whole = self.table(ids.index_select(1, self.whole) + self.whole_starts)
            words = self._words(self._read(entries))
        else:
            rows = self.table(ids + self.starts)
            whole, queries = rows.index_select(1, self.whole), rows.index_select(1, self.coded)
            words = self._words(self._encode(queries, entries))
            words = words + (queries - queries.detach())  # adds nothing but a gradient
            if self.config["head"] and self.training and not torch.compiler.is_compiling():
                self._seen = entries
        return torch.cat([whole, words], 1).index_select(1, self.order)

    def _words(self, codes: Tensor) -> Tensor:
        """Look up codes [batch, coded, groups] -> [batch, coded, dim]."""
        return F.embedding(codes + self.books, self.codebook().flatten(0, 2)).flatten(2)

    def _encode(self, queries: Tensor, entries: Tensor, coded: slice = slice(None)) -> Tensor:
        """Return the codes [n, coded, groups] of queries [n, coded, dim], which are those of `entries` [n, coded]."""
        codebook = self.codebook.weight.detach()[coded]
        queries = queries.detach().unflatten(2, (codebook.shape[1], -1))
        codes = nearest(queries, codebook)
        if self.config["head"]:
            tail = nearest(queries, codebook[:, :, : 1 << self.config["tail_bits"]])
            codes = torch.where(self._in_head(entries)[0].unsqueeze(-1), codes, tail)
        return codes

    def _in_head(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether entries belong to the head, and where in it."""
        place = torch.searchsorted(self.head_ids, entries.to(self.head_ids.dtype)).clamp(max=len(self.head_ids) - 1)
        return self.head_ids[place] == entries, place

    def _read(self, entries: Tensor) -> Tensor:
        """Unpack the served codes of entries [batch, coded] -> [batch, coded, groups]."""
        groups, bits, tail_bits = (self.config[name] for name in ("groups", "bits", "tail_bits"))
        codes = unpack(self.codes, entries, groups, tail_bits)
        if self.config["head"]:
            inside, place = self._in_head(entries)
            high = unpack(self.head_codes, place, groups, bits - tail_bits) << tail_bits
            codes = codes + high * inside.unsqueeze(-1)
        return codes

    @torch.no_grad()
    def folded(self) -> Embedding:
        if self.served:
            return deepcopy(self)
        tables = self.table.weight.split(self.cardinalities)
        served = copy(self)
        served.served = True
        served._modules, served._buffers = {"codebook": deepcopy(self.codebook)}, dict(self._buffers)
        served.table = Rows(0, self.dim)
        served.table.weight = nn.Parameter(torch.cat([self.table.weight[:0], *(tables[t] for t in self.whole)]))
        codes, tail_bits = self._all_codes(), self.config["tail_bits"]
        served.register_buffer("codes", pack(codes & ((1 << tail_bits) - 1), tail_bits))
        if self.config["head"]:
            del served._buffers["counts"]
            served._buffers["head_ids"] = self.head_ids.clone()  # which training goes on to change
            high = codes[self.head_ids.long()] >> tail_bits
            served.register_buffer("head_codes", pack(high, self.config["bits"] - tail_bits))
        return served

    def _all_codes(self) -> Tensor:
        """Return the codes of all ids of coded tables, uint8 [entries, groups]."""
        queries = [self.table.weight[s : s + self.cardinalities[t]] for t, s in self._coded_starts()]
        parts = [torch.empty(0, self.config["groups"], dtype=torch.uint8, device=self.limits.device)]
        for i, table in enumerate(queries):
            if not base._drawing:  # codes are about to be loaded
                parts.append(parts[0].new_zeros(len(table), self.config["groups"]))
                continue
            entries = torch.arange(len(table), device=table.device) + self.code_starts[i]
            for query, entry in zip(table.split(CHUNK), entries.split(CHUNK), strict=True):
                codes = self._encode(query.unsqueeze(1), entry.unsqueeze(1), slice(i, i + 1))
                parts.append(codes.squeeze(1).byte())
        return torch.cat(parts)

    def _coded_starts(self) -> list[tuple[int, int]]:
        return [(t, sum(self.cardinalities[:t])) for t in self.coded.tolist()]

    def inference_tensors(self) -> dict[str, int]:
        return tensor_bytes(self) if self.served else self.planned_tensors()

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        whole, coded = self.whole.tolist(), self.coded.tolist()
        before = [t for t in (whole if self.served else range(len(self.cardinalities))) if t < feature]
        start = sum(self.cardinalities[t] for t in before)
        ids = self.feature_rows(feature, rows)
        if feature in whole:
            return self.table.weight[start + ids]
        groups, bits, tail_bits = (self.config[name] for name in ("groups", "bits", "tail_bits"))
        book = self.codebook()[coded.index(feature)]
        entries = [x + sum(self.cardinalities[t] for t in coded if t < feature) for x in ids.tolist()]
        head = {e: i for i, e in enumerate(self.head_ids.tolist())} if self.config["head"] else {}

        def digits(packed: Tensor, entry: int, width: int) -> list[int]:
            number = int.from_bytes(bytes(packed.tolist()), "little") >> entry * groups * width
            return [number >> width * g & ((1 << width) - 1) for g in range(groups)]

        codes = []
        for x, e in zip(ids.tolist(), entries, strict=True):
            if self.served:
                low = digits(self.codes, e, tail_bits)
                high = digits(self.head_codes, head[e], bits - tail_bits) if e in head else [0] * groups
                codes.append([a + (b << tail_bits) for a, b in zip(low, high, strict=True)])
            else:
                allowed = book[:, : 1 << (bits if e in head or not self.config["head"] else tail_bits)]
                query = self.table.weight[start + x].view(groups, 1, -1)
                codes.append((query - allowed).square().sum(2).argmin(1).tolist())
        words = [book[g, [code[g] for code in codes]] for g in range(groups)]
        return torch.cat(words, 1)


class Mgqe(Dpq):
    """Product quantisation in which all but the most frequent ids have fewer words to choose from."""

    name = "mgqe"
    paper = "WWW 2020"

    @classmethod
    def solve(
        cls,
        cardinalities: Sequence[int],
        dim: int,
        budget_bytes: float,
        *,
        groups: int | None = None,
        bits: int | None = None,
        tail_bits: int | None = None,
        head_share: float = 0.1,
    ) -> dict[str, Any]:
        """As `dpq`; where nothing is said the tail has two bits fewer than the head, as 64 words beside 256.

        At high ratios the names of the head cost more than its bits are worth, and it is left empty.
        """
        if not 0 <= head_share <= 1 or (tail_bits is not None and tail_bits < 1):
            raise ValueError(
                "mgqe: head_share must lie between 0 and 1, and tail_bits be at least 1; "
                f"got {head_share} and {tail_bits}"
            )

        def granularities(bits: int) -> list[tuple[int, float]]:
            if tail_bits is not None:
                return [(min(bits, tail_bits), head_share if tail_bits < bits else 0.0)]
            return ([(bits - 2, head_share)] if bits > 2 else []) + [(bits, 0.0)]

        return cls._largest(cardinalities, dim, budget_bytes, groups, bits, granularities)

    @torch.no_grad()
    def adapt(self, step: int, total: int, optimizer: torch.optim.Optimizer) -> None:
        if not self.config["head"] or self._seen is None:
            return
        seen, self._seen = self._seen.flatten(), None
        self.counts.index_add_(0, seen, torch.ones_like(seen, dtype=torch.int32))
        if step < total and step * SETTLINGS // total > (step - 1) * SETTLINGS // total:
            top = self.counts.topk(len(self.head_ids)).indices
            self.head_ids.copy_(top.sort().values)


def nearest(queries: Tensor, codebook: Tensor, chunk: int = 1 << 18) -> Tensor:
    """Return the number of the nearest word, queries [n, coded, groups, w] -> int64 [n, coded, groups].

    Squared differences are added up one by one, in chunks of that many distances: a matrix product rounds so that
    words that lie close together would be told apart differently in batches of different size.
    """
    words = codebook.flatten(0, 1).movedim(2, 0).unsqueeze(2)  # [w, coded groups, 1, words]
    pieces = queries.flatten(1, 2).movedim(2, 0).transpose(1, 2).unsqueeze(3)  # [w, coded groups, n, 1]
    parts = []
    for part in pieces.split(max(1, chunk // max(1, words[0].numel())), 2):
        distance = (part[0] - words[0]).square_()
        for one, other in zip(part[1:], words[1:], strict=True):
            distance += (one - other).square_()
        parts.append(distance.min(2).indices)
    return torch.cat(parts, 1).movedim(0, 1).view(queries.shape[:3])


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes [n, groups] into a stream of `bits` bits each, lowest first, and a spare byte: uint8 [bytes]."""
    parts = [np.zeros(0, np.uint8)]
    for part in codes.flatten().split(CHUNK):  # a multiple of 8 codes: whole bytes
        digits = np.unpackbits(part.cpu().numpy()[:, None], axis=1, count=bits, bitorder="little")
        parts.append(np.packbits(digits, bitorder="little"))
    return torch.from_numpy(np.concatenate([*parts, np.zeros(1, np.uint8)])).to(codes.device)


def unpack(packed: Tensor, entries: Tensor, groups: int, bits: int) -> Tensor:
    """Read the codes of entries [...] -> int64 [..., groups]; a code lies in one byte or across two."""
    position = (entries.unsqueeze(-1) * groups + torch.arange(groups, device=packed.device)) * bits
    place = position // 8
    pair = packed[place].long() + (packed[place + 1].long() << 8)
    return pair >> position % 8 & ((1 << bits) - 1)


def _bytes(bits: int) -> int:
    """Return the bytes of a packed stream: whole bytes, and the one behind the last that may be read with it."""
    return ceil(bits / 8) + 1


def _offsets(cardinalities: Sequence[int], chosen: Sequence[int]) -> Tensor:
    return offsets([cardinalities[t] for t in chosen] or [0])[: len(chosen)]


def _id_bytes(cardinalities: Sequence[int]) -> int:
    return 4 if sum(cardinalities) < 1 << 31 else 8
