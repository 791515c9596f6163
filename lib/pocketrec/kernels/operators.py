"""How an operator is registered: schema, shape function and gradient once, for every device.

One Python function computes it; inside, it chooses the C++ of this processor, the Triton kernel of a GPU, or plain
PyTorch. `torch.compile`, `torch.export` and `opcheck` know the operator. Where no gradient is asked for and no one
watches, the function is called directly: torch's dispatch takes about 10 microseconds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_graded, _compiling = torch.is_grad_enabled, torch.compiler.is_compiling
_modes = torch._C._len_torch_dispatch_stack  # fake tensors, tracers and counters
_profiled = torch.autograd._profiler_enabled
LIBRARY = torch.library.Library("pocketrec", "DEF")


def operator(
    schema: str,
    compute: Callable,
    fake: Callable,
    backward: Callable | None = None,
    save: Callable | None = None,
) -> Callable:
    """Register `pocketrec::<schema>` and return what calls it; its `registered` is the operator itself.

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
    registered = getattr(torch.ops.pocketrec, name).default

    def call(*inputs: Any) -> Any:
        watched = _graded() or _compiling() or _modes() or _profiled()
        return registered(*inputs) if watched else compute(*inputs)

    call.registered = registered
    return call


def on_processor(floats: Tensor, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> bool:
    """Return whether C++ for numbers of these types takes these: contiguous, in main memory."""
    return floats.is_cpu and floats.dtype in dtypes and floats.is_contiguous()
