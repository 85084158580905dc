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
