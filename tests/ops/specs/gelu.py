import math

import torch
import torch.nn.functional as F

import gankernels as gk
from gankernels.ops import gelu

from .spec import INT, SHAPES, Kernel, Spec, images_and

_op = torch.ops.gankernels


def _inputs(tanh_form, images):
    make = images_and(tanh_form, images=images)

    def inputs(shape, dtype, device):
        *grads, x, form = make(shape, dtype, device)
        return *grads, 3 * x, form  # the tails too

    return inputs


def _reference(x, tanh_form):
    return F.gelu(x, approximate="tanh" if tanh_form else "none")


def _slope(x, tanh_form):
    if tanh_form:
        c = math.sqrt(2 / math.pi)
        u = c * (x + 0.044715 * x**3)  # sigmoid and cosh are exact in the tails, where 1 - tanh² cancels
        return torch.sigmoid(2 * u) + x / 2 * torch.cosh(u) ** -2 * c * (1 + 3 * 0.044715 * x * x)
    return torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _bwd_reference(grad, x, tanh_form):
    return grad * _slope(x, tanh_form)


def _bwd_bwd_reference(v, grad, x, tanh_form):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        slope = _slope(x, tanh_form)
        (bend,) = torch.autograd.grad(slope.sum(), x)
    return v * slope.detach(), v * grad * bend


X = torch.ones(3, 4)

_BAD = {
    "list": (lambda: gk.gelu([1.0]), "x must be a tensor, got list"),
    "integers": (lambda: gk.gelu(X.int()), "x must be float64, .* got int32"),
    "form": (lambda: gk.gelu(X, "erf"), "approximate must be 'none' or 'tanh', got 'erf'"),
    "raw_grad": (lambda: _op.gelu_bwd(X[:2], X, False), "grad must have the shape of x"),
    "raw_grad_grad": (lambda: _op.gelu_bwd_bwd(X, X.double(), X, False), "grad must have the dtype of x"),
}
_SHAPES = SHAPES | {"empty": (0, 3, 4, 4)}

SPECS = [
    spec
    for suffix, form in (("", False), ("_tanh", True))
    for spec in (
        Spec(f"gelu{suffix}", _op.gelu, _reference, _inputs(form, 1), (0,), (0,), shapes=_SHAPES,
             bad={} if form else _BAD, real={"tokens": (4, 1024, 1024)}),
        Spec(f"gelu_bwd{suffix}", _op.gelu_bwd, _bwd_reference, _inputs(form, 2), (0, 1), (0, 1), second_order=False,
             shapes=_SHAPES),
        Spec(f"gelu_bwd_bwd{suffix}", _op.gelu_bwd_bwd, _bwd_bwd_reference, _inputs(form, 3), (0, 1, 2), (), outputs=(0, 1),
             shapes=_SHAPES),
    )
]  # fmt: skip

LAUNCHERS = {
    "gelu": gelu._gelu_triton,
    "gelu_bwd": gelu._gelu_bwd_triton,
    "gelu_bwd_bwd": gelu._gelu_bwd_bwd_triton,
}

KERNELS = {
    f"{name}{'_tanh' if form else ''}": Kernel(
        getattr(gelu, f"{name}_kernel"), lambda t, a, n=n: (*[t] * n, INT), {"TANH": form}
    )
    for name, n in (("gelu", 2), ("gelu_bwd", 3), ("gelu_bwd_bwd", 5))
    for form in (False, True)
}
