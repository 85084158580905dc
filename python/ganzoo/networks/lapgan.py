"""The networks that add detail in LAPGAN: Denton, Chintala, Szlam and Fergus (2015), arXiv:1506.05751, section 4.

Three layers each. The paper has dropout in its discriminators, and 64 to 128 channels.
"""

from torch import nn


def detail_generator(channels, width):
    """Coarse images, enlarged, with noise as one more channel (N, C + 1, H, W), to residuals (N, C, H, W)."""
    layers = [
        nn.Conv2d(channels + 1, 4 * width, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(4 * width, 4 * width, 5, 1, 2),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.Conv2d(4 * width, channels, 3, 1, 1))


def detail_discriminator(shape, width):
    """Images (N, C, H, W) to raw scores (N,): two convolutions of stride 2 with LeakyReLU(0.2), and a dense layer."""
    channels, height, across = shape
    features = 4 * width * (height // 4) * (across // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 4 * width, 5, 2, 2), nn.LeakyReLU(0.2), nn.Conv2d(4 * width, 4 * width, 5, 2, 2), nn.LeakyReLU(0.2),
        nn.Flatten(1), nn.Linear(features, 1), nn.Flatten(0),
    )  # fmt: skip
