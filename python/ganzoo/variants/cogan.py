from dataclasses import dataclass

import torch

from ganzoo.networks import cogan
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import Count, Positive
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register


@register("cogan")
@dataclass
class CoGAN(Alternating):
    """CoGAN: a GAN for each of two domains, which share layers, and so draw pairs without having seen any.

    L_D = Σ −E log D_d(x_d) − E log(1 − D_d(G_d(z))), L_G = Σ −E log D_d(G_d(z)) over the domains d = a, b, with the same z.

    The generators share their first layers, which decide on what is drawn, the discriminators their last, which judge it. Were the layers
    next to the images shared instead, nothing would bind what both draw of a z. Samples are the two images of a z side by side.

    Source: Liu and Tuzel (2016), arXiv:1606.07536, section 3.
    """

    judges, adversary = (), ""  # what it judges are pairs
    usual_data = ("glyphs", "size=16")
    form = "unpaired"
    own: Count = 2
    """Levels of strided convolutions next to the images that either domain has for itself; the others are shared. With 1, glyphs of 1,500
    steps were nearly the same in both fonts."""
    lr: Positive = 5e-4
    """Adam's learning rate."""

    def networks(self, data, ops):
        return Networks(
            generator=cogan.Generator(self.latent, data.shape, self.width, self.own),
            discriminator=cogan.Discriminator(data.shape, self.width, self.own),
        )

    def discriminator_loss(self, networks, draw, ops):
        real = networks.discriminator(draw.real("a"), draw.real("b"))
        fake = networks.discriminator(*networks.generator(draw.latents()))
        losses = dict(zip("ab", map(minimax_discriminator, real, fake)))
        return sum(losses.values()), losses

    def generator_loss(self, networks, draw, ops):
        a, b = map(non_saturating_generator, networks.discriminator(*networks.generator(draw.latents())))
        return a + b, {}

    def sample(self, networks, latents, labels=None):
        return torch.cat(networks.generator(latents), 3)
