"""Variants that infer latents, and games of many players: the check that each paper asks for, and that a known mistake fails."""

import math

import pytest
import torch
import torch.nn.functional as F

import ganzoo
from ganzoo import Trainer
from ganzoo.errors import ArgumentError, Error
from ganzoo.metrics.modes import mode_coverage
from ganzoo.training.checkpoint import load, save_checkpoint
from ganzoo.training.evaluate import reconstruction_error
from ganzoo.variants.d2gan import log_softplus


def small(name, data="ring", **options):
    points = dict(n=256) if data == "ring" else {}
    variant = ganzoo.create(name, **{"width": 1, "latent": 2, "batch": 32, **options})
    return Trainer(variant, ganzoo.data.open(data, **points), seed=1)


def loss_of(trainer, player, update=0):
    return trainer._differentiate(player, (), update, trainer._draw)


def drawn_again(trainer):
    """The draws of the loss that was taken last, from the start."""
    trainer._draw.begin(0)
    trainer._draw.positions.update(trainer._draw._began)
    return trainer._draw


def gradients(trainer, player, update=0):
    """The losses' figures, and the gradients by network."""
    figures, slopes = loss_of(trainer, player, update), {}
    for name, param in zip(trainer._names[player], trainer._params[player]):
        slopes.setdefault(name.split(".")[0], []).append(param.grad.flatten())
    return figures, {network: torch.cat(parts) for network, parts in slopes.items()}


def ring(name, steps, **options):
    data = ganzoo.data.open("ring")
    trainer = Trainer(ganzoo.create(name, **{"latent": 2, "batch": 128, "width": 2, "ema": 0.0, **options}), data)
    for _ in range(steps):
        trainer.step()
    return trainer, mode_coverage(trainer.sample(2500, seed=1), data.modes, data.sigma)


# --- what infers latents ---


def test_bigan_judges_images_with_their_own_latents_and_teaches_both_encoder_and_generator():
    trainer, judged = small("bigan"), []
    trainer.networks.discriminator.register_forward_hook(lambda _, pair, __: judged.append(pair))
    loss_of(trainer, "discriminator")
    draw, networks = drawn_again(trainer), trainer.networks
    x, z = draw.real(), draw.latents()
    torch.testing.assert_close(judged, [(x, networks.encoder(x)), (networks.generator(z), z)])
    assert trainer.updates == {"discriminator": 0, "generator": 0}

    torch.nn.init.zeros_(networks.discriminator.of_both[-2].weight)
    for player in ("discriminator", "generator"):
        assert loss_of(trainer, player)[f"{player}_loss"].item() == pytest.approx(2 * math.log(2))
    figures, slopes = gradients(small("bigan"), "generator")
    assert slopes["encoder"].any() and slopes["generator"].any()


def test_bigans_generator_wants_what_its_discriminator_does_not():
    trainer = small("bigan")
    torch.nn.init.constant_(trainer.networks.discriminator.of_both[-2].bias, 3.0)
    torch.nn.init.zeros_(trainer.networks.discriminator.of_both[-2].weight)
    real, fake = math.log(1 + math.exp(-3)), math.log(1 + math.exp(3))
    assert loss_of(trainer, "discriminator")["discriminator_loss"].item() == pytest.approx(real + fake)
    scores = iter([3.0, -1.0])  # of (x, E(x)), then of (G(z), z)
    trainer.networks.discriminator.forward = lambda x, z: x.new_full((len(x),), next(scores))
    loss = trainer.variant.generator_loss(trainer.networks, drawn_again(trainer), None)[0]
    assert loss.item() == pytest.approx(math.log(1 + math.exp(3)) + math.log(1 + math.exp(1)))


def test_alis_encoder_is_told_noise_that_bigans_is_not():
    images = ganzoo.data.open("digits").fetch(torch.arange(5))["image"]
    for stochastic, differs in ((False, False), (True, True)):
        trainer = small("bigan", "digits", stochastic=stochastic)
        inferred = [trainer.variant.inferred(trainer.networks, images, torch.full_like(images, c)) for c in (0.0, 1.0)]
        assert torch.equal(*inferred) != differs
        assert torch.equal(trainer.variant.encode(trainer.networks, images), inferred[0])


