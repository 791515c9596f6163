"""Tensor trains: the C++ and its plain PyTorch twin against autograd of the formula in float64."""

import itertools
import os
import subprocess
import sys
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrec import embeddings
from pocketrec.kernels import native, tensor_train
from pocketrec.kernels.tensor_train import Place

pytestmark = pytest.mark.skipif(bool(native.problem("tensor_train")), reason=native.problem("tensor_train"))

EPSILON = torch.finfo(torch.float32).eps
FACTORS = [(2, 2, 4), (4, 4, 8), (1, 1, 1), (1, 1, 7), (2, 3, 5), (1, 2, 3), (3, 3, 11), (1, 1, 17), (2, 2, 16)]
RADICES = [[7, 8, 9], [1, 1, 1], [3, 1, 2], [1, 5, 40], [2, 60, 2]]


def cores_of(radices, factors, rank, seed=0):
    """Cores whose products are of unit size."""
    draw, ranks = torch.Generator().manual_seed(seed), [1, *[rank] * (len(factors) - 1), 1]
    widths = [left * q * right for q, (left, right) in zip(factors, itertools.pairwise(ranks), strict=True)]
    scales = [rank ** (-0.5 * (len(factors) - 1) / len(factors))] * len(factors)
    counts = radices.sum(0).tolist()
    return [torch.randn(n, w, generator=draw) * s for n, w, s in zip(counts, widths, scales, strict=True)]


def ids_of(radices, batch, few, seed=0):
    limits, draw = radices.prod(1), torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(0, min(few, int(n)), (batch,), generator=draw) for n in limits], 1)
    if batch:
        ids[-1] = limits - 1  # the last row
    return ids


@st.composite
def lookups(draw):
    """Cores of some tables, ids that repeat, some that ask for nothing, and a gradient."""
    rank, factors = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 13, 16, 17, 24, 32, 40])), draw(st.sampled_from(FACTORS))
    radices = torch.tensor(draw(st.lists(st.sampled_from(RADICES), min_size=1, max_size=3)))
    torch.set_num_threads(draw(st.sampled_from([1, 2, 3])))
    seed = draw(st.integers(0, 999))
    ids = ids_of(radices, draw(st.sampled_from([0, 1, 2, 300])), draw(st.sampled_from([1, 20, 10**6])), seed)
    generator, tables = torch.Generator().manual_seed(seed), None
    if draw(st.booleans()):
        ids[torch.rand(ids.shape, generator=generator) < 0.3] = -1
    if draw(st.booleans()):  # in any order, each with its table
        tables = torch.arange(len(radices)).expand_as(ids).flatten()
        order = torch.randperm(ids.numel(), generator=generator)
        ids, tables = ids.flatten()[order], tables[order]
    if draw(st.booleans()):
        ids = torch.stack([ids, ids], -1)[..., 0]  # not contiguous
    gradient = torch.randn(*ids.shape, prod(factors), generator=generator)
    return cores_of(radices, factors, rank, seed), Place(ids, tables, radices, factors), gradient


def by_formula(cores, place):
    """Multiply, id by id, what the formula names."""
    rows = []
    tables = torch.arange(len(place.radices)).expand_as(place.ids) if place.tables is None else place.tables
    for x, t in zip(place.ids.flatten().tolist(), tables.flatten().tolist(), strict=True):
        product, first = cores[0].new_ones(1, 1), place.radices[:t].sum(0)
        if x < 0:
            rows.append(cores[0].new_zeros(prod(place.factors)))
            continue
        for core, digit, q in zip(cores, first + torch.stack(digits(x, place.radices[t])), place.factors, strict=True):
            slice_ = core[digit].view(product.shape[1], q, -1)
            product = torch.einsum("ar,rqs->aqs", product, slice_).flatten(0, 1)
        rows.append(product.flatten())
    dim = prod(place.factors)
    return torch.stack(rows).view(*place.ids.shape, dim) if rows else cores[0].new_zeros(*place.ids.shape, dim)


def digits(x, radices):
    return torch.unravel_index(torch.tensor(x), radices.tolist())


def exact_gradients(cores, place, gradient):
    """The gradient of every core by autograd, in float64, and those of its slices that are read."""
    leaves = [core.double().requires_grad_() for core in cores]
    index = tensor_train.slices(place.ids, place.tables, place.radices)[place.ids >= 0]
    parts = [leaf[rows] for leaf, rows in zip(leaves, index.unbind(1), strict=True)]
    out = tensor_train.chain(parts, place.factors)[-1].squeeze(2)
    return torch.autograd.grad(out, leaves, gradient.double()[place.ids >= 0])


def bound(place, cores):
    """Rounding of sums of unit-sized products: over the rank, and over the lookups of a slice."""
    return 16 * EPSILON * (cores[1].shape[1] + place.ids.numel())


def close(found, exact, place, cores):
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=bound(place, cores))


