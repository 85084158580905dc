"""The networks of StyleGAN2: Karras et al. (2020), arXiv:1912.04958, section 2 and appendix B, configuration F.

Parameters and buffers have the names and shapes of the public PyTorch checkpoints whose keys begin with style, input, conv1, to_rgb1, convs,
to_rgbs and noises, so their state dicts load: at 256 pixels `Generator(512, (3, 256, 256), 128)`.

`width` is the number of channels at the image's full size; it doubles with every halving, up to 512. `ops` is the family of ops that a
network is made of: see `ganzoo.training.ops`.
"""

import math

import gankernels
import torch
from torch import nn

from ganzoo.networks import doublings
from ganzoo.networks.equalized import Conv2d, LeakyReLU, Linear, Noises, Resample, mapping, per_layer, with_stddev
from ganzoo.training.ops import get_ops

MOST = 512  # channels


def channels_by_size(image_shape, width):
    """{4: channels, 8: channels, ...} up to the image's size."""
    count = doublings(image_shape)
    return {4 << level: min(MOST, width << count - level) for level in range(count + 1)}


class Modulated(gankernels.nn.ModulatedConv2d):
    """gankernels' layer with the op of either family."""

    def __init__(self, ops, *args, **options):
        super().__init__(*args, **options)
        self.op = ops.modulated_conv2d


class Constant(nn.Module):
    """What every image starts from."""

    def __init__(self, channels):
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class Strength(nn.Module):
    """How much of the noise a layer takes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class StyledConv(nn.Module):
    """A modulated and demodulated 3×3 convolution, noise, bias and leaky ReLU, in one."""

    def __init__(self, ops, before, after, latent, up=False):
        super().__init__()
        self.conv = Modulated(ops, before, after, 3, latent, upsample=up)
        self.noise, self.activate = Strength(), LeakyReLU(ops, after)

    def forward(self, x, w, noise):
        return self.conv(x, w, noise=noise * self.noise.weight, bias=self.activate.bias, act="lrelu")


class ToRGB(nn.Module):
    """The skip connection: a 1×1 convolution, modulated but not demodulated, to the image's channels, plus the image so far at twice its
    size."""

    def __init__(self, ops, before, after, latent, up=True):
        super().__init__()
        self.conv = Modulated(ops, before, after, 1, latent, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, after, 1, 1))
        if up:
            self.upsample = Resample(ops, up=2, pad=(2, 1))

    def forward(self, x, w, image=None):
        rgb = self.conv(x, w, bias=self.bias.flatten())
        return rgb if image is None else rgb + self.upsample(image)


class Generator(nn.Module):
    """Latents (N, latent) to images (N, C, H, W), which nothing keeps within [−1, 1].

    `mapping`, from z to w (N, latent), is `depth` layers that learn at a hundredth of the others' speed. `synthesis` takes one w per image, or
    w (N, layers, latent), one for each of its `layers` inputs, and noise (N, pixels) for all of its convolutions, `pixels` numbers per
    image; none is the fixed one.
    """

    def __init__(self, latent, image_shape, width, depth=8, ops=None):
        super().__init__()
        ops = ops or get_ops("gankernels")
        channels = channels_by_size(image_shape, width)
        self.layers, self.image_shape = 2 * len(channels), tuple(image_shape)
        sizes = [size for size in channels for _ in range(2)][1:]
        self.pixels, self.noises = sum(size**2 for size in sizes), Noises(sizes)
        self.style = mapping(ops, latent, depth)
        self.input = Constant(channels[4])
        self.conv1 = StyledConv(ops, channels[4], channels[4], latent)
        self.to_rgb1 = ToRGB(ops, channels[4], image_shape[0], latent, up=False)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for size in list(channels)[1:]:
            self.convs.append(StyledConv(ops, channels[size // 2], channels[size], latent, up=True))
            self.convs.append(StyledConv(ops, channels[size], channels[size], latent))
            self.to_rgbs.append(ToRGB(ops, channels[size], image_shape[0], latent))

    def mapping(self, z):
        return self.style(z)

    def synthesis(self, w, noise=None):
        w, noises = per_layer(w, self.layers), self.noises(noise)
        x = self.conv1(self.input.input.expand(len(w), -1, -1, -1), w[:, 0], noises[0])
        image = self.to_rgb1(x, w[:, 1])
        for level, to_rgb in enumerate(self.to_rgbs):  # an image's w is also that of the next size's first convolution
            at = 2 * level + 1
            x = self.convs[2 * level](x, w[:, at], noises[at])
            x = self.convs[2 * level + 1](x, w[:, at + 1], noises[at + 1])
            image = to_rgb(x, w[:, at + 2], image)
        return image

    def forward(self, z, noise=None):
        return self.synthesis(self.mapping(z), noise)


class ConvLayer(nn.Sequential):
    """A convolution, which halves the filtered image where it says so, and a biased leaky ReLU."""

    def __init__(self, ops, before, after, kernel, down=False, act=True):
        rest = kernel + 1  # beyond what the filter and the convolution keep of an image that halves
        blur = [Resample(ops, pad=((rest + 1) // 2, rest // 2))] if down else []
        conv = Conv2d(before, after, kernel, 2 if down else 1, 0 if down else kernel // 2)
        super().__init__(*blur, conv, *([LeakyReLU(ops, after)] if act else []))


class ResBlock(nn.Module):
    """Two convolutions, the second of which halves the image, beside a 1×1 one that halves it, over √2."""

    def __init__(self, ops, before, after):
        super().__init__()
        self.conv1 = ConvLayer(ops, before, before, 3)
        self.conv2 = ConvLayer(ops, before, after, 3, down=True)
        self.skip = ConvLayer(ops, before, after, 1, down=True, act=False)

    def forward(self, x):
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


class Discriminator(nn.Module):
    """Images (N, C, H, W) to raw scores (N,): residual blocks down to 4×4, minibatch standard deviation, a 3×3 convolution, two layers."""

    def __init__(self, image_shape, width, ops=None):
        super().__init__()
        self.ops = ops = ops or get_ops("gankernels")
        channels = list(channels_by_size(image_shape, width).values())[::-1]
        blocks = [ResBlock(ops, before, after) for before, after in zip(channels, channels[1:])]
        self.convs = nn.Sequential(ConvLayer(ops, image_shape[0], channels[0], 1), *blocks)
        self.final_conv = ConvLayer(ops, channels[-1] + 1, channels[-1], 3)
        self.final_linear = nn.Sequential(
            Linear(ops, channels[-1] * 16, channels[-1], act="lrelu"), Linear(ops, channels[-1], 1)
        )

    def forward(self, x):
        x = self.final_conv(with_stddev(self.ops, self.convs(x)))
        return self.final_linear(x.flatten(1)).flatten()
