"""Optimizers for embeddings, whose step on a row table costs what the batch touched, not what the table holds.

The gradients of a row that occurs often in a batch are summed first. A dense gradient (a shared array, a projection)
is handled element by element. Either comes through autograd and `step`, or is applied where it arises (`in_place`),
with the same result to rounding.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pocketrec.embeddings.stores import Array, Rows
from pocketrec.kernels import gather, projection, robe, tensor_train


class RowwiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator a row for sparse gradients and one an element for dense ones.

        row:      s_r += mean_j g_rj^2,   w_rj -= lr g_rj / (sqrt(s_r) + eps)
        element:  s   += g^2,             w    -= lr g    / (sqrt(s)   + eps)

    Row-wise after FBGEMM's EXACT_ROWWISE_ADAGRAD; the accumulator starts at `initial`.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.05, eps: float = 1e-8, initial: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "initial": initial})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """Apply the gradients; parameters without one are left alone."""
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                self.train_rows(parameter, parameter.grad._indices()[0], parameter.grad._values())
            else:
                self._elements(parameter)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take accumulators over as they were saved: torch would round them to the type of their parameters."""
        super().load_state_dict(state_dict)
        for place, parameter in enumerate(self.param_groups[0]["params"]):
            if place in state_dict["state"]:
                self.state[parameter]["sum"] = state_dict["state"][place]["sum"].to(parameter.device, copy=True)

    def train_rows(self, table: Tensor, index: Tensor, gradient: Tensor) -> None:
        """Apply the gradients of rows that were read, [...] and [..., width]; a row may occur often."""
        gather.train_rows(table, self._total(table, table.shape[:1]), index, gradient, *self._rates())

    def train_projected(self, table: Tensor, index: Tensor, gradient: Tensor, matrices: Tensor) -> Tensor:
        """Apply the gradients of rows that were read and multiplied; return that of the matrices."""
        return projection.train(table, self._total(table, table.shape[:1]), index, gradient, matrices, *self._rates())

    def train_blocks(
        self, array: Tensor, starts: Tensor, gradient: Tensor, windows: robe.Windows, ids: Tensor, limits: Tensor
    ) -> None:
        """Apply the gradients of blocks that were read, element by element; see `kernels.robe`."""
        total, rates = self._total(array, array.shape), self._rates()
        robe.train_blocks(array, total, starts, gradient, *windows, *rates, ids, limits)

    def train_tensor_train(self, cores: Sequence[Tensor], gradient: Tensor, place: tensor_train.Place) -> None:
        """Apply the gradient of rows of tensor trains, one accumulator a slice; see `kernels.tensor_train`."""
        totals = [self._total(core, core.shape[:1]) for core in cores]
        tensor_train.train(cores, totals, gradient, *place, *self._rates())

    def reset(self, parameter: Tensor, rows: Tensor | slice = slice(None)) -> None:
        """Start the accumulators of a parameter, or of some of its rows, anew."""
        if "sum" in self.state[parameter]:
            self.state[parameter]["sum"][rows] = self.param_groups[0]["initial"]

    def _elements(self, weight: Tensor) -> None:
        lr, eps = self._rates()
        total = self._total(weight, weight.shape)
        total.addcmul_(weight.grad, weight.grad)
        weight.addcdiv_(weight.grad, total.sqrt().add_(eps), value=-lr)

    def _rates(self) -> tuple[float, float]:
        return self.param_groups[0]["lr"], self.param_groups[0]["eps"]

    def _total(self, parameter: Tensor, shape: torch.Size) -> Tensor:
        state, initial = self.state[parameter], self.param_groups[0]["initial"]
        if "sum" not in state:
            kind = torch.promote_types(parameter.dtype, torch.float32)  # a sum of squares stands still in bfloat16
            state["sum"] = torch.full(shape, initial, dtype=kind, device=parameter.device)
        return state["sum"]


