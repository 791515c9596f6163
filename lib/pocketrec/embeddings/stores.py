"""What methods are made of: stores of numbers that are read by row, by element, or whole.

A method keeps its trained numbers in `Rows`, `Array` and `Weights`. That says how gradients arise, how large
Adagrad's state is, and how each is quantised, so that no method has to: `TWINS` names the store that keeps codes
for each. Index maps and other integers are ordinary buffers of the method.

With a `trainer`, an optimizer of `pocketrec.optim`, `Rows` and `Array` are trained where their gradient arises: the
backward pass changes their numbers and no gradient is made. They are then read once a step.
"""

from __future__ import annotations

from math import ceil, prod
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketrec.kernels import gather, projection, quantized, robe, tensor_train

Quantize = Literal["int8", "int4"]
GROUP = 64  # neighbouring elements of an array that share a scale
# torch's row-wise formats: codes, then scale and offset of the row as float32 (int8) or float16 (int4)
CODE_BYTES = {"int8": 1.0, "int4": 0.5}
BITS = {"int8": 8, "int4": 4}
SCALE_BYTES = {"int8": 8, "int4": 4}


class Stored(NamedTuple):
    """A tensor that a method keeps at inference, as arithmetic: no tensor is made.

    kind: `rows` and `array` are trained floats, read by row or by element; `fixed` is kept as it is
    (index maps, codes), in `itemsize` bytes an entry.
    """

    shape: tuple[int, ...]
    kind: Literal["rows", "array", "fixed"]
    itemsize: int = 4

    def bytes(self, quantize: Quantize | None = None) -> int:
        """Bytes as it is, or in the quantised twin of its store."""
        if quantize is None or self.kind == "fixed":
            return prod(self.shape) * self.itemsize
        count, width = self.shape if self.kind == "rows" else (ceil(prod(self.shape) / GROUP), GROUP)
        coded = count * (ceil(width * CODE_BYTES[quantize]) + SCALE_BYTES[quantize])
        return min(coded, self.bytes())  # of one or two numbers a row the scale would outweigh what is saved


class Rows(nn.Module):
    """A table [rows, width] that is read by whole rows.

    Its gradient is sparse, so that a training step costs what the batch touches; `sparse = False` makes it
    dense, as DistributedDataParallel and gradient checks need it.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.sparse = True
        self.trainer: Any = None

    def forward(self, index: Tensor, tables: gather.Tables | None = None) -> Tensor:
        """Read rows: int64 [...] -> [..., width].

        With `tables`, which are stacked here, rows are found, and checked, by ids int32 or int64 [batch, features].
        """
        weight, graded = self._parameters["weight"], torch.is_grad_enabled()  # as an attribute it would take longer
        if graded and weight.requires_grad:
            if self.trainer:
                return _TrainedRows.apply(weight, index, tables, self.trainer)
            if self.sparse and not torch.compiler.is_compiling():
                return F.embedding(gather.stacked(index, tables) if tables else index, weight, sparse=True)
        return gather.table_rows(weight, index, *tables, graded)[0] if tables else gather.rows(weight, index)

    def projected(self, ids: Tensor, tables: gather.Tables, matrices: Tensor) -> Tensor:
        """Read rows by ids [batch, features], each times its table's matrix [features, width, d].

        Returns:
            [batch, features, d]
        """
        weight, graded = self.weight, torch.is_grad_enabled()
        if graded and weight.requires_grad:
            if self.trainer:
                return _TrainedProjection.apply(weight, matrices, ids, tables, self.trainer)
            if self.sparse and not torch.compiler.is_compiling():
                return torch.einsum("bfk,fkd->bfd", self(ids, tables), matrices)
        return projection.project(weight, ids, *tables, matrices, graded)[0]


class Narrow(Rows):
    """Rows of one or a few numbers: trained like `Rows`, quantised like `Array`, as a scale a row would outweigh them.

    Its `Stored` is of kind `array`.
    """


class Array(nn.Module):
    """A flat array [size] of which any element or block may be read, by many readers; its gradient is dense."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.trainer: Any = None

    def forward(self, index: Tensor) -> Tensor:
        """Read elements: int64 [...] -> [...]."""
        return self.weight.index_select(0, index.flatten()).view(index.shape)

    def blocks(
        self, ids: Tensor, limits: Tensor, place: robe.Hash, windows: robe.Windows, own: Tensor | None
    ) -> Tensor:
        """Read the blocks at which ids [batch, features], which must be below their limits, are placed.

        Returns:
            [batch, features, dim]
        """
        weight, graded = self._parameters["weight"], torch.is_grad_enabled()  # as an attribute it would take longer
        if self.trainer and graded:
            return _TrainedBlocks.apply(weight, ids, limits, place, windows, own, self.trainer)
        return robe.read_blocks(weight, ids, *place, *windows, own, limits, graded)[0]


