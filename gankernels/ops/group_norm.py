"""y = w x̂ + b with x̂ = (x - μ) r, r = rsqrt(σ² + eps): μ and σ² those of a sample's group of channels, w and b per channel.

Layer norm is this with one group and no pixels, instance norm with a group per channel; RMS norm has μ = 0. With <.> the mean
over a group, P(z) = z - <z> - <z x̂> x̂ (RMS norm: without <z>) and dx̂ = r P(dx):
    first derivative   dx = r P(w g),    dw = Σ g x̂,    db = Σ g, summed over samples and pixels
    second derivative  given v, v_w, v_b, the gradients arriving at dx, dw, db:
                       dg = w r P(v) + v_w x̂ + v_b,    dw = Σ g r P(v)
                       dx = r P(v_w g) - r² (<w g x̂> P(v) + <v x̂> P(w g) + <P(v) w g> x̂)
x, μ and r are saved; the derivatives are total ones, in which μ and r are functions of x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .._checks import check_number, check_tensor, got, shape
from .._registration import register
from .._triton import BLOCK, in_layout_of, jit, planes_or_rows, tl, triton

_op = torch.ops.gankernels


def reference(x, num_groups, weight=None, bias=None, eps=1e-5, centre=True):
    """Group norm, or its form without a mean, in plain PyTorch."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    groups = wide.unflatten(1, (num_groups, -1)).flatten(2)
    if centre:
        groups = groups - groups.mean(2, keepdim=True)
    y = (groups * torch.rsqrt(groups.square().mean(2, keepdim=True) + eps)).reshape(x.shape)
    channels = (-1, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.reshape(channels)
    return (y if bias is None else y + bias.reshape(channels)).to(x.dtype)


# --- Triton kernels. A group's elements are cut into chunks, a program each, for the sums, and into blocks for the results; its
# sums over all chunks are added up between the two. ROWS: channels are innermost, else a channel's pixels are. DENSE: a group
# is one run of memory. ---


@jit
def wide(x):
    return x.to(tl.float64 if x.dtype == tl.float64 else tl.float32)


@jit
def locate(group, offset, groups, per_group, pixels, ROWS: tl.constexpr, DENSE: tl.constexpr):
    """Where in memory a group's elements are, and their channels."""
    if ROWS:
        channel = group % groups * per_group + offset % per_group
    else:
        channel = group % groups * per_group + offset // pixels
    at = group.to(tl.int64) * (per_group * pixels) + offset
    if not DENSE:
        at = (group // groups).to(tl.int64) * groups * per_group * pixels + (offset // per_group).to(tl.int64) * (
            groups * per_group
        )
        at += channel
    return at, channel


@jit
def group_moments_kernel(
    x_ptr, sums_ptr, squares_ptr, groups, per_group, pixels, chunk, chunks,
    ROWS: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk's sum, and its sum of squares around its own mean."""
    group, count = tl.program_id(0) // chunks, per_group * pixels
    begin = tl.program_id(0) % chunks * chunk
    end = tl.minimum(begin + chunk, count)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32)
    squares = total
    for start in range(begin, end, BLOCK):
        at, _ = locate(group, start + lanes, groups, per_group, pixels, ROWS, DENSE)
        total += wide(tl.load(x_ptr + at, start + lanes < end, other=0.0))
    sum = tl.sum(total, axis=0)
    mean = sum / tl.maximum(end - begin, 1)
    for start in range(begin, end, BLOCK):
        at, _ = locate(group, start + lanes, groups, per_group, pixels, ROWS, DENSE)
        centred = wide(tl.load(x_ptr + at, start + lanes < end, other=0.0)) - mean
        squares += tl.where(start + lanes < end, centred * centred, 0.0)
    tl.store(sums_ptr + tl.program_id(0), sum)
    tl.store(squares_ptr + tl.program_id(0), tl.sum(squares, axis=0))


@jit
def group_norm_kernel(
    x_ptr, w_ptr, b_ptr, mean_ptr, rstd_ptr, y_ptr, groups, per_group, pixels,
    ROWS: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    count = per_group * pixels
    blocks = tl.cdiv(count, BLOCK)
    group = tl.program_id(0) // blocks
    offset = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    at, channel = locate(group, offset, groups, per_group, pixels, ROWS, DENSE)
    inside = offset < count
    mean, rstd = tl.load(mean_ptr + group), tl.load(rstd_ptr + group)
    w, b = tl.load(w_ptr + channel, inside), tl.load(b_ptr + channel, inside)
    y = (wide(tl.load(x_ptr + at, inside)) - mean) * rstd * w + b
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), inside)


