import torch

import gankernels as gk

from .spec import Spec, as_it_is, randn

_op = torch.ops.gankernels

SMALL = torch.tensor([1.0, 3.0, 3.0, 1.0])
LONG = torch.tensor([0.2, -0.4, 0.7, 1.1, 2.3, 3.1, 2.9, 2.2, 1.3, 0.6, -0.3, 0.1])
# Of full rank. Sums of a few 16-bit numbers with these weights are exact: none is 0 in float64 and not quite 0 in float32.
MATRIX = torch.tensor([[0.5, -1.0, 0.25, 2.0], [1.5, 0.75, -0.5, 1.0], [0.125, 0.25, 2.0, -0.75]])

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


def _raw_lrelu(x=X, fu=SMALL, fd=SMALL, b=None, up=1, down=1, padding=(3, 3, 3, 3), clamp=None):
    return _op.filtered_lrelu(x, fu, fd, b, up, down, padding, 1.0, 0.2, clamp, False, True)


def _raw_lrelu_bwd(grad=X, mask=None, padding=(0, 0, 0, 0), middle=(5, 4), size=(5, 4)):
    mask = torch.zeros(2, 3, 4, 2, dtype=torch.uint8) if mask is None else mask
    return _op.filtered_lrelu_bwd(grad, mask, SMALL, SMALL, 1, 1, padding, middle, size, 1.0, 0.2, False)


def _without_mask():
    x = X.clone().requires_grad_()
    _op.filtered_lrelu(x, SMALL, SMALL, None, 1, 1, [3] * 4, 1.0, 0.2, None, False, False)[0].sum().backward()


_LRELU_BAD = {
    "list": (lambda: gk.filtered_lrelu([1.0]), "x must be a tensor, got list"),
    "three_dimensions": (lambda: gk.filtered_lrelu(X[0]), r"x must have shape \(N, C, H, W\) .* got \(3, 4, 5\)"),
    "empty_filter": (lambda: gk.filtered_lrelu(X, F[:0]), r"fu must have shape .* and not be empty, got \(0, 3\)"),
    "filter_rank": (lambda: gk.filtered_lrelu(X, None, F[None]), r"fd must have shape .* got \(1, 2, 3\)"),
    "bias_width": (lambda: gk.filtered_lrelu(X, b=F[0, :2]), r"b must have shape \(C,\) = \(3,\), got \(2,\)"),
    "bias_dtype": (lambda: gk.filtered_lrelu(X, b=F[0].double()), "b must have the dtype of x, float32, got float64"),
    "bias_device": (lambda: gk.filtered_lrelu(X, b=F[0].to("meta")), "b must be on the device of x, cpu, got meta"),
    "up": (lambda: gk.filtered_lrelu(X, up=0), "up must be an integer >= 1, got 0"),
    "down": (lambda: gk.filtered_lrelu(X, down=[2, 2]), r"down must be an integer >= 1, got \[2, 2\]"),
    "padding": (lambda: gk.filtered_lrelu(X, padding=[1, 2, 3]), r"padding must be an integer, .* got \[1, 2, 3\]"),
    "cropped_away": (lambda: gk.filtered_lrelu(X, padding=-2), r"padding must leave .* got \(-2, -2, -2, -2\)"),
    "gain": (lambda: gk.filtered_lrelu(X, gain=float("nan")), "gain must be a finite number, got nan"),
    "slope": (lambda: gk.filtered_lrelu(X, slope="0.2"), "slope must be a finite number, got str"),
    "clamp": (lambda: gk.filtered_lrelu(X, clamp=-1.0), "clamp must be a finite number >= 0, got -1.0"),
    "raw_up": (lambda: _raw_lrelu(up=0), "up must be >= 1, got 0"),
    "raw_bias": (lambda: _raw_lrelu(b=F[0, :2]), r"b must have shape \(C,\) = \(3,\), got \(2,\)"),
    "raw_bias_dtype": (lambda: _raw_lrelu(b=F[0].double()), "b must have the dtype of x, Float, got Double"),
    "raw_clamp": (lambda: _raw_lrelu(clamp=-1.0), "clamp must be >= 0, got -1"),
    "raw_cropped_away": (lambda: _raw_lrelu(padding=[0, 0, 0, -3]), r"padding \(0, 0, 0, -3\) leaves less of x"),
    "raw_mask": (lambda: _raw_lrelu_bwd(mask=X), r"mask must be Byte of shape \(2, 3, 4, 2\), got Float"),
    "raw_mask_shape": (lambda: _raw_lrelu_bwd(middle=(9, 4)), r"mask must be Byte of shape \(2, 3, 4, 3\), got Byte of"),
    "raw_size": (lambda: _raw_lrelu_bwd(size=(5, 0)), r"size must be >= 1, got \(5, 0\)"),
    "raw_grad": (lambda: _raw_lrelu_bwd(grad=X[0]), r"grad must have shape \(N, C, H, W\)"),
    "without_mask": (_without_mask, "save_mask must be True for a derivative, got False"),
}  # fmt: skip


