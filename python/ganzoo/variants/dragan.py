from dataclasses import dataclass

from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import NotNegative, Positive
from ganzoo.training import distributed
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import register


@register("dragan")
@dataclass
class DRAGAN(Alternating):
    """DRAGAN: the original game, and a penalty on the discriminator's gradient around real images.

    L_D = −E log D(x) − E log(1 − D(G(z))) + λ E (‖∇ℓ(x̂)‖ − 1)², L_G = −E log D(G(z)), D = σ(ℓ),
    x̂ = x + (1 − ε)·κ·s·u with s the standard deviation of the batch's pixels, u ~ U(0, 1) for each of them and one ε ~ U(0, 1) per
    sample.

    Source: Kodali et al. (2017), arXiv:1705.07215, algorithm 1; x̂ as in the authors' code.
    """

    batch_norm = False  # the penalty is on each image's own gradient
    penalty_weight: NotNegative = 10.0
    """λ, the weight of the penalty."""
    noise: NotNegative = 0.5
    """κ, the perturbation in standard deviations."""
    lr: Positive = 2e-3
    """Adam's learning rate. At the 2e-4 of DCGAN the penalty alone occupies the first 1,500 steps on digits."""

    def perturbed(self, real, uniform):
        mean = distributed.mean(real.mean())
        spread = distributed.mean((real - mean).square().mean()).sqrt()
        return real + self.noise * spread * uniform

    def discriminator_loss(self, networks, draw, ops):
        real, fake = draw.real(), networks.generator(draw.latents())
        loss = minimax_discriminator(networks.discriminator(real), networks.discriminator(fake))
        around = self.perturbed(real, draw.uniform(*real.shape[1:]))
        penalty = ops.gradient_penalty(
            networks.discriminator, real, around, eps=draw.uniform(), weight=self.penalty_weight
        )
        return loss + penalty, {"gradient_penalty": penalty}

    def generator_loss(self, networks, draw, ops):
        return non_saturating_generator(networks.discriminator(networks.generator(draw.latents()))), {}
