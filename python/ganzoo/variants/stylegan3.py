from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from ganzoo.networks import stylegan2, stylegan3
from ganzoo.options import Count, CountOrZero, Decay, Range, Share
from ganzoo.variants.base import Networks, Player, register
from ganzoo.variants.styled import LazyR1


@register("stylegan3")
@dataclass
class StyleGAN3(LazyR1):
    """StyleGAN3: a generator of continuous signals without aliases, whose images move with what they start from.

    L_D = E softplus(−ℓ(x)) + E softplus(ℓ(G(z))) + γ/2 E ‖∇ℓ(x)‖², L_G = E softplus(−ℓ(G(z))).

    Configuration t is equivariant to translation, r to rotation too. No noise, no mixing, no path length; the discriminator is StyleGAN2's, R1
    is taken at every 16th update. The paper blurs what r's discriminator sees at first, which is left out.

    Source: Karras et al. (2021), arXiv:2106.12423, sections 3 and 4.
    """

    width: Count = 8
    ema: Decay = 0.99
    mixing: Share = 0.0
    """Share of the images with two styles in training."""
    configuration: Literal["t", "r"] = "t"
    """t: 3×3 convolutions; r: 1×1 convolutions and filters of the same form in all directions."""
    convolutions: Annotated[int, Range(lambda value: value >= 3, "at least 3")] = 4
    """Modulated convolutions before the one to the image, which the paper has 14 of."""
    margin: CountOrZero = 6
    """Pixels that maps have beyond the image's edges, which the paper has 10 of: more is slower, and equivariant to more decibels."""

    def networks(self, data, ops):
        radial, options = self.configuration == "r", (self.depth, self.convolutions, self.margin)
        return Networks(
            generator=stylegan3.Generator(self.latent, data.shape, self.width, *options, radial, ops),
            discriminator=stylegan2.Discriminator(data.shape, self.width, ops),
            w_mean=torch.zeros(self.latent),
        )

    def generated(self, networks, draw):
        w = self.styles(networks, draw)
        images, squares = networks.generator.with_squares(w)
        return images, {"w": self.mean_style(networks, w), "squares": squares}

    def follow(self, networks, figures):
        super().follow(networks, figures)
        networks.generator.follow(figures.pop("squares"))

    def generator_player(self, ops):
        return Player(("generator",), self.generator_loss, self.adam(ops), ema=self.ema, after=self.follow)

    def moved(self, networks, latents, shift, turn):
        w = networks.w_mean.lerp(networks.generator.mapping(latents), self.truncation)
        return networks.generator.synthesis(w, shift, turn)
