"""MLET: two layers in training, one table at inference."""

import pytest
import torch

from pocketrec import embeddings
from pocketrec.optim import RowwiseAdagrad


def build():
    return embeddings.build("mlet", cardinalities=[200, 30], dim=16, ratio=4, seed=1, hidden=64)


def test_served_table_is_narrow_and_training_is_wide():
    e = build()
    storage = e.storage()
    assert e.out_dim == 4 and e(torch.zeros(3, 2, dtype=torch.long)).shape == (3, 2, 4)
    assert storage.inference_bytes == 4 * 230 * 4
    assert storage.training_bytes == 4 * 230 * 64 + 4 * 2 * 64 * 4


def test_fold_after_training_gives_the_same_outputs():
    e, ids = build(), torch.tensor([[3, 4], [199, 29]])
    optimizer = RowwiseAdagrad(e.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        e(ids).square().sum().backward()
        optimizer.step()
    folded = e.deploy()
    assert [tuple(t.shape) for t in folded.state_dict().values()] == [(230, 4)]
    torch.testing.assert_close(folded(ids), e(ids), rtol=1e-5, atol=1e-7)


def test_a_step_moves_rows_that_were_not_read():
    e = build()
    optimizer = RowwiseAdagrad(e.parameters(), lr=0.1)
    before = e.materialize(0).detach().clone()
    e(torch.tensor([[3, 4]])).sum().backward()
    optimizer.step()
    assert ((e.materialize(0) - before).abs().sum(1) > 0).all()


@pytest.mark.parametrize("method", ["mlet", "low_dim"])
def test_two_layers_are_compiled_and_exported(method):
    module, ids = (
        embeddings.build(method, cardinalities=[50, 900], dim=8, ratio=2, seed=0),
        torch.randint(0, 50, (7, 2)),
    )
    exported = torch.export.export(module, (ids,)).module()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for run in (exported, compiled):
        torch.testing.assert_close(run(ids), module(ids), rtol=1e-6, atol=1e-7)
    compiled(ids).sum().backward()
    through_compiler = [p.grad for p in module.parameters()]
    module.zero_grad()
    module(ids).sum().backward()
    for one, parameter in zip(through_compiler, module.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad.to_dense(), rtol=1e-6, atol=1e-7)
