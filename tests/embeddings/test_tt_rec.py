"""TT-Rec: published sizes by arithmetic, factors that always exist, initial values, and the cache of hot rows."""

from contextlib import nullcontext
from math import prod, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketrec import embeddings
from pocketrec.embeddings import Infeasible
from pocketrec.embeddings.base import full_bytes
from pocketrec.embeddings.tt_rec import CUT_VARIANCE, TTRec, factor_dim, factor_rows
from pocketrec.kernels import native
from pocketrec.optim import RowwiseAdagrad, in_place
from pocketrec.suite.sizes import tables as published

KAGGLE, _ = published("criteo-kaggle")
TB_10M, _ = published("criteo-tb-10m")


def ratio(cardinalities, dim, tables, rank):
    """Full bytes over those with a rank, whatever the budget."""
    largest = sorted(sorted(range(26), key=lambda t: -cardinalities[t])[:tables])
    stored = TTRec.stored(cardinalities, dim, tables=largest, rank=rank, cores=3, cache=0)
    return full_bytes(cardinalities, dim) / sum(tensor.bytes() for tensor in stored.values())


@pytest.mark.parametrize(
    ("cardinalities", "dim", "tables", "rank", "expected"),
    [
        (KAGGLE, 16, 7, 8, 222),
        (KAGGLE, 16, 7, 16, 188),
        (KAGGLE, 16, 7, 32, 118),
        (TB_10M, 64, 7, 8, 112.5),
        (KAGGLE, 16, 3, 1, 4.1),
        (KAGGLE, 16, 5, 1, 59),
        (KAGGLE, 16, 7, 1, 240),
    ],
)
def test_published_ratios_come_out_of_the_arithmetic(cardinalities, dim, tables, rank, expected):
    assert ratio(cardinalities, dim, tables, rank) == pytest.approx(expected, rel=0.01)


@given(rows=st.integers(1, 10**9), cores=st.integers(2, 4))
def test_rows_are_always_factored_and_tightly(rows, cores):
    factors = factor_rows(rows, cores)
    assert len(factors) == cores and rows <= prod(factors) <= (rows ** (1 / cores) + 1) ** cores * 1.001


@given(dim=st.integers(1, 512), cores=st.integers(2, 4))
def test_dim_is_always_factored_exactly(dim, cores):
    factors = factor_dim(dim, cores)
    assert len(factors) == cores and prod(factors) == dim
    assert factor_dim(128, 3) == [4, 4, 8]


@pytest.mark.parametrize("cores", [2, 3, 4])
@pytest.mark.parametrize("dim", [7, 16, 128])
def test_a_row_is_a_product_of_slices(cores, dim):
    e = embeddings.build("tt_rec", cardinalities=[5000, 3], dim=dim, ratio=1.5, cores=cores, rank=3, tables=1)
    p, q = factor_rows(5000, cores), factor_dim(dim, cores)
    digits = torch.unravel_index(torch.tensor(4321), p)
    product = torch.ones(1, 1)
    for k, (core, digit) in enumerate(zip(e.cores, digits, strict=True)):
        left, right = (1 if k == 0 else 3), (1 if k == cores - 1 else 3)
        block = core.weight[digit].view(left, q[k] * right)
        product = (product @ block).reshape(-1, right)
    torch.testing.assert_close(e(torch.tensor([[4321, 0]]))[0, 0], product.flatten())


@pytest.mark.parametrize(("init", "wider"), [("scaled_gaussian", 1), ("gaussian", 1), ("uniform", 1)])
def test_initial_rows_have_the_variance_of_a_full_table(init, wider):
    e = embeddings.build("tt_rec", cardinalities=[20_000], dim=16, ratio=1, tables=1, rank=8, init=init)
    assert e.materialize(0).std().item() == pytest.approx(wider / sqrt(3 * 20_000), rel=0.2)


def test_the_published_initialisation_is_too_wide_by_rank_and_cut():
    e = embeddings.build("tt_rec", cardinalities=[20_000], dim=16, ratio=1, tables=1, rank=8, init="sampled_gaussian")
    expected = 8 * CUT_VARIANCE**1.5 / sqrt(3 * 20_000)
    assert e.materialize(0).std().item() == pytest.approx(expected, rel=0.2)


