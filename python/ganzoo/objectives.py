"""The losses of the games, on raw scores, all of them minimised.

A discriminator or critic returns one raw score per image: ℓ(x) before any sigmoid, so that D(x) = σ(ℓ(x)) where the
paper speaks of probabilities, and f(x) where it speaks of a critic. `real` and `fake` are the scores (N,) or (N, 1)
of real images x and of generated ones G(z); every function returns the mean over the batch, a scalar.

Sign convention: a high score means "real", in every game. The critic of a Wasserstein game therefore minimises
E f(G(z)) − E f(x) and the generator −E f(G(z)). Texts that print the critic's loss as E f(x) − E f(G(z)) let a low
score mean "real"; replacing f by −f turns one into the other, so both are the same game.

Where a discriminator is an energy, or a loss to be small on real images, it is the other way round, as in the papers; those functions
say so.
"""

import contextlib

import torch
import torch.nn.functional as F

from ganzoo.training import distributed

STEEPEST = 20.0
"""Scores above this are of no further advantage in the maximum-likelihood game: e²⁰ is short of what a run takes for divergence."""
_RELABELS = []


@contextlib.contextmanager
def labels(relabel):
    """Within this context, discriminators of two classes are told other labels than 1 of real samples and 0 of generated ones.

    `relabel(label, real, scores, leaning)` returns the label t, a number or (N,), of samples that are real or not, in place of `label`.
    `leaning()` is above 0 where a score says real, and below 0 where it says generated.
    """
    _RELABELS.append(relabel)
    try:
        yield
    finally:
        _RELABELS.pop()


def _told(scores, real, as_real, as_fake):
    """E [t·as_real(ℓ) + (1 − t)·as_fake(ℓ)], t the label of these samples. For cross entropy that is the one with soft labels; for least
    squares the one with codes in between, but for a constant."""
    label = 1.0 if real else 0.0
    for relabel in _RELABELS:
        label = relabel(label, real, scores, lambda: as_fake(scores) - as_real(scores))
    if isinstance(label, torch.Tensor):
        label = label.view(-1, *[1] * (scores.dim() - 1))
    elif label in (0, 1):
        return (as_real if label else as_fake)(scores).mean()
    return (label * as_real(scores) + (1 - label) * as_fake(scores)).mean()


def _two_classes(real, fake, as_real, as_fake):
    return _told(real, True, as_real, as_fake) + _told(fake, False, as_real, as_fake)


def minimax_discriminator(real, fake):
    """−E log D(x) − E log(1 − D(G(z))) = E softplus(−ℓ(x)) + E softplus(ℓ(G(z))).

    Source: Goodfellow et al. (2014), arXiv:1406.2661, eq. 1. At the optimal D it is 2 log 2 − 2 JSD(p_data, p_g).
    """
    return _two_classes(real, fake, lambda score: F.softplus(-score), F.softplus)


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


def maximum_likelihood_generator(fake):
    """−E D(G(z))/(1 − D(G(z))) = −E exp(σ⁻¹(D(G(z)))) = −E exp(ℓ(G(z))), scores above `STEEPEST` taken for it.

    At the optimal D, exp(ℓ) = p_data/p_g, and the gradient is that of KL(p_data ‖ p_g). Few samples, those taken for real, make nearly
    all of it.

    Source: Goodfellow (2016), NIPS tutorial, arXiv:1701.00160, section 3.2.4; Goodfellow (2014), arXiv:1412.6515.
    """
    return -fake.clamp(max=STEEPEST).exp().mean()


def wasserstein_critic(real, fake):
    """E f(G(z)) − E f(x). Its negative estimates K·W₁(p_data, p_g) for a K-Lipschitz critic near its optimum.

    Source: Arjovsky, Chintala and Bottou (2017), arXiv:1701.07875, algorithm 1.
    """
    return fake.mean() - real.mean()


def wasserstein_generator(fake):
    """−E f(G(z)). Source: Arjovsky, Chintala and Bottou (2017), arXiv:1701.07875, algorithm 1."""
    return -fake.mean()


def wasserstein_loss(labels, scores):
    """E y·f: the same loss as Keras' users write it, a call with y = −1 for real images and one with y = +1 for generated ones.

    Their sum is `wasserstein_critic`, and the generator's call with y = −1 is `wasserstein_generator`. With the labels' signs changed, as
    some texts have them, f is replaced by −f, and the game is the same. One call on both kinds, concatenated, is half of the sum.
    """
    return (labels * scores).mean()


