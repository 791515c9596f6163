"""ROBE's choices, and what its authors' code computes."""

import numpy as np
import pytest
import torch

from pocketrec import embeddings
from pocketrec.embeddings import robe
from pocketrec.embeddings.base import generator
from pocketrec.kernels import multiply_shift

CARDINALITIES = [100, 5000, 3]


def build(ratio, dim=64, **knobs):
    return embeddings.build("robe", cardinalities=CARDINALITIES, dim=dim, ratio=ratio, seed=1, **knobs)


IDS = torch.tensor([[i, 50 * i + 7, i % 3] for i in range(100)])


def dense(module):
    """Read the same rows from parts of the dense tables."""
    parts = [slice(100), slice(7, None, 50), slice(3)]
    first, second, third = (module.materialize(f, rows) for f, rows in enumerate(parts))
    return torch.stack([first, second, third[IDS[:, 2]]], 1)


@pytest.mark.parametrize("block_size", [1, 8, 16, 32, 64])
@pytest.mark.parametrize("hash", ["universal", "multiply_shift"])
@pytest.mark.parametrize("sign", [False, True])
@pytest.mark.parametrize("layout", ["independent", "paper"])
def test_every_block_size_and_hash(block_size, hash, sign, layout):
    for ratio in (10, 4500):  # 72 floats: most blocks wrap
        module = build(ratio, block_size=block_size, hash=hash, sign=sign, layout=layout)
        assert torch.equal(module(IDS), dense(module))


@pytest.mark.parametrize("hash", ["universal", "multiply_shift"])
@pytest.mark.parametrize(("layout", "shared"), [("independent", (0, 0.1)), ("paper", (0.4, 1))])
def test_ids_that_share_a_block_share_others_by_chance_alone(hash, layout, shared):
    module = build(50, dim=32, block_size=1, hash=hash, layout=layout)
    with torch.no_grad():
        module.array.weight.copy_(torch.arange(module.config["size"]))
    slots = module.materialize(1)  # [5000, 32]: where each element of each id lies
    ones, others = (slots[:, 0].unsqueeze(1) == slots[:, 0]).triu(1).nonzero().T  # pairs that share the first
    same = (slots[ones, 1:] == slots[others, 1:]).double().mean()
    assert len(ones) > 1000 and shared[0] <= same <= shared[1]


@pytest.mark.parametrize("hash", ["universal", "multiply_shift"])
def test_signs_of_two_ids_differ_in_half_of_the_places(hash):
    module = build(50, dim=64, block_size=1, hash=hash, sign=True)
    torch.nn.init.ones_(module.array.weight)
    products = module.materialize(0) @ module.materialize(0).T / 64  # of signs, 0 in the mean, 1/8 apart
    assert products.fill_diagonal_(0).square().mean() < 2 / 64


@pytest.mark.parametrize(("dim", "block"), [(1, 1), (13, 13), (16, 16), (48, 24), (64, 32), (96, 32), (128, 32)])
def test_default_block_divides_any_dim(dim, block):
    assert build(5, dim=dim).config["block_size"] == block


@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_authors_layout_is_their_formula(block_size):
    module = build(300, layout="authors", block_size=block_size)
    size = module.config["size"]
    prime = 2038074743
    r1, r2, r3 = np.random.RandomState(1024).randint(0, prime, 50)[:3].tolist()
    assert (r1, r2, r3) == (robe.AUTHORS_R1, robe.AUTHORS_R2, robe.AUTHORS_R3)
    row = np.array([0, 100, 5100]) + IDS.numpy()  # global row: rows of the tables before
    i = np.arange(64)
    slots = (row[..., None] * r3 + i // block_size * r2 + r1) % prime % (size - block_size + 1) + i % block_size
    assert slots.max() < size
    np.testing.assert_array_equal(module(IDS).detach(), module.array.weight.detach().numpy()[slots])
    assert torch.equal(module(IDS), dense(module))


def test_multiply_shift_is_exact_and_spreads():
    a, b = multiply_shift.coefficients(generator(0), 2).tolist()
    x = torch.arange(20_000)
    high = multiply_shift.high_word(x * a + b)
    assert high.tolist() == [((a * i + b) % 2**64) >> 32 for i in range(20_000)]
    slots = (high * 1000) >> 32
    assert slots.max() < 1000
    pairs = sum(c * (c - 1) / 2 for c in torch.bincount(slots).tolist())
    assert pairs <= 2 * 20_000**2 / 2 / 1000  # universal up to a factor of 2


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"block_size": 7}, "block_size must divide dim = 64, got 7"),
        ({"hash": "md5"}, "hash must be"),
        ({"layout": "other"}, "layout"),
        ({"layout": "authors", "sign": True}, "no sign"),
        ({"layout": "authors", "hash": "multiply_shift"}, "hash of its own"),
    ],
)
def test_wrong_knobs_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        build(10, **knobs)


def test_saved_with_its_choices(tmp_path):
    module = build(10, hash="multiply_shift", block_size=8, sign=True)
    embeddings.save(module.deploy(), tmp_path / "e.safetensors")
    assert torch.equal(embeddings.load(tmp_path / "e.safetensors")(IDS), module(IDS))
