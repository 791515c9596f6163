"""Deep hash embeddings: size by hand, which tables are encoded, the hashes."""

import pytest
import torch

from pocketrec import embeddings
from pocketrec.embeddings import Infeasible
from pocketrec.embeddings.base import full_bytes

CARDINALITIES = [100, 50_000, 20_000, 3]


def build(ratio, **knobs):
    return embeddings.build("dhe", cardinalities=CARDINALITIES, dim=16, ratio=ratio, seed=1, **knobs)


def test_size_of_the_published_network():
    k, h, d = 1024, 200, 16
    config = {"tables": [0], "hidden": h, "layers": 5, "hashes": k}
    stored = embeddings.METHODS["dhe"].stored([10**6], d, **config)
    assert sum(s.bytes() for s in stored.values()) == 4 * ((k + 1) * h + 4 * h * (h + 1) + (h + 1) * d)


def test_as_few_tables_are_encoded_as_the_budget_asks():
    assert [build(ratio).config["tables"] for ratio in (1, 2, 10, 30)] == [[], [1], [1, 2], [1, 2]]
    assert build(10, tables=3).config["tables"] == [0, 1, 2]
    with pytest.raises(Infeasible, match="tables kept whole included"):
        build(10, tables=1)


@pytest.mark.parametrize("ratio", [5, 10, 30])
def test_hidden_units_fill_the_budget(ratio):
    used = build(ratio).storage().inference_bytes * ratio / full_bytes(CARDINALITIES, 16)
    assert 0.9 < used <= 1


def test_hashes_grow_with_the_hidden_units():
    assert build(30).config["hashes"] == 16 * build(30).config["hidden"]
    assert build(30, hashes=64).config["hashes"] == 64


def test_hashes_are_uniform_and_independent_of_each_other():
    a, b = build(10).hash_coefficients[:, 0]
    u = (torch.arange(50_000).unsqueeze(-1) * a + b).double() * 2.0**-63
    assert u.min() >= -1 and u.max() < 1
    assert u.mean(0).abs().max() < 0.03 and (u.var(0) - 1 / 3).abs().max() < 0.03
    assert (torch.corrcoef(u.T[:20]) - torch.eye(20)).abs().mean() < 0.01


def test_rows_start_small_and_differ():
    rows = build(10).materialize(1, slice(0, 500))
    assert 0.03 < rows.std().item() < 0.2
    assert len(rows.unique(dim=0)) == 500