@given(lookups())
@settings(deadline=None, max_examples=40)
def test_rows(lookup):
    cores, place, _ = lookup
    exact = tensor_train.multiply([core.double() for core in cores], *place)
    close(tensor_train.multiply(cores, *place), exact, place, cores)


@given(lookups())
@settings(deadline=None, max_examples=40)
def test_rows_of_two_cores(lookup):
    cores, place, _ = lookup
    radices = torch.stack([place.radices[:, 0], place.radices[:, 1:].prod(1)], 1)
    factors = (place.factors[0], prod(place.factors[1:]))
    place, cores = place._replace(radices=radices, factors=factors), cores_of(radices, factors, len(cores[0][0]))
    exact = tensor_train.multiply([core.double() for core in cores], *place)
    found = tensor_train.multiply(cores, *place)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=16 * EPSILON * cores[0].shape[1])
    assert found.isfinite().all() and not found[place.ids < 0].any()


@given(lookups())
@settings(deadline=None, max_examples=20)
def test_the_reference_is_the_formula(lookup):
    cores, place, gradient = lookup
    cores = [core.double() for core in cores]
    place, gradient = (
        place._replace(ids=place.ids[:5], tables=None if place.tables is None else place.tables[:5]),
        gradient[:5].double(),
    )
    leaves = [core.clone().requires_grad_() for core in cores]
    out = by_formula(leaves, place)
    torch.testing.assert_close(tensor_train.multiply(cores, *place), out.detach())
    if (place.ids >= 0).any():
        exact = torch.autograd.grad(out, leaves, gradient)
        for one, other in zip(tensor_train.gradients(gradient, cores, *place), exact, strict=True):
            torch.testing.assert_close(one, other)


@given(lookups())
@settings(deadline=None, max_examples=40)
def test_gradients(lookup):
    cores, place, gradient = lookup
    found, exact = tensor_train.gradients(gradient, cores, *place), exact_gradients(cores, place, gradient)
    for one, other in zip(found, exact, strict=True):
        close(one, other, place, cores)
    leaves = [core.clone().requires_grad_() for core in cores]
    through_autograd = torch.autograd.grad(tensor_train.multiply(leaves, *place), leaves, gradient)
    assert all(torch.equal(one, other) for one, other in zip(found, through_autograd, strict=True))


@given(lookups(), st.booleans())
@settings(deadline=None, max_examples=40)
def test_training_in_place(lookup, adagrad):
    cores, place, gradient = lookup
    exact = exact_gradients(cores, place, gradient)
    totals = [torch.rand(len(core)) + 0.1 for core in cores] if adagrad else []
    trained, found_totals = [core.clone() for core in cores], [total.clone() for total in totals]
    tensor_train.train(trained, found_totals, gradient, *place, 0.1, 1e-8)
    for k, (core, share) in enumerate(zip(cores, exact, strict=True)):
        step = share
        if adagrad:
            total = totals[k].double() + share.square().mean(1)
            torch.testing.assert_close(found_totals[k].double(), total, rtol=1e-4, atol=1e-4)
            step = share / (total.sqrt() + 1e-8).unsqueeze(1)
        close(trained[k], core.double() - 0.1 * step, place, cores)


@pytest.mark.parametrize(("rank", "factors"), [(13, (2, 3, 5)), (16, (2, 2, 4)), (8, (4, 4, 8))])
@pytest.mark.parametrize("adagrad", [True, False], ids=["adagrad", "sgd"])
def test_the_same_bits_for_any_number_of_threads(rank, factors, adagrad):
    radices = torch.tensor([[20, 21, 22], [3, 30, 4]])
    ids = ids_of(radices, 3000, 10**6)
    ids[:2000, 0] = 4321  # one row, thousands of times
    ids[:1000, 1] = torch.arange(1000) % 40  # few pairs
    gradient, results = torch.randn(3000, 2, prod(factors)), []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        cores = cores_of(radices, factors, rank)
        totals = [torch.zeros(len(core)) for core in cores] if adagrad else []
        read = tensor_train.multiply(cores, ids, None, radices, factors)
        tensor_train.train(cores, totals, gradient, ids, None, radices, factors, 0.1, 1e-8)
        results.append([read, *cores, *totals])
    for one, other in itertools.pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_slice_is_trained_by_fewer_threads_than_asked_for():
    code = (
        "import torch; from pocketrec.kernels import tensor_train as tt; torch.set_num_threads(2); "
        "radices = torch.tensor([[20, 20, 20]]); ids = torch.arange(8000).unsqueeze(1); "
        "cores = [torch.ones(20, n) for n in (16, 128, 32)]; "
        "tt.train(cores, [], torch.ones(8000, 1, 16), ids, None, radices, (2, 2, 4), 0.1, 1e-8); "
        "assert all((core != 1).any(1).all() for core in cores), [int((core != 1).any(1).sum()) for core in cores]"
    )
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_lookup_gives_the_same_bits_in_any_batch():
    radices, factors = torch.tensor([[20, 21, 22]]), (4, 4, 8)
    cores, ids = cores_of(radices, factors, 24), ids_of(torch.tensor([[20, 21, 22]]), 2000, 10**6)
    whole = tensor_train.multiply(cores, ids, None, radices, factors)
    for j in range(0, 2000, 97):
        assert torch.equal(tensor_train.multiply(cores, ids[j : j + 1], None, radices, factors)[0], whole[j])


