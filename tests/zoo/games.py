"""The games of docs/training-loop.md, each as small as its place in the loop allows: the package's own, and others written outside of it."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ganzoo.data.base import Tensors
from ganzoo.objectives import minimax_discriminator, minimax_generator, non_saturating_generator
from ganzoo.training import distributed
from ganzoo.variants import Networks, Player, Regularizer, Variant, began, cyclegan, lapgan, singan, unrolled, wgan

RANDOM = torch.Generator().manual_seed(0)
POINTS = Tensors("points", {"image": torch.randn(64, 2, generator=RANDOM, dtype=torch.float64)})
IMAGES = Tensors("images", {"image": torch.rand(32, 1, 8, 8, generator=RANDOM, dtype=torch.float64) * 2 - 1})
ONE_IMAGE = Tensors("image", {"image": torch.rand(1, 1, 16, 16, generator=RANDOM, dtype=torch.float64) * 2 - 1})
DOMAINS = {"a": IMAGES, "b": Tensors("others", {"image": -IMAGES.fetch(torch.arange(24))["image"]})}


def mlp(inputs, outputs, *last):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs), *last)


def to_images():
    return mlp(2, 64, nn.Unflatten(1, (1, 8, 8)))


def score():
    return nn.Sequential(nn.Flatten(), mlp(64, 1, nn.Flatten(0)))


@dataclass
class Game(Variant):
    """GAN on points, which the others change."""

    data = POINTS
    batch: int = 8
    latent: int = 2
    lr: float = 1e-2

    def check(self):
        pass

    def networks(self, data, ops):
        return Networks(generator=mlp(self.latent, 2), discriminator=mlp(2, 1, nn.Flatten(0)))

    def discriminator_loss(self, networks, draw, ops):
        real, fake = networks.discriminator(draw.real()), networks.discriminator(networks.generator(draw.latents()))
        return minimax_discriminator(real, fake), {}

    def generator_loss(self, networks, draw, ops):
        return non_saturating_generator(networks.discriminator(networks.generator(draw.latents()))), {}

    def adam(self, ops):
        return partial(ops.Adam, lr=self.lr)

    def player(self, ops, name, **options):
        return Player((name,), getattr(self, f"{name}_loss"), self.adam(ops), **options)

    def players(self, ops):
        return {name: self.player(ops, name) for name in ("discriminator", "generator")}

    def schedule(self, step):
        return ["discriminator", "generator"]


@dataclass
class WGAN(wgan.WGAN):
    data = POINTS
    batch: int = 8
    latent: int = 2
    width: int = 1
    lr: float = 1e-2
    clip: float = 0.05
    critic_steps: int = 2
    long_critic_steps: int = 4
    long_first: int = 1
    long_every: int = 3


@dataclass
class Unrolled(unrolled.UnrolledGAN):
    data = POINTS
    batch: int = 8
    latent: int = 2
    width: int = 1
    unrolling: int = 3


class Prediction(Game):
    def players(self, ops):
        seeing = self.player(ops, "discriminator", lookahead=("generator",))
        return {"generator": self.player(ops, "generator"), "discriminator": seeing}

    def schedule(self, step):
        return ["generator", "discriminator"]


@dataclass
class BEGAN(began.BEGAN):
    data = POINTS
    batch: int = 8
    latent: int = 2
    width: int = 1
    k_rate: float = 0.1


class PacGAN(Game):
    pack_size = 2

    def networks(self, data, ops):
        return Networks(generator=mlp(2, 2), discriminator=mlp(2 * self.pack_size, 1, nn.Flatten(0)))

    def pack(self, x):
        return x.unflatten(0, (-1, self.pack_size)).flatten(1, 2)

    def faked(self, networks, draw):
        return networks.discriminator(self.pack(networks.generator(draw.latents(self.pack_size * self.batch))))

    def discriminator_loss(self, networks, draw, ops):
        real = networks.discriminator(self.pack(draw.real(count=self.pack_size * self.batch)))
        return minimax_discriminator(real, self.faked(networks, draw)), {}

    def generator_loss(self, networks, draw, ops):
        return non_saturating_generator(self.faked(networks, draw)), {}

    def schedule(self, step):
        return [("discriminator", "generator")]


class BiGAN(Game):
    def networks(self, data, ops):
        return Networks(generator=mlp(2, 2), encoder=mlp(2, 2), discriminator=mlp(4, 1, nn.Flatten(0)))

    def judged(self, networks, draw):
        x, z = draw.real(), draw.latents()
        pairs = torch.cat([x, networks.encoder(x)], 1), torch.cat([networks.generator(z), z], 1)
        return map(networks.discriminator, pairs)

    def discriminator_loss(self, networks, draw, ops):
        return minimax_discriminator(*self.judged(networks, draw)), {}

    def generator_loss(self, networks, draw, ops):
        real, fake = self.judged(networks, draw)
        return F.softplus(real).mean() + F.softplus(-fake).mean(), {}

    def players(self, ops):
        both = Player(("generator", "encoder"), self.generator_loss, self.adam(ops), ema=0.9)
        return {"discriminator": self.player(ops, "discriminator"), "generator": both}


class GMAN(Game):
    judges, strength = 3, 0.5

    def networks(self, data, ops):
        return Networks(generator=mlp(2, 2), **{f"d{i}": mlp(2, 1, nn.Flatten(0)) for i in range(self.judges)})

    def judge_loss(self, i, networks, draw, ops):
        judge = getattr(networks, f"d{i}")
        return minimax_discriminator(judge(draw.real()), judge(networks.generator(draw.latents()))), {}

    def generator_loss(self, networks, draw, ops):
        fake = networks.generator(draw.latents())
        losses = [minimax_generator(getattr(networks, f"d{i}")(fake)) for i in range(self.judges)]
        losses = distributed.mean(torch.stack(losses))
        return (torch.softmax(self.strength * losses, 0) * losses).sum(), {}

    def players(self, ops):
        judges = {f"d{i}": Player((f"d{i}",), partial(self.judge_loss, i), self.adam(ops)) for i in range(self.judges)}
        return {**judges, "generator": self.player(ops, "generator")}

    def schedule(self, step):
        return [*(f"d{i}" for i in range(self.judges)), "generator"]


class Mixture(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.trunk, self.heads = mlp(2, 8), nn.ModuleList(nn.Linear(8, 2) for _ in range(heads))

    def forward(self, latents):
        drawn = torch.stack([head(self.trunk(latents[:, :-1])) for head in self.heads], 1)
        return drawn[torch.arange(len(latents)), latents[:, -1].long()]


class MGAN(Game):
    heads, beta = 3, 0.5

    def networks(self, data, ops):
        classifier = mlp(2, self.heads)
        return Networks(generator=Mixture(self.heads), discriminator=mlp(2, 1, nn.Flatten(0)), classifier=classifier)

    def latents(self, count, generator):
        head = torch.randint(self.heads, (count, 1), device=generator.device, generator=generator)
        return torch.cat([super().latents(count, generator), head], 1)

    def told_apart(self, networks, latents):
        return F.cross_entropy(networks.classifier(networks.generator(latents)), latents[:, -1].long())

    def classifier_loss(self, networks, draw, ops):
        return self.told_apart(networks, draw.latents()), {}

    def generator_loss(self, networks, draw, ops):
        latents = draw.latents()
        fooling = non_saturating_generator(networks.discriminator(networks.generator(latents)))
        return fooling + self.beta * self.told_apart(networks, latents), {}

    def players(self, ops):
        return {name: self.player(ops, name) for name in ("discriminator", "classifier", "generator")}

    def schedule(self, step):
        return [("discriminator", "classifier", "generator")]


class TwoHeaded(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.a, self.b = nn.Linear(2, 8), mlp(8, 64), mlp(8, 64)

    def forward(self, latents):
        return [head(self.shared(latents)).unflatten(1, (1, 8, 8)) for head in (self.a, self.b)]


class TwoTailed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.shared = mlp(64, 8), mlp(64, 8), mlp(8, 1, nn.Flatten(0))

    def forward(self, a, b):
        return torch.cat([self.shared(self.a(a.flatten(1))), self.shared(self.b(b.flatten(1)))])


class CoGAN(Game):
    data = DOMAINS

    def networks(self, data, ops):
        return Networks(generator=TwoHeaded(), discriminator=TwoTailed())

    def discriminator_loss(self, networks, draw, ops):
        real = networks.discriminator(draw.real("a"), draw.real("b"))
        return minimax_discriminator(real, networks.discriminator(*networks.generator(draw.latents()))), {}

    def generator_loss(self, networks, draw, ops):
        return non_saturating_generator(networks.discriminator(*networks.generator(draw.latents()))), {}

    def sample(self, networks, latents, labels=None):
        return torch.cat(networks.generator(latents), 3)


@dataclass
class CycleGAN(cyclegan.CycleGAN):
    data = DOMAINS
    batch: int = 4
    width: int = 1
    blocks: int = 1
    pool: int = 6


@dataclass
class LAPGAN(lapgan.LAPGAN):
    data = Tensors("larger", {"image": F.interpolate(IMAGES.fetch(torch.arange(32))["image"], scale_factor=2)})
    batch: int = 8
    latent: int = 2
    width: int = 1
    doublings: int = 1


@dataclass
class SinGAN(singan.SinGAN):
    data = ONE_IMAGE
    width: int = 1
    scales: int = 2
    steps_per_scale: int = 2
    rounds: int = 1


class Growing(nn.Module):
    """A block and a way to images for each resolution: 4 and, in the second phase, 8."""

    def __init__(self, phase):
        super().__init__()
        self.mapping, self.b4, self.image4 = nn.Linear(2, 4), nn.Linear(4, 64), nn.Conv2d(4, 1, 1)
        if phase:
            self.b8, self.image8 = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 1, 1)

    def forward(self, latents, alpha=1):
        return self.synthesis(self.mapping(latents), alpha)

    def synthesis(self, w, alpha=1):
        x = self.b4(w).view(-1, 4, 4, 4)
        if not hasattr(self, "b8"):
            return self.image4(x)
        x = F.interpolate(x, scale_factor=2)
        return alpha * self.image8(self.b8(x)) + (1 - alpha) * self.image4(x)


class Progressive(Game):
    data = IMAGES
    steps_per_phase, fade_steps = 2, 2

    def phase_at(self, step):
        return min(step // self.steps_per_phase, 1)

    def networks(self, data, ops):
        side = 4 * 2**self.phase
        critic = nn.Sequential()
        if self.phase:
            critic.add_module("b8", nn.Conv2d(1, 1, 4, 2, 1))
        critic.add_module("b4", nn.Sequential(nn.Flatten(), mlp(16, 1, nn.Flatten(0))))
        assert side == data.shape[1] or not self.phase
        return Networks(generator=Growing(self.phase), discriminator=critic, length=torch.zeros(()))

    def alpha(self, step):
        return min(1.0, (step - self.steps_per_phase + 1) / self.fade_steps) if self.phase else 1.0

    def view(self, draw):
        small = F.avg_pool2d(draw.real(), 2)
        if not self.phase:
            return small
        alpha = self.alpha(draw.step)
        return alpha * draw.real() + (1 - alpha) * F.interpolate(small, scale_factor=2)

    def faked(self, networks, draw):
        return networks.discriminator(networks.generator(draw.latents(), self.alpha(draw.step)))

    def discriminator_loss(self, networks, draw, ops):
        return minimax_discriminator(networks.discriminator(self.view(draw)), self.faked(networks, draw)), {}

    def generator_loss(self, networks, draw, ops):
        return non_saturating_generator(self.faked(networks, draw)), {}

    def r1(self, networks, draw, ops):
        return ops.r1_penalty(networks.discriminator, self.view(draw), gamma=1.0), {}

    def path_length(self, networks, draw, ops):
        w = networks.generator.mapping(draw.latents())
        images = networks.generator.synthesis(w, self.alpha(draw.step))
        (slope,) = torch.autograd.grad((images * draw.normal(*images.shape[1:])).sum(), w, create_graph=True)
        lengths = slope.square().sum(1).sqrt()
        return (lengths - networks.length).square().mean(), {"length": lengths.mean()}

    def follow(self, networks, figures):
        if "length" in figures:
            networks.length.lerp_(figures["length"], 0.5)

    def players(self, ops):
        lengths, r1 = Regularizer(self.path_length, every=2), Regularizer(self.r1, every=3)
        return {
            "discriminator": self.player(ops, "discriminator", regularizers={"r1": r1}),
            "generator": self.player(ops, "generator", ema=0.9, regularizers={"path": lengths}, after=self.follow),
        }


GAMES = {
    "wgan": WGAN,
    "unrolled": Unrolled,
    "prediction": Prediction,
    "began": BEGAN,
    "pacgan": PacGAN,
    "bigan": BiGAN,
    "gman": GMAN,
    "mgan": MGAN,
    "cogan": CoGAN,
    "cyclegan": CycleGAN,
    "lapgan": LAPGAN,
    "singan": SinGAN,
    "progressive": Progressive,
}
