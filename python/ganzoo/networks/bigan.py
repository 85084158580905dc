"""The discriminator of pairs of BiGAN and ALI: Dumoulin et al. (2017), arXiv:1606.00704, appendix A, in which both halves of a pair have
layers of their own before layers that they share."""

import torch
from torch import nn

from ganzoo.networks import dcgan, pacgan


class Discriminator(nn.Module):
    """Images (N, C, H, W) or points (N, D) with latents (N, latent) to raw scores (N,).

    Images: DCGAN's strided layers, beside a dense layer of 16·width units for the latents, and another one for both.
    Points: PacGAN's perceptron of both, concatenated.
    """

    def __init__(self, shape, latent, width):
        super().__init__()
        if len(shape) == 1:
            self.of_x, self.of_z = nn.Identity(), nn.Identity()
            self.of_both = pacgan.Discriminator((shape[0] + latent,), width)
            return
        *layers, last, _ = dcgan.Discriminator(shape, width)
        units = 16 * width
        self.of_x = nn.Sequential(*layers)
        self.of_z = nn.Sequential(nn.Linear(latent, units), nn.LeakyReLU(0.2))
        self.of_both = nn.Sequential(
            nn.Linear(last.in_features + units, units), nn.LeakyReLU(0.2), nn.Linear(units, 1), nn.Flatten(0)
        )

    def forward(self, x, z):
        return self.of_both(torch.cat([self.of_x(x), self.of_z(z)], 1))