@jit
def group_norm_bwd_sums_kernel(
    grad_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, sums_ptr, groups, per_group, pixels, chunk, chunks,
    ROWS: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk's sums of w g and w g x̂."""
    group = tl.program_id(0) // chunks
    begin = tl.program_id(0) % chunks * chunk
    end = tl.minimum(begin + chunk, per_group * pixels)
    lanes = tl.arange(0, BLOCK)
    mean, rstd = tl.load(mean_ptr + group), tl.load(rstd_ptr + group)
    wg = tl.zeros((BLOCK,), mean.dtype)
    wgx = wg
    for start in range(begin, end, BLOCK):
        at, channel = locate(group, start + lanes, groups, per_group, pixels, ROWS, DENSE)
        inside = start + lanes < end
        x_hat = (wide(tl.load(x_ptr + at, inside, other=0.0)) - mean) * rstd
        scaled = wide(tl.load(grad_ptr + at, inside, other=0.0)) * tl.load(w_ptr + channel, inside, other=0.0)
        wg += scaled
        wgx += scaled * x_hat
    tl.store(sums_ptr + tl.program_id(0) * 2, tl.sum(wg, axis=0))
    tl.store(sums_ptr + tl.program_id(0) * 2 + 1, tl.sum(wgx, axis=0))


@jit
def group_norm_bwd_kernel(
    grad_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, means_ptr, out_ptr, groups, per_group, pixels,
    CENTRE: tl.constexpr, ROWS: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    count = per_group * pixels
    blocks = tl.cdiv(count, BLOCK)
    group = tl.program_id(0) // blocks
    offset = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    at, channel = locate(group, offset, groups, per_group, pixels, ROWS, DENSE)
    inside = offset < count
    mean, rstd = tl.load(mean_ptr + group), tl.load(rstd_ptr + group)
    x_hat = (wide(tl.load(x_ptr + at, inside)) - mean) * rstd
    out = wide(tl.load(grad_ptr + at, inside)) * tl.load(w_ptr + channel, inside)
    out -= tl.load(means_ptr + group * 2 + 1) * x_hat
    if CENTRE:
        out -= tl.load(means_ptr + group * 2)
    tl.store(out_ptr + at, (rstd * out).to(out_ptr.dtype.element_ty), inside)


@jit
def group_norm_bwd_bwd_sums_kernel(
    v_ptr, grad_ptr, x_ptr, w_ptr, vw_ptr, mean_ptr, rstd_ptr, sums_ptr, groups, per_group, pixels, chunk, chunks,
    ROWS: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A chunk's sums of w g, w g x̂, v, v x̂, w g v, v_w g and v_w g x̂."""
    group = tl.program_id(0) // chunks
    begin = tl.program_id(0) % chunks * chunk
    end = tl.minimum(begin + chunk, per_group * pixels)
    lanes = tl.arange(0, BLOCK)
    mean, rstd = tl.load(mean_ptr + group), tl.load(rstd_ptr + group)
    wg = tl.zeros((BLOCK,), mean.dtype)
    wgx, v_sum, vx, wgv, vwg, vwgx = wg, wg, wg, wg, wg, wg
    for start in range(begin, end, BLOCK):
        at, channel = locate(group, start + lanes, groups, per_group, pixels, ROWS, DENSE)
        inside = start + lanes < end
        x_hat = (wide(tl.load(x_ptr + at, inside, other=0.0)) - mean) * rstd
        grad = wide(tl.load(grad_ptr + at, inside, other=0.0))
        v = wide(tl.load(v_ptr + at, inside, other=0.0))
        scaled = grad * tl.load(w_ptr + channel, inside, other=0.0)
        by_vw = grad * tl.load(vw_ptr + channel, inside, other=0.0)
        wg += scaled
        wgx += scaled * x_hat
        v_sum += v
        vx += v * x_hat
        wgv += scaled * v
        vwg += by_vw
        vwgx += by_vw * x_hat
    sums_ptr += tl.program_id(0) * 7
    tl.store(sums_ptr, tl.sum(wg, axis=0))
    tl.store(sums_ptr + 1, tl.sum(wgx, axis=0))
    tl.store(sums_ptr + 2, tl.sum(v_sum, axis=0))
    tl.store(sums_ptr + 3, tl.sum(vx, axis=0))
    tl.store(sums_ptr + 4, tl.sum(wgv, axis=0))
    tl.store(sums_ptr + 5, tl.sum(vwg, axis=0))
    tl.store(sums_ptr + 6, tl.sum(vwgx, axis=0))


@jit
def group_norm_bwd_bwd_kernel(
    v_ptr, grad_ptr, x_ptr, w_ptr, vw_ptr, vb_ptr, mean_ptr, rstd_ptr, means_ptr, grad_out_ptr, x_out_ptr,
    groups, per_group, pixels, CENTRE: tl.constexpr, ROWS: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    count = per_group * pixels
    blocks = tl.cdiv(count, BLOCK)
    group = tl.program_id(0) // blocks
    offset = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    at, channel = locate(group, offset, groups, per_group, pixels, ROWS, DENSE)
    inside = offset < count
    mean, rstd = tl.load(mean_ptr + group), tl.load(rstd_ptr + group)
    means_ptr += group * 7
    wg, wgx, v_mean, vx = tl.load(means_ptr), tl.load(means_ptr + 1), tl.load(means_ptr + 2), tl.load(means_ptr + 3)
    wgv, vwg, vwgx = tl.load(means_ptr + 4), tl.load(means_ptr + 5), tl.load(means_ptr + 6)
    if not CENTRE:
        wg, v_mean, vwg = wg * 0, v_mean * 0, vwg * 0
    x_hat = (wide(tl.load(x_ptr + at, inside)) - mean) * rstd
    grad, v = wide(tl.load(grad_ptr + at, inside)), wide(tl.load(v_ptr + at, inside))
    w, vw, vb = tl.load(w_ptr + channel, inside), tl.load(vw_ptr + channel, inside), tl.load(vb_ptr + channel, inside)
    v_projected = v - v_mean - vx * x_hat
    grad_out = w * rstd * v_projected + vw * x_hat + vb
    tl.store(grad_out_ptr + at, grad_out.to(grad_out_ptr.dtype.element_ty), inside)
    along = wgv - v_mean * wg - vx * wgx
    x_out = wgx * v_projected + vx * (w * grad - wg - wgx * x_hat) + along * x_hat
    x_out = rstd * (vw * grad - vwg - vwgx * x_hat - rstd * x_out)
    tl.store(x_out_ptr + at, x_out.to(x_out_ptr.dtype.element_ty), inside)


@jit
def channel_sums_kernel(
    v_ptr, grad_ptr, x_ptr, mean_ptr, rstd_ptr, means_ptr, product_ptr, plain_ptr,
    samples, groups, per_group, pixels, chunk, SECOND: tl.constexpr, CENTRE: tl.constexpr, ROWS: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """CHANNELS channels' sums of g x̂ and g, or SECOND that of g r P(v), over a chunk of the samples' pixels."""
    SITES: tl.constexpr = BLOCK // CHANNELS
    channels = groups * per_group
    blocks = tl.cdiv(channels, CHANNELS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    part = tl.program_id(0) // blocks
    begin = part.to(tl.int64) * chunk
    end = tl.minimum(begin + chunk, samples.to(tl.int64) * pixels)
    product = tl.zeros((CHANNELS, SITES), tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32)
    plain = product
    for start in range(begin, end, SITES):
        site = start + tl.arange(0, SITES)[None, :].to(tl.int64)
        sample = site // pixels
        inside = (channel < channels) & (site < end)
        if ROWS:
            at = site * channels + channel
        else:
            at = (sample * channels + channel) * pixels + site % pixels
        group = sample * groups + channel // per_group
        rstd = tl.load(rstd_ptr + group, inside, other=0.0)
        x_hat = (wide(tl.load(x_ptr + at, inside, other=0.0)) - tl.load(mean_ptr + group, inside, other=0.0)) * rstd
        grad = wide(tl.load(grad_ptr + at, inside, other=0.0))
        if SECOND:
            v = (
                wide(tl.load(v_ptr + at, inside, other=0.0))
                - tl.load(means_ptr + group * 7 + 3, inside, other=0.0) * x_hat
            )
            if CENTRE:
                v -= tl.load(means_ptr + group * 7 + 2, inside, other=0.0)
            product += grad * rstd * v
        else:
            product += grad * x_hat
            plain += grad
    out = part * channels + channel
    tl.store(product_ptr + out, tl.sum(product, axis=1)[:, None], channel < channels)
    if not SECOND:
        tl.store(plain_ptr + out, tl.sum(plain, axis=1)[:, None], channel < channels)


# --- launch ---

# elements of a group that a program sums up: few enough to come from the cache when they are read again
_CHUNK = 8 * BLOCK
_MOST_PARTS = 64  # into which a channel's pixels are cut
_CHANNELS = 64  # of a block of rows: whole cache lines in every dtype


def _dimensions(x, groups):
    """x's groups, channels per group and pixels, and whether channels are innermost; as kernels take them."""
    channels = x.shape[1]
    pixels = math.prod(x.shape[2:])
    rows = pixels == 1 or channels > 1 and x.stride(1) == 1
    return groups, channels // groups, pixels, rows


def _per_group(kernel, tensors, x, groups, sums, *constants):
    """Sums (N G, chunks, sums) of each group's chunks."""
    groups, per_group, pixels, rows = _dimensions(x, groups)
    chunks = triton.cdiv(per_group * pixels, _CHUNK)
    shape = (x.shape[0] * groups, chunks, *sums)
    out = [
        torch.empty(shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        for _ in range(2 - len(sums))
    ]
    kernel[(shape[0] * chunks,)](*tensors, *out, groups, per_group, pixels, _CHUNK, chunks, rows,
                                 not rows or groups == 1 or pixels == 1, BLOCK)  # fmt: skip
    return out


def _per_block(kernel, tensors, x, groups, *constants):
    groups, per_group, pixels, rows = _dimensions(x, groups)
    grid = (x.shape[0] * groups * triton.cdiv(per_group * pixels, BLOCK),)
    kernel[grid](*tensors, groups, per_group, pixels, *constants, rows, not rows or groups == 1 or pixels == 1, BLOCK)


def _per_channel(v, grad, x, mean, rstd, means, groups, second, centre):
    """A channel's two sums; second, the one."""
    groups, per_group, pixels, rows = _dimensions(x, groups)
    at_a_time = _CHANNELS if rows else 1
    sites = BLOCK // at_a_time
    blocks = triton.cdiv(x.shape[1], at_a_time)
    parts = min(_MOST_PARTS, triton.cdiv(x.shape[0] * pixels, 8 * sites))
    chunk = triton.cdiv(x.shape[0] * pixels, parts)
    out = torch.empty((1 if second else 2, parts, x.shape[1]), dtype=mean.dtype, device=x.device)
    channel_sums_kernel[(blocks * parts,)](v, grad, x, mean, rstd, means, out[0], out[-1], x.shape[0], groups, per_group,
                                           pixels, chunk, second, centre, rows, at_a_time, BLOCK)  # fmt: skip
    return out.sum(1)


def _numbers(t, x, value):
    """Numbers per channel in the dtype of the sums, `value` for all where there are none."""
    if t is None:
        return torch.full((x.shape[1],), value, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    return t.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _group_norm_triton(x, weight, bias, groups, eps, centre):
    x = planes_or_rows(x)
    y, mean, rstd = torch.empty_like(x), _statistics_like(x, groups).zero_(), _statistics_like(x, groups).zero_()
    if x.numel() == 0:
        return y, mean, rstd
    count = x.numel() // mean.numel()
    sums, squares = _per_group(group_moments_kernel, (x,), x, groups, ())
    counts = torch.arange(0, count, _CHUNK, device=x.device).neg().add(count).clamp_(max=_CHUNK)
    if centre:
        mean = (sums.sum(1) / count).view_as(mean)
    squares = squares + counts * (sums / counts - mean.view(-1, 1)).square()
    rstd = torch.rsqrt(squares.sum(1) / count + eps).view_as(rstd)
    tensors = (x, _numbers(weight, x, 1), _numbers(bias, x, 0), mean, rstd, y)
    _per_block(group_norm_kernel, tensors, x, groups)
    return y, mean, rstd


def _group_norm_bwd_triton(grad, x, weight, mean, rstd, groups, centre, of_x, of_parameters):
    x = planes_or_rows(x)
    grad, w = in_layout_of(x, grad), _numbers(weight, x, 1)
    dx = torch.empty_like(x) if of_x else x.new_empty(0)
    dw, db = _per_channel_like(x, of_parameters).zero_(), _per_channel_like(x, of_parameters).zero_()
    if x.numel() == 0:
        return dx, dw, db
    if of_x:
        (sums,) = _per_group(group_norm_bwd_sums_kernel, (grad, x, w, mean, rstd), x, groups, (2,))
        means = sums.sum(1) / (x.numel() // mean.numel())
        _per_block(group_norm_bwd_kernel, (grad, x, w, mean, rstd, means, dx), x, groups, centre)
    if of_parameters:
        dw, db = _per_channel(grad, grad, x, mean, rstd, mean, groups, False, centre)
    return dx, dw, db.clone()


def _group_norm_bwd_bwd_triton(v, v_weight, v_bias, grad, x, weight, mean, rstd, groups, centre, of_weight):
    x = planes_or_rows(x)
    v, grad, w = in_layout_of(x, v), in_layout_of(x, grad), _numbers(weight, x, 1)
    vw, vb = _numbers(v_weight, x, 0), _numbers(v_bias, x, 0)
    dg, dx, dw = torch.empty_like(x), torch.empty_like(x), _per_channel_like(x, of_weight).zero_()
    if x.numel() == 0:
        return dg, dx, dw
    (sums,) = _per_group(group_norm_bwd_bwd_sums_kernel, (v, grad, x, w, vw, mean, rstd), x, groups, (7,))
    means = sums.sum(1) / (x.numel() // mean.numel())
    tensors = (v, grad, x, w, vw, vb, mean, rstd, means, dg, dx)
    _per_block(group_norm_bwd_bwd_kernel, tensors, x, groups, centre)
    if of_weight:
        (dw,) = _per_channel(v, grad, x, mean, rstd, means, groups, True, centre)
    return dg, dx, dw


# --- fake and derivatives ---


def _statistics_like(x, groups):
    return x.new_empty((x.shape[0], groups), dtype=torch.promote_types(x.dtype, torch.float32))


def _per_channel_like(x, wanted):
    return x.new_empty((x.shape[1] if wanted else 0,), dtype=torch.promote_types(x.dtype, torch.float32))


def _fake(x, weight, bias, groups, eps, centre):
    return torch.empty_like(planes_or_rows(x)), _statistics_like(x, groups), _statistics_like(x, groups)


def _bwd_fake(grad, x, weight, mean, rstd, groups, centre, of_x, of_parameters):
    dx = torch.empty_like(planes_or_rows(x)) if of_x else x.new_empty(0)
    return dx, _per_channel_like(x, of_parameters), _per_channel_like(x, of_parameters)


def _bwd_setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5])
    ctx.groups, ctx.centre, ctx.of_x, ctx.of_parameters = inputs[5:]


def _bwd_backward(ctx, v, v_weight, v_bias):
    grad, x, weight, mean, rstd = ctx.saved_tensors
    v = v if ctx.of_x else torch.zeros_like(x)
    v_weight, v_bias = (v_weight, v_bias) if ctx.of_parameters else (None, None)
    dg, dx, dw = _op.group_norm_bwd_bwd(
        v, v_weight, v_bias, grad, x, weight, mean, rstd, ctx.groups, ctx.centre, weight is not None
    )
    return dg, dx, None if weight is None else dw.to(weight.dtype), *[None] * 6


def _bwd_bwd_fake(v, v_weight, v_bias, grad, x, weight, mean, rstd, groups, centre, of_weight):
    x = planes_or_rows(x)
    return torch.empty_like(x), torch.empty_like(x), _per_channel_like(x, of_weight)


register("group_norm", fake=_fake, cpp_autograd=True, cuda=_group_norm_triton)
register(
    "group_norm_bwd",
    fake=_bwd_fake,
    backward=_bwd_backward,
    setup_context=_bwd_setup_context,
    cuda=_group_norm_bwd_triton,
)
register("group_norm_bwd_bwd", fake=_bwd_bwd_fake, cuda=_group_norm_bwd_bwd_triton)


def _check_norm(op, x, weight, bias, shape_of_parameters, eps):
    check_tensor(op, "x", x)
    for name, t in (("weight", weight), ("bias", bias)):
        if t is None:
            continue
        check_tensor(op, name, t)
        if tuple(t.shape) != shape_of_parameters:
            raise ValueError(f"gankernels.{op}: {name} must have shape {shape_of_parameters}, got {shape(t)}.")
        if t.dtype not in (x.dtype, torch.float32):
            raise TypeError(f"gankernels.{op}: {name} must have x's dtype or float32, got {str(t.dtype)[6:]}.")
        if t.device != x.device:
            raise ValueError(f"gankernels.{op}: {name} must be on the device of x, {x.device}, got {t.device}.")
    check_number(op, "eps", eps, 0)


def group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """y = weight (x - μ) / sqrt(σ² + eps) + bias, μ and σ² over a sample's group of channels: torch's, with a fused double backward.

    Args:
        x: (N, C, ...) with at least two values per group.
        num_groups: a divisor of C; C makes it instance norm.
        weight, bias: (C,), in x's dtype or float32.
        eps: >= 0.

    Returns: x's shape and dtype, strides preserved for contiguous and channels_last x. Differentiable twice. Forward reads x once
    from memory while a sample fits in the cache (twice on a GPU) and writes y once; backward and double backward read each of
    their two or three inputs once (twice) and write each result once. On the CPU stock's kernel does the forward where there are
    pixels, and the backward unless the mean of a group outweighs its standard deviation. Parameters get a gradient only where a
    backward asks for it.

    Raises: TypeError or ValueError for tensors that do not fit, or a num_groups that does not divide C.

    Source: Wu & He 2018, "Group Normalization"; Ulyanov et al. 2016, "Instance Normalization".
    """
    op = "group_norm"
    check_tensor(op, "x", x)
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"gankernels.{op}: x must have shape (N, C, ...) and no dimension of size 0, got {shape(x)}.")
    if isinstance(num_groups, bool) or not isinstance(num_groups, int) or num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f"gankernels.{op}: num_groups must divide the {x.shape[1]} channels, got {got(num_groups)}.")
    _check_norm(op, x, weight, bias, (x.shape[1],), eps)
    return _op.fast_group_norm(x, weight, bias, num_groups, float(eps))


def _check_trailing(op, x, normalized_shape):
    sizes = normalized_shape if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
    if any(isinstance(size, bool) or not isinstance(size, int) for size in sizes):
        raise TypeError(
            f"gankernels.{op}: normalized_shape must be an integer or integers, got {got(normalized_shape)}."
        )
    normalized_shape = tuple(sizes)
    check_tensor(op, "x", x)
    if not normalized_shape or tuple(x.shape[-len(normalized_shape) :]) != normalized_shape or x.numel() == 0:
        raise ValueError(
            f"gankernels.{op}: x must end with the dimensions normalized_shape, {normalized_shape}, none of size 0, got {shape(x)}."
        )
    return normalized_shape


def layer_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """y = weight (x - μ) / sqrt(σ² + eps) + bias, μ and σ² over the last dimensions: torch's, with a fused double backward.

    Args:
        x: (..., *normalized_shape).
        weight, bias: of shape normalized_shape, in x's dtype or float32.
        eps: >= 0.

    Returns: x's shape and dtype; images normalised over (C, H, W) keep channels_last. Otherwise as `group_norm`.

    Raises: TypeError or ValueError for tensors that do not fit.

    Source: Ba et al. 2016, "Layer Normalization".
    """
    normalized_shape = _check_trailing("layer_norm", x, normalized_shape)
    _check_norm("layer_norm", x, weight, bias, normalized_shape, eps)
    return _op.fast_layer_norm(x, weight, bias, normalized_shape, float(eps), True)


def default_eps(x):
    """rms_norm's; sums of 16 bit numbers are taken in float32."""
    return torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps


def rms_norm(
    x: torch.Tensor,
    normalized_shape: int | Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    """y = weight x / sqrt(mean of x² over the last dimensions + eps): torch's, with a fused double backward.

    Args:
        x: (..., *normalized_shape).
        weight: of shape normalized_shape, in x's dtype or float32.
        eps: >= 0; when None the machine epsilon of x's dtype, or of float32 where x has 16 bits, as stock computes it.

    Returns: as `layer_norm`.

    Raises: TypeError or ValueError for tensors that do not fit.

    Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".
    """
    normalized_shape = _check_trailing("rms_norm", x, normalized_shape)
    eps = default_eps(x) if eps is None else eps
    _check_norm("rms_norm", x, weight, None, normalized_shape, eps)
    return _op.fast_layer_norm(x, weight, None, normalized_shape, float(eps), False)
