"""Product quantisation: packing, straight-through gradients, the head of mgqe."""

from math import ceil

import pytest
import torch

from pocketrec import embeddings
from pocketrec.embeddings import dpq
from pocketrec.optim import RowwiseAdagrad

CARDINALITIES = [3000, 5, 2000]


def build(name="dpq", ratio=8, **knobs):
    return embeddings.build(name, cardinalities=CARDINALITIES, dim=16, ratio=ratio, seed=1, **knobs)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("groups", [1, 3, 8])
def test_packing_is_undone(bits, groups):
    codes = torch.randint(0, 2**bits, (dpq.CHUNK // groups + 77, groups), dtype=torch.uint8)
    packed = dpq.pack(codes, bits)
    assert len(packed) == ceil(codes.numel() * bits / 8) + 1
    entries = torch.randperm(len(codes))
    assert torch.equal(dpq.unpack(packed, entries, groups, bits), codes[entries].long())


def test_ratios_by_hand():
    """K = 32, D = 8 at dim 16 are 40 bits a row of 512: 12.8 times less, codebook aside. MGQE: 256 and 64 words."""
    million = [10_000_000]
    stored = dpq.Dpq.stored(million, 16, groups=8, bits=5, tail_bits=5, head=0)
    assert sum(s.bytes() for s in stored.values()) == 50_000_001 + 32 * 16 * 4
    config = dpq.Mgqe.solve(million, 64, 0.2 * 256 * 10_000_000, groups=4, bits=8)
    assert config == {"groups": 4, "bits": 8, "tail_bits": 6, "head": 1_000_000}
    kept = dpq.Mgqe.stored(million, 64, **config)
    assert kept["codes"].bytes() == 30_000_001 and kept["head_codes"].bytes() == 1_000_001
    assert kept["head_ids"].bytes() == 4_000_000


@pytest.mark.parametrize("name", ["dpq", "mgqe"])
def test_training_is_not_compressed_and_inference_is(name):
    module = build(name)
    assert module.storage().training_bytes > 5005 * 64 > 7 * module.storage().inference_bytes
    served = module.deploy()
    assert "counts" not in served.state_dict()
    ids = torch.tensor([[i, i % 5, i] for i in range(2000)])
    for feature in range(3):
        torch.testing.assert_close(served(ids)[:, feature], served.materialize(feature)[ids[:, feature]])


def test_gradients_pass_straight_through():
    module = build()
    upstream = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))
    module(torch.tensor([[7, 2, 9]])).backward(upstream)
    gradient = module.table.weight.grad.to_dense()
    torch.testing.assert_close(gradient[[7, 3002, 3014]], upstream[0])
    assert gradient.count_nonzero() == 48
    words = module.codebook.weight.grad
    torch.testing.assert_close(words.sum(2).view(2, 16), upstream[0, [0, 2]])  # to one word a group


def test_codes_are_those_of_the_nearest_words():
    draw = torch.Generator().manual_seed(0)
    queries, books = torch.randn(300, 2, 4, 3, generator=draw), torch.randn(2, 4, 16, 3, generator=draw)
    distances = (queries.unsqueeze(3) - books).square().sum(-1)
    assert torch.equal(dpq.nearest(queries, books, chunk=200), distances.argmin(3))


def test_the_head_is_what_training_saw_most():
    module = build("mgqe", head_share=0.02)
    with torch.no_grad():
        module.table.weight.mul_(30)  # apart, so that codes differ
        module.codebook.weight.mul_(30)
    draw = torch.Generator().manual_seed(0)
    optimizer = RowwiseAdagrad(module.parameters())
    for step in range(1, 21):
        ids = torch.stack([torch.randint(0, n, (64,), generator=draw) for n in CARDINALITIES], 1)
        ids[:, 0] = 2900 + torch.arange(64)
        module(ids)
        module.adapt(step, 20, optimizer)
    head = module.head_ids.tolist()
    assert set(range(2900, 2964)) <= set(head) and len(head) == module.config["head"] == 100
    assert int(module.counts.sum()) == 20 * 64 * 2
    tail = torch.arange(100).unsqueeze(1).expand(-1, 2) + module.code_starts
    codes = module._read(tail) if module.served else module.deploy()._read(tail)
    inside = torch.isin(tail, module.head_ids)
    assert codes[~inside].max() < 2 ** module.config["tail_bits"]
    served, ids = module.deploy(), torch.tensor([[i, i % 5, i % 2000] for i in range(3000)])
    torch.testing.assert_close(served(ids), module.eval()(ids))
    high = served._read(torch.arange(2900, 2964).unsqueeze(1).expand(-1, 2))
    assert high.max() >= 2 ** module.config["tail_bits"]


def test_no_table_worth_coding():
    module = embeddings.build("dpq", cardinalities=[3, 4], dim=16, ratio=1)
    assert module.deploy()(torch.tensor([[2, 3]])).shape == (1, 2, 16)
    assert torch.equal(module.deploy()(torch.tensor([[2, 3]])), module(torch.tensor([[2, 3]])))


def test_a_saved_module_is_loaded_without_encoding(tmp_path, monkeypatch):
    module = build()
    embeddings.save(module.deploy(), tmp_path / "e.safetensors")
    monkeypatch.setattr(dpq, "nearest", None)
    loaded = embeddings.load(tmp_path / "e.safetensors")
    monkeypatch.undo()
    ids = torch.tensor([[7, 2, 9]])
    assert torch.equal(loaded(ids), module.eval()(ids))


def test_a_served_copy_keeps_its_head_while_training_goes_on():
    module = build("mgqe", 4)
    assert module.config["head"]
    served, ids = module.deploy(), torch.stack([torch.arange(2000) % n for n in CARDINALITIES], 1)
    before = served(ids)
    module.train()(ids)
    module.adapt(10, 20, None)
    assert not torch.equal(module.head_ids, served.head_ids) and torch.equal(served(ids), before)
