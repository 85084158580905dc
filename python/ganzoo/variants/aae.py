from dataclasses import dataclass
from functools import partial

from ganzoo.networks import autoencoder, dcgan, toy
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import Count, Decay
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, Player, register


@register("aae")
@dataclass
class AAE(Alternating):
    """AAE: an autoencoder whose codes a discriminator brings to the prior, so that its decoder is a generator.

    L_AE = E ‖x − G(E(x))‖²/n over the n pixels, L_D = −E log D(z) − E log(1 − D(E(x))), L_E = −E log D(E(x)).

    D judges latents, never images: those of the prior are its real ones, and the encoder is the generator of that game.

    Source: Makhzani, Shlens, Jaitly, Goodfellow and Frey (2015), arXiv:1511.05644, section 2, with its deterministic encoder.
    """

    judges, adversary = (), ""  # it does not judge images
    samplers = ("generator", "encoder")
    latent: Count = 8
    """Dimensions of the latent z ~ N(0, I). More of them than the data vary in leave holes that no image is encoded to."""
    ema: Decay = 0.0
    """Decay per step of the running average of autoencoder and generator; 0 for none. Averages of an encoder and of a decoder that turn
    together no longer fit each other: on a ring of points the error of reconstructions rises from 0.01 to 0.37 with 0.99."""

    def networks(self, data, ops):
        family = toy if data.points else dcgan
        return Networks(
            generator=family.Generator(self.latent, data.shape, self.width),
            encoder=autoencoder.Encoder(data.shape, self.width, self.latent),
            discriminator=toy.Discriminator((self.latent,), self.width),
        )

    def autoencoder_loss(self, networks, draw, ops):
        x = draw.real()
        return (x - networks.generator(networks.encoder(x))).square().mean(), {}

    def discriminator_loss(self, networks, draw, ops):
        real, fake = networks.discriminator(draw.latents()), networks.discriminator(networks.encoder(draw.real()))
        return minimax_discriminator(real, fake), {"D(z)": real.sigmoid().mean(), "D(E(x))": fake.sigmoid().mean()}

    def encoder_loss(self, networks, draw, ops):
        return non_saturating_generator(networks.discriminator(networks.encoder(draw.real()))), {}

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "autoencoder": Player(("generator", "encoder"), self.autoencoder_loss, adam, ema=self.ema),
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam),
            "encoder": Player(("encoder",), self.encoder_loss, adam),
        }

    def schedule(self, step):
        return ["autoencoder", "discriminator", "encoder"]
