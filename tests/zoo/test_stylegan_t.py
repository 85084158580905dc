"""StyleGAN-T: what its paper says of text, styles and the frozen transformer, and that a known mistake fails."""

import copy
import math

import ganzoo
import pytest
import torch
import torch.nn.functional as F
from ganzoo import Trainer
from ganzoo.networks import stylegan2, stylegan_t
from ganzoo.networks.vit import ViT
from ganzoo.objectives import contrastive
from ganzoo.training.checkpoint import save_checkpoint
from ganzoo.training.ops import get_ops
from torch import nn

from .conftest import same

OPS = get_ops("gankernels")


@pytest.fixture(scope="module")
def captioned():
    return ganzoo.data.open("captioned-digits")


def small(captioned, **options):
    tiny = dict(width=4, latent=6, code=4, patch=4, tokens=8, batch=16, pretraining=1, techniques=())
    return Trainer(ganzoo.create("stylegan-t", **{**tiny, **options}), captioned, seed=1)


def loss_of(trainer, player):
    """A player's loss, with spectral norms as they are, and the same draws again."""
    trainer.networks.discriminator.eval()
    found = trainer._differentiate(player, (), 0, trainer._draw)
    draw = trainer._draw
    draw.begin(0)
    draw.positions.update(draw._began)
    return found, draw


def generator():
    torch.manual_seed(0)
    return stylegan_t.Generator(6, 4, (1, 16, 16), 4, 2, OPS)


def test_text_joins_w_behind_the_mapping_network():
    made, z, code = generator(), torch.randn(3, 6), torch.randn(3, 4)
    w = made.mapping(z, code)
    torch.testing.assert_close(w[:, :6], made.style(z))
    torch.testing.assert_close(w[:, 6:], code / code.square().mean(1, keepdim=True).sqrt())
    assert not any(slope.any() for slope in torch.autograd.grad(w[:, 6:].sum() + 0 * w.sum(), made.style.parameters()))
    assert not torch.allclose(made(z, code), made(z, code.flip(0)))


def test_styles_are_of_second_order_in_every_layer():
    made = generator()
    layers = [module for module in made.modules() if isinstance(module, stylegan2.Modulated)]
    assert len(layers) == 5 + 3 and all(type(layer.modulation) is stylegan_t.SecondOrder for layer in layers)
    styles, w, d = layers[0].modulation.double(), torch.randn(5, 10).double(), torch.randn(5, 10).double()

    def slope(layer):
        return d @ layer.weight.T / math.sqrt(10)

    bend = styles(w + d) - 2 * styles(w) + styles(w - d)
    torch.testing.assert_close(bend, 2 * slope(styles.first) * slope(styles.second))
    torch.testing.assert_close(styles(0 * w), torch.ones(5, 16).double())


def test_half_of_the_convolutions_are_residual_and_start_at_nearly_nothing():
    made = generator()
    assert [type(conv) for conv in made.convs] == [stylegan2.StyledConv, stylegan_t.Residual] * 2
    block, x, w, noise = made.convs[1], torch.randn(2, 8, 8, 8), torch.randn(2, 10), torch.randn(2, 1, 8, 8)
    assert torch.unique(block.gamma).tolist() == pytest.approx([1e-5])
    with torch.no_grad():
        block.gamma.copy_(torch.randn(8, 1, 1))
    expected = x + block.gamma * block.conv(F.group_norm(x, 1), w, noise)
    torch.testing.assert_close(block(x, w, noise), expected)


def test_each_token_is_in_the_hinge_by_itself(captioned):
    trainer = small(captioned)
    networks = trainer.networks
    with torch.no_grad():  # scores on both sides of the margin
        for head in networks.discriminator.heads:
            head.score.parametrizations.weight.original.mul_(30), head.score.bias.fill_(0.9)
    found, draw = loss_of(trainer, "discriminator")
    batch = draw.batch()
    code = networks.text(batch["caption"])
    real = networks.discriminator(batch["image"], code, networks.vit)
    fake = networks.discriminator(trainer.variant.generated(networks, draw, code)[0], code, networks.vit)
    assert real.shape == (16, 3 * (1 + 4))  # three layers, of a class token and four patches each
    assert (real > 1).any() and (real < 1).any()
    torch.testing.assert_close(found["discriminator_loss"], (1 - real).relu().mean() + (1 + fake).relu().mean())
    scores = trainer.variant.scores(networks, batch["image"], batch["caption"])
    torch.testing.assert_close(scores, real.mean(1))


