"""The FashionMNIST GAN against the two tables of layers that it is known by."""

import gzip
import struct

import ganzoo
import pytest
import torch
from ganzoo import Trainer

GENERATOR = [
    ("Linear", (6272,), 809_088),
    ("LeakyReLU", (6272,), 0),
    ("Unflatten", (128, 7, 7), 0),
    ("ConvTranspose2d", (128, 14, 14), 262_272),
    ("LeakyReLU", (128, 14, 14), 0),
    ("BatchNorm2d", (128, 14, 14), 512),
    ("ConvTranspose2d", (1, 28, 28), 2_049),
    ("LeakyReLU", (1, 28, 28), 0),
    ("BatchNorm2d", (1, 28, 28), 4),
    ("Conv2d", (128, 28, 28), 2_176),
    ("LeakyReLU", (128, 28, 28), 0),
    ("Conv2d", (128, 28, 28), 262_272),
    ("LeakyReLU", (128, 28, 28), 0),
    ("Conv2d", (1, 28, 28), 2_049),
    ("Tanh", (1, 28, 28), 0),
]
DISCRIMINATOR = [
    ("Conv2d", (32, 24, 24), 832),
    ("LeakyReLU", (32, 24, 24), 0),
    ("Dropout", (32, 24, 24), 0),
    ("Conv2d", (64, 20, 20), 51_264),
    ("LeakyReLU", (64, 20, 20), 0),
    ("Dropout", (64, 20, 20), 0),
    ("Conv2d", (128, 16, 16), 204_928),
    ("LeakyReLU", (128, 16, 16), 0),
    ("Dropout", (128, 16, 16), 0),
    ("Conv2d", (256, 12, 12), 819_456),
    ("LeakyReLU", (256, 12, 12), 0),
    ("Dropout", (256, 12, 12), 0),
    ("Flatten", (36_864,), 0),
    ("Dropout", (36_864,), 0),
    ("Linear", (1,), 36_865),
    ("Flatten", (), 0),
]


def table(network, x):
    """Type, output and number of parameters of each layer, running statistics among them."""
    rows = []
    for layer in network:
        x = layer(x)
        kept = [b for b in layer.buffers() if b.is_floating_point()]
        rows.append(
            (
                type(layer).__name__.removeprefix("Same"),
                tuple(x.shape[1:]),
                sum(p.numel() for p in [*layer.parameters(), *kept]),
            )
        )
    return rows


@pytest.fixture
def clothes(tmp_path):
    """A few made images in the form of FashionMNIST's files."""
    images = torch.randint(256, (16, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    labels = bytes(range(8)) * 2
    for name, header, content in (
        ("images-idx3", struct.pack(">4I", 0x803, 16, 28, 28), images.tobytes()),
        ("labels-idx1", struct.pack(">2I", 0x801, 16), labels),
    ):
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + content))
    return tmp_path


def test_every_layer_has_the_tables_shape_and_parameters_and_the_game_its_rates(clothes):
    data = ganzoo.data.open(str(clothes))
    pixels = data.fetch(torch.arange(16))["image"]
    assert pixels.min() == -1 and pixels.max() == 1  # x/127.5 − 1
    trainer = Trainer(ganzoo.create("fashion-gan", batch=4), data)
    networks = trainer.networks
    with torch.no_grad():
        assert table(networks.generator, torch.randn(2, 128)) == GENERATOR
        assert table(networks.discriminator, torch.randn(2, 1, 28, 28)) == DISCRIMINATOR
    counts = [sum(p.numel() for p in network.parameters()) for network in (networks.generator, networks.discriminator)]
    assert counts == [1_340_164, 1_113_345]
    assert sum(row[2] for row in GENERATOR) == 1_340_422 == counts[0] + 258
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in trainer._optimizers.items()}
    assert rates == {"generator": 1e-4, "discriminator": 1e-5}
    before = trainer.sample(2)
    trainer.step()
    assert before.shape == (2, 1, 28, 28) and not torch.equal(trainer.sample(2), before)


def test_the_discriminator_drops_activations_in_training_alone(clothes):
    discriminator = Trainer(
        ganzoo.create("fashion-gan", batch=4, width=2), ganzoo.data.open(str(clothes))
    ).networks.discriminator
    x = torch.randn(2, 1, 28, 28)
    assert not torch.equal(discriminator(x), discriminator(x))
    assert torch.equal(discriminator.eval()(x), discriminator(x))


def test_images_that_do_not_halve_twice_are_refused_in_one_sentence():
    with pytest.raises(ganzoo.ArgumentError, match="^ganzoo: data must be images with sides of 20, 24, 28, ... pixels"):
        Trainer(ganzoo.create("fashion-gan", batch=2), torch.zeros(4, 1, 30, 30))
