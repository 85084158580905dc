import copy
import io
from dataclasses import dataclass, replace

import pytest
import torch
from .conftest import IMAGES_ONLY, TINY, same, small_options
from torch import nn

import ganzoo
from ganzoo import ArgumentError, Trainer
from ganzoo.objectives import minimax_discriminator, minimax_generator
from ganzoo.training.checkpoint import save_checkpoint
from ganzoo.variants import Networks, Player, Variant, base, register, variant_class

STEPS = 4


def run(trainer, steps=STEPS):
    return [trainer.step() for _ in range(steps)]


def test_a_seed_repeats_to_the_bit(tiny, tiny_data):
    first, second = Trainer(tiny, tiny_data, seed=3), Trainer(tiny, tiny_data, seed=3)
    torch.rand(1)  # what the caller draws in between must not matter
    assert same(run(first), run(second))
    assert same(first.state_dict(), second.state_dict())
    assert torch.equal(first.sample(9, seed=1), second.sample(9, seed=1))
    assert not torch.equal(first.sample(9, seed=1), first.sample(9, seed=2))


def test_another_seed_is_another_run(tiny, tiny_data):
    first, second = Trainer(tiny, tiny_data, seed=3), Trainer(tiny, tiny_data, seed=4)
    assert not torch.equal(first.sample(4), second.sample(4))


def test_those_that_have_the_option_latent_draw_latents_of_that_size(tiny, tiny_data):
    if "latent" not in tiny.options():
        pytest.skip("it draws none")

    def size(latent):
        variant = Trainer(replace(tiny, latent=latent), tiny_data).variant
        return variant.latents(1, torch.Generator()).numel()

    assert size(9) - size(7) == 2 * (tiny_data.shape[0] if tiny.name == "rnn-gan" else 1)


def test_the_callers_random_numbers_are_left_alone(tiny, tiny_data):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    trainer = Trainer(tiny, tiny_data, seed=3)
    trainer.step()
    trainer.sample(2)
    assert torch.equal(torch.rand(3), expected)


