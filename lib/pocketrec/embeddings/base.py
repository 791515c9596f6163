"""The contract of a method: one module embeds every categorical feature of a model.

    ids      int32 or int64  [batch, features]           one id a feature
    output   float           [batch, features, out_dim]

A method is one file beside this one, holding one subclass of `Embedding`. It is found by being there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from inspect import Parameter, signature
from math import sqrt
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor, nn

from pocketrec.embeddings.stores import CODE_BYTES, Quantize, Rows, Stored, quantize_stores
from pocketrec.errors import UserError, conform, unknown
from pocketrec.kernels import gather, gpu

FLOAT_BYTES = 4


class Infeasible(Exception):
    """No instance of the method fits the budget; the message is a sentence that a person understands."""


@dataclass(frozen=True)
class Storage:
    """Bytes of every stored tensor by name: at inference, in training, and of the Adagrad state."""

    inference: dict[str, int]
    training: dict[str, int]
    optimizer: dict[str, int]

    @property
    def inference_bytes(self) -> int:
        """Bytes of the form that is served."""
        return sum(self.inference.values())

    @property
    def training_bytes(self) -> int:
        """Bytes of parameters, buffers and index maps while training."""
        return sum(self.training.values())

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of Adagrad's accumulators, if it trains: one float a row of a row table, one an element elsewhere."""
        return sum(self.optimizer.values())


