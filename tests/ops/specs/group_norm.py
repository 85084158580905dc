from functools import partial

import torch
import torch.nn.functional as F

import gankernels as gk
from gankernels.ops import group_norm

from .spec import INT, Kernel, Spec, accumulate, randn

_op = torch.ops.gankernels

# Also features without pixels, rows and planes longer than a tile, more channels than one is wide.
_SHAPES = {
    "odd": (3, 6, 5, 3),
    "one": (1, 5, 3, 3),
    "large": (2, 1100, 9, 9),
    "latents": (18, 70),
    "long": (1, 2500),
    "sequence": (1, 4, 2100),
    "empty": (0, 4, 4, 4),
}
_EPS = 0.3  # one that shows


def _groups(shape, grouped):
    return 2 if grouped and shape[1] % 2 == 0 and shape[1] > 2 else 1


def _inputs(grouped, centre):
    def inputs(shape, dtype, device):
        parameters = [randn(shape[1:2], dtype, device) for _ in range(2)]
        return 0.3 + randn(shape, dtype, device), *parameters, _groups(shape, grouped), _EPS, centre

    return inputs


def _reference(x, weight, bias, groups, eps, centre):
    """And the statistics."""
    flat = x.unflatten(1, (groups, -1)).flatten(2)
    mean = flat.mean(2) if centre else x.new_zeros(flat.shape[:2])
    variance = (flat - mean[..., None]).square().mean(2)
    return gk.reference.group_norm(x, groups, weight, bias, eps, centre), mean, torch.rsqrt(variance + eps)


def _stock(x, weight, bias, groups, eps, centre):
    """torch's RMS norm is one group, and has no bias."""
    return F.group_norm(x, groups, weight, bias, eps) if centre else F.rms_norm(x, x.shape[1:], weight, eps) + bias


def _statistics(x, groups, centre):
    """Those of x in its own precision, as they are saved."""
    if x.numel() == 0:
        return [torch.zeros(x.shape[0], groups, dtype=accumulate(x.dtype), device=x.device)] * 2
    exact = _reference(x.detach().double(), None, None, groups, _EPS, centre)[1:]
    return [t.to(accumulate(x.dtype)) for t in exact]


def _bwd(grad, x, weight, groups, centre, op=_op.group_norm_bwd):
    return op(grad, x, weight, *_statistics(x, groups, centre), groups, centre, True, True)


def _bwd_reference(grad, x, weight, groups, centre):
    """By autograd of the plain form."""
    with torch.enable_grad():
        x, weight = (t if t.requires_grad else t.detach().requires_grad_() for t in (x, weight))
        bias = torch.zeros_like(weight, requires_grad=True)
        y = gk.reference.group_norm(x, groups, weight, bias, _EPS, centre)
        return torch.autograd.grad(y, (x, weight, bias), grad, create_graph=True, materialize_grads=True)


def _bwd_inputs(grouped, centre):
    def inputs(shape, dtype, device):
        x, weight, _, groups, _, _ = _inputs(grouped, centre)(shape, dtype, device)
        return randn(shape, dtype, device), x, weight, groups, centre

    return inputs


def _bwd_bwd(v, v_weight, v_bias, grad, x, weight, groups, centre, op=_op.group_norm_bwd_bwd):
    return op(v, v_weight, v_bias, grad, x, weight, *_statistics(x, groups, centre), groups, centre, True)


def _bwd_bwd_reference(v, v_weight, v_bias, grad, x, weight, groups, centre):
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (grad, x, weight)]
        first = _bwd_reference(*leaves, groups, centre)
        return torch.autograd.grad(first, leaves, (v, v_weight, v_bias), materialize_grads=True)


def _bwd_bwd_inputs(grouped, centre):
    def inputs(shape, dtype, device):
        grad, x, weight, groups, _ = _bwd_inputs(grouped, centre)(shape, dtype, device)
        v_parameters = [randn(shape[1:2], dtype, device) for _ in range(2)]
        return randn(shape, dtype, device), *v_parameters, grad, x, weight, groups, centre

    return inputs


X, C = torch.randn(3, 4, 5), torch.ones(4)
_STATISTICS = torch.zeros(3, 2)

