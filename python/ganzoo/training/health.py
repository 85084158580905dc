"""Whether a training is well: figures that are no longer numbers, generators that collapse, discriminators that win."""

import math
import sys
from bisect import bisect_left

import torch

from ganzoo.errors import Error
from ganzoo.plots import label
from ganzoo.training import distributed

LIMIT = 1e9
"""A figure beyond this has diverged, finite or not."""
ALIKE = 0.2
"""Samples whose mean distance from each other is below this share of that of real ones have collapsed."""
FAR = 10_000
"""Steps beyond a training's end in which it is looked for where a network begins to train."""
WON = 0.999
"""The share of pairs of a real and a generated image that are scored in the right order above which a discriminator overpowers."""


class Diverged(Error):
    """A figure of a step is no longer a finite number, or is beyond all bounds."""

    def __init__(self, name, value, step):
        super().__init__(f"training diverged: {label(name)} is {value:g} at step {step}.")
        self.term, self.step = name, step

    def sentence(self):
        """What it says, without the program's name and the full stop."""
        return str(self).removeprefix("ganzoo: ").rstrip(".")


class Health:
    """Collects the figures of every step, which costs no synchronisation, and looks at them from time to time."""

    def __init__(self):
        self._pending = []

    def note(self, step, figures):
        self._pending.append((step, figures))

    def check(self):
        """The latest step's figures as numbers, means over all processes.

        Raises `Diverged` for the first step with one that is not finite, naming the term rather than the loss that it is
        part of.
        """
        tensors = [value.float() for _, figures in self._pending for value in figures.values()]
        stacked = torch.stack(tensors)
        distributed.average([stacked])
        values = iter(stacked.tolist())
        for step, figures in self._pending:
            numbers = {name: next(values) for name in figures}
            for name in sorted(numbers, key=lambda name: name.endswith("_loss")):
                if not math.isfinite(numbers[name]) or abs(numbers[name]) > LIMIT:
                    self._pending = []
                    raise Diverged(name, numbers[name], step)
        self._pending = []
        return numbers


def cut_short(trainer):
    """Sentences on what a training does not come to in its steps, such as what follows a pretraining; mostly none."""
    said, variant, steps = [], trainer.variant, trainer.variant.steps
    last = variant.phase_at(sys.maxsize)
    if variant.phase_at(steps - 1) < last:
        needed = bisect_left(range(sys.maxsize), last, key=variant.phase_at) + 1
        said.append(f"in {steps} steps the networks do not grow to their end; it takes at least {needed}")
    if idle := trainer.idle(steps):
        needed = bisect_left(range(steps + FAR), True, key=lambda steps: not trainer.idle(steps))
        what = f"in {steps} steps nothing trains the {' and the '.join(map(label, sorted(idle)))}"
        said.append(f"{what}; it takes at least {needed}" if needed < steps + FAR else what)
    return said


@torch.no_grad()
def alarms(trainer, images):
    """Sentences on what is wrong with a training by the look of images that it has drawn; mostly none."""
    said, source, variant = [], next(iter(trainer.sources.values())), trainer.variant
    numbers = torch.arange(len(images))
    batch = source.fetch(numbers % len(source))
    real = batch.get("image")
    if real is None or real.shape != images.shape:
        return said
    ratio = (torch.pdist(images.flatten(1)).mean() / torch.pdist(real.flatten(1)).mean()).item()
    if ratio < ALIKE:
        said.append(f"the samples are nearly alike: they differ by {ratio:.1%} of what real ones differ by")
    if variant.adversary:
        asked = (numbers % trainer.data.classes).to(images.device) if variant.conditional else None
        network = getattr(trainer.networks, variant.adversary).eval()
        high = variant.scores(trainer.networks, real, batch.get("label")).flatten()
        low = variant.scores(trainer.networks, images, asked).flatten()
        network.train()
        right = (high[:, None] > low).float().mean().item()
        if right > WON:
            said.append(
                f"the {label(variant.adversary)} overpowers: it scores {right:.1%} of all pairs of a real and a "
                "generated image in the right order"
            )
    return said
