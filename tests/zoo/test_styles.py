"""Style-based and attention networks: what their papers say of them, and that a known mistake fails."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from .conftest import TINY

import ganzoo
from ganzoo import Trainer
from ganzoo.metrics.equivariance import eq_r, eq_t
from ganzoo.networks import biggan, equalized, sagan, stylegan, stylegan2, stylegan3
from ganzoo.training import evaluate
from ganzoo.training.checkpoint import save_checkpoint
from ganzoo.training.ops import get_ops

OPS = get_ops("gankernels")
STOCK = get_ops("stock")


def small(name, images, **options):
    return Trainer(ganzoo.create(name, **{"width": 4, "latent": 8, "batch": 16, **options}), images, seed=1)


# --- StyleGAN2 ---


def public_generator(state, z, noises, upsampled):
    """What a public checkpoint's keys stand for, in plain convolutions with weights per sample."""
    taps = torch.tensor([1.0, 3, 3, 1], dtype=z.dtype)
    kernel = taps.outer(taps) / taps.sum() ** 2 * 4

    def blur(x, before, after, up=1):
        n, c, h, w = x.shape
        spread = x.new_zeros(n, c, h * up, w * up)
        spread[:, :, ::up, ::up] = x
        padded = F.pad(spread, (before, after, before, after))
        return F.conv2d(padded, kernel.flip(0, 1).expand(c, 1, 4, 4), groups=c)

    def modulated(key, x, w, demodulate=True, up=False):
        weight, n = state[f"{key}.weight"], len(x)
        styles = w @ state[f"{key}.modulation.weight"].T / math.sqrt(w.shape[1]) + state[f"{key}.modulation.bias"]
        weight = weight / math.sqrt(weight[0, 0].numel()) * styles[:, None, :, None, None]
        if demodulate:
            weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        images = []
        for image, kernels in zip(x, weight):
            if up:
                images.append(blur(F.conv_transpose2d(image[None], kernels.transpose(0, 1), stride=2), 1, 1))
            else:
                images.append(F.conv2d(image[None], kernels, padding=kernels.shape[-1] // 2))
        assert len(images) == n
        return torch.cat(images)

    def styled(key, x, w, noise, up=False):
        x = modulated(f"{key}.conv", x, w, up=up) + state[f"{key}.noise.weight"] * noise
        return math.sqrt(2) * F.leaky_relu(x + state[f"{key}.activate.bias"].view(1, -1, 1, 1), 0.2)

    w = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    layer = 1
    while f"style.{layer}.weight" in state:
        weight, bias = state[f"style.{layer}.weight"], state[f"style.{layer}.bias"]
        w = math.sqrt(2) * F.leaky_relu(w @ weight.T * 0.01 / math.sqrt(w.shape[1]) + 0.01 * bias, 0.2)
        layer += 1
    x = styled("conv1", state["input.input"].expand(len(z), -1, -1, -1), w, noises[0])
    image = modulated("to_rgb1.conv", x, w, demodulate=False) + state["to_rgb1.bias"]
    for level in range(upsampled):
        x = styled(f"convs.{2 * level}", x, w, noises[2 * level + 1], up=True)
        x = styled(f"convs.{2 * level + 1}", x, w, noises[2 * level + 2])
        rgb = modulated(f"to_rgbs.{level}.conv", x, w, demodulate=False) + state[f"to_rgbs.{level}.bias"]
        image = rgb + blur(image, 2, 1, up=2)
    return image


@pytest.mark.parametrize("ops", [OPS, STOCK], ids=lambda ops: ops.name)
def test_stylegan2s_state_is_the_public_one_and_gives_the_same_image(ops):
    torch.manual_seed(0)
    generator = stylegan2.Generator(6, (3, 16, 16), 4, depth=2, ops=ops).double()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith((".bias", "noise.weight")):
                parameter.normal_()
    state, z = generator.state_dict(), torch.randn(3, 6, dtype=torch.double)
    noises = [state[f"noises.noise_{number}"] for number in range(5)]
    torch.testing.assert_close(generator(z), public_generator(state, z, noises, upsampled=2))
    drawn = [torch.randn(3, 1, *noise.shape[2:], dtype=torch.double) for noise in noises]
    expected = public_generator(state, z, drawn, upsampled=2)
    torch.testing.assert_close(generator(z, torch.cat([noise.flatten(1) for noise in drawn], 1)), expected)


@pytest.mark.parametrize("ops", [OPS, STOCK], ids=lambda ops: ops.name)
def test_stylegan2s_discriminator_is_the_public_one(ops):
    torch.manual_seed(0)
    discriminator, x = stylegan2.Discriminator((3, 16, 16), 4, ops).double(), torch.randn(4, 3, 16, 16).double()
    with torch.no_grad():
        for name, parameter in discriminator.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    state = discriminator.state_dict()

    def convolved(key, x, **options):
        weight = state[f"{key}.weight"]
        return F.conv2d(x, weight / math.sqrt(weight[0].numel()), **options)

    def activated(key, x):
        bias = state[f"{key}.bias"]
        return math.sqrt(2) * F.leaky_relu(x + bias.view(1, -1, *[1] * (x.dim() - 2)), 0.2)

    def blurred(key, x, pad):
        kernel = state[f"{key}.kernel"].expand(x.shape[1], 1, 4, 4)
        return F.conv2d(F.pad(x, (pad, pad, pad, pad)), kernel, groups=x.shape[1])

    y = activated("convs.0.1", convolved("convs.0.0", x))
    for block in ("convs.1", "convs.2"):
        z = activated(f"{block}.conv1.1", convolved(f"{block}.conv1.0", y, padding=1))
        z = convolved(f"{block}.conv2.1", blurred(f"{block}.conv2.0", z, 2), stride=2)
        skip = convolved(f"{block}.skip.1", blurred(f"{block}.skip.0", y, 1), stride=2)
        y = (activated(f"{block}.conv2.2", z) + skip) / math.sqrt(2)
    deviation = (y.var(0, correction=0) + 1e-8).sqrt().mean()
    y = torch.cat([y, deviation.expand(4, 1, 4, 4)], 1)
    y = activated("final_conv.1", convolved("final_conv.0", y, padding=1)).flatten(1)
    first, last = (state[f"final_linear.{number}.weight"] for number in range(2))
    y = activated("final_linear.0", y @ first.T / math.sqrt(first.shape[1]))
    y = y @ last.T / math.sqrt(last.shape[1]) + state["final_linear.1.bias"]
    torch.testing.assert_close(discriminator(x), y.flatten())


def test_stylegan2_at_256_has_the_public_checkpoints_keys_and_shapes():
    generator = stylegan2.Generator(512, (3, 256, 256), 128)
    discriminator = stylegan2.Discriminator((3, 256, 256), 128)
    shapes = {key: tuple(value.shape) for key, value in generator.state_dict().items()}
    assert len([key for key in shapes if key.startswith("style.")]) == 16 and shapes["style.8.weight"] == (512, 512)
    for key, shape in {
        "input.input": (1, 512, 4, 4),
        "conv1.conv.weight": (1, 512, 512, 3, 3),
        "conv1.conv.modulation.weight": (512, 512),
        "conv1.noise.weight": (1,),
        "conv1.activate.bias": (512,),
        "to_rgb1.bias": (1, 3, 1, 1),
        "convs.8.conv.weight": (1, 256, 512, 3, 3),
        "convs.8.conv.blur.kernel": (4, 4),
        "convs.11.activate.bias": (128,),
        "to_rgbs.5.upsample.kernel": (4, 4),
        "to_rgbs.5.conv.modulation.bias": (128,),
        "noises.noise_12": (1, 1, 256, 256),
    }.items():
        assert shapes[key] == shape
    # the published parameter counts at 256×256: 30.0 M and 28.9 M
    assert sum(p.numel() for p in generator.parameters()) == 30_034_338
    assert sum(p.numel() for p in discriminator.parameters()) == 28_864_129
    shapes = {key: tuple(value.shape) for key, value in discriminator.state_dict().items()}
    assert shapes["convs.0.0.weight"] == (128, 3, 1, 1) and shapes["convs.0.1.bias"] == (128,)
    assert shapes["convs.1.conv2.0.kernel"] == (4, 4) and shapes["convs.1.conv2.1.weight"] == (256, 128, 3, 3)
    assert shapes["convs.1.skip.1.weight"] == (256, 128, 1, 1) and "convs.1.skip.2.bias" not in shapes
    assert shapes["final_conv.0.weight"] == (512, 513, 3, 3) and shapes["final_linear.0.weight"] == (512, 8192)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_halving_layer_keeps_a_constant_images_value_and_filters_it_in_the_middle(kernel):
    layer = stylegan2.ConvLayer(OPS, 1, 1, kernel, down=True, act=False)
    with torch.no_grad():
        layer[1].weight.fill_(math.sqrt(kernel**2) / kernel**2)
    assert torch.allclose(layer(torch.ones(1, 1, 16, 16))[:, :, 2:-2, 2:-2], torch.ones(1, 1, 4, 4))
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(layer(image).flip(2, 3), layer(image.flip(2, 3)))


def test_equalised_layers_start_from_unit_weights_and_move_at_their_rate():
    torch.manual_seed(0)
    x = torch.randn(4000, 64)
    for rate in (1.0, 0.01):
        layer = equalized.Linear(OPS, 64, 256, bias=2.0, rate=rate)
        assert layer.weight.std().item() == pytest.approx(1 / rate, rel=0.02)
        y = layer(x) - 2
        assert (y.mean().item(), y.std().item()) == pytest.approx((0, 1), abs=0.05)
        before = y.detach()
        with torch.no_grad():
            layer.weight.add_(1e-3)
        torch.testing.assert_close(layer(x) - 2 - before, (1e-3 * rate / 8 * x.sum(1, keepdim=True)).expand(-1, 256))
    convolution = equalized.Conv2d(16, 64, 3, padding=1)
    assert convolution.weight.std().item() == pytest.approx(1, rel=0.02)
    assert convolution(torch.randn(8, 16, 9, 9))[:, :, 1:-1, 1:-1].std().item() == pytest.approx(1, rel=0.05)


def test_minibatch_deviation_is_of_runs_of_four_and_survives_a_cut():
    x = torch.randn(8, 3, 4, 4)
    expected = torch.cat([part.std(0, correction=0).mean().expand(4) for part in x.split(4)])
    for ops in (OPS, STOCK):
        y = equalized.with_stddev(ops, x)
        assert torch.equal(y[:, :3], x)
        torch.testing.assert_close(y[:, 3], expected[:, None, None].expand(8, 4, 4))
        torch.testing.assert_close(torch.cat([equalized.with_stddev(ops, part) for part in x.split(4)]), y)
    assert equalized.with_stddev(OPS, x[:6]).shape == (6, 4, 4, 4)  # pairs


def test_mixed_styles_change_once_from_one_latents_to_anothers(images):
    trainer = small("stylegan2", images, batch=512, mixing=0.75)
    networks, draw = trainer.networks, trainer._draw
    draw.begin(0)
    w = trainer.variant.styles(networks, draw)
    draw.begin(0)
    first, second = (networks.generator.mapping(draw.latents())[:, None] for _ in range(2))
    layers = networks.generator.layers
    assert layers == 4 and w.shape == (512, 4, 8)
    from_first, from_second = (w == first).all(2), (w == second).all(2)
    assert (from_first ^ from_second).all() and from_first[:, 0].all()
    counts = from_first.sum(1)
    assert torch.equal(from_first, torch.arange(layers) < counts[:, None])
    shares = counts.bincount(minlength=5) / 512
    assert shares[:1].sum() == 0
    torch.testing.assert_close(shares[1:], torch.tensor([0.25] * 4), atol=0.07, rtol=0)


def test_path_lengths_are_those_of_the_jacobian_and_their_mean_is_the_target(images):
    trainer = small("stylegan2", images, batch=4, path_length_weight=3.0, path_length_decay=0.9)
    variant, networks, draw = trainer.variant, trainer.networks, trainer._draw
    networks.mean_length.fill_(0.05)
    for ops in (OPS, STOCK):
        draw.begin(0)
        penalty, figures = variant.path_length(networks, draw, ops)
        draw.begin(0)
        w, noise = variant.styles(networks, draw), draw.normal(networks.generator.pixels)
        y = draw.normal(1, 8, 8).flatten(1) / 8
        jacobians = torch.autograd.functional.jacobian(lambda w: networks.generator.synthesis(w, noise).flatten(1), w)
        gradients = torch.einsum("nipld,np->nild", jacobians.permute(0, 2, 1, 3, 4), y)
        lengths = gradients[range(4), range(4)].square().sum(2).mean(1).sqrt()
        torch.testing.assert_close(figures["length"], lengths.mean())
        torch.testing.assert_close(penalty, 3 * (lengths - 0.05).square().mean())
    before = copy.deepcopy(networks.mean_length)
    w = torch.zeros(8)
    variant.follow(networks, {**figures, "w": w})
    torch.testing.assert_close(networks.mean_length, 0.9 * before + 0.1 * lengths.mean())
    variant.follow(networks, {"w": w})
    torch.testing.assert_close(networks.mean_length, 0.9 * before + 0.1 * lengths.mean())


def test_lazy_terms_are_as_large_as_they_are_rare_and_the_optimisers_know(images):
    trainer = small("stylegan2", images, lr=1e-2, betas=(0.5, 0.9), r1_every=3, path_length_every=2)
    discriminator, generator = trainer._optimizers["discriminator"], trainer._optimizers["generator"]
    assert discriminator.defaults["lr"] == pytest.approx(0.75e-2)
    assert discriminator.defaults["betas"] == pytest.approx((0.5**0.75, 0.9**0.75))
    assert generator.defaults["lr"] == pytest.approx(1e-2 * 2 / 3)
    shown = [trainer.step() for _ in range(6)]
    assert ["r1" in figures for figures in shown] == [True, False, False] * 2
    assert ["length" in figures for figures in shown] == [True, False] * 3
    with_terms = small("stylegan2", images, r1_every=3)
    figures = with_terms.step()
    plain = small("stylegan2", images, r1_every=3, gamma=0.0).step()
    difference = figures["discriminator_loss"] - plain["discriminator_loss"]
    torch.testing.assert_close(difference, 3 * figures["r1"], rtol=1e-3, atol=1e-5)


def test_truncation_moves_samples_towards_the_mean_style(images):
    trainer = small("stylegan2", images, w_decay=0.5)
    for _ in range(3):
        trainer.step()
    networks, z = trainer.sampling(), torch.randn(5, 8)
    mean, w = networks.w_mean, networks.generator.mapping(z)
    assert mean.abs().max() > 0
    for psi, style in ((1.0, w), (0.0, mean.expand(5, -1)), (0.3, mean + 0.3 * (w - mean))):
        trainer.variant.truncation = psi
        expected = networks.generator.synthesis(style).clamp(-1, 1)
        torch.testing.assert_close(trainer.variant.sample(networks, z), expected)


@pytest.mark.parametrize("parts", [1, 4])
def test_the_mean_style_follows_the_first_latents_styles_however_the_batch_is_cut(images, parts):
    variant = ganzoo.create("stylegan2", width=4, depth=2, latent=8, batch=16, w_decay=0.75, mixing=1.0)
    trainer = Trainer(variant, images, accumulate=parts)
    mapping, draw = copy.deepcopy(trainer.networks.generator.mapping), trainer._draw
    assert "w" not in trainer.step()
    draw.begin(1)  # the generator's update
    torch.testing.assert_close(trainer.networks.w_mean, 0.25 * mapping(draw.latents()).mean(0))


# --- SAGAN ---


def test_attention_is_the_identity_at_first_and_then_the_papers_sum():
    torch.manual_seed(0)
    for ops in (OPS, STOCK):
        layer, x = sagan.Attention(ops, 16), torch.randn(2, 16, 3, 3)
        assert torch.equal(layer(x), x)
        assert layer.query.weight.shape[0] == layer.key.weight.shape[0] == 16 // 8
        with torch.no_grad():
            layer.gamma.fill_(0.7)
        q, k, v = (conv(x).flatten(2) for conv in (layer.query, layer.key, layer.value))
        expected = torch.zeros(2, v.shape[1], 9)
        for j in range(9):
            beta = torch.stack([(k[:, :, i] * q[:, :, j]).sum(1) for i in range(9)], 1).softmax(1)
            expected[:, :, j] = (beta[:, None] * v).sum(2)
        torch.testing.assert_close(layer(x), x + 0.7 * layer.out(expected.unflatten(2, (3, 3))))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_attention_of_few_keys_and_more_values_differentiates_twice_under_autocast(precision):
    torch.manual_seed(0)
    layer, x, slopes = sagan.Attention(OPS, 16, values=2, pooled=True), torch.randn(2, 16, 4, 4, requires_grad=True), []
    torch.nn.init.ones_(layer.gamma)
    for enabled in (False, True):
        with torch.autocast("cpu", precision, enabled=enabled):
            (slope,) = torch.autograd.grad(layer(x).float().square().sum(), x, create_graph=True)
            slopes.append(torch.autograd.grad(slope.square().sum(), x)[0])
    torch.testing.assert_close(*slopes, rtol=0.1, atol=1)


def test_every_weight_of_both_networks_has_norm_one_but_the_classes_embedding():
    for name, data in (("sagan", ganzoo.data.open("digits")), ("biggan", ganzoo.data.open("digits"))):
        for ops in ("gankernels", "stock"):
            trainer = Trainer(ganzoo.create(name, width=4, latent=8, batch=16), data, ops=ops)
            with torch.no_grad():
                torch._foreach_mul_(list(trainer.networks.parameters()), 3.0)
            for _ in range(3):
                trainer.step()
            for network in (trainer.networks.generator, trainer.networks.discriminator):
                for path, layer in network.eval().named_modules():
                    if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear, torch.nn.Embedding)):
                        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.15)
            if name == "biggan":
                assert "parametrizations.shared" not in str(trainer.networks.generator.state_dict().keys())


