"""Metrics of generated samples, each figure with all that it depends on.

for figure in ganzoo.metrics.evaluate(samples, ganzoo.data.open("digits")):
    print(figure)
"""

from ganzoo.metrics.evaluate import evaluate, make_extractor, sample_count
from ganzoo.metrics.extractors import Classifier, Inception, Pixels
from ganzoo.metrics.figure import Figure
from ganzoo.metrics.frechet import Moments, frechet_distance, moments
from ganzoo.metrics.inception_score import inception_score
from ganzoo.metrics.kernel import kernel_distance
from ganzoo.metrics.modes import count_coverage, mode_coverage
from ganzoo.metrics.neighbours import neighbourhoods
from ganzoo.metrics.psnr import psnr
from ganzoo.metrics.single_image import diversity, single_image_distance
from ganzoo.metrics.wasserstein import wasserstein_distance

__all__ = [
    "Classifier",
    "Figure",
    "Inception",
    "Moments",
    "Pixels",
    "count_coverage",
    "diversity",
    "evaluate",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "make_extractor",
    "mode_coverage",
    "moments",
    "neighbourhoods",
    "psnr",
    "sample_count",
    "single_image_distance",
    "wasserstein_distance",
]
