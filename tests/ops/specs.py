"""One entry per op: what the op suite and the benchmarks need to know about it. A new op adds an entry, not a test file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import gankernels as gk

_op = torch.ops.gankernels

# Shapes by what they are there for: odd sizes, one sample, more than one chunk of work per sample, several samples per chunk.
SHAPES = {"odd": (3, 5, 7, 3), "one": (1, 2, 3, 3), "large": (2, 3, 96, 97), "many": (65, 3, 4, 4)}

# Largest error relative to the largest value of the float64 reference, per dtype: a few units in the last place.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def randn(shape, dtype, device):
    return torch.randn(shape, dtype=torch.float64).to(device, dtype)


def accumulate(dtype):
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Spec:
    """op(*inputs) against reference(*inputs).

    inputs(shape, dtype, device) makes the arguments. `images` and `differentiable` are the positions of those that come in
    several memory formats and of those with a derivative; `outputs` the positions of differentiable outputs. The last op of
    a chain has nothing differentiable: its derivative raises. `shapes` has the names of SHAPES, and may have more, of 2
    dimensions and up. `bad` holds, by name, calls with bad input and a pattern of the one sentence they raise.
    """

    name: str
    op: Callable
    reference: Callable
    inputs: Callable
    images: tuple[int, ...]
    differentiable: tuple[int, ...]
    outputs: tuple[int, ...] = (0,)
    second_order: bool = True
    shapes: dict = field(default_factory=lambda: SHAPES)
    bad: dict[str, tuple[Callable, str]] = field(default_factory=dict)


def _eps(shape, dtype, device):
    return torch.rand(shape[0], dtype=torch.float64).to(device, accumulate(dtype))


def _interpolate_inputs(shape, dtype, device):
    return randn(shape, dtype, device), randn(shape, dtype, device), _eps(shape, dtype, device)


def _interpolate_bwd_reference(grad, eps):
    eps = eps.reshape(-1, *[1] * (grad.dim() - 1))
    return (eps * grad).to(grad.dtype), ((1 - eps) * grad).to(grad.dtype)


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


def _spectral_norm_inputs(shape, dtype, device):
    """A weight and a vector pair for its dimensions 0 and 1, all positive so that sigma is well away from 0."""
    n = torch.Size(shape).numel()
    vectors = [torch.rand(k, dtype=torch.float64) for d in (0, 1) for k in (shape[d], n // shape[d])]
    return 1 + 0.3 * randn(shape, dtype, device), *((v / v.norm()).to(device, dtype) for v in vectors)


def _spectral_norm_saved(weight, u0, v0, u1, v1):
    """sigma is a function of the weight: without iterations, that of the vectors given."""
    weight = weight.detach()
    with torch.no_grad():
        return _op.spectral_norm_power_iteration_([weight, weight], [u0, u1], [v0, v1], [0, 1], 0, 1e-12)


def _spectral_norm(weight, *vectors):
    return _op.spectral_normalize([weight, weight], *_spectral_norm_saved(weight, *vectors), [0, 1])


def _spectral_norm_reference(weight, u0, v0, u1, v1):
    return [gk.reference.spectral_norm(weight, u, v, dim, 0)[0] for dim, u, v in ((0, u0, v0), (1, u1, v1))]


def _spectral_norm_bwd(grad, weight, *vectors):
    """For the second layer of the group only."""
    return _op.spectral_normalize_bwd([grad], [weight, weight], *_spectral_norm_saved(weight, *vectors), [0, 1], [1])[0]


def _spectral_norm_bwd_reference(grad, weight, u0, v0, u1, v1):
    matrix = weight.transpose(0, 1).flatten(1)
    sigma = u1 @ matrix @ v1
    rank_one = torch.outer(u1, v1).reshape(weight.transpose(0, 1).shape).transpose(0, 1)
    return grad / sigma - (grad * weight).sum() / sigma**2 * rank_one


def _images_and_eps(count):
    """An eps that shows. It also keeps the derivative for a single channel, eps r^3 g, from being all rounding."""

    def inputs(shape, dtype, device):
        return *(randn(shape, dtype, device) for _ in range(count)), 0.5

    return inputs


def _pixel_norm(x, eps):
    return gk.pixel_norm(x, eps=eps)


def _pixel_norm_reference(x, eps):
    return gk.reference.pixel_norm(x, eps=eps)


def _pixel_norm_bwd_reference(grad, x, eps):
    """By the Jacobian of each pixel, which is symmetric, rather than by autograd."""
    r, c = torch.rsqrt(x.square().mean(1, keepdim=True) + eps), x.shape[1]
    return r * grad - r**3 / c * (x * grad).sum(1, keepdim=True) * x


def _pixel_norm_bwd_bwd_reference(grad_grad, grad, x, eps):
    with torch.enable_grad():
        grad, x = grad.detach().requires_grad_(), x.detach().requires_grad_()
        return torch.autograd.grad(_pixel_norm_bwd_reference(grad, x, eps), (grad, x), grad_grad)


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
    "eps_shape": (lambda: gk.interpolate(X, X, EPS[:2]), r"eps must have one value per sample, shape \(3,\), got \(2,\)"),
    "eps_device": (lambda: gk.interpolate(X, X, EPS.to("meta")), "eps must be on the device of real, cpu, got meta"),
    "raw_shapes": (lambda: _op.interpolate(X, X[:2], EPS), "fake must have the shape of real"),
    "raw_eps": (lambda: _op.interpolate(X, X, EPS[:2]), r"eps must have shape \(N,\) = \(3,\), got \(2,\)"),
    "raw_eps_dtype": (lambda: _op.interpolate_bwd(X, EPS.double()), "eps must be Float, got Double"),
    "raw_integers": (lambda: _op.interpolate(X.long(), X.long(), EPS), "expected a float64, float32, .* got Long"),
}

_PENALTY_BAD = {
    "target": (lambda: gk.grad_norm_penalty(X, -1.0), "target must be a finite number >= 0, got -1.0"),
    "target_nan": (lambda: gk.grad_norm_penalty(X, float("nan")), "target must be a finite number >= 0, got nan"),
    "integers": (lambda: gk.grad_norm_penalty(X.int()), "grads must be float64, .* got int32"),
    "empty": (lambda: gk.grad_norm_penalty(X[:0]), "grads must have shape .* got .0, 4."),
    "scalar": (lambda: gk.grad_norm_penalty(X[0, 0]), "grads must have shape .* got .."),
    "raw_empty": (lambda: _op.grad_norm_penalty(X[:0], 1.0, False), "grads must have shape"),
    "raw_norms": (lambda: _op.grad_norm_penalty_bwd(EPS[0], X, EPS[:2], 1.0, False), "norms must be Float of shape"),
    "raw_grad": (lambda: _op.grad_norm_penalty_bwd(EPS, X, EPS, 1.0, False), "grad must be a Float scalar"),
    "raw_grad_grads": (
        lambda: _op.grad_norm_penalty_bwd_bwd(X[:2], EPS[0], X, EPS, 1.0, False),
        "grad_grads must have the shape of grads",
    ),
}

_PIXEL_NORM_BAD = {
    "list": (lambda: gk.pixel_norm([1.0]), "x must be a tensor, got list"),
    "integers": (lambda: gk.pixel_norm(X.long()), "x must be float64, .* got int64"),
    "one_dimension": (lambda: gk.pixel_norm(EPS), r"x must have shape \(N, C\) or .* got \(3,\)"),
    "six_dimensions": (lambda: gk.pixel_norm(X.view(3, 4, 1, 1, 1, 1)), r"5 dimensions at most, got \(3, 4, 1, .*\)"),
    "dim": (lambda: gk.pixel_norm(X, dim=0), r"dim must be 1 or -1 for x of shape \(3, 4\), got 0"),
    "last_dim_of_images": (lambda: gk.pixel_norm(X[..., None], -1), r"dim must be 1 for x of shape .* got -1"),
    "eps": (lambda: gk.pixel_norm(X, eps=0.0), "eps must be a finite number > 0, got 0.0"),
    "eps_nan": (lambda: gk.pixel_norm(X, eps=float("nan")), "eps must be a finite number > 0, got nan"),
    "raw_dimensions": (lambda: _op.pixel_norm(EPS, 1e-8), r"x must have shape \(N, C\) .* got \(3,\)"),
    "raw_eps": (lambda: _op.pixel_norm(X, -1.0), "eps must be > 0, got -1"),
    "raw_integers": (lambda: _op.pixel_norm(X.long(), 1e-8), "expected a float64, float32, .* got Long"),
    "raw_grad": (lambda: _op.pixel_norm_bwd(X[:2], X, 1e-8), r"grad must have the shape of x, \(3, 4\), got \(2, 4\)"),
    "raw_grad_dtype": (lambda: _op.pixel_norm_bwd(X.double(), X, 1e-8), "grad must have the dtype of x, .* got Double"),
    "raw_grad_grad": (lambda: _op.pixel_norm_bwd_bwd(X[:2], X, X, 1e-8), "grad_grad must have the shape of x"),
}

# Also latents, sequences, volumes, a row longer than a tile, more channels than a program takes at a time, an empty batch.
_PIXEL_NORM_SHAPES = SHAPES | {
    "latents": (5, 70),
    "long": (2, 17000),
    "sequence": (2, 40, 33),
    "volume": (2, 37, 3, 2, 5),
    "one_channel": (2, 1, 5, 3),
    "empty": (0, 3, 4, 4),
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
    ),
    Spec(
        "interpolate_bwd",
        _op.interpolate_bwd,
        _interpolate_bwd_reference,
        lambda shape, dtype, device: (randn(shape, dtype, device), _eps(shape, dtype, device)),
        (0,),
        (0, 1),
        outputs=(0, 1),
    ),
    *(
        Spec(
            f"grad_norm_penalty{suffix}",
            gk.grad_norm_penalty,
            gk.reference.grad_norm_penalty,
            _penalty_inputs(target, one_sided),
            (0,),
            (0,),
            bad={} if suffix else _PENALTY_BAD,
        )
        for suffix, target, one_sided in (("", True, False), ("_one_sided", True, True), ("_zero_centred", False, False))
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
    Spec("spectral_norm", _spectral_norm, _spectral_norm_reference, _spectral_norm_inputs, (0,), (0,), outputs=(0, 1)),
    Spec(
        "spectral_norm_bwd",
        _spectral_norm_bwd,
        _spectral_norm_bwd_reference,
        lambda shape, dtype, device: (randn(shape, dtype, device), *_spectral_norm_inputs(shape, dtype, device)),
        (0, 1),
        (0, 1),
        second_order=False,
    ),
    *(
        Spec(
            name,
            op,
            reference,
            _images_and_eps(count),
            tuple(range(count)),
            differentiable,
            outputs=tuple(range(outputs)),
            second_order=name == "pixel_norm",
            shapes=_PIXEL_NORM_SHAPES,
            bad=bad,
        )
        for name, op, reference, count, differentiable, outputs, bad in (
            ("pixel_norm", _pixel_norm, _pixel_norm_reference, 1, (0,), 1, _PIXEL_NORM_BAD),
            ("pixel_norm_bwd", _op.pixel_norm_bwd, _pixel_norm_bwd_reference, 2, (0, 1), 1, {}),
            ("pixel_norm_bwd_bwd", _op.pixel_norm_bwd_bwd, _pixel_norm_bwd_bwd_reference, 3, (), 2, {}),
        )
    ),
]
