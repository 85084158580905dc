"""w <- clip(w, -c, c) for all weights of a critic in one call: the constraint of the original WGAN.

One launch for all tensors of a dtype, one parallel pass on the CPU. Weights already in range are read, not written.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .._checks import check_number, check_tensor
from .._registration import register

_op = torch.ops.gankernels


@torch.no_grad()
def reference(weights: Iterable[torch.Tensor], c: float) -> None:
    """The loop this replaces."""
    for w in weights:
        w.clamp_(-c, c)


def check_weights(op: str, name: str, tensors: list) -> None:
    """Dense floating-point tensors on one device, to be modified in place."""
    for i, t in enumerate(tensors):
        check_tensor(op, f"{name}[{i}]", t)
        if t.layout != torch.strided:
            raise TypeError(f"gankernels.{op}: {name}[{i}] must be dense, got {str(t.layout)[6:]}.")
        if t.device != tensors[0].device:
            raise ValueError(f"gankernels.{op}: {name} must be on one device, got {tensors[0].device} and {t.device}.")
        if any(stride == 0 and size > 1 for stride, size in zip(t.stride(), t.shape)):
            raise ValueError(
                f"gankernels.{op}: {name}[{i}] must have its own memory for every element, got an expanded tensor of "
                f"shape {tuple(t.shape)}."
            )


def _fake(weights, c):
    check_weights("clip_weights_", "module_or_tensors", weights)


register("clip_weights_", fake=_fake, mutates=True)


def clip_weights_(module_or_tensors: torch.nn.Module | Iterable[torch.Tensor], c: float) -> None:
    """w <- min(max(w, -c), c) for every parameter of a module, or every tensor given, in place. NaN stays NaN.

    Args:
        module_or_tensors: a module (all its parameters) or tensors of any shapes, strides and floating dtypes, on one
            device.
        c: finite, > 0.

    No gradient is recorded and the host does not wait for the device. As with clamp_, a backward pass through a graph
    that saved a weight before it was clipped raises.

    Raises: TypeError or ValueError, before anything is modified, when c or a tensor does not fit.

    Source: Arjovsky et al. 2017, "Wasserstein GAN", algorithm 1.
    """
    check_number("clip_weights_", "c", c, 0, above=True)
    if isinstance(module_or_tensors, torch.nn.Module):
        weights = list(module_or_tensors.parameters())
    elif isinstance(module_or_tensors, torch.Tensor):
        weights = [module_or_tensors]
    elif isinstance(module_or_tensors, Iterable) and not isinstance(module_or_tensors, str):
        weights = list(module_or_tensors)
    else:
        raise TypeError(
            f"gankernels.clip_weights_: module_or_tensors must be a module or tensors, got {type(module_or_tensors).__name__}."
        )
    if not weights:
        return
    try:
        _op.clip_weights_.default(weights, c)
    except (RuntimeError, TypeError):
        # The kernel makes the same checks before it modifies anything, and faster; here the error gets its type.
        check_weights("clip_weights_", "module_or_tensors", weights)
        raise
