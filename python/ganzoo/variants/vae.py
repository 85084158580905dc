import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ganzoo.errors import ArgumentError
from ganzoo.networks import autoencoder, dcgan, toy
from ganzoo.objectives import gaussian_divergence
from ganzoo.options import Positive
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, Player, register


@dataclass
class Variational(Alternating):
    """What infers a distribution of latents, q(z|x) = N(μ(x), diag σ²(x)): the encoder returns μ and log σ²."""

    samplers = ("generator", "encoder")

    def networks(self, data, ops):
        family = toy if data.points else dcgan
        return Networks(
            generator=family.Generator(self.latent, data.shape, self.width),
            encoder=autoencoder.Encoder(data.shape, self.width, 2 * self.latent),
        )

    def inferred(self, networks, x, noise):
        """Latents z = μ + σ·noise of q(z|x), and the divergence of q(z|x) from the prior."""
        mean, log_variance = networks.encoder(x).chunk(2, 1)
        return mean + (log_variance / 2).exp() * noise, gaussian_divergence(mean, log_variance)

    def encode(self, networks, images):
        return networks.encoder(images).chunk(2, 1)[0]


@register("vae")
@dataclass
class VAE(Variational):
    """VAE: the contrast to GANs, a decoder trained by a bound on the likelihood, with an encoder and without a discriminator.

    L = −ELBO = −E log p(x|z) + KL(q(z|x) ‖ N(0, I)), z = μ(x) + σ(x)·ε, ε ~ N(0, I), both terms summed over their dimensions, in nats;
    a mean over the pixels would count the KL as many times too much. −log p(x|z) is

    gaussian   Σ (x − G(z))²/2s² + log s + ½ log 2π, s one number, learnt
    bernoulli  Σ BCE of (x + 1)/2 with probabilities (G(z) + 1)/2, as pixels are in [−1, 1]; of grey ones not a density

    Samples are means of p(x|z), without its noise.

    Source: Kingma and Welling (2014), arXiv:1312.6114, eqs. 3 and 10 and appendices B and C.
    """

    adversary = ""
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    """The decoder's distribution of images."""
    lr: Positive = 1e-3
    """Adam's learning rate."""

    def networks(self, data, ops):
        networks = super().networks(data, ops)
        if self.likelihood == "gaussian":
            # from s = 1 the decoder of a ring of points came to ignore its latents
            networks.generator.log_scale = nn.Parameter(torch.tensor(-2.0))
        elif data.points:
            raise ArgumentError("likelihood", "gaussian for points", self.likelihood)
        return networks

    def loss(self, networks, draw, ops):
        x = draw.real()
        z, divergence = self.inferred(networks, x, draw.normal(self.latent))
        error = self.error(networks.generator, x, z).flatten(1).sum(1).mean()
        return error + divergence, {"error": error, "KL": divergence}

    def error(self, generator, x, z):
        """−log p(x|z), pixel by pixel."""
        if self.likelihood == "gaussian":
            scale = generator.log_scale
            return ((x - generator(z)) / scale.exp()).square() / 2 + scale + math.log(2 * math.pi) / 2
        for layer in list(generator)[:-1]:
            z = layer(z)
        # (tanh(a) + 1)/2 = σ(2a)
        return F.binary_cross_entropy_with_logits(2 * z, (x + 1) / 2, reduction="none")

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {"generator": Player(("generator", "encoder"), self.loss, adam, ema=self.ema)}

    def schedule(self, step):
        return ["generator"]
