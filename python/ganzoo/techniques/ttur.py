import dataclasses
from dataclasses import dataclass

from ganzoo.options import Positive
from ganzoo.techniques.base import Technique, register


@register("ttur")
@dataclass
class TTUR(Technique):
    """Two time-scales: a learning rate for the discriminators' side and one for the generators'.

    The defaults are SAGAN's, the discriminator four times as fast. Slower than the generator, 1e-5 beside 1e-4, it cannot win so early.

    Source: Heusel et al. (2017), arXiv:1706.08500, section 2; Zhang et al. (2019), arXiv:1805.08318, section 4.
    """

    discriminator_lr: Positive = 4e-4
    """Of players that train nothing that samples: discriminators, critics, classifiers."""
    generator_lr: Positive = 1e-4
    """Of all others."""

    def players(self, ops):
        players = self.variant.players(ops)
        theirs, _ = self.both_sides(players)
        rates = {name: self.discriminator_lr if name in theirs else self.generator_lr for name in players}
        return {name: with_rate(player, rates[name]) for name, player in players.items()}


def with_rate(player, rate):
    """A player whose optimiser has this learning rate."""

    def optimizer(params, **options):
        made = player.optimizer(params, **options)
        for group in made.param_groups:
            group["lr"] = rate
        return made

    return dataclasses.replace(player, optimizer=optimizer)
