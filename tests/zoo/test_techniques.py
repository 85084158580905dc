"""Each technique against the mistake that it is known to be made with, and all of them in the loop."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from .conftest import same
from .toy import Growing, Toy, points

import ganzoo
from ganzoo import Trainer
from ganzoo.objectives import hinge_discriminator, least_squares_discriminator, minimax_discriminator
from ganzoo.techniques import augment, list_techniques, technique_class
from ganzoo.techniques.base import equipped, parsed, plain
from ganzoo.techniques.minibatch_discrimination import Amid
from ganzoo.techniques.virtual_batch_norm import VirtualNorm
from ganzoo.training.ops import get_ops

TINY = dict(width=2, latent=4, batch=8)
AT_ONCE = (
    "ada:start=0.5,images=100",
    "diffaugment",
    "historical-averaging",
    "instance-noise:anneal=4",
    "label-flips",
    "label-noise",
    "label-smoothing",
    "lazy-r1:every=2",
    "n-critic:n=2",
    "prediction",
    "virtual-batch-norm:reference=8",
)
"""Techniques that leave each sample to itself, so that a batch may be cut."""


def tiny(images, *techniques, name="gan", **options):
    return Trainer(ganzoo.create(name, techniques=techniques, **TINY), images, seed=3, **options)


def in_the_plane(*techniques, **options):
    return Trainer(Toy(techniques=techniques, **options), points(), seed=3)


def run(trainer, steps=3):
    return [trainer.step() for _ in range(steps)]


def saved(trainer):
    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def gradients(trainer, player):
    figures = trainer._differentiate(player, trainer._due(player, trainer.updates[player]), 77, trainer._draw)
    return [param.grad.clone() for param in trainer._params[player]], figures


def weights(network):
    return [param.detach().clone() for param in network.parameters()]


def shown(trainer, player, network="discriminator"):
    """What a network is given during the loss of a player, one after another, and what the generator gave."""
    seen, made = [], []
    handles = [
        getattr(trainer.networks, network).register_forward_pre_hook(lambda _, given: seen.append(given[0])),
        trainer.networks.generator.register_forward_hook(lambda _, __, result: made.append(result)),
    ]
    gradients(trainer, player)
    for handle in handles:
        handle.remove()
    trainer._draw.begin(77)
    trainer._draw.positions.update(trainer._draw._began)
    return seen, trainer._draw.real(), made[0]


def certain(trainer, score):
    """Let the discriminator give every sample this score."""
    layer = [m for m in trainer.networks.discriminator.modules() if isinstance(m, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(layer.weight), torch.nn.init.constant_(layer.bias, score)


def softplus(score):
    return math.log1p(math.exp(score))


# --- in the loop ---


@pytest.mark.parametrize("technique", list_techniques())
def test_every_technique_trains_resumes_to_the_bit_and_samples_without_data(technique, images, tmp_path):
    from ganzoo.training.checkpoint import save_checkpoint

    straight, without = tiny(images, technique), tiny(images)
    run(straight, 2), run(without, 2)
    assert not same(straight.state_dict(), without.state_dict())
    resumed = tiny(images, technique)
    resumed.seed = 99
    resumed.load_state_dict(saved(straight))
    assert same(run(straight, 2), run(resumed, 2)) and same(straight.state_dict(), resumed.state_dict())
    save_checkpoint(tmp_path, straight)
    assert torch.equal(ganzoo.load(tmp_path).sample(5, seed=2), straight.sample(5, seed=2))


def test_ours_and_stock_train_alike(images):
    all_at_once = (*AT_ONCE, "feature-matching", "minibatch-discrimination:features=3,dims=2")
    ours, stock = (tiny(images, *all_at_once, name="dragan", ops=ops) for ops in ("gankernels", "stock"))
    for one, other in zip(run(ours, 2), run(stock, 2)):
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=2e-3, atol=2e-4, msg=lambda m: f"{name}: {m}")


def test_what_is_drawn_belongs_to_the_sample_however_the_batch_is_cut(images):
    whole, cut = tiny(images, *AT_ONCE, name="unrolled"), tiny(images, *AT_ONCE, name="unrolled", accumulate=4)
    for one, other in zip(run(whole, 2), run(cut, 2)):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_what_is_drawn_belongs_to_the_sample_where_two_batches_are_shown_as_one():
    labelled, options = ganzoo.data.open("ring", n=256), dict(TINY, techniques=("instance-noise:sigma=1",))
    whole, cut = (Trainer(ganzoo.create("acgan", **options), labelled, seed=3, accumulate=parts) for parts in (1, 2))
    for one, other in zip(run(whole, 2), run(cut, 2)):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_compiled_losses_train_alike():
    techniques = (
        "feature-matching historical-averaging instance-noise label-flips lazy-r1 minibatch-discrimination".split()
    )
    eager, compiled = (
        Trainer(Toy(techniques=techniques), points(), compile=compile) for compile in (False, "aot_eager")
    )
    for one, other in zip(run(eager, 2), run(compiled, 2)):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_variant_without_techniques_is_left_as_it_is():
    variant = ganzoo.create("gan")
    assert type(equipped(variant)) is type(variant)


def test_techniques_go_around_networks_that_grow():
    trainer = Trainer(Growing(techniques=("historical-averaging", "instance-noise")), points())
    figures = run(trainer, 3)
    assert trainer.variant.phase == 1 and trainer.networks.history_of_generator[-1] == 2
    assert figures[-1]["history_of_generator"] == 0  # of weights that are all there was in this phase
    assert trainer.networks.instance_noise_updates == 3


@pytest.mark.parametrize(
    "techniques, sentence",
    [
        (["adda"], f"ganzoo: techniques must be among {', '.join(list_techniques())}, got 'adda'."),
        (["ada:goal=1"], "ganzoo: ada has no option goal; its options are target, images, start."),
        (["prediction:k=1"], "ganzoo: prediction has no option k; its options are none."),
        (
            ["ema:decay"],
            "ganzoo: techniques must be given options as in ema:option=value,option=value, got 'ema:decay'.",
        ),
        (["ema:decay=1"], "ganzoo: the option decay of ema must be at least 0 and below 1, got 1.0."),
        (["n-critic:n=two"], "ganzoo: the option n of n-critic must be a whole number, got 'two'."),
        (["diffaugment:color=1"], "ganzoo: the option color of diffaugment must be true or false, got '1'."),
        (["ema", "ada", "ema"], "ganzoo: techniques must be different ones, got ema, ada, ema."),
    ],
)
def test_techniques_that_do_not_exist_are_refused_in_one_sentence(techniques, sentence):
    with pytest.raises(ganzoo.Error) as refused:
        ganzoo.create("gan", techniques=techniques)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    "name, options, technique, because",
    [
        ("ebgan", {}, "instance-noise", "it has no network that scores samples"),
        ("wgan-gp", {}, "label-smoothing", "its discriminator is told no labels"),
        ("wgan-gp", {}, "ada", "its discriminator does not say real or generated, so that it cannot be seen to overfit"),
        ("sngan", {}, "minibatch-discrimination", "the weights of its discriminator are normalised, and those of the new"),
        ("reg-gan", {}, "feature-matching", "it does not have one player that trains the generator and nothing else"),
        ("gan", dict(simultaneous=True), "n-critic", "its two sides move at once"),
    ],
)  # fmt: skip
def test_a_technique_that_does_not_fit_says_why(name, options, technique, because, images):
    with pytest.raises(ganzoo.Error, match=f"^ganzoo: {technique} does not fit {name}: {because}"):
        Trainer(ganzoo.create(name, techniques=[technique], **options, **TINY), images).step()


@pytest.mark.parametrize("technique", ["ada", "diffaugment"])
def test_points_are_not_augmented(technique):
    with pytest.raises(ganzoo.Error, match=f"{technique} does not fit Toy: it augments images, and a sample of points"):
        in_the_plane(technique)


def test_the_command_line_switches_them_on_and_a_resumed_run_has_them(forked_command, tmp_path):
    options = "--data ring --width 2 --latent 4 --batch 8 --no-tensorboard --compare-blocks 1 --save-every 2".split()
    techniques = "--techniques instance-noise:sigma=0.3 virtual-batch-norm prediction".split()
    for steps in (2, 4):
        out = tmp_path / str(steps)
        forked_command("train", "gan", *options, *techniques, "--steps", steps, "--runs", out)
    (short,), (straight,) = (tuple((tmp_path / str(steps)).iterdir()) for steps in (2, 4))
    forked_command("resume", short, "--steps", 4)
    assert (short / "generator.safetensors").read_bytes() == (straight / "generator.safetensors").read_bytes()
    assert torch.load(short / "checkpoint.pt", weights_only=True)["networks"]["instance_noise_updates"] == 4
    forked_command("sample", short, "--n", 4, "--out", tmp_path / "samples.png")


# --- labels ---


def test_smoothing_is_of_real_samples_alone_and_of_the_discriminator_alone():
    trainer = in_the_plane("label-smoothing:smoothing=0.1")
    certain(trainer, 2.0)
    _, figures = gradients(trainer, "discriminator")
    expected = 0.9 * softplus(-2) + 0.1 * softplus(2) + softplus(2)
    assert figures["discriminator_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert gradients(trainer, "generator")[1]["generator_loss"].item() == pytest.approx(softplus(-2), rel=1e-5)


def told(technique, loss, real, fake):
    """A discriminator's loss on these scores under a technique."""
    trainer = in_the_plane(technique)
    around = trainer.variant._told(lambda networks, draw, ops: loss(real, fake))
    trainer._draw.begin(0)
    return around(trainer.networks, trainer._draw, None)


