import torch

import gankernels as gk
from gankernels.ops import pixel_norm

from .spec import INT, SHAPES, Kernel, Spec, images_and

_op = torch.ops.gankernels


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


X, ROW = torch.ones(3, 4), torch.ones(3)

_BAD = {
    "list": (lambda: gk.pixel_norm([1.0]), "x must be a tensor, got list"),
    "integers": (lambda: gk.pixel_norm(X.long()), "x must be float64, .* got int64"),
    "one_dimension": (lambda: gk.pixel_norm(ROW), r"x must have shape \(N, C\) or .* got \(3,\)"),
    "six_dimensions": (lambda: gk.pixel_norm(X.view(3, 4, 1, 1, 1, 1)), r"5 dimensions at most, got \(3, 4, 1, .*\)"),
    "dim": (lambda: gk.pixel_norm(X, dim=0), r"dim must be 1 or -1 for x of shape \(3, 4\), got 0"),
    "last_dim_of_images": (lambda: gk.pixel_norm(X[..., None], -1), r"dim must be 1 for x of shape .* got -1"),
    "eps": (lambda: gk.pixel_norm(X, eps=0.0), "eps must be a finite number > 0, got 0.0"),
    "eps_nan": (lambda: gk.pixel_norm(X, eps=float("nan")), "eps must be a finite number > 0, got nan"),
    "raw_dimensions": (lambda: _op.pixel_norm(ROW, 1e-8), r"x must have shape \(N, C\) .* got \(3,\)"),
    "raw_eps": (lambda: _op.pixel_norm(X, -1.0), "eps must be > 0, got -1"),
    "raw_integers": (lambda: _op.pixel_norm(X.long(), 1e-8), "expected a float64, float32, .* got Long"),
    "raw_grad": (lambda: _op.pixel_norm_bwd(X[:2], X, 1e-8), r"grad must have the shape of x, \(3, 4\), got \(2, 4\)"),
    "raw_grad_dtype": (lambda: _op.pixel_norm_bwd(X.double(), X, 1e-8), "grad must have the dtype of x, .* got Double"),
    "raw_grad_grad": (lambda: _op.pixel_norm_bwd_bwd(X[:2], X, X, 1e-8), "grad_grad must have the shape of x"),
}

# Also latents, sequences, volumes, a row longer than a tile, more channels than a program takes at a time, an empty batch.
_SHAPES = SHAPES | {
    "latents": (5, 70),
    "long": (2, 17000),
    "sequence": (2, 40, 33),
    "volume": (2, 37, 3, 2, 5),
    "one_channel": (2, 1, 5, 3),
    "empty": (0, 3, 4, 4),
}

# eps is one that shows. It also keeps the derivative for a single channel, eps r^3 g, from being all rounding.
SPECS = [
    *(
        Spec(
            name,
            op,
            reference,
            images_and(0.5, images=count),
            tuple(range(count)),
            differentiable,
            outputs=tuple(range(outputs)),
            second_order=name == "pixel_norm",
            shapes=_SHAPES,
            bad=bad,
            real={"progan32": (16, 512, 32, 32), "progan256": (4, 64, 256, 256), "mapping": (64, 512)}
            if name == "pixel_norm"
            else {},
        )
        for name, op, reference, count, differentiable, outputs, bad in (
            ("pixel_norm", _pixel_norm, _pixel_norm_reference, 1, (0,), 1, _BAD),
            ("pixel_norm_bwd", _op.pixel_norm_bwd, _pixel_norm_bwd_reference, 2, (0, 1), 1, {}),
            ("pixel_norm_bwd_bwd", _op.pixel_norm_bwd_bwd, _pixel_norm_bwd_bwd_reference, 3, (), 2, {}),
        )
    ),
]

LAUNCHERS = {
    "pixel_norm": pixel_norm._pixel_norm_triton,
    "pixel_norm_bwd": pixel_norm._pixel_norm_bwd_triton,
    "pixel_norm_bwd_bwd": pixel_norm._pixel_norm_bwd_bwd_triton,
}

KERNELS = {
    f"{name}_{'rows' if rows else 'planes'}": Kernel(
        getattr(pixel_norm, f"{name}_kernel"),
        lambda t, a, tensors=tensors: (*[t] * tensors, INT, INT),
        {"eps": 1e-8, "ROWS": rows, "CHANNELS": channels},
    )
    for name, tensors in (("pixel_norm", 2), ("pixel_norm_bwd", 3), ("pixel_norm_bwd_bwd", 5))
    for rows, channels in ((False, 32), (True, 64))
}
