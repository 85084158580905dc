"""Batches that go through a network as one."""

import torch

_TOGETHER = [1]


def as_one_batch(network, *batches):
    """What a network makes of batches of equal size, concatenated, so that they have the statistics of its batch norms in common."""
    _TOGETHER.append(len(batches))
    try:
        return network(torch.cat(batches))
    finally:
        _TOGETHER.pop()


def apart(function, x):
    """Within a network: what a function makes of each of the batches that came as one, by itself."""
    return torch.cat([function(batch) for batch in x.chunk(_TOGETHER[-1])])
