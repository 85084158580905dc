"""Variants that make images of images, and pyramids: what their papers ask for, and that known mistakes fail."""

import ganzoo
import pytest
import torch
from torch import nn

from ganzoo import ArgumentError, Trainer
from ganzoo.metrics import evaluate, psnr
from ganzoo.networks import patch, singan, srgan, unet
from ganzoo.training.checkpoint import Generator, save_checkpoint
from ganzoo.training.evaluate import evaluate_run
from ganzoo.training.run import RunOptions, settle_data, train
from ganzoo.variants.cyclegan import ImagePool
from ganzoo.variants.translating import beside


def pairs(size=16):
    return ganzoo.data.open("glyphs", form="paired", size=size)


def loss_of(trainer, player, update=0):
    return trainer._differentiate(player, (), update, trainer._draw)


def drawn_again(trainer, update=0):
    """The draw of an update once more, from its beginning."""
    trainer._draw.begin(update)
    return trainer._draw


# --- data and pictures ---


@pytest.mark.parametrize(
    "given, data, options",
    [
        (dict(), "glyphs", ("form=paired",)),
        (dict(data_options=("size=16",)), "glyphs", ("size=16", "form=paired")),
        (dict(data="some/folder"), "some/folder", ("form=paired",)),
        (dict(data="some/folder", data_options=("form=side-by-side",)), "some/folder", ("form=side-by-side",)),
        (dict(data="digits"), "digits", ()),
    ],
)
def test_a_run_opens_data_in_the_form_that_its_variant_needs(given, data, options):
    run = RunOptions(**given)
    settle_data(ganzoo.create("pix2pix"), run)
    assert (run.data, run.data_options) == (data, options)


def test_a_run_of_any_other_variant_is_on_digits_as_they_are():
    run = RunOptions()
    settle_data(ganzoo.create("gan"), run)
    assert (run.data, run.data_options) == ("digits", ())


@pytest.mark.parametrize(
    "name, data, sentence",
    [
        ("pix2pix", dict(spec="digits"), "pairs, with fields a and b, as the option form=paired of data makes them, got a sample of digits with image, label."),
        ("pix2pix", dict(spec="glyphs", form="unpaired"), "pairs, with fields a and b, as the option form=paired of data makes them, got a sample of glyphs with a, b."),
    ],
)  # fmt: skip
def test_data_of_another_form_are_refused_in_a_sentence(name, data, sentence):
    with pytest.raises(ArgumentError) as refused:
        Trainer(ganzoo.create(name), ganzoo.data.open(**data))
    assert str(refused.value) == f"ganzoo: data must be {sentence}"


def test_pictures_show_the_source_beside_the_result():
    trainer = Trainer(ganzoo.create("pix2pix", width=2), pairs())
    samples, shown = trainer.sample(5, seed=1), trainer.show(5, seed=1)
    assert samples.shape == (5, 1, 16, 16)
    source, result = shown.chunk(2, 3)
    assert torch.equal(result, samples)
    assert all(any(torch.equal(each, kept) for kept in trainer.networks.sources) for each in source)
    assert len(trainer.show(64).unique(dim=0)) == 64  # none is drawn twice before all have been

    grey, colour = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 8, 8)
    assert beside(grey, colour).shape == (2, 3, 8, 16) and torch.equal(beside(grey, colour)[..., 8:], colour)


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """The figures that `ganzoo evaluate` has of a run of a few steps, by name, and the run's generator."""
    monkeypatch.setenv("GANZOO_CACHE", str(tmp_path / "cache"))

    def evaluate(name, data_options, **options):
        run = RunOptions(data_options=data_options, compare_blocks=0, tensorboard=False, runs=str(tmp_path))
        folder = train(ganzoo.create(name, steps=2, width=2, **options), run, "")
        return {figure.name.split(" (")[0]: figure.value for figure in evaluate_run(folder, n=40)}, ganzoo.load(folder)

    return evaluate