def test_goes_on_from_its_state_to_the_bit(tiny, tiny_data):
    straight = Trainer(tiny, tiny_data, seed=3)
    run(straight)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    later = run(straight)

    file.seek(0)
    resumed = Trainer(tiny, tiny_data, seed=99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert same(run(resumed), later)
    assert same(resumed.state_dict(), straight.state_dict())
    assert torch.equal(resumed.sample(9), straight.sample(9))


@pytest.mark.parametrize("lost", ["networks", "averages", "optimizers", "positions", "updates", "seed"])
def test_every_part_of_the_state_matters(lost, images):
    variant = ganzoo.create("wgan-gp", width=4, latent=8, batch=16, ema=0.9)
    straight = Trainer(variant, images, seed=3)
    run(straight)
    state = copy.deepcopy(straight.state_dict())
    state[lost] = Trainer(variant, images, seed=99).state_dict()[lost]
    resumed = Trainer(variant, images, seed=3)
    resumed.load_state_dict(state)
    run(straight), run(resumed)
    assert not torch.equal(straight.sample(9), resumed.sample(9))


def test_ours_and_stock_train_alike(tiny, tiny_data):
    ours, stock = Trainer(tiny, tiny_data, seed=3), Trainer(tiny, tiny_data, seed=3, ops="stock")
    assert same(list(ours.networks.parameters()), list(stock.networks.parameters()))
    torch.testing.assert_close(ours.sample(2), stock.sample(2), rtol=2e-3, atol=2e-4)
    for ours_figures, stock_figures in zip(run(ours, 2), run(stock, 2)):
        for name, value in ours_figures.items():
            torch.testing.assert_close(value, stock_figures[name], rtol=2e-3, atol=2e-4, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("name", ["gan", "sngan"])
def test_large_images_train_alike_with_fewer_of_stocks_convolutions(name):
    images, variant = torch.rand(32, 3, 32, 32) * 2 - 1, ganzoo.create(name, width=32, batch=16)
    steps, calls = [], []
    for ops in ("gankernels", "stock"):
        trainer = Trainer(variant, images, seed=3, ops=ops)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            steps.append(run(trainer, 1))
        calls.append(sum(event.count for event in profile.key_averages() if event.key == "aten::convolution_backward"))
    torch.testing.assert_close(*steps, rtol=2e-3, atol=2e-4)
    assert calls[0] < calls[1]


@pytest.mark.parametrize("name", sorted(TINY.keys() - IMAGES_ONLY))
def test_points_are_trained_on_too(name):
    variant = ganzoo.create(name, **small_options(name) | ({"latent": 2} if "latent" in small_options(name) else {}))
    ours, stock = (Trainer(variant, ganzoo.data.open("ring", n=64), ops=ops) for ops in ("gankernels", "stock"))
    before = ours.sample(64)
    first = variant.schedule(0)[:1]
    torch.testing.assert_close(ours._take(first), stock._take(first), rtol=2e-3, atol=2e-4)
    ours.step()
    assert before.shape == (64, 2) and not torch.equal(ours.sample(64), before)


@pytest.mark.parametrize("batch, parts, least", [(1, 1, 2), (4, 4, 8)])
def test_batch_norm_of_one_sample_is_refused_in_a_sentence(batch, parts, least):
    trainer = Trainer(ganzoo.create("gan", batch=batch, width=1), ganzoo.data.open("ring", n=8), accumulate=parts)
    wanted = f"ganzoo: batch must be at least {least}, as there is batch norm over each part of it, got {batch}."
    with pytest.raises(ArgumentError, match=wanted):
        trainer.step()


def test_only_the_player_on_turn_changes(tiny, tiny_data):
    trainer = Trainer(tiny, tiny_data)
    for turn in set(tiny.schedule(0)):
        before = {name: [p.clone() for p in net.parameters()] for name, net in trainer.networks.named_children()}
        trainer._take([turn])
        on_turn = (turn,) if isinstance(turn, str) else turn
        changed = {
            name
            for name, net in trainer.networks.named_children()
            if not all(map(torch.equal, before[name], net.parameters()))
        }
        assert changed == {network for name in on_turn for network in trainer._players[name].networks}


def test_wgan_clips_the_critic_and_nothing_else(images):
    trainer = Trainer(ganzoo.create("wgan", width=4, long_first=0, long_every=1000, clip=0.005), images)
    trainer.step()
    assert max(p.abs().max().item() for p in trainer.networks.critic.parameters()) == pytest.approx(0.005)
    assert max(p.abs().max().item() for p in trainer.networks.generator.parameters()) > 0.02


def test_wgan_schedule_is_that_of_the_authors_code():
    critic_updates = [variant_class("wgan")().schedule(step).count("critic") for step in range(1001)]
    assert critic_updates[:25] == [100] * 25
    assert [step for step in range(25, 1001) if critic_updates[step] == 100] == [500, 1000]
    assert set(critic_updates) == {100, 5}
    assert variant_class("wgan")().schedule(7)[-1] == "generator"


def test_images_are_counted_once_per_critic_update(images):
    trainer = Trainer(ganzoo.create("wgan-gp", width=4, batch=16, critic_steps=3), images)
    run(trainer, 2)
    assert trainer.images_drawn == 2 * 3 * 16


def test_average_of_the_generator_is_the_running_one_and_has_the_running_statistics(images):
    trainer = Trainer(ganzoo.create("wgan-gp", width=4, latent=8, batch=16, ema=0.75), images)
    expected = [p.detach().clone() for p in trainer.networks.generator.parameters()]
    for _ in range(3):
        trainer.step()
        for average, p in zip(expected, trainer.networks.generator.parameters()):
            average.mul_(0.75).add_(p.detach(), alpha=0.25)
    sampling = trainer.sampling().generator
    torch.testing.assert_close(list(sampling.parameters()), expected)
    buffers = list(trainer.networks.generator.buffers())
    assert buffers and all(map(torch.equal, sampling.buffers(), buffers))


def test_without_an_average_the_generator_itself_draws(images):
    trainer = Trainer(ganzoo.create("gan", width=4, batch=16, ema=0.0), images)
    trainer.step()
    sampling = trainer.sampling().generator
    assert all(map(torch.equal, sampling.parameters(), trainer.networks.generator.parameters()))
    assert trainer.networks.generator.training and not sampling.training


def test_sngan_has_unit_spectral_norm_after_some_steps(images):
    trainer = Trainer(ganzoo.create("sngan", width=4, batch=16, discriminator_steps=10), images)
    run(trainer, 3)
    discriminator = trainer.networks.discriminator.eval()
    for layer in discriminator:
        if hasattr(layer, "weight"):
            assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=0.1)


def test_an_epoch_draws_every_image_once():
    trainer = Trainer(ganzoo.create("gan", width=4, batch=5), torch.rand(12, 1, 8, 8))
    drawn = torch.cat([trainer._draw.real() for _ in range(12)]).flatten(1)
    epochs = drawn.split(12)
    for epoch in epochs:
        assert len(epoch.unique(dim=0)) == 12
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(seed=-1), "ganzoo: seed must be a whole number of at least 0 and below 2^63, got -1."),
        (
            dict(device="abacus"),
            "ganzoo: device must be cpu, or an accelerator of this machine such as cuda, got 'abacus'.",
        ),
        (dict(ops="numpy"), "ganzoo: ops must be gankernels or stock, got 'numpy'."),
        (
            dict(images=torch.zeros(64)),
            "ganzoo: data must be a float tensor (N, ...), a data set or a dict of data sets, got torch.float32 (64,).",
        ),
        (
            dict(images=torch.zeros(64, 1, 8, 8, dtype=torch.uint8)),
            "ganzoo: data must be a float tensor (N, ...), a data set or a dict of data sets, got torch.uint8 "
            "(64, 1, 8, 8).",
        ),
        (dict(precision="fp8"), "ganzoo: precision must be one of fp32, bf16, fp16, got 'fp8'."),
        (dict(accumulate=3), "ganzoo: batch must be a multiple of the 3 parts it is cut into, got 64."),
        (dict(images=torch.zeros(63, 1, 8, 8)), "ganzoo: batch must be at most the number of images, 63, got 64."),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(images, options, sentence):
    with pytest.raises(ArgumentError) as refused:
        Trainer(ganzoo.create("gan"), options.pop("images", images), **options)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("wgan-pg", {}, f"ganzoo: variant must be among {', '.join(sorted(TINY))}, got 'wgan-pg'."),
        ("gan", dict(width=0), "ganzoo: width must be at least 1, got 0."),
        ("gan", dict(width="wide"), "ganzoo: width must be a whole number, got 'wide'."),
        ("gan", dict(width=True), "ganzoo: width must be a whole number, got True."),
        ("gan", dict(lr=float("nan")), "ganzoo: lr must be a finite number above 0, got nan."),
        ("gan", dict(ema=1.0), "ganzoo: ema must be at least 0 and below 1, got 1.0."),
        (
            "gan",
            dict(betas=(0.5, 1.0)),
            "ganzoo: betas must be two numbers, each at least 0 and below 1, got (0.5, 1.0).",
        ),
        ("gan", dict(betas=0.5), "ganzoo: betas must be two numbers, each at least 0 and below 1, got 0.5."),
        (
            "gan",
            dict(game="chess"),
            "ganzoo: game must be one of non-saturating, minimax, maximum-likelihood, got 'chess'.",
        ),
        ("wgan", dict(clip=0), "ganzoo: clip must be a finite number above 0, got 0."),
        (
            "gan",
            dict(clip=0.1),
            "ganzoo: gan has no option clip; its options are steps, batch, latent, width, ema, techniques, lr, betas, simultaneous, game.",
        ),
    ],
)
def test_bad_options_are_refused_in_one_sentence(name, options, sentence):
    with pytest.raises(ganzoo.Error) as refused:
        ganzoo.create(name, **options)
    assert str(refused.value) == sentence


