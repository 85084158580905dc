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


def apart(x):
    """Within a network: the batches that came as one, for a layer that compares the samples of each by themselves."""
    return x.chunk(_TOGETHER[-1])
