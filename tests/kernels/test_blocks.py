"""Blocks of one array: the C++ against plain PyTorch in float64, which is the specification."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrec.kernels import multiply_shift, native, robe, universal_hash

pytestmark = pytest.mark.skipif(bool(native.problem("robe")), reason=native.problem("robe"))

EPSILON = torch.finfo(torch.float32).eps


def hash_of(kind, features, pieces, seed=0):
    draw = torch.Generator().manual_seed(seed)
    if kind == robe.AUTHORS:
        terms = torch.randint(0, robe.AUTHORS_PRIME, (features + 2 * pieces,), generator=draw)
    else:
        family = universal_hash if kind == robe.UNIVERSAL else multiply_shift
        terms = family.coefficients(draw, features + 2 * pieces)
    return robe.Hash(*terms.split([features, pieces, pieces]), kind)


def windows_of(sizes, block_size):
    sizes = torch.tensor(sizes)
    return robe.Windows(sizes, sizes.cumsum(0) - sizes, block_size)


@st.composite
def lookups(draw):
    """An array, ids, and how they are placed: few ids, so that blocks repeat, and small windows, so that they wrap."""
    features, batch = draw(st.integers(1, 4)), draw(st.sampled_from([0, 1, 17, 300]))
    block_size, blocks = draw(st.sampled_from([1, 2, 5, 8, 16, 32])), draw(st.integers(1, 3))
    kind = draw(st.sampled_from([robe.UNIVERSAL, robe.MULTIPLY_SHIFT, robe.AUTHORS]))
    count = features if draw(st.booleans()) else 1
    sizes = draw(st.lists(st.integers(block_size, 400), min_size=count, max_size=count))
    if draw(st.booleans()):
        sizes[0] = 100_000  # too large to be passed over
    own = None
    if count > 1 and draw(st.booleans()):
        own = torch.arange(features) == 0
        sizes[0] = 60 * blocks * block_size
    torch.set_num_threads(draw(st.sampled_from([1, 2, 5])))
    seed = draw(st.integers(0, 999))
    draw_ = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 60, (batch, features), generator=draw_)
    array = torch.randn(sum(sizes), generator=draw_)
    gradient = torch.randn(batch, features, blocks * block_size, generator=draw_)
    return array, ids, hash_of(kind, features, blocks, seed), windows_of(sizes, block_size), own, gradient


def bound(gradient):
    return 4 * EPSILON * max(1, gradient.numel())


@given(lookups())
@settings(deadline=None)
def test_blocks_are_read_where_they_are_placed(lookup):
    array, ids, place, windows, own, _ = lookup
    out, starts = robe.read_blocks(array, ids, *place, *windows, own)
    exact, exact_starts = robe.read_blocks(array.double(), ids, *place, *windows, own)
    assert torch.equal(starts, exact_starts) and torch.equal(starts, robe.starts(ids, place, windows, own))
    assert torch.equal(out.double(), exact)


@pytest.mark.parametrize("size", [500, 100_003])
def test_blocks_that_are_written_past_the_caches(size):
    array, ids = torch.randn(size), torch.randint(0, 10**6, (2**18 + 3, 1))
    place, windows = hash_of(robe.MULTIPLY_SHIFT, 1, 1), windows_of([size], 16)
    out, starts = robe.read_blocks(array, ids, *place, *windows, None)
    assert torch.equal(out.flatten(), array[robe.elements(starts, windows).flatten()])


@given(lookups(), st.booleans(), st.booleans())
@settings(deadline=None)
def test_ids_are_checked_as_they_are_read(lookup, on, narrow):
    array, ids, place, windows, own, _ = lookup
    ids, limits = ids.int() if narrow else ids, torch.full(ids.shape[1:], 60)
    exact = robe.read_blocks(array, ids, *place, *windows, own)
    with contextlib.nullcontext() if on else native.off():
        out, starts = robe.read_blocks(array, ids, *place, *windows, own, limits, False)
        assert torch.equal(out, exact[0]) and starts.shape == (0,)
        for wrong in (60, -1) if len(ids) else ():
            ids[-1, -1] = wrong
            row, feature = len(ids) - 1, ids.shape[1] - 1
            said = f"id {wrong} of feature {feature} \\(row {row} of the batch\\) is outside its table of 60 rows"
            with pytest.raises(IndexError, match=said):
                robe.read_blocks(array, ids, *place, *windows, own, limits)


@given(lookups())
@settings(deadline=None)
def test_gradient(lookup):
    array, ids, place, windows, own, gradient = lookup
    exact = array.double().requires_grad_()
    leaf = array.clone().requires_grad_()
    for numbers, upstream in ((exact, gradient.double()), (leaf, gradient)):
        robe.read_blocks(numbers, ids, *place, *windows, own)[0].backward(upstream)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=bound(gradient))


@given(lookups(), st.booleans())
@settings(deadline=None)
def test_training_in_place(lookup, adagrad):
    array, ids, place, windows, own, gradient = lookup
    starts = robe.starts(ids, place, windows, own)
    total = torch.rand(len(array)) + 0.1 if adagrad else None
    exact, exact_total = array.double(), total.double() if adagrad else None
    robe.train_blocks(exact, exact_total, starts, gradient.double(), *windows, 0.1, 1e-8)
    robe.train_blocks(array, total, starts, gradient, *windows, 0.1, 1e-8)
    torch.testing.assert_close(array.double(), exact, rtol=1e-5, atol=bound(gradient))
    if adagrad:
        torch.testing.assert_close(total.double(), exact_total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [300, 200_000], ids=["passed over", "sorted out"])
@pytest.mark.parametrize("adagrad", [True, False], ids=["adagrad", "sgd"])
def test_the_same_bits_for_any_number_of_threads(size, adagrad):
    ids, gradient = torch.randint(0, 900, (500, 4)), torch.randn(500, 4, 32)
    place, windows = hash_of(robe.UNIVERSAL, 4, 4), windows_of([size], 8)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        array, total = torch.ones(size), torch.zeros(size) if adagrad else None
        _, starts = robe.read_blocks(array, ids, *place, *windows, None)
        robe.train_blocks(array, total, starts, gradient, *windows, 0.1, 1e-8)
        results.append(array)
    assert all(torch.equal(results[0], other) for other in results[1:])


@given(st.sampled_from([robe.UNIVERSAL, robe.MULTIPLY_SHIFT]), st.integers(1, 20), st.integers(0, 99))
@settings(deadline=None)
def test_signs_and_their_gradient(kind, dim, seed):
    ids, values, place = torch.randint(0, 2**40, (30, 3)), torch.rand(30, 3, dim) + 1, hash_of(kind, 3, dim, seed)
    leaf = values.clone().requires_grad_()
    flipped = robe.flip(leaf, ids, *place)
    assert torch.equal(flipped.double(), robe.flip(values.double(), ids, *place))
    flipped.backward(torch.ones_like(values))
    assert torch.equal(leaf.grad, flipped.detach().sign())


@pytest.mark.parametrize("wrong", [-1, 5, 2**40, -(2**40)])
def test_an_id_without_its_own_place_raises(wrong):
    ids, own = torch.zeros(300, 2, dtype=torch.long), torch.tensor([False, True])
    place, windows = hash_of(robe.UNIVERSAL, 2, 2), windows_of([100, 40], 4)  # five ids of their own
    ids[299] = torch.tensor([7, 4])
    assert robe.read_blocks(torch.zeros(140), ids, *place, *windows, own)[1][299, 1].tolist() == [132, 136]
    ids[299, 1] = wrong
    with pytest.raises(IndexError, match=f"id {wrong} has no blocks of its own"):
        robe.read_blocks(torch.zeros(140), ids, *place, *windows, own)


@pytest.mark.parametrize("size", [32, 4000], ids=["passed over", "in lines"])
def test_a_start_behind_its_window_is_left_alone(size):
    starts, gradient = torch.tensor([[[3], [size + 9]]]), torch.ones(1, 2, 4)
    array = torch.zeros(size)
    robe.train_blocks(array, torch.zeros(size), starts, gradient, *windows_of([size], 4), 1.0, 1e-8)
    robe.train_blocks(array, None, starts, gradient, *windows_of([size], 4), 1.0, 0.0)
    assert array.nonzero().flatten().tolist() == [3, 4, 5, 6]


def test_ids_and_starts_of_any_layout():
    ids, values = torch.randint(0, 900, (2, 30)).T, torch.rand(30, 2, 8)
    place, windows = hash_of(robe.UNIVERSAL, 2, 2), windows_of([200], 4)
    array, gradient = torch.rand(200), torch.rand(30, 2, 8)
    (out, starts), flips = robe.read_blocks(array, ids, *place, *windows, None), hash_of(robe.UNIVERSAL, 2, 8)
    narrow = robe.read_blocks(array, ids.int(), *place, *windows, None)
    assert torch.equal(narrow[0], out) and torch.equal(narrow[1], starts)
    assert torch.equal(robe.flip(values, ids.int(), *flips), robe.flip(values, ids, *flips))
    strided = starts.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for total in (None, torch.zeros(200)):
        trained, again = array.clone(), array.clone()
        robe.train_blocks(trained, None if total is None else total.clone(), starts, gradient, *windows, 0.1, 1e-8)
        robe.train_blocks(again, total, strided, gradient, *windows, 0.1, 1e-8)
        assert torch.equal(trained, again)


def test_ids_past_two_billion():
    ids = torch.tensor([[2**31, 2**61], [2**40 + 1, 2**62 - 1]])
    for kind in (robe.UNIVERSAL, robe.MULTIPLY_SHIFT):
        place, windows = hash_of(kind, 2, 2), windows_of([1000], 8)
        _, starts = robe.read_blocks(torch.zeros(1000), ids, *place, *windows, None)
        assert torch.equal(starts, robe.starts(ids, place, windows))


def test_arrays_past_two_billion_elements(tmp_path):
    size = 2**31 + 100
    # a file with a hole: nothing is kept of it but the pages that are written
    array = torch.from_numpy(np.memmap(tmp_path / "array", np.float32, "w+", shape=size))
    windows, ids = windows_of([size], 16), torch.arange(200).view(100, 2)
    place = hash_of(robe.UNIVERSAL, 2, 1)
    _, starts = robe.read_blocks(array, ids, *place, *windows, None)
    assert int(starts.max()) > 2**30
    starts[0, 0, 0] = size - 4  # wraps
    robe.train_blocks(array, None, starts, -torch.ones(100, 2, 16), *windows, 1.0, 0.0)
    assert array[size - 4 :].tolist() == [1] * 4 and array[:12].tolist() == [1] * 12
    assert array[starts.flatten()].min() >= 1


def test_operators_are_registered_as_torch_wants_them():
    ids, place, windows = torch.randint(0, 9, (3, 2)), hash_of(robe.UNIVERSAL, 2, 2), windows_of([50], 4)
    array, gradient = torch.randn(50, requires_grad=True), torch.randn(3, 2, 8)
    torch.library.opcheck(robe.read_blocks.registered, (array, ids, *place, *windows, None))
    limits = torch.tensor([9, 9])
    torch.library.opcheck(robe.read_blocks.registered, (array, ids, *place, *windows, None, limits))
    torch.library.opcheck(robe.read_blocks.registered, (array.detach(), ids, *place, *windows, None, limits, False))
    with pytest.raises(ValueError, match="keep=True"):
        robe.read_blocks(array, ids, *place, *windows, None, None, False)
    torch.library.opcheck(
        robe.flip.registered, (gradient.clone().requires_grad_(), ids, *hash_of(robe.UNIVERSAL, 2, 8))
    )
    starts = robe.starts(ids, place, windows)
    torch.library.opcheck(robe.sum_blocks.registered, (gradient, starts, *windows, 50))
    for total in (None, torch.zeros(50)):
        torch.library.opcheck(
            robe.train_blocks.registered, (array.detach().clone(), total, starts, gradient, *windows, 0.1, 1e-8)
        )
