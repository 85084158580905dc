"""P = mean_i phi(|g_i| - k), phi(t) = t^2 or max(t, 0)^2: the reduction at the end of every gradient penalty.

With n_i = |g_i|, c_i = 1 - k / n_i (0 where n_i = 0 or phi is flat) and s = 2/N * dL/dP:
    first derivative   d g_i = s c_i g_i
    second derivative  given v_i, the gradient arriving at d g_i:
                       d(dL/dP) = 2/N sum_i c_i <g_i, v_i>,    d g_i = s (c_i v_i + k / n_i^3 <g_i, v_i> g_i)
Norms and penalty are kept and returned in float32 (float64 for float64 gradients): a bfloat16 loss would be useless.
"""

from __future__ import annotations

import torch

from .._checks import check_batch, check_flags, check_number
from .._registration import register
from .._triton import BLOCK, blocks_of, fake_like, in_layout_of, jit, sample_and_offsets, samples_first, tl

_op = torch.ops.gankernels


def reference(grads: torch.Tensor, target: float = 1.0, one_sided: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The penalty and the norms in plain PyTorch."""
    norms = torch.linalg.vector_norm(grads.flatten(1), dim=1, dtype=torch.promote_types(grads.dtype, torch.float32))
    excess = norms - target
    return (excess.clamp(min=0) if one_sided else excess).square().mean(), norms


# --- Triton kernels: sums over a sample go in two stages, block by block and then in a fixed order, for determinism. ---
# The target is a compile-time constant: as an argument it would arrive in float32, too coarse for the float64 kernels.


@jit
def sample_dots_kernel(a_ptr, b_ptr, partial_ptr, length, BLOCK: tl.constexpr):
    """partial[program] = sum over its block of a * b."""
    sample, within = sample_and_offsets(length, BLOCK)
    mask = within < length
    a = tl.load(a_ptr + sample * length + within, mask, other=0.0).to(partial_ptr.dtype.element_ty)
    b = tl.load(b_ptr + sample * length + within, mask, other=0.0).to(partial_ptr.dtype.element_ty)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(a * b, axis=0))


@jit
def row_sum(partial_ptr, row, blocks, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), partial_ptr.dtype.element_ty)
    for start in range(0, blocks, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + row * blocks + at, at < blocks, other=0.0)
    return tl.sum(total, axis=0)


@jit
def slope_of(norm, target: tl.constexpr, ONE_SIDED: tl.constexpr):
    """phi'(norm - target) / (2 norm): 0, not NaN, at norm 0."""
    slope = tl.where(norm == 0, 0.0, 1 - target / tl.where(norm == 0, 1.0, norm))
    slope = tl.where(norm <= target, 0.0, slope) if ONE_SIDED else slope
    return tl.where(target == 0, 1.0, slope)


@jit
def norms_kernel(
    partial_ptr, norms_ptr, excess_ptr, blocks, target: tl.constexpr, ONE_SIDED: tl.constexpr, BLOCK: tl.constexpr
):
    """norms[sample] and phi(norm - target); grid (sample,)."""
    sample = tl.program_id(0).to(tl.int64)
    norm = tl.sqrt(row_sum(partial_ptr, sample, blocks, BLOCK))
    excess = norm - target
    excess = tl.where(excess < 0, 0.0, excess) if ONE_SIDED else excess
    tl.store(norms_ptr + sample, norm)
    tl.store(excess_ptr + sample, excess * excess)


@jit
def grad_norm_penalty_bwd_kernel(
    grad_ptr,
    g_ptr,
    norms_ptr,
    out_ptr,
    samples,
    length,
    target: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, within = sample_and_offsets(length, BLOCK)
    mask = within < length
    factor = tl.load(grad_ptr) * 2 / samples * slope_of(tl.load(norms_ptr + sample), target, ONE_SIDED)
    g = tl.load(g_ptr + sample * length + within, mask).to(factor.dtype)
    tl.store(out_ptr + sample * length + within, (factor * g).to(out_ptr.dtype.element_ty), mask)


@jit
def grad_norm_penalty_bwd_bwd_kernel(
    v_ptr,
    grad_ptr,
    g_ptr,
    norms_ptr,
    dots_ptr,
    out_ptr,
    samples,
    length,
    target: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, within = sample_and_offsets(length, BLOCK)
    mask = within < length
    norm = tl.load(norms_ptr + sample)
    scale = tl.load(grad_ptr) * 2 / samples
    safe = tl.where(norm == 0, 1.0, norm)
    curvature = tl.where(norm == 0, 0.0, target / (safe * safe * safe)) * tl.load(dots_ptr + sample)
    curvature = tl.where(norm <= target, 0.0, curvature) if ONE_SIDED else curvature
    v = tl.load(v_ptr + sample * length + within, mask).to(norm.dtype)
    g = tl.load(g_ptr + sample * length + within, mask).to(norm.dtype)
    out = scale * (slope_of(norm, target, ONE_SIDED) * v + curvature * g)
    tl.store(out_ptr + sample * length + within, out.to(out_ptr.dtype.element_ty), mask)


# --- launch ---


def _sample_dots(a, b, dtype):
    partial = torch.empty(a.shape[0], blocks_of(a), dtype=dtype, device=a.device)
    if partial.numel():
        sample_dots_kernel[(partial.numel(),)](a, b, partial, a.numel() // a.shape[0], BLOCK)
    return partial


def _grad_norm_penalty_triton(grads, target, one_sided):
    grads = samples_first(grads)
    partial = _sample_dots(grads, grads, torch.promote_types(grads.dtype, torch.float32))
    norms, excess = partial.new_empty(grads.shape[0]), partial.new_empty(grads.shape[0])
    norms_kernel[(grads.shape[0],)](partial, norms, excess, partial.shape[1], target, one_sided, BLOCK)
    return excess.mean(), norms


def _grad_norm_penalty_bwd_triton(grad, grads, norms, target, one_sided):
    grads, norms = samples_first(grads), norms.contiguous()
    samples, length = grads.shape[0], grads.numel() // grads.shape[0]
    out = torch.empty_like(grads)
    if length:
        grid = (samples * blocks_of(grads),)
        grad_norm_penalty_bwd_kernel[grid](grad, grads, norms, out, samples, length, target, one_sided, BLOCK)
    return out


def _grad_norm_penalty_bwd_bwd_triton(grad_grads, grad, grads, norms, target, one_sided):
    grads, norms = samples_first(grads), norms.contiguous()
    v = in_layout_of(grads, grad_grads)
    samples, length = grads.shape[0], grads.numel() // grads.shape[0]
    dots = _sample_dots(grads, v, norms.dtype).sum(1)
    slopes = torch.where(norms == 0, 0.0, 1 - target / norms) if target else torch.ones_like(norms)
    if one_sided and target:
        slopes = torch.where(norms <= target, 0.0, slopes)
    out = torch.empty_like(grads)
    if length:
        grid = (samples * blocks_of(grads),)
        grad_norm_penalty_bwd_bwd_kernel[grid](
            v, grad, grads, norms, dots, out, samples, length, target, one_sided, BLOCK
        )
    return (slopes * dots).sum() * (2 / samples), out


# --- fake and derivatives ---


def _fake(grads, target, one_sided):
    dtype = torch.promote_types(grads.dtype, torch.float32)
    return grads.new_empty((), dtype=dtype), grads.new_empty(grads.shape[0], dtype=dtype)


def _setup_context(ctx, inputs, output):
    grads, ctx.target, ctx.one_sided = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grads, output[1])


def _backward(ctx, grad, _):
    if grad is None:
        return None, None, None
    grads, norms = ctx.saved_tensors
    return _op.grad_norm_penalty_bwd(grad, grads, norms, ctx.target, ctx.one_sided), None, None


def _bwd_fake(grad, grads, norms, target, one_sided):
    return fake_like(samples_first(grads))


def _bwd_setup_context(ctx, inputs, output):
    grad, grads, norms, ctx.target, ctx.one_sided = inputs
    ctx.save_for_backward(grad, grads, norms)


def _bwd_backward(ctx, grad_grads):
    # norms are a function of grads: the derivative below is the total one, and none goes to norms itself
    grad_out, grads_out = _op.grad_norm_penalty_bwd_bwd(grad_grads, *ctx.saved_tensors, ctx.target, ctx.one_sided)
    return grad_out, grads_out, None, None, None


def _bwd_bwd_fake(grad_grads, grad, grads, norms, target, one_sided):
    return torch.empty_like(grad), fake_like(samples_first(grads))


register(
    "grad_norm_penalty",
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    cuda=_grad_norm_penalty_triton,
)
register(
    "grad_norm_penalty_bwd",
    fake=_bwd_fake,
    backward=_bwd_backward,
    setup_context=_bwd_setup_context,
    cuda=_grad_norm_penalty_bwd_triton,
)
register("grad_norm_penalty_bwd_bwd", fake=_bwd_bwd_fake, cuda=_grad_norm_penalty_bwd_bwd_triton)


def grad_norm_penalty(
    grads: torch.Tensor, target: float = 1.0, one_sided: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """P = mean_i (|g_i| - target)^2, or mean_i max(|g_i| - target, 0)^2, and the norms |g_i| over all non-batch dimensions.

    Args:
        grads: (N, ...), the critic's gradient at each sample.
        target: the norm k that is not penalised, >= 0.
        one_sided: penalise only norms above the target.

    Returns: (penalty, norms): a scalar and (N,), float32 (float64 for float64 grads). norms carry no gradient. The penalty is
    differentiable twice; a norm of 0 has gradient 0. grads is read once forward, read and written once backward.

    Raises: TypeError or ValueError for an empty batch, an integer tensor, or a target that is negative or not finite.

    Source: Gulrajani et al. 2017 (two-sided); Petzka et al. 2018, "On the regularization of Wasserstein GANs" (one-sided).
    """
    check_batch("grad_norm_penalty", "grads", grads)
    check_number("grad_norm_penalty", "target", target, 0)
    check_flags("grad_norm_penalty", one_sided=one_sided)
    return _op.grad_norm_penalty(grads, float(target), one_sided)
