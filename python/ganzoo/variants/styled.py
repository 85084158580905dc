from dataclasses import dataclass
from functools import partial

import torch

from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import Betas, Count, Decay, NotNegative, Positive, Share
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Player, Regularizer


@dataclass
class Styled(Alternating):
    """What style-based GANs have in common: styles w = f(z) of a mapping network, mixed between two latents at a layer in training and
    truncated towards their mean for samples; non-saturating losses.

    A subclass's generator has `mapping`, and `synthesis(w, noise)` of w (N, layers, latent) and noise (N, pixels), for its `layers` and
    `pixels`; its networks have a buffer `w_mean`.

    Source: Karras et al. (2019), arXiv:1812.04948, sections 2, 3.1 and appendix B.
    """

    samplers = ("generator", "w_mean")
    steps: Count = 1500
    batch: Count = 32
    depth: Count = 2
    """Layers of the mapping network, of which the papers before StyleGAN3 have 8."""
    mixing: Share = 0.9
    """Share of the images with two styles in training."""
    w_decay: Decay = 0.995
    """Decay of w̄, the running mean of w, per generator update."""
    truncation: Share = 1.0
    """ψ: samples are drawn at w̄ + ψ(w − w̄). Lower is less diverse, and 1 is as trained."""

    def styles(self, networks, draw, *condition):
        """w (N, layers, latent), of which a share changes to another latent's from a random layer on, the second to the last; both of the
        same condition where there is one."""
        generator = networks.generator
        w, other = (generator.mapping(draw.latents(), *condition) for _ in range(2))
        crossover = 1 + draw.integers(generator.layers - 1)
        crossover = torch.where(draw.uniform() < self.mixing, crossover, generator.layers)
        before = torch.arange(generator.layers, device=w.device) < crossover[:, None]
        return torch.where(before[:, :, None], w[:, None], other[:, None])

    def generated(self, networks, draw, *condition):
        """Images, and the means that `follow` wants of them."""
        w = self.styles(networks, draw, *condition)
        images = networks.generator.synthesis(w, draw.normal(networks.generator.pixels))
        return images, {"w": self.mean_style(networks, w)}

    def mean_style(self, networks, w):
        return w[:, 0].detach().to(networks.w_mean).mean(0)

    def generator_loss(self, networks, draw, ops):
        fake, means = self.generated(networks, draw)
        return non_saturating_generator(networks.discriminator(fake)), means

    def follow(self, networks, figures):
        """After the generator's update: w̄ follows the mean of w over the whole batch, which is no figure to plot."""
        networks.w_mean.lerp_(figures.pop("w"), 1 - self.w_decay)

    def sample(self, networks, latents, labels=None):
        w = networks.w_mean.lerp(networks.generator.mapping(latents), self.truncation)
        return networks.generator.synthesis(w).clamp(-1, 1)


@dataclass
class LazyR1(Styled):
    """A style-based GAN whose discriminator has R1 at every `r1_every`-th update only, so many times as large, in one backward with its loss.

    Adam's lr and betas become c·lr and βᶜ with c = k/(k + 1), for a term at every k-th update, to be those of k updates in k + 1.

    Source: Karras et al. (2020), arXiv:1912.04958, section 3.1 and appendix B.
    """

    lr: Positive = 1e-2
    """Adam's learning rate, before the correction for lazy terms. The papers' 2e-3 is for millions of images; this is for 50,000 digits."""
    betas: Betas = (0.0, 0.99)
    """Adam's decay rates, before the same correction."""
    gamma: NotNegative = 1.0
    """γ, the weight of R1. The papers' are for photographs: 10 at 1024×1024, and less for smaller ones."""
    r1_every: Count = 16
    """Discriminator updates from one R1 to the next."""

    def discriminator_loss(self, networks, draw, ops):
        real, fake = draw.real(), self.generated(networks, draw)[0]
        return minimax_discriminator(networks.discriminator(real), networks.discriminator(fake)), {}

    def discriminator_loss_and_r1(self, networks, draw, ops):
        real, r1 = ops.regularized_scores(networks.discriminator, draw.real(), self.r1_every * self.gamma)
        fake = networks.discriminator(self.generated(networks, draw)[0])
        return minimax_discriminator(real, fake) + r1, {"r1": r1 / self.r1_every}

    def adam(self, ops, every=None):
        """For a player with a term at every `every`-th update, or with none."""
        c = every / (every + 1) if every else 1.0
        return partial(ops.Adam, lr=self.lr * c, betas=tuple(beta**c for beta in self.betas))

    def players(self, ops):
        adam = self.adam(ops, self.r1_every)
        r1 = Regularizer(self.discriminator_loss_and_r1, every=self.r1_every, joint=True)
        return {
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam, regularizers={"r1": r1}),
            "generator": self.generator_player(ops),
        }
