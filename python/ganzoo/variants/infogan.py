import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ganzoo.networks import dcgan, toy
from ganzoo.networks.conditional import Headed
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import Count, CountOrZero, NotNegative, Positive
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register


@register("infogan")
@dataclass
class InfoGAN(Alternating):
    """InfoGAN: a part of the latents are codes that can be read off the images, so that without a label they come to mean something.

    L_D = −E log D(x) − E log(1 − D(G(z, c))) − λ·L_I, L_G = −E log D(G(z, c)) − λ·L_I,
    L_I = H(c) + E log Q(c|G(z, c)) ≤ I(c; G(z, c)).

    c is one of K categories, of which Q returns raw logits, and numbers ~ U(−1, 1), for which Q is a Gaussian of fixed σ. Q is a dense layer
    on D's features and learns when D does. Pictures have a column for each category.

    Source: Chen et al. (2016), arXiv:1606.03657, sections 5 and 6.
    """

    categories: Count = 10
    """K, the values of the categorical code."""
    numbers: CountOrZero = 2
    """How many continuous codes there are."""
    information_weight: NotNegative = 1.0
    """λ, the weight of the bound on the mutual information."""
    sigma: Positive = 1.0
    """σ, what Q takes a continuous code to deviate by."""

    def networks(self, data, ops):
        family, codes = toy if data.points else dcgan, self.categories + self.numbers
        return Networks(
            generator=family.Generator(self.latent + codes, data.shape, self.width),
            discriminator=Headed(family.Discriminator(data.shape, self.width), codes),
        )

    def latents(self, count, generator):
        category = torch.randint(self.categories, (count,), device=generator.device, generator=generator)
        numbers = torch.rand(count, self.numbers, device=generator.device, generator=generator) * 2 - 1
        noise = super().latents(count, generator)
        return torch.cat([F.one_hot(category, self.categories).to(noise.dtype), numbers.to(noise.dtype), noise], 1)

    def information(self, latents, told):
        """L_I by what Q has `told` of images of these latents, and its part that is the category's."""
        category, numbers, _ = latents.split([self.categories, self.numbers, self.latent], 1)
        logits, means = told.split([self.categories, self.numbers], 1)
        of_category = math.log(self.categories) - F.cross_entropy(logits, category)
        surprise = ((numbers - means) / self.sigma).square() / 2 + math.log(self.sigma * math.sqrt(2 * math.pi))
        return of_category + (math.log(2) - surprise).sum(1).mean(), of_category

    def discriminator_loss(self, networks, draw, ops):
        z = draw.latents()
        real, _ = networks.discriminator(draw.real())
        fake, told = networks.discriminator(networks.generator(z))
        information, _ = self.information(z, told)
        return minimax_discriminator(real, fake) - self.information_weight * information, {}

    def generator_loss(self, networks, draw, ops):
        z = draw.latents()
        fake, told = networks.discriminator(networks.generator(z))
        information, of_category = self.information(z, told)
        figures = {"information": information, "information_of_category": of_category}
        return non_saturating_generator(fake) - self.information_weight * information, figures

    def scores(self, networks, images, labels=None):
        return networks.discriminator(images)[0]

    def show(self, networks, latents, labels=None):
        category = torch.arange(len(latents), device=latents.device) % self.categories
        codes = F.one_hot(category, self.categories).to(latents.dtype)
        return self.sample(networks, torch.cat([codes, latents[:, self.categories :]], 1))

    def columns(self, data):
        return self.categories
