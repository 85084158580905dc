import math

import ganzoo.data
import numpy as np
import pytest
import torch
from ganzoo import Error
from ganzoo.data.glyphs import CHARACTERS

EVERY_WORD = [
    "digits",
    "captioned-digits",
    "ring",
    "grid",
    "swiss-roll",
    "parallel-lines",
    "sines",
    "stacked-digits",
    "photos",
    "glyphs",
]


@pytest.mark.parametrize("word", EVERY_WORD)
def test_every_word_opens_a_set_that_keeps_its_promises(word):
    options = {"n": 500} if "n" in ganzoo.data.source_options(word) else {}
    data = ganzoo.data.open(word, **options).to("cpu")
    batch = data.fetch(torch.tensor([len(data) - 1, 0, 0]))
    assert data.name == word and len(data) >= 400
    assert batch["image"].shape == (3, *data.shape) and batch["image"].dtype == torch.float32
    assert torch.equal(batch["image"][1], batch["image"][2]) and not torch.equal(batch["image"][0], batch["image"][1])
    whole = data.fetch(torch.arange(len(data)))
    if len(data.shape) == 3:
        assert -1 <= whole["image"].min() < -0.9 and 0.9 < whole["image"].max() <= 1
    if data.classes:
        assert whole["label"].dtype == torch.int64
        assert whole["label"].min() >= 0 and whole["label"].max() < data.classes
    else:
        assert "label" not in whole
    again = ganzoo.data.open(word, **options).fetch(torch.arange(len(data)))
    assert all(torch.equal(again[field], whole[field]) for field in whole)


def test_the_words_are_all_tested():
    assert EVERY_WORD == list(ganzoo.data.SOURCES)


def test_digits_split_without_overlap():
    train, test = ganzoo.data.open("digits", split="train"), ganzoo.data.open("digits", split="test")
    assert (len(train), len(test), train.split, test.split) == (1257, 540, "train", "test")
    both = torch.cat([part.fetch(torch.arange(len(part)))["image"] for part in (train, test)])
    everything = ganzoo.data.open("digits").fetch(torch.arange(1797))["image"]
    assert sorted(map(tuple, both.flatten(1).tolist())) == sorted(map(tuple, everything.flatten(1).tolist()))


@pytest.mark.parametrize("protocol, radius, sigma", [("pacgan", 1.0, 0.01), ("wgan-gp", 2 / 1.414, 0.02 / 1.414)])
def test_ring_has_the_constants_of_its_paper(protocol, radius, sigma):
    ring = ganzoo.data.open("ring", protocol=protocol)
    assert len(ring) == 100_000 and ring.modes.shape == (8, 2)
    torch.testing.assert_close(ring.modes.norm(dim=1), torch.full((8,), radius))
    torch.testing.assert_close(ring.modes[:2], torch.tensor([[1, 0], [math.sqrt(0.5), math.sqrt(0.5)]]) * radius)
    batch = ring.fetch(torch.arange(100_000))
    spread = (batch["image"] - ring.modes[batch["label"]]).std(0)
    torch.testing.assert_close(spread, torch.full((2,), sigma), rtol=0.02, atol=0)
    assert (batch["label"].bincount() / 100_000 - 1 / 8).abs().max() < 0.01


@pytest.mark.parametrize(
    "protocol, line, sigma", [("pacgan", [-4, -2, 0, 2, 4], 0.05), ("wgan-gp", None, 0.05 / 2.828)]
)
def test_grid_has_the_constants_of_its_paper(protocol, line, sigma):
    grid = ganzoo.data.open("grid", protocol=protocol)
    line = torch.tensor(line or [-4 / 2.828, -2 / 2.828, 0, 2 / 2.828, 4 / 2.828]).float()
    torch.testing.assert_close(grid.modes[:, 0].unique(), line)
    torch.testing.assert_close(grid.modes[:, 1].unique(), line)
    assert len(grid.modes.unique(dim=0)) == 25
    batch = grid.fetch(torch.arange(100_000))
    spread = (batch["image"] - grid.modes[batch["label"]]).std(0)
    torch.testing.assert_close(spread, torch.full((2,), sigma), rtol=0.02, atol=0)


def test_swiss_roll_is_a_spiral():
    points = ganzoo.data.open("swiss-roll", noise=0).fetch(torch.arange(1000))["image"] * 7.5
    angle = points.norm(dim=1)  # of a point at angle t the radius is t
    torch.testing.assert_close(torch.stack([angle * angle.cos(), angle * angle.sin()], 1), points, rtol=0, atol=1e-4)


def test_parallel_lines_are_theta_apart():
    points = ganzoo.data.open("parallel-lines", theta="0.5").fetch(torch.arange(1000))["image"]
    assert torch.equal(points[:, 0], torch.full((1000,), 0.5))
    assert 0 <= points[:, 1].min() < 0.01 and 0.99 < points[:, 1].max() < 1


