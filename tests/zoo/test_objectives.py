import math

import pytest
import torch
from ganzoo import objectives as obj


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_minimax_discriminator_by_hand():
    expected = (
        -(math.log(sigmoid(2)) + math.log(sigmoid(-1))) / 2
        - (math.log(1 - sigmoid(0.5)) + math.log(1 - sigmoid(-3))) / 2
    )
    assert obj.minimax_discriminator(t(2, -1), t(0.5, -3)).item() == pytest.approx(expected, rel=1e-12)


def test_generators_of_the_two_games_by_hand():
    assert obj.minimax_generator(t(0.5, -3)).item() == pytest.approx(
        (math.log(1 - sigmoid(0.5)) + math.log(1 - sigmoid(-3))) / 2, rel=1e-12
    )
    assert obj.non_saturating_generator(t(0.5, -3)).item() == pytest.approx(
        -(math.log(sigmoid(0.5)) + math.log(sigmoid(-3))) / 2, rel=1e-12
    )


def test_value_at_the_optimal_discriminator_is_two_jsd_minus_log_four():
    # p = (3/4, 1/4), q = (1/4, 3/4) on two points; D* = p/(p+q), so its logit is log p/q.
    loss = obj.minimax_discriminator(torch.log(t(3, 3, 3, 1 / 3)), torch.log(t(3, 1 / 3, 1 / 3, 1 / 3))).item()
    jsd = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert -loss == pytest.approx(2 * jsd - math.log(4), rel=1e-12)


def test_only_the_minimax_gradient_vanishes_where_the_fakes_are_spotted():
    def slope(loss):
        score = t(-20).requires_grad_()
        loss(score).backward()
        return score.grad.item()

    assert abs(slope(obj.minimax_generator)) < 1e-8
    assert slope(obj.non_saturating_generator) == pytest.approx(-1, abs=1e-8)


def test_wasserstein_by_hand_with_high_scores_for_real():
    assert obj.wasserstein_critic(t(3, 5), t(1, -2)).item() == pytest.approx(-0.5 - 4)
    assert obj.wasserstein_generator(t(1, -2)).item() == pytest.approx(0.5)


def test_hinge_is_per_sample_not_of_the_batch_mean():
    # Of the means it would be max(0, 1 - 1) + max(0, 1 - 1.5) = 0.
    assert obj.hinge_discriminator(t(2, 0), t(-3, 0)).item() == pytest.approx(1.0)
    assert obj.hinge_generator(t(-3, 0)).item() == pytest.approx(1.5)


def test_relativistic_is_per_pair():
    expected = (-math.log(sigmoid(2 - 0.5)) - math.log(sigmoid(-1 + 3))) / 2
    assert obj.relativistic_discriminator(t(2, -1), t(0.5, -3)).item() == pytest.approx(expected, rel=1e-12)
    assert obj.relativistic_generator(t(0.5, -3), t(2, -1)).item() == pytest.approx(expected, rel=1e-12)


def test_maximum_likelihood_by_hand():
    odds = [sigmoid(s) / (1 - sigmoid(s)) for s in (0.5, -3)]
    assert obj.maximum_likelihood_generator(t(0.5, -3)).item() == pytest.approx(-sum(odds) / 2, rel=1e-12)
    assert obj.maximum_likelihood_generator(t(1000)).item() == pytest.approx(-math.exp(obj.STEEPEST))


def test_keras_labels_are_the_same_game():
    real, fake = t(3, 5), t(1, -2)
    ones = torch.ones(2, dtype=torch.float64)
    both = obj.wasserstein_loss(-ones, real) + obj.wasserstein_loss(ones, fake)
    assert both.item() == obj.wasserstein_critic(real, fake).item()
    assert obj.wasserstein_loss(-ones, fake).item() == obj.wasserstein_generator(fake).item()
    # the other sign of the labels, seen by the critic −f
    assert (obj.wasserstein_loss(ones, -real) + obj.wasserstein_loss(-ones, -fake)).item() == both.item()


def test_least_squares_by_hand_with_its_codes():
    real, fake = t(2, 0), t(-1, 0.5)
    assert obj.least_squares_discriminator(real, fake).item() == pytest.approx((1 + 1) / 4 + (1 + 0.25) / 4)
    assert obj.least_squares_discriminator(real, fake, a=-1, b=2).item() == pytest.approx((0 + 4) / 4 + (0 + 2.25) / 4)
    assert obj.least_squares_generator(fake).item() == pytest.approx((4 + 0.25) / 4)
    assert obj.least_squares_generator(fake, c=0.5).item() == pytest.approx((2.25 + 0) / 4)


def test_least_squares_with_the_codes_of_the_theorem_is_pearsons_divergence():
    p, q, (a, b, c) = t(0.7, 0.2, 0.1), t(0.1, 0.3, 0.6), (-1.0, 1.0, 0.0)

    def loss(scores):
        # every point by itself, as often as it is real or generated
        both = zip(p, q, scores)
        return sum(pi * obj.least_squares_discriminator(s, t(a), a, b) for pi, _, s in both) + sum(
            qi * obj.least_squares_discriminator(t(b), s, a, b) for _, qi, s in zip(p, q, scores)
        )

    best = ((b * p + a * q) / (p + q)).requires_grad_()
    (slope,) = torch.autograd.grad(loss(best), best)
    assert slope.abs().max() < 1e-12  # best it is
    generator = sum((pi + qi) * obj.least_squares_generator(s, c) for pi, qi, s in zip(p, q, best))
    pearson = ((2 * q - (p + q)).square() / (p + q)).sum()
    assert 2 * generator.item() == pytest.approx(pearson.item(), rel=1e-12)


def test_energys_hinge_is_per_sample_not_of_the_batch_mean():
    # Of the mean it would be max(0, 1 - 2) = 0.
    assert obj.energy_discriminator(t(0.2, 0.4), t(0, 4), margin=1.0).item() == pytest.approx(0.3 + 0.5)


def test_pulling_away_is_the_mean_squared_cosine_of_pairs_without_the_diagonal():
    codes = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [
        torch.cosine_similarity(codes[i], codes[j], dim=0).item() ** 2 for i in range(5) for j in range(5) if i != j
    ]
    assert obj.pulling_away(codes).item() == pytest.approx(sum(pairs) / 20, rel=1e-12)
    assert obj.pulling_away(t(1, 0, 0, 2).view(2, 2)).item() == pytest.approx(0, abs=1e-12)
    assert obj.pulling_away(t(3, 4).view(1, 2)).item() == pytest.approx(0, abs=1e-12)
    assert obj.pulling_away(t(1, 0, -2, 0).view(2, 2)).item() == pytest.approx(1)  # the square is of both signs
    assert torch.autograd.gradcheck(obj.pulling_away, codes.requires_grad_())


def test_loss_sensitive_margin_is_per_pair():
    # 1 + 0 - 3 < 0: that pair is left in peace; 0.5 + 2 - 1 = 1.5. Of the means it would be max(0, 0.75 + 1 - 2) = 0.
    assert obj.loss_sensitive(t(0, 2), t(3, 1), t(1, 0.5)).item() == pytest.approx(0.75)


@pytest.mark.parametrize("score", [-1000.0, 1000.0])
def test_extreme_scores_stay_finite(score):
    for value in (
        obj.minimax_discriminator(t(score), t(score)),
        obj.minimax_generator(t(score)),
        obj.non_saturating_generator(t(score)),
        obj.maximum_likelihood_generator(t(score)),
        obj.relativistic_discriminator(t(score), t(0.0)),
    ):
        assert math.isfinite(value.item())