def _lrelu_inputs(fu, fd, *constants):
    def inputs(shape, dtype, device):
        b = torch.linspace(-1, 1, shape[1], dtype=torch.float64).to(device, dtype)
        return randn(shape, dtype, device), fu.to(device), fd.to(device), b, *constants

    return inputs


_UP, _DOWN, _PADDING, _GAIN, _SLOPE, _FLIP = 2, 3, [5, 6, 1, -1], 0.9, 0.3, False


def _lrelu_bwd_inputs(shape, dtype, device):
    """A middle and a size that no forward of these filters has, and any bits."""
    n, c, h, w = shape
    middle, size = [2 * w + 3, 2 * h + 1], [w, h - 1]
    mask = torch.randint(256, (n, c, middle[1], (middle[0] + 3) // 4), dtype=torch.uint8).to(device)
    fu, fd = (f.to(device, torch.promote_types(dtype, torch.float32)) for f in (LONG, MATRIX))
    return randn(shape, dtype, device), mask, fu, fd, _UP, _DOWN, _PADDING, middle, size, _GAIN, _SLOPE, _FLIP


def _lrelu_bwd_reference(grad, mask, fu, fd, up, down, padding, middle, size, gain, slope, flip_filter):
    bits = torch.stack([mask.to(torch.uint8) >> shift & 3 for shift in (0, 2, 4, 6)], -1).flatten(-2)[..., : middle[0]]
    factor = torch.tensor([gain, gain * slope, 0, 0], dtype=grad.dtype, device=grad.device)[bits.long()]

    def resampled(x, f, up, down, pads, sizes):
        taps, padding = (f.shape[-1], f.shape[0]), []
        for axis in (0, 1):
            after = (sizes[axis] - 1) * down + taps[axis] - pads[axis] - x.shape[3 - axis] * up
            padding += [pads[axis], after]
        return gk.reference.upfirdn2d(x, f, up, down, padding, flip_filter)

    return resampled(factor * resampled(grad, fu, up, 1, padding[:2], middle), fd, 1, down, padding[2:], size)


# up, down, padding, flip_filter, gain
_UPFIRDN = {
    "upfirdn2d_up": (SMALL.outer(SMALL) / 64, 2, 1, [2, 1, 2, 1], False, 4.0),
    "upfirdn2d_down": (LONG, 1, 2, [5, 6, 5, 5], True, 1.0),
    "upfirdn2d_halve": (SMALL.outer(SMALL) / 64, 1, 2, [1, 1, 1, 1], False, 1.0),
    "upfirdn2d_both": (MATRIX, [3, 2], [2, 3], [3, -1, 2, 0], False, 0.7),
    "upfirdn2d_blur": (SMALL, 1, 1, [2, -1, 1, 2], False, 1.3),
}


def _rosinality(function, x, f, up, down, padding, flip_filter, gain):
    """f of two dimensions, the padding that of both axes."""
    return function(x, (f.flip((0, 1)) if flip_filter else f) * gain, up, down, tuple(padding[:2]))


def _kornia(function, x, f, up, down, padding, flip_filter, gain):
    """A filter that is separable, and nothing but the filter."""
    x = torch.nn.functional.pad(x, padding)
    return function(x, gain * f.outer(f)[None].to(x.dtype), border_type="constant", behaviour="conv", padding="valid")


_PEERS = {
    name: (module, "upfirdn2d", as_it_is)
    for name, module in (("stylegan3", "torch_utils.ops.upfirdn2d"), ("mmcv", "mmcv.ops"))
}
_MORE_PEERS = {
    "upfirdn2d_up": {"rosinality": ("op", "upfirdn2d", _rosinality)},
    "upfirdn2d_halve": {"rosinality": ("op", "upfirdn2d", _rosinality)},
    "upfirdn2d_blur": {"kornia": ("kornia.filters", "filter2d", _kornia)},
}

SPECS = [
    Spec(
        name,
        gk.upfirdn2d,
        gk.reference.upfirdn2d,
        _image_and(f, *constants),
        (0,),
        (0,),
        shapes={size: _SHAPES[size] for size in ("odd", "large")} if name == "upfirdn2d_halve" else _SHAPES,
        bad=_BAD if name == "upfirdn2d_up" else {},
        real=real,
        peers=_PEERS | _MORE_PEERS.get(name, {}),
        goals={mode: {"stock": 8.0} for mode in ("forward", "forward_backward")} if real else {},
    )
    for (name, (f, *constants)), real in zip(
        _UPFIRDN.items(),
        # StyleGAN2's RGB images and feature maps on the way to 64², 256² and 1024², its critic's at 64² and 256²
        (
            {
                "up_64": (8, 64, 64, 64),
                "up_256": (2, 128, 128, 128),
                "up_1024": (1, 32, 512, 512),
                "up_rgb_1024": (4, 3, 512, 512),
            },
            {"down_128": (8, 64, 128, 128)},
            {"down_128": (8, 64, 128, 128), "down_256": (2, 128, 256, 256)},
            {},
            {"blur_64": (8, 64, 64, 64), "blur_256": (2, 128, 256, 256)},
        ),
    )
]

# fu, fd, up, down, padding, gain, slope, clamp, flip_filter
_LRELU = {
    "filtered_lrelu": (LONG / 14, LONG.flip(0) / 14, 2, 2, [11, 10, 12, 9], 1.4, 0.2, 0.8, False),
    "filtered_lrelu_matrix": (MATRIX / 8, MATRIX.mT / 8, 3, 2, [2, 1, -1, 2], 0.8, 0.1, None, True),
}

SPECS += [
    *(
        Spec(
            name,
            gk.filtered_lrelu,
            gk.reference.filtered_lrelu,
            _lrelu_inputs(*constants),
            (0,),
            (0, 3),
            shapes=_SHAPES,
            bad=_LRELU_BAD if name == "filtered_lrelu" else {},
            real={"up2_down2_64": (2, 64, 64, 64), "stylegan3_256": (1, 64, 276, 276)}
            if name == "filtered_lrelu"
            else {},
            peers={
                "stylegan3": ("torch_utils.ops.filtered_lrelu", "filtered_lrelu", as_it_is),
                "mmcv": ("mmcv.ops", "filtered_lrelu", as_it_is),
            },
            goals={"forward_backward": {"stock": 4.0}} if name == "filtered_lrelu" else {},
        )
        for name, constants in _LRELU.items()
    ),
    Spec(
        "filtered_lrelu_bwd",
        _op.filtered_lrelu_bwd,
        _lrelu_bwd_reference,
        _lrelu_bwd_inputs,
        (0,),
        (0,),
        shapes=_SHAPES,
    ),
]