def test_aaes_discriminator_takes_the_priors_latents_for_real_and_the_encoder_fools_it():
    trainer, judged = small("aae", latent=3), []
    trainer.networks.discriminator.register_forward_hook(lambda _, given, __: judged.append(given[0]))
    loss_of(trainer, "discriminator")
    draw = drawn_again(trainer)
    torch.testing.assert_close(judged, [draw.latents(), trainer.networks.encoder(draw.real())])
    for player, scores, expected in (("discriminator", [2.0, -1.0], (-2, -1)), ("encoder", [-1.0], (1,))):
        remaining = iter(scores)
        trainer.networks.discriminator.forward = lambda latents: latents.new_full((len(latents),), next(remaining))
        loss = getattr(trainer.variant, f"{player}_loss")(trainer.networks, drawn_again(trainer), None)[0]
        assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(score)) for score in expected))


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_vaes_loss_is_the_negative_bound_in_nats(likelihood):
    trainer = small("vae", "digits", latent=5, likelihood=likelihood)
    networks = trainer.networks.eval()
    torch.nn.init.constant_(networks.encoder[-1].bias[5:], -3.0)
    found = loss_of(trainer, "generator")["generator_loss"]
    draw = drawn_again(trainer)
    x, noise = draw.real(), draw.normal(5)
    mean, log_variance = networks.encoder(x).chunk(2, 1)
    posterior = torch.distributions.Normal(mean, log_variance.exp().sqrt())
    latents = mean + posterior.stddev * noise
    torch.testing.assert_close(trainer.variant.inferred(networks, x, noise)[0], latents)
    rebuilt = networks.generator(latents)
    if likelihood == "gaussian":
        of_x = torch.distributions.Normal(rebuilt, networks.generator.log_scale.exp()).log_prob(x)
    else:
        of_x = torch.distributions.Bernoulli((rebuilt + 1) / 2, validate_args=False).log_prob((x + 1) / 2)
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    bound = of_x.flatten(1).sum(1) - divergence.sum(1)
    torch.testing.assert_close(found, -bound.mean())


def test_a_vae_of_bits_needs_images():
    with pytest.raises(ArgumentError, match="likelihood must be gaussian for points, got bernoulli."):
        small("vae", likelihood="bernoulli")


def test_vaegan_measures_reconstructions_by_the_discriminators_features_which_it_leaves_to_the_game():
    trainer = small("vae-gan", gamma=3.0)
    networks, last = trainer.networks, trainer.networks.discriminator[-2]
    seen = []
    last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    figures, before = gradients(trainer, "encoder")
    draw = drawn_again(trainer)
    x, noise = draw.real(), draw.normal(2)
    mean, log_variance = networks.encoder(x).chunk(2, 1)
    for images in (x, networks.generator(mean + (log_variance / 2).exp() * noise)):
        networks.discriminator(images)
    error = (seen[0] - seen[1]).square().sum(1).mean() / 2
    divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean() / 2
    torch.testing.assert_close(figures["encoder_loss"], error + divergence)

    # a discriminator whose judgement is another one: the encoder's gradient stays, the game's part of the others' losses changes
    generator = loss_of(trainer, "generator")["generator_loss"]
    torch.nn.init.zeros_(last.weight), torch.nn.init.constant_(last.bias, 1.0)
    assert torch.equal(gradients(trainer, "encoder")[1]["encoder"], before["encoder"])
    high, low = math.log(1 + math.exp(1)), math.log(1 + math.exp(-1))
    assert loss_of(trainer, "discriminator")["discriminator_loss"].item() == pytest.approx(low + 2 * high)
    assert not gradients(trainer, "discriminator")[1]["discriminator"][: -last.weight.numel() - 1].any()
    changed = loss_of(trainer, "generator")["generator_loss"]
    assert changed.item() == pytest.approx(3 * figures["error"].item() + 2 * low, rel=1e-4) and changed != generator


