from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from ganzoo.networks import dcgan, toy
from ganzoo.options import Betas, Count, Decay, Positive
from ganzoo.variants.base import Networks, Player, Variant


@dataclass
class Alternating(Variant):
    """A discriminator and a generator that move in turn, once each, by Adam: the form of most papers since DCGAN's, and on its networks.

    A subclass gives `discriminator_loss(networks, draw, ops)` and `generator_loss(networks, draw, ops)`.
    """

    adversary = "discriminator"
    batch_norm: ClassVar[bool] = True
    """Whether the discriminator of images has batch norm. It has none where each image is to be judged, or differentiated, by itself."""
    steps: Count = 3000
    ema: Decay = 0.99
    lr: Positive = 2e-4
    """Adam's learning rate."""
    betas: Betas = (0.5, 0.999)
    """Adam's decay rates."""

    def networks(self, data, ops):
        if data.points:
            return Networks(
                generator=toy.Generator(self.latent, data.shape, self.width),
                discriminator=toy.Discriminator(data.shape, self.width),
            )
        return Networks(
            generator=dcgan.Generator(self.latent, data.shape, self.width),
            discriminator=dcgan.Discriminator(data.shape, self.width, batch_norm=self.batch_norm),
        )

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam),
            "generator": Player(("generator",), self.generator_loss, adam, ema=self.ema),
        }

    def schedule(self, step):
        return ["discriminator", "generator"]


@dataclass
class TwoRates(Alternating):
    """The same with a learning rate for each: `lr` is the generator's."""

    discriminator_lr: Positive = 2e-4
    """Adam's learning rate of the discriminator."""

    def players(self, ops):
        players = super().players(ops)
        adam = partial(ops.Adam, lr=self.discriminator_lr, betas=self.betas)
        return {**players, "discriminator": replace(players["discriminator"], optimizer=adam)}
