import pytest
import torch
from ganzoo import ArgumentError
from ganzoo.networks import autoencoder, dcgan, pacgan, r3gan, sngan, toy

import gankernels


@pytest.mark.parametrize("family", [dcgan, r3gan, sngan])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 64, 64)])
def test_generator_and_discriminator_fit_each_other(family, shape):
    images = family.Generator(5, shape, 2)(torch.randn(3, 5))
    assert images.shape == (3, *shape)
    assert family is r3gan or images.abs().max() <= 1
    assert family.Discriminator(shape, 2)(images).shape == (3,)


def test_a_single_image_keeps_its_batch_dimension():
    assert sngan.Discriminator((1, 8, 8), 2)(torch.zeros(1, 1, 8, 8)).shape == (1,)
    assert dcgan.Discriminator((1, 8, 8), 2, batch_norm=False)(torch.zeros(1, 1, 8, 8)).shape == (1,)


def test_dcgan_at_its_papers_size_has_its_papers_layers():
    generator = dcgan.Generator(100, (3, 64, 64), 128)
    shapes = [tuple(layer.weight.shape) for layer in generator if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert shapes == [(1024, 512, 4, 4), (512, 256, 4, 4), (256, 128, 4, 4), (128, 3, 4, 4)]
    assert generator[0].weight.shape == (1024 * 4 * 4, 100)
    discriminator = dcgan.Discriminator((3, 64, 64), 64)
    kinds = [type(layer).__name__ for layer in discriminator if not isinstance(layer, torch.nn.LeakyReLU)]
    assert kinds == ["Conv2d"] + ["Conv2d", "BatchNorm2d"] * 3 + ["Flatten", "Linear", "Flatten"]


@pytest.mark.parametrize("shape", [(1, 12, 12), (1, 4, 4), (1, 16, 8), (1, 28, 28), (2,)])
def test_other_sizes_are_refused_in_a_sentence(shape):
    size = " x ".join(map(str, shape))
    with pytest.raises(ArgumentError, match=f"data must be square images with a side of 8, 16, 32.* got {size}"):
        dcgan.Generator(5, shape, 2)


def test_r3gan_starts_as_its_shortcuts_in_groups_of_16():
    block = r3gan.Bottleneck(24, depth=16)
    x = torch.randn(2, 24, 4, 4)
    assert torch.equal(block(x), x)
    assert block.body[2].groups == 3
    assert block.body[0].weight.std().item() == pytest.approx((2 / (1.04 * 24)) ** 0.5 / 2, rel=0.1)


def test_r3gans_loss_and_penalties_share_a_backward():
    assert gankernels.explain(r3gan.Discriminator((3, 16, 16), 4), torch.randn(2, 3, 16, 16)).folds


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_perceptrons_for_points_have_the_papers_sizes():
    assert parameters(pacgan.Generator(2, (2,), 16)) == 2 * 400 + 3 * 400**2 + 4 * 2 * 400 + 401 * 2
    assert parameters(pacgan.Discriminator((2,), 16)) == 3 * 1000 + 2 * 201 * 1000 + 201
    assert parameters(toy.Generator(2, (2,), 16)) == 3 * 512 + 2 * 513 * 512 + 513 * 2
    assert parameters(toy.Discriminator((2,), 16)) == 3 * 512 + 2 * 513 * 512 + 513


def test_a_maxout_unit_is_the_largest_of_its_pieces():
    layer, x = pacgan.Maxout(3, 2, 5), torch.randn(4, 3)
    affine = x @ layer.weight.T + layer.bias
    expected = torch.stack([affine[:, :5].max(1).values, affine[:, 5:].max(1).values], 1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 32, 32)])
def test_autoencoders_go_through_a_code_and_neither_end_is_bounded(shape):
    network, x = autoencoder.Autoencoder(shape, 4, 5), torch.randn(3, *shape)
    assert network.encoder(x).shape == (3, 5) and network(x).shape == x.shape
    with torch.no_grad():
        for half in (network.encoder, network.decoder):
            half[-1].weight.mul_(1e4), half[-1].bias.fill_(5)
    assert network.encoder(x).abs().max() > 100 and network(x).abs().max() > 100


def test_began_halves_and_doubles_as_its_paper_draws_it():
    encoder, decoder = autoencoder.Encoder((3, 16, 16), 4, 5), autoencoder.Decoder(5, (3, 16, 16), 4)
    maps = [layer.out_channels for layer in encoder if isinstance(layer, torch.nn.Conv2d)]
    assert maps == [4, 4, 4, 8, 8, 8, 12, 12, 12]  # width more at each halving
    assert all(layer.out_channels == 4 for layer in list(decoder)[:-1] if isinstance(layer, torch.nn.Conv2d))
