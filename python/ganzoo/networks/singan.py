"""The networks of SinGAN: Shaham, Dekel and Michaeli (2019), arXiv:1905.01164, section 2.1: of each scale a generator and a critic of five
3×3 convolutions, which see patches of 11×11 pixels.

The paper's batch norm is, in batches of one image, instance norm, and stays so here when many are sampled.
"""

from torch import nn

from ganzoo.networks.dcgan import init_weights

LAYERS = 5
PATCH = 2 * LAYERS + 1


def _convolutions(channels, width, outputs):
    layers = []
    for before in [channels] + [width] * (LAYERS - 2):
        layers += [nn.Conv2d(before, width, 3), nn.InstanceNorm2d(width, affine=True), nn.LeakyReLU(0.2)]
    return [*layers, nn.Conv2d(width, outputs, 3)]


class Generator(nn.Sequential):
    """Images with noise (N, C, H, W) to residuals (N, C, H, W) in (−1, 1). Only the input has a border, of zeros, by which the network
    can tell that it is one."""

    def __init__(self, channels, width):
        super().__init__(nn.ZeroPad2d(LAYERS), *_convolutions(channels, width, channels), nn.Tanh())
        self.apply(init_weights)


class Critic(nn.Sequential):
    """Images (N, C, H, W) to raw scores (N,), the means of those of all patches."""

    def __init__(self, channels, width):
        super().__init__(*_convolutions(channels, width, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(0))
        self.apply(init_weights)
