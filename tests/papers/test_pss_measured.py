"""What is measured for PSS: projections that are right, steps of two processes that train as one does."""

import json

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pocketrec import embeddings, models
from pocketrec.data import Batch
from pocketrec.embeddings.pss import Pss
from pocketrec.optim import optimizers
from pocketrec.papers import pss
from pocketrec.speed import parallel
from pocketrec.training import train_step

CARDINALITIES, DIM = [40, 7, 300, 5], 4


def table():
    return embeddings.build("full", cardinalities=CARDINALITIES, dim=DIM, seed=3).requires_grad_(False)


def test_a_projection_is_the_signed_sum_of_the_elements_at_each_place():
    full = table()
    array = pss.projected(full, floats=50, seed=1)
    one = Pss(CARDINALITIES, DIM, seed=1, sizes=[50], block_size=1)
    expected = torch.zeros(50)
    for slot in range(50):  # an array with a single 1 reads as the signs of the elements that lie there
        one.array.weight.data.zero_()[slot] = 1
        expected[slot] = sum(float((one.materialize(f).detach() * full.materialize(f)).sum()) for f in range(4))
    torch.testing.assert_close(array.array.weight.data, expected, rtol=1e-4, atol=1e-5)


def test_errors_are_those_of_all_elements_once():
    full = table()
    array = pss.projected(full, floats=64, seed=0)
    errors = torch.cat([(array.materialize(f) - full.materialize(f)).flatten() for f in range(4)])
    squared, worst = pss._errors(full, array)
    assert squared == pytest.approx(float(errors.square().sum()), rel=1e-4)
    assert worst == pytest.approx(float(errors.abs().max()), rel=1e-4)


def test_an_array_with_room_for_everything_and_dense_signs_lose_as_theory_says():
    values = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    read = torch.stack([pss.densely_read(values, 400, seed) for seed in range(20)])
    relative = (read - values) / values.norm(dim=0)
    assert float(relative.square().mean().sqrt()) == pytest.approx(400**-0.5, rel=0.05)


@pytest.mark.slow
def test_everything_is_measured_in_small(tmp_path, tiny):
    torch.manual_seed(0)
    embedding = embeddings.build("full", cardinalities=tiny.cardinalities, dim=8)
    folder = tmp_path / "runs/full/planted/r1-s0"
    folder.mkdir(parents=True)
    models.save(models.DLRM(embedding, tiny.num_dense, [8], [8]).deploy(), folder)
    parameters = {"dataset": "planted", "dataset_options": tiny.meta["options"], "dim": 8, "batch_size": 64}
    record = {
        "schema": 1,
        "run": "full/planted/r1-s0",
        "kind": "quality",
        "status": "done",
        "method": "full",
        "seed": 0,
    }
    record |= {"dataset": "planted", "ratio": 1, "sizes": {"full_bytes": 1}}
    record |= {"parameters": parameters | {"bottom_mlp": [8], "top_mlp": [8]}}
    (folder / "record.json").write_text(json.dumps(record))
    found = pss.measure(tmp_path, small=True)
    assert found["skipped"].empty
    assert set(found["latency"]["tables"]) == {"planted", "tiny"}
    assert set(found["latency"]["embedding"]) == {"MLPs only", "full", "pss", "pss, element"}
    projection = found["projection"].query("m > 10")
    assert (projection["rms"] * projection["m"] ** 0.5).between(0.7, 1.4).all()
    assert (found["dense"]["worst"] <= found["dense"]["epsilon"]).all()
    steps = found["parallel"][found["parallel"]["part"] == "step"]
    assert set(steps["way"]) == {"sharded", "replicated"} and (steps["ms"] > 0).all()
    assert set(found["parallel"]["part"]) == {"step", "lookup", "MLPs", "all-to-all", "all-reduce"}


def test_without_a_trained_table_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "bench", lambda plan: plan)
    found = pss.measure(tmp_path, small=True)
    assert "projection" not in found
    (row,) = found["skipped"].to_dict("records")
    assert "no trained full table" in row["reason"] and "SUITE=paper_pss" in row["command"]


# steps of two processes


def rows(part=None):
    draw = torch.Generator().manual_seed(5)
    ids = torch.stack([torch.randint(n, (16,), generator=draw) for n in CARDINALITIES], 1).int()
    batch = Batch(torch.rand(16, 3, generator=draw), ids, torch.rand(16, generator=draw).round())
    return batch if part is None else Batch(*(tensor[8 * part :][:8] for tensor in batch))


def model(embedding):
    return models.DLRM(embedding, 3, [8], [8], seed=1)


def two_steps(rank, folder):
    parallel.join(folder, rank, 2)
    array = embeddings.build("pss", cardinalities=CARDINALITIES, dim=DIM, ratio=4, **pss.BLOCKS)
    for name, embedding in (("sharded", parallel.Sharded(CARDINALITIES, DIM)), ("replicated", array)):
        trained = model(embedding)
        step = parallel.training_step(trained, rows(rank))
        step()
        step()
        torch.save(trained.state_dict(), f"{folder}/{name}-{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    torch.multiprocessing.spawn(two_steps, (str(tmp_path),), 2)
    halves = [parallel.full(CARDINALITIES, DIM, part, 2) for part in range(2)]
    full = embeddings.build("full", cardinalities=CARDINALITIES, dim=DIM)
    full.table.weight = nn.Parameter(torch.cat([half.table.weight.data for half in halves]))
    array = embeddings.build("pss", cardinalities=CARDINALITIES, dim=DIM, ratio=4, **pss.BLOCKS)
    for name, embedding in (("sharded", full), ("replicated", array)):
        alone = model(embedding)
        optims = optimizers(alone, table_optimizer="sgd", table_lr=parallel.LR, dense_lr=1e-3)
        for _ in range(2):
            train_step(alone, rows(), optims)
        found = [torch.load(tmp_path / f"{name}-{rank}") for rank in range(2)]
        for key, expected in alone.state_dict().items():
            if key == "embedding.table.weight":
                both = torch.cat([state["embedding.tables.table.weight"] for state in found])
                torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-6)
                continue
            for state in found:
                torch.testing.assert_close(state[key], expected, rtol=1e-4, atol=1e-6)


def test_tables_that_cannot_be_shared_out_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="4 tables cannot be shared out evenly to 3"):
        parallel.Sharded(CARDINALITIES, DIM)