def test_reconstructions_come_from_an_encoder_and_are_measured(tmp_path):
    data = ganzoo.data.open("digits")
    for name in ("vae", "reg-gan"):
        trainer = small(name, "digits", width=4, latent=16)
        for _ in range(3):
            trainer.step()
        save_checkpoint(tmp_path, trainer)
        generator, images = load(tmp_path), data.fetch(torch.arange(300))["image"]
        rebuilt, networks = generator.reconstruct(images), trainer.sampling()
        torch.testing.assert_close(rebuilt, networks.generator(trainer.variant.encode(networks, images)))
        found = reconstruction_error(generator, data, 300)
        assert found.value == pytest.approx((rebuilt - images).square().mean().sqrt().item(), rel=1e-5)
        assert str(found).endswith("(extractor pixels; reference digits/all, 300 of 1797; resize none; 300 samples)")
    with pytest.raises(ArgumentError, match=r"images must be of shape \(1, 8, 8\), as digits has, got \(1, 4, 4\)"):
        generator.reconstruct(torch.zeros(1, 1, 4, 4))
    save_checkpoint(tmp_path, small("gan", "digits"))
    with pytest.raises(Error, match="gan cannot reconstruct images: it has no encoder."):
        load(tmp_path).reconstruct(images)


@pytest.mark.parametrize("name, steps, error", [("vae", 400, 0.05), ("vae-gan", 500, 0.1)])
def test_what_infers_latents_rebuilds_the_ring_and_draws_its_modes(name, steps, error):
    trainer, coverage = ring(name, steps, lr=1e-3)
    networks, points = trainer.sampling(), ganzoo.data.open("ring").fetch(torch.arange(500))["image"]
    rebuilt = networks.generator(trainer.variant.encode(networks, points))
    assert coverage.modes >= 6 and (rebuilt - points).square().mean().sqrt() < error


# --- packs ---


@pytest.mark.parametrize("data, wide", [("ring", (32, 6)), ("digits", (32, 3, 8, 8))])
def test_pacgans_discriminator_alone_is_shown_packs_of_independent_samples(data, wide):
    trainer, plain = small("pacgan", data, pack_size=3), small("gan", data)
    variant, networks, shown = trainer.variant, trainer.networks, []
    networks.discriminator.register_forward_hook(lambda _, given, __: shown.append(given[0]))
    loss_of(trainer, "discriminator")
    draw = drawn_again(trainer)
    x, fake = draw.real(count=96), networks.generator(draw.latents(96))
    torch.testing.assert_close(shown, [torch.cat(list(x.view(32, 3, *x.shape[1:]).unbind(1)), 1), variant.pack(fake)])
    assert shown[0].shape == wide and len(x.flatten(1).unique(dim=0)) > 80 and len(fake.unique(dim=0)) == 96

    for name, widened in (("generator", 0), ("discriminator", 1)):
        packed, single = (getattr(each.networks, name).parameters() for each in (trainer, plain))
        assert sum(a.shape != b.shape for a, b in zip(packed, single, strict=True)) == widened
    assert variant.schedule(0) == [("discriminator", "generator")]
    assert len(variant.scores(networks, x[:50])) == 16


# --- several discriminators ---


@pytest.mark.parametrize("strength", [0.0, 0.5, 3.0])
def test_gmans_gradient_flows_through_the_weights(strength):
    variant, losses = ganzoo.create("gman", strength=strength), torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    mixed = variant.mixed(list(losses))
    mixed.backward()
    weights = torch.softmax(strength * losses.detach(), 0)
    torch.testing.assert_close(mixed.detach(), (weights * losses.detach()).sum())
    torch.testing.assert_close(losses.grad, weights * (1 + strength * (losses.detach() - mixed.detach())))


def test_gman_plays_the_minimax_game_with_each_of_its_discriminators():
    trainer = small("gman", discriminators=4)
    for score, judge in enumerate(trainer.networks.discriminator):
        torch.nn.init.zeros_(judge[-2].weight), torch.nn.init.constant_(judge[-2].bias, float(score))
    high, low = ([math.log(1 + math.exp(sign * score)) for score in range(4)] for sign in (1, -1))
    assert loss_of(trainer, "discriminator")["discriminator_loss"].item() == pytest.approx(sum(high) + sum(low))
    assert trainer.images_drawn == 4 * 32
    weights = [math.exp(-value) / sum(math.exp(-other) for other in high) for value in high]
    expected = -sum(weight * value for weight, value in zip(weights, high))
    assert loss_of(trainer, "generator")["generator_loss"].item() == pytest.approx(expected)


