"""Layers of a StyleGAN2 generator, forward and backward: modulated convolution, noise, bias, leaky ReLU, gain and clamp.

Against the two forms that public code has: `stock_grouped`, weights per sample and a convolution of as many groups, and
`stock_scaled`, the same sum as scale, convolve, scale. The floor is the bare convolution with weights that all samples share; of an
upsampling layer, with its transposed convolution, that one and its filter.
"""

import math

import torch
import torch.nn.functional as F

import gankernels as gk

from . import stock
from .harness import FLOOR, OURS, Workload, assert_accurate, case, keep_pages, rotated

# name: batch, channels in and out, side of the image that comes in, up
LAYERS = {
    "512_8": (8, 512, 512, 8, 1),
    "512_16": (4, 512, 512, 16, 1),
    "512_32": (2, 512, 512, 32, 1),
    "256_64": (2, 256, 256, 64, 1),
    "128_128": (2, 128, 128, 128, 1),
    "64_256": (1, 64, 64, 256, 1),
    "up_512_32": (4, 512, 512, 16, 2),
    "up_128_128": (2, 256, 128, 64, 2),
}


def layer_of(modulated_conv2d):
    def layer(x, weight, styles, noise, bias, up, f):
        return modulated_conv2d(
            x, weight, styles, noise=noise, bias=bias, act="lrelu", clamp=256.0, up=up, padding=1, resample_filter=f, flip_weight=up == 1
        )  # fmt: skip

    return layer


def bare(x, weight, styles, noise, bias, up, f):
    if up == 1:
        return F.conv2d(x, weight.to(x.dtype), padding=1)
    return gk.conv2d_resample(x, weight, f, up, padding=1, flip_weight=False)


def prepare(device, layer, layout, dtype):
    n, i, o, side, up = LAYERS[layer]
    f = gk.setup_filter([1, 3, 3, 1], device=device)
    out = torch.empty(n, o, up * side, up * side, device=device, dtype=dtype)
    memory_format = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}[layout]

    def make():
        x = torch.randn(n, i, side, side, device=device, dtype=dtype).to(memory_format=memory_format)
        weight = torch.randn(o, i, 3, 3, device=device) / math.sqrt(9 * i)
        styles, bias = torch.randn(n, i, device=device) + 1, torch.randn(o, device=device)
        noise = 0.1 * torch.randn(n, 1, *out.shape[2:], device=device)
        grad = torch.randn_like(out).to(memory_format=memory_format)
        return [t.requires_grad_() for t in (x, weight, styles, noise, bias)], grad

    inputs = rotated(make, device)

    def differentiated(form):
        def call(args, grad):
            y = form(*args, up, f.to(torch.promote_types(args[0].dtype, torch.float32)))
            leaves = args[:2] if form is bare else args
            return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

        return call

    scaled = layer_of(stock.modulated_conv2d)
    forms = {
        OURS: layer_of(gk.modulated_conv2d),
        "stock_grouped": layer_of(stock.grouped_modulated_conv2d),
        "stock_scaled": scaled,
        "stock_scaled_compiled": torch.compile(scaled, dynamic=False),
        FLOOR: bare,
    }
    calls = {name: differentiated(form) for name, form in forms.items()}

    def check():
        args, grad = inputs[0]
        wide = [t.detach().double().requires_grad_() for t in args]
        if dtype == torch.float32:
            # rounding takes activations across their kink, other ones in each form: there no gradient arrives
            with torch.no_grad():
                grad = grad * (scaled(*wide, up, f.double()).abs() > 1e-4)
        exact = calls["stock_scaled"](wide, grad.double())
        assert_accurate(calls[OURS](args, grad), calls["stock_scaled"](args, grad), exact, layer)
        if device == "cpu":
            keep_pages(True)

    def rotating(call):
        return lambda i: call(*inputs[i % len(inputs)])

    goals = {FLOOR: 1 / 1.15, "stock_grouped": 1.5, "stock_scaled": 1.0, "stock_scaled_compiled": 1.0}
    return Workload({name: rotating(call) for name, call in calls.items()}, check, goals=goals)


EAGER = (OURS, "stock_grouped", "stock_scaled", FLOOR)


@case(*EAGER, layer=("512_8", "512_16", "256_64", "128_128", "up_128_128"))
def test_modulated_conv2d(device, layer):
    return prepare(device, layer, "nchw", torch.float32)


@case(*EAGER, "stock_scaled_compiled", tier="full", layer=LAYERS)
def test_modulated_conv2d_compiled_full(device, layer):
    return prepare(device, layer, "nchw", torch.float32)


@case(*EAGER, tier="full", layer=LAYERS, layout=("nchw", "channels_last"), dtype=("float32", "bfloat16"))
def test_modulated_conv2d_full(device, layer, layout, dtype):
    return prepare(device, layer, layout, getattr(torch, dtype))
