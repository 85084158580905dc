"""The networks whose shapes the cases have."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import relu


class Weights(nn.ModuleList):
    """Layers whose forward is the reading of their weights: all that spectral normalisation sees of a network."""

    def forward(self):
        return [layer.weight for layer in self]


def critic64():
    """The critic of 64×64 images that the goals are stated for: 3-64-128-256, strided 4×4 convolutions, a linear layer."""
    channels = (3, 64, 128, 256)
    layers = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 8 * 8, 1))


def digits_critic():
    """A critic of 8×8 digits: so little work per layer that launches and dispatch are what counts."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(64, 128, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(128 * 2 * 2, 1),
    )  # fmt: skip


def toy_critic(width):
    """WGAN-GP's critic of points in the plane, at 512; narrower ones are bound by the calls rather than the arithmetic."""
    return nn.Sequential(
        nn.Linear(2, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, 1),
    )


class NormedBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), with the mean over 2×2 pixels of both on the way down."""

    def __init__(self, channels, size, down, norm):
        super().__init__()
        pool = [nn.AvgPool2d(2)] if down else []
        layers = []
        for last in (False, True):
            layers += [
                norm(channels, size),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
                *(pool if last else []),
            ]
        self.layers = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(*pool, nn.Conv2d(channels, channels, 1)) if down else nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.layers(x)


def layer_norm_of_images(channels, size):
    return nn.LayerNorm((channels, size, size))


def resnet_critic(norm=layer_norm_of_images, width=128, size=32):
    """WGAN-GP's residual critic of 32×32 images (Gulrajani et al. 2017, appendix C), its first block a convolution."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        NormedBlock(width, size, True, norm),
        NormedBlock(width, size // 2, True, norm),
        NormedBlock(width, size // 4, False, norm),
        NormedBlock(width, size // 4, False, norm),
        nn.ReLU(),
        nn.AvgPool2d(size // 4),
        nn.Flatten(),
        nn.Linear(width, 1),
    )


class AttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on tokens."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm, self.to_qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.LeakyReLU(0.2), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        q, k, v = (
            t.reshape(*t.shape[:-1], self.heads, -1).transpose(1, 2) for t in self.to_qkv(self.norm(x)).chunk(3, -1)
        )
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


def attention_critic(width=128, heads=2):
    """A critic of 128×128 images as 1,024 patches: two blocks of attention, the mean over patches, a linear layer."""

    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, width, 4, 4)
            self.position = nn.Parameter(0.1 * torch.randn(1024, width))
            self.blocks = nn.Sequential(AttentionBlock(width, heads), AttentionBlock(width, heads))
            self.head = nn.Linear(width, 1)

        def forward(self, x):
            return self.head(self.blocks(self.patches(x).flatten(2).mT + self.position).mean(1))

    return Critic()


def dcgan_discriminator():
    """DCGAN's for 64×64 images (Radford et al. 2016): 3-64-128-256-512-1, 4×4 convolutions, batch norm inside."""
    channels = (3, 64, 128, 256, 512)
    layers = []
    for before, after in pairwise(channels):
        norm = [nn.BatchNorm2d(after)] if before > 3 else []
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), *norm, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4, 1, 0, bias=False))


class ResidualBlock(nn.Module):
    """SN-GAN's: two 3×3 convolutions and a shortcut, halved by average pooling where it says so."""

    def __init__(self, before, after, down, first=False):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after or down else nn.Identity()
        self.pool = nn.AvgPool2d(2) if down else nn.Identity()
        self.first = first

    def forward(self, x):
        y = self.conv2(relu(self.conv1(x if self.first else relu(x))))
        return self.pool(y) + self.pool(self.shortcut(x))


class SumOverPixels(nn.Module):
    def forward(self, x):
        return relu(x).sum((2, 3))


