"""All the figures that suit a set of data, for samples of a generator."""

import dataclasses

import torch
import torch.nn.functional as F

from ganzoo.data import open as open_data
from ganzoo.errors import ArgumentError, Error
from ganzoo.metrics.extractors import BATCH, Classifier, Inception, Patches, Pixels
from ganzoo.metrics.figure import Figure
from ganzoo.metrics.frechet import frechet_distance, moments
from ganzoo.metrics.inception_score import inception_score
from ganzoo.metrics.kernel import SUBSET, SUBSETS, kernel_distance
from ganzoo.metrics.modes import count_coverage, mode_coverage
from ganzoo.metrics.neighbours import NEAREST, neighbourhoods
from ganzoo.metrics.reference import reference
from ganzoo.metrics.single_image import diversity, single_image_distance
from ganzoo.metrics.wasserstein import wasserstein_distance
from ganzoo.training import distributed

EXTRACTORS = ("pixels", "classifier", "inception")
TRANSPORTED = 2500
IMITATIONS = 50


def sample_count(data):
    """How many samples to evaluate: 2,500 points or sequences of a toy and 26,000 stacked digits (PacGAN's protocol), 50 of a single image,
    otherwise as many as the set has, between 1,000 and 10,000."""
    if len(data) == 1:
        return IMITATIONS
    if len(data.shape) < 3:
        return TRANSPORTED
    return 26_000 if hasattr(data, "digits") else min(max(len(data), 1000), 10_000)


def make_extractor(word, data, device="cpu"):
    """The extractor of that word for a set: `pixels`, `classifier` or `inception`; for an empty one the set's usual.

    Points and sequences have their coordinates; grey images with labels a classifier trained here, for digits on their training part;
    other images Inception.
    """
    if len(data.shape) < 3 and word not in ("", "pixels"):
        raise ArgumentError("extractor", f"left out, or pixels, for {data.name}, which are no images", repr(word))
    if not word and len(data.shape) < 3:
        word = "pixels"
    elif not word:
        word = "classifier" if data.classes and data.shape[0] == 1 else "inception"
    if word == "pixels":
        return Patches() if len(data) == 1 else Pixels(data.shape)
    if word == "inception":
        return Inception(device)
    if word != "classifier":
        raise ArgumentError("extractor", f"one of {', '.join(EXTRACTORS)}", repr(word))
    return _classifier(open_data("digits", split="train") if data.name == "digits" else data)


def _classifier(data):
    if distributed.size() > 1:
        distributed.from_first(lambda: Classifier(data).name)  # which trains it, and the others read it
    return Classifier(data)


def evaluate(samples, data, extractor="", labels=None, device="cpu"):
    """The figures of generated samples against a set of data.

        data = ganzoo.data.open("ring")
        for figure in evaluate(generator.sample(sample_count(data)), data):
            print(figure)

    Points and sequences get W₁ to as many real ones, and, where the mixture's modes are known, modes covered, high-quality share and
    reverse KL; stacked digits the modes that a classifier of the digits sees. A single image, of the size of the samples, gets SIFID (so
    called with Inception's features only) and the samples' diversity. All other images get the Fréchet and the
    kernel distance (called FID and KID with Inception's features only), precision, recall, density and coverage, and the
    classifier's score (the Inception score, with Inception).

    Args:
        samples: (N, C, H, W) in [−1, 1], points (N, 2) or sequences (N, T, C), as the data's.
        data: the reference: a set whose samples have a field `image`.
        extractor: a word of `EXTRACTORS`, an extractor of one's own (see `ganzoo.metrics.extractors`), or "" for the
            set's usual one.
        labels: (N,) int64, the classes that a conditional generator was asked for, which adds the share of the samples
            that the extractor, or the nearest mode, assigns to them.
        device: where Inception runs.

    Under torchrun all processes call it with the same samples; they share the extraction of features, and all get the figures.

    Returns a list of `Figure`, each of which prints as a line that says all that it depends on.

    Raises `Error` for samples of another shape than the data's, or when an extractor's files are missing.
    """
    if isinstance(data, dict) or "image" not in data.fetch(torch.zeros(1, dtype=torch.int64)):
        raise Error("there are no metrics for pairs and for domains of images.")
    if len(data) == 1 and len(data.shape) == 3:
        return _single_image_figures(samples, data, extractor, device)
    if len(data) < 2 * NEAREST:
        raise Error(f"data to compare samples with must be at least {2 * NEAREST}, and {data.name} has {len(data)}.")
    if samples.shape[1:] != data.shape or len(samples) < 2 * NEAREST:
        wanted, got = f"at least {2 * NEAREST} of shape {data.shape}, as {data.name} has", tuple(samples.shape[1:])
        raise Error(f"the samples must be {wanted}, got {len(samples)} of shape {got}.")
    _check_finite(samples)
    if labels is not None and (labels.shape != samples.shape[:1] or labels.is_floating_point()):
        raise ArgumentError("labels", f"{len(samples)} whole numbers", f"{labels.dtype} {tuple(labels.shape)}")
    samples = samples.cpu().float()
    if hasattr(data, "digits"):
        if extractor not in ("", "classifier"):
            raise ArgumentError("extractor", f"left out, or classifier, for {data.name}", repr(extractor))
        return _stacked_figures(samples, data)
    extractor = make_extractor(extractor, data, device) if isinstance(extractor, str) else extractor
    if len(data.shape) < 3:
        points = distributed.from_first(lambda: _point_figures(samples, data, labels))
        return points + _feature_figures(samples, data, extractor)
    return _feature_figures(samples, data, extractor, labels)


def _check_finite(samples):
    if not samples.isfinite().all():
        broken = (~samples.isfinite()).flatten(1).any(1).sum()
        raise Error(f"{broken} of the {len(samples)} samples are not finite.")