def with_cache(cache=10):
    e = embeddings.build("tt_rec", cardinalities=[3000, 40], dim=8, ratio=2, tables=1, rank=4, cache=cache)
    optimizer = RowwiseAdagrad(e.parameters(), lr=0.1)
    hot = torch.tensor([[7 * i, 0] for i in range(10)])
    for step in range(1, 21):
        optimizer.zero_grad()
        e(hot).square().sum().backward()
        optimizer.step()
        e.adapt(step, 40, optimizer)
    return e, hot, optimizer


def test_the_cache_takes_in_the_rows_that_are_read_and_answers_for_them():
    e, hot, _ = with_cache()
    assert e.cache_hit_rate(hot) == 1 and e.cache_hit_rate(hot + torch.tensor([1, 0])) == 0
    torch.testing.assert_close(e.eval()(hot)[:, 0], e.materialize(0)[hot[:, 0]])


def test_a_new_row_starts_as_the_product_of_its_cores_and_then_learns_alone():
    e, hot, optimizer = with_cache()
    cores = [core.weight.detach().clone() for core in e.cores]
    before = e(hot)[:, 0].detach().clone()
    optimizer.zero_grad()
    e(hot)[:, 0].sum().backward()
    optimizer.step()
    assert not torch.equal(e(hot)[:, 0], before)
    assert all(torch.equal(core.weight, old) for core, old in zip(e.cores, cores, strict=True))


@pytest.mark.parametrize("kernels", ["C++", "plain"])
def test_a_cached_row_is_not_multiplied(kernels):
    e, hot, _ = with_cache()
    for core in e.cores:
        core.weight.data.fill_(float("nan"))
        core.weight.grad = None
    with native.off() if kernels == "plain" else nullcontext():
        rows = e(hot)[:, 0]
        rows.sum().backward()
    assert rows.isfinite().all() and e(hot + torch.tensor([1, 0]))[:, 0].isnan().all()
    assert not any(core.weight.grad.to_dense().any() for core in e.cores)


def test_the_cache_and_its_bookkeeping_are_counted():
    e, hot, _ = with_cache()
    storage = e.storage()
    assert storage.inference["cached_ids"] == 4 * 10 and storage.inference["cached.weight"] == 4 * 8 * 10
    assert "counts" not in storage.inference and storage.training["counts"] == 4 * 3000
    torch.testing.assert_close(e.deploy()(hot), e.eval()(hot))


def test_a_row_that_stays_goes_on_learning_and_one_that_leaves_is_dropped():
    e, _, optimizer = with_cache(cache=2)
    kept, left = e.cached_ids.tolist()
    learned = e(torch.tensor([[kept, 0], [left, 0]]))[:, 0].detach().clone()
    e(torch.tensor([[1, 0]] * 50 + [[kept, 0]] * 50))
    e.adapt(22, 40, optimizer)
    assert e.cached_ids.tolist() == sorted([1, kept])
    rows = e(torch.tensor([[kept, 0], [left, 0]]))[:, 0]
    assert torch.equal(rows[0], learned[0]) and not torch.equal(rows[1], learned[1])
    accumulator = optimizer.state[e.cached.weight]["sum"][e.slots.long()]
    assert accumulator[e.cached_ids == 1] == 0 and accumulator[e.cached_ids == kept] > 0


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_served_cache_is_saved_exported_and_counted(quantize, tmp_path):
    e, hot, _ = with_cache()
    served = e.deploy(quantize)
    kept = sum(s.bytes(quantize) for s in TTRec.stored([3000, 40], 8, **e.config).values())
    assert embeddings.save(served, tmp_path / "e.safetensors") == kept
    assert torch.equal(embeddings.load(tmp_path / "e.safetensors")(hot), served(hot))
    assert torch.equal(torch.export.export(served, (hot,)).module()(hot), served(hot))
    assert served.cache_hit_rate(hot) == 1


