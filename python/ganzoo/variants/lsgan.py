from dataclasses import dataclass

from ganzoo.objectives import least_squares_discriminator, least_squares_generator
from ganzoo.options import Finite
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import register


@register("lsgan")
@dataclass
class LSGAN(Alternating):
    """LSGAN: scores are pulled to codes by least squares.

    L_D = ½ E (ℓ(x) − b)² + ½ E (ℓ(G(z)) − a)², L_G = ½ E (ℓ(G(z)) − c)².

    The paper's codes (a, b, c) are (0, 1, 1), which are the defaults, or (−1, 1, 0), with which L_G is Pearson's χ².

    Source: Mao et al. (2017), arXiv:1611.04076, eqs. 2, 8 and 9.
    """

    a: Finite = 0.0
    """Code of generated images."""
    b: Finite = 1.0
    """Code of real images."""
    c: Finite = 1.0
    """What the generator wants its images to be taken for."""

    def discriminator_loss(self, networks, draw, ops):
        real, fake = networks.discriminator(draw.real()), networks.discriminator(networks.generator(draw.latents()))
        return least_squares_discriminator(real, fake, self.a, self.b), {"real": real.mean(), "fake": fake.mean()}

    def generator_loss(self, networks, draw, ops):
        return least_squares_generator(networks.discriminator(networks.generator(draw.latents())), self.c), {}