def test_stacked_digits_say_what_they_stack():
    stacked = ganzoo.data.open("stacked-digits")
    assert (len(stacked), stacked.shape, stacked.classes) == (128_000, (3, 8, 8), 1000)
    batch = stacked.fetch(torch.arange(200))
    digits = ganzoo.data.open("digits").fetch(torch.arange(1797))
    for image, label in zip(batch["image"], batch["label"].tolist()):
        for channel, digit in zip(image, (label // 100, label // 10 % 10, label % 10)):
            found = (digits["image"][:, 0] == channel).all(2).all(1)
            assert digit in digits["label"][found].tolist()
    assert len(stacked.fetch(torch.arange(20_000))["label"].unique()) == 1000


def test_photos_are_cut_from_the_photos():
    whole = ganzoo.data.open("photos", size=0)
    patches = ganzoo.data.open("photos", size=100, stride=90)
    assert whole.shape == (3, 427, 640) and len(patches) == 2 * 4 * 7
    photos = whole.fetch(torch.arange(2))["image"]
    batch = patches.fetch(torch.tensor([0, 8, 28]))
    assert batch["label"].tolist() == [0, 0, 1]
    assert torch.equal(batch["image"][0], photos[0, :, :100, :100])
    assert torch.equal(batch["image"][1], photos[0, :, 90:190, 90:190])
    assert torch.equal(batch["image"][2], photos[1, :, :100, :100])
    domains = ganzoo.data.open("photos", form="unpaired")
    assert {name: len(data) for name, data in domains.items()} == {"a": 228, "b": 228}


def test_glyphs_are_paired_by_character():
    pairs = ganzoo.data.open("glyphs", form="paired", size=16)
    assert len(pairs) == 4 * len(CHARACTERS) and len(set(CHARACTERS)) == len(CHARACTERS)
    batch = pairs.fetch(torch.arange(len(pairs)))
    assert batch["a"].shape == batch["b"].shape == (len(pairs), 1, 16, 16) and pairs.shape == (1, 16, 16)
    a, b = (1 - batch[field].flatten(1) for field in "ab")
    assert min(a.sum(1).min(), b.sum(1).min()) > 2, "an empty glyph"
    likeness = torch.nn.functional.normalize(a[:62]) @ torch.nn.functional.normalize(b[:62]).T
    assert (likeness.argmax(1) == torch.arange(62)).float().mean() > 0.8
    assert not torch.equal(a, b)


def test_glyphs_of_two_domains_are_not_in_the_same_order():
    domains = ganzoo.data.open("glyphs", form="unpaired", size=16)
    a, b = (domains[name].fetch(torch.arange(len(domains[name]))) for name in "ab")
    assert (a["label"] == b["label"]).float().mean() < 0.05
    assert torch.equal(a["label"].sort().values, b["label"].sort().values)


def test_no_glyph_is_the_box_of_a_missing_character():
    batch = ganzoo.data.open("glyphs").fetch(torch.arange(2 * 4 * len(CHARACTERS)))
    shapes = {image.numpy().tobytes() for image in batch["image"][: len(CHARACTERS)]}
    # Latin, Greek and Cyrillic share some capitals; a font without an alphabet would draw one box for all of it.
    assert len(shapes) > 0.8 * len(CHARACTERS)


@pytest.mark.parametrize(
    "spec, options, sentence",
    [
        (
            "digit",
            {},
            "data must be one of digits, captioned-digits, ring, grid, swiss-roll, parallel-lines, sines, stacked-digits, photos, glyphs, or the path "
            "of IDX files, CIFAR-10's files, a folder or zip of images, got 'digit'.",
        ),
        ("digits", dict(size=8), "digits has no option size; its options are split."),
        ("digits", dict(split="val"), "the option split of digits must be one of all, train, test, got 'val'."),
        ("ring", dict(modes="many"), "the option modes of ring must be a whole number, got 'many'."),
        ("ring", dict(modes=0), "the option modes of ring must be at least 1, got 0."),
        ("ring", dict(n=True), "the option n of ring must be a whole number, got True."),
        (
            "swiss-roll",
            dict(noise="nan"),
            "the option noise of swiss-roll must be a finite number of at least 0, got nan.",
        ),
        (
            "photos",
            dict(size=500),
            "the option size of photos must be from 1 to 427, or 0 for the whole photos, got 500.",
        ),
        (
            "glyphs",
            dict(form="side-by-side"),
            "the option form of glyphs must be one of images, paired, unpaired, got 'side-by-side'.",
        ),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_sentence(spec, options, sentence):
    with pytest.raises(Error) as refused:
        ganzoo.data.open(spec, **options)
    assert str(refused.value) == f"ganzoo: {sentence}"


def test_a_subset_fetches_from_its_set():
    data = ganzoo.data.open("digits")
    part = ganzoo.data.Subset(data, [5, 3, 9], split="some").to("cpu")
    assert len(part) == 3 and part.split == "some"
    assert torch.equal(part.fetch(torch.tensor([1, 2]))["image"], data.fetch(torch.tensor([3, 9]))["image"])


@pytest.mark.gpu
@pytest.mark.parametrize("word", EVERY_WORD)
def test_sets_move_to_the_gpu(word):
    here, there = ganzoo.data.open(word), ganzoo.data.open(word).to("cuda")
    indices = torch.arange(10)
    for field, values in there.fetch(indices).items():
        assert values.device.type == "cuda"
        np.testing.assert_array_equal(values.cpu(), here.fetch(indices)[field])
