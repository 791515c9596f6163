"""What is timed for ROBE's claims is what it says; no test depends on a duration."""

import paper_suites
import pytest
import torch

from pocketrec.embeddings.base import full_bytes
from pocketrec.papers import robe
from pocketrec.speed.bench import IDS


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny):
    suite = paper_suites.write(tmp_path_factory.mktemp("suite"), tiny, {"full": 0.6, "robe": 0.9}, seeds=1)
    return robe.measure(suite, small=True)


@pytest.mark.slow
def test_every_way_is_timed_at_every_point(measured):
    speed = measured["speed"]
    assert (speed["ms"] > 0).all() and speed["ids"].unique().tolist() == list(IDS)
    assert set(speed["part"]) == {"model", "lookup", "limit", "interaction", "MLPs", "copy", "product"}
    usual, largest = robe.SMALL.usual, robe.SMALL.sizes[-1]
    assert set(speed.loc[speed["table_bytes"] < largest, "batch"]) == {usual}
    assert set(speed.loc[speed["table_bytes"] == largest, "batch"]) == set(robe.SMALL.batches)
    ways = speed.groupby(["shape", "table_bytes", "batch", "ids", "part", "embedding", "block_size"], dropna=False)
    assert (ways.size() == robe.SMALL.rounds).all()
    own = speed[(speed["embedding"] == "robe") & (speed["part"] == "lookup") & (speed["batch"] == usual)]
    assert set(own.loc[own["shape"] == "MLPerf", "block_size"]) == {1, 8, 16, 32, 128}


@pytest.mark.slow
def test_bytes_and_operations_are_those_of_the_shape(measured):
    speed = measured["speed"]
    rows = speed[(speed["shape"] == "MLPerf") & (speed["batch"] == 16)].set_index("part")
    assert set(rows.loc["lookup", "bytes"]) == {2 * 16 * 26 * 128 * 4}
    weights = 13 * 512 + 512 * 256 + 256 * 128 + 479 * 1024 + 1024 * 1024 + 1024 * 512 + 512 * 256 + 256
    assert set(rows.loc["MLPs", "flops"]) == {2 * 16 * weights}
    assert set(rows.loc["model", "flops"]) == {2 * 16 * (weights + 27 * 27 * 128)}


@pytest.mark.slow
def test_the_table_that_does_not_fit_is_named_with_its_command(measured):
    (row,) = measured["skipped"].to_dict("records")
    assert "96 GB" in row["what"] and row["command"].startswith("pocketrec measure ")
    assert measured["same_rows"]["difference"].notna().all() and len(measured["machine"]) == 1


@pytest.mark.parametrize("shape", robe.SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("size", [1 << 20, 1 << 22])
def test_tables_keep_their_proportions_within_the_memory(shape, size):
    tables = robe.part(torch.zeros(1 << 20), shape, size)
    taken = full_bytes(tables.cardinalities, tables.dim)
    assert min(tables.cardinalities) >= 1 and 0.97 * size < taken <= size
    assert tables.weight.shape == (sum(tables.cardinalities), tables.dim)


def test_all_models_answer_from_the_same_memory_and_the_array_is_a_thousandth():
    memory = torch.rand(1 << 20)
    tables = robe.part(memory, robe.SHAPES[0], 1 << 22)
    models = robe.built(tables, robe.SHAPES[0])
    assert models[robe.FULL].embedding.table.weight.data_ptr() == memory.data_ptr()
    ids = torch.stack([torch.randint(rows, (5,)) for rows in tables.cardinalities], 1)
    dense = torch.rand(5, 13)
    with torch.inference_mode():
        torch.testing.assert_close(models[robe.FULL](dense, ids), models[robe.BAGS](dense, ids))
    full = full_bytes(tables.cardinalities, tables.dim)
    assert full / models[robe.ROBE].embedding.storage().inference_bytes == pytest.approx(1000, rel=0.01)


def test_sizes_grow_to_what_the_memory_allows_and_stop_at_the_papers(monkeypatch):
    class Memory:
        available = 20 << 30

    monkeypatch.setattr(robe.psutil, "virtual_memory", Memory)
    sizes = robe.largest_plan("cpu").sizes
    assert list(sizes) == sorted(sizes) and sizes[0] == 1 << 21 and sizes[-1] == int(0.65 * (20 << 30))
    Memory.available = 1 << 40
    assert robe.largest_plan("cpu").sizes[-1] == robe.real_bytes() == 187_767_399 * 128 * 4
