from dataclasses import dataclass

from ganzoo.techniques.augment import Augmented, per_sample, shifted, without_square
from ganzoo.techniques.base import register


@register("diffaugment")
@dataclass
class DiffAugment(Augmented):
    """DiffAugment: judges are shown T(x) and T(G(z)), T random colour, translation and cutout, also in the generator's loss.

    Augmenting real images alone, or those of the discriminator's loss alone, teaches the generator to make augmented ones or leaves it
    without a gradient that is right. Colour: brightness + U(−½, ½), saturation × U(0, 2), contrast × U(½, 3/2). Translation: up to an
    eighth of the size, zeros come in. Cutout: a square of half the size, at most half of it outside, is zero.

    Source: Zhao et al. (2020), arXiv:2006.10738, section 3.2 and its policies.
    """

    color: bool = True
    """Brightness, saturation and contrast."""
    translation: bool = True
    """Along both axes."""
    cutout: bool = True
    """A square without an image."""

    def alter(self, networks, x, draw, ops):
        count = len(x)
        if self.color:
            brightness, saturation, contrast = (per_sample(draw.uniform(rows=count)) for _ in range(3))
            x = self.apart(x) + brightness - 0.5
            grey = x.mean(2, keepdim=True)
            x = grey + 2 * saturation * (x - grey)
            mean = x.mean([2, 3, 4], keepdim=True)
            x = (mean + (contrast + 0.5) * (x - mean)).flatten(1, 2)
        if self.translation:
            for dim in (2, 3):
                most = round(x.shape[dim] / 8)
                x = shifted(x, draw.integers(2 * most + 1, rows=count) - most, dim)
        if self.cutout:
            height, width = x.shape[2:]
            side = height // 2
            corners = (
                draw.integers(size + 1, rows=count) - side // 2 for size in (height - side % 2, width - side % 2)
            )
            x = without_square(x, *corners, side)
        return x
