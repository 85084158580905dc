import math
from dataclasses import dataclass

import torch

from ganzoo import objectives
from ganzoo.options import Decay, Positive, Share
from ganzoo.techniques import augment
from ganzoo.techniques.augment import Augmented, per_sample
from ganzoo.techniques.base import followed, register, with_loss

SCALE = 0.2 * math.log(2)
TURNED = (1.0, 1.0, 1.0)
"""The axis of colours, along which grey lies."""


@register("ada")
@dataclass
class ADA(Augmented):
    """ADA: adaptive discriminator augmentation; each change of an image comes with probability p, which follows overfitting.

    r = E sign ℓ(x) over real images as they are shown; p ← clip(p + sign(r − target)·batch/images, 0, 1) after every update of the
    discriminator. Changes: flips, right angles and whole pixels; scale, rotation and fractions of pixels; brightness and contrast, of
    colour images also luma flip, hue and saturation. The image is taken by bilinear interpolation with reflected borders, where the paper
    has a wavelet's low-pass filter, and p moves at every update instead of every fourth.

    Source: Karras et al. (2020), arXiv:2006.06676, sections 2 and 3 and appendix B.
    """

    target: Decay = 0.6
    """The r that p aims at: above it the discriminator knows its images."""
    images: Positive = 500_000
    """Real images in which p can rise from 0 to 1."""
    start: Share = 0.0
    """p at the start."""

    def networks(self, data, ops):
        networks = super().networks(data, ops)
        networks.register_buffer("ada_p", torch.tensor(float(self.start)))
        return networks

    def players(self, ops):
        players = super().players(ops)
        theirs, _ = self.both_sides(players)
        judging = [name for name in theirs if set(players[name].networks) & set(self.variant.judges)]
        watched = {name: with_loss(players[name], self._watched, terms=False) for name in judging}
        return {**players, **{name: followed(player, self.adapt) for name, player in watched.items()}}

    def _watched(self, loss):
        def watched(networks, draw, ops):
            signs = []

            def watch(label, real, scores, leaning):
                if real:
                    signs.append(leaning().detach().sign().mean())
                return label

            with objectives.labels(watch):
                value, figures = loss(networks, draw, ops)
            if not signs:
                self.refuse("its discriminator does not say real or generated, so that it cannot be seen to overfit")
            return value, {**figures, "ada_r": torch.stack(signs).mean(), "ada_p": networks.ada_p.clone()}

        return watched

    def adapt(self, networks, figures):
        step = (figures["ada_r"] - self.target).sign() * (self.variant.batch / self.images)
        networks.ada_p.add_(step).clamp_(0, 1)

    def alter(self, networks, x, draw, ops):
        p, rows = networks.ada_p, len(x)

        def perhaps(values, otherwise, chance=p):
            return torch.where(draw.uniform(rows=rows) < chance, values, torch.full_like(values, otherwise))

        def normal():
            return draw.normal(rows=rows)

        def uniform():
            return draw.uniform(rows=rows)

        x = self.moved(x, perhaps, uniform, normal, p, ops)
        return self.coloured(self.apart(x), perhaps, uniform, normal).flatten(1, 2)

    def moved(self, x, perhaps, uniform, normal, p, ops):
        """Geometry: one matrix from the coordinates of a pixel shown, in units of half the image, to those where it is taken from."""
        height, width = x.shape[2:]
        flip = perhaps((2 * uniform()).floor() * 2 - 1, 1.0)
        steps = augment.scaling(flip, torch.ones_like(flip))
        steps = steps @ augment.quarter_turns(perhaps((4 * uniform()).floor(), 0.0))
        whole = ((perhaps((uniform() - 0.5) / 4, 0.0) * size).round() * (2 / size) for size in (width, height))
        steps = steps @ augment.translation(*whole)
        scale = perhaps((SCALE * normal()).exp(), 1.0)
        steps = steps @ augment.scaling(scale, scale)
        rotated = 1 - (1 - p).sqrt()  # before and after the stretching: either with probability p
        steps = steps @ augment.rotation(perhaps((2 * uniform() - 1) * math.pi, 0.0, rotated))
        stretch = perhaps((SCALE * normal()).exp(), 1.0)
        steps = steps @ augment.scaling(stretch, 1 / stretch)
        steps = steps @ augment.rotation(perhaps((2 * uniform() - 1) * math.pi, 0.0, rotated))
        steps = steps @ augment.translation(*(perhaps(normal() / 4, 0.0) for _ in range(2)))
        grid = torch.nn.functional.affine_grid(steps[:, :2].to(x.dtype), list(x.shape), align_corners=False)
        return ops.grid_sample(x, grid, "reflection")

    def coloured(self, x, perhaps, uniform, normal):
        x = x + per_sample(perhaps(0.2 * normal(), 0.0))
        x = x * per_sample(perhaps((0.5 * math.log(2) * normal()).exp(), 1.0))
        if x.shape[2] != 3:
            return x
        axis = torch.tensor(TURNED, dtype=x.dtype, device=x.device).view(3, 1, 1) / math.sqrt(3)

        def along(colours):
            return (colours * axis).sum(2, keepdim=True) * axis

        x = x - (1 - per_sample(perhaps((2 * uniform()).floor() * 2 - 1, 1.0))) * along(x)  # luma flip
        angle = per_sample(perhaps((2 * uniform() - 1) * math.pi, 0.0))
        grey, colour = along(x), x - along(x)
        across = torch.linalg.cross(axis.expand_as(x), x, dim=2)
        colour = angle.cos() * colour + angle.sin() * across
        return grey + colour * per_sample(perhaps((math.log(2) * normal()).exp(), 1.0))
