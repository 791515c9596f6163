"""Arithmetic of a training step on many workers."""

import pandas as pd
import pytest

from pocketrec import cost_model
from pocketrec.cost_model import OFFLOADED, REPLICATED, SHARDED

MODEL = cost_model.dlrm([10**8, 1000], 64, 13, [64], [128], 10_000)
GPU = cost_model.gpu("A100 80 GB, InfiniBand")


def test_sizes_of_a_dlrm():
    assert MODEL.table_bytes == 4 * 64 * (10**8 + 1000)
    assert MODEL.array_bytes == MODEL.table_bytes / 10_000
    layers = [(13, 64), (64, 64), (3 + 64, 128), (128, 1)]  # three vectors have three pairs
    assert MODEL.weights == sum(n * m + m for n, m in layers)
    assert MODEL.macs == sum(n * m for n, m in layers) + 3 * 3 * 64


def test_one_worker_sends_nothing():
    for way in (SHARDED, REPLICATED):
        parts = cost_model.step(MODEL, GPU, 1, 2048, way)
        assert parts["exchange"] == parts["all-reduce"] == 0


def test_bytes_by_hand():
    machine = cost_model.Machine("hand", 1, 1, 1, 1, 1, link=10, reduce=4, network=2, node=2, latency=0, fixed=0)
    # 4 workers in 2 nodes: of 80 bytes 20 stay, 20 go to the neighbour at 10, 40 to the other node at 2
    assert cost_model.all_to_all(machine, 4, 80) == 20
    # 80 bytes: 2 x 80 / 2 at 4 within the node, then 2 x 40 / 2 at 2 between nodes
    assert cost_model.all_reduce(machine, 4, 80) == 20 + 20


def test_the_exchange_grows_with_the_batch_and_the_sum_of_the_array_does_not():
    small, large = (cost_model.step(MODEL, GPU, 16, batch, SHARDED)["exchange"] for batch in (1 << 18, 1 << 20))
    start = 3 * GPU.latency * 4  # three exchanges of 16 workers
    assert large - start == pytest.approx(4 * (small - start))
    sums = {cost_model.step(MODEL, GPU, 16, batch, REPLICATED)["all-reduce"] for batch in (2048, 1 << 20)}
    assert len(sums) == 1


def test_tables_that_do_not_fit_are_no_row():
    found = cost_model.predictions(MODEL, [cost_model.Machine(**(vars(GPU) | {"capacity": 20e9}))], [1, 2, 8], [2048])
    assert set(found.loc[found["way"] == SHARDED, "workers"]) == {2, 8}
    assert set(found.loc[found["way"] == REPLICATED, "workers"]) == {1, 2, 8}
    assert set(found.loc[found["way"] == OFFLOADED, "workers"]) == {1, 2, 8}
    assert set(cost_model.gains(found)["workers"]) == {2, 8}
    assert (found["overlapped_ms"] <= found["ms"]).all()


def test_every_assumption_has_value_unit_and_source():
    table = cost_model.assumptions()
    assert table.notna().all(axis=None) and (table[["unit", "source"]] != "").all(axis=None)
    assert set(table["assumption"]) >= {"flops", "memory", "link", "network", "capacity", "host", "latency", "fixed"}
    assert table["reached"].between(0, 1).all()


def test_a_faster_network_helps_full_tables_most():
    table = cost_model.sensitivity(MODEL, cost_model.gpu(cost_model.ETHERNET), 16, 65_536).set_index("assumption")
    assert table.loc["network", "lower"] > table.loc["network", "as_is"] > table.loc["network", "higher"]
    assert isinstance(table, pd.DataFrame) and table["as_is"].nunique() == 1


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="sharded, replicated, offloaded"):
        cost_model.step(MODEL, GPU, 2, 2048, "split")
