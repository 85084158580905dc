from dataclasses import dataclass

from ganzoo.networks import conditional
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register


@dataclass
class Conditional(Alternating):
    """What conditional games have in common: a generator of latents and labels."""

    conditional = True

    def generator(self, data):
        return conditional.generator(self.latent, data.shape, self.width, data.classes)


@register("cgan")
@dataclass
class CGAN(Conditional):
    """CGAN: the label goes into both networks, so that a class can be asked for.

    L_D = −E log D(x|y) − E log(1 − D(G(z|y)|y)), L_G = −E log D(G(z|y)|y).

    D judges whether image and label belong together: a dense layer makes an image plane of y that is concatenated with the image.
    The generator's labels are drawn from the data, or classes that are rare there would be told by their frequency.

    Source: Mirza and Osindero (2014), arXiv:1411.1784, section 3.2.
    """

    def networks(self, data, ops):
        return Networks(
            generator=self.generator(data),
            discriminator=conditional.discriminator(data.shape, self.width, data.classes),
        )

    def discriminator_loss(self, networks, draw, ops):
        batch = draw.batch()
        x, y = batch["image"], batch["label"]
        real = networks.discriminator(x, y)
        fake = networks.discriminator(networks.generator(draw.latents(), y), y)
        return minimax_discriminator(real, fake), {
            "D(x|y)": real.sigmoid().mean(),
            "D(G(z|y)|y)": fake.sigmoid().mean(),
        }

    def generator_loss(self, networks, draw, ops):
        y = draw.batch()["label"]
        fake = networks.discriminator(networks.generator(draw.latents(), y), y)
        return non_saturating_generator(fake), {}
