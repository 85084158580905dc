"""Written from CONTRIBUTING's "adding a variant": R3GAN's game in the plane. `python own_variant.py train relativistic`."""

from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import nn

import ganzoo
from ganzoo.options import Positive
from ganzoo.variants import Networks, Player, Regularizer, Variant, register


def perceptron(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 128), nn.LeakyReLU(0.2), nn.Linear(128, outputs))


@register("relativistic")
@dataclass
class Relativistic(Variant):
    """The relativistic game with R1 on the reals at every second update."""

    latent: int = 2
    gamma: Positive = 0.1
    """γ, the weight of R1."""
    lr: Positive = 1e-3
    """Adam's learning rate."""

    def networks(self, data, ops):
        (points,) = data.shape
        return Networks(generator=perceptron(self.latent, points), discriminator=perceptron(points, 1))

    def margin(self, networks, draw):
        return networks.discriminator(draw.real()) - networks.discriminator(networks.generator(draw.latents()))

    def discriminator_loss(self, networks, draw, ops):
        margin = self.margin(networks, draw)
        return F.softplus(-margin).mean(), {"margin": margin.mean()}

    def generator_loss(self, networks, draw, ops):
        return F.softplus(self.margin(networks, draw)).mean(), {}

    def r1(self, networks, draw, ops):
        return ops.r1_penalty(networks.discriminator, draw.real(), gamma=self.gamma), {}

    def players(self, ops):
        adam, lazy = partial(ops.Adam, lr=self.lr, betas=(0.0, 0.9)), {"r1": Regularizer(self.r1, every=2)}
        return {
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam, regularizers=lazy),
            "generator": Player(("generator",), self.generator_loss, adam),
        }

    def schedule(self, step):
        return ["discriminator", "generator"]


if __name__ == "__main__":
    ganzoo.main()
