"""What the papers prove of their games, seen in the losses that the variants train with."""

import math
from dataclasses import dataclass

import ganzoo
import pytest
import torch
from torch import nn

from ganzoo import Trainer
from ganzoo.data.base import Tensors
from ganzoo.games import gradient_variance, losses_and_slopes
from ganzoo.objectives import maximum_likelihood_generator, minimax_discriminator
from ganzoo.variants import Networks
from ganzoo.variants.gan import GENERATOR_LOSSES
from ganzoo.variants.wgan import WGAN
from ganzoo.variants.wgan_gp import WGANGP

GRID = torch.linspace(-8, 8, 4001, dtype=torch.float64)
STEP = 16 / 4000


def normal(x, mean, sigma):
    return torch.exp(-(((x - mean) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))


def even(count, mean=0.0, sigma=1.0):
    """A Gaussian's quantiles, (count, 1): a sample without chance."""
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (mean + sigma * math.sqrt(2) * torch.erfinv(2 * middles - 1))[:, None]


def trained_discriminator(real, fake, steps=300):
    """A perceptron's raw scores after so many steps on these samples."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0))
    network.double()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        optimizer.zero_grad()
        minimax_discriminator(network(real), network(fake)).backward()
        optimizer.step()
    return network.requires_grad_(False)


def test_a_trained_discriminator_is_the_optimal_one_and_its_value_the_divergence():
    real, fake = even(400, -1, 0.5), even(400, 0.5, 1)
    network = trained_discriminator(real, fake, steps=600)
    p, q = normal(GRID, -1, 0.5), normal(GRID, 0.5, 1)
    likely = p + q > 0.1  # elsewhere it has seen next to nothing
    apart = (network(GRID[:, None]).sigmoid() - p / (p + q)).abs()[likely]
    assert apart.max() < 0.03

    jsd = (p * torch.log(2 * p / (p + q)) + q * torch.log(2 * q / (p + q))).sum() * STEP / 2
    value = 2 * jsd.item() - math.log(4)

    def optimal(x):
        return torch.log(normal(x, -1, 0.5) / normal(x, 0.5, 1))

    assert -minimax_discriminator(optimal(real), optimal(fake)).item() == pytest.approx(value, rel=0.02)
    assert -minimax_discriminator(network(real), network(fake)).item() == pytest.approx(value, rel=0.02)


def test_the_value_of_equals_is_minus_log_four():
    torch.manual_seed(0)
    network = trained_discriminator(torch.randn(1000, 1).double(), torch.randn(1000, 1).double())
    unseen = even(400)
    assert -minimax_discriminator(network(unseen), network(unseen)).item() == pytest.approx(-math.log(4), rel=0.02)


def test_the_maximum_likelihood_game_has_the_gradient_of_the_likelihood():
    mean, sigma = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.2, 1.1))
    fake = mean + sigma * even(200_000)[:, 0]
    p, q = normal(fake, 1.0, 0.8), normal(fake, mean.detach(), sigma.detach())  # the discriminator stands still
    game = torch.autograd.grad(maximum_likelihood_generator(torch.log(p / q)), (mean, sigma))
    kl = torch.log(sigma / 0.8) + (0.8**2 + (1.0 - mean) ** 2) / (2 * sigma**2) - 0.5  # KL(p_data ‖ p_g)
    torch.testing.assert_close(game, torch.autograd.grad(kl, (mean, sigma)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("distance", [0.5, 1.0, 1.5])
def test_variance_of_the_gradient_per_sample_is_that_of_the_integrals(distance):
    # at the optimal D the maximum-likelihood slopes are −p/q, whose second moment is exp(distance²)
    found = {name: gradient_variance(loss, distance) for name, loss in GENERATOR_LOSSES.items()}
    assert found["maximum-likelihood"] == pytest.approx(math.exp(distance**2) - 1, rel=1e-4)
    assert found["non-saturating"] < found["minimax"] < found["maximum-likelihood"]


def test_slopes_of_the_three_games_where_fakes_are_spotted_and_where_they_are_believed():
    """By hand: dJ/dℓ is −D, D − 1 and −D/(1 − D)."""
    probabilities = torch.tensor([0.001, 0.5, 0.99], dtype=torch.float64)
    expected = {
        "minimax": (torch.log(1 - probabilities), -probabilities),
        "non-saturating": (-torch.log(probabilities), probabilities - 1),
        "maximum-likelihood": (-probabilities / (1 - probabilities),) * 2,
    }
    for name, loss in GENERATOR_LOSSES.items():
        torch.testing.assert_close(losses_and_slopes(loss, probabilities), expected[name])


class Fixed:
    """A variant's critic alone, against latents that are the samples already."""

    def networks(self, data, ops):
        return Networks(generator=nn.Identity(), critic=super().networks(data, ops).critic)

    def players(self, ops):
        return {"critic": super().players(ops)["critic"]}


class Line(Fixed):
    """p_g is the line (0, y), y ~ U(0, 1)."""

    def latents(self, count, generator):
        y = torch.rand(count, 1, generator=generator)
        return torch.cat([torch.zeros_like(y), y], 1)


@dataclass
class PenalisedLine(Line, WGANGP):
    pass


def trained_critic(variant, data, steps):
    """Its learning rate falls to 0, so that it comes to rest."""
    trainer = Trainer(variant, data, seed=0)
    for step in range(steps):
        trainer._optimizers["critic"].param_groups[0]["lr"] = variant.lr * (1 - step / steps)
        trainer._take(["critic"])
    return trainer


def estimate(trainer, n=2000):
    """What the critic takes for W₁, and the norms of its gradient between the samples."""
    variant, critic = trainer.variant, trainer.networks.critic
    real = next(iter(trainer.sources.values())).fetch(torch.arange(n))["image"]
    fake = variant.latents(n, torch.Generator().manual_seed(1))
    mixed = torch.rand(n, 1, generator=torch.Generator().manual_seed(2))
    x = (mixed * real + (1 - mixed) * fake).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(x).sum(), x)
    return (critic(real).mean() - critic(fake).mean()).item(), slopes.norm(dim=1)


