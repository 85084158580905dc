"""What makes a network of any family conditional: a further input, or a further output."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ganzoo.networks import dcgan, toy


class OneHot(nn.Module):
    """Labels (N,) to their one-hot vectors (N, classes)."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, labels):
        return F.one_hot(labels, self.classes).to(torch.get_default_dtype())


class Labels(nn.Sequential):
    """Labels (N,) to tensors (N, *shape) by a dense layer on their one-hot vectors; its weights ~ N(0, 1), as loud as images."""

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


def generator(latent, shape, width, classes):
    """A generator (z, y) ↦ x whose latents are followed by the one-hot vector of the label.

    A dense layer would make the label as loud as the latents. With a discriminator that is not told the label such a generator was seen to
    turn deaf to its latents: one image for each class.
    """
    family = toy if len(shape) == 1 else dcgan
    return Conditioned(family.Generator(latent + classes, shape, width), OneHot(classes))


def discriminator(shape, width, classes):
    """A discriminator (x, y) ↦ ℓ that sees, beside the image, a plane that a dense layer makes of the label; beside a point, as many
    numbers as it has."""
    if len(shape) == 1:
        return Conditioned(toy.Discriminator((2 * shape[0],), width), Labels(classes, shape))
    channels, *size = shape
    return Conditioned(dcgan.Discriminator((channels + 1, *size), width), Labels(classes, (1, *size)))


class Headed(nn.Module):
    """A discriminator with a second head: raw scores (N,), and `outputs` more numbers (N, outputs), by a dense layer each on the
    same features."""

    def __init__(self, discriminator, outputs):
        super().__init__()
        *trunk, score, flatten = discriminator
        self.trunk, self.head = nn.Sequential(*trunk), nn.Linear(score.in_features, outputs)
        self.score = nn.Sequential(score, flatten)  # last, where techniques look for the layer of the scores
        nn.init.normal_(self.head.weight, 0.0, 0.02), nn.init.zeros_(self.head.bias)

    def forward(self, x):
        features = self.trunk(x)
        return self.score(features), self.head(features)


class Matching(nn.Module):
    """A discriminator that is told a condition late: beside its last features goes what `embedding` makes of the condition, (N, code),
    and a dense layer with LeakyReLU(0.2) relates the two before the score."""

    def __init__(self, discriminator, embedding, code):
        super().__init__()
        *trunk, score, flatten = discriminator
        units = score.in_features
        related = nn.Sequential(nn.Linear(units + code, units), nn.LeakyReLU(0.2), nn.Linear(units, 1), flatten)
        self.trunk, self.score = nn.Sequential(*trunk), Conditioned(related, embedding)

    def forward(self, x, condition):
        return self.score(self.trunk(x), condition)


class TextEncoder(nn.Module):
    """Captions (N, T), the numbers of their words and zeros, to codes (N, code): a vector for each word, a convolution over three words,
    of each of its outputs the largest, and the whole scaled to length 1, so that it does not drown latents."""

    def __init__(self, words, code):
        super().__init__()
        self.words = nn.Embedding(words, code, padding_idx=0)
        self.phrases = nn.Conv1d(code, code, 3, padding=1)

    def forward(self, captions):
        return F.normalize(self.phrases(self.words(captions).transpose(1, 2)).amax(2), dim=1)


class Residual(nn.Sequential):
    """x + W₂ φ(W₁ x), W 3×3 with batch norm, φ = ReLU."""

    def __init__(self, channels):
        first, second = (nn.Conv2d(channels, channels, 3, 1, 1, bias=False) for _ in range(2))
        super().__init__(first, nn.BatchNorm2d(channels), nn.ReLU(), second, nn.BatchNorm2d(channels))

    def forward(self, x):
        return x + super().forward(x)


class Translator(nn.Sequential):
    """Images (N, A, H, W) to images (N, B, H, W) in (−1, 1): one halving by a 4×4 convolution of stride 2, residual blocks, and back."""

    def __init__(self, before, after, width, blocks=3):
        half = 2 * width
        super().__init__(
            *(nn.Conv2d(before, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, half, 4, 2, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()),
            *(Residual(half) for _ in range(blocks)),
            *(nn.ConvTranspose2d(half, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, after, 3, 1, 1), nn.Tanh()),
        )
