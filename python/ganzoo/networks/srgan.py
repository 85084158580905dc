"""The networks of SRGAN: Ledig et al. (2017), arXiv:1609.04802, section 2.1 and figure 4.

The paper has 64 channels, 16 residual blocks, and a discriminator of 96×96 images with four strided layers.
"""

from torch import nn


def _batch_normed(inputs, outputs):
    return [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)]


class Block(nn.Module):
    """x + W₂ φ(W₁ x), both 3×3 with batch norm, φ = PReLU."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(*_batch_normed(channels, channels), nn.PReLU(), *_batch_normed(channels, channels))

    def forward(self, x):
        return x + self.body(x)


class Generator(nn.Module):
    """Images (N, C, h, w) to images (N, C, 2^k h, 2^k w), which nothing keeps within [−1, 1]: a 9×9 convolution, residual blocks with a
    shortcut over all of them, k doublings by a 3×3 convolution to four times the channels, which a pixel shuffle spreads over 2×2 pixels,
    and a 9×9 convolution.

    Pixel shuffle: Shi et al. (2016), arXiv:1609.05158.
    """

    def __init__(self, channels, width, blocks, doublings):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, width, 9, 1, 4), nn.PReLU())
        self.body = nn.Sequential(*(Block(width) for _ in range(blocks)), *_batch_normed(width, width))
        up = [[nn.Conv2d(width, 4 * width, 3, 1, 1), nn.PixelShuffle(2), nn.PReLU()] for _ in range(doublings)]
        self.last = nn.Sequential(*sum(up, []), nn.Conv2d(width, channels, 9, 1, 4))

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.body(x))


class Discriminator(nn.Sequential):
    """Images (N, C, H, W) to raw scores (N,): pairs of 3×3 convolutions of stride 1 and 2, the channels doubling from pair to pair up to
    8·width, with LeakyReLU(0.2) and, but for the first, batch norm; two dense layers, the first of 16·width units."""

    def __init__(self, image_shape, width):
        channels, height, across = image_shape
        layers = [nn.Conv2d(channels, width, 3, 1, 1), nn.LeakyReLU(0.2)]
        for level in range(4):
            before, after = width * 2 ** max(level - 1, 0), width * 2**level
            strides = [2] if level == 0 else [1, 2]
            for stride in strides:
                layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
                before, height, across = after, -(-height // stride), -(-across // stride)
        layers += [nn.Flatten(1), nn.Linear(8 * width * height * across, 16 * width), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Linear(16 * width, 1), nn.Flatten(0))
