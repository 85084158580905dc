"""The PatchGAN of pix2pix and CycleGAN: Isola, Zhu, Zhou and Efros (2017), arXiv:1611.07004, section 3.2.2 and appendix 6.1.

A score for every patch of the image rather than one for all of it. The paper's patches have 70×70 pixels, of images of 256×256; here they
are smaller on smaller images, about half as wide.
"""

from torch import nn

from ganzoo.errors import ArgumentError
from ganzoo.networks.dcgan import init_weights


def strided_layers(image_shape):
    """The number of strided layers, and with it the side of a patch: 1 (16 pixels) below 64, 2 (34) below 128, 3 (70) from there.

    Raises `ArgumentError` for what is no image, or one of less than 8 pixels in width or height.
    """
    side = min(image_shape[1:], default=0)
    if len(image_shape) != 3 or side < 8:
        expected = "images of at least 8 x 8 pixels for these networks"
        raise ArgumentError("data", expected, " x ".join(map(str, image_shape)))
    return min(max(side.bit_length() - 5, 1), 3)


class Discriminator(nn.Sequential):
    """Images (N, C, H, W) to raw scores (N, 1, h, w), one for every patch: 4×4 convolutions, the first ones of stride 2, the last two of
    stride 1; LeakyReLU(0.2) and normalisation, but for the first layer and the last, which has neither.

    `width` is the number of channels after the first layer; it doubles with every layer. `norm` is the layer that normalises so many
    channels.
    """

    def __init__(self, image_shape, width, norm=nn.BatchNorm2d):
        layers = [nn.Conv2d(image_shape[0], width, 4, 2, 1), nn.LeakyReLU(0.2)]
        strides = [2] * (strided_layers(image_shape) - 1) + [1]
        for stride in strides:
            layers += [nn.Conv2d(width, 2 * width, 4, stride, 1), norm(2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        super().__init__(*layers, nn.Conv2d(width, 1, 4, 1, 1))
        self.apply(init_weights)
