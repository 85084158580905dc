"""y = x Φ(x), Φ the normal distribution function, or its form (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³).

    first derivative   dx = g (Φ + x Φ')
    second derivative  given v, the gradient arriving at dx:  dg = v (Φ + x Φ'),  dx = v g (2 Φ' + x Φ'')
Nothing is saved but x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .._checks import check_tensor, got
from .._registration import register
from .._triton import BLOCK, in_layout_of, is_dense, jit, tl, triton

_op = torch.ops.gankernels


def reference(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """Stock's."""
    return F.gelu(x, approximate=approximate)


# --- Triton kernels ---


@jit
def block(size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return at, at < size


@jit
def load(ptr, at, mask):
    return tl.load(ptr + at, mask).to(tl.float64 if ptr.dtype.element_ty == tl.float64 else tl.float32)


@jit
def distribution(x, TANH: tl.constexpr):
    """Φ, Φ' and x Φ''."""
    if TANH:  # Φ = 1 / (1 + e^-2u), without a difference of near numbers
        two_u = 1.5957691216057308 * x * (1 + 0.044715 * x * x)
        w = 1.5957691216057308 * (1 + 3 * 0.044715 * x * x)
        e = tl.exp(tl.where(x < 0, two_u, -two_u))
        near = 1 / (1 + e)
        tanh_u = tl.where(x < 0, e - 1, 1 - e) * near
        spread = e * near * near
        x_bend = x * spread * (6 * 0.044715 * 1.5957691216057308 * x - tanh_u * w * w)
        return tl.where(x < 0, e * near, near), spread * w, x_bend
    slope = 0.39894228040143268 * tl.exp(-0.5 * x * x)
    return 0.5 * (1 + tl.erf(0.70710678118654752 * x)), slope, -x * x * slope


@jit
def gelu_kernel(x_ptr, y_ptr, size, TANH: tl.constexpr, BLOCK: tl.constexpr):
    at, mask = block(size, BLOCK)
    x = load(x_ptr, at, mask)
    value, _, _ = distribution(x, TANH)
    tl.store(y_ptr + at, (x * value).to(y_ptr.dtype.element_ty), mask)


@jit
def gelu_bwd_kernel(grad_ptr, x_ptr, out_ptr, size, TANH: tl.constexpr, BLOCK: tl.constexpr):
    at, mask = block(size, BLOCK)
    x, grad = load(x_ptr, at, mask), load(grad_ptr, at, mask)
    value, slope, _ = distribution(x, TANH)
    tl.store(out_ptr + at, (grad * (value + x * slope)).to(out_ptr.dtype.element_ty), mask)


@jit
def gelu_bwd_bwd_kernel(v_ptr, grad_ptr, x_ptr, grad_out_ptr, x_out_ptr, size, TANH: tl.constexpr, BLOCK: tl.constexpr):
    at, mask = block(size, BLOCK)
    x, grad, v = load(x_ptr, at, mask), load(grad_ptr, at, mask), load(v_ptr, at, mask)
    value, slope, x_bend = distribution(x, TANH)
    tl.store(grad_out_ptr + at, (v * (value + x * slope)).to(grad_out_ptr.dtype.element_ty), mask)
    tl.store(x_out_ptr + at, (v * grad * (2 * slope + x_bend)).to(x_out_ptr.dtype.element_ty), mask)


# --- launch ---


def _dense(x):
    if x.numel() == 0:
        return x.new_empty(x.shape)  # its strides mean nothing
    return x if is_dense(x) else x.contiguous()


def _launch(kernel, tensors, tanh_form):
    size = tensors[0].numel()
    if size:
        kernel[(triton.cdiv(size, BLOCK),)](*tensors, size, tanh_form, BLOCK)


def _gelu_triton(x, tanh_form):
    x = _dense(x)
    y = torch.empty_like(x)
    _launch(gelu_kernel, (x, y), tanh_form)
    return y


def _gelu_bwd_triton(grad, x, tanh_form):
    x = _dense(x)
    out = torch.empty_like(x)
    _launch(gelu_bwd_kernel, (in_layout_of(x, grad), x, out), tanh_form)
    return out


def _gelu_bwd_bwd_triton(grad_grad, grad, x, tanh_form):
    x = _dense(x)
    grad_out, x_out = torch.empty_like(x), torch.empty_like(x)
    _launch(gelu_bwd_bwd_kernel, (in_layout_of(x, grad_grad), in_layout_of(x, grad), x, grad_out, x_out), tanh_form)
    return grad_out, x_out


# --- fakes; the derivatives are in csrc/autograd/gelu.cpp ---


def _fake(x, tanh_form):
    return torch.empty_like(_dense(x))


def _bwd_fake(grad, x, tanh_form):
    return torch.empty_like(_dense(x))


def _bwd_bwd_fake(grad_grad, grad, x, tanh_form):
    return torch.empty_like(_dense(x)), torch.empty_like(_dense(x))


register("gelu", fake=_fake, cpp_autograd=True, cuda=_gelu_triton)
register("gelu_bwd", fake=_bwd_fake, cpp_autograd=True, cuda=_gelu_bwd_triton)
register("gelu_bwd_bwd", fake=_bwd_bwd_fake, cuda=_gelu_bwd_bwd_triton)


def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """y = x Φ(x): torch's, with a fused double backward.

    Args:
        x: any shape.
        approximate: "none", or "tanh" for that form of Φ.

    Returns: x's shape, dtype and, where it is dense, strides. Differentiable twice. Forward, backward and double backward are one
    pass over memory each: one, two, three tensors are read, one, one, two written.

    Raises: TypeError for an integer tensor, ValueError for another form.

    Source: Hendrycks & Gimpel 2016, "Gaussian Error Linear Units".
    """
    check_tensor("gelu", "x", x)
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gankernels.gelu: approximate must be 'none' or 'tanh', got {got(approximate)}.")
    return _op.gelu(x, approximate == "tanh")
