"""Ids held against their tables on a GPU, in one pass and without waiting for it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pocketrec.kernels.gpu import launch

DTYPES = (torch.int64,)
BLOCK = 1024


@triton.jit
def _check(p_ids, p_limits, p_seen, p_out, count, FEATURES: tl.constexpr, BLOCK: tl.constexpr):
    o_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < count
    # [BLOCK]
    b_id = tl.load(p_ids + o_n, mask=m_n, other=0).to(tl.int64)
    b_limit = tl.load(p_limits + o_n % FEATURES, mask=m_n, other=1)
    m_bad = (b_id < 0) | (b_id >= b_limit)
    tl.store(p_seen + tl.zeros_like(o_n), tl.full([BLOCK], 1, tl.int32), mask=m_bad)
    tl.store(p_out + o_n, tl.where(m_bad, 0, b_id), mask=m_n)


def checked(ids: Tensor, limits: Tensor, seen: Tensor) -> Tensor:
    """Return ids [batch, features] as int64, 0 instead of one outside its table; then `seen`, int32 [1], becomes 1."""
    out = ids.new_empty(ids.shape, dtype=torch.int64)
    shape = {"FEATURES": max(1, ids.shape[1]), "BLOCK": BLOCK}
    launch(_check, triton.cdiv(ids.numel(), BLOCK), ids.contiguous(), limits, seen, out, ids.numel(), **shape)
    return out
