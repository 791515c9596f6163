"""Optimizers against a loop over rows, and the cost of a step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pocketrec import embeddings, models
from pocketrec.optim import RowwiseAdagrad, optimizers

IDS = torch.tensor([3, 1, 3, 3, 0])


def row_by_row(table, ids, upstream, lr, state, eps=1e-8):
    """Coalesce the gradient of repeated ids, then update each touched row."""
    table, state = table.clone(), state.clone()
    for row in set(ids.tolist()):
        gradient = upstream[ids == row].sum(0)
        state[row] += gradient.square().mean()
        table[row] -= lr * gradient / (state[row].sqrt() + eps)
    return table, state


def test_rowwise_adagrad_on_sparse_gradients():
    table = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    expected, state = table.detach().clone(), torch.zeros(6, dtype=torch.float64)
    optim = RowwiseAdagrad([table], lr=0.3)
    for step in range(3):
        upstream = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        expected, state = row_by_row(expected, IDS, upstream, 0.3, state)
        optim.zero_grad()
        F.embedding(IDS, table, sparse=True).backward(upstream)
        optim.step()
    torch.testing.assert_close(table.detach(), expected)
    torch.testing.assert_close(optim.state[table]["sum"], state)


def test_adagrad_on_dense_gradients_is_torchs():
    ours, theirs = (torch.ones(7, requires_grad=True) for _ in range(2))
    optims = RowwiseAdagrad([ours], lr=0.1, eps=1e-10), torch.optim.Adagrad([theirs], lr=0.1, eps=1e-10)
    for step in range(4):
        for weight, optim in zip((ours, theirs), optims, strict=True):
            optim.zero_grad()
            (weight * torch.arange(7) * (step + 1)).square().sum().backward()
            optim.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("sparse", [False, True])
def test_accumulators_of_bfloat16_go_on_growing(sparse):
    table = torch.zeros(3, 2, dtype=torch.bfloat16, requires_grad=True)
    optim = RowwiseAdagrad([table], lr=0.1)
    for _ in range(600):  # in bfloat16 the sum would stand still at 256
        optim.zero_grad()
        F.embedding(torch.tensor([1]), table, sparse=sparse).sum().backward()
        optim.step()
    assert optim.state[table]["sum"].dtype == torch.float32
    assert (optim.state[table]["sum"][1] == 600).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_survives_a_round_trip(dtype):
    table, untouched = (torch.randn(6, 4).to(dtype).requires_grad_() for _ in range(2))
    optim = RowwiseAdagrad([untouched, table])
    F.embedding(IDS, table, sparse=True).float().square().sum().backward()
    optim.step()
    other = RowwiseAdagrad([untouched, table])
    other.load_state_dict(optim.state_dict())
    assert other.state[table]["sum"].dtype == torch.float32 and "sum" not in other.state[untouched]
    assert torch.equal(other.state[table]["sum"], optim.state[table]["sum"])
    optim.state[table]["sum"].zero_()
    assert other.state[table]["sum"].any()


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that an operator makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        if function._schema.returns and not any(r.alias_info for r in function._schema.returns):
            strided = [t for t in made if isinstance(t, torch.Tensor) and t.layout == torch.strided]
            self.elements = max([self.elements, *(t.numel() for t in strided)])
        return result


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_a_step_on_a_full_table_costs_what_the_batch_touches(name):
    embedding = embeddings.build("full", cardinalities=[100_000, 50_000], dim=8)
    model = models.DLRM(embedding, 0, [], [4])
    table_optim, _ = optimizers(model, table_optimizer=name, table_lr=0.1, dense_lr=1e-3)

    def step():
        table_optim.zero_grad()
        embedding(torch.tensor([[5, 7], [5, 9]])).sum().backward()
        table_optim.step()

    step()  # Adagrad makes its accumulator, one float a row
    before = embedding.table.weight.detach().clone()
    with Largest() as largest:
        step()
    assert 0 < largest.elements < 1000
    assert (embedding.table.weight != before).any(1).nonzero().flatten().tolist() == [5, 100_007, 100_009]


def test_adamw_is_torchs_on_a_table_that_is_read_by_row():
    embedding = embeddings.build("full", cardinalities=[7, 5], dim=4)
    table = nn.Embedding.from_pretrained(embedding.table.weight.detach().clone(), freeze=False)
    (ours,) = optimizers(models.GMF(embedding), table_optimizer="adamw", table_lr=0.1, dense_lr=1e-3)
    theirs = torch.optim.AdamW(table.parameters(), lr=0.1)
    for ids in ([[1, 2], [1, 4]], [[3, 2], [0, 0]]):
        ids = torch.tensor(ids)
        for optim, rows in ((ours, embedding(ids)), (theirs, table(ids + torch.tensor([0, 7])))):
            optim.zero_grad()
            rows.prod(1).sum().backward()
            optim.step()
    torch.testing.assert_close(embedding.table.weight, table.weight, rtol=1e-6, atol=1e-7)
    ours.reset(embedding.table.weight, slice(0, 3))
    moments = ours.state[embedding.table.weight]["exp_avg"]
    assert (moments[:3] == 0).all() and (moments[3] != 0).any()
