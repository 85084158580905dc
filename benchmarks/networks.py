"""The networks whose shapes the cases have."""

from itertools import pairwise

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
        layers += [ResidualBottleneck(before), ResidualBottleneck(before), nn.AvgPool2d(2), nn.Conv2d(before, after, 1, bias=False)]
    return nn.Sequential(
        *layers, ResidualBottleneck(128), nn.Conv2d(128, 128, 8, groups=128, bias=False), nn.Flatten(), nn.Linear(128, 1)
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


