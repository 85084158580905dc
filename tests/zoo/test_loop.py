"""What the loop hosts, each against the same thing written out by hand."""

import copy
import io
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from .conftest import DATA, same, small_options
from .toy import POINTS, Growing, Toy, points
from torch.func import functional_call

import ganzoo
from ganzoo import Trainer
from ganzoo.data.base import DataSet, Paired
from ganzoo.errors import Error
from ganzoo.training.draw import Order, Source
from ganzoo.training.health import Diverged, Health, alarms, cut_short
from ganzoo.variants import Regularizer, create


def weights(trainer):
    return {name: param.detach().clone() for name, param in trainer.networks.named_parameters()}


def run(trainer, steps=3):
    return [trainer.step() for _ in range(steps)]


def resumed(trainer, variant, **options):
    """Another trainer that goes on from the state of this one, through a file."""
    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    file.seek(0)
    other = Trainer(variant, points(), seed=99, **options)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def gradients(trainer, name):
    trainer._differentiate(
        name, trainer._due(name, trainer.updates[name]), sum(trainer.updates.values()), trainer._draw
    )
    return [param.grad.clone() for param in trainer._params[name]]


@pytest.mark.parametrize("turns", [("discriminator", "generator"), (("discriminator", "generator"),)])
def test_alternating_and_simultaneous_updates(turns):
    trainer = Trainer(Toy(turns=turns, optimizer="SGD"), points())
    twin = copy.deepcopy(trainer.networks)
    trainer._draw.begin(0)
    real, z = trainer._draw.real(), trainer._draw.latents()
    trainer._draw.begin(1)
    z_of_generator = trainer._draw.latents()
    trainer._draw.positions[""] = 0
    trainer.step()

    f = torch.nn.functional.softplus
    loss = f(-twin.discriminator(real)).mean() + f(twin.discriminator(twin.generator(z))).mean()
    slopes = torch.autograd.grad(loss, list(twin.discriminator.parameters()))
    stepped = [p - 0.01 * slope for p, slope in zip(twin.discriminator.parameters(), slopes)]
    seen = dict(zip(dict(twin.discriminator.named_parameters()), stepped)) if turns[0] == "discriminator" else {}
    loss = f(-functional_call(twin.discriminator, seen, twin.generator(z_of_generator))).mean()
    slopes = torch.autograd.grad(loss, list(twin.generator.parameters()))
    expected = [p - 0.01 * slope for p, slope in zip(twin.generator.parameters(), slopes)]
    torch.testing.assert_close(list(trainer.networks.discriminator.parameters()), stepped)
    torch.testing.assert_close(list(trainer.networks.generator.parameters()), expected)


