"""y = bias_act(d C(s x) + noise, bias): a convolution whose weights are scaled by styles, per sample and input channel.

With w'[n,o,i,k] = w[o,i,k] s[n,i] and, demodulated, w'' = d[n,o] w',
    d[n,o] = rsqrt(sum over i, k of w'^2 + 1e-8) = rsqrt(sum over i of s[n,i]^2 (sum over k of w[o,i,k]^2) + 1e-8)
so a product of two small matrices makes the coefficients, and convolving with w'' is scaling the input by s, convolving with w,
which all samples share, and scaling the output by d. Weights per sample are never made. The second scaling goes into the pass of
noise, bias and activation, and each scaling's backward makes its two gradients in one pass (the registered op bias_act).

d makes up for any factor of s[n] and of w[o]. In float16 both are brought to a largest magnitude that cannot overflow, by factors that
are constants to the derivative: what it leaves out is zero. bfloat16 has the range of float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from .._checks import check_flags, check_number, shape
from .bias_act import NUMBERS, check_function, check_side
from .bias_act import reference as bias_act_reference
from .conv2d_resample import check_weight, factor_of, padding_for, resampled
from .conv2d_resample import reference as conv2d_resample_reference
from .upfirdn2d import check_images, filter_for

_op = torch.ops.gankernels
_EPS = 1e-8
_IDENTITY = (NUMBERS["linear"], 0.0, 1.0, None)  # act, alpha, gain, clamp


def reference(
    x, weight, styles, *, noise=None, bias=None, act="linear", alpha=None, gain=None, clamp=None, up=1, down=1, padding=0,
    resample_filter=None, demodulate=True, flip_weight=True, input_gain=None,
):  # fmt: skip
    """A grouped convolution, a group per sample with weights of its own, in plain PyTorch."""
    n, c, height, width = x.shape
    w = weight * styles.reshape(n, 1, c, 1, 1)
    if demodulate:
        w = w * (w.square().sum((2, 3, 4), keepdim=True) + _EPS).rsqrt()
    if input_gain is not None:
        w = w * torch.as_tensor(input_gain, dtype=w.dtype, device=w.device).expand(n, c).reshape(n, 1, c, 1, 1)
    y = conv2d_resample_reference(
        x.reshape(1, n * c, height, width), w.flatten(0, 1), resample_filter, up, down, padding, n, flip_weight
    )
    y = y.reshape(n, -1, *y.shape[2:])
    return bias_act_reference(y if noise is None else y + noise, bias, 1, act, alpha, gain, clamp)


def _without_overflow(weight, styles):
    """Both over their largest magnitudes, per output channel and per sample; weights also over the root of what they add up."""
    with torch.no_grad():
        tiny = torch.finfo(styles.dtype).tiny
        of_weight = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=tiny) * weight[0].numel() ** 0.5
        of_styles = styles.abs().amax(1, keepdim=True).clamp(min=tiny)
    return weight / of_weight, styles / of_styles


def _check_styles(op, name, value, x):
    check_side(op, name, value, x)
    if value.shape != x.shape[:2]:
        raise ValueError(f"gankernels.{op}: {name} must have shape (N, I) = {tuple(x.shape[:2])}, got {shape(value)}.")


def _noise(op, noise, x, size):
    """With four dimensions."""
    check_side(op, "noise", noise, x)
    if noise.shape != size and noise.shape not in ((x.shape[0], 1, *size), (1, 1, *size)):
        raise ValueError(
            f"gankernels.{op}: noise must have shape (N, 1, outH, outW) = {(x.shape[0], 1, *size)}, or that of one sample, got "
            f"{shape(noise)}."
        )
    return noise.reshape(-1, 1, *size) if noise.dim() == 2 else noise


def _gain_of_input(op, value, x):
    """A factor, or one per sample and channel."""
    if not isinstance(value, torch.Tensor):
        check_number(op, "input_gain", value)
        return value
    check_side(op, "input_gain", value, x)
    try:
        return value.expand(x.shape[:2])
    except RuntimeError:
        raise ValueError(
            f"gankernels.{op}: input_gain must be a number or expand to (N, I) = {tuple(x.shape[:2])}, got {shape(value)}."
        ) from None


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    *,
    noise: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    resample_filter: torch.Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    input_gain: float | torch.Tensor | None = None,
) -> torch.Tensor:
    """A convolution with weight[o, i] styles[n, i], demodulated; then noise, bias, activation, gain and clamp.

    Args:
        x: (N, I, H, W), H and W >= 1.
        weight: (O, I, rows, columns).
        styles: (N, I).
        noise: (N, 1, outH, outW), (1, 1, outH, outW) or (outH, outW), already times its strength; added before the bias.
        bias: (O,).
        act, alpha, gain, clamp: as in `bias_act`.
        up, down, padding, resample_filter, flip_weight: as in `conv2d_resample`.
        demodulate: divide by the root of the sum of squares of the weights of an output channel, plus 1e-8.
        input_gain: a further factor of the input that demodulation does not see: a number, or what expands to (N, I).
        All but x may be in x's dtype or in float32.

    Returns: (N, O, outH, outW) in x's dtype and memory format. Differentiable in all tensors but the filter: to any order for
    linear, relu and lrelu, twice for the others. float16 keeps demodulated convolutions in range as published; autocast casts x
    first, as it does for a convolution.

    Beside the passes of `conv2d_resample` two over memory: x is read and written once, scaled; the result is read and written once
    for demodulation, noise, bias, activation, gain and clamp. With one set of weights for all samples the input has to be scaled
    before the convolution, which is a library's, and the result's factors are known only after it: no fewer. Each pass has one for
    its backward, which makes the gradients of image and factors together. In backward the convolution's input gradient and weight
    gradient are taken once each; in double backward a layer takes two convolutions, two input gradients and two weight gradients
    in all, forward included.

    Raises: TypeError or ValueError for what `bias_act` and `conv2d_resample` refuse, and for styles, noise, bias or input_gain of
    another shape, dtype or device.

    Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", 2.2; normalisation in low precision: Karras
    et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix.
    """
    op = "modulated_conv2d"
    check_images(op, x)
    device = x.device.type
    autocasts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if autocasts and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    check_weight(op, "weight", weight, x)
    _check_styles(op, "styles", styles, x)
    f = filter_for(op, "resample_filter", resample_filter, x)
    function = check_function(op, act, alpha, gain, clamp)
    check_flags(op, demodulate=demodulate, flip_weight=flip_weight)
    up, down = factor_of(op, "up", up), factor_of(op, "down", down)
    padding, size = padding_for(op, x, weight, f, up, down, padding)
    if bias is not None:
        check_side(op, "bias", bias, x)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"gankernels.{op}: bias must have shape (O,) = ({weight.shape[0]},), got {shape(bias)}.")
    if noise is not None:
        noise = _noise(op, noise, x, size)
    if input_gain is not None:
        input_gain = _gain_of_input(op, input_gain, x)

    accumulate = torch.promote_types(x.dtype, torch.float32)
    styles, coefficients = styles.to(accumulate), None
    if demodulate:
        wide = weight.to(accumulate)
        if x.dtype == torch.float16:
            wide, styles = _without_overflow(wide, styles)
            weight = wide
        with torch.autocast(device, enabled=False) if autocasts else contextlib.nullcontext():
            coefficients = (styles.square() @ _op.sum_of_squares(wide).mT + _EPS).rsqrt()
    scale = styles if input_gain is None else styles * input_gain
    y = _op.bias_act(x, scale, None, None, *_IDENTITY)
    y = resampled(y, weight.to(x.dtype), f, up, down, padding, 1, flip_weight, False)
    if coefficients is None and noise is None and bias is None and function == _IDENTITY:
        return y
    return _op.bias_act(y, coefficients, noise, bias, *function)