def test_soft_labels_are_codes_in_between_for_least_squares():
    real = torch.tensor([0.3, -2.0], requires_grad=True)
    loss = told("label-smoothing:smoothing=0.2", lambda *s: least_squares_discriminator(*s, a=-1.0, b=1.0), real, real)
    (slope,) = torch.autograd.grad(loss, real)
    torch.testing.assert_close(slope, ((real - 0.6) + (real + 1)).detach() / 2)


@pytest.mark.parametrize("loss", [minimax_discriminator, hinge_discriminator, least_squares_discriminator])
def test_all_labels_flipped_are_those_of_the_other_class(loss):
    real, fake = torch.tensor([[2.0], [0.5]]), torch.tensor([[-1.0], [0.7]])
    torch.testing.assert_close(told("label-flips:probability=1", loss, real, fake), loss(fake, real))
    torch.testing.assert_close(told("label-flips:probability=0", loss, real, fake), loss(real, fake))


def labels_of(technique, rows=4096):
    trainer, given = in_the_plane(technique), []
    trainer._draw.begin(0)
    for real in (True, False):
        given.append(trainer.variant.relabel(float(real), real, trainer._draw, rows))
    return given


def test_labels_are_flipped_sample_by_sample_in_both_classes():
    real, fake = labels_of("label-flips:probability=0.25")
    assert set(real.tolist()) == set(fake.tolist()) == {0.0, 1.0}
    assert real.mean().item() == pytest.approx(0.75, abs=0.03) and fake.mean().item() == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(real, 1 - fake)


