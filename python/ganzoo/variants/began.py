from dataclasses import dataclass
from functools import partial

import torch

from ganzoo.networks import autoencoder
from ganzoo.options import Count, NotNegative, Positive
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, Player, register


@register("began")
@dataclass
class BEGAN(Alternating):
    """BEGAN: an autoencoder as discriminator, and a controller that keeps both players in balance.

    L(v) = E |v − D(v)|, L_D = L(x) − k·L(G(z)), L_G = L(G(z)), k ← clip(k + λ(γL(x) − L(G(z))), 0, 1).

    M = L(x) + |γL(x) − L(G(z))| falls as the training converges. z ~ U(−1, 1), and the generator is a decoder like the discriminator's.
    k moves with the discriminator, by the images that it was shown. Points in the plane are copied by an autoencoder rather than learnt.

    Source: Berthelot, Schumm and Metz (2017), arXiv:1703.10717, section 3.4 and its network.
    """

    judges = ()  # its discriminator returns images
    width: Count = 8
    gamma: Positive = 0.5
    """γ, the diversity ratio L(G(z))/L(x) that k aims at; lower is sharper and less diverse."""
    k_rate: NotNegative = 1e-3
    """λ, the rate of k."""
    lr: Positive = 5e-4
    """Adam's learning rate. The paper's is 1e-4. On digits 1,500 steps of this ended with one digit alone."""

    def networks(self, data, ops):
        return Networks(
            generator=autoencoder.Decoder(self.latent, data.shape, self.width),
            discriminator=autoencoder.Autoencoder(data.shape, self.width, self.latent),
            k=torch.zeros(()),
        )

    def latents(self, count, generator):
        return 2 * torch.rand(count, self.latent, device=generator.device, generator=generator) - 1

    def error(self, networks, x):
        return (x - networks.discriminator(x)).abs().flatten(1).mean(1)

    def discriminator_loss(self, networks, draw, ops):
        real, fake = draw.real(), networks.generator(draw.latents())
        real, fake = (self.error(networks, x).mean() for x in (real, fake))
        figures = {"real": real, "fake": fake, "M": real + (self.gamma * real - fake).abs(), "k": networks.k.clone()}
        return real - networks.k * fake, figures

    def generator_loss(self, networks, draw, ops):
        return self.error(networks, networks.generator(draw.latents())).mean(), {}

    def balance(self, networks, figures):
        networks.k.add_(self.k_rate * (self.gamma * figures["real"] - figures["fake"])).clamp_(0, 1)

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam, after=self.balance),
            "generator": Player(("generator",), self.generator_loss, adam, ema=self.ema),
        }

    def scores(self, networks, images, labels=None):
        return -self.error(networks, images)

    def sample(self, networks, latents, labels=None):
        samples = networks.generator(latents)
        return samples.clamp(-1, 1) if samples.dim() == 4 else samples
