"""The training loop: whose turn it is, gradients, optimisers, averages and random numbers, for any variant."""

import contextlib
import copy
import textwrap

import torch
from torch.func import functional_call

from ganzoo.data.base import DataSet, Tensors, numbered
from ganzoo.errors import ArgumentError, Error
from ganzoo.techniques.base import equipped
from ganzoo.training import distributed
from ganzoo.training.ahead import looked_ahead, unrolled
from ganzoo.training.compiled import CompiledLoss
from ganzoo.training.draw import Draw, check_seed, private_random, seed_of
from ganzoo.training.graphs import Graphs, plain_state, step_where_finite
from ganzoo.training.ops import get_ops
from ganzoo.variants.base import DataInfo, Networks, Player, in_tuples

SAMPLING_BATCH = 256
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS, NOISE, ORDER = range(3)
"""Which of a run's streams of random numbers a seed is for."""


def as_device(device):
    """The `torch.device` of that name, tried out. Raises `ArgumentError` where this machine does not have it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError):
        raise ArgumentError(
            "device", "cpu, or an accelerator of this machine such as cuda", repr(str(device))
        ) from None


def as_sources(data, batch):
    """Data as a dict of sets, one for each domain. Raises `ArgumentError` for what is none."""
    if isinstance(data, torch.Tensor) and data.dim() >= 2 and data.is_floating_point():
        data = Tensors("images", {"image": data})
    sources = data if isinstance(data, dict) else {"": data}
    if not sources or not all(isinstance(source, DataSet) for source in sources.values()):
        tensor = isinstance(data, torch.Tensor)
        got = f"{data.dtype} {tuple(data.shape)}" if tensor else type(data).__name__
        raise ArgumentError("data", "a float tensor (N, ...), a data set or a dict of data sets", got)
    for source in sources.values():
        if len(source) < batch:
            raise ArgumentError("batch", f"at most the number of images, {len(source)}", batch)
    return sources


def describe(sources):
    """The `DataInfo` of data sets."""
    main = next(iter(sources.values()))
    samples = {domain: source.fetch(torch.zeros(1, dtype=torch.int64)) for domain, source in sources.items()}
    if len(sources) == 1:
        fields = {field: tuple(values.shape[1:]) for field, values in samples.popitem()[1].items()}
    else:
        fields = {domain: tuple(sample["image"].shape[1:]) for domain, sample in samples.items()}
    return DataInfo(main.name, tuple(main.shape), main.classes, fields, main.vocabulary)


class Trainer:
    """Trains a variant on data.

        trainer = ganzoo.Trainer(ganzoo.create("wgan-gp"), ganzoo.data.open("digits"), seed=0)
        for _ in range(1000):
            figures = trainer.step()
        pictures = trainer.sample(64)

    Args:
        variant: from `ganzoo.create`, or an instance of a `Variant` of your own.
        data: a data set, a dict of sets for unpaired domains, or images as a float tensor (N, C, H, W) in [−1, 1].
        seed: decides the initial weights and everything drawn later. The same seed gives the same run, to the bit on
            the CPU.
        device: where to train. Data in memory move there.
        ops: `gankernels`, or `stock` for the same training with PyTorch's own ops.
        precision: `fp32`; `bf16` or `fp16` for autocast, the latter with scaled losses. Weights stay in float32.
        accumulate: parts that each batch is cut into, one after another through the networks, to save memory.
        compile: compile the losses with torch.compile; a string is its backend.
        cuda_graph: capture whole steps in CUDA graphs, and replay them from then on.

    Raises `ArgumentError` for an option, seed, device, shape or dtype that is not allowed.
    """

    def __init__(
        self,
        variant,
        data,
        *,
        seed=0,
        device="cpu",
        ops="gankernels",
        precision="fp32",
        accumulate=1,
        compile=False,
        cuda_graph=False,
    ):
        variant.check()
        self.variant = equipped(variant)  # a copy, whose phase is this trainer's
        sources = as_sources(data, variant.batch)
        self.seed, self.device, self.steps, self.attempt = check_seed(seed), as_device(device), 0, 0
        if precision not in PRECISIONS:
            raise ArgumentError("precision", f"one of {', '.join(PRECISIONS)}", repr(precision))
        self._shares = accumulate * distributed.size()
        self._accumulate, self._first_share = accumulate, accumulate * distributed.rank()
        distributed.check_shares(variant, self._shares)
        self.sources = {domain: source.to(self.device) for domain, source in sources.items()}
        self.data = describe(self.sources)
        check_form(variant, self.sources)
        if variant.conditional and not self.data.classes:
            raise ArgumentError("data", "labelled, for a variant that is conditional", f"no labels of {self.data.name}")
        self._ops, self._precision, self._compile, self._cuda_graph = get_ops(ops), precision, compile, cuda_graph
        self._draw = Draw(self.variant, self.sources, seed_of(self.seed, self.attempt, ORDER), self.device)
        self.networks, self._averages, self._previous = None, {}, {}
        self.updates = {}
        self._enter(variant.phase_at(0))

    def _enter(self, phase, *, resumed=False):
        """Build the networks of a phase, with the weights that they share with those of the phase before, and its
        players."""
        self.variant.phase = phase
        before, averages_before = self.networks, self._averages
        with private_random(seed_of(self.seed, self.attempt, WEIGHTS, phase), self.device):
            networks = self.variant.networks(self.data, self._ops).to(self.device)
            self.networks = distributed.with_whole_batch_norms(networks)
            self._players = players_of(self.variant, self._ops)
            if before is not None:
                trained = {network for player in self._players.values() for network in player.networks}
                for name in averages_before.keys() - trained:  # it is done: what it was to sample with is what it is
                    weights = dict(averages_before[name].named_parameters())
                    getattr(before, name).load_state_dict(weights, strict=False)
                carry_over(before, self.networks)
            if not resumed:
                self._draw.begin(-1 - phase)
                with torch.no_grad():
                    self.variant.enter(self.networks, self._draw, self._ops)
        # Players of an earlier phase keep their counts: what is drawn depends on the sum.
        self.updates = {**dict.fromkeys(self._players, 0), **self.updates}
        self._averages, self._optimizers, self._rates, self._scalers = {}, {}, {}, {}
        self._names, self._params, self._averaged, self._losses = {}, {}, {}, {}
        for name, player in self._players.items():
            self._add_player(name, player)
        for name, average in self._averages.items():
            average.requires_grad_(False).eval()
            if name in averages_before:
                carry_over(averages_before[name], average)
        self._all_params = list(self.networks.parameters())
        self._graphs = self._new_graphs()
        ahead = {name for player in self._players.values() for name in player.lookahead}
        self._previous = {
            name: [p.detach().clone() for p in getattr(self.networks, name).parameters()] for name in sorted(ahead)
        }

    def _new_graphs(self):
        return Graphs(self._play, self._optimizers, self.device) if self._cuda_graph else None

    def _add_player(self, name, player):
        joint = [key for key, term in player.regularizers.items() if term.joint]
        if len(joint) > 1:
            raise Error(f"one regularizer of the {name} can be joint with its loss, and {' and '.join(joint)} are.")
        trained = [
            (f"{network}.{path}", param)
            for network in player.networks
            for path, param in getattr(self.networks, network).named_parameters()
            if param.requires_grad
        ]
        self._names[name], self._params[name] = [key for key, _ in trained], [param for _, param in trained]
        options, self._averaged[name] = {}, []
        if player.ema:
            for network in player.networks:
                if network not in self._averages:  # players may share networks
                    self._averages[network] = copy.deepcopy(getattr(self.networks, network))
            copies = {network: self._averages[network] for network in player.networks}
            averaged = dict(Networks(**copies).named_parameters())
            self._averaged[name] = [averaged[key] for key in self._names[name]]
            options = {"ema": self._averaged[name], "ema_decay": player.ema}
        optimizer = player.optimizer(self._params[name], **options)
        self._optimizers[name], self._rates[name] = optimizer, [group["lr"] for group in optimizer.param_groups]
        self._scalers[name] = torch.amp.GradScaler(self.device.type, enabled=self._precision == "fp16")
        losses = {name: player.loss, **{f"{name}.{key}": term.loss for key, term in player.regularizers.items()}}
        if self._compile:
            losses = {key: CompiledLoss(loss, self._compile) for key, loss in losses.items()}
        self._losses.update(losses)

    @property
    def images_drawn(self):
        """How many real images the losses have drawn so far, in all domains and processes."""
        return sum(self._draw.positions.values())

    def step(self):
        """One generator step with all the updates that the schedule puts in it.

        Returns the figures of the last update of each player as scalar tensors: its loss under `<player>_loss`, its
        regularizers under their names when they were due, and what its loss function returned beside it.
        """
        phase = self.variant.phase_at(self.steps)
        if phase != self.variant.phase:
            self._enter(phase)
        noise = seed_of(self.seed, self.attempt, NOISE, distributed.rank(), self.steps)
        with private_random(noise, self.device):
            try:
                figures = self._take(self.variant.schedule(self.steps))
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                wanted = f"at least {2 * self._shares}, as there is batch norm over each part of it"
                raise ArgumentError("batch", wanted, self.variant.batch) from error
        self.steps += 1
        return figures

    def idle(self, steps):
        """Names of the networks that this phase's players train, but not in the first so many steps."""
        waiting = {network for player in self._players.values() for network in player.networks}
        for step in range(steps):
            names = {name for turn in in_tuples(self.variant.schedule(step)) for name in turn}
            waiting.difference_update(*(self._players[name].networks for name in names))
            if not waiting:
                break
        return waiting

    def _take(self, turns):
        """These turns, one after another."""
        turns = in_tuples(turns)
        plan, updates = self._planned(turns)
        for name in self._players:
            self._set_rates(name)
        self._draw.step = self.steps
        play = self._graphs.play if self._graphs else self._play
        figures = play(plan, sum(self.updates.values()), self._draw)
        self.updates = updates
        return figures

    def _planned(self, turns):
        """The plan of turns: for each a tuple of the players that update, from the same point, each with the names of the
        regularizers that its update has. And the players' numbers of updates afterwards."""
        plan, updates = [], dict(self.updates)
        for names in turns:
            plan.append(tuple((name, self._due(name, updates[name])) for name in names))
            for name in names:
                updates[name] += 1
        return tuple(plan), updates

    def _set_rates(self, name):
        """What a player's schedule makes of the learning rates at this step."""
        if not self._players[name].lr:
            return
        factor = self._players[name].lr(self.steps)
        for group, rate in zip(self._optimizers[name].param_groups, self._rates[name]):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def _due(self, name, update):
        """Names of the regularizers that a player's update of this number has."""
        terms = self._players[name].regularizers.items()
        return tuple(key for key, term in terms if update % term.every == 0)

    def _play(self, plan, update, draw):
        """What a plan, whose first update has this number, does to the tensors of the training; it changes nothing else, so
        that a CUDA graph can hold all of it."""
        moving = {network for turn in plan for name, _ in turn for network in self._players[name].networks}
        self._remember(self._previous.keys() - moving)  # what does not move in this step is seen where it is
        figures = {}
        for turn in plan:
            moves = []
            for name, due in turn:
                shown = self._differentiate(name, due, update, draw)
                moves.append((name, [param.grad for param in self._params[name]], shown))  # players may share weights
                update += 1
            for name, gradients, shown in moves:
                for param, gradient in zip(self._params[name], gradients):
                    param.grad = gradient
                self._update(name, shown)
                figures.update(shown)
        return figures

    def _differentiate(self, name, due, update, draw):
        """The gradients of a player's loss, in its parameters, and the figures of the loss."""
        for param in self._all_params:
            param.requires_grad_(False)
        for param in self._params[name]:
            param.requires_grad_(True)
        self._optimizers[name].zero_grad()
        figures = {}
        for share in range(self._first_share, self._first_share + self._accumulate):
            draw.begin(update, share, self._shares)
            loss, terms = self._loss(name, due, draw)
            if self._accumulate > 1:
                loss = loss / self._accumulate
                terms = {key: value / self._accumulate for key, value in terms.items()}
            self._scalers[name].scale(loss).backward()
            for key, value in {f"{name}_loss": loss, **terms}.items():
                figures[key] = figures[key] + value.detach() if key in figures else value.detach()
        return figures

    def _loss(self, name, due, draw):
        """A player's loss on its share of a batch, with the terms that are due, and what there is to plot."""
        player = self._players[name]
        with self._autocast(), self._layers():
            weights = {}
            for network in player.lookahead:
                params = dict(getattr(self.networks, network).named_parameters())
                ahead = looked_ahead([p.detach() for p in params.values()], self._previous[network])
                weights.update({f"{network}.{path}": tensor for path, tensor in zip(params, ahead)})
            for other, count in player.unroll.items():
                names, params, optimizer = self._names[other], self._params[other], self._optimizers[other]
                weights |= unrolled(
                    self.networks, self._players[other], optimizer, names, params, count, draw, self._ops
                )
            joint = [key for key in due if player.regularizers[key].joint]
            loss, figures = self._evaluate(".".join([name, *joint]), weights, draw)
            for key in due:
                if key in joint:
                    continue
                value, beside = self._evaluate(f"{name}.{key}", weights, draw)
                loss = loss + player.regularizers[key].every * value
                figures = {**figures, key: value, **beside}
        return loss, figures

    def _evaluate(self, name, weights, draw):
        """The loss of that name, with other weights in place of the networks' own where there are any."""
        loss, self._draw.asks = self._losses[name], f"the loss of {name}"
        if weights:
            return functional_call(self.networks, weights, (loss, draw, self._ops))
        return loss(self.networks, draw, self._ops)

    def _autocast(self):
        dtype = PRECISIONS[self._precision]
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    def _layers(self):
        """Where the layers of eager losses run. On small images calls would cost more than products save."""
        eager = self.device.type == "cpu" and self._precision == "fp32" and not self._compile
        large = not self.data.points and min(self.data.shape[-2:]) >= 32
        return self._ops.layers() if eager and large else contextlib.nullcontext()

    def _update(self, name, figures):
        """One step of a player's optimiser with the gradients that are in its parameters."""
        player, optimizer, scaler = self._players[name], self._optimizers[name], self._scalers[name]
        self._remember(self._previous.keys() & set(player.networks))
        distributed.average([param.grad for param in self._params[name] if param.grad is not None])
        if self._graphs:
            step_where_finite(scaler, optimizer, self._averaged[name])
        else:
            scaler.step(optimizer)
        scaler.update()
        if player.after:
            distributed.average(list(figures.values()))
            with torch.no_grad():
                player.after(self.networks, figures)

    def _remember(self, networks):
        """Where networks that are seen ahead of themselves stand before they move."""
        for network in networks:
            weights = [param.detach() for param in getattr(self.networks, network).parameters()]
            torch._foreach_copy_(self._previous[network], weights)

    def retry(self, attempt):
        """Draw other random numbers from here on: the same ones would lead to the same end."""
        self.attempt = attempt
        self._reseed()

    def _reseed(self):
        positions = self._draw.positions
        self._draw = Draw(self.variant, self.sources, seed_of(self.seed, self.attempt, ORDER), self.device)
        self._draw.positions.update(positions)

    def sampling(self):
        """What the variant samples with, in evaluation mode: the averages of weights where they are kept."""
        return Networks(**{name: self._sampling(name) for name in self.variant.samplers})

    def _sampling(self, name):
        live, average = getattr(self.networks, name), self._averages.get(name)
        if isinstance(live, torch.Tensor):
            return live.clone()
        if average is None:
            return copy.deepcopy(live).eval()
        # Running statistics are averages already.
        for kept, buffer in zip(average.buffers(), live.buffers()):
            kept.copy_(buffer)
        return average

    def sample(self, count, seed=0, labels=None):
        """`count` generated images (count, C, H, W) in [−1, 1], the same for the same seed. With several processes each
        draws a part, so all of them have to call it, and all have the result."""
        return draw_samples(self.variant, self.data, self.sampling(), count, seed, self.device, labels)

    def show(self, count, seed=0, labels=None):
        """The same for a picture: beside samples that were made from images, those images."""
        return draw_samples(self.variant, self.data, self.sampling(), count, seed, self.device, labels, show=True)

    def state_dict(self):
        """Everything that the next step depends on, as tensors and plain values: `torch.load(weights_only=True)`
        reads it back. It is the same in every process."""
        return {
            "seed": self.seed,
            "attempt": self.attempt,
            "steps": self.steps,
            "phase": self.variant.phase,
            "updates": dict(self.updates),
            "positions": dict(self._draw.positions),
            "networks": self.networks.state_dict(),
            "averages": {name: network.state_dict() for name, network in self._averages.items()},
            "optimizers": {name: plain_state(optimizer) for name, optimizer in self._optimizers.items()},
            "scalers": {name: scaler.state_dict() for name, scaler in self._scalers.items()},
            "previous": self._previous,
        }

    def load_state_dict(self, state):
        """Continue from a `state_dict`. On the CPU every later step then equals that of the run that was never
        stopped, to the bit."""
        self.seed, self.attempt, self.steps = state["seed"], state["attempt"], state["steps"]
        if state["phase"] != self.variant.phase:
            self._enter(state["phase"], resumed=True)
        self.updates = dict(state["updates"])
        self._draw.positions.update(state["positions"])
        self._reseed()
        self.networks.load_state_dict(state["networks"])
        for name, network in self._averages.items():
            network.load_state_dict(state["averages"][name])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, scaler in self._scalers.items():
            scaler.load_state_dict(state["scalers"][name])
        for name, params in self._previous.items():
            torch._foreach_copy_(params, [param.to(self.device) for param in state["previous"][name]])
        self._graphs = self._new_graphs()


