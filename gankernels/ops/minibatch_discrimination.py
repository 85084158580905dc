"""o_ib = sum_j K_ijb, K_ijb = exp(-sum_c |m_ibc - m_jbc|): how close sample i is to its batch in each feature b.

The kernels are on m = x T, (N, B, C), whose product is stock. With s_ijbc = sign(m_ibc - m_jbc), of derivative 0:
    first derivative   dm_ibc = -sum_j (g_ib + g_jb) K_ijb s_ijbc
    second derivative  given v, the gradient arriving at dm, and S_ijb = sum_c (v_ibc - v_jbc) s_ijbc:
                       dg_ib = -sum_j K_ijb S_ijb,    dm_ibc = sum_j (g_ib + g_jb) K_ijb S_ijb s_ijbc
Pairs are computed tile by tile and never kept: memory is that of m, and nothing is saved but m.
"""

from __future__ import annotations

import math

import torch

from .._checks import check_tensor, shape
from .._registration import register
from .._triton import BLOCK, jit, tl, triton

_op = torch.ops.gankernels


def _reference_of_m(m: torch.Tensor) -> torch.Tensor:
    wide = m.to(torch.promote_types(m.dtype, torch.float32))
    return (wide[:, None] - wide[None]).abs().sum(-1).neg().exp().sum(1).to(m.dtype)


def _matrices(x: torch.Tensor, T: torch.Tensor) -> torch.Tensor:
    return (x.flatten(1) @ T.flatten(1)).reshape(x.shape[0], *T.shape[1:])  # dynamo traces no unflatten below a mode


def reference(x: torch.Tensor, T: torch.Tensor) -> torch.Tensor:
    """sum_j exp(-|m_ib - m_jb|_1) with m = x T in plain PyTorch; it makes the (N, N, B, C) tensor."""
    return _reference_of_m(_matrices(x, T))


# --- Triton kernels: a program has ROWS samples i of one feature b and meets COLUMNS samples j at a time, CHANNELS channels
# of each, as a (ROWS, COLUMNS, CHANNELS) tile in registers. Where a derivative has more than CHANNELS channels, a program
# stores one part of them and computes the distances again: C is rarely beyond 16. ---


@jit
def load_rows(ptr, row, samples, feature, features, start, channels, CHANNELS: tl.constexpr):
    """Rows of m_b and CHANNELS of their channels, in the dtype of the sums; 0 where there is none."""
    channel = start + tl.arange(0, CHANNELS)
    at = (row.to(tl.int64) * features + feature)[:, None] * channels + channel[None, :]
    mask = (row < samples)[:, None] & (channel < channels)[None, :]
    return tl.load(ptr + at, mask, other=0.0).to(tl.float64 if ptr.dtype.element_ty == tl.float64 else tl.float32)


@jit
def store_rows(ptr, value, row, samples, feature, features, start, channels, CHANNELS: tl.constexpr):
    channel = start + tl.arange(0, CHANNELS)
    at = (row.to(tl.int64) * features + feature)[:, None] * channels + channel[None, :]
    mask = (row < samples)[:, None] & (channel < channels)[None, :]
    tl.store(ptr + at, value.to(ptr.dtype.element_ty), mask)


@jit
def load_grads(ptr, row, samples, feature, features):
    grads = tl.load(ptr + row.to(tl.int64) * features + feature, row < samples, other=0.0)
    return grads.to(tl.float64 if ptr.dtype.element_ty == tl.float64 else tl.float32)


