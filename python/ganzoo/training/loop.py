"""The training loop: whose turn it is, gradients, optimisers, averages and random numbers, for any variant."""

import copy

import torch

from ganzoo.errors import ArgumentError
from ganzoo.training.ops import get_ops
from ganzoo.training.sampler import RandomStream, Sampler

SAMPLING_BATCH = 1024


def as_device(device):
    """The `torch.device` of that name, tried out. Raises `ArgumentError` where this machine does not have it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError):
        raise ArgumentError(
            "device", "cpu, or an accelerator of this machine such as cuda", repr(str(device))
        ) from None


def check_seed(seed):
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ArgumentError("seed", "a whole number of at least 0 and below 2^63", repr(seed))
    return seed


class Draw:
    """What a loss may sample: every call is a fresh batch."""

    def __init__(self, variant, sampler, device):
        self._variant, self._sampler, self._device = variant, sampler, device

    def real(self):
        """A batch of real images, (batch, C, H, W)."""
        return self._sampler.draw()

    def latents(self):
        """A batch of latents from the variant's prior."""
        return self._variant.latents(self._variant.batch, self._device)


class Trainer:
    """Trains a variant on images that fit in memory.

        trainer = ganzoo.Trainer(ganzoo.create("wgan-gp"), images, seed=0)
        for _ in range(1000):
            figures = trainer.step()
        pictures = trainer.sample(64)

    Args:
        variant: from `ganzoo.create`, or an instance of a `Variant` of your own.
        images: float tensor (N, C, H, W), pixels in [−1, 1]; kept on the device.
        seed: decides the initial weights and everything drawn later. The same seed gives the same run, to the bit on
            the CPU.
        device: where to train.
        ops: `gankernels`, or `stock` for the same training with PyTorch's own ops.

    Raises `ArgumentError` for an option, seed, device, shape or dtype that is not allowed.
    """

    def __init__(self, variant, images, *, seed=0, device="cpu", ops="gankernels"):
        variant.check()
        if not isinstance(images, torch.Tensor) or images.dim() != 4 or not images.is_floating_point():
            tensor = isinstance(images, torch.Tensor)
            got = f"{images.dtype} {tuple(images.shape)}" if tensor else type(images).__name__
            raise ArgumentError("images", "a float tensor (N, C, H, W)", got)
        self.variant, self.image_shape, self.device = variant, tuple(images.shape[1:]), as_device(device)
        self.steps = 0
        self._ops = get_ops(ops)
        self._random = RandomStream(check_seed(seed), self.device)
        self._sampler = Sampler(images.to(self.device), variant.batch)
        self._draw = Draw(variant, self._sampler, self.device)
        with self._random:
            self.networks = variant.networks(self.image_shape, self._ops).to(self.device)
        self._averages, self._optimizers, self._params = {}, {}, {}
        self._players = variant.players(self._ops)
        for name, player in self._players.items():
            networks = [getattr(self.networks, network) for network in player.networks]
            self._params[name] = [p for network in networks for p in network.parameters() if p.requires_grad]
            average = {}
            if player.ema:
                copies = {network: copy.deepcopy(getattr(self.networks, network)) for network in player.networks}
                self._averages.update(copies)
                trained = [p.requires_grad for network in networks for p in network.parameters()]
                params = [p for network in copies.values() for p in network.parameters()]
                average = {"ema": [p for p, kept in zip(params, trained) if kept], "ema_decay": player.ema}
            self._optimizers[name] = player.optimizer(self._params[name], **average)
        for network in self._averages.values():
            network.requires_grad_(False).eval()
        self._all_params = [param for params in self._params.values() for param in params]

    @property
    def images_drawn(self):
        """How many real images the losses have drawn so far."""
        return self._sampler.drawn

    def step(self):
        """One generator step with all the updates that the schedule puts in it.

        Returns the figures of the last update of each player as scalar tensors: its loss under `<player>_loss`, and
        what its loss function returned beside it.
        """
        figures = {}
        with self._random:
            for name in self.variant.schedule(self.steps):
                figures.update(self._update(name))
        self.steps += 1
        return figures

    def _update(self, name):
        for param in self._all_params:
            param.requires_grad_(False)
        for param in self._params[name]:
            param.requires_grad_(True)
        optimizer = self._optimizers[name]
        optimizer.zero_grad()
        loss, figures = self._players[name].loss(self.networks, self._draw, self._ops)
        loss.backward()
        optimizer.step()
        return {f"{name}_loss": loss.detach(), **{key: value.detach() for key, value in figures.items()}}

    def generator(self):
        """The generator that draws the samples, in evaluation mode: the average of its weights where one is kept."""
        live = self.networks.generator
        average = self._averages.get("generator")
        if average is None:
            return copy.deepcopy(live).eval()
        # Running statistics are averages already.
        for kept, buffer in zip(average.buffers(), live.buffers()):
            kept.copy_(buffer)
        return average

    def sample(self, count, seed=0):
        """`count` generated images (count, C, H, W) in [−1, 1], the same for the same seed."""
        return draw_samples(self.variant, self.generator(), count, seed, self.device)

    def state_dict(self):
        """Everything that the next step depends on, as tensors and plain values: `torch.load(weights_only=True)`
        reads it back."""
        return {
            "steps": self.steps,
            "networks": {name: network.state_dict() for name, network in self.networks.named_children()},
            "averages": {name: network.state_dict() for name, network in self._averages.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "sampler": self._sampler.state_dict(),
            "random": self._random.state_dict(),
        }

    def load_state_dict(self, state):
        """Continue from a `state_dict`. On the CPU every later step then equals that of the run that was never
        stopped, to the bit."""
        self.steps = state["steps"]
        for name, network in self.networks.named_children():
            network.load_state_dict(state["networks"][name])
        for name, network in self._averages.items():
            network.load_state_dict(state["averages"][name])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self._sampler.load_state_dict(state["sampler"])
        self._random.load_state_dict(state["random"])


def draw_samples(variant, generator, count, seed, device="cpu"):
    """`count` images from a generator, from the latents that `seed` gives. Leaves PyTorch's default generators as
    they were."""
    if count < 1:
        raise ArgumentError("count", "at least 1", count)
    with RandomStream(check_seed(seed), device), torch.no_grad():
        latents = variant.latents(count, device)
        return torch.cat([generator(part) for part in latents.split(SAMPLING_BATCH)])
