import dataclasses
from dataclasses import dataclass

from ganzoo.options import Decay
from ganzoo.techniques.base import Technique, register


@register("ema")
@dataclass
class EMA(Technique):
    """EMA: samples are drawn with the running average of the generators' weights, ē ← βē + (1 − β)θ after each of their updates.

    Running statistics, and all other buffers, are the generator's own: they are averages already. It is the switch of every variant's
    option `ema`, also for players whose variant keeps no average.

    Source: Yazıcı et al. (2019), arXiv:1806.04498; Karras et al. (2018), arXiv:1710.10196, section 6.1.
    """

    decay: Decay = 0.999
    """β."""

    def players(self, ops):
        players = self.variant.players(ops)
        kept = {*self.opponents(players), *(name for name, player in players.items() if player.ema is None)}
        return {name: p if name in kept else dataclasses.replace(p, ema=self.decay) for name, p in players.items()}
