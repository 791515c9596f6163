"""What is timed: every family of operators of this project, and torch's ways to the same result.

A `Contestant` builds a `Lookup` for given tables. All uncompressed ones read the same memory, so that a table of
gigabytes exists once, with the same pages for everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketrec import embeddings
from pocketrec.embeddings.base import Embedding, full_bytes, offsets, undrawn
from pocketrec.embeddings.stores import Array, Packed, Rows
from pocketrec.kernels import interaction, native, robe
from pocketrec.optim import SGD
from pocketrec.speed.machine import fill, gather, huge

LR = 0.01
OURS, PLAIN, COMPILED, LIMIT = "pocketrec", "plain PyTorch", "torch.compile", "limit"
CONTRACTED, LOWER = "pocketrec, contracted", "pocketrec, bf16 rows"
UNIQUE = "plain PyTorch, unique ids"
APART = "pocketrec, looked up and then paired"


class Unavailable(Exception):
    """A contestant cannot run here; the message says why."""


@dataclass
class Tables:
    """What is looked up: tables of some sizes and width on a device, and the uncompressed numbers, made when asked."""

    cardinalities: Sequence[int]
    dim: int
    device: str = "cpu"
    _weight: Tensor | None = field(default=None, repr=False)
    _outputs: dict[torch.Size, Tensor] = field(default_factory=dict, repr=False)

    def output(self, ids: Tensor) -> Tensor:
        """Memory for what ids look up, [*ids.shape, dim]: the same for everyone."""
        if ids.shape not in self._outputs:
            self._outputs[ids.shape] = torch.empty(*ids.shape, self.dim, device=self.device)
        return self._outputs[ids.shape]

    @property
    def weight(self) -> Tensor:
        """All tables stacked, [rows, dim], filled with random numbers."""
        if self._weight is None:
            fits(full_bytes(self.cardinalities, self.dim), self.device)
            weight = fill(huge(torch.empty(sum(self.cardinalities), self.dim, device=self.device)))
            self._weight = nn.Parameter(weight)
        return self._weight

    @property
    def offsets(self) -> Tensor:
        """Where each table starts, int64 [tables]."""
        return offsets(self.cardinalities).to(self.device)


@dataclass
class Lookup:
    """One way to look up and to train, over real memory.

    Attributes:
        forward: ids int64 [batch, features] -> [batch, features, dim], without gradients.
        step: ids and the gradient of the output -> forward, backward and an SGD update with rate `LR`; None where
            this way cannot be trained.
        expected: ids -> the same output by the obvious route, for checking.
        weights: what `expected` depends on and a step changes.
        prepare: brings ids into the layout that this way wants, before the clock starts.
        memory: the bytes of all that may be read, and of a row; of `weights` in float32 rows where it is not said.
        itemsize: bytes of a number of output and gradient.
    """

    forward: Callable[[Any], Tensor]
    step: Callable[[Any, Tensor], None] | None
    expected: Callable[[Tensor], Tensor]
    weights: list[Tensor]
    prepare: Callable[[Tensor], Any] = lambda ids: ids
    memory: tuple[int, int] | None = None
    itemsize: int = 4


@dataclass(frozen=True)
class Contestant:
    """A family and a way (`route`) with its settings; `build` raises `Unavailable`, or makes a `Lookup`."""

    family: str
    route: str
    build: Callable[[Tables], Lookup] = field(compare=False)
    ratio: float | None = None
    block_size: int | None = None
    hash: str | None = None
    rank: int | None = None
    only: str = ""  # the kind of device that it runs on, cpu or cuda, where it is one

    @property
    def settings(self) -> dict[str, Any]:
        """What tells it apart, as columns."""
        return {
            "family": self.family,
            "route": self.route,
            "ratio": self.ratio,
            "block_size": self.block_size,
            "hash": self.hash,
            "rank": self.rank,
        }

    def __str__(self) -> str:
        words = [self.family, f"Z={self.block_size}" if self.block_size else "", self.hash or ""]
        words += [f"rank {self.rank}" if self.rank else "", f"{self.ratio:,.0f}x" if self.ratio else "", self.route]
        return " ".join(word for word in words if word)


def fits(size: int, device: str) -> None:
    """Raise `Unavailable` unless so many bytes can be had beside what is there."""
    if device != "cpu":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        import psutil

        free = psutil.virtual_memory().available
    if size > 0.85 * free:
        raise Unavailable(f"needs {size / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")


# this project's methods


def ours(name: str, of: Tables, route: str = OURS, **settings: Any) -> Lookup:
    """Build a method of `pocketrec.embeddings`; `route` is our kernels or plain PyTorch."""
    if route == OURS and of.device == "cpu" and native.problem("robe"):
        raise Unavailable(f"no kernels: {native.problem('robe')}")
    with undrawn():
        module = embeddings.build(name, cardinalities=of.cardinalities, dim=of.dim, **settings)
    module = module.to(of.device)
    for parameter in module.parameters():
        if name == "full":
            parameter.data = of.weight.data
        else:
            fill(huge(parameter.data))
    return _lookup(module, route)


def _lookup(module: Embedding, route: str) -> Lookup:
    optimizer, plain = SGD(module.parameters(), lr=LR), route == PLAIN
    stores = [store for store in module.modules() if isinstance(store, Rows | Array)]
    in_stores = {id(store.weight) for store in stores}
    left = plain or any(id(p) not in in_stores for p in module.parameters())  # not trained where its gradient arises

    def train(trainer: SGD | None) -> None:  # `optim.in_place` without its beginning and end, which a training has once
        for store in stores:
            if store.trainer is not trainer:
                store.trainer = trainer

    def without_kernels(ids: Tensor) -> Tensor:
        with native.off():
            return module(ids)

    def step(ids: Tensor, gradient: Tensor) -> None:
        train(None if plain else optimizer)
        with native.off() if plain else nullcontext():
            module(ids).backward(gradient)
            if left:
                optimizer.step()
                optimizer.zero_grad()

    def expected(ids: Tensor) -> Tensor:
        train(None)
        return without_kernels(ids)

    trained = [p for p in module.parameters() if p.requires_grad]
    return Lookup(without_kernels if plain else module, step, expected, trained)


def lower(tables: Tables, checked: int = 1 << 14) -> Lookup:
    """Build the table in bfloat16, whose output and gradient are of that type too.

    It is held against an update in float32 that is rounded once, in which every lookup of up to `checked` has a part.
    """
    fits(full_bytes(tables.cardinalities, tables.dim) // 2, tables.device)
    with undrawn():
        module = embeddings.build("full", cardinalities=tables.cardinalities, dim=tables.dim)
    weight = torch.empty(module.table.weight.shape, dtype=torch.bfloat16, device=tables.device)
    module.table.weight = nn.Parameter(fill(huge(weight)))
    own, start = _lookup(module.to(tables.device), OURS), tables.offsets
    change = torch.zeros(min(checked, len(weight)), tables.dim, device=tables.device, requires_grad=True)
    known: list[Tensor] = []  # a gradient, and what a model in bfloat16 would have handed over in its place

    def step(ids: Tensor, gradient: Tensor) -> None:
        if not known or known[0] is not gradient:
            known[:] = gradient, gradient.bfloat16()
        own.step(ids, known[1])

    def expected(ids: Tensor) -> Tensor:
        place = (ids + start).unique(return_inverse=True)[1]
        return (F.embedding(ids + start, weight).float() + F.embedding(place, change)).bfloat16()

    return Lookup(own.forward, step, expected, [change], memory=(2 * weight.numel(), 2 * tables.dim), itemsize=2)


def quantized(tables: Tables, quantize: str) -> Lookup:
    """Build the table in codes of `quantize`, as it is served; it is not trained."""
    packed = Packed(tables.weight, quantize).to(tables.device)
    packed.codes = huge(torch.empty_like(packed.codes)).copy_(packed.codes)
    unpack = getattr(torch.ops.quantized, f"embedding_bag_{'byte' if quantize == 'int8' else '4bit'}_unpack")
    start = tables.offsets

    def forward(ids: Tensor) -> Tensor:
        return packed((ids + start).flatten()).view(*ids.shape, tables.dim)

    def expected(ids: Tensor) -> Tensor:  # torch unpacks on a processor only
        rows = unpack(packed.codes[(ids + start).flatten()].cpu())
        return rows.to(tables.device).view(*ids.shape, tables.dim)

    return Lookup(forward, None, expected, [], memory=(packed.codes.numel(), packed.codes.shape[1]))


def paired(name: str, tables: Tables, route: str, **settings: Any) -> Lookup:
    """Look up for inference and keep the dot products of each sample's vectors: at once, or one after the other."""
    lookup = ours(name, tables, PLAIN if route == PLAIN else OURS, **settings)
    index = interaction.below_diagonal(len(tables.cardinalities), tables.offsets.device)

    def one_after_the_other(ids: Tensor) -> Tensor:
        return interaction.pairs(lookup.forward(ids), index=index)

    def expected(ids: Tensor) -> Tensor:
        return interaction.pairs(lookup.expected(ids).double(), index=index).float()

    size = sum(weight.numel() for weight in lookup.weights)
    forward = lookup.forward.pairs if route == OURS else one_after_the_other  # ours is the method itself
    return Lookup(forward, None, expected, [], memory=(4 * size, 4 * tables.dim))


