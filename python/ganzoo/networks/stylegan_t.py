"""The networks of StyleGAN-T: Sauer et al. (2023), arXiv:2301.09515, sections 3.1 and 3.2: StyleGAN2's generator, of text, and a discriminator of
heads on the features of a vision transformer.

`ops` is the family of ops that a network is made of: see `ganzoo.training.ops`.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ganzoo.networks import stylegan2
from ganzoo.networks.equalized import Linear, mapping


class SecondOrder(nn.Module):
    """Styles s = s₁·s₂ + s₃, each an affine function of w."""

    def __init__(self, ops, inputs, outputs):
        super().__init__()
        self.first, self.second = Linear(ops, inputs, outputs), Linear(ops, inputs, outputs)
        self.third = Linear(ops, inputs, outputs, bias=1.0)

    def forward(self, w):
        return self.first(w) * self.second(w) + self.third(w)


class Residual(nn.Module):
    """x + γ·conv(group norm(x)), the norm over 16 channels together, or the most that divide 16 and theirs, γ a number per
    channel that starts at nearly nought."""

    def __init__(self, ops, conv, channels):
        super().__init__()
        self.conv, self.gamma = conv, nn.Parameter(torch.full((channels, 1, 1), 1e-5))
        self.ops, self.groups = ops, channels // math.gcd(16, channels)

    def forward(self, x, w, noise):
        return x + self.gamma * self.conv(self.ops.group_norm(x, self.groups), w, noise)


class Generator(stylegan2.Generator):
    """Latents (N, latent) and codes (N, code) of text to images (N, C, H, W): StyleGAN2's, at each size with a second convolution that is
    residual, and with styles of second order.

    w = [f(z), c]: the mapping network f, `style`, does not see the text, whose code joins its output as loud as that.
    """

    def __init__(self, latent, code, image_shape, width, depth, ops):
        super().__init__(latent + code, image_shape, width, depth, ops)
        self.ops, self.style = ops, mapping(ops, latent, depth)
        for conv in [module for module in self.modules() if isinstance(module, stylegan2.Modulated)]:
            conv.modulation = SecondOrder(ops, latent + code, conv.weight.shape[2])
        for number in range(1, len(self.convs), 2):
            self.convs[number] = Residual(ops, self.convs[number], self.convs[number].conv.weight.shape[1])

    def with_text(self, styles, code):
        return torch.cat([styles, self.ops.pixel_norm(code)], 1)

    def mapping(self, z, code):
        return self.with_text(self.style(z), code)

    def forward(self, z, code, noise=None):
        return self.synthesis(self.mapping(z, code), noise)


class Head(nn.Module):
    """Tokens (N, L, D) and codes (N, code) to a raw score of each token, (N, L): a 1-d convolution of single tokens and a residual one of
    nine, each with group norm and LeakyReLU(0.2), behind which a token h has the score u·h + b + (W c)·h, the projection."""

    def __init__(self, ops, inputs, channels, code):
        super().__init__()
        self.first, self.second = nn.Conv1d(inputs, channels, 1), nn.Conv1d(channels, channels, 9, padding=4)
        self.score, self.projection = nn.Conv1d(channels, 1, 1), nn.Linear(code, channels, bias=False)
        self.ops = ops

    def activated(self, x):
        return F.leaky_relu(self.ops.group_norm(x, 1), 0.2)

    def forward(self, tokens, code):
        h = self.activated(self.first(tokens.mT))
        h = (h + self.activated(self.second(h))) / math.sqrt(2)
        projection = self.projection(self.ops.pixel_norm(code))
        return self.score(h).squeeze(1) + (projection[:, :, None] * h).sum(1) / math.sqrt(h.shape[1])


class Discriminator(nn.Module):
    """Images (N, C, H, W) and codes (N, code) to raw scores (N, tokens): of each token of each layer that a vision transformer `vit` gives
    after its codes, `dims` being their widths. The transformer is an input, so that it is not what learns."""

    def __init__(self, dims, channels, code, ops):
        super().__init__()
        self.heads = nn.ModuleList(Head(ops, inputs, channels, code) for inputs in dims)

    def forward(self, x, code, vit):
        _, *layers = vit(x)
        return torch.cat([head(tokens, code) for head, tokens in zip(self.heads, layers, strict=True)], 1)
