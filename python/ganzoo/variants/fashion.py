from dataclasses import dataclass

from ganzoo.networks import fashion
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import Betas, Count, Decay, Positive
from ganzoo.variants.alternating import TwoRates
from ganzoo.variants.base import Networks, register


@register("fashion-gan")
@dataclass
class FashionGAN(TwoRates):
    """Fashion GAN: the GAN of a lecture on FashionMNIST's clothes, whose discriminator is held back by dropout and a low learning rate.

    L_D = ½ [−E log D(x) − E log(1 − D(G(z)))], L_G = −E log D(G(z)), D = σ(ℓ): binary cross entropy over both batches together.

    At 28×28 with the defaults the generator has 1,340,422 parameters, of which 258, the running statistics, are not trained, and the
    discriminator 1,113,345. `--data` takes the folder of FashionMNIST's IDX files. The networks end in a sigmoid there, and in raw scores
    here.

    Source: A. Torres Villalobos, Redes Generativas Adversarias, lecture notes; the original game of Goodfellow et al. (2014),
    arXiv:1406.2661.
    """

    usual_data = ("glyphs", "size=28")
    batch: Count = 128
    latent: Count = 128
    width: Count = 32
    """Filters of the discriminator's first layer; the generator has four times as many in each of its layers."""
    ema: Decay = 0.0
    lr: Positive = 1e-4
    """Adam's learning rate of the generator."""
    discriminator_lr: Positive = 1e-5
    """Adam's learning rate of the discriminator: lower, so that it does not come to dominate."""
    betas: Betas = (0.9, 0.999)
    """Adam's decay rates, of which the notes say nothing: those of Keras."""
    dropout: Decay = 0.4
    """Share of the discriminator's activations that are dropped."""

    def networks(self, data, ops):
        return Networks(
            generator=fashion.Generator(self.latent, data.shape, self.width),
            discriminator=fashion.Discriminator(data.shape, self.width, self.dropout),
        )

    def discriminator_loss(self, networks, draw, ops):
        real, fake = networks.discriminator(draw.real()), networks.discriminator(networks.generator(draw.latents()))
        return minimax_discriminator(real, fake) / 2, {"D(x)": real.sigmoid().mean(), "D(G(z))": fake.sigmoid().mean()}

    def generator_loss(self, networks, draw, ops):
        return non_saturating_generator(networks.discriminator(networks.generator(draw.latents()))), {}
