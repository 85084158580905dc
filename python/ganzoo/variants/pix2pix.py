from dataclasses import dataclass
from typing import ClassVar

import torch

from ganzoo.networks import patch, unet
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import Count, Decay, NotNegative
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register
from ganzoo.variants.translating import KEPT, Translating


@register("pix2pix")
@dataclass
class Pix2pix(Alternating, Translating):
    """pix2pix: images of B from images of A, learnt from pairs; a U-Net against a judge of patches of (A, B).

    L_D = ½ [−E log D(a, b) − E log(1 − D(a, G(a)))], L_G = −E log D(a, G(a)) + λ E |b − G(a)|, both means over patches, over pixels.

    G draws no latents: its noise is dropout, in training and in sampling. D sees a beside b as further channels; a judge of b alone would
    let G forget what it was given.

    Source: Isola, Zhu, Zhou and Efros (2017), arXiv:1611.07004, section 3 and appendix 6.
    """

    adversary = ""  # what it judges are pairs
    usual_data = ("glyphs",)
    form = "paired"
    latent: ClassVar[None] = None  # no option
    steps: Count = 2000
    batch: Count = 16
    ema: Decay = 0.0
    l1_weight: NotNegative = 100.0
    """λ, the weight of the distance to b, a mean over pixels."""

    def networks(self, data, ops):
        a, b = data.fields["a"], data.fields["b"]
        return Networks(
            generator=unet.Generator(a, b[0], self.width),
            discriminator=patch.Discriminator((a[0] + b[0], *b[1:]), self.width),
            sources=torch.zeros(KEPT, *a),
        )

    def enter(self, networks, draw, ops):
        networks.sources.copy_(self.pair(draw.batch(count=KEPT))[0])

    def pair(self, sample):
        return sample["a"], sample["b"]

    def discriminator_loss(self, networks, draw, ops):
        a, b = self.pair(draw.batch())
        real = networks.discriminator(torch.cat([a, b], 1))
        fake = networks.discriminator(torch.cat([a, networks.generator(a)], 1))
        return minimax_discriminator(real, fake) / 2, {
            "D(a, b)": real.sigmoid().mean(),
            "D(a, G(a))": fake.sigmoid().mean(),
        }

    def generator_loss(self, networks, draw, ops):
        a, b = self.pair(draw.batch())
        fake = networks.generator(a)
        distance = (b - fake).abs().mean()
        fooling = non_saturating_generator(networks.discriminator(torch.cat([a, fake], 1)))
        return fooling + self.l1_weight * distance, {"distance": distance}

    def translate(self, networks, images):
        return networks.generator(images)
