from dataclasses import dataclass

from ganzoo.objectives import wasserstein_critic
from ganzoo.variants.base import register
from ganzoo.variants.wgan_gp import WGANGP


@register("wgan-lp")
@dataclass
class WGANLP(WGANGP):
    """WGAN-LP: WGAN-GP whose penalty leaves gradients below norm 1 alone, as the Lipschitz constraint does.

    L_C = E f(G(z)) − E f(x) + λ E max(0, ‖∇f(x̂)‖ − 1)², L_G = −E f(G(z)),
    x̂ = εx + (1 − ε)G(z) with one ε ~ U(0, 1) per sample.

    Source: Petzka, Fischer and Lukovnikov (2018), arXiv:1709.08894, eq. 8.
    """

    def critic_loss(self, networks, draw, ops):
        real, fake = draw.real(), networks.generator(draw.latents())
        wasserstein = wasserstein_critic(networks.critic(real), networks.critic(fake))
        penalty = ops.gradient_penalty(
            networks.critic, real, fake, eps=draw.uniform(), weight=self.penalty_weight, one_sided=True
        )
        return wasserstein + penalty, {"wasserstein_estimate": -wasserstein, "gradient_penalty": penalty}
