from dataclasses import dataclass

from ganzoo.networks import sagan
from ganzoo.objectives import hinge_discriminator, hinge_generator
from ganzoo.options import Betas, Count, Positive
from ganzoo.variants.alternating import TwoRates
from ganzoo.variants.base import Networks, register


@register("sagan")
@dataclass
class SAGAN(TwoRates):
    """SAGAN: self-attention in both networks, both under spectral normalisation, the discriminator at four times the generator's rate.

    L_D = E max(0, 1 − ℓ(x)) + E max(0, 1 + ℓ(G(z))), L_G = −E ℓ(G(z)); attention is x + γ·o(x) with γ = 0 at first.

    One update each in turn: the two learning rates take the place of several discriminator steps. The paper's networks are conditional on
    ImageNet's classes; these are not.

    Source: Zhang et al. (2019), arXiv:1805.08318, sections 3 and 4; two rates: Heusel et al. (2017), arXiv:1706.08500.
    """

    steps: Count = 1000
    lr: Positive = 5e-4
    """Adam's learning rate for the generator. The paper's 1e-4 and 4e-4 are for photographs; these are for 1,000 steps on digits."""
    discriminator_lr: Positive = 2e-3
    """Adam's learning rate for the discriminator."""
    betas: Betas = (0.0, 0.9)
    """Adam's decay rates."""

    def networks(self, data, ops):
        return Networks(
            generator=ops.spectral_norm(sagan.Generator(self.latent, data.shape, self.width, ops)),
            discriminator=ops.spectral_norm(sagan.Discriminator(data.shape, self.width, ops)),
        )

    def discriminator_loss(self, networks, draw, ops):
        real, fake = draw.real(), networks.generator(draw.latents())
        return hinge_discriminator(networks.discriminator(real), networks.discriminator(fake)), {}

    def generator_loss(self, networks, draw, ops):
        return hinge_generator(networks.discriminator(networks.generator(draw.latents()))), {}
