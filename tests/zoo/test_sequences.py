"""Sequences: the recurrent GAN, its cell against PyTorch's, its penalty against differences, and the sines it learns."""

import math

import ganzoo
import pytest
import torch
from ganzoo import Trainer
from ganzoo.metrics import evaluate, sample_count
from ganzoo.networks import recurrent
from ganzoo.training.ops import get_ops

SHAPE = (5, 2)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(**options):
    data = random(32, *SHAPE).tanh()
    variant = ganzoo.create("rnn-gan", **{"width": 3, "latent": 2, "batch": 8, **options})
    return Trainer(variant, data.float(), seed=1)


def test_the_cell_is_pytorchs():
    ours, theirs = recurrent.LSTM(2, 3).double(), torch.nn.LSTM(2, 3, batch_first=True).double()
    with torch.no_grad():
        for mine, name in ((ours.input.weight, "weight_ih_l0"), (ours.hidden.weight, "weight_hh_l0")):
            getattr(theirs, name).copy_(mine)
        assert ours.input.bias.tolist() == 3 * [0] + 3 * [1] + 6 * [0]  # what it begins with it remembers
        theirs.bias_ih_l0.copy_(ours.input.bias.copy_(random(12)))
        theirs.bias_hh_l0.zero_()
        torch.testing.assert_close(ours(random(4, *SHAPE)), theirs(random(4, *SHAPE))[0])


def test_scores_are_of_the_sequence_so_far_and_samples_of_noise_so_far():
    trainer, early = small(), torch.arange(5) < 3
    for network, x in (("discriminator", random(4, *SHAPE).float()), ("generator", random(4, 5, 2).float())):
        network, later = getattr(trainer.networks, network), x.clone()
        later[:, 3] += 1
        same = (network(x) == network(later)).view(4, 5, -1).all(2)
        assert torch.equal(same, early.expand(4, 5))
    latents = trainer.variant.latents(4, torch.Generator().manual_seed(0))
    assert latents.shape == (4, 5, 2) and len(latents.unique()) == 40  # fresh noise at every step


def test_the_loss_is_taken_at_every_step():
    trainer = small()
    networks, draw = trainer.networks, trainer._draw
    draw.begin(0)
    found, figures = trainer.variant.discriminator_loss(networks, draw, None)
    draw.begin(0)
    draw.positions.update(draw._began)
    real, fake = networks.discriminator(draw.real()), networks.discriminator(networks.generator(draw.latents()))
    assert real.shape == (8, 5) and "gradient_penalty" not in figures
    steps = [-(real[:, t].sigmoid().log() + (1 - fake[:, t].sigmoid()).log()).mean() for t in range(5)]
    torch.testing.assert_close(found, sum(steps) / 5)
    assert trainer.variant.scores(networks, draw.real()).shape == (8,)