class Weights(nn.Module):
    """A tensor that every lookup reads whole: a projection, a layer."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self) -> Tensor:
        """Return the tensor."""
        return self.weight


class _TrainedRows(torch.autograd.Function):
    """Reads rows; its backward pass trains them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, index: Tensor, tables: gather.Tables | None, trainer: Any) -> Tensor:
        out, index = gather.table_rows(weight, index, *tables) if tables else (gather.rows(weight, index), index)
        ctx.weight, ctx.index, ctx.trainer = weight, index, trainer
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        ctx.trainer.train_rows(ctx.weight, ctx.index, gradient)
        return (None,) * 4


class _TrainedProjection(torch.autograd.Function):
    """Reads rows and multiplies them; its backward pass trains the rows, and gives the matrices their gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, matrices: Tensor, ids: Tensor, tables: gather.Tables, trainer: Any) -> Tensor:
        out, ctx.index = projection.project(weight, ids, *tables, matrices)
        ctx.weight, ctx.matrices, ctx.trainer = weight, matrices, trainer
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.trainer.train_projected(ctx.weight, ctx.index, gradient, ctx.matrices), None, None, None


class _TrainedBlocks(torch.autograd.Function):
    """Reads blocks; its backward pass trains them."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        ids: Tensor,
        limits: Tensor,
        place: robe.Hash,
        windows: robe.Windows,
        own: Tensor | None,
        trainer: Any,
    ) -> Tensor:
        out, ctx.starts = robe.read_blocks(weight, ids, *place, *windows, own, limits)
        ctx.weight, ctx.windows, ctx.which, ctx.trainer = weight, windows, (ids, limits), trainer
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        ctx.trainer.train_blocks(ctx.weight, ctx.starts, gradient, ctx.windows, *ctx.which)
        return (None,) * 7


def read_tensor_train(cores: nn.ModuleList, place: tensor_train.Place) -> Tensor:
    """Read rows of tables that are products of slices of some `Rows`, or of their twins -> [*ids.shape, dim]."""
    cores = [*cores._modules.values()]  # a list of modules takes longer to index
    first = cores[0]
    if not all(isinstance(core, Rows) for core in cores):
        index = tensor_train.slices(place.ids, place.tables, place.radices).flatten(0, -2)
        parts = [core(rows) for core, rows in zip(cores, index.unbind(1), strict=True)]
        return tensor_train.chain(parts, place.factors)[-1].view(*place.ids.shape, prod(place.factors))
    weights = [core._parameters["weight"] for core in cores]
    own_backward = first.trainer or (first.sparse and not torch.compiler.is_compiling())
    if own_backward and torch.is_grad_enabled() and weights[0].requires_grad:
        return _TensorTrain.apply(place, first.trainer, *weights)
    return tensor_train.multiply(weights, *place)


