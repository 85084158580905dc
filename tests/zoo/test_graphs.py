"""Steps in CUDA graphs. Without a GPU all but capture and replay is run: what a graph would hold runs instead, on the buffers."""

import io

import pytest
import torch
from .conftest import same
from .toy import Growing, Toy, points

import ganzoo
from ganzoo import Trainer
from ganzoo.training import graphs
from ganzoo.variants import Regularizer


class Imitation:
    """A recorder whose recordings are the functions themselves, and counted."""

    recorded = 0

    def __init__(self, device):
        pass

    def aside(self, function):
        return function()

    def record(self, function):
        Imitation.recorded += 1
        return function


@pytest.fixture
def imitated(monkeypatch):
    monkeypatch.setattr(graphs, "Recorder", Imitation)
    Imitation.recorded = 0


def decay(networks, draw, ops):
    return sum(p.square().sum() for p in networks.discriminator.parameters()) * draw.uniform().mean(), {}


def count(networks, figures):
    networks.count += figures["real"] + 1


class Uneven(Toy):
    """A game in which every third step is longer, so that the second lazy term falls on another turn each time."""

    def schedule(self, step):
        return ["discriminator"] * (1 if step % 3 else 3) + ["generator"]


GAMES = {
    "plain": Toy(),
    "RMSprop": Toy(optimizer="RMSprop"),
    "at once": Toy(turns=(("discriminator", "generator"),)),
    "several steps": Toy(turns=("discriminator", "discriminator", "generator")),
    "average": Toy(change={"generator": dict(ema=0.5)}),
    "schedule": Toy(change={"generator": dict(lr=lambda step: 1 - step / 20)}),
    "lazy terms": Toy(change={"discriminator": dict(regularizers={"decay": Regularizer(decay, every=3)})}),
    "uneven steps": Uneven(change={"discriminator": dict(regularizers={"decay": Regularizer(decay, every=2)})}),
    "controller": Toy(change={"discriminator": dict(after=count)}),
    "lookahead": Toy(change={"discriminator": dict(lookahead=("generator",))}),
    "unrolled": Toy(change={"generator": dict(unroll={"discriminator": 2})}),
    "phases": Growing(change={"generator": dict(ema=0.5)}),
}


def run(trainer, steps=8):
    return [trainer.step() for _ in range(steps)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("game", GAMES)
def test_steps_on_buffers_are_the_same_steps(game, precision, imitated):
    options = dict(seed=1, precision=precision)
    plain, graphed = (
        Trainer(GAMES[game], points(), **options),
        Trainer(GAMES[game], points(), **options, cuda_graph=True),
    )
    assert same(run(plain), run(graphed)) and Imitation.recorded
    assert same(plain.state_dict(), graphed.state_dict())


def test_variants_on_buffers_are_the_same_variants(tiny, tiny_data, imitated):
    parts = min(2, tiny.batch)
    plain, graphed = (Trainer(tiny, tiny_data, accumulate=parts, cuda_graph=graphed) for graphed in (False, True))
    assert same(run(plain, 3), run(graphed, 3)) and Imitation.recorded
    assert same(plain.state_dict(), graphed.state_dict())


def test_every_combination_of_terms_is_captured_once(imitated):
    terms = {"two": Regularizer(decay, every=2), "four": Regularizer(decay, every=4)}
    trainer = Trainer(Toy(change={"discriminator": dict(regularizers=terms)}), points(), cuda_graph=True)
    run(trainer, 12)
    assert Imitation.recorded == 3  # neither, two, both, each with the generator's turn


@pytest.mark.parametrize("before, after", [(False, True), (True, False), (True, True)])
def test_a_run_goes_on_with_graphs_and_without(before, after, imitated):
    variant = GAMES["schedule"]
    straight, file = Trainer(variant, points(), cuda_graph=before), io.BytesIO()
    run(straight)
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = Trainer(variant, points(), cuda_graph=after, seed=99)
    run(resumed, 3)  # whose graphs hold on to what loading replaces
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert same(run(straight), run(resumed)) and same(straight.state_dict(), resumed.state_dict())


def test_a_step_that_overflows_is_undone(imitated):
    variant = Toy(change={"discriminator": dict(ema=0.5)})
    trainers = [Trainer(variant, points(), precision="fp16", cuda_graph=graphed) for graphed in (False, True)]
    states = []
    for trainer in trainers:
        trainer._scalers["discriminator"]._init_scale = 2.0**127  # the first steps overflow and leave no state
        run(trainer, 2)
        assert not trainer._optimizers["discriminator"].state
        trainer._scalers["discriminator"].update(2.0**10)
        run(trainer, 3)
        trainer._scalers["discriminator"].update(2.0**127)
        before = trainer.state_dict()["optimizers"]["discriminator"]["state"][0]["exp_avg"].clone()
        run(trainer, 1)
        assert torch.equal(trainer.state_dict()["optimizers"]["discriminator"]["state"][0]["exp_avg"], before)
        states.append(trainer.state_dict())
    assert same(*states) and states[0]["scalers"]["discriminator"]["scale"] == 2.0**126


def test_what_a_graph_cannot_hold_is_refused_in_one_sentence(imitated, monkeypatch):
    class Fading(Toy):
        def generator_loss(self, networks, draw, ops):
            loss, figures = super().generator_loss(networks, draw, ops)
            return loss * draw.step, figures

    class Changing(Toy):
        def generator_loss(self, networks, draw, ops):
            draw.uniform() if next(self.calls) else draw.normal()
            return super().generator_loss(networks, draw, ops)

    with pytest.raises(ganzoo.Error, match=r"^ganzoo: a loss that is compiled or captured cannot read draw.step, "):
        Trainer(Fading(), points(), cuda_graph=True).step()
    changing = Changing()
    changing.calls = iter((True, False))
    with pytest.raises(ganzoo.Error, match="must draw the same at every call, and now asks for normal"):
        run(Trainer(changing, points(), cuda_graph=True))
    with pytest.raises(
        ganzoo.ArgumentError, match="cuda_graph must be used with optimisers that are capturable, got SGD"
    ):
        Trainer(Toy(optimizer="SGD"), points(), cuda_graph=True)
    monkeypatch.undo()
    with pytest.raises(ganzoo.ArgumentError, match="^ganzoo: cuda_graph must be used on a CUDA device, got cpu.$"):
        Trainer(Toy(), points(), cuda_graph=True)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_captured_variants_train_alike(tiny, precision, tiny_data):
    options = dict(device="cuda", precision=precision)
    plain, graphed = Trainer(tiny, tiny_data, **options), Trainer(tiny, tiny_data, **options, cuda_graph=True)
    for one, other in zip(run(plain), run(graphed)):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert all(plan.replay for plan in graphed._graphs._plans.values())
    torch.testing.assert_close(plain.sample(8), graphed.sample(8), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("game", GAMES)
def test_captured_steps_train_alike(game):
    options = dict(seed=1, device="cuda")
    plain, graphed = (
        Trainer(GAMES[game], points(), **options),
        Trainer(GAMES[game], points(), **options, cuda_graph=True),
    )
    for one, other in zip(run(plain), run(graphed)):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
