from dataclasses import dataclass

import torch

from ganzoo.options import Count, NotNegative
from ganzoo.techniques.base import Shown, followed, register


@register("instance-noise")
@dataclass
class InstanceNoise(Shown):
    """Instance noise: judges are shown x + σε and G(z) + σε', ε ~ N(0, I), σ falling linearly to 0.

    Both distributions then have the same support, so that D* is not certain and its gradient at G(z) not nothing.

    Source: Sønderby et al. (2017), arXiv:1610.04490, section 2.3; Arjovsky and Bottou (2017), arXiv:1701.04862, section 3.
    """

    sigma: NotNegative = 0.1
    """σ at the start, in the units of the data: images are in [−1, 1]."""
    anneal: Count = 2000
    """Updates of the generator after which σ is 0."""

    def networks(self, data, ops):
        networks = super().networks(data, ops)
        networks.register_buffer("instance_noise_updates", torch.zeros(()))
        return networks

    def alter(self, networks, x, draw, ops):
        left = (1 - networks.instance_noise_updates / self.anneal).clamp(min=0)
        return x + self.sigma * left * draw.normal(*x.shape[1:], rows=len(x))

    def players(self, ops):
        players = super().players(ops)
        counted = self.both_sides(players)[1][-1]
        return {**players, counted: followed(players[counted], self.count)}

    def count(self, networks, figures):
        networks.instance_noise_updates.add_(1)