def test_noisy_labels_stay_on_their_side():
    real, fake = labels_of("label-noise:width=0.3")
    for labels, low, high in ((real, 0.7, 1.0), (fake, 0.0, 0.3)):
        assert low <= labels.min() < low + 0.01 and high - 0.01 < labels.max() <= high and labels.std() > 0.05
    trainer = in_the_plane("label-noise:width=0.3")
    flipped = torch.stack([trainer.variant.relabel(1.0 - real, real, trainer._draw, 99) for real in (True, False)])
    assert flipped.min() >= 0 and flipped.max() <= 1  # labels beyond would reward certainty without end


# --- what judges are shown ---


@pytest.mark.parametrize("player, count", [("discriminator", 2), ("generator", 1)])
def test_instance_noise_is_on_real_and_generated_samples_of_both_losses(player, count):
    trainer = in_the_plane("instance-noise:sigma=0.5,anneal=4", batch=64)
    for left in (0.5, 0.375):
        seen, real, fake = shown(trainer, player)
        noises = [x - of for x, of in zip(seen, (real, fake)[-count:])]
        assert len(seen) == count
        for noise in noises:
            assert noise.std().item() == pytest.approx(left, rel=0.25)
        assert count == 1 or not torch.allclose(*noises)
        trainer.step()
    run(trainer, 2)
    assert torch.equal(shown(trainer, player)[0][-1], shown(trainer, player)[2])  # σ has come to 0


