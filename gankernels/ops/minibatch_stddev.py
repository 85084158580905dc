"""s_mf = mean over the channels of group f and all pixels of sigma, sigma = sqrt(var over the samples of group m + eps).

With G samples in a group, y = x - mean of x over the group, P elements of a sample in a group of channels, r = 1 / sigma:
    first derivative   dx = grad / (P G) y r
    second derivative  given v, the gradient arriving at dx, and u = v - mean of v over the group:
                       dgrad = 1 / (P G) sum_p <y, v> r,    dx = grad / (P G) r (u - y r^2 <y, v> / G)
with <., .> the sum over a group at one element. Nothing is saved but x: G values per element are read at once anyway.
"""

from __future__ import annotations

import math

import torch

from .._checks import check_integer, check_number, check_tensor, shape
from .._registration import register
from .._triton import BLOCK, in_layout_of, jit, samples_first, tl, triton

_op = torch.ops.gankernels


def _reference_statistic(x: torch.Tensor, group_size: int, num_channels: int, eps: float) -> torch.Tensor:
    """(N / group_size, num_channels)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    length = math.prod(x.shape[1:]) // num_channels
    groups = wide.reshape(group_size, x.shape[0] // group_size, num_channels, length)
    return ((groups - groups.mean(0)).square().mean(0) + eps).sqrt().mean(-1).to(x.dtype)


def _append(x: torch.Tensor, statistic: torch.Tensor, group_size: int) -> torch.Tensor:
    """x with a group's statistics as constant channels of each of its samples."""
    channels = statistic.repeat(group_size, 1).reshape(x.shape[0], -1, *[1] * (x.dim() - 2))
    return torch.cat([x, channels.expand(-1, -1, *x.shape[2:])], dim=1)


def _group_of(x: torch.Tensor, group_size: int | None) -> int:
    return x.shape[0] if group_size is None else min(group_size, x.shape[0])


def reference(x: torch.Tensor, group_size: int | None = 4, num_channels: int = 1, eps: float = 1e-8) -> torch.Tensor:
    """x with the mean standard deviation over its group appended as channels, in plain PyTorch."""
    group = _group_of(x, group_size)
    return _append(x, _reference_statistic(x, group, num_channels, eps), group)


# --- Triton kernels: one program per group of samples, group of channels and BLOCK elements, which takes a group's samples one
# after the other: once for the mean, once from the cache for the variance, once for the result. eps is a compile-time
# constant: as an argument it would arrive in float32, too coarse for the float64 kernels. ---


@jit
def elements(length, groups, channel_groups, BLOCK: tl.constexpr):
    """The row (m, f), offsets into the first sample of group m, which of them exist, and the stride from sample to sample."""
    blocks = tl.cdiv(length, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    within = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return row, row * length + within, within < length, groups.to(tl.int64) * channel_groups * length


@jit
def load_sample(ptr, at, mask):
    return tl.load(ptr + at, mask, other=0.0).to(tl.float64 if ptr.dtype.element_ty == tl.float64 else tl.float32)


@jit
def mean_over_group(ptr, at, mask, stride, group, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64 if ptr.dtype.element_ty == tl.float64 else tl.float32)
    for g in range(0, group):
        total += load_sample(ptr, at + g * stride, mask)
    return total / group


@jit
def stddev(x_ptr, mean, at, mask, stride, group, eps: tl.constexpr):
    squares = mean * 0
    for g in range(0, group):
        y = load_sample(x_ptr, at + g * stride, mask) - mean
        squares += y * y
    return tl.sqrt(squares / group + eps)


@jit
def minibatch_stddev_kernel(
    x_ptr, partial_ptr, length, groups, channel_groups, group, eps: tl.constexpr, BLOCK: tl.constexpr
):
    """partial[program] = sum of sigma over its elements."""
    row, at, mask, stride = elements(length, groups, channel_groups, BLOCK)
    mean = mean_over_group(x_ptr, at, mask, stride, group, BLOCK)
    sigma = stddev(x_ptr, mean, at, mask, stride, group, eps)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.where(mask, sigma, 0.0), axis=0))


