"""Whole training steps, from images or latents to updated weights, against the same step in stock PyTorch.

A step draws nothing: images, latents, noise and the ε of interpolation are given, so that both sides compute the same numbers, and
the check compares the gradients that the step leaves. `compiled` compiles forward and backward of the whole step; the optimisers are
each side's own. Stock's optimiser is its fastest, fused where there is one.
"""

import copy
import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.functional import relu
from torch.nn.utils.parametrizations import spectral_norm as stock_spectral_norm

import gankernels as gk

from . import stock as stock_ops
from .harness import OURS, Workload, assert_accurate, case, rotated
from .networks import critic64, digits_critic, sngan32_discriminator
from .styled import STYLE_DIM, StyleGAN2Discriminator, StyleGAN2Generator, StyleGAN3Generator
from .test_gradient_penalty import ours_gp, stock_gp


def wasserstein(penalty, critic, real, fake, eps):
    loss = critic(fake).mean() - critic(real).mean()
    return loss + penalty(critic, real, fake, eps) if penalty else loss


def non_saturating(regularized, critic, real, fake, eps):
    softplus = nn.functional.softplus
    real_scores, penalty = regularized(critic, real)
    return softplus(critic(fake)).mean() + softplus(-real_scores).mean() + penalty


def ours_r1_scores(critic, real):
    return gk.regularized_scores(critic, real)[:2]


