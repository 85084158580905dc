"""a b + c with broadcasting, under the name that StyleGAN's code has for it. Stock fuses it already."""

from __future__ import annotations

import torch

from .._checks import check_tensor, shape


def reference(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return a * b + c


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a * b + c with broadcasting, by torch.addcmul: one pass over memory, and any order of derivative.

    Args:
        a, b, c: tensors whose shapes broadcast, of one device; dtypes promote as in a * b + c.

    Returns: the common shape. Differentiable to any order. a and b are kept for backward.

    Raises: TypeError or ValueError for an integer tensor, or shapes that do not broadcast.
    """
    for name, t in (("a", a), ("b", b), ("c", c)):
        check_tensor("fma", name, t)
    try:
        torch.broadcast_shapes(a.shape, b.shape, c.shape)
    except RuntimeError:
        shapes = f"{shape(a)}, {shape(b)} and {shape(c)}"
        raise ValueError(f"gankernels.fma: a, b and c must have shapes that broadcast, got {shapes}.") from None
    return torch.addcmul(c, a, b)
