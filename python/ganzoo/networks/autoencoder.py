"""The networks of BEGAN: Berthelot, Schumm and Metz (2017), arXiv:1703.10717, section 3.1, for images; perceptrons for points.

An autoencoder is a discriminator that returns an image rather than a score. Neither half has batch norm or an activation at its end, so
codes and images are any numbers. The paper's smallest maps are 8×8; here they are 4×4.
"""

from torch import nn

from ganzoo.networks import doublings


def _perceptron(inputs, outputs, width):
    """Two layers of 16·width units with ELU, and an affine one."""
    units = 16 * width
    return [nn.Linear(inputs, units), nn.ELU(), nn.Linear(units, units), nn.ELU(), nn.Linear(units, outputs)]


def _convolutions(channels):
    return [nn.Conv2d(channels, channels, 3, 1, 1), nn.ELU(), nn.Conv2d(channels, channels, 3, 1, 1), nn.ELU()]


class Encoder(nn.Sequential):
    """Images (N, C, H, W) or points (N, D) to codes (N, code).

    Images: pairs of 3×3 convolutions with ELU, at each halving by a 3×3 convolution of stride 2 `width` channels more, and a dense layer.
    """

    def __init__(self, shape, width, code):
        if len(shape) == 1:
            super().__init__(*_perceptron(*shape, code, width))
            return
        layers, channels = [nn.Conv2d(shape[0], width, 3, 1, 1), nn.ELU(), *_convolutions(width)], width
        for _ in range(doublings(shape)):
            layers += [nn.Conv2d(channels, channels + width, 3, 2, 1), nn.ELU(), *_convolutions(channels + width)]
            channels += width
        super().__init__(*layers, nn.Flatten(1), nn.Linear(channels * 16, code))


class Decoder(nn.Sequential):
    """Codes or latents (N, code) to images (N, C, H, W) or points (N, D).

    Images: a dense layer to `width` channels of 4×4, pairs of 3×3 convolutions with ELU, doublings by nearest neighbours between them,
    and a 3×3 convolution to the image.
    """

    def __init__(self, code, shape, width):
        if len(shape) == 1:
            super().__init__(*_perceptron(code, *shape, width))
            return
        layers = [nn.Linear(code, width * 16), nn.Unflatten(1, (width, 4, 4)), *_convolutions(width)]
        for _ in range(doublings(shape)):
            layers += [nn.Upsample(scale_factor=2), *_convolutions(width)]
        super().__init__(*layers, nn.Conv2d(width, shape[0], 3, 1, 1))


class Autoencoder(nn.Module):
    """Images or points to images or points of the same shape, through a code."""

    def __init__(self, shape, width, code):
        super().__init__()
        self.encoder, self.decoder = Encoder(shape, width, code), Decoder(code, shape, width)

    def forward(self, x):
        return self.decoder(self.encoder(x))