class SGD(torch.optim.SGD):
    """Plain gradient descent, which has no accumulators to forget."""

    def train_rows(self, table: Tensor, index: Tensor, gradient: Tensor) -> None:
        """Apply the gradients of rows that were read, [...] and [..., width]; a row may occur often."""
        gather.train_rows(table, None, index, gradient, self.param_groups[0]["lr"], 0.0)

    def train_projected(self, table: Tensor, index: Tensor, gradient: Tensor, matrices: Tensor) -> Tensor:
        """Apply the gradients of rows that were read and multiplied; return that of the matrices."""
        return projection.train(table, None, index, gradient, matrices, self.param_groups[0]["lr"], 0.0)

    def train_blocks(
        self, array: Tensor, starts: Tensor, gradient: Tensor, windows: robe.Windows, ids: Tensor, limits: Tensor
    ) -> None:
        """Apply the gradients of blocks that were read; see `kernels.robe`."""
        robe.train_blocks(array, None, starts, gradient, *windows, self.param_groups[0]["lr"], 0.0, ids, limits)

    def train_tensor_train(self, cores: Sequence[Tensor], gradient: Tensor, place: tensor_train.Place) -> None:
        """Apply the gradient of rows of tensor trains; see `kernels.tensor_train`."""
        tensor_train.train(cores, [], gradient, *place, self.param_groups[0]["lr"], 0.0)

    def reset(self, parameter: Tensor, rows: Tensor | slice = slice(None)) -> None:
        """Do nothing, for methods that rewrite rows."""


class Adam(torch.optim.Adam):
    """Adam: every row moves in every step, whether the batch read it or not.

    Its gradients are therefore dense, and its step costs what the table holds.
    """

    def reset(self, parameter: Tensor, rows: Tensor | slice = slice(None)) -> None:
        """Forget the moments of a parameter, or of some of its rows; the count of steps stays."""
        for name in ("exp_avg", "exp_avg_sq"):
            if name in self.state[parameter]:
                self.state[parameter][name][rows] = 0


class AdamW(Adam):
    """Adam with decoupled weight decay, 0.01."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr, weight_decay=0.01, decoupled_weight_decay=True)


DENSE_OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
TABLE_OPTIMIZERS = {"adagrad": RowwiseAdagrad, "sgd": SGD, "adam": Adam, "adamw": AdamW}


@contextmanager
def in_place(embedding: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let the backward pass train what is read by row or by block, meanwhile; the rest keeps its gradients.

    No gradient is made for those parameters, so nothing can be clipped or sent to other processes.
    """
    stores = [store for store in embedding.modules() if isinstance(store, Rows | Array)]
    for store in stores:
        store.trainer = optimizer
    try:
        yield
    finally:
        for store in stores:
            store.trainer = None


def optimizers(
    model: nn.Module, *, table_optimizer: str, table_lr: float, dense_optimizer: str = "adam", dense_lr: float
) -> list[torch.optim.Optimizer]:
    """Return the optimizer of the embedding and that of the other parameters, each where there are such."""
    if dense_optimizer not in DENSE_OPTIMIZERS:
        raise ValueError(f"dense_optimizer must be one of {', '.join(DENSE_OPTIMIZERS)}, got {dense_optimizer!r}")
    if table_optimizer not in TABLE_OPTIMIZERS:
        raise ValueError(f"table_optimizer must be one of {', '.join(TABLE_OPTIMIZERS)}, got {table_optimizer!r}")
    for store in model.embedding.modules():
        if isinstance(store, Rows):
            store.sparse = not issubclass(TABLE_OPTIMIZERS[table_optimizer], Adam)
    embedding = list(model.embedding.parameters())
    shared = {id(p) for p in embedding}
    others = [p for p in model.parameters() if id(p) not in shared]
    return [
        *([TABLE_OPTIMIZERS[table_optimizer](embedding, lr=table_lr)] if embedding else []),
        *([DENSE_OPTIMIZERS[dense_optimizer](others, lr=dense_lr, fused=True)] if others else []),
    ]