def test_sagans_discriminator_learns_at_four_times_the_generators_rate(images):
    trainer = small("sagan", images)
    rates = {name: optimizer.defaults["lr"] for name, optimizer in trainer._optimizers.items()}
    assert rates["discriminator"] == pytest.approx(4 * rates["generator"])
    assert trainer.variant.schedule(0) == ["discriminator", "generator"]


# --- BigGAN ---


def test_conditional_norms_see_their_own_part_of_the_latent_beside_the_class():
    torch.manual_seed(0)
    generator = biggan.Generator(7, (1, 16, 16), 2, classes=3, embedding=4, ops=OPS).eval()
    seen = []
    for block in generator.blocks:
        block.norm1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
        block.norm2.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    z, labels = torch.randn(2, 7), torch.tensor([2, 0])
    generator(z, labels)
    first, second = (
        torch.cat([generator.shared[labels], z[:, 3:5]], 1),
        torch.cat([generator.shared[labels], z[:, 5:]], 1),
    )
    for got, expected in zip(seen, (first, first, second, second)):
        assert torch.equal(got, expected)
    norm, x = biggan.ConditionalNorm(2, condition=3), torch.randn(4, 2, 3, 3)
    c = torch.randn(4, 3)
    normal = F.batch_norm(x, None, None, training=True)
    expected = normal * (1 + c @ norm.gain.weight.T)[:, :, None, None] + (c @ norm.shift.weight.T)[:, :, None, None]
    torch.testing.assert_close(norm(x, c), expected)


