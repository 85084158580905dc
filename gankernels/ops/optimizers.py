"""One step of RMSprop and of Adam over a list of weights, with the clip of the new weights and their moving average.

Weights, gradients, state and average are each read once and written once. Steps are incremented by the op. An empty
list stands for absent state. The optimisers made of these ops are in gankernels/optim.py.
"""

from __future__ import annotations

import torch

from .._registration import register


def _gradient(weight, grad, weight_decay, maximize):
    grad = -grad if maximize else grad
    return grad + weight_decay * weight if weight_decay else grad


def _finish(weight, update, clip, ema, ema_decay):
    weight.sub_(update)
    if clip is not None:
        weight.clamp_(-clip, clip)
    if ema is not None:
        ema.lerp_(weight, 1 - ema_decay)


@torch.no_grad()
def rmsprop_reference(weights, grads, square_avgs, momentum_buffers, grad_avgs, steps, ema, *, lr, lr_tensor=None,
                      alpha, eps, weight_decay, momentum, maximize, clip, ema_decay):  # fmt: skip
    """v <- alpha v + (1 - alpha) g^2;  w <- clip(w - lr g / (sqrt(v) + eps)); momentum, centring as in torch.optim."""
    lr = lr if lr_tensor is None else lr_tensor
    for i, (w, grad, v) in enumerate(zip(weights, grads, square_avgs)):
        steps[i] += 1
        g = _gradient(w, grad, weight_decay, maximize)
        v.mul_(alpha).addcmul_(g, g, value=1 - alpha)
        variance = v
        if grad_avgs:
            grad_avgs[i].lerp_(g, 1 - alpha)
            variance = v - grad_avgs[i] ** 2
        direction = g / (variance.sqrt() + eps)
        if momentum_buffers:
            direction = momentum_buffers[i].mul_(momentum).add_(direction)
        _finish(w, lr * direction, clip, ema[i] if ema else None, ema_decay)


@torch.no_grad()
def adam_reference(weights, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, ema, *, lr, lr_tensor=None,
                   beta1, beta2, eps, weight_decay, decoupled_weight_decay, maximize, clip, ema_decay):  # fmt: skip
    """m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  w <- clip(w - lr m^ / (sqrt(v^) + eps))."""
    lr = lr if lr_tensor is None else lr_tensor
    for i, (w, grad, m, v) in enumerate(zip(weights, grads, exp_avgs, exp_avg_sqs)):
        steps[i] += 1
        step = steps[i].to(w.dtype)
        if decoupled_weight_decay:
            w.mul_(1 - lr * weight_decay)
        g = _gradient(w, grad, 0 if decoupled_weight_decay else weight_decay, maximize)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        moment = v
        if max_exp_avg_sqs:
            moment = torch.maximum(max_exp_avg_sqs[i], v, out=max_exp_avg_sqs[i])
        denominator = (moment / (1 - beta2**step)).sqrt() + eps
        _finish(w, lr * (m / (1 - beta1**step)) / denominator, clip, ema[i] if ema else None, ema_decay)


def _fake(*args, **kwargs):
    return None


register("rmsprop_", fake=_fake, mutates=True)
register("adam_", fake=_fake, mutates=True)