@jit
def zeros(ptr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    return tl.zeros((ROWS, CHANNELS), tl.float64 if ptr.dtype.element_ty == tl.float64 else tl.float32)


@jit
def pairs(a, b):
    return a[:, None, :] - b[None, :, :]


@jit
def sign(x):
    """Times a NaN it is NaN, also at 0."""
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@jit
def affinities(m_ptr, i, j, samples, feature, features, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
               CHANNELS: tl.constexpr):  # fmt: skip
    """K of rows i with rows j, 0 where there is no j."""
    d = zeros(m_ptr, ROWS, COLUMNS)
    for start in range(0, channels, CHANNELS):
        a = load_rows(m_ptr, i, samples, feature, features, start, channels, CHANNELS)
        b = load_rows(m_ptr, j, samples, feature, features, start, channels, CHANNELS)
        d += tl.sum(tl.abs(pairs(a, b)), axis=2)
    return tl.where((j < samples)[None, :], tl.exp(-d), 0.0)


@jit
def minibatch_discrimination_kernel(
    m_ptr,
    out_ptr,
    samples,
    features,
    channels,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    COLUMNS: tl.constexpr = BLOCK // (ROWS * CHANNELS)
    feature = tl.program_id(0) % features
    i = tl.program_id(0) // features * ROWS + tl.arange(0, ROWS)
    total = zeros(m_ptr, ROWS, COLUMNS)
    for start in range(0, samples, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        total += affinities(m_ptr, i, j, samples, feature, features, channels, ROWS, COLUMNS, CHANNELS)
    out = tl.sum(total, axis=1).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + i.to(tl.int64) * features + feature, out, i < samples)


@jit
def minibatch_discrimination_bwd_kernel(
    grad_ptr,
    m_ptr,
    out_ptr,
    samples,
    features,
    channels,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    COLUMNS: tl.constexpr = BLOCK // (ROWS * CHANNELS)
    part = tl.program_id(0) % tl.cdiv(channels, CHANNELS) * CHANNELS
    feature = tl.program_id(0) // tl.cdiv(channels, CHANNELS) % features
    i = tl.program_id(0) // tl.cdiv(channels, CHANNELS) // features * ROWS + tl.arange(0, ROWS)
    a = load_rows(m_ptr, i, samples, feature, features, part, channels, CHANNELS)
    grads = load_grads(grad_ptr, i, samples, feature, features)
    out = zeros(m_ptr, ROWS, CHANNELS)
    for start in range(0, samples, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        w = affinities(m_ptr, i, j, samples, feature, features, channels, ROWS, COLUMNS, CHANNELS)
        w *= grads[:, None] + load_grads(grad_ptr, j, samples, feature, features)[None, :]
        b = load_rows(m_ptr, j, samples, feature, features, part, channels, CHANNELS)
        out -= tl.sum(w[:, :, None] * sign(pairs(a, b)), axis=1)
    store_rows(out_ptr, out, i, samples, feature, features, part, channels, CHANNELS)


@jit
def minibatch_discrimination_bwd_bwd_kernel(
    v_ptr,
    grad_ptr,
    m_ptr,
    grad_out_ptr,
    m_out_ptr,
    samples,
    features,
    channels,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    COLUMNS: tl.constexpr = BLOCK // (ROWS * CHANNELS)
    part = tl.program_id(0) % tl.cdiv(channels, CHANNELS) * CHANNELS
    feature = tl.program_id(0) // tl.cdiv(channels, CHANNELS) % features
    i = tl.program_id(0) // tl.cdiv(channels, CHANNELS) // features * ROWS + tl.arange(0, ROWS)
    a = load_rows(m_ptr, i, samples, feature, features, part, channels, CHANNELS)
    grads = load_grads(grad_ptr, i, samples, feature, features)
    grad_out = zeros(m_ptr, ROWS, COLUMNS)
    out = zeros(m_ptr, ROWS, CHANNELS)
    for start in range(0, samples, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        s = zeros(m_ptr, ROWS, COLUMNS)
        for at in range(0, channels, CHANNELS):
            m_pairs = pairs(load_rows(m_ptr, i, samples, feature, features, at, channels, CHANNELS),
                            load_rows(m_ptr, j, samples, feature, features, at, channels, CHANNELS))  # fmt: skip
            v_pairs = pairs(load_rows(v_ptr, i, samples, feature, features, at, channels, CHANNELS),
                            load_rows(v_ptr, j, samples, feature, features, at, channels, CHANNELS))  # fmt: skip
            s += tl.sum(v_pairs * sign(m_pairs), axis=2)
        w = s * affinities(m_ptr, i, j, samples, feature, features, channels, ROWS, COLUMNS, CHANNELS)
        grad_out -= w
        w *= grads[:, None] + load_grads(grad_ptr, j, samples, feature, features)[None, :]
        b = load_rows(m_ptr, j, samples, feature, features, part, channels, CHANNELS)
        out += tl.sum(w[:, :, None] * sign(pairs(a, b)), axis=1)
    store_rows(m_out_ptr, out, i, samples, feature, features, part, channels, CHANNELS)
    if part == 0:
        total = tl.sum(grad_out, axis=1).to(grad_out_ptr.dtype.element_ty)
        tl.store(grad_out_ptr + i.to(tl.int64) * features + feature, total, i < samples)


# --- launch ---

_ROWS, _MOST_CHANNELS = 16, 16


def _launch(kernel, tensors, m, parts):
    """One program per tile of rows and feature, and per part of the channels where `parts`."""
    samples, features, channels = m.shape
    if samples * features == 0:
        return
    at_a_time = min(triton.next_power_of_2(max(channels, 1)), _MOST_CHANNELS)
    programs = triton.cdiv(samples, _ROWS) * features * (max(triton.cdiv(channels, at_a_time), 1) if parts else 1)
    kernel[(programs,)](*tensors, samples, features, channels, _ROWS, at_a_time, BLOCK)


def _minibatch_discrimination_triton(m):
    m = m.contiguous()
    out = m.new_empty(m.shape[:2])
    _launch(minibatch_discrimination_kernel, (m, out), m, parts=False)
    return out


def _minibatch_discrimination_bwd_triton(grad, m):
    m = m.contiguous()
    out = m.new_empty(m.shape)
    if m.numel():
        _launch(minibatch_discrimination_bwd_kernel, (grad.contiguous(), m, out), m, parts=True)
    return out


def _minibatch_discrimination_bwd_bwd_triton(grad_grad, grad, m):
    m = m.contiguous()
    if m.numel() == 0:
        return m.new_zeros(m.shape[:2]), m.new_empty(m.shape)
    grad_out, m_out = m.new_empty(m.shape[:2]), m.new_empty(m.shape)
    tensors = (grad_grad.contiguous(), grad.contiguous(), m, grad_out, m_out)
    _launch(minibatch_discrimination_bwd_bwd_kernel, tensors, m, parts=True)
    return grad_out, m_out


# --- fake and derivatives ---


def _fake(m):
    return m.new_empty(m.shape[:2])


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return _op.minibatch_discrimination_bwd(grad, *ctx.saved_tensors)


def _bwd_fake(grad, m):
    return m.new_empty(m.shape)


def _bwd_backward(ctx, grad_grad):
    return _op.minibatch_discrimination_bwd_bwd(grad_grad, *ctx.saved_tensors)


def _bwd_bwd_fake(grad_grad, grad, m):
    return m.new_empty(m.shape[:2]), m.new_empty(m.shape)


register(
    "minibatch_discrimination",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    cuda=_minibatch_discrimination_triton,
)
register(
    "minibatch_discrimination_bwd",
    fake=_bwd_fake,
    backward=_bwd_backward,
    setup_context=_setup_context,
    cuda=_minibatch_discrimination_bwd_triton,
)
register("minibatch_discrimination_bwd_bwd", fake=_bwd_bwd_fake, cuda=_minibatch_discrimination_bwd_bwd_triton)


def minibatch_discrimination(x: torch.Tensor, T: torch.Tensor) -> torch.Tensor:
    """o_ib = sum_j exp(-sum_c |m_ibc - m_jbc|) with m_i = x_i T: how close each sample is to its batch, in each of B features.

    j = i is included, as in the paper, and adds exactly 1; subtract 1 for the form without it.

    Args:
        x: (N, ...), a sample's features, A of them in all.
        T: (A, B, C), the learned tensor: B kernels of C dimensions. dtype and device of x.

    Returns: (N, B) in x's dtype, to be concatenated to x. Differentiable twice, in x and T; at a tie m_ibc = m_jbc the
    derivative of |.| is 0. m is a stock matrix product; it is read once from memory, its pairs are made in the cache, and
    neither forward nor a derivative keeps anything of the size of N x N.

    Raises: TypeError or ValueError for an integer tensor, T not of shape (A, B, C), or one of another dtype or device.

    Source: Salimans et al. 2016, "Improved Techniques for Training GANs", 3.2.
    """
    op = "minibatch_discrimination"
    check_tensor(op, "x", x)
    check_tensor(op, "T", T)
    if x.dim() < 2:
        raise ValueError(f"gankernels.{op}: x must have shape (N, ...) with features, got {shape(x)}.")
    features = math.prod(x.shape[1:])
    if T.dim() != 3 or T.shape[0] != features:
        raise ValueError(f"gankernels.{op}: T must have shape (A, B, C) with A = {features}, got {shape(T)}.")
    if T.dtype != x.dtype:
        raise TypeError(f"gankernels.{op}: T must have the dtype of x, {str(x.dtype)[6:]}, got {str(T.dtype)[6:]}.")
    if T.device != x.device:
        raise ValueError(f"gankernels.{op}: T must be on the device of x, {x.device}, got {T.device}.")
    return _op.minibatch_discrimination(_matrices(x, T))
