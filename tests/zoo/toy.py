"""A small game in the plane, for tests of what the loop hosts."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from ganzoo.data.base import Tensors
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.variants import Networks, Player, Variant

POINTS = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def points():
    return Tensors("points", {"image": POINTS.clone()})


@dataclass
class Toy(Variant):
    """Two perceptrons; `change` replaces fields of its players by name, `turns` is the schedule."""

    batch: int = 8
    latent: int = 2
    change: dict = field(default_factory=dict)
    turns: tuple = ("discriminator", "generator")
    optimizer: str = "Adam"
    lr: float = 1e-2

    def check(self):
        pass

    def networks(self, data, ops):
        return Networks(
            generator=nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)),
            discriminator=nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)),
            count=torch.zeros(()),
        )

    def discriminator_loss(self, networks, draw, ops):
        real, fake = networks.discriminator(draw.real()), networks.discriminator(networks.generator(draw.latents()))
        return minimax_discriminator(real, fake), {"real": real.mean()}

    def generator_loss(self, networks, draw, ops):
        return non_saturating_generator(networks.discriminator(networks.generator(draw.latents()))), {}

    def players(self, ops):
        optimizer = partial(getattr(torch.optim if self.optimizer == "SGD" else ops, self.optimizer), lr=self.lr)
        return {
            name: Player((name,), getattr(self, f"{name}_loss"), optimizer, **self.change.get(name, {}))
            for name in ("discriminator", "generator")
        }

    def schedule(self, step):
        return self.turns


class Growing(Toy):
    """A generator that gets another layer at step 2; what enters the phase is written down."""

    def phase_at(self, step):
        return min(step // 2, 1)

    def networks(self, data, ops):
        networks = super().networks(data, ops)
        if self.phase:
            networks.generator.append(nn.Linear(2, 2))
        return networks

    def enter(self, networks, draw, ops):
        networks.count.copy_(draw.real().mean() + self.phase)
