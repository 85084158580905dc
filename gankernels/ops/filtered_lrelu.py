"""y = D clamp(gain leaky_relu(U (x + b))): U upsamples with the filter fu, D downsamples with fd, both as upfirdn2d does.

What the derivative needs to know of the activation is two bits m for each number of the upsampled image, negative and clamped:
    dx = U^T M D^T g,    M = gain, gain slope where negative, 0 where clamped;    db = the sum of dx over batch and pixels
D^T upsamples by `down` with fd turned around, U^T downsamples by `up` with fu turned around, so the derivative is the same
machine with the bits in place of the activation, and its own derivative, in g, is that machine again: any order. In x it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .._checks import check_flags, check_integer, check_number, check_tensor, shape
from .._registration import register
from .upfirdn2d import check_gain, check_images, empty_images, filter_for, padding_of, taps_of
from .upfirdn2d import reference as upfirdn2d_reference

_op = torch.ops.gankernels
_GAIN = math.sqrt(2)  # keeps the variance of what a ReLU halves


def reference(
    x, fu=None, fd=None, b=None, up=1, down=1, padding=0, gain=_GAIN, slope=0.2, clamp=None, flip_filter=False
):
    """Bias, upsampling, leaky ReLU, clamp and downsampling in plain PyTorch."""
    if b is not None:
        x = x + b.reshape(-1, 1, 1)
    x = upfirdn2d_reference(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up**2)
    x = gain * F.leaky_relu(x, slope)
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return upfirdn2d_reference(x, fd, down=down, flip_filter=flip_filter)


# --- fake and derivatives. The mask has 2 bits for each number of the upsampled image, four columns to a byte, in the memory
# format of x. `padding` of filtered_lrelu_bwd is what lies in front of the upsampled and of the downsampled image,
# [x, y, x, y]; `middle` and `size` are those of the upsampled image and of the result, [x, y]. ---


def _middle_of(x, fu, up, padding):
    (fw, fh), (x0, x1, y0, y1) = taps_of(fu), padding
    return [x.shape[3] * up + x0 + x1 - fw + 1, x.shape[2] * up + y0 + y1 - fh + 1]


def _fake(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter, save_mask):
    (n, c), (width, height), (fw, fh) = x.shape[:2], _middle_of(x, fu, up, padding), taps_of(fd)
    y = empty_images(x, (n, c, (height - fh) // down + 1, (width - fw) // down + 1))
    if not save_mask:
        return y, x.new_empty(0, dtype=torch.uint8)
    return y, empty_images(x, (n, c, height, (width + 3) // 4), torch.uint8)


def _setup_context(ctx, inputs, output):
    x, fu, fd, b, ctx.up, ctx.down, padding, gain, ctx.slope, _, ctx.flip_filter, ctx.has_mask = inputs
    ctx.save_for_backward(output[1], fu, fd)
    ctx.padding = [taps - 1 for taps in taps_of(fd)] + [t - 1 - p for t, p in zip(taps_of(fu), padding[::2])]
    ctx.middle, ctx.size = _middle_of(x, fu, ctx.up, padding), [x.shape[3], x.shape[2]]
    ctx.gain = gain * ctx.up**2
    ctx.has_bias = b is not None


def _backward(ctx, grad, _):
    if not ctx.has_mask:
        raise RuntimeError("gankernels.filtered_lrelu: save_mask must be True for a derivative, got False.")
    mask, fu, fd = ctx.saved_tensors
    dx = _op.filtered_lrelu_bwd(
        grad,
        mask,
        fd,
        fu,
        ctx.down,
        ctx.up,
        ctx.padding,
        ctx.middle,
        ctx.size,
        ctx.gain,
        ctx.slope,
        not ctx.flip_filter,
    )
    db = dx.sum((0, 2, 3)) if ctx.has_bias and ctx.needs_input_grad[3] else None
    return dx, None, None, db, *[None] * 8


def _bwd_fake(grad, mask, fu, fd, up, down, padding, middle, size, gain, slope, flip_filter):
    return empty_images(mask, (*grad.shape[:2], size[1], size[0]), grad.dtype)


def _bwd_setup_context(ctx, inputs, output):
    grad, mask, fu, fd, ctx.up, ctx.down, padding, ctx.middle, _, ctx.gain, ctx.slope, ctx.flip_filter = inputs
    ctx.save_for_backward(mask, fu, fd)
    ctx.padding = [taps - 1 - p for taps, p in zip(taps_of(fd) + taps_of(fu), (*padding[2:], *padding[:2]))]
    ctx.size = [grad.shape[3], grad.shape[2]]


def _bwd_backward(ctx, grad):
    mask, fu, fd = ctx.saved_tensors
    grad = _op.filtered_lrelu_bwd(
        grad,
        mask,
        fd,
        fu,
        ctx.down,
        ctx.up,
        ctx.padding,
        ctx.middle,
        ctx.size,
        ctx.gain,
        ctx.slope,
        not ctx.flip_filter,
    )
    return grad, *[None] * 11


register("filtered_lrelu", fake=_fake, backward=_backward, setup_context=_setup_context, keeps_rows=True)
register("filtered_lrelu_bwd", fake=_bwd_fake, backward=_bwd_backward, setup_context=_bwd_setup_context)


def _factor(op, name, value):
    check_integer(op, name, value, 1)
    return value


def _bias(op, b, x):
    check_tensor(op, "b", b)
    if b.shape != x.shape[1:2]:
        raise ValueError(f"gankernels.{op}: b must have shape (C,) = ({x.shape[1]},), got {shape(b)}.")
    if b.dtype != x.dtype:
        raise TypeError(f"gankernels.{op}: b must have the dtype of x, {str(x.dtype)[6:]}, got {str(b.dtype)[6:]}.")
    if b.device != x.device:
        raise ValueError(f"gankernels.{op}: b must be on the device of x, {x.device}, got {b.device}.")
    return b


def filtered_lrelu(
    x: torch.Tensor,
    fu: torch.Tensor | None = None,
    fd: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = _GAIN,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> torch.Tensor:
    """Alias-free leaky ReLU: bias, upsample, gain * leaky_relu, clamp, downsample.

    Args:
        x: (N, C, H, W), H and W >= 1.
        fu, fd: filters of the upsampling (with gain up^2) and the downsampling: (taps,), applied along both axes, or
            (rows, columns); constants, in float32 or x's dtype. None is a single 1.
        b: bias (C,) in x's dtype.
        up, down: factors >= 1.
        padding: pixels of the upsampled image: one number, [x, y] or [x0, x1, y0, y1]; negative ones crop.
        gain, slope: of the activation, gain * x where x > 0 and gain * slope * x elsewhere; gain is sqrt(2) by default.
        clamp: >= 0; the activation is clamped to [-clamp, clamp]. None: it is not.
        flip_filter: correlate (True) rather than convolve with fu and fd.

    Returns: (N, C, outH, outW) with outW = (W up + x0 + x1 - (fu's columns - 1) - (fd's columns - 1) + down - 1) // down, in
    x's dtype and memory format. Differentiable in x and b to any order. One pass over memory: x is read once and y written
    once. The upsampled image is never in memory, neither forward nor backward: rows of it are computed when the result needs
    them and stay in the cache. The backward reads the gradient and writes x's once, and all that is kept for it are 2 bits for
    each number of the upsampled image; without a gradient to come not even these. Sums are float32 (float64 for float64). x
    that is neither contiguous nor channels_last is copied first. On a GPU a tile of the upsampled image lives in shared memory:
    filters of up to about 50 taps a side always fit, larger ones where the device has more than 48 KiB.

    Raises: TypeError or ValueError for integer tensors, another number of dimensions, filters that are empty, not of 1 or 2
    dimensions, on another device or in need of a gradient, a bias of another shape, dtype or device, factors < 1, padding that
    leaves less than the filters cover, a gain or slope that is not finite, or a negative clamp.

    Source: Karras et al. 2021, "Alias-Free Generative Adversarial Networks", 3.
    """
    op = "filtered_lrelu"
    check_images(op, x)
    fu, fd = filter_for(op, "fu", fu, x), filter_for(op, "fd", fd, x)
    b = None if b is None else _bias(op, b, x)
    up, down, padding = _factor(op, "up", up), _factor(op, "down", down), padding_of(op, padding)
    gain = check_gain(op, gain)
    check_number(op, "slope", slope)
    check_flags(op, flip_filter=flip_filter)
    if clamp is not None:
        check_number(op, "clamp", clamp, 0)
    (width, height), (fw, fh) = _middle_of(x, fu, up, padding), taps_of(fd)
    if width < fw or height < fh:
        raise ValueError(
            f"gankernels.{op}: padding must leave at least as much as the filters cover, got {tuple(padding)}, which makes the "
            f"upsampled image {(height, width)} where fd is {(fh, fw)}."
        )
    save_mask = torch.is_grad_enabled() and (x.requires_grad or b is not None and b.requires_grad)
    clamp = None if clamp is None else float(clamp)
    return _op.filtered_lrelu(x, fu, fd, b, up, down, padding, gain, float(slope), clamp, flip_filter, save_mask)[0]