def test_d2gans_discriminators_reward_real_and_generated_images():
    trainer = small("d2gan", alpha=0.5, beta=0.25)
    networks = trainer.networks
    found = loss_of(trainer, "discriminator")["discriminator_loss"]
    draw = drawn_again(trainer)
    x, fake = draw.real(), networks.generator(draw.latents())
    (first_x, first_fake), (second_x, second_fake) = (
        [F.softplus(judge(images)) for images in (x, fake)] for judge in networks.discriminator
    )
    first = -0.5 * first_x.log().mean() + first_fake.mean()
    second = second_x.mean() - 0.25 * second_fake.log().mean()
    torch.testing.assert_close(found, first + second)
    found = loss_of(trainer, "generator")["generator_loss"]
    fake = networks.generator(drawn_again(trainer).latents())
    first_fake, second_fake = (F.softplus(judge(fake)) for judge in networks.discriminator)
    torch.testing.assert_close(found, -first_fake.mean() + 0.25 * second_fake.log().mean())


def test_the_logarithm_of_a_discriminator_that_is_certain_keeps_its_gradient():
    scores = torch.tensor([-200.0, -20.5, -19.5, 0.0, 30.0], requires_grad=True)
    values = log_softplus(scores)
    values.sum().backward()
    wide = scores.detach().double()
    torch.testing.assert_close(values[1:].double(), F.softplus(wide[1:]).log(), rtol=1e-6, atol=0)
    assert values[0] == -200
    slopes = wide.sigmoid() / F.softplus(wide)
    torch.testing.assert_close(scores.grad.double(), torch.cat([torch.ones(1), slopes[1:].float()]).double())


# --- several generators ---


@pytest.mark.parametrize("name, shared_ends", [("mgan", (False, True)), ("mad-gan", (True, False))])
@pytest.mark.parametrize("data", ["ring", "digits"])
def test_generators_share_all_but_one_end_and_the_latents_choose_among_them(name, shared_ends, data):
    trainer = small(name, data, generators=3)
    generator, latents = trainer.networks.generator, trainer.variant.latents(300, torch.Generator().manual_seed(0))
    counts = latents[:, -1].long().bincount()
    assert latents.shape == (300, 3) and len(counts) == 3 and counts.min() > 70
    shared = [len(list(part.parameters())) > 0 for part in (generator.before, generator.after)]
    assert shared == list(shared_ends)

    generator.eval()
    before, chosen = generator(latents), latents[:, -1] == 1
    with torch.no_grad():
        for param in generator.own[1].parameters():
            param.add_(0.5)
    moved = (generator(latents) != before).flatten(1).any(1)
    assert torch.equal(moved, chosen)
    between = torch.tensor([[0.1, 0.2, 1.4], [0.1, 0.2, 1.0], [0.1, 0.2, 9.0], [0.1, 0.2, 2.0]])
    drawn = generator(between)  # a way between latents leads between and beyond the numbers
    torch.testing.assert_close(drawn[[0, 2]], drawn[[1, 3]])


