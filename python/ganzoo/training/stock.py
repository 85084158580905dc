"""What `ganzoo.training.ops` asks for, in stock PyTorch and as PyTorch users write it: the other side of the speed
comparison."""

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import get_ema_multi_avg_fn


def gradient_penalty(critic, real, fake, *, eps, weight=10.0, one_sided=False):
    """weight·E (‖∇f(x̂)‖₂ − 1)² over x̂ = εx + (1 − ε)G(z), ε (N,) one number per sample, by
    `autograd.grad(create_graph=True)`; one-sided, only of norms above 1."""
    eps = eps.reshape(-1, *[1] * (real.dim() - 1))
    mixed = (eps * real + (1 - eps) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    excess = gradient.flatten(1).norm(dim=1) - 1
    return weight * (excess.relu() if one_sided else excess).square().mean()


def regularized_scores(critic, x, gamma):
    """D(x) and γ/2·E ‖∇D(x)‖² by `autograd.grad(create_graph=True)`."""
    x = x.detach().requires_grad_()
    scores = critic(x)
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return scores, gamma / 2 * gradient.flatten(1).square().sum(1).mean()


def r1_penalty(critic, real, gamma=10.0):
    """γ/2·E ‖∇D(x)‖²."""
    return regularized_scores(critic, real, gamma)[1]


def path_length_penalty(synthesis, w, mean_length, noise):
    """E (‖Jᵀy‖ − a)² by `autograd.grad(create_graph=True)`, and the lengths: with one w per layer the root of the mean over the layers of
    their squares."""
    w = w if w.requires_grad else w.detach().requires_grad_()
    (gradient,) = torch.autograd.grad((synthesis(w) * noise).sum(), w, create_graph=True)
    lengths = gradient.square().sum(-1).reshape(len(w), -1).mean(1).sqrt()
    return (lengths - mean_length).square().mean(), lengths.detach()


def spectral_norm(network):
    """`torch.nn.utils.parametrizations.spectral_norm` on every convolution, linear layer and embedding of the network, which is
    returned."""
    for layer in list(network.modules()):
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)):
            parametrizations.spectral_norm(layer)
    return network


class _ClipAndAverage:
    """Adds `clip` and `ema` to one of torch.optim's optimisers, as passes of their own after its step."""

    def __init__(self, params, *, clip=None, ema=None, ema_decay=0.999, **options):
        params = list(params)
        super().__init__(params, **options)
        self._params, self._clip, self._ema = params, clip, ema and list(ema)
        self._average = get_ema_multi_avg_fn(ema_decay)

    @torch.no_grad()
    def step(self):
        super().step()
        if self._clip is not None:
            for param in self._params:
                param.clamp_(-self._clip, self._clip)
        if self._ema:
            self._average(self._ema, self._params, None)


class Adam(_ClipAndAverage, torch.optim.Adam):
    pass


class RMSprop(_ClipAndAverage, torch.optim.RMSprop):
    pass
