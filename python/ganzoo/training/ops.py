"""The ops that a variant trains with, as one object, so that every variant can also be trained with stock PyTorch."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ganzoo.errors import ArgumentError


@dataclass(frozen=True)
class Ops:
    """A family of ops under the names and signatures of `gankernels`.

    `regularized_scores(critic, x, gamma)` returns the scores and the penalty, which gankernels differentiates in one backward.
    `Adam` and `RMSprop` take torch.optim's arguments, `clip=c` to clip the weights to [−c, c] after the update, and
    `ema=` with `ema_decay=` to average them; `spectral_norm` takes a whole network and returns it. Losses are evaluated in a
    context `layers()` where there is something to gain: on a CPU gankernels has convolutions of fewer products than stock's.
    """

    name: str
    gradient_penalty: Callable
    r1_penalty: Callable
    regularized_scores: Callable
    spectral_norm: Callable
    Adam: Callable
    RMSprop: Callable
    layers: Callable


def get_ops(name):
    """The family of that name: `gankernels`, or `stock` for the same maths in PyTorch's own ops."""
    if name == "gankernels":
        import gankernels

        def gradient_penalty(critic, real, fake, **options):
            return gankernels.gradient_penalty(critic, real, fake.to(real.dtype), **options)  # autocast's is lower

        def regularized_scores(critic, x, gamma):
            x = x.to(torch.promote_types(x.dtype, torch.float32))  # autocast's is lower
            return gankernels.regularized_scores(critic, x, gamma)[:2]

        return Ops(
            name,
            gradient_penalty,
            gankernels.r1_penalty,
            regularized_scores,
            gankernels.nn.spectral_norm,
            gankernels.optim.Adam,
            gankernels.optim.RMSprop,
            gankernels.fast_double_backward,
        )
    if name == "stock":
        from ganzoo.training import stock

        return Ops(
            name,
            stock.gradient_penalty,
            stock.r1_penalty,
            stock.regularized_scores,
            stock.spectral_norm,
            stock.Adam,
            stock.RMSprop,
            contextlib.nullcontext,
        )
    raise ArgumentError("ops", "gankernels or stock", repr(name))