@pytest.mark.parametrize("cache", [0, 10])
@pytest.mark.parametrize(("cores", "dim"), [(3, 16), (3, 30), (4, 16)])
def test_the_contracted_form_gives_the_same_and_counts_what_it_holds(cores, dim, cache, tmp_path):
    cardinalities = [3000, 40, 700]
    e = embeddings.build(
        "tt_rec", cardinalities=cardinalities, dim=dim, ratio=1, tables=2, rank=5, cores=cores, cache=cache
    )
    if cache:
        e.counts[:100] += 1
        e.adapt(1, 2, RowwiseAdagrad(e.parameters()))
    ids = torch.stack([torch.randint(0, n, (200,)) for n in cardinalities], 1)
    served = e.contracted()
    torch.testing.assert_close(served(ids), e.eval()(ids))
    torch.testing.assert_close(served.materialize(2), e.materialize(2))
    pairs = sum(prod(factor_rows(n, cores)[:2]) for n in (3000, 700))
    assert served.cores[0].weight.shape == (pairs, prod(factor_dim(dim, cores)[:2]) * 5)
    stored = TTRec.stored(cardinalities, dim, **served.config)
    assert {name: tuple(t.shape) for name, t in served.state_dict().items()} == {n: s.shape for n, s in stored.items()}
    written = embeddings.save(served, tmp_path / "e.safetensors")
    assert written == served.storage().inference_bytes > e.storage().inference_bytes
    assert torch.equal(embeddings.load(tmp_path / "e.safetensors")(ids), served(ids))
    assert torch.equal(torch.export.export(served, (ids,)).module()(ids), served(ids))


def test_the_contracted_form_is_quantised_like_any_other():
    e = embeddings.build("tt_rec", cardinalities=[3000], dim=16, ratio=1, tables=1, rank=5)
    ids, served = torch.arange(3000).unsqueeze(1), e.contracted()
    codes = served.deploy("int8")
    assert codes.storage().inference_bytes == served.storage("int8").inference_bytes
    assert (codes(ids) - served(ids)).abs().max() < 0.02 * served(ids).abs().max()


def test_without_compressed_tables_everything_goes_on():
    e = embeddings.build("tt_rec", cardinalities=[30, 40], dim=16, ratio=1, tables=0, rank=2)
    ids = torch.tensor([[29, 39], [0, 1]])
    optimizer = RowwiseAdagrad(e.parameters(), lr=0.1)
    before = e(ids).detach().clone()
    with in_place(e, optimizer):
        e(ids).sum().backward()
    assert (e(ids) < before).all() and torch.equal(e.contracted()(ids), e(ids))


def test_a_contracted_form_is_not_contracted_again():
    e = embeddings.build("tt_rec", cardinalities=[3000], dim=16, ratio=1, tables=1, rank=2, cores=4)
    with pytest.raises(ValueError, match="and once"):
        e.contracted().contracted()


@pytest.mark.parametrize("cores", [1, 2])
def test_two_cores_have_no_pair_to_contract(cores):
    e = embeddings.build("tt_rec", cardinalities=[3000], dim=16, ratio=1, tables=1, rank=2, cores=cores)
    with pytest.raises(ValueError, match="three cores or more"):
        e.contracted()


@pytest.mark.parametrize(("tables", "ceiling"), [(3, 4.1), (5, 59), (7, 240)])
def test_whole_tables_bound_the_ratio(tables, ceiling):
    embeddings.solve("tt_rec", KAGGLE, 16, ceiling * 0.96, tables=tables)
    with pytest.raises(Infeasible, match="tables kept whole"):
        embeddings.solve("tt_rec", KAGGLE, 16, ceiling * 1.02, tables=tables)


def test_as_few_tables_are_compressed_as_the_budget_asks():
    chosen = [embeddings.solve("tt_rec", KAGGLE, 16, ratio)["tables"] for ratio in (1, 4, 50, 200, 1000)]
    assert [len(tables) for tables in chosen] == sorted(len(tables) for tables in chosen)
    assert chosen[:2] == [[], [2, 11, 20]]
    above = embeddings.solve("tt_rec", KAGGLE, 16, 50, threshold=1_000_000)
    assert above == embeddings.solve("tt_rec", KAGGLE, 16, 50, tables=5)