@pytest.mark.parametrize("technique", ["diffaugment", "ada:start=1"])
def test_augmentations_are_on_real_and_generated_images_of_both_losses(technique, images):
    trainer = tiny(images, technique, name="dragan")
    seen, real, fake = shown(trainer, "discriminator")
    assert len(seen) == 3  # the third is the penalty's
    for x, of in zip(seen, (real, fake)):
        assert ((x - of).flatten(1).norm(dim=1) > 0.1).all()
    seen, _, fake = shown(trainer, "generator")
    assert len(seen) == 1 and ((seen[0] - fake).flatten(1).norm(dim=1) > 0.01).all()


def augmented(technique, x, seed=0, channels=None):
    """These images as a technique shows them, of so many channels unless all of them are of one image."""
    trainer = tiny(torch.zeros(8, channels or x.shape[1], *x.shape[2:]), technique)
    trainer._draw.begin(seed)
    return trainer.variant.alter(trainer.networks, x, trainer._draw, get_ops("gankernels"))


@pytest.mark.parametrize("technique", ["diffaugment", "ada:start=0.7"])
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_flow_through_augmentations_twice_and_each_image_has_its_own(technique, channels):
    x = torch.rand(8, channels, 8, 8, dtype=torch.float64) - 0.5
    probe, direction = torch.randn_like(x), torch.randn_like(x)
    x.requires_grad_()
    (slope,) = torch.autograd.grad((augmented(technique, x).square() * probe).sum(), x, create_graph=True)
    h = 1e-5
    up, down = ((augmented(technique, x + s * h * direction).square() * probe).sum() for s in (1, -1))
    assert ((slope * direction).sum()).item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-4)
    slope.square().sum().backward()
    assert x.grad.abs().sum() > 0
    alike = augmented(
        technique, torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 1, 8, 8).expand(8, channels, 8, 8)
    )
    assert len(alike.flatten(1).unique(dim=0)) > 4


def test_the_parts_of_diffaugment():
    grey = torch.linspace(-1, 1, 16 * 16).view(1, 1, 16, 16).expand(8, 3, 16, 16)
    coloured = augmented("diffaugment:translation=false,cutout=false", grey)
    contrast, brightness = coloured.std([1, 2, 3]) / grey.std([1, 2, 3]), coloured.mean([1, 2, 3])
    assert 0.5 <= contrast.min() < 0.8 and 1.2 < contrast.max() <= 1.5 and brightness.abs().max() <= 0.5
    assert torch.allclose(coloured[:, 0], coloured[:, 2])  # grey stays grey
    x = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16).expand(8, 3, 16, 16)
    moved = augmented("diffaugment:color=false,cutout=false", x)
    zeros = (moved == 0).float().mean([1, 2, 3])
    assert zeros.max() > 0 and zeros.max() <= 1 - (14 / 16) ** 2 + 1e-6
    cut = augmented("diffaugment:color=false,translation=false", x)
    holes = (cut == 0)[:, 0].sum([1, 2])
    assert (holes <= 64).all() and (holes >= 16).all() and torch.equal(cut[cut != 0], x[cut != 0])