@pytest.mark.parametrize("name", ["mgan", "mad-gan"])
def test_what_tells_generators_apart(name):
    trainer = small(name, generators=3, **(dict(beta=0.5) if name == "mgan" else {}))
    networks, outputs = trainer.networks, []
    networks.discriminator.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
    losses = [loss_of(trainer, player)[f"{player}_loss"].item() for player in ("discriminator", "generator")]
    real, fake, again = outputs
    draw = drawn_again(trainer)
    latents = draw.latents()
    assert fake.shape == (32, 4)
    torch.testing.assert_close(networks.discriminator(networks.generator(latents)), again, rtol=1e-4, atol=1e-6)
    who = latents[:, -1].long()

    def cross_entropy(logits, classes):
        return -logits.log_softmax(1)[torch.arange(32), classes].mean().item()

    if name == "mgan":
        told = [cross_entropy(each[:, 1:], who) for each in (fake, again)]
        judged = F.softplus(-real[:, 0]).mean() + F.softplus(fake[:, 0]).mean()
        expected = [judged.item() + told[0], F.softplus(-again[:, 0]).mean().item() + 0.5 * told[1]]
    else:
        expected = [cross_entropy(real, [3] * 32) + cross_entropy(fake, who), cross_entropy(again, [3] * 32)]
    assert losses == pytest.approx(expected, rel=1e-4)
    certain = torch.full((1, 4), -9.0).index_fill(1, torch.tensor([0 if name == "mgan" else 3]), 9.0)
    networks.discriminator.forward = lambda _: torch.cat([certain, -certain])
    high, low = trainer.variant.scores(networks, None)
    assert high > 5 and low < -5


@pytest.mark.parametrize("name", ["gman", "mad-gan"])
def test_several_players_draw_the_modes_of_the_ring(name):
    assert ring(name, 500, width=4, lr=2e-4)[1].modes >= 7


# --- several games ---


def glyphs(**options):
    data = ganzoo.data.open("glyphs", form="unpaired", size=16)
    return Trainer(ganzoo.create("cogan", latent=3, width=2, batch=8, **options), data, seed=1)


@pytest.mark.parametrize("own", [1, 2])
def test_cogan_shares_the_ends_far_from_the_images(own):
    generator, discriminator = glyphs(own=own).networks.eval().children()
    latents, images = torch.randn(5, 3), torch.rand(2, 5, 1, 16, 16) * 2 - 1
    first, last = generator.shared[0], discriminator.shared[-2]
    assert first.in_features == 3 and last.out_features == 1
    for domain in range(2):
        made, judged = [generator.a, generator.b][domain], [discriminator.a, discriminator.b][domain]
        assert sum(isinstance(layer, torch.nn.ConvTranspose2d) for layer in made) == own
        assert sum(isinstance(layer, torch.nn.Conv2d) for layer in judged) == own and judged[0].in_channels == 1
        for network, part, given in ((generator, made, (latents,)), (discriminator, judged, images)):
            before = network(*given)
            with torch.no_grad():
                for param in part.parameters():
                    param.add_(0.5)
            moved = [not torch.equal(*pair) for pair in zip(before, network(*given))]
            assert moved == [domain == 0, domain == 1]
    for network, param, given in ((generator, first.weight, (latents,)), (discriminator, last.weight, images)):
        before = network(*given)
        with torch.no_grad():
            param.add_(0.5)
        assert not any(torch.equal(*pair) for pair in zip(before, network(*given)))
    with pytest.raises(ArgumentError, match="own must be at most 2, the levels that images of this size have, got 3."):
        glyphs(own=3)


def test_cogan_plays_a_game_in_either_domain_with_one_latent():
    trainer, judged, drawn = glyphs(), [], []
    networks = trainer.networks
    networks.discriminator.register_forward_hook(lambda _, given, scores: judged.append((given, scores)))
    networks.generator.register_forward_hook(lambda _, given, pair: drawn.append(pair))
    losses = [loss_of(trainer, player)[f"{player}_loss"] for player in ("discriminator", "generator")]
    draw = drawn_again(trainer)
    real, fake, again = judged
    torch.testing.assert_close(real[0], (draw.real("a", 8), draw.real("b", 8)))
    torch.testing.assert_close([fake[0], again[0]], drawn)
    expected = sum(F.softplus(-scores).mean() for scores in real[1]) + sum(F.softplus(s).mean() for s in fake[1])
    torch.testing.assert_close(losses[0], expected)
    torch.testing.assert_close(losses[1], sum(F.softplus(-scores).mean() for scores in again[1]))
    assert trainer.sample(3).shape == (3, 1, 16, 32)
    for technique in ("virtual-batch-norm", "instance-noise"):
        with pytest.raises(Error, match=f"{technique} does not fit cogan"):
            glyphs(techniques=(technique,))
