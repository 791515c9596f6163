"""The Triton kernels against plain PyTorch in float64: on a GPU where there is one, else in Triton's interpreter."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrec.kernels import gather, gpu, native, robe, universal_hash

if gpu.missing():
    pytest.skip(gpu.missing(), allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # kernels are made for the interpreter or for a GPU when they are imported, and keep to that
    os.environ["TRITON_INTERPRET"] = "1"
try:
    FAMILIES = {family: gpu.kernels(family) for family in gpu.FAMILIES}
finally:
    os.environ.pop("TRITON_INTERPRET", None)

EPSILON = torch.finfo(torch.float32).eps
WIDTHS = [1, 3, 4, 16, 17, 100, 128]
few = settings(deadline=None, max_examples=20)


@pytest.fixture(autouse=True, scope="module")
def operators_take_the_kernels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "on_gpu", lambda numbers: numbers.device.type == DEVICE)
        yield


@st.composite
def row_lookups(draw):
    """A table, an index of any shape whose entries repeat, and a gradient."""
    rows, width = draw(st.sampled_from([1, 2, 7, 40])), draw(st.sampled_from(WIDTHS))
    shape = draw(st.sampled_from([(0,), (1,), (5,), (300, 3), (4, 26), (9, 2, 4)]))
    some, seed = draw(st.integers(1, rows)), torch.Generator().manual_seed(draw(st.integers(0, 999)))
    index = torch.randint(0, some, shape, generator=seed)
    if index.numel():
        index.view(-1)[-1] = rows - 1  # the last row
    table, gradient = torch.randn(rows, width, generator=seed), torch.randn(*shape, width, generator=seed)
    index = index.to(draw(st.sampled_from([torch.int32, torch.int64])))
    return table.to(DEVICE), index.to(DEVICE), gradient.to(DEVICE)


def bound(gradient):
    """Rounding of a sum of that many float32 numbers of unit size."""
    return 4 * EPSILON * max(1, gradient.numel())


@given(row_lookups(), st.sampled_from(gather_types := [torch.float32, torch.bfloat16, torch.float16]))
@few
def test_rows(lookup, dtype):
    table, index, _ = lookup
    assert torch.equal(gather.rows(table.to(dtype), index), table.to(dtype)[index.long()])
