import torch

import gankernels as gk
from gankernels.ops import grad_norm_penalty

from .spec import INT, Kernel, Spec, accumulate, randn

_op = torch.ops.gankernels


def _grads(shape, dtype, device):
    """Samples whose norms lie on both sides of the target, well away from it."""
    scale = torch.linspace(0.5, 1.6, shape[0], dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 1))
    return (scale * torch.randn(shape, dtype=torch.float64)).to(device, dtype)


def _norm_target(shape):
    return float(torch.Size(shape[1:]).numel()) ** 0.5


def _norms(grads, dtype):
    return torch.linalg.vector_norm(grads.double().flatten(1), dim=1).to(dtype)


def _penalty_inputs(target, one_sided):
    def inputs(shape, dtype, device):
        return _grads(shape, dtype, device), _norm_target(shape) if target else 0.0, one_sided

    return inputs


def _penalty_bwd_reference(grad, grads, norms, target, one_sided):
    norms = _norms(grads, norms.dtype)  # they are a function of grads
    slope = 1 - target / norms
    if one_sided:
        slope = torch.where(norms <= target, 0, slope)
    return (2 / grads.shape[0] * grad * slope.reshape(-1, *[1] * (grads.dim() - 1)) * grads).to(grads.dtype)


def _penalty_bwd_inputs(one_sided):
    def inputs(shape, dtype, device):
        grads = _grads(shape, dtype, device)
        norms = _norms(grads, accumulate(dtype))
        grad = torch.tensor(1.7, dtype=accumulate(dtype), device=device)
        return grad, grads, norms, _norm_target(shape), one_sided

    return inputs


def _bwd_with_norms(grad, grads, norms, target, one_sided):
    """The op as it is used: with the norms of these grads."""
    norms = _norms(grads.detach(), norms.dtype)
    return _op.grad_norm_penalty_bwd(grad, grads, norms, target, one_sided)


def _penalty_bwd_bwd_inputs(shape, dtype, device):
    """grad_grads along grads, or the derivative in grad, a sum of products of both, would be all rounding."""
    grad, grads, *others = _penalty_bwd_inputs(True)(shape, dtype, device)
    return grads + 0.5 * randn(shape, dtype, device), grad, grads, *others


def _bwd_bwd_with_norms(grad_grads, grad, grads, norms, target, one_sided):
    return _op.grad_norm_penalty_bwd_bwd(grad_grads, grad, grads, _norms(grads, norms.dtype), target, one_sided)


def _penalty_bwd_bwd_reference(grad_grads, grad, grads, norms, target, one_sided):
    with torch.enable_grad():
        grad, grads = grad.detach().requires_grad_(), grads.detach().requires_grad_()
        first = _penalty_bwd_reference(grad, grads, norms, target, one_sided)
        return torch.autograd.grad(first, (grad, grads), grad_grads)


X, NORMS = torch.ones(3, 4), torch.ones(3)

_PENALTY_BAD = {
    "target": (lambda: gk.grad_norm_penalty(X, -1.0), "target must be a finite number >= 0, got -1.0"),
    "target_nan": (lambda: gk.grad_norm_penalty(X, float("nan")), "target must be a finite number >= 0, got nan"),
    "integers": (lambda: gk.grad_norm_penalty(X.int()), "grads must be float64, .* got int32"),
    "empty": (lambda: gk.grad_norm_penalty(X[:0]), "grads must have shape .* got .0, 4."),
    "scalar": (lambda: gk.grad_norm_penalty(X[0, 0]), "grads must have shape .* got .."),
    "raw_empty": (lambda: _op.grad_norm_penalty(X[:0], 1.0, False), "grads must have shape"),
    "raw_norms": (
        lambda: _op.grad_norm_penalty_bwd(NORMS[0], X, NORMS[:2], 1.0, False),
        "norms must be Float of shape",
    ),
    "raw_grad": (lambda: _op.grad_norm_penalty_bwd(NORMS, X, NORMS, 1.0, False), "grad must be a Float scalar"),
    "raw_grad_grads": (
        lambda: _op.grad_norm_penalty_bwd_bwd(X[:2], NORMS[0], X, NORMS, 1.0, False),
        "grad_grads must have the shape of grads",
    ),
}

SPECS = [
    *(
        Spec(
            f"grad_norm_penalty{suffix}",
            gk.grad_norm_penalty,
            gk.reference.grad_norm_penalty,
            _penalty_inputs(target, one_sided),
            (0,),
            (0,),
            bad={} if suffix else _PENALTY_BAD,
            real={} if suffix else {"image64": (64, 3, 64, 64), "image256": (64, 3, 256, 256), "signal": (16, 1, 8192)},
        )
        for suffix, target, one_sided in (
            ("", True, False),
            ("_one_sided", True, True),
            ("_zero_centred", False, False),
        )
    ),
    *(
        Spec(
            f"grad_norm_penalty_bwd{suffix}",
            _bwd_with_norms,
            _penalty_bwd_reference,
            _penalty_bwd_inputs(one_sided),
            (1,),
            (0, 1),
            second_order=False,
        )
        for suffix, one_sided in (("", False), ("_one_sided", True))
    ),
    Spec(
        "grad_norm_penalty_bwd_bwd",
        _bwd_bwd_with_norms,
        _penalty_bwd_bwd_reference,
        _penalty_bwd_bwd_inputs,
        (0, 2),
        (),
        outputs=(0, 1),
    ),
]

LAUNCHERS = {
    "grad_norm_penalty": grad_norm_penalty._grad_norm_penalty_triton,
    "grad_norm_penalty_bwd": grad_norm_penalty._grad_norm_penalty_bwd_triton,
    "grad_norm_penalty_bwd_bwd": grad_norm_penalty._grad_norm_penalty_bwd_bwd_triton,
}

KERNELS = {
    "sample_dots": Kernel(grad_norm_penalty.sample_dots_kernel, lambda t, a: (t, t, a, INT)),
    "norms": Kernel(
        grad_norm_penalty.norms_kernel, lambda t, a: (a, a, a, INT), {"target": 1.0, "ONE_SIDED": True}, streams=False
    ),
    "grad_norm_penalty_bwd": Kernel(
        grad_norm_penalty.grad_norm_penalty_bwd_kernel,
        lambda t, a: (a, t, a, t, INT, INT),
        {"target": 1.0, "ONE_SIDED": False},
    ),
    "grad_norm_penalty_bwd_bwd": Kernel(
        grad_norm_penalty.grad_norm_penalty_bwd_bwd_kernel,
        lambda t, a: (t, a, t, a, a, t, INT, INT),
        {"target": 1.0, "ONE_SIDED": False},
    ),
}
