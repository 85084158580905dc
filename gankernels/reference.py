"""The definition of every op in plain PyTorch: what the kernels are tested against, and the way out for export and other devices.

Each takes the op's own arguments, runs in any dtype on any device, and differentiates to any order.
"""

from .ops.attention import reference as scaled_dot_product_attention
from .ops.bias_act import reference as bias_act
from .ops.clip_weights import reference as clip_weights_
from .ops.conv2d_resample import reference as conv2d_resample
from .ops.filtered_lrelu import reference as filtered_lrelu
from .ops.fma import reference as fma
from .ops.gelu import reference as gelu
from .ops.grad_norm_penalty import reference as grad_norm_penalty
from .ops.grid_sample import reference as grid_sample
from .ops.group_norm import reference as group_norm
from .ops.interpolate import reference as interpolate
from .ops.minibatch_discrimination import reference as minibatch_discrimination
from .ops.minibatch_stddev import reference as minibatch_stddev
from .ops.modulated_conv2d import reference as modulated_conv2d
from .ops.optimizers import adam_reference as adam_
from .ops.optimizers import rmsprop_reference as rmsprop_
from .ops.pixel_norm import reference as pixel_norm
from .ops.spectral_norm import reference as spectral_norm
from .ops.upfirdn2d import reference as upfirdn2d

__all__ = [
    "adam_",
    "bias_act",
    "clip_weights_",
    "conv2d_resample",
    "filtered_lrelu",
    "fma",
    "gelu",
    "grad_norm_penalty",
    "grid_sample",
    "group_norm",
    "interpolate",
    "minibatch_discrimination",
    "minibatch_stddev",
    "modulated_conv2d",
    "pixel_norm",
    "rmsprop_",
    "scaled_dot_product_attention",
    "spectral_norm",
    "upfirdn2d",
]
