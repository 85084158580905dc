from dataclasses import dataclass, replace

from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import CountOrZero, Positive
from ganzoo.variants.alternating import TwoRates
from ganzoo.variants.base import register


@register("unrolled")
@dataclass
class UnrolledGAN(TwoRates):
    """Unrolled GAN: the generator's gradient flows through K steps that the discriminator would take next.

    L_D = −E log D(x) − E log(1 − D(G(z))), L_G = −E log D_K(G(z)), D_0 = D, D_{k+1} = D_k after a step of D's own optimiser,
    which is a function of G too. D itself then takes one ordinary step.

    Source: Metz, Poole, Pfau and Sohl-Dickstein (2017), arXiv:1611.02163, eqs. 7 to 11.
    """

    batch_norm = False  # or D's imagined steps would move its running statistics
    unrolling: CountOrZero = 5
    """K, the steps of the discriminator that the generator sees ahead; 0 is a plain GAN."""
    discriminator_lr: Positive = 1e-4
    """Adam's learning rate of the discriminator, also in the steps ahead."""
    lr: Positive = 1e-3
    """Adam's learning rate of the generator."""

    def discriminator_loss(self, networks, draw, ops):
        real, fake = networks.discriminator(draw.real()), networks.discriminator(networks.generator(draw.latents()))
        return minimax_discriminator(real, fake), {"D(x)": real.sigmoid().mean(), "D(G(z))": fake.sigmoid().mean()}

    def generator_loss(self, networks, draw, ops):
        return non_saturating_generator(networks.discriminator(networks.generator(draw.latents()))), {}

    def players(self, ops):
        players = super().players(ops)
        return {**players, "generator": replace(players["generator"], unroll={"discriminator": self.unrolling})}
