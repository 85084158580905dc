"""Families of networks. Each generator maps latents (N, latent) to images (N, C, H, W), in [−1, 1] where it does not say otherwise, or to
points (N, D); each discriminator or critic maps them to one raw score per sample, (N,)."""

from ganzoo.errors import ArgumentError


def doublings(image_shape):
    """How often 4×4 must double to reach the images: 1 for 8×8, 2 for 16×16, and so on.

    Raises `ArgumentError` unless the images are square with a side of 8·2^k pixels.
    """
    height, width = image_shape[1:] if len(image_shape) == 3 else (0, 0)
    count = (height // 4).bit_length() - 1
    if height != width or count < 1 or 4 * 2**count != height:
        size = " x ".join(map(str, image_shape))
        expected = "square images with a side of 8, 16, 32, ... pixels for these networks, as the data's option size makes them"
        raise ArgumentError("data", expected, size)
    return count


def features(discriminator, x):
    """What the last layer of a discriminator of layers in a row is given, (N, F)."""
    for layer in list(discriminator)[:-2]:  # after which come that layer and a Flatten
        x = layer(x)
    return x
