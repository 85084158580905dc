from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F

from ganzoo.errors import ArgumentError
from ganzoo.metrics.psnr import psnr
from ganzoo.networks import srgan
from ganzoo.networks.exported import Exported
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import Betas, Count, CountOrZero, NotNegative, Positive
from ganzoo.variants.base import Networks, Player, register
from ganzoo.variants.translating import KEPT, Translating


@register("srgan")
@dataclass
class SRGAN(Translating):
    """SRGAN: images of a multiple of the size, with detail that a discriminator takes for real.

    L_D = −E log D(x) − E log(1 − D(G(x↓))), L_G = E (φ(x) − φ(G(x↓)))² + 10⁻³ E −log D(G(x↓)), the square a mean over what φ returns.

    x↓ is x at a quarter of its sides, made by bicubic filtering. φ is the identity, which gives the higher PSNR, or a network whose features
    are compared, in the paper a layer of VGG19, whose images look the sharper. G first trains some steps on the first term alone, without
    which D leads it astray. The learning rate falls to a tenth half way through the rest.

    Source: Ledig et al. (2017), arXiv:1609.04802, sections 2 and 3.2.
    """

    usual_data = ("photos", "size=32")
    adversary = "discriminator"
    features: ClassVar[Callable | None] = None
    """φ, from Python: maps images (N, C, H, W) in [−1, 1] to a tensor."""

    batch: Count = 16
    doublings: Count = 2
    """Doublings of the image's sides: 2 are four times."""
    blocks: Count = 4
    """Residual blocks of the generator, 16 in the paper."""
    pretraining: CountOrZero = 1000
    """The first steps, which train the generator on the content alone."""
    content: str = ""
    """File of φ, a network saved by torch.export.save for batches of any size. Without it pixels are compared."""
    adversarial_weight: NotNegative = 1e-3
    """Weight of the adversarial term."""
    lr: Positive = 5e-4
    """Adam's learning rate. The paper's is 1e-4, for a hundred times as many steps."""
    betas: Betas = (0.9, 0.999)
    """Adam's decay rates."""

    def networks(self, data, ops):
        factor = 2**self.doublings
        if data.points or any(side % factor for side in data.shape[1:]):
            size = " x ".join(map(str, data.shape))
            raise ArgumentError("data", f"images whose sides are multiples of {factor}, as doublings has it", size)
        channels, height, width = data.shape
        return Networks(
            generator=srgan.Generator(channels, self.width, self.blocks, self.doublings),
            discriminator=srgan.Discriminator(data.shape, self.width),
            sources=torch.zeros(KEPT, channels, height // factor, width // factor),
        )

    def enter(self, networks, draw, ops):
        networks.sources.copy_(self.low(draw.real(count=KEPT)))
        if self.content:
            self.features = Exported("content", self.content).to(networks.sources.device)

    def low(self, x):
        return F.interpolate(x, scale_factor=2**-self.doublings, mode="bicubic", antialias=True)

    def pair(self, sample):
        return self.low(sample["image"]), sample["image"]

    def content_loss(self, networks, draw, ops):
        return self.compared(*self.pair(draw.batch()), networks.generator)[1:]

    def compared(self, low, x, generator):
        """G(x↓), its content loss, and how much closer it is than bicubic interpolation."""
        fake, phi = generator(low), self.features or torch.nn.Identity()
        bicubic = F.interpolate(low, size=x.shape[2:], mode="bicubic")
        figures = {"PSNR": psnr(fake, x), "PSNR of bicubic": psnr(bicubic, x)}
        return fake, (phi(x) - phi(fake)).square().mean(), figures

    def discriminator_loss(self, networks, draw, ops):
        low, x = self.pair(draw.batch())
        real, fake = networks.discriminator(x), networks.discriminator(networks.generator(low))
        return minimax_discriminator(real, fake), {"D(x)": real.sigmoid().mean(), "D(G)": fake.sigmoid().mean()}

    def generator_loss(self, networks, draw, ops):
        fake, content, figures = self.compared(*self.pair(draw.batch()), networks.generator)
        adversarial = non_saturating_generator(networks.discriminator(fake))
        return content + self.adversarial_weight * adversarial, {"content": content, **figures}

    def falling(self, step):
        return 1.0 if step < (self.pretraining + self.steps) / 2 else 0.1

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "content": Player(("generator",), self.content_loss, adam, ema=self.ema),
            "discriminator": Player(("discriminator",), self.discriminator_loss, adam, lr=self.falling),
            "generator": Player(("generator",), self.generator_loss, adam, ema=self.ema, lr=self.falling),
        }

    def schedule(self, step):
        return ["content"] if step < self.pretraining else ["discriminator", "generator"]

    def translate(self, networks, images):
        return networks.generator(images).clamp(-1, 1)
