import torch

import gankernels as gk

from .spec import Spec, randn

_op = torch.ops.gankernels


def _spectral_norm_inputs(shape, dtype, device):
    """A weight and a vector pair for its dimensions 0 and 1, all positive so that sigma is well away from 0."""
    n = torch.Size(shape).numel()
    vectors = [torch.rand(k, dtype=torch.float64) for d in (0, 1) for k in (shape[d], n // max(shape[d], 1))]
    return 1 + 0.3 * randn(shape, dtype, device), *((v / v.norm()).to(device, dtype) for v in vectors)


def _spectral_norm_saved(weight, u0, v0, u1, v1):
    """sigma is a function of the weight: without iterations, that of the vectors given."""
    weight = weight.detach()
    with torch.no_grad():
        return _op.spectral_norm_power_iteration_([weight, weight], [u0, u1], [v0, v1], [0, 1], 0, 1e-12)


def _spectral_norm(weight, *vectors):
    return _op.spectral_normalize([weight, weight], *_spectral_norm_saved(weight, *vectors), [0, 1])


def _spectral_norm_reference(weight, u0, v0, u1, v1):
    return [gk.reference.spectral_norm(weight, u, v, dim, 0)[0] for dim, u, v in ((0, u0, v0), (1, u1, v1))]


def _spectral_norm_bwd(grad, weight, *vectors):
    """For the second layer of the group only."""
    return _op.spectral_normalize_bwd([grad], [weight, weight], *_spectral_norm_saved(weight, *vectors), [0, 1], [1])[0]


def _spectral_norm_bwd_reference(grad, weight, u0, v0, u1, v1):
    matrix = weight.transpose(0, 1).flatten(1)
    sigma = u1 @ matrix @ v1
    rank_one = torch.outer(u1, v1).reshape(weight.transpose(0, 1).shape).transpose(0, 1)
    return grad / sigma - (grad * weight).sum() / sigma**2 * rank_one


SPECS = [
    Spec("spectral_norm", _spectral_norm, _spectral_norm_reference, _spectral_norm_inputs, (0,), (0,), outputs=(0, 1)),
    Spec(
        "spectral_norm_bwd",
        _spectral_norm_bwd,
        _spectral_norm_bwd_reference,
        lambda shape, dtype, device: (randn(shape, dtype, device), *_spectral_norm_inputs(shape, dtype, device)),
        (0, 1),
        (0, 1),
        second_order=False,
    ),
]
