"""Each game of docs/training-loop.md: that the loop hosts it, and that what the page says of it is so."""

import re
from pathlib import Path

import ganzoo
import pytest
import torch
from .conftest import same
from .games import GAMES, Game
from .test_graphs import Imitation
from ganzoo import Trainer
from ganzoo.training import graphs
from ganzoo.training.checkpoint import load_checkpoint, save_checkpoint
from ganzoo.variants import base, register

STEPS = 4
PAGE = Path(__file__).parents[2] / "docs" / "training-loop.md"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(base.VARIANTS, "classes", dict(base.VARIANTS.classes))
    for name, game in GAMES.items():
        register(f"game-{name}")(game)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=GAMES)
def game(request):
    return GAMES[request.param]()


def trained(game, steps=STEPS, **options):
    trainer = Trainer(game, game.data, seed=1, **options)
    for _ in range(steps):
        trainer.step()
    return trainer


def test_every_game_of_the_page_is_here():
    assert len(re.findall(r"^## (?!Off|StyleGAN2|Techniques)", PAGE.read_text(), re.M)) == len(GAMES) == 13


def test_it_trains_resumes_and_samples_without_data(game, tmp_path):
    straight = trained(game)
    first = trained(game, STEPS // 2)
    save_checkpoint(tmp_path, first)
    resumed = Trainer(game, game.data, seed=99)
    resumed.load_state_dict(load_checkpoint(tmp_path))
    for _ in range(STEPS - STEPS // 2):
        resumed.step()
    assert same(straight.state_dict(), resumed.state_dict())

    save_checkpoint(tmp_path, resumed)
    loaded = ganzoo.load(tmp_path)
    assert torch.equal(loaded.sample(5, seed=3), straight.sample(5, seed=3))
    before, after = Trainer(game, game.data, seed=1).networks.state_dict(), straight.networks.state_dict()
    moved = {key.split(".")[0] for key in after if key not in before or not torch.equal(after[key], before[key])}
    assert moved >= {name for player in straight._players.values() for name in player.networks}


@pytest.mark.parametrize(
    "name", [name for name in GAMES if name != "progressive"]
)  # which reads the number of the step
def test_its_steps_can_be_held_in_a_graph(name, monkeypatch):
    monkeypatch.setattr(graphs, "Recorder", Imitation)
    Imitation.recorded = 0
    plain, graphed = (trained(GAMES[name](), 6, cuda_graph=graph) for graph in (False, True))
    assert same(plain.state_dict(), graphed.state_dict()) and Imitation.recorded


# Steps ahead, a softmax over losses and batch norm are not of single samples; a batch of one image has no parts.
@pytest.mark.parametrize("name", sorted(GAMES.keys() - {"unrolled", "gman", "lapgan", "singan"}))
def test_parts_of_its_batches_add_up(name):
    whole, cut = (trained(GAMES[name](), accumulate=parts) for parts in (1, 2))
    torch.testing.assert_close(whole.networks.state_dict(), cut.networks.state_dict(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["unrolled", "cyclegan"])  # weights of others in place, and a loss that fills buffers
def test_its_compiled_losses_train_alike(name):
    eager, compiled = (trained(GAMES[name](), 2, compile=backend) for backend in (False, "aot_eager"))
    torch.testing.assert_close(eager.networks.state_dict(), compiled.networks.state_dict(), rtol=1e-9, atol=1e-12)


# --- what the page says of each ---


def test_wgan_clips_the_critic_alone_and_has_long_phases():
    game = GAMES["wgan"]()
    trainer = trained(game)
    largest = {name: max(p.abs().max() for p in net.parameters()) for name, net in trainer.networks.named_children()}
    assert largest["critic"] == game.clip < largest["generator"]
    assert trainer.updates == {"critic": 4 + 2 + 2 + 4, "generator": 4}


def test_unrolling_moves_the_discriminator_on_its_own_turn_alone():
    trainer = trained(GAMES["unrolled"](), 2)
    before = [p.clone() for p in trainer.networks.discriminator.parameters()]
    trainer._take(["generator"])
    assert all(map(torch.equal, trainer.networks.discriminator.parameters(), before))


def test_prediction_is_of_where_the_generator_is_going():
    trainer, plain = trained(GAMES["prediction"](), 1), trained(Game(), 1)
    figures = trainer.step()
    assert not torch.equal(figures["discriminator_loss"], plain.step()["discriminator_loss"])


def test_pacgan_shows_packs_of_different_samples():
    game = GAMES["pacgan"]()
    trainer = trained(game, 1)
    assert trainer.images_drawn == game.pack_size * game.batch
    x = torch.arange(8.0).view(4, 2)
    assert torch.equal(game.pack(x), torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]]))


