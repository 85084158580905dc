"""What a variant is, and the register that knows each by name."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import nn

from ganzoo.errors import Error
from ganzoo.options import Checked, Count, Decay, check_options
from ganzoo.register import Register

COLUMNS, MOST_COLUMNS = 8, 16
VARIANTS = Register("variant", argument="variant", attribute="name")
register, list_variants, variant_class = VARIANTS.register, VARIANTS.names, VARIANTS.named


class Networks(nn.Module):
    """A variant's networks under their names: `Networks(generator=..., critic=...)` has `.generator` and `.critic`.

    A tensor given in place of a network becomes a buffer: a controller such as BEGAN's k. Networks and buffers alike are
    moved, checkpointed and resumed.
    """

    def __init__(self, **networks):
        super().__init__()
        for name, network in networks.items():
            if isinstance(network, torch.Tensor):
                self.register_buffer(name, network)
            else:
                self.add_module(name, network)

    def forward(self, loss, draw, ops):
        """`loss` of these networks. As a forward of its own, `torch.func.functional_call` can put other weights in place
        while a loss is taken."""
        return loss(self, draw, ops)


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What networks may know of the data: `shape` of one sample, number of `classes` or None, `fields`, the shape of
    every field of a sample or of every domain by name, and the `vocabulary` of captions."""

    name: str
    shape: tuple
    classes: int | None = None
    fields: dict = dataclasses.field(default_factory=dict)
    vocabulary: tuple = ()

    @property
    def points(self):
        """Whether a sample is a point (D,) rather than an image."""
        return len(self.shape) == 1


@dataclasses.dataclass(frozen=True)
class Regularizer:
    """A term that is added to a player's loss at every `every`-th of its updates, `every` times as large, so that its mean
    does not depend on how often it is taken. `loss` is as a player's.

    Where loss and term share one backward, `joint=True` says that `loss` is both, the term in it `every` times as large: it then stands in for
    the player's loss, and shows the term as it likes. A player can have one of these.
    """

    loss: Callable
    every: int = 1
    joint: bool = False


@dataclasses.dataclass(frozen=True)
class Player:
    """One side of the game.

    Args:
        networks: names of the networks it trains. On its turn they alone receive gradients.
        loss: `loss(networks, draw, ops)` returns the scalar that it minimises and a dict of further scalars to plot.
            `draw` gives fresh batches, latents and random numbers: see `ganzoo.training.draw.Draw`.
        optimizer: takes the parameters, and `ema=` and `ema_decay=` where weights are averaged, and returns the
            optimiser.
        ema: decay per update of the running average of its networks' weights; 0 keeps none, and None says that there can be none, as
            other networks learn from these as they are.
        lr: `lr(step)` is the factor on the optimiser's learning rates in that step of training.
        regularizers: lazy terms by name.
        unroll: names of players and how many of their updates its loss sees ahead: their losses are stepped by
            differentiable copies of their optimisers, and gradients flow through those steps.
        lookahead: names of networks that its loss sees at w + (w − w₋), w₋ being the weights before their last update; in a step in
            which they do not move, at w.
        after: `after(networks, figures)` follows its update; for controllers. The figures are those of the whole batch.
    """

    networks: tuple[str, ...]
    loss: Callable
    optimizer: Callable
    ema: float | None = 0.0
    lr: Callable | None = None
    regularizers: dict[str, Regularizer] = dataclasses.field(default_factory=dict)
    unroll: dict[str, int] = dataclasses.field(default_factory=dict)
    lookahead: tuple[str, ...] = ()
    after: Callable | None = None


