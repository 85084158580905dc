"""What makes a network of any family conditional: a further input, or a further output."""

import math

import torch
from torch import nn


class Labels(nn.Sequential):
    """Labels (N,) to tensors (N, *shape) by a dense layer on their one-hot vectors; its weights ~ N(0, 1), as loud as latents."""

    def __init__(self, classes, shape):
        super().__init__(nn.Embedding(classes, math.prod(shape)), nn.Unflatten(1, shape))


class Conditioned(nn.Module):
    """A network whose input is x concatenated, along dimension 1, with what `embedding` makes of the condition: further latents for a
    generator, a further plane for a discriminator of images."""

    def __init__(self, network, embedding):
        super().__init__()
        self.network, self.embedding = network, embedding

    def forward(self, x, condition):
        return self.network(torch.cat([x, self.embedding(condition)], 1))
