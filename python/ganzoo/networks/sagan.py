"""The networks of SAGAN: Zhang et al. (2019), arXiv:1805.08318, section 3: residual blocks with self-attention at half of the image's size.

`width` is the number of channels at the image's full size; it doubles with every halving. `ops` is the family of ops that a network is
made of: see `ganzoo.training.ops`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ganzoo.networks import doublings


class Attention(nn.Module):
    """x + γ·W_o(Σᵢ softmaxᵢ(q(xⱼ)·k(xᵢ)) v(xᵢ)) over pixels, with γ = 0 at first; queries and keys have C/8 channels.

    Values have C/8 too, or C/`values`; `pooled` keys and values are the largest of 2×2 pixels.
    """

    def __init__(self, ops, channels, values=8, pooled=False):
        super().__init__()
        few, some = max(1, channels // 8), max(1, channels // values)
        self.query, self.key = (nn.Conv2d(channels, few, 1, bias=False) for _ in range(2))
        self.value = nn.Conv2d(channels, some, 1, bias=False)
        self.out = nn.Conv2d(some, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.ops, self.pool = ops, nn.MaxPool2d(2) if pooled else nn.Identity()

    def forward(self, x):
        maps = self.query(x), self.pool(self.key(x)), self.pool(self.value(x))
        attended = self.ops.scaled_dot_product_attention(*(m.flatten(2).mT for m in maps), scale=1.0)
        return x + self.gamma * self.out(attended.mT.reshape(len(x), -1, *x.shape[2:]))


class UpBlock(nn.Module):
    """Two 3×3 convolutions behind `norm` and ReLU, the first at twice the size, beside a 1×1 one of the doubled map. What follows x
    goes to the norms."""

    def __init__(self, before, after, norm):
        super().__init__()
        self.norm1, self.norm2 = norm(before), norm(after)
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x, *condition):
        y = self.conv1(F.interpolate(torch.relu(self.norm1(x, *condition)), scale_factor=2))
        return self.conv2(torch.relu(self.norm2(y, *condition))) + F.interpolate(self.shortcut(x), scale_factor=2)


class DownBlock(nn.Module):
    """Two 3×3 convolutions behind ReLU, the first without where it sees the image, beside a 1×1 one; both halved by the mean over 2×2."""

    def __init__(self, before, after, first=False, down=True):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)
        self.first, self.pool = first, nn.AvgPool2d(2) if down else nn.Identity()

    def forward(self, x):
        y = self.conv2(torch.relu(self.conv1(x if self.first else torch.relu(x))))
        return self.pool(y) + self.shortcut(self.pool(x))


def channels_upwards(image_shape, width):
    """Channels at 4×4, 8×8, ... up to the image's size."""
    return [width * 2**level for level in reversed(range(doublings(image_shape) + 1))]


class Generator(nn.Sequential):
    """Latents (N, latent) to images (N, C, H, W) in (−1, 1): a dense layer to 4×4, residual blocks, batch norm, ReLU, a 3×3 convolution, tanh."""

    def __init__(self, latent, image_shape, width, ops):
        channels = channels_upwards(image_shape, width)
        layers = [nn.Linear(latent, channels[0] * 16), nn.Unflatten(1, (channels[0], 4, 4))]
        layers += [UpBlock(before, after, nn.BatchNorm2d) for before, after in zip(channels, channels[1:])]
        layers.insert(-1, Attention(ops, channels[-2]))
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, image_shape[0], 3, 1, 1), nn.Tanh()]
        super().__init__(*layers)


def features(ops, image_shape, width, **attention):
    """The layers of a discriminator from images (N, C, H, W) to features (N, channels at 4×4), the sums over pixels."""
    channels = channels_upwards(image_shape, width)[-2::-1]
    layers = [DownBlock(image_shape[0], channels[0], first=True), Attention(ops, channels[0], **attention)]
    layers += [DownBlock(before, after) for before, after in zip(channels, channels[1:])]
    return [*layers, DownBlock(channels[-1], channels[-1], down=False), nn.ReLU(), SumOverPixels()], channels[-1]


class SumOverPixels(nn.Module):
    def forward(self, x):
        return x.sum((2, 3))


class Discriminator(nn.Sequential):
    """Images (N, C, H, W) to raw scores (N,): residual blocks down to 4×4 and one more, ReLU, the sum over pixels, a dense layer."""

    def __init__(self, image_shape, width, ops):
        layers, channels = features(ops, image_shape, width)
        super().__init__(*layers, nn.Linear(channels, 1), nn.Flatten(0))
