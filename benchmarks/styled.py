"""Small networks built the StyleGAN2 and StyleGAN3 ways, out of either side's ops: `ops` is gankernels or benchmarks.stock."""

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import linear

import gankernels as gk

STYLE_DIM = 128
FIR = (1, 3, 3, 1)


def normal(*shape, scale=1.0):
    return nn.Parameter(scale * torch.randn(shape))


class Mapping(nn.Module):
    """Latents, normalised, through two layers."""

    def __init__(self, ops):
        super().__init__()
        self.pixel_norm, self.bias_act = ops.pixel_norm, ops.bias_act
        self.weights = nn.ParameterList(normal(STYLE_DIM, STYLE_DIM, scale=STYLE_DIM**-0.5) for _ in range(2))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(STYLE_DIM)) for _ in range(2))

    def forward(self, z):
        x = self.pixel_norm(z)
        for weight, bias in zip(self.weights, self.biases):
            x = self.bias_act(linear(x, weight), bias, act="lrelu")
        return x


class Modulated(nn.Module):
    """Styles by a linear layer, then modulated_conv2d; with a side, a noise image and its strength."""

    def __init__(self, ops, before, after, kernel=3, side=None, **constants):
        super().__init__()
        self.modulated_conv2d, self.constants = ops.modulated_conv2d, {"padding": kernel // 2, **constants}
        self.weight, self.bias = normal(after, before, kernel, kernel), nn.Parameter(torch.zeros(after))
        self.affine = nn.Linear(STYLE_DIM, before)
        nn.init.ones_(self.affine.bias)
        self.gain = 1.0 if self.constants.get("demodulate", True) else (before * kernel**2) ** -0.5
        if side:
            self.register_buffer("noise", torch.randn(side, side))
            self.strength = nn.Parameter(torch.tensor(0.1))

    def forward(self, x, w, **more):
        if hasattr(self, "noise"):
            more["noise"] = (self.noise * self.strength).reshape(1, 1, *self.noise.shape)
        return self.modulated_conv2d(x, self.weight, self.affine(w) * self.gain, **more, **self.constants)


class StyleGAN2Generator(nn.Module):
    """A constant of 4×4 pixels, two convolutions a resolution, the first of which doubles it, and a sum of images at every one."""

    def __init__(self, ops, channels=(128, 128, 128, 64)):
        super().__init__()
        self.mapping, self.upfirdn2d = Mapping(ops), ops.upfirdn2d
        self.start = normal(1, channels[0], 4, 4)
        self.first = Modulated(ops, channels[0], channels[0], side=4)
        self.to_rgb = nn.ModuleList(Modulated(ops, c, 3, kernel=1, demodulate=False) for c in channels)
        self.up, self.same = nn.ModuleList(), nn.ModuleList()
        for level, (before, after) in enumerate(pairwise(channels), 1):
            self.up.append(Modulated(ops, before, after, side=4 << level, up=2, flip_weight=False))
            self.same.append(Modulated(ops, after, after, side=4 << level))
        self.register_buffer("f", gk.setup_filter(FIR))

    def synthesis(self, w):
        def layer(this, x, **more):
            return this(x, w, bias=this.bias, act="lrelu", clamp=256.0, **more)

        x = layer(self.first, self.start.expand(len(w), -1, -1, -1))
        image = self.to_rgb[0](x, w, bias=self.to_rgb[0].bias)
        for up, same, to_rgb in zip(self.up, self.same, self.to_rgb[1:]):
            x = layer(same, layer(up, x, resample_filter=self.f))
            image = self.upfirdn2d(image, self.f, up=2, padding=[2, 1, 2, 1], gain=4) + to_rgb(x, w, bias=to_rgb.bias)
        return image

    def forward(self, z):
        return self.synthesis(self.mapping(z))


class Convolution(nn.Module):
    def __init__(self, ops, before, after, kernel=3, down=1, act="lrelu", gain=None):
        super().__init__()
        self.conv2d_resample, self.bias_act, self.down, self.act, self.gain = (
            ops.conv2d_resample,
            ops.bias_act,
            down,
            act,
            gain,
        )
        self.weight = normal(after, before, kernel, kernel)
        self.bias = None if act is None else nn.Parameter(torch.zeros(after))

    def forward(self, x, f=None):
        w = self.weight / math.sqrt(self.weight[0].numel())
        x = self.conv2d_resample(x, w, f, down=self.down, padding=w.shape[-1] // 2)
        return x if self.act is None else self.bias_act(x, self.bias, act=self.act, gain=self.gain)


class StyleGAN2Discriminator(nn.Module):
    """Residual blocks that halve the resolution to 4×4, the standard deviation over the batch, a convolution, two linear layers."""

    def __init__(self, ops, channels=(64, 128, 128, 128)):
        super().__init__()
        self.from_rgb = Convolution(ops, 3, channels[0], 1)
        self.same = nn.ModuleList(Convolution(ops, c, c) for c in channels[:-1])
        self.down = nn.ModuleList(Convolution(ops, a, b, down=2, gain=1.0) for a, b in pairwise(channels))
        self.skip = nn.ModuleList(Convolution(ops, a, b, 1, down=2, act=None) for a, b in pairwise(channels))
        self.minibatch_stddev, self.bias_act = ops.minibatch_stddev, ops.bias_act
        self.last = Convolution(ops, channels[-1] + 1, channels[-1])
        self.hidden = normal(channels[-1], channels[-1] * 16, scale=(channels[-1] * 16) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(channels[-1]))
        self.score = nn.Linear(channels[-1], 1)
        self.register_buffer("f", gk.setup_filter(FIR))

    def forward(self, image):
        x = self.from_rgb(image)
        for same, down, skip in zip(self.same, self.down, self.skip):
            x = (down(same(x), self.f) + skip(x, self.f)) * math.sqrt(0.5)
        x = self.last(self.minibatch_stddev(x))
        return self.score(self.bias_act(linear(x.flatten(1), self.hidden), self.bias, act="lrelu"))


class StyleGAN3Generator(nn.Module):
    """Fourier features of 16×16 points, modulated convolutions without noise, alias-free activations with 12 taps."""

    def __init__(self, ops, channels=(128, 128, 64), ups=(2, 4)):
        super().__init__()
        self.mapping, self.filtered_lrelu = Mapping(ops), ops.filtered_lrelu
        points = torch.linspace(-0.5, 0.5, 16)
        phases = (
            2
            * math.pi
            * (4 * torch.randn(channels[0], 2) @ torch.cartesian_prod(points, points).T + torch.rand(channels[0], 1))
        )
        self.register_buffer("features", phases.sin().reshape(1, -1, 16, 16))
        self.layers = nn.ModuleList(Modulated(ops, a, b, padding=2) for a, b in pairwise(channels))
        self.ups = ups
        self.to_rgb = Modulated(ops, channels[-1], 3, 1, demodulate=False)
        self.register_buffer("magnitude", torch.tensor(0.8))
        for up in {*ups, 2}:
            self.register_buffer(f"f{up}", gk.setup_filter(torch.hamming_window(6 * up, periodic=False)))

    def forward(self, z):
        w = self.mapping(z)
        x = self.features.expand(len(z), -1, -1, -1)
        for layer, up in zip(self.layers, self.ups):
            side = x.shape[-1]
            x = layer(x, w, input_gain=self.magnitude.rsqrt())
            f, wanted = getattr(self, f"f{up}"), side * up // 2
            # the upsampled image may have this much more than up per pixel, to end with `wanted` pixels
            total = (wanted - 1) * 2 + 1 + 11 + (f.numel() - 1) - x.shape[-1] * up
            x = self.filtered_lrelu(
                x, f, self.f2, layer.bias, up=up, down=2, padding=[(total + 1) // 2, total // 2] * 2, clamp=256.0
            )
        return self.to_rgb(x, w, bias=self.to_rgb.bias)
