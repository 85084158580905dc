"""What the Triton kernels' launchers share. Triton is only needed where there is a GPU, so importing this never fails."""

from __future__ import annotations

import math

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # kernels are then never launched; the decorator leaves them as plain functions
    triton = tl = None

# One block per program and chunk; 4 warps x 32 lanes x 8 float32 (two 128-bit loads each) keep enough bytes in flight on every
# card from sm_80 on, and a chunk divides evenly into the layouts of real feature maps.
BLOCK = 1024


def jit(kernel):
    return triton.jit(kernel) if triton is not None else kernel


@jit
def sample_and_offsets(length, BLOCK: tl.constexpr):
    """Which sample, and which of its elements, this program has; grid (samples * cdiv(length, BLOCK),), which has no limit at 65535."""
    blocks = tl.cdiv(length, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    return program // blocks, program % blocks * BLOCK + tl.arange(0, BLOCK)


def blocks_of(t: torch.Tensor) -> int:
    """Blocks per sample."""
    return triton.cdiv(t.numel() // t.shape[0], BLOCK)


def samples_first(t: torch.Tensor) -> torch.Tensor:
    """t, or a contiguous copy when a sample (index of dimension 0) is not one dense block of memory."""
    if t.numel() == 0 or (t.shape[0] == 1 or t.stride(0) == t.numel() // t.shape[0]) and is_dense(t):
        return t
    return t.contiguous()


def planes_or_rows(x):
    """x, or a contiguous copy when its samples are not dense blocks of planes or of rows."""
    if x.numel() == 0:
        return x.new_empty(x.shape)  # its strides mean nothing
    x = samples_first(x)
    if x.shape[1] == 1 or x.stride(1) in (1, math.prod(x.shape[2:])):
        return x
    return x.contiguous()


def is_dense(t: torch.Tensor) -> bool:
    """Every element once, without gaps, in some order of the dimensions."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def fake_like(t: torch.Tensor) -> torch.Tensor:
    """What torch.empty_like makes of a real tensor: a fake one without elements would not keep the strides."""
    return torch.empty_like(t) if t.numel() else t.new_empty_strided(t.shape, t.stride())


def in_layout_of(like: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The elements of t in the memory order of `like`, which is dense and has its shape."""
    return t if t.stride() == like.stride() else torch.empty_like(like).copy_(t)
