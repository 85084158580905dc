from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from ganzoo.networks import doublings, stylegan
from ganzoo.objectives import minimax_discriminator
from ganzoo.options import Betas, Count, Decay, NotNegative, Positive
from ganzoo.variants.base import Networks, Player, register
from ganzoo.variants.styled import Styled


@register("stylegan")
@dataclass
class StyleGAN(Styled):
    """StyleGAN: adaptive instance normalisation by styles, noise in every layer, a constant to start from; both networks grow.

    L_D = E softplus(−ℓ(x)) + E softplus(ℓ(G(z))) + γ/2 E ‖∇ℓ(x)‖², L_G = E softplus(−ℓ(G(z))).

    A phase trains at 4·2^phase pixels; in its first `fade_steps` the new size's share α of what G shows and of what D sees grows from 0 to
    1, and real images are blended alike. The paper starts at 8×8; here it is 4×4.

    Source: Karras, Laine and Aila (2019), arXiv:1812.04948, sections 2 and 3 and appendix C; growing: Karras et al. (2018),
    arXiv:1710.10196, section 2.
    """

    top = 0  # doublings from 4×4 to the data's size
    ema: Decay = 0.99
    lr: Positive = 1e-2
    """Adam's learning rate. The paper's 1e-3 to 3e-3 is for millions of images; this is for 50,000 digits."""
    betas: Betas = (0.0, 0.99)
    """Adam's decay rates."""
    gamma: NotNegative = 1.0
    """γ, the weight of R1. The paper's 10 is for 1024×1024."""
    phase_steps: Count = 300
    """Generator steps at each size but the last, which has the rest."""
    fade_steps: Count = 200
    """Steps in which a new size fades in."""

    def phase_at(self, step):
        return min(step // self.phase_steps, self.top)

    def networks(self, data, ops):
        self.top = doublings(data.shape)
        sizes = 4 << self.phase, data.shape[1], self.width
        return Networks(
            generator=stylegan.Generator(self.latent, data.shape[0], *sizes, self.depth, ops),
            discriminator=stylegan.Discriminator(data.shape[0], *sizes, ops),
            w_mean=torch.zeros(self.latent),
        )

    def enter(self, networks, draw, ops):
        for network in (networks.generator, networks.discriminator):
            network.alpha.fill_(self.phase == 0)

    def follow(self, networks, figures):
        super().follow(networks, figures)
        for network in (networks.generator, networks.discriminator):
            network.alpha.add_(1 / self.fade_steps).clamp_(max=1)

    def seen(self, networks, images):
        """Images of the data's size at this phase's, those of the size before blended in."""
        images = F.avg_pool2d(images, 2 ** (self.top - self.phase))
        if self.phase == 0:
            return images
        return F.interpolate(F.avg_pool2d(images, 2), scale_factor=2).lerp(images, networks.discriminator.alpha)

    def discriminator_loss(self, networks, draw, ops):
        real, r1 = ops.regularized_scores(networks.discriminator, self.seen(networks, draw.real()), self.gamma)
        fake = networks.discriminator(self.generated(networks, draw)[0])
        return minimax_discriminator(real, fake) + r1, {"R1": r1}

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam),
            "generator": Player(("generator",), self.generator_loss, adam, ema=self.ema, after=self.follow),
        }

    def scores(self, networks, images, labels=None):
        return networks.discriminator(self.seen(networks, images))

    def sample(self, networks, latents, labels=None):
        images = super().sample(networks, latents)
        return F.interpolate(images, scale_factor=2 ** (self.top - self.phase))
