"""The ops that a variant trains with, as one object, so that every variant can also be trained with stock PyTorch."""

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ganzoo.errors import ArgumentError


@dataclass(frozen=True)
class Ops:
    """A family of ops under the names and signatures of `gankernels`.

    `regularized_scores(critic, x, gamma)` returns the scores and the penalty, which gankernels differentiates in one backward;
    `path_length_penalty(synthesis, w, mean_length, noise)` E (‖Jᵀy‖ − a)² and the lengths, y being the noise and a their running mean.
    `Adam` and `RMSprop` take torch.optim's arguments, `clip=c` to clip the weights to [−c, c] after the update, and
    `ema=` with `ema_decay=` to average them; `spectral_norm` takes a whole network and returns it. Losses are evaluated in a
    context `layers()` where there is something to gain: on a CPU gankernels has convolutions of fewer products than stock's.
    From `bias_act` on it is what networks are made of, stock's being the ops' definitions, `gankernels.reference`.
    """

    name: str
    gradient_penalty: Callable
    r1_penalty: Callable
    regularized_scores: Callable
    path_length_penalty: Callable
    spectral_norm: Callable
    Adam: Callable
    RMSprop: Callable
    layers: Callable
    bias_act: Callable
    filtered_lrelu: Callable
    grid_sample: Callable
    group_norm: Callable
    minibatch_discrimination: Callable
    minibatch_stddev: Callable
    modulated_conv2d: Callable
    pixel_norm: Callable
    scaled_dot_product_attention: Callable
    upfirdn2d: Callable


NAMES = [field.name for field in dataclasses.fields(Ops)]
OF_NETWORKS = NAMES[NAMES.index("bias_act") :]


def get_ops(name):
    """The family of that name: `gankernels`, or `stock` for the same maths in PyTorch's own ops."""
    if name == "gankernels":
        import gankernels

        def gradient_penalty(critic, real, fake, **options):
            return gankernels.gradient_penalty(critic, real, fake.to(real.dtype), **options)  # autocast's is lower

        def regularized_scores(critic, x, gamma):
            x = x.to(torch.promote_types(x.dtype, torch.float32))  # autocast's is lower
            return gankernels.regularized_scores(critic, x, gamma)[:2]

        def path_length_penalty(synthesis, w, mean_length, noise):
            def images(w):
                return synthesis(w).to(noise.dtype)

            options = dict(weight=1.0, decay=0.0, noise=noise, return_lengths=True)
            return gankernels.path_length_penalty(images, w, mean_length, **options)

        return Ops(
            name,
            gradient_penalty,
            gankernels.r1_penalty,
            regularized_scores,
            path_length_penalty,
            gankernels.nn.spectral_norm,
            gankernels.optim.Adam,
            gankernels.optim.RMSprop,
            gankernels.fast_double_backward,
            **{op: getattr(gankernels, op) for op in OF_NETWORKS},
        )
    if name == "stock":
        import gankernels.reference

        from ganzoo.training import stock

        return Ops(
            name,
            stock.gradient_penalty,
            stock.r1_penalty,
            stock.regularized_scores,
            stock.path_length_penalty,
            stock.spectral_norm,
            stock.Adam,
            stock.RMSprop,
            contextlib.nullcontext,
            **{op: getattr(gankernels.reference, op) for op in OF_NETWORKS},
        )
    raise ArgumentError("ops", "gankernels or stock", repr(name))
