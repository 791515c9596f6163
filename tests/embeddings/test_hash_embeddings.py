"""Hash embeddings: several rows an id, weighed by learned numbers."""

import pytest
import torch

from pocketrec import embeddings

CARDINALITIES = [7, 5000, 30_000]


def build(ratio, **knobs):
    return embeddings.build("hash_embeddings", cardinalities=CARDINALITIES, dim=16, ratio=ratio, seed=1, **knobs)


def trained(module):
    """Numbers that differ everywhere."""
    draw = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(generator=draw)
    return module


@pytest.mark.parametrize("knobs", [{}, {"hashes": 3}, {"weights": None}, {"weights": 1}, {"hashes": 1}], ids=str)
def test_lookup_is_the_weighed_sum(knobs):
    module = trained(build(6, **knobs)).double()
    ids = torch.tensor([[i % 7, i, 6 * i] for i in range(500)])
    oracle = torch.stack([module.materialize(f)[ids[:, f]] for f in range(3)], 1)
    torch.testing.assert_close(module(ids), oracle)
    assert len(oracle[:, 1].unique(dim=0)) == 500


def test_weights_of_an_id_of_its_own_are_linear():
    module = trained(build(5, weights=None))
    ids = torch.tensor([[0, 3, 11]])
    before = module(ids)[0]
    module.importance.weight.data[5000 + 11] *= 2
    after = module(ids)[0]
    torch.testing.assert_close(after[2], 2 * before[2])
    assert torch.equal(after[:2], before[:2])


def test_weights_are_counted():
    module = build(10)
    rows, kept = module.config["rows"], module.config["weight_rows"]
    assert rows[0] == 7 and kept[1:] == [4 * m for m in rows[1:]]
    assert module.storage().inference_bytes == 4 * (16 * sum(rows) + 2 * sum(kept[1:]))
    own = build(5, weights=None)
    assert own.config["weight_rows"][1:] == CARDINALITIES[1:]
    assert own.storage().inference_bytes == 4 * (16 * sum(own.config["rows"]) + 2 * 35_000)


def test_weights_an_id_bound_the_ratio():
    with pytest.raises(embeddings.Infeasible, match="budget"):
        build(8, weights=None)  # dim / hashes
    build(1000)


def test_hashes_of_an_id_are_independent():
    module = trained(build(100, weights=1))
    module.importance.weight.data[:, 1] = 0  # the first hash alone
    first = module.materialize(2).unique(dim=0, return_inverse=True)[1]
    module.importance.weight.data = module.importance.weight.data.fliplr()
    second = module.materialize(2).unique(dim=0, return_inverse=True)[1]
    same = (first[:1000, None] == first[:1000]) & (second[:1000, None] == second[:1000])
    assert same.sum() < 1.1 * 1000  # hardly a pair beside each id with itself
