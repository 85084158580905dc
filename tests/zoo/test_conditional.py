"""Games with a condition: what each paper's check asks for, and that a known mistake fails."""

import ganzoo
import torch
import torch.nn.functional as F
from ganzoo import Trainer
from ganzoo.metrics import evaluate, make_extractor
from ganzoo.networks.conditional import Conditioned, Labels
from ganzoo.variants import DataInfo
from torch import nn


def small(name, data="ring", **options):
    sizes = {"width": 1, "latent": 2, "batch": 32, **options}
    return Trainer(ganzoo.create(name, **sizes), ganzoo.data.open(data, n=256), seed=1)


def loss_of(trainer, player):
    return trainer._differentiate(player, (), 0, trainer._draw)


def drawn_again(trainer):
    """The draws of the update that `loss_of` has just taken."""
    draw = trainer._draw
    draw.begin(0)
    draw.positions.update(draw._began)
    return draw


def agreement(trainer, n=500):
    """The share of samples whose digit a classifier tells to be the one that was asked for."""
    classifier = make_extractor("classifier", ganzoo.data.open("digits"))
    probabilities = classifier.extract(trainer.sample(n))[1]
    return (probabilities.argmax(1) == torch.arange(n) % 10).double().mean().item()


def test_of_points_the_nearest_mode_is_what_agrees_with_the_label():
    data = ganzoo.data.open("ring", n=256)
    batch = data.fetch(torch.arange(256))
    for labels, expected in ((batch["label"], 1), ((batch["label"] + 1) % 8, 0)):
        figures = {figure.name: figure.value for figure in evaluate(batch["image"], data, labels=labels)}
        assert figures["label agreement"] == expected


def test_a_grid_has_a_column_for_each_of_a_few_classes():
    few, many = DataInfo("few", (2,), 10), DataInfo("many", (2,), 241)
    assert [ganzoo.create("cgan").columns(data) for data in (few, many)] == [10, 8]
    assert ganzoo.create("gan").columns(few) == 8


# --- CGAN ---


def test_a_label_becomes_latents_and_planes_beside_the_input():
    labels, x = torch.tensor([2, 0]), torch.randn(2, 1, 8, 8)
    embedding = Labels(3, (1, 8, 8))
    network = Conditioned(nn.Identity(), embedding)
    both = network(x, labels)
    assert both.shape == (2, 2, 8, 8) and torch.equal(both[:, :1], x)
    dense = F.one_hot(labels, 3).float() @ embedding[0].weight
    torch.testing.assert_close(both[:, 1:], dense.view(2, 1, 8, 8))


def test_both_networks_of_cgan_see_the_label_and_the_discriminator_sees_the_generators():
    trainer, seen = small("cgan"), {"generator": [], "discriminator": []}
    for name, calls in seen.items():
        getattr(trainer.networks, name).register_forward_hook(lambda _, inputs, __, calls=calls: calls.append(inputs))
    for player in ("discriminator", "generator"):
        for calls in seen.values():
            calls.clear()
        loss_of(trainer, player)
        y = drawn_again(trainer).batch()["label"]
        assert torch.equal(seen["generator"][0][1], y)
        assert all(torch.equal(labels, y) for _, labels in seen["discriminator"])


def test_cgan_draws_the_digit_that_is_asked_for():
    data = ganzoo.data.open("digits")
    trainer = Trainer(ganzoo.create("cgan", width=8, lr=2e-3, ema=0.9), data, seed=0)
    for _ in range(200):
        trainer.step()
    assert agreement(trainer) > 0.8
