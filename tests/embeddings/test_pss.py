"""Parameter sharing: its maps, its published instance, and what the theory promises of it."""

from math import log

import pytest
import torch
import torch.nn.functional as F

from pocketrec import embeddings
from pocketrec.embeddings.base import full_bytes
from pocketrec.embeddings.pss import projection_rows
from pocketrec.optim import RowwiseAdagrad

CARDINALITIES = [100, 5000, 3]
IDS = torch.tensor([[i, 50 * i + 7, i % 3] for i in range(100)])


def dense(module):
    """Read the same rows from parts of the dense tables."""
    parts = [slice(100), slice(7, None, 50), slice(3)]
    first, second, third = (module.materialize(f, rows) for f, rows in enumerate(parts))
    return torch.stack([first, second, third[IDS[:, 2]]], 1)


# rows of Criteo-TB with ids capped at 40 million; 26 tables of dim 128
CRITEO_TB = [40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10, 2209, 11938, 155,
             4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36]  # fmt: skip


def build(ratio, **knobs):
    return embeddings.build("pss", cardinalities=CARDINALITIES, dim=64, ratio=ratio, seed=1, **knobs)


@pytest.mark.parametrize("mapping", ["element", "block", "row"])
@pytest.mark.parametrize("scope", ["one array", "per table"])
@pytest.mark.parametrize("sign", [False, True])
def test_every_map(mapping, scope, sign):
    for ratio in (1, 10, 1000):
        module = build(ratio, mapping=mapping, scope=scope, sign=sign)
        assert torch.equal(module(IDS), dense(module))


def test_the_published_instance_is_robe_32_of_10_megabytes():
    kind, knobs = embeddings.METHODS["pss"], {"mapping": "block", "sign": False}
    config = kind.solve(CRITEO_TB, 128, 4 * 2_700_000, **knobs)
    assert config["sizes"] == [2_700_000] and config["block_size"] == 32
    assert full_bytes(CRITEO_TB, 128) / 10.8e6 == pytest.approx(9680, rel=1e-3)
    robe = embeddings.build("robe", cardinalities=CARDINALITIES, dim=64, ratio=10, seed=1, block_size=32)
    assert torch.equal(build(10, **knobs)(IDS), robe(IDS))


def test_arrays_of_their_own_share_nothing_and_keep_small_tables():
    module = build(10, scope="per table", mapping="row", sign=False)
    one, two, three = module.config["sizes"]
    module.array.weight.data = torch.arange(one + two + three).float()
    read = [module.materialize(f) for f in range(3)]
    assert torch.equal(read[2].flatten(), torch.arange(one + two, one + two + 3 * 64).float())
    assert read[0].max() < one and one <= read[1].min() and read[1].max() < one + two
    whole = build(1, scope="per table")
    assert whole.config["sizes"] == [64 * n for n in CARDINALITIES]
    assert whole.materialize(1).abs().flatten().unique().numel() > 0.9 * 64 * 5000  # a hash: 0.63


@pytest.mark.parametrize("apart", [False, True])
def test_a_table_that_fits_whole_is_kept_where_it_is_the_only_one(apart):
    knobs = {"scope": "per table", "sign": False, "apart": apart}
    alone = embeddings.build("pss", cardinalities=[1000], dim=4, ratio=1, **knobs)
    assert alone.materialize(0).flatten().unique().numel() > 0.99 * 4000  # a hash: 0.63
    assert torch.equal(alone(torch.arange(1000).unsqueeze(1))[:, 0], alone.materialize(0))


def test_wrong_knobs_are_refused():
    for knobs in ({"mapping": "column"}, {"scope": "both"}):
        with pytest.raises(ValueError, match="mapping must be one of"):
            build(10, **knobs)


def trained_tables():
    """Two tables of 3,000 and 1,000 rows, trained as full ones to tell clicks planted by a rank-4 rule."""
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(3000, 4, generator=draw), torch.randn(1000, 4, generator=draw)
    full = embeddings.build("full", cardinalities=[3000, 1000], dim=8, seed=0)
    optim = RowwiseAdagrad(full.parameters(), lr=0.1)
    for _ in range(150):
        ids = (torch.rand(4096, 2, generator=draw) ** 3 * torch.tensor([3000, 1000])).long()  # popular ids first
        clicks = ((left[ids[:, 0]] * right[ids[:, 1]]).sum(1) > 0).float()
        loss = F.binary_cross_entropy_with_logits(full(ids).prod(1).sum(1), clicks)
        optim.zero_grad()
        loss.backward()
        optim.step()
    assert loss < 0.55
    return full.table.weight.detach().double()


def test_error_of_sharing_falls_with_the_root_of_memory():
    """Project a trained table into the array, as its map says, and read norm and columns' products out of it."""
    table = trained_tables()
    kind = embeddings.METHODS["pss"]

    def sketch(size, seed, values):  # the transpose of the map, which is linear in the array
        module = kind([3000, 1000], 8, seed=seed, sizes=[size], block_size=1, sign=True).double()
        ids = torch.stack([torch.arange(3000), torch.arange(3000).clamp(max=999)], 1)
        rows = module(ids)
        rows = torch.cat([rows[:, 0], rows[:1000, 1]])
        return torch.autograd.grad((rows * values).sum(), module.array.weight)[0]

    def error(size, seed):
        """Relative error of the squared norm, and of the product with the table that the popular rows are."""
        popular = torch.zeros_like(table)
        popular[:300] = table[:300]
        whole, part = sketch(size, seed, table), sketch(size, seed, popular)
        scale = table.norm() * popular.norm()
        norm = (whole @ whole) / table.square().sum() - 1
        return torch.stack([norm.abs(), ((whole @ part) - (table * popular).sum()).abs() / scale])

    sizes = [64, 256, 1024, 4096]
    errors = torch.stack([torch.stack([error(m, seed) for seed in range(40)]).square().mean(0).sqrt() for m in sizes])
    for found in errors.T:
        slope = torch.linalg.lstsq(
            torch.stack([torch.tensor(sizes).double().log(), torch.ones(4)], 1), found.log().unsqueeze(1)
        ).solution[0]
        assert slope.item() == pytest.approx(-0.5, abs=0.12)
        assert (found <= 1.3 * (2 / torch.tensor(sizes)) ** 0.5).all()  # the standard deviation's bound


def test_memory_for_an_approximation():
    rows, dim, epsilon, failure = 500, 4, 0.5, 0.01
    m = projection_rows(rows, dim, epsilon, failure)
    table = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)) ** 3
    signs = torch.randint(0, 2, (m, rows), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    array = signs @ table / m
    assert (signs.T @ array - table).abs().div(table.norm(dim=0)).max() <= epsilon
    # the logarithm of the rows, and 1 / epsilon^2
    steps = [projection_rows(10**k, dim, 0.1) for k in (3, 6, 9)]
    assert steps[1] - steps[0] == pytest.approx(steps[2] - steps[1], abs=2)
    assert projection_rows(rows, dim, 0.001) / projection_rows(rows, dim, 0.002) == pytest.approx(4, rel=0.01)
    # Criteo-TB, a tenth of each column's norm: 7 MB instead of 105 GB
    m = projection_rows(sum(CRITEO_TB), 128, 0.1)
    assert m == pytest.approx(log(4 * sum(CRITEO_TB) * 128 / 0.01) / (0.01 / 4 - 0.001 / 6), abs=1)
    assert 6e6 < 4 * 128 * m < 7e6
    with pytest.raises(ValueError, match="between 0 and 1"):
        projection_rows(10, 4, 0)
