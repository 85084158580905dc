"""The ops of rosinality's stylegan2-pytorch and of the many code bases that vendor its `op` folder, in both of its generations.

import gankernels.compat.stylegan2_pytorch
gankernels.compat.stylegan2_pytorch.install()                        # from op import FusedLeakyReLU, upfirdn2d, …
gankernels.compat.stylegan2_pytorch.install("models.stylegan2.op")   # the same under another name
"""

from __future__ import annotations

import sys
from types import ModuleType

import gankernels as gk

from ._modules import Conv2dGradfix, module, package, put


def fused_leaky_relu(input, bias=None, negative_slope=0.2, scale=2**0.5):
    """scale * leaky_relu(input + bias), the bias along dimension 1."""
    return gk.bias_act(input, bias, act="lrelu", alpha=negative_slope, gain=scale)


class FusedLeakyReLU(gk.nn.FusedLeakyReLU):
    """FusedLeakyReLU(channel, bias=True, negative_slope=0.2, scale=sqrt(2)), and as the older generation has it
    FusedLeakyReLU(channel, negative_slope=0.2, scale=sqrt(2)): a number where `bias` is a boolean is the slope."""

    def __init__(self, channel, bias=True, negative_slope=None, scale=None):
        if not isinstance(bias, bool):
            bias, negative_slope, scale = True, bias, negative_slope if scale is None else scale
        super().__init__(
            channel, bias, 0.2 if negative_slope is None else negative_slope, 2**0.5 if scale is None else scale
        )


def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
    """pad: (before, after) for both axes, or (x0, x1, y0, y1)."""
    return gk.upfirdn2d(input, kernel, up, down, [*pad, *pad] if len(pad) == 2 else pad)


class ModulatedConv2d(gk.nn.ModulatedConv2d):
    """Its state is the public one; `fused` chose between two forms of one sum, and is ignored."""

    def __init__(
        self,
        in_channel,
        out_channel,
        kernel_size,
        style_dim,
        demodulate=True,
        upsample=False,
        downsample=False,
        blur_kernel=(1, 3, 3, 1),
        fused=True,
    ):
        super().__init__(in_channel, out_channel, kernel_size, style_dim, demodulate, upsample, downsample, blur_kernel)


def install(name: str = "op") -> ModuleType:
    """Puts the package `name` in place, with the submodules fused_act, upfirdn2d and conv2d_gradfix, also over one already
    imported. Call it before the code that uses it is imported. A second call with the same name changes nothing."""
    there = sys.modules.get(name)
    if getattr(there, "FusedLeakyReLU", None) is FusedLeakyReLU:
        return there
    ours = module(name, {"__path__": []})
    parent, _, own = name.rpartition(".")
    if parent:
        package(parent)
    put(ours)
    gradfix = Conv2dGradfix(f"{name}.conv2d_gradfix", enabled=True)
    put(gradfix)
    put(module(f"{name}.fused_act", {"FusedLeakyReLU": FusedLeakyReLU, "fused_leaky_relu": fused_leaky_relu}))
    put(module(f"{name}.upfirdn2d", {"upfirdn2d": upfirdn2d}))
    # as there, `from op import upfirdn2d` is the function
    vars(ours).update(FusedLeakyReLU=FusedLeakyReLU, fused_leaky_relu=fused_leaky_relu, upfirdn2d=upfirdn2d)
    return ours
