"""The definition of every op in plain PyTorch: what the kernels are tested against, and the way out for export and other devices.

Each takes the op's own arguments, runs in any dtype on any device, and differentiates to any order.
"""

from .ops.grad_norm_penalty import reference as grad_norm_penalty
from .ops.interpolate import reference as interpolate
from .ops.spectral_norm import reference as spectral_norm

__all__ = ["grad_norm_penalty", "interpolate", "spectral_norm"]