_BAD = {
    "list": (lambda: gk.group_norm([1.0], 1), "x must be a tensor, got list"),
    "integers": (lambda: gk.group_norm(X.long(), 2), "x must be float64, .* got int64"),
    "vector": (lambda: gk.group_norm(C, 2), r"x must have shape \(N, C, ...\) .* got \(4,\)"),
    "groups": (lambda: gk.group_norm(X, 3), "num_groups must divide the 4 channels, got 3"),
    "weight": (lambda: gk.group_norm(X, 2, C[:2]), r"weight must have shape \(4,\), got \(2,\)"),
    "weight_dtype": (lambda: gk.group_norm(X, 2, C.double()), "weight must have x's dtype or float32, got float64"),
    "bias": (lambda: gk.layer_norm(X, 5, bias=C), r"bias must have shape \(5,\), got \(4,\)"),
    "eps": (lambda: gk.rms_norm(X, 5, eps=-1.0), "eps must be a finite number >= 0, got -1.0"),
    "normalized_shape": (
        lambda: gk.layer_norm(X, (4, 4)),
        r"x must end with the dimensions normalized_shape, \(4, 4\), .*",
    ),
    "raw_vector": (lambda: _op.group_norm(C, None, None, 1, 1e-5, True), r"x must have shape \(N, C\) .* got \(4,\)"),
    "raw_groups": (lambda: _op.group_norm(X, None, None, 0, 1e-5, True), "groups must divide the 4 channels, got 0"),
    "raw_weight": (
        lambda: _op.group_norm(X, C[:3], None, 2, 1e-5, True),
        r"weight must have shape \(C,\) = \(4,\), got",
    ),
    "raw_statistics": (
        lambda: _op.group_norm_bwd(X, X, None, _STATISTICS, _STATISTICS[:2], 2, True, True, True),
        r"rstd must be Float of shape \(N, G\) = \(3, 2\), got Float of shape \(2, 2\)",
    ),
    "raw_grad": (
        lambda: _op.group_norm_bwd(X[:2], X, None, _STATISTICS, _STATISTICS, 2, True, True, True),
        "grad must have the shape of x",
    ),
    "raw_grad_grad": (
        lambda: _op.group_norm_bwd_bwd(X[:2], None, None, X, X, None, _STATISTICS, _STATISTICS, 2, True, True),
        "grad_grad must have the shape of x",
    ),
}

SPECS = [
    spec
    for suffix, grouped, centre in (("", True, True), ("_rms", False, False))
    for spec in (
        Spec(
            f"group_norm{suffix}",
            _op.group_norm,
            _reference,
            _inputs(grouped, centre),
            (0,),
            (0, 1, 2),
            shapes=_SHAPES,
            bad={} if suffix else _BAD,
            real={"tokens": (4096, 256)} if suffix else {"critic32": (16, 128, 32, 32), "tokens": (4096, 256)},
            stock=_stock,
        ),
        Spec(
            f"group_norm_bwd{suffix}",
            _bwd,
            _bwd_reference,
            _bwd_inputs(grouped, centre),
            (0, 1),
            (0, 1) if centre else (0, 1, 2),  # with a mean, dx sums to 0 whatever the weight
            outputs=(0, 1, 2),
            second_order=False,
            shapes=_SHAPES,
        ),
        Spec(
            f"group_norm_bwd_bwd{suffix}",
            _bwd_bwd,
            _bwd_bwd_reference,
            _bwd_bwd_inputs(grouped, centre),
            (0, 3, 4),
            (),
            outputs=(0, 1, 2),
            shapes=_SHAPES,
        ),
    )
]

LAUNCHERS = {
    "group_norm": group_norm._group_norm_triton,
    "group_norm_bwd": partial(_bwd, op=group_norm._group_norm_bwd_triton),
    "group_norm_bwd_bwd": partial(_bwd_bwd, op=group_norm._group_norm_bwd_bwd_triton),
}

_BOOLS = {"ROWS": False, "DENSE": True}
KERNELS = {
    "group_moments": Kernel(group_norm.group_moments_kernel, lambda t, a: (t, a, a, *[INT] * 5), _BOOLS),
    "group_norm_rows": Kernel(
        group_norm.group_norm_kernel,
        lambda t, a: (t, a, a, a, a, t, *[INT] * 3),
        {"ROWS": True, "DENSE": False},
        streams=False,
    ),
    "group_norm": Kernel(group_norm.group_norm_kernel, lambda t, a: (t, a, a, a, a, t, *[INT] * 3), _BOOLS),
    "group_norm_bwd_sums": Kernel(
        group_norm.group_norm_bwd_sums_kernel, lambda t, a: (t, t, a, a, a, a, *[INT] * 5), _BOOLS
    ),
    "group_norm_bwd": Kernel(
        group_norm.group_norm_bwd_kernel, lambda t, a: (t, t, a, a, a, a, t, *[INT] * 3), {"CENTRE": True} | _BOOLS
    ),
    "group_norm_bwd_bwd_sums": Kernel(
        group_norm.group_norm_bwd_bwd_sums_kernel, lambda t, a: (t, t, t, a, a, a, a, a, *[INT] * 5), _BOOLS
    ),
    "group_norm_bwd_bwd": Kernel(
        group_norm.group_norm_bwd_bwd_kernel,
        lambda t, a: (t, t, t, a, a, a, a, a, a, t, t, *[INT] * 3),
        {"CENTRE": True} | _BOOLS,
    ),
} | {
    f"channel_sums_{'rows' if rows else 'planes'}": Kernel(
        group_norm.channel_sums_kernel,
        lambda t, a: (t, t, t, a, a, a, a, a, *[INT] * 5),
        {"SECOND": second, "CENTRE": True, "ROWS": rows, "CHANNELS": channels},
        streams=False,
    )
    for rows, second, channels in ((False, True, 1), (True, False, 64))
}
