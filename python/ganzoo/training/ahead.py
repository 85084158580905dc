"""Players as they will be: weights after steps not yet taken, as tensors that gradients flow through."""

import torch
from torch.func import functional_call

from ganzoo.errors import Error
from ganzoo.training import distributed

TINY = 1e-30
"""Below the root of a running square, so that its slope at 0 is finite; far below what eps lets show."""


def unrolled(networks, player, optimizer, names, params, count, draw, ops):
    """The weights of a player after `count` steps of its optimiser on its loss, by name: functions of everything that the
    losses depend on. The player, its optimiser's state and its networks' weights stay as they are.

    Source: Metz et al. (2017), arXiv:1611.02163, eqs. 7 to 9.
    """
    if type(optimizer).__name__ not in _STEPS:
        raise Error(f"a player to unroll must have Adam, RMSprop or SGD, got {type(optimizer).__name__}.")
    step, group = _STEPS[type(optimizer).__name__], optimizer.param_groups[0]
    weights = [param.detach().requires_grad_() for param in params]
    states = [
        {key: torch.as_tensor(value).clone() for key, value in optimizer.state.get(p, {}).items()} for p in params
    ]
    for _ in range(count):
        loss, _ = functional_call(networks, dict(zip(names, weights)), (player.loss, draw, ops))
        slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        weights = [
            weight if slope is None else step(weight, distributed.mean(slope), state, group)
            for weight, slope, state in zip(weights, slopes, states)
        ]
        if group.get("clip"):
            weights = [weight.clamp(-group["clip"], group["clip"]) for weight in weights]
    return dict(zip(names, weights))


def _adam(weight, slope, state, group):
    beta1, beta2 = group["betas"]
    state["step"] = state.get("step", 0) + 1
    slope = slope + group["weight_decay"] * weight
    state["exp_avg"] = beta1 * state.get("exp_avg", 0) + (1 - beta1) * slope
    state["exp_avg_sq"] = beta2 * state.get("exp_avg_sq", 0) + (1 - beta2) * slope.square()
    mean, square = (
        state[key] / (1 - beta ** state["step"]) for key, beta in (("exp_avg", beta1), ("exp_avg_sq", beta2))
    )
    return weight - group["lr"] * mean / ((square + TINY).sqrt() + group["eps"])


def _rmsprop(weight, slope, state, group):
    slope = slope + group["weight_decay"] * weight
    state["square_avg"] = group["alpha"] * state.get("square_avg", 0) + (1 - group["alpha"]) * slope.square()
    return weight - group["lr"] * slope / ((state["square_avg"] + TINY).sqrt() + group["eps"])


def _sgd(weight, slope, state, group):
    return weight - group["lr"] * (slope + group["weight_decay"] * weight)


_STEPS = {"Adam": _adam, "RMSprop": _rmsprop, "SGD": _sgd}


def looked_ahead(weights, previous):
    """w + (w − w₋). Source: Yadav et al. (2018), arXiv:1705.07364, the prediction step."""
    return torch._foreach_sub(torch._foreach_mul(weights, 2), previous)
