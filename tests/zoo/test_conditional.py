"""Games with a condition: what each paper's check asks for, and that a known mistake fails."""

import math

import ganzoo
import pytest
import torch
import torch.nn.functional as F
from ganzoo import Trainer
from ganzoo.data.base import Tensors, numbered
from ganzoo.data.captioned_digits import NAMES
from ganzoo.metrics import evaluate, make_extractor
from ganzoo.networks.conditional import Conditioned, Labels
from ganzoo.training.checkpoint import save_checkpoint
from ganzoo.variants import DataInfo
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import nn


def small(name, data="ring", **options):
    latent = {} if name == "face-aging" else {"latent": 2}
    sizes = {"width": 1, "batch": 32, **latent, **options}
    return Trainer(
        ganzoo.create(name, **sizes), ganzoo.data.open(data, **({"n": 256} if data == "ring" else {})), seed=1
    )


def loss_of(trainer, player):
    return trainer._differentiate(player, (), 0, trainer._draw)


def drawn_again(trainer):
    """The draws of the update that `loss_of` has just taken."""
    draw = trainer._draw
    draw.begin(0)
    draw.positions.update(draw._began)
    return draw


def agreement(trainer, n=500):
    """The share of samples whose digit a classifier tells to be the one that was asked for."""
    classifier = make_extractor("classifier", ganzoo.data.open("digits"))
    probabilities = classifier.extract(trainer.sample(n))[1]
    return (probabilities.argmax(1) == torch.arange(n) % 10).double().mean().item()


def test_of_points_the_nearest_mode_is_what_agrees_with_the_label():
    data = ganzoo.data.open("ring", n=256)
    batch = data.fetch(torch.arange(256))
    for labels, expected in ((batch["label"], 1), ((batch["label"] + 1) % 8, 0)):
        figures = {figure.name: figure.value for figure in evaluate(batch["image"], data, labels=labels)}
        assert figures["label agreement"] == expected


def test_a_grid_has_a_column_for_each_of_a_few_classes():
    few, many = DataInfo("few", (2,), 10), DataInfo("many", (2,), 241)
    assert [ganzoo.create("cgan").columns(data) for data in (few, many)] == [10, 8]
    assert ganzoo.create("gan").columns(few) == 8


# --- CGAN ---


def test_a_label_becomes_latents_and_planes_beside_the_input():
    labels, x = torch.tensor([2, 0]), torch.randn(2, 1, 8, 8)
    embedding = Labels(3, (1, 8, 8))
    network = Conditioned(nn.Identity(), embedding)
    both = network(x, labels)
    assert both.shape == (2, 2, 8, 8) and torch.equal(both[:, :1], x)
    dense = F.one_hot(labels, 3).float() @ embedding[0].weight
    torch.testing.assert_close(both[:, 1:], dense.view(2, 1, 8, 8))


def test_both_networks_of_cgan_see_the_label_and_the_discriminator_sees_the_generators():
    trainer, seen = small("cgan"), {"generator": [], "discriminator": []}
    for name, calls in seen.items():
        getattr(trainer.networks, name).register_forward_hook(lambda _, inputs, __, calls=calls: calls.append(inputs))
    for player in ("discriminator", "generator"):
        for calls in seen.values():
            calls.clear()
        loss_of(trainer, player)
        y = drawn_again(trainer).batch()["label"]
        assert torch.equal(seen["generator"][0][1], y)
        assert all(torch.equal(labels, y) for _, labels in seen["discriminator"])


def test_cgan_draws_the_digit_that_is_asked_for():
    data = ganzoo.data.open("digits")
    trainer = Trainer(ganzoo.create("cgan", width=8, lr=2e-3, ema=0.9), data, seed=0)
    for _ in range(200):
        trainer.step()
    assert agreement(trainer) > 0.6


# --- AC-GAN ---


def test_acgans_classes_are_told_by_raw_logits_of_both_kinds_of_images():
    trainer = small("acgan", class_weight=2.0)
    networks = trainer.networks
    found = loss_of(trainer, "discriminator")["discriminator_loss"]
    draw = drawn_again(trainer)
    batch, z = draw.batch(), draw.latents()
    x, y = batch["image"], batch["label"]
    scores, logits = networks.discriminator(torch.cat([x, networks.generator(z, y)]))
    (real, fake), of_class = scores.chunk(2), logits.log_softmax(1).gather(1, y.repeat(2)[:, None]).squeeze(1)
    adversarial = -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    torch.testing.assert_close(found, adversarial - 2 * of_class.sum() / len(y))

    found = loss_of(trainer, "generator")["generator_loss"]
    draw = drawn_again(trainer)
    batch, z = draw.batch(), draw.latents()
    x, y = batch["image"], batch["label"]
    scores, logits = networks.discriminator(torch.cat([x, networks.generator(z, y)]))
    of_class = logits[32:].log_softmax(1).gather(1, y[:, None])
    torch.testing.assert_close(found, -scores[32:].sigmoid().log().mean() - 2 * of_class.mean())


