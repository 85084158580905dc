"""Ops that pass once over images, against their plain PyTorch form.

On a CPU an output beyond 32 MB comes from the system page by page, at every call, and that outweighs the arithmetic: `fresh_pages`.
`reused_pages` lets the allocator keep what was freed. A GPU's caching allocator always does.
"""

import ctypes

import pytest
import torch

import gankernels as gk

from .harness import Workload, assert_accurate, case, copy_of, nbytes, rotated

SHAPE = (64, 3, 256, 256)
PAGES = ("fresh_pages", "reused_pages")
VARIANTS = ("gankernels", "stock", "floor")

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_pages(keep: bool):
    """Whether glibc's malloc keeps large blocks that were freed, instead of returning them to the system."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0 if keep else 65536)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1 if keep else 128 << 10)


def workload(variants, check, size, device, pages, output):
    """`output`: bytes of it that are allocated anew."""
    fresh = pages == "fresh_pages"
    variants["floor"] = copy_of(size, device, output if fresh else 0)
    if fresh and device == "cuda":
        pytest.skip("a GPU's allocator reuses its memory")

    def before():
        check()
        if device == "cpu":
            keep_pages(not fresh)

    goals = {"stock": 1.0} | ({"floor": 0.85} if device == "cuda" else {})
    return Workload(variants, before, bytes=size, goals=goals)


@case(*VARIANTS, pages=PAGES)
def test_interpolate(device, pages):
    def make():
        return torch.randn(SHAPE, device=device), torch.randn(SHAPE, device=device), torch.rand(SHAPE[0], device=device)

    inputs = rotated(make, device)

    def stock(real, fake, eps):
        eps = eps.view(-1, 1, 1, 1)
        return eps * real + (1 - eps) * fake

    def check():
        exact = gk.reference.interpolate(*(t.double() for t in inputs[0]))
        assert_accurate([gk.interpolate(*inputs[0])], [stock(*inputs[0])], [exact], "interpolate")

    variants = {
        "gankernels": lambda i: gk.interpolate(*inputs[i % len(inputs)]),
        "stock": lambda i: stock(*inputs[i % len(inputs)]),
    }
    size = nbytes(inputs[0][0])
    return workload(variants, check, 3 * size, device, pages, size)


def stock_penalty(grads):
    return (grads.flatten(1).norm(dim=1) - 1).square().mean()


def penalty_check(grads):
    def gradient(penalty, leaf):
        value = penalty(leaf)
        return [value.detach(), *torch.autograd.grad(value, leaf)]

    def check():
        ours = gradient(lambda g: gk.grad_norm_penalty(g)[0], grads.detach().requires_grad_())
        stock = gradient(stock_penalty, grads.detach().requires_grad_())
        exact = gradient(stock_penalty, grads.detach().double().requires_grad_())
        assert_accurate(ours, stock, exact, "grad_norm_penalty")

    return check


@case(*VARIANTS)
def test_grad_norm_penalty_forward(device):
    inputs = rotated(lambda: torch.randn(SHAPE, device=device), device)
    variants = {
        "gankernels": lambda i: gk.grad_norm_penalty(inputs[i % len(inputs)]),
        "stock": lambda i: stock_penalty(inputs[i % len(inputs)]),
    }
    return workload(variants, penalty_check(inputs[0]), nbytes(inputs[0]), device, "reused_pages", 0)


@case(*VARIANTS, pages=PAGES)
def test_grad_norm_penalty(device, pages):
    """Forward and backward."""
    inputs = rotated(lambda: torch.randn(SHAPE, device=device, requires_grad=True), device)

    def gradient(penalty):
        def run(i):
            leaf = inputs[i % len(inputs)]
            return torch.autograd.grad(penalty(leaf), leaf)

        return run

    variants = {"gankernels": gradient(lambda g: gk.grad_norm_penalty(g)[0]), "stock": gradient(stock_penalty)}
    size = nbytes(inputs[0])
    return workload(variants, penalty_check(inputs[0]), 3 * size, device, pages, size)


FEATURES = (16, 64, 64, 64)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def stock_pixel_norm(x):
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def features(device, layout):
    """x and the gradient that arrives at its norm."""

    def make():
        x, grad = torch.randn(2, *FEATURES, device=device)
        memory_format = FORMATS[layout]
        return x.contiguous(memory_format=memory_format).requires_grad_(), grad.contiguous(memory_format=memory_format)

    return rotated(make, device)


def pixel_norm_gradient(norm, x, grad):
    y = norm(x)
    return [y, *torch.autograd.grad(y, x, grad)]


def pixel_norm_check(x, grad):
    def check():
        exact = pixel_norm_gradient(stock_pixel_norm, x.detach().double().requires_grad_(), grad.double())
        ours, stock = (pixel_norm_gradient(norm, x, grad) for norm in (gk.pixel_norm, stock_pixel_norm))
        assert_accurate(ours, stock, exact, "pixel_norm")

    return check


@case(*VARIANTS, layout=FORMATS)
def test_pixel_norm_forward(device, layout):
    inputs = features(device, layout)

    def forward(norm):
        def run(i):
            with torch.no_grad():
                return norm(inputs[i % len(inputs)][0])

        return run

    variants = {"gankernels": forward(gk.pixel_norm), "stock": forward(stock_pixel_norm)}
    size = 2 * nbytes(inputs[0][0])
    return workload(variants, pixel_norm_check(*inputs[0]), size, device, "reused_pages", 0)


@case(*VARIANTS, layout=FORMATS)
def test_pixel_norm(device, layout):
    """Forward and backward."""
    inputs = features(device, layout)

    def gradient(norm):
        return lambda i: pixel_norm_gradient(norm, *inputs[i % len(inputs)])

    variants = {"gankernels": gradient(gk.pixel_norm), "stock": gradient(stock_pixel_norm)}
    size = 5 * nbytes(inputs[0][0])
    return workload(variants, pixel_norm_check(*inputs[0]), size, device, "reused_pages", 0)
