from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from ganzoo.errors import ArgumentError
from ganzoo.networks import dcgan, doublings, lapgan
from ganzoo.objectives import minimax_discriminator, non_saturating_generator
from ganzoo.options import Betas, Count, Positive
from ganzoo.variants.base import Networks, Player, Variant, register


@register("lapgan")
@dataclass
class LAPGAN(Variant):
    """LAPGAN: a Laplacian pyramid, a GAN for the smallest images and one for what each doubling lacks.

    x₀ is the smallest, lᵢ = u(xᵢ₋₁) the level below enlarged; G₀(z), and at each level above it lᵢ + Gᵢ(lᵢ, z), against the real xᵢ:
    L_Dᵢ = −E log Dᵢ(xᵢ) − E log(1 − Dᵢ(lᵢ + Gᵢ(lᵢ, z))), L_Gᵢ = −E log Dᵢ(lᵢ + Gᵢ(lᵢ, z)).

    The levels are trained apart: lᵢ is of real images, and that of generated ones only when sampling. They share nothing but the data, and
    train side by side. z ~ U(−1, 1), a plane of noise beside lᵢ. D sees the residual added to lᵢ, where a residual alone would do anywhere.

    Source: Denton, Chintala, Szlam and Fergus (2015), arXiv:1506.05751, sections 3 and 4. The paper's smallest networks are
    perceptrons, here DCGAN's; its optimiser is SGD with momentum.
    """

    usual_data = ("photos", "size=32")
    doublings: Count = 2
    """Doublings from the smallest images to the data's."""
    lr: Positive = 2e-4
    """Adam's learning rate."""
    betas: Betas = (0.5, 0.999)
    """Adam's decay rates."""

    @property
    def samplers(self):
        return tuple(f"g{level}" for level in range(self.doublings + 1))

    def networks(self, data, ops):
        most = doublings(data.shape) - 1
        if self.doublings > most:
            size = " x ".join(map(str, data.shape[1:]))
            raise ArgumentError("doublings", f"at most {most} for images of {size} pixels", self.doublings)
        channels, height, width = data.shape
        self.shapes = [(channels, height >> n, width >> n) for n in reversed(range(self.doublings + 1))]
        networks = Networks(
            g0=dcgan.Generator(self.latent, self.shapes[0], 2 * self.width),
            d0=dcgan.Discriminator(self.shapes[0], 2 * self.width),
        )
        for level, shape in enumerate(self.shapes[1:], start=1):
            networks.add_module(f"g{level}", lapgan.detail_generator(channels, self.width))
            networks.add_module(f"d{level}", lapgan.detail_discriminator(shape, self.width))
        return networks

    def latents(self, count, generator):
        size = self.latent + sum(height * width for _, height, width in self.shapes[1:])
        return 2 * torch.rand(count, size, device=generator.device, generator=generator) - 1

    def noises(self, latents):
        """Latents as what each level takes of them: (N, latent), and planes (N, 1, H, W)."""
        z, *planes = latents.split([self.latent, *(height * width for _, height, width in self.shapes[1:])], 1)
        return [z, *(plane.unflatten(1, (1, *shape[1:])) for plane, shape in zip(planes, self.shapes[1:]))]

    def pyramid(self, x):
        """x at every level, the smallest first."""
        return [F.avg_pool2d(x, 2**n) for n in reversed(range(1, self.doublings + 1))] + [x]

    def generated(self, networks, level, below, noise):
        """What a level makes of images of the level below it; the lowest, of noise alone."""
        generator = getattr(networks, f"g{level}")
        if level == 0:
            return generator(noise)
        coarse = F.interpolate(below, scale_factor=2, mode="bilinear")
        return coarse + generator(torch.cat([coarse, noise], 1))

    def drawn(self, level, networks, draw):
        """Real and generated images of a level, the latter of the same images a level below."""
        real, noise = self.pyramid(draw.real()), self.noises(draw.latents())[level]
        return real[level], self.generated(networks, level, real[level - 1], noise)

    def discriminator_loss(self, level, networks, draw, ops):
        discriminator = getattr(networks, f"d{level}")
        return minimax_discriminator(*map(discriminator, self.drawn(level, networks, draw))), {}

    def generator_loss(self, level, networks, draw, ops):
        fake = self.drawn(level, networks, draw)[1]
        return non_saturating_generator(getattr(networks, f"d{level}")(fake)), {}

    def players(self, ops):
        adam, players = partial(ops.Adam, lr=self.lr, betas=self.betas), {}
        for n in range(self.doublings + 1):
            players[f"d{n}"] = Player((f"d{n}",), partial(self.discriminator_loss, n), adam)
            players[f"g{n}"] = Player((f"g{n}",), partial(self.generator_loss, n), adam, ema=self.ema)
        return players

    def schedule(self, step):
        return [f"{side}{level}" for level in range(self.doublings + 1) for side in "dg"]

    def sample(self, networks, latents, labels=None):
        image = None
        for level, noise in enumerate(self.noises(latents)):
            image = self.generated(networks, level, image, noise)
        return image.clamp(-1, 1)