@pytest.mark.parametrize("technique", ["diffaugment", "ada:start=1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_images_of_a_pack_are_changed_alike_and_not_mixed(technique, channels):
    first, other, another = torch.rand(3, 8, channels, 16, 16) - 0.5
    alone = augmented(technique, first)
    for neighbour in (other, another):
        packed = augmented(technique, torch.cat([first, neighbour], 1), channels=channels)
        torch.testing.assert_close(packed[:, :channels], alone)
    twice = augmented(technique, torch.cat([first, first, first], 1), channels=channels)
    torch.testing.assert_close(twice, torch.cat([alone, alone, alone], 1))


def test_images_are_shifted_by_whole_pixels_and_lose_squares():
    x = torch.arange(1.0, 10).view(1, 1, 3, 3)
    down = torch.tensor([[0.0, 0, 0], [1, 2, 3], [4, 5, 6]])
    left = torch.tensor([[2.0, 3, 0], [5, 6, 0], [8, 9, 0]])
    assert torch.equal(augment.shifted(x, torch.tensor([1]), 2)[0, 0], down)
    assert torch.equal(augment.shifted(x, torch.tensor([-1]), 3)[0, 0], left)
    holed = torch.tensor([[1.0, 2, 3], [4, 0, 0], [7, 0, 0]])
    assert torch.equal(augment.without_square(x, torch.tensor([1]), torch.tensor([1]), 2)[0, 0], holed)


def test_ada_with_p_of_nought_shows_the_images_themselves():
    x = torch.rand(8, 3, 8, 8) - 0.5
    torch.testing.assert_close(augmented("ada", x), x)


@pytest.mark.parametrize("score, start, p", [(1.0, 0.2, 0.4), (-1.0, 0.6, 0.4), (-1.0, 0.1, 0.0), (1.0, 0.9, 1.0)])
def test_ada_raises_p_where_the_discriminator_is_sure_of_real_images(score, start, p, images):
    trainer = tiny(images, f"ada:start={start},images=40")  # batch 8: p moves by 0.2
    certain(trainer, score)
    _, figures = gradients(trainer, "discriminator")
    assert figures["ada_r"] == (1 if score > 0 else -1)
    trainer._update("discriminator", figures)
    assert trainer.networks.ada_p.item() == pytest.approx(p, abs=1e-6)


def test_a_loss_that_is_joint_with_its_penalty_is_watched_and_relabelled_too(images):
    def styled(*techniques):
        return Trainer(ganzoo.create("stylegan2", r1_every=2, gamma=0.0, techniques=techniques, **TINY), images)

    assert ["ada_r" in figures for figures in run(styled("ada"), 2)] == [True, True]
    plain, flipped = styled(), styled("label-flips:probability=1")
    alone, joint = (
        [trainer._differentiate("discriminator", due, 0, trainer._draw)["discriminator_loss"] for trainer in (plain, flipped)]
        for due in ((), ("r1",))
    )  # fmt: skip
    torch.testing.assert_close(joint, alone)
    assert (joint[0] - joint[1]).abs() > 1e-3


def test_ada_looks_at_real_images_and_at_the_game_s_own_boundary():
    trainer = tiny(torch.zeros(8, 1, 8, 8), "ada")
    scores = torch.tensor([0.4, 0.6, 0.9, 2.0]), torch.full((4,), -5.0)
    for loss, r in ((minimax_discriminator, 1.0), (least_squares_discriminator, 0.5)):  # the latter's is at ½
        watched = trainer.variant._watched(lambda *_, loss=loss: (loss(*scores), {}))
        assert watched(trainer.networks, None, None)[1]["ada_r"].item() == r


def test_a_resume_that_lost_p_would_be_another_run(images):
    straight, resumed, forgetful = (tiny(images, "ada:start=0.5,images=100") for _ in range(3))
    run(straight, 2)
    state = saved(straight)
    resumed.load_state_dict(copy.deepcopy(state)), forgetful.load_state_dict(copy.deepcopy(state))
    assert resumed.networks.ada_p == straight.networks.ada_p != 0.5
    forgetful.networks.ada_p.fill_(0.5)
    after, again, lost = run(straight, 1), run(resumed, 1), run(forgetful, 1)
    assert same(after, again) and not torch.equal(after[0]["discriminator_loss"], lost[0]["discriminator_loss"])


# --- losses, networks, optimisers, schedule ---


def test_feature_matching_matches_means_and_takes_those_of_real_samples_for_given():
    trainer = in_the_plane("feature-matching", batch=16)
    networks, draw = trainer.networks.requires_grad_(True), trainer._draw
    draw.begin(0)
    loss, _ = trainer.variant.generator_loss(networks, draw, None)
    draw.begin(0)
    real, fake = draw.real(), networks.generator(draw.latents())
    hidden = networks.discriminator[:2]
    target = hidden(real).mean(0)
    torch.testing.assert_close(loss, (target - hidden(fake).mean(0)).square().sum())
    params = [*networks.generator.parameters(), *hidden.parameters()]
    found = torch.autograd.grad(loss, params)
    expected = torch.autograd.grad((target.detach() - hidden(fake).mean(0)).square().sum(), params)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(trainer.variant.features(networks, real), hidden(real))


def test_minibatch_discrimination_counts_the_others_of_one_class_alone():
    trainer = in_the_plane("minibatch-discrimination:features=3,dims=2")
    layer = trainer.networks.discriminator[2]
    given = []
    layer.layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    grads, _ = gradients(trainer, "discriminator")
    assert [x.shape for x in given] == [(8, 8 + 3)] * 2  # real and generated batches apart
    hidden, similarities = given[0].split([8, 3], 1)
    m = torch.einsum("na,abc->nbc", hidden, layer.T)
    expected = [sum((-(m[i] - m[j]).abs().sum(1)).exp() for j in range(8) if j != i) for i in range(8)]
    torch.testing.assert_close(similarities, torch.stack(expected))
    assert all(slope.abs().sum() > 0 for slope in grads)
    layer(torch.ones(5, 8))
    torch.testing.assert_close(given[-1][:, 8:], torch.full((5, 3), 4.0))


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_minibatch_discrimination_judges_apart_what_acgan_shows_as_one_batch(player, images):
    trainer, given = tiny(images, "minibatch-discrimination:features=3,dims=2", name="acgan"), []
    layer = trainer.networks.discriminator.score[0]
    layer.layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    gradients(trainer, player)
    hidden, similarities = given[0].split([layer.layer.in_features - 3, 3], 1)
    assert len(hidden) == 2 * TINY["batch"]
    torch.testing.assert_close(similarities, torch.cat([layer.similarities(kind) for kind in hidden.chunk(2)]))
    given.clear()
    layer(hidden)  # what comes alone is one batch again
    torch.testing.assert_close(given[0][:, -3:], layer.similarities(hidden))


def test_minibatch_discrimination_is_of_the_scores_where_a_discriminator_has_a_second_head(images):
    discriminator = tiny(images, "minibatch-discrimination", name="infogan").networks.discriminator
    assert isinstance(discriminator.score[0], Amid) and isinstance(discriminator.head, torch.nn.Linear)


def test_historical_averaging_pulls_to_the_mean_of_all_weights_so_far():
    trainer = in_the_plane("historical-averaging:weight=3", optimizer="SGD", lr=0.1)
    plain = in_the_plane(optimizer="SGD", lr=0.1)
    past = [weights(trainer.networks.generator)]
    for _ in range(3):
        trainer.step()
        past.append(weights(trainer.networks.generator))
    plain.networks.load_state_dict(trainer.networks.state_dict(), strict=False)
    plain._draw.positions.update(trainer._draw.positions)
    (with_term, figures), (without, _) = (gradients(each, "generator") for each in (trainer, plain))
    means = [torch.stack(each).mean(0) for each in zip(*past)]
    for slope, other, now, mean in zip(with_term, without, past[-1], means):
        torch.testing.assert_close(slope, other + 3 * 2 * (now - mean), rtol=1e-4, atol=1e-5)
    distance = 3 * sum((now - mean).square().sum() for now, mean in zip(past[-1], means))
    torch.testing.assert_close(figures["history_of_generator"], distance, rtol=1e-4, atol=1e-6)


def test_virtual_batch_norm_by_hand():
    norm = torch.nn.BatchNorm2d(3)
    torch.nn.init.uniform_(norm.weight), torch.nn.init.normal_(norm.bias)
    x, probe, expected = (torch.randn(4 + 2, 3, 5, 5) * 3 + 1).requires_grad_(), torch.randn(4 + 2, 3, 5, 5), []
    for row in range(6):
        population = x[:4] if row < 4 else torch.cat([x[:4], x[row : row + 1]])
        mean, variance = population.mean([0, 2, 3]), population.var([0, 2, 3], unbiased=False)
        normal = (x[row] - mean[:, None, None]) / (variance + norm.eps).sqrt()[:, None, None]
        expected.append(normal * norm.weight[:, None, None] + norm.bias[:, None, None])
    found, expected = VirtualNorm(norm, 4)(x), torch.stack(expected)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad((each * probe)[4:].sum(), x)[0] for each in (found, expected)]
    torch.testing.assert_close(*slopes)  # also in the reference batch
    flat = torch.randn(4 + 2, 3)
    torch.testing.assert_close(VirtualNorm(norm, 4)(flat), VirtualNorm(norm, 4)(flat[:, :, None, None])[..., 0, 0])


def test_the_reference_of_virtual_batch_norm_is_fixed_and_goes_through_todays_weights(images):
    trainer = tiny(images, "virtual-batch-norm:reference=6")
    generator, z = trainer.networks.generator, torch.randn(8, 4)
    first, reference = generator(z), generator.reference0.clone()
    generator(torch.randn(8, 4) * 9)  # the batch before is no reference
    assert torch.equal(generator(z), first)
    torch.testing.assert_close(generator(z[2:3]), first[2:3])  # nor are the neighbours
    assert not any("running" in name for name, _ in generator.named_buffers())
    trainer.step()
    after = generator(z)
    assert torch.equal(generator.reference0, reference)

    dense = generator.network[0]
    normal = F.linear(torch.cat([reference, z[:1]]), dense.weight).unflatten(1, (-1, 2, 2))
    hand = torch.nn.Sequential(*list(generator.network)[2:])(normal)[6:]
    torch.testing.assert_close(hand, after[:1])
    grad_of_reference = torch.autograd.grad(generator.network[2](normal)[6:].square().sum(), normal)[0][:6]
    assert grad_of_reference.abs().sum() > 0
    torch.testing.assert_close(trainer.sampling().generator(z).shape, after.shape)


def test_two_time_scales_also_under_a_schedule():
    halved = {"generator": dict(lr=lambda step: 0.5)}
    trainer = in_the_plane("ttur:discriminator_lr=0.03,generator_lr=0.02", change=halved)
    trainer.step()
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in trainer._optimizers.items()}
    assert rates == {"discriminator": 0.03, "generator": 0.01}


