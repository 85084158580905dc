from functools import partial

import torch
import torch.nn.functional as F

import gankernels as gk
from gankernels.ops import attention

from .spec import INT, Kernel, Spec, randn

_op = torch.ops.gankernels
_BYTES = {"*fp64": 8, "*fp32": 4, "*bf16": 2, "*fp16": 2}

# Batch and heads, tokens, features. More than one block of queries, more tokens than a GPU's program takes
# at once, several heads to a block, one token, one feature, none.
_SHAPES = {
    "odd": (3, 5, 4),
    "one": (2, 1, 3),
    "feature": (2, 7, 1),
    "large": (2, 2100, 3),
    "many": (2, 20, 6),
    "empty": (0, 3, 4),
}


def _reference(q, k, v, causal, scale):
    return gk.reference.scaled_dot_product_attention(q, k, v, causal, scale)


def _inputs(causal, grads):
    """Of q, k, v and of gradients for as many derivatives; fewer keys than thousands of queries, one more feature in values
    where there are three or six: stock's kernels do not take that."""

    def inputs(shape, dtype, device):
        batch, tokens, features = shape
        count, wide = tokens if tokens <= 1024 else 130, features + (features in (3, 6))
        keys, values = (batch, count, features), (batch, count, wide)
        q, k, v, grad = (randn(s, dtype, device) for s in (shape, keys, values, (batch, tokens, wide)))
        second = tuple(randn(s, dtype, device) for s in (shape, keys, values))
        return (
            *(() if grads < 2 else second),
            *(() if grads < 1 else (grad,)),
            q,
            k,
            v,
            causal,
            0.3,
        )

    return inputs


def _attention(q, k, v, causal, scale):
    return _op.attention(q, k, v, causal, scale)[0]


def _bwd(grad, q, k, v, causal, scale, forward=_op.attention, backward=_op.attention_bwd):
    """With what the forward of these q, k and v gave."""
    with torch.no_grad():
        given = forward(q, k, v, causal, scale)
    return backward(grad, q, k, v, *given, causal, scale)


def _bwd_reference(grad, q, k, v, causal, scale):
    with torch.enable_grad():
        q, k, v = (t if t.requires_grad else t.detach().requires_grad_() for t in (q, k, v))
        return torch.autograd.grad(_reference(q, k, v, causal, scale), (q, k, v), grad, create_graph=True)


def _bwd_bwd_reference(vq, vk, vv, grad, q, k, v, causal, scale):
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (grad, q, k, v)]
        return torch.autograd.grad(_bwd_reference(*leaves, causal, scale), leaves, (vq, vk, vv), materialize_grads=True)


def _stock(q, k, v, causal, scale):
    return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=causal, scale=scale)[0]


X = torch.ones(2, 3, 4)

_BAD = {
    "list": (lambda: gk.scaled_dot_product_attention([1.0], X, X), "q must be a tensor, got list"),
    "integers": (lambda: gk.scaled_dot_product_attention(X.int(), X, X), "q must be float64, .* got int32"),
    "dtypes": (
        lambda: gk.scaled_dot_product_attention(X, X.double(), X),
        "k must have the dtype of q, float32, got float64",
    ),
    "features": (
        lambda: gk.scaled_dot_product_attention(X, X[..., :3], X),
        r"q, k, v must have shapes .*got \(2, 3, 4\), \(2, 3, 3\)",
    ),
    "tokens": (lambda: gk.scaled_dot_product_attention(X, X, X[:, :2]), "q, k, v must have shapes"),
    "mask": (lambda: gk.scaled_dot_product_attention(X, X, X, X), "attn_mask must be None"),
    "scale": (lambda: gk.scaled_dot_product_attention(X, X, X, scale="1"), "scale must be a finite number, got str"),
    "raw": (lambda: _op.attention(X, X[:1], X, False, 1.0), "q, k, v must have shapes"),
    "raw_grad": (lambda: _op.attention_bwd(X[:1], X, X, X, X, X[..., 0], False, 1.0), "grad must have shape"),
    "raw_grad_grad": (
        lambda: _op.attention_bwd_bwd(X, X[:1], X, X, X, X, X, False, 1.0),
        "grad_grad_k must have shape",
    ),
}

SPECS = [
    spec
    for suffix, causal in (("", False), ("_causal", True))
    for spec in (
        Spec(f"attention{suffix}", _attention, _reference, _inputs(causal, 0), (0, 1, 2), (0, 1, 2), stock_products=True, shapes=_SHAPES,
             bad={} if suffix else _BAD, stock=_stock, stock_orders=1,
             # patches of a transformer's critic, and SAGAN's pixels at 32×32, of 8 and 2 times so many samples or heads
             real={} if suffix else {"tokens1024": (8, 1024, 64), "sagan32": (16, 1024, 16)}),
        Spec(f"attention_bwd{suffix}", _bwd, _bwd_reference, _inputs(causal, 1), (0, 1, 2, 3), (0, 1, 2, 3),
             outputs=(0, 1, 2), second_order=False, stock_products=True, shapes=_SHAPES),
        Spec(f"attention_bwd_bwd{suffix}", _op.attention_bwd_bwd, _bwd_bwd_reference, _inputs(causal, 2), tuple(range(7)), (),
             outputs=(0, 1, 2, 3), stock_products=True, shapes=_SHAPES),
    )
]  # fmt: skip

LAUNCHERS = {
    "attention": lambda *args: attention._attention_triton(*args)[0],
    "attention_bwd": partial(_bwd, forward=attention._attention_triton, backward=attention._attention_bwd_triton),
    "attention_bwd_bwd": attention._attention_bwd_bwd_triton,
}

KERNELS = {
    f"attention{suffix}": Kernel(
        getattr(attention, f"attention{suffix}_kernel"),
        lambda t, a, given=given, rows=rows, made=made: (*[t] * given, *[a] * rows, *[t] * made, INT, INT),
        {"SCALE": 0.25, "CAUSAL": True},
        streams=False,  # tiles go to shared memory
        launch=lambda t, second="bwd_bwd" in suffix: attention.launch_options(_BYTES[t], 16, 16, second),
        slow=True,
    )
    for suffix, given, rows, made in (
        ("", 4, 1, 0),
        ("_bwd_queries", 5, 2, 1),
        ("_bwd_keys", 4, 2, 2),
        ("_bwd_bwd_means", 7, 4, 0),
        ("_bwd_bwd_queries", 7, 4, 2),
        ("_bwd_bwd_keys", 7, 4, 2),
    )
}
