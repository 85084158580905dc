"""x = eps * real + (1 - eps) * fake with one eps per sample: the points at which WGAN-GP penalises its critic.

The op and its transpose close under differentiation, so every order of derivative is one pass over memory:
    (d real, d fake) = (eps * g, (1 - eps) * g),    d g = eps * h_real + (1 - eps) * h_fake.
Who learns eps gets d eps = <g, real - fake>, sample by sample, in the same pass.
"""

from __future__ import annotations

import torch

from .._checks import check_batch, check_generator, check_like, check_tensor, got, shape
from .._registration import register
from .._triton import BLOCK, blocks_of, fake_like, in_layout_of, jit, sample_and_offsets, samples_first, tl

_op = torch.ops.gankernels


def reference(real: torch.Tensor, fake: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """eps * real + (1 - eps) * fake in plain PyTorch; eps has shape (N,)."""
    eps = eps.reshape(-1, *[1] * (real.dim() - 1))
    return (eps * real + (1 - eps) * fake).to(real.dtype)


# --- Triton kernels: one program per block of a sample ---


@jit
def interpolate_kernel(real_ptr, fake_ptr, eps_ptr, x_ptr, length, BLOCK: tl.constexpr):
    sample, within = sample_and_offsets(length, BLOCK)
    mask = within < length
    eps = tl.load(eps_ptr + sample)
    real = tl.load(real_ptr + sample * length + within, mask).to(eps.dtype)
    fake = tl.load(fake_ptr + sample * length + within, mask).to(eps.dtype)
    x = eps * real + (1 - eps) * fake
    tl.store(x_ptr + sample * length + within, x.to(x_ptr.dtype.element_ty), mask)


@jit
def interpolate_bwd_kernel(
    grad_ptr, eps_ptr, real_ptr, fake_ptr, real_grad_ptr, fake_grad_ptr, partial_ptr, length,
    OF_EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """OF_EPS: partial[program] = <grad, real - fake> over its elements."""
    sample, within = sample_and_offsets(length, BLOCK)
    mask = within < length
    at = sample * length + within
    eps = tl.load(eps_ptr + sample)
    grad = tl.load(grad_ptr + at, mask, other=0.0).to(eps.dtype)
    tl.store(real_grad_ptr + at, (eps * grad).to(real_grad_ptr.dtype.element_ty), mask)
    tl.store(fake_grad_ptr + at, ((1 - eps) * grad).to(fake_grad_ptr.dtype.element_ty), mask)
    if OF_EPS:
        real = tl.load(real_ptr + at, mask, other=0.0).to(eps.dtype)
        fake = tl.load(fake_ptr + at, mask, other=0.0).to(eps.dtype)
        tl.store(partial_ptr + tl.program_id(0), tl.sum(grad * (real - fake), axis=0))


# --- launch ---


def _interpolate_triton(real, fake, eps):
    real = samples_first(real)
    fake, eps = in_layout_of(real, fake), eps.contiguous()
    x = torch.empty_like(real)
    if x.numel():
        grid = (x.shape[0] * blocks_of(x),)
        interpolate_kernel[grid](real, fake, eps, x, x.numel() // x.shape[0], BLOCK)
    return x


def _interpolate_bwd_triton(grad, eps, real, fake):
    grad, eps, of_eps = samples_first(grad), eps.contiguous(), real is not None
    real, fake = (in_layout_of(grad, t) for t in (real, fake)) if of_eps else (grad, grad)
    real_grad, fake_grad = torch.empty_like(grad), torch.empty_like(grad)
    blocks = blocks_of(grad) if grad.numel() else 0
    partial = eps.new_empty(grad.shape[0] if of_eps else 0, blocks)
    if blocks:
        tensors = (grad, eps, real, fake, real_grad, fake_grad, partial)
        interpolate_bwd_kernel[(grad.shape[0] * blocks,)](*tensors, grad.numel() // grad.shape[0], of_eps, BLOCK)
    return real_grad, fake_grad, partial.sum(1)


# --- fakes; the derivatives are in csrc/autograd/interpolate.cpp ---


def _fake(real, fake, eps):
    return fake_like(samples_first(real))


def _bwd_fake(grad, eps, real, fake):
    grad = samples_first(grad)
    return fake_like(grad), fake_like(grad), eps.new_empty(0 if real is None else grad.shape[0])


register("interpolate", fake=_fake, cpp_autograd=True, cuda=_interpolate_triton)
register("interpolate_bwd", fake=_bwd_fake, cpp_autograd=True, cuda=_interpolate_bwd_triton)


def interpolate(
    real: torch.Tensor,
    fake: torch.Tensor,
    eps: torch.Tensor | float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """x_i = eps_i * real_i + (1 - eps_i) * fake_i, with one eps_i ~ U(0, 1) per sample, in one pass over memory.

    Args:
        real, fake: (N, ...), the same shape, dtype and device.
        eps: (N,) or (N, 1, ..., 1) to use instead of a draw, or one number in [0, 1] for all samples.
        generator: the random number generator of the draw.

    Returns: (N, ...) in real's dtype and memory format. Differentiable to any order in real, fake and eps.

    Raises: TypeError or ValueError when real and fake do not match, the batch is empty, or eps does not fit.

    Source: Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", algorithm 1.
    """
    check_batch("interpolate", "real", real)
    check_like("interpolate", "fake", fake, "real", real)
    return between("interpolate", real, fake, eps, generator)


def between(op, real, fake, eps, generator):
    """`interpolate` of a checked pair, for `op`."""
    check_generator(op, generator)
    n = real.shape[0]
    dtype = torch.promote_types(real.dtype, torch.float32)  # a bfloat16 eps would take 256 values
    if eps is None:
        eps = torch.rand(n, dtype=dtype, device=real.device, generator=generator)
    elif isinstance(eps, torch.Tensor):
        check_tensor(op, "eps", eps)
        if eps.shape[:1] != (n,) or eps.numel() != n:
            raise ValueError(f"gankernels.{op}: eps must have one value per sample, shape ({n},), got {shape(eps)}.")
        if eps.device != real.device:
            raise ValueError(f"gankernels.{op}: eps must be on the device of real, {real.device}, got {eps.device}.")
        eps = eps.reshape(n).to(dtype)
    else:
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps <= 1:
            raise ValueError(f"gankernels.{op}: eps must be a tensor or a number in [0, 1], got {got(eps)}.")
        eps = torch.full((n,), float(eps), dtype=dtype, device=real.device)
    return _op.interpolate(real, fake, eps)
