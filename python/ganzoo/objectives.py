"""The losses of the games, on raw scores, all of them minimised.

A discriminator or critic returns one raw score per image: ℓ(x) before any sigmoid, so that D(x) = σ(ℓ(x)) where the
paper speaks of probabilities, and f(x) where it speaks of a critic. `real` and `fake` are the scores (N,) or (N, 1)
of real images x and of generated ones G(z); every function returns the mean over the batch, a scalar.

Sign convention: a high score means "real", in every game. The critic of a Wasserstein game therefore minimises
E f(G(z)) − E f(x) and the generator −E f(G(z)). Texts that print the critic's loss as E f(x) − E f(G(z)) let a low
score mean "real"; replacing f by −f turns one into the other, so both are the same game.
"""

import torch
import torch.nn.functional as F


def minimax_discriminator(real, fake):
    """−E log D(x) − E log(1 − D(G(z))) = E softplus(−ℓ(x)) + E softplus(ℓ(G(z))).

    Source: Goodfellow et al. (2014), arXiv:1406.2661, eq. 1. At the optimal D it is 2 log 2 − 2 JSD(p_data, p_g).
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def minimax_generator(fake):
    """E log(1 − D(G(z))) = −E softplus(ℓ(G(z))): the game of the theory, whose gradient vanishes as D(G(z)) → 0.

    Source: Goodfellow et al. (2014), arXiv:1406.2661, eq. 1.
    """
    return -F.softplus(fake).mean()


def non_saturating_generator(fake):
    """−E log D(G(z)) = E softplus(−ℓ(G(z))): same fixed point, and a gradient that does not vanish as D(G(z)) → 0.

    Source: Goodfellow et al. (2014), arXiv:1406.2661, section 3.
    """
    return F.softplus(-fake).mean()


def wasserstein_critic(real, fake):
    """E f(G(z)) − E f(x). Its negative estimates K·W₁(p_data, p_g) for a K-Lipschitz critic near its optimum.

    Source: Arjovsky, Chintala and Bottou (2017), arXiv:1701.07875, algorithm 1.
    """
    return fake.mean() - real.mean()


def wasserstein_generator(fake):
    """−E f(G(z)). Source: Arjovsky, Chintala and Bottou (2017), arXiv:1701.07875, algorithm 1."""
    return -fake.mean()


def hinge_discriminator(real, fake):
    """E max(0, 1 − ℓ(x)) + E max(0, 1 + ℓ(G(z))), the hinge taken per sample.

    Source: Miyato et al. (2018), arXiv:1802.05957, eq. 16; Lim and Ye (2017), arXiv:1705.02894.
    """
    return torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()


def hinge_generator(fake):
    """−E ℓ(G(z)). Source: Miyato et al. (2018), arXiv:1802.05957, eq. 17."""
    return -fake.mean()


def relativistic_discriminator(real, fake):
    """E log(1 + exp(ℓ(G(z)) − ℓ(x))) over pairs (x, z): each image is judged beside one of the other kind.

    Source: Jolicoeur-Martineau (2018), arXiv:1807.00734, RpSGAN; Huang et al. (2024), arXiv:2501.05441, eq. 2.
    """
    return F.softplus(fake - real).mean()


def relativistic_generator(real, fake):
    """E log(1 + exp(ℓ(x) − ℓ(G(z)))). Source: as of `relativistic_discriminator`."""
    return F.softplus(real - fake).mean()
