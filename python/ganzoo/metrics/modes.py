"""How many modes of a known mixture the samples reach, how many are near one, and how evenly they are spread."""

import math
from dataclasses import dataclass

import torch

WITHIN = 3
"""Standard deviations within which a sample counts as one of a mode's."""


@dataclass(frozen=True)
class Coverage:
    """`modes`: modes with at least one sample; `high_quality`: share of the samples that belong to a mode, in [0, 1];
    `reverse_kl`: KL(generated ‖ uniform) over the modes in nats, NaN where no sample belongs to any."""

    modes: int
    high_quality: float
    reverse_kl: float


def mode_coverage(points, modes, sigma):
    """Coverage of a mixture of equally likely round Gaussians by the points (N, D).

    A point is of high quality when it is within 3σ of the nearest of the `modes` (K, D), and only such points count for
    the modes and for the reverse KL divergence, log K − entropy of their shares per mode.

    Source: Lin et al. (2018), PacGAN, arXiv:1712.04086, section 4.1.
    """
    distance, nearest = torch.cdist(points.double(), modes.double()).min(1)
    near = distance <= WITHIN * sigma
    return count_coverage(nearest[near], len(modes), len(points))


def count_coverage(classes, modes, n):
    """Coverage where the mode of each accepted sample is known: `classes` (M,), M of n samples, each in 0 ... modes − 1.

    For stacked digits these are what a classifier says of each channel, and all samples are accepted, as in section 4.2
    of PacGAN's paper.
    """
    counts = torch.bincount(classes.cpu(), minlength=modes).double()
    shares = counts[counts > 0] / counts.sum()
    reverse_kl = math.log(modes) + (shares * shares.log()).sum().item() if len(shares) else math.nan
    return Coverage(int((counts > 0).sum()), len(classes) / n, max(reverse_kl, 0.0) if shares.numel() else reverse_kl)