@pytest.mark.parametrize(("rank", "factors"), [(9, (2, 3, 5)), (8, (2, 2, 4))])
def test_every_number_is_written(rank, factors):
    radices = torch.tensor([[7, 8, 9], [2, 60, 2]])
    ids = ids_of(radices, 500, 10**6)
    ids[::3, 0] = -1
    cores = cores_of(radices, factors, rank)
    for constants in {"", tensor_train.constants(rank, *factors)}:
        functions, out = native.library("tensor_train", constants), torch.full((500, 2, prod(factors)), float("nan"))
        pointers = native.pointers(*cores, ids, None, radices, out)
        assert functions.tensor_train(*pointers, 2, ids.numel(), rank, *factors, 2) == -1
        assert not out.isnan().any() and not out[::3, 0].any()


def test_which_shapes_have_a_library_of_their_own():
    assert tensor_train.constants(8, 4, 4, 8) == "-DRANK=8 -DQ1=4 -DQ2=4 -DQ3=8"
    assert tensor_train.constants(16, 4, 4) == "-DRANK=16 -DQ1=1 -DQ2=4 -DQ3=4"  # of two cores
    for rank, *factors in ((12, 4, 4, 8), (64, 4, 4, 8), (8, 3, 4, 8), (8, 2, 2, 2, 2)):
        assert tensor_train.constants(rank, *factors) == ""


def test_no_tables_at_all():
    cores, place = (
        [torch.zeros(0, w) for w in (4, 8, 8)],
        Place(torch.empty(5, 0).long(), None, torch.empty(0, 3).long(), (2, 2, 4)),
    )
    assert tensor_train.multiply(cores, *place).shape == (5, 0, 16)
    tensor_train.train(cores, [], torch.zeros(5, 0, 16), *place, 0.1, 0.0)


@pytest.mark.parametrize("wrong", [504, 2**40])
def test_an_id_outside_raises_and_trains_nothing(wrong):
    radices, factors = torch.tensor([[7, 8, 9]]), (2, 2, 4)
    cores, ids = cores_of(radices, factors, 4), torch.zeros(3000, 1, dtype=torch.long)
    before = [core.clone() for core in cores]
    ids[2999] = wrong
    with pytest.raises(IndexError, match=f"{wrong} is outside"):
        tensor_train.multiply([core.double() for core in cores], ids, None, radices, factors)
    with pytest.raises(IndexError, match=f"{wrong} is outside"):
        tensor_train.multiply(cores, ids, None, radices, factors)
    with pytest.raises(IndexError, match=f"{wrong} is outside"):
        tensor_train.train(cores, [], torch.ones(3000, 1, 16), ids, None, radices, factors, 0.1, 0.0)
    assert all(torch.equal(core, old) for core, old in zip(cores, before, strict=True))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_other_numbers_of_cores(count):
    radices, factors = torch.tensor([[5] * count, [3] * count]), (2,) * count
    cores = [core.double().requires_grad_() for core in cores_of(radices, factors, 3)]
    place = Place(ids_of(radices, 6, 10**6), None, radices, factors)
    torch.testing.assert_close(tensor_train.multiply(cores, *place), by_formula(cores, place))
    assert torch.autograd.gradcheck(lambda *cores: tensor_train.multiply(cores, *place), cores)


def test_operators_are_registered_as_torch_wants_them():
    radices, factors = torch.tensor([[3, 2, 4], [2, 2, 2]]), [2, 1, 3]
    place, gradient = (ids_of(radices, 5, 10**6), None, radices, factors), torch.randn(5, 2, 6)
    cores = cores_of(radices, factors, 3)
    torch.library.opcheck(tensor_train.multiply.registered, ([core.requires_grad_() for core in cores], *place))
    cores = [core.detach() for core in cores]
    torch.library.opcheck(tensor_train.gradients.registered, (gradient, cores, *place))
    for totals in ([], [torch.zeros(len(core)) for core in cores]):
        torch.library.opcheck(tensor_train.train.registered, (cores, totals, gradient, *place, 0.1, 1e-8))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled(backend):
    module = embeddings.build("tt_rec", cardinalities=[3000, 40], dim=8, ratio=2, tables=1, rank=4)
    ids = torch.stack([torch.randint(0, 3000, (50,)), torch.randint(0, 40, (50,))], 1)
    expected = torch.autograd.grad(module(ids).square().sum(), [core.weight for core in module.cores])
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    assert torch.equal(compiled(ids), module(ids))
    found = torch.autograd.grad(compiled(ids).square().sum(), [core.weight for core in module.cores])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.to_dense())
