from dataclasses import dataclass
from functools import partial

import torch

from ganzoo.errors import ArgumentError
from ganzoo.networks import recurrent
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import Count, NotNegative, Positive
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register


@register("rnn-gan")
@dataclass
class RNNGAN(Alternating):
    """RNN GAN: sequences from an LSTM that is given noise at every step, judged at every step by another (RGAN).

    L_D = −E log D(x)ₜ − E log(1 − D(G(z))ₜ), L_G = −E log D(G(z))ₜ, D(x)ₜ = σ(ℓₜ(x₁, …, xₜ)), E also over the steps t, zₜ ~ N(0, I) of each
    its own. With λ, L_D has λ E (‖∇f(x̂)‖ − 1)² added, f the mean of ℓₜ over the steps and x̂ = εx + (1 − ε)G(z), one ε ~ U(0, 1) per
    sequence. The gradient is that of the whole sequence, back through time, so the cell has to be differentiable twice; cuDNN's is not.

    Source: Esteban, Hyland and Rätsch (2017), arXiv:1706.02633, RGAN; the penalty beside this loss: Fedus et al. (2018), arXiv:1710.08446.
    The learning rate is for 1,500 steps of sines.
    """

    usual_data = ("sines",)
    steps: Count = 1500
    latent: Count = 5
    """Dimensions of the noise of each step."""
    width: Count = 64
    """Units of each LSTM."""
    lr: Positive = 1e-3
    """Adam's learning rate."""
    penalty_weight: NotNegative = 0.0
    """λ, the weight of the gradient penalty; 0, as published, for none."""

    def networks(self, data, ops):
        if len(data.shape) != 2:
            raise ArgumentError("data", "sequences (T, C), such as sines", " x ".join(map(str, data.shape)))
        self.length = data.shape[0]
        return Networks(
            generator=recurrent.Generator(self.latent, data.shape, self.width),
            discriminator=recurrent.Discriminator(data.shape, self.width),
        )

    def latents(self, count, generator):
        return torch.randn(count, self.length, self.latent, device=generator.device, generator=generator)

    def scores(self, networks, images, labels=None):
        return networks.discriminator(images).mean(1)

    def discriminator_loss(self, networks, draw, ops):
        x, generated = draw.real(), networks.generator(draw.latents())
        real, fake = networks.discriminator(x), networks.discriminator(generated)
        loss = minimax_discriminator(real, fake)
        figures = {"D(x)": real.sigmoid().mean(), "D(G(z))": fake.sigmoid().mean()}
        if not self.penalty_weight:
            return loss, figures
        critic, eps = partial(self.scores, networks), draw.uniform()
        penalty = ops.gradient_penalty(critic, x, generated, eps=eps, weight=self.penalty_weight)
        return loss + penalty, {**figures, "gradient_penalty": penalty}

    def generator_loss(self, networks, draw, ops):
        return non_saturating_generator(networks.discriminator(networks.generator(draw.latents()))), {}
