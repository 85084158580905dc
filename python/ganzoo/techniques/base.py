"""What a technique is, and the register that knows each by name.

A technique is a variant around a variant: it has the same methods, asks the one inside and gives on what it has changed. So the loop knows
nothing of techniques, and a variant nothing of those around it.
"""

import copy
import dataclasses
import typing

import torch
from torch import nn

from ganzoo.errors import ArgumentError, Error
from ganzoo.networks.batches import apart
from ganzoo.options import Checked, check_options
from ganzoo.register import Register
from ganzoo.variants.base import Variant

TECHNIQUES = Register("technique", argument="techniques", attribute="technique")
register, list_techniques, technique_class = TECHNIQUES.register, TECHNIQUES.names, TECHNIQUES.named


class Technique(Checked):
    """A variant with one thing more. Its fields are its options.

    A subclass overrides some of `networks`, `players`, `schedule` and the other methods of a `Variant`, and asks `self.variant`'s; what it
    leaves out is the variant's own.
    """

    variant = None
    order = 0
    """Which go around which, whatever order they are named in: 0 changes networks, 1 looks at the networks as they are then, 2 at losses."""

    def __getattr__(self, attribute):
        if self.variant is None or attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(self.variant, attribute)

    @property
    def phase(self):
        return self.variant.phase

    @phase.setter
    def phase(self, phase):
        self.variant.phase = phase

    def networks(self, data, ops):
        return self.variant.networks(data, ops)

    def players(self, ops):
        return self.variant.players(ops)

    def schedule(self, step):
        return self.variant.schedule(step)

    def refuse(self, because):
        variant = plain(self.variant)
        raise Error(f"{self.technique} does not fit {getattr(variant, 'name', type(variant).__name__)}: {because}.")

    def scorers(self, networks, name, condition):
        """What makes scores of samples, for each of the judges of that name."""
        judges = each(getattr(networks, name))
        if len(judges) == 1 and name == self.variant.adversary:
            return [lambda x: self.variant.scores(networks, x, *condition)]
        return [lambda x, judge=judge: judge(x, *condition) for judge in judges]

    def need_samples(self):
        """Refuse variants that do not learn from single samples as the data have them."""
        if self.variant.form:
            self.refuse("it does not learn from single samples")
        if type(plain(self.variant)).phase_at is not Variant.phase_at:
            self.refuse("its networks grow, and see the data as large as they are")

    def need_plain_generator(self, networks):
        """Refuse variants whose generator is given more than latents and labels: what that is, is kept among what samples."""
        if any(isinstance(getattr(networks, name), torch.Tensor) for name in self.variant.samplers):
            self.refuse("its generator is given more than latents and labels")

    def judges_of(self, networks):
        """Names of the networks that are shown real samples and generated ones and return scores."""
        names = [name for name in self.variant.judges if hasattr(networks, name)]
        return names or self.refuse("it has no network that scores samples")

    def opponents(self, players):
        """Names of the players that train nothing that samples: the discriminators' side."""
        samplers = set(self.variant.samplers)
        return [name for name, player in players.items() if samplers.isdisjoint(player.networks)]

    def both_sides(self, players):
        """Names of the players of the discriminators' side, and of the generators'."""
        theirs = self.opponents(players)
        ours = [name for name in players if name not in theirs]
        return (theirs, ours) if theirs and ours else self.refuse("it is no game of two sides")


class Shown(Technique):
    """A technique that changes what the judges are shown: real and generated samples alike, in the losses of all players, so that the
    generator learns to make samples that are right once they have been changed.

    A subclass gives `alter(networks, x, draw, ops)`, which gradients flow through. What it draws has `rows=len(x)`.
    """

    order = 2

    def networks(self, data, ops):
        networks = self.variant.networks(data, ops)
        self.judges_of(networks)
        return networks

    def players(self, ops):
        return {name: with_loss(player, self._seen) for name, player in self.variant.players(ops).items()}

    def _seen(self, loss):
        def shown(networks, draw, ops):
            def alter(x):  # batches that come as one apart, so that each sample has the same draws however they are cut
                return apart(lambda batch: self.alter(networks, batch, draw, ops), x)

            judges = {}
            for name in self.judges_of(networks):
                network = getattr(networks, name)
                several = [Judge(judge, alter) for judge in each(network)]
                judges[name] = several[0] if several[0].sees is network else several
            return loss(View(networks, judges), draw, ops)

        return shown


class View:
    """Networks, some of which are seen as something else."""

    def __init__(self, networks, others):
        self._networks, self._others = networks, others

    def __getattr__(self, name):
        return self._others[name] if name in self._others else getattr(self._networks, name)


class Judge:
    """A network whose first argument passes through a function."""

    def __init__(self, network, alter):
        self.sees, self._alter = network, alter

    def __call__(self, x, *rest):
        return self.sees(self._alter(x), *rest)

    def __getattr__(self, name):
        return getattr(self.sees, name)


def each(network):
    """The networks of a list, or the one that there is."""
    return list(network) if isinstance(network, (list, nn.ModuleList)) else [network]


def with_loss(player, change, *, terms=True):
    """A player whose losses are what `change` makes of them: regularizers too, or with `terms=False` only the one that stands in for the
    loss where it is due."""
    changed = {
        key: dataclasses.replace(term, loss=change(term.loss))
        for key, term in player.regularizers.items()
        if terms or term.joint
    }
    return with_term(dataclasses.replace(player, loss=change(player.loss)), **changed)


def with_term(player, **regularizers):
    """A player with further regularizers."""
    return dataclasses.replace(player, regularizers={**player.regularizers, **regularizers})


def followed(player, function):
    """A player after whose updates `function(networks, figures)` is called too."""

    def after(networks, figures):
        if player.after:
            player.after(networks, figures)
        function(networks, figures)

    return dataclasses.replace(player, after=after)


def parsed(text):
    """The technique that `name` or `name:option=value,option=value` stands for. Raises for what is unknown or not allowed."""
    name, _, given = text.partition(":")
    cls = technique_class(name)
    hints, options = typing.get_type_hints(cls), {}
    for pair in given.split(",") if given else ():
        option, equals, value = pair.partition("=")
        if not equals:
            raise ArgumentError("techniques", f"given options as in {name}:option=value,option=value", repr(text))
        check_options(name, [option], [field.name for field in dataclasses.fields(cls)])
        options[option] = _converted(value, hints[option])
    technique = cls(**options)
    try:
        technique.check()
    except ArgumentError as error:
        raise Error(f"the option {error.argument} of {name} must be {error.expectation}, got {error.got}.") from error
    return technique


def _converted(value, kind):
    """Text as bool, int or float where it can be."""
    if kind is bool:
        return {"true": True, "false": False}.get(value, value)
    try:
        return kind(value)
    except ValueError:
        return value


def check_techniques(techniques):
    """Raise for a list of which one is unknown, wrongly given, or there twice."""
    names = [parsed(text).technique for text in techniques]
    if len(set(names)) < len(names):
        raise ArgumentError("techniques", "different ones", ", ".join(names))


def plain(variant):
    """The variant inside of its techniques."""
    while isinstance(variant, Technique):
        variant = variant.variant
    return variant


def equipped(variant):
    """A copy of a variant with its techniques around it."""
    variant = copy.copy(plain(variant))
    check_techniques(variant.techniques)
    for technique in sorted(map(parsed, variant.techniques), key=lambda technique: technique.order):
        technique.variant, variant = variant, technique
    return variant
