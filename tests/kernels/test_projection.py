"""Rows times the matrix of their table: the C++ against plain PyTorch in float64, which is the specification."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrec.kernels import gather, native, projection

pytestmark = pytest.mark.skipif(bool(native.problem("projection")), reason=native.problem("projection"))

EPSILON = torch.finfo(torch.float32).eps
WIDTHS = [1, 2, 3, 4, 8, 15, 16, 17, 32, 33, 64, 128]


@st.composite
def lookups(draw):
    """Stacked tables, ids that repeat, some matrices, and a gradient."""
    width, columns = draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(WIDTHS))
    features, batch = draw(st.sampled_from([1, 2, 3, 26])), draw(st.sampled_from([0, 1, 5, 33, 100, 700]))
    sizes = draw(st.lists(st.sampled_from([1, 2, 7, 1000]), min_size=features, max_size=features))
    torch.set_num_threads(draw(st.sampled_from([1, 2, 5])))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    tables = stacked(sizes)
    few = draw(st.integers(1, 1000))
    ids = torch.randint(0, few, (batch, features), generator=seed) % tables.limits
    ids[-1:] = tables.limits - 1  # the last row of every table
    table = torch.randn(sum(sizes), width, generator=seed)
    matrices = torch.randn(features, width, columns, generator=seed)
    gradient = torch.randn(batch, features, columns, generator=seed)
    return table, ids.to(draw(st.sampled_from([torch.int32, torch.int64]))), tables, matrices, gradient


def stacked(sizes):
    limits = torch.tensor(sizes)
    return gather.Tables(limits, limits.cumsum(0) - limits)


def close(found, exact, terms):
    """Within the rounding of sums of so many float32 products of unit size."""
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=8 * EPSILON * max(1, terms))


@given(lookups(), st.booleans())
@settings(deadline=None)
def test_products(lookup, keep):
    table, ids, tables, matrices, _ = lookup
    out, index = projection.project(table, ids, *tables, matrices, keep)
    exact, _ = projection.project(table.double(), ids, *tables, matrices.double(), keep)
    close(out, exact, table.shape[1])
    assert torch.equal(index, ids + tables.starts) if keep else len(index) == 0
    with native.off():
        plain, plain_index = projection.project(table, ids, *tables, matrices, keep)
    assert torch.equal(index, plain_index)
    close(plain, exact, table.shape[1])


@given(lookups())
@settings(deadline=None)
def test_gradients(lookup):
    table, ids, tables, matrices, gradient = lookup
    leaves = [t.double().requires_grad_() for t in (table, matrices)]
    index = ids + tables.starts
    exact = torch.autograd.grad(torch.einsum("bfk,fkd->bfd", leaves[0][index], leaves[1]), leaves, gradient.double())
    terms = gradient.shape[2] * max(1, len(ids))
    for found, right in zip(projection.gradients(gradient, table, index, matrices), exact, strict=True):
        close(found, right, terms)
    leaves = [t.clone().requires_grad_() for t in (table, matrices)]
    out, _ = projection.project(leaves[0], ids, *tables, leaves[1])
    through_autograd = torch.autograd.grad(out, leaves, gradient)
    for one, other in zip(through_autograd, projection.gradients(gradient, table, index, matrices), strict=True):
        assert torch.equal(one, other)


@given(lookups(), st.booleans())
@settings(deadline=None)
def test_training_in_place(lookup, adagrad):
    table, ids, tables, matrices, gradient = lookup
    total = torch.rand(len(table)) + 0.1 if adagrad else None
    exact, exact_total = table.double(), total.double() if adagrad else None
    index, terms = ids + tables.starts, gradient.shape[2] * max(1, len(ids))
    right = projection.train(exact, exact_total, index, gradient.double(), matrices.double(), 0.1, 1e-8)
    found = projection.train(table, total, index, gradient, matrices, 0.1, 1e-8)
    close(found, right, terms)
    close(table, exact, terms)
    if adagrad:
        torch.testing.assert_close(total.double(), exact_total, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("width", "columns"), [(5, 3), (32, 16)])
def test_the_same_bits_for_any_number_of_threads(width, columns):
    tables = stacked([300, 1, 5000, 40, 7, 90])
    ids = torch.randint(0, 1 << 40, (3000, 6)) % tables.limits
    ids[:2000, 2] = 7  # one row, thousands of times
    matrices, gradient = torch.randn(6, width, columns), torch.randn(3000, 6, columns)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        table, total, plain = torch.ones(5438, width), torch.zeros(5438), torch.ones(5438, width)
        out, index = projection.project(table, ids, *tables, matrices)
        matrix_gradients = projection.train(table, total, index, gradient, matrices, 0.1, 1e-8)
        projection.train(plain, None, index, gradient, matrices, 0.1, 0.0)
        results.append((out, index, matrix_gradients, table, total, plain))
    for one, other in itertools.pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_not_contiguous_is_read_as_it_looks():
    tables, table = stacked([40, 9]), torch.randn(49, 32)[:, ::2]
    ids = torch.randint(0, 9, (2, 20)).T
    matrices, gradient = torch.randn(2, 8, 16).mT, torch.randn(8, 2, 20).permute(2, 1, 0)
    out, index = projection.project(table, ids, *tables, matrices)
    torch.testing.assert_close(out, torch.einsum("bfk,fkd->bfd", table[ids + tables.starts], matrices))
    plain = projection.gradients(gradient, table, index, matrices)
    for one, other in zip(
        plain, projection.gradients(gradient, table.contiguous(), index, matrices.contiguous()), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("wrong", [-1, 50])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_id_outside_raises_and_trains_nothing(dtype, wrong, threads):
    torch.set_num_threads(threads)
    ids, tables, matrices = torch.zeros(3000, 2, dtype=dtype), stacked([50, 50]), torch.ones(2, 16, 4)
    ids[2999, 1] = wrong
    table, gradient = torch.ones(100, 16), torch.ones(3000, 2, 4)
    with pytest.raises(IndexError, match=rf"id {wrong} of feature 1 \(row 2999 .* outside its table of 50 rows"):
        projection.project(table, ids, *tables, matrices)
    index = (ids + tables.starts).index_fill(0, torch.tensor(2999), 100)
    for total in (None, torch.ones(100)):
        with pytest.raises(IndexError, match="100 is outside a table of 100 rows"):
            projection.train(table, total, index, gradient, matrices, 0.1, 0.0)
    with pytest.raises(IndexError, match="100 is outside a table of 100 rows"):
        projection.gradients(gradient, table, index, matrices)
    assert (table == 1).all()


def test_a_table_that_is_not_there_is_not_read():
    ids = torch.zeros(3000, 2, dtype=torch.long)
    for starts in ([0, 50], [-1, 4]):
        with pytest.raises(IndexError):
            tables = torch.tensor([9, 9]), torch.tensor(starts), None
            projection.project(torch.zeros(50, 16), ids, *tables, torch.ones(2, 16, 4))


def test_operators_are_registered_as_torch_wants_them():
    table, ids, tables = torch.randn(9, 4, requires_grad=True), torch.randint(0, 4, (3, 2)), stacked([4, 5])
    matrices, gradient = torch.randn(2, 4, 3, requires_grad=True), torch.randn(3, 2, 3)
    torch.library.opcheck(projection.project.registered, (table, ids, *tables, matrices))
    kept = [t.detach() for t in (table, matrices)]
    torch.library.opcheck(projection.project.registered, (kept[0], ids, *tables, kept[1], False))
    index = ids + tables.starts
    torch.library.opcheck(projection.gradients.registered, (gradient, kept[0], index, kept[1]))
    for total in (None, torch.zeros(9)):
        torch.library.opcheck(
            projection.train.registered, (kept[0].clone(), total, index, gradient, kept[1], 0.1, 1e-8)
        )
