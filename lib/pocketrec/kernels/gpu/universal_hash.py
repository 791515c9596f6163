"""Carter-Wegman hashing modulo 2^61 - 1 on a GPU, by 64 x 64 -> 128-bit products in two words.

Each id is read once and each slot written once; the coefficients stay in the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pocketrec.kernels.gpu import launch

DTYPES = (torch.int64,)
PRIME = tl.constexpr((1 << 61) - 1)
BLOCK = 512


@triton.jit
def add(a, b):
    """Return (a + b) mod P for uint64 numbers below P."""
    total = a + b
    return tl.where(total >= PRIME, total - PRIME, total)


@triton.jit
def multiply(a, x):
    """Return (a x) mod P for uint64 numbers, a < P, x < 2^62: as 2^61 = 1 (mod P), high bits are added to low ones."""
    low, high = a * x, tl.umulhi(a, x)
    total = (low & PRIME) + ((low >> 61) | (high << 3))
    total = (total & PRIME) + (total >> 61)
    return tl.where(total >= PRIME, total - PRIME, total)


@triton.jit
def _slots(
    p_ids,
    p_a,
    p_b,
    p_sizes,
    p_out,
    count,
    TERMS: tl.constexpr,
    HASHES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_n, o_term = o_n < count, o_n % TERMS
    # [BLOCK]
    b_id = tl.load(p_ids + o_n // HASHES, mask=m_n, other=0).to(tl.uint64)
    b_a = tl.load(p_a + o_term, mask=m_n, other=0).to(tl.uint64)
    b_b = tl.load(p_b + o_term, mask=m_n, other=0).to(tl.uint64)
    b_size = tl.load(p_sizes + o_term, mask=m_n, other=1).to(tl.uint64)
    b_slot = add(multiply(b_a, b_id), b_b) % b_size
    tl.store(p_out + o_n, b_slot.to(tl.int64), mask=m_n)


def slots(ids: Tensor, a: Tensor, b: Tensor, sizes: Tensor) -> Tensor:
    """Return every hash's slot: ids [batch, features], terms [features, hashes] -> [batch, features, hashes]."""
    out = ids.new_empty(*ids.shape, a.shape[1])
    tensors = [t.contiguous() for t in (ids, a, b, sizes)]
    programs = triton.cdiv(out.numel(), BLOCK)
    launch(_slots, programs, *tensors, out, out.numel(), TERMS=a.numel(), HASHES=a.shape[1], BLOCK=BLOCK)
    return out
