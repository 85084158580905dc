from dataclasses import dataclass

from ganzoo.options import Count, NotNegative
from ganzoo.techniques.base import Technique, register, with_term
from ganzoo.variants.base import Regularizer


@register("lazy-r1")
@dataclass
class LazyR1(Technique):
    """Lazy R1: γ/2 E ‖∇ℓ(x)‖² on real samples in the discriminator's loss, at every k-th update and k times as large.

    Its mean over updates is that of the term at every update, at a k-th of the cost. It is added to the same update, so Adam takes no
    step more, and needs no other rates.

    Source: Mescheder et al. (2018), arXiv:1801.04406, section 4.1; lazy: Karras et al. (2020), arXiv:1912.04958, section 3.1.
    """

    gamma: NotNegative = 10.0
    """γ."""
    every: Count = 16
    """k."""

    def networks(self, data, ops):
        self.need_samples()
        networks = self.variant.networks(data, ops)
        self.judges_of(networks)
        return networks

    def players(self, ops):
        players = self.variant.players(ops)
        for name in self.both_sides(players)[0]:
            judges = [network for network in players[name].networks if network in self.variant.judges]
            if "r1" in players[name].regularizers:
                self.refuse("it has an R1 of its own")
            if judges:
                players[name] = with_term(players[name], r1=Regularizer(self._r1_of(judges), self.every))
        return players

    def _r1_of(self, judges):
        def r1(networks, draw, ops):
            batch = draw.batch()
            condition = (batch["label"],) if self.variant.conditional else ()
            scorers = [score for name in judges for score in self.scorers(networks, name, condition)]
            return sum(ops.r1_penalty(self._one_by_one(s), batch["image"], gamma=self.gamma) for s in scorers), {}

        return r1

    def _one_by_one(self, score):
        def scores(x):
            found = score(x)
            return found if len(found) == len(x) else self.refuse("its discriminator judges several samples at once")

        return scores
