"""The networks of BigGAN: Brock, Donahue and Simonyan (2019), arXiv:1809.11096, section 3 and appendix B: SAGAN's, conditional on classes.

`width` is the number of channels at the image's full size; it doubles with every halving. `ops` is the family of ops that a network is
made of: see `ganzoo.training.ops`.
"""

from functools import partial

import torch
from torch import nn

from ganzoo.networks.sagan import Attention, UpBlock, channels_upwards, features

ATTENTION = {"values": 2, "pooled": True}
"""What BigGAN's attention has in place of SAGAN's C/8 values at every pixel."""


def orthogonal_init(module):
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
        nn.init.orthogonal_(module.weight)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


class ConditionalNorm(nn.Module):
    """Batch norm whose gain is 1 + U c and whose bias is V c, c being what the map is conditional on."""

    def __init__(self, channels, *, condition):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.shift = (nn.Linear(condition, channels, bias=False) for _ in range(2))

    def forward(self, x, condition):
        gain, shift = (layer(condition)[:, :, None, None] for layer in (self.gain, self.shift))
        return self.norm(x) * (1 + gain) + shift


class Generator(nn.Module):
    """Latents (N, latent) and labels (N,) to images (N, C, H, W) in (−1, 1).

    The latent is split: its first part goes through a dense layer to 4×4, each residual block's norms see a further one beside the
    class's embedding, which all of them share.
    """

    def __init__(self, latent, image_shape, width, classes, embedding, ops):
        super().__init__()
        channels = channels_upwards(image_shape, width)
        self.shared = nn.Parameter(torch.randn(classes, embedding))  # not a layer: it has no spectral norm
        self.channels, self.parts = channels[0], len(channels)
        first, *rest = torch.empty(1, latent).tensor_split(self.parts, 1)
        self.dense = nn.Linear(first.shape[1], channels[0] * 16)
        self.blocks = nn.ModuleList(
            UpBlock(before, after, partial(ConditionalNorm, condition=embedding + part.shape[1]))
            for before, after, part in zip(channels, channels[1:], rest)
        )
        self.attention = Attention(ops, channels[-2], **ATTENTION)
        self.out = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, image_shape[0], 3, 1, 1), nn.Tanh())
        self.apply(orthogonal_init)

    def forward(self, z, labels):
        first, *rest = z.tensor_split(self.parts, 1)
        x = self.dense(first).unflatten(1, (self.channels, 4, 4))
        for number, (block, part) in enumerate(zip(self.blocks, rest)):
            if number == len(rest) - 1:
                x = self.attention(x)
            x = block(x, torch.cat([self.shared[labels], part], 1))
        return self.out(x)


class Discriminator(nn.Module):
    """Images (N, C, H, W) and labels (N,) to raw scores (N,): an affine function of the features h, plus e(label)·h, the projection.

    Source of the projection: Miyato and Koyama (2018), arXiv:1802.05637, section 3.
    """

    def __init__(self, image_shape, width, classes, ops):
        super().__init__()
        layers, channels = features(ops, image_shape, width, **ATTENTION)
        self.features = nn.Sequential(*layers)
        self.score, self.embedding = nn.Linear(channels, 1), nn.Embedding(classes, channels)
        self.apply(orthogonal_init)

    def forward(self, x, labels):
        h = self.features(x)
        return self.score(h).flatten() + (self.embedding(labels) * h).sum(1)
