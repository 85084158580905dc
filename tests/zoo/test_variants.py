"""The check that each variant's paper asks for, and that a known mistake fails."""

import copy
import io
import math
import re
from pathlib import Path

import ganzoo
import pytest
import torch

from ganzoo import Trainer
from ganzoo.techniques import list_techniques
from ganzoo.training.ops import get_ops
from ganzoo.variants import mdgan


PAGES = [Path(__file__).parents[2] / page for page in ("README.md", "docs/variants.md")]


def small(name, **options):
    return Trainer(ganzoo.create(name, width=1, latent=2, batch=32, **options), ganzoo.data.open("ring", n=256), seed=1)


def loss_of(trainer, player, update=0):
    return trainer._differentiate(player, (), update, trainer._draw)


def gradients(trainer, player):
    return [param.grad.clone() for param in trainer._params[player]]


def zeroed(layer):
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_name_everything_there_is(page):
    named = set(re.findall(r"`([a-z0-9-]+)`", page.read_text()))
    assert {*ganzoo.list_variants(), *list_techniques()} <= named


@pytest.mark.parametrize(
    "name, options, discriminator, generator",
    [
        ("gan", dict(game="non-saturating"), 2 * math.log(2), math.log(2)),
        ("gan", dict(game="minimax"), 2 * math.log(2), -math.log(2)),
        ("gan", dict(game="maximum-likelihood"), 2 * math.log(2), -1),
        ("lsgan", {}, 1 / 2, 1 / 2),
        ("lsgan", dict(a=-1.0, b=1.0, c=0.0), 1, 0),
        ("lsgan", dict(a=0.5, b=2.0, c=3.0), 4.25 / 2, 9 / 2),
        ("hinge", {}, 2, 0),
    ],
)
def test_losses_at_a_score_of_nought_are_those_of_the_options(name, options, discriminator, generator):
    trainer = small(name, **options)
    zeroed(trainer.networks.discriminator[-2])
    assert loss_of(trainer, "discriminator")["discriminator_loss"].item() == pytest.approx(discriminator)
    assert loss_of(trainer, "generator")["generator_loss"].item() == pytest.approx(generator)