def test_a_head_projects_its_tokens_on_the_text():
    torch.manual_seed(0)
    head, tokens = stylegan_t.Head(OPS, 6, 8, 4), torch.randn(2, 20, 6)
    code, other = torch.randn(2, 4), torch.randn(2, 4)
    h = F.leaky_relu(F.layer_norm(head.first(tokens.mT), (8, 20)), 0.2)
    h = (h + F.leaky_relu(F.layer_norm(head.second(h), (8, 20)), 0.2)) / math.sqrt(2)
    unit, of_other = (c / c.square().mean(1, keepdim=True).sqrt() for c in (code, other))
    direction = (unit - of_other) @ head.projection.weight.T
    difference = torch.einsum("nc,ncl->nl", direction, h) / math.sqrt(8)
    torch.testing.assert_close(head(tokens, code) - head(tokens, other), difference)


def test_every_head_is_under_spectral_norm(captioned):
    trainer = small(captioned, pretraining=1)
    for _ in range(8):
        trainer.step()
    heads = trainer.networks.discriminator.eval().heads
    layers = [layer for head in heads for layer in (head.first, head.second, head.score, head.projection)]
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=0.3)


def test_the_frozen_transformer_passes_gradients_on_and_takes_none(captioned):
    slopes = []
    for weight in (0.0, 2.0):
        trainer = small(captioned, guidance_weight=weight)
        frozen = [*trainer.networks.vit.parameters(), *trainer.networks.text.parameters()]
        for player in ("discriminator", "generator"):
            loss_of(trainer, player)
            assert all(param.grad is None or not param.grad.any() for param in frozen)
            assert not {id(param) for param in frozen} & {id(param) for param in trainer._params[player]}
        slopes.append(torch.cat([param.grad.flatten() for param in trainer._params["generator"]]))
    assert slopes[0].abs().sum() > 0  # of the heads
    assert not torch.allclose(*slopes)  # and of the guidance


def test_encoders_learn_in_the_first_steps_and_stay_from_then_on(captioned):
    trainer = small(captioned, pretraining=2)
    at, others = [], []
    for _ in range(4):
        networks = trainer.networks
        at.append(copy.deepcopy({"vit": networks.vit.state_dict(), "text": networks.text.state_dict()}))
        others.append(copy.deepcopy({"g": networks.generator.state_dict(), "d": networks.discriminator.state_dict()}))
        trainer.step()
    assert not same(at[0], at[1]) and not same(at[1], at[2]) and same(at[2], at[3])
    assert same(others[0], others[2]) and not same(others[2], others[3])