@pytest.mark.parametrize("techniques", [(), ("ttur",)])
def test_pairs_are_evaluated_by_what_each_image_should_have_become(techniques, evaluated):
    figures, generator = evaluated("pix2pix", ("size=16",), techniques=techniques)
    sample = pairs().fetch(torch.arange(40))
    apart = generator.translate(sample["a"], seed=1) - sample["b"]
    assert figures["L1 to the partner"] == pytest.approx(apart.abs().mean().item(), rel=1e-5)
    assert figures["PSNR to the partner, dB"] == pytest.approx(psnr(apart, torch.zeros(1)).item(), rel=1e-5)
    plain = psnr(sample["a"], sample["b"]).item()
    assert figures["PSNR of what it was made of, dB"] == pytest.approx(plain, rel=1e-5)
    assert "Fréchet distance" in figures


def test_domains_are_evaluated_by_what_becomes_of_the_first_against_the_second(evaluated):
    figures, generator = evaluated("cyclegan", ("size=16",), blocks=1)
    domains = ganzoo.data.open("glyphs", form="unpaired", size=16)
    made = generator.translate(domains["a"].fetch(torch.arange(40))["image"])
    expected = evaluate(made, domains["b"], "pixels")
    assert figures["Fréchet distance"] == pytest.approx(expected[0].value) and len(figures) == len(expected)


def test_only_what_translates_translates(images):
    trainer = Trainer(ganzoo.create("gan", width=2), images)
    generator = Generator(trainer.variant, trainer.data, 0, trainer.networks)
    with pytest.raises(ganzoo.Error, match="ganzoo: gan makes images of latents, not of images."):
        generator.translate(images)


def test_there_is_no_way_between_the_latents_of_what_translates():
    trainer = Trainer(ganzoo.create("pix2pix", width=2, techniques=["ttur"]), pairs())
    generator = Generator(trainer.variant, trainer.data, 0, trainer.sampling())
    sentence = "ganzoo: pix2pix makes images of images: there are no latents to walk between."
    with pytest.raises(ganzoo.Error, match=sentence):
        generator.interpolate()


# --- networks ---


@pytest.mark.parametrize("shape, smallest", [((1, 32, 32), 1), ((3, 28, 28), 7), ((3, 16, 40), 2), ((1, 8, 8), 1)])
def test_the_unet_goes_down_as_often_as_the_sides_halve_and_keeps_every_size(shape, smallest):
    network, sizes = unet.Generator(shape, 3, 2), []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, out: sizes.append(out.shape[2]))
    images = network(torch.randn(2, *shape))
    assert images.shape == (2, 3, *shape[1:]) and images.abs().max() <= 1
    assert sizes[-1] == smallest and sizes == [shape[1] >> level for level in range(1, len(sizes) + 1)]


