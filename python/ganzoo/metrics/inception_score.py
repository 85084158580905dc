"""How sure a classifier is of each sample, and how varied its classes are."""

import torch

from ganzoo.errors import ArgumentError


def inception_score(probabilities, splits=10):
    """Mean and standard deviation over `splits` consecutive parts of exp E KL(p(y|x) ‖ p(y)), p(y) the part's mean.

    Args:
        probabilities: (N, K) of the K classes, after the softmax.

    Raises `ArgumentError` for rows that are not probabilities, such as logits.

    Source: Salimans et al. (2016), arXiv:1606.03498, section 4.
    """
    sums = probabilities.double().sum(1)
    if (probabilities < 0).any() or not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise ArgumentError(
            "probabilities", "at least 0 with rows that sum to 1", f"sums from {sums.min():.4g} to {sums.max():.4g}"
        )
    if len(probabilities) < splits:
        raise ArgumentError("splits", f"at most the number of samples, {len(probabilities)}", splits)
    scores = []
    for part in probabilities.double().tensor_split(splits):
        marginal = part.mean(0)
        kl = torch.special.xlogy(part, part).sum(1) - torch.special.xlogy(part, marginal).sum(1)
        scores.append(kl.mean().exp())
    scores = torch.stack(scores)
    return scores.mean().item(), scores.std(correction=0).item()
