"""Optimizers for embeddings, whose step on a row table costs what the batch touched, not what the table holds.

A sparse gradient (from a row table) is first coalesced, so that an id that occurs often in a batch is one
row with one summed gradient. A dense gradient (a shared array, a projection) is handled element by element.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


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
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._rows if parameter.grad.is_sparse else self._elements
                    update(parameter, **{k: group[k] for k in ("lr", "eps", "initial")})

    def reset(self, parameter: Tensor, rows: Tensor | slice = slice(None)) -> None:
        """Start the accumulators of a parameter, or of some of its rows, anew."""
        if "sum" in self.state[parameter]:
            self.state[parameter]["sum"][rows] = self.param_groups[0]["initial"]

    def _rows(self, table: Tensor, lr: float, eps: float, initial: float) -> None:
        gradient = table.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()  # [k], [k, dim]
        total = self._accumulator(table, table.shape[:1], initial)
        touched = total[rows] + values.square().mean(1)
        total[rows] = touched
        table.index_add_(0, rows, values / (touched.sqrt() + eps).unsqueeze(1), alpha=-lr)

    def _elements(self, weight: Tensor, lr: float, eps: float, initial: float) -> None:
        total = self._accumulator(weight, weight.shape, initial)
        total.addcmul_(weight.grad, weight.grad)
        weight.addcdiv_(weight.grad, total.sqrt().add_(eps), value=-lr)

    def _accumulator(self, parameter: Tensor, shape: torch.Size, initial: float) -> Tensor:
        state = self.state[parameter]
        if "sum" not in state:
            state["sum"] = torch.full(shape, initial, dtype=parameter.dtype, device=parameter.device)
        return state["sum"]


class SGD(torch.optim.SGD):
    """Plain gradient descent, which has no accumulators to forget."""

    def reset(self, parameter: Tensor, rows: Tensor | slice = slice(None)) -> None:
        """Do nothing, for methods that rewrite rows."""


TABLE_OPTIMIZERS = {"adagrad": RowwiseAdagrad, "sgd": SGD}


def optimizers(
    model: nn.Module, *, table_optimizer: str, table_lr: float, dense_lr: float
) -> list[torch.optim.Optimizer]:
    """Return the optimizer of the embedding (`adagrad` or `sgd`) and Adam for every other parameter."""
    if table_optimizer not in TABLE_OPTIMIZERS:
        raise ValueError(f"table_optimizer must be 'adagrad' or 'sgd', got {table_optimizer!r}")
    embedding = list(model.embedding.parameters())
    shared = {id(p) for p in embedding}
    others = [p for p in model.parameters() if id(p) not in shared]
    return [
        TABLE_OPTIMIZERS[table_optimizer](embedding, lr=table_lr),
        torch.optim.Adam(others, lr=dense_lr),
    ]
