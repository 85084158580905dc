"""y[o] = gain * sum over taps k of w[k] u[o down + k - p0], along both axes: upsample, pad, filter, downsample.

u is x with up - 1 zeros behind every element and zeros all around; w is f backwards (convolution), or f with flip_filter.
y is linear in x, and its transpose is of the same kind:
    dx[i] = gain * sum over k of w[taps - 1 - k] g'[i up + k - (taps - 1 - p0)],    g' the gradient with down - 1 zeros inserted
that is the op itself with up and down swapped, f flipped and other padding. So it differentiates to any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .._checks import check_flags, check_number, check_tensor, got, shape
from .._registration import register

_op = torch.ops.gankernels


def reference(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1):
    """Zero insertion, padding, depthwise convolution and slicing in plain PyTorch."""
    (up_x, up_y), (down_x, down_y), (x0, x1, y0, y1) = pair(up), pair(down), four(padding)
    n, c, h, w = x.shape
    f = torch.ones(1, device=x.device) if f is None else f
    f = (f if flip_filter else f.flip(tuple(range(f.dim())))).to(x.dtype)
    x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, up_x - 1, 0, 0, 0, up_y - 1)).reshape(n, c, h * up_y, w * up_x)
    x = F.pad(x, [max(p, 0) for p in (x0, x1, y0, y1)])
    x = x[:, :, max(-y0, 0) : x.shape[2] + min(y1, 0), max(-x0, 0) : x.shape[3] + min(x1, 0)]
    for taps in [f] if f.dim() == 2 else [f[:, None], f[None, :]]:
        x = F.conv2d(x, taps.expand(c, 1, *taps.shape), groups=c)
    return gain * x[:, :, ::down_y, ::down_x]


def pair(value):
    """[x, y] of a number or [x, y]."""
    return [value, value] if isinstance(value, int) else list(value)


def four(padding):
    """[x0, x1, y0, y1] of a number, [x, y] or [x0, x1, y0, y1]."""
    padding = pair(padding)
    return padding if len(padding) == 4 else [padding[0], padding[0], padding[1], padding[1]]


def taps_of(f):
    """Across and down; 1 where there is no filter."""
    return (1, 1) if f is None else (int(f.shape[-1]), int(f.shape[0]))  # torch.jit.trace has tensors for sizes


# --- fake and derivatives ---


def empty_images(like, sizes, dtype=None):
    """In the memory format the kernels return: contiguous, unless `like` is channels_last."""
    n, c, h, w = sizes
    if not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
        return like.new_empty((n, h, w, c), dtype=dtype).permute(0, 3, 1, 2)
    return like.new_empty(sizes, dtype=dtype)


def _fake(x, f, up, down, padding, flip_filter, gain):
    (fw, fh), (x0, x1, y0, y1), (n, c, h, w) = taps_of(f), padding, x.shape
    return empty_images(x, (n, c, (h * up[1] + y0 + y1 - fh) // down[1] + 1, (w * up[0] + x0 + x1 - fw) // down[0] + 1))


def _setup_context(ctx, inputs, output):
    x, f, ctx.up, ctx.down, padding, ctx.flip_filter, ctx.gain = inputs
    ctx.save_for_backward(f)
    ctx.padding = []
    for axis, (taps, before) in enumerate(zip(taps_of(f), padding[::2])):
        size, out, up, down = x.shape[3 - axis], output.shape[3 - axis], ctx.up[axis], ctx.down[axis]
        ctx.padding += [taps - 1 - before, size * up - out * down + before - up + 1]


def _backward(ctx, grad):
    (f,) = ctx.saved_tensors
    grad = _op.upfirdn2d(grad, f, ctx.down, ctx.up, ctx.padding, not ctx.flip_filter, ctx.gain)
    return grad, None, None, None, None, None, None


register("upfirdn2d", fake=_fake, backward=_backward, setup_context=_setup_context, keeps_rows=True)


# --- public functions ---


def check_images(op, x):
    check_tensor(op, "x", x)
    if x.dim() != 4 or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"gankernels.{op}: x must have shape (N, C, H, W) with H and W >= 1, got {shape(x)}.")


def filter_for(op, name, f, x):
    """The filter in the dtype of the sums over x; a single tap of 1 for None."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if f is None:
        return torch.ones(1, dtype=dtype, device=x.device)
    check_tensor(op, name, f)
    if f.dim() not in (1, 2) or f.numel() == 0:
        raise ValueError(
            f"gankernels.{op}: {name} must have shape (taps,) or (rows, columns) and not be empty, got {shape(f)}."
        )
    if f.device != x.device:
        raise ValueError(f"gankernels.{op}: {name} must be on the device of x, {x.device}, got {f.device}.")
    if f.requires_grad:
        raise ValueError(f"gankernels.{op}: {name} must be a constant, got a tensor that requires a gradient.")
    return f.to(dtype)