def carry_over(before, after):
    """Give a module the values of those parameters and buffers of another that have the same name and shape."""
    values, own = before.state_dict(), after.state_dict()
    kept = {key: value for key, value in values.items() if key in own and own[key].shape == value.shape}
    after.load_state_dict(kept, strict=False)


def players_of(variant, ops):
    """Its players by name. Raises `Error` for what is none."""
    players = variant.players(ops)
    if not isinstance(players, dict) or not all(isinstance(player, Player) for player in players.values()):
        raise Error(
            f"{type(variant).__name__}.players must return Players by name, a dict, and returned {players!r:.80}."
        )
    return players


def check_form(variant, sources):
    """Raise where a variant that learns from pairs or domains is given other data."""
    data = describe(sources)
    found = "unpaired" if len(sources) > 1 else "paired"
    if variant.form and not (found == variant.form and {"a", "b"} <= data.fields.keys()):
        what = "pairs, with fields a and b" if variant.form == "paired" else "two domains, a and b"
        fields = f"a sample of {data.name} with {', '.join(data.fields)}"
        raise ArgumentError("data", f"{what}, as the option form={variant.form} of data makes them", fields)


def _classes_to_draw(variant, data, count, labels, device):
    """(count,) int64, all classes in turn unless given, or captions (count, T); None where the variant is not conditional."""
    if not variant.conditional:
        if labels is not None:
            raise ArgumentError("labels", "left out, as the generator is not conditional", f"{len(labels)} of them")
        return None
    if labels is None:
        return torch.arange(count, device=device) % data.classes
    if any(isinstance(label, str) for label in labels):
        if not (data.vocabulary and len(labels) == count):
            wanted = f"{count} {'captions or ' if data.vocabulary else ''}whole numbers"
            raise ArgumentError("labels", wanted, textwrap.shorten(str(labels), 80, placeholder=" …"))
        return numbered(labels, data.vocabulary, *data.fields["caption"]).to(device)
    labels = torch.as_tensor(labels, device=device)
    whole = labels.shape == (count,) and not labels.is_floating_point()
    if not (whole and 0 <= labels.min() and labels.max() < data.classes):
        shown = textwrap.shorten(str(labels.tolist()), 80, placeholder=" …")
        raise ArgumentError("labels", f"{count} whole numbers from 0 to {data.classes - 1}", shown)
    return labels


@torch.no_grad()
def draw_samples(variant, data, networks, count, seed, device="cpu", labels=None, *, show=False):
    """`count` images from networks that sample, from the latents that `seed` gives, of every class in turn where the variant
    is conditional; with `show`, as a picture is to show them. PyTorch's default generators are left as they were."""
    if count < 1:
        raise ArgumentError("count", "at least 1", count)
    labels = _classes_to_draw(variant, data, count, labels, device)
    latents = variant.latents(count, torch.Generator(device).manual_seed(check_seed(seed)))
    images, size, draw = None, distributed.size(), variant.show if show else variant.sample
    for part, start in enumerate(range(0, count, SAMPLING_BATCH)):
        if part % size == distributed.rank():
            rows = slice(start, start + SAMPLING_BATCH)
            with private_random(seed_of(seed, part), device):
                drawn = draw(networks, latents[rows], None if labels is None else labels[rows])
            if images is None:
                images = drawn.new_zeros(count, *drawn.shape[1:])
            images[rows] = drawn
    return images if size == 1 else distributed.merged(images, device)
