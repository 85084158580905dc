"""y = r x with r = rsqrt(mean of x^2 over the channels + eps): every pixel's channels brought to a mean square of 1.

With <., .> the sum over a pixel's C channels and J(g) = -r^3 / C <x, g>:
    first derivative   dx = r g + J(g) x: the Jacobian is symmetric
    second derivative  given v, the gradient arriving at dx:
                       dg = r v + J(v) x,    dx = J(v) g + J(g) v + (-r^3 / C <g, v> + 3 / r J(g) J(v)) x
Nothing is saved but x: a derivative takes its sums from what it reads anyway. They are float32 (float64 for float64).
"""

from __future__ import annotations

import torch

from .._checks import check_number, check_tensor, got, shape
from .._registration import register
from .._triton import BLOCK, in_layout_of, jit, planes_or_rows, tl, triton

_op = torch.ops.gankernels


def reference(x: torch.Tensor, dim: int = 1, eps: float = 1e-8) -> torch.Tensor:
    """x * rsqrt(mean(x^2) + eps) in plain PyTorch."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(dim, keepdim=True) + eps)).to(x.dtype)


# --- Triton kernels: one program per PIXELS = BLOCK / CHANNELS pixels, which takes their channels CHANNELS at a time,
# once for the sums and once, from the cache, for the result. ROWS: a pixel's channels are dense, else a channel's pixels.
# eps is a compile-time constant: as an argument it would arrive in float32, too coarse for the float64 kernels. ---


@jit
def tile_offsets(channels, pixels, ROWS: tl.constexpr, PIXELS: tl.constexpr):
    """This program's pixels: their offsets (1, PIXELS), which of them exist, and the stride of a channel."""
    blocks = tl.cdiv(pixels, PIXELS)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * PIXELS + tl.arange(0, PIXELS)[None, :]
    at = sample * channels * pixels + pixel.to(tl.int64) * (channels if ROWS else 1)
    return at, pixel < pixels, 1 if ROWS else pixels


@jit
def load_tile(ptr, at, exists, channels, stride, start, CHANNELS: tl.constexpr):
    """CHANNELS channels from `start` on, in the dtype of the sums."""
    channel = start + tl.arange(0, CHANNELS)[:, None]
    x = tl.load(ptr + at + channel.to(tl.int64) * stride, (channel < channels) & exists, other=0.0)
    return x.to(tl.float64 if ptr.dtype.element_ty == tl.float64 else tl.float32)


@jit
def store_tile(ptr, value, at, exists, channels, stride, start, CHANNELS: tl.constexpr):
    channel = start + tl.arange(0, CHANNELS)[:, None]
    mask = (channel < channels) & exists
    tl.store(ptr + at + channel.to(tl.int64) * stride, value.to(ptr.dtype.element_ty), mask)