def stock_r1_scores(critic, real):
    real = real.detach().requires_grad_()
    scores = critic(real)
    (grads,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    return scores, 5 * grads.square().flatten(1).sum(1).mean()


def hinge(penalty, critic, real, fake, eps):
    return relu(1 - critic(real)).mean() + relu(1 + critic(fake)).mean()


def stock_normalized(critic):
    for layer in critic.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            stock_spectral_norm(layer)
    return critic


def clipping(optimizer, params, c):
    """A loop of clamp_ after the step, as published code has it."""
    step = optimizer.step

    def step_and_clip():
        step()
        with torch.no_grad():
            for param in params:
                param.clamp_(-c, c)

    optimizer.step = step_and_clip
    return optimizer


class Adversary(nn.Module):
    """A generator before a discriminator that stands still."""

    def __init__(self, ops, generator):
        super().__init__()
        self.generator, self.discriminator = generator(ops), StyleGAN2Discriminator(ops)
        self.discriminator.requires_grad_(False)

    def forward(self, z):
        return self.discriminator(self.generator(z))


def generator_loss(_, game, z):
    return nn.functional.softplus(-game(z)).mean()


def path_length_loss(penalty, generator, z, noise):
    return penalty(generator.synthesis, generator.mapping(z), torch.zeros(()), noise=noise)


class Side:
    """One variant's own copy of the trained network, with its optimiser."""

    def __init__(self, critic, loss, optimizer, layers, compiled):
        self.critic, self.params = critic, [p for p in critic.parameters() if p.requires_grad]
        self.loss, self.optimizer, self.layers, self.compiled = loss, optimizer(self.params), layers, compiled
        self.gradients = torch.compile(self._gradients, fullgraph=True) if compiled else None

    def _gradients(self, *given):
        return torch.autograd.grad(
            self.loss(self.critic, *given), self.params, allow_unused=True, materialize_grads=True
        )

    def step(self, *given):
        if self.compiled:
            with torch._dynamo.config.patch(trace_autograd_ops=True):
                for param, grad in zip(self.params, self.gradients(given[0].detach().requires_grad_(), *given[1:])):
                    param.grad = grad
        else:
            self.optimizer.zero_grad()
            with self.layers():
                loss = self.loss(self.critic, *given)
            loss.backward()
        self.optimizer.step()


def ours_adam(params):
    return gk.optim.Adam(params, lr=1e-4, betas=(0.0, 0.9))


def stock_adam(params):
    return torch.optim.Adam(params, lr=1e-4, betas=(0.0, 0.9), fused=True)


def ours_rmsprop(params):
    return gk.optim.RMSprop(params, lr=5e-5, clip=0.01)


def stock_rmsprop(params):
    return clipping(torch.optim.RMSprop(params, lr=5e-5, foreach=True), params, 0.01)


@dataclasses.dataclass
class Step:
    critic: Callable
    images: tuple[int, ...]
    loss: Callable
    penalties: tuple = (None, None)  # of ours, of stock
    optimizers: tuple = (ours_adam, stock_adam)
    normalized: bool = False
    styled: bool = False  # critic(ops) rather than critic()
    inputs: Callable | None = None  # of batch, channels, side; None: real and fake images and ε


def latents(n, channels, side, device):
    return (torch.randn(n, STYLE_DIM, device=device),)


def latents_and_noise(n, channels, side, device):
    return *latents(n, channels, side, device), torch.randn(n, channels, side, side, device=device) / side


STEPS = {
    "wgan_gp_64": Step(critic64, (32, 3, 64, 64), wasserstein, (ours_gp, stock_gp)),
    "r1_64": Step(critic64, (32, 3, 64, 64), non_saturating, (ours_r1_scores, stock_r1_scores)),
    "sngan_32": Step(sngan32_discriminator, (32, 3, 32, 32), hinge, normalized=True),
    "wgan_64": Step(critic64, (64, 3, 64, 64), wasserstein, optimizers=(ours_rmsprop, stock_rmsprop)),
    "wgan_gp_digits": Step(digits_critic, (64, 1, 8, 8), wasserstein, (ours_gp, stock_gp)),
    "stylegan2_discriminator": Step(
        StyleGAN2Discriminator, (8, 3, 32, 32), non_saturating, (ours_r1_scores, stock_r1_scores), styled=True
    ),
    "stylegan2_generator": Step(
        partial(Adversary, generator=StyleGAN2Generator), (8, 3, 32, 32), generator_loss, styled=True, inputs=latents
    ),
    "stylegan2_path_length": Step(
        StyleGAN2Generator,
        (8, 3, 32, 32),
        path_length_loss,
        (gk.path_length_penalty, stock_ops.path_length_penalty),
        styled=True,
        inputs=latents_and_noise,
    ),
    "stylegan3_generator": Step(
        partial(Adversary, generator=StyleGAN3Generator), (8, 3, 32, 32), generator_loss, styled=True, inputs=latents
    ),
}


def prepare(device, step, names):
    this = STEPS[step]
    plain = (this.critic(stock_ops) if this.styled else this.critic()).to(device)
    normalized = stock_normalized(copy.deepcopy(plain)) if this.normalized else plain

    def make():
        if this.inputs is not None:
            return this.inputs(*this.images[:3], device)
        return *torch.randn(2, *this.images, device=device), torch.rand(this.images[0], device=device)

    inputs = rotated(make, device)

    def side(name, dtype=torch.float32):
        ours = name.startswith(OURS)
        critic = copy.deepcopy(normalized)
        if ours and this.normalized:
            critic = gk.nn.spectral_norm(copy.deepcopy(plain))
        elif ours and this.styled:
            critic = this.critic(gk).to(device)
        critic.load_state_dict(normalized.state_dict())
        which = 0 if ours else 1
        loss = partial(this.loss, this.penalties[which])
        layers = gk.fast_double_backward if ours and this.images[-1] >= 32 else nullcontext  # as ganzoo trains
        return Side(critic.to(dtype), loss, this.optimizers[which], layers, name.endswith("_compiled"))

    def gradients(name, dtype=torch.float32):
        fresh = side(name, dtype)
        fresh.step(*(t.to(dtype) for t in inputs[0]))
        # as one vector: a bias on which real and fake scores cancel has next to no gradient of its own, and path length gives none
        gradients = (torch.zeros_like(param) if param.grad is None else param.grad for param in fresh.params)
        return [torch.cat([grad.flatten() for grad in gradients])]

    def check():
        exact = gradients("stock", torch.float64)
        for name in names:
            if name == f"{OURS}_compiled":
                # it may round the other way where an activation switches, which moves the gradient by a unit's share
                assert_accurate(gradients(name), gradients("stock"), exact, f"gradients of {name}", rounding=2**-8)
            elif name == OURS:  # in float64 no activation is that near to its switch
                assert_accurate(gradients(name, torch.float64), exact, exact, f"gradients of {name}", rounding=2**-40)

    def run(name):
        this_side = side(name)
        return lambda i: this_side.step(*inputs[i % len(inputs)])

    return Workload({name: run(name) for name in names}, check, goals={"stock": 1.0})


@case(OURS, "stock", step=STEPS)
def test_critic_step(device, step):
    return prepare(device, step, (OURS, "stock"))


COMPILED = (OURS, "gankernels_compiled", "stock", "stock_compiled")


COMPILING = tuple(name for name in STEPS if name != "sngan_32")


@case(*COMPILED, tier="full", step=COMPILING)
def test_critic_step_full(device, step):
    return prepare(device, step, COMPILED)
