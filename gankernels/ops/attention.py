"""Scaled dot-product attention o = P v, P = softmax(S), S = scale q kᵀ, that differentiates twice in memory linear in the tokens.

Stock's fused attention has no second derivative, and its plain form keeps several matrices of tokens × tokens per head for one.
Here tiles of P are computed anew in each derivative, and nothing but q, k, v, the gradients and a few numbers per query is kept.

With g the gradient in o, A = g vᵀ, and bars the means under P, row by row:
    first derivative   dv = Pᵀ g,  dS = P (A - Ā),  dq = scale dS k,  dk = scale dSᵀ q;  Ā = sum of g o
    second derivative  given vq, vk, vv, the gradients arriving at dq, dk, dv, let T = scale (vq kᵀ + q vkᵀ), a = A - Ā, t = T - T̄.
                       The sum of vq dq, vk dk and vv dv is that of P (a T + g vvᵀ). Its derivative at A is P t, at T it is P a,
                       and at P, up to a constant in each row, X = a t + g vvᵀ:
                       dg = P t v + P vv,  dv = (P t)ᵀ g,  dS = P (X - X̄),
                       dq = scale (dS k + P a vk),  dk = scale (dSᵀ q + (P a)ᵀ vq)
On the CPU blocks of queries are taken by stock's products of matrices, and the forward and first derivative are stock's fused kernels:
csrc/autograd/attention.cpp. On a GPU the kernels below keep tiles on the chip. What is summed over keys and what is summed over queries
takes a kernel each, without atomics: results do not vary. The forward saves the logarithm L of each query's sum, as FlashAttention-2
does, so that P = exp(S - L); the second derivative first finds L, Ā, T̄ and X̄ = cov(A, T) + the mean of g vvᵀ.
"""

from __future__ import annotations

import math

import torch

from .._checks import check_flags, check_number, check_tensor, shape
from .._registration import register
from .._triton import jit, tl, triton

_op = torch.ops.gankernels


def reference(q, k, v, is_causal=False, scale=None):
    """softmax(scale q k^T) v in plain PyTorch, keys after a query masked when causal."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = scale * q.to(wide) @ k.to(wide).mT
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1), -math.inf)
    return (scores.softmax(-1) @ v.to(wide)).to(q.dtype)


# --- Triton kernels. A program has BLOCK tokens of one head, queries or keys, and meets the others STEP at a time; E and F are the
# features of keys and of values. It takes up to WIDTH features at once: of more, a program stores one part and computes the scores
# again. Tokens and features that there are not read 0, and no query sees such a key. ---


@jit
def accumulator(ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums have at least 32 bits."""
    return tl.zeros((ROWS, COLUMNS), tl.float64 if ptr.dtype.element_ty == tl.float64 else tl.float32)


