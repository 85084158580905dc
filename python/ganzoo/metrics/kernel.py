"""The kernel distance between features: KID, when the features are Inception's."""

import torch

from ganzoo.errors import Error

SUBSETS = 100
SUBSET = 1000


def kernel_distance(generated, real, subsets=SUBSETS, size=SUBSET, seed=0):
    """Mean and standard deviation over random subsets of the unbiased estimate of MMD² with k(x, y) = (xᵀy/D + 1)³.

    Each subset takes `size` features of both sides without replacement, or all of the smaller side where that has fewer.
    The estimate leaves out k(x, x), so that it is 0 on average for equal distributions, and can be negative.

    Source: Bińkowski et al. (2018), arXiv:1801.01401, section 4.
    """
    size = min(size, len(generated), len(real))
    if size < 2:
        raise Error(f"the kernel distance needs at least 2 samples on each side, got {size}.")
    random = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(subsets):
        x, y = (part[torch.randperm(len(part), generator=random)[:size].to(part.device)] for part in (generated, real))
        estimates.append(unbiased_mmd2(x.double(), y.double()))
    estimates = torch.stack(estimates)
    return estimates.mean().item(), estimates.std(correction=0).item()


def unbiased_mmd2(x, y):
    """Σ_{i≠j} k(xᵢ, xⱼ)/(m(m−1)) + Σ_{i≠j} k(yᵢ, yⱼ)/(n(n−1)) − 2 Σ_{ij} k(xᵢ, yⱼ)/(mn), for x (m, D) and y (n, D)."""

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a):
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()