@jit
def minibatch_stddev_bwd_kernel(
    grad_ptr, x_ptr, out_ptr, length, groups, channel_groups, group, eps: tl.constexpr, BLOCK: tl.constexpr
):
    row, at, mask, stride = elements(length, groups, channel_groups, BLOCK)
    mean = mean_over_group(x_ptr, at, mask, stride, group, BLOCK)
    factor = tl.load(grad_ptr + row).to(mean.dtype) / (length * group)
    factor = factor / stddev(x_ptr, mean, at, mask, stride, group, eps)
    for g in range(0, group):
        out = factor * (load_sample(x_ptr, at + g * stride, mask) - mean)
        tl.store(out_ptr + at + g * stride, out.to(out_ptr.dtype.element_ty), mask)


@jit
def minibatch_stddev_bwd_bwd_kernel(
    v_ptr,
    grad_ptr,
    x_ptr,
    partial_ptr,
    out_ptr,
    length,
    groups,
    channel_groups,
    group,
    eps: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """partial[program] = sum of <y, v> / sigma over its elements."""
    row, at, mask, stride = elements(length, groups, channel_groups, BLOCK)
    mean = mean_over_group(x_ptr, at, mask, stride, group, BLOCK)
    v_mean = mean_over_group(v_ptr, at, mask, stride, group, BLOCK)
    r = 1 / stddev(x_ptr, mean, at, mask, stride, group, eps)
    dots = mean * 0
    for g in range(0, group):
        dots += (load_sample(x_ptr, at + g * stride, mask) - mean) * load_sample(v_ptr, at + g * stride, mask)
    dots *= r
    tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.where(mask, dots, 0.0), axis=0))
    factor = tl.load(grad_ptr + row).to(mean.dtype) / (length * group) * r
    for g in range(0, group):
        y = load_sample(x_ptr, at + g * stride, mask) - mean
        u = load_sample(v_ptr, at + g * stride, mask) - v_mean
        out = factor * (u - y * r * dots / group)
        tl.store(out_ptr + at + g * stride, out.to(out_ptr.dtype.element_ty), mask)


# --- launch ---


def _grouped(x, num_channels):
    """x with a sample's channels in their groups: with one group their order does not matter."""
    if x.numel() == 0:
        return x.new_empty(x.shape)  # its strides mean nothing
    return samples_first(x) if num_channels == 1 else x.contiguous()


def _launch(kernel, tensors, x, group_size, num_channels, eps):
    groups, length = x.shape[0] // group_size, math.prod(x.shape[1:]) // num_channels
    grid = (groups * num_channels * triton.cdiv(length, BLOCK),)
    if grid[0]:
        kernel[grid](*tensors, length, groups, num_channels, group_size, eps, BLOCK)


