"""Slots by universal hashing: the C++ and plain PyTorch against Python's integers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrec.kernels import native, universal_hash
from pocketrec.kernels.universal_hash import P


@pytest.mark.parametrize("path", ["C++", "plain"])
@given(
    ids=st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=5),
    a=st.integers(1, P - 1),
    b=st.integers(0, P - 1),
    size=st.sampled_from([1, 2, 3, 1000, 2**31 - 1, 2**31, 2**40 + 7, P]),
)
@settings(deadline=None)
def test_slots_are_exact(path, ids, a, b, size):
    if path == "C++" and native.problem("universal_hash"):
        pytest.skip(native.problem("universal_hash"))
    coefficients = (torch.tensor([[a, 1], [P - 1, a]]), torch.tensor([[b, 0], [P - 1, b]]), torch.full((2, 2), size))
    exact = [
        [[(m * x + n) % P % size for m, n in pair] for pair in (((a, b), (1, 0)), ((P - 1, P - 1), (a, b)))]
        for x in ids
    ]
    pairs = torch.tensor(ids).unsqueeze(1).expand(-1, 2)
    if path == "plain":
        with native.off():
            assert universal_hash.slots(pairs, *coefficients).tolist() == exact
    else:
        assert universal_hash.slots(pairs, *coefficients).tolist() == exact


@pytest.mark.skipif(bool(native.problem("universal_hash")), reason=native.problem("universal_hash"))
@pytest.mark.parametrize("shape", [(0, 3, 2), (1, 1, 1), (5000, 3, 2), (3000, 26, 1), (4, 700, 3)])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_sample_has_the_slots_of_plain_torch(shape, threads):
    torch.set_num_threads(threads)
    batch, *terms = shape
    ids, sizes = torch.randint(0, 2**40, (batch, terms[0])), torch.randint(1, 2**40, terms)
    drawn = universal_hash.coefficients(torch.Generator().manual_seed(0), 2, *terms)
    with native.off():
        expected = universal_hash.slots(ids, *drawn, sizes)
    assert torch.equal(universal_hash.slots(ids, *drawn, sizes), expected)


def test_operator_is_registered_as_torch_wants_it():
    terms = universal_hash.coefficients(torch.Generator().manual_seed(0), 2, 3, 2)
    torch.library.opcheck(universal_hash.slots.registered, (torch.randint(0, 9, (4, 3)), *terms, torch.full((3, 2), 7)))