def _integers(op, name, value, lengths, expected):
    values = pair(value) if isinstance(value, (int, list, tuple)) else [None]
    if len(values) not in lengths or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise ValueError(f"gankernels.{op}: {name} must be {expected}, got {got(value)}.")
    return values


def factors_of(op, name, value):
    factors = _integers(op, name, value, (2,), "an integer >= 1 or [x, y]")
    if min(factors) < 1:
        raise ValueError(f"gankernels.{op}: {name} must be an integer >= 1 or [x, y], got {got(value)}.")
    return factors


def padding_of(op, value):
    return four(_integers(op, "padding", value, (2, 4), "an integer, [x, y] or [x0, x1, y0, y1]"))


def check_gain(op, gain):
    check_number(op, "gain", gain)
    return float(gain)


def taps(op, name, f, device=None) -> torch.Tensor:
    """A filter as people write it, as a float32 tensor."""
    try:
        if isinstance(f, bool):
            raise TypeError
        t = torch.as_tensor(f, dtype=torch.float32, device=device).detach()
    except (TypeError, ValueError):
        raise TypeError(
            f"gankernels.{op}: {name} must be numbers, as a tensor or a nested sequence, got {type(f).__name__}."
        ) from None
    if t.dim() > 2 or t.numel() == 0:
        raise ValueError(
            f"gankernels.{op}: {name} must have shape (), (taps,) or (rows, columns), and not be empty, got {shape(t)}."
        )
    if not t.is_meta and not t.isfinite().all():
        raise ValueError(f"gankernels.{op}: {name} must be finite, got {t[~t.isfinite()].flatten()[0].item()} in it.")
    return t