@pytest.mark.parametrize("ops", ["gankernels", "stock"])
def test_the_penalty_and_its_gradient_are_those_of_differences(ops):
    trainer = small(penalty_weight=3.0)
    networks, family = trainer.networks.double(), get_ops(ops)
    x, generated, eps, h = random(8, *SHAPE), random(8, *SHAPE, seed=1), random(8, seed=2).sigmoid(), 1e-4

    def mean_score(sequences):
        return networks.discriminator(sequences).mean(1)

    class Drawn:  # in float64
        real, latents, uniform = (lambda _, value=value: value for value in (x, random(8, 5, 2), eps))

    networks.generator.forward = lambda latents: generated
    loss, figures = trainer.variant.discriminator_loss(networks, Drawn(), family)
    alone = small().variant.discriminator_loss(networks, Drawn(), family)[0]
    torch.testing.assert_close(loss, alone + figures["gradient_penalty"])

    @torch.no_grad()
    def by_differences():
        mixed, slopes = torch.lerp(generated, x, eps.view(-1, 1, 1)), []
        for t in range(SHAPE[0]):
            for channel in range(SHAPE[1]):
                moved = torch.zeros_like(mixed)
                moved[:, t, channel] = h
                slopes.append((mean_score(mixed + moved) - mean_score(mixed - moved)) / (2 * h))
        return 3 * (torch.stack(slopes, 1).norm(dim=1) - 1).square().mean()

    torch.testing.assert_close(figures["gradient_penalty"], by_differences(), rtol=1e-6, atol=0)
    figures["gradient_penalty"].backward()
    for name, weight in networks.discriminator.named_parameters():
        if name == "1.bias":
            continue  # of which the slope is none
        for index in {0, weight.numel() // 2, weight.numel() - 1}:
            place, values = weight.detach().view(-1), []
            before = place[index].item()
            for sign in (1, -1):
                place[index] = before + sign * h
                values.append(by_differences())
            place[index] = before
            expected = (values[0] - values[1]) / (2 * h)
            torch.testing.assert_close(weight.grad.view(-1)[index], expected, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("options", [dict(penalty_weight=2.0), dict(techniques=["lazy-r1:every=1"])])
def test_penalties_train_alike_with_stock_ops(options):
    variant = ganzoo.create("rnn-gan", width=4, batch=16, **options)
    data = ganzoo.data.open("sines", length=8, n=64)
    ours, stock = (Trainer(variant, data, seed=3, ops=ops) for ops in ("gankernels", "stock"))
    for _ in range(2):
        torch.testing.assert_close(ours.step(), stock.step(), rtol=2e-3, atol=2e-4)
    assert not torch.equal(ours.sample(2), Trainer(variant, data, seed=3).sample(2))


def test_every_sine_has_an_amplitude_a_frequency_and_a_phase_of_its_own():
    waves = ganzoo.data.open("sines", length=20, n=2000).fetch(torch.arange(2000))["image"][..., 0].double()
    middle, beside = waves[:, 1:-1], waves[:, 2:] + waves[:, :-2]
    cosine = (middle * beside).sum(1) / (2 * middle.square().sum(1))
    torch.testing.assert_close(
        beside, 2 * cosine[:, None] * middle, rtol=0, atol=1e-5
    )  # of one frequency, without an offset
    omega = cosine.acos()
    t = torch.arange(1, 21)
    waved = torch.stack([(omega[:, None] * t).sin(), (omega[:, None] * t).cos()], 2)
    parts = torch.linalg.lstsq(waved, waves[..., None]).solution[..., 0]
    found = {"f": omega * 20 / (2 * math.pi), "A": parts.norm(dim=1), "φ": torch.atan2(parts[:, 1], parts[:, 0])}
    for (name, values), (low, high) in zip(found.items(), ((1, 5), (0.1, 0.9), (-math.pi, math.pi))):
        quantiles = values.quantile(torch.tensor([0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
        wanted = torch.linspace(low, high, 5, dtype=torch.float64)
        torch.testing.assert_close(quantiles, wanted, rtol=0, atol=0.04 * (high - low), msg=name)
    assert torch.stack(list(found.values())).corrcoef().triu(1).abs().max() < 0.1


def test_sequences_are_measured_like_points():
    data = ganzoo.data.open("sines", n=3000)
    other = ganzoo.data.open("sines", n=500, seed=1).fetch(torch.arange(500))["image"]
    good, bad = (
        {figure.name.partition(" (")[0]: figure.value for figure in evaluate(samples, data)}
        for samples in (other, other[:, torch.randperm(30, generator=torch.Generator().manual_seed(0))])
    )
    assert list(good) == ["W1", "precision", "recall", "density", "coverage"] and sample_count(data) == 2500
    assert good["W1"] < 0.8 * bad["W1"] and good["precision"] > 0.9 > 0.1 > bad["precision"]


def test_a_technique_that_compares_samples_is_refused_where_steps_are_scored():
    sentence = (
        "^ganzoo: minibatch-discrimination does not fit a discriminator that scores every step of a sample by itself.$"
    )
    with pytest.raises(ganzoo.Error, match=sentence):
        small(techniques=["minibatch-discrimination"]).step()


def test_data_of_the_other_kind_are_refused_in_one_sentence():
    with pytest.raises(ganzoo.ArgumentError, match="^ganzoo: data must be images with sides"):
        Trainer(ganzoo.create("fashion-gan", batch=2), ganzoo.data.open("sines", n=8))
    with pytest.raises(
        ganzoo.ArgumentError, match="^ganzoo: data must be sequences .T, C., such as sines, got 1 x 8 x 8.$"
    ):
        Trainer(ganzoo.create("rnn-gan", batch=2), torch.zeros(4, 1, 8, 8))
