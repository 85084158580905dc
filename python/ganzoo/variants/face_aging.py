from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ganzoo.networks import conditional, dcgan, toy
from ganzoo.networks.conditional import Conditioned, Labels
from ganzoo.objectives import least_squares_discriminator, least_squares_generator
from ganzoo.options import NotNegative, Positive
from ganzoo.variants.alternating import Alternating
from ganzoo.variants.base import Networks, Player, register
from ganzoo.variants.translating import KEPT, FromImages


@register("face-aging")
@dataclass
class FaceAging(Alternating, FromImages):
    """Face ageing: the same face in another age group, held to its identity by features that are to stay as they are.

    L_D = ½ E (D(x, y) − 1)² + ½ E D(G(x, t), t)², L_C = −E log P(y|x),
    L_G = ½ E (D(G(x, t), t) − 1)² + λ₁ E ‖h(x) − h(G(x, t))‖²/n − λ₂ E log P(t|G(x, t)),
    y the age group of the face x, t another one, h the n features of identity.

    In the paper C, a classifier of ages, and h, a layer of AlexNet, were trained before. Here C learns on the real faces within the game,
    and h has random weights that stay: they tell how an image looks rather than whose face it is, and a subclass can put a network
    of faces in their place (`identity`). UTKFace's files are opened by `--data-options labels=ages size=64`; any labelled
    images will do. Pictures have a row for each face.

    Source: Wang, Tang, Luo and Gao (2018), Face Aging with Identity-Preserved Conditional Generative Adversarial Networks, CVPR.
    """

    conditional = True
    latent: ClassVar[None] = None  # no option
    identity_weight: NotNegative = 30.0
    """λ₁, the weight of what changes in the features of identity."""
    age_weight: NotNegative = 0.1
    """λ₂, the weight of the classifier's cross-entropy."""
    lr: Positive = 1e-3
    """Adam's learning rate."""

    def identity(self, data):
        """A network from images to features that are to be the same for the same person."""
        if data.points:
            return nn.Linear(*data.shape, 16)
        return nn.Sequential(nn.Conv2d(data.shape[0], 32, 5, 1, 2), nn.LeakyReLU(0.2), nn.Conv2d(32, 32, 4, 2, 1))

    def networks(self, data, ops):
        if data.points:
            generator, planes = toy.Generator(2 * data.shape[0], data.shape, self.width), data.shape
            classifier = toy.Discriminator(data.shape, self.width)
        else:
            channels, *size = data.shape
            generator, planes = conditional.Translator(channels + 1, channels, self.width), (1, *size)
            classifier = dcgan.Discriminator(data.shape, self.width)
        *trunk, score, _ = classifier
        return Networks(
            generator=Conditioned(generator, Labels(data.classes, planes)),
            discriminator=conditional.discriminator(data.shape, self.width, data.classes),
            classifier=nn.Sequential(*trunk, nn.Linear(score.in_features, data.classes)),
            identity=self.identity(data),
            sources=torch.zeros(KEPT, *data.shape),
        )

    def enter(self, networks, draw, ops):
        networks.sources.copy_(draw.real(count=KEPT))

    def discriminator_loss(self, networks, draw, ops):
        batch, other = draw.batch(), draw.batch()
        real = networks.discriminator(batch["image"], batch["label"])
        aged = networks.generator(batch["image"], other["label"])
        return least_squares_discriminator(real, networks.discriminator(aged, other["label"])), {}

    def classifier_loss(self, networks, draw, ops):
        batch = draw.batch()
        logits, y = networks.classifier(batch["image"]), batch["label"]
        return F.cross_entropy(logits, y), {"accuracy": (logits.argmax(1) == y).float().mean()}

    def generator_loss(self, networks, draw, ops):
        x, t = draw.real(), draw.batch()["label"]
        aged = networks.generator(x, t)
        fooling = least_squares_generator(networks.discriminator(aged, t))
        identity = (networks.identity(x) - networks.identity(aged)).square().mean()
        age = F.cross_entropy(networks.classifier(aged), t)
        loss = fooling + self.identity_weight * identity + self.age_weight * age
        return loss, {"identity": identity, "age": age}

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {**super().players(ops), "classifier": Player(("classifier",), self.classifier_loss, adam)}

    def schedule(self, step):
        return ["discriminator", "classifier", "generator"]

    def sample(self, networks, latents, labels=None):
        return networks.generator(self.chosen(networks, latents), labels)

    def show(self, networks, latents, labels=None):
        classes = networks.generator.embedding[0].num_embeddings
        rows = latents[::classes].repeat_interleave(classes, 0)[: len(latents)]
        return self.sample(networks, rows, labels)
