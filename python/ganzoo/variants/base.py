"""What a variant is, and the register that knows each by name."""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import nn

from ganzoo.errors import ArgumentError, Error
from ganzoo.options import Checked, Count, Decay

_VARIANTS = {}


class Networks(nn.Module):
    """A variant's networks under their names: `Networks(generator=..., critic=...)` has `.generator` and `.critic`."""

    def __init__(self, **networks):
        super().__init__()
        for name, network in networks.items():
            self.add_module(name, network)


@dataclasses.dataclass(frozen=True)
class Player:
    """One side of the game.

    Args:
        networks: names of the networks it trains. On its turn they alone receive gradients.
        loss: `loss(networks, draw, ops)` returns the scalar that it minimises and a dict of further scalars to plot.
            `draw.real()` and `draw.latents()` each sample a fresh batch.
        optimizer: takes the parameters, and `ema=` and `ema_decay=` where weights are averaged, and returns the
            optimiser.
        ema: decay per update of the running average of its networks' weights; 0 keeps none.
    """

    networks: tuple[str, ...]
    loss: Callable
    optimizer: Callable
    ema: float = 0.0


@dataclasses.dataclass
class Variant(Checked):
    """A GAN as its paper has it: networks, losses and schedule. Its fields are its options, in Python and on the
    command line.

    A subclass gives `networks`, one of which is called `generator`, `players` and `schedule`.
    """

    steps: Count = 2000
    """Generator steps of a whole training."""
    batch: Count = 64
    """Images per batch."""
    latent: Count = 64
    """Dimensions of the latent z ~ N(0, I)."""
    width: Count = 16
    """Channels of the networks' largest feature maps; they double as the maps halve."""
    ema: Decay = 0.0
    """Decay per step of the running average of the generator's weights, which then draws the samples; 0 for none."""

    def networks(self, image_shape, ops) -> Networks:
        """The untrained networks for images of shape (C, H, W)."""
        raise NotImplementedError

    def players(self, ops) -> dict[str, Player]:
        """The players by name. `ops` is the family of ops they train with: see `ganzoo.training.ops`."""
        raise NotImplementedError

    def schedule(self, step) -> Iterable[str]:
        """Names of the players that update in generator step `step`, counted from 0, in their order."""
        raise NotImplementedError

    def latents(self, count, device):
        """`count` latents, (count, latent), from PyTorch's default generator."""
        return torch.randn(count, self.latent, device=device)

    def options(self):
        """The options as a dict of plain values, as written to a run's `config.json`."""
        return dataclasses.asdict(self)


def register(name):
    """Class decorator: makes a `Variant` known by the name that users type. A name can be taken once."""

    def add(variant):
        if name in _VARIANTS:
            raise Error(f"a variant named {name} is already registered.")
        variant.name = name
        _VARIANTS[name] = variant
        return variant

    return add


def list_variants():
    """The names of all registered variants, in alphabetical order."""
    return sorted(_VARIANTS)


def variant_class(name):
    """The registered class of that name. Raises `ArgumentError` for an unknown one."""
    if name not in _VARIANTS:
        raise ArgumentError("variant", f"one of {', '.join(list_variants())}", repr(name))
    return _VARIANTS[name]


def create(name, **options):
    """The variant of that name with these options in place of its defaults, checked.

    Raises `ArgumentError` for an unknown name or option, or a value that is not allowed.
    """
    cls = variant_class(name)
    known = [field.name for field in dataclasses.fields(cls)]
    for option in options:
        if option not in known:
            raise Error(f"{name} has no option {option}; its options are {', '.join(known)}.")
    variant = cls(**options)
    variant.check()
    return variant