def test_the_unet_at_its_papers_size_has_its_papers_layers():
    network = unet.Generator((3, 256, 256), 3, 64)
    down = [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    up = sorted(
        (layer.in_channels, layer.out_channels) for layer in network.modules() if isinstance(layer, nn.ConvTranspose2d)
    )
    assert down == [64, 128, 256, 512, 512, 512, 512, 512]
    assert up == sorted(
        [(512, 512), (1024, 512), (1024, 512), (1024, 512), (1024, 256), (512, 128), (256, 64), (128, 3)]
    )
    assert sum(isinstance(layer, unet.Noise) for layer in network.modules()) == 3
    assert unet.Generator((1, 8, 8), 1, 4)(torch.zeros(1, 1, 8, 8)).shape == (1, 1, 8, 8)  # one pixel of one image


def test_every_skip_of_the_unet_counts():
    network, x = unet.Generator((1, 32, 32), 1, 2).eval(), torch.randn(1, 1, 32, 32)

    def drawn(without=None):
        torch.manual_seed(0)  # of the noise
        cut = without and without.register_forward_hook(
            lambda _, inputs, out: out * (torch.arange(out.shape[1]) >= inputs[0].shape[1]).view(1, -1, 1, 1)
        )
        image = network(x)
        if cut:
            cut.remove()
        return image

    levels = [module for module in network.modules() if isinstance(module, unet.Level)]
    assert len(levels) == 4 and all(not torch.equal(drawn(level), drawn()) for level in levels)


@pytest.mark.parametrize("size, patch_size", [(32, 16), (64, 34), (128, 70)])
def test_a_patch_gan_sees_patches_of_the_papers_sizes(size, patch_size):
    judge = patch.Discriminator((1, size, size), 1, norm=lambda channels: nn.Identity()).double()
    x = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    scores = judge(x)
    middle = scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2]
    (slope,) = torch.autograd.grad(middle, x)
    seen = slope[0, 0].any(0).sum().item()
    assert seen == patch_size
    assert patch.Discriminator((3, 256, 256), 64)(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize("network, sentence", [
    (lambda: unet.Generator((1, 30, 30), 1, 2), "data must be images whose sides are multiples of 4.* got 1 x 30 x 30"),
    (lambda: unet.Generator((2,), 1, 2), "data must be images whose sides are multiples of 4.* got 2"),
    (lambda: patch.Discriminator((1, 4, 9), 2), "data must be images of at least 8 x 8 pixels.* got 1 x 4 x 9"),
])  # fmt: skip
def test_other_sizes_are_refused_in_a_sentence(network, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        network()


# --- pix2pix ---


def test_pix2pix_judges_pairs_halves_the_judges_loss_and_draws_its_generator_to_b():
    trainer = Trainer(ganzoo.create("pix2pix", width=2, batch=4, l1_weight=7.0), pairs())
    networks, judged = trainer.networks, []
    hook = networks.discriminator.register_forward_hook(lambda _, inputs, out: judged.append((inputs[0], out)))
    found = loss_of(trainer, "discriminator")["discriminator_loss"]
    pair = drawn_again(trainer).batch()
    (real, real_scores), (fake, fake_scores) = judged
    assert torch.equal(real, torch.cat([pair["a"], pair["b"]], 1)) and torch.equal(fake[:, :1], pair["a"])
    expected = (nn.functional.softplus(-real_scores).mean() + nn.functional.softplus(fake_scores).mean()) / 2
    torch.testing.assert_close(found, expected.detach())

    judged.clear()
    found = loss_of(trainer, "generator", 1)["generator_loss"]
    pair = drawn_again(trainer, 1).batch()
    ((fake, scores),) = judged
    assert torch.equal(fake[:, :1], pair["a"])
    expected = nn.functional.softplus(-scores).mean() + 7 * (fake[:, 1:] - pair["b"]).abs().mean()
    torch.testing.assert_close(found, expected.detach())
    hook.remove()


def test_pix2pixs_noise_is_dropout_and_stays_when_sampling():
    network = Trainer(ganzoo.create("pix2pix", width=2), pairs()).sampling().generator
    assert not network.training
    x = pairs().fetch(torch.arange(2))["a"]
    assert not torch.equal(network(x), network(x))


# --- CycleGAN ---


def test_a_pool_shows_old_images_half_of_the_time_and_keeps_what_takes_their_place():
    pool, images = ImagePool(3, (1,)), torch.arange(10.0).view(10, 1)
    assert torch.equal(pool(images[:2], torch.tensor([0.9, 0.1])), images[:2])  # there is room, whatever is drawn
    shown = pool(images[2:7], torch.tensor([0.7, 0.4, 0.5, 0.6, 0.99]))
    # room for 2; 3 is shown and not kept; 4 takes the place of 0, 5 that of 4, which came in this very batch, 6 that of 2
    assert shown.flatten().tolist() == [2, 3, 0, 4, 2]
    assert pool.images.flatten().tolist() == [5, 1, 6] and pool.filled == 3


def test_cyclegan_goes_there_and_back_on_both_sides_and_halves_the_judges_losses():
    variant = ganzoo.create("cyclegan", width=2, blocks=1, batch=2, cycle_weight=3.0, identity_weight=0.5)
    trainer = Trainer(variant, ganzoo.data.open("glyphs", form="unpaired", size=16))
    networks = trainer.networks
    for name in ("judge_a", "judge_b"):
        nn.init.zeros_(getattr(networks, name)[-1].weight)
    networks.to_a[-2].bias.data.fill_(0.3)  # of two generators that are not alike

    def distance(x, y):
        return (x - y).abs().mean()

    figures = loss_of(trainer, "generators")
    draw = drawn_again(trainer)
    a, b = draw.real("a"), draw.real("b")
    there, back = networks.to_b(a), networks.to_a(b)
    aba, bab = distance(networks.to_a(there), a), distance(networks.to_b(back), b)
    same = distance(networks.to_a(a), a) + distance(networks.to_b(b), b)
    (
        torch.testing.assert_close(figures["A→B→A"], aba.detach()),
        torch.testing.assert_close(figures["B→A→B"], bab.detach()),
    )
    torch.testing.assert_close(figures["generators_loss"], (1 + 1 + 3 * (aba + bab) + 0.5 * 3 * same).detach())
    assert loss_of(trainer, "judges", 1)["judges_loss"].item() == pytest.approx(
        1 / 2 + 1 / 2
    )  # scores of 0, which are those of fakes


def test_cyclegans_judges_see_the_pool_and_its_learning_rate_falls_from_half_way():
    trainer = Trainer(
        ganzoo.create("cyclegan", width=2, blocks=1, batch=2, pool=2, steps=8),
        ganzoo.data.open("glyphs", form="unpaired", size=16),
    )
    trainer.step()
    judged, old = [], trainer.networks.pool_a.images.clone()
    trainer.networks.judge_a.register_forward_hook(lambda _, inputs, out: judged.append(inputs[0].detach()))
    seen = 0
    for update in range(2, 12):
        loss_of(trainer, "judges", update)
        seen += sum(any(torch.equal(image, kept) for kept in old) for image in judged[-1])
    assert seen == 2  # each of the images of the first step once more
    rates = []
    for _ in range(7):
        trainer.step()
        rates.append(trainer._optimizers["judges"].param_groups[0]["lr"] / 2e-4)
    assert rates == pytest.approx([1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4])


def test_there_and_back_comes_closer():
    variant = ganzoo.create("cyclegan", width=4, blocks=1, batch=4, steps=40, lr=2e-3)
    trainer = Trainer(variant, ganzoo.data.open("glyphs", form="unpaired", size=16))
    errors = [trainer.step()["A→B→A"].item() for _ in range(40)]
    assert sum(errors[-5:]) < 0.5 * sum(errors[:5])


# --- SRGAN ---


def super_resolving(**options):
    variant = ganzoo.create("srgan", **{**dict(width=4, blocks=1, batch=8, doublings=1, pretraining=1), **options})
    return Trainer(variant, ganzoo.data.open("photos", size=16, photo="china"))


def test_srgan_pretrains_on_the_content_alone_and_weighs_the_adversary_at_a_thousandth():
    trainer = super_resolving(pretraining=2)
    assert [trainer.variant.schedule(step) for step in (1, 2)] == [["content"], ["discriminator", "generator"]]
    content, both = loss_of(trainer, "content"), loss_of(trainer, "generator")
    draw = drawn_again(trainer)
    draw.positions.update(draw._began)
    x = draw.real()
    low = nn.functional.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)
    fake = trainer.networks.generator(low)
    error = (x - fake).square().mean()
    adversarial = nn.functional.softplus(-trainer.networks.discriminator(fake)).mean()
    torch.testing.assert_close(content["content_loss"], error.detach())
    torch.testing.assert_close(both["generator_loss"], (error + 1e-3 * adversarial).detach())
    bicubic = nn.functional.interpolate(low, scale_factor=2, mode="bicubic")
    expected = 10 * torch.log10(4 / (x - bicubic).square().mean())
    torch.testing.assert_close(content["PSNR of bicubic"], expected)


def test_srgans_average_follows_its_pretraining_too():
    trainer = super_resolving(pretraining=2, ema=0.75)
    expected = [p.detach().clone() for p in trainer.networks.generator.parameters()]
    for _ in range(4):
        trainer.step()
        torch._foreach_lerp_(expected, [p.detach() for p in trainer.networks.generator.parameters()], 0.25)
    torch.testing.assert_close(list(trainer.sampling().generator.parameters()), expected)


def test_srgan_compares_the_features_of_a_network_that_is_given(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    free = {0: torch.export.Dim("batch")}
    exported = torch.export.export(network, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=(free,))
    torch.export.save(exported, tmp_path / "features.pt2")
    trainer = super_resolving(content=str(tmp_path / "features.pt2"))
    found = loss_of(trainer, "content")["content_loss"]
    x = drawn_again(trainer)
    x.positions.update(x._began)
    x = x.real()
    fake = trainer.networks.generator(trainer.variant.low(x))
    torch.testing.assert_close(found, (network(x) - network(fake)).square().mean().detach())
    trainer.step(), trainer.step()
    save_checkpoint(tmp_path, trainer)
    (tmp_path / "features.pt2").unlink()  # which sampling does without
    assert torch.equal(ganzoo.load(tmp_path).sample(3), trainer.sample(3))

    with pytest.raises(ganzoo.Error, match="content must be a file that torch.export.save wrote"):
        super_resolving(content=str(tmp_path / "features.pt2"))


def test_srgan_comes_closer_than_bicubic_interpolation():
    variant = ganzoo.create("srgan", width=8, blocks=1, batch=16, doublings=1, lr=2e-3, pretraining=120)
    data = ganzoo.data.open("glyphs", size=16)  # edges, of which bicubic interpolation makes the least
    trainer = Trainer(variant, data)
    for _ in range(140):
        trainer.step()
    low, x = variant.pair(data.fetch(torch.arange(0, 1900, 20)))
    with torch.no_grad():
        made = variant.translate(trainer.sampling(), low)
    assert psnr(made, x) > psnr(nn.functional.interpolate(low, size=16, mode="bicubic"), x) + 1


def test_pixel_shuffle_makes_the_size_and_everything_has_a_shortcut():
    generator, x = srgan.Generator(3, 4, blocks=2, doublings=2), torch.randn(2, 3, 5, 7)
    assert generator(x).shape == (2, 3, 20, 28)
    assert sum(isinstance(layer, nn.PixelShuffle) for layer in generator.modules()) == 2
    with torch.no_grad():
        for layer in generator.body.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.zero_()
    torch.testing.assert_close(generator(x), generator.last(generator.first(x)))
    shapes = [layer.out_channels for layer in srgan.Discriminator((3, 96, 96), 64) if isinstance(layer, nn.Conv2d)]
    assert shapes == [64, 64, 128, 128, 256, 256, 512, 512]


# --- LAPGAN ---


def pyramid(**options):
    variant = ganzoo.create("lapgan", **{**dict(width=1, latent=4, batch=4, doublings=2), **options})
    return Trainer(variant, ganzoo.data.open("photos", size=32, photo="china"))


def test_lapgans_losses_compile():
    variant, data = ganzoo.create("lapgan", width=1, batch=4, doublings=1), ganzoo.data.open("photos", size=16)
    eager, compiled = (Trainer(variant, data, compile=backend) for backend in (False, "eager"))
    torch.testing.assert_close(compiled.step(), eager.step(), rtol=1e-4, atol=1e-5)


def test_lapgan_names_the_most_doublings_that_images_have():
    for size, most in ((16, 1), (32, 2)):
        sentence = f"doublings must be at most {most} for images of {size} x {size} pixels, got 3."
        with pytest.raises(ArgumentError, match=sentence):
            Trainer(ganzoo.create("lapgan", width=1, doublings=3), ganzoo.data.open("photos", size=size))
    with pytest.raises(ArgumentError, match="data must be square images with a side of 8, .* got 3 x 24 x 24"):
        Trainer(ganzoo.create("lapgan", width=1, doublings=1), ganzoo.data.open("photos", size=24))


def test_lapgans_levels_are_trained_apart_on_real_images_of_the_level_below():
    trainer = pyramid()
    before = [loss_of(trainer, f"g{level}") for level in range(3)]
    with torch.no_grad():
        trainer.networks.g0[-2].bias.add_(1)
    after = [loss_of(trainer, f"g{level}") for level in range(3)]
    assert [torch.equal(a[f"g{n}_loss"], b[f"g{n}_loss"]) for n, (a, b) in enumerate(zip(before, after))] == [
        False,
        True,
        True,
    ]


def test_lapgans_judges_see_the_residual_added_to_what_is_below_and_samples_go_up():
    trainer = pyramid()
    networks, judged = trainer.networks, []
    for level in (1, 2):
        (
            nn.init.zeros_(getattr(networks, f"g{level}")[-1].weight),
            nn.init.zeros_(getattr(networks, f"g{level}")[-1].bias),
        )
        getattr(networks, f"d{level}").register_forward_hook(lambda _, inputs, out: judged.append(inputs[0]))
        loss_of(trainer, f"d{level}")
        draw = drawn_again(trainer)
        draw.positions.update(draw._began)
        x = draw.real()
        real, fake = judged[-2:]
        torch.testing.assert_close(real, nn.functional.avg_pool2d(x, 2 ** (2 - level)))
        below = nn.functional.avg_pool2d(x, 2 ** (3 - level))
        torch.testing.assert_close(
            fake, nn.functional.interpolate(below, scale_factor=2, mode="bilinear")
        )  # residuals are 0
    latents = trainer.variant.latents(2, torch.Generator().manual_seed(0))
    assert latents.shape == (2, 4 + 16 * 16 + 32 * 32) and latents.abs().max() <= 1 and latents.min() < -0.9
    small = networks.g0(latents[:, :4])
    for _ in range(2):
        small = nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(trainer.variant.sample(networks, latents), small)


def test_every_level_of_lapgan_has_noise_of_its_own():
    trainer = pyramid()
    latents = trainer.variant.latents(1, torch.Generator().manual_seed(0))
    sample = trainer.variant.sample(trainer.networks, latents)
    for place in (0, 4 + 5, 4 + 256 + 5):
        other = latents.clone()
        other[:, place] += 1
        assert not torch.equal(trainer.variant.sample(trainer.networks, other), sample)


# --- SinGAN ---


def single(compile=False, **options):
    tiny = dict(width=2, scales=3, steps_per_scale=2, size=24, rounds=2)
    image = ganzoo.data.open("photos", size=32, photo="china").fetch(torch.zeros(1, dtype=torch.int64))
    return Trainer(ganzoo.create("singan", **{**tiny, **options}), image["image"], compile=compile)


def test_singan_takes_no_data_of_several_images():
    with pytest.raises(ArgumentError, match="data must be a single image, as of photos with photo=china"):
        Trainer(ganzoo.create("singan", width=2, scales=2), ganzoo.data.open("photos"))


def test_singans_scales_grow_by_the_factor_and_each_trains_alone_with_a_tenth_of_the_rate_at_its_end():
    trainer = single(steps_per_scale=5)
    assert trainer.variant.shapes == [(3, 14, 14), (3, 18, 18), (3, 24, 24)]
    assert [trainer.variant.phase_at(step) for step in (0, 4, 5, 10, 99)] == [0, 0, 1, 2, 2]
    assert trainer.variant.schedule(0) == ["critic"] * 2 + ["generator"] * 2
    rates = []
    for _ in range(6):
        trainer.step()
        rates.append(trainer._optimizers["critic"].param_groups[0]["lr"] / 5e-4)
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 1])
    assert ganzoo.create("singan").shape_at(5, (3, 427, 640)) == (3, 64, 96)
    assert single(size=999).variant.shapes[-1] == (3, 32, 32)  # the image's own size at most
    with pytest.raises(
        ArgumentError, match="data must be an image that has 11 x 11 pixels at the coarsest of 3 scales, got 9 x 9"
    ):
        single(size=16)


