from dataclasses import dataclass

from ganzoo.networks import sngan, toy
from ganzoo.objectives import hinge_discriminator, hinge_generator
from ganzoo.options import Betas, Count, Positive
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register


@register("sngan")
@dataclass
class SNGAN(Alternating):
    """SN-GAN: every weight of the discriminator divided by its largest singular value, under the hinge loss.

    L_D = E max(0, 1 − ℓ(x)) + E max(0, 1 + ℓ(G(z))), L_G = −E ℓ(G(z)),
    W̄ = W/σ(W) with one power iteration per forward pass.

    Source: Miyato et al. (2018), arXiv:1802.05957, algorithm 1 and eqs. 16 and 17.
    """

    steps: Count = 1500
    width: Count = 8
    discriminator_steps: Count = 5
    """Discriminator updates per generator step."""
    lr: Positive = 1e-3
    """Adam's learning rate. The paper's 2e-4 with these betas is for photographs; this is for 1,500 steps on digits."""
    betas: Betas = (0.0, 0.9)
    """Adam's decay rates."""

    def networks(self, data, ops):
        family = toy if data.points else sngan
        return Networks(
            generator=family.Generator(self.latent, data.shape, self.width),
            discriminator=ops.spectral_norm(family.Discriminator(data.shape, self.width)),
        )

    def discriminator_loss(self, networks, draw, ops):
        real, fake = draw.real(), networks.generator(draw.latents())
        return hinge_discriminator(networks.discriminator(real), networks.discriminator(fake)), {}

    def generator_loss(self, networks, draw, ops):
        return hinge_generator(networks.discriminator(networks.generator(draw.latents()))), {}

    def schedule(self, step):
        return ["discriminator"] * self.discriminator_steps + ["generator"]
