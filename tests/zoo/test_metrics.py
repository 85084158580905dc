import itertools
import math
import pickle
import sys
import types

import ganzoo.data
import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from ganzoo import ArgumentError, Error
from ganzoo.data import Tensors
from ganzoo.files import cache_folder
from ganzoo.metrics import (
    Classifier,
    Figure,
    Inception,
    Moments,
    Pixels,
    count_coverage,
    evaluate,
    frechet_distance,
    inception_score,
    kernel_distance,
    make_extractor,
    mode_coverage,
    moments,
    neighbourhoods,
    sample_count,
    wasserstein_distance,
)
from ganzoo.metrics import neighbours as neighbours_module
from ganzoo.metrics.kernel import unbiased_mmd2
from ganzoo.metrics.reference import reference


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """One cache for the whole file, so that the classifiers are trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GANZOO_CACHE", str(tmp_path))
    return tmp_path


def features():
    """Those that the public implementations' figures below were computed from."""
    random = np.random.default_rng(7)
    real, generated = random.normal(size=(400, 8)), random.normal(size=(300, 8)) * 1.1 + 0.3
    flat = generated[:, :3] @ random.normal(size=(3, 8))
    logits = random.normal(size=(500, 10)) * 2
    return [torch.from_numpy(values) for values in (real, generated, flat, logits)]


def everything(data, field="image"):
    return data.fetch(torch.arange(len(data)))[field]


# --- against public implementations on the same features ---


def test_frechet_distance_is_that_of_scipy_pytorch_fid_and_torch_fidelity():
    real, generated, flat, _ = features()
    distance = frechet_distance(moments(generated), moments(real))
    assert distance == pytest.approx(1.097729124526989, rel=1e-10)  # pytorch-fid 0.3.0, torch-fidelity 0.4.0
    assert frechet_distance(moments(flat), moments(real)) == pytest.approx(19.82439781556602, rel=1e-6)  # scipy 1.17.1
    m1, m2, s1, s2 = generated.mean(0), real.mean(0), np.cov(generated.T), np.cov(real.T)
    by_scipy = (m1 - m2).square().sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    assert distance == pytest.approx(float(by_scipy), rel=1e-9)


def test_kernel_distance_is_that_of_torch_fidelity_and_torchmetrics():
    real, generated, *_ = features()
    # 0.4.0 and 1.9.0
    assert unbiased_mmd2(generated, real[:300]).item() == pytest.approx(0.4721241896518449, rel=1e-12)
    mean, spread = kernel_distance(generated, real[:300], subsets=3, size=300)
    assert mean == pytest.approx(0.4721241896518449, rel=1e-12) and spread < 1e-12


def test_inception_score_is_that_of_torch_fidelity():
    mean, spread = inception_score(features()[3].softmax(1))
    assert mean == pytest.approx(2.538269079894406, rel=1e-12)  # torch-fidelity 0.4.0
    assert spread == pytest.approx(0.10979669392068087, rel=1e-10)


def test_neighbourhoods_are_those_of_prdc():
    real, generated, *_ = features()
    near = neighbourhoods(generated, real)
    expected = (0.8366666666666667, 0.9475, 0.7093333333333334, 0.73)  # prdc 0.2
    assert (near.precision, near.recall, near.density, near.coverage) == pytest.approx(expected, rel=1e-12)


# --- Fréchet distance ---


def test_frechet_distance_of_known_gaussians():
    def known(mean, variances):
        scatter = torch.diag(torch.tensor(variances, dtype=torch.float64)) * 9
        return Moments(10, torch.tensor(mean, dtype=torch.float64), scatter)

    first, second = known([0.0, 0.0], [1.0, 4.0]), known([3.0, 4.0], [9.0, 0.0])
    assert frechet_distance(first, second) == pytest.approx(25 + (1 - 3) ** 2 + (2 - 0) ** 2)
    assert frechet_distance(first, first) == 0


