"""The networks of StyleGAN: Karras, Laine and Aila (2019), arXiv:1812.04948, section 2 and appendix C, which grow: Karras et al. (2018),
arXiv:1710.10196, section 2.

Both have a block and a way to or from images for every size from 4×4 to `size`, under that size's name, and a buffer `alpha`, the share of
the largest one in what they show or see. `width` is the number of channels at the data's full size, `full`; it doubles with every halving,
up to 512. `ops` is the family of ops that a network is made of: see `ganzoo.training.ops`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ganzoo.networks.equalized import (
    Conv2d,
    LeakyReLU,
    Linear,
    Noises,
    Resample,
    mapping,
    per_layer,
    with_stddev,
)

MOST = 512  # channels


def channels_at(size, full, width):
    return min(MOST, width * full // size)


class Epilogue(nn.Module):
    """What follows a convolution: noise with a strength per channel, bias and leaky ReLU, then adaptive instance normalisation,
    y_s·(x − μ(x))/σ(x) + y_b, y being an affine function of w."""

    def __init__(self, ops, channels, latent):
        super().__init__()
        self.strength, self.activate = nn.Parameter(torch.zeros(1, channels, 1, 1)), LeakyReLU(ops, channels)
        self.scale, self.shift = Linear(ops, latent, channels, bias=1.0), Linear(ops, latent, channels)
        self.ops = ops

    def forward(self, x, w, noise):
        x = self.activate(x + noise * self.strength)
        x = self.ops.group_norm(x, x.shape[1])
        scale, shift = (layer(w)[:, :, None, None] for layer in (self.scale, self.shift))
        return x * scale + shift


class Start(nn.Module):
    """A constant of 4×4 pixels and one convolution, each with its epilogue."""

    def __init__(self, ops, channels, latent):
        super().__init__()
        # The paper's starts as ones, whose first normalisation, of no variance, would be one of rounding errors.
        self.constant = nn.Parameter(torch.randn(1, channels, 4, 4))
        self.conv = Conv2d(channels, channels, 3, padding=1)
        self.first, self.second = (Epilogue(ops, channels, latent) for _ in range(2))

    def forward(self, w, noises):
        x = self.first(self.constant.expand(len(w), -1, -1, -1), w[:, 0], noises[0])
        return self.second(self.conv(x), w[:, 1], noises[1])


class Doubling(nn.Module):
    """Bilinear doubling and two convolutions, each with its epilogue."""

    def __init__(self, ops, before, after, latent):
        super().__init__()
        self.up = Resample(ops, up=2, pad=(2, 1))
        self.conv1, self.conv2 = Conv2d(before, after, 3, padding=1), Conv2d(after, after, 3, padding=1)
        self.first, self.second = (Epilogue(ops, after, latent) for _ in range(2))

    def forward(self, x, w, noises):
        x = self.first(self.conv1(self.up(x)), w[:, 0], noises[0])
        return self.second(self.conv2(x), w[:, 1], noises[1])


class ToImage(nn.Module):
    """A 1×1 convolution with a bias."""

    def __init__(self, before, after):
        super().__init__()
        self.conv, self.bias = Conv2d(before, after, 1), nn.Parameter(torch.zeros(1, after, 1, 1))

    def forward(self, x):
        return self.conv(x) + self.bias


class Generator(nn.Module):
    """Latents (N, latent) to images (N, C, size, size), which nothing keeps within [−1, 1].

    `mapping`, from z to w (N, latent), is `depth` layers that learn at a hundredth of the others' speed. `synthesis` takes one w per image, or
    w (N, layers, latent), one for each of its `layers` inputs, and noise (N, pixels) for all of them, `pixels` numbers per image; none
    is the fixed one.
    """

    def __init__(self, latent, channels, size, full, width, depth, ops):
        super().__init__()
        self.size, sizes = size, [4 << level for level in range((size // 4).bit_length())]
        self.layers, self.noises = 2 * len(sizes), Noises([side for side in sizes for _ in range(2)])
        self.pixels = 2 * sum(side**2 for side in sizes)
        self.style = mapping(ops, latent, depth)
        blocks, images = {"4": Start(ops, channels_at(4, full, width), latent)}, {}
        for side in sizes[1:]:
            blocks[str(side)] = Doubling(
                ops, channels_at(side // 2, full, width), channels_at(side, full, width), latent
            )
        for side in sizes[-2:]:
            images[str(side)] = ToImage(channels_at(side, full, width), channels)
        self.blocks, self.images = nn.ModuleDict(blocks), nn.ModuleDict(images)
        self.register_buffer("alpha", torch.ones(()))

    def mapping(self, z):
        return self.style(z)

    def synthesis(self, w, noise=None):
        w, noises = per_layer(w, self.layers), self.noises(noise)
        x = smaller = None
        for level, block in enumerate(self.blocks.values()):
            here = slice(2 * level, 2 * level + 2)
            smaller, x = x, block(*([] if x is None else [x]), w[:, here], noises[here])
        image = self.images[str(self.size)](x)
        if smaller is None:
            return image
        return F.interpolate(self.images[str(self.size // 2)](smaller), scale_factor=2).lerp(image, self.alpha)

    def forward(self, z, noise=None):
        return self.synthesis(self.mapping(z), noise)


class Halving(nn.Sequential):
    """Two convolutions, the second of which a bilinear halving follows."""

    def __init__(self, ops, before, after):
        super().__init__(
            Conv2d(before, before, 3, padding=1),
            LeakyReLU(ops, before),
            Conv2d(before, after, 3, padding=1),
            Resample(ops, down=2, pad=(1, 1)),
            LeakyReLU(ops, after),
        )


class FromImage(nn.Sequential):
    def __init__(self, ops, before, after):
        super().__init__(Conv2d(before, after, 1), LeakyReLU(ops, after))


class Discriminator(nn.Module):
    """Images (N, C, size, size) to raw scores (N,): halvings to 4×4, minibatch standard deviation, a convolution, two layers."""

    def __init__(self, channels, size, full, width, ops):
        super().__init__()
        self.ops, self.size, sizes = ops, size, [4 << level for level in range((size // 4).bit_length())]
        self.blocks = nn.ModuleDict(
            {
                str(side): Halving(ops, channels_at(side, full, width), channels_at(side // 2, full, width))
                for side in sizes[1:]
            }
        )
        self.images = nn.ModuleDict(
            {str(side): FromImage(ops, channels, channels_at(side, full, width)) for side in sizes[-2:]}
        )
        last = channels_at(4, full, width)
        self.conv = nn.Sequential(Conv2d(last + 1, last, 3, padding=1), LeakyReLU(ops, last))
        self.scores = nn.Sequential(Linear(ops, last * 16, last, act="lrelu"), Linear(ops, last, 1))
        self.register_buffer("alpha", torch.ones(()))

    def forward(self, image):
        x = self.images[str(self.size)](image)
        if self.size > 4:
            smaller = self.images[str(self.size // 2)](F.avg_pool2d(image, 2))
            x = smaller.lerp(self.blocks[str(self.size)](x), self.alpha)
        for side in sorted(map(int, self.blocks), reverse=True):
            if side < self.size:
                x = self.blocks[str(side)](x)
        return self.scores(self.conv(with_stddev(self.ops, x)).flatten(1)).flatten()
