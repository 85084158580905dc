"""y = D C U x: upsample x with the filter f, convolve with w, downsample with f; padded once, before anything is filtered.

    U = upfirdn2d(., f, up, gain up^2),    C = the convolution,    D = upfirdn2d(., f, down)
U, C and D are convolutions, so they commute, and the work is done at the lowest resolution that gives the same numbers: a 1x1
convolution on the small side of U and D, a larger one together with the inserted zeros (a transposed convolution, then the filter)
or together with the pixels left out (the filter, then a strided convolution).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .._checks import check_flags, check_integer, check_tensor, shape
from .bias_act import check_side
from .upfirdn2d import check_images, filter_for, padding_of, taps_of, upfirdn2d
from .upfirdn2d import reference as upfirdn2d_reference

_op = torch.ops.gankernels


def reference(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False):
    """Upsampling, convolution and downsampling, one after the other, in plain PyTorch."""
    padding = centred(f, up, down, padding_of("conv2d_resample", padding))
    x = upfirdn2d_reference(x, f if up > 1 else None, up, padding=padding, flip_filter=flip_filter, gain=up**2)
    x = F.conv2d(x, (w if flip_weight else w.flip((2, 3))).to(x.dtype), groups=groups)
    return upfirdn2d_reference(x, f, down=down, flip_filter=flip_filter) if down > 1 else x


def centred(f, up, down, padding):
    """`padding` on top of what keeps the filters of both resamplings centred, so that only the convolution moves the edges."""
    before = after = (0, 0)
    if up > 1:
        before = [(t + up - 1) // 2 for t in taps_of(f)]
        after = [(t - up) // 2 for t in taps_of(f)]
    if down > 1:
        before = [p + (t - down + 1) // 2 for p, t in zip(before, taps_of(f))]
        after = [p + (t - down) // 2 for p, t in zip(after, taps_of(f))]
    x0, x1, y0, y1 = padding
    return [x0 + before[0], x1 + after[0], y0 + before[1], y1 + after[1]]


def _convolved(x, w, padding=(0, 0), stride=1, groups=1):
    """With exact second derivatives at their least number of convolutions (gankernels/ops/fast_double_backward.py)."""
    return _op.fast_convolution(x, w, None, [stride] * 2, padding, [1, 1], False, [0, 0], groups)


def _transposed(x, w, padding, stride, groups):
    o, i, *kernel = w.shape
    w = w.reshape(groups, o // groups, i, *kernel).transpose(1, 2).reshape(groups * i, o // groups, *kernel)
    return _op.fast_convolution(x, w, None, [stride] * 2, padding, [1, 1], True, [0, 0], groups)


def resampled(x, w, f, up, down, padding, groups, flip_weight, flip_filter):
    """`conv2d_resample` of checked arguments, f in the dtype of the sums."""
    kh, kw = map(int, w.shape[2:])
    x0, x1, y0, y1 = padding = centred(f, up, down, padding)
    if up == 1 and down == 1 and x0 == x1 >= 0 and y0 == y1 >= 0:
        return _convolved(x, w if flip_weight else w.flip((2, 3)), [y0, x0], 1, groups)
    pointwise = kh == kw == 1
    if up > 1 and not pointwise:
        # a transposed convolution is a convolution of the image with zeros inserted that reaches kernel - 1 pixels further, and
        # ends with the last pixel rather than with the zeros behind it; what both sides have too much it leaves out itself
        padding = [x0 - kw + 1, x1 - kw + up, y0 - kh + 1, y1 - kh + up]
        crop = [max(0, -max(padding[2:])), max(0, -max(padding[:2]))]
        x = _transposed(x, w.flip((2, 3)) if flip_weight else w, crop, up, groups)
        padding = [p + c for p, c in zip(padding, (crop[1], crop[1], crop[0], crop[0]))]
        x = upfirdn2d(x, f, padding=padding, flip_filter=flip_filter, gain=up**2)
        return upfirdn2d(x, f, down=down, flip_filter=flip_filter) if down > 1 else x
    w = w if flip_weight or pointwise else w.flip((2, 3))
    if up > 1:
        x = upfirdn2d(_convolved(x, w, groups=groups), f, up, 1, padding, flip_filter, up**2)
        return upfirdn2d(x, f, down=down, flip_filter=flip_filter) if down > 1 else x
    if down > 1:
        x = upfirdn2d(x, f, 1, down if pointwise else 1, padding, flip_filter)
        return _convolved(x, w, stride=1 if pointwise else down, groups=groups)
    return _convolved(F.pad(x, padding), w, groups=groups)


def check_weight(op, name, w, x, groups=1):
    check_tensor(op, name, w)
    check_integer(op, "groups", groups, 1)
    if w.dim() != 4 or 0 in w.shape or w.shape[1] * groups != x.shape[1] or w.shape[0] % groups:
        inputs = f"{x.shape[1]}" if groups == 1 else f"{x.shape[1]} / {groups}"
        multiple = "" if groups == 1 else f", O a multiple of {groups}"
        raise ValueError(
            f"gankernels.{op}: {name} must have shape (O, I, rows, columns) with I = {inputs}{multiple}, got {shape(w)}."
        )
    check_side(op, name, w, x)


def factor_of(op, name, value):
    check_integer(op, name, value, 1)
    return value


def padding_for(op, x, w, f, up, down, padding):
    """Four numbers that leave something of the image; and (outH, outW)."""
    padding = padding_of(op, padding)
    x0, x1, y0, y1 = centred(f, up, down, padding)
    (kh, kw), (fw, fh) = w.shape[2:], taps_of(f)
    passes = (up > 1) + (down > 1)  # of the filter
    covered = (kh + passes * (fh - 1), kw + passes * (fw - 1))
    padded = (x.shape[2] * up + y0 + y1, x.shape[3] * up + x0 + x1)
    if padded[0] < covered[0] or padded[1] < covered[1]:
        raise ValueError(
            f"gankernels.{op}: padding must leave at least as much as weight and filter, {covered}, cover, got {tuple(padding)}, "
            f"which makes the upsampled image {padded}."
        )
    return padding, tuple((p - c) // down + 1 for p, c in zip(padded, covered))


def conv2d_resample(
    x: torch.Tensor,
    w: torch.Tensor,
    f: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> torch.Tensor:
    """A convolution that upsamples before it, or downsamples after it, with a filter.

    Args:
        x: (N, I, H, W), H and W >= 1.
        w: (O, I / groups, rows, columns), in x's dtype or float32.
        f: (taps,), applied along both axes, or (rows, columns); a constant, in float32 or x's dtype. None is a single 1.
        up, down: factors >= 1.
        padding: pixels of the upsampled image: one number, [x, y] or [x0, x1, y0, y1]; negative ones crop. It comes on top of
            what keeps the filters centred, so half of w's size keeps the image's size times up / down.
        groups: of the convolution.
        flip_weight: correlate (True), as torch.nn.functional.conv2d does, rather than convolve with w.
        flip_filter: correlate rather than convolve with f.

    Returns: (N, O, outH, outW) with outW = (W up + x0 + x1 - columns + down) // down where the filters are centred, in x's dtype
    and memory format. Differentiable in x and w to any order, each derivative with as few convolutions as there are products.
    Beside the convolution one pass over memory to upsample or to downsample, two for both, and none without resampling. A 1x1
    convolution is done at the lower resolution, any other as a transposed or strided convolution.

    Raises: TypeError or ValueError for integer tensors, another number of dimensions, channels that do not fit, a filter that
    `upfirdn2d` refuses, factors or groups < 1, or padding that leaves less than w and f cover.

    Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", appendix B.
    """
    op = "conv2d_resample"
    check_images(op, x)
    check_weight(op, "w", w, x, groups)
    f = filter_for(op, "f", f, x)
    up, down = factor_of(op, "up", up), factor_of(op, "down", down)
    check_flags(op, flip_weight=flip_weight, flip_filter=flip_filter)
    padding, _ = padding_for(op, x, w, f, up, down, padding)
    return resampled(x, w.to(x.dtype), f, up, down, padding, groups, flip_weight, flip_filter)
