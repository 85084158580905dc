from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ganzoo.variants.base import Variant

KEPT = 64
"""Images of the data that are kept to sample from."""


@dataclass
class FromImages(Variant):
    """A variant that makes images of images. To sample without data it keeps a few to start from, as a buffer of the game, `sources`;
    a latent is a number in [0, 1) that says which of them."""

    samplers = ("generator", "sources")
    latent: ClassVar[None] = None  # no option

    def latents(self, count, generator):
        rounds = -(-count // KEPT)
        order = [torch.randperm(KEPT, device=generator.device, generator=generator) for _ in range(rounds)]
        return (torch.cat(order)[:count, None] + 0.5) / KEPT

    def chosen(self, networks, latents):
        return networks.sources[(latents[:, 0] * len(networks.sources)).long()]


@dataclass
class Translating(FromImages):
    """One that translates: what becomes of an image is decided by the image.

    A subclass gives `translate(networks, images)` and, unless its data are domains, `pair(sample)`.
    """

    def translate(self, networks, images):
        """What the generator makes of images."""
        raise NotImplementedError

    def pair(self, sample):
        """A batch of the data as what is to be translated and what it is to become."""
        raise NotImplementedError

    def sample(self, networks, latents, labels=None):
        return self.translate(networks, self.chosen(networks, latents))

    def show(self, networks, latents, labels=None):
        return beside(self.chosen(networks, latents), self.sample(networks, latents))


def beside(*images):
    """Images (N, C, H, W) side by side, those of a smaller size enlarged bicubically, grey ones as coloured as the others."""
    size = max(image.shape[2:] for image in images)
    images = [image if image.shape[2:] == size else F.interpolate(image, size=size, mode="bicubic") for image in images]
    channels = max(image.shape[1] for image in images)
    return torch.cat([image.expand(-1, channels, -1, -1) for image in images], 3)
