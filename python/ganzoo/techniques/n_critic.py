from dataclasses import dataclass

from ganzoo.options import Count
from ganzoo.techniques.base import Technique, register
from ganzoo.variants.base import in_tuples


@register("n-critic")
@dataclass
class NCritic(Technique):
    """n_critic: the discriminators' side takes n turns before each turn of the generators'.

    Source: Arjovsky, Chintala and Bottou (2017), arXiv:1701.07875, algorithm 1; k in Goodfellow et al. (2014), arXiv:1406.2661, algorithm 1.
    """

    n: Count = 5
    """Turns of the discriminators' side in every step."""

    def players(self, ops):
        players = self.variant.players(ops)
        self.theirs = set(self.both_sides(players)[0])
        return players

    def schedule(self, step):
        turns = in_tuples(self.variant.schedule(step))
        theirs = [turn for turn in dict.fromkeys(turns) if self.theirs.issuperset(turn)]
        ours = [turn for turn in turns if self.theirs.isdisjoint(turn)]
        if any(turn not in theirs and turn not in ours for turn in turns):
            self.refuse("its two sides move at once")
        return theirs * self.n + ours
