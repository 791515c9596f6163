"""Multiply-shift hashing: one multiplication modulo 2^64, of which the high word is kept.

    h(x) = ((a x + b) mod 2^64) >> 32,   slot = (h(x) m) >> 32

Dietzfelbinger, Hagerup, Katajainen & Penttonen, "A reliable randomized algorithm for the closest-pair problem",
1997; sums of such terms over several keys are strongly universal for keys below 2^32 (Thorup, "High speed hashing
for integers and strings", 2015). Several times cheaper than an exact prime modulus: int64 wraps by itself, and
the slot is a product's high word instead of a remainder.
"""

import torch
from torch import Tensor

WORD = (1 << 32) - 1
MAX_SLOTS = 1 << 31  # a 32-bit hash times that still fits int64


def coefficients(draw: torch.Generator, *shape: int) -> Tensor:
    """Draw int64 coefficients from all of [-2^63, 2^63)."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=draw)


def signed(value: int) -> int:
    """Return the int64 that a Python integer is modulo 2^64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def high_word(product: Tensor) -> Tensor:
    """Return the upper 32 bits of int64 tensors as numbers in [0, 2^32)."""
    return (product >> 32) & WORD
