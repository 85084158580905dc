"""DCGAN's networks in pairs, coupled by shared layers: Liu and Tuzel (2016), arXiv:1606.07536.

What is shared lies far from the images, where layers know of contents rather than of looks. `own` is the number of levels, each with one
strided convolution, that either domain has for itself, counted from the images.
"""

import torch
from torch import nn

from ganzoo.errors import ArgumentError
from ganzoo.networks import dcgan


def _cut(network, place, own):
    layers = list(network)
    levels = sum(isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) for layer in layers)
    if own > levels:
        raise ArgumentError("own", f"at most {levels}, the levels that images of this size have", own)
    return nn.Sequential(*layers[:place]), nn.Sequential(*layers[place:])


class Generator(nn.Module):
    """Latents (N, latent) to pairs of images, twice (N, C, H, W). The first layers are shared."""

    def __init__(self, latent, image_shape, width, own):
        super().__init__()
        place = -3 * own - 1  # batch norm, ReLU and convolution of each level, and tanh
        (self.shared, self.a), (_, self.b) = (
            _cut(dcgan.Generator(latent, image_shape, width), place, own) for _ in range(2)
        )

    def forward(self, latents):
        shared = self.shared(latents)
        return self.a(shared), self.b(shared)


class Discriminator(nn.Module):
    """Images of both domains, twice (N, C, H, W), to raw scores, twice (N,). The last layers are shared."""

    def __init__(self, image_shape, width, own):
        super().__init__()
        place = 3 * own - 1  # convolution, batch norm and LeakyReLU of each level, the first without batch norm
        (self.a, self.shared), (self.b, _) = (
            _cut(dcgan.Discriminator(image_shape, width), place, own) for _ in range(2)
        )

    def forward(self, a, b):
        return self.shared(torch.cat([self.a(a), self.b(b)])).chunk(2)