def test_guidance_is_the_squared_angle_between_the_codes_of_image_and_caption(captioned):
    trainer = small(captioned, guidance_weight=3.0)
    networks = trainer.networks
    found, draw = loss_of(trainer, "generator")
    code = networks.text(draw.batch()["caption"])
    fake, _ = trainer.variant.generated(networks, draw, code)
    a, b = F.normalize(networks.vit(fake)[0], dim=1), F.normalize(code, dim=1)
    angle = 2 * ((a - b).norm(dim=1) / 2).asin()
    adversarial = -networks.discriminator(fake, code, networks.vit).mean()
    torch.testing.assert_close(found["generator_loss"], adversarial + 3 * angle.square().mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_heads_see_augmented_images_and_the_guidance_plain_ones(captioned, player):
    assert ganzoo.create("stylegan-t").techniques == ("diffaugment",)
    shown, encoded, made = [], [], []
    trainer = small(captioned, techniques=("diffaugment",))
    networks = trainer.networks
    networks.discriminator.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    networks.vit.register_forward_pre_hook(lambda _, given: encoded.append(given[0]))
    synthesis = networks.generator.synthesis
    networks.generator.synthesis = lambda *given: made.append(synthesis(*given)) or made[-1]
    _, draw = loss_of(trainer, player)
    plain = [draw.batch()["image"], made[0]] if player == "discriminator" else [made[0]]
    assert len(shown) == len(plain) and not any(map(torch.equal, shown, plain))
    guided = [made[0]] if player == "generator" else []
    assert {id(x) for x in encoded} == {id(x) for x in [*shown, *guided]}


def test_samples_are_truncated_towards_the_mean_of_w_for_their_caption(captioned):
    trainer = small(captioned, w_decay=0.5)
    trainer.step()
    before = trainer.networks.w_mean.clone()
    found, draw = loss_of(trainer, "generator")
    draw.batch()
    styles = trainer.networks.generator.style(draw.latents()).mean(0)
    trainer.variant.follow(trainer.networks, found)
    torch.testing.assert_close(trainer.networks.w_mean, before.lerp(styles.detach(), 0.5))
    assert "w" not in found

    networks, variant, z = trainer.sampling(), trainer.variant, torch.randn(20, 6)
    labels = torch.arange(10).repeat(2)
    code = variant.condition(networks, labels)
    for truncation in (1.0, 0.5, 0.0):
        variant.truncation = truncation
        w = networks.generator.mapping(z, code)
        mean = networks.generator.with_text(networks.w_mean.expand(20, -1), code)
        expected = networks.generator.synthesis(mean + truncation * (w - mean)).clamp(-1, 1)
        images = variant.sample(networks, z, labels)
        torch.testing.assert_close(images, expected)
    torch.testing.assert_close(images[:10], images[10:])
    assert len(images[:10].unique(dim=0)) == 10


def test_goes_on_to_the_bit_from_the_middle_of_pretraining(captioned):
    straight = small(captioned, pretraining=2, techniques=("diffaugment",))
    straight.step()
    state = copy.deepcopy(straight.state_dict())
    later = [straight.step() for _ in range(3)]
    resumed = small(captioned, pretraining=2, techniques=("diffaugment",))
    resumed.load_state_dict(state)
    assert same([resumed.step() for _ in range(3)], later) and same(resumed.state_dict(), straight.state_dict())


def test_small_encoders_that_are_trained_here_tell_which_digit_a_caption_names(captioned):
    trainer = small(captioned, tokens=16, code=16, patch=4, batch=64, pretraining=120)
    for _ in range(120):
        trainer.step()
    batch, networks = captioned.fetch(torch.arange(500)), trainer.networks
    with torch.no_grad():
        images = F.normalize(networks.vit(batch["image"])[0], dim=1)
        captions = F.normalize(networks.text(networks.captions), dim=1)
    told = (images @ captions.T).argmax(1) == batch["label"]
    assert told.float().mean() > 0.6


def test_of_a_batch_each_code_is_to_find_its_partner():
    first, second = torch.randn(5, 3), torch.randn(5, 3)
    likeness = torch.stack([F.cosine_similarity(first, other.expand(5, 3)) for other in second], 1) / 0.2
    both = likeness.softmax(1).diag().log() + likeness.softmax(0).diag().log()
    torch.testing.assert_close(contrastive(first, second, 0.2), -both.mean() / 2)


def test_hidden_patches_are_rebuilt_from_the_others_alone():
    torch.manual_seed(0)
    vit, x = ViT((1, 8, 8), 8, 4, 4, OPS), torch.randn(2, 1, 8, 8)
    hidden = torch.tensor([[True, False, False, False], [False, True, True, False]])
    changed = x.clone()
    changed[0, :, :4, :4] = 9
    rebuilt, again = (vit.pixels(vit.layers(vit.in_patches(image), hidden)[-1][:, 1:]) for image in (x, changed))
    torch.testing.assert_close(rebuilt, again)
    blocks = torch.stack([x[0, 0, :4, :4], x[1, 0, :4, 4:], x[1, 0, 4:, :4]]).flatten(1)
    torch.testing.assert_close(vit.rebuilding_error(x, hidden), (rebuilt[hidden] - blocks).square().mean())


@pytest.mark.parametrize("parts", [1, 2])
def test_a_quarter_of_each_image_is_hidden_however_the_batch_is_cut(captioned, parts, monkeypatch):
    seen, layers = [], ViT.layers
    monkeypatch.setattr(ViT, "layers", lambda *given: seen.append(given[2:]) or layers(*given))
    trainer = Trainer(small(captioned, patch=2).variant, captioned, seed=1, accumulate=parts)
    seen.clear()
    found, draw = loss_of(trainer, "encoders")
    hidden = torch.cat([given[0] for given in seen if given])
    assert hidden.sum(1).tolist() == [4] * 16 and len(hidden.unique(dim=0)) > 8
    whole = trainer.networks.vit.rebuilding_error(draw.real(), hidden)
    torch.testing.assert_close(found["rebuilding"], whole.detach())


@pytest.mark.parametrize("technique", ["discriminator-width:width=2", "prediction"])
def test_what_is_done_to_the_discriminator_leaves_the_frozen_transformer_as_it_is(captioned, technique):
    trainer = small(captioned, techniques=(technique,))
    trainer.step(), trainer.step()
    vit = [param.detach() for param in trainer.networks.vit.parameters()]
    torch.testing.assert_close(trainer._previous.get("vit", vit), vit, rtol=0, atol=0)


def test_ema_averages_the_generator_and_leaves_the_encoders_that_it_learnt_from(captioned):
    trainer = small(captioned, techniques=("ema:decay=0.9",))
    for _ in range(3):
        trainer.step()
    assert list(trainer._averages) == ["generator"]
    assert same(trainer.sampling().text.state_dict(), trainer.networks.text.state_dict())


class PublicText(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(32, 4)

    def forward(self, captions):
        return self.words(captions).mean(1)


class PublicViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(1, 6, 2, 2), nn.Linear(6, 4)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT
        return self.head(tokens.mean(1)), tokens, tokens.tanh()


@pytest.fixture(scope="module")
def files(captioned, tmp_path_factory):
    """A text encoder and a transformer, saved, and the files of them."""
    folder, networks = tmp_path_factory.mktemp("public"), (PublicText(), PublicViT())
    batch = captioned.fetch(torch.arange(3))
    paths = []
    for network, x in zip(networks, (batch["caption"], batch["image"])):
        exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
        paths.append(str(folder / f"{type(network).__name__}.pt2"))
        torch.export.save(exported, paths[-1])
    return networks, paths


def test_public_encoders_come_from_files_and_stay_as_they_are(captioned, files, tmp_path):
    (text, vit), (text_file, vit_file) = files
    trainer = small(captioned, text=text_file, vit=vit_file)
    assert trainer.step().keys() == {"discriminator_loss", "generator_loss", "guidance"}  # nothing to pretrain
    batch = captioned.fetch(torch.arange(3))
    torch.testing.assert_close(trainer.networks.text(batch["caption"]), text(batch["caption"]))
    torch.testing.assert_close(trainer.networks.vit(batch["image"]), vit(batch["image"]))
    assert not any(key.startswith(("text", "vit")) for key in trainer.state_dict()["networks"])
    save_checkpoint(tmp_path, trainer)
    assert torch.equal(ganzoo.load(tmp_path).sample(3), trainer.sample(3))


@pytest.mark.parametrize("option", ["text", "vit"])
def test_beside_one_public_encoder_the_other_is_trained_to_match(captioned, files, option):
    _, (text_file, vit_file) = files
    trainer = small(captioned, **{option: text_file if option == "text" else vit_file})
    learning = {"text": "vit", "vit": "text"}[option]
    assert trainer._players["encoders"].networks == (learning,)
    before = copy.deepcopy(getattr(trainer.networks, learning).state_dict())
    trainer.step()
    assert not same(before, getattr(trainer.networks, learning).state_dict())


def test_files_that_do_not_fit_are_refused_in_one_sentence(captioned, files):
    _, (text_file, vit_file) = files
    for options, sentence in [
        (dict(text="none.pt2"), "text must be a file that torch.export.save wrote (FileNotFoundError), got none.pt2."),
        (
            dict(text=vit_file),
            f"text must be a network of captions (N, 7) to codes (N, 4), got {vit_file}.",
        ),
        (
            dict(text=text_file, code=5),
            f"text must be a network of captions (N, 7) to codes (N, 5), got {text_file}.",
        ),
        (
            dict(vit=text_file),
            f"vit must be a network of images to codes (N, 4) and layers' tokens (N, L, D), got {text_file}.",
        ),
        (dict(patch=3), "patch must be a divisor of the images' sides, 8 and 8, got 3."),
    ]:
        with pytest.raises(ganzoo.ArgumentError) as refused:
            small(captioned, **options)
        assert str(refused.value) == f"ganzoo: {sentence}"
    with pytest.raises(ganzoo.ArgumentError, match="data must be captioned, .* got samples of digits"):
        small(ganzoo.data.open("digits"))


def test_a_way_through_w_keeps_to_the_caption_of_the_class(captioned, tmp_path):
    trainer = small(captioned)
    trainer.step(), trainer.step()
    save_checkpoint(tmp_path, trainer)
    loaded = ganzoo.load(tmp_path)
    generator, z = loaded.networks.generator, loaded.variant.latents(2, torch.Generator().manual_seed(0))
    strip = loaded.interpolate(2, 5, space="w", path="lerp", label=3)
    code = loaded.networks.text(loaded.networks.captions[[3, 3]])
    middle = generator.mapping(z, code).mean(0, keepdim=True)
    torch.testing.assert_close(strip[2:3], generator.synthesis(middle))
    torch.testing.assert_close(loaded.sample(2, labels=[3, 3]), strip[[0, 4]].clamp(-1, 1))


def test_trains_alike_in_lower_precision(captioned):
    variant = small(captioned, techniques=("diffaugment",)).variant
    full, other = (Trainer(variant, captioned, seed=1, precision=precision) for precision in ("fp32", "bf16"))
    for player in full._players:
        expected, found = full._take([player]), other._take([player])
        torch.testing.assert_close({key: value.float() for key, value in found.items()}, expected, rtol=0.05, atol=0.05)
