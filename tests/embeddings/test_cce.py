"""Clustered compositional embeddings: maps, clusterings and their bytes."""

import pytest
import torch

from pocketrec import embeddings
from pocketrec.embeddings import Infeasible, cce
from pocketrec.optim import RowwiseAdagrad

CARDINALITIES = [3000, 5, 2000]


def build(ratio=8, **knobs):
    return embeddings.build("cce", cardinalities=CARDINALITIES, dim=16, ratio=ratio, seed=1, **knobs)


def test_maps_end_the_ratio():
    full = 5_000_000 * 16 * 4
    solved = cce.Cce.solve([5_000_000], 16, full / 15, columns=4)
    assert solved["rows"] <= 256  # one byte a column
    with pytest.raises(Infeasible, match=r"its maps alone 20 MB"):
        cce.Cce.solve([5_000_000], 16, full / 17, columns=4)
    assert cce.Cce.solve([5_000_000], 16, full / 60)["columns"] == 1


@pytest.mark.parametrize(("rows", "itemsize"), [(256, 1), (257, 2), (65_536, 2), (65_537, 4)])
def test_a_map_entry_is_as_small_as_k_allows(rows, itemsize):
    stored = cce.Cce.stored([1_000_000, 100], 8, rows=rows, columns=2)
    assert stored["map"].shape == (1_000_000, 2) and stored["map"].itemsize == itemsize
    assert stored["table.weight"].shape == (2 * (2 * rows + 100), 4)


@pytest.mark.slow
def test_a_map_of_two_bytes_holds_rows_above_32767():
    module = embeddings.build("cce", cardinalities=[900_000], dim=8, ratio=5, columns=1)
    assert 40_000 < module.config["rows"] < 65_536 and module.map.dtype == torch.int16
    ids = torch.arange(0, 900_000, 899).unsqueeze(1)
    torch.testing.assert_close(module(ids)[:, 0], module.materialize(0)[ids[:, 0]])


def test_clustering_happens_on_time_and_keeps_its_bytes():
    module = build(clusterings=3)
    before, maps = module.storage(), [module.map.clone()]
    for step in range(1, 41):
        module.adapt(step, 40, RowwiseAdagrad(module.parameters()))
        if int(module.rounds) == len(maps):
            maps.append(module.map.clone())
            assert step == 5 * int(module.rounds)
    assert int(module.rounds) == 3 and not any(map(torch.equal, maps, maps[1:]))
    assert module.storage() == before
    ids = torch.tensor([[i, i % 5, i] for i in range(2000)])
    for feature in range(3):
        torch.testing.assert_close(module(ids)[:, feature], module.materialize(feature)[ids[:, feature]])


def test_clustering_recovers_groups_of_equal_ids():
    """A table that has only as many distinct rows as centroids is kept exactly."""
    points = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    rows = points[torch.arange(600) % 6]
    drawn = (cce.kmeans(rows, 12, torch.Generator().manual_seed(s), iterations=20) for s in range(5))
    errors = [(rows - c[cce.assign(rows, c)]).square().sum().item() for c in drawn]
    assert min(errors) < 1e-8


def test_assignment_is_to_the_nearest():
    draw = torch.Generator().manual_seed(0)
    points, centroids = torch.randn(500, 3, generator=draw), torch.randn(20, 3, generator=draw)
    assert torch.equal(cce.assign(points, centroids, chunk=64), torch.cdist(points, centroids).argmin(1))


def test_clustering_changes_the_table_little_and_forgets_its_accumulators():
    module = build(ratio=3, clusterings=1)
    optimizer = RowwiseAdagrad(module.parameters())
    ids = torch.stack([torch.arange(2000), torch.arange(2000) % 5, torch.arange(2000)], 1)
    module(ids).square().sum().backward()
    optimizer.step()
    table = module.materialize(0).detach().clone()
    module.adapt(5, 10, optimizer)
    assert (module.materialize(0) - table).square().mean() < 0.9 * table.var()
    start, rows = int(module.starts[1]), 5 * module.config["columns"]  # a whole table is left alone
    sums = optimizer.state[module.table.weight]["sum"]
    assert (sums[start : start + rows] > 0).all() and sums.count_nonzero() <= rows
