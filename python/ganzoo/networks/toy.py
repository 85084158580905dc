"""The perceptrons of WGAN-GP's experiments in the plane: Gulrajani et al. (2017), arXiv:1704.00028, the authors' toy code.

Three layers of 32·width units, 512 in the paper, with ReLU, and an affine one. Weights have He's uniform distribution, those of the last
layer Glorot's, biases are 0.
"""

from torch import nn


class _Perceptron(nn.Sequential):
    def __init__(self, inputs, outputs, width):
        units, layers = 32 * width, []
        for count in (inputs, units, units):
            layers += [nn.Linear(count, units), nn.ReLU()]
            nn.init.kaiming_uniform_(layers[-2].weight)
        layers.append(nn.Linear(units, outputs))
        nn.init.xavier_uniform_(layers[-1].weight)
        for layer in layers[::2]:
            nn.init.zeros_(layer.bias)
        super().__init__(*layers)


class Generator(_Perceptron):
    """Latents (N, latent) to points (N, D)."""

    def __init__(self, latent, shape, width):
        super().__init__(latent, *shape, width)


class Discriminator(_Perceptron):
    """Points (N, D) to raw scores (N,)."""

    def __init__(self, shape, width):
        super().__init__(*shape, 1, width)
        self.append(nn.Flatten(0))
