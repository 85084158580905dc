"""The networks of DCGAN: Radford, Metz and Chintala (2015), arXiv:1511.06434.

The paper draws them for 64×64 images: four strided layers between 4×4 and the image. Here their number follows the
image size, and is at least two, so that 8×8 images start from 2×2.
"""

from torch import nn

from ganzoo.networks import doublings


def _strided_layers(image_shape):
    """The number of strided layers, and the side of the smallest feature map."""
    count = max(2, doublings(image_shape))
    return count, image_shape[1] // 2**count


def init_weights(module):
    """The paper's initialisation: weights ~ N(0, 0.02²), batch-norm gains ~ N(1, 0.02²), biases 0."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


class Generator(nn.Sequential):
    """Latents (N, latent) to images (N, C, H, W) in (−1, 1): a projection to the smallest map, then doublings by 4×4
    transposed convolutions of stride 2; batch norm and ReLU after all but the last layer, which ends in tanh.

    `width` is the number of channels at half the image's size; it doubles with every halving.
    """

    def __init__(self, latent, image_shape, width):
        count, side = _strided_layers(image_shape)
        channels = [width * 2**level for level in reversed(range(count))] + [image_shape[0]]
        layers = [nn.Linear(latent, channels[0] * side**2, bias=False), nn.Unflatten(1, (channels[0], side, side))]
        for level, (before, after) in enumerate(zip(channels, channels[1:]), start=1):
            layers += [
                nn.BatchNorm2d(before),
                nn.ReLU(),
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=level == count),
            ]
        super().__init__(*layers, nn.Tanh())
        self.apply(init_weights)


class Discriminator(nn.Sequential):
    """Images (N, C, H, W) to raw scores (N,): 4×4 convolutions of stride 2 down to the smallest map, then a dense
    layer; LeakyReLU(0.2) after all but the last layer.

    `width` is the number of channels at half the image's size; it doubles with every halving. `batch_norm=False`
    leaves out the inner layers' batch norm, as a critic must that scores each image by itself.
    """

    def __init__(self, image_shape, width, *, batch_norm=True):
        count, side = _strided_layers(image_shape)
        channels = [image_shape[0]] + [width * 2**level for level in range(count)]
        layers = []
        for level, (before, after) in enumerate(zip(channels, channels[1:])):
            normalised = batch_norm and level > 0
            layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=not normalised))
            if normalised:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.LeakyReLU(0.2))
        super().__init__(*layers, nn.Flatten(1), nn.Linear(channels[-1] * side**2, 1), nn.Flatten(0))
        self.apply(init_weights)