@dataclasses.dataclass
class Variant(Checked):
    """A GAN as its paper has it: networks, losses and schedule. Its fields are its options, in Python and on the
    command line.

    A subclass gives `networks`, one of which is called `generator`, `players` and `schedule`. The rest has defaults.
    """

    steps: Count = 2000
    """Generator steps of a whole training."""
    batch: Count = 64
    """Images per batch."""
    latent: Count = 64
    """Dimensions of the latent z ~ N(0, I)."""
    width: Count = 16
    """Channels of the networks' largest feature maps, which double as the maps halve; for points a measure of the hidden units, 16 being
    the papers' numbers."""
    ema: Decay = 0.0
    """Decay per step of the running average of the generator's weights, which then draws the samples; 0 for none."""
    techniques: tuple[str, ...] = ()
    """What is switched on beside, each as name or name:option=value,option=value; `ganzoo list` says which there are."""

    phase: ClassVar[int] = 0
    """The phase that training is in, which the loop sets; see `phase_at`."""
    samplers: ClassVar[tuple] = ("generator",)
    """Names of what `sample` uses: saved with every checkpoint as what samples without data."""
    usual_data: ClassVar[tuple] = ("digits",)
    """What a run trains on unless told otherwise: the word and the options, as `--data` and `--data-options` take them."""
    form: ClassVar[str] = ""
    """`paired` where it learns from pairs, samples with the fields a and b, `unpaired` where from two domains a and b. A run then opens
    data in that form."""
    conditional: ClassVar[bool] = False
    """Whether `sample` wants labels."""
    judges: ClassVar[tuple] = ("discriminator", "critic")
    """Names, of those networks that there are, of networks that make raw scores of samples, real ones or generated, and of their labels where
    they are conditional. Techniques go before them and into them."""
    adversary: ClassVar[str] = ""
    """Name of the network that should not tell real images from generated ones with certainty: when it does, a run says
    so. A Wasserstein critic is meant to, and has none."""

    def networks(self, data, ops) -> Networks:
        """The untrained networks for data of this `DataInfo`, in this phase."""
        raise NotImplementedError

    def players(self, ops) -> dict[str, Player]:
        """The players by name, in this phase. `ops` is the family of ops they train with: see `ganzoo.training.ops`."""
        raise NotImplementedError

    def schedule(self, step) -> Iterable:
        """The turns of generator step `step`, counted from 0, in their order: the name of the player that updates, or a
        tuple of names that update at once, each from where all stood before."""
        raise NotImplementedError

    def phase_at(self, step) -> int:
        """The phase that a step belongs to, for networks that grow: 0, 1, 2, ... A new phase starts with the networks and
        players built anew; what has the same name and shape as before keeps its value. A network that no player trains any
        more stays as its average, where one was kept."""
        return 0

    def enter(self, networks, draw, ops):
        """Called once when a phase begins, under no_grad: what is set from the data or from the phase before."""

    def latents(self, count, generator):
        """`count` latents, (count, latent), drawn with this `torch.Generator`, on its device."""
        return torch.randn(count, self.latent, device=generator.device, generator=generator)

    def condition(self, networks, labels):
        """What generator and `adversary` take for labels (N,), where they are conditional: the same. `networks` has the `samplers`."""
        return labels

    def sample(self, networks, latents, labels=None):
        """Images from latents, and from labels (N,) where the generator is conditional. `networks` has the `samplers`."""
        if labels is None:
            return networks.generator(latents)
        return networks.generator(latents, self.condition(networks, labels))

    def show(self, networks, latents, labels=None):
        """What a picture of samples shows of each: the sample, or beside it what it was made from."""
        return self.sample(networks, latents, labels)

    def encode(self, networks, images):
        """The latents of images, of a variant with an `encoder` among its `samplers`: `sample` rebuilds the images from them."""
        return networks.encoder(images)

    moved: ClassVar[Callable | None] = None
    """`moved(networks, latents, shift, turn)`, of a variant that claims to be equivariant: samples whose start is turned by so many radians
    (N,), from x towards y, and then shifted by (N, 2) in units of the image. EQ-T and EQ-R say how well they follow."""

    def scores(self, networks, images, labels=None):
        """What the `adversary` gives images, (N,); higher for those it takes for real."""
        adversary = getattr(networks, self.adversary)
        return adversary(images, self.condition(networks, labels)) if self.conditional else adversary(images)

    def columns(self, data):
        """Columns of a grid of samples: one for each class where it is asked for one of a few."""
        return data.classes if self.conditional and data.classes <= MOST_COLUMNS else COLUMNS

    def check(self):
        from ganzoo.techniques.base import check_techniques  # of which some import this file

        super().check()
        check_techniques(self.techniques)

    def options(self):
        """The options as a dict of plain values, as written to a run's `config.json`."""
        return dataclasses.asdict(self)


def in_tuples(turns):
    """The turns of a schedule, each as the tuple of the players that update."""
    return [(turn,) if isinstance(turn, str) else tuple(turn) for turn in turns]


def create_saved(name, options):
    """The variant that a file names. Raises `Error` where it is one of somebody's own that is not registered here."""
    if name not in VARIANTS.classes:
        raise Error(
            f"the run is of a variant {name} that is not registered: run the file that defines it, or import it."
        )
    return create(name, **options)


def create(name, **options):
    """The variant of that name with these options in place of its defaults, checked.

    Raises `ArgumentError` for an unknown name or option, or a value that is not allowed.
    """
    cls = variant_class(name)
    check_options(name, options, [field.name for field in dataclasses.fields(cls)])
    variant = cls(**options)
    variant.check()
    return variant
