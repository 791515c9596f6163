"""The Triton kernels against plain PyTorch in float64: on a GPU where there is one, else in Triton's interpreter."""

import itertools
import os
import re
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrec import embeddings
from pocketrec.kernels import (
    gather,
    gpu,
    interaction,
    multiply_shift,
    native,
    projection,
    quantized,
    robe,
    tensor_train,
    universal_hash,
)
from pocketrec.models import DLRM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # asked for when Triton and the kernels are imported, and kept for the session
pytest.importorskip("triton", reason="no triton: pip install 'pocketrec[gpu]'")

EPSILON = torch.finfo(torch.float32).eps
few = settings(deadline=None, max_examples=12)
more = settings(deadline=None, max_examples=25)


def scan_by_rows(self, inputs):
    """What `ScanOps.generic_scan` of Triton's interpreter does number by number, a hundred times slower."""
    parts = [np.moveaxis(part.handle.data, self.axis, 0) for part in inputs]
    rows = [
        [self.to_tensor(part[n], of.dtype) for part, of in zip(parts, inputs, strict=True)]
        for n in range(len(parts[0]))
    ]
    scanned = itertools.accumulate(rows, lambda so_far, row: self.combine_fn.fn(*so_far, *row))
    columns = zip(*scanned, strict=True)
    return [
        self.to_tensor(np.stack([row.handle.data for row in column], self.axis), of.dtype)
        for column, of in zip(columns, inputs, strict=True)
    ]


