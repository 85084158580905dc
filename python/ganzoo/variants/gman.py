from dataclasses import dataclass

import torch
from torch import nn

from ganzoo.objectives import minimax_discriminator, minimax_generator
from ganzoo.options import Count, NotNegative, Positive
from ganzoo.training import distributed
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import register


@register("gman")
@dataclass
class GMAN(Alternating):
    """GMAN: several discriminators, of which the generator minds most those that it fools least.

    L_D = Σᵢ −E log Dᵢ(x) − E log(1 − Dᵢ(G(z))), Vᵢ = E log(1 − Dᵢ(G(z))), L_G = Σᵢ wᵢ Vᵢ, w = softmax(λV).

    The gradient flows through the weights too. λ = 0 is the mean over the discriminators; the larger it is, the nearer to the strictest one
    alone. The generator plays the minimax game, as several discriminators are said to allow. They see batches of their own.

    Source: Durugkar, Gemp and Mahadevan (2017), arXiv:1611.01673, section 4.1; the weights are of Vᵢ without its term of real images, which
    the generator does not move, as in the authors' code.
    """

    lr: Positive = 1e-3
    """Adam's learning rate. At 2e-4 the discriminators win on digits, and the minimax game leaves the generator no gradient."""
    discriminators: Count = 3
    """How many discriminators."""
    strength: NotNegative = 1.0
    """λ, how much more the generator minds stricter discriminators."""

    def networks(self, data, ops):
        networks = super().networks(data, ops)
        others = [super(GMAN, self).networks(data, ops).discriminator for _ in range(1, self.discriminators)]
        networks.discriminator = nn.ModuleList([networks.discriminator, *others])
        return networks

    def discriminator_loss(self, networks, draw, ops):
        losses = [
            minimax_discriminator(judge(draw.real()), judge(networks.generator(draw.latents())))
            for judge in networks.discriminator
        ]
        return sum(losses), {}

    def generator_loss(self, networks, draw, ops):
        fake = networks.generator(draw.latents())
        return self.mixed([minimax_generator(judge(fake)) for judge in networks.discriminator]), {}

    def mixed(self, losses):
        """The sum of losses weighted by the softmax of λ times themselves."""
        losses = distributed.mean(torch.stack(losses))
        return (torch.softmax(self.strength * losses, 0) * losses).sum()

    def scores(self, networks, images, labels=None):
        return torch.stack([judge(images) for judge in networks.discriminator]).mean(0)