@jit
def own_tokens(tokens, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """What this program has: head, first token, part of the features; grid (heads * cdiv(tokens, BLOCK) * PARTS,)."""
    blocks = tl.cdiv(tokens, BLOCK)
    part, program = tl.program_id(0) % PARTS, tl.program_id(0) // PARTS
    return (program // blocks).to(tl.int64), program % blocks * BLOCK, part


@jit
def load_rows(ptr, head, token, tokens, part, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    feature = part * WIDTH + tl.arange(0, WIDTH)
    at = (head * tokens + token)[:, None] * SIZE + feature[None, :]
    return tl.load(ptr + at, (token < tokens)[:, None] & (feature < SIZE)[None, :], other=0.0)


@jit
def store_rows(ptr, value, head, token, tokens, part, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    feature = part * WIDTH + tl.arange(0, WIDTH)
    at = (head * tokens + token)[:, None] * SIZE + feature[None, :]
    tl.store(ptr + at, value.to(ptr.dtype.element_ty), (token < tokens)[:, None] & (feature < SIZE)[None, :])


@jit
def dot(a, b, total):
    """total + a b, with a in the dtype of b. Of float32 the products are exact, and of float16 they are TF32's, which keeps as many
    bits of a and the range of float32: probabilities times gradients are small numbers."""
    if a.dtype == tl.float32 and b.dtype == tl.float16:
        return tl.dot(a, b.to(tl.float32), total, input_precision="tf32", out_dtype=total.dtype)
    return tl.dot(a.to(b.dtype), b, total, input_precision="ieee", out_dtype=total.dtype)


@jit
def add_products(total, a_ptr, i, a_tokens, b_ptr, j, b_tokens, head, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """total + a bᵀ, rows i of a by rows j of b."""
    for part in tl.static_range((SIZE + WIDTH - 1) // WIDTH):
        a = load_rows(a_ptr, head, i, a_tokens, part, SIZE, WIDTH)
        total = dot(a, tl.trans(load_rows(b_ptr, head, j, b_tokens, part, SIZE, WIDTH)), total)
    return total


@jit
def visible(s, query, key, keys, CAUSAL: tl.constexpr):
    """Scores, -inf where the query does not see the key."""
    mask = key < keys
    if CAUSAL:
        mask = mask & (key <= query)
    return tl.where(mask, s, -float("inf"))


@jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, logs_ptr, queries, keys, SCALE: tl.constexpr, CAUSAL: tl.constexpr, E: tl.constexpr,
    F: tl.constexpr, E_WIDTH: tl.constexpr, F_WIDTH: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    head, first, part = own_tokens(queries, BLOCK, PARTS)
    i = first + tl.arange(0, BLOCK)
    out = accumulator(q_ptr, BLOCK, F_WIDTH)
    largest = tl.full((BLOCK,), -float("inf"), out.dtype)
    total = tl.zeros((BLOCK,), out.dtype)
    for start in range(0, tl.minimum(keys, first + BLOCK) if CAUSAL else keys, STEP):
        j = start + tl.arange(0, STEP)
        s = add_products(accumulator(q_ptr, BLOCK, STEP), q_ptr, i, queries, k_ptr, j, keys, head, E, E_WIDTH)
        s = visible(s * SCALE, i[:, None], j[None, :], keys, CAUSAL)
        larger = tl.maximum(largest, tl.max(s, axis=1))
        shrunk = tl.exp(largest - larger)
        p = tl.exp(s - larger[:, None])
        total = total * shrunk + tl.sum(p, axis=1)
        out = dot(p, load_rows(v_ptr, head, j, keys, part, F, F_WIDTH), out * shrunk[:, None])
        largest = larger
    store_rows(out_ptr, out / total[:, None], head, i, queries, part, F, F_WIDTH)
    if part == 0:
        tl.store(logs_ptr + head * queries + i, largest + tl.log(total), i < queries)


@jit
def attention_bwd_queries_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, out_ptr, logs_ptr, mean_ptr, dq_ptr, queries, keys, SCALE: tl.constexpr,
    CAUSAL: tl.constexpr, E: tl.constexpr, F: tl.constexpr, E_WIDTH: tl.constexpr, F_WIDTH: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The gradient in q, and Ā, the sum of grad * out, for the kernel of keys."""
    head, first, part = own_tokens(queries, BLOCK, PARTS)
    i = first + tl.arange(0, BLOCK)
    dq = accumulator(q_ptr, BLOCK, E_WIDTH)
    # taken from products like those of A, so that where a query sees one key A - Ā is exactly 0
    products = add_products(
        accumulator(q_ptr, BLOCK, BLOCK), grad_ptr, i, queries, out_ptr, i, queries, head, F, F_WIDTH
    )
    mean = tl.sum(tl.where(i[:, None] == i[None, :], products, 0.0), axis=1)
    log = tl.load(logs_ptr + head * queries + i, i < queries, other=float("inf"))
    for start in range(0, tl.minimum(keys, first + BLOCK) if CAUSAL else keys, STEP):
        j = start + tl.arange(0, STEP)
        s = add_products(accumulator(q_ptr, BLOCK, STEP), q_ptr, i, queries, k_ptr, j, keys, head, E, E_WIDTH)
        p = tl.exp(visible(s * SCALE, i[:, None], j[None, :], keys, CAUSAL) - log[:, None])
        a = add_products(accumulator(q_ptr, BLOCK, STEP), grad_ptr, i, queries, v_ptr, j, keys, head, F, F_WIDTH)
        dq = dot(p * (a - mean[:, None]), load_rows(k_ptr, head, j, keys, part, E, E_WIDTH), dq)
    store_rows(dq_ptr, dq * SCALE, head, i, queries, part, E, E_WIDTH)
    if part == 0:
        tl.store(mean_ptr + head * queries + i, mean, i < queries)


@jit
def attention_bwd_keys_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, logs_ptr, mean_ptr, dk_ptr, dv_ptr, queries, keys, SCALE: tl.constexpr,
    CAUSAL: tl.constexpr, E: tl.constexpr, F: tl.constexpr, E_WIDTH: tl.constexpr, F_WIDTH: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The gradients in k and v. Scores are transposed here, keys by queries."""
    head, first, part = own_tokens(keys, BLOCK, PARTS)
    j = first + tl.arange(0, BLOCK)
    dk, dv = accumulator(q_ptr, BLOCK, E_WIDTH), accumulator(q_ptr, BLOCK, F_WIDTH)
    for start in range(first // STEP * STEP if CAUSAL else 0, queries, STEP):
        i = start + tl.arange(0, STEP)
        log = tl.load(logs_ptr + head * queries + i, i < queries, other=float("inf"))
        mean = tl.load(mean_ptr + head * queries + i, i < queries, other=0.0)
        s = add_products(accumulator(q_ptr, BLOCK, STEP), k_ptr, j, keys, q_ptr, i, queries, head, E, E_WIDTH)
        p = tl.exp(visible(s * SCALE, i[None, :], j[:, None], keys, CAUSAL) - log[None, :])
        a = add_products(accumulator(q_ptr, BLOCK, STEP), v_ptr, j, keys, grad_ptr, i, queries, head, F, F_WIDTH)
        dv = dot(p, load_rows(grad_ptr, head, i, queries, part, F, F_WIDTH), dv)
        dk = dot(p * (a - mean[None, :]), load_rows(q_ptr, head, i, queries, part, E, E_WIDTH), dk)
    store_rows(dk_ptr, dk * SCALE, head, j, keys, part, E, E_WIDTH)
    store_rows(dv_ptr, dv, head, j, keys, part, F, F_WIDTH)


@jit
def attention_bwd_bwd_means_kernel(
    vq_ptr, vk_ptr, vv_ptr, grad_ptr, q_ptr, k_ptr, v_ptr, logs_ptr, a_ptr, t_ptr, x_ptr, queries, keys, SCALE: tl.constexpr,
    CAUSAL: tl.constexpr, E: tl.constexpr, F: tl.constexpr, E_WIDTH: tl.constexpr, F_WIDTH: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Of each query: the logarithm of its sum, Ā, T̄ and X̄. Means of a block are taken first and then joined to those before, or
    the covariance in X̄ would be a difference of large numbers."""
    head, first, _ = own_tokens(queries, BLOCK, PARTS)
    i = first + tl.arange(0, BLOCK)
    zero = accumulator(q_ptr, BLOCK, STEP)
    largest = tl.full((BLOCK,), -float("inf"), zero.dtype)
    total, mean_a = tl.zeros((BLOCK,), zero.dtype), tl.zeros((BLOCK,), zero.dtype)
    mean_t, sum_x = tl.zeros((BLOCK,), zero.dtype), tl.zeros((BLOCK,), zero.dtype)
    for start in range(0, tl.minimum(keys, first + BLOCK) if CAUSAL else keys, STEP):
        j = start + tl.arange(0, STEP)
        s = add_products(zero, q_ptr, i, queries, k_ptr, j, keys, head, E, E_WIDTH)
        s = visible(s * SCALE, i[:, None], j[None, :], keys, CAUSAL)
        larger = tl.maximum(largest, tl.max(s, axis=1))
        before = total * tl.exp(largest - larger)
        p = tl.exp(s - larger[:, None])
        here = tl.sum(p, axis=1)
        total = before + here
        share = here / total
        here = tl.where(here == 0, 1.0, here)  # no query of the block sees any of these keys
        a = add_products(zero, grad_ptr, i, queries, v_ptr, j, keys, head, F, F_WIDTH)
        t = add_products(zero, vq_ptr, i, queries, k_ptr, j, keys, head, E, E_WIDTH)
        t = add_products(t, q_ptr, i, queries, vk_ptr, j, keys, head, E, E_WIDTH) * SCALE
        b = add_products(zero, grad_ptr, i, queries, vv_ptr, j, keys, head, F, F_WIDTH)
        here_a, here_t = tl.sum(p * a, axis=1) / here, tl.sum(p * t, axis=1) / here
        step_a, step_t = here_a - mean_a, here_t - mean_t
        x = (a - here_a[:, None]) * (t - here_t[:, None]) + b
        sum_x = sum_x * tl.exp(largest - larger) + tl.sum(p * x, axis=1) + step_a * step_t * before * share
        mean_a += step_a * share
        mean_t += step_t * share
        largest = larger
    at = head * queries + i
    tl.store(logs_ptr + at, largest + tl.log(total), i < queries)
    tl.store(a_ptr + at, mean_a, i < queries)
    tl.store(t_ptr + at, mean_t, i < queries)
    tl.store(x_ptr + at, sum_x / total, i < queries)


@jit
def attention_bwd_bwd_queries_kernel(
    vq_ptr, vk_ptr, vv_ptr, grad_ptr, q_ptr, k_ptr, v_ptr, logs_ptr, a_ptr, t_ptr, x_ptr, dg_ptr, dq_ptr, queries, keys,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, E: tl.constexpr, F: tl.constexpr, E_WIDTH: tl.constexpr, F_WIDTH: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The gradients in grad and q."""
    head, first, part = own_tokens(queries, BLOCK, PARTS)
    i = first + tl.arange(0, BLOCK)
    zero = accumulator(q_ptr, BLOCK, STEP)
    dg, dq = accumulator(q_ptr, BLOCK, F_WIDTH), accumulator(q_ptr, BLOCK, E_WIDTH)
    at = head * queries + i
    log = tl.load(logs_ptr + at, i < queries, other=float("inf"))[:, None]
    mean_a = tl.load(a_ptr + at, i < queries, other=0.0)[:, None]
    mean_t = tl.load(t_ptr + at, i < queries, other=0.0)[:, None]
    mean_x = tl.load(x_ptr + at, i < queries, other=0.0)[:, None]
    for start in range(0, tl.minimum(keys, first + BLOCK) if CAUSAL else keys, STEP):
        j = start + tl.arange(0, STEP)
        s = add_products(zero, q_ptr, i, queries, k_ptr, j, keys, head, E, E_WIDTH)
        p = tl.exp(visible(s * SCALE, i[:, None], j[None, :], keys, CAUSAL) - log)
        a = add_products(zero, grad_ptr, i, queries, v_ptr, j, keys, head, F, F_WIDTH) - mean_a
        t = add_products(zero, vq_ptr, i, queries, k_ptr, j, keys, head, E, E_WIDTH)
        t = add_products(t, q_ptr, i, queries, vk_ptr, j, keys, head, E, E_WIDTH) * SCALE - mean_t
        b = add_products(zero, grad_ptr, i, queries, vv_ptr, j, keys, head, F, F_WIDTH)
        dg = dot(p * t, load_rows(v_ptr, head, j, keys, part, F, F_WIDTH), dg)
        dg = dot(p, load_rows(vv_ptr, head, j, keys, part, F, F_WIDTH), dg)
        dq = dot(p * (a * t + b - mean_x), load_rows(k_ptr, head, j, keys, part, E, E_WIDTH), dq)
        dq = dot(p * a, load_rows(vk_ptr, head, j, keys, part, E, E_WIDTH), dq)
    store_rows(dg_ptr, dg, head, i, queries, part, F, F_WIDTH)
    store_rows(dq_ptr, dq * SCALE, head, i, queries, part, E, E_WIDTH)


@jit
def attention_bwd_bwd_keys_kernel(
    vq_ptr, vk_ptr, vv_ptr, grad_ptr, q_ptr, k_ptr, v_ptr, logs_ptr, a_ptr, t_ptr, x_ptr, dk_ptr, dv_ptr, queries, keys,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, E: tl.constexpr, F: tl.constexpr, E_WIDTH: tl.constexpr, F_WIDTH: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The gradients in k and v, from scores transposed."""
    head, first, part = own_tokens(keys, BLOCK, PARTS)
    j = first + tl.arange(0, BLOCK)
    zero = accumulator(q_ptr, BLOCK, STEP)
    dk, dv = accumulator(q_ptr, BLOCK, E_WIDTH), accumulator(q_ptr, BLOCK, F_WIDTH)
    for start in range(first // STEP * STEP if CAUSAL else 0, queries, STEP):
        i = start + tl.arange(0, STEP)
        at = head * queries + i
        log = tl.load(logs_ptr + at, i < queries, other=float("inf"))[None, :]
        mean_a = tl.load(a_ptr + at, i < queries, other=0.0)[None, :]
        mean_t = tl.load(t_ptr + at, i < queries, other=0.0)[None, :]
        mean_x = tl.load(x_ptr + at, i < queries, other=0.0)[None, :]
        s = add_products(zero, k_ptr, j, keys, q_ptr, i, queries, head, E, E_WIDTH)
        p = tl.exp(visible(s * SCALE, i[None, :], j[:, None], keys, CAUSAL) - log)
        a = add_products(zero, v_ptr, j, keys, grad_ptr, i, queries, head, F, F_WIDTH) - mean_a
        t = add_products(zero, k_ptr, j, keys, vq_ptr, i, queries, head, E, E_WIDTH)
        t = add_products(t, vk_ptr, j, keys, q_ptr, i, queries, head, E, E_WIDTH) * SCALE - mean_t
        b = add_products(zero, vv_ptr, j, keys, grad_ptr, i, queries, head, F, F_WIDTH)
        dv = dot(p * t, load_rows(grad_ptr, head, i, queries, part, F, F_WIDTH), dv)
        dk = dot(p * (a * t + b - mean_x), load_rows(q_ptr, head, i, queries, part, E, E_WIDTH), dk)
        dk = dot(p * a, load_rows(vq_ptr, head, i, queries, part, E, E_WIDTH), dk)
    store_rows(dk_ptr, dk * SCALE, head, j, keys, part, E, E_WIDTH)
    store_rows(dv_ptr, dv, head, j, keys, part, F, F_WIDTH)


# --- launch ---

# By the bytes of an element: tokens of a program, tokens met at a time, warps. In 16 bits 64 rows are what the tensor cores of sm_90 and
# sm_100 take at once. float32 is multiplied by the ordinary units, each operand held in registers: less of it, and for the second
# derivative, which has up to seven operands, by more threads. Two stages of loads leave room for two programs in the shared memory.
_TILES = {2: (64, 32, 4), 4: (32, 32, 4), 8: (16, 16, 4)}
_SECOND_TILES = _TILES | {4: (32, 16, 8)}
_WIDTH = 64


def launch_options(bytes, features, wide, second):
    """Constants and options of a launch, by name."""
    block, step, warps = (_SECOND_TILES if second else _TILES)[bytes]
    widths = [min(max(triton.next_power_of_2(size), 16), _WIDTH) for size in (features, wide)]
    parts = max(1, *map(triton.cdiv, (features, wide), widths))
    sizes = dict(E=features, F=wide, E_WIDTH=widths[0], F_WIDTH=widths[1], PARTS=parts, BLOCK=block, STEP=step)
    return dict(**sizes, num_warps=warps, num_stages=2)


def _launch(kernel, tensors, q, k, v, causal, scale, *, by_keys=False, second=False, parts=True):
    """One program per head, block of queries or keys, and part of the features where `parts`."""
    (heads, queries, features), (keys, wide) = q.shape, v.shape[1:]
    options = launch_options(q.element_size(), features, wide, second)
    if not parts:
        options["PARTS"] = 1
    programs = heads * triton.cdiv(keys if by_keys else queries, options["BLOCK"]) * options["PARTS"]
    if programs:
        kernel[(programs,)](*tensors, queries, keys, SCALE=scale, CAUSAL=causal, **options)


def _attention_triton(q, k, v, causal, scale):
    q, k, v = (t.contiguous() for t in (q, k, v))
    out, logs = _fake(q, k, v, causal, scale)
    if k.shape[1] == 0:
        return out.zero_(), logs.fill_(-math.inf)
    _launch(attention_kernel, (q, k, v, out, logs), q, k, v, causal, scale)
    return out, logs


def _attention_bwd_triton(grad, q, k, v, out, logs, causal, scale):
    grad, q, k, v, out, logs = (t.contiguous() for t in (grad, q, k, v, out, logs))
    dq, dk, dv = _bwd_fake(grad, q, k, v, out, logs, causal, scale)
    means = torch.empty_like(logs)
    by_query, by_key = (grad, q, k, v, out, logs, means, dq), (grad, q, k, v, logs, means, dk, dv)
    _launch(attention_bwd_queries_kernel, by_query, q, k, v, causal, scale)
    _launch(attention_bwd_keys_kernel, by_key, q, k, v, causal, scale, by_keys=True)
    return dq, dk, dv


def _attention_bwd_bwd_triton(vq, vk, vv, grad, q, k, v, causal, scale):
    given = vq, vk, vv, grad, q, k, v = tuple(t.contiguous() for t in (vq, vk, vv, grad, q, k, v))
    dg, dq, dk, dv = _bwd_bwd_fake(*given, causal, scale)
    rows = tuple(q.new_empty((4, *q.shape[:2]), dtype=torch.promote_types(q.dtype, torch.float32)))
    _launch(attention_bwd_bwd_means_kernel, (*given, *rows), q, k, v, causal, scale, second=True, parts=False)
    _launch(attention_bwd_bwd_queries_kernel, (*given, *rows, dg, dq), q, k, v, causal, scale, second=True)
    _launch(attention_bwd_bwd_keys_kernel, (*given, *rows, dk, dv), q, k, v, causal, scale, by_keys=True, second=True)
    return dg, dq, dk, dv


# --- fake and derivatives ---


def _fake(q, k, v, causal, scale):
    logs = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty((*q.shape[:2], v.shape[2])), logs


def _own_precision(t):
    """Where autocast leaves the products inside of the kernels alone."""
    return torch.autocast(t.device.type, enabled=False)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.causal, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, grad, _):
    *inputs, out, logs = ctx.saved_tensors
    # attention_bwd's derivative is total: through out a second backward would come here once more, for a gradient of zeros
    with _own_precision(grad):
        return *_op.attention_bwd(grad, *inputs, out.detach(), logs, ctx.causal, ctx.scale), None, None


def _bwd_fake(grad, q, k, v, out, logs, causal, scale):
    return tuple(t.new_empty(t.shape) for t in (q, k, v))


def _bwd_setup_context(ctx, inputs, output):
    *tensors, _out, _logs, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _bwd_backward(ctx, *grads):
    """The total derivative, in which what the forward gave is a function of q, k and v."""
    with _own_precision(grads[0]):
        return *_op.attention_bwd_bwd(*grads, *ctx.saved_tensors, ctx.causal, ctx.scale), None, None, None, None


def _bwd_bwd_fake(vq, vk, vv, grad, q, k, v, causal, scale):
    return tuple(t.new_empty(t.shape) for t in (grad, q, k, v))


register(
    "attention", fake=_fake, backward=_backward, setup_context=_setup_context, keeps_rows=True, cuda=_attention_triton
)
register(
    "attention_bwd",
    fake=_bwd_fake,
    backward=_bwd_backward,
    setup_context=_bwd_setup_context,
    cuda=_attention_bwd_triton,
)
register("attention_bwd_bwd", fake=_bwd_bwd_fake, cuda=_attention_bwd_bwd_triton)


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

    Returns: (..., L, F), contiguous. Differentiable twice. Each derivative computes the probabilities again, tile by tile: of
    products of matrices, in units of L S E, forward takes 2, backward 5 and double backward 13 on the CPU; on a GPU, where what is
    summed over keys and over queries takes a kernel each, 2, 7 and 22, and more where E or F exceeds 64. What is kept is q, k, v,
    the output and a number per query, for the second derivative four. Of float16 and bfloat16 probabilities are rounded to as many
    bits and summed in float32; the CPU computes their second derivative in float32. Products of float32 are exact, never TF32.

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
    with _own_precision(q):
        return _op.attention(*heads, is_causal, scale)[0].view(*q.shape[:-1], v.shape[-1])