def test_the_unrolled_gradient_has_the_second_term_that_copy_step_restore_lacks():
    trainer = small("unrolled", unrolling=3, discriminator_lr=1e-2)
    trainer.step(), trainer.step()
    variant, draw, before = trainer.variant, trainer._draw, dict(trainer._draw.positions)

    twin = copy.deepcopy(trainer.networks).requires_grad_(True)
    optimizer = type(trainer._optimizers["discriminator"])(twin.discriminator.parameters(), lr=1e-2)
    optimizer.load_state_dict(copy.deepcopy(trainer._optimizers["discriminator"].state_dict()))
    draw.begin(99)
    for _ in range(3):
        optimizer.zero_grad()
        variant.discriminator_loss(twin, draw, None)[0].backward()
        optimizer.step()
    loss = variant.generator_loss(twin, draw, None)[0]
    copied = torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(twin.generator.parameters()))])

    draw.positions.update(before)
    assert loss_of(trainer, "generator", 99)["generator_loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    unrolled = torch.cat([slope.flatten() for slope in gradients(trainer, "generator")])
    assert (unrolled - copied).norm() > 0.05 * copied.norm()


def test_ebgans_generator_moves_the_image_that_is_rebuilt_too_and_pulls_codes_apart():
    trainer = small("ebgan", pulling_away_weight=0.0)
    zeroed(
        trainer.networks.discriminator.decoder[-1]
    )  # reconstructions are 0, and the energy is the image's own square
    loss_of(trainer, "generator")
    trainer._draw.begin(0)
    energy = trainer.networks.generator(trainer._draw.latents()).square().mean()
    expected = torch.autograd.grad(energy, trainer._params["generator"])
    torch.testing.assert_close(gradients(trainer, "generator"), list(expected))

    with_term = small("ebgan")
    figures, without = loss_of(with_term, "generator"), loss_of(small("ebgan", pulling_away_weight=0.0), "generator")
    difference = figures["generator_loss"] - without["generator_loss"]
    assert difference.item() == pytest.approx(0.1 * figures["pulling_away"].item(), rel=1e-4)


def test_began_balances_and_goes_on_with_its_k_and_m():
    trainer, k = small("began", k_rate=0.5, gamma=0.7), 0.0
    for _ in range(3):
        figures = trainer.step()
        real, fake = figures["real"].item(), figures["fake"].item()
        assert figures["discriminator_loss"].item() == pytest.approx(real - k * fake, abs=1e-6)
        assert figures["M"].item() == pytest.approx(real + abs(0.7 * real - fake), abs=1e-6)
        k = min(max(k + 0.5 * (0.7 * real - fake), 0), 1)
        assert trainer.networks.k.item() == pytest.approx(k, abs=1e-6)
    assert 0 < k < 1

    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    resumed, forgetful = (small("began", k_rate=0.5, gamma=0.7) for _ in range(2))
    for other in (resumed, forgetful):
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
    forgetful.networks.k.zero_()
    after, again, lost = trainer.step(), resumed.step(), forgetful.step()
    for name in ("k", "M", "discriminator_loss", "generator_loss"):
        assert torch.equal(after[name], again[name])
    assert torch.equal(trainer.networks.k, resumed.networks.k)
    assert not torch.equal(after["discriminator_loss"], lost["discriminator_loss"])


def test_mode_regularisation_rewards_reconstructions_that_are_taken_for_real():
    variant = ganzoo.create("reg-gan", reconstruction_weight=0.5, mode_weight=2.0)
    x, rebuilt = torch.zeros(2, 3), torch.full((2, 3), 2.0)
    believed, spotted = (
        variant.mode_loss(x, rebuilt, lambda images, score=score: torch.full((len(images),), score))[0].item()
        for score in (3.0, -3.0)
    )
    assert believed == pytest.approx(0.5 * 4 + 2.0 * math.log(1 + math.exp(-3)))
    assert spotted == pytest.approx(0.5 * 4 + 2.0 * math.log(1 + math.exp(3)))


def test_mdgan_judges_reconstructions_against_images_and_samples_against_reconstructions():
    trainer = small("mdgan")
    networks, draw, judged = trainer.networks, trainer._draw, {}
    for name in ("manifold", "diffusion"):
        network = getattr(networks, name)
        network.register_forward_hook(lambda _, inputs, __, name=name: judged.setdefault(name, []).append(inputs[0]))
    for turn in ("manifold", "diffusion"):
        loss_of(trainer, turn)
        draw.begin(0)
        draw.positions.update(draw._began)
        x, z = draw.real(), draw.latents()
        rebuilt, fake = networks.generator(networks.encoder(x)), networks.generator(z)
        expected = (x, rebuilt) if turn == "manifold" else (rebuilt, fake)
        torch.testing.assert_close(judged[turn][:2], list(expected))
    assert isinstance(trainer.variant, mdgan.ModeRegularized)


def test_dragan_perturbs_by_uniform_noise_of_half_the_batchs_deviation():
    real = torch.tensor([[0.0, 2.0], [4.0, 6.0]])
    uniform = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    around = ganzoo.create("dragan").perturbed(real, uniform)
    torch.testing.assert_close(around, real + 0.5 * math.sqrt(5) * uniform)


def test_loss_sensitive_margins_are_the_distances_of_the_pairs():
    trainer = small("loss-sensitive", margin=3.0)
    zeroed(trainer.networks.discriminator[-2])
    found = loss_of(trainer, "discriminator")["discriminator_loss"]
    draw = trainer._draw
    draw.begin(0)
    draw.positions.update(draw._began)
    distances = (draw.real() - trainer.networks.generator(draw.latents())).abs().mean(1)
    torch.testing.assert_close(found, 3 * distances.mean())


@pytest.mark.parametrize("ops", ["gankernels", "stock"])
@pytest.mark.parametrize("slope, two_sided, one_sided", [(0.5, 0.25, 0.0), (3.0, 4.0, 4.0)])
def test_lp_leaves_gradients_below_one_alone(ops, slope, two_sided, one_sided):
    networks = small("wgan-lp").networks
    networks.critic = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    with torch.no_grad():
        networks.critic[0].weight.copy_(torch.tensor([[slope, 0.0]]))
    for name, expected in (("wgan-gp", two_sided), ("wgan-lp", one_sided)):
        trainer = small(name)
        trainer._draw.begin(0)
        figures = trainer.variant.critic_loss(networks, trainer._draw, get_ops(ops))[1]
        assert figures["gradient_penalty"].item() == pytest.approx(10 * expected, abs=1e-5)
