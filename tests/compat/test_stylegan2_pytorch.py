"""The shims of rosinality's `op` and of mmcv.ops, driven as the code bases that vendor them do."""

import importlib
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gankernels as gk
from gankernels.compat import lucidrains, mmcv, stylegan2_pytorch

X = torch.linspace(-2, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


@pytest.mark.parametrize("name", ("op", "models.stylegan2.op"))
def test_imports(name):
    stylegan2_pytorch.install(name)
    stylegan2_pytorch.install(name)
    op = importlib.import_module(name)
    fused_act, upfirdn2d, gradfix = (
        importlib.import_module(f"{name}.{submodule}") for submodule in ("fused_act", "upfirdn2d", "conv2d_gradfix")
    )
    assert op.FusedLeakyReLU is fused_act.FusedLeakyReLU and op.fused_leaky_relu is fused_act.fused_leaky_relu
    assert op.upfirdn2d is upfirdn2d.upfirdn2d  # the function, though there is a module of that name
    assert gradfix.enabled and op.conv2d_gradfix is gradfix
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{name}.else")


def test_imports_of_the_default_name():
    stylegan2_pytorch.install()
    from op import FusedLeakyReLU, conv2d_gradfix, fused_leaky_relu, upfirdn2d

    kernel = torch.outer(k := torch.tensor([1.0, 3, 3, 1]) / 8, k)
    y = upfirdn2d(X, kernel, up=2, down=1, pad=(2, 1))  # before and after, on both axes
    torch.testing.assert_close(y, gk.reference.upfirdn2d(X, kernel, 2, 1, [2, 1, 2, 1]))
    y = upfirdn2d(X, kernel, 1, 2, (1, 0, 2, 1))
    torch.testing.assert_close(y, gk.reference.upfirdn2d(X, kernel, 1, 2, [1, 0, 2, 1]))
    bias = torch.tensor([0.5, -0.5, 1])
    want = 2**0.5 * F.leaky_relu(X + bias.view(1, -1, 1, 1), 0.2)
    torch.testing.assert_close(fused_leaky_relu(X, bias), want)
    torch.testing.assert_close(fused_leaky_relu(X[..., 0, 0], bias, 0.1, 1), F.leaky_relu(X[..., 0, 0] + bias, 0.1))
    torch.testing.assert_close(fused_leaky_relu(X), 2**0.5 * F.leaky_relu(X, 0.2))
    layer = FusedLeakyReLU(3)
    layer.load_state_dict({"bias": bias})
    torch.testing.assert_close(layer(X), want)
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(X), want)
    w = torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(conv2d_gradfix.conv2d(X, w, padding=1), F.conv2d(X, w, padding=1))
    assert conv2d_gradfix.enabled


def test_both_generations_of_fused_leaky_relu():
    new, old, plain = (
        stylegan2_pytorch.FusedLeakyReLU(*arguments) for arguments in ((3, False, 0.1, 1.5), (3, 0.1, 1.5), (3,))
    )
    assert (new.bias, new.negative_slope, new.scale) == (None, 0.1, 1.5)
    assert (old.bias.shape, old.negative_slope, old.scale) == ((3,), 0.1, 1.5)
    assert (plain.bias.shape, plain.negative_slope, plain.scale) == ((3,), 0.2, 2**0.5)
    by_name = stylegan2_pytorch.FusedLeakyReLU(3, negative_slope=0.1, scale=1.5)
    for layer in (old, by_name):
        torch.testing.assert_close(layer(X), 1.5 * F.leaky_relu(X, 0.1))


def per_sample(x, w, padding):
    """Every sample convolved with its own weights (N, O, I, k, k), as a group."""
    n, o = w.shape[:2]
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), w.flatten(0, 1), padding=padding, groups=n)
    return y.reshape(n, o, *y.shape[2:])


