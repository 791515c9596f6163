"""Products of all pairs of vectors: the C++ against plain PyTorch in float64, which is the specification."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrec import embeddings
from pocketrec.kernels import interaction, native
from pocketrec.models import DLRM

pytestmark = pytest.mark.skipif(bool(native.problem("interaction")), reason=native.problem("interaction"))

EPSILON = torch.finfo(torch.float32).eps


@st.composite
def samples(draw):
    """Vectors of some samples, perhaps one before them, and a gradient of their products."""
    width = draw(st.sampled_from([1, 2, 3, 4, 8, 15, 16, 17, 32, 33, 64, 128]))
    features, batch = draw(st.sampled_from([1, 2, 3, 15, 16, 17, 26, 40])), draw(st.sampled_from([0, 1, 2, 7, 100]))
    torch.set_num_threads(draw(st.sampled_from([1, 2, 5])))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    first = torch.randn(batch, width, generator=seed) if draw(st.booleans()) else None
    count = features + (first is not None)
    gradient = torch.randn(batch, count * (count - 1) // 2, generator=seed)
    return torch.randn(batch, features, width, generator=seed), first, gradient


def by_definition(vectors, first):
    """What the formula says, one pair after the other."""
    vectors = vectors if first is None else torch.cat([first.unsqueeze(1), vectors], 1)
    count = vectors.shape[1]
    found = [(vectors[:, i] * vectors[:, j]).sum(1) for i in range(count) for j in range(i)]
    return torch.stack(found, 1) if found else vectors[:, 0, :0]


def close(found, exact, terms):
    """Within the rounding of sums of so many float32 products of unit size."""
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=8 * EPSILON * terms)


@given(samples())
@settings(deadline=None)
def test_products_and_gradients(sample):
    *vectors, gradient = sample
    leaves = [None if t is None else t.clone().requires_grad_() for t in vectors]
    exact = [None if t is None else t.double().requires_grad_() for t in vectors]
    out, right = interaction.pairs(*leaves), by_definition(*exact)
    close(out, right.detach(), vectors[0].shape[2])
    with torch.no_grad():
        assert torch.equal(interaction.pairs(*leaves), out)
    present = [k for k, t in enumerate(leaves) if t is not None]
    found = torch.autograd.grad(out, [leaves[k] for k in present], gradient)
    for one, other in zip(
        found, torch.autograd.grad(right, [exact[k] for k in present], gradient.double()), strict=True
    ):
        close(one, other, vectors[0].shape[1] + 1)
    with native.off():  # as without a compiler
        close(interaction.pairs(*vectors), right.detach(), vectors[0].shape[2])
        of_vectors, of_first = interaction.pair_gradients(gradient, *vectors)
    close(of_vectors, found[0].double(), vectors[0].shape[1] + 1)
    if vectors[1] is not None:
        close(of_first, found[1].double(), vectors[0].shape[1] + 1)


def test_vectors_need_not_lie_side_by_side():
    vectors, first = torch.randn(8, 5, 26).transpose(0, 2), torch.randn(8, 26).T
    close(interaction.pairs(vectors, first), by_definition(vectors.double(), first.double()), 8)
    expanded = torch.randn(1, 5, 8, requires_grad=True)
    gradient = torch.randn(26, 15)
    (found,) = torch.autograd.grad(interaction.pairs(expanded.expand(26, -1, -1), first), [expanded], gradient)
    exact = expanded.detach().double().requires_grad_()
    right = by_definition(exact.expand(26, -1, -1), first.double())
    close(found, torch.autograd.grad(right, [exact], gradient.double())[0], 26 * 6)


def test_the_same_bits_for_any_number_of_threads():
    vectors, first, gradient = torch.randn(999, 26, 16), torch.randn(999, 16), torch.randn(999, 351)
    found = []
    for threads in (1, 2, 5, 8):
        torch.set_num_threads(threads)
        found.append((interaction.pairs(vectors, first), *interaction.pair_gradients(gradient, vectors, first)))
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_autocast_leaves_the_products_in_float32():
    model = DLRM(embeddings.build("full", cardinalities=[9, 8], dim=8), 4, [6], [7])
    dense, ids = torch.randn(5, 4), torch.randint(0, 8, (5, 2))
    exact = model(dense, ids)
    with torch.autocast("cpu", torch.bfloat16):
        first = model.bottom(dense)
        assert first.dtype == torch.bfloat16
        products = interaction.pairs(model.embedding(ids), first)
        assert products.dtype == torch.float32
        close(products, by_definition(model.embedding(ids).detach().double(), first.detach().double()), 8)
        logits = model(dense, ids)
    logits.float().sum().backward()
    torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.bottom.parameters())


@pytest.mark.parametrize(
    ("vectors", "first"), [((4, 2), None), ((4, 2, 8), (1, 8)), ((4, 2, 8), (4, 3)), ((4, 2, 8), (4, 1, 8))]
)
def test_other_shapes_are_refused(vectors, first):
    given = torch.randn(vectors), None if first is None else torch.randn(first)
    with pytest.raises(ValueError, match=r"vectors must be \[batch, features, dim\]"):
        interaction.pairs(*given)
    with pytest.raises(ValueError, match="the gradient of these pairs is"):
        interaction.pair_gradients(torch.randn(3, 3), torch.randn(4, 3, 8), None)


def test_other_dtypes_are_pytorchs():
    vectors, first = torch.randn(4, 3, 8), torch.randn(4, 8, dtype=torch.float64)
    assert interaction.pairs(vectors, first).dtype == torch.float64
    assert interaction.pairs(vectors.bfloat16()).dtype == torch.bfloat16


def test_there_is_no_second_derivative_and_none_is_made_up():
    vectors = torch.randn(4, 3, 8, requires_grad=True)
    (found,) = torch.autograd.grad(interaction.pairs(vectors).square().sum(), vectors, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        found.sum().backward()


@pytest.mark.parametrize("kernels", [True, False], ids=["C++", "PyTorch"])
def test_operators_are_registered_as_torch_wants_them(kernels):
    vectors, first, gradient = torch.randn(3, 2, 8), torch.randn(3, 8), torch.randn(3, 3)
    turned = torch.randn(8, 2, 3).permute(2, 1, 0), torch.randn(8, 3).T
    leaves = vectors.clone().requires_grad_(), first.clone().requires_grad_()
    with nullcontext() if kernels else native.off():
        torch.library.opcheck(interaction.pair_vectors.registered, leaves)
        torch.library.opcheck(interaction.pair_vectors.registered, (leaves[0], None))
        torch.library.opcheck(interaction.pair_vectors.registered, turned)
        torch.library.opcheck(interaction.pair_gradients.registered, (gradient, vectors, first))
        torch.library.opcheck(interaction.pair_gradients.registered, (gradient, *turned))
        torch.library.opcheck(interaction.pair_gradients.registered, (gradient[:, :1], vectors, None))


def test_a_model_compiles_in_one_piece_before_anything_was_loaded():
    program = """
import torch
from pocketrec import embeddings
from pocketrec.models import DLRM
model = DLRM(embeddings.build("robe", cardinalities=[9, 80], dim=8, ratio=2), 4, [6], [7])
dense, ids = torch.randn(5, 4), torch.randint(0, 9, (5, 2))
compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(dense, ids)
torch.testing.assert_close(compiled, model(dense, ids))
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert not shown.returncode, shown.stderr[-2000:]
