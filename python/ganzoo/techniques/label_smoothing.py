from dataclasses import dataclass

from ganzoo.options import Decay
from ganzoo.techniques.base import register
from ganzoo.techniques.relabelled import Relabelled


@register("label-smoothing")
@dataclass
class LabelSmoothing(Relabelled):
    """One-sided label smoothing: the discriminator is told 1 − s of real samples, and still 0 of generated ones.

    Smoothed on both sides, D* = ((1 − s) p_data + s' p_g)/(p_data + p_g): where p_data is small, s' keeps D high on samples that are
    wrong, and they stay where they are.

    Source: Salimans et al. (2016), arXiv:1606.03498, section 3.4.
    """

    smoothing: Decay = 0.1
    """s, what is taken off the label of real samples."""

    def relabel(self, label, real, draw, rows):
        return label * (1 - self.smoothing) if real else label