def _single_image_figures(samples, data, extractor, device):
    if samples.dim() != 4 or samples.shape[1] != data.shape[0] or len(samples) < 2:
        wanted, got = f"at least 2 images of {data.shape[0]} channels, as {data.name} has", tuple(samples.shape)
        raise Error(f"the samples must be {wanted}, got {got}.")
    _check_finite(samples)
    extractor = make_extractor(extractor, data, device) if isinstance(extractor, str) else extractor
    if not hasattr(extractor, "places"):
        raise Error(
            f"the extractor {extractor.name} has no features of the places of an image; pixels and inception have."
        )
    size, image = tuple(samples.shape[2:]), data.fetch(torch.zeros(1, dtype=torch.int64))["image"].cpu()
    image = F.interpolate(image, size=size, mode="bicubic", antialias=True)
    with torch.no_grad():
        real = extractor.places(image)[0].cpu()

    @torch.no_grad()
    def distance(sample):
        return single_image_distance(extractor.places(sample)[0].cpu(), real)

    n, samples = len(samples), samples.cpu().float()
    distances = list(distributed.shared_out(distance, samples.split(1)))
    name = "SIFID" if isinstance(extractor, Inception) else "Fréchet distance of places"
    split, resized = f"{data.name}/{data.split}", f"the image bicubic to {size[0]}×{size[1]}"
    return [
        Figure(name, sum(distances) / n, extractor.name, split, f"{resized}; {extractor.resize}", n),
        Figure("diversity", diversity(samples, image[0]), "pixels", split, resized, n),
    ]


def _point_figures(samples, data, labels):
    n, figures = len(samples), []
    if hasattr(data, "modes"):
        known = f"the {len(data.modes)} modes of {data.name}, σ {data.sigma:.4g}"
        coverage = mode_coverage(samples, data.modes.cpu(), data.sigma)
        for name, value in [
            ("modes covered", coverage.modes),
            ("high-quality share", coverage.high_quality),
            ("reverse KL", coverage.reverse_kl),
        ]:
            figures.append(Figure(name, value, "distance to the modes", known, "none", n))
        if labels is not None and data.classes == len(data.modes):
            agreement = (torch.cdist(samples, data.modes.cpu()).argmin(1) == labels.cpu()).double().mean().item()
            figures.append(Figure("label agreement", agreement, "distance to the modes", known, "none", n))
    count = min(n, TRANSPORTED, len(data))
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
    distance = wasserstein_distance(samples[:count], data.fetch(chosen)["image"].cpu())
    split = f"{data.name}/{data.split}, {count} of {len(data)}"
    return [*figures, Figure("W1", distance, "coordinates", split, "none", count)]


def _stacked_figures(samples, data):
    classifier = _classifier(data.digits)
    single = [part.flatten(0, 1)[:, None] for part in samples.split(BATCH)]
    digits = torch.cat([probabilities.argmax(1) for _, probabilities in _extracted(classifier, single)])
    a, b, c = digits.unflatten(0, (-1, 3)).unbind(1)
    coverage = count_coverage(100 * a + 10 * b + c, data.classes, len(samples))
    known = "1,000 equally likely triples of digits"
    return [
        Figure("modes covered", coverage.modes, classifier.name, known, "none", len(samples)),
        Figure("reverse KL", coverage.reverse_kl, classifier.name, known, "none", len(samples)),
    ]


def _extracted(extractor, parts):
    """Features and probabilities, on the CPU, of each of the parts; several processes share the work."""

    @torch.no_grad()
    def extract(part):
        features, probabilities = extractor.extract(part)
        return features.cpu(), None if probabilities is None else probabilities.cpu()

    return distributed.shared_out(extract, parts)


def _feature_figures(samples, data, extractor, labels=None):
    real = reference(data, extractor)
    features, probabilities = zip(*_extracted(extractor, samples.split(BATCH)))
    probabilities = None if probabilities[0] is None else torch.cat(probabilities)
    return distributed.from_first(lambda: _compared(torch.cat(features), probabilities, real, data, extractor, labels))


def _compared(features, probabilities, real, data, extractor, labels):
    n = len(features)

    def figure(name, value, n=n, of=len(data)):
        split = f"{data.name}/{data.split}, {of}" + (f" of {len(data)}" if of < len(data) else "")
        return Figure(name, value, extractor.name, split, extractor.resize, n)

    count = min(n, len(real.features))  # the figures depend on how many there are on each side
    near = neighbourhoods(features[:count], real.features[:count])
    names = [field.name for field in dataclasses.fields(near)]
    figures = [figure(f"{name} (k = {NEAREST})", getattr(near, name), count, count) for name in names]
    if len(data.shape) < 3:
        return figures
    inception = isinstance(extractor, Inception)
    names = (
        ("FID", "KID", "Inception score") if inception else ("Fréchet distance", "kernel distance", "classifier score")
    )
    mean, spread = kernel_distance(features, real.features)
    subsets = f"{SUBSETS} subsets of {min(SUBSET, count)}"
    figures = [
        figure(names[0], frechet_distance(moments(features), real.moments)),
        figure(f"{names[1]} ({subsets})", mean, of=len(real.features)),
        figure(f"{names[1]}, standard deviation ({subsets})", spread, of=len(real.features)),
        *figures,
    ]
    if probabilities is None:
        return figures
    mean, spread = inception_score(probabilities)
    alone = [(f"{names[2]} (10 splits)", mean), (f"{names[2]}, standard deviation (10 splits)", spread)]
    if labels is not None:
        alone.append(("label agreement", (probabilities.argmax(1) == labels.cpu()).double().mean().item()))
    return figures + [Figure(name, value, extractor.name, "none", extractor.resize, n) for name, value in alone]