class Embedding(nn.Module):
    """Base of all methods. A subclass gives `solve`, `stored`, `__init__`, `lookup` and `materialize`.

    It keeps its trained numbers in the stores of `embeddings.stores`.

    Attributes:
        name: what params files and records call the method.
        paper: where it was published, as short as `MLSys 2022`.
        knobs: its choices and their defaults: what `solve` takes by keyword.
        only_ratio: the one ratio at which it exists, where there is only one.
        checks_ids: whether its kernels hold ids against `limits` as they read them, on a processor.
        keeps_zeros: whether zeros in its tables mean something: no optimizer may move rows that were not read.
        out_dim: width of the output; `dim` unless the method's very idea is a smaller one.
        config: the arguments, beside cardinalities, dim and seed, that rebuild this instance.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    knobs: ClassVar[dict[str, Any]] = {}
    only_ratio: ClassVar[float | None] = None
    checks_ids: ClassVar[bool] = False
    keeps_zeros: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        choices = signature(cls.solve).parameters.values()
        cls.knobs = {choice.name: choice.default for choice in choices if choice.kind is Parameter.KEYWORD_ONLY}

    def __init__(self, cardinalities: Sequence[int], dim: int, seed: int, **config: Any) -> None:
        super().__init__()
        if not cardinalities or min(cardinalities) < 1 or dim < 1:
            raise ValueError(f"cardinalities and dim must be positive, got {list(cardinalities)} and {dim}")
        self.cardinalities = tuple(int(n) for n in cardinalities)
        self.dim = self.out_dim = dim
        self.seed = seed
        self.config = config
        self.constant("limits", torch.tensor(self.cardinalities))
        self.quantize: Quantize | None = None
        self._calls, self._seen_bad = 0, None

    @classmethod
    def knob(cls, name: str, value: Any, where: str) -> Any:
        """Return a knob's value as `solve` takes it; a `UserError` where its type is another one than it hints at."""
        hints = get_type_hints(cls.solve)
        return conform(value, hints[name], where) if name in hints else value

    # what a method provides

    @classmethod
    def solve(cls, cardinalities: Sequence[int], dim: int, budget_bytes: float, **knobs: Any) -> dict[str, Any]:
        """Return the config of the largest instance whose inference form fits the budget.

        Arithmetic only: no tensor is made. Raises `Infeasible` when nothing fits.
        """
        raise NotImplementedError

    @classmethod
    def stored(cls, cardinalities: Sequence[int], dim: int, **config: Any) -> dict[str, Stored]:
        """Return every tensor of the inference form by its name in `state_dict`: the size formula, as data."""
        raise NotImplementedError

    def lookup(self, ids: Tensor) -> Tensor:
        """Embed checked int64 ids [batch, features] -> [batch, features, out_dim].

        With `checks_ids` they come as they were given, and it is here that they are checked.
        """
        raise NotImplementedError

    def materialize(self, feature: int, rows: slice = slice(None)) -> Tensor:
        """Return rows of one feature's dense table [rows, out_dim], by another route than `lookup`."""
        raise NotImplementedError

    def lookup_pairs(self, ids: Tensor, first: Tensor | None) -> Tensor | None:
        """Embed checked ids and pair them as `kernels.interaction` does; None where no kernel does both at once."""
        return None

    # what every method has

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids [batch, features]; an id outside its table raises `IndexError`, on a GPU a little later.

        Under autocast too in the precision of the stored numbers, for all methods alike.
        """
        kind = "cpu" if ids.is_cpu else ids.device.type  # to be told its name takes longer
        if not torch.is_autocast_enabled(kind):
            return self.lookup(self._checked(ids))
        with torch.autocast(kind, enabled=False):
            return self.lookup(self._checked(ids))

    def pairs(self, ids: Tensor, first: Tensor | None = None) -> Tensor | None:
        """Return the dot products of all pairs of a sample's embeddings and `first`, where that saves writing them.

        Only on a GPU and without gradients, and only for some methods; None otherwise.

        Args:
            first: [batch, out_dim], a vector of each sample that comes before its embeddings.

        Returns:
            [batch, n (n - 1) / 2], the products below the diagonal, row by row.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not gpu.on_gpu(ids):
            return None
        return self.lookup_pairs(self._checked(ids), first)

    def storage(self, quantize: Quantize | None = None) -> Storage:
        """Bytes of this instance's real tensors, at inference those of `deploy(quantize)`.

        Constants that the config gives are not stored.
        """
        by_row = {id(store.weight) for store in self.modules() if isinstance(store, Rows)}
        state = {
            name: FLOAT_BYTES * (p.shape[0] if id(p) in by_row else p.numel())
            for name, p in self.named_parameters()
            if p.requires_grad
        }
        inference = self.inference_tensors()
        if quantize:
            kept = self.stored(self.cardinalities, self.dim, **self.config)
            inference = {name: stored.bytes(quantize) for name, stored in kept.items()}
        return Storage(inference=inference, training=tensor_bytes(self), optimizer=state)

    def inference_tensors(self) -> dict[str, int]:
        """Bytes of the tensors that `deploy()` keeps, by name; those of this module where both are the same."""
        return tensor_bytes(self)

    def planned_tensors(self) -> dict[str, int]:
        """Bytes of the inference form by the size formula, in this instance's type of floats, by name."""
        size = next(self.parameters()).element_size()
        kept = self.stored(self.cardinalities, self.dim, **self.config)
        return {name: (s if s.kind == "fixed" else s._replace(itemsize=size)).bytes() for name, s in kept.items()}

    def deploy(self, quantize: Quantize | None = None) -> Embedding:
        """Return the inference form: same outputs to rounding, or to the precision of `int8` or `int4` codes."""
        if quantize not in (None, *CODE_BYTES):
            raise unknown("quantisation", quantize, CODE_BYTES, self.name)
        if self.quantize and quantize not in (None, self.quantize):
            raise UserError(f"{self.name}: is kept in {self.quantize} codes already, and cannot go to {quantize} ones")
        deployed = self.folded().eval().requires_grad_(False)
        if quantize:
            quantize_stores(deployed, quantize)
        deployed.quantize = quantize or self.quantize
        return deployed

    def folded(self) -> Embedding:
        """Return a copy in the form that is served; a method that trains in another form overrides this."""
        return deepcopy(self)

    def adapt(self, step: int, total: int, optimizer: torch.optim.Optimizer) -> None:
        """Change the structure while training; called after every step (1 to `total`) of the table optimizer.

        Methods that cluster, prune or move ids do it here. `optimizer.reset(parameter, rows)` forgets the
        accumulators of what was rewritten.
        """

    def constant(self, name: str, value: Tensor) -> None:
        """Keep a tensor that follows the module to its device but is neither trained nor saved."""
        self.register_buffer(name, value, persistent=False)

    def feature_rows(self, feature: int, rows: slice) -> Tensor:
        """Return the ids that a slice of one feature's table selects, int64 [rows]."""
        return torch.arange(*rows.indices(self.cardinalities[feature]), device=self.limits.device)

    def _checked(self, ids: Tensor) -> Tensor:
        if ids.ndim != 2 or ids.shape[1] != len(self.cardinalities):
            raise ValueError(f"ids must be [batch, {len(self.cardinalities)}], got {list(ids.shape)}")
        if ids.is_floating_point():
            raise TypeError(f"ids must be int32 or int64, got {ids.dtype}, which cannot name every row")
        if ids.is_cpu and self.checks_ids:
            return ids
        if torch.compiler.is_compiling():
            return ids.long()
        if ids.is_cpu:
            return gather.check_ids(ids, self.limits)
        if self._seen_bad is None:
            with torch.inference_mode(False):
                self._seen_bad = torch.zeros(1, dtype=torch.int32, device=ids.device)
        checked = gather.noted(ids, self.limits, self._seen_bad)  # no foreign row
        # a device is asked now and then, since every question waits for its queue, which a CUDA graph cannot
        self._calls += 1
        if self._calls % 256 == 1 and not (ids.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.check_ids()
        return checked

    def check_ids(self) -> None:
        """Raise `IndexError` if any id seen so far on a GPU lay outside its table."""
        if self._seen_bad is not None and bool(self._seen_bad):
            self._seen_bad.zero_()
            raise IndexError("an id outside its table was looked up since the last check")


def tensor_bytes(module: nn.Module) -> dict[str, int]:
    """Return the bytes of every tensor that is saved with the module."""
    return {name: t.numel() * t.element_size() for name, t in module.state_dict().items()}


def full_bytes(cardinalities: Iterable[int], dim: int) -> int:
    """Bytes of the uncompressed float32 tables: the numerator of every ratio."""
    return FLOAT_BYTES * dim * sum(cardinalities)


def share_out(
    cardinalities: Sequence[int],
    budget: float,
    threshold: int,
    cost: Callable[[int, int], float] = lambda n, rows: rows,
) -> list[int] | None:
    """Share a budget out among tables: each gets max(min(n, threshold), floor(share n)) rows, with the largest share.

    Where the threshold alone would claim over half of what is left beside single rows, it is halved until it
    does not: at high ratios small tables are kept whole, or nearly, but not at the price of all others.

    Args:
        cardinalities: ids n of each table.
        budget: in the unit of `cost`.
        threshold: rows that every table gets, or as many as it has ids.
        cost: what a table of n ids takes with some number of rows; grows with the rows. The rows, by default.

    Returns:
        Rows of each table, or None if even single rows do not fit.
    """

    def rows(share: float, threshold: int) -> list[int]:
        return [max(min(n, threshold), int(n * share), 1) for n in cardinalities]

    def total(share: float, threshold: int) -> float:
        return sum(map(cost, cardinalities, rows(share, threshold)))

    least = total(0, 1)
    if least > budget:
        return None
    while threshold > 1 and total(0, threshold) > (least + budget) / 2:
        threshold //= 2
    low, high = (1.0, 1.0) if total(1, threshold) <= budget else (0.0, 1.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if total(middle, threshold) <= budget else (low, middle)
    return rows(low, threshold)


def offsets(rows: Sequence[int]) -> Tensor:
    """Return where each table starts when all are stacked, int64 [tables]."""
    return torch.tensor([0, *rows[:-1]]).cumsum(0)


def generator(seed: int, stream: int = 0) -> torch.Generator:
    """Return a CPU generator; every tensor of a method, and the MLPs around it, draw from a stream of their own."""
    return torch.Generator().manual_seed((seed * 1_000_003 + stream) % 2**63)


_drawing = True


@contextmanager
def undrawn() -> Iterator[None]:
    """Build modules without drawing initial values, for values that are about to be loaded."""
    global _drawing
    _drawing = False
    try:
        yield
    finally:
        _drawing = True


def uniform_(tensor: Tensor, bound: float, draw: torch.Generator, chunk: int = 1 << 24) -> Tensor:
    """Fill with U(-bound, bound) in place, drawn on the CPU in chunks: the same values on every device."""
    with torch.no_grad():
        for part in tensor.view(-1).split(chunk) if _drawing else ():
            part.copy_(torch.empty(len(part)).uniform_(-bound, bound, generator=draw))
    return tensor


def draw_tables(weight: Tensor, rows: Sequence[int], cardinalities: Sequence[int], draw: torch.Generator) -> None:
    """Fill stacked tables of so many rows, that of n ids with U(-1/sqrt(n), 1/sqrt(n)), as DLRM's public code does."""
    for table, n in zip(weight.data.split(list(rows)) if rows else (), cardinalities, strict=True):
        uniform_(table, 1 / sqrt(n), draw)


def megabytes(count: float) -> str:
    """Write bytes for people: `4.3 MB`, `812 B`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