@pytest.fixture(autouse=True, scope="module")
def kernels_are_taken():
    """Operators take them for tensors on a GPU; the interpreter's are in main memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triton.runtime.interpreter.ScanOps.generic_scan", scan_by_rows)
        patch.setattr(gpu, "on_gpu", lambda numbers: numbers.device.type == DEVICE)
        for family in (gather, robe, tensor_train, projection):
            patch.setattr(family, "on_processor", lambda floats: False)
        yield


@st.composite
def row_lookups(draw):
    """A table, an index of any shape whose entries repeat, and a gradient."""
    rows, width = draw(st.sampled_from([1, 2, 7, 19])), draw(st.sampled_from([1, 3, 4, 16, 17, 100, 128, 300]))
    shape = draw(st.sampled_from([(0,), (1,), (5,), (90, 3), (4, 26), (9, 2, 4)]))
    some, seed = draw(st.integers(1, rows)), torch.Generator().manual_seed(draw(st.integers(0, 999)))
    index = torch.randint(0, some, shape, generator=seed)
    if index.numel():
        index.view(-1)[-1] = rows - 1  # the last row
    index = index.to(draw(st.sampled_from([torch.int32, torch.int64])))
    table, gradient = torch.randn(rows, width, generator=seed), torch.randn(*shape, width, generator=seed)
    return table.to(DEVICE), index.to(DEVICE), gradient.to(DEVICE)


def hash_of(kind, features, pieces, seed=0):
    draw = torch.Generator().manual_seed(seed)
    if kind == robe.AUTHORS:
        terms = torch.randint(0, robe.AUTHORS_PRIME, (features + 2 * pieces,), generator=draw)
    else:
        family = universal_hash if kind == robe.UNIVERSAL else multiply_shift
        terms = family.coefficients(draw, features + 2 * pieces)
    return robe.Hash(*terms.to(DEVICE).split([features, pieces, pieces]), kind)


@st.composite
def block_lookups(draw):
    """An array, ids, and how they are placed: few ids, so that blocks repeat, and small windows, so that they wrap."""
    features, batch = draw(st.integers(1, 4)), draw(st.sampled_from([0, 1, 17, 60]))
    block_size, blocks = draw(st.sampled_from([1, 2, 5, 8, 16, 32])), draw(st.integers(1, 3))
    kind, windows = draw(st.sampled_from(range(3))), features if draw(st.booleans()) else 1
    sizes = draw(st.lists(st.integers(block_size, 400), min_size=windows, max_size=windows))
    own = None
    if windows > 1 and draw(st.booleans()):
        own = torch.arange(features, device=DEVICE) == 0
        sizes[0] = 60 * blocks * block_size
    seed = draw(st.integers(0, 999))
    draw_ = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 60, (batch, features), generator=draw_).to(DEVICE)
    array = torch.randn(sum(sizes), generator=draw_).to(DEVICE)
    sizes = torch.tensor(sizes, device=DEVICE)
    place = hash_of(kind, features, blocks, seed)
    return array, ids, (*place, sizes, sizes.cumsum(0) - sizes, block_size, own)


RANKS = [1, 3, 5, 8, 16, 33]
FACTORS = [(2, 2, 4), (4, 4, 8), (1, 3, 5), (1, 1, 1), (2, 5, 17)]


def cores_of(radices, factors, rank, seed=0):
    """Cores whose products are of unit size."""
    draw, ranks = torch.Generator().manual_seed(seed), [1, *[rank] * (len(factors) - 1), 1]
    widths = [left * q * right for q, (left, right) in zip(factors, itertools.pairwise(ranks), strict=True)]
    scale = rank ** (-0.5 * (len(factors) - 1) / len(factors))
    counts = radices.sum(0).tolist()
    return [(torch.randn(n, w, generator=draw) * scale).to(DEVICE) for n, w in zip(counts, widths, strict=True)]


@st.composite
def train_lookups(draw):
    """Cores of some tables, ids that repeat and some that ask for nothing, and a gradient."""
    factors, rank = draw(st.sampled_from(FACTORS)), draw(st.sampled_from(RANKS))
    radices = torch.tensor(draw(st.lists(st.sampled_from([[3, 2, 2], [1, 1, 1], [1, 4, 5]]), min_size=1, max_size=2)))
    limits, draw_ = radices.prod(1), torch.Generator().manual_seed(draw(st.integers(0, 999)))
    batch, few = draw(st.sampled_from([0, 1, 2, 17])), draw(st.sampled_from([1, 100]))
    ids = torch.randint(-1, few, (batch, len(radices)), generator=draw_) % (limits + 1)
    ids[-1:] = limits - 1  # the last row
    ids, tables = torch.where(ids == limits, -1, ids), None
    if draw(st.booleans()):  # in any order, each with its table
        order = torch.randperm(ids.numel(), generator=draw_)
        tables = torch.arange(len(radices)).expand_as(ids).flatten()[order].to(DEVICE)
        ids = ids.flatten()[order]
    ids = ids.to(draw(st.sampled_from([torch.int32, torch.int64])))
    gradient = torch.randn(*ids.shape, prod(factors), generator=draw_).to(DEVICE)
    place = tensor_train.Place(ids.to(DEVICE), tables, radices.to(DEVICE), factors)
    return cores_of(radices, factors, rank), place, gradient


@st.composite
def projected_lookups(draw):
    """Stacked tables, ids that repeat, some matrices, and a gradient."""
    width, columns = draw(st.sampled_from([1, 3, 16, 33, 64])), draw(st.sampled_from([1, 4, 16, 17]))
    limits = torch.tensor(draw(st.lists(st.sampled_from([1, 2, 7, 30]), min_size=1, max_size=4)))
    batch, few = draw(st.sampled_from([0, 1, 9, 40])), draw(st.integers(1, 30))
    draw_ = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    ids = torch.randint(0, few, (batch, len(limits)), generator=draw_) % limits
    ids[-1:] = limits - 1  # the last row of every table
    ids = ids.to(draw(st.sampled_from([torch.int32, torch.int64]))).to(DEVICE)
    shapes = ((int(limits.sum()), width), (len(limits), width, columns), (batch, len(limits), columns))
    table, matrices, gradient = (torch.randn(shape, generator=draw_).to(DEVICE) for shape in shapes)
    limits = limits.to(DEVICE)
    return table, ids, gather.Tables(limits, limits.cumsum(0) - limits), matrices, gradient


def bound(numbers):
    """Rounding of a sum of that many float32 numbers of unit size."""
    return 4 * EPSILON * max(1, numbers.numel())


@given(row_lookups(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@few
def test_rows(lookup, dtype):
    table, index, _ = lookup
    assert torch.equal(gather.rows(table.to(dtype), index), table.to(dtype)[index.long()])


@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_ids_are_checked_in_passing(wrong):
    limits, seen = torch.tensor([5, 9], device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    good = torch.tensor([[4, 8], [0, 0]], device=DEVICE)
    assert torch.equal(gather.noted(good.int(), limits, seen), good) and not seen
    bad = good.clone()
    bad[1, 0] = wrong
    with torch.inference_mode():
        assert gather.noted(bad, limits, seen).tolist() == [[4, 8], [0, 0]] and seen


@given(row_lookups(), st.booleans())
@few
def test_rows_of_stacked_tables(lookup, keep):
    table, index, _ = lookup
    ids = index.reshape(index.shape[0], -1) if index.ndim > 1 else index.unsqueeze(1)
    starts = torch.arange(ids.shape[1], device=DEVICE) % 2
    stacked = torch.cat([table, table[:1]])
    out, kept = gather.table_rows(stacked, ids, torch.full_like(starts, len(table)), starts, None, keep)
    assert torch.equal(out, stacked[ids.long() + starts])
    assert torch.equal(kept, ids + starts) if keep else len(kept) == 0


@given(row_lookups())
@few
def test_gradient_of_rows(lookup):
    table, index, gradient = lookup
    exact = gather.sum_rows(gradient.double(), index, len(table))
    leaf = table.clone().requires_grad_()
    gather.rows(leaf, index).backward(gradient)
    torch.testing.assert_close(leaf.grad.double(), exact, rtol=1e-5, atol=bound(gradient[..., 0]))


@given(row_lookups(), st.booleans())
@few
def test_training_of_rows(lookup, adagrad):
    table, index, gradient = lookup
    total = torch.rand(len(table), device=DEVICE) + 0.1 if adagrad else None
    exact, exact_total = table.double(), total.double() if adagrad else None
    gather.train_rows(exact, exact_total, index, gradient.double(), 0.1, 1e-8)
    gather.train_rows(table, total, index, gradient, 0.1, 1e-8)
    torch.testing.assert_close(table.double(), exact, rtol=1e-5, atol=bound(gradient[..., 0]))
    if adagrad:
        torch.testing.assert_close(total.double(), exact_total, rtol=1e-4, atol=1e-5)


def test_rows_of_bfloat16_are_trained_in_float32():
    gradient = torch.full((300, 16), 2.0**-8, dtype=torch.bfloat16, device=DEVICE)
    table = torch.ones(2, 16, dtype=torch.bfloat16, device=DEVICE)
    gather.train_rows(table, None, torch.ones(300, dtype=torch.long, device=DEVICE), gradient, -1.0, 0.0)
    # added one by one to 1 in bfloat16, 2^-8 is rounded away
    assert (table[0] == 1).all() and (table[1] == torch.tensor(1 + 300 / 256).bfloat16()).all()


@pytest.mark.parametrize("often", [1, 255, 256, 257, 1000])
def test_a_row_that_occurs_often_gives_the_same_bits_every_time(often):
    index = torch.cat([torch.arange(9), torch.full((often,), 4), torch.arange(9)]).to(DEVICE)
    gradient = torch.randn(len(index), 5, device=DEVICE)
    first, second = (gather.sum_rows(gradient, index, 9) for _ in range(2))
    assert torch.equal(first, second)
    exact = gather.sum_rows(gradient.double(), index, 9)
    torch.testing.assert_close(first.double(), exact, rtol=1e-5, atol=bound(index))


@pytest.mark.parametrize("wrong", [-1, 4, 2**31, -(2**40), 2**62])
def test_an_index_outside_is_read_as_zeros_and_never_written(wrong):
    # a part of a larger table: what is next to it must not be read or written
    whole, index = torch.ones(12, 8, device=DEVICE), torch.tensor([1, wrong], device=DEVICE)
    table, total = whole[4:8], torch.zeros(4, device=DEVICE)
    assert gather.rows(table, index).sum(1).tolist() == [8, 0]
    gather.train_rows(table, total, index, torch.ones(2, 8, device=DEVICE), 1.0, 0.0)
    assert whole.sum(1).tolist() == [8] * 5 + [0] + [8] * 6 and total.tolist() == [0, 1, 0, 0]
    assert interaction.pair_rows(table, index.view(1, 2), None).tolist() == [[0]]
    packed = torch.ops.quantized.embedding_bag_byte_prepack(torch.ones(9, 8)).to(DEVICE)[4:8]
    assert quantized.unpacked_rows(packed, index, 8, 8).sum(1).tolist() == [8, 0]


def test_own_blocks_past_their_window_are_read_as_zeros():
    array, sizes = torch.ones(12, device=DEVICE), torch.tensor([8], device=DEVICE)
    place, own = hash_of(robe.UNIVERSAL, 1, 1), torch.tensor([True], device=DEVICE)
    ids = torch.tensor([[1], [9], [-1], [2**40]], device=DEVICE)
    out, starts = robe.read_blocks(array, ids, *place, sizes, torch.zeros_like(sizes), 4, own)
    assert out.sum(2).flatten().tolist() == [4, 0, 0, 0]
    robe.train_blocks(array, None, starts, torch.ones_like(out), sizes, torch.zeros_like(sizes), 4, 1.0, 0.0)
    assert array.tolist() == [1] * 4 + [0] * 4 + [1] * 4


@given(block_lookups())
@few
def test_blocks(lookup):
    array, ids, where = lookup
    out, starts = robe.read_blocks(array, ids, *where)
    exact, exact_starts = robe.read_blocks(array.double(), ids, *where)
    assert torch.equal(starts, exact_starts) and torch.equal(out.double(), exact)


@given(block_lookups(), st.booleans())
@few
def test_gradient_of_blocks(lookup, known):
    array, ids, where = lookup
    limits = torch.full_like(ids[0], 60) if known and len(ids) else None
    exact, leaf = array.double().requires_grad_(), array.clone().requires_grad_()
    expected, read = (robe.read_blocks(numbers, ids, *where, limits)[0] for numbers in (exact, leaf))
    gradient = torch.randn_like(read)
    expected.backward(gradient.double())
    read.backward(gradient)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=bound(gradient))


@given(block_lookups(), st.booleans(), st.booleans())
@few
def test_training_of_blocks(lookup, adagrad, known):
    array, ids, where = lookup
    which = (ids, torch.full_like(ids[0], 60)) if known and len(ids) else ()
    out, starts = robe.read_blocks(array, ids, *where)
    gradient, windows = torch.randn_like(out), where[4:7]
    total = torch.rand_like(array) + 0.1 if adagrad else None
    exact, exact_total = array.double(), total.double() if adagrad else None
    robe.train_blocks(exact, exact_total, starts, gradient.double(), *windows, 0.1, 1e-8)
    robe.train_blocks(array, total, starts, gradient, *windows, 0.1, 1e-8, *which)
    torch.testing.assert_close(array.double(), exact, rtol=1e-5, atol=bound(gradient))
    if adagrad:
        torch.testing.assert_close(total.double(), exact_total, rtol=1e-4, atol=1e-4)


def close(found, exact, terms):
    """Within the rounding of sums of so many float32 products of unit size."""
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=16 * EPSILON * max(1, terms))


def doubled(tensors):
    return [tensor.double() for tensor in tensors]


@given(train_lookups())
@more
def test_rows_of_tensor_trains_and_their_gradients(lookup):
    cores, place, gradient = lookup
    leaves, exact_leaves = ([core.requires_grad_() for core in some] for some in (cores, doubled(cores)))
    exact, terms = tensor_train.multiply(exact_leaves, *place), cores[1].shape[1] + place.ids.numel()
    found = tensor_train.multiply(leaves, *place)
    close(found, exact, terms)
    exact.backward(gradient.double())
    found.backward(gradient)
    for leaf, exact_leaf in zip(leaves, exact_leaves, strict=True):
        close(leaf.grad, exact_leaf.grad, terms)


@given(train_lookups(), st.booleans())
@more
def test_training_of_tensor_trains(lookup, adagrad):
    cores, place, gradient = lookup
    totals = [torch.rand(len(core), device=DEVICE) + 0.1 for core in cores] if adagrad else []
    exact, exact_totals, terms = doubled(cores), doubled(totals), cores[1].shape[1] + place.ids.numel()
    tensor_train.train(exact, exact_totals, gradient.double(), *place, 0.1, 1e-8)
    tensor_train.train(cores, totals, gradient, *place, 0.1, 1e-8)
    for core, right in zip(cores, exact, strict=True):
        close(core, right, terms)
    for total, right in zip(totals, exact_totals, strict=True):
        torch.testing.assert_close(total.double(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", RANKS)
def test_rows_of_two_cores(rank):
    radices, factors = torch.tensor([[3, 4], [2, 1]], device=DEVICE), (6, 3)
    cores, ids = cores_of(radices, factors, rank), torch.tensor([[11, 1], [-1, 0], [5, -1]], device=DEVICE)
    exact = tensor_train.multiply(doubled(cores), ids, None, radices, factors)
    close(tensor_train.multiply(cores, ids, None, radices, factors), exact, rank)


@pytest.mark.parametrize("wrong", [-1, -(2**40), 12, 2**31, 2**62])
def test_an_id_outside_its_tensor_train_is_read_as_zeros_and_never_written(wrong):
    radices, factors = torch.tensor([[3, 2, 2]], device=DEVICE), (2, 2, 4)
    whole = cores_of(radices * 3, factors, 4)  # what is next to a core must not be read or written
    cores = [core[n : 2 * n] for core, n in zip(whole, radices[0].tolist(), strict=True)]
    ids, before = torch.tensor([[11], [wrong], [0]], device=DEVICE), [core.clone() for core in whole]
    read = tensor_train.multiply(cores, ids, None, radices, factors)
    assert read[1].count_nonzero() == 0 and read[::2].abs().amin() > 0
    tensor_train.train(cores, [], torch.ones_like(read), ids, None, radices, factors, 1.0, 0.0)
    touched = [(after != old).any(1).nonzero().flatten().tolist() for after, old in zip(whole, before, strict=True)]
    assert touched == [[3, 5], [2, 3], [2, 3]]


def test_a_slice_that_is_met_by_several_programs_gives_the_same_bits_every_time(monkeypatch):
    monkeypatch.setattr(gpu, "PROGRAMS", 3)  # each takes 32 lookups, some at a time
    radices, factors = torch.tensor([[3, 2, 2]], device=DEVICE), (2, 2, 4)
    cores, ids = cores_of(radices, factors, 4), (torch.arange(90, device=DEVICE) % 7).unsqueeze(1)
    ids[20:60] = 4
    gradient = torch.randn(90, 1, 16, device=DEVICE)
    first, second = (tensor_train.gradients(gradient, cores, ids, None, radices, factors) for _ in range(2))
    exact = tensor_train.gradients(gradient.double(), doubled(cores), ids, None, radices, factors)
    for one, other, right in zip(first, second, exact, strict=True):
        assert torch.equal(one, other)
        close(one, right, 90)


def test_which_tensor_trains_have_room_on_chip():
    tiles = gpu.library("tensor_train", torch.ones(1, device=DEVICE)).tiles
    for rank, factors in itertools.product([1, 8, 16, 32, 64], [(2, 2, 4), (4, 4, 4), (4, 4, 8), (1, 1, 17)]):
        assert tiles(rank, *factors)["BLOCK_R"] == max(16, rank)
    assert tiles(4096, 4, 4, 8) is None and tiles(8, 2, 2, 2, 2) is None and tiles(8, 1, 1, 2048) is None
    radices = torch.tensor([[2, 2, 2]], device=DEVICE)
    cores, ids = cores_of(radices, (1, 1, 1), 1200), torch.tensor([[7], [0]], device=DEVICE)
    assert tensor_train.multiply(cores, ids, None, radices, (1, 1, 1)).shape == (2, 1, 1)


@given(projected_lookups(), st.booleans())
@more
def test_rows_times_matrices_and_their_gradients(lookup, keep):
    table, ids, tables, matrices, gradient = lookup
    out, index = projection.project(table, ids, *tables, matrices, keep)
    assert torch.equal(index, ids + tables.starts) if keep else len(index) == 0
    trained = (table, matrices)
    leaves, exact_leaves = ([t.requires_grad_() for t in some] for some in (trained, doubled(trained)))
    exact, _ = projection.project(exact_leaves[0], ids, *tables, exact_leaves[1])
    close(out, exact, table.shape[1])
    exact.backward(gradient.double())
    projection.project(leaves[0], ids, *tables, leaves[1])[0].backward(gradient)
    for leaf, exact_leaf in zip(leaves, exact_leaves, strict=True):
        close(leaf.grad, exact_leaf.grad, gradient.shape[2] * max(1, len(ids)))


@given(projected_lookups(), st.booleans())
@more
def test_training_of_rows_times_matrices(lookup, adagrad):
    table, ids, tables, matrices, gradient = lookup
    total = torch.rand(len(table), device=DEVICE) + 0.1 if adagrad else None
    exact, exact_total = table.double(), total.double() if adagrad else None
    index, terms = ids + tables.starts, gradient.shape[2] * max(1, len(ids))
    right = projection.train(exact, exact_total, index, gradient.double(), matrices.double(), 0.1, 1e-8)
    close(projection.train(table, total, index, gradient, matrices, 0.1, 1e-8), right, terms)
    close(table, exact, terms)
    if adagrad:
        torch.testing.assert_close(total.double(), exact_total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("programs", [1, 1000])
def test_a_matrix_that_is_met_by_several_programs_gives_the_same_bits_every_time(programs, monkeypatch):
    monkeypatch.setattr(gpu, "PROGRAMS", programs)  # 1 takes 256 rows, some at a time; of many each takes 64
    ids = torch.arange(200, device=DEVICE)[:, None] * 7 % 90 + torch.tensor([0, 90], device=DEVICE)
    table, gradient = torch.randn(180, 8, device=DEVICE), torch.randn(200, 2, 4, device=DEVICE)
    matrices = torch.randn(2, 8, 4, device=DEVICE)
    first, second = (projection.gradients(gradient, table, ids, matrices) for _ in range(2))
    exact = projection.gradients(gradient.double(), table.double(), ids, matrices.double())
    for one, other, right in zip(first, second, exact, strict=True):
        assert torch.equal(one, other)
        close(one, right, 200)


@pytest.mark.parametrize("wrong", [-1, 4, 2**31, -(2**40), 2**62])
def test_an_index_outside_is_not_projected_and_never_written(wrong):
    whole, matrices = torch.ones(12, 8, device=DEVICE), torch.ones(2, 8, 3, device=DEVICE)
    table, ids = whole[4:8], torch.tensor([[1, 2], [wrong, 3]], device=DEVICE)
    kernels = gpu.library("projection", table)
    assert kernels.project(table, ids, matrices).sum(2).tolist() == [[24, 24], [0, 24]]
    found = projection.train(table, None, ids, torch.ones(2, 2, 3, device=DEVICE), matrices, 1.0, 0.0)
    assert found[0].tolist() == [[1] * 3] * 8 and found[1].tolist() == [[2] * 3] * 8
    assert whole.sum(1).tolist() == [8] * 5 + [-16] * 3 + [8] * 4


def test_a_matrix_with_no_room_on_chip_takes_plain_pytorch():
    tables = gather.Tables(*torch.tensor([[3], [0]], device=DEVICE))
    table, matrices = torch.randn(3, 200, device=DEVICE), torch.randn(1, 200, 100, device=DEVICE)
    assert gpu.library("projection", table).tiles(200, 100) is None
    out, _ = projection.project(table, torch.tensor([[2]], device=DEVICE), *tables, matrices)
    torch.testing.assert_close(out[0, 0], table[2] @ matrices[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [robe.UNIVERSAL, robe.MULTIPLY_SHIFT], ids=["universal", "multiply_shift"])
def test_signs_and_their_gradient(kind):
    ids, values = torch.randint(0, 2**40, (30, 3), device=DEVICE), torch.rand(30, 3, 13, device=DEVICE) + 1
    place, leaf = hash_of(kind, 3, 13), values.clone().requires_grad_()
    flipped = robe.flip(leaf, ids, *place)
    assert torch.equal(flipped.double(), robe.flip(values.double(), ids, *place))
    flipped.backward(torch.ones_like(values))
    assert torch.equal(leaf.grad, flipped.detach().sign())


@given(
    ids=st.lists(st.integers(0, 2**62 - 1), min_size=0, max_size=5),
    a=st.integers(1, universal_hash.P - 1),
    b=st.integers(0, universal_hash.P - 1),
    size=st.sampled_from([1, 2, 3, 1000, 2**31 - 1, 2**31, 2**40 + 7, universal_hash.P]),
)
@few
def test_slots_are_exact(ids, a, b, size):
    prime = universal_hash.P
    terms = [[[a, 1], [prime - 1, a]], [[b, 0], [prime - 1, b]], [[size] * 2] * 2]
    exact = [
        [[(m * x + n) % prime % size for m, n in pair] for pair in (((a, b), (1, 0)), ((prime - 1,) * 2, (a, b)))]
        for x in ids
    ]
    pairs = torch.tensor(ids, dtype=torch.int64, device=DEVICE).unsqueeze(1).expand(-1, 2)
    assert universal_hash.slots(pairs, *(torch.tensor(t, device=DEVICE) for t in terms)).tolist() == exact


@pytest.mark.parametrize("width", [1, 4, 7, 16, 33, 64])
@pytest.mark.parametrize("bits", [8, 4])
def test_packed_rows(width, bits):
    prepack = {8: "embedding_bag_byte_prepack", 4: "embedding_bag_4bit_prepack"}[bits]
    packed = getattr(torch.ops.quantized, prepack)(torch.randn(30, width + (bits == 4) * width % 2)).to(DEVICE)
    for index in (torch.randint(0, 30, (77,), device=DEVICE), torch.empty(0, dtype=torch.int64, device=DEVICE)):
        exact = quantized.unpacked(packed[index], width, bits)
        torch.testing.assert_close(
            quantized.unpacked_rows(packed, index, width, bits), exact, rtol=EPSILON, atol=8 * EPSILON
        )


@pytest.mark.parametrize("dense", [True, False], ids=["with a first vector", "embeddings alone"])
@pytest.mark.parametrize(("features", "blocks", "block_size"), [(2, 1, 5), (5, 4, 4), (20, 3, 20)])
def test_lookup_and_interaction_in_one(features, blocks, block_size, dense):
    dim = blocks * block_size
    numbers, ids = torch.randn(30 * dim, device=DEVICE), torch.randint(0, 30, (9, features), device=DEVICE)
    first = torch.randn(9, dim, device=DEVICE) if dense else None
    exact_first = first.double() if dense else None
    sizes = torch.tensor([30 * dim], device=DEVICE)
    for kind in range(3):
        where = (*hash_of(kind, features, blocks), sizes, sizes - sizes, block_size, None)
        exact = interaction.pair_blocks(numbers.double(), ids, exact_first, *where)
        torch.testing.assert_close(
            interaction.pair_blocks(numbers, ids, first, *where).double(), exact, rtol=1e-5, atol=40 * EPSILON * dim
        )
        assert interaction.pair_blocks(numbers, ids[:0], first[:0] if dense else None, *where).shape == (
            0,
            exact.shape[1],
        )
    table = numbers.view(30, dim)
    exact = interaction.pair_rows(table.double(), ids, exact_first)
    products = interaction.pair_rows(table, ids, first)
    torch.testing.assert_close(products.double(), exact, rtol=1e-5, atol=40 * EPSILON * dim)


@pytest.mark.parametrize("num_dense", [4, 0], ids=["dense", "no-dense"])
@pytest.mark.parametrize(
    ("method", "knobs"),
    [("full", {}), ("robe", {}), ("robe", {"sign": True}), ("pss", {"sign": False, "scope": "per table"})],
    ids=str,
)
def test_served_models_never_write_their_embeddings(method, knobs, num_dense, monkeypatch):
    ratio = 1 if method == "full" else 5
    embedding = embeddings.build(method, cardinalities=[40, 7, 60], dim=8, ratio=ratio, seed=0, **knobs)
    model = DLRM(embedding, num_dense, [6], [7]).to(DEVICE)
    dense, ids = torch.randn(9, num_dense, device=DEVICE), torch.randint(0, 7, (9, 3), device=DEVICE)
    exact, written = model(dense, ids).detach(), []
    monkeypatch.setattr(DLRM, "interact", lambda self, *vectors: written.append(1) or interaction.pairs(*vectors))
    with torch.no_grad():
        torch.testing.assert_close(model(dense, ids), exact, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.deploy("int8")(dense, ids), exact, rtol=0.1, atol=1e-2)
    # signs and codes have no kernel that pairs them
    assert len(written) == (2 if knobs.get("sign") else 1)


def test_operators_are_registered_as_torch_wants_them():
    ids, place = torch.randint(0, 9, (3, 2), device=DEVICE), hash_of(robe.UNIVERSAL, 2, 2)
    table, first = torch.randn(9, 8, device=DEVICE), torch.randn(3, 8, device=DEVICE)
    sizes = torch.tensor([72], device=DEVICE)
    torch.library.opcheck(interaction.pair_rows.registered, (table, ids, first))
    torch.library.opcheck(
        interaction.pair_blocks.registered, (table.flatten(), ids, None, *place, sizes, sizes - sizes, 4, None)
    )
    packed = torch.ops.quantized.embedding_bag_byte_prepack(torch.randn(9, 8)).to(DEVICE)
    torch.library.opcheck(quantized.unpacked_rows.registered, (packed, ids[0], 8, 8))


def test_operators_change_only_what_they_say():
    ids, limits = torch.randint(0, 9, (3, 2), device=DEVICE), torch.tensor([9, 9], device=DEVICE)
    table, matrices = torch.randn(9, 8, device=DEVICE), torch.randn(2, 8, 3, device=DEVICE)
    radices, cores = torch.tensor([[2, 3, 2]] * 2, device=DEVICE), cores_of(torch.tensor([[2, 3, 2]] * 2), (2, 1, 3), 3)
    gradients, place = (table.new_ones(3, 2, width) for width in (3, 6)), (ids, None, radices, [2, 1, 3])
    for operator, arguments in (
        (projection.project, (table, ids, limits, limits - limits, None, matrices)),
        (projection.train, (table, table[:, 0].exp(), ids, next(gradients), matrices, 0.1, 0.0)),
        (tensor_train.multiply, (cores, *place)),
        (tensor_train.train, (cores, [core[:, 0].exp() for core in cores], next(gradients), *place, 0.1, 0.0)),
    ):
        torch.library.opcheck(operator.registered, arguments, test_utils=("test_schema", "test_faketensor"))


def test_switched_off_and_other_dtypes_take_plain_pytorch():
    table = torch.randn(3, 4, device=DEVICE)
    assert gpu.library("gather", table) and not gpu.library("gather", table.double(), table)
    assert not gpu.library("gather", table.T) and not gpu.library("robe", table.bfloat16())
    with native.off():
        assert not gpu.library("gather", table)


def test_without_triton_everything_works_and_says_so():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from pocketrec.kernels import gather, gpu\n"
        "gpu.on_gpu = lambda numbers: True\n"
        "assert gather.rows(torch.ones(3, 2), torch.tensor([2])).tolist() == [[1, 1]]\n"
        "print(gpu.problem('gather'))\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert shown.stdout.startswith("no triton:") and "pip install" in shown.stdout, shown.stderr


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_kernel_is_compiled_without_a_gpu(capability, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(Path(__file__).with_name("compiled.py")), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    launched = {
        f"{source.stem}.{name}"
        for source in Path(gpu.__file__).parent.glob("*.py")
        for name in re.findall(r"launch\(\s*(_\w+)", source.read_text())
    }
    assert set(done.stdout.split()) == launched
