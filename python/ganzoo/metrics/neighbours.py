"""Precision, recall, density and coverage: whose neighbourhoods the samples lie in."""

from dataclasses import dataclass

import torch

from ganzoo.errors import Error

NEAREST = 5
ROWS = 1024
"""Rows of the distance matrix that are held at once."""


@dataclass(frozen=True)
class Neighbourhoods:
    """precision   share of generated samples within the neighbourhood of some real one
    recall      share of real samples within the neighbourhood of some generated one
    density     how many real neighbourhoods a generated sample lies in, over k; 1 is expected of a perfect generator
    coverage    share of real samples with a generated one in their neighbourhood

    A sample's neighbourhood is the ball around it that reaches to its k-th nearest other sample of its own side."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhoods(generated, real, k=NEAREST):
    """The four figures for features (N, D) and (M, D), in float64 and O(N) memory.

    Source: Kynkäänniemi et al. (2019), arXiv:1904.06991; Naeem et al. (2020), arXiv:2002.09797, eq. 3 to 6, with k = 5.
    """
    if min(len(generated), len(real)) <= k:
        raise Error(
            f"{k} nearest neighbours need at least {k + 1} samples on each side, got {len(generated)} and {len(real)}."
        )
    generated, real = generated.double(), real.double()
    generated_radii, real_radii = _radii(generated, k), _radii(real, k)
    inside, covered = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    recalled = covered.clone()
    for part, radii in zip(generated.split(ROWS), generated_radii.split(ROWS)):
        distances = torch.cdist(part, real)
        within = distances < real_radii
        inside.append(within.sum(1))
        covered |= within.any(0)
        recalled |= (distances < radii[:, None]).any(0)
    inside = torch.cat(inside).double()
    return Neighbourhoods(
        precision=(inside > 0).double().mean().item(),
        recall=recalled.double().mean().item(),
        density=inside.mean().item() / k,
        coverage=covered.double().mean().item(),
    )


def _radii(features, k):
    """Distance of each to its k-th nearest other."""
    radii = []
    for start, part in zip(range(0, len(features), ROWS), features.split(ROWS)):
        distances = torch.cdist(part, features)
        rows = torch.arange(len(part), device=features.device)
        distances[rows, start + rows] = torch.inf
        radii.append(distances.kthvalue(k, 1).values)
    return torch.cat(radii)