def sngan32_discriminator(width=128):
    """SN-GAN's of 32×32 images (Miyato et al. 2018, table 4b), without its normalisation."""
    return nn.Sequential(
        ResidualBlock(3, width, down=True, first=True),
        ResidualBlock(width, width, down=True),
        ResidualBlock(width, width, down=False),
        ResidualBlock(width, width, down=False),
        SumOverPixels(),
        nn.Linear(width, 1),
    )


def _block(before, after, hidden, shortcut):
    layers = [nn.Conv2d(before, hidden, 3, padding=1), nn.Conv2d(hidden, after, 3, padding=1)]
    return layers + ([nn.Conv2d(before, after, 1)] if shortcut else [])


def sngan32_weights():
    """Those of SN-GAN's ResNet discriminator of 32×32 images (Miyato et al. 2018, table 4b), 128 channels."""
    return Weights(
        [
            *_block(3, 128, 128, shortcut=True),
            *_block(128, 128, 128, shortcut=True),
            *_block(128, 128, 128, shortcut=False),
            *_block(128, 128, 128, shortcut=False),
            nn.Linear(128, 1),
        ]
    )


def biggan128_weights(width=96):
    """Those of BigGAN's discriminator of 128×128 images (Brock et al. 2019, table 5), attention at 64×64 included."""
    channels = [3, *(width * multiple for multiple in (1, 2, 4, 8, 16, 16))]
    layers = []
    for before, after in pairwise(channels):
        layers += _block(before, after, after, shortcut=before != after)
        if after == width:
            layers += [nn.Conv2d(width, width // 8, 1, bias=False), nn.Conv2d(width, width // 8, 1, bias=False),
                       nn.Conv2d(width, width // 2, 1, bias=False), nn.Conv2d(width // 2, width, 1, bias=False)]  # fmt: skip
    return Weights([*layers, nn.Linear(channels[-1], 1), nn.Embedding(1000, channels[-1])])


class ResidualBottleneck(nn.Module):
    def __init__(self, channels, expansion=2, group=16):
        super().__init__()
        hidden = channels * expansion
        self.body = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden // group, bias=False),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )

    def forward(self, x):
        return x + self.body(x)


def residual_critic():
    """The shape of R3GAN's discriminator (Huang et al. 2024) for 32×32 images: bottlenecks with grouped convolutions, no norm."""
    layers = [nn.Conv2d(3, 64, 1)]
    for before, after in pairwise((64, 128, 128)):
        layers += [
            ResidualBottleneck(before),
            ResidualBottleneck(before),
            nn.AvgPool2d(2),
            nn.Conv2d(before, after, 1, bias=False),
        ]
    return nn.Sequential(
        *layers,
        ResidualBottleneck(128),
        nn.Conv2d(128, 128, 8, groups=128, bias=False),
        nn.Flatten(),
        nn.Linear(128, 1),
    )


class PeriodCritic(nn.Module):
    def __init__(self, period, channels=(1, 16, 32, 64)):
        super().__init__()
        self.period = period
        layers = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, (5, 1), (3, 1), (2, 0)), nn.LeakyReLU(0.1)]
        last = channels[-1]
        self.layers = nn.Sequential(
            *layers, nn.Conv2d(last, last, (5, 1), 1, (2, 0)), nn.LeakyReLU(0.1), nn.Conv2d(last, 1, (3, 1), 1, (1, 0))
        )

    def forward(self, x):
        x = nn.functional.pad(x, (0, -x.shape[-1] % self.period), "reflect")
        return self.layers(x.view(*x.shape[:-1], -1, self.period)).flatten(1).mean(1)


class PeriodsCritic(nn.Module):
    """A vocoder's multi-period critic (Kong et al. 2020), narrow, whose score is the mean over positions and the sum over periods."""

    def __init__(self):
        super().__init__()
        self.critics = nn.ModuleList(PeriodCritic(period) for period in (2, 3, 5, 7, 11))

    def forward(self, x):
        return sum(critic(x) for critic in self.critics)
