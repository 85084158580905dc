from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from ganzoo.errors import Error
from ganzoo.networks.batches import apart
from ganzoo.options import Count
from ganzoo.techniques.base import Technique, each, register
from ganzoo.techniques.feature_matching import last_layer
from ganzoo.training import distributed


@register("minibatch-discrimination")
@dataclass
class MinibatchDiscrimination(Technique):
    """Minibatch discrimination: judges see how close each sample is to the others of its batch, so that a collapsed batch gives itself away.

    The last layer is given o(x_i)_b = Σ_{j≠i} exp(−‖M_ib − M_jb‖₁), M = f(x) T, beside f(x). Real and generated batches are judged apart:
    mixed, a collapsed batch would hide among the reals.

    Source: Salimans et al. (2016), arXiv:1606.03498, section 3.2.
    """

    features: Count = 16
    """b, how many similarities each sample gets."""
    dims: Count = 8
    """Dimensions in which a distance is taken."""

    def networks(self, data, ops):
        networks = self.variant.networks(data, ops)
        for name in self.judges_of(networks):
            for judge in each(getattr(networks, name)):
                path = last_layer(judge)
                layer = judge.get_submodule(path) if path else None
                if not isinstance(layer, nn.Linear):
                    self.refuse(f"the last layer of its {name} is not a dense one")
                if parametrize.is_parametrized(layer):
                    self.refuse(f"the weights of its {name} are normalised, and those of the new layers would not be")
                judge.set_submodule(path, Amid(layer, self.features, self.dims, ops.minibatch_discrimination))
        return networks


class Amid(nn.Module):
    """A dense layer that is given similarities within the batch, of all processes, beside its input; their weights start as widely spread
    as its own."""

    def __init__(self, layer, features, dims, op):
        super().__init__()
        inputs, self.op = layer.in_features, op
        self.T = nn.Parameter(torch.randn(inputs, features, dims) / inputs**0.5)
        self.layer = nn.Linear(inputs + features, layer.out_features, bias=layer.bias is not None)
        with torch.no_grad():
            self.layer.weight.normal_(0, layer.weight.std().item())
            self.layer.weight[:, :inputs] = layer.weight
            if layer.bias is not None:
                self.layer.bias.copy_(layer.bias)

    def forward(self, x):
        if x.dim() != 2:
            raise Error(
                "minibatch-discrimination does not fit a discriminator that scores every step of a sample by itself."
            )
        return self.layer(torch.cat([x, apart(self.similarities, x)], 1))

    def similarities(self, x):
        start = distributed.rank() * len(x)
        others = self.op(distributed.whole(x), self.T.to(x.dtype)) - 1  # without the sample itself
        return others[start : start + len(x)]
