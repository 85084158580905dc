import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F

from ganzoo.errors import ArgumentError
from ganzoo.networks import singan
from ganzoo.objectives import wasserstein_critic, wasserstein_generator
from ganzoo.options import Betas, Count, Decay, NotNegative, Positive
from ganzoo.variants.base import Networks, Player, Variant, register


@register("singan")
@dataclass
class SinGAN(Variant):
    """SinGAN: images like a single one, from a pyramid of GANs of patches, each trained when those below are done.

    x̃₀ = G₀(z₀), x̃ₙ = u + Gₙ(σₙ zₙ + u), u = x̃ₙ₋₁ enlarged; scale n trains against xₙ, the image at its size:
    L_C = E C(x̃ₙ) − E C(xₙ) + λ E (√P ‖∇C(x̂)‖ − 1)², L_G = −E C(x̃ₙ) + α (x̃*ₙ − xₙ)², C a mean over P patches, the square over pixels.

    x̃* is what noise that never changes makes: z* at the coarsest scale, which has no image below to start from, and none at the others.
    σₙ = 0.1 RMSE(u*, xₙ), as much noise as there is detail to add. A scale's networks start from those of the scale below.

    Source: Shaham, Dekel and Michaeli (2019), arXiv:1905.01164, section 2; steps, learning rate and σ are those of the authors' code.
    """

    usual_data = ("photos", "photo=china", "size=0")
    latent: ClassVar[None] = None  # no option: there is noise for every pixel
    steps: Count = 1200
    batch: Count = 1
    steps_per_scale: Count = 200
    """Steps that each scale has, 2000 in the paper; the last one has what is left."""
    scales: Count = 6
    """Scales, each the larger by one over the factor."""
    factor: Decay = 0.75
    """Size of a scale by that of the next."""
    size: Count = 96
    """Pixels of the longer side at the last scale, at most the image's own."""
    rounds: Count = 3
    """Updates of the critic, and then of the generator, in each step."""
    gp_weight: NotNegative = 0.1
    """λ, the weight of the gradient penalty."""
    reconstruction_weight: NotNegative = 10.0
    """α, the weight of rebuilding the image."""
    lr: Positive = 5e-4
    """Adam's learning rate, a tenth of it in the last fifth of each scale."""
    betas: Betas = (0.5, 0.999)
    """Adam's decay rates."""

    @property
    def samplers(self):
        return (*(f"g{scale}" for scale in range(self.phase + 1)), "amplitudes")

    def phase_at(self, step):
        return min(step // self.steps_per_scale, self.scales - 1)

    def networks(self, data, ops):
        self.shapes = [self.shape_at(scale, data.shape) for scale in range(self.scales)]
        channels, widths = data.shape[0], [self.width * 2 ** (scale // 4) for scale in range(self.phase + 1)]
        return Networks(
            **{f"g{scale}": singan.Generator(channels, width) for scale, width in enumerate(widths)},
            critic=singan.Critic(channels, widths[-1]),
            amplitudes=torch.ones(self.scales),
            fixed=torch.randn(1, *self.shapes[0]),
        )

    def shape_at(self, scale, shape):
        longest = max(shape[1:], default=0)
        ratio = min(self.size, longest) / max(longest, 1) * self.factor ** (self.scales - 1 - scale)
        sides = [round(side * ratio) for side in shape[1:]]
        if len(shape) != 3 or min(sides) < singan.PATCH:
            wanted = f"an image that has {singan.PATCH} x {singan.PATCH} pixels at the coarsest of {self.scales} scales"
            raise ArgumentError("data", wanted, " x ".join(map(str, sides or shape)))
        return (shape[0], *sides)

    def latents(self, count, generator):
        size = sum(torch.Size(shape).numel() for shape in self.shapes[: self.phase + 1])
        return torch.randn(count, size, device=generator.device, generator=generator)

    def noises(self, latents):
        """Latents as the noise (N, C, H, W) of each scale."""
        shapes = self.shapes[: self.phase + 1]
        parts = latents.split([torch.Size(shape).numel() for shape in shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes)]

    def enlarged(self, image, scale):
        return F.interpolate(image, size=self.shapes[scale][1:], mode="bicubic")

    def generated(self, networks, noises, scale):
        """What the scales up to this one make of a noise for each; those that are not given are 0."""
        image = networks.g0(noises[0])
        for n in range(1, scale + 1):
            below = self.enlarged(image, n)
            noise = networks.amplitudes[n] * noises[n] if n < len(noises) else 0
            image = below + getattr(networks, f"g{n}")(below + noise)
        return image

    def real(self, draw):
        return F.interpolate(draw.real(), size=self.shapes[self.phase][1:], mode="bicubic", antialias=True)

    def enter(self, networks, draw, ops):
        if not self.phase:
            image, next_image = draw.real(count=2)
            if not torch.equal(image, next_image):
                raise ArgumentError("data", "a single image, as of photos with photo=china and size=0", "several")
            return
        below = self.enlarged(self.generated(networks, [networks.fixed], self.phase - 1), self.phase)
        networks.amplitudes[self.phase] = 0.1 * (below - self.real(draw)).square().mean().sqrt()
        mine, before = (getattr(networks, f"g{scale}").state_dict() for scale in (self.phase, self.phase - 1))
        if all(mine[name].shape == before[name].shape for name in mine):
            getattr(networks, f"g{self.phase}").load_state_dict(before)

    def steep(self, networks):
        """The sum of the patches' scores over the root of their number, of which the penalty takes the slope: it is 1 where that of every
        patch is. With the mean's slope at 1 the game would outweigh the reconstruction by as much as the image has pixels."""
        patches = math.prod([side - singan.PATCH + 1 for side in self.shapes[self.phase][1:]])
        return lambda x: math.sqrt(patches) * networks.critic(x)

    def critic_loss(self, networks, draw, ops):
        real, fake = self.real(draw), self.generated(networks, self.noises(draw.latents()), self.phase)
        penalty = ops.gradient_penalty(self.steep(networks), real, fake, eps=draw.uniform(), weight=self.gp_weight)
        loss = wasserstein_critic(networks.critic(real), networks.critic(fake))
        return loss + penalty, {"gradient_penalty": penalty}

    def generator_loss(self, networks, draw, ops):
        fake = self.generated(networks, self.noises(draw.latents()), self.phase)
        rebuilt = self.generated(networks, [networks.fixed], self.phase)
        error = (rebuilt - self.real(draw)).square().mean()
        return wasserstein_generator(networks.critic(fake)) + self.reconstruction_weight * error, {"rebuilt": error}

    def falling(self, step):
        return 1.0 if step - self.phase * self.steps_per_scale < 0.8 * self.steps_per_scale else 0.1

    def players(self, ops):
        adam = partial(ops.Adam, lr=self.lr, betas=self.betas)
        return {
            "critic": Player(("critic",), self.critic_loss, adam, lr=self.falling),
            "generator": Player((f"g{self.phase}",), self.generator_loss, adam, ema=self.ema, lr=self.falling),
        }

    def schedule(self, step):
        return ["critic"] * self.rounds + ["generator"] * self.rounds

    def sample(self, networks, latents, labels=None):
        return self.generated(networks, self.noises(latents), self.phase).clamp(-1, 1)
