"""Fused kernels for training GANs, exposed as PyTorch ops."""

from ._registration import load_library as _load_library

_load_library()

from . import nn, optim, reference  # noqa: E402
from .ops.attention import scaled_dot_product_attention  # noqa: E402
from .ops.bias_act import activation_funcs, bias_act  # noqa: E402
from .ops.clip_weights import clip_weights_  # noqa: E402
from .ops.conv2d_resample import conv2d_resample  # noqa: E402
from .ops.explain import explain  # noqa: E402
from .ops.fast_double_backward import fast_double_backward, no_weight_gradients  # noqa: E402
from .ops.filtered_lrelu import filtered_lrelu  # noqa: E402
from .ops.fma import fma  # noqa: E402
from .ops.gelu import gelu  # noqa: E402
from .ops.grad_norm_penalty import grad_norm_penalty  # noqa: E402
from .ops.grid_sample import grid_sample  # noqa: E402
from .ops.group_norm import group_norm, layer_norm, rms_norm  # noqa: E402
from .ops.interpolate import interpolate  # noqa: E402
from .ops.minibatch_discrimination import minibatch_discrimination  # noqa: E402
from .ops.minibatch_stddev import minibatch_stddev  # noqa: E402
from .ops.modulated_conv2d import modulated_conv2d  # noqa: E402
from .ops.penalties import (  # noqa: E402
    dragan_penalty,
    gradient_penalty,
    path_length_penalty,
    r1_penalty,
    r2_penalty,
)
from .ops.pixel_norm import pixel_norm  # noqa: E402
from .ops.regularized_scores import regularized_scores  # noqa: E402
from .ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "activation_funcs",
    "bias_act",
    "clip_weights_",
    "conv2d_resample",
    "downsample2d",
    "dragan_penalty",
    "explain",
    "fast_double_backward",
    "filter2d",
    "filtered_lrelu",
    "fma",
    "gelu",
    "grad_norm_penalty",
    "gradient_penalty",
    "grid_sample",
    "group_norm",
    "interpolate",
    "layer_norm",
    "minibatch_discrimination",
    "minibatch_stddev",
    "modulated_conv2d",
    "nn",
    "no_weight_gradients",
    "optim",
    "path_length_penalty",
    "pixel_norm",
    "r1_penalty",
    "r2_penalty",
    "reference",
    "regularized_scores",
    "rms_norm",
    "scaled_dot_product_attention",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
]
