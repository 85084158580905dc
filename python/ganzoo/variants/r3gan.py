from dataclasses import dataclass
from functools import partial

from ganzoo.networks import r3gan, toy
from ganzoo.objectives import relativistic_discriminator, relativistic_generator
from ganzoo.options import Betas, Count, Decay, NotNegative, Positive
from ganzoo.variants.base import Networks, Player, Variant, register


@register("r3gan")
@dataclass
class R3GAN(Variant):
    """R3GAN: the relativistic pairing game with both zero-centred penalties, on residual networks without normalisation.

    L_D = E softplus(ℓ(G(z)) − ℓ(x)) + γ/2 E ‖∇ℓ(x)‖² + γ/2 E ‖∇ℓ(G(z))‖², L_G = E softplus(ℓ(x) − ℓ(G(z))).

    Source: Huang, Gokaslan, Kuleshov and Tompkin (2024), arXiv:2501.05441, eqs. 2 to 4 and configuration E. The paper anneals γ,
    learning rate, β₂ and EMA over its first images; here they stand still.
    """

    adversary = "discriminator"
    steps: Count = 3000
    ema: Decay = 0.99
    gamma: NotNegative = 1.0
    """γ, the weight of R1 and of R2."""
    lr: Positive = 1e-3
    """Adam's learning rate. The paper's 2e-4 is for photographs and millions of images; this is for 3,000 steps on digits."""
    betas: Betas = (0.0, 0.99)
    """Adam's decay rates."""

    def networks(self, data, ops):
        family = toy if data.points else r3gan
        return Networks(
            generator=family.Generator(self.latent, data.shape, self.width),
            discriminator=family.Discriminator(data.shape, self.width),
        )

    def discriminator_loss(self, networks, draw, ops):
        real, r1 = ops.regularized_scores(networks.discriminator, draw.real(), self.gamma)
        fake, r2 = ops.regularized_scores(networks.discriminator, networks.generator(draw.latents()), self.gamma)
        return relativistic_discriminator(real, fake) + r1 + r2, {"margin": (real - fake).mean(), "R1": r1, "R2": r2}

    def generator_loss(self, networks, draw, ops):
        real, fake = networks.discriminator(draw.real()), networks.discriminator(networks.generator(draw.latents()))
        return relativistic_generator(real, fake), {}

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam),
            "generator": Player(("generator",), self.generator_loss, adam, ema=self.ema),
        }

    def schedule(self, step):
        return ["discriminator", "generator"]

    def sample(self, networks, latents, labels=None):
        samples = networks.generator(latents)
        return samples.clamp(-1, 1) if samples.dim() == 4 else samples
