"""The standard convolutional networks of SN-GAN: Miyato et al. (2018), arXiv:1802.05957, table 3.

The paper draws them for 32×32 and 48×48 images; here the number of strided layers follows the image size.
"""

from torch import nn

from ganzoo.networks import doublings


class Generator(nn.Sequential):
    """Latents (N, latent) to images (N, C, H, W) in (−1, 1): a dense layer to 4×4, doublings by 4×4 transposed
    convolutions of stride 2 with batch norm and ReLU, and a 3×3 convolution into tanh.

    `width` is the number of channels at the image's full size; it doubles with every halving.
    """

    def __init__(self, latent, image_shape, width):
        channels = [width * 2**level for level in reversed(range(doublings(image_shape) + 1))]
        layers = [nn.Linear(latent, channels[0] * 16), nn.Unflatten(1, (channels[0], 4, 4))]
        for before, after in zip(channels, channels[1:]):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(channels[-1], image_shape[0], 3, 1, 1), nn.Tanh())


class Discriminator(nn.Sequential):
    """Images (N, C, H, W) to raw scores (N,): before each 4×4 convolution of stride 2 one 3×3 of stride 1, a last
    3×3 at 4×4 and a dense layer; LeakyReLU(0.1), no batch norm.

    `width` is the number of channels at the image's full size; it doubles with every halving.
    """

    def __init__(self, image_shape, width):
        layers, channels = [nn.Conv2d(image_shape[0], width, 3, 1, 1), nn.LeakyReLU(0.1)], width
        for _ in range(doublings(image_shape)):
            layers += [nn.Conv2d(channels, 2 * channels, 4, 2, 1), nn.LeakyReLU(0.1)]
            channels *= 2
            layers += [nn.Conv2d(channels, channels, 3, 1, 1), nn.LeakyReLU(0.1)]
        super().__init__(*layers, nn.Flatten(1), nn.Linear(channels * 16, 1), nn.Flatten(0))
