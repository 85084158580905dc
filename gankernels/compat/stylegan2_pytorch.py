"""The ops of rosinality's stylegan2-pytorch and of the many code bases that vendor its `op` folder, in both of its generations.

    import gankernels.compat.stylegan2_pytorch
    gankernels.compat.stylegan2_pytorch.install()                        # from op import FusedLeakyReLU, upfirdn2d, …
    gankernels.compat.stylegan2_pytorch.install("models.stylegan2.op")   # the same under another name
"""

from __future__ import annotations

import math
import sys
from types import ModuleType

import torch
from torch import nn

import gankernels as gk

from ._modules import Conv2dGradfix, module, package, put


def fused_leaky_relu(input, bias=None, negative_slope=0.2, scale=2**0.5):
    """scale * leaky_relu(input + bias), the bias along dimension 1."""
    return gk.bias_act(input, bias, act="lrelu", alpha=negative_slope, gain=scale)


class FusedLeakyReLU(nn.Module):
    """FusedLeakyReLU(channel, bias=True, negative_slope=0.2, scale=sqrt(2)), and as the older generation has it
    FusedLeakyReLU(channel, negative_slope=0.2, scale=sqrt(2)): a number where `bias` is a boolean is the slope."""

    def __init__(self, channel, bias=True, negative_slope=None, scale=None):
        super().__init__()
        if not isinstance(bias, bool):
            bias, negative_slope, scale = True, bias, negative_slope if scale is None else scale
        self.bias = nn.Parameter(torch.zeros(channel)) if bias else None
        self.negative_slope = 0.2 if negative_slope is None else negative_slope
        self.scale = 2**0.5 if scale is None else scale

    def forward(self, input):
        return fused_leaky_relu(input, self.bias, self.negative_slope, self.scale)


def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
    """pad: (before, after) for both axes, or (x0, x1, y0, y1)."""
    return gk.upfirdn2d(input, kernel, up, down, [*pad, *pad] if len(pad) == 2 else pad)


class EqualLinear(nn.Module):
    """The layer that makes styles: x W^T / sqrt(in_dim) + b. Its parameters are `weight` and `bias`."""

    def __init__(self, in_dim, out_dim, bias_init=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim))
        self.bias = nn.Parameter(torch.full((out_dim,), float(bias_init)))

    def forward(self, input):
        return nn.functional.linear(input, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


class ModulatedConv2d(nn.Module):
    """The modulated convolution of that code base on `modulated_conv2d`, without weights per sample.

    Its state is the public one: weight (1, out, in, k, k), modulation.{weight, bias}, and blur.kernel where it resamples.
    """

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
        super().__init__()
        self.kernel_size, self.demodulate = kernel_size, demodulate
        self.up, self.down = 2 if upsample else 1, 2 if downsample else 1
        self.weight = nn.Parameter(torch.randn(1, out_channel, in_channel, kernel_size, kernel_size))
        self.modulation = EqualLinear(style_dim, in_channel, bias_init=1)
        if upsample or downsample:
            self.blur = gk.nn.Blur(blur_kernel, (0, 0), upsample_factor=self.up)  # for its state; the op pads

    def forward(self, input, style):
        resample_filter = self.blur.kernel / self.up**2 if self.up * self.down > 1 else None
        return gk.modulated_conv2d(
            input,
            self.weight[0] / math.sqrt(self.weight[0, 0].numel()),
            self.modulation(style),
            up=self.up,
            down=self.down,
            padding=self.kernel_size // 2,
            resample_filter=resample_filter,
            demodulate=self.demodulate,
            flip_weight=self.up == 1,  # its upsampling is a transposed convolution with the weight as it is
        )


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
