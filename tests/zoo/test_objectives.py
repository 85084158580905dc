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


@pytest.mark.parametrize("score", [-1000.0, 1000.0])
def test_extreme_scores_stay_finite(score):
    for value in (
        obj.minimax_discriminator(t(score), t(score)),
        obj.minimax_generator(t(score)),
        obj.non_saturating_generator(t(score)),
        obj.relativistic_discriminator(t(score), t(0.0)),
    ):
        assert math.isfinite(value.item())