@pytest.mark.parametrize("optimizer", ["Adam", "RMSprop", "SGD"])
def test_an_unrolled_discriminator_is_where_its_optimiser_would_take_it(optimizer):
    """The loss is that of a discriminator stepped on a copy; the gradient is the copy's plus what flows through the steps."""
    variant = Toy(optimizer=optimizer, change={"generator": dict(unroll={"discriminator": 2})})
    trainer = Trainer(variant, points())
    run(trainer)  # the optimiser has a state

    def loss_after_steps(trainer):
        """By copies: steps the discriminator twice, then takes the generator's loss, from the same draws."""
        twin = copy.deepcopy(trainer.networks).requires_grad_(True)
        optimizer = type(trainer._optimizers["discriminator"])(twin.discriminator.parameters(), lr=0.01)
        optimizer.load_state_dict(copy.deepcopy(trainer._optimizers["discriminator"].state_dict()))
        trainer._draw.begin(sum(trainer.updates.values()))
        for _ in range(2):
            optimizer.zero_grad()
            trainer.variant.discriminator_loss(twin, trainer._draw, None)[0].backward()
            optimizer.step()
        return trainer.variant.generator_loss(twin, trainer._draw, None)[0].item()

    before = weights(trainer)
    expected, started = loss_after_steps(trainer), dict(trainer._draw._began)
    trainer._draw.positions.update(started)
    figures = trainer._differentiate("generator", (), 6, trainer._draw)
    assert figures["generator_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert same(weights(trainer), before)  # nobody has moved

    # a central difference along the gradient sees both of its parts
    slopes = [param.grad.double() for param in trainer._params["generator"]]
    norm = sum(slope.square().sum() for slope in slopes).sqrt()
    losses = []
    for sign in (1, -1):
        probe = copy.copy(trainer)
        probe.networks = copy.deepcopy(trainer.networks)
        for param, slope in zip(probe.networks.generator.parameters(), slopes):
            param.data += sign * 1e-2 * (slope / norm).float()
        probe.updates = {"discriminator": 3, "generator": 3}
        probe._draw.positions.update(started)
        losses.append(loss_after_steps(probe))
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(norm.item(), rel=2e-2)


def test_unrolling_adds_the_term_that_copy_step_restore_lacks():
    flat, full = (
        Trainer(Toy(change={"generator": change}, lr=0.1), points())
        for change in ({}, {"unroll": {"discriminator": 5}})
    )
    assert not torch.allclose(gradients(flat, "generator")[0], gradients(full, "generator")[0], rtol=1e-2)


def test_a_looked_ahead_generator_is_seen_by_the_discriminator_alone():
    variant = Toy(change={"discriminator": dict(lookahead=("generator",))})
    trainer = Trainer(variant, points())
    before = weights(trainer)
    plain = Trainer(Toy(), points())
    plain.step(), trainer.step()
    assert same(weights(plain), weights(trainer))  # w = w₋ before the first update of the generator
    after = weights(trainer)
    ahead = {k: 2 * after[k] - before[k] for k in after if k.startswith("generator")}
    trainer._draw.begin(2)
    expected = functional_call(trainer.networks, ahead, (variant.discriminator_loss, trainer._draw, None))[0].item()
    trainer._draw.positions[""] = 8
    figures = trainer._differentiate("discriminator", (), 2, trainer._draw)
    trainer.updates["discriminator"] += 1
    assert figures["discriminator_loss"].item() == pytest.approx(expected, rel=1e-6)
    assert same(weights(trainer), after)
    other = resumed(trainer, variant)
    assert same(run(trainer), run(other))


def test_lazy_regularizers_come_every_so_often_and_as_much_larger():
    def decay(networks, draw, ops):
        return sum(p.square().sum() for p in networks.discriminator.parameters()), {}

    lazy = Toy(change={"discriminator": dict(regularizers={"decay": Regularizer(decay, every=3)})})
    trainer, plain = Trainer(lazy, points()), Trainer(Toy(), points())
    with_term, without = gradients(trainer, "discriminator"), gradients(plain, "discriminator")
    for a, b, p in zip(with_term, without, trainer.networks.discriminator.parameters()):
        torch.testing.assert_close(a, b + 3 * 2 * p.detach())
    trainer = Trainer(lazy, points())
    assert [("decay" in figures) for figures in run(trainer, 7)] == [True, False, False, True, False, False, True]


def test_a_joint_regularizer_stands_in_for_the_loss():
    def decay(networks, draw, ops):
        return sum(p.square().sum() for p in networks.discriminator.parameters()), {}

    def joint(networks, draw, ops):
        loss, figures = Toy().discriminator_loss(networks, draw, ops)
        return loss + 3 * decay(networks, draw, ops)[0], figures

    def trained(term):
        trainer = Trainer(Toy(change={"discriminator": dict(regularizers={"decay": term})}), points())
        return [figures["discriminator_loss"] for figures in run(trainer, 7)], weights(trainer)

    both, beside = trained(Regularizer(joint, every=3, joint=True)), trained(Regularizer(decay, every=3))
    torch.testing.assert_close(both, beside)


def test_two_joint_regularizers_are_refused():
    terms = {key: Regularizer(Toy().discriminator_loss, every, joint=True) for key, every in (("r1", 2), ("r2", 3))}
    sentence = "^ganzoo: one regularizer of the discriminator can be joint with its loss, and r1 and r2 are.$"
    with pytest.raises(ganzoo.Error, match=sentence):
        Trainer(Toy(change={"discriminator": dict(regularizers=terms)}), points())


def test_controllers_follow_an_update_and_are_resumed():
    def count(networks, figures):
        networks.count += figures["real"] + 1

    variant = Toy(change={"discriminator": dict(after=count)})
    trainer = Trainer(variant, points())
    expected = sum(figures["real"].item() + 1 for figures in run(trainer))
    assert trainer.networks.count.item() == pytest.approx(expected)
    other = resumed(trainer, variant)
    run(trainer), run(other)
    assert trainer.networks.count == other.networks.count != 0


def test_learning_rates_follow_their_schedule_also_after_a_resume():
    variant = Toy(change={"generator": dict(lr=lambda step: 1 - step / 10)})
    trainer = Trainer(variant, points())
    run(trainer, 4)
    assert trainer._optimizers["generator"].param_groups[0]["lr"] == pytest.approx(0.01 * 0.7)
    assert trainer._optimizers["discriminator"].param_groups[0]["lr"] == 0.01
    other = resumed(trainer, variant)
    assert same(run(trainer), run(other)) and same(trainer.state_dict(), other.state_dict())


def test_phases_rebuild_the_networks_and_keep_what_they_share():
    variant = Growing(change={"generator": dict(ema=0.5)})
    trainer = Trainer(variant, points())
    run(trainer, 2)
    before, average = weights(trainer), [p.clone() for p in trainer.sampling().generator.parameters()]
    trainer._enter(1)
    after = weights(trainer)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert set(after) - set(before) == {"generator.3.weight", "generator.3.bias"}
    assert all(map(torch.equal, trainer.sampling().generator.parameters(), average))
    assert trainer.networks.count != 0 and trainer.variant.phase == 1 and variant.phase == 0

    straight = Trainer(variant, points(), seed=4)
    run(straight, 3)
    other = resumed(straight, variant)
    assert same(run(straight), run(other)) and same(straight.state_dict(), other.state_dict())


def test_players_that_come_with_a_phase_draw_numbers_of_their_own():
    drawn = []

    class Levels(Toy):
        def phase_at(self, step):
            return min(step, 1)

        def players(self, ops):
            return {f"{name}{self.phase}": player for name, player in super().players(ops).items()}

        def schedule(self, step):
            return [f"{name}{self.phase}" for name in self.turns]

        def latents(self, count, generator):
            drawn.append(super().latents(count, generator))
            return drawn[-1]

    trainer = Trainer(Levels(), points())
    run(trainer, 2)
    assert len(torch.stack(drawn).unique(dim=0)) == 4
    assert trainer.updates == {"discriminator0": 1, "generator0": 1, "discriminator1": 1, "generator1": 1}


def test_players_without_names_are_refused_in_a_sentence():
    class Listed(Toy):
        def players(self, ops):
            return list(super().players(ops).values())

    with pytest.raises(Error, match=r"Listed\.players must return Players by name, a dict, and returned \[Player"):
        Trainer(Listed(), points())


@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_of_the_parts_of_a_batch_add_up(parts):
    whole, cut = Trainer(Toy(), points()), Trainer(Toy(), points(), accumulate=parts)
    for one, other in zip(run(whole), run(cut)):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(weights(whole), weights(cut))
    assert whole.images_drawn == cut.images_drawn


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["gan", "wgan-gp", "sngan", "r3gan"])
def test_lower_precision_trains_alike(precision, name, images):
    variant = ganzoo.create(name, width=4, latent=8, batch=16)
    full, low = Trainer(variant, images), Trainer(variant, images, precision=precision)
    for one, other in zip(run(full, 2), run(low, 2)):
        for key, value in one.items():
            torch.testing.assert_close(other[key].float(), value, rtol=0.05, atol=0.05)
    assert all(p.dtype == torch.float32 for p in low.networks.parameters())