def test_acgan_is_able_to_be_certain_of_a_class():
    """After two softmaxes the cross-entropy of ten classes stays above log(1 + 9/e) = 1.46."""
    trainer = Trainer(ganzoo.create("acgan", width=8, lr=2e-3), ganzoo.data.open("digits"), seed=0)
    for _ in range(60):
        figures = trainer.step()
    assert figures["classes"] / 2 < 1


# --- InfoGAN ---


def test_infogans_bound_is_the_codes_entropy_and_the_log_likelihood_of_what_is_told():
    variant = ganzoo.create("infogan", categories=3, numbers=2, latent=4, sigma=0.5)
    z = variant.latents(1000, torch.Generator().manual_seed(0))
    category, numbers = z[:, :3], z[:, 3:5]
    assert z.shape == (1000, 9) and torch.equal(category.sum(1), torch.ones(1000))
    assert numbers.min() < -0.99 and numbers.max() > 0.99 and numbers.abs().max() <= 1
    told = torch.randn(1000, 5, generator=torch.Generator().manual_seed(1))
    likelihood = torch.distributions.Normal(told[:, 3:], 0.5).log_prob(numbers).sum(1).mean()
    certainty = torch.distributions.Categorical(logits=told[:, :3]).log_prob(category.argmax(1)).mean()
    information, of_category = variant.information(z, told)
    torch.testing.assert_close(of_category, math.log(3) + certainty)
    torch.testing.assert_close(information, math.log(3) + 2 * math.log(2) + certainty + likelihood)


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_infogans_bound_is_in_both_losses_and_q_learns_with_the_discriminator(player):
    with_bound, without = (small("infogan", information_weight=weight) for weight in (2.0, 0.0))
    losses = [loss_of(trainer, player)[f"{player}_loss"] for trainer in (with_bound, without)]
    draw = drawn_again(without)
    z = draw.latents()
    _, told = without.networks.discriminator(without.networks.generator(z))
    torch.testing.assert_close(losses[0], losses[1] - 2 * without.variant.information(z, told)[0])
    head = with_bound.networks.discriminator.head.weight
    assert (player == "discriminator") == any(param is head for param in with_bound._params[player])


def test_infogans_category_tells_digits_that_it_was_never_told():
    data = ganzoo.data.open("digits")
    trainer = Trainer(ganzoo.create("infogan", width=8, lr=2e-3), data, seed=0)
    for _ in range(150):
        trainer.step()
    digits = data.fetch(torch.arange(len(data)))
    with torch.no_grad():
        category = trainer.networks.discriminator.eval()(digits["image"])[1][:, :10].argmax(1)

    def told(labels):
        """The share that is right when each category stands for the digit that suits all best."""
        table = torch.zeros(10, 10).index_put_((category, labels), torch.ones(len(labels)), accumulate=True)
        return table[linear_sum_assignment(-table.numpy())].sum().item() / len(labels)

    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    assert told(digits["label"]) > 0.25 > told(digits["label"][order]) + 0.05


def test_infogans_pictures_have_a_column_for_each_category():
    trainer = small("infogan", categories=5)
    latents = trainer.variant.latents(10, torch.Generator().manual_seed(0))
    codes = F.one_hot(torch.arange(10) % 5, 5)
    in_turn = trainer.networks.generator.eval()(torch.cat([codes, latents[:, 5:]], 1))
    torch.testing.assert_close(trainer.variant.show(trainer.networks, latents), in_turn)
    assert trainer.variant.columns(trainer.data) == 5


# --- text to image ---


def test_a_mismatched_pair_and_a_generated_image_are_half_of_the_fakes_each():
    trainer, variant = small("text-to-image", "captioned-digits"), ganzoo.create("text-to-image")
    networks = trainer.networks
    found = loss_of(trainer, "discriminator")["discriminator_loss"]
    draw = drawn_again(trainer)
    batch, other = draw.batch(), draw.batch()
    x, text = batch["image"], batch["caption"]
    of_others = batch["label"] != other["label"]
    assert 0 < of_others.sum() < len(x)

    def real(image, caption):
        return networks.discriminator(image, caption).sigmoid()

    labels = trainer.sources[""].fetch(torch.arange(1797))["label"]
    share = (labels[:, None] != labels).double().mean().item()
    assert share == pytest.approx(0.9, abs=0.001)
    assert networks.mismatched.item() == pytest.approx(share, rel=0.005)
    wrong = -(1 - real(x, other["caption"])).log()[of_others].sum() / len(x) / networks.mismatched
    fake = -(1 - real(networks.generator(draw.latents(), text), text)).log().mean()
    torch.testing.assert_close(found, -real(x, text).log().mean() + wrong / 2 + fake / 2)
    assert variant.usual_data == ("captioned-digits",)


