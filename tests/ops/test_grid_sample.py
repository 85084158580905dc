"""grid_sample and fma: ops over stock kernels, against their references and stock, to the second order and beyond."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import gankernels as gk

MODES = list(itertools.product(("zeros", "border", "reflection"), (False, True)))
each_mode = pytest.mark.parametrize(("padding_mode", "align_corners"), MODES)


def inputs(dtype=torch.float64, device="cpu"):
    """Points inside, at the border and, by up to a whole image, outside."""
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    grid = torch.randn(2, 3, 4, 2, dtype=torch.float64) * 1.2
    return x.to(device, dtype).requires_grad_(), grid.to(device, dtype).requires_grad_()


def derivatives(op, x, grid):
    """The value, its first derivatives, and the derivatives of a function of both of those in everything."""
    y = op(x, grid)
    g = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape).requires_grad_()
    first = torch.autograd.grad(y, (x, grid), g, create_graph=True)
    second = torch.autograd.grad(sum(f.square().sum() for f in first), (x, grid, g), create_graph=True)
    third = torch.autograd.grad(sum(s.square().sum() for s in second), (x, grid, g))
    return [y, *first, *second, *third]


@each_mode
def test_values_and_derivatives_to_third_order_are_those_of_the_reference(padding_mode, align_corners, device):
    def op(x, grid):
        return gk.grid_sample(x, grid, padding_mode, align_corners)

    x, grid = inputs(device=device)
    reference = derivatives(lambda x, grid: gk.reference.grid_sample(x, grid, padding_mode, align_corners), x, grid)
    for ours, theirs in zip(derivatives(op, x, grid), reference, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()
    stock = F.grid_sample(x, grid, "bilinear", padding_mode, align_corners)
    assert torch.equal(op(x, grid), stock)
    assert gradcheck(op, (x, grid))
    assert gradgradcheck(op, (x, grid))


def test_only_what_a_backward_asks_for_is_computed():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func._overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    x, grid = inputs()
    grid = grid.detach()  # augmentations: only the images have a gradient
    (gx,) = torch.autograd.grad(gk.grid_sample(x, grid).square().sum(), x, create_graph=True)
    with Names() as seen:
        gx.square().sum().backward()
    assert "gather" not in seen.names and "scatter_add" not in seen.names
    assert seen.names.count("grid_sampler_2d") == 1


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_low_precision_images_are_sampled_in_float32(dtype, device):
    x, grid = inputs(torch.float32, device)
    low = x.detach().to(dtype).requires_grad_()
    exact = gk.reference.grid_sample(low.detach().double(), grid.double())
    y = gk.grid_sample(low, grid)
    assert y.dtype == dtype
    assert (y.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()
    y.sum().backward()
    assert low.grad.dtype == dtype


def test_compiled_equals_eager(device):
    def step(x, grid):
        (gx,) = torch.autograd.grad(gk.grid_sample(x, grid).square().sum(), x, create_graph=True)
        return gx.square().sum()

    x, grid = inputs(device=device)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(x, grid), (x, grid))
    for c, e in zip(got, torch.autograd.grad(step(x, grid), (x, grid))):
        torch.testing.assert_close(c, e)


def test_fma_broadcasts_and_differentiates(device):
    a, b, c = (torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
               for shape in ((2, 3, 4), (3, 1), (2, 1, 1)))  # fmt: skip
    torch.testing.assert_close(gk.fma(a, b, c), gk.reference.fma(a, b, c))
    assert gradcheck(gk.fma, (a, b, c)) and gradgradcheck(gk.fma, (a, b, c))


X, GRID = torch.ones(2, 3, 4, 4), torch.zeros(2, 5, 5, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gk.grid_sample(X.long(), GRID), "x must be float64, .* got int64"),
        (lambda: gk.grid_sample(X[0], GRID), r"x must have shape \(N, C, H, W\) .* got \(3, 4, 4\)"),
        (lambda: gk.grid_sample(X[..., :0], GRID), r"no empty samples, got \(2, 3, 4, 0\)"),
        (
            lambda: gk.grid_sample(X, GRID[:1]),
            r"grid must have shape \(N, H_out, W_out, 2\) with N = 2, got \(1, 5, 5, 2\)",
        ),
        (lambda: gk.grid_sample(X, GRID.to("meta")), "grid must be on the device of x, cpu, got meta"),
        (lambda: gk.grid_sample(X, GRID, "wrap"), "padding_mode must be one of zeros, border, reflection, got 'wrap'"),
        (lambda: gk.fma(X, X, 1.0), "c must be a tensor, got float"),
        (lambda: gk.fma(X, GRID, X), r"shapes that broadcast, got \(2, 3, 4, 4\), \(2, 5, 5, 2\) and \(2, 3, 4, 4\)"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        call()
    assert str(error.value).startswith("gankernels.") and "\n" not in str(error.value)