def test_bigan_trains_generator_and_encoder_as_one_and_averages_both():
    trainer = trained(GAMES["bigan"]())
    assert set(trainer._averages) == {"generator", "encoder"}


def test_gmans_generator_learns_from_the_weights_of_the_judges_too():
    game = GAMES["gman"]()
    trainer = Trainer(game, game.data, seed=1)
    trainer._differentiate("generator", (), 0, trainer._draw)
    through = [param.grad for param in trainer._params["generator"]]
    losses = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    (torch.softmax(game.strength * losses, 0) * losses).sum().backward()
    assert not torch.allclose(losses.grad, torch.softmax(game.strength * losses.detach(), 0)) and through[0].any()


def test_mgans_latents_choose_the_head():
    game = GAMES["mgan"]()
    trainer = trained(game)
    latents = game.latents(64, torch.Generator().manual_seed(0))
    assert set(latents[:, -1].tolist()) == {0, 1, 2}
    head = trainer.networks.generator.heads[1]
    torch.testing.assert_close(
        trainer.networks.generator(latents)[latents[:, -1] == 1],
        head(trainer.networks.generator.trunk(latents[latents[:, -1] == 1, :-1])),
    )


def test_cogan_samples_pairs_side_by_side():
    trainer = trained(GAMES["cogan"]())
    assert trainer.sample(3).shape == (3, 1, 8, 16)
    assert trainer.state_dict()["positions"] == {"a": STEPS * 8, "b": STEPS * 8}


def test_cyclegan_fills_its_pools_and_samples_from_the_images_it_keeps():
    trainer = trained(GAMES["cyclegan"]())
    networks = trainer.networks
    assert networks.pool_a.filled == networks.pool_b.filled == 6 and networks.pool_a.images.flatten(1).any(1).all()
    latents = trainer.variant.latents(5, torch.Generator().manual_seed(3))
    torch.testing.assert_close(trainer.sample(5, seed=3), networks.to_b(trainer.variant.chosen(networks, latents)))


def test_lapgan_goes_up_the_pyramid():
    trainer = trained(GAMES["lapgan"]())
    assert trainer.sample(3).shape == (3, 1, 16, 16)
    assert all(count == STEPS for count in trainer.updates.values()) and len(trainer.updates) == 4


def test_singan_starts_a_scale_from_the_one_before_and_leaves_it_alone():
    trainer = trained(GAMES["singan"](), 2)
    before = {key: value.clone() for key, value in trainer.networks.state_dict().items()}
    trainer._enter(1)
    after = trainer.networks.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items() if key != "amplitudes")
    assert all(
        torch.equal(after[key.replace("g0.", "g1.")], value) for key, value in before.items() if key[:3] == "g0."
    )
    trainer.step()
    assert all(
        torch.equal(trainer.networks.g0.state_dict()[key[3:]], before[key]) for key in before if key[:3] == "g0."
    )
    assert trainer.variant.samplers == ("g0", "g1", "amplitudes")
    assert trainer.sample(2).shape == (2, 1, 16, 16)


def test_progressive_growing_keeps_weights_and_averages_and_fades_in():
    game = GAMES["progressive"]()
    trainer = trained(game, 2)
    assert trainer.sample(2).shape == (2, 1, 4, 4)
    average = trainer.sampling().generator.b4.weight.clone()
    assert not torch.equal(average, trainer.networks.generator.b4.weight)
    trainer._enter(1)
    assert torch.equal(trainer.sampling().generator.b4.weight, average)
    assert not trainer._optimizers["generator"].state and trainer.networks.length > 0
    assert [trainer.variant.alpha(step) for step in (2, 3, 4)] == [0.5, 1, 1]
    trainer.step()
    assert trainer.sample(2).shape == (2, 1, 8, 8)
