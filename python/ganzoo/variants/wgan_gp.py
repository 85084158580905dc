from dataclasses import dataclass
from functools import partial

from ganzoo.networks import dcgan, toy
from ganzoo.objectives import wasserstein_critic, wasserstein_generator
from ganzoo.options import Betas, Count, Decay, Positive
from ganzoo.variants.base import Networks, Player, Variant, register


@register("wgan-gp")
@dataclass
class WGANGP(Variant):
    """WGAN-GP: Wasserstein GAN with gradient penalty.

    L_C = E f(G(z)) − E f(x) + λ E (‖∇f(x̂)‖ − 1)², L_G = −E f(G(z)),
    x̂ = εx + (1 − ε)G(z) with one ε ~ U(0, 1) per sample.

    Source: Gulrajani et al. (2017), arXiv:1704.00028, algorithm 1.
    """

    steps: Count = 1500
    ema: Decay = 0.99
    critic_steps: Count = 5
    """Critic updates per generator step."""
    penalty_weight: Positive = 10.0
    """λ, the weight of the gradient penalty."""
    lr: Positive = 2e-3
    """Adam's learning rate. The paper's 1e-4 is for photographs and 200,000 steps; this is for 1,500 on digits."""
    betas: Betas = (0.0, 0.9)
    """Adam's decay rates."""

    def networks(self, data, ops):
        if data.points:
            return Networks(
                generator=toy.Generator(self.latent, data.shape, self.width),
                critic=toy.Discriminator(data.shape, self.width),
            )
        # The penalty is on each image's own gradient, so the critic has no batch norm.
        return Networks(
            generator=dcgan.Generator(self.latent, data.shape, self.width),
            critic=dcgan.Discriminator(data.shape, self.width, batch_norm=False),
        )

    def critic_loss(self, networks, draw, ops):
        real, fake = draw.real(), networks.generator(draw.latents())
        wasserstein = wasserstein_critic(networks.critic(real), networks.critic(fake))
        penalty = ops.gradient_penalty(networks.critic, real, fake, eps=draw.uniform(), weight=self.penalty_weight)
        return wasserstein + penalty, {"wasserstein_estimate": -wasserstein, "gradient_penalty": penalty}

    def generator_loss(self, networks, draw, ops):
        return wasserstein_generator(networks.critic(networks.generator(draw.latents()))), {}

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "critic": Player(("critic",), self.critic_loss, adam),
            "generator": Player(("generator",), self.generator_loss, adam, ema=self.ema),
        }

    def schedule(self, step):
        return ["critic"] * self.critic_steps + ["generator"]
