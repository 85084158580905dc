"""Scaled dot-product attention o = P v, P = softmax(scale q kᵀ), that differentiates twice in memory linear in the tokens.

Stock's fused attention has no second derivative, and its plain form keeps several matrices of tokens × tokens per head for one.
Here blocks of queries are taken at a time, their rows of P are computed anew in each derivative, and nothing but q, k, v and the
gradients is kept. On the CPU the forward and its first derivative are stock's fused kernels, and the logarithms of its sums are kept
too. The formulas stand beside the code, csrc/autograd/attention.cpp: products of matrices by stock kernels, on the CPU and on the GPU.
"""

from __future__ import annotations

import math

import torch

from .._checks import check_flags, check_number, check_tensor, shape
from .._registration import register

_op = torch.ops.gankernels


def reference(q, k, v, is_causal=False, scale=None):
    """softmax(scale q k^T) v in plain PyTorch, keys after a query masked when causal."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = scale * q.to(wide) @ k.to(wide).mT
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1), -math.inf)
    return (scores.softmax(-1) @ v.to(wide)).to(q.dtype)


def _fake(q, k, v, causal, scale):
    logs = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty((*q.shape[:2], v.shape[2])), logs


def _setup_context(ctx, inputs, output):
    *tensors, ctx.causal, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, grad, _):
    *inputs, out, logs = ctx.saved_tensors
    # attention_bwd's derivative is total: through out a second backward would come here once more, for a gradient of zeros
    return *_op.attention_bwd(grad, *inputs, out.detach(), logs, ctx.causal, ctx.scale), None, None


def _bwd_fake(grad, q, k, v, out, logs, causal, scale):
    return tuple(t.new_empty(t.shape) for t in (q, k, v))


def _bwd_setup_context(ctx, inputs, output):
    *tensors, _out, _logs, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _bwd_backward(ctx, *grads):
    """The total derivative, in which what the forward gave is a function of q, k and v."""
    return *_op.attention_bwd_bwd(*grads, *ctx.saved_tensors, ctx.causal, ctx.scale), None, None, None, None


def _bwd_bwd_fake(vq, vk, vv, grad, q, k, v, causal, scale):
    return tuple(t.new_empty(t.shape) for t in (grad, q, k, v))


register("attention", fake=_fake, backward=_backward, setup_context=_setup_context, keeps_rows=True)
register("attention_bwd", fake=_bwd_fake, backward=_bwd_backward, setup_context=_bwd_setup_context)
register("attention_bwd_bwd", fake=_bwd_bwd_fake)


def scaled_dot_product_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale q kᵀ) v: torch's, with a double backward in memory linear in the number of tokens.

    Args:
        q, k, v: (..., L, E), (..., S, E), (..., S, F) of one dtype and device, with the same leading dimensions.
        attn_mask: None; masks other than the causal one are not implemented.
        is_causal: query i sees keys 0 to i.
        scale: 1 / sqrt(E) when None.

    Returns: (..., L, F), contiguous. Differentiable twice. Each derivative computes the probabilities again, block by block: of
    products of matrices, in units of L S E, forward takes 2, backward 5 and double backward 13. Of float16 and bfloat16 the second
    derivative is computed in float32, as the others are on a GPU; on the CPU those are stock's, which round probabilities to 16 bits.

    Raises: TypeError or ValueError for tensors that do not fit together; NotImplementedError for a mask.

    Source: Vaswani et al. 2017, "Attention Is All You Need"; recomputation after Dao et al. 2022, "FlashAttention".
    """
    op = "scaled_dot_product_attention"
    if attn_mask is not None:
        raise NotImplementedError(
            f"gankernels.{op}: attn_mask must be None, got {type(attn_mask).__name__}; is_causal is the only mask."
        )
    for name, t in (("q", q), ("k", k), ("v", v)):
        check_tensor(op, name, t)
        if t.dtype != q.dtype:
            raise TypeError(
                f"gankernels.{op}: {name} must have the dtype of q, {str(q.dtype)[6:]}, got {str(t.dtype)[6:]}."
            )
        if t.device != q.device:
            raise ValueError(f"gankernels.{op}: {name} must be on the device of q, {q.device}, got {t.device}.")
    if not fits(q, k, v):
        raise ValueError(
            f"gankernels.{op}: q, k, v must have shapes (..., L, E), (..., S, E), (..., S, F), got {shape(q)}, {shape(k)}, {shape(v)}."
        )
    check_flags(op, is_causal=is_causal)
    if scale is not None:
        check_number(op, "scale", scale)
    return attend(q, k, v, is_causal, scale)


def fits(q, k, v) -> bool:
    return (
        q.dim() == k.dim() == v.dim() >= 2
        and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
        and q.shape[-1] == k.shape[-1]
        and k.shape[-2] == v.shape[-2]
    )


def attend(q, k, v, is_causal, scale):
    heads = [t.reshape(-1, *t.shape[-2:]) for t in (q, k, v)]
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    return _op.attention(*heads, is_causal, scale)[0].view(*q.shape[:-1], v.shape[-1])