def test_moments_in_batches_and_of_several_processes_are_those_of_the_whole():
    values = torch.randn(1000, 5, dtype=torch.float64) * torch.arange(1, 6) + 1e6
    batched, parts = Moments(), [Moments(), Moments()]
    for i, part in enumerate(values.split(64)):
        batched.add(part)
        parts[i % 2].add(part)
    parts[0].merge(parts[1])
    for result in (batched, parts[0]):
        assert result.n == 1000
        torch.testing.assert_close(result.mean, values.mean(0), rtol=1e-14, atol=0)
        torch.testing.assert_close(result.covariance, torch.cov(values.T), rtol=1e-8, atol=1e-8)


def test_one_sample_has_no_covariance():
    with pytest.raises(Error, match="ganzoo: a covariance needs at least 2 samples, got 1."):
        frechet_distance(moments(torch.ones(1, 3)), moments(torch.ones(5, 3)))


def test_distances_are_to_the_samples_and_to_the_split_that_was_asked_for():
    train, test = (ganzoo.data.open("digits", split=split) for split in ("train", "test"))
    samples = everything(train)[:500]

    def frechet(samples, data):
        return evaluate(samples, data)[0]

    to_train, to_test = frechet(samples, train), frechet(samples, test)
    assert (to_train.split, to_test.split) == ("digits/train, 1257", "digits/test, 540")
    assert to_train.value < to_test.value
    assert frechet(samples, test) == to_test and frechet(samples, train) == to_train, "the cache mixed the splits up"
    assert frechet(torch.rand(500, 1, 8, 8) * 2 - 1, test).value > 10 * to_test.value, "it does not look at the samples"
    assert to_test.extractor == to_train.extractor and to_test.n == 500


# --- kernel distance ---


def test_kernel_distance_is_unbiased():
    random = torch.Generator().manual_seed(0)
    pairs = torch.randn(2000, 2, 8, 3, generator=random, dtype=torch.float64)
    unbiased = torch.stack([unbiased_mmd2(x, y) for x, y in pairs])
    error = unbiased.std() / math.sqrt(len(pairs))
    assert abs(unbiased.mean()) < 3 * error
    with_diagonal = torch.stack([(((x @ x.T) / 3 + 1) ** 3).mean() for x, _ in pairs])
    without = torch.stack([(((x @ x.T) / 3 + 1) ** 3).fill_diagonal_(0).sum() / (8 * 7) for x, _ in pairs])
    assert (with_diagonal - without).mean() > 10 * error, "the test could not tell a biased estimate"


def test_kernel_distance_by_hand():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    within_x, within_y = 1.0, 1.0  # both pairs are orthogonal: (0/2 + 1)³
    across = ((1 / 2 + 1) ** 3 * 3 + (-1 / 2 + 1) ** 3) / 4
    assert unbiased_mmd2(x.double(), y.double()).item() == pytest.approx(within_x + within_y - 2 * across)


def test_subsets_are_drawn_without_replacement_and_repeat():
    real, generated, *_ = features()
    assert kernel_distance(generated, real, subsets=5, size=50) == kernel_distance(generated, real, subsets=5, size=50)
    assert kernel_distance(generated, real, subsets=5, size=50, seed=1) != kernel_distance(
        generated, real, subsets=5, size=50
    )
    same = torch.eye(4, dtype=torch.float64)
    assert kernel_distance(same, same, subsets=4)[1] == pytest.approx(0, abs=1e-12)


# --- Inception score ---


def test_inception_score_of_known_probabilities():
    sure = torch.eye(10).repeat(10, 1)
    assert inception_score(sure) == pytest.approx((10, 0))
    assert inception_score(torch.full((100, 10), 0.1)) == pytest.approx((1, 0))
    assert inception_score(torch.eye(10)[torch.zeros(100, dtype=torch.int64)]) == pytest.approx((1, 0))
    blocks = torch.eye(2).repeat_interleave(50, 0)  # each part sees one class, the whole sees two
    assert inception_score(blocks, splits=2)[0] == pytest.approx(1) and inception_score(blocks, splits=1)[
        0
    ] == pytest.approx(2)


@pytest.mark.parametrize("values", [torch.randn(50, 10), torch.rand(50, 10).log_softmax(1), torch.zeros(50, 10)])
def test_inception_score_refuses_what_are_no_probabilities(values):
    with pytest.raises(ArgumentError, match="probabilities must be at least 0 with rows that sum to 1, got sums from"):
        inception_score(values)