@pytest.mark.parametrize("turns", [("discriminator", "generator"), ("generator", "discriminator", "discriminator")])
def test_n_critic_is_turns_of_the_discriminator_for_each_of_the_generator(turns):
    trainer = in_the_plane("n-critic:n=3", turns=turns)
    assert trainer.variant.schedule(0) == [("discriminator",)] * 3 + [("generator",)]
    run(trainer, 2)
    assert trainer.updates == {"discriminator": 6, "generator": 2}


def test_prediction_shows_the_discriminator_where_the_generator_is_going_and_resumes():
    trainer = in_the_plane("prediction")
    before = weights(trainer.networks.generator)
    trainer.step()
    after = weights(trainer.networks.generator)
    seen, _, _ = shown(trainer, "discriminator")
    names = [name for name, _ in trainer.networks.generator.named_parameters()]
    ahead = {name: 2 * now - old for name, now, old in zip(names, after, before)}
    trainer._draw.begin(77)
    trainer._draw.real()
    z = trainer._draw.latents()
    torch.testing.assert_close(seen[1], torch.func.functional_call(trainer.networks.generator, ahead, z))
    assert same(weights(trainer.networks.generator), after)
    assert torch.equal(*[shown(trainer, "generator")[i][0] for i in (0,)], shown(trainer, "generator")[2])

    trainer.step()
    after = weights(trainer.networks.generator)
    resumed, forgetful = in_the_plane("prediction"), in_the_plane("prediction")
    state = saved(trainer)
    resumed.load_state_dict(copy.deepcopy(state)), forgetful.load_state_dict(copy.deepcopy(state))
    forgetful._previous["generator"] = after
    straight, again, lost = run(trainer, 1), run(resumed, 1), run(forgetful, 1)
    assert same(straight, again)
    assert not torch.equal(straight[0]["discriminator_loss"], lost[0]["discriminator_loss"])


