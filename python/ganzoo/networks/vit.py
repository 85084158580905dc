"""Vision transformers: Dosovitskiy et al. (2021), arXiv:2010.11929, section 3.1. `ops` is the family of ops that a network is made of: see
`ganzoo.training.ops`."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ganzoo.errors import ArgumentError


class Block(nn.Module):
    """x + attention of several heads, then x + two dense layers with GELU, both behind layer norm."""

    def __init__(self, ops, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.ops, self.heads = ops, heads

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.ops.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Images (N, C, H, W) to codes (N, code), a dense layer of the last class token, and each block's tokens (N, 1 + patches, width),
    the class token first.

    `rebuilding_error` is what it can learn from by itself: see there.
    """

    def __init__(self, image_shape, width, code, patch, ops, blocks=3, heads=4):
        super().__init__()
        channels, *size = image_shape
        if any(side % patch for side in size):
            raise ArgumentError("patch", f"a divisor of the images' sides, {' and '.join(map(str, size))}", patch)
        self.patch, self.patches = patch, size[0] * size[1] // patch**2
        self.embedding = nn.Linear(channels * patch**2, width)
        self.first, self.unseen = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(width))
        self.places = nn.Parameter(torch.randn(1 + self.patches, width))
        self.blocks = nn.ModuleList(Block(ops, width, math.gcd(heads, width)) for _ in range(blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, code))
        self.pixels = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels * patch**2))

    def layers(self, patches, hidden=None):
        x = self.embedding(patches)
        if hidden is not None:
            x = torch.where(hidden[:, :, None], self.unseen, x)
        x, tokens = torch.cat([self.first.expand(len(x), 1, -1), x], 1) + self.places, []
        for block in self.blocks:
            x = block(x)
            tokens.append(x)
        return tokens

    def in_patches(self, x):
        return F.unfold(x, self.patch, stride=self.patch).mT

    def forward(self, x):
        tokens = self.layers(self.in_patches(x))
        return self.head(tokens[-1][:, 0]), *tokens

    def rebuilding_error(self, x, hidden):
        """Mean square between the patches that are `hidden` (N, patches) and what the last tokens make of them, having seen the others.

        Source: Xie et al. (2022), SimMIM, arXiv:2111.09886, section 3, with squares for absolute values.
        """
        patches = self.in_patches(x)
        rebuilt = self.pixels(self.layers(patches, hidden)[-1][:, 1:])
        return ((rebuilt - patches).square().mean(2) * hidden).sum() / hidden.sum()
