"""Carter-Wegman hashing modulo the Mersenne prime 2^61 - 1, exact in int64 arithmetic.

    h(x) = ((a x + b) mod P) mod m,   P = 2^61 - 1,   a, b drawn from [1, P) and [0, P)

Carter & Wegman, "Universal classes of hash functions", 1979. Two ids collide with probability at most
about 1/m for every pair, which `x mod m` does not promise once ids are ordered by first appearance.
"""

import torch
from torch import Tensor

from pocketrec.kernels import gpu, native
from pocketrec.kernels.operators import operator

P = (1 << 61) - 1
_LOW = (1 << 31) - 1


def coefficients(draw: torch.Generator, *shape: int) -> Tensor:
    """Draw int64 coefficients in [1, P)."""
    return torch.randint(1, P, shape, generator=draw)


def unless_whole(limits: Tensor, sizes: Tensor, a: Tensor | int = 1, b: Tensor | int = 0) -> Tensor:
    """Return the terms a, b and size of hashes that leave ids as they are where a table has room for all.

    Args:
        limits: int64 [features], ids of each table.
        sizes: int64 [features], slots of each; fewer, or as many.
        a, b: as drawn, int64 [features]; otherwise ids are shared by their remainder.

    Returns:
        int64 [3, features]
    """
    whole = sizes == limits
    return torch.stack([torch.where(whole, 1, a).expand_as(sizes), torch.where(whole, 0, b).expand_as(sizes), sizes])


def add(a: Tensor, b: Tensor) -> Tensor:
    """Return (a + b) mod P for int64 tensors with entries in [0, P)."""
    total = a + b
    return torch.where(total >= P, total - P, total)


def multiply(a: Tensor, x: Tensor) -> Tensor:
    """Return (a x) mod P; a in [0, P), x in [0, 2^62)."""
    return add(_multiply_31(a, x & _LOW), _shift_31(_multiply_31(a, x >> 31)))


def _multiply_31(a: Tensor, x: Tensor) -> Tensor:
    """Return (a x) mod P for x < 2^31: both halves of a (30 and 31 bits) keep the product inside int64."""
    return add(_shift_31(_reduce((a >> 31) * x)), _reduce((a & _LOW) * x))


def _shift_31(y: Tensor) -> Tensor:
    """Return (2^31 y) mod P for y < P: a rotation of 61 bits."""
    return _reduce(((y & ((1 << 30) - 1)) << 31) + (y >> 30))


def _reduce(y: Tensor) -> Tensor:
    """Return y mod P for y < 2^63: since 2^61 = 1 (mod P), high bits are added to low ones."""
    y = (y & P) + (y >> 61)
    return torch.where(y >= P, y - P, y)


def slot(ids: Tensor, a: Tensor, b: Tensor, sizes: Tensor) -> Tensor:
    """Return each id's slot by the hash of its column, int64 [..., n], with a, b and sizes [n]."""
    coefficients = (t.unsqueeze(1) for t in (a, b, sizes))
    return slots(torch.atleast_2d(ids), *coefficients).view(ids.shape)


def _slots(ids: Tensor, a: Tensor, b: Tensor, sizes: Tensor) -> Tensor:
    if kernels := gpu.library("universal_hash", ids):
        return kernels.slots(ids, a, b, sizes)
    functions = native.library("universal_hash") if ids.device.type == "cpu" else None
    if functions is None:
        return add(multiply(a, ids.unsqueeze(-1)), b) % sizes
    ids, terms = ids.long().contiguous(), torch.stack([a, b, sizes])
    out = ids.new_empty(*ids.shape, a.shape[1], dtype=torch.int64)
    functions.slots(*native.pointers(ids, terms, out), *out.shape, native.threads(out.numel()))
    return out


# ids int64 [batch, features]; a, b, sizes int64 [features, hashes]: the slots of every hash, [batch, features, hashes]
slots = operator(
    "slots(Tensor ids, Tensor a, Tensor b, Tensor sizes) -> Tensor",
    _slots,
    lambda ids, a, b, sizes: ids.new_empty(*ids.shape, a.shape[1], dtype=torch.int64),
)
