from dataclasses import dataclass
from functools import partial

from ganzoo.networks import dcgan, features, toy
from ganzoo.objectives import non_saturating_generator
from ganzoo.options import NotNegative
from ganzoo.variants.base import Player, register
from ganzoo.variants.vae import Variational


@register("vae-gan")
@dataclass
class VAEGAN(Variational):
    """VAE/GAN: a VAE whose reconstruction error is taken in the features of a discriminator, which is trained as in a GAN.

    R = ½ E ‖D_l(x) − D_l(G(z_x))‖², z_x ~ q(z|x), D_l the input of D's last layer, and z ~ N(0, I):

    L_E = KL(q(z|x) ‖ N(0, I)) + R
    L_G = γ R − E log D(G(z_x)) − E log D(G(z))
    L_D = −E log D(x) − E log(1 − D(G(z_x))) − E log(1 − D(G(z)))

    The encoder hears nothing of D's judgement, D nothing of R, and γ is the generator's alone. The paper's generator minimises log(1 − D).

    Source: Larsen, Sønderby, Larochelle and Winther (2016), arXiv:1512.09300, algorithm 1, whose players move at once.
    """

    judges = ()  # its discriminator's layers are asked one by one
    gamma: NotNegative = 1.0
    """γ, the weight of the reconstruction against the game in the generator's loss."""

    def networks(self, data, ops):
        networks, family = super().networks(data, ops), toy if data.points else dcgan
        networks.discriminator = family.Discriminator(data.shape, self.width)
        return networks

    def rebuilt(self, networks, draw):
        """Images, their reconstructions, and the divergence of q(z|x) from the prior."""
        x = draw.real()
        z, divergence = self.inferred(networks, x, draw.normal(self.latent))
        return x, networks.generator(z), divergence

    def error(self, networks, x, rebuilt):
        real, fake = (features(networks.discriminator, images) for images in (x, rebuilt))
        return (real - fake).square().sum(1).mean() / 2

    def encoder_loss(self, networks, draw, ops):
        x, rebuilt, divergence = self.rebuilt(networks, draw)
        error = self.error(networks, x, rebuilt)
        return divergence + error, {"error": error, "KL": divergence}

    def generator_loss(self, networks, draw, ops):
        x, rebuilt, _ = self.rebuilt(networks, draw)
        fakes = rebuilt, networks.generator(draw.latents())
        error = self.error(networks, x, rebuilt)
        return self.gamma * error + sum(non_saturating_generator(networks.discriminator(fake)) for fake in fakes), {}

    def discriminator_loss(self, networks, draw, ops):
        x, rebuilt, _ = self.rebuilt(networks, draw)
        real = networks.discriminator(x)
        fakes = [networks.discriminator(images) for images in (rebuilt, networks.generator(draw.latents()))]
        loss = non_saturating_generator(real) + sum(non_saturating_generator(-fake) for fake in fakes)
        return loss, {"D(x)": real.sigmoid().mean(), "D(G(z))": fakes[1].sigmoid().mean()}

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "encoder": Player(("encoder",), self.encoder_loss, adam, ema=self.ema),
            "generator": Player(("generator",), self.generator_loss, adam, ema=self.ema),
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam),
        }

    def schedule(self, step):
        return [("encoder", "generator", "discriminator")]
