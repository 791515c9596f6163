"""How an operator is registered: schema, shape function and gradient once, for every device.

One Python function computes it; inside, it chooses the C++ of this processor, the Triton kernel of a GPU, or plain
PyTorch. A call costs about 3 microseconds, and `torch.compile`, `torch.export` and `opcheck` know the operator.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LIBRARY = torch.library.Library("pocketrec", "DEF")


def operator(
    schema: str,
    compute: Callable,
    fake: Callable,
    backward: Callable | None = None,
    save: Callable | None = None,
) -> Callable:
    """Register `pocketrec::<schema>` and return what calls it.

    Args:
        compute: the function itself, for tensors of any device.
        fake: the same signature, returning empty tensors of the right shapes.
        backward: `backward(ctx, *gradients)`, one gradient an input.
        save: `save(ctx, inputs, output)`, what `backward` needs.
    """
    LIBRARY.define(schema)
    name = schema.partition("(")[0]
    LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pocketrec::{name}", fake, lib=LIBRARY)
    if backward:
        torch.library.register_autograd(f"pocketrec::{name}", backward, setup_context=save, lib=LIBRARY)
    return getattr(torch.ops.pocketrec, name).default


def on_processor(floats: Tensor) -> bool:
    """Return whether the C++ takes these numbers: contiguous float32 in main memory."""
    return floats.dtype is torch.float32 and floats.device.type == "cpu" and floats.is_contiguous()