def test_biggans_discriminator_projects_features_on_the_class():
    torch.manual_seed(0)
    discriminator, x = biggan.Discriminator((1, 8, 8), 2, classes=3, ops=OPS), torch.randn(5, 1, 8, 8)
    h = discriminator.features(x)
    scores = torch.stack([discriminator(x, torch.full((5,), label)) for label in range(3)])
    projected = torch.stack([(h * row).sum(1) for row in discriminator.embedding.weight])
    torch.testing.assert_close(scores - projected, discriminator.score(h).T.expand(3, 5))


def test_the_orthogonal_term_knows_the_embedding_within_other_networks():
    options = dict(width=4, latent=8, batch=16, techniques=("virtual-batch-norm:reference=4",))
    trainer = Trainer(ganzoo.create("biggan", **options), ganzoo.data.open("digits"))
    before = trainer.variant.orthogonal(trainer.networks, None, OPS)[0].item()
    torch.nn.init.ones_(trainer.networks.generator.network.shared)
    assert trainer.variant.orthogonal(trainer.networks, None, OPS)[0].item() == before


def test_the_orthogonal_term_leaves_the_rows_norms_and_the_embedding_alone():
    trainer = Trainer(
        ganzoo.create("biggan", width=4, latent=8, batch=16, orthogonal_weight=0.5), ganzoo.data.open("digits")
    )
    variant, networks = trainer.variant, trainer.networks
    orthogonal = variant.orthogonal(networks, None, OPS)[0].item()
    rows_only = torch.nn.Module()
    rows_only.generator = torch.nn.Linear(2, 2)
    rows_only.generator.weight = torch.nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 0.2]]))
    assert variant.orthogonal(rows_only, None, OPS)[0].item() == 0
    rows_only.generator.weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert variant.orthogonal(rows_only, None, OPS)[0].item() == pytest.approx(0.5 * 2 * 11**2)
    with torch.no_grad():
        networks.generator.shared.mul_(5)
    assert variant.orthogonal(networks, None, OPS)[0].item() == pytest.approx(orthogonal)


