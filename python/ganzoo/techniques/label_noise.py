from dataclasses import dataclass

from ganzoo.options import NotNegative, Share
from ganzoo.techniques.base import register
from ganzoo.techniques.relabelled import Relabelled


@register("label-noise")
@dataclass
class LabelNoise(Relabelled):
    """Label noise: labels of real samples ~ U(1 − w, 1), those of generated ones ~ U(0, w), one draw per sample.

    Source: folklore of the time of DCGAN; noise on what D sees is analysed in Arjovsky and Bottou (2017), arXiv:1701.04862.
    """

    width: NotNegative = 0.2
    """w, how far labels reach."""

    def relabel(self, label, real, draw, rows):
        noise = self.width * draw.uniform(rows=rows)
        return label + noise * (1 - 2 * label)  # towards the other class, whichever the label says after flips


@register("label-flips")
@dataclass
class LabelFlips(Relabelled):
    """Label flips: each sample's label, of real and of generated ones, is turned around with probability q in the discriminator's loss.

    So D's mean loss is that with labels 1 − q and q, and D* stays within [q, 1 − q].

    Source: folklore of the time of DCGAN.
    """

    probability: Share = 0.05
    """q."""

    def relabel(self, label, real, draw, rows):
        flipped = (draw.uniform(rows=rows) < self.probability).float()
        return label + flipped * (1 - 2 * label)
