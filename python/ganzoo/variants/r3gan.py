from dataclasses import dataclass

from ganzoo.networks import r3gan, toy
from ganzoo.objectives import relativistic_discriminator, relativistic_generator
from ganzoo.options import Betas, NotNegative, Positive
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register


@register("r3gan")
@dataclass
class R3GAN(Alternating):
    """R3GAN: the relativistic pairing game with both zero-centred penalties, on residual networks without normalisation.

    L_D = E softplus(ℓ(G(z)) − ℓ(x)) + γ/2 E ‖∇ℓ(x)‖² + γ/2 E ‖∇ℓ(G(z))‖², L_G = E softplus(ℓ(x) − ℓ(G(z))).

    Source: Huang, Gokaslan, Kuleshov and Tompkin (2024), arXiv:2501.05441, eqs. 2 to 4 and configuration E. The paper anneals γ,
    learning rate, β₂ and EMA over its first images; here they stand still.
    """

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

    def sample(self, networks, latents, labels=None):
        samples = networks.generator(latents)
        return samples.clamp(-1, 1) if samples.dim() == 4 else samples
