from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ganzoo.networks.mixture import Mixture, numbered, with_outputs
from ganzoo.options import Count
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, register


@register("mad-gan")
@dataclass
class MADGAN(Alternating):
    """MAD-GAN: several generators, and a discriminator that says which of them drew an image, if it is not real.

    k uniform in 1 … K, D a softmax over K + 1 classes, the last one that of real images:
    L_D = −E log D_{K+1}(x) − E log D_k(G_k(z)), L_G = −E log D_{K+1}(G_k(z)).

    The generators share all but their last layer. None is told to differ from the others: the discriminator, in looking for what tells them
    apart, pushes each towards modes of its own. The paper's generators minimise log(1 − D_{K+1}).

    Source: Ghosh, Kulharia, Namboodiri, Torr and Dokania (2018), arXiv:1704.02906, section 3.
    """

    generators: Count = 8
    """K, the number of generators."""

    def networks(self, data, ops):
        generators = [super(MADGAN, self).networks(data, ops).generator for _ in range(self.generators)]
        discriminator, depth = super().networks(data, ops).discriminator, len(generators[0])
        return Networks(
            generator=Mixture(generators, own=range(depth - 2, depth)),  # of which one has no weights
            discriminator=with_outputs(discriminator, self.generators + 1),
        )

    def latents(self, count, generator):
        return numbered(super().latents(count, generator), self.generators, generator)

    def real_class(self, outputs):
        return torch.full_like(outputs[:, 0], self.generators, dtype=torch.int64)

    def discriminator_loss(self, networks, draw, ops):
        latents = draw.latents()
        real, fake = networks.discriminator(draw.real()), networks.discriminator(networks.generator(latents))
        told = F.cross_entropy(fake, latents[:, -1].long())
        return F.cross_entropy(real, self.real_class(real)) + told, {"generators": told}

    def generator_loss(self, networks, draw, ops):
        fake = networks.discriminator(networks.generator(draw.latents()))
        return F.cross_entropy(fake, self.real_class(fake)), {}

    def scores(self, networks, images, labels=None):
        outputs = networks.discriminator(images)
        return outputs[:, -1] - outputs[:, :-1].logsumexp(1)
