"""Pruning: the schedule, the cap and the sparse form."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from pocketrec import embeddings
from pocketrec.embeddings import pruning
from pocketrec.optim import RowwiseAdagrad

CARDINALITIES = [3000, 5, 5000]


def build(ratio=8, cardinalities=CARDINALITIES, dim=16, **knobs):
    return embeddings.build("pruning", cardinalities=cardinalities, dim=dim, ratio=ratio, seed=1, **knobs)


def everything(module):
    return torch.cat([module.materialize(t) for t in range(len(module.cardinalities))])


def test_six_bytes_an_element():
    config = pruning.Pruning.solve([33_762_577], 16, 21_608_048)  # Criteo-Kaggle at 100x
    pointers = -(-33_762_577 // 4096) + 1
    assert config["keep"] == (21_608_048 - 4 * pointers) // 6
    stored = pruning.Pruning.stored([33_762_577], 16, **config)
    assert 21_608_048 - 6 < sum(s.bytes() for s in stored.values()) <= 21_608_048


@pytest.mark.parametrize("threshold", ["learned", "magnitude"])
def test_elements_go_on_schedule(threshold):
    module = build(threshold=threshold, until=0.5, prunings=5)
    optimizer, left = RowwiseAdagrad(module.parameters(), lr=1e-4), []
    ids = torch.stack([torch.randint(0, n, (512,)) for n in CARDINALITIES], 1)
    for step in range(1, 21):
        optimizer.zero_grad()
        module(ids).square().sum().backward()
        optimizer.step()
        module.adapt(step, 20, optimizer)
        left.append(int((everything(module) != 0).sum()))
    keep = module.config["keep"]
    assert left[0] == 8005 * 16 and left[3] > left[5] > left[7] > left[9]
    assert left[9] == pytest.approx(keep, rel=1e-3)
    if threshold == "magnitude":  # a zero stays one
        assert left == sorted(left, reverse=True) and keep - 2 <= left[9] == left[-1] <= keep  # equal ones go together
    # what is trained at the end is what is served
    torch.testing.assert_close(module.deploy()(ids), module.eval()(ids), rtol=0, atol=0)
    assert int((everything(module.deploy()) != 0).sum()) <= keep


def test_a_table_that_needs_its_elements_lowers_its_threshold():
    module = build(threshold="learned", prunings=4)
    optimizer = RowwiseAdagrad(module.parameters(), lr=0.01)
    ids = torch.stack([torch.randint(0, n, (512,)) for n in CARDINALITIES], 1)
    for step in range(1, 41):
        optimizer.zero_grad()
        (module(ids)[:, 0] * module.table(ids[:, 0]).detach().sign()).sum().neg().backward()  # larger is better
        optimizer.step()
        module.adapt(step, 40, optimizer)
    first, _, last = module.exponent().tolist()
    assert first < last == 0
    kept = [int((module.eval().materialize(t) != 0).sum()) / n for t, n in enumerate(CARDINALITIES)]
    assert kept[0] > kept[2]


def test_the_largest_elements_stay():
    module = build().eval()
    weight = module.table.weight.detach().abs()  # every scale is still 1
    kept = everything(module.deploy()) != 0
    assert int(kept.sum()) == module.config["keep"]
    assert weight[kept].min() > weight[~kept].max()


def test_the_sparse_form_is_that_of_scipy():
    module = build(dim=48, cardinalities=[3000, 7]).eval()
    deployed = module.deploy()
    per_block = (1 << 16) // 48
    dense = np.zeros((-(-3007 // per_block) * per_block, 48), np.float32)
    dense[:3007] = everything(module).detach()
    oracle = csr_matrix(dense.reshape(-1, per_block * 48))
    assert np.array_equal(deployed.pointers.numpy(), oracle.indptr)
    assert np.array_equal(deployed.columns.numpy().view(np.uint16), oracle.indices)
    assert np.array_equal(deployed.values.weight.numpy(), oracle.data)
    ids = torch.tensor([[i, i % 7] for i in range(3000)])
    torch.testing.assert_close(deployed(ids), module(ids), rtol=0, atol=0)


@pytest.mark.parametrize("left", [0, 1, 50])
def test_fewer_elements_than_the_cap_are_padded(left):
    module = build().eval()
    with torch.no_grad():
        module.table.weight.view(-1)[left:] = 0
    deployed, ids = module.deploy(), torch.tensor([[i % 3000, i % 5, i] for i in range(5000)])
    assert deployed.storage().inference_bytes == build().storage().inference_bytes
    torch.testing.assert_close(deployed(ids), module(ids), rtol=0, atol=0)


def test_equal_magnitudes_do_not_break_the_cap():
    module = build().eval()
    with torch.no_grad():
        module.table.weight.fill_(1)
    assert int((everything(module.deploy()) != 0).sum()) <= module.config["keep"]


def test_evaluation_in_the_middle_obeys_the_cap():
    module = build()
    ids = torch.tensor([[i % 3000, i % 5, i] for i in range(5000)])
    assert module(ids).count_nonzero() > module.config["keep"]
    with torch.no_grad():
        module.eval()
        assert len(module(ids)[:, 2].nonzero()) < module.config["keep"]
        module.table.weight[3005:] *= 100  # the cutoff follows the table
        assert len(module(ids)[:, 2].nonzero()) == module.config["keep"]
