"""Differentiable changes of images, one draw per image, and what techniques that make them have in common."""

import math

import torch

from ganzoo.techniques.base import Shown


class Augmented(Shown):
    """Judges are shown images that were changed at random."""

    def networks(self, data, ops):
        if len(data.shape) != 3:
            self.refuse(f"it augments images, and a sample of {data.name} is none")
        self.channels = data.shape[0]
        return super().networks(data, ops)

    def apart(self, x):
        """(N, K·C, H, W) as (N, K, C, H, W): a judge of packs or of pairs is shown K images at once, whose colours are not mixed."""
        return x.unflatten(1, (-1, self.channels))


def per_sample(values):
    """(N,) as (N, 1, 1, 1, 1)."""
    return values.reshape(-1, 1, 1, 1, 1)


def shifted(x, offsets, dim):
    """Images (N, C, H, W) moved by whole numbers of pixels (N,) along dimension 2 or 3; zeros come in."""
    size = x.shape[dim]
    where = torch.arange(size, device=x.device) - offsets[:, None]
    there = (where >= 0) & (where < size)
    shape = [len(x), 1, -1, 1] if dim == 2 else [len(x), 1, 1, -1]
    return x.gather(dim, where.clamp(0, size - 1).view(shape).expand_as(x)) * there.view(shape)


def without_square(x, rows, columns, side):
    """Images (N, C, H, W) without a square of `side` pixels, zero there, whose upper left pixel is at rows (N,) and columns (N,)."""
    in_rows, in_columns = (
        (at >= first[:, None]) & (at < first[:, None] + side)
        for at, first in (
            (torch.arange(x.shape[2], device=x.device), rows),
            (torch.arange(x.shape[3], device=x.device), columns),
        )
    )
    return x * ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])


def affine(a, b, c, d, e, f):
    """(N, 3, 3), the rows of each (a, b, c), (d, e, f) and (0, 0, 1), from tensors (N,)."""
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack([a, b, c, d, e, f, zero, zero, one], 1).view(-1, 3, 3)


def scaling(x, y):
    return affine(x, torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x), y, torch.zeros_like(x))


def rotation(angle):
    return affine(angle.cos(), -angle.sin(), torch.zeros_like(angle), angle.sin(), angle.cos(), torch.zeros_like(angle))


def translation(x, y):
    return affine(torch.ones_like(x), torch.zeros_like(x), x, torch.zeros_like(x), torch.ones_like(x), y)


def quarter_turns(count):
    """Rotations by whole numbers (N,) of right angles, exactly."""
    return rotation(count * (math.pi / 2)).round()