def setup_filter(
    f: torch.Tensor | Sequence | float | None,
    device: torch.device | str | None = None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> torch.Tensor:
    """A float32 filter for the resampling ops.

    Args:
        f: taps, as a tensor, nested sequence or number: (taps,), or (rows, columns). None is a single tap of 1.
        device: where the filter goes; None is the CPU, or f's own.
        normalize: divide by the sum, so that a constant image keeps its value.
        flip_filter: turn it around.
        gain: of the whole filter: of a separable one each axis gets the square root.
        separable: keep (taps,) as it is, to be applied along both axes, or make it the outer product with itself; None
            keeps it from 8 taps on.

    Returns: (taps,) or (rows, columns).

    Raises: ValueError for a filter that is empty, of more than 2 dimensions, not finite, 2-dimensional although separable is
    asked for, or of sum 0 where it is to be normalised.
    """
    op = "setup_filter"
    check_flags(op, normalize=normalize, flip_filter=flip_filter)
    if separable is not None:
        check_flags(op, separable=separable)
    if device is not None and not isinstance(device, (torch.device, str)):
        raise TypeError(
            f"gankernels.{op}: device must be a torch.device, its name or None, got {type(device).__name__}."
        )
    check_gain(op, gain)
    f = taps(op, "f", 1 if f is None else f, device)
    f = f.reshape(1) if f.dim() == 0 else f
    if separable and f.dim() == 2:
        raise ValueError(f"gankernels.{op}: f must have shape (taps,) where separable=True, got {shape(f)}.")
    if f.dim() == 1 and not (f.numel() >= 8 if separable is None else separable):
        f = f.outer(f)
    if normalize:
        if not f.is_meta and f.sum() == 0:
            raise ValueError(f"gankernels.{op}: f must not sum to 0 where normalize=True, got {f.tolist()}.")
        f = f / f.sum()
    if flip_filter:
        f = f.flip(tuple(range(f.dim())))
    return f * gain ** (f.dim() / 2)


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> torch.Tensor:
    """Upsamples by inserting zeros, pads or crops, filters, and keeps every down-th pixel.

    Args:
        x: (N, C, H, W), H and W >= 1.
        f: (taps,), applied along both axes, or (rows, columns); a constant, in float32 or x's dtype. None is a single 1.
        up, down: factors >= 1, one or [x, y].
        padding: pixels of the upsampled image: one number, [x, y] or [x0, x1, y0, y1]; negative ones crop.
        flip_filter: correlate (True) rather than convolve with f.
        gain: of the result.

    Returns: (N, C, outH, outW) with outW = (W up + x0 + x1 - columns + down) // down, in x's dtype and memory format.
    Differentiable in x to any order. One pass over memory, forward and backward: x is read once and y written once; in between
    are a few rows in the cache. Inserted zeros are never multiplied, and sums are float32 (float64 for float64). x that is
    neither contiguous nor channels_last is copied first. On a GPU the input of at least one output has to fit into a block's
    shared memory: filters of up to about 70 x 70 taps always do, larger ones where the device has more than 48 KiB.

    Raises: TypeError or ValueError for integer tensors, another number of dimensions, a filter that is empty, not of 1 or 2
    dimensions, on another device or in need of a gradient, factors < 1, padding that leaves less than the filter covers, or a
    gain that is not finite.

    Source: Crochiere & Rabiner 1983, "Multirate Digital Signal Processing"; in networks, Karras et al. 2020, "Analyzing and
    Improving the Image Quality of StyleGAN", appendix B.
    """
    return _resample("upfirdn2d", x, f, up, down, padding, flip_filter, gain)


def _resample(op, x, f, up, down, padding, flip_filter, gain, further_gain=1):
    check_images(op, x)
    check_flags(op, flip_filter=flip_filter)
    f = filter_for(op, "f", f, x)
    up, down, padding = factors_of(op, "up", up), factors_of(op, "down", down), padding_of(op, padding)
    (fw, fh), (x0, x1, y0, y1) = taps_of(f), padding
    padded = (x.shape[2] * up[1] + y0 + y1, x.shape[3] * up[0] + x0 + x1)
    if padded[0] < fh or padded[1] < fw:
        raise ValueError(
            f"gankernels.{op}: padding must leave at least as much as f, {(fh, fw)}, covers, got {tuple(padding)}, which makes the "
            f"upsampled image {padded}."
        )
    return _op.upfirdn2d(x, f, up, down, padding, flip_filter, check_gain(op, gain) * further_gain)


def _centred(op, x, f, padding, before, after):
    """The filter, and `padding` on top of what keeps it centred: before(taps) and after(taps) of each axis."""
    check_images(op, x)
    f = filter_for(op, "f", f, x)
    (fw, fh), (x0, x1, y0, y1) = taps_of(f), padding_of(op, padding)
    return f, [x0 + before(fw, 0), x1 + after(fw, 0), y0 + before(fh, 1), y1 + after(fh, 1)]


def filter2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> torch.Tensor:
    """`upfirdn2d` without resampling, padded so that the size stays; `padding` comes on top of that."""
    f, padding = _centred("filter2d", x, f, padding, lambda taps, axis: taps // 2, lambda taps, axis: (taps - 1) // 2)
    return _resample("filter2d", x, f, 1, 1, padding, flip_filter, gain)


def upsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> torch.Tensor:
    """`upfirdn2d` to `up` times the size, the filter centred; `padding`, in pixels of the result, comes on top of that. The
    values keep their size: the inserted zeros are made up for by a gain of up_x up_y."""
    up = factors_of("upsample2d", "up", up)
    f, padding = _centred(
        "upsample2d", x, f, padding, lambda taps, i: (taps + up[i] - 1) // 2, lambda taps, i: (taps - up[i]) // 2
    )
    return _resample("upsample2d", x, f, up, 1, padding, flip_filter, gain, math.prod(up))


def downsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> torch.Tensor:
    """`upfirdn2d` to 1/`down` of the size, the filter centred; `padding`, in pixels of x, comes on top of that."""
    down = factors_of("downsample2d", "down", down)
    f, padding = _centred(
        "downsample2d", x, f, padding, lambda taps, i: (taps - down[i] + 1) // 2, lambda taps, i: (taps - down[i]) // 2
    )
    return _resample("downsample2d", x, f, 1, down, padding, flip_filter, gain)
