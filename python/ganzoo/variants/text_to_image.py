from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ganzoo.errors import ArgumentError
from ganzoo.networks import dcgan, toy
from ganzoo.networks.conditional import Conditioned, Matching, TextEncoder
from ganzoo.objectives import non_saturating_generator
from ganzoo.options import Count
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register


MOST_ROUNDS = 200
"""Draws of 50 images for each class in which every class is to be met."""


@register("text-to-image")
@dataclass
class TextToImage(Alternating):
    """GAN-CLS: images of captions, by a discriminator for which a real image with another's caption is a fake too.

    L_D = −E log D(x, t) − ½ E log(1 − D(x, t̂)) − ½ E log(1 − D(G(z, t), t)), L_G = −E log D(G(z, t), t),
    t the caption of the image x, t̂ that of an image of another class. Of the pairs (x, t̂) that are drawn, those of one class count for
    nothing, so that the others' sum is divided by what share of all pairs they are: else the middle term would be lighter than the last.

    The paper's text encoder is trained before, and both networks share it. Here each learns a small one of its own within the game; a
    subclass may put another in its place (`text_encoder`). Classes are drawn by a caption that the data have of each, and
    `sample(n, labels=[...])` takes n captions as well.

    Source: Reed et al. (2016), arXiv:1605.05396, algorithm 1 and section 4.
    """

    conditional = True
    samplers = ("generator", "captions")
    usual_data = ("captioned-digits",)
    code: Count = 32
    """Dimensions of what the encoders make of a caption."""

    def text_encoder(self, data):
        """A network from captions (N, T), whole numbers, to codes (N, code)."""
        return TextEncoder(len(data.vocabulary), self.code)

    def networks(self, data, ops):
        if "caption" not in data.fields:
            fields = f"samples of {data.name} with {', '.join(data.fields)}"
            raise ArgumentError("data", "captioned, as captioned-digits are", fields)
        family = toy if data.points else dcgan
        generator = family.Generator(self.latent + self.code, data.shape, self.width)
        discriminator = family.Discriminator(data.shape, self.width)
        return Networks(
            generator=Conditioned(generator, self.text_encoder(data)),
            discriminator=Matching(discriminator, self.text_encoder(data), self.code),
            captions=torch.zeros(data.classes, *data.fields["caption"], dtype=torch.int64),
            mismatched=torch.ones(()),
        )

    def enter(self, networks, draw, ops):
        counts = torch.zeros_like(networks.captions[:, 0])
        for _ in range(MOST_ROUNDS):
            batch = draw.batch(count=50 * len(counts))
            networks.captions[batch["label"]] = batch["caption"]
            counts += batch["label"].bincount(minlength=len(counts))
            if counts.all():
                break
        drawn, found = counts.sum(), counts.count_nonzero()
        if found < max(len(counts), 2):
            raise ArgumentError(
                "data", f"captioned in each of {max(len(counts), 2)} classes", f"{drawn} images of {found} classes"
            )
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

    def captions(self, networks, labels):
        """Captions as they are, labels as the caption of each class."""
        return labels if labels.dim() == 2 else networks.captions[labels]

    def sample(self, networks, latents, labels=None):
        return networks.generator(latents, self.captions(networks, labels))

    def scores(self, networks, images, labels=None):
        return networks.discriminator(images, self.captions(networks, labels))