def test_truncated_latents_have_the_distribution_of_drawing_again():
    variant = ganzoo.create("biggan", truncation=0.8)
    z = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    truncated, again = variant.truncated(z).sort().values, z[z.abs() < 0.8].sort().values
    assert truncated.abs().max() <= 0.8
    shares = torch.linspace(0.01, 0.99, 50)
    torch.testing.assert_close(truncated.quantile(shares), again.quantile(shares), atol=0.01, rtol=0)
    assert torch.equal(ganzoo.create("biggan").truncated(z), z)


# --- StyleGAN ---


def test_adaptive_instance_norm_gives_each_channel_its_styles_mean_and_deviation():
    torch.manual_seed(0)
    layer = stylegan.Epilogue(OPS, 3, 4)
    x, w = 5 * torch.randn(2, 3, 8, 8) + 2, torch.randn(2, 4)
    y = layer(x, w, torch.randn(2, 1, 8, 8))
    torch.testing.assert_close(y.mean((2, 3)), layer.shift(w), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(y.std((2, 3), correction=0), layer.scale(w).abs(), atol=1e-5, rtol=1e-4)
    assert layer.scale(torch.zeros(1, 4)).unique().tolist() == [1] and layer.shift(
        torch.zeros(1, 4)
    ).unique().tolist() == [0]
    noise = torch.randn(2, 1, 8, 8)
    assert torch.equal(layer(x, w, noise), layer(x, w, 0 * noise))  # strengths start at 0
    with torch.no_grad():
        layer.strength.fill_(1)
    assert not torch.equal(layer(x, w, noise), layer(x, w, 0 * noise))
    normal = F.instance_norm(F.leaky_relu(x + noise, 0.2) * math.sqrt(2))
    scale, shift = (part(w)[:, :, None, None] for part in (layer.scale, layer.shift))
    torch.testing.assert_close(layer(x, w, noise), normal * scale + shift)


def test_stylegan_grows_without_a_jump_and_keeps_what_it_has_learnt(images):
    trainer = small("stylegan", images, phase_steps=2, fade_steps=4)
    for _ in range(2):
        trainer.step()
    small_one = copy.deepcopy(trainer.networks)
    assert trainer.variant.phase == 0 and trainer.sample(3).shape == (3, 1, 8, 8)
    trainer._enter(1)
    grown = trainer.networks
    for name in ("generator", "discriminator"):
        before, after = getattr(small_one, name).state_dict(), getattr(grown, name).state_dict()
        for key, value in before.items():
            assert key == "alpha" or torch.equal(after[key], value)
    w, x = torch.randn(2, 8), torch.randn(4, 1, 8, 8)
    doubled = F.interpolate(small_one.generator.synthesis(w), scale_factor=2)
    torch.testing.assert_close(grown.generator.synthesis(w), doubled)
    torch.testing.assert_close(grown.discriminator(x), small_one.discriminator(F.avg_pool2d(x, 2)))
    real = trainer.variant.seen(grown, x)
    torch.testing.assert_close(real, F.interpolate(F.avg_pool2d(x, 2), scale_factor=2))
    for share in (0.25, 0.5, 0.75, 1.0, 1.0):
        trainer.step()
        assert grown.generator.alpha.item() == grown.discriminator.alpha.item() == share
    assert torch.equal(trainer.variant.seen(grown, x), x)
    assert not torch.allclose(grown.generator.synthesis(w), doubled)
    assert [trainer.variant.phase_at(step) for step in (0, 1, 2, 100)] == [0, 0, 1, 1]


def test_a_growing_run_goes_on_in_the_middle_of_a_fade(images):
    first = small("stylegan", images, phase_steps=2, fade_steps=4)
    for _ in range(3):
        first.step()
    second = small("stylegan", images, phase_steps=2, fade_steps=4)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.networks.generator.alpha.item() == 0.25
    first.step(), second.step()
    assert torch.equal(first.sample(3), second.sample(3))


# --- StyleGAN3 ---


def test_bands_at_1024_are_those_of_the_papers_figure():
    chain = stylegan3.bands(1024, layers=14, margin=10)
    assert [band.size for band in chain] == [36, 36, 52, 52, 84, 148, 148, 276, 276, 532, 1044, 1044, 1044, 1024, 1024]
    assert chain[0].cutoff == 2 and [band.cutoff for band in chain[-3:]] == [512] * 3
    ratios = [b.cutoff / a.cutoff for a, b in zip(chain[:13], chain[1:13])]
    assert ratios == pytest.approx([ratios[0]] * 12)
    assert chain[0].half_width == pytest.approx(8 - 2)  # max(stopband 2^2.1, half of the rate) - cutoff


def test_filters_are_kaisers_and_radial_ones_have_no_direction():
    from scipy.signal import firwin

    for band, taps in ((stylegan3.Band(4.0, 2.5, 16, 36), 24), (stylegan3.Band(2.0, 6.0, 16, 36), 12)):
        expected = torch.from_numpy(firwin(taps, band.cutoff, width=2 * band.half_width, fs=32)).float()
        torch.testing.assert_close(stylegan3.low_pass(taps, band, 32), expected, atol=1e-6, rtol=1e-5)
    band = stylegan3.Band(4.0, 2.5, 16, 36)
    radial, separable = stylegan3.low_pass(24, band, 32, radial=True), stylegan3.low_pass(24, band, 32)
    assert radial.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(radial, radial.rot90())

    def response(f, angle):
        at = (torch.arange(24) - 11.5) / 32 * 2 * math.pi * f
        wave = torch.exp(1j * (at[:, None] * math.sin(angle) + at * math.cos(angle)))
        return (f_taps * wave).sum().abs().item()

    spread = []
    for f_taps in (radial, separable.outer(separable)):
        spread.append(abs(response(4.5, 0) - response(4.5, math.pi / 4)))
    assert spread[0] < 0.02 < 0.1 < spread[1]


@pytest.fixture(scope="module")
def equivariant():
    """Untrained generators of either configuration, whose magnitudes have settled; and how each draws a shifted or turned image."""

    def make(radial):
        torch.manual_seed(0)
        generator = stylegan3.Generator(8, (1, 16, 16), 8, 2, 4, 10, radial, OPS)

        def settle(conv, inputs):
            conv.magnitude.copy_(inputs[0].square().mean())

        hooks = [conv.register_forward_pre_hook(settle) for conv in generator.convs]
        w = generator.mapping(torch.randn(8, 8)).detach()
        with torch.no_grad():
            generator.synthesis(w)
        for hook in hooks:
            hook.remove()
        generator.eval()

        def synthesize(index, shift, turn):
            at = slice(index, index + 1)
            return generator.synthesis(w[at], torch.tensor([shift]), torch.tensor([turn]))[0].detach()

        return synthesize

    return make(False), make(True)


def test_eq_t_and_eq_r_are_decibels_of_an_ideal_and_of_a_fixed_image():
    random = torch.Generator().manual_seed(0)
    frequencies, phases = 0.1 * torch.randn(6, 2, generator=random), torch.rand(6, generator=random)
    at = torch.arange(32) - 15.5

    def ideal(index, shift, turn):
        x, y = at - 32 * shift[0], at - 32 * shift[1]
        c, s = math.cos(turn), math.sin(turn)
        u, v = c * x + s * y[:, None], c * y[:, None] - s * x
        waves = (
            2
            * math.pi
            * (frequencies[:, 0, None, None] * u + frequencies[:, 1, None, None] * v + phases[:, None, None])
        )
        return waves.sin().mean(0)[None]

    assert eq_t(ideal, 8, 32) > 90 and eq_r(ideal, 8, 32) > 35
    assert eq_t(lambda index, shift, turn: ideal(index, (0, 0), 0), 8, 32) < 20
    assert eq_r(lambda index, shift, turn: ideal(index, (0, 0), 0), 8, 32) < 20
    assert eq_r(lambda index, shift, turn: ideal(index, (0, 0), -turn), 8, 32) < 20
    offset = 0.02  # a mean square error of 0.02^2 is 40 dB of a range of 2
    assert eq_t(lambda index, shift, turn: torch.full((1, 32, 32), offset * (shift != (0, 0))), 8, 32) == pytest.approx(
        40, abs=0.5
    )


def test_an_untrained_generator_follows_its_input_and_only_r_turns_with_it(equivariant):
    t, r = equivariant
    assert eq_t(t, 8, 16) > 40 and eq_t(r, 8, 16) > 40
    turned = [(draw(0, (0.0, 0.0), math.pi / 2), draw(0, (0.0, 0.0), 0.0).rot90(-1, (1, 2))) for draw in (t, r)]
    errors = [(a - b)[:, 2:-2, 2:-2].square().mean().item() for a, b in turned]
    assert errors[1] < 1e-8 < 1e-5 < errors[0]


@pytest.mark.parametrize("radial", [False, True])
def test_layers_have_twice_the_rate_in_between_and_their_configurations_filters(radial):
    generator, chain = stylegan3.Generator(8, (1, 32, 32), 8, 2, 6, 10, radial, OPS), stylegan3.bands(32, 6, 10)
    directions = []
    for before, after, conv in zip([chain[0], *chain], chain, generator.convs[:-1]):
        between = 2 * max(before.rate, after.rate)
        assert conv.up * before.rate == conv.down * after.rate == between
        assert len(conv.up_filter) == 6 * conv.up and conv.up_filter.dim() == 1
        assert conv.weight.shape[-1] == (1 if radial else 3)
        directions.append(conv.down_filter.dim())
    assert directions == [2 if radial else 1] * 4 + [1] * 2  # the last two are critically sampled


def test_the_inputs_transform_is_the_identity_at_first_and_then_turns_and_shifts_it():
    torch.manual_seed(0)
    band = stylegan3.Band(2.0, 6.0, 16, 16)
    layer, w = stylegan3.FourierFeatures(OPS, 4, 6, band), torch.randn(2, 4)
    still, none = layer(w, torch.zeros(2, 2), torch.zeros(2)), torch.zeros(2)
    torch.testing.assert_close(still[0], still[1])
    assert layer.frequencies.norm(dim=1).max() <= 2
    pixels = torch.tensor([[3 / 16, -2 / 16]]).expand(2, 2)
    shifted = layer(w, pixels, none)
    torch.testing.assert_close(shifted[:, :, :-2, 3:], still[:, :, 2:, :-3], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        layer.transform.bias.copy_(torch.tensor([2.0, 0.0, 3 / 16 * 2, -2 / 16 * 2]))  # normalised by the first two
    torch.testing.assert_close(layer(w, torch.zeros(2, 2), none), shifted, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        layer.transform.bias.copy_(torch.tensor([0.0, 5.0, 0.0, 0.0]))
    torch.testing.assert_close(layer(w, torch.zeros(2, 2), none), still.rot90(-1, (2, 3)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_layers_magnitude_follows_its_input_once_a_step_however_the_batch_is_cut(images, parts):
    variant = ganzoo.create("stylegan3", width=2, convolutions=3, margin=4, latent=8, batch=16)
    trainer, squares = Trainer(variant, images, accumulate=parts), []
    generator, draw = copy.deepcopy(trainer.networks.generator), trainer._draw
    assert "squares" not in trainer.step()
    for conv in generator.convs:
        conv.register_forward_pre_hook(lambda _, inputs: squares.append(inputs[0].square().mean().item()))
    draw.begin(1)  # the generator's update
    generator(draw.latents())
    found = [conv.magnitude.item() for conv in trainer.networks.generator.convs]
    assert found == pytest.approx([0.999 + 0.001 * square for square in squares], abs=1e-6)
    assert max(abs(square - 1) for square in squares) > 0.1


def test_a_layer_divides_by_its_magnitude_and_leaves_it_alone():
    torch.manual_seed(0)
    band = stylegan3.Band(2.0, 6.0, 16, 16)
    layer, x, w = (
        stylegan3.Synthesis(OPS, 4, 3, 5, 3, band, band, False),
        3 * torch.randn(2, 3, 16, 16),
        torch.randn(2, 4),
    )
    first = layer(x, w)
    assert layer.magnitude == 1
    layer.magnitude.mul_(100)
    torch.testing.assert_close(layer(10 * x, w), first)


@pytest.mark.parametrize("name", ["stylegan", "stylegan2", "stylegan3"])
def test_a_trained_generator_interpolates_in_w_and_a_moving_one_is_measured(name, images, tmp_path, monkeypatch):
    options = {"stylegan": dict(phase_steps=1), "stylegan3": dict(convolutions=3, margin=4)}
    trainer = small(name, images, **options.get(name, {}))
    trainer.step(), trainer.step()
    save_checkpoint(tmp_path, trainer)
    loaded = ganzoo.load(tmp_path)
    generator, z = loaded.networks.generator, loaded.variant.latents(2, torch.Generator().manual_seed(0))
    strip = loaded.interpolate(2, 5, space="w", path="lerp")
    w = generator.mapping(z)
    torch.testing.assert_close(strip[2:3], generator.synthesis(w.mean(0, keepdim=True)))
    torch.testing.assert_close(loaded.sample(2), strip[[0, 4]].clamp(-1, 1))
    monkeypatch.setattr(evaluate, "MOVED", 4)
    if name == "stylegan3":
        t, r = evaluate.equivariance(loaded, seed=0)
        assert (t.name, r.name, t.n) == ("EQ-T in dB", "EQ-R in dB", 4)
        assert t.value > r.value > 0
    else:
        assert loaded.variant.moved is None


@pytest.mark.parametrize("name", ["sagan", "biggan", "stylegan", "stylegan2", "stylegan3"])
def test_style_and_attention_train_alike_in_lower_precision(name):
    variant, data = ganzoo.create(name, **TINY[name], latent=8, batch=16), ganzoo.data.open("digits")
    for player in variant.players(OPS):
        full, low = Trainer(variant, data), Trainer(variant, data, precision="bf16")
        expected, found = full._take([player]), low._take([player])
        torch.testing.assert_close({key: value.float() for key, value in found.items()}, expected, rtol=0.05, atol=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in low.networks.parameters())
    assert all(value.isfinite() for value in low.step().values())