@pytest.mark.parametrize("theta", [-0.4, 0.2, 0.8])
def test_between_parallel_lines_wasserstein_is_their_distance_and_the_divergence_is_stuck(theta):
    data = ganzoo.data.open("parallel-lines", theta=theta, n=4000)
    trainer = trained_critic(PenalisedLine(batch=256, width=1, lr=1e-2, betas=(0.5, 0.9)), data, 150)
    assert estimate(trainer)[0] == pytest.approx(abs(theta), rel=0.05)
    real = data.fetch(torch.arange(400))["image"][:, :1].double()
    network = trained_discriminator(real, torch.zeros_like(real), steps=150)
    jsd = (math.log(4) - minimax_discriminator(network(real), network(torch.zeros_like(real))).item()) / 2
    assert jsd == pytest.approx(math.log(2), rel=0.02)


@dataclass
class FixedGaussian(Fixed, WGANGP):
    """p_g is N(0, I)."""

    def latents(self, count, generator):
        return torch.randn(count, 2, generator=generator)


def test_a_critic_knows_the_distance_of_known_distributions_and_has_slopes_of_norm_one():
    """Gaussians of one covariance, whose W₁ is the distance of their means."""
    shift = torch.tensor([0.48, 0.36])
    data = Tensors("shifted", {"image": torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)) + shift})
    trainer = trained_critic(FixedGaussian(batch=512, width=1, lr=2e-2, betas=(0.5, 0.9)), data, 400)
    distance, norms = estimate(trainer, 20_000)
    assert distance == pytest.approx(0.6, rel=0.05)
    assert norms.mean().item() == pytest.approx(1, abs=0.05) and norms.std() < 0.1


@dataclass
class ClippedLine(Line, WGAN):
    """A linear critic, whose best clipped weights are the bound."""

    def networks(self, data, ops):
        return Networks(generator=nn.Identity(), critic=nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)))


@pytest.mark.parametrize("theta", [-0.5, 0.25, 1.0])
def test_clipped_weights_estimate_a_multiple_of_the_distance(theta):
    data = ganzoo.data.open("parallel-lines", theta=theta, n=1000)
    found, _ = estimate(trained_critic(ClippedLine(clip=0.1, lr=0.05), data, 40), 1000)
    assert found == pytest.approx(0.1 * abs(theta), rel=0.05)  # a little of it is the chance in y