def test_singans_noise_is_a_tenth_of_the_error_below_and_rebuilding_has_none_but_at_the_coarsest_scale():
    trainer = single()
    for _ in range(3):
        trainer.step()
    networks, variant = trainer.networks, trainer.variant
    assert variant.phase == 1 and set(trainer._players["generator"].networks) == {"g1"}
    below = nn.functional.interpolate(networks.g0(networks.fixed), size=18, mode="bicubic")
    figures = loss_of(trainer, "generator", 50)
    draw = drawn_again(trainer, 50)
    draw.positions.update(draw._began)
    real = variant.real(draw)
    rebuilt = below + networks.g1(below)
    error = (rebuilt - real).square().mean()
    torch.testing.assert_close(figures["rebuilt"], error.detach())
    fake = variant.generated(networks, variant.noises(draw.latents()), 1)
    torch.testing.assert_close(figures["generator_loss"], (10 * error - networks.critic(fake).mean()).detach())

    straight = single()
    straight.step(), straight.step()
    straight._draw.begin(-2)
    straight._draw.positions.update(straight._draw._began)
    view = nn.functional.interpolate(straight._draw.real(), size=18, mode="bicubic", antialias=True)
    below = nn.functional.interpolate(straight.networks.g0(straight.networks.fixed), size=18, mode="bicubic")
    straight._enter(1)
    expected = 0.1 * (below - view).square().mean().sqrt().item()
    assert straight.networks.amplitudes.tolist() == pytest.approx([1, expected, 1], rel=1e-5)


