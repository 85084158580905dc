"""W / sigma(W), sigma = u^T W v: spectral normalisation of all layers of a network, one call for the group.

A weight is a matrix whose rows are its dimension `dim` and whose columns are the others in their order; u and v are
kept near its first singular vectors by power iteration,
    u <- W v / max(|W v|, eps),    v <- W^T u / max(|W^T u|, eps),
and are constants to the derivatives:
    first derivative   given G at W / sigma:    dW = G / sigma - <G, W> / sigma^2 u v^T
    second derivative  given H at dW, q = u^T H v:
                       dG = H / sigma - q / sigma^2 W
                       dW = -q / sigma^2 G + (2 <G, W> q / sigma^3 - <H, G> / sigma^2) u v^T
u, v of all layers travel as one vector `uv` and sigma as another, in float32 (float64 for float64 weights): the buffers
that the next forward overwrites are not what a backward reads.
"""

from __future__ import annotations

import torch

from .._registration import register
from .._triton import fake_like, is_dense

_op = torch.ops.gankernels


def reference(
    weight: torch.Tensor, u: torch.Tensor, v: torch.Tensor, dim: int = 0, iterations: int = 1, eps: float = 1e-12
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(W / sigma, u, v) of one layer in plain PyTorch, u and v after the iterations; nothing is modified."""
    matrix = weight.movedim(dim, 0).flatten(1)
    with torch.no_grad():
        for _ in range(iterations):
            u = torch.nn.functional.normalize(matrix @ v, dim=0, eps=eps)
            v = torch.nn.functional.normalize(matrix.T @ u, dim=0, eps=eps)
    return weight / (u @ (matrix @ v)), u, v


# --- fakes; the derivatives are nodes of csrc/autograd/spectral_norm.cpp ---


def _like(weights):
    return [fake_like(w if is_dense(w) else w.contiguous()) for w in weights]


def _power_iteration_fake(weights, u, v, dims, iterations, eps):
    dtype = torch.promote_types(weights[0].dtype, torch.float32)
    length = sum(t.shape[0] for t in (*u, *v))
    return weights[0].new_empty(length, dtype=dtype), weights[0].new_empty(len(weights), dtype=dtype)


def _fake(weights, uv, sigma, dims):
    return _like(weights)


def _bwd_fake(grads, weights, uv, sigma, dims, layers):
    return _like([weights[i] for i in layers])


def _bwd_bwd_fake(grad_grads, grads, weights, uv, sigma, dims, layers):
    chosen = [weights[i] for i in layers]
    return _like(chosen), _like(chosen)


register("spectral_norm_power_iteration_", fake=_power_iteration_fake, mutates=True)
register("spectral_normalize", fake=_fake, cpp_autograd=True)
register("spectral_normalize_bwd", fake=_bwd_fake, cpp_autograd=True)
register("spectral_normalize_bwd_bwd", fake=_bwd_bwd_fake)


def power_iteration_(weights, u, v, dims, iterations, eps):
    """Iterates u and v in place; with 0 iterations sigma is that of the vectors as they are. Returns (uv, sigma)."""
    with torch.no_grad():
        return _op.spectral_norm_power_iteration_(weights, u, v, dims, iterations, eps)


def normalize(weights, u, v, dims, iterations, eps):
    """W / sigma of every layer of the group: weights of one dtype on one device."""
    uv, sigma = power_iteration_(weights, u, v, dims, iterations, eps)
    return _op.spectral_normalize(weights, uv, sigma, dims)
