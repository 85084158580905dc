"""Layers made of one op each: what they compute, and the buffers that public checkpoints have."""

import pytest
import torch
import torch.nn.functional as F

import gankernels as gk


def test_blur_keeps_what_a_constant_image_is():
    blur = gk.nn.Blur([1, 3, 3, 1], pad=(2, 1), upsample_factor=2)
    assert blur.state_dict().keys() == {"kernel"}
    torch.testing.assert_close(blur.kernel, 4 * torch.outer(k := torch.tensor([1.0, 3, 3, 1]) / 8, k))
    y = blur(torch.ones(1, 2, 8, 8))
    assert y.shape == (1, 2, 8, 8)
    torch.testing.assert_close(y[..., 2:-1, 2:-1], torch.full((1, 2, 5, 5), 4.0))


@pytest.mark.parametrize("kernel", ([1, 3, 3, 1], [1, 2, 1], [1, 1]))
def test_up_and_downsampling(kernel):
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64, requires_grad=True)
    up, down = gk.nn.Upsample(kernel).double(), gk.nn.Downsample(kernel).double()
    assert up(x).shape == (2, 3, 16, 12) and down(x).shape == (2, 3, 4, 3)
    flat = torch.ones(1, 1, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(up(flat)[..., 4:-4, 4:-4], torch.ones(1, 1, 16, 16, dtype=torch.float64))
    torch.testing.assert_close(down(flat)[..., 2:-2, 2:-2], torch.ones(1, 1, 2, 2, dtype=torch.float64))
    if kernel == [1, 1]:
        torch.testing.assert_close(down(x), F.avg_pool2d(x, 2))
        torch.testing.assert_close(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.autograd.gradgradcheck(down, x)


def test_statistics_over_the_batch_and_pixel_norm():
    x = torch.randn(8, 6, 4, 4)
    assert torch.equal(gk.nn.MinibatchStdDev(4, 2)(x), gk.minibatch_stddev(x, 4, 2))
    assert torch.equal(gk.nn.PixelNorm()(x), gk.pixel_norm(x))
    layer = gk.nn.MinibatchDiscrimination(6, 5, kernel_dims=3)
    y = layer(x[..., 0, 0])
    assert y.shape == (8, 11) and layer.T.shape == (6, 5, 3)
    assert torch.equal(layer(x[:1, :, 0, 0])[:, 6:], torch.zeros(1, 5))  # alone, a sample is close to nobody
    y.square().sum().backward()
    assert layer.T.grad.abs().sum() > 0


@pytest.mark.parametrize(("upsample", "downsample"), ((False, False), (True, False), (False, True)))
def test_modulated_convolution_with_what_follows_it(upsample, downsample):
    layer = gk.nn.ModulatedConv2d(6, 5, 3, 7, upsample=upsample, downsample=downsample)
    x, latents, bias = torch.randn(2, 6, 8, 8), torch.randn(2, 7), torch.randn(5)
    y = layer(x, latents)
    assert y.shape == (2, 5, *2 * [16 if upsample else 4 if downsample else 8])
    if not upsample and not downsample:  # demodulated: noise keeps its variance
        assert 0.9 < layer(torch.randn(8, 6, 32, 32), torch.randn(8, 7)).std().item() < 1.1
    noise = torch.randn(2, 1, *y.shape[2:])
    fused = layer(x, latents, noise=noise, bias=bias, act="lrelu")
    torch.testing.assert_close(fused, gk.reference.bias_act(y + noise, bias, act="lrelu"), rtol=1e-4, atol=1e-5)
    fused.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_leaky_relu_with_its_bias():
    layer, x = gk.nn.FusedLeakyReLU(3, negative_slope=0.1, scale=2.0), torch.randn(2, 3, 4)
    torch.nn.init.normal_(layer.bias)
    torch.testing.assert_close(layer(x), 2 * F.leaky_relu(x + layer.bias[:, None], 0.1))
    assert not list(gk.nn.FusedLeakyReLU(3, bias=False).parameters())
