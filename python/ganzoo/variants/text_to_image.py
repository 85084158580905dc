from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ganzoo.networks import dcgan, toy
from ganzoo.networks.conditional import Conditioned, Matching
from ganzoo.objectives import non_saturating_generator
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register
from ganzoo.variants.captioned import Captioned


@register("text-to-image")
@dataclass
class TextToImage(Alternating, Captioned):
    """GAN-CLS: images of captions, by a discriminator for which a real image with another's caption is a fake too.

    L_D = −E log D(x, t) − ½ E log(1 − D(x, t̂)) − ½ E log(1 − D(G(z, t), t)), L_G = −E log D(G(z, t), t),
    t the caption of the image x, t̂ that of an image of another class. Of the pairs (x, t̂) that are drawn, those of one class count for
    nothing, so that the others' sum is divided by what share of all pairs they are: else the middle term would be lighter than the last.

    The paper's text encoder is trained before, and both networks share it. Here each learns a small one of its own within the game; a
    subclass may put another in its place (`text_encoder`).

    Source: Reed et al. (2016), arXiv:1605.05396, algorithm 1 and section 4.
    """

    samplers = ("generator", "captions")

    def networks(self, data, ops):
        captions = self.no_captions(data)
        family = toy if data.points else dcgan
        generator = family.Generator(self.latent + self.code, data.shape, self.width)
        discriminator = family.Discriminator(data.shape, self.width)
        return Networks(
            generator=Conditioned(generator, self.text_encoder(data)),
            discriminator=Matching(discriminator, self.text_encoder(data), self.code),
            captions=captions,
            mismatched=torch.ones(()),
        )

    def enter(self, networks, draw, ops):
        counts = super().enter(networks, draw, ops)
        drawn = counts.sum()
        networks.mismatched.copy_((counts * (drawn - counts)).sum() / (drawn * (drawn - 1)))

    def discriminator_loss(self, networks, draw, ops):
        batch, other = draw.batch(), draw.batch()
        x, text = batch["image"], batch["caption"]
        real = networks.discriminator(x, text)
        wrong = networks.discriminator(x, other["caption"])
        fake = networks.discriminator(networks.generator(draw.latents(), text), text)
        mismatched = (batch["label"] != other["label"]) / networks.mismatched
        loss = F.softplus(-real).mean() + (F.softplus(wrong) * mismatched).mean() / 2 + F.softplus(fake).mean() / 2
        return loss, {
            "D(x,t)": real.sigmoid().mean(),
            "D(x,t̂)": wrong.sigmoid().mean(),
            "D(G(z,t),t)": fake.sigmoid().mean(),
        }

    def generator_loss(self, networks, draw, ops):
        text = draw.batch()["caption"]
        fake = networks.generator(draw.latents(), text)
        return non_saturating_generator(networks.discriminator(fake, text)), {}
