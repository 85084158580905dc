from dataclasses import dataclass
from functools import partial

from ganzoo.objectives import loss_sensitive
from ganzoo.options import NotNegative
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Player, register


@register("loss-sensitive")
@dataclass
class LossSensitiveGAN(Alternating):
    """Loss-Sensitive GAN: generated images are to have a larger loss than real ones, by a margin that is their distance.

    L_D = E max(0, Δ(x, G(z)) + L(x) − L(G(z))), L_G = E L(G(z)), Δ(x, y) = λ‖x − y‖₁/n over the n pixels,
    L the discriminator's output: low for real images. No gradient flows through Δ. Weight decay keeps L Lipschitz.

    Source: Qi (2017), arXiv:1701.06264, eqs. 5 to 7. It is not LSGAN, the least squares.
    """

    margin: NotNegative = 1.0
    """λ, what the distance between two images counts for."""
    weight_decay: NotNegative = 1e-3
    """Weight decay of the discriminator."""

    def discriminator_loss(self, networks, draw, ops):
        x, generated = draw.real(), networks.generator(draw.latents())
        real, fake = networks.discriminator(x), networks.discriminator(generated)
        distance = (x - generated).detach().abs().flatten(1).mean(1)
        return loss_sensitive(real, fake, self.margin * distance), {"real": real.mean(), "fake": fake.mean()}

    def generator_loss(self, networks, draw, ops):
        return networks.discriminator(networks.generator(draw.latents())).mean(), {}

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        decayed = partial(adam, weight_decay=self.weight_decay)
        return {
            "discriminator": Player(("discriminator",), self.discriminator_loss, decayed),
            "generator": Player(("generator",), self.generator_loss, adam, ema=self.ema),
        }

    def scores(self, networks, images, labels=None):
        return -networks.discriminator(images)
