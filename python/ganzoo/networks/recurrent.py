"""The recurrent networks of RGAN: Esteban, Hyland and Rätsch (2017), arXiv:1706.02633: an LSTM, and at every step an affine layer.

cuDNN's LSTM cannot be differentiated twice, as penalties ask; this one is made of PyTorch's plain operations, which can.
"""

import torch
from torch import nn


class LSTM(nn.Module):
    """Sequences (N, T, inputs) to hidden states (N, T, units), from a state of zeros: with σ of the gates i, f and o,

    c ← f c + i tanh(g), h ← o tanh(c), (i, f, g, o) = W x + U h + b, where b begins at 1 for f, so that it remembers.
    """

    def __init__(self, inputs, units):
        super().__init__()
        self.input, self.hidden = nn.Linear(inputs, 4 * units), nn.Linear(units, 4 * units, bias=False)
        nn.init.xavier_uniform_(self.input.weight)
        for gate in self.hidden.weight.chunk(4):
            nn.init.orthogonal_(gate)
        nn.init.zeros_(self.input.bias)
        nn.init.ones_(self.input.bias.chunk(4)[1])

    def forward(self, x):
        h = c = x.new_zeros(len(x), self.hidden.in_features)
        states = []
        for driven in self.input(x).unbind(1):
            i, f, g, o = (driven + self.hidden(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        return torch.stack(states, 1)


class Generator(nn.Sequential):
    """Noise (N, T, latent), fresh at every step, to sequences (N, T, C) in (−1, 1)."""

    def __init__(self, latent, shape, units):
        super().__init__(LSTM(latent, units), nn.Linear(units, shape[1]), nn.Tanh())


class Discriminator(nn.Sequential):
    """Sequences (N, T, C) to raw scores (N, T): at every step one of the sequence so far."""

    def __init__(self, shape, units):
        super().__init__(LSTM(shape[1], units), nn.Linear(units, 1), nn.Flatten(1))
