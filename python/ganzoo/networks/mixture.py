"""Several generators that share layers, as one, and what tells them apart."""

import torch
from torch import nn


class Mixture(nn.Module):
    """Latents (N, latent + 1) to samples: their last number says which of the generators draws, from the others.

    The generators are layers in a row, alike but for their weights. They keep those at the positions `own`, a range, to themselves, and
    share the others.
    """

    def __init__(self, generators, own):
        super().__init__()
        layers = [list(generator) for generator in generators]
        self.own = nn.ModuleList(nn.Sequential(*each[own.start : own.stop]) for each in layers)
        self.before, self.after = (nn.Sequential(*part) for part in (layers[0][: own.start], layers[0][own.stop :]))

    def forward(self, latents):
        numbers = latents[:, -1].round().long().clamp(0, len(self.own) - 1)  # on the way from one to another, too
        shared = self.before(latents[:, :-1])
        drawn = torch.stack([own(shared) for own in self.own], 1)
        return self.after(drawn[torch.arange(len(drawn), device=drawn.device), numbers])


def numbered(latents, generators, generator):
    """Latents with, as a last number, which of so many generators draws, all equally likely."""
    numbers = torch.randint(generators, (len(latents), 1), device=latents.device, generator=generator)
    return torch.cat([latents, numbers.to(latents.dtype)], 1)


def with_outputs(discriminator, count):
    """A discriminator of layers in a row, its last dense layer one of `count` outputs: raw scores (N, count)."""
    *layers, last, _ = discriminator
    widened = nn.Linear(last.in_features, count)
    nn.init.normal_(widened.weight, 0.0, last.weight.std().item())
    nn.init.zeros_(widened.bias)
    return nn.Sequential(*layers, widened)
