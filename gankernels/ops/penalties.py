"""Gradient penalties of a critic that is any callable in plain PyTorch.

Each runs the critic under `fast_double_backward`, asks for the score's gradient in the points alone, and reduces its norms with the
kernels of `grad_norm_penalty`: four passes of the critic in all (see fast_double_backward.py). Gradient, norms and their derivatives are
one C++ call (csrc/autograd/penalty.cpp), since a small critic is bound by the calls.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import torch

from .._checks import (
    check_batch,
    check_callable,
    check_flags,
    check_generator,
    check_like,
    check_number,
    check_tensor,
    shape,
)
from .fast_double_backward import fast_double_backward
from .interpolate import between

_op = torch.ops.gankernels
_COMPILED = (
    "compile the whole step instead, penalty included, with torch._dynamo.config.trace_autograd_ops = True, or pass the "
    "uncompiled critic"
)
_MUTATED = "gankernels.{op}: critic must leave its input as it is, and it wrote to it in place."


def _score(op: str, outputs, output) -> torch.Tensor:
    """The tensor to differentiate among what the critic returned."""
    if callable(output):
        outputs = output(outputs)
    elif output is not None:
        if isinstance(output, bool) or not isinstance(output, (int, str)):
            raise TypeError(
                f"gankernels.{op}: output must be an index, a key or a callable, got {type(output).__name__}."
            )
        try:
            if isinstance(outputs, torch.Tensor):  # an index would take a sample
                raise TypeError
            outputs = outputs[output]
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"gankernels.{op}: output must name one of what the critic returned, got {output!r} for {type(outputs).__name__}."
            ) from error
    elif isinstance(outputs, (tuple, list)) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, torch.Tensor):
        raise TypeError(
            f"gankernels.{op}: critic must return a tensor of scores, or a tuple or list that starts with one; for anything else "
            f"name it with output=, got {type(outputs).__name__}."
        )
    return outputs


def _differentiable_score(op, critic, x, critic_args, critic_kwargs, output):
    """The critic's score, the points it is to be differentiated at, all that the critic returned, and whether a part of it keeps its
    tensors elsewhere."""
    check_callable(op, "critic", critic, critic_args, critic_kwargs)
    if not torch.is_grad_enabled():
        raise RuntimeError(f"gankernels.{op}: gradients must be enabled, and this runs under torch.no_grad().")
    if not x.requires_grad:
        x = _op.leaf(x)
    version = None if torch.compiler.is_compiling() else x._version
    try:
        with fast_double_backward() as mode:
            outputs = critic(x, *critic_args, **(critic_kwargs or {}))
    except RuntimeError as error:
        if "leaf Variable that requires grad is being used in an in-place operation" in str(error):
            raise RuntimeError(_MUTATED.format(op=op)) from error
        raise
    if version is not None and x._version != version:
        raise RuntimeError(_MUTATED.format(op=op))
    score = _score(op, outputs, output)
    if not score.requires_grad:
        raise RuntimeError(
            f"gankernels.{op}: the critic's score must depend on its input, and it carries no gradient: look for no_grad, detach "
            "or .data in the critic."
        )
    if score.is_complex():
        raise TypeError(f"gankernels.{op}: the critic's score must be real, got {str(score.dtype)[6:]}.")
    if not torch.compiler.is_compiling():
        if score is x or score._is_view() and score._base is x:
            raise RuntimeError(
                f"gankernels.{op}: critic must compute its score, and it returned its input or a view of it."
            )
        if "torch._dynamo" in sys.modules and _op.compiled_between(score, x):
            # PyTorch 2.11 would return a gradient without a graph and lose the penalty in silence
            raise RuntimeError(
                f"gankernels.{op}: a compiled critic cannot be differentiated twice, so its penalty would have no gradient; "
                f"{_COMPILED}."
            )
    return score, x, outputs, not torch.compiler.is_compiling() and mode.kept_elsewhere


def _points(op: str, name: str, points: torch.Tensor) -> torch.Tensor:
    check_batch(op, name, points)
    return points.detach()


def _penalise(op, critic, x, weight, target, one_sided, critic_args, critic_kwargs, output, return_norms):
    check_flags(op, one_sided=one_sided, return_norms=return_norms)
    own_leaf = not x.requires_grad
    score, x, *_ = _differentiable_score(op, critic, x, critic_args, critic_kwargs, output)
    penalty, norms = _op.input_gradient_penalty(score, x, own_leaf, weight, target, one_sided, op)
    return (penalty, norms) if return_norms else penalty


_ARGUMENTS = """critic: any callable (N, ...) -> scores of any shape. When it returns a tuple or list, its first element is the score.
        critic_args, critic_kwargs: passed to the critic after its input: labels, conditions.
        output: which score to differentiate where that is not it: an index, a key, or a callable on what the critic returned.
        return_norms: also return the per-sample gradient norms (N,), which carry no gradient."""

_NAN = """A score that is NaN makes the penalty NaN, though the slopes of a piecewise-linear critic there be finite (a hardtanh's, 0, hides it)."""

_RAISES = """TypeError or ValueError for arguments that do not fit, RuntimeError when the penalty would be lost: gradients are off, the score
    does not depend on the input, or the critic is compiled (compile the whole step instead)."""


def _documented(function):
    for key, text in (("{arguments}", _ARGUMENTS), ("{nan}", _NAN), ("{raises}", _RAISES)):
        function.__doc__ = function.__doc__.replace(key, text)
    return function


@_documented
def gradient_penalty(
    critic: Callable,
    real: torch.Tensor,
    fake: torch.Tensor,
    *,
    weight: float = 10.0,
    target: float = 1.0,
    one_sided: bool = False,
    eps: torch.Tensor | float | None = None,
    generator: torch.Generator | None = None,
    critic_args: Sequence = (),
    critic_kwargs: dict | None = None,
    output: int | str | Callable | None = None,
    return_norms: bool = False,
):
    """weight * mean_i (|∇D(x_i)| - target)^2 at x_i = eps_i real_i + (1 - eps_i) fake_i: the penalty of WGAN-GP.

    Args:
        real, fake: (N, ...), the same shape, dtype and device. Their own graphs, if any, are differentiated too.
        weight: λ, >= 0.
        target: the norm that is not penalised, >= 0.
        one_sided: penalise only norms above the target (WGAN-LP).
        eps: (N,), or one number in [0, 1]; drawn from U(0, 1) per sample with `generator` when None.
        {arguments}

    Returns: a scalar, in float32 (float64 for float64 input).
    {nan}

    Raises: {raises}

    Source: Gulrajani et al. 2017, "Improved Training of Wasserstein GANs"; Petzka et al. 2018 for the one-sided form.
    """
    op = "gradient_penalty"
    check_batch(op, "real", real)
    check_like(op, "fake", fake, "real", real)
    check_number(op, "weight", weight, 0)
    check_number(op, "target", target, 0)
    x = between(op, real, fake, eps, generator)
    return _penalise(op, critic, x, weight, target, one_sided, critic_args, critic_kwargs, output, return_norms)


@_documented
def r1_penalty(
    critic: Callable,
    real: torch.Tensor,
    gamma: float = 10.0,
    *,
    critic_args: Sequence = (),
    critic_kwargs: dict | None = None,
    output: int | str | Callable | None = None,
    return_norms: bool = False,
):
    """gamma / 2 * mean_i |∇D(real_i)|^2: the zero-centred penalty on real samples.

    Args:
        real: (N, ...); detached from its own graph.
        gamma: γ, >= 0.
        {arguments}

    Returns: a scalar, in float32 (float64 for float64 input).
    {nan}

    Raises: {raises}

    Source: Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?".
    """
    check_number("r1_penalty", "gamma", gamma, 0)
    x = _points("r1_penalty", "real", real)
    return _penalise("r1_penalty", critic, x, gamma / 2, 0.0, False, critic_args, critic_kwargs, output, return_norms)


@_documented
def r2_penalty(
    critic: Callable,
    fake: torch.Tensor,
    gamma: float = 10.0,
    *,
    critic_args: Sequence = (),
    critic_kwargs: dict | None = None,
    output: int | str | Callable | None = None,
    return_norms: bool = False,
):
    """gamma / 2 * mean_i |∇D(fake_i)|^2: the zero-centred penalty on generated samples.

    Args:
        fake: (N, ...); detached from the generator's graph.
        gamma: γ, >= 0.
        {arguments}

    Returns: a scalar, in float32 (float64 for float64 input).
    {nan}

    Raises: {raises}

    Source: Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?".
    """
    check_number("r2_penalty", "gamma", gamma, 0)
    x = _points("r2_penalty", "fake", fake)
    return _penalise("r2_penalty", critic, x, gamma / 2, 0.0, False, critic_args, critic_kwargs, output, return_norms)


@_documented
def dragan_penalty(
    critic: Callable,
    real: torch.Tensor,
    *,
    weight: float = 10.0,
    target: float = 1.0,
    noise: float = 0.5,
    generator: torch.Generator | None = None,
    critic_args: Sequence = (),
    critic_kwargs: dict | None = None,
    output: int | str | Callable | None = None,
    return_norms: bool = False,
):
    """weight * mean_i (|∇D(x_i)| - target)^2 at x_i = real_i + (1 - eps_i) * noise * std(real) * u, u ~ U(0, 1) per element.

    Args:
        real: (N, ...); detached from its own graph.
        weight: λ, >= 0.
        target: the norm that is not penalised, >= 0.
        noise: scale of the perturbation in standard deviations of the batch, >= 0.
        {arguments}

    Returns: a scalar, in float32 (float64 for float64 input).
    {nan}

    Raises: {raises}

    Source: Kodali et al. 2017, "On Convergence and Stability of GANs".
    """
    op = "dragan_penalty"
    real = _points(op, "real", real)
    for name, value in (("weight", weight), ("target", target), ("noise", noise)):
        check_number(op, name, value, 0)
    check_generator(op, generator)
    u = torch.empty_like(real).uniform_(generator=generator)
    x = between(op, real, real + noise * real.std(correction=0) * u, None, generator)
    return _penalise(op, critic, x, weight, target, False, critic_args, critic_kwargs, output, return_norms)


def path_length_penalty(
    synthesis: Callable,
    w: torch.Tensor,
    mean_length: torch.Tensor,
    *,
    weight: float = 2.0,
    decay: float = 0.01,
    noise: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    synthesis_args: Sequence = (),
    synthesis_kwargs: dict | None = None,
    output: int | str | Callable | None = None,
    return_lengths: bool = False,
):
    """weight * mean_i (l_i - a)^2, l_i = |J_w^T y| with y ~ N(0, I) / sqrt(H W), a the running mean of the lengths.

    Args:
        synthesis: any callable from styles w to images (N, C, H, W); of a tuple or list, the first element is the image.
        w: (N, D), or (N, L, D) with one style per layer, where l_i^2 is the mean over layers of the squared norms. Its own graph
            (the mapping network) is differentiated too; without one it is used as a leaf.
        mean_length: a, a scalar tensor that the caller keeps; updated in place, a <- a + decay (mean_i l_i - a), before it is used.
        weight: >= 0.
        decay: in [0, 1].
        noise: y, of the images' shape and already scaled, instead of a draw with `generator`.
        synthesis_args, synthesis_kwargs: passed to the generator after w.
        output: where the image is, if not the first element: an index, a key, or a callable on what synthesis returned.
        return_lengths: also return the lengths (N,), detached.

    Returns: a scalar.

    Raises: TypeError or ValueError for arguments that do not fit, RuntimeError when the penalty would be lost.

    Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", section 3.2.
    """
    op = "path_length_penalty"
    check_batch(op, "w", w)
    check_number(op, "weight", weight, 0)
    check_number(op, "decay", decay, 0)
    if decay > 1:
        raise ValueError(f"gankernels.{op}: decay must be in [0, 1], got {decay}.")
    if w.dim() not in (2, 3):
        raise ValueError(f"gankernels.{op}: w must have shape (N, D) or (N, L, D), got {shape(w)}.")
    if not isinstance(mean_length, torch.Tensor) or mean_length.numel() != 1:
        got = shape(mean_length) if isinstance(mean_length, torch.Tensor) else type(mean_length).__name__
        raise TypeError(f"gankernels.{op}: mean_length must be a tensor of one element, updated in place, got {got}.")
    check_tensor(op, "mean_length", mean_length)
    if mean_length.device != w.device:
        raise ValueError(
            f"gankernels.{op}: mean_length must be on the device of w, {w.device}, got {mean_length.device}."
        )
    check_callable(op, "synthesis", synthesis, synthesis_args, synthesis_kwargs)
    check_generator(op, generator)
    check_flags(op, return_lengths=return_lengths)
    if noise is not None:
        check_tensor(op, "noise", noise)

    def projected(w, *args, **kwargs):
        images = _score(op, synthesis(w, *args, **kwargs), output)
        if images.dim() < 3:
            raise ValueError(f"gankernels.{op}: synthesis must return images (N, C, H, W), got {shape(images)}.")
        if noise is None:
            y = torch.empty_like(images).normal_(generator=generator) / math.sqrt(images.shape[2:].numel())
        else:
            check_like(op, "noise", noise, "the images", images)
            y = noise
        return (images * y).flatten(1).sum(1)

    score, w, *_ = _differentiable_score(
        op, projected, w if w.requires_grad else w.detach(), synthesis_args, synthesis_kwargs, None
    )
    (grads,) = torch.autograd.grad(score, w, score.detach().clamp(1, 1), create_graph=True, allow_unused=True)
    if grads is None:
        raise RuntimeError(
            f"gankernels.{op}: the images must depend on w, and their gradient there is absent: look for detach or .data in synthesis."
        )
    lengths = grads.float() if grads.dtype in (torch.float16, torch.bfloat16) else grads
    lengths = lengths.square().sum(-1)
    lengths = (lengths.mean(1) if w.dim() == 3 else lengths).sqrt()
    mean = mean_length.detach().to(lengths).lerp(lengths.mean(), decay)  # differentiated too, as published
    penalty = weight * (lengths - mean).square().mean()
    with torch.no_grad():
        mean_length.copy_(mean.reshape(mean_length.shape))
    return (penalty, lengths.detach()) if return_lengths else penalty
