"""MEmCom: shared rows, a number of each id's own."""

import pytest
import torch

from pocketrec import embeddings
from pocketrec.embeddings import Infeasible
from pocketrec.embeddings.base import full_bytes

CARDINALITIES = [7, 5000, 30_000]


def build(ratio, **knobs):
    return embeddings.build("memcom", cardinalities=CARDINALITIES, dim=16, ratio=ratio, seed=1, **knobs)


def trained(module):
    """Numbers that differ everywhere."""
    draw = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(generator=draw)
    return module


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_lookup_scales_and_shifts_the_shared_row(bias, quantize):
    module = trained(build(6, bias=bias)).double()
    ids = torch.tensor([[i % 7, i, 6 * i] for i in range(5000)])
    rows = [module.config["rows"][f] for f in (1, 2)]
    table = module.table.weight[7 + rows[0] :]
    expected = table[ids[:, 2] % rows[1]] * module.scale.weight[5000 + ids[:, 2]]
    if bias:
        expected = expected + module.shift.weight[5000 + ids[:, 2]]
    torch.testing.assert_close(module(ids)[:, 2], expected)
    torch.testing.assert_close(module.materialize(2)[ids[:, 2]], expected)
    if quantize:
        assert (module.float().deploy(quantize)(ids)[:, 2] - expected).abs().max() < 0.25


@pytest.mark.parametrize(("bias", "largest"), [(False, 16), (True, 8)])
def test_its_largest_ratio_is_dim_over_the_numbers_an_id(bias, largest):
    kind, full = embeddings.METHODS["memcom"], full_bytes(CARDINALITIES, 16)
    kind.solve(CARDINALITIES, 16, full / (largest * 0.99), bias=bias)
    with pytest.raises(Infeasible, match=f"largest ratio is about {largest}"):
        kind.solve(CARDINALITIES, 16, full / largest, bias=bias)


def test_bytes_are_the_rows_and_one_number_an_id():
    module = build(8)
    whole, *shared = module.config["rows"]
    assert whole == 7
    assert module.storage().inference_bytes == 4 * (16 * (7 + sum(shared)) + 35_000)
    assert build(1).config["rows"] == CARDINALITIES  # nothing would be gained


def test_numbers_an_id_are_quantised_in_groups():
    kept = build(8).deploy("int8").state_dict()["scale.packed.codes"]
    assert kept.numel() == -(-35_000 // 64) * (64 + 8)


def test_gradients_touch_only_the_ids_of_the_batch():
    module = build(8)
    module(torch.tensor([[0, 3, 4], [1, 3, 5]])).sum().backward()
    assert module.scale.weight.grad.coalesce().indices().tolist() == [[3, 5004, 5005]]