def test_an_average_has_the_generators_running_statistics(images):
    trainer = tiny(images, "ema:decay=0.75")
    expected = weights(trainer.networks.generator)
    for _ in range(3):
        trainer.step()
        for average, p in zip(expected, weights(trainer.networks.generator)):
            average.lerp_(p, 0.25)
    sampling = trainer.sampling().generator
    torch.testing.assert_close(weights(sampling), expected)
    buffers = list(trainer.networks.generator.buffers())
    assert buffers and all(map(torch.equal, sampling.buffers(), buffers))
    assert list(trainer._averages) == ["generator"]


def test_a_narrow_discriminator_leaves_the_generator_as_wide_as_it_was(images):
    whole, thin = tiny(images), tiny(images, "discriminator-width:width=1")
    shapes = [[p.shape for p in weights(getattr(t.networks, name))] for t in (whole, thin) for name in TINY_NETWORKS]
    assert shapes[0] == shapes[2] and thin.networks.discriminator[0].out_channels == 1 != shapes[1][0][0]
    assert plain(thin.variant).width == TINY["width"]


TINY_NETWORKS = ("generator", "discriminator")


def test_lazy_r1_comes_every_kth_update_and_k_times_as_large(images):
    lazy, plain = in_the_plane("lazy-r1:gamma=2,every=3"), in_the_plane()
    (with_term, figures), (without, _) = gradients(lazy, "discriminator"), gradients(plain, "discriminator")
    networks, draw = lazy.networks, lazy._draw
    draw.begin(77)
    draw.real()
    x = draw.real().requires_grad_()  # the loss took the batch before
    (slope,) = torch.autograd.grad(networks.discriminator(x).sum(), x, create_graph=True)
    r1 = slope.square().sum(1).mean()
    torch.testing.assert_close(figures["r1"], r1)
    expected = torch.autograd.grad(3 * r1, list(networks.discriminator.parameters()), allow_unused=True)
    for found, other, term in zip(with_term, without, expected):
        torch.testing.assert_close(found, other + (0 if term is None else term), rtol=1e-4, atol=1e-6)
    assert ["r1" in figures for figures in run(tiny(images, "lazy-r1:every=3"), 4)] == [True, False, False, True]


def test_options_are_typed():
    technique = parsed("ada:target=0.5,images=1000")
    assert (technique.target, technique.images, technique.start) == (0.5, 1000.0, 0.0)
    assert technique_class("diffaugment") is type(parsed("diffaugment:cutout=false"))
    assert parsed("diffaugment:cutout=false").cutout is False
