"""Figures of samples that are to be like one image: how like it they are in their parts, and how unlike each other.

A copy of the image is at a distance of 0 and has no diversity, so neither says much without the other.
"""

from ganzoo.metrics.frechet import frechet_distance, moments


def single_image_distance(places, real):
    """The Fréchet distance between features (P, D) of the places of a sample and those of the places of the image.

    With the features of Inception's last layer before its second pooling it is SIFID. Source: Shaham, Dekel and Michaeli (2019),
    arXiv:1905.01164, section 4.
    """
    return frechet_distance(moments(places), moments(real))


def diversity(samples, image):
    """The standard deviation of each number of the samples (N, C, H, W) over the samples, its mean over that of the image (C, H, W). Source: as above."""
    return (samples.std(0).mean() / image.std()).item()
