"""The networks of the FashionMNIST GAN, layer by layer as its tables have them.

They are a Keras model's: weights have Glorot's uniform distribution, biases are 0, batch norm has momentum 0.99, in PyTorch's terms 0.01, and
ε = 1e-3. The tables do not say how steep LeakyReLU is and how much is dropped; 0.2 and 0.4 are usual.
"""

import math

import torch.nn.functional as F
from torch import nn

from ganzoo.errors import ArgumentError

SLOPE = 0.2


def init_weights(module):
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class SameConv2d(nn.Conv2d):
    """A 4×4 convolution that keeps the size: a pixel of zeros before, two after. PyTorch's `same` is this one, with a warning."""

    def forward(self, x):
        return super().forward(F.pad(x, (1, 2, 1, 2)))


def normalised(channels):
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Generator(nn.Sequential):
    """Latents (N, latent) to images (N, C, H, W) in (−1, 1): a dense layer to a quarter of the size, two doublings by 4×4 transposed
    convolutions, the second to the image's own channels, and three 4×4 convolutions at full size.

    `width` is a quarter of the number of filters.
    """

    def __init__(self, latent, image_shape, width):
        channels, *sides = image_shape
        height, side = sides if len(sides) == 2 else (0, 0)
        filters, small = 4 * width, (height // 4, side // 4)
        if (4 * small[0], 4 * small[1]) != (height, side) or min(height, side) < 20:
            size = " x ".join(map(str, image_shape))
            raise ArgumentError("data", "images with sides of 20, 24, 28, ... pixels for these networks", size)
        super().__init__(
            nn.Linear(latent, filters * math.prod(small)),
            nn.LeakyReLU(SLOPE),
            nn.Unflatten(1, (filters, *small)),
            nn.ConvTranspose2d(filters, filters, 4, 2, 1),
            nn.LeakyReLU(SLOPE),
            normalised(filters),
            nn.ConvTranspose2d(filters, channels, 4, 2, 1),
            nn.LeakyReLU(SLOPE),
            normalised(channels),
            SameConv2d(channels, filters, 4),
            nn.LeakyReLU(SLOPE),
            SameConv2d(filters, filters, 4),
            nn.LeakyReLU(SLOPE),
            SameConv2d(filters, channels, 4),
            nn.Tanh(),
        )
        self.apply(init_weights)


class Discriminator(nn.Sequential):
    """Images (N, C, H, W) to raw scores (N,): four 5×5 convolutions without padding, each with twice the filters of the one before, and a
    dense layer; dropout before every layer but the first. `width` is the number of the first one's filters."""

    def __init__(self, image_shape, width, dropout):
        channels, *size = image_shape
        layers = []
        for level in range(4):
            filters = width * 2**level
            layers += [nn.Conv2d(channels, filters, 5), nn.LeakyReLU(SLOPE), nn.Dropout(dropout)]
            channels = filters
        units = channels * math.prod(side - 16 for side in size)
        super().__init__(*layers, nn.Flatten(1), nn.Dropout(dropout), nn.Linear(units, 1), nn.Flatten(0))
        self.apply(init_weights)
