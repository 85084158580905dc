import torch

import gankernels as gk

from .spec import Spec, randn

_op = torch.ops.gankernels

SMALL = torch.tensor([1.0, 3.0, 3.0, 1.0])
LONG = torch.tensor([0.2, -0.4, 0.7, 1.1, 2.3, 3.1, 2.9, 2.2, 1.3, 0.6, -0.3, 0.1])
MATRIX = torch.tensor([[0.5, -1.0, 0.25, 2.0], [1.5, 0.75, -0.5, 1.0], [0.1, 0.3, 2.0, -0.7]])  # of full rank

# Also many channels of a wide image, which are taken block by block, and an empty batch.
_SHAPES = {
    "odd": (2, 3, 5, 4),
    "one": (1, 2, 3, 3),
    "large": (2, 3, 96, 97),
    "many": (65, 3, 4, 4),
    "blocks": (1, 21, 3, 520),
    "empty": (0, 3, 4, 4),
}


def _image_and(f, *constants):
    return lambda shape, dtype, device: (randn(shape, dtype, device), f.to(device), *constants)


X, F = torch.ones(2, 3, 4, 5), torch.ones(2, 3)

_BAD = {
    "list": (lambda: gk.upfirdn2d([1.0], F), "x must be a tensor, got list"),
    "integers": (lambda: gk.upfirdn2d(X.long(), F), "x must be float64, .* got int64"),
    "three_dimensions": (lambda: gk.upfirdn2d(X[0], F), r"x must have shape \(N, C, H, W\) .* got \(3, 4, 5\)"),
    "no_pixels": (lambda: gk.upfirdn2d(X[..., :0], F), r"x must have shape .* H and W >= 1, got \(2, 3, 4, 0\)"),
    "empty_filter": (lambda: gk.upfirdn2d(X, F[:0]), r"f must have shape .* and not be empty, got \(0, 3\)"),
    "filter_rank": (lambda: gk.upfirdn2d(X, F[None]), r"f must have shape \(taps,\) or .* got \(1, 2, 3\)"),
    "filter_integers": (lambda: gk.upfirdn2d(X, F.int()), "f must be float64, .* got int32"),
    "filter_device": (lambda: gk.upfirdn2d(X, F.to("meta")), "f must be on the device of x, cpu, got meta"),
    "filter_gradient": (lambda: gk.upfirdn2d(X, F.clone().requires_grad_()), "f must be a constant, got .* gradient"),
    "up": (lambda: gk.upfirdn2d(X, F, up=0), r"up must be an integer >= 1 or \[x, y\], got 0"),
    "up_float": (lambda: gk.upfirdn2d(X, F, up=2.0), r"up must be an integer >= 1 or \[x, y\], got 2.0"),
    "down": (lambda: gk.upfirdn2d(X, F, down=[2, -1]), r"down must be an integer >= 1 or .* got \[2, -1\]"),
    "down_length": (lambda: gk.upfirdn2d(X, F, down=[2, 1, 1]), r"down must be .* or \[x, y\], got \[2, 1, 1\]"),
    "padding": (lambda: gk.upfirdn2d(X, F, padding=[1, 2, 3]), r"padding must be an integer, .* got \[1, 2, 3\]"),
    "cropped_away": (lambda: gk.upfirdn2d(X, F, padding=-2), r"padding must leave .* \(2, 3\), covers, got \(-2, -2"),
    "gain": (lambda: gk.upfirdn2d(X, F, gain=float("inf")), "gain must be a finite number, got inf"),
    "upsample2d_up": (lambda: gk.upsample2d(X, F, up=-1), "upsample2d: up must be an integer >= 1 or .* got -1"),
    "downsample2d_down": (lambda: gk.downsample2d(X, F, down=0), "downsample2d: down must be an integer >= 1 or .* got 0"),
    "filter2d_padding": (lambda: gk.filter2d(X, F, padding="1"), "filter2d: padding must be an integer, .* got '1'"),
    "setup_empty": (lambda: gk.setup_filter([]), r"setup_filter: f must have shape .* got \(0,\)"),
    "setup_rank": (lambda: gk.setup_filter(F[None]), r"setup_filter: f must have shape .* got \(1, 2, 3\)"),
    "setup_nan": (lambda: gk.setup_filter([1, float("nan")]), "setup_filter: f must be finite, got nan in it"),
    "setup_sum": (lambda: gk.setup_filter([1, -1]), "setup_filter: f must not sum to 0 where normalize=True"),
    "setup_separable": (lambda: gk.setup_filter(F, separable=True), r"f must have shape \(taps,\) where separable=True"),
    "setup_gain": (lambda: gk.setup_filter(SMALL, gain=None), "setup_filter: gain must be a finite number, got NoneType"),
    "raw_images": (lambda: _raw(X[0], F), r"x must have shape \(N, C, H, W\)"),
    "raw_filter": (lambda: _raw(X, F[None]), r"f must have shape \(taps,\) or .* got \(1, 2, 3\)"),
    "raw_filter_dtype": (lambda: _raw(X, F.double()), "f must be Float, got Double"),
    "raw_integers": (lambda: _raw(X.long(), F), "expected a float64, float32, .* got Long"),
    "raw_factor": (lambda: _raw(X, F, up=[1, 0]), r"up must be >= 1, got \(1, 0\)"),
    "raw_factors": (lambda: _raw(X, F, down=[1]), "down must have 2 numbers, got 1"),
    "raw_padding": (lambda: _raw(X, F, padding=[0, 0]), "padding must have 4 numbers, got 2"),
    "raw_cropped_away": (lambda: _raw(X, F, padding=[0, 0, 0, -3]), r"padding \(0, 0, 0, -3\) leaves less of x"),
}  # fmt: skip


def _raw(x, f, up=(1, 1), down=(1, 1), padding=(0, 0, 0, 0)):
    return _op.upfirdn2d(x, f, up, down, padding, False, 1.0)


# up, down, padding, flip_filter, gain
_UPFIRDN = {
    "upfirdn2d_up": (SMALL.outer(SMALL) / 64, 2, 1, [2, 1, 2, 1], False, 4.0),
    "upfirdn2d_down": (LONG, 1, 2, [5, 6, 5, 5], True, 1.0),
    "upfirdn2d_both": (MATRIX, [3, 2], [2, 3], [3, -1, 2, 0], False, 0.7),
    "upfirdn2d_blur": (SMALL, 1, 1, [2, -1, 1, 2], False, 1.3),
}

SPECS = [
    Spec(
        name,
        gk.upfirdn2d,
        gk.reference.upfirdn2d,
        _image_and(f, *constants),
        (0,),
        (0,),
        shapes=_SHAPES,
        bad=_BAD if name == "upfirdn2d_up" else {},
        real=real,
        goals={mode: {"stock": 8.0} for mode in ("forward", "forward_backward")} if real else {},
    )
    for (name, (f, *constants)), real in zip(
        _UPFIRDN.items(),
        ({"up_64": (8, 64, 64, 64)}, {"down_128": (8, 64, 128, 128)}, {}, {"blur_64": (8, 64, 64, 64)}),
    )
]