def test_fp16_skips_a_step_whose_gradients_overflow():
    trainer = Trainer(Toy(), points(), precision="fp16")
    before = weights(trainer)
    trainer._scalers["discriminator"]._init_scale = 2.0**126
    trainer._take(["discriminator"])
    assert same(weights(trainer), before)
    assert trainer._scalers["discriminator"].get_scale() == 2.0**125


@pytest.mark.parametrize("name", ["wgan-gp", "sngan", "r3gan"])
def test_compiled_losses_train_alike_and_resume(name, images):
    variant = ganzoo.create(name, width=2, latent=4, batch=4)
    eager, compiled = Trainer(variant, images), Trainer(variant, images, compile="aot_eager")
    for one, other in zip(run(eager, 2), run(compiled, 2)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert eager.images_drawn == compiled.images_drawn


def test_the_order_of_data_is_a_function_of_seed_and_position():
    order = Order(10, 3)
    everything = order[0:40]
    assert torch.equal(torch.cat([Order(10, 3)[start : start + 7] for start in range(0, 35, 7)]), everything[:35])
    for epoch in everything.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(Order(10, 4)[0:10], everything[:10])


class OnDisk(DataSet):
    """Points that are fetched as from a disk."""

    def __init__(self):
        super().__init__("points", (2,))
        self.asked = []

    def __len__(self):
        return len(POINTS)

    def fetch(self, indices):
        self.asked.append(len(indices))
        return {"image": POINTS[indices]}


def test_fetching_ahead_changes_nothing():
    in_memory, ahead = Trainer(Toy(), points(), seed=1), Trainer(Toy(), OnDisk(), seed=1)
    assert same(run(in_memory, 12), run(ahead, 12))
    source = Source(OnDisk(), 0)
    first = source.fetch(0, 8, 8)
    assert (8, 16) in source._coming and (24, 32) in source._coming
    assert not torch.equal(first["image"], source.fetch(8, 16, 8)["image"])


def test_domains_have_orders_of_their_own():
    class Unpaired(Toy):
        def discriminator_loss(self, networks, draw, ops):
            self.seen = a, b = draw.real("a"), draw.real("b")
            return (networks.discriminator(a) - networks.discriminator(b)).mean(), {}

    trainer = Trainer(Unpaired(), {"a": points(), "b": points()})
    trainer.step()
    a, b = trainer.variant.seen
    assert not torch.equal(a, b) and trainer.state_dict()["positions"] == {"a": 8, "b": 8}
    assert trainer.data.fields == {"a": (2,), "b": (2,)}


def test_data_of_another_kind_than_a_variant_draws_are_refused():
    class OfTwoDomains(Toy):
        def generator_loss(self, networks, draw, ops):
            return draw.real("b").mean(), {}

    with pytest.raises(
        ganzoo.Error,
        match="the loss of discriminator draws single images, and a sample of the data has a, b instead",
    ):
        Trainer(Toy(), Paired(points(), points(), "pairs")).step()
    with pytest.raises(ganzoo.Error, match="the loss of generator draws from a domain b, which the data do not have"):
        Trainer(OfTwoDomains(), points()).step()
    with pytest.raises(
        ganzoo.Error, match="the loss of discriminator draws from one data set, and the data are the domains a, b"
    ):
        Trainer(Toy(), {"a": points(), "b": points()}).step()


@pytest.mark.parametrize("options", [{}, {"compile": "eager"}])
def test_a_field_that_the_data_lack_is_named_with_the_loss_that_asks_for_it(options):
    def classes(networks, draw, ops):
        return draw.batch()["label"].float().mean(), {}

    lazy = {"discriminator": dict(regularizers={"classes": Regularizer(classes)})}
    sentence = (
        "ganzoo: the loss of discriminator.classes asks for the field label of points, a sample of which has image."
    )
    with pytest.raises(ganzoo.Error, match=f"^{re.escape(sentence)}$"):
        Trainer(Toy(change=lazy), points(), **options).step()


def test_divergence_names_the_step_and_the_term():
    health = Health()
    health.note(7, {"critic_loss": torch.tensor(1.0), "gradient_penalty": torch.tensor(0.5)})
    health.note(8, {"critic_loss": torch.tensor(float("inf")), "gradient_penalty": torch.tensor(float("inf"))})
    health.note(9, {"critic_loss": torch.tensor(float("nan")), "gradient_penalty": torch.tensor(float("nan"))})
    with pytest.raises(Diverged, match="ganzoo: training diverged: gradient penalty is inf at step 8."):
        health.check()
    health.note(10, {"critic_loss": torch.tensor(2e9)})
    with pytest.raises(Diverged, match=r"critic loss is 2e\+09 at step 10."):
        health.check()


def test_alarms_sound_for_collapse_and_for_a_discriminator_that_wins_and_not_otherwise():
    class Judged(Toy):
        adversary = "discriminator"

        def scores(self, networks, images, labels=None):
            return images[:, 0]

    trainer = Trainer(Judged(), points())
    assert alarms(trainer, POINTS[:64] + 0.1) == []
    (said,) = alarms(trainer, POINTS[:64] * 0.01)
    assert said.startswith("the samples are nearly alike: they differ by 1.0%")
    (said,) = alarms(trainer, POINTS[:64] - 9)
    assert said.startswith("the discriminator overpowers: it scores 100.0%")


def test_a_training_that_ends_before_its_game_has_begun_or_its_networks_have_grown_says_so():
    class Late(Toy):
        def schedule(self, step):
            return ["generator"] if step < 3 else [("discriminator", "generator")]

    for variant, steps, said in [
        (Late, 3, ["in 3 steps nothing trains the discriminator; it takes at least 4"]),
        (Late, 4, []),
        (partial(Toy, turns=("generator",)), 4, ["in 4 steps nothing trains the discriminator"]),
        (Growing, 2, ["in 2 steps the networks do not grow to their end; it takes at least 3"]),
        (Growing, 3, []),
    ]:
        assert cut_short(Trainer(variant(steps=steps), points())) == said


@pytest.mark.parametrize("name", ["srgan", "stylegan", "stylegan-t", "singan"])
def test_variants_with_a_first_phase_of_two_steps_need_a_third(name):
    word, *options = DATA.get(name, ("digits",))
    data = ganzoo.data.open(word, **dict(option.split("=") for option in options))
    variant = create(name, **small_options(name))
    (said,) = cut_short(Trainer(replace(variant, steps=2), data))
    assert said.startswith("in 2 steps ") and said.endswith("; it takes at least 3")
    assert cut_short(Trainer(replace(variant, steps=3), data)) == []
