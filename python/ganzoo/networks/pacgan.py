"""The perceptrons with which PacGAN compares GANs on points: Lin et al. (2018), arXiv:1712.04086, section 4.1 and the authors' code.

Weights ~ N(0, 0.02²), biases 0. A `width` of 16 stands for the paper's 400 units of the generator and 200 of the discriminator.
"""

from torch import nn


class Maxout(nn.Linear):
    """The largest of so many affine functions for each unit. Source: Goodfellow et al. (2013), arXiv:1302.4389."""

    def __init__(self, inputs, units, pieces):
        super().__init__(inputs, units * pieces)
        self.pieces = pieces

    def forward(self, x):
        return super().forward(x).unflatten(1, (-1, self.pieces)).max(2).values


def _init_weights(module):
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class _Normalized(nn.Sequential):
    """So many layers of 25·width units with batch norm and ReLU, and an affine one."""

    def __init__(self, inputs, outputs, width, depth):
        units, layers = 25 * width, []
        for count in (inputs, *[units] * (depth - 1)):
            layers += [nn.Linear(count, units, bias=False), nn.BatchNorm1d(units, momentum=0.05), nn.ReLU()]
        super().__init__(*layers, nn.Linear(units, outputs))
        self.apply(_init_weights)


class Generator(_Normalized):
    """Latents (N, latent) to points (N, D): four layers of 25·width units with batch norm and ReLU, and an affine one."""

    def __init__(self, latent, shape, width):
        super().__init__(latent, *shape, width, depth=4)


class Encoder(_Normalized):
    """Points (N, D) to latents (N, latent): two layers of the generator's kind, and an affine one."""

    def __init__(self, shape, width, latent):
        super().__init__(*shape, latent, width, depth=2)


class Discriminator(nn.Sequential):
    """Points (N, D) to raw scores (N,): three layers of 12.5·width maxout units of five pieces, and an affine one."""

    def __init__(self, shape, width):
        units = 25 * width // 2
        layers = [Maxout(inputs, units, pieces=5) for inputs in (*shape, units, units)]
        super().__init__(*layers, nn.Linear(units, 1), nn.Flatten(0))
        self.apply(_init_weights)
