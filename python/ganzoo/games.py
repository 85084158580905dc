"""The three games of GAN's theory side by side: what the generator's loss is, how steep, and how its gradient varies from sample to sample.

Source: Goodfellow (2016), NIPS tutorial, arXiv:1701.00160, section 3.2.5 and figure 16.
"""

import torch

from ganzoo.variants.gan import GENERATOR_LOSSES


def losses_and_slopes(loss, probabilities):
    """A generator loss of images of these D(G(z)), each by itself, and its slope in the raw score ℓ = σ⁻¹(D(G(z)))."""
    scores = torch.logit(probabilities).requires_grad_()
    losses = torch.func.vmap(loss)(scores[:, None])
    (slopes,) = torch.autograd.grad(losses.sum(), scores)
    return losses.detach(), slopes


def gradient_variance(loss, distance):
    """Var g / (E g)² of the gradient g per sample that moves a generator N(0, 1) to data N(distance, 1) under the optimal D.

    There ℓ(x) = distance·x − distance²/2, so that g is the slope of the loss in ℓ times a constant. For the maximum-likelihood game it is
    exp(distance²) − 1.
    """
    x = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    weights = torch.softmax(-x.square() / 2, 0)
    _, slopes = losses_and_slopes(loss, torch.sigmoid(distance * x - distance**2 / 2))
    mean = weights @ slopes
    return (weights @ (slopes - mean).square() / mean.square()).item()


def compared():
    """What the figure shows: D(G(z)) (N,) and, by game, losses and slopes (N,); distances (M,) and, by game, variances (M,)."""
    probabilities = torch.linspace(0.002, 0.998, 250, dtype=torch.float64)
    distances = torch.linspace(0.1, 2, 39, dtype=torch.float64)
    curves = {name: losses_and_slopes(loss, probabilities) for name, loss in GENERATOR_LOSSES.items()}
    variances = {
        name: torch.tensor([gradient_variance(loss, distance.item()) for distance in distances])
        for name, loss in GENERATOR_LOSSES.items()
    }
    return probabilities, curves, distances, variances
