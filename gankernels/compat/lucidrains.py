"""The modulated convolution of lucidrains' stylegan2-pytorch, whose styles count from 1.

import gankernels.compat.lucidrains
stylegan2_pytorch.stylegan2_pytorch.Conv2DMod = gankernels.compat.lucidrains.Conv2DMod
"""

from __future__ import annotations

import torch
from torch import nn

import gankernels as gk


class Conv2DMod(nn.Module):
    """Conv2DMod(in_chan, out_chan, kernel)(x, y): weights times y + 1, demodulated; the size stays. Its state is `weight`, (out, in,
    kernel, kernel). Strides and dilations other than 1, which no network of that code base has, are refused."""

    def __init__(self, in_chan, out_chan, kernel, demod=True, stride=1, dilation=1, eps=1e-8, **kwargs):
        super().__init__()
        if (stride, dilation, eps) != (1, 1, 1e-8):
            raise ValueError(
                "gankernels.Conv2DMod: stride, dilation and eps must be 1, 1 and 1e-08, got "
                f"{stride}, {dilation} and {eps}."
            )
        self.filters, self.kernel, self.demod = out_chan, kernel, demod
        self.weight = nn.Parameter(torch.randn(out_chan, in_chan, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, nonlinearity="leaky_relu")

    def forward(self, x, y):
        return gk.modulated_conv2d(x, self.weight, y + 1, padding=(self.kernel - 1) // 2, demodulate=self.demod)
