"""Gradient penalties, forward and backward into the critic's weights, against autograd.grad(create_graph=True) in plain PyTorch.

The floor is the four passes that an exact penalty needs (see gankernels/ops/fast_double_backward.py), each by the stock kernel for
it and without autograd; convolutions with fewer products than stock's (csrc/cpu/winograd.h) go below it. With F one forward of the
critic, `passes` are the flops spent in units of F, linear layer and all, as of direct convolutions.
"""

import copy

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import gankernels as gk

from .harness import Workload, assert_accurate, case, rotated
from .networks import attention_critic, critic64, digits_critic, layer_norm_of_images, resnet_critic, toy_critic

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def ours_gp(critic, real, fake, eps):
    return gk.gradient_penalty(critic, real, fake, eps=eps)


def stock_gp(critic, real, fake, eps):
    eps = eps.view(-1, 1, 1, 1)
    x = eps * real + (1 - eps) * fake
    if not x.requires_grad:
        x.requires_grad_()
    (grads,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return 10 * (grads.flatten(1).norm(dim=1) - 1).square().mean()


def ours_r1(critic, real, fake, eps):
    return gk.r1_penalty(critic, real)


def stock_r1(critic, real, fake, eps):
    x = real.detach().requires_grad_()
    (grads,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return 5 * grads.square().flatten(1).sum(1).mean()


def four_native_passes(critic, x):
    """Forward, input gradient, tangent forward, weight gradient of a Sequential of convolutions, LeakyReLU, Flatten, Linear."""

    def convolution_backward(layer, g, x, mask):
        return torch.ops.aten.convolution_backward(
            g, x, layer.weight, None, layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups, mask
        )

    kept, adjoints = [], []
    with torch.no_grad():
        for layer in critic:
            kept.append(x)
            x = layer(x)
        g = torch.ones_like(x)
        for layer, x in zip(reversed(critic), reversed(kept)):
            adjoints.append(g)
            match layer:
                case nn.Conv2d():
                    g = convolution_backward(layer, g, x, [True, False, False])[0]
                case nn.LeakyReLU():
                    g = torch.ops.aten.leaky_relu_backward(g, x, layer.negative_slope, False)
                case nn.Linear():
                    g = g @ layer.weight
                case nn.Flatten():
                    g = g.view(x.shape)
        t = g
        for layer, x, g in zip(critic, kept, reversed(adjoints)):
            match layer:
                case nn.Conv2d():
                    convolution_backward(layer, g, t, [False, True, False])
                    t = nn.functional.conv2d(t, layer.weight, None, layer.stride, layer.padding, layer.dilation)
                case nn.LeakyReLU():
                    t = torch.ops.aten.leaky_relu_backward(t, x, layer.negative_slope, False)
                case nn.Linear():
                    g.t() @ t
                    t = t @ layer.weight.t()
                case nn.Flatten():
                    t = t.flatten(1)


def prepare(make_critic, shape, layout, device, ours, stock, goal=None, compiled=False, piecewise_linear=True):
    """All variants of one penalty on one critic; `compiled` adds whole compiled steps, backward inside, of which stock's has the same
    goal. A critic that is not piecewise linear has no floor, and is checked in float64, on two samples: behind a norm, rounding to
    float32 takes activations across their kinks, in stock's form and in ours, but not the same ones. Its compiled step, in float32, is
    therefore checked in the mean only."""
    critic = make_critic().to(device, memory_format=LAYOUTS[layout])
    parameters = list(critic.parameters())

    def images():
        return torch.randn(shape, device=device).to(memory_format=LAYOUTS[layout])

    inputs = rotated(lambda: (images(), images(), torch.rand(shape[0], device=device)), device)

    def step(penalty):
        def run(i):
            penalty(critic, *inputs[i % len(inputs)]).backward()

        return run

    def compiled_step(penalty):
        @torch.compile(fullgraph=True)
        def gradients(real, fake, eps):
            return torch.autograd.grad(penalty(critic, real, fake, eps), parameters, allow_unused=True)

        def run(i):
            real, fake, eps = inputs[i % len(inputs)]
            # stock's requires_grad_() of an intermediate does not compile before torch 2.12
            with torch._dynamo.config.patch(trace_autograd_ops=True):
                for parameter, grad in zip(parameters, gradients(real.detach().requires_grad_(), fake, eps)):
                    parameter.grad = grad

        return run

    def forget_gradients(i):
        for parameter in parameters:
            parameter.grad = None

    def results(run):
        run(0)
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        forget_gradients(0)
        return grads

    def check():
        # stock and we may take different kernels, only one of which multiplies in TF32
        rounding = 2**-10 if device == "cuda" and torch.backends.cudnn.allow_tf32 else None
        double, samples = copy.deepcopy(critic).double(), None if piecewise_linear else 2
        doubles = [t[:samples].double() for t in inputs[0]]
        value = stock(double, *doubles)
        exact = torch.autograd.grad(value, list(double.parameters()), allow_unused=True, materialize_grads=True)
        if not piecewise_linear:
            value = ours(double, *doubles)
            grads = torch.autograd.grad(value, list(double.parameters()), allow_unused=True, materialize_grads=True)
            assert_accurate(grads, exact, exact, "gradient in float64", 1e-13)
            if compiled:
                of_stock, of_ours = (results(variants[name]) for name in ("stock", "gankernels_compiled"))
                distances = [torch.dist(a, b) / b.norm() for a, b in zip(of_ours, of_stock) if b.any()]
                assert max(distances) < 0.02, f"gradient, gankernels_compiled: relative distance {max(distances):.1e}"
            return
        of_stock = results(variants["stock"])
        for name in variants:
            if name.startswith("gankernels"):
                assert_accurate(results(variants[name]), of_stock, exact, f"gradient, {name}", rounding)
        values = [[penalty(critic, *inputs[0]).detach()] for penalty in (ours, stock)]
        assert_accurate(*values, [value.detach()], "penalty", rounding)

    variants, goals = {"gankernels": step(ours), "stock": step(stock)}, {} if goal is None else {"stock": goal}
    if piecewise_linear:
        variants["floor"] = lambda i: four_native_passes(critic, inputs[i % len(inputs)][0])
    if compiled:
        goals |= {"stock_compiled": goal} if goal else {}
        variants |= {"gankernels_compiled": compiled_step(ours), "stock_compiled": compiled_step(stock)}
    return Workload(variants, check, forget_gradients, forward=lambda: critic(inputs[0][0]), goals=goals)


def stock_gp_by_math(critic, real, fake, eps):
    """Attention in its plain form: stock's fused one has no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return stock_gp(critic, real, fake, eps)


VARIANTS = ("gankernels", "stock", "floor")
COMPILED = ("gankernels_compiled", "stock_compiled")


def prepare_strided(device, layout, compiled=False):
    goal = 1.8 if device == "cuda" else {"nchw": 1.7, "channels_last": 2.0}[layout]
    return prepare(critic64, (32, 3, 64, 64), layout, device, ours_gp, stock_gp, goal, compiled)


def prepare_digits(device, compiled=False):
    return prepare(digits_critic, (64, 1, 8, 8), "nchw", device, ours_gp, stock_gp, compiled=compiled)


NORMS = {"layer_norm": layer_norm_of_images, "group_norm": lambda channels, size: nn.GroupNorm(1, channels)}


def prepare_resnet(device, norm, layout, compiled=False):
    """A norm bends: the double backward has two further passes, six in all."""
    critic = lambda: resnet_critic(NORMS[norm])  # noqa: E731
    return prepare(critic, (16, 3, 32, 32), layout, device, ours_gp, stock_gp, 1.5, compiled, piecewise_linear=False)


def prepare_attention(device, compiled=False):
    return prepare(
        attention_critic,
        (4, 3, 128, 128),
        "nchw",
        device,
        ours_gp,
        stock_gp_by_math,
        1.0,
        compiled,
        piecewise_linear=False,
    )


@case(*VARIANTS, layout=LAYOUTS)
def test_gradient_penalty(device, layout):
    return prepare_strided(device, layout)


@case(*VARIANTS, *COMPILED, tier="full", layout=LAYOUTS)
def test_gradient_penalty_compiled(device, layout):
    return prepare_strided(device, layout, compiled=True)


@case(*VARIANTS, layout=LAYOUTS)
def test_r1_penalty(device, layout):
    return prepare(critic64, (32, 3, 64, 64), layout, device, ours_r1, stock_r1)


@case(*VARIANTS)
def test_gradient_penalty_digits(device):
    return prepare_digits(device)


@case(*VARIANTS, *COMPILED, tier="full")
def test_gradient_penalty_digits_compiled(device):
    return prepare_digits(device, compiled=True)


@case(*VARIANTS, width=("16", "128", "512"))
def test_r1_penalty_toy(device, width):
    return prepare(lambda: toy_critic(int(width)), (256, 2), "nchw", device, ours_r1, stock_r1)


@case("gankernels", "stock", norm=("layer_norm",), layout=LAYOUTS)
def test_gradient_penalty_resnet(device, norm, layout):
    return prepare_resnet(device, norm, layout)


@case("gankernels", "stock", tier="full", norm=("group_norm",), layout=LAYOUTS)
def test_gradient_penalty_resnet_full(device, norm, layout):
    return prepare_resnet(device, norm, layout)


@case("gankernels", "stock", *COMPILED, tier="full", norm=("layer_norm",), layout=("nchw",))
def test_gradient_penalty_resnet_compiled(device, norm, layout):
    """One layout: it takes minutes to compile."""
    return prepare_resnet(device, norm, layout, compiled=True)


@case("gankernels", "stock")
def test_gradient_penalty_attention(device):
    return prepare_attention(device)


@case("gankernels", "stock", *COMPILED, tier="full")
def test_gradient_penalty_attention_compiled(device):
    return prepare_attention(device, compiled=True)
