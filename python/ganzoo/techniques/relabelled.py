"""What techniques that tell the discriminator other labels have in common."""

from ganzoo import objectives
from ganzoo.techniques.base import Technique, with_loss


class Relabelled(Technique):
    """The discriminators' side is told labels of its own. It fits the games in which there are labels: the classic one, least squares, hinge.

    A subclass gives `relabel(label, real, draw, rows)`: the label in place of this one, of so many real or generated samples, a number or
    (rows,).
    """

    def players(self, ops):
        players = self.variant.players(ops)
        theirs, _ = self.both_sides(players)
        judging = [name for name in theirs if set(players[name].networks) & set(self.variant.judges)] or theirs
        return {**players, **{name: with_loss(players[name], self._told, terms=False) for name in judging}}

    def _told(self, loss):
        def told(networks, draw, ops):
            asked = []

            def relabel(label, real, scores, _):
                asked.append(real)
                return self.relabel(label, real, draw, len(scores))

            with objectives.labels(relabel):
                result = loss(networks, draw, ops)
            return result if asked else self.refuse("its discriminator is told no labels")

        return told
