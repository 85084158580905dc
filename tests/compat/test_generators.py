"""Two small GANs, one written the StyleGAN2 way and one the StyleGAN3 way, against the module names of the shims: images, R1 and
path length are those of the references, in value and gradient."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gankernels as gk
from gankernels.compat import stylegan2_pytorch, stylegan3

STYLES, CHANNELS = 6, 8
OPS = ("bias_act", "conv2d_resample", "filtered_lrelu", "fma", "grid_sample", "upfirdn2d")


# --- the StyleGAN2 way: modules with their own kernels and weights per sample ---


def stylegan2_way():
    from op import FusedLeakyReLU, conv2d_gradfix, fused_leaky_relu, upfirdn2d

    def make_kernel(taps):
        k = torch.tensor(taps, dtype=torch.float32)
        k = k[None, :] * k[:, None]
        return k / k.sum()

    class EqualLinear(nn.Module):
        def __init__(self, in_dim, out_dim, bias_init=0.0, activation=None):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(out_dim, in_dim))
            self.bias = nn.Parameter(torch.full((out_dim,), bias_init))
            self.activation = activation

        def forward(self, x):
            w = self.weight / math.sqrt(self.weight.shape[1])
            if self.activation:
                return fused_leaky_relu(F.linear(x, w), self.bias)
            return F.linear(x, w, self.bias)

    class Blur(nn.Module):
        def __init__(self, pad, factor=1):
            super().__init__()
            self.register_buffer("kernel", make_kernel([1, 3, 3, 1]) * factor**2)
            self.pad = pad

        def forward(self, x):
            return upfirdn2d(x, self.kernel, pad=self.pad)

    class ModulatedConv2d(nn.Module):
        def __init__(self, in_channel, out_channel, kernel_size, demodulate=True, upsample=False):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1, out_channel, in_channel, kernel_size, kernel_size))
            self.modulation = EqualLinear(STYLES, in_channel, bias_init=1.0)
            self.demodulate, self.upsample = demodulate, upsample
            self.blur = Blur((1, 1), factor=2) if upsample else None

        def forward(self, x, style):
            n, i, h, w = x.shape
            _, o, _, k, _ = self.weight.shape
            weight = self.weight / math.sqrt(i * k**2) * self.modulation(style).view(n, 1, i, 1, 1)
            if self.demodulate:
                weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(n, o, 1, 1, 1)
            x = x.reshape(1, n * i, h, w)
            if self.upsample:
                weight = weight.transpose(1, 2).reshape(n * i, o, k, k)
                y = conv2d_gradfix.conv_transpose2d(x, weight, padding=0, stride=2, groups=n)
                return self.blur(y.view(n, o, *y.shape[2:]))
            y = conv2d_gradfix.conv2d(x, weight.view(n * o, i, k, k), padding=k // 2, groups=n)
            return y.view(n, o, *y.shape[2:])

    class StyledConv(nn.Module):
        def __init__(self, upsample=False):
            super().__init__()
            self.conv = ModulatedConv2d(CHANNELS, CHANNELS, 3, upsample=upsample)
            self.register_buffer("noise", torch.randn(1, 1, *(2 * [8 if upsample else 4])) * 0.1)
            self.activate = FusedLeakyReLU(CHANNELS)

        def forward(self, x, style):
            return self.activate(self.conv(x, style) + self.noise)

    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.mapping = EqualLinear(STYLES, STYLES, activation="fused_lrelu")
            self.const = nn.Parameter(torch.randn(1, CHANNELS, 4, 4))
            self.conv1, self.conv2 = StyledConv(), StyledConv(upsample=True)
            self.to_rgb1, self.to_rgb2 = (ModulatedConv2d(CHANNELS, 3, 1, demodulate=False) for _ in range(2))
            self.register_buffer("kernel", make_kernel([1, 3, 3, 1]) * 4)

        def forward(self, z):
            w = self.mapping(z)
            x = self.conv1(self.const.repeat(len(z), 1, 1, 1), w)
            skip = upfirdn2d(self.to_rgb1(x, w), self.kernel, up=2, down=1, pad=(2, 1))
            return self.to_rgb2(self.conv2(x, w), w) + skip, w

    class Discriminator(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight1 = nn.Parameter(torch.randn(CHANNELS, 3, 1, 1) / 3**0.5)
            self.weight2 = nn.Parameter(torch.randn(CHANNELS, CHANNELS, 3, 3) / (9 * CHANNELS) ** 0.5)
            self.activate1, self.activate2 = FusedLeakyReLU(CHANNELS), FusedLeakyReLU(CHANNELS)
            self.blur = Blur((2, 2))
            self.out = nn.Sequential(
                EqualLinear(CHANNELS * 16, STYLES, activation="fused_lrelu"), EqualLinear(STYLES, 1)
            )

        def forward(self, x):
            x = self.activate1(conv2d_gradfix.conv2d(x, self.weight1))
            x = self.activate2(conv2d_gradfix.conv2d(self.blur(x), self.weight2, stride=2, padding=0))
            return self.out(x.flatten(1))

    return Generator(), Discriminator(), conv2d_gradfix


# --- the StyleGAN3 way: functions, alias-free layers, and the discriminator of StyleGAN2-ADA ---


def stylegan3_way():
    from torch_utils.ops import bias_act, conv2d_gradfix, conv2d_resample, filtered_lrelu, fma, upfirdn2d

    def modulated_conv2d(x, w, s, demodulate=True, padding=0, input_gain=None):
        n, (_, i, kh, kw) = x.shape[0], w.shape
        if demodulate:
            w = w * w.square().mean([1, 2, 3], keepdim=True).rsqrt()
            s = s * s.square().mean().rsqrt()
        w = w.unsqueeze(0) * s.unsqueeze(1).unsqueeze(3).unsqueeze(4)
        if demodulate:
            w = w * (w.square().sum(dim=[2, 3, 4]) + 1e-8).rsqrt().unsqueeze(2).unsqueeze(3).unsqueeze(4)
        if input_gain is not None:
            w = w * input_gain.expand(n, i).unsqueeze(1).unsqueeze(3).unsqueeze(4)
        x = x.reshape(1, n * i, *x.shape[2:])
        x = conv2d_gradfix.conv2d(input=x, weight=w.reshape(-1, i, kh, kw).to(x.dtype), padding=padding, groups=n)
        return x.reshape(n, -1, *x.shape[2:])

    class Layer(nn.Module):
        def __init__(self, out_channels, kernel, up, down, taps, padding, is_rgb=False):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(out_channels, CHANNELS, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(out_channels))
            self.affine = nn.Linear(STYLES, CHANNELS)
            nn.init.ones_(self.affine.bias)
            self.register_buffer(
                "up_filter", upfirdn2d.setup_filter(torch.hamming_window(taps * up)) if up > 1 else None
            )
            down_filter = upfirdn2d.setup_filter(torch.hamming_window(taps * down)) if down > 1 else None
            self.register_buffer("down_filter", down_filter)
            self.register_buffer("magnitude_ema", torch.tensor(0.8))
            self.up, self.down, self.padding, self.is_rgb = up, down, padding, is_rgb

        def forward(self, x, w):
            styles = self.affine(w)
            if self.is_rgb:
                styles = styles / CHANNELS**0.5
            x = modulated_conv2d(
                x=x,
                w=self.weight,
                s=styles,
                padding=self.weight.shape[-1] - 1,
                demodulate=not self.is_rgb,
                input_gain=self.magnitude_ema.rsqrt(),
            )
            return filtered_lrelu.filtered_lrelu(
                x=x,
                fu=self.up_filter,
                fd=self.down_filter,
                b=self.bias.to(x.dtype),
                up=self.up,
                down=self.down,
                padding=self.padding,
                gain=1 if self.is_rgb else 2**0.5,
                slope=1 if self.is_rgb else 0.2,
                clamp=256,
            )

    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.mapping = nn.Linear(STYLES, STYLES)
            frequencies = torch.randn(CHANNELS, 2)
            grid = torch.stack(torch.meshgrid(*[torch.linspace(-0.5, 0.5, 8)] * 2, indexing="ij"), dim=-1)
            self.register_buffer("phases", torch.einsum("hwd,cd->chw", grid, frequencies))
            # 8x8 -> convolved 10x10 -> up 4, down 2 -> 16x16 -> 16x16
            self.layers = nn.ModuleList(
                [Layer(CHANNELS, 3, up=4, down=2, taps=6, padding=[7, 8, 7, 8]), Layer(3, 1, 1, 1, 1, 0, is_rgb=True)]
            )

        def forward(self, z):
            w = bias_act.bias_act(F.linear(z, self.mapping.weight), self.mapping.bias, act="lrelu")
            x = torch.sin(2 * math.pi * self.phases).unsqueeze(0).repeat(len(z), 1, 1, 1)
            for layer in self.layers:
                x = layer(x, w)
            return x, w

    class Discriminator(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight1 = nn.Parameter(torch.randn(CHANNELS, 3, 1, 1) / 3**0.5)
            self.weight2 = nn.Parameter(torch.randn(CHANNELS, CHANNELS, 3, 3) / (9 * CHANNELS) ** 0.5)
            self.bias1, self.bias2 = nn.Parameter(torch.zeros(CHANNELS)), nn.Parameter(torch.zeros(CHANNELS))
            self.out = nn.LazyLinear(1)
            self.scale = nn.Parameter(torch.ones(1, CHANNELS, 1, 1))
            self.register_buffer("resample_filter", upfirdn2d.setup_filter([1, 3, 3, 1]))

        def forward(self, x):
            x = conv2d_resample.conv2d_resample(x=x, w=self.weight1)
            x = bias_act.bias_act(x, self.bias1, act="lrelu", clamp=256)
            skip = upfirdn2d.downsample2d(x, self.resample_filter)
            x = conv2d_resample.conv2d_resample(x=x, w=self.weight2, f=self.resample_filter, down=2, padding=1)
            x = fma.fma(bias_act.bias_act(x, self.bias2, act="swish", gain=0.5**0.5), self.scale, skip)
            return self.out(x.flatten(1))

    generator, discriminator = Generator(), Discriminator()
    discriminator(generator(torch.zeros(1, STYLES))[0])
    return generator, discriminator, conv2d_gradfix


def training_terms(generator, discriminator, gradfix, dtype):
    """Images, R1, path length, and the gradients that a step takes of each."""
    at = torch.Generator().manual_seed(1)
    z = torch.randn(4, STYLES, generator=at).to(dtype)
    images, w = generator(z)
    d_weights, g_weights = list(discriminator.parameters()), list(generator.parameters())
    g_loss = F.softplus(-discriminator(images)).mean()
    first = torch.autograd.grad(g_loss, g_weights, retain_graph=True)

    real = torch.randn(images.shape, generator=at).to(dtype).requires_grad_()
    with gradfix.no_weight_gradients():
        (g,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    r1 = g.square().sum([1, 2, 3]).mean()
    of_r1 = torch.autograd.grad(r1, d_weights, allow_unused=True)

    noise = torch.randn(images.shape, generator=at).to(dtype) / images.shape[-1]
    with gradfix.no_weight_gradients(disable=False):  # the styles act through the weights
        (g,) = torch.autograd.grad((images * noise).sum(), w, create_graph=True)
    path = (g.square().sum(1).sqrt() - 0.3).square().mean()
    of_path = torch.autograd.grad(path, g_weights, allow_unused=True)
    # absent and zero are the same gradient
    return [images, r1, path, *first, *(g for g in (*of_r1, *of_path) if g is not None and g.any())]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("way", (stylegan2_way, stylegan3_way))
def test_training_terms_are_those_of_the_references(way, dtype, monkeypatch):
    stylegan2_pytorch.install()
    stylegan3.install()
    generator, discriminator, gradfix = way()
    networks = (generator.to(dtype), discriminator.to(dtype))
    monkeypatch.setattr(gradfix, "enabled", True)
    ours = training_terms(*networks, gradfix, dtype)
    for op in OPS:
        monkeypatch.setattr(gk, op, getattr(gk.reference, op))
    monkeypatch.setattr(gradfix, "enabled", False)
    reference = training_terms(*networks, gradfix, dtype)
    exact = training_terms(*(copy.deepcopy(net).double() for net in networks), gradfix, torch.double)
    assert len(ours) == len(reference) == len(exact) > 20
    for got, plain, truth in zip(ours, reference, exact):
        assert got.dtype == dtype and got.shape == truth.shape
        error, allowed = ((t.double() - truth).abs().max() / truth.abs().max() for t in (got, plain))
        assert error <= 3 * allowed + 16 * torch.finfo(dtype).eps, (got.shape, error, allowed)
