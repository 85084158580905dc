from dataclasses import dataclass

import torch

from ganzoo.options import NotNegative
from ganzoo.techniques.base import Technique, followed, register, with_term
from ganzoo.variants.base import Regularizer


@register("historical-averaging")
@dataclass
class HistoricalAveraging(Technique):
    """Historical averaging: every player's loss has w·‖θ − (1/t) Σ_{i≤t} θ[i]‖², which keeps it from circling.

    Source: Salimans et al. (2016), arXiv:1606.03498, section 3.3.
    """

    weight: NotNegative = 1.0
    """w."""
    order = 1

    def networks(self, data, ops):
        networks = self.variant.networks(data, ops)
        for name, player in self.variant.players(ops).items():
            networks.register_buffer(f"history_of_{name}", torch.zeros(weights(networks, player).numel() + 1))
        return networks

    def enter(self, networks, draw, ops):
        self.variant.enter(networks, draw, ops)
        for name, player in self.variant.players(ops).items():  # anew in every phase, as the optimisers
            history = getattr(networks, f"history_of_{name}")
            history[:-1], history[-1] = weights(networks, player), 1  # the last is t

    def players(self, ops):
        return {name: self._held(name, player) for name, player in self.variant.players(ops).items()}

    def _held(self, name, player):
        def distance(networks, draw, ops):
            mean = getattr(networks, f"history_of_{name}")[:-1]
            return self.weight * (weights(networks, player) - mean).square().sum(), {}

        def remember(networks, figures):
            history = getattr(networks, f"history_of_{name}")
            mean, length = history[:-1], history[-1].add_(1)
            mean.add_((weights(networks, player) - mean) / length)

        return followed(with_term(player, **{f"history_of_{name}": Regularizer(distance)}), remember)


def weights(networks, player):
    """All weights of a player's networks in one tensor."""
    return torch.cat([p.flatten() for network in player.networks for p in getattr(networks, network).parameters()])
