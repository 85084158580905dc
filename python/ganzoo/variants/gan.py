from dataclasses import dataclass
from typing import Literal

from ganzoo.networks import pacgan
from ganzoo.objectives import (
    maximum_likelihood_generator,
    minimax_discriminator,
    minimax_generator,
    non_saturating_generator,
)
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register

GENERATOR_LOSSES = {
    "non-saturating": non_saturating_generator,
    "minimax": minimax_generator,
    "maximum-likelihood": maximum_likelihood_generator,
}
"""What the generator minimises in each of the three games, whose discriminators are the same."""


@register("gan")
@dataclass
class GAN(Alternating):
    """GAN: the original game, its generator loss one of three, on DCGAN's networks and optimiser.

    L_D = −E log D(x) − E log(1 − D(G(z))), D = σ(ℓ); L_G is

    non-saturating      −E log D(G(z))
    minimax             E log(1 − D(G(z)))
    maximum-likelihood  −E D(G(z))/(1 − D(G(z))) = −E exp(ℓ(G(z)))

    Source: Goodfellow et al. (2014), arXiv:1406.2661, algorithm 1 and section 3; Goodfellow (2016), arXiv:1701.00160, section 3.2;
    Radford, Metz and Chintala (2015), arXiv:1511.06434.
    """

    simultaneous: bool = False
    """Both players update at once, each from where the other stood."""
    game: Literal["non-saturating", "minimax", "maximum-likelihood"] = "non-saturating"
    """What the generator minimises."""

    def networks(self, data, ops):
        if data.points:
            return Networks(
                generator=pacgan.Generator(self.latent, data.shape, self.width),
                discriminator=pacgan.Discriminator(data.shape, self.width),
            )
        return super().networks(data, ops)

    def discriminator_loss(self, networks, draw, ops):
        real, fake = networks.discriminator(draw.real()), networks.discriminator(networks.generator(draw.latents()))
        return minimax_discriminator(real, fake), {"D(x)": real.sigmoid().mean(), "D(G(z))": fake.sigmoid().mean()}

    def generator_loss(self, networks, draw, ops):
        return GENERATOR_LOSSES[self.game](networks.discriminator(networks.generator(draw.latents()))), {}

    def schedule(self, step):
        turns = ["discriminator", "generator"]
        return [tuple(turns)] if self.simultaneous else turns
