"""Distributions in the plane, and one of sequences, as `n` fixed points drawn with a seed of their own.

Each protocol is the constants of one paper:

pacgan    Lin et al. (2018), arXiv:1712.04086, section 4.1: ring of radius 1, σ 0.01; grid {−4, −2, 0, 2, 4}², σ 0.05.
wgan-gp   Gulrajani et al. (2017), arXiv:1704.00028, the authors' toy code: ring of radius 2, σ 0.02, divided by 1.414;
          grid {−4, ..., 4}², σ 0.05, divided by 2.828; Swiss roll with noise 0.25, divided by 7.5.
"""

import math
from typing import Literal

import torch

from ganzoo.data.base import Tensors
from ganzoo.options import Count, CountOrZero, Finite, NotNegative

RINGS = {"pacgan": (1.0, 0.01), "wgan-gp": (2 / 1.414, 0.02 / 1.414)}
"""Radius and σ."""
GRIDS = {"pacgan": (2.0, 0.05), "wgan-gp": (2 / 2.828, 0.05 / 2.828)}
"""Distance between neighbouring modes and σ."""


class Mixture(Tensors):
    """Equally likely round Gaussians: `modes` (K, 2) and their standard deviation `sigma`. Labels are the modes' numbers."""

    def __init__(self, name, modes, sigma, n, seed):
        random = torch.Generator().manual_seed(seed)
        labels = torch.randint(len(modes), (n,), generator=random)
        points = modes[labels] + sigma * torch.randn(n, 2, generator=random)
        super().__init__(name, {"image": points, "label": labels}, classes=len(modes))
        self.modes, self.sigma = modes, sigma


def open_ring(
    *, protocol: Literal["pacgan", "wgan-gp"] = "pacgan", modes: Count = 8, n: Count = 100_000, seed: CountOrZero = 0
):
    """Gaussians whose means are equally spaced on a circle around the origin, the first at (radius, 0)."""
    radius, sigma = RINGS[protocol]
    angles = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = radius * torch.stack([angles.cos(), angles.sin()], 1).float()
    return Mixture("ring", means, sigma, n, seed)


def open_grid(
    *, protocol: Literal["pacgan", "wgan-gp"] = "pacgan", side: Count = 5, n: Count = 100_000, seed: CountOrZero = 0
):
    """Gaussians whose means are a square grid of side × side points centred on the origin."""
    spacing, sigma = GRIDS[protocol]
    line = (torch.arange(side) - (side - 1) / 2) * spacing
    return Mixture("grid", torch.cartesian_prod(line, line), sigma, n, seed)


def open_swiss_roll(*, n: Count = 100_000, noise: NotNegative = 0.25, seed: CountOrZero = 0):
    """scikit-learn's Swiss roll seen from its end, divided by 7.5."""
    from sklearn.datasets import make_swiss_roll

    points = make_swiss_roll(n, noise=noise, random_state=seed)[0][:, [0, 2]] / 7.5
    return Tensors("swiss-roll", {"image": torch.from_numpy(points).float()})


def open_parallel_lines(*, theta: Finite = 0.0, n: Count = 100_000, seed: CountOrZero = 0):
    """Points (θ, y) with y ~ U(0, 1).

    W₁ between the lines of θ and 0 is |θ| while their JSD is log 2 for every θ ≠ 0: example 1 of Arjovsky, Chintala and
    Bottou (2017), arXiv:1701.07875.
    """
    y = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    return Tensors("parallel-lines", {"image": torch.stack([torch.full_like(y, theta), y], 1)})


def open_sines(*, length: Count = 30, n: Count = 10_000, seed: CountOrZero = 0):
    """Sequences A sin(2πft/T + φ), t = 1 ... T the `length`, (T, 1): A ~ U(0.1, 0.9), f ~ U(1, 5) and φ ~ U(−π, π) of each its own.

    Esteban, Hyland and Rätsch (2017), arXiv:1706.02633, the sine waves.
    """
    amplitude, frequency, phase = torch.rand(
        3, n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    t = torch.arange(1, length + 1) / length
    waves = (0.1 + 0.8 * amplitude) * torch.sin(2 * math.pi * ((1 + 4 * frequency) * t + phase - 0.5))
    return Tensors("sines", {"image": waves.float()[..., None]})