# --- neighbourhoods ---


def brute_force(generated, real, k):
    def distance(a, b):
        return math.dist(a.tolist(), b.tolist())

    def radii(points):
        return [sorted(distance(p, q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]

    of_real, of_generated = radii(real), radii(generated)
    inside = [[distance(g, r) < of_real[j] for j, r in enumerate(real)] for g in generated]
    reached = [any(distance(g, r) < of_generated[i] for i, g in enumerate(generated)) for r in real]
    return (
        sum(map(any, inside)) / len(generated),
        sum(reached) / len(real),
        sum(map(sum, inside)) / k / len(generated),
        sum(any(row[j] for row in inside) for j in range(len(real))) / len(real),
    )


@pytest.mark.parametrize("k, rows", [(1, 1024), (3, 7), (5, 16)])
def test_neighbourhoods_by_brute_force(k, rows, monkeypatch):
    monkeypatch.setattr(neighbours_module, "ROWS", rows)
    real, generated = torch.randn(40, 3), torch.randn(33, 3) * 0.8 + 0.3
    near = neighbourhoods(generated, real, k)
    assert (near.precision, near.recall, near.density, near.coverage) == pytest.approx(brute_force(generated, real, k))


def test_neighbourhoods_tell_missing_modes_from_bad_samples():
    real = torch.cat([torch.randn(100, 2), torch.randn(100, 2) + 20])
    one_mode = neighbourhoods(torch.randn(200, 2), real)
    assert one_mode.precision > 0.9 and one_mode.recall < 0.6 and one_mode.coverage < 0.6
    noisy = neighbourhoods(torch.cat([real[:100], torch.randn(100, 2) * 5 - 40]), real)
    assert noisy.precision == pytest.approx(0.5) and noisy.density < 0.7
    with pytest.raises(Error, match="5 nearest neighbours need at least 6 samples on each side, got 5 and 200."):
        neighbourhoods(real[:5], real)


# --- modes ---

SQUARE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def test_a_mode_counts_only_by_samples_within_three_sigma():
    points = torch.tensor([[0.0, 0.0], [0.0299, 0.0], [1.0, 0.0301], [0.0, 0.9701], [0.5, 0.5], [9.0, 9.0]])
    coverage = mode_coverage(points, SQUARE, sigma=0.01)
    assert (coverage.modes, coverage.high_quality) == (2, 0.5)
    assert coverage.reverse_kl == pytest.approx(math.log(4) + 2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))


def test_three_sigma_is_a_distance_and_not_a_box():
    corner = torch.tensor([[0.025, 0.025]])  # 0.035 away
    assert mode_coverage(corner, SQUARE, sigma=0.01).high_quality == 0


def test_coverage_of_known_samples():
    even = mode_coverage(SQUARE.repeat(10, 1), SQUARE, 0.01)
    assert (even.modes, even.high_quality, even.reverse_kl) == (4, 1, pytest.approx(0, abs=1e-12))
    assert mode_coverage(SQUARE[:1], SQUARE, 0.01).reverse_kl == pytest.approx(math.log(4))
    nothing = mode_coverage(SQUARE + 0.5, SQUARE, 0.01)
    assert (nothing.modes, nothing.high_quality) == (0, 0) and math.isnan(nothing.reverse_kl)


@pytest.mark.parametrize("protocol, word", list(itertools.product(["pacgan", "wgan-gp"], ["ring", "grid"])))
def test_coverage_of_the_mixtures_themselves(protocol, word):
    data = ganzoo.data.open(word, protocol=protocol, n=20_000)
    coverage = mode_coverage(everything(data), data.modes, data.sigma)
    assert coverage.modes == len(data.modes) and coverage.reverse_kl < 0.002
    assert coverage.high_quality == pytest.approx(1 - math.exp(-4.5), abs=0.004)


def test_count_coverage_takes_all_samples():
    coverage = count_coverage(torch.tensor([7, 7, 999, 0]), 1000, 4)
    assert (coverage.modes, coverage.high_quality) == (3, 1)
    assert coverage.reverse_kl == pytest.approx(math.log(1000) - (2 * 0.25 * math.log(4) + 0.5 * math.log(2)))


# --- Wasserstein distance ---


def test_wasserstein_distance_of_known_samples():
    points = torch.randn(200, 3)
    shift = torch.tensor([3.0, 0.0, 4.0])
    shuffled = points[torch.randperm(200)]
    assert wasserstein_distance(shuffled, points) == pytest.approx(0, abs=1e-12)
    assert wasserstein_distance(shuffled + shift, points) == pytest.approx(5, rel=1e-6)
    a, b = torch.randn(300, 1), torch.rand(300, 1) * 4
    sorted_apart = (a.sort(0).values - b.sort(0).values).abs()
    assert wasserstein_distance(a, b) == pytest.approx(sorted_apart.mean().item(), rel=1e-5)
    assert wasserstein_distance(a, b, p=2) == pytest.approx(sorted_apart.square().mean().sqrt().item(), rel=1e-5)
    with pytest.raises(Error, match=r"the samples must have one shape, got \(3, 2\) and \(4, 2\)."):
        wasserstein_distance(torch.zeros(3, 2), torch.zeros(4, 2))


def test_wasserstein_distance_between_parallel_lines_is_theta():
    lines = [everything(ganzoo.data.open("parallel-lines", theta=theta, n=500)) for theta in (0, 0.25)]
    assert wasserstein_distance(*lines) == pytest.approx(0.25, rel=1e-5)


# --- extractors and the reference ---


def test_the_classifier_knows_digits_and_is_trained_once(monkeypatch):
    data = ganzoo.data.open("digits", split="train")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = Classifier(data)
    assert torch.equal(torch.rand(2), expected), "it drew from the caller's random numbers"
    test = ganzoo.data.open("digits", split="test")
    features, probabilities = first.extract(everything(test))
    assert features.shape == (540, 64) and probabilities.shape == (540, 10)
    assert (probabilities.argmax(1) == everything(test, "label")).float().mean() > 0.96 and first.accuracy > 0.96
    train_features = first.extract(everything(data))[0]
    assert train_features.square().mean() == pytest.approx(1, rel=0.05)

    monkeypatch.setattr(Classifier, "_train", lambda *_: pytest.fail("trained again"))
    assert Classifier(data).name == first.name and "digits/train (" in first.name
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        Classifier(test)
    with pytest.raises(Error, match=r"takes images of shape \(1, 8, 8\), got \(3, 8, 8\)."):
        first.extract(torch.zeros(2, 3, 8, 8))
    with pytest.raises(Error, match="ganzoo: a classifier needs images with labels, and swiss-roll has none."):
        Classifier(ganzoo.data.open("swiss-roll", n=100))


def test_a_damaged_classifier_is_trained_anew(own_cache):
    images, labels = torch.rand(100, 1, 8, 8), torch.arange(100) % 2
    data = Tensors("halves", {"image": images * labels[:, None, None, None] * 2 - 1, "label": labels}, classes=2)
    first = Classifier(data, steps=5)
    (file,) = (own_cache / "classifiers").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert Classifier(data, steps=5).name == first.name


class Counting(Pixels):
    def __init__(self, name="pixels"):
        self.name, self.taken = name, 0

    def extract(self, images):
        self.taken += len(images)
        return super().extract(images)


def test_statistics_of_the_reference_are_computed_once_per_contents_and_extractor(own_cache):
    values = torch.rand(600, 1, 2, 2)
    extractor = Counting()
    first = reference(Tensors("x", {"image": values}), extractor)
    assert extractor.taken == 600
    again = reference(Tensors("x", {"image": values.clone()}), extractor)
    assert extractor.taken == 600
    assert torch.equal(first.features, again.features) and torch.equal(first.moments.mean, again.moments.mean)
    torch.testing.assert_close(again.moments.covariance, torch.cov(values.flatten(1).T.double()))
    assert sorted(map(tuple, again.features.tolist())) == sorted(map(tuple, values.flatten(1).tolist()))

    changed = values.clone()
    changed[300, 0, 0, 0] += 1e-3
    reference(Tensors("x", {"image": changed}), extractor)
    reference(Tensors("x", {"image": values}, split="test"), extractor)
    reference(Tensors("x", {"image": values}), another := Counting("other pixels"))
    assert (extractor.taken, another.taken) == (1800, 600)

    for file in (own_cache / "statistics").iterdir():
        file.write_bytes(file.read_bytes()[:-8])
    assert torch.equal(reference(Tensors("x", {"image": values}), extractor).features, first.features)
    assert extractor.taken == 2400


def test_inception_is_not_downloaded(own_cache):
    with pytest.raises(Error) as refused:
        Inception()
    assert str(refused.value) == (
        f"ganzoo: the weights of the Inception network are missing: put {Inception.URL} into {own_cache / 'weights'}, "
        "or choose another extractor (--extractor pixels)."
    )


@pytest.fixture
def weights(own_cache):
    return cache_folder("weights") / "weights-inception-2015-12-05-6726825d.pth"


def library(monkeypatch, network):
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = network
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_inception_says_which_package_is_missing(weights, monkeypatch):
    torch.save({}, weights)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(
        Error, match=r"the Inception network needs torch-fidelity: pip install gankernels\[inception\] \("
    ):
        Inception()


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


@pytest.mark.parametrize("content", [b"", b"no weights", pickle.dumps(Bomb(), protocol=2)])
def test_inception_runs_no_code_of_its_weights(content, weights, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    weights.write_bytes(content)
    library(monkeypatch, lambda *_: pytest.fail("the library got the file"))
    with pytest.raises(
        Error, match="weights-inception-2015-12-05-6726825d.pth does not hold the weights of the Inception"
    ):
        Inception()
    assert not (tmp_path / "exploded").exists()


def test_inception_gets_bytes_in_three_channels(weights, monkeypatch):
    torch.save({"weight": torch.zeros(1)}, weights)

    class Network(torch.nn.Module):
        def __init__(self, name, features, path):
            super().__init__()
            assert (features, path) == (["2048", "logits_unbiased"], str(weights))

        def forward(self, images):
            assert images.dtype == torch.uint8 and images.shape[1:] == (3, 4, 4)
            pixels = images.flatten(1).float()
            return pixels, pixels[:, :2]

    library(monkeypatch, Network)
    inception = Inception()
    images = torch.tensor([-1.2, -1.0, 0.0, 1.0])[:, None, None, None].expand(4, 1, 4, 4)
    features, probabilities = inception.extract(images)
    assert features[:, 0].tolist() == [0, 0, 128, 255] and probabilities.tolist() == [[0.5, 0.5]] * 4
    data = Tensors("grey", {"image": torch.rand(30, 1, 4, 4) * 2 - 1})
    names = [figure.name for figure in evaluate(torch.rand(20, 1, 4, 4) * 2 - 1, data, "inception")]
    assert names[:2] == ["FID", "KID (100 subsets of 20)"] and "Inception score (10 splits)" in names


# --- evaluate ---


def by_name(figures):
    return {figure.name.partition(" (")[0]: figure for figure in figures}


def test_a_figure_says_all_that_it_depends_on():
    figure = Figure("FID", 12.34567, "Inception (6726825d)", "cifar/train, 50000", "bilinear to 299×299", 10_000)
    assert str(figure) == (
        "FID 12.35 (extractor Inception (6726825d); reference cifar/train, 50000; resize bilinear to 299×299; 10000 samples)"
    )
    with pytest.raises(AttributeError):
        figure.value = 1


@pytest.mark.parametrize("word", ["ring", "grid"])
def test_figures_of_points(word):
    data = ganzoo.data.open(word, n=5000)
    other = everything(ganzoo.data.open(word, n=1000, seed=1))
    good, bad = by_name(evaluate(other, data)), by_name(evaluate(other[:, :1].repeat(1, 2), data))
    assert good["modes covered"].value == len(data.modes) > bad["modes covered"].value
    assert good["high-quality share"].value > 0.97 and good["reverse KL"].value < 0.05
    assert good["W1"].value < bad["W1"].value and good["W1"].split == f"{word}/all, 1000 of 5000"
    assert good["coverage"].value > 0.9 and good["coverage"].split == f"{word}/all, 1000 of 5000"
    assert sample_count(data) == 2500 and "Fréchet distance" not in good


def test_figures_of_digits():
    data = ganzoo.data.open("digits", split="test")
    good = by_name(evaluate(everything(ganzoo.data.open("digits", split="train"))[:540], data))
    bad = by_name(evaluate(torch.rand(540, 1, 8, 8) * 2 - 1, data))
    assert list(good) == list(bad)
    for name in ("Fréchet distance", "kernel distance"):
        assert good[name].value < 0.1 * bad[name].value
    for name in ("precision", "recall", "density", "coverage", "classifier score"):
        assert good[name].value > bad[name].value + 0.2
    assert {figure.extractor for figure in good.values()} == {make_extractor("", data).name}
    assert good["kernel distance"].name == "kernel distance (100 subsets of 540)"


def test_agreement_with_the_labels_that_were_asked_for():
    data = ganzoo.data.open("digits", split="test")
    batch = data.fetch(torch.arange(200))
    right = by_name(evaluate(batch["image"], data, labels=batch["label"]))["label agreement"]
    wrong = by_name(evaluate(batch["image"], data, labels=(batch["label"] + 1) % 10))["label agreement"]
    assert (
        right.value > 0.95 and wrong.value < 0.05 and right.n == 200 and "classifier of digits/train" in right.extractor
    )
    with pytest.raises(ArgumentError, match=r"labels must be 200 whole numbers, got torch.int64 \(199,\)."):
        evaluate(batch["image"], data, labels=batch["label"][1:])


def test_figures_of_stacked_digits():
    data = ganzoo.data.open("stacked-digits", n=5000)
    good = by_name(evaluate(everything(data), data))
    assert good["modes covered"].value > 950 and good["reverse KL"].value < 0.2
    collapsed = by_name(evaluate(everything(data)[:4].repeat(5, 1, 1, 1), data))
    assert collapsed["modes covered"].value == 4 and collapsed["reverse KL"].value == pytest.approx(math.log(250))
    assert sample_count(data) == 26_000


def test_an_extractor_of_ones_own():
    class Means:
        name, resize = "means", "to a point"

        def extract(self, images):
            return images.mean((2, 3)), None

    data = ganzoo.data.open("photos", size=32)
    figures = evaluate(everything(data)[:100], data, Means())
    assert {(figure.extractor, figure.resize) for figure in figures} == {("means", "to a point")}
    assert "classifier score" not in by_name(figures)


def test_a_few_images_are_too_few_to_compare_with():
    with pytest.raises(Error, match=r"^ganzoo: data to compare samples with must be at least 10, and photos has 3\.$"):
        evaluate(torch.zeros(20, 1, 8, 8), Tensors("photos", {"image": torch.zeros(3, 1, 8, 8)}))


def a_photo(size=24):
    data = ganzoo.data.open("photos", size=0, photo="flower")
    image = F.interpolate(data.fetch(torch.tensor([0]))["image"], size=(size, size), mode="bicubic", antialias=True)
    return data, image


def test_samples_of_a_single_image_are_compared_with_its_places():
    data, image = a_photo()
    moved = torch.cat([image.roll(shift, 3) for shift in (5, 9, 14)])
    noise = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * image.std() + image.mean()
    copies, same_parts, nothing_alike = (
        by_name(evaluate(x, data, "pixels")) for x in (image.expand(3, -1, -1, -1), moved, noise)
    )
    found = [figures["Fréchet distance of places"] for figures in (copies, same_parts, nothing_alike)]
    assert found[0].value < 1e-6 < found[1].value < 0.1 * found[2].value
    x, y = (
        values.unfold(2, 5, 1).unfold(3, 5, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 400, 75).double().numpy()
        for values in (noise, image)
    )
    by_hand = []
    for of_sample in x:
        first, second = np.cov(of_sample.T), np.cov(y[0].T)
        root = scipy.linalg.sqrtm(first @ second).real
        apart = of_sample.mean(0) - y[0].mean(0)
        by_hand.append(apart @ apart + np.trace(first + second - 2 * root))
    assert found[2].value == pytest.approx(sum(by_hand) / 3, rel=1e-6)
    assert copies["diversity"].value == 0
    assert nothing_alike["diversity"].value == pytest.approx((noise.std(0).mean() / image.std()).item())
    assert (found[0].extractor, found[0].n) == ("patches of 5×5 pixels", 3)
    assert found[0].resize == "the image bicubic to 24×24; none" and sample_count(data) == 50


@pytest.mark.parametrize(
    "shape, extractor, sentence",
    [
        ((2, 1, 24, 24), "pixels", r"the samples must be at least 2 images of 3 channels, as photos has, got \(2, 1, 24, 24\)\."),
        ((1, 3, 24, 24), "pixels", r"the samples must be at least 2 images of 3 channels, as photos has, got \(1, 3, 24, 24\)\."),
        ((2, 3, 24, 24), Pixels(), "the extractor pixels has no features of the places of an image; pixels and inception have."),
        ((2, 3, 4, 9), "pixels", r"the samples must be of several patches of 5×5 pixels, which are what is compared, got 4×9 pixels\."),
        ((2, 3, 5, 5), "pixels", r"the samples must be of several patches of 5×5 pixels, which are what is compared, got 5×5 pixels\."),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_compared_with_a_single_image(shape, extractor, sentence):
    with pytest.raises(Error, match=sentence):
        evaluate(torch.zeros(shape), a_photo()[0], extractor)


def test_sifid_is_of_what_inception_has_before_its_second_pooling(weights, monkeypatch):
    torch.save({"weight": torch.zeros(1)}, weights)

    class Network(torch.nn.Module):
        def __init__(self, *_):
            super().__init__()
            self.Conv2d_4a_3x3 = torch.nn.Conv2d(3, 2, 1, bias=False)
            torch.nn.init.constant_(self.Conv2d_4a_3x3.weight, 1 / 255)

        def forward(self, images):
            after = self.Conv2d_4a_3x3(images.float()).amax([2, 3])
            return after, after

    library(monkeypatch, Network)
    images = torch.rand(2, 3, 4, 5) * 2 - 1
    places = Inception().places(images)
    torch.testing.assert_close(places[1, 7, 0], (images[1, :, 1, 2] + 1).sum() / 2, atol=0.01, rtol=0)
    assert places.shape == (2, 20, 2)
    assert [figure.name for figure in evaluate(images, a_photo()[0], "inception")] == ["SIFID", "diversity"]


@pytest.mark.parametrize(
    "word, samples, options, sentence",
    [
        ("digits", torch.zeros(20, 1, 16, 16), {}, "the samples must be at least 10 of shape (1, 8, 8), as digits has, got 20 of shape (1, 16, 16)."),
        ("digits", torch.zeros(9, 1, 8, 8), {}, "the samples must be at least 10 of shape (1, 8, 8), as digits has, got 9 of shape (1, 8, 8)."),
        ("digits", torch.full((20, 1, 8, 8), math.nan), {}, "20 of the 20 samples are not finite."),
        ("digits", torch.zeros(20, 1, 8, 8), dict(extractor="vgg"), "extractor must be one of pixels, classifier, inception, got 'vgg'."),
        ("ring", torch.zeros(20, 2), dict(extractor="inception"), "extractor must be left out, or pixels, for ring, which are no images, got 'inception'."),
        ("stacked-digits", torch.zeros(20, 3, 8, 8), dict(extractor="pixels"), "extractor must be left out, or classifier, for stacked-digits, got 'pixels'."),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_evaluated(word, samples, options, sentence):
    with pytest.raises(Error) as refused:
        evaluate(samples, ganzoo.data.open(word), **options)
    assert str(refused.value) == f"ganzoo: {sentence}"


def test_pixels_of_large_images_are_averaged_first_and_said_to_be():
    images = torch.rand(3, 3, 96, 64)
    pixels = Pixels(images.shape[1:])
    features, _ = pixels.extract(images)
    assert (pixels.resize, Pixels((3, 32, 32)).resize, Pixels((2,)).resize) == ("mean of 3×3", "none", "none")
    torch.testing.assert_close(features.view(3, 3, 32, 21)[1, 2, 4, 5], images[1, 2, 12:15, 15:18].mean())


def test_there_are_no_figures_for_pairs():
    for form in ("paired", "unpaired"):
        with pytest.raises(Error, match="there are no metrics for pairs and for domains of images."):
            evaluate(torch.zeros(20, 1, 16, 16), ganzoo.data.open("glyphs", size=16, form=form))