@jit
def zero_tile(ptr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    return tl.zeros((CHANNELS, PIXELS), tl.float64 if ptr.dtype.element_ty == tl.float64 else tl.float32)


@jit
def rsqrt_of_mean(squares, channels, eps: tl.constexpr):
    return 1 / tl.sqrt(tl.sum(squares, axis=0)[None, :] / channels + eps)


@jit
def along_x(r, products, channels):
    """J: in this order a sum of 0 stays 0 where r^3 overflows."""
    return -tl.sum(products, axis=0)[None, :] / channels * r * r * r


@jit
def pixel_norm_kernel(
    x_ptr,
    y_ptr,
    channels,
    pixels,
    eps: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at, exists, stride = tile_offsets(channels, pixels, ROWS, BLOCK // CHANNELS)
    squares = zero_tile(x_ptr, CHANNELS, BLOCK // CHANNELS)
    for start in range(0, channels, CHANNELS):
        x = load_tile(x_ptr, at, exists, channels, stride, start, CHANNELS)
        squares += x * x
    r = rsqrt_of_mean(squares, channels, eps)
    for start in range(0, channels, CHANNELS):
        x = load_tile(x_ptr, at, exists, channels, stride, start, CHANNELS)
        store_tile(y_ptr, r * x, at, exists, channels, stride, start, CHANNELS)


@jit
def pixel_norm_bwd_kernel(
    grad_ptr,
    x_ptr,
    out_ptr,
    channels,
    pixels,
    eps: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at, exists, stride = tile_offsets(channels, pixels, ROWS, BLOCK // CHANNELS)
    squares = zero_tile(x_ptr, CHANNELS, BLOCK // CHANNELS)
    products = squares
    for start in range(0, channels, CHANNELS):
        x = load_tile(x_ptr, at, exists, channels, stride, start, CHANNELS)
        squares += x * x
        products += x * load_tile(grad_ptr, at, exists, channels, stride, start, CHANNELS)
    r = rsqrt_of_mean(squares, channels, eps)
    along = along_x(r, products, channels)
    for start in range(0, channels, CHANNELS):
        x = load_tile(x_ptr, at, exists, channels, stride, start, CHANNELS)
        grad = load_tile(grad_ptr, at, exists, channels, stride, start, CHANNELS)
        store_tile(out_ptr, r * grad + along * x, at, exists, channels, stride, start, CHANNELS)


@jit
def pixel_norm_bwd_bwd_kernel(
    v_ptr,
    grad_ptr,
    x_ptr,
    grad_out_ptr,
    x_out_ptr,
    channels,
    pixels,
    eps: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at, exists, stride = tile_offsets(channels, pixels, ROWS, BLOCK // CHANNELS)
    squares = zero_tile(x_ptr, CHANNELS, BLOCK // CHANNELS)
    x_grad, x_v, grad_v = squares, squares, squares
    for start in range(0, channels, CHANNELS):
        x = load_tile(x_ptr, at, exists, channels, stride, start, CHANNELS)
        grad = load_tile(grad_ptr, at, exists, channels, stride, start, CHANNELS)
        v = load_tile(v_ptr, at, exists, channels, stride, start, CHANNELS)
        squares += x * x
        x_grad += x * grad
        x_v += x * v
        grad_v += grad * v
    r = rsqrt_of_mean(squares, channels, eps)
    along_grad, along_v = along_x(r, x_grad, channels), along_x(r, x_v, channels)
    along = along_x(r, grad_v, channels) + 3 / r * along_grad * along_v
    for start in range(0, channels, CHANNELS):
        x = load_tile(x_ptr, at, exists, channels, stride, start, CHANNELS)
        grad = load_tile(grad_ptr, at, exists, channels, stride, start, CHANNELS)
        v = load_tile(v_ptr, at, exists, channels, stride, start, CHANNELS)
        store_tile(grad_out_ptr, r * v + along_v * x, at, exists, channels, stride, start, CHANNELS)
        x_out = along_v * grad + along_grad * v + along * x
        store_tile(x_out_ptr, x_out, at, exists, channels, stride, start, CHANNELS)


# --- launch ---

# Channels a program takes at a time. Of planes: as many as leave 32 pixels, runs of whole cache lines in every dtype.
_MOST_PLANES, _MOST_IN_ROW = BLOCK // 32, BLOCK


def _launch(kernel, tensors, like, eps):
    """One launch over tensors that all lie in memory as `like`, which is of planes or of rows, does."""
    if like.numel() == 0:
        return
    channels = like.shape[1]
    rows = channels == 1 or like.stride(1) == 1
    samples = 1 if rows else like.shape[0]
    pixels = like.numel() // (samples * channels)
    at_a_time = min(triton.next_power_of_2(channels), _MOST_IN_ROW if rows else _MOST_PLANES)
    grid = (samples * triton.cdiv(pixels, BLOCK // at_a_time),)
    kernel[grid](*tensors, channels, pixels, eps, rows, at_a_time, BLOCK)


def _pixel_norm_triton(x, eps):
    x = planes_or_rows(x)
    y = torch.empty_like(x)
    _launch(pixel_norm_kernel, (x, y), x, eps)
    return y


def _pixel_norm_bwd_triton(grad, x, eps):
    x = planes_or_rows(x)
    out = torch.empty_like(x)
    _launch(pixel_norm_bwd_kernel, (in_layout_of(x, grad), x, out), x, eps)
    return out


def _pixel_norm_bwd_bwd_triton(grad_grad, grad, x, eps):
    x = planes_or_rows(x)
    grad_out, x_out = torch.empty_like(x), torch.empty_like(x)
    tensors = (in_layout_of(x, grad_grad), in_layout_of(x, grad), x, grad_out, x_out)
    _launch(pixel_norm_bwd_bwd_kernel, tensors, x, eps)
    return grad_out, x_out


# --- fake and derivatives ---


def _fake(x, eps):
    return torch.empty_like(planes_or_rows(x))


def _setup_context(ctx, inputs, output):
    x, ctx.eps = inputs
    ctx.save_for_backward(x)


def _backward(ctx, grad):
    return _op.pixel_norm_bwd(grad, *ctx.saved_tensors, ctx.eps), None


def _bwd_fake(grad, x, eps):
    return torch.empty_like(planes_or_rows(x))


def _bwd_setup_context(ctx, inputs, output):
    grad, x, ctx.eps = inputs
    ctx.save_for_backward(grad, x)


def _bwd_backward(ctx, grad_grad):
    return *_op.pixel_norm_bwd_bwd(grad_grad, *ctx.saved_tensors, ctx.eps), None


def _bwd_bwd_fake(grad_grad, grad, x, eps):
    x = planes_or_rows(x)
    return torch.empty_like(x), torch.empty_like(x)


register(
    "pixel_norm", fake=_fake, backward=_backward, setup_context=_setup_context, cuda=_pixel_norm_triton, keeps_rows=True
)
register(
    "pixel_norm_bwd",
    fake=_bwd_fake,
    backward=_bwd_backward,
    setup_context=_bwd_setup_context,
    cuda=_pixel_norm_bwd_triton,
)
register("pixel_norm_bwd_bwd", fake=_bwd_bwd_fake, cuda=_pixel_norm_bwd_bwd_triton)


def pixel_norm(x: torch.Tensor, dim: int = 1, eps: float = 1e-8) -> torch.Tensor:
    """y = x * rsqrt(mean of x^2 over dim + eps): feature maps over their channels, latents over their features.

    Args:
        x: (N, C), or (N, C, ...) of up to 5 dimensions.
        dim: 1, the channels; for (N, C) also -1.
        eps: > 0, added to the mean square.

    Returns: x's shape, dtype and memory format. Differentiable twice. Forward is one pass over memory: x is read once,
    y written once. So is backward: x and the gradient are read once, x's gradient is written once, and only x is kept
    for it. Sums are taken again rather than kept; they cost no pass while a tile of pixels with all their channels fits
    in the cache. x that is neither contiguous nor channels_last is copied first, forward and backward.

    Raises: TypeError or ValueError for an integer tensor, fewer than 2 or more than 5 dimensions, another dim, or an
    eps that is not positive and finite.

    Source: Karras et al. 2018, "Progressive Growing of GANs for Improved Quality, Stability, and Variation", 4.2.
    """
    check_tensor("pixel_norm", "x", x)
    if not 2 <= x.dim() <= 5:
        raise ValueError(
            f"gankernels.pixel_norm: x must have shape (N, C) or (N, C, ...), 5 dimensions at most, got {shape(x)}."
        )
    if isinstance(dim, bool) or not isinstance(dim, int) or dim not in ((1, -1) if x.dim() == 2 else (1,)):
        expected = "1 or -1" if x.dim() == 2 else "1"
        raise ValueError(f"gankernels.pixel_norm: dim must be {expected} for x of shape {shape(x)}, got {got(dim)}.")
    check_number("pixel_norm", "eps", eps, 0, above=True)
    return _op.pixel_norm(x, float(eps))