class _TensorTrain(torch.autograd.Function):
    """Reads rows of tensor trains; its backward pass trains the cores, or gives them sparse gradients."""

    @staticmethod
    def forward(ctx: Any, place: tensor_train.Place, trainer: Any, *cores: Tensor) -> Tensor:
        ctx.cores, ctx.place, ctx.trainer = cores, place, trainer
        return tensor_train.multiply(cores, *place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cores, place = ctx.cores, ctx.place
        if ctx.trainer:
            ctx.trainer.train_tensor_train(cores, gradient, place)
            return (None,) * (2 + len(cores))
        index = tensor_train.slices(place.ids, place.tables, place.radices)[place.ids >= 0]
        touched = [rows.unique() for rows in index.unbind(1)]
        dense = tensor_train.gradients(gradient, cores, *place)
        sparse = [
            torch.sparse_coo_tensor(rows[None], whole[rows], whole.shape, is_coalesced=True, check_invariants=False)
            for rows, whole in zip(touched, dense, strict=True)
        ]
        return None, None, *sparse


class Packed(nn.Module):
    """Rows [n, width] quantised row by row, uint8 [n, bytes a row]: see `kernels.quantized`."""

    def __init__(self, rows: Tensor, quantize: Quantize) -> None:
        super().__init__()
        self.quantize, self.width = quantize, rows.shape[1]
        self.register_buffer("codes", quantized.pack(rows.detach().float().cpu(), BITS[quantize]).to(rows.device))

    def forward(self, index: Tensor) -> Tensor:
        """Read rows as float32: int64 [k] -> [k, width]."""
        return quantized.unpacked_rows(self.codes, index, self.width, BITS[self.quantize])

    def elements(self, row: Tensor, column: Tensor) -> Tensor:
        """Read single numbers as float32: int64 [k] and [k] -> [k]."""
        return quantized.elements(self.codes, row, column, BITS[self.quantize])

    def whole(self) -> Tensor:
        """Return all rows as float32."""
        return quantized.unpacked(self.codes, self.width, BITS[self.quantize])


class QuantizedRows(nn.Module):
    """The twin of `Rows`: one scale and offset a row."""

    def __init__(self, store: Rows, quantize: Quantize) -> None:
        super().__init__()
        self.packed = Packed(store.weight, quantize)

    def forward(self, index: Tensor, tables: gather.Tables | None = None) -> Tensor:
        """Read rows as `Rows` does: int64 [...] -> float32 [..., width]."""
        index = gather.stacked(index, tables) if tables else index
        return self.packed(index.flatten()).view(*index.shape, self.packed.width)

    def projected(self, ids: Tensor, tables: gather.Tables, matrices: Tensor) -> Tensor:
        """Read rows and multiply them as `Rows.projected` does."""
        return torch.einsum("bfk,fkd->bfd", self(ids, tables), matrices)


class QuantizedArray(nn.Module):
    """The twin of `Array`: one scale and offset for each group of 64 neighbours."""

    def __init__(self, store: Array, quantize: Quantize) -> None:
        super().__init__()
        self.packed = Packed(_groups(store.weight), quantize)

    def forward(self, index: Tensor) -> Tensor:
        """Read elements: int64 [...] -> float32 [...]."""
        flat = index.flatten()
        return self.packed.elements(flat // GROUP, flat % GROUP).view(index.shape)

    def blocks(
        self, ids: Tensor, limits: Tensor, place: robe.Hash, windows: robe.Windows, own: Tensor | None
    ) -> Tensor:
        """Read the blocks at which ids are placed, as `Array.blocks` does."""
        ids = gather.checked(ids, limits)
        return self(robe.elements(robe.starts(ids, place, windows, own), windows)).flatten(2)


class QuantizedWeights(nn.Module):
    """The twin of `Weights`, kept in groups of 64 and unpacked when it is read."""

    def __init__(self, store: Weights, quantize: Quantize) -> None:
        super().__init__()
        self.shape = store.weight.shape
        self.packed = Packed(_groups(store.weight), quantize)

    def forward(self) -> Tensor:
        """Return the tensor, float32."""
        return self.packed.whole().flatten()[: prod(self.shape)].view(self.shape)


class QuantizedNarrow(QuantizedArray):
    """The twin of `Narrow`: one scale and offset for each group of 64 neighbours, across rows."""

    def __init__(self, store: Narrow, quantize: Quantize) -> None:
        super().__init__(store, quantize)
        self.width = store.weight.shape[1]

    def forward(self, index: Tensor) -> Tensor:
        """Read rows: int64 [...] -> float32 [..., width]."""
        return super().forward(index.unsqueeze(-1) * self.width + torch.arange(self.width, device=index.device))


TWINS = {Rows: QuantizedRows, Narrow: QuantizedNarrow, Array: QuantizedArray, Weights: QuantizedWeights}


def quantize_stores(module: nn.Module, quantize: Quantize) -> None:
    """Replace every store inside a module by its quantised twin, in place, where that is smaller."""
    for name, child in module.named_children():
        if type(child) in TWINS:
            plain = Stored(tuple(child.weight.shape), "rows" if type(child) is Rows else "array")
            if plain.bytes(quantize) < plain.bytes():
                setattr(module, name, TWINS[type(child)](child, quantize))
        else:
            quantize_stores(child, quantize)


def _groups(weight: Tensor) -> Tensor:
    """Lay elements out as rows of 64; the last row is filled up with its last element."""
    flat = weight.detach().flatten()
    missing = -len(flat) % GROUP
    return torch.cat([flat, flat[-1:].expand(missing)]).view(-1, GROUP)