def hinge_discriminator(real, fake):
    """E max(0, 1 − ℓ(x)) + E max(0, 1 + ℓ(G(z))), the hinge taken per sample.

    Source: Miyato et al. (2018), arXiv:1802.05957, eq. 16; Lim and Ye (2017), arXiv:1705.02894.
    """
    return _two_classes(real, fake, lambda score: torch.relu(1 - score), lambda score: torch.relu(1 + score))


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


def least_squares_discriminator(real, fake, a=0.0, b=1.0):
    """½ E (ℓ(x) − b)² + ½ E (ℓ(G(z)) − a)²: a is the code of generated images, b that of real ones.

    At the optimal D, where b − c = 1 and b − a = 2, the generator minimises Pearson's χ² between p_data + p_g and 2 p_g.

    Source: Mao et al. (2017), LSGAN, arXiv:1611.04076, eq. 2.
    """
    return _two_classes(real, fake, lambda score: (score - b).square(), lambda score: (score - a).square()) / 2


def least_squares_generator(fake, c=1.0):
    """½ E (ℓ(G(z)) − c)²: c is what the generator wants its images to be taken for. Source: as of `least_squares_discriminator`."""
    return (fake - c).square().mean() / 2


def energy_discriminator(real, fake, margin):
    """E U(x) + E max(0, m − U(G(z))), the hinge taken per sample. U is an energy: low for real images.

    Source: Zhao, Mathieu and LeCun (2017), EBGAN, arXiv:1609.03126, eq. 1. The generator minimises E U(G(z)), eq. 2.
    """
    return real.mean() + torch.relu(margin - fake).mean()


def pulling_away(codes):
    """Σᵢ Σⱼ≠ᵢ cos²(sᵢ, sⱼ) / (N (N − 1)) of codes (N, D): 1 where all point the same way or the opposite one, 0 where all are orthogonal.

    Σᵢⱼ (ŝᵢ·ŝⱼ)² = ‖Σᵢ ŝᵢ ŝᵢᵀ‖², of which the diagonal is N. So it is a function of a mean over samples, of all processes where there are
    several.

    Source: Zhao, Mathieu and LeCun (2017), EBGAN, arXiv:1609.03126, eq. 4.
    """
    directions, n = F.normalize(codes, dim=1), len(codes) * distributed.size()
    moment = distributed.mean(directions.T @ directions / len(codes))
    return (n * moment.square().sum() - 1) / max(n - 1, 1)  # one code has no pair


def loss_sensitive(real, fake, margin):
    """E max(0, Δ(x, G(z)) + L(x) − L(G(z))) over pairs (x, z). L is a loss: low for real images.

    A generated image is to have a loss that is larger than a real one's by the margin Δ (N,), how far apart the two are; once it has, the
    pair is left in peace. The generator minimises E L(G(z)).

    Source: Qi (2017), Loss-Sensitive GAN, arXiv:1701.06264, eq. 6, its constraint, which is all that the author's code minimises.
    """
    return torch.relu(margin + real - fake).mean()


def gaussian_divergence(mean, log_variance):
    """E KL(N(μ, diag σ²) ‖ N(0, I)) = ½ E Σⱼ (μⱼ² + σⱼ² − 1 − log σⱼ²), in nats: summed over the dimensions of (N, D), its mean over the batch.

    Source: Kingma and Welling (2014), arXiv:1312.6114, appendix B.
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2


def contrastive(first, second, temperature=0.1):
    """½ (E −log P(second_i|first_i) + E −log P(first_i|second_i)) of codes (N, D) of N pairs: of all of the other kind in the batch each is to find
    its own partner, P(second_j|first_i) = softmaxⱼ(cos(first_i, second_j)/τ).

    Like batch norm it sees the parts of `accumulate` one by one, and the batches of all processes as a whole.

    Source: Radford et al. (2021), CLIP, arXiv:2103.00020, section 2.3, where τ is learnt.
    """
    first, second = (distributed.whole(F.normalize(codes, dim=1)) for codes in (first, second))
    alike = first @ second.T / temperature
    partner = torch.arange(len(alike), device=alike.device)
    return (F.cross_entropy(alike, partner) + F.cross_entropy(alike.T, partner)) / 2
