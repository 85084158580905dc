import torch

import gankernels as gk
from gankernels.ops import minibatch_stddev

from .spec import INT, SHAPES, Kernel, Spec, randn, weighted

_op = torch.ops.gankernels
_EPS = 0.1  # one that shows


def _group(samples):
    return next(g for g in (4, 3, 5, 1) if samples % g == 0)


def _bwd_reference(grad, x, group_size, num_channels, eps):
    """By the formula rather than by autograd."""
    length = x.shape[1:].numel() // num_channels
    groups = x.reshape(group_size, x.shape[0] // group_size, num_channels, length)
    y = groups - groups.mean(0)
    sigma = (y.square().mean(0) + eps).sqrt()
    return (grad[..., None] / length / group_size * y / sigma).reshape(x.shape)


def _bwd_bwd_reference(v, grad, x, *constants):
    with torch.enable_grad():
        grad, x = grad.detach().requires_grad_(), x.detach().requires_grad_()
        return torch.autograd.grad(_bwd_reference(grad, x, *constants), (grad, x), v)


def _inputs(channels, images, with_grad):
    def inputs(shape, dtype, device):
        group = _group(shape[0])
        grads = [randn((shape[0] // group, channels), dtype, device)] if with_grad else []
        x = [randn(shape, dtype, device) for _ in range(images)]
        return *x[1:], *grads, x[0], group, channels, _EPS

    return inputs


X = torch.ones(4, 6, 2, 2)
STATISTIC = torch.ones(2, 1)

_BAD = {
    "list": (lambda: gk.minibatch_stddev([1.0]), "x must be a tensor, got list"),
    "integers": (lambda: gk.minibatch_stddev(X.long()), "x must be float64, .* got int64"),
    "dimensions": (lambda: gk.minibatch_stddev(X[0, 0, 0]), r"x must have shape \(N, C, ...\) .* got \(2,\)"),
    "no_pixels": (lambda: gk.minibatch_stddev(X[..., :0]), r"no empty samples, got \(4, 6, 2, 0\)"),
    "group": (lambda: gk.minibatch_stddev(X, group_size=3), "group_size must divide the batch of 4, got 3"),
    "group_zero": (lambda: gk.minibatch_stddev(X, group_size=0), "group_size must be an integer >= 1, got 0"),
    "channels": (
        lambda: gk.minibatch_stddev(X, num_channels=4),
        "num_channels must be an integer that divides C = 6, got 4",
    ),
    "channels_zero": (lambda: gk.minibatch_stddev(X, num_channels=0), "num_channels must be .* got 0"),
    "eps": (lambda: gk.minibatch_stddev(X, eps=0.0), "eps must be a finite number > 0, got 0.0"),
    "raw_group": (lambda: _op.minibatch_stddev(X, 3, 1, 0.1), "group_size must divide N = 4, got 3"),
    "raw_channels": (lambda: _op.minibatch_stddev(X, 2, 4, 0.1), "num_channels must divide C = 6, got 4"),
    "raw_eps": (lambda: _op.minibatch_stddev(X, 2, 1, -1.0), "eps must be > 0, got -1"),
    "raw_integers": (lambda: _op.minibatch_stddev(X.long(), 2, 1, 0.1), "expected a float64, float32, .* got Long"),
    "raw_grad": (
        lambda: _op.minibatch_stddev_bwd(STATISTIC.T, X, 2, 1, 0.1),
        r"grad must have shape .* = \(2, 1\), got",
    ),
    "raw_grad_grad": (
        lambda: _op.minibatch_stddev_bwd_bwd(X[:2], STATISTIC, X, 2, 1, 0.1),
        "grad_grad must have the shape of x",
    ),
}

_SHAPES = SHAPES | {"many": (8, 3, 4, 4), "features": (6, 10), "long": (4, 3, 700), "no_samples": (0, 3, 4, 4)}
_SHAPES_OF_CHANNEL_GROUPS = {"odd": (3, 4, 7, 3), "large": (2, 4, 96, 97), "many": (8, 4, 3, 5)}

_bwd = _op.minibatch_stddev_bwd

SPECS = [
    Spec(
        f"{name}{suffix}",
        op,
        reference,
        _inputs(channels, images, with_grad),
        image_positions,
        differentiable,
        outputs=tuple(range(outputs)),
        second_order=name == "minibatch_stddev",
        shapes=_SHAPES_OF_CHANNEL_GROUPS if suffix else _SHAPES,
        bad={} if suffix else bad,
        distinct=0,
        real={"stylegan2_4": (32, 512, 4, 4), "progan_4": (16, 512, 4, 4)} if bad and not suffix else {},
    )
    for name, op, reference, images, with_grad, image_positions, differentiable, outputs, bad in (
        (
            "minibatch_stddev",
            _op.minibatch_stddev,
            minibatch_stddev._reference_statistic,
            1,
            False,
            (0,),
            (0,),
            1,
            _BAD,
        ),
        ("minibatch_stddev_bwd", weighted(_bwd), weighted(_bwd_reference), 1, True, (1,), (0, 1), 1, {}),
        ("minibatch_stddev_bwd_bwd", _op.minibatch_stddev_bwd_bwd, _bwd_bwd_reference, 2, True, (0, 2), (), 2, {}),
    )
    for suffix, channels in (("", 1), ("_of_channel_groups", 2))
]

LAUNCHERS = {
    "minibatch_stddev": minibatch_stddev._minibatch_stddev_triton,
    "minibatch_stddev_bwd": weighted(minibatch_stddev._minibatch_stddev_bwd_triton),
    "minibatch_stddev_bwd_bwd": minibatch_stddev._minibatch_stddev_bwd_bwd_triton,
}

KERNELS = {
    f"minibatch_stddev{suffix}": Kernel(
        getattr(minibatch_stddev, f"minibatch_stddev{suffix}_kernel"), arguments, {"eps": 1e-8}
    )
    for suffix, arguments in (
        ("", lambda t, a: (t, a, INT, INT, INT, INT)),
        ("_bwd", lambda t, a: (t, t, t, INT, INT, INT, INT)),
        ("_bwd_bwd", lambda t, a: (t, t, t, a, t, INT, INT, INT, INT)),
    )
}
