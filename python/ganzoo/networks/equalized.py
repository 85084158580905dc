"""Layers with an equalised learning rate: Karras et al. (2018), arXiv:1710.10196, section 4.1.

Weights start from N(0, 1) and are multiplied by He's constant whenever they are used, not once, so that Adam, whose steps do not see the
scale of a gradient, moves all of them at one speed. `ops` is the family of ops that a network is made of: see `ganzoo.training.ops`.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Linear(nn.Module):
    """act(x Wᵀ·rate/√inputs + b·rate): `rate` is how fast it learns beside others."""

    def __init__(self, ops, inputs, outputs, *, bias=0.0, rate=1.0, act="linear"):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.ops, self.rate, self.act = ops, rate, act

    def forward(self, x):
        x = F.linear(x, self.weight * (self.rate / math.sqrt(self.weight.shape[1])))
        return self.ops.bias_act(x, self.bias * self.rate, act=self.act)


class Conv2d(nn.Module):
    """A convolution without bias, its weight times 1/√(inputs·kernel²)."""

    def __init__(self, inputs, outputs, kernel, stride=1, padding=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.stride, self.padding = stride, padding

    def forward(self, x):
        return F.conv2d(x, self.weight / math.sqrt(self.weight[0].numel()), stride=self.stride, padding=self.padding)


class LeakyReLU(nn.Module):
    """√2·leaky_relu(x + b) with slope 0.2: what it does to a variance of 1 is undone."""

    def __init__(self, ops, channels):
        super().__init__()
        self.bias, self.ops = nn.Parameter(torch.zeros(channels)), ops

    def forward(self, x):
        return self.ops.bias_act(x, self.bias, act="lrelu")


class PixelNorm(nn.Module):
    """Channels, or a latent's numbers, brought to a mean square of 1."""

    def __init__(self, ops):
        super().__init__()
        self.ops = ops

    def forward(self, x):
        return self.ops.pixel_norm(x)


class Resample(nn.Module):
    """Images at up/down times their size, filtered with the taps (1, 3, 3, 1), of a sum of up², and padded by `pad` = (before, after)."""

    def __init__(self, ops, up=1, down=1, pad=(0, 0)):
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", up**2 * taps.outer(taps))
        self.ops, self.up, self.down, self.pad = ops, up, down, [*pad, *pad]

    def forward(self, x):
        return self.ops.upfirdn2d(x, self.kernel, up=self.up, down=self.down, padding=self.pad)


def mapping(ops, latent, depth):
    """z to w: normalised, then `depth` layers that learn at a hundredth of the others' speed."""
    layers = [Linear(ops, latent, latent, rate=0.01, act="lrelu") for _ in range(depth)]
    return nn.Sequential(PixelNorm(ops), *layers)


def per_layer(w, layers):
    """w (N, layers, latent) from one that may be the same for all layers, (N, latent)."""
    return w if w.dim() == 3 else w[:, None].expand(-1, layers, -1)


class Noises(nn.Module):
    """The noise of evaluation, an image (1, 1, size, size) for each layer; and that of training, cut from (N, pixels)."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes
        for number, size in enumerate(sizes):
            self.register_buffer(f"noise_{number}", torch.randn(1, 1, size, size))

    def forward(self, noise=None):
        if noise is None:
            return list(self.buffers())
        parts = noise.split([size**2 for size in self.sizes], 1)
        return [part.reshape(-1, 1, size, size) for part, size in zip(parts, self.sizes)]


def with_stddev(ops, x, group=4):
    """x with a channel of the standard deviation over its group of samples, or the most of so many that divide the batch.

    Groups are runs of samples, so that they stay together when a batch is cut into parts.

    Source: Karras et al. (2018), arXiv:1710.10196, section 3; the groups are the authors'.
    """
    group, (channels, *size) = math.gcd(group, len(x)), x.shape[1:]
    strided = x.reshape(-1, group, channels, *size).transpose(0, 1).reshape(x.shape)
    with_channel = ops.minibatch_stddev(strided, group_size=group).reshape(group, -1, channels + 1, *size)
    return with_channel.transpose(0, 1).reshape(-1, channels + 1, *size)
