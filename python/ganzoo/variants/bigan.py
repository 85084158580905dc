from dataclasses import dataclass
from functools import partial

import torch

from ganzoo.networks import autoencoder, bigan, dcgan, pacgan
from ganzoo.objectives import minimax_discriminator
from ganzoo.options import Count, Positive
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, Player, register


@register("bigan")
@dataclass
class BiGAN(Alternating):
    """BiGAN, or ALI: an encoder learns to invert the generator, as the discriminator judges images together with their latents.

    L_D = −E log D(x, E(x)) − E log(1 − D(G(z), z)), L_GE = −E log(1 − D(x, E(x))) − E log D(G(z), z).

    Both terms of L_GE are needed: the encoder learns from the first alone, the generator from the second. At the optimum E and G are each
    other's inverse, though no loss compares an image with its reconstruction.

    Source: Donahue, Krähenbühl and Darrell (2017), arXiv:1605.09782; Dumoulin et al. (2017), ALI, arXiv:1606.00704, algorithm 1, whose
    players move at once.
    """

    judges = ()
    adversary = ""  # it judges pairs, and of a generated image's latent knows the one that it was drawn from
    samplers = ("generator", "encoder")
    latent: Count = 8
    """Dimensions of the latent z ~ N(0, I). With 64 the reconstructions of 1,500 steps on digits were no better than other digits."""
    lr: Positive = 1e-3
    """Adam's learning rate."""
    stochastic: bool = False
    """The encoder takes noise beside the image, as ALI's; BiGAN's is a function of the image alone."""

    def networks(self, data, ops):
        family, encoder = (pacgan, pacgan.Encoder) if data.points else (dcgan, autoencoder.Encoder)
        channels, *size = data.shape
        return Networks(
            generator=family.Generator(self.latent, data.shape, self.width),
            encoder=encoder(((1 + self.stochastic) * channels, *size), self.width, self.latent),
            discriminator=bigan.Discriminator(data.shape, self.latent, self.width),
        )

    def encode(self, networks, images):
        return self.inferred(networks, images, torch.zeros_like(images))

    def inferred(self, networks, x, noise):
        return networks.encoder(torch.cat([x, noise], 1) if self.stochastic else x)

    def judged(self, networks, draw):
        """The scores of pairs (x, E(x)) and of pairs (G(z), z)."""
        x, z = draw.real(), draw.latents()
        latents = self.inferred(networks, x, draw.normal(*x.shape[1:]))
        return networks.discriminator(x, latents), networks.discriminator(networks.generator(z), z)

    def discriminator_loss(self, networks, draw, ops):
        real, fake = self.judged(networks, draw)
        return minimax_discriminator(real, fake), {"real": real.sigmoid().mean(), "fake": fake.sigmoid().mean()}

    def generator_loss(self, networks, draw, ops):
        real, fake = self.judged(networks, draw)
        return minimax_discriminator(fake, real), {}

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam),
            "generator": Player(("generator", "encoder"), self.generator_loss, adam, ema=self.ema),
        }

    def schedule(self, step):
        return [("discriminator", "generator")]
