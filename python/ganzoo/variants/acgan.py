from dataclasses import dataclass

import torch.nn.functional as F

from ganzoo.networks import dcgan, toy
from ganzoo.networks.batches import as_one_batch
from ganzoo.networks.conditional import Headed
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import NotNegative
from ganzoo.variants.base import Networks, register
from ganzoo.variants.cgan import Conditional


@register("acgan")
@dataclass
class ACGAN(Conditional):
    """AC-GAN: the discriminator is not told the class but tells it, of real images and of generated ones.

    L_D = L_S + w·L_C, L_G = −E log D(G(z, y)) − w·E log P(y|G(z, y)),
    L_S = −E log D(x) − E log(1 − D(G(z, y))), L_C = −E log P(y|x) − E log P(y|G(z, y)).

    D returns raw logits, and the cross-entropy has the one softmax there is. Real and generated images go through D as one batch: with
    batch norms of their own, the same class would have different features in the two.

    Source: Odena, Olah and Shlens (2017), arXiv:1610.09585, section 3.
    """

    class_weight: NotNegative = 1.0
    """w, the weight of the classes' cross-entropies."""

    def networks(self, data, ops):
        family = toy if data.points else dcgan
        return Networks(
            generator=self.generator(data),
            discriminator=Headed(family.Discriminator(data.shape, self.width), data.classes),
        )

    def judged(self, networks, draw):
        """Labels, and scores and class logits of real and of generated images."""
        batch = draw.batch()
        x, y = batch["image"], batch["label"]
        scores, logits = as_one_batch(networks.discriminator, x, networks.generator(draw.latents(), y))
        return y, *scores.chunk(2), *logits.chunk(2)

    def discriminator_loss(self, networks, draw, ops):
        y, real, fake, real_logits, fake_logits = self.judged(networks, draw)
        classes = F.cross_entropy(real_logits, y) + F.cross_entropy(fake_logits, y)
        accuracy = (real_logits.argmax(1) == y).float().mean()
        return minimax_discriminator(real, fake) + self.class_weight * classes, {
            "classes": classes,
            "accuracy": accuracy,
        }

    def generator_loss(self, networks, draw, ops):
        y, _, fake, _, logits = self.judged(networks, draw)
        classes = F.cross_entropy(logits, y)
        return non_saturating_generator(fake) + self.class_weight * classes, {"generated_classes": classes}

    def scores(self, networks, images, labels=None):
        return networks.discriminator(images)[0]
