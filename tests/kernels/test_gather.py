"""Rows of a table: the C++ against plain PyTorch in float64, which is the specification."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrec import embeddings
from pocketrec.kernels import gather, native, universal_hash

pytestmark = pytest.mark.skipif(bool(native.problem("gather")), reason=native.problem("gather"))

WIDTHS = [1, 2, 3, 4, 8, 15, 16, 17, 32, 64, 100, 128]
EPSILON = torch.finfo(torch.float32).eps
dtypes = pytest.mark.parametrize("dtype", gather.DTYPES, ids=str)


@st.composite
def lookups(draw):
    """A table, an index of any shape whose entries repeat, and a gradient of the type of the table."""
    rows, width = draw(st.sampled_from([1, 2, 7, 1000])), draw(st.sampled_from(WIDTHS))
    shape = draw(st.sampled_from([(0,), (1,), (5,), (700, 3), (4, 26), (9, 2, 4)]))
    few = draw(st.integers(1, rows))
    torch.set_num_threads(draw(st.sampled_from([1, 2, 5])))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    index = torch.randint(0, few, shape, generator=seed)
    if index.numel():
        index.view(-1)[-1] = rows - 1  # the last row
    dtype = draw(st.sampled_from(gather.DTYPES))
    table = torch.randn(rows, width, generator=seed).to(dtype)
    gradient = torch.randn(*shape, width, generator=seed).to(dtype)
    return table, index.to(draw(st.sampled_from([torch.int32, torch.int64]))), gradient


def bound(gradient):
    """Rounding of a sum of that many float32 numbers of unit size."""
    return 4 * EPSILON * max(1, gradient.numel() / gradient.shape[-1]) if gradient.numel() else EPSILON


def rounding(dtype):
    """Half a unit in the last place of a number that was rounded once, relative to it; sums are float32 anyway."""
    return 1e-5 + (torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0)


@given(lookups())
@settings(deadline=None)
def test_rows(lookup):
    table, index, _ = lookup
    assert torch.equal(gather.rows(table, index), table[index.long()])


@given(lookups())
@settings(deadline=None)
def test_gradient(lookup):
    table, index, gradient = lookup
    exact = gather.sum_rows(gradient.double(), index, len(table))
    summed = gather.sum_rows(gradient, index, len(table))
    assert summed.dtype == gradient.dtype
    torch.testing.assert_close(summed.double(), exact, rtol=rounding(summed.dtype), atol=bound(gradient))
    leaf = table.clone().requires_grad_()
    (through_autograd,) = torch.autograd.grad(gather.rows(leaf, index), leaf, gradient)
    assert torch.equal(through_autograd, gather.sum_rows(gradient, index, len(table)))


@dtypes
@pytest.mark.parametrize("width", [32, 48, 128])
def test_rows_that_are_written_past_the_caches(width, dtype):
    count = 2 * 2**22 // width + 1  # whose numbers fill as many bytes as are too many, in either type
    table, ids = torch.randn(1000, width).to(dtype), torch.randint(0, 1000, (count, 1))
    expected = table.index_select(0, ids.flatten())
    assert torch.equal(gather.rows(table, ids.flatten()), expected)
    limits, starts = torch.tensor([1000]), torch.tensor([0])
    assert torch.equal(gather.table_rows(table, ids, limits, starts)[0].squeeze(1), expected)
    assert torch.equal(gather.table_rows(table, ids[1:], limits, starts)[0].squeeze(1), expected[1:])


def test_rows_may_be_written_anywhere():
    table, index, width = torch.randn(1000, 16), torch.randint(0, 1000, (2**18 + 1,)), 16
    out = torch.empty(len(index) * width + 4)[4:]  # no row of it fills a line of the caches
    pointers = native.pointers(table, index, out)
    assert native.library("gather").gather(*pointers, 1000, width, len(index), 2) == -1
    assert torch.equal(out.view(-1, width), table[index])


@given(lookups(), st.sampled_from(gather.DTYPES), st.booleans(), st.booleans())
@settings(deadline=None)
def test_training_in_place(lookup, dtype, adagrad, on):
    table, index, gradient = lookup
    gradient = gradient.to(dtype)
    total = torch.rand(len(table)) + 0.1 if adagrad else None
    exact, exact_total = table.double(), total.double() if adagrad else None
    gather.train_rows(exact, exact_total, index, gradient.double(), 0.1, 1e-8)
    with contextlib.nullcontext() if on else native.off():
        gather.train_rows(table, total, index, gradient, 0.1, 1e-8)
    torch.testing.assert_close(table.double(), exact, rtol=rounding(table.dtype), atol=bound(gradient))
    if adagrad:
        torch.testing.assert_close(total.double(), exact_total, rtol=1e-4, atol=1e-5)


@dtypes
@pytest.mark.parametrize("width", [5, 16])
def test_the_same_bits_for_any_number_of_threads(width, dtype):
    index, gradient = torch.randint(0, 300, (5000, 4)), torch.randn(5000, 4, width).to(dtype)
    index[:2000] = 7  # one row, thousands of times
    results = []
    for threads in (1, 2, 3, 4, 8):
        torch.set_num_threads(threads)
        table, plain = torch.ones(2, 300, width, dtype=dtype)
        total = torch.zeros(300)
        gather.train_rows(table, total, index, gradient, 0.1, 1e-8)
        gather.train_rows(plain, None, index, gradient, 0.1, 0.0)
        results.append((gather.rows(table, index), total, plain))
    for one, other in itertools.pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_numbers_arrive_bit_by_bit():
    table = torch.tensor([[1e-42, -1e-45, float("inf"), float("-inf")], [float("nan"), 0.0, -0.0, 3.4e38]])
    read = gather.rows(table, torch.tensor([1, 0, 1]))
    assert read.numpy().tobytes() == table[[1, 0, 1]].numpy().tobytes()


def test_bfloat16_of_any_bits_is_read():
    table = torch.arange(2**16).short().view(torch.bfloat16).view(-1, 16)
    index = torch.randint(len(table), (9000,))
    assert torch.equal(gather.rows(table, index).view(torch.int16), table.view(torch.int16)[index])
    across = torch.randn(1 + 40 * 16).bfloat16()[1:].view(40, 16)  # its pairs lie across two floats
    assert torch.equal(gather.rows(across, index % 40), across[index % 40])


def test_bfloat16_is_rounded_to_the_nearest_as_torch_does():
    bits = torch.randint(-(2**31), 2**31, (4096, 16), dtype=torch.int32)
    bits[:512] &= -(2**16)  # what needs no rounding
    bits[:256] |= 2**15  # in the middle of two
    bits[-1] = torch.tensor([0x7F800000, 0x7F7FFFFF, 0x7F800001, 1]).repeat(4)  # infinity, almost, no number, almost 0
    gradient = bits.view(torch.float32)
    table = torch.full_like(gradient, -0.0, dtype=torch.bfloat16)
    gather.train_rows(table, None, torch.arange(4096), gradient, -1.0, 0.0)
    torch.testing.assert_close(table, gradient.bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(table.signbit()[~table.isnan()], gradient.signbit()[~table.isnan()])


@pytest.mark.parametrize("on", [True, False], ids=["C++", "plain"])
def test_rows_of_bfloat16_are_trained_in_float32(on):
    gradient, index = torch.full((300, 16), 2.0**-8).bfloat16(), torch.ones(300, dtype=torch.long)
    table, total = torch.ones(2, 16).bfloat16(), torch.ones(2)
    with contextlib.nullcontext() if on else native.off():
        gather.train_rows(table, None, index, gradient, -1.0, 0.0)
        assert torch.equal(gather.sum_rows(gradient, index, 2)[1], torch.full((16,), 300 / 256).bfloat16())
        # added one by one to 1 in bfloat16, 2^-8 is rounded away, and as a square to the accumulator
        assert (table[0] == 1).all() and (table[1] == torch.tensor(1 + 300 / 256).bfloat16()).all()
        gather.train_rows(table, total, index[:1], gradient[:1], 0.0, 0.0)
    assert total.tolist() == [1, 1 + 2.0**-16]


@dtypes
def test_no_lookup_reads_and_trains_nothing(dtype):
    table, index = torch.ones(5, 16, dtype=dtype), torch.empty(0, 3, dtype=torch.long)
    assert gather.rows(table, index).shape == (0, 3, 16)
    gather.train_rows(table, None, index, torch.empty(0, 3, 16, dtype=dtype), 1.0, 0.0)
    assert (table == 1).all() and not gather.sum_rows(torch.empty(0, 3, 16, dtype=dtype), index, 5).any()


def test_what_is_not_contiguous_is_read_as_it_looks():
    table, index = torch.randn(40, 32)[:, ::2], torch.randint(0, 40, (6, 20)).T
    assert torch.equal(gather.rows(table, index), table[index])
    gradient = torch.randn(16, 6, 20).permute(2, 1, 0)
    trained, exact = torch.zeros(40, 16), torch.zeros(40, 16).double()
    gather.train_rows(trained, None, index, gradient, 1.0, 0.0)
    gather.train_rows(exact, None, index, gradient.double(), 1.0, 0.0)
    torch.testing.assert_close(trained.double(), exact, rtol=1e-5, atol=1e-5)


@dtypes
@pytest.mark.parametrize("wrong", [-1, 50, 2**40, -(2**40)])
def test_an_index_outside_raises_and_reads_nothing(wrong, dtype):
    index = torch.zeros(3000, dtype=torch.long)
    index[2999] = wrong
    with pytest.raises(IndexError, match=f"{wrong} is outside a table of 50 rows"):
        gather.rows(torch.zeros(50, 16, dtype=dtype), index)


@pytest.mark.parametrize("wrong", [-1, 50, 2**40, -(2**40)])
@pytest.mark.parametrize("threads", [1, 3])
@dtypes
def test_an_index_outside_raises_and_trains_nothing(wrong, threads, dtype):
    torch.set_num_threads(threads)
    index, gradient = torch.zeros(3000, dtype=torch.long), torch.ones(3000, 16, dtype=dtype)
    index[2999] = wrong
    table, total = torch.ones(50, 16, dtype=dtype), torch.ones(50)
    calls = [
        lambda: gather.sum_rows(gradient, index, 50),
        lambda: gather.train_rows(table, None, index, gradient, 0.1, 0.0),
        lambda: gather.train_rows(table, total, index, gradient, 0.1, 1e-8),
    ]
    for call in calls:
        with pytest.raises(IndexError, match=f"{wrong} is outside a table of 50 rows"):
            call()
    assert (table == 1).all() and (total == 1).all()


@pytest.mark.parametrize("on", [True, False], ids=["C++", "plain"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_ids_are_checked_against_their_tables(dtype, on):
    sizes = [3, 2**31 - 1, 1]
    limits, starts = torch.tensor(sizes), torch.tensor([0, 3, 9])
    good = torch.tensor([[2, 5, 0], [0, 0, 0]], dtype=dtype)
    with contextlib.nullcontext() if on else native.off():
        assert torch.equal(gather.check_ids(good, limits), good.long())
        largest = torch.tensor([[2, 2**31 - 2, 0]], dtype=dtype)
        assert torch.equal(gather.check_ids(largest, limits), largest.long())
        bad = good.clone()
        for position, wrong in ((5, 1), (2, -1), (0, 3)):  # the first of them is named
            bad.view(-1)[position] = wrong
            row, feature = divmod(position, 3)
            said = f"id {wrong} of feature {feature} \\(row {row} .* is outside its table of {sizes[feature]} rows"
            with pytest.raises(IndexError, match=said):
                gather.check_ids(bad, limits)
            with pytest.raises(IndexError, match=said):
                gather.table_rows(torch.zeros(10, 16), bad, limits, starts)


@given(lookups(), st.booleans(), st.sampled_from(["", "by remainder", "universal"]))
@settings(deadline=None)
def test_tables_that_are_stacked(lookup, keep, hashed):
    table, ids, _ = lookup
    features = max(1, ids.shape[-1])
    ids, stacked = ids.view(-1, features), torch.cat([table + f for f in range(features)])
    limits, starts, hash, expected = torch.full((features,), len(table)), torch.arange(features) * len(table), None, ids
    if hashed:
        sizes = torch.tensor([max(1, len(table) // (1 + f % 3)) for f in range(features)])  # every third is whole
        drawn = (
            universal_hash.coefficients(torch.Generator().manual_seed(1), 2, features)
            if hashed != "by remainder"
            else (1, 0)
        )
        hash = universal_hash.unless_whole(limits, sizes, *drawn)
        a, b, m = hash.tolist()
        slots = [[(a[f] * x + b[f]) % universal_hash.P % m[f] for f, x in enumerate(row)] for row in ids.tolist()]
        expected = torch.tensor(slots, dtype=torch.long).view(ids.shape)
        assert torch.equal(expected[:, ::3], ids[:, ::3])
    rows, index = gather.table_rows(stacked, ids, limits, starts, hash, keep)
    assert torch.equal(rows, stacked[expected.long() + starts])
    assert torch.equal(index, expected + starts) if keep else len(index) == 0
    with native.off():
        plain = gather.table_rows(stacked, ids, limits, starts, hash, keep)
    assert torch.equal(plain[0], rows) and torch.equal(plain[1], index)


def test_gradient_of_tables_that_are_stacked():
    ids, limits, starts = torch.randint(0, 4, (700, 2)), torch.tensor([4, 5]), torch.tensor([0, 4])
    leaf, gradient = torch.randn(9, 16, requires_grad=True), torch.randn(700, 2, 16)
    gather.table_rows(leaf, ids, limits, starts)[0].backward(gradient)
    assert torch.equal(leaf.grad, gather.sum_rows(gradient, ids + starts, 9))
    with pytest.raises(ValueError, match="keep=True"):
        gather.table_rows(leaf, ids, limits, starts, None, False)


def test_a_table_that_is_not_there_is_not_read():
    ids = torch.zeros(3000, 2, dtype=torch.long)
    limits = torch.tensor([9, 9])
    for starts, hash in (([0, 50], None), ([-1, 4], None), ([0, 50], torch.tensor([[3, 3], [5, 5], [8, 8]]))):
        with pytest.raises(IndexError):
            gather.table_rows(torch.zeros(50, 16), ids, limits, torch.tensor(starts), hash)


def test_tables_past_two_billion_elements(tmp_path):
    rows, width = 2**31 // 16 + 3, 16
    # a file with a hole: nothing is kept of it but the pages that are written
    table = torch.from_numpy(np.memmap(tmp_path / "table", np.float32, "w+", shape=(rows, width)))
    index = torch.tensor([0, rows - 1, rows - 2, rows - 1])
    gather.train_rows(table, None, index, -torch.ones(4, width), 1.0, 0.0)
    assert gather.rows(table, index)[:, 0].tolist() == [1, 2, 1, 2]


def test_operators_are_registered_as_torch_wants_them():
    table, index = torch.randn(9, 4, requires_grad=True), torch.randint(0, 9, (3, 2))
    torch.library.opcheck(gather.rows.registered, (table, index))
    tables = torch.tensor([4, 5]), torch.tensor([0, 4])
    torch.library.opcheck(gather.table_rows.registered, (table, index % 4, *tables))
    hash = torch.tensor([[3, 3], [5, 5], [4, 4]])
    torch.library.opcheck(gather.table_rows.registered, (table.detach(), index % 4, *tables, hash, False))
    torch.library.opcheck(gather.sum_rows.registered, (torch.randn(3, 2, 4), index, 9))
    for total in (None, torch.zeros(9)):
        torch.library.opcheck(
            gather.train_rows.registered, (table.detach().clone(), total, index, torch.randn(3, 2, 4), 0.1, 1e-8)
        )


@pytest.mark.parametrize("method", ["full", "robe"])
def test_defaults_of_the_user_do_not_touch_what_is_read(method):
    ratio = 1 if method == "full" else 4
    module = embeddings.build(method, cardinalities=[50, 7], dim=16, ratio=ratio, seed=0)
    ids = torch.tensor([[3, 6], [49, 0]], device="cpu")
    before = torch.get_default_dtype()
    with torch.no_grad():
        expected = module(ids)
        try:
            torch.set_default_dtype(torch.float64)
            with torch.device("meta"):
                found = module(ids)
        finally:
            torch.set_default_dtype(before)
    assert torch.equal(found, expected)
