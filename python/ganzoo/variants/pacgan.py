from dataclasses import dataclass, replace

from ganzoo.objectives import minimax_discriminator
from ganzoo.options import Count
from ganzoo.variants.base import Networks, register
from ganzoo.variants.gan import GAN, GENERATOR_LOSSES


@register("pacgan")
@dataclass
class PacGAN(GAN):
    """PacGAN: the discriminator judges packs of m samples, in which a lack of variety shows.

    L_D = −E log D(x₁ … x_m) − E log(1 − D(G(z₁) … G(z_m))), L_G = −E log D(G(z₁) … G(z_m)), the samples of a pack independent, all real
    or all generated, and concatenated on their channels. Only the discriminator's input becomes wider; a batch is one of packs.

    Source: Lin, Khetan, Fanti and Oh (2018), arXiv:1712.04086, section 2; the authors' code updates both players at once.
    """

    simultaneous: bool = True
    """Both players update at once, each from where the other stood."""
    pack_size: Count = 2
    """m, the samples that are judged together."""

    def networks(self, data, ops):
        channels, *size = data.shape
        packs = replace(data, shape=(self.pack_size * channels, *size))
        return Networks(
            generator=super().networks(data, ops).generator, discriminator=super().networks(packs, ops).discriminator
        )

    def pack(self, x):
        """(m·N, C, ...) to (N, m·C, ...), as many whole packs as there are."""
        return x[: len(x) // self.pack_size * self.pack_size].unflatten(0, (-1, self.pack_size)).flatten(1, 2)

    def scores(self, networks, images, labels=None):
        return networks.discriminator(self.pack(images))

    def judged(self, networks, draw):
        """The scores of generated packs."""
        return self.scores(networks, networks.generator(draw.latents(self.pack_size * self.batch)))

    def discriminator_loss(self, networks, draw, ops):
        real = self.scores(networks, draw.real(count=self.pack_size * self.batch))
        fake = self.judged(networks, draw)
        return minimax_discriminator(real, fake), {"D(x)": real.sigmoid().mean(), "D(G(z))": fake.sigmoid().mean()}

    def generator_loss(self, networks, draw, ops):
        return GENERATOR_LOSSES[self.game](self.judged(networks, draw)), {}
