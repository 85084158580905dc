"""The networks of R3GAN: Huang, Gokaslan, Kuleshov and Tompkin (2024), arXiv:2501.05441, section 4, configuration E.

Both are two residual bottlenecks per size: no normalisation, which fix-up initialisation (Zhang et al. 2019, arXiv:1901.09321) makes
unnecessary, and no layer that the other does not have turned around.
"""

import math

import torch
from torch import nn

from ganzoo.networks import doublings

BLOCKS = 2  # of one size
EXPANSION = 2
GROUP = 16  # channels that a grouped convolution relates
SLOPE = 0.2


class Bottleneck(nn.Module):
    """x + W₃ φ(W₂ φ(W₁ x + b₁) + b₂) with φ = LeakyReLU(0.2), W₁ and W₃ 1×1, W₂ 3×3 in groups, `depth` blocks in all.

    Fix-up initialisation: W₃ = 0, so that the network starts as its shortcuts, and the others' variance is 1/√depth of He's.
    """

    def __init__(self, channels, depth):
        super().__init__()
        hidden = EXPANSION * channels
        groups = hidden // math.gcd(hidden, GROUP)
        self.body = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=groups),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )
        for layer in (self.body[0], self.body[2]):
            he_init(layer, depth**-0.25)
        nn.init.zeros_(self.body[4].weight)

    def forward(self, x):
        return x + self.body(x)


def he_init(layer, scale=1.0):
    nn.init.kaiming_normal_(layer.weight, SLOPE)
    with torch.no_grad():
        layer.weight.mul_(scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def linear_init(layer):
    """Variance 1 / fan-in, for layers that no activation follows."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def bottlenecks(channels, depth):
    return [Bottleneck(channels, depth) for _ in range(BLOCKS)]


class Basis(nn.Module):
    """Latents (N, latent) to maps (N, C, 4, 4): a learned map per channel times a linear function of the latent."""

    def __init__(self, latent, channels):
        super().__init__()
        self.basis = nn.Parameter(torch.randn(channels, 4, 4))
        self.coefficients = linear_init(nn.Linear(latent, channels, bias=False))

    def forward(self, latents):
        return self.coefficients(latents)[:, :, None, None] * self.basis


class Generator(nn.Sequential):
    """Latents (N, latent) to images (N, C, H, W), which nothing keeps within [−1, 1]: 4×4 maps, bottlenecks, doublings by bilinear
    interpolation with a 1×1 convolution, and a 1×1 convolution to the image.

    `width` is the number of channels at the image's full size; it doubles with every halving.
    """

    def __init__(self, latent, image_shape, width):
        channels = [width * 2**level for level in reversed(range(doublings(image_shape) + 1))]
        depth = BLOCKS * len(channels)
        layers = [Basis(latent, channels[0]), *bottlenecks(channels[0], depth)]
        for before, after in zip(channels, channels[1:]):
            layers += [
                linear_init(nn.Conv2d(before, after, 1, bias=False)),
                nn.Upsample(scale_factor=2, mode="bilinear"),
            ]
            layers += bottlenecks(after, depth)
        super().__init__(*layers, linear_init(nn.Conv2d(width, image_shape[0], 1)))


class Discriminator(nn.Sequential):
    """Images (N, C, H, W) to raw scores (N,): the generator turned around. Maps halve by the mean over 2×2, which is bilinear
    interpolation; a 4×4 convolution of each channel by itself and a dense layer end it.

    `width` is the number of channels at the image's full size; it doubles with every halving.
    """

    def __init__(self, image_shape, width):
        channels = [width * 2**level for level in range(doublings(image_shape) + 1)]
        depth = BLOCKS * len(channels)
        layers = [linear_init(nn.Conv2d(image_shape[0], width, 1)), *bottlenecks(width, depth)]
        for before, after in zip(channels, channels[1:]):
            layers += [
                nn.AvgPool2d(2),
                linear_init(nn.Conv2d(before, after, 1, bias=False)),
                *bottlenecks(after, depth),
            ]
        last = channels[-1]
        layers += [
            linear_init(nn.Conv2d(last, last, 4, groups=last, bias=False)),
            nn.Flatten(1),
            linear_init(nn.Linear(last, 1)),
        ]
        super().__init__(*layers, nn.Flatten(0))