def _partial(x, group_size, num_channels):
    """Room for a sum per program, and how many elements all sums of a row are over."""
    length = math.prod(x.shape[1:]) // num_channels
    shape = (x.shape[0] // group_size, num_channels, triton.cdiv(length, BLOCK))
    return torch.empty(shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device), length


def _minibatch_stddev_triton(x, group_size, num_channels, eps):
    x = _grouped(x, num_channels)
    partial, length = _partial(x, group_size, num_channels)
    _launch(minibatch_stddev_kernel, (x, partial), x, group_size, num_channels, eps)
    return (partial.sum(-1) / length).to(x.dtype)


def _minibatch_stddev_bwd_triton(grad, x, group_size, num_channels, eps):
    x = _grouped(x, num_channels)
    out = torch.empty_like(x)
    _launch(minibatch_stddev_bwd_kernel, (grad.contiguous(), x, out), x, group_size, num_channels, eps)
    return out


def _minibatch_stddev_bwd_bwd_triton(grad_grad, grad, x, group_size, num_channels, eps):
    x = _grouped(x, num_channels)
    partial, length = _partial(x, group_size, num_channels)
    x_out = torch.empty_like(x)
    tensors = (in_layout_of(x, grad_grad), grad.contiguous(), x, partial, x_out)
    _launch(minibatch_stddev_bwd_bwd_kernel, tensors, x, group_size, num_channels, eps)
    return (partial.sum(-1) / (length * group_size)).to(x.dtype), x_out


# --- fakes; the derivatives are in csrc/autograd/minibatch_stddev.cpp ---


def _fake(x, group_size, num_channels, eps):
    return x.new_empty(x.shape[0] // group_size, num_channels)


def _bwd_fake(grad, x, group_size, num_channels, eps):
    return torch.empty_like(_grouped(x, num_channels))


def _bwd_bwd_fake(grad_grad, grad, x, group_size, num_channels, eps):
    return grad.new_empty(grad.shape), torch.empty_like(_grouped(x, num_channels))


register("minibatch_stddev", fake=_fake, cpp_autograd=True, cuda=_minibatch_stddev_triton)
register("minibatch_stddev_bwd", fake=_bwd_fake, cpp_autograd=True, cuda=_minibatch_stddev_bwd_triton)
register("minibatch_stddev_bwd_bwd", fake=_bwd_bwd_fake, cuda=_minibatch_stddev_bwd_bwd_triton)


def minibatch_stddev(
    x: torch.Tensor, group_size: int | None = 4, num_channels: int = 1, eps: float = 1e-8
) -> torch.Tensor:
    """x and, as new channels, the mean over channels and pixels of sqrt(variance over the samples of a group + eps).

    The batch is split into N / G groups of G = min(group_size, N); group m has samples m, m + N/G, m + 2N/G, ... The channels
    are split into num_channels runs, each of which gives one of the new channels. The variance is that of the group itself
    (it divides by G), so a group of one sample gives sqrt(eps).

    Args:
        x: (N, C, ...), features of a discriminator.
        group_size: G >= 1, dividing N unless it is larger; None for the whole batch.
        num_channels: >= 1, dividing C.
        eps: > 0, added to the variance.

    Returns: (N, C + num_channels, ...) in x's dtype. Differentiable twice. The statistic reads x once; the concatenation,
    which is stock, reads it again and writes the result. Only x is kept for backward, which reads it once and writes its
    gradient once. A sample that is not one dense block of memory is copied first, as is x in channels_last when num_channels
    > 1.

    Raises: TypeError or ValueError for an integer tensor, fewer than 2 dimensions, a sample without elements, a group_size or
    num_channels that does not divide, or an eps that is not positive and finite.

    Source: Karras et al. 2018, "Progressive Growing of GANs", 3, with the groups of Karras et al. 2020 (StyleGAN2).
    """
    op = "minibatch_stddev"
    check_tensor(op, "x", x)
    if x.dim() < 2 or (x.shape[0] > 0 and x.numel() == 0):
        raise ValueError(f"gankernels.{op}: x must have shape (N, C, ...) and no empty samples, got {shape(x)}.")
    if group_size is not None:
        check_integer(op, "group_size", group_size, 1)
    group = max(_group_of(x, group_size), 1)
    if x.shape[0] % group:
        raise ValueError(f"gankernels.{op}: group_size must divide the batch of {x.shape[0]}, got {group_size}.")
    check_integer(op, "num_channels", num_channels, 1)
    if x.shape[1] % num_channels:
        raise ValueError(
            f"gankernels.{op}: num_channels must be an integer that divides C = {x.shape[1]}, got {num_channels}."
        )
    check_number(op, "eps", eps, 0, above=True)
    return _append(x, _op.minibatch_stddev(x, group, num_channels, float(eps)), group)