def limit(tables: Tables, ratio: float | None = None, block_size: int | None = None) -> Lookup:
    """Build what no lookup can beat: blocks read by indices that are known, as often the same ones, and kept in place.

    From the uncompressed table, or from an array `ratio` times smaller, `block_size` floats that start anywhere in it.
    """
    width, start = block_size or tables.dim, tables.offsets
    if ratio:
        count = int(full_bytes(tables.cardinalities, tables.dim) / 4 / ratio)
        memory = fill(huge(torch.empty(count, device=tables.device))).unfold(0, width, 1)
    else:
        memory = tables.weight.detach()
    pieces = torch.arange(tables.dim // width, device=tables.device)

    def prepare(ids: Tensor) -> tuple[Tensor, Tensor]:
        index = ids + start
        if ratio:
            index = ((index.unsqueeze(-1) * 0x9E3779B1 + pieces * 0x85EBCA77) >> 7) % len(memory)
        return index.int(), tables.output(ids)

    def forward(prepared: tuple[Tensor, Tensor]) -> Tensor:
        gather(memory, *prepared)
        return prepared[1]

    def expected(ids: Tensor) -> Tensor:
        return memory[prepare(ids)[0].long()].view(*ids.shape, tables.dim)

    return Lookup(forward, None, expected, [], prepare)


# torch's ways to the uncompressed table


def bags(tables: Tables) -> Lookup:
    """One sparse `nn.EmbeddingBag` a feature."""
    parts = tables.weight.split(list(tables.cardinalities))
    bags = [nn.EmbeddingBag.from_pretrained(part.detach(), freeze=False, mode="sum", sparse=True) for part in parts]
    weights = [bag.weight for bag in bags]
    optimizer = torch.optim.SGD(weights, lr=LR)

    def prepare(ids: Tensor) -> list[Tensor]:
        return [column.contiguous().view(-1, 1) for column in ids.T]

    def forward(columns: list[Tensor]) -> Tensor:
        return torch.stack([bag(column) for bag, column in zip(bags, columns, strict=True)], 1)

    return Lookup(forward, _trained(forward, optimizer), _rows(tables), [tables.weight], prepare)


def fused_embedding(tables: Tables) -> Lookup:
    """All tables in one sparse `nn.Embedding`."""
    table = nn.Embedding.from_pretrained(tables.weight.detach(), freeze=False, sparse=True)
    start, optimizer = tables.offsets, torch.optim.SGD([table.weight], lr=LR)

    def forward(ids: Tensor) -> Tensor:
        return table(ids + start)

    return Lookup(forward, _trained(forward, optimizer), _rows(tables), [tables.weight])


def fused_bag(tables: Tables) -> Lookup:
    """All tables in one sparse `nn.EmbeddingBag`, one id a bag."""
    table = nn.EmbeddingBag.from_pretrained(tables.weight.detach(), freeze=False, mode="sum", sparse=True)
    start, optimizer = tables.offsets, torch.optim.SGD([table.weight], lr=LR)

    def forward(ids: Tensor) -> Tensor:
        flat = (ids + start).view(-1, 1)
        return table(flat).view(*ids.shape, tables.dim)

    return Lookup(forward, _trained(forward, optimizer), _rows(tables), [tables.weight])


def compiled_robe(tables: Tables, **settings: Any) -> Lookup:
    """`torch.compile` of the plain ROBE lookup: index arithmetic, then one gather."""
    lookup = ours("robe", tables, PLAIN, **settings)
    with undrawn():
        module = embeddings.build("robe", cardinalities=tables.cardinalities, dim=tables.dim, **settings)
    module.array.weight = lookup.weights[0]
    module = module.to(tables.device)
    place = robe.Hash(
        module.place_table, module.place_piece, module.place_multiplier, robe.HASHES.index(settings["hash"])
    )
    windows = robe.Windows(module.window_sizes, module.window_bases, module.block_size)
    weight = module.array.weight

    def plain(ids: Tensor) -> Tensor:
        return weight[robe.elements(robe.starts(ids, place, windows), windows)].flatten(2)

    function = torch.compile(plain, dynamic=False)
    return Lookup(function, _trained(function, torch.optim.SGD([weight], lr=LR)), lookup.expected, [weight])


def compiled_rows(tables: Tables) -> Lookup:
    """`torch.compile` of indexing one table; its gradient would be dense, so that it is not trained."""
    start, weight = tables.offsets, tables.weight.detach()
    function = torch.compile(lambda ids: F.embedding(ids + start, weight), dynamic=False)
    return Lookup(function, None, _rows(tables), [])


def _trained(forward: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[Tensor, Tensor], None]:
    def step(ids: Tensor, gradient: Tensor) -> None:
        forward(ids).backward(gradient)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _rows(tables: Tables) -> Callable[[Tensor], Tensor]:
    start = tables.offsets
    return lambda ids: F.embedding(ids + start, tables.weight, sparse=True)


ROBE_RATIOS = (10, 100, 1000, 10_000)
RANKS = (8, 16, 32, 64)
HASHES = ("multiply_shift", "universal")


def table_contestants(dim: int, full: bool) -> Iterator[Contestant]:
    """Yield what embeds all features, without the rivals from elsewhere."""
    yield Contestant("table", LIMIT, limit, only="cpu")
    yield Contestant("table", OURS, lambda t: ours("full", t))
    yield Contestant("table", LOWER, lower)
    yield Contestant("table", PLAIN, lambda t: ours("full", t, PLAIN))
    yield Contestant("table", "26 x nn.EmbeddingBag", bags)
    yield Contestant("table", "fused nn.Embedding", fused_embedding)
    yield Contestant("table", "fused nn.EmbeddingBag", fused_bag)
    yield Contestant("table", COMPILED, compiled_rows)
    for codes in ("int8", "int4"):
        yield Contestant(codes, OURS, lambda t, q=codes: quantized(t, q))
    for ratio in ROBE_RATIOS if full else (1000,):
        yield Contestant("hashing", OURS, lambda t, r=ratio: ours("hashing", t, ratio=r), ratio)
    yield Contestant("hashing", PLAIN, lambda t: ours("hashing", t, PLAIN, ratio=1000), 1000)
    yield Contestant("mlet", OURS, lambda t: _mlet(t, OURS))
    yield Contestant("mlet", PLAIN, lambda t: _mlet(t, PLAIN))
    yield from _robe_contestants(dim, full)
    settings = {"ratio": 1000, "block_size": min(dim, 32), "hash": "multiply_shift"}
    for route in (OURS, APART, PLAIN):
        for name, more in (("full", {}), ("robe", settings)):
            build = partial(paired, name, route=route, **more)
            yield Contestant("pairs", route, build, only="cuda", **more)
    yield from train_contestants("tensor_trains", only="cuda")  # a processor has enough to do with one


def _mlet(tables: Tables, route: str) -> Lookup:
    """Build tables of twice the width and their matrices: the published 64 would be four times all the memory."""
    fits(2 * full_bytes(tables.cardinalities, tables.dim), tables.device)
    return ours("mlet", tables, route, hidden=2 * tables.dim)


def _robe_contestants(dim: int, full: bool) -> Iterator[Contestant]:
    def contestant(route: str, ratio: float, z: int, hash: str) -> Contestant:
        settings = {"ratio": ratio, "block_size": z, "hash": hash}
        if route == COMPILED:
            return Contestant("robe", route, lambda t: compiled_robe(t, **settings), **settings)
        return Contestant("robe", route, lambda t: ours("robe", t, route, **settings), **settings)

    blocks = sorted({z for z in (1, 8, 16, 32, dim) if z <= dim})
    for hash in HASHES:
        for ratio in ROBE_RATIOS:
            for z in blocks:
                if full or ratio == 1000 or z == min(dim, 16):
                    yield contestant(OURS, ratio, z, hash)
                    if hash == HASHES[0] and z > 1:
                        reads = {"ratio": ratio, "block_size": z}
                        yield Contestant("robe", LIMIT, lambda t, r=reads: limit(t, **r), only="cpu", **reads)
        yield contestant(PLAIN, 1000, min(dim, 16), hash)
        if full or hash == "multiply_shift":  # the exact hash takes a minute to compile
            yield contestant(COMPILED, 1000, min(dim, 16), hash)


def train_contestants(family: str = "tensor_train", only: str = "") -> Iterator[Contestant]:
    """Yield tensor trains, one for every table."""
    builders = {OURS: partial(_train, route=OURS), PLAIN: partial(_train, route=PLAIN), CONTRACTED: _contracted_train}
    if family == "tensor_train":
        builders[UNIQUE] = _train_of_unique_ids
    for rank in RANKS:
        for route, build in builders.items():
            yield Contestant(family, route, partial(build, rank=rank), rank=rank, only=only)


def _train(tables: Tables, rank: int, route: str) -> Lookup:
    return ours("tt_rec", tables, route, rank=rank, tables=len(tables.cardinalities))


def _contracted_train(tables: Tables, rank: int) -> Lookup:
    """Build the form whose first two cores were multiplied out; it is served, not trained."""
    name, shape = "tt_rec", (tables.cardinalities, tables.dim)
    config = embeddings.solve(name, *shape, ratio=1, rank=rank, tables=len(tables.cardinalities))
    fits(3 * embeddings.inference_bytes(name, *shape, config | {"contracted": True}), tables.device)  # while it is made
    train = embeddings.METHODS[name](*shape, seed=0, **config).to(tables.device)
    served = train.contracted()
    for core in served.cores:
        core.weight.data = huge(torch.empty_like(core.weight)).copy_(core.weight)

    def expected(ids: Tensor) -> Tensor:
        with native.off():
            return train(ids)

    cores = sum(core.weight.numel() for core in served.cores)
    return Lookup(served, None, expected, [], memory=(4 * cores, 4 * tables.dim))


def _train_of_unique_ids(tables: Tables, rank: int) -> Lookup:
    """Build the plain way, asked for each id of the one table once."""
    plain = _train(tables, rank, PLAIN)

    def forward(ids: Tensor) -> Tensor:
        unique, place = ids.unique(return_inverse=True)
        return plain.forward(unique.unsqueeze(1))[place.flatten()]

    def step(ids: Tensor, gradient: Tensor) -> None:
        unique, place = ids.unique(return_inverse=True)
        summed = gradient.new_zeros(len(unique), *gradient.shape[1:]).index_add_(0, place.flatten(), gradient)
        plain.step(unique.unsqueeze(1), summed)

    return Lookup(forward, step, plain.expected, plain.weights)