def test_a_variant_of_ones_own_trains_saves_and_samples(images, tmp_path, monkeypatch):
    monkeypatch.setattr(base.VARIANTS, "classes", dict(base.VARIANTS.classes))

    @register("mine")
    @dataclass
    class Mine(Variant):
        """The minimax game between two perceptrons, both updating twice."""

        def networks(self, data, ops):
            pixels = torch.Size(data.shape).numel()
            return Networks(
                generator=nn.Sequential(nn.Linear(self.latent, pixels), nn.Tanh(), nn.Unflatten(1, data.shape)),
                judge=nn.Sequential(nn.Flatten(), nn.Linear(pixels, 1), nn.Dropout()),
            )

        def judge_loss(self, networks, draw, ops):
            return minimax_discriminator(
                networks.judge(draw.real()), networks.judge(networks.generator(draw.latents()))
            ), {}

        def generator_loss(self, networks, draw, ops):
            return minimax_generator(networks.judge(networks.generator(draw.latents()))), {}

        def players(self, ops):
            return {
                "judge": Player(("judge",), self.judge_loss, ops.Adam),
                "generator": Player(("generator",), self.generator_loss, ops.Adam),
            }

        def schedule(self, step):
            return ["judge", "generator"] * 2

    first, second = (Trainer(ganzoo.create("mine", width=2), images, seed=1) for _ in range(2))
    assert same(run(first), run(second))  # dropout included
    assert first.images_drawn == STEPS * 2 * 64
    save_checkpoint(tmp_path, first)
    assert torch.equal(ganzoo.load(tmp_path).sample(3), first.sample(3))

    with pytest.raises(ganzoo.Error, match="ganzoo: a variant named mine is already registered."):
        register("mine")(Mine)