def composed(layer, x, style, upsample, downsample):
    """The modulated convolution as that code base composes it, with weights per sample."""
    n, (_, o, i, k, _) = x.shape[0], layer.weight.shape
    s = F.linear(style, layer.modulation.weight / math.sqrt(style.shape[1]), layer.modulation.bias)
    w = layer.weight / math.sqrt(i * k * k) * s.view(n, 1, i, 1, 1)
    w = w * torch.rsqrt(w.square().sum([2, 3, 4], keepdim=True) + 1e-8)
    up = gk.reference.upfirdn2d
    if upsample:
        w = w.transpose(1, 2).reshape(n * i, o, k, k)
        y = F.conv_transpose2d(x.reshape(1, n * i, *x.shape[2:]), w, stride=2, groups=n)
        p = layer.blur.kernel.shape[0] - 2 - (k - 1)
        return up(y.reshape(n, o, *y.shape[2:]), layer.blur.kernel, padding=[(p + 1) // 2 + 1, p // 2 + 1] * 2)
    if downsample:
        p = layer.blur.kernel.shape[0] - 2 + (k - 1)
        x = up(x, layer.blur.kernel, padding=[(p + 1) // 2, p // 2] * 2)
    y = per_sample(x, w, 0 if downsample else k // 2)
    return y[..., ::2, ::2] if downsample else y


@pytest.mark.parametrize(("upsample", "downsample"), ((False, False), (True, False), (False, True)))
def test_modulated_convolution_has_the_public_state_and_values(upsample, downsample):
    layer = stylegan2_pytorch.ModulatedConv2d(3, 5, 3, 7, upsample=upsample, downsample=downsample, fused=True)
    expected = {"weight": (1, 5, 3, 3, 3), "modulation.weight": (3, 7), "modulation.bias": (3,)}
    if upsample or downsample:
        expected["blur.kernel"] = (4, 4)
        assert math.isclose(layer.blur.kernel.sum().item(), 4 if upsample else 1, rel_tol=1e-6)
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == expected
    style = torch.randn(2, 7)
    torch.testing.assert_close(layer(X, style), composed(layer, X, style, upsample, downsample), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("demod", (True, False))
def test_lucidrains_layer_counts_styles_from_one(demod):
    layer = lucidrains.Conv2DMod(3, 5, 3, demod=demod)
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == {"weight": (5, 3, 3, 3)}
    y = torch.randn(2, 3)
    w = layer.weight[None] * (y[:, None, :, None, None] + 1)
    if demod:
        w = w * torch.rsqrt(w.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    torch.testing.assert_close(layer(X, y), per_sample(X, w, 1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="stride, dilation and eps must be 1, 1 and 1e-08, got 2, 1 and 1e-08"):
        lucidrains.Conv2DMod(3, 5, 3, stride=2)


def test_mmcv():
    mmcv.install()
    from mmcv.ops import (
        FusedBiasLeakyReLU,
        bias_act,
        conv2d,
        conv_transpose2d,
        filtered_lrelu,
        fused_bias_leakyrelu,
        upfirdn2d,
    )

    b = torch.randn(3)
    f = gk.setup_filter([1, 3, 3, 1])
    for custom in (False, True):
        y = bias_act(X, bias=b, act="lrelu", gain=2, clamp=1, use_custom_op=custom)
        torch.testing.assert_close(y, gk.bias_act(X, b, act="lrelu", gain=2, clamp=1))
        y = upfirdn2d(input=X, filter=f, up=2, padding=[2, 1, 2, 1], gain=4, use_custom_op=custom)
        torch.testing.assert_close(y, gk.upfirdn2d(X, f, 2, 1, [2, 1, 2, 1], gain=4))
        y = filtered_lrelu(X, filter_up=f, filter_down=f, bias=b, up=2, down=2, padding=3, use_custom_op=custom)
        torch.testing.assert_close(y, gk.filtered_lrelu(X, f, f, b, 2, 2, 3))
    layer = FusedBiasLeakyReLU(num_channels=3, negative_slope=0.1)
    assert isinstance(layer, nn.Module) and layer.state_dict().keys() == {"bias"}
    torch.testing.assert_close(layer(X), fused_bias_leakyrelu(X, torch.zeros(3), 0.1))
    w = torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(conv2d(X, w, stride=2), F.conv2d(X, w, stride=2))
    torch.testing.assert_close(conv_transpose2d(X, w[:3], padding=1), F.conv_transpose2d(X, w[:3], padding=1))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace")
def test_layers_traced_and_without_numbers():
    layer, latents = stylegan2_pytorch.ModulatedConv2d(3, 4, 3, 5, upsample=True), torch.randn(2, 5)
    assert torch.equal(torch.jit.trace(layer, (X, latents))(-X, latents), layer(-X, latents))
    with torch.device("meta"):
        shape = stylegan2_pytorch.ModulatedConv2d(3, 4, 3, 5, upsample=True)(X.to("meta"), latents.to("meta")).shape
    assert shape == (2, 4, 16, 16)
