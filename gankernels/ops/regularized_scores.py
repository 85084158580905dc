"""Scores and their zero-centred gradient penalty with one backward for both.

With l'_i the loss's derivative in score i, a layer's input a_i, the adjoint δ_i of score i at its output y = W a + b, and the tangent t_i
of the penalty at its input, the gradient of loss + penalty is

    dW = Σ_i δ_i ⊗ (l'_i a_i + t_i),    db = Σ_i l'_i δ_i

since the loss's adjoint at y is l'_i δ_i where samples do not see each other. The four passes of the penalty (forward, input gradient,
tangent, weight gradient) thus serve the loss too. docs/regularised-loss.md derives this line by line.

csrc/autograd/penalty.cpp makes it happen within autograd: scores and penalty are the outputs of one node, which therefore knows l' before
the weights' gradients are made. critic_graph.cpp reads the critic's graph and decides whether the above holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .._checks import check_batch, check_flags, check_number
from .penalties import _differentiable_score, _documented

_op = torch.ops.gankernels


class RegularizedScores(NamedTuple):
    scores: torch.Tensor
    penalty: torch.Tensor
    norms: torch.Tensor
    outputs: object


@_documented
def regularized_scores(
    critic: Callable,
    x: torch.Tensor,
    gamma: float = 10.0,
    *,
    critic_args: Sequence = (),
    critic_kwargs: dict | None = None,
    output: int | str | Callable | None = None,
    fold: bool = True,
) -> RegularizedScores:
    """The critic's scores at x and gamma / 2 * mean_i |∇D(x_i)|^2, for a loss on the scores plus the penalty at four passes in all.

        real_scores, r1, *_ = gk.regularized_scores(critic, real, gamma)      # R1
        fake_scores, r2, *_ = gk.regularized_scores(critic, fake, gamma)      # R2
        loss = F.softplus(fake_scores - real_scores).mean() + r1 + r2         # any loss, relativistic or not
        loss.backward()

    dW = Σ_i δ_i ⊗ (l'_i a_i + t_i): the loss shares the penalty's forward, input gradient and weight gradient, so both cost what the
    penalty costs: forward, input gradient, tangent, weight gradient. Behind a smooth activation the penalty itself has an adjoint that
    goes down to the input: at most six passes, which are then the minimum. `gk.explain` tells which passes a critic takes.

    Exact for every critic. The passes are shared where the score is one number per sample and every operation between x and the score is
    known to keep samples apart; a critic with batch norm in training, minibatch statistics, hooks on its activations, checkpointed
    parts, several scores per sample or an operation that is not known takes the passes of the loss and of the penalty one by one, with one
    forward for both.

    Args:
        x: (N, ...); detached from its own graph, and gets no gradient.
        gamma: γ, >= 0.
        {arguments}
        fold: share the passes where possible. False is for those who differentiate the result twice.

    Returns: (scores, penalty, norms, outputs): the scores in the shape that the critic gave them, a scalar in float32 (float64 for float64
    input), the per-sample gradient norms (N,), which carry no gradient, and what the critic returned. Losses on other parts of `outputs`,
    and other losses, may be added to the same backward. Differentiable once.
    {nan}

    Raises: {raises}

    Source: Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?" for R1 and R2; Huang et al. 2024, "The GAN is
    dead; long live the GAN!" for both with a relativistic loss.
    """
    op = "regularized_scores"
    check_batch(op, "x", x)
    check_number(op, "gamma", gamma, 0)
    check_flags(op, fold=fold)
    score, x, outputs, kept_elsewhere = _differentiable_score(
        op, critic, x.detach(), critic_args, critic_kwargs, output
    )
    scores, penalty, norms = _op.regularize(score, x, gamma / 2, 0.0, False, fold and not kept_elsewhere, op)
    return RegularizedScores(scores, penalty, norms, outputs)
