from dataclasses import dataclass
from functools import partial

from ganzoo.networks import dcgan, pacgan
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import Betas, Count, Decay, Positive
from ganzoo.variants.base import Networks, Player, Variant, register


@register("gan")
@dataclass
class GAN(Variant):
    """GAN: the original game with the non-saturating generator loss, on DCGAN's networks and optimiser.

    L_D = −E log D(x) − E log(1 − D(G(z))), L_G = −E log D(G(z)), D = σ(ℓ).

    Source: Goodfellow et al. (2014), arXiv:1406.2661, algorithm 1 and section 3; Radford, Metz and Chintala (2015),
    arXiv:1511.06434.
    """

    adversary = "discriminator"
    steps: Count = 3000
    ema: Decay = 0.99
    lr: Positive = 2e-4
    """Adam's learning rate."""
    betas: Betas = (0.5, 0.999)
    """Adam's decay rates."""
    simultaneous: bool = False
    """Both players update at once, each from where the other stood."""

    def networks(self, data, ops):
        family = pacgan if data.points else dcgan
        return Networks(
            generator=family.Generator(self.latent, data.shape, self.width),
            discriminator=family.Discriminator(data.shape, self.width),
        )

    def discriminator_loss(self, networks, draw, ops):
        real, fake = networks.discriminator(draw.real()), networks.discriminator(networks.generator(draw.latents()))
        return minimax_discriminator(real, fake), {"D(x)": real.sigmoid().mean(), "D(G(z))": fake.sigmoid().mean()}

    def generator_loss(self, networks, draw, ops):
        return non_saturating_generator(networks.discriminator(networks.generator(draw.latents()))), {}

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam),
            "generator": Player(("generator",), self.generator_loss, adam, ema=self.ema),
        }

    def schedule(self, step):
        turns = ["discriminator", "generator"]
        return [tuple(turns)] if self.simultaneous else turns
