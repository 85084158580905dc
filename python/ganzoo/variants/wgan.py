from dataclasses import dataclass
from functools import partial

from ganzoo.networks import dcgan, toy
from ganzoo.objectives import wasserstein_critic, wasserstein_generator
from ganzoo.options import Count, CountOrZero, Decay, Positive
from ganzoo.variants.base import Networks, Player, Variant, register


@register("wgan")
@dataclass
class WGAN(Variant):
    """WGAN: Wasserstein GAN with weight clipping.

    L_C = E f(G(z)) − E f(x), every weight of f clipped to [−c, c] after each update; L_G = −E f(G(z)).

    Source: Arjovsky, Chintala and Bottou (2017), arXiv:1701.07875, algorithm 1. The long critic phases are those
    of the authors' code.
    """

    ema: Decay = 0.99
    critic_steps: Count = 5
    """Critic updates per generator step."""
    clip: Positive = 0.01
    """c, the bound on the critic's weights."""
    lr: Positive = 5e-4
    """RMSprop's learning rate. The paper's 5e-5 is for photographs and 200,000 steps; this is for 2,000 on digits."""
    long_critic_steps: Count = 100
    """Critic updates of a generator step in a long critic phase."""
    long_first: CountOrZero = 25
    """The first so many generator steps have a long critic phase."""
    long_every: Count = 500
    """Every so many generator steps there is a long critic phase."""

    def networks(self, data, ops):
        family = toy if data.points else dcgan
        return Networks(
            generator=family.Generator(self.latent, data.shape, self.width),
            critic=family.Discriminator(data.shape, self.width),
        )

    def critic_loss(self, networks, draw, ops):
        real, fake = draw.real(), networks.generator(draw.latents())
        wasserstein = wasserstein_critic(networks.critic(real), networks.critic(fake))
        return wasserstein, {"wasserstein_estimate": -wasserstein}

    def generator_loss(self, networks, draw, ops):
        return wasserstein_generator(networks.critic(networks.generator(draw.latents()))), {}

    def players(self, ops):
        rmsprop = partial(ops.RMSprop, lr=self.lr)
        return {
            "critic": Player(("critic",), self.critic_loss, partial(rmsprop, clip=self.clip)),
            "generator": Player(("generator",), self.generator_loss, rmsprop, ema=self.ema),
        }

    def schedule(self, step):
        long = step < self.long_first or step % self.long_every == 0
        return ["critic"] * (self.long_critic_steps if long else self.critic_steps) + ["generator"]
