"""Spectral normalisation of all layers of a discriminator, one power iteration in training mode, against
torch.nn.utils.parametrizations.spectral_norm on each layer.

The floor of a forward is two reads of every weight W for the iteration and one read and one write for W/σ. A backward adds two reads
for ⟨G, Ŵ⟩ and one read and one write for the gradient. On a CPU malloc keeps the pages of results that were freed, as it comes to do by
itself in a process that trains.
"""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations

import gankernels as gk

from . import peers
from .harness import Workload, assert_accurate, case, copy_of, keep_pages, nbytes, rotated
from .networks import Weights, biggan128_weights, sngan32_weights

NETWORKS = {"sngan32": sngan32_weights, "biggan128": biggan128_weights}
CHECKED = set()  # both directions are one check, which in float64 takes longer than a measurement


def biggan(SN, plain):
    """The network with BigGAN's normalisation: SN is a base of layers, whose weight W_() reads."""

    class Layer(nn.Module, SN):
        def __init__(self, weight):
            nn.Module.__init__(self)
            self.weight = nn.Parameter(weight.detach().clone())
            SN.__init__(self, 1, 1, len(weight))
            self.to(weight.device)

    class Normalized(Weights):
        def forward(self):
            return [layer.W_() for layer in self]

    return Normalized(Layer(weight) for weight in plain())


PEERS = {"biggan": ("layers", "SN", biggan)}


def prepare(network, direction, device, compiled=False):
    plain = NETWORKS[network]().to(device)
    grads = [torch.randn_like(weight) for weight in plain()]
    size = nbytes(plain)

    def stock():
        model = copy.deepcopy(plain)
        for layer in model:
            parametrizations.spectral_norm(layer)
        return model

    def ours():
        return gk.nn.spectral_norm(copy.deepcopy(plain))

    def run(models):
        def forward(i):
            return models[i % len(models)]()

        def forward_backward(i):
            torch.autograd.backward(forward(i), grads)

        return forward if direction == "forward" else forward_backward

    def forget_gradients(i):
        for model in ours_models + stock_models + [model for models in their_models.values() for model in models]:
            for parameter in model.parameters():
                parameter.grad = None

    def results(model, dtype=torch.float32):
        """Weights and gradients."""
        weights = model()
        torch.autograd.backward(weights, [grad.to(dtype) for grad in grads])
        gradients = [layer.parametrizations.weight.original.grad for layer in model]
        return [weight.detach() for weight in weights] + gradients

    def check():
        if device == "cpu":
            keep_pages(True)
        if (network, device) in CHECKED:
            return
        reference, candidate = stock_models[0], ours_models[0]
        candidate.load_state_dict(reference.state_dict())
        exact = results(copy.deepcopy(reference).double(), torch.float64)
        assert_accurate(results(candidate), results(reference), exact, "W/sigma and its gradient")
        for name, models in their_models.items():  # another order of iterations: close to, where they end
            for layer, normalized in zip(models[0], reference):
                layer.u0.copy_(normalized.parametrizations.weight[0]._u)
            theirs = [weight.detach() for weight in models[0]()]
            assert_accurate(theirs, theirs, exact[: len(theirs)], f"{name}, W/sigma", 2**-7)
        forget_gradients(0)
        CHECKED.add((network, device))

    ours_models, stock_models = rotated(ours, device), rotated(stock, device)
    their_models = {name: rotated(lambda: form(plain), device) for name, form in peers.forms(PEERS).items()}
    variants = {"gankernels": run(ours_models), "stock": run(stock_models)} | {
        name: run(m) for name, m in their_models.items()
    }
    if compiled:
        variants["stock_compiled"] = run([torch.compile(stock_models[0])])
    bytes_moved = size * (4 if direction == "forward" else 8)
    variants["floor"] = copy_of(bytes_moved, device)
    if direction == "forward":
        goals = {"stock": 1.0, "floor": 1 / 1.5}
    else:
        goals = {"stock": 10.0 if device == "cuda" and network == "biggan128" else 2.0}
    return Workload(variants, check, forget_gradients, bytes=bytes_moved, goals=goals)


def the_peers(combination):
    return peers.names(PEERS)


@case("gankernels", "stock", "floor", extra=the_peers, network=NETWORKS, direction=["forward", "forward_backward"])
def test_spectral_norm(device, network, direction):
    return prepare(network, direction, device)


@case(
    "gankernels", "stock", "stock_compiled", "floor", tier="full", network=["sngan32"], direction=["forward_backward"]
)
def test_spectral_norm_compiled(device, network, direction):
    return prepare(network, direction, device, compiled=True)
