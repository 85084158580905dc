"""The U-Net of pix2pix: Isola, Zhu, Zhou and Efros (2017), arXiv:1611.07004, appendix 6.1.

The paper draws it for 256×256 images, eight halvings down to 1×1. Here their number follows the image size.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ganzoo.errors import ArgumentError
from ganzoo.networks.dcgan import init_weights

DROPPED = 3  # layers with dropout, from the smallest map upwards


def halvings(image_shape):
    """How often both sides of the images halve evenly: 5 for 32×32, 2 for 28×28.

    Raises `ArgumentError` for what is no image, or where it is less than twice.
    """
    count = min(((side & -side).bit_length() - 1 for side in image_shape[1:]), default=0)
    if len(image_shape) != 3 or count < 2:
        expected = "images whose sides are multiples of 4 for these networks, as the data's option size makes them"
        raise ArgumentError("data", expected, " x ".join(map(str, image_shape)))
    return count


class Noise(nn.Dropout):
    """Dropout that is there when sampling too: the only noise of the generator."""

    def forward(self, x):
        return F.dropout(x, self.p, training=True)


class Level(nn.Module):
    """x and what comes back from the half of its size, as channels side by side."""

    def __init__(self, down, inner, up):
        super().__init__()
        self.down, self.inner, self.up = down, inner, up

    def forward(self, x):
        return torch.cat([x, self.up(self.inner(self.down(x)))], 1)


class Generator(nn.Sequential):
    """Images (N, A, H, W) to images (N, B, H, W) in (−1, 1): 4×4 convolutions of stride 2 down to the smallest map and transposed ones
    back, each of which also sees what the way down had at its size. Batch norm but for the first layer, the last, and the smallest map,
    which may be of one pixel; LeakyReLU(0.2) on the way down, ReLU on the way up, dropout of ½ in its first layers.

    `width` is the number of channels at half the image's size; it doubles with every halving, up to 8·width.
    """

    def __init__(self, shape, channels, width):
        count = halvings(shape)
        widths = [width * min(2**level, 8) for level in range(count)]
        inner = nn.Identity()
        for level in reversed(range(1, count)):
            smallest = level == count - 1
            before, after = widths[level - 1], widths[level]
            down = [nn.LeakyReLU(0.2), nn.Conv2d(before, after, 4, 2, 1, bias=smallest)]
            up = [nn.ReLU(), nn.ConvTranspose2d(after * (1 if smallest else 2), before, 4, 2, 1, bias=False)]
            down += [] if smallest else [nn.BatchNorm2d(after)]
            up += [nn.BatchNorm2d(before)] + ([Noise(0.5)] if level >= max(1, count - DROPPED) else [])
            inner = Level(nn.Sequential(*down), inner, nn.Sequential(*up))
        first = nn.Conv2d(shape[0], width, 4, 2, 1)
        last = nn.ConvTranspose2d(2 * width, channels, 4, 2, 1)
        super().__init__(first, inner, nn.ReLU(), last, nn.Tanh())
        self.apply(init_weights)
