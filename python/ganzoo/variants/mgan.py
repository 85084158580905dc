from dataclasses import dataclass

import torch.nn.functional as F

from ganzoo.networks.mixture import Mixture, numbered, with_outputs
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import Count, NotNegative
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register


@register("mgan")
@dataclass
class MGAN(Alternating):
    """MGAN: several generators, which a classifier is to tell apart, so that they draw different modes.

    k uniform in 1 … K, L_D = −E log D(x) − E log(1 − D(G_k(z))), L_C = −E log C_k(G_k(z)), L_G = −E log D(G_k(z)) + β L_C.

    The generators share all but their first layer, discriminator and classifier all but their last. G minimises L_C, as C does: to be told
    apart is in the interest of both.

    Source: Hoang, Nguyen, Le and Phung (2018), arXiv:1708.02556, section 3 and algorithm 1, and the authors' code.
    """

    generators: Count = 8
    """K, the number of generators."""
    beta: NotNegative = 1.0
    """β, the generators' reward for being told apart."""

    def networks(self, data, ops):
        generators = [super(MGAN, self).networks(data, ops).generator for _ in range(self.generators)]
        discriminator = super().networks(data, ops).discriminator
        return Networks(
            generator=Mixture(generators, own=range(1)), discriminator=with_outputs(discriminator, 1 + self.generators)
        )

    def latents(self, count, generator):
        return numbered(super().latents(count, generator), self.generators, generator)

    def judged(self, networks, draw):
        """The scores of generated samples, and L_C of the generators that drew them."""
        latents = draw.latents()
        outputs = networks.discriminator(networks.generator(latents))
        return outputs[:, 0], F.cross_entropy(outputs[:, 1:], latents[:, -1].long())

    def discriminator_loss(self, networks, draw, ops):
        real, (fake, told) = self.scores(networks, draw.real()), self.judged(networks, draw)
        return minimax_discriminator(real, fake) + told, {"classifier": told, "D(x)": real.sigmoid().mean()}

    def generator_loss(self, networks, draw, ops):
        fake, told = self.judged(networks, draw)
        return non_saturating_generator(fake) + self.beta * told, {}

    def scores(self, networks, images, labels=None):
        return networks.discriminator(images)[:, 0]
