"""The Fréchet distance between Gaussians fitted to features: FID, when the features are Inception's."""

import torch

from ganzoo.errors import Error


class Moments:
    """Mean and covariance of features that come in batches, in float64.

    Batches, and the moments of several processes, are put together by Chan's update, which does not cancel.
    """

    def __init__(self, n=0, mean=0.0, scatter=0.0):
        self.n, self.mean, self.scatter = n, mean, scatter

    def add(self, features):
        """Take a batch of features (B, D)."""
        features = features.double()
        mean = features.mean(0)
        self._merge(len(features), mean, (features - mean).T @ (features - mean))

    def merge(self, other):
        """Take all that other moments have seen."""
        self._merge(other.n, other.mean, other.scatter)

    def _merge(self, n, mean, scatter):
        apart, total = mean - self.mean, self.n + n
        if self.n:
            scatter = scatter + self.scatter + torch.outer(apart, apart) * (self.n * n / total)
        self.n, self.mean, self.scatter = total, self.mean + apart * (n / total), scatter

    @property
    def covariance(self):
        """Over n − 1."""
        if self.n < 2:
            raise Error(f"a covariance needs at least 2 samples, got {self.n}.")
        return self.scatter / (self.n - 1)


def moments(features):
    """The moments of features (N, D)."""
    result = Moments()
    result.add(features)
    return result


def frechet_distance(first, second):
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of two `Moments`.

    tr (Σ₁Σ₂)^½ is computed as the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which is symmetric: no complex
    numbers, also where a covariance is singular.

    Source: Heusel et al. (2017), arXiv:1706.08500. Its bias falls only as 1/N: compare at equal N.
    """
    values, vectors = torch.linalg.eigh(first.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    trace = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp_min(0).sqrt().sum()
    apart = (first.mean - second.mean).square().sum()
    total = apart + first.covariance.trace() + second.covariance.trace() - 2 * trace
    return max(float(total), 0.0)  # rounding can take equal ones below 0
