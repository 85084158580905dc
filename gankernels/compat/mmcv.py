"""The ops for GANs of mmcv, under `mmcv.ops`.

import gankernels.compat.mmcv
gankernels.compat.mmcv.install()      # mmcv.ops.bias_act and its siblings; whatever else mmcv.ops has stays its own
"""

from __future__ import annotations

import gankernels as gk

from ._modules import Conv2dGradfix, number, package
from .stylegan2_pytorch import FusedLeakyReLU, fused_leaky_relu


def _op(name: str, use_custom_op: bool):
    return getattr(gk if use_custom_op else gk.reference, name)


def bias_act(input, bias=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, use_custom_op=True):
    return _op("bias_act", use_custom_op)(input, bias, dim, act, number(alpha), number(gain), number(clamp))


def upfirdn2d(input, filter, up=1, down=1, padding=0, flip_filter=False, gain=1, use_custom_op=True):
    return _op("upfirdn2d", use_custom_op)(input, filter, up, down, padding, flip_filter, number(gain))


def filtered_lrelu(
    input,
    filter_up=None,
    filter_down=None,
    bias=None,
    up=1,
    down=1,
    padding=0,
    gain=2**0.5,
    slope=0.2,
    clamp=None,
    flip_filter=False,
    use_custom_op=True,
):
    return _op("filtered_lrelu", use_custom_op)(
        input, filter_up, filter_down, bias, up, down, padding, number(gain), number(slope), number(clamp), flip_filter
    )


class FusedBiasLeakyReLU(FusedLeakyReLU):
    def __init__(self, num_channels, negative_slope=0.2, scale=2**0.5):
        super().__init__(num_channels, True, negative_slope, scale)


fused_bias_leakyrelu = fused_leaky_relu
_gradfix = Conv2dGradfix("gankernels.compat.mmcv.conv2d_gradfix", enabled=True)
conv2d, conv_transpose2d = _gradfix.conv2d, _gradfix.conv_transpose2d

_NAMES = (
    "FusedBiasLeakyReLU",
    "bias_act",
    "conv2d",
    "conv_transpose2d",
    "filtered_lrelu",
    "fused_bias_leakyrelu",
    "upfirdn2d",
)


def install() -> None:
    """Puts these names into mmcv.ops, or into an empty mmcv.ops where mmcv is not installed."""
    ops = package("mmcv.ops")
    for name in _NAMES:
        setattr(ops, name, globals()[name])
