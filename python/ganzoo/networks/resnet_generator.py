"""The generator of CycleGAN: Zhu, Park, Isola and Efros (2017), arXiv:1703.10593, appendix 7.2, after Johnson, Alahi and Fei-Fei (2016),
arXiv:1603.08155.
"""

from torch import nn

from ganzoo.networks.dcgan import init_weights
from ganzoo.networks.unet import halvings


def _normalised(layer, channels):
    return [layer, nn.InstanceNorm2d(channels), nn.ReLU()]


class Block(nn.Module):
    """x + W₂ φ(W₁ x), both 3×3 with reflected borders and instance norm."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normalised(nn.Conv2d(channels, channels, 3), channels),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x):
        return x + self.body(x)


class Generator(nn.Sequential):
    """Images (N, A, H, W) to images (N, B, H, W) in (−1, 1): a 7×7 convolution, two halvings, residual blocks, two doublings, and a 7×7
    convolution into tanh.

    `width` is the number of channels at the image's full size; it doubles with both halvings. `blocks` is 6 in the paper for images of
    128×128, 9 from 256×256.
    """

    def __init__(self, shape, channels, width, blocks):
        halvings(shape)
        super().__init__(
            nn.ReflectionPad2d(3),
            *_normalised(nn.Conv2d(shape[0], width, 7), width),
            *_normalised(nn.Conv2d(width, 2 * width, 3, 2, 1), 2 * width),
            *_normalised(nn.Conv2d(2 * width, 4 * width, 3, 2, 1), 4 * width),
            *(Block(4 * width) for _ in range(blocks)),
            *_normalised(nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, output_padding=1), 2 * width),
            *_normalised(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1), width),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, channels, 7),
            nn.Tanh(),
        )
        self.apply(init_weights)
