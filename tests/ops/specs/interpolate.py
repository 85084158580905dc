import torch

import gankernels as gk
from gankernels.ops import interpolate

from .spec import INT, Kernel, Spec, accumulate, randn

_op = torch.ops.gankernels


def _eps(shape, dtype, device):
    return torch.rand(shape[0], dtype=torch.float64).to(device, accumulate(dtype))


def _interpolate_inputs(shape, dtype, device):
    return randn(shape, dtype, device), randn(shape, dtype, device), _eps(shape, dtype, device)


def _interpolate_bwd_reference(grad, eps, real=None, fake=None):
    column = eps.reshape(-1, *[1] * (grad.dim() - 1))
    of_eps = eps.new_empty(0) if real is None else (grad * (real - fake)).flatten(1).sum(1)
    return (column * grad).to(grad.dtype), ((1 - column) * grad).to(grad.dtype), of_eps


def _interpolate_bwd_inputs(shape, dtype, device):
    return randn(shape, dtype, device), _eps(shape, dtype, device), None, None


def _interpolate_bwd_eps_inputs(shape, dtype, device):
    return (
        randn(shape, dtype, device),
        _eps(shape, dtype, device),
        randn(shape, dtype, device),
        randn(shape, dtype, device),
    )


X, EPS = torch.ones(3, 4), torch.ones(3)

_INTERPOLATE_BAD = {
    "real_list": (lambda: gk.interpolate([1.0], X), "real must be a tensor, got list"),
    "integers": (lambda: gk.interpolate(X.long(), X), "real must be float64, .* got int64"),
    "shapes": (lambda: gk.interpolate(X, X[:, :2]), r"fake must have the shape of real, \(3, 4\), got \(3, 2\)"),
    "batches": (lambda: gk.interpolate(X, X[:2]), r"fake must have the shape of real, \(3, 4\), got \(2, 4\)"),
    "dtypes": (lambda: gk.interpolate(X, X.double()), "fake must have the dtype of real, float32, got float64"),
    "devices": (lambda: gk.interpolate(X, X.to("meta")), "fake must be on the device of real, cpu, got meta"),
    "empty": (lambda: gk.interpolate(X[:0], X[:0]), r"real must have shape \(N, ...\) with N >= 1, got \(0, 4\)"),
    "eps_number": (lambda: gk.interpolate(X, X, 1.5), r"eps must be a tensor or a number in \[0, 1\], got 1.5"),
    "eps_shape": (
        lambda: gk.interpolate(X, X, EPS[:2]),
        r"eps must have one value per sample, shape \(3,\), got \(2,\)",
    ),
    "eps_device": (lambda: gk.interpolate(X, X, EPS.to("meta")), "eps must be on the device of real, cpu, got meta"),
    "raw_shapes": (lambda: _op.interpolate(X, X[:2], EPS), "fake must have the shape of real"),
    "raw_eps": (lambda: _op.interpolate(X, X, EPS[:2]), r"eps must have shape \(N,\) = \(3,\), got \(2,\)"),
    "raw_eps_dtype": (lambda: _op.interpolate_bwd(X, EPS.double(), None, None), "eps must be Float, got Double"),
    "raw_points": (lambda: _op.interpolate_bwd(X, EPS, X, None), "real and fake must both be given, or neither"),
    "raw_integers": (lambda: _op.interpolate(X.long(), X.long(), EPS), "expected a float64, float32, .* got Long"),
}

SPECS = [
    Spec(
        "interpolate",
        gk.interpolate,
        gk.reference.interpolate,
        _interpolate_inputs,
        (0, 1),
        (0, 1, 2),
        bad=_INTERPOLATE_BAD,
        real={"image64": (64, 3, 64, 64), "image256": (64, 3, 256, 256), "signal": (16, 1, 8192)},
    ),
    Spec(
        "interpolate_bwd",
        _op.interpolate_bwd,
        _interpolate_bwd_reference,
        _interpolate_bwd_inputs,
        (0,),
        (0, 1),
        outputs=(0, 1),
    ),
    Spec(
        "interpolate_bwd_eps",
        _op.interpolate_bwd,
        _interpolate_bwd_reference,
        _interpolate_bwd_eps_inputs,
        (0, 2, 3),
        (0, 1, 2, 3),
        outputs=(0, 1, 2),
    ),
]

LAUNCHERS = {"interpolate": interpolate._interpolate_triton, "interpolate_bwd": interpolate._interpolate_bwd_triton}

KERNELS = {
    "interpolate": Kernel(interpolate.interpolate_kernel, lambda t, a: (t, t, a, t, INT)),
} | {
    f"interpolate_bwd{'_eps' if of_eps else ''}": Kernel(
        interpolate.interpolate_bwd_kernel, lambda t, a: (t, a, *[t] * 4, a, INT), {"OF_EPS": of_eps}
    )
    for of_eps in (False, True)
}
