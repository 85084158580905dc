import torch

import gankernels as gk
from gankernels.ops import minibatch_discrimination

from .spec import INT, Kernel, Spec, randn, weighted

_op = torch.ops.gankernels


_reference = minibatch_discrimination._reference_of_m


def _bwd_reference(grad, m):
    """By the formula, pair by pair, rather than by autograd."""
    difference = m[:, None] - m[None]
    k = difference.abs().sum(-1).neg().exp() * (grad[:, None] + grad[None])
    return -(k[..., None] * difference.sign()).sum(1)


def _bwd_bwd_reference(v, grad, m):
    with torch.enable_grad():
        grad, m = grad.detach().requires_grad_(), m.detach().requires_grad_()
        return torch.autograd.grad(_bwd_reference(grad, m), (grad, m), v)


def _matrices(shape, dtype, device):
    return 0.4 * randn(shape, torch.float64, device).to(dtype)


def _inputs(shape, dtype, device):
    return (_matrices(shape, dtype, device),)


def _bwd_inputs(shape, dtype, device):
    return randn(shape[:2], dtype, device), _matrices(shape, dtype, device)


def _bwd_bwd_inputs(shape, dtype, device):
    return randn(shape, dtype, device), *_bwd_inputs(shape, dtype, device)


X, T, M = torch.ones(3, 4), torch.ones(4, 2, 5), torch.ones(3, 2, 5)

_BAD = {
    "list": (lambda: gk.minibatch_discrimination([1.0], T), "x must be a tensor, got list"),
    "integers": (lambda: gk.minibatch_discrimination(X.long(), T), "x must be float64, .* got int64"),
    "dimensions": (lambda: gk.minibatch_discrimination(X[0], T), r"x must have shape \(N, ...\) .* got \(4,\)"),
    "rank": (lambda: gk.minibatch_discrimination(X, T[0]), r"T must have shape \(A, B, C\) with A = 4, got \(2, 5\)"),
    "features": (lambda: gk.minibatch_discrimination(X[:, :3], T), r"T must have .* with A = 3, got \(4, 2, 5\)"),
    "dtype": (lambda: gk.minibatch_discrimination(X, T.double()), "T must have the dtype of x, float32, got float64"),
    "device": (lambda: gk.minibatch_discrimination(X, T.to("meta")), "T must be on the device of x, cpu, got meta"),
    "raw_rank": (lambda: _op.minibatch_discrimination(X), r"m must have shape \(N, B, C\), got \(3, 4\)"),
    "raw_integers": (lambda: _op.minibatch_discrimination(M.long()), "expected a float64, float32, .* got Long"),
    "raw_grad": (
        lambda: _op.minibatch_discrimination_bwd(X, M),
        r"grad must have shape \(N, B\) = \(3, 2\), got \(3, 4\)",
    ),
    "raw_grad_dtype": (
        lambda: _op.minibatch_discrimination_bwd(M[..., 0].double(), M),
        "grad must have the dtype of m",
    ),
    "raw_grad_grad": (
        lambda: _op.minibatch_discrimination_bwd_bwd(M[:2], M[..., 0], M),
        "grad_grad must have the shape of m",
    ),
}

# More than one tile of rows, more channels than a program takes at a time, nothing at all in each dimension.
_SHAPES = {
    "odd": (5, 3, 7),
    "one": (1, 2, 3),
    "large": (130, 40, 16),
    "many": (17, 1, 17),
    "no_samples": (0, 2, 3),
    "no_features": (3, 0, 2),
    "no_channels": (3, 2, 0),
}

_bwd, _bwd_bwd = _op.minibatch_discrimination_bwd, _op.minibatch_discrimination_bwd_bwd

# Samples differ in every layout: at a tie there is no second derivative.
SPECS = [
    Spec(
        name,
        op,
        reference,
        inputs,
        tuple(range(count)),
        differentiable,
        outputs=tuple(range(outputs)),
        second_order=name == "minibatch_discrimination",
        shapes=_SHAPES,
        bad=bad,
        distinct=0,
        real={"batch256": (256, 64, 16), "batch64": (64, 100, 5)} if bad else {},
        goals={"forward_backward": {"stock": 5.0}} if bad else {},
    )
    for name, op, reference, inputs, count, differentiable, outputs, bad in (
        ("minibatch_discrimination", _op.minibatch_discrimination, _reference, _inputs, 1, (0,), 1, _BAD),
        ("minibatch_discrimination_bwd", weighted(_bwd), weighted(_bwd_reference), _bwd_inputs, 2, (0, 1), 1, {}),
        ("minibatch_discrimination_bwd_bwd", _bwd_bwd, _bwd_bwd_reference, _bwd_bwd_inputs, 3, (), 2, {}),
    )
]

LAUNCHERS = {
    "minibatch_discrimination": minibatch_discrimination._minibatch_discrimination_triton,
    "minibatch_discrimination_bwd": weighted(minibatch_discrimination._minibatch_discrimination_bwd_triton),
    "minibatch_discrimination_bwd_bwd": minibatch_discrimination._minibatch_discrimination_bwd_bwd_triton,
}

KERNELS = {
    f"minibatch_discrimination{suffix}": Kernel(
        getattr(minibatch_discrimination, f"minibatch_discrimination{suffix}_kernel"),
        lambda t, a, tensors=tensors: (*[t] * tensors, INT, INT, INT),
        {"ROWS": 16, "CHANNELS": 16},
        streams=False,  # a row of C values is short
    )
    for suffix, tensors in (("", 2), ("_bwd", 3), ("_bwd_bwd", 5))
}
