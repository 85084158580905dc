from dataclasses import dataclass

from ganzoo.options import Count
from ganzoo.techniques.base import Technique, plain, register


@register("discriminator-width")
@dataclass
class DiscriminatorWidth(Technique):
    """Discriminator width: fewer filters, or more, on the discriminators' side alone, to hold a discriminator back that wins.

    It is one of the means of controlling a discriminator's strength; `ttur`, `n-critic`, `label-noise` and `label-flips` are others.
    """

    width: Count = 4
    """In place of the variant's `width`."""

    def networks(self, data, ops):
        networks, variant = self.variant.networks(data, ops), plain(self.variant)
        own, variant.width = variant.width, self.width
        try:
            other = self.variant.networks(data, ops)
        finally:
            variant.width = own
        players = self.variant.players(ops)
        for name in self.both_sides(players)[0]:
            for network in players[name].networks:
                setattr(networks, network, getattr(other, network))
        return networks
