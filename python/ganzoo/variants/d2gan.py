from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ganzoo.options import Positive
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import register

TAIL = -20.0
"""Below this log softplus(ℓ) is ℓ, to the last bit of float32; softplus itself comes to 0 at −104."""


@register("d2gan")
@dataclass
class D2GAN(Alternating):
    """D2GAN: two discriminators, one that rewards real images and one that rewards generated ones.

    L_D = −α E log D₁(x) + E D₁(G(z)) + E D₂(x) − β E log D₂(G(z)), L_G = −E D₁(G(z)) + β E log D₂(G(z)), D = softplus(ℓ) > 0.

    D₁ and D₂ are no probabilities: at the optimum D₁ = α p_data/p_g and D₂ = β p_g/p_data, and the generator minimises
    α KL(p_data ‖ p_g) + β KL(p_g ‖ p_data).

    Source: Nguyen, Le, Vu and Phung (2017), arXiv:1709.03831, section 3.
    """

    alpha: Positive = 1.0
    """α, the weight of KL(p_data ‖ p_g), which wants every mode covered."""
    beta: Positive = 1.0
    """β, the weight of KL(p_g ‖ p_data), which wants no sample off the modes."""

    def networks(self, data, ops):
        networks = super().networks(data, ops)
        networks.discriminator = nn.ModuleList([networks.discriminator, super().networks(data, ops).discriminator])
        return networks

    def discriminator_loss(self, networks, draw, ops):
        x, fake = draw.real(), networks.generator(draw.latents())
        first, second = networks.discriminator
        real_like = F.softplus(first(fake)).mean() - self.alpha * log_softplus(first(x)).mean()
        fake_like = F.softplus(second(x)).mean() - self.beta * log_softplus(second(fake)).mean()
        return real_like + fake_like, {"D1": real_like, "D2": fake_like}

    def generator_loss(self, networks, draw, ops):
        fake, (first, second) = networks.generator(draw.latents()), networks.discriminator
        return self.beta * log_softplus(second(fake)).mean() - F.softplus(first(fake)).mean(), {}

    def scores(self, networks, images, labels=None):
        first, second = networks.discriminator
        return first(images) - second(images)


def log_softplus(scores):
    """log log(1 + exp(ℓ)), of any ℓ."""
    return torch.where(scores < TAIL, scores, F.softplus(scores.clamp(min=TAIL)).log())