def test_captions_are_drawn_and_classes_by_a_caption_of_theirs(tmp_path):
    trainer = small("text-to-image", "captioned-digits")
    data = ganzoo.data.open("captioned-digits")
    for label, caption in enumerate(trainer.networks.captions):
        words = [data.vocabulary[word] for word in caption.tolist()]
        assert NAMES[label] in words
    save_checkpoint(tmp_path, trainer)
    generator = ganzoo.load(tmp_path)
    texts = [" ".join(data.vocabulary[word] for word in row.tolist()).strip() for row in trainer.networks.captions]
    assert torch.equal(generator.sample(10, labels=texts), generator.sample(10))
    assert torch.equal(
        generator.sample(2, labels=["A SEVEN", "a  one"]), generator.sample(2, labels=["a seven", "a one"])
    )
    for labels, sentence in [
        (["a seven"], "labels must be 2 captions or whole numbers, got ['a seven']."),
        (["a seven", "a walrus"], "captions must be from one to 7 of the words a, as, by, .*, got 'a walrus'."),
    ]:
        with pytest.raises(ganzoo.ArgumentError, match=sentence.replace("[", r"\[").replace("]", r"\]")):
            generator.sample(2, labels=labels)
    with pytest.raises(ganzoo.ArgumentError, match="labels must be 1 whole numbers, got .*a seven"):
        small("cgan").sample(1, labels=["a seven"])
    with pytest.raises(
        ganzoo.ArgumentError, match="data must be captioned, as captioned-digits are, got samples of ring"
    ):
        small("text-to-image")


def rare(classes, n=4000):
    """Captioned points, nearly all of them of class 0, one each of the others: their captions are the class's number + 1."""
    label = torch.zeros(n, dtype=torch.int64)
    label[-classes + 1 :] = torch.arange(1, classes)
    data = Tensors("rare", {"image": torch.randn(n, 2), "label": label, "caption": label[:, None] + 1}, 3)
    data.vocabulary = ("", "nought", "one", "two")
    return data


def test_a_class_that_is_rare_has_its_caption_and_one_that_is_not_there_is_missed():
    options = dict(width=1, latent=2, batch=8)
    trainer = Trainer(ganzoo.create("text-to-image", **options), rare(3), seed=1)
    assert trainer.networks.captions.tolist() == [[1], [2], [3]]
    assert 0 < trainer.networks.mismatched < 0.01
    with pytest.raises(
        ganzoo.ArgumentError, match="data must be captioned in each of 3 classes, got 30000 images of 2 classes"
    ):
        Trainer(ganzoo.create("text-to-image", **options), rare(2), seed=1)


def test_which_caption_a_class_has_does_not_depend_on_the_threads():
    label = torch.arange(10_000) % 200
    caption, found = label[:, None] + 200 * torch.randint(5, (10_000, 20)), []
    fields = {"image": torch.zeros(10_000, 2), "label": label, "caption": caption}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        data = Tensors("many", fields, 200)
        data.vocabulary = tuple(map(str, range(1000)))
        found.append(
            Trainer(ganzoo.create("text-to-image", width=1, latent=2, batch=8), data, seed=1).networks.captions
        )
    assert torch.equal(*found) and torch.equal(found[0][:, 0] % 200, torch.arange(200))


def test_captions_without_a_vocabulary_are_refused():
    data = rare(3)
    data.vocabulary = ()
    sentence = "data must be captioned in the words of its vocabulary, got rare without one"
    with pytest.raises(ganzoo.ArgumentError, match=sentence):
        Trainer(ganzoo.create("text-to-image", width=1, latent=2, batch=8), data, seed=1)


def test_a_caption_names_the_digit_that_it_is_beside():
    data = ganzoo.data.open("captioned-digits", split="test")
    batch = data.fetch(torch.arange(len(data)))
    texts = [" ".join(data.vocabulary[word] for word in row.tolist()).strip() for row in batch["caption"]]
    assert len(set(texts)) == 50
    assert all(NAMES[label] in text.split() for text, label in zip(texts, batch["label"].tolist()))
    assert torch.equal(numbered(texts, data.vocabulary, 7), batch["caption"])


# --- face ageing ---

HAIR, CHEEKS = (slice(2, 5), slice(5, 11)), (slice(10, 12), slice(5, 11))
"""Where the made faces have hair, which turns from black to white with age, and skin, whose shade is a person's own."""


