"""The ops of StyleGAN's family in plain PyTorch, as code has them that does without kernels: the other side of a comparison.

Each takes the arguments of the op it stands for. Resampled convolutions already do their work at the lower resolution, as public code does.
"""

import torch
import torch.nn.functional as F

from gankernels import reference
from gankernels.ops.conv2d_resample import centred
from gankernels.ops.upfirdn2d import four

bias_act, filtered_lrelu, upfirdn2d = reference.bias_act, reference.filtered_lrelu, reference.upfirdn2d
minibatch_stddev, pixel_norm = reference.minibatch_stddev, reference.pixel_norm


def conv2d_resample(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True):
    """w of 1x1 or 3x3, f of 4 taps; up or down by 2, or neither."""
    w = w.to(x.dtype)
    pads, k = centred(f, up, down, four(padding)), w.shape[-1]
    if up == 2:
        o, i = w.shape[0] // groups, w.shape[1]
        w = (
            (w.flip((2, 3)) if flip_weight else w)
            .reshape(groups, o, i, k, k)
            .transpose(1, 2)
            .reshape(groups * i, o, k, k)
        )
        x = F.conv_transpose2d(x, w, stride=2, groups=groups)
        pads = [p - k + (2 if after else 1) for after, p in zip((0, 1, 0, 1), pads)]
        return upfirdn2d(x, f, padding=pads, gain=4)
    if down == 2:
        x = upfirdn2d(x, f, down=2 if k == 1 else 1, padding=pads)
        return F.conv2d(x, w, stride=1 if k == 1 else 2, groups=groups)
    return F.conv2d(x, w, padding=padding, groups=groups)


def _activated(y, noise, bias, act, alpha, gain, clamp):
    return bias_act(y if noise is None else y + noise, bias, 1, act, alpha, gain, clamp)


def grouped_modulated_conv2d(
    x, weight, styles, *, noise=None, bias=None, act="linear", alpha=None, gain=None, clamp=None, up=1, down=1, padding=0,
    resample_filter=None, demodulate=True, flip_weight=True, input_gain=None,
):  # fmt: skip
    """Weights per sample, and a convolution of as many groups."""
    n, o = x.shape[0], weight.shape[0]
    w = weight * styles[:, None, :, None, None]
    if demodulate:
        w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    w = w if input_gain is None else w * input_gain
    x = x.reshape(1, -1, *x.shape[2:])
    y = conv2d_resample(x, w.flatten(0, 1), resample_filter, up, down, padding, n, flip_weight)
    return _activated(y.reshape(n, o, *y.shape[2:]), noise, bias, act, alpha, gain, clamp)


def modulated_conv2d(
    x, weight, styles, *, noise=None, bias=None, act="linear", alpha=None, gain=None, clamp=None, up=1, down=1, padding=0,
    resample_filter=None, demodulate=True, flip_weight=True, input_gain=None,
):  # fmt: skip
    """Scale, convolve, scale."""
    scale = styles if input_gain is None else styles * input_gain
    x = x * scale[:, :, None, None].to(x.dtype)
    y = conv2d_resample(x, weight, resample_filter, up, down, padding, 1, flip_weight)
    if demodulate:
        coefficients = (styles.square() @ weight.square().sum((2, 3)).mT + 1e-8).rsqrt()
        y = y * coefficients[:, :, None, None].to(x.dtype)
    return _activated(y, noise, bias, act, alpha, gain, clamp)


def path_length_penalty(synthesis, w, mean_length, noise):
    """2 E(|J^T y| - a)^2, a running mean."""
    (grads,) = torch.autograd.grad((synthesis(w) * noise).sum(), w, create_graph=True)
    lengths = grads.square().sum(-1).sqrt()
    return 2 * (lengths - mean_length.to(lengths).lerp(lengths.mean(), 0.01)).square().mean()