def test_a_scale_of_singan_that_is_done_stays_as_its_average():
    trainer = single(steps_per_scale=3, ema=0.5)
    for _ in range(3):
        trainer.step()
    average = [param.clone() for param in trainer.sampling().g0.parameters()]
    assert not all(map(torch.equal, average, trainer.networks.g0.parameters()))
    trainer.step()
    assert trainer.variant.phase == 1 and list(trainer._averages) == ["g1"]
    for networks in (trainer.networks, trainer.sampling()):  # what the scale above learns to go on from, and does
        torch.testing.assert_close([*networks.g0.parameters()], average)


def test_singans_penalty_asks_a_slope_of_one_of_every_patch_rather_than_of_their_mean():
    trainer = single()
    found = loss_of(trainer, "critic", 50)["gradient_penalty"].item()
    draw, networks = drawn_again(trainer, 50), trainer.networks
    draw.positions.update(draw._began)
    real = trainer.variant.real(draw)
    fake, eps = networks.g0(trainer.variant.noises(draw.latents())[0]), draw.uniform().view(1, 1, 1, 1)
    between = (eps * real + (1 - eps) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(networks.critic(between).sum(), between)
    assert found == pytest.approx(
        0.1 * (4 * slope.norm().item() - 1) ** 2, rel=1e-4
    )  # 14 × 14 pixels have 4 × 4 patches


def test_singans_losses_compile():
    eager, compiled = (single(backend, steps_per_scale=1, rounds=1) for backend in (False, "eager"))
    for _ in range(2):  # a step in each of two scales
        torch.testing.assert_close(compiled.step(), eager.step(), rtol=1e-4, atol=1e-5)


def test_singans_samples_differ_by_the_noise_of_every_scale():
    trainer = single()
    for _ in range(6):
        trainer.step()
    latents = trainer.variant.latents(1, torch.Generator().manual_seed(0))
    sample = trainer.variant.sample(trainer.networks, latents)
    assert latents.shape == (1, 3 * (14**2 + 18**2 + 24**2)) and sample.shape == (1, 3, 24, 24)
    for place in (300, 3 * 14**2 + 400, 3 * (14**2 + 18**2) + 700):
        other = latents.clone()
        other[:, place] += 3
        assert not torch.equal(trainer.variant.sample(trainer.networks, other), sample)


def test_singans_critic_sees_patches_of_11_pixels_and_batches_do_not_mix():
    critic, x = singan.Critic(3, 4).double(), torch.randn(2, 3, 11, 11, dtype=torch.float64)
    assert critic(x).shape == (2,) and nn.Sequential(*list(critic)[:-2])(x).shape == (2, 1, 1, 1)
    generator, x = singan.Generator(3, 4), torch.randn(3, 3, 13, 17)
    assert generator(x).shape == x.shape
    torch.testing.assert_close(generator(x)[:1], generator(x[:1]))