def made_face(age, width, shade):
    """A face that is made, 16×16, grey: an ellipse with eyes below hair."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 2, indexing="ij")
    inside = (x / width).square() + (y / 0.95).square() < 1
    pixels = torch.where(inside, torch.where(y < -0.3, 2.5 * age, shade), 20.0)
    pixels[7, [5, 10]] = 0
    return pixels.clamp(0, 255).to(torch.uint8)


def made_faces(folder, count):
    """A folder of made faces under names as UTKFace has them: [age]_[gender]_[race]_[date].jpg."""
    random = torch.Generator().manual_seed(0)
    folder.mkdir()
    for number in range(count):
        age = int(torch.randint(5, 90, (), generator=random))
        width, shade = torch.rand(2, generator=random).tolist()
        face = Image.fromarray(made_face(age, 0.7 + 0.25 * width, 90 + 120 * shade).numpy())
        face.save(folder / f"{age}_{number % 2}_{number % 5}_{20170116000000000 + number}.jpg", quality=95)
    return folder


def test_ages_in_file_names_are_six_groups(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    ages = [1, 18, 19, 29, 30, 39, 40, 49, 50, 59, 60, 116]
    for number, age in enumerate(ages):
        Image.new("L", (8, 8), number).save(folder / f"{age}_0_2_2017{number}.chip.png")
    for store in ("memory", "disk", "files"):
        data = ganzoo.data.open(str(folder), labels="ages", store=store)
        batch = data.fetch(torch.arange(12))
        shown = [ages[round((image.mean().item() + 1) * 127.5)] for image in batch["image"]]
        groups = dict(zip(shown, batch["label"].tolist()))
        assert groups == {age: group for group in range(6) for age in ages[2 * group : 2 * group + 2]}
        assert data.classes == 6 and ganzoo.data.open(str(folder), store=store).classes is None
    Image.new("L", (8, 8)).save(folder / "someone_0.png")
    with pytest.raises(
        ganzoo.Error, match="labels=ages takes ages from names such as 25_0.*jpg, and .* has someone_0.png"
    ):
        ganzoo.data.open(str(folder), labels="ages")


def test_ageing_is_judged_by_the_asked_age_and_held_to_the_features_of_the_same_face():
    trainer = small("face-aging", identity_weight=3.0, age_weight=0.5)
    networks = trainer.networks
    found = loss_of(trainer, "generator")["generator_loss"]
    draw = drawn_again(trainer)
    x, t = draw.real(), draw.batch()["label"]
    aged = networks.generator(x, t)
    identity = (networks.identity(aged) - networks.identity(x)).square().mean()
    age = -networks.classifier(aged).log_softmax(1).gather(1, t[:, None]).mean()
    fooling = (networks.discriminator(aged, t) - 1).square().mean() / 2
    torch.testing.assert_close(found, fooling + 3 * identity + 0.5 * age)

    found = loss_of(trainer, "discriminator")["discriminator_loss"]
    draw = drawn_again(trainer)
    batch, t = draw.batch(), draw.batch()["label"]
    real = networks.discriminator(batch["image"], batch["label"])
    fake = networks.discriminator(networks.generator(batch["image"], t), t)
    torch.testing.assert_close(found, ((real - 1).square().mean() + fake.square().mean()) / 2)

    before = [p.clone() for p in networks.identity.parameters()]
    trainer.step()
    assert before and all(map(torch.equal, before, networks.identity.parameters()))


def test_made_faces_age_and_stay_the_same_persons(tmp_path):
    data = ganzoo.data.open(str(made_faces(tmp_path / "faces", 300)), labels="ages")
    trainer = Trainer(ganzoo.create("face-aging", width=8, ema=0.9, batch=32), data, seed=0)
    for _ in range(100):
        trainer.step()
    pictures = trainer.show(10 * 6)
    hair, cheeks = (pictures[:, 0, rows, columns].flatten(1).mean(1).view(10, 6) for rows, columns in (HAIR, CHEEKS))
    assert (hair[:, 5] - hair[:, 0]).min() > 0.5  # in every row a person grows old
    faces = trainer.variant.chosen(trainer.networks, trainer.variant.latents(60, torch.Generator().manual_seed(0)))
    own = faces[::6, 0, CHEEKS[0], CHEEKS[1]].flatten(1).mean(1)
    for aged in cheeks.T:  # and keeps the shade of skin
        assert torch.corrcoef(torch.stack([own, aged]))[0, 1] > 0.9


# --- techniques ---


@pytest.mark.parametrize("technique", ["feature-matching", "virtual-batch-norm"])
def test_techniques_that_call_the_generator_know_of_labels_alone(technique):
    for name in ("cgan", "acgan"):
        figures = small(name, "captioned-digits", techniques=[technique]).step()
        assert all(value.isfinite() for value in figures.values())
    for name in ("text-to-image", "face-aging"):
        with pytest.raises(ganzoo.Error, match=f"{name}: its generator is given more than latents and labels."):
            small(name, "captioned-digits", techniques=[technique])
