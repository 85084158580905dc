from dataclasses import dataclass
from functools import partial

from ganzoo.networks import autoencoder
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import NotNegative
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, Player, register


@dataclass
class ModeRegularized(Alternating):
    """What both games of the paper have: an encoder E, and the terms that it and the generator learn from together.

    Q = E [λ₁ d(x, G(E(x))) − λ₂ log D(G(E(x)))], d the squared distance per pixel.
    """

    samplers = ("generator", "encoder")
    reconstruction_weight: NotNegative = 0.2
    """λ₁, the weight of the reconstruction."""
    mode_weight: NotNegative = 0.4
    """λ₂, the weight of fooling the discriminator with reconstructions."""

    def networks(self, data, ops):
        networks = super().networks(data, ops)
        networks.encoder = autoencoder.Encoder(data.shape, self.width, self.latent)
        return networks

    def rebuilt(self, networks, x):
        return networks.generator(networks.encoder(x))

    def mode_loss(self, x, rebuilt, discriminator):
        """Q and its two terms. −log D, so that reconstructions are rewarded for being taken for real."""
        distance = (x - rebuilt).square().flatten(1).mean(1).mean()
        missed = non_saturating_generator(discriminator(rebuilt))
        loss = self.reconstruction_weight * distance + self.mode_weight * missed
        return loss, {"reconstruction": distance, "mode": missed}


@register("reg-gan")
@dataclass
class RegGAN(ModeRegularized):
    """Reg-GAN: a GAN whose generator also rebuilds real images from an encoder's latents, so that no mode is without gradient.

    L_D = −E log D(x) − E log(1 − D(G(z))), L_G = −E log D(G(z)) + Q, L_E = Q,
    Q = E [λ₁ d(x, G(E(x))) − λ₂ log D(G(E(x)))].

    The sign of λ₂'s term rewards G(E(x)) for fooling D, as the paper's text and its algorithm have it; texts that print + λ₂ log D in a loss
    that is minimised would punish it.

    Source: Che, Li, Jacob, Bengio and Li (2017), arXiv:1612.02136, section 3.2.
    """

    def discriminator_loss(self, networks, draw, ops):
        real, fake = networks.discriminator(draw.real()), networks.discriminator(networks.generator(draw.latents()))
        return minimax_discriminator(real, fake), {"D(x)": real.sigmoid().mean(), "D(G(z))": fake.sigmoid().mean()}

    def generator_loss(self, networks, draw, ops):
        x, fake = draw.real(), networks.generator(draw.latents())
        fooling = non_saturating_generator(networks.discriminator(fake))
        regularizer, terms = self.mode_loss(x, self.rebuilt(networks, x), networks.discriminator)
        return fooling + regularizer, terms

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam),
            "generator": Player(("generator", "encoder"), self.generator_loss, adam, ema=self.ema),
        }


@register("mdgan")
@dataclass
class MDGAN(ModeRegularized):
    """MDGAN: reconstructions are brought to the data's manifold first, then generated images to the reconstructions.

    manifold step   L_D₁ = −E log D₁(x) − E log(1 − D₁(G(E(x)))), L_GE = E [λ₁ d(x, G(E(x))) − λ₂ log D₁(G(E(x)))]
    diffusion step  L_D₂ = −E log D₂(G(E(x))) − E log(1 − D₂(G(z))), L_G = −E log D₂(G(z))

    Source: Che, Li, Jacob, Bengio and Li (2017), arXiv:1612.02136, section 3.3 and the training procedure of figure 2.
    """

    judges = ("manifold", "diffusion")
    adversary = ""  # of two, neither judges generated images against real ones

    def networks(self, data, ops):
        networks, second = super().networks(data, ops), super().networks(data, ops)
        return Networks(
            generator=networks.generator,
            encoder=networks.encoder,
            manifold=networks.discriminator,
            diffusion=second.discriminator,
        )

    def manifold_loss(self, networks, draw, ops):
        x = draw.real()
        return minimax_discriminator(networks.manifold(x), networks.manifold(self.rebuilt(networks, x))), {}

    def autoencoder_loss(self, networks, draw, ops):
        x = draw.real()
        return self.mode_loss(x, self.rebuilt(networks, x), networks.manifold)

    def diffusion_loss(self, networks, draw, ops):
        rebuilt, fake = self.rebuilt(networks, draw.real()), networks.generator(draw.latents())
        return minimax_discriminator(networks.diffusion(rebuilt), networks.diffusion(fake)), {}

    def generator_loss(self, networks, draw, ops):
        return non_saturating_generator(networks.diffusion(networks.generator(draw.latents()))), {}

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "manifold": Player(("manifold",), self.manifold_loss, adam),
            "autoencoder": Player(("generator", "encoder"), self.autoencoder_loss, adam),
            "diffusion": Player(("diffusion",), self.diffusion_loss, adam),
            "generator": Player(("generator",), self.generator_loss, adam, ema=self.ema),
        }

    def schedule(self, step):
        return ["manifold", "autoencoder", "diffusion", "generator"]
